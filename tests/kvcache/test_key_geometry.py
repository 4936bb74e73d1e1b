"""Cosines, collapse, spectra and sinks: planted structure is found, chance is chance."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from gonio.errors import SettingError, ShapeError
from gonio.kvcache import Frame, rotation_convergence, sign_cosine_table
from gonio.kvcache.collapse import (
    angle_of_random_direction,
    channel_tail,
    collapse_table,
    dominant_directions,
    line_angles,
    moment_ratio,
)
from gonio.kvcache.geometry import beta_of_random_direction
from gonio.kvcache.moments import MomentSums
from gonio.kvcache.observation import ObservationSettings, observe_attention
from gonio.kvcache.sinks import SinkSettings, norm_ratio, received_attention
from gonio.kvcache.spectra import eigenvalue_table, spectra_table
from gonio.linalg import haar_rotation
from gonio.linalg.chance import sign_cosine_of_random_direction
from gonio.quant.sign import population_beta, sign_cosine


def moments_of(vectors):
    sums = MomentSums(vectors.shape[0], vectors.shape[-1])
    sums.add(vectors[:, None])
    return sums.moments()


def gaussian(rng, heads=2, tokens=600, dim=16):
    return torch.randn((heads, tokens, dim), generator=rng)


def test_the_table_is_the_mean_over_tokens_whatever_the_windows(rng):
    """Cosine and beta are those of quant.sign on all tokens; windows only make the interval."""
    vectors = gaussian(rng) * torch.logspace(0, -1, 16)
    windows = torch.arange(600) // 60
    table = sign_cosine_table([vectors], windows, {"none": [Frame()]})
    expected = sign_cosine(vectors).mean(dim=-1).numpy()
    np.testing.assert_allclose(table["mean_cosine"], expected, rtol=1e-6)
    np.testing.assert_allclose(table["beta"], population_beta(vectors).numpy(), rtol=1e-5)
    for name, low, high in (("mean_cosine", "low", "high"), ("beta", "beta_low", "beta_high")):
        assert (table[low] < table[name]).all()
        assert (table[name] < table[high]).all()
    single = sign_cosine_table([vectors], torch.zeros(600, dtype=torch.long), {"none": [Frame()]})
    assert single[["low", "high", "beta_low", "beta_high"]].isna().all(axis=None)


def test_intervals_are_as_wide_as_the_windows_vary(rng):
    """Tokens equal within their window: the interval is that of the windows, not of the tokens."""
    each = gaussian(rng, 1, 12)
    repeated = each.repeat_interleave(50, dim=1)
    windows = torch.arange(12).repeat_interleave(50)
    row = sign_cosine_table([repeated], windows, {"none": [Frame()]}).iloc[0]
    cosines = sign_cosine(each)[0].double()
    expected = 2 * 1.96 * cosines.std(correction=0).item() / math.sqrt(12)
    assert row["high"] - row["low"] == pytest.approx(expected, rel=0.15)


def test_lattice_keys_have_cosine_one_and_a_rotation_takes_them_to_chance(rng):
    signs = torch.randn((1, 4000, 16), generator=rng).sign()
    keys = signs * torch.rand((1, 4000, 1), generator=rng).add(0.1)
    windows = torch.arange(4000) // 400
    frames = {"none": [Frame()], "haar": [Frame(haar_rotation(16, rng)[None])]}
    table = sign_cosine_table([keys], windows, frames).set_index("transform")
    assert table.loc["none", "mean_cosine"] == pytest.approx(1, abs=1e-6)
    assert table.loc["none", "beta"] == pytest.approx(1, abs=1e-6)
    assert table.loc["haar", "mean_cosine"] < 0.9


@pytest.mark.parametrize("centered", [False, True])
@pytest.mark.parametrize("dim", [2, 5, 16])
def test_chance_is_what_random_directions_give(dim, centered, rng):
    """Closed forms against simulation; the other one of the two forms is rejected."""
    vectors = gaussian(rng, 1, 40_000, dim)
    frame = Frame(token_dc=centered)
    row = sign_cosine_table([vectors], torch.arange(40_000) // 400, {"x": [frame]}).iloc[0]
    turned = frame.apply(vectors[None])[0][0, 0].double()
    unit = turned / turned.norm(dim=-1, keepdim=True)
    beta = unit.abs().sum(dim=-1).square() / dim
    error = beta.std().item() / 200
    assert abs(beta.mean().item() - row["beta_chance"]) < 4 * error + 1e-3 * centered
    assert row["chance"] == pytest.approx(sign_cosine_of_random_direction(dim - centered))
    assert row["mean_cosine"] == pytest.approx(row["chance"], abs=4 * error + 1e-3)
    assert beta_of_random_direction(1, centered=centered) == (0.0 if centered else 1.0)
    other = beta_of_random_direction(dim, centered=not centered)
    assert dim == 16 or abs(beta.mean().item() - other) > 4 * error


def test_many_haar_rotations_average_to_chance(rng):
    vectors = gaussian(rng, 2, 40, 8) + 1.0
    frames = {str(i): [Frame(haar_rotation(8, rng)[None])] for i in range(200)}
    table = sign_cosine_table([vectors], torch.arange(40) // 10, frames)
    means = table.groupby("transform")["mean_cosine"].mean()
    error = means.std() / math.sqrt(len(means))
    chance = sign_cosine_of_random_direction(8)
    assert abs(means.mean() - chance) < 4 * error
    assert abs(means.mean() - math.sqrt(2 / math.pi)) > 4 * error  # the limit is not c_8


def test_convergence_starts_low_and_ends_high_from_every_start(rng):
    samples = [gaussian(rng, 2, 300, 8) * torch.logspace(0, -1, 8) for _ in range(2)]
    table = rotation_convergence(samples, [0, 1], iterations=15, seeds=(0, 1))
    assert set(table["start"]) == {"random", "hadamard"}
    assert len(table) == 2 * 2 * 2 * 16
    by_step = table.groupby("iteration")["mean_cosine"].mean()
    assert by_step[15] > by_step[0] + 0.02
    assert set(rotation_convergence([gaussian(rng, 1, 50, 10)], [0])["start"]) == {"random"}


def test_samples_must_fit_their_windows(rng):
    with pytest.raises(ShapeError, match="layer 0 has 600 tokens"):
        sign_cosine_table([gaussian(rng)], torch.zeros(599, dtype=torch.long), {"x": [Frame()]})


def test_the_angle_of_keys_on_a_line_is_zero_and_of_random_ones_is_chance(rng):
    direction = torch.randn((1, 16), generator=rng)
    on_line = direction[:, None] * torch.randn((1, 500, 1), generator=rng)
    found = dominant_directions(moments_of(on_line))
    assert line_angles(on_line.double(), found).max() < 1e-3
    tilted = torch.tensor([[[1.0, 1.0], [0.0, -3.0], [0.0, 0.0]]])
    angles = line_angles(tilted, torch.tensor([[2.0, 0.0]]))[0]
    assert angles[:2].tolist() == pytest.approx([45.0, 90.0])
    assert angles[2].isnan()
    many = gaussian(rng, 1, 40_000)
    table = collapse_table("key_post", [many], [moments_of(many)], [direction])
    assert table["phase_angle"][0] == pytest.approx(table["angle_chance"][0], abs=0.5)
    assert table["lattice_angle"][0] == pytest.approx(table["angle_chance"][0], abs=0.5)
    assert angle_of_random_direction(2) == pytest.approx(45.0)


def test_moment_ratio_and_tails_are_those_of_known_laws(rng):
    """Gaussian 2/pi and 0, signs 1 and -2, Laplace 1/2 and 3; SciPy's kurtosis is another route."""
    normal = gaussian(rng, 1, 50_000, 1)
    signs = normal.sign()
    laplace = torch.from_numpy(stats.laplace.rvs(size=(1, 50_000, 1), random_state=3))
    channels = torch.cat([normal, signs, laplace.float(), torch.full_like(normal, 100.0)], dim=-1)
    shifted = channels + torch.tensor([100.0, 0.0, 0.0, 0.0])
    sums = moments_of(shifted)
    ratios, (kurtosis, share) = moment_ratio(sums)[0], channel_tail(sums)
    assert ratios[1].item() == pytest.approx(1.0)
    assert ratios[2].item() == pytest.approx(0.5, abs=0.02)
    assert moment_ratio(moments_of(normal))[0, 0].item() == pytest.approx(2 / math.pi, abs=0.01)
    expected = stats.kurtosis(shifted[0, :, :3].double().numpy())
    np.testing.assert_allclose(kurtosis[0, :3].numpy(), expected, rtol=1e-4, atol=1e-4)
    assert kurtosis[0, 3].isnan()
    energy = shifted.double().square().sum(dim=1)[0]
    assert share.item() == pytest.approx((energy.max() / energy.sum()).item())


