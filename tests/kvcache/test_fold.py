"""Folded rotations: the same logits from rotated weights, and refusals by name."""

import copy
import math

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from gonio.errors import CodecError, ModelError, ShapeError
from gonio.kvcache.commuting import (
    RotaryLayout,
    best_pair_angles,
    learn_commuting_rotation,
    pair_rotation,
)
from gonio.kvcache.fold import fold_rotations, rotary_layout
from gonio.linalg.rotations import haar_rotation
from gonio.quant.sign import sign_cosine

COMMON = {"vocab_size": 61, "bos_token_id": 0, "eos_token_id": None, "pad_token_id": 0}
LLAMA_LIKE = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    **COMMON,
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CONFIGS = {
    "llama": lambda: transformers.LlamaConfig(**LLAMA_LIKE, attention_bias=True),
    "mistral": lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=5),
    "mixtral": lambda: transformers.MixtralConfig(**LLAMA_LIKE, num_local_experts=4),
    "qwen2": lambda: transformers.Qwen2Config(**LLAMA_LIKE),
    "qwen3": lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=16),
    "qwen3-moe": lambda: transformers.Qwen3MoeConfig(**LLAMA_LIKE, **MOE, head_dim=8),
    "gemma": lambda: transformers.GemmaConfig(**LLAMA_LIKE, head_dim=16),
    "gemma2": lambda: transformers.Gemma2Config(**LLAMA_LIKE, head_dim=8, sliding_window=5),
    "gemma3": lambda: transformers.Gemma3TextConfig(**LLAMA_LIKE, head_dim=8, sliding_window=5),
    "olmoe": lambda: transformers.OlmoeConfig(**LLAMA_LIKE, num_experts=4, num_experts_per_tok=2),
    "gpt-oss": lambda: transformers.GptOssConfig(
        **LLAMA_LIKE, head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=5
    ),
    "cohere": lambda: transformers.CohereConfig(**LLAMA_LIKE),
    "phi": lambda: transformers.PhiConfig(**LLAMA_LIKE, partial_rotary_factor=0.5),
    "gpt-neox": lambda: transformers.GPTNeoXConfig(
        hidden_size=64,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        rotary_pct=0.25,
        **COMMON,
    ),
    "gptj": lambda: transformers.GPTJConfig(
        n_embd=32, n_layer=2, n_head=4, rotary_dim=4, n_inner=48, **COMMON
    ),
    "gpt2": lambda: transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, **COMMON),
}


# These take norms of queries and keys, or rotary angles, in float32 whatever the weights are.
FLOAT32_INSIDE = {"cohere", "gemma3", "gptj", "olmoe", "qwen3", "qwen3-moe"}


def assert_equal_up_to_rounding(found, expected, family):
    """Float64 rounding, or float32 where the model itself rounds to it."""
    epsilon = torch.finfo(torch.float32 if family in FLOAT32_INSIDE else torch.float64).eps
    atol = 256 * epsilon * expected.abs().max().item()  # two layers of sums of up to 64 products
    torch.testing.assert_close(found, expected, rtol=0, atol=atol)


