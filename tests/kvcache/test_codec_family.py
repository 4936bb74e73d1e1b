"""Every codec of the family: error by an independent route, bits by hand, files, awkward shapes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gonio.errors import CodecError, SettingError, ShapeError
from gonio.kvcache.affine_codec import AffineCodec
from gonio.kvcache.contract import TensorCodec
from gonio.kvcache.correction import RankCorrection, residual_basis
from gonio.kvcache.exceptions import ExactExceptions
from gonio.kvcache.frame import Frame
from gonio.kvcache.refined_codec import RefinedCodec
from gonio.kvcache.residual_sign_codec import ResidualSignCodec
from gonio.kvcache.scalar_codec import ScalarCodec
from gonio.kvcache.sign_codec import SignCodec
from gonio.linalg.rotations import haar_rotation
from gonio.quant.sign import population_beta, sign_beta

HEADS, DIM = 3, 16
HALF = 2.0**-11  # relative rounding of float16


def haar(seed: int = 0, heads: int = HEADS, dim: int = DIM) -> torch.Tensor:
    return haar_rotation(dim, torch.Generator().manual_seed(seed), batch=(heads,))


def refined(base: TensorCodec, rank: int = 2, count: int = 3) -> RefinedCodec:
    basis = haar(9)[:, :, :rank].contiguous()
    return RefinedCodec(base, (RankCorrection(basis, "int8"), ExactExceptions(count)))


CODECS = {
    "sign": SignCodec(Frame(haar())),
    "sign-token-dc": SignCodec(Frame(haar(), None, True), "unbiased"),
    "sign-float32-scale": SignCodec(Frame(haar()), scale_dtype="float32"),
    "sign-channel-mean": SignCodec(Frame(haar(), torch.ones(HEADS, DIM))),
    "residual-sign": ResidualSignCodec(tuple(SignCodec(Frame(haar(i))) for i in range(3))),
    "scalar": ScalarCodec(3, Frame(haar()), "sphere"),
    "scalar-normal": ScalarCodec(2, Frame(haar(), torch.ones(1, DIM)), "normal"),
    "affine-channel": AffineCodec(3, "channel", 4),
    "affine-token": AffineCodec(2, "token", 5),  # 16 channels: groups of 5, 5, 5 and 1
    "refined-sign": refined(SignCodec(Frame(haar()))),
    "refined-affine": refined(AffineCodec(2, "channel", 4)),
}


@pytest.fixture
def x(rng: torch.Generator) -> torch.Tensor:
    """Two sequences of 8 tokens, channels of very different size, one zero token."""
    found = torch.randn(2, HEADS, 8, DIM, generator=rng) * torch.logspace(-1, 1, DIM) + 0.5
    found[1, 1, 3] = 0
    return found


@pytest.fixture(params=sorted(CODECS))
def codec(request) -> TensorCodec:
    return CODECS[request.param]


def test_every_codec_follows_the_contract(codec, x):
    assert isinstance(codec, TensorCodec)
    encoded = codec.encode(x)
    assert encoded.block == codec.block
    assert encoded.tokens == x.shape[2]
    assert encoded.stored_bytes == sum(t.nbytes for t in encoded.tensors.values())
    assert 0 < encoded.metadata_bytes < encoded.stored_bytes
    storages = {t.untyped_storage().data_ptr() for t in encoded.tensors.values()}
    assert x.untyped_storage().data_ptr() not in storages
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        decoded = codec.decode(codec.encode(x.to(dtype)))
        assert (decoded.dtype, decoded.shape) == (dtype, x.shape)


def test_decoding_comes_near_and_each_token_stands_in_its_place(codec, x):
    """Better than zeros by far; shifted by a token or with heads reordered it is worse than zeros.

    This is what would catch a codec that forgets a scale, moves positions or reorders heads.
    """
    decoded = codec.decode(codec.encode(x))
    error = (x - decoded).square().sum() / x.square().sum()
    assert error < 0.6  # one bit in 16 dimensions loses 0.35, with the unbiased scale 0.5
    assert (x - decoded.roll(1, dims=2)).square().sum() / x.square().sum() > error + 0.5
    assert (x - decoded.roll(1, dims=1)).square().sum() / x.square().sum() > error + 0.5


def test_blocks_are_encoded_from_their_own_tokens(codec, x):
    """Appending runs, cutting and reordering the batch equal encoding the result at once."""
    whole = codec.encode(x)
    parts = codec.encode(x[:, :, :4]).append(codec.encode(x[:, :, 4:]))
    assert parts.tensors.keys() == whole.tensors.keys()
    for name, tensor in whole.tensors.items():
        assert torch.equal(parts.tensors[name], tensor), name
    cut = codec.decode(whole.slice(4, 8).map(lambda t: t[[1]]))
    torch.testing.assert_close(cut, codec.decode(whole)[[1], :, 4:], rtol=1e-5, atol=1e-5)


def test_a_codec_made_from_its_state_is_the_same(codec, x):
    settings_, tensors = codec.state()
    import json

    other = type(codec).from_state(json.loads(json.dumps(settings_)), tensors)
    encoded, again = codec.encode(x), other.encode(x)
    assert all(torch.equal(again.tensors[n], t) for n, t in encoded.tensors.items())
    assert torch.equal(other.decode(again), codec.decode(encoded))
    assert codec.side_bytes == sum(t.nbytes for t in tensors.values())


def test_huge_and_zero_numbers_stay_finite(codec):
    for size in (0.0, 1e-12, 1e7):
        x = torch.full((1, HEADS, 4, DIM), size)
        assert torch.isfinite(codec.decode(codec.encode(x))).all()


BITS = {
    # head_dim 64, heads 2, 32 tokens; worked by hand per element
    "sign": (SignCodec(), 1 + 16 / 64),
    "sign with float32 scales": (SignCodec(scale_dtype="float32"), 1 + 32 / 64),
    "sign with token DC": (SignCodec(Frame(token_dc=True)), 1 + 32 / 64),
    "two stages": (ResidualSignCodec((SignCodec(), SignCodec())), 2 * (1 + 16 / 64)),
    "three stages": (ResidualSignCodec((SignCodec(),) * 3), 3 * (1 + 16 / 64)),
    "scalar 2": (ScalarCodec(2), 2 + 16 / 64),
    "scalar 3": (ScalarCodec(3), 3 + 16 / 64),
    "affine 2": (AffineCodec(2), 2 + 32 / 32),
    "affine 4 by token": (AffineCodec(4, "token"), 4 + 32 / 32),
    "affine 3 groups of 24": (AffineCodec(3, "token", 24), 3 + 3 * 32 / 64),
    "rank 4, float16": (
        RefinedCodec(SignCodec(), (RankCorrection(torch.eye(64)[None, :, :4]),)),
        1 + 16 / 64 + 4 * 16 / 64,
    ),
    "rank 4, int8": (
        RefinedCodec(SignCodec(), (RankCorrection(torch.eye(64)[None, :, :4], "int8"),)),
        1 + 16 / 64 + (4 * 8 + 16) / 64,
    ),
    "4 exceptions": (
        RefinedCodec(SignCodec(), (ExactExceptions(4),)),
        1 + 16 / 64 + 4 * (16 + 6) / 64,
    ),
}


@pytest.mark.parametrize("name", BITS)
def test_bits_per_element_worked_by_hand(name, rng):
    codec, expected = BITS[name]
    encoded = codec.encode(torch.randn(1, 2, 32, 64, generator=rng))
    assert encoded.bits_per_element == pytest.approx(expected, rel=1e-12)


def test_channel_centering_removes_the_mean_and_costs_no_growing_bits(rng):
    mean = torch.randn(HEADS, DIM, generator=rng)
    x = 5 * mean[:, None] + 0.1 * torch.randn(2, HEADS, 40, DIM, generator=rng)
    plain, centered = SignCodec(Frame(haar())), SignCodec(Frame(haar(), 5 * mean))
    error = {
        codec: (x - codec.decode(codec.encode(x))).square().mean() for codec in (plain, centered)
    }
    assert error[centered] < 1e-2 * error[plain]
    assert centered.encode(x).stored_bytes == plain.encode(x).stored_bytes
    assert centered.side_bytes == plain.side_bytes + mean.nbytes


def test_token_dc_keeps_the_mean_coordinate_of_every_token(rng):
    x = torch.randn(1, 2, 9, DIM, generator=rng) + 7 * torch.randn(1, 2, 9, 1, generator=rng)
    codec = SignCodec(Frame(token_dc=True))
    decoded = codec.decode(codec.encode(x))
    rest = x - x.mean(-1, keepdim=True)
    lost = (x - decoded).square().sum(-1) / rest.square().sum(-1)
    assert (lost - (1 - sign_beta(rest))).abs().max() < 0.02  # the DC is rounded to float16


@pytest.mark.theorem("residual_energy_formula")
def test_stages_multiply_what_signs_leave(rng):
    """Energy left after s stages is the product of 1 - beta of each stage's rotated input."""
    x = torch.randn(1, HEADS, 50, DIM, generator=rng)
    stages = tuple(SignCodec(Frame(haar(i))) for i in range(3))
    left, expected = x, x.square().sum(-1)
    for count, stage in enumerate(stages, start=1):
        expected = expected * (1 - sign_beta(left @ stage.frame.rotation.mT))
        left = left - stage.decode(stage.encode(left))
        codec = ResidualSignCodec(stages[:count])
        lost = (x - codec.decode(codec.encode(x))).square().sum(-1)
        torch.testing.assert_close(lost, expected, rtol=2e-3, atol=1e-5)  # float16 scales
    swapped = ResidualSignCodec((stages[1], stages[0]))
    other = (x - swapped.decode(swapped.encode(x))).square().sum(-1)
    two = ResidualSignCodec(stages[:2])
    assert not torch.allclose(other, (x - two.decode(two.encode(x))).square().sum(-1), rtol=2e-3)


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_scalar_error_is_the_codebooks_distortion_whatever_the_vectors(bits, rng):
    """After a Haar rotation the mean relative error is the codebook's, for constant keys too."""
    x = torch.ones(1, 1, 1, 64).expand(1, 400, 1, 64)
    codec = ScalarCodec(bits, Frame(haar_rotation(64, rng, batch=(400,))))
    lost = (x - codec.decode(codec.encode(x))).square().sum(-1) / 64
    expected = codec._codebook(64).distortion
    error = lost.std() / math.sqrt(lost.numel())
    assert abs(lost.mean() - expected) < 5 * error
    assert abs(lost.mean() - 1.15 * expected) > 5 * error