def test_spectra_are_the_squared_singular_values_of_the_vectors(rng):
    vectors = gaussian(rng) * torch.logspace(0, -1, 16)
    moments = {"key_post": [moments_of(vectors)]}
    sigma = torch.linalg.svdvals(vectors.double())
    shares = sigma.square() / sigma.square().sum(dim=-1, keepdim=True)
    table = eigenvalue_table(moments)
    np.testing.assert_allclose(table["share"], shares.mean(dim=0), rtol=1e-4)
    row = spectra_table(moments).iloc[1]
    assert row["energy"] == pytest.approx(vectors[1].square().sum(dim=-1).mean().item(), rel=1e-5)
    assert row["top_share"] == pytest.approx(shares[1, 0].item(), rel=1e-4)
    entropy = stats.entropy(shares[1].numpy())
    assert row["effective_rank"] == pytest.approx(math.exp(entropy), rel=1e-4)
    assert row["stable_rank"] == pytest.approx(
        (shares[1].square().sum() / shares[1, 0] ** 2).item(), rel=1e-4
    )


def test_even_attention_is_at_its_chance_and_a_planted_sink_above():
    tokens, rows = 12, torch.tensor([0, 5, 8, 11])
    visible = (torch.arange(tokens) <= rows[:, None]) & (torch.arange(tokens) > rows[:, None] - 6)
    even = (visible / visible.sum(dim=-1, keepdim=True))[None].expand(3, -1, -1)
    received, chance = received_attention(even, rows, visible)
    later = (visible & (rows[:, None] > torch.arange(tokens))).any(dim=0)
    assert torch.equal(received.isnan()[0], ~later)
    torch.testing.assert_close(received[0][later], chance[later])
    to_two = torch.zeros(3, 4, tokens)
    to_two[:, :, 2] = 1.0
    assert received_attention(to_two, rows, visible)[0][:, 2].tolist() == [1.0] * 3
    few = received_attention(even, rows, visible, least_queries=2)[0][0]
    assert few.isnan().sum() > received[0].isnan().sum()


