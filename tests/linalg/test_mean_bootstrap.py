"""The quicker way to intervals of means, beside scipy's bootstrap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from gonio.linalg.mean_bootstrap import mean_bootstrap_interval
from gonio.linalg.resampling import bootstrap_interval, cluster_bootstrap_interval


def of_scipy(values, sizes, confidence, resamples, seed):
    def mean(values, sizes, axis):
        return (values * sizes).sum(axis=axis) / sizes.sum(axis=axis)

    found = stats.bootstrap(
        (values, sizes),
        mean,
        paired=True,
        n_resamples=resamples,
        confidence_level=confidence,
        method="BCa",
        rng=np.random.default_rng(seed),
    )
    return found.confidence_interval.low, found.confidence_interval.high


@given(
    n=st.integers(16, 300),
    seed=st.integers(0, 5),
    confidence=st.sampled_from([0.5, 0.9, 0.95, 0.999]),
    skew=st.sampled_from([0.0, 0.5, 2.0]),
    scale=st.sampled_from([1e-40, 1e-6, 1.0, 1e6, 1e40]),
    is_even=st.booleans(),
)
def test_the_interval_is_that_of_scipy(n, seed, confidence, skew, scale, is_even):
    rng = np.random.default_rng([n, seed])
    values = scale * np.exp(skew * rng.normal(size=n)) + scale * rng.normal(size=n)
    sizes = np.ones(n) if is_even else rng.integers(1, 9, n).astype(float)
    found = mean_bootstrap_interval(values, sizes, confidence, 400, seed)
    expected = of_scipy(values, sizes, confidence, 400, seed)
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12 * scale)
    other = of_scipy(values, sizes, confidence, 400, seed + 1)
    assert found != pytest.approx(other, rel=1e-9, abs=1e-12 * scale)


def test_equal_values_have_no_such_interval_and_long_samples_take_too_much_memory():
    low, high = mean_bootstrap_interval(np.ones(20), np.ones(20), 0.95, 100, 0)
    assert np.isnan([low, high]).all()
    assert mean_bootstrap_interval(np.arange(2000.0), np.ones(2000), 0.95, 2000, 0) is None
    assert bootstrap_interval(np.ones(20)).method.startswith("percentile")


@pytest.mark.parametrize("n", [5, 15, 16, 40, 600])
def test_every_number_of_values_gives_what_scipy_gives(n):
    """Few values and many go through scipy itself."""
    values = np.random.default_rng(n).lognormal(size=n)
    found = bootstrap_interval(values, seed=3)
    low, high = stats.bootstrap(
        (values,), np.mean, n_resamples=2000, method="BCa", rng=np.random.default_rng(3)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((low, high), rel=1e-12)


def test_clusters_of_many_sizes_give_what_scipy_gives():
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(30), rng.integers(1, 6, 30))
    values = rng.normal(size=len(clusters)) + rng.normal(size=30)[clusters]
    found = cluster_bootstrap_interval(values, clusters.tolist(), seed=2)
    sizes = np.bincount(clusters).astype(float)
    means = np.bincount(clusters, weights=values) / sizes
    expected = of_scipy(means, sizes, 0.95, 2000, 2)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-12)
