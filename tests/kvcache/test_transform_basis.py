"""The weighted basis is the best in its metric; metrics are those of the model's own gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy

from gonio.errors import ModelError, SettingError, ShapeError
from gonio.kvcache.quantizer_design import cell_edges, design_cells, design_levels
from gonio.kvcache.sensitivity import collect_metrics
from gonio.kvcache.weighted_basis import fit_basis, head_moments
from gonio.linalg.rotations import haar_rotation
from gonio.quant.rate import reverse_water_filling
from gonio.quant.scalar import gaussian_lloyd_max


def spread(dim, rng, power=2.0, heads=2):
    """Symmetric positive matrices whose eigenvalues fall off."""
    turn = haar_rotation(dim, rng, batch=(heads,)).double()
    return turn * torch.arange(1, dim + 1).double().pow(-power) @ turn.mT


def limit(variances, bits=2.0):
    return reverse_water_filling(variances, bits).distortion.sum()


def test_no_random_basis_of_the_metric_has_a_lower_gaussian_distortion(rng):
    metric, covariance = spread(16, rng), spread(16, rng)
    basis, variances = fit_basis(torch.zeros(2, 16), covariance, metric, floor=1e-12)
    best = limit(variances.flatten())
    analysis = basis.analysis.double()
    found = (analysis @ covariance @ analysis.mT).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(found, variances, rtol=1e-4, atol=1e-6)
    for _ in range(50):
        turn = haar_rotation(16, rng, batch=(2,)).double() @ analysis
        other = (turn @ covariance @ turn.mT).diagonal(dim1=-2, dim2=-1)
        assert limit(other.flatten()) > best * 1.01


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12), st.sampled_from([1e-6, 1.0, 1e5]))
def test_the_basis_is_inverted_and_its_squared_length_is_the_metric(dim, tokens, scale):
    """Also with fewer tokens than dimensions, one token, and singular metrics."""
    rng = torch.Generator().manual_seed(dim * 100 + tokens)
    x = scale * torch.randn(1, 2, tokens, dim, generator=rng)
    queries = torch.randn(2, max(1, dim // 2), dim, generator=rng).double()
    basis, variances = fit_basis(*head_moments(x), queries.mT @ queries, floor=1e-3)
    back = basis.undo(basis.apply(x), 1)
    torch.testing.assert_close(back, x, rtol=1e-3, atol=1e-3 * scale)
    assert variances.shape == (2, dim)
    assert bool((variances >= 0).all())
    assert bool((variances.diff(dim=-1) <= 1e-9 * variances[:, :1] + 1e-30).all())


def test_squared_error_of_coordinates_is_the_error_of_scores(rng):
    queries = torch.randn(2, 300, 8, generator=rng).double()
    metric = queries.mT @ queries / 300
    x = torch.randn(1, 2, 50, 8, generator=rng)
    basis, _ = fit_basis(*head_moments(x), metric, floor=1e-12)
    error = 0.1 * torch.randn(1, 2, 50, 8, generator=rng)
    scores = (error[0].double() @ queries.mT).square().mean(dim=-1).sum()
    found = (basis.apply(x + error) - basis.apply(x)).square().sum().double()
    torch.testing.assert_close(found, scores, rtol=1e-4, atol=0)
    assert abs(found / error.square().sum() - 1) > 0.01  # which the plain error is not


def test_what_does_not_fit_is_refused(rng):
    metric = spread(4, rng)
    with pytest.raises(ShapeError, match="num_kv_heads, dim, dim"):
        fit_basis(torch.zeros(2, 5), spread(5, rng), metric)
    with pytest.raises(SettingError, match="floor"):
        fit_basis(torch.zeros(2, 4), metric, metric, floor=0)
    with pytest.raises(SettingError, match="finite"):
        fit_basis(torch.zeros(2, 4), metric, metric * torch.nan)
    basis, _ = fit_basis(torch.zeros(2, 4), metric, metric)
    with pytest.raises(ShapeError, match="2 heads of 4"):
        basis.apply(torch.zeros(1, 3, 8, 4))


def test_lloyd_levels_of_normal_samples_are_those_of_the_law(rng):
    rows = 3 * torch.randn(2, 40000, generator=rng)
    for width in (0, 1, 2, 3):
        levels, error = design_levels(rows, width)
        book = gaussian_lloyd_max(width)
        expected = 3 * book.levels.float().expand(2, -1)
        torch.testing.assert_close(levels, expected, rtol=0.05, atol=0.05)
        torch.testing.assert_close(error, torch.full((2,), 9 * book.distortion), rtol=0.03, atol=0)


def test_cells_are_those_of_least_lagrangian(rng):
    """Against the minimum over all codes, by brute force."""
    levels = torch.sort(torch.randn(3, 7, generator=rng)).values * 3
    lengths = 1 + 3 * torch.rand(3, 7, generator=rng)
    rows = 4 * torch.randn(3, 500, generator=rng)
    cost = (rows[..., None] - levels[:, None]).square() + 0.2 * lengths[:, None]
    codes = torch.searchsorted(cell_edges(levels, lengths, 0.2), rows)
    found = cost.gather(2, codes[..., None])[..., 0]
    share = (found <= cost.amin(dim=2) + 1e-5).float().mean()
    assert share == 1
    design = design_cells(rows, 0.0)
    assert bool((design.error < 1 / 8).all())


def test_a_dead_zone_buys_bits_for_error(rng):
    rows = torch.distributions.Laplace(0.0, 1.0).sample((4, 20000))
    plain, zoned = design_cells(rows, 0.0), design_cells(rows, 0.2)
    assert zoned.bits.mean() < plain.bits.mean() < zoned.bits.mean() + 1
    # At equal bits the dead zone wins: a coarser plain quantizer is worse.
    for scale in torch.linspace(1.0, 1.6, 25):
        coarse = design_cells(rows / scale, 0.0)
        if coarse.bits.mean() <= zoned.bits.mean():
            assert (scale**2 * coarse.error).mean() > zoned.error.mean()
            return
    pytest.fail("no plain quantizer of so few bits was found")


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt-neox", "qwen3"])
def test_metrics_are_those_of_the_model(family, make_model, tokens):
    """Queries against scores attention computes; Fisher against a finite difference."""
    model = make_model(family)
    found = collect_metrics(model, tokens, skip=2, seed=3)
    layout = found.layout
    assert len(found.key_fisher) == layout.num_layers
    for name in ("key_local", "value_local", "key_fisher", "value_fisher"):
        for metric in getattr(found, name):
            assert metric.shape == (layout.num_kv_heads, layout.head_dim, layout.head_dim)
            assert bool(torch.isfinite(metric).all())
            assert metric.diagonal(dim1=-2, dim2=-1).sum() > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    for part in ("keys", "values"):
        for kind in ("joined", "local", "fisher", "plain"):
            traces = [m.diagonal(dim1=-2, dim2=-1).sum(dim=-1) for m in found.metrics(part, kind)]
            mean = torch.stack(traces).mean().item()
            assert mean == pytest.approx(layout.head_dim)


def test_every_architecture_has_an_output_projection(any_architecture, rng):
    """The metric of values is that of the products the model itself adds to the residual."""
    windows = torch.randint(1, 61, (1, 9), generator=rng)
    if not any_architecture._can_set_attn_implementation():
        pytest.skip("its queries cannot be observed, which is an error of its own")
    found = collect_metrics(any_architecture, windows, skip=2)
    assert all(bool((metric.diagonal(dim1=-2, dim2=-1) > 0).all()) for metric in found.value_local)


def test_a_model_without_an_output_projection_is_refused(make_model, tokens):
    model = make_model("llama")
    for layer in model.model.layers:
        layer.self_attn.to_residual = layer.self_attn._modules.pop("o_proj")
    with pytest.raises(ModelError, match=r"no output projection of attention in layers \[0, 1\]"):
        collect_metrics(model, tokens)


def test_fisher_of_a_value_is_the_gradient_of_the_loss(make_model, tokens):
    """With the drawn tokens known, the derivative by a last-layer value agrees with a step."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    model = make_model("llama")
    window = tokens[:1]
    found = collect_metrics(model, window, skip=0, seed=5)
    with torch.no_grad():
        logits = model(window).logits[0].float()
    generator = torch.Generator().manual_seed(5)
    drawn = torch.multinomial(logits.softmax(dim=-1), 1, generator=generator)[:, 0]

    def loss(nudge):
        class Nudged(DynamicLayer):
            def update(self, key_states, value_states, *args, **kwargs):
                return key_states, value_states + nudge

        cache = DynamicCache(config=model.config)
        cache.layers[1] = Nudged()
        return cross_entropy(
            model(window, past_key_values=cache).logits[0].float(), drawn, reduction="sum"
        )

    nudge = torch.zeros(1, 2, 24, 8, requires_grad=True)
    (gradient,) = torch.autograd.grad(loss(nudge), nudge)
    rows = gradient[0].double()
    expected = rows.mT @ rows / 24
    scale = expected.abs().max().item()
    torch.testing.assert_close(found.value_fisher[1], expected, rtol=1e-3, atol=1e-4 * scale)
