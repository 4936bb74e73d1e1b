"""Wrong codecs are caught: zeros, shifted positions, a forgotten scale, reordered heads."""

import pytest
import torch

from gonio.kvcache import CacheCodec, EncodedTensor, LosslessCodec, SignCodec
from gonio.kvcache.frame import Frame
from gonio.linalg.rotations import haar_rotation
from gonio.models import AttentionLayout, attention_layout
from gonio.quant.sign import sign_beta

MUTATIONS = {
    "zeros": torch.zeros_like,
    "shifted": lambda decoded: decoded.roll(1, dims=2),
    "forgotten scale": lambda decoded: decoded / decoded.norm(dim=-1, keepdim=True),
    "reordered heads": lambda decoded: decoded.flip(1),
    "reordered batch": lambda decoded: decoded.flip(0),
}


def mutant(base: type, name: str) -> type:
    """A codec class that stores what ``base`` stores and decodes it wrongly."""

    class Mutant(base):
        def decode(self, encoded: EncodedTensor) -> torch.Tensor:
            return MUTATIONS[name](super().decode(encoded))

    return Mutant


@torch.no_grad()
def logit_gap(model, tokens, keys, values) -> float:
    """Largest difference from the plain model's logits: prefill, then a chunk through the cache."""
    layout = attention_layout(model.config)
    count = layout.num_layers
    codec = CacheCodec(layout, (keys,) * count, (values,) * count)
    cache = codec.new_cache(model)
    model(input_ids=tokens[:, :12], past_key_values=cache)
    logits = model(input_ids=tokens[:, 12:], past_key_values=cache).logits
    return (logits - model(input_ids=tokens).logits[:, 12:]).abs().max().item()


def test_the_true_codec_gives_the_plain_logits(make_model, tokens):
    assert logit_gap(make_model("llama"), tokens, LosslessCodec(), LosslessCodec()) < 1e-4


@pytest.mark.parametrize("name", MUTATIONS)
@pytest.mark.parametrize("part", ["keys", "values"])
def test_a_mutant_changes_the_logits(make_model, tokens, name, part):
    codecs = {"keys": LosslessCodec(), "values": LosslessCodec()}
    codecs[part] = mutant(LosslessCodec, name)()
    assert logit_gap(make_model("llama"), tokens, **codecs) > 0.1


def lost_energy_matches(codec: SignCodec, keys: torch.Tensor) -> bool:
    """Each token, as a cache would return it, has lost 1 - cos^2 of its energy, no more."""
    layout = AttentionLayout(num_layers=1, num_heads=2, num_kv_heads=2, head_dim=16)
    read = CacheCodec(layout, (codec,)).roundtrip(0, keys)
    lost = (keys - read).square().sum(-1) / keys.square().sum(-1)
    expected = 1 - sign_beta(torch.einsum("hij,bhtj->bhti", codec.frame.rotation, keys))
    return torch.allclose(lost, expected, rtol=0, atol=2e-6)  # float16 rounding of a scale, squared


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutant_of_a_real_codec_loses_the_wrong_energy(rng, name):
    keys = 5 * torch.randn(2, 2, 9, 16, generator=rng)
    rotation = haar_rotation(16, rng, batch=(2,))
    assert lost_energy_matches(SignCodec(Frame(rotation)), keys)
    assert not lost_energy_matches(mutant(SignCodec, name)(Frame(rotation)), keys)