def build(family: str) -> transformers.PreTrainedModel:
    """A tiny float64 model with random weights and biases, attention far from uniform."""
    torch.manual_seed(7)
    model = transformers.AutoModelForCausalLM.from_config(
        CONFIGS[family](), attn_implementation="eager", experts_implementation="eager"
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 or name.endswith("bias"):
                parameter.normal_(std=0.3)
    return model.double().eval()


@torch.no_grad()
def run(model, tokens):
    """Logits, and the keys and values that the model caches."""
    cache = DynamicCache(config=model.config)
    logits = model(input_ids=tokens, past_key_values=cache, use_cache=True).logits
    return logits, [layer.keys for layer in cache.layers], [layer.values for layer in cache.layers]


def random_commuting(layout, heads, generator):
    """Random angles for the pairs, a Haar rotation for the rest."""
    angles = 2 * math.pi * torch.rand(heads, len(layout.pairs), generator=generator)
    matrix = pair_rotation(layout, angles)
    free = layout.free
    if free.numel():
        block = haar_rotation(free.numel(), generator, batch=(heads,), dtype=torch.float64)
        matrix[:, free[:, None], free] = block
    return matrix


@pytest.fixture
def tokens(rng):
    return torch.randint(1, 61, (2, 12), generator=rng)


@pytest.mark.parametrize("family", sorted(CONFIGS))
@pytest.mark.theorem("attention_score_gauge_invariance")
def test_a_folded_model_has_the_same_logits_and_rotated_caches(family, tokens, rng):
    """Float64: logits agree to rounding while cached keys and values are visibly other ones."""
    model = build(family)
    logits, keys, values = run(model, tokens)
    layout, heads = rotary_layout(model), keys[0].shape[1]
    turn_keys = [random_commuting(layout, heads, rng) for _ in keys]
    dim = layout.head_dim
    turn_values = [haar_rotation(dim, rng, batch=(heads,), dtype=torch.float64) for _ in keys]
    fold_rotations(model, keys=turn_keys, values=turn_values)
    new_logits, new_keys, new_values = run(model, tokens)
    assert_equal_up_to_rounding(new_logits, logits, family)
    for old, new, rotation in zip(
        keys + values, new_keys + new_values, turn_keys + turn_values, strict=True
    ):
        assert_equal_up_to_rounding(new, old @ rotation.mT, family)
        assert (new - old).abs().max() > 0.01 * old.abs().max()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt-neox", "gpt2", "phi"])
def test_folding_one_projection_only_would_be_seen(family, tokens, rng):
    """The near miss: queries left alone while keys turn."""
    from gonio.kvcache import fold

    model = build(family)
    logits, keys, _ = run(model, tokens)
    layout = rotary_layout(model)
    rotation = random_commuting(layout, keys[0].shape[1], rng)
    for layer in fold._attention_layers(model):
        with torch.no_grad():
            fold._turn(layer.key, rotation)
    assert (run(model, tokens)[0] - logits).abs().max() > 1e-3


@pytest.mark.parametrize("family", sorted(set(CONFIGS) - {"gpt2"}))
def test_what_rope_turns_together_is_what_the_model_turns(family, rng):
    """A rotation of a key before RoPE equals one after it for the layout's pairs, and only those.

    Read from the model itself: the cached keys of one repeated token differ by RoPE alone, so
    that their projections on each pair have the same length at every position.
    """
    model = build(family)
    layout = rotary_layout(model)
    keys = run(model, torch.full((1, 9), 5))[1][0]
    lengths = keys[..., layout.pairs].norm(dim=-1)
    torch.testing.assert_close(lengths, lengths[:, :, :1].expand_as(lengths))
    free = keys[..., layout.free]
    torch.testing.assert_close(free, free[:, :, :1].expand_as(free))
    shuffled = layout.pairs.roll(1, 0)
    mixed = torch.stack([layout.pairs[:, 0], shuffled[:, 1]], 1)
    wrong = keys[..., mixed].norm(dim=-1)
    assert (wrong - wrong[:, :, :1]).abs().max() > 1e-3


@pytest.mark.theorem("rope_commutant")
def test_rotations_that_do_not_commute_are_refused_and_change_nothing(tokens, rng):
    model = build("llama")
    before = copy.deepcopy(model.state_dict())
    layout = rotary_layout(model)
    good = random_commuting(layout, 2, rng)
    reflection = good.clone()
    reflection[:, layout.pairs[0, 1]] *= -1  # a reflection of one pair does not commute with turns
    for wrong in (haar_rotation(8, rng, batch=(2,)), reflection):
        with pytest.raises(CodecError, match="does not commute"):
            fold_rotations(model, keys=[good, wrong])
    with pytest.raises(CodecError, match="not orthogonal"):
        fold_rotations(model, keys=[None, 1.01 * good])
    with pytest.raises(ShapeError, match="2 layers"):
        fold_rotations(model, keys=[good])
    with pytest.raises(ShapeError, match=r"model\.layers\.0.*8, 8"):
        fold_rotations(model, values=[torch.eye(4)[None], None])
    with pytest.raises(ShapeError, match="2 key-value heads"):
        fold_rotations(model, values=[good.repeat(2, 1, 1), None])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("family", ["qwen3", "gemma3", "olmoe"])
def test_a_norm_with_unequal_gains_is_refused_by_name(family, tokens, rng):
    model = build(family)
    layout = rotary_layout(model)
    rotation = random_commuting(layout, 2, rng)
    norm = next(m for name, m in model.named_modules() if name.endswith("1.self_attn.k_norm"))
    with torch.no_grad():
        norm.weight[layout.pairs[0, 0]] += 0.5
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.k_norm .*different gains"):
        fold_rotations(model, keys=[rotation, rotation])
    with torch.no_grad():  # gains equal within the pair let the rotation through
        norm.weight[layout.pairs[0, 1]] += 0.5
    logits = run(model, tokens)[0]
    fold_rotations(model, keys=[rotation, rotation])
    assert_equal_up_to_rounding(run(model, tokens)[0], logits, family)


def test_models_that_cannot_be_folded_are_refused_by_name(rng):
    config = transformers.PhiConfig(**LLAMA_LIKE, qk_layernorm=True)
    model = transformers.AutoModelForCausalLM.from_config(config)
    rotation = torch.eye(8)[None]
    with pytest.raises(ModelError, match=r"q_layernorm .*LayerNorm"):
        fold_rotations(model, keys=[rotation, None])
    config = transformers.OlmoeConfig(**LLAMA_LIKE, num_experts=2, clip_qkv=3.0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with pytest.raises(ModelError, match="clips keys"):
        fold_rotations(model, keys=[rotation, None])
    with pytest.raises(ModelError, match="clips values"):
        fold_rotations(model, values=[rotation, None])
    stablelm = transformers.AutoModelForCausalLM.from_config(
        transformers.StableLmConfig(**LLAMA_LIKE)
    )
    with pytest.raises(ModelError, match="stablelm: rotations are folded into"):
        fold_rotations(stablelm)
    model = build("llama")
    projection = torch.nn.Sequential(model.model.layers[1].self_attn.q_proj)
    model.model.layers[1].self_attn.q_proj = projection
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn\.q_proj is a Sequential"):
        fold_rotations(model)


def objective(first, second, angle):
    turned = first * angle.cos() - second * angle.sin(), first * angle.sin() + second * angle.cos()
    return sum(part.abs().sum(dim=1) for part in turned)


@settings(max_examples=40)
@given(
    count=st.integers(1, 9),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    zeros=st.integers(0, 3),
    seed=st.integers(0, 2**31),
)
def test_the_best_angle_beats_every_angle_of_a_fine_grid(count, scale, zeros, seed):
    generator = torch.Generator().manual_seed(seed)
    first, second = scale * torch.randn(2, 2, count, 3, generator=generator, dtype=torch.float64)
    first[:, :zeros], second[:, :zeros] = 0, 0
    angle = best_pair_angles(first, second)
    assert angle.abs().max() <= math.pi / 4 + 1e-12
    found = objective(first, second, angle[:, None])
    grid = torch.linspace(-math.pi / 4, math.pi / 4, 2001, dtype=torch.float64)
    every = objective(first[..., None], second[..., None], grid)  # (heads, pairs, angles)
    best = every.amax(dim=-1)
    slack = scale * 1e-12
    assert (found >= best - slack).all()  # no angle of the grid is better
    assert (found <= best * (1 + 1e-6) + slack).all()  # and the grid comes near: step^2 / 8


def test_learned_rotation_commutes_and_raises_the_cosine(rng):
    """Keys planted on one corner per pair, turned by unknown angles, are turned back."""
    layout = RotaryLayout(12, torch.tensor([[0, 4], [1, 5], [2, 6], [3, 7]]))
    corners = torch.where(torch.rand(2, 300, 12, generator=rng) > 0.5, 1.0, -1.0)
    hidden = random_commuting(layout, 2, rng).float()
    keys = corners @ hidden.mT + 0.05 * torch.randn(2, 300, 12, generator=rng)
    learned = learn_commuting_rotation(keys, layout, generator=rng)
    layout.check(learned.rotation)
    torch.testing.assert_close(
        learned.cosine_before, sign_cosine(keys).mean(-1).double(), rtol=1e-5, atol=0
    )
    turned = sign_cosine(keys @ learned.rotation.mT).mean(-1).double()
    torch.testing.assert_close(learned.cosine_after, turned, rtol=1e-5, atol=0)
    assert (learned.cosine_after > learned.cosine_before + 0.01).all()
    pairs_only = RotaryLayout(12, layout.pairs)
    angles_only = pair_rotation(pairs_only, torch.zeros(2, 4)).float()
    assert sign_cosine(keys @ angles_only.mT).mean() < learned.cosine_after.mean()


def test_pairs_alone_are_turned_back_exactly(rng):
    """Every coordinate in a pair: the planted rotation is found to its symmetry, cosine 0.99."""
    layout = RotaryLayout(8, torch.arange(8).view(4, 2))
    corners = torch.where(torch.rand(3, 200, 8, generator=rng) > 0.5, 1.0, -1.0)
    keys = corners @ random_commuting(layout, 3, rng).float().mT
    learned = learn_commuting_rotation(keys, layout)
    assert (learned.cosine_after > 1 - 1e-6).all()
    assert (learned.cosine_before < 0.98).all()


def test_bad_layouts_and_keys_are_refused():
    with pytest.raises(ShapeError, match="distinct coordinates"):
        RotaryLayout(4, torch.tensor([[0, 1], [1, 2]]))
    with pytest.raises(ShapeError, match="outside the 4"):
        RotaryLayout(4, torch.tensor([[0, 4]]))
    with pytest.raises(ShapeError, match="keys must be"):
        learn_commuting_rotation(torch.zeros(2, 3, 5), RotaryLayout(4, torch.tensor([[0, 1]])))