def test_a_sink_planted_in_a_model_is_found(make_model, tokens):
    """GPT-2 whose queries all point along the key of the token at position 5."""
    model = make_model("gpt2")
    block = model.transformer.h[1]
    with torch.no_grad():
        model.transformer.wpe.weight[5, 0] = 4000.0
        width = block.attn.embed_dim
        block.attn.c_attn.bias[:width] = 30.0
        block.attn.c_attn.weight[0, width : 2 * width] = 3.0
        block.attn.c_attn.weight[0, 2 * width :] *= 0.0
    table = observe_attention(
        model, tokens, ObservationSettings(sinks=SinkSettings(queries=24))
    ).sinks
    found = table[(table["layer"] == 1) & (table["criterion"] == "attention")]
    assert found["found"].sum() == len(tokens)
    assert set(found["first_position"]) == set(found["last_position"]) == {5}
    assert set(found["token_id"]) == set(tokens[:, 5].tolist())
    assert (found["value"] > 0.9).all()
    assert (found["chance"] < 0.2).all()
    plain = observe_attention(
        make_model("gpt2"), tokens, ObservationSettings(sinks=SinkSettings(attention=0.9))
    ).sinks
    assert not (plain["criterion"] == "attention").any()


def test_leading_tokens_are_means_of_the_models_own_attention_and_norms(make_model, tokens):
    """Attention from transformers, norms from the sample, which holds every token."""
    model = make_model("gpt2")
    length = tokens.shape[1]
    settings = SinkSettings(queries=length, least_queries=4)
    found = observe_attention(
        model, tokens, ObservationSettings(samples=tokens.numel(), sinks=settings)
    )
    table = found.leading_tokens
    assert table["position"].tolist() == [*range(8)] * found.layout.num_layers
    model.set_attn_implementation("eager")
    weights = model(tokens, output_attentions=True).attentions
    for layer, each in enumerate(weights):
        mine = table[table["layer"] == layer]
        for at in range(8):
            received = each[:, :, at + 1 :, at].double().mean().item()
            assert mine["attention"].iloc[at] == pytest.approx(received, rel=1e-4)
            even = np.mean([1 / (row + 1) for row in range(at + 1, length)])
            assert mine["chance"].iloc[at] == pytest.approx(even)
        for stage, column in (("key_post", "key_norm"), ("value", "value_norm")):
            norms = found.samples[stage][layer].double().norm(dim=-1)  # (heads, all tokens)
            logs = torch.zeros(8).double()
            for window in range(len(tokens)):
                inside = norms[:, found.windows == window]
                order = found.positions[found.windows == window].argsort()
                ratios = inside[:, order] / inside.median(dim=1, keepdim=True).values
                logs += ratios[:, :8].log().mean(dim=0) / len(tokens)
            np.testing.assert_allclose(mine[column], logs.exp().numpy(), rtol=1e-4)


def test_leading_tokens_of_short_windows(make_model, tokens):
    """Three positions; none is followed by four queries, so none is judged by attention."""
    short = tokens[:, :3]
    table = observe_attention(
        make_model("gpt2"), short, ObservationSettings(sinks=SinkSettings())
    ).leading_tokens
    assert sorted(set(table["position"])) == [0, 1, 2]
    assert table["attention"].isna().all()
    assert (table["key_norm"] > 0).all()


def test_norm_outliers_are_those_far_from_the_median(rng):
    vectors = gaussian(rng, 2, 50)
    vectors = vectors / vectors.norm(dim=-1, keepdim=True)
    vectors[:, 7] *= 10
    vectors[:, 9] *= 0.1
    ratio = norm_ratio(vectors)
    assert ratio[7].item() == pytest.approx(10, rel=1e-3)
    assert ratio[9].item() == pytest.approx(0.1, rel=1e-3)
    assert ratio[8].item() == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize(
    "wrong", [{"attention": 0.0}, {"norm_ratio": 1.0}, {"queries": 2}, {"least_queries": 0}]
)
def test_impossible_thresholds_are_refused(wrong):
    with pytest.raises(SettingError, match="sinks need"):
        SinkSettings(**wrong)