def test_scalar_of_one_bit_is_the_sign_codec_with_the_laws_scale(rng):
    """Two levels are plus and minus the mean absolute coordinate, c_d |x| / sqrt(d)."""
    from gonio.linalg.chance import sign_cosine_of_random_direction

    x = torch.randn(1, HEADS, 5, 64, generator=rng)
    frame = Frame(haar(dim=64))
    decoded = ScalarCodec(1, frame).decode(ScalarCodec(1, frame).encode(x))
    chance = float(sign_cosine_of_random_direction(64))
    expected = torch.where(x @ frame.rotation.mT >= 0, 1.0, -1.0) @ frame.rotation
    expected = expected * x.norm(dim=-1, keepdim=True) * chance / 8
    torch.testing.assert_close(decoded, expected, rtol=0, atol=2 * HALF * x.norm(dim=-1).max())


@given(
    bits=st.integers(1, 8),
    axis=st.sampled_from(["channel", "token"]),
    group=st.integers(1, 7),
    dim=st.integers(1, 11),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_affine_error_is_at_most_half_a_step_of_its_group(bits, axis, group, dim, scale, seed):
    """By a plain loop over groups; on top of half a step both ends are rounded to float16."""
    generator = torch.Generator().manual_seed(seed)
    codec = AffineCodec(bits, axis, group)
    tokens = 2 * codec.block
    x = scale * torch.randn(1, 2, tokens, dim, generator=generator)
    decoded = codec.decode(codec.encode(x))
    for head in range(2):
        matrix, other = x[0, head], decoded[0, head]
        if axis == "channel":
            matrix, other = matrix.T, other.T
        for row, start in itertools.product(
            range(matrix.shape[0]), range(0, matrix.shape[1], group)
        ):
            part = matrix[row, start : start + group]
            step = (part.max() - part.min()) / (2**bits - 1)
            slack = HALF * (part.abs().max() + 2 * (part.max() - part.min())) + 2**bits * 6e-8
            error = (part - other[row, start : start + group]).abs().max()
            assert error <= step / 2 * (1 + 1e-5) + slack


def test_affine_keeps_the_ends_of_a_group_and_sees_wrong_axes(rng):
    """Channels with offsets: groups along the tokens of a channel fit them, the others do not."""
    x = torch.randn(1, 2, 64, 32, generator=rng) + 30 * torch.randn(1, 2, 1, 32, generator=rng)
    error = {}
    for axis in ("channel", "token"):
        codec = AffineCodec(2, axis)
        error[axis] = (x - codec.decode(codec.encode(x))).square().mean().item()
    assert error["channel"] < 0.05 * error["token"]


@pytest.mark.parametrize("rank", [1, 3, DIM])
@pytest.mark.theorem("beta_eff_formula")
def test_a_correction_leaves_the_share_that_the_formula_says(rank, rng):
    """(1 - beta)(1 - gamma_r), gamma measured by SVD of the errors and not by our eigenvectors."""
    mix = torch.randn(HEADS, DIM, DIM, generator=rng)
    x = (torch.randn(HEADS, 200, DIM, generator=rng) @ mix)[None]
    base = SignCodec()
    residual = (x - base.decode(base.encode(x)))[0]
    basis, gamma = residual_basis(residual, rank)
    sigma = torch.linalg.svdvals(residual.double())
    captured = sigma[:, :rank].square().sum(-1) / sigma.square().sum(-1)
    torch.testing.assert_close(gamma, captured, rtol=1e-9, atol=0)
    codec = RefinedCodec(base, (RankCorrection(basis),))
    lost = (x - codec.decode(codec.encode(x)))[0].double().square().sum((-1, -2))
    beta = population_beta(x[0].double())
    expected = (1 - beta) * (1 - gamma) * x[0].double().square().sum((-1, -2))
    atol = 4e-6 * x.square().sum().item()  # float16 scales and coefficients
    torch.testing.assert_close(lost, expected, rtol=1e-3, atol=atol)
    wrong = RefinedCodec(base, (RankCorrection(basis.roll(1, 0)),))
    if rank < DIM:
        worse = (x - wrong.decode(wrong.encode(x)))[0].double().square().sum((-1, -2))
        assert (worse > 1.02 * expected).all()


def test_int8_coefficients_cost_less_and_lose_little(rng):
    x = torch.randn(1, HEADS, 64, DIM, generator=rng)
    basis = haar(4)[:, :, :4].contiguous()
    lost = {}
    for kind in ("float16", "int8"):
        correction = RankCorrection(basis, kind)
        stored = correction.encode(x, torch.zeros_like(x))
        lost[kind] = x @ basis - correction.decode(stored, torch.zeros_like(x)) @ basis
    largest = (x @ basis).abs().amax(-1, keepdim=True)
    assert (lost["float16"].abs() <= 2 * HALF * largest).all()
    assert (lost["int8"].abs() <= largest * (0.5 / 127 + 2 * HALF)).all()
    assert lost["int8"].abs().max() > 10 * lost["float16"].abs().max()


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 100, 300])
@pytest.mark.theorem("top_k_optimal")
def test_exceptions_are_exact_and_no_other_choice_leaves_less(dim, rng):
    x = torch.randn(2, 1, 6, dim, generator=rng).half()
    base = SignCodec()
    for count in {1, min(3, dim), dim}:
        codec = RefinedCodec(base, (ExactExceptions(count),))
        decoded = codec.decode(codec.encode(x))
        first = base.decode(base.encode(x.float()))
        errors = (x.float() - first).abs().sort(dim=-1, descending=True).values
        left = (x - decoded).float().abs().sort(dim=-1, descending=True).values
        expected = torch.cat([errors[..., count:], torch.zeros_like(errors[..., :count])], -1)
        torch.testing.assert_close(left, expected, rtol=0, atol=2e-3)  # float16 results
        assert ((x == decoded).sum(-1) >= count).all()


