"""Bootstrap intervals and permutation tests: coverage, fallbacks and known p-values."""

import math
import warnings

import numpy as np
import pytest
import scipy.stats
import torch

from gonio.errors import SettingError, ShapeError
from gonio.linalg import bootstrap_interval, paired_bootstrap_interval, permutation_p_value
from gonio.linalg.resampling import cluster_bootstrap_interval


def normal(size, rng):
    return torch.randn(size, generator=rng, dtype=torch.float64)


def test_interval_is_near_the_t_interval(rng):
    """400 normal values: ends within 15 % of the half width of Student's."""
    values = normal(400, rng).numpy()
    found = bootstrap_interval(values, resamples=4000)
    low, high = scipy.stats.t.interval(0.95, 399, values.mean(), scipy.stats.sem(values))
    slack = 0.15 * (high - low) / 2
    assert abs(found.low - low) < slack
    assert abs(found.high - high) < slack
    assert found.confidence == 0.95
    assert found.method == "BCa"
    narrow = bootstrap_interval(values, resamples=4000, confidence=0.5)
    assert low < narrow.low < values.mean() < narrow.high < high


def test_coverage_of_the_mean(rng):
    """300 samples of 40: the 90 % interval covers 0 in 90 % +- 4.5 standard errors."""
    data = normal((300, 40), rng).numpy()
    covered = 0
    for seed, row in enumerate(data):
        interval = bootstrap_interval(row, confidence=0.9, resamples=400, seed=seed)
        covered += interval.low <= 0 <= interval.high
    assert abs(covered / 300 - 0.9) < 4.5 * math.sqrt(0.9 * 0.1 / 300)


def test_median_and_inputs_agree(rng):
    values = normal(60, rng)
    expected = bootstrap_interval(values.tolist(), "median", seed=3)
    assert bootstrap_interval(values, "median", seed=3) == expected
    assert bootstrap_interval(values.numpy(), "median", seed=3) == expected
    assert bootstrap_interval(values, "median", seed=4) != expected
    assert expected.low < float(values.median()) < expected.high
    assert bootstrap_interval(values.requires_grad_(), "median", seed=3) == expected


def test_undefined_bca_falls_back_and_says_so():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap_interval([2.0, 2.0, 2.0])
    assert (found.low, found.high) == (2.0, 2.0)
    assert found.method.startswith("percentile (BCa undefined")


def test_many_values_use_percentiles(rng):
    found = bootstrap_interval(normal(10_001, rng), resamples=200)
    assert found.method == "percentile (more than 10,000 values)"
    assert abs(found.high - found.low - 2 * 1.96 / 100) < 0.01


def test_pairs_are_resampled_together(rng):
    """A constant shift over widely spread values: the paired interval is a point."""
    spread = 100 * normal(30, rng)
    found = paired_bootstrap_interval(spread + 1, spread)
    assert found.low == pytest.approx(1.0, abs=1e-12)
    assert found.high == pytest.approx(1.0, abs=1e-12)
    noisy = paired_bootstrap_interval(spread + 1 + 0.1 * normal(30, rng), spread)
    assert 0.85 < noisy.low < noisy.high < 1.15


@pytest.mark.parametrize(
    ("alternative", "expected"),
    [("two-sided", 2 / 20), ("greater", 1 / 20), ("less", 1.0)],
)
def test_exact_permutation_p_values(alternative, expected):
    """Three against three, fully separated: 1 of the 20 labelings is as extreme on that side."""
    found = permutation_p_value([4.0, 5.0, 6.0], [1.0, 2.0, 3.0], alternative=alternative)
    assert found == pytest.approx(expected, abs=1e-12)