def test_exceptions_keep_bfloat16_numbers_bit_for_bit(rng):
    x = (torch.randn(1, 1, 4, 8, generator=rng) * 1e30).bfloat16()
    codec = RefinedCodec(SignCodec(), (ExactExceptions(8),))
    assert torch.equal(codec.decode(codec.encode(x)), x)


def test_wrong_settings_are_refused(x):
    wrong = [
        (lambda: AffineCodec(0), "1 to 8 bits"),
        (lambda: AffineCodec(2, "row"), "axis must be"),
        (lambda: AffineCodec(2, "token", 0), "at least 1 number"),
        (lambda: ScalarCodec(9), "1 to 8 bits"),
        (lambda: ScalarCodec(2, law="cauchy"), "law must be"),
        (lambda: ResidualSignCodec(()), "at least one stage"),
        (lambda: ExactExceptions(0), "at least 1 exception"),
        (lambda: RankCorrection(torch.eye(4)[None], "int4"), "coefficients must be"),
        (lambda: RefinedCodec(SignCodec(), ()), "use its base codec"),
        (lambda: residual_basis(torch.ones(1, 3, 4), 5), "rank must be 1 to 4"),
    ]
    for make, message in wrong:
        with pytest.raises(SettingError, match=message):
            make()
    with pytest.raises(CodecError, match="not orthonormal"):
        RankCorrection(torch.ones(1, 4, 2))
    with pytest.raises(ShapeError, match="rank 1 to head_dim"):
        RankCorrection(torch.ones(1, 2, 4))
    with pytest.raises(CodecError, match="cannot be refined"):
        refined(refined(SignCodec()))
    with pytest.raises(ShapeError, match="multiple of 4"):
        AffineCodec(2, "channel", 4).encode(x[:, :, :6])
    with pytest.raises(ShapeError, match="17 exceptions"):
        refined(SignCodec(), count=17).encode(x)
    with pytest.raises(ShapeError, match="centers 2 heads"):
        SignCodec(Frame(None, torch.ones(2, DIM))).encode(x)
    with pytest.raises(ShapeError, match="mean has 3 channels"):
        Frame(haar(), torch.ones(HEADS, 3))
    with pytest.raises(CodecError, match="this version reads"):
        RefinedCodec.from_state(
            {"base": {"method": "magic", "settings": {}}, "refinements": []}, {}
        )