def test_random_permutations(rng):
    x, y = normal(80, rng), normal(70, rng)
    null = permutation_p_value(x, y, resamples=999)
    t_test = scipy.stats.ttest_ind(x.numpy(), y.numpy()).pvalue
    assert abs(null - t_test) < 4.5 * math.sqrt(t_test * (1 - t_test) / 999) + 0.02
    assert permutation_p_value(x + 2, y, resamples=999) == pytest.approx(2 / 1000)
    assert permutation_p_value(x + 2, y, "median", resamples=999) < 0.01
    assert permutation_p_value(x, y, resamples=999) == null


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        (([1.0],), SettingError, "at least 2"),
        (([1.0, math.nan],), SettingError, "NaN"),
        (([[1.0, 2.0]],), ShapeError, "one dimension"),
        (([1.0, 2.0], "mode"), SettingError, "mean, median"),
        (([1.0, 2.0], "mean", 1.0), SettingError, "confidence"),
        (([1.0, 2.0], "mean", 0.9, 0), SettingError, "resamples"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_arguments(arguments, error, words):
    with pytest.raises(error, match=words):
        bootstrap_interval(*arguments)


def test_wrong_pairs_and_groups():
    with pytest.raises(ShapeError, match="3 and 2"):
        paired_bootstrap_interval(np.ones(3), np.ones(2))
    with pytest.raises(SettingError, match="three values"):
        permutation_p_value([1.0], [2.0])
    with pytest.raises(SettingError, match="alternative"):
        permutation_p_value([1.0, 2.0], [2.0], alternative="bigger")


def test_clusters_of_one_are_plain_values(rng):
    values = normal(50, rng)
    assert cluster_bootstrap_interval(values, range(50), seed=2) == bootstrap_interval(
        values, seed=2
    )


def test_repeated_values_add_nothing(rng):
    """Each value five times: by cluster the interval stays, by value it shrinks to 1/sqrt(5)."""
    values = normal(40, rng)
    repeated = values.repeat_interleave(5)
    once = bootstrap_interval(values)
    found = cluster_bootstrap_interval(repeated, [i // 5 for i in range(200)])
    assert found.low == pytest.approx(once.low, abs=1e-12)
    assert found.high == pytest.approx(once.high, abs=1e-12)
    naive = bootstrap_interval(repeated)
    assert naive.high - naive.low < 0.6 * (found.high - found.low)


def test_the_order_of_values_does_not_matter(rng):
    """Clusters found in the same order, their values apart or together: the same interval."""
    values = normal(60, rng)
    together = cluster_bootstrap_interval(values, [i // 10 for i in range(60)])
    apart = cluster_bootstrap_interval(values.reshape(6, 10).T.flatten(), list(range(6)) * 10)
    assert apart.low == pytest.approx(together.low, abs=1e-12)
    assert apart.high == pytest.approx(together.high, abs=1e-12)


def test_coverage_of_clustered_values(rng):
    """Values that share three quarters of their variance within clusters of 4, 300 samples.

    The 90 % interval over 30 clusters covers 0 in about 90 % (a bootstrap of so few clusters falls
    a few points short); the interval over the 120 values covers far less.
    """
    shared = normal((300, 30), rng).repeat_interleave(4, dim=1)
    data = (shared * math.sqrt(0.75) + normal((300, 120), rng) * math.sqrt(0.25)).numpy()
    clusters = [i // 4 for i in range(120)]
    covered = naive = 0
    for seed, row in enumerate(data):
        interval = cluster_bootstrap_interval(row, clusters, 0.9, 400, seed)
        covered += interval.low <= 0 <= interval.high
        plain = bootstrap_interval(row, "mean", 0.9, 400, seed)
        naive += plain.low <= 0 <= plain.high
    assert abs(covered / 300 - 0.88) < 4.5 * math.sqrt(0.9 * 0.1 / 300)
    assert naive / 300 < 0.75


def test_unequal_clusters_keep_the_mean_of_all_values():
    """The interval is of the mean over values, not of the mean of cluster means."""
    values = [1.0] * 90 + [3.0] * 10 + [1.1] * 90
    clusters = ["a"] * 90 + ["b"] * 10 + ["c"] * 90
    found = cluster_bootstrap_interval(values, clusters)
    # Without b the mean is at most 1.1; the mean of cluster means would be 1.7.
    assert found.low <= 1.1
    assert 1.0 <= found.low <= sum(values) / len(values) <= found.high <= 3.0


def test_wrong_clusters():
    with pytest.raises(ShapeError, match="3 values belong to 2 clusters"):
        cluster_bootstrap_interval([1.0, 2.0, 3.0], [0, 1])
    with pytest.raises(SettingError, match="one cluster"):
        cluster_bootstrap_interval([1.0, 2.0], ["a", "a"])
    with pytest.raises(SettingError, match="confidence"):
        cluster_bootstrap_interval([1.0, 2.0], ["a", "b"], 1.0)
