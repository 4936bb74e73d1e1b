"""The kernels as torch operators: schemas, fake tensors, torch.compile."""

import pytest
import torch

from gonio.errors import SettingError
from gonio.kernels import CodeRun, attend, attention, decode, encode, scores

from .conftest import make_layer


@pytest.fixture
def arguments(rng):
    """Arguments of each operator for one small layer of two sequences."""
    layer = make_layer("all", 2, 12, rng)
    rows = torch.randn(24, 2 * 70, generator=rng)
    keys, values = layer.plan("keys"), layer.plan("values")
    key_data = encode(rows, keys.tensors, True, 2, 0, keys.block_bytes, "auto")
    value_data = encode(rows, values.tensors, False, 2, 0, values.block_bytes, "auto")
    query = torch.randn(2, 2, 3, 12, generator=rng)
    mask = torch.randn(2, 1, 70, generator=rng)
    bias = torch.randn(2, 2, 3, generator=rng)
    both = (query, key_data, value_data, keys.tensors, values.tensors)
    return {
        encode: (rows, keys.tensors, True, 2, 5, keys.block_bytes, "auto"),
        decode: (key_data, keys.tensors, True, 70, "auto"),
        scores: (query, key_data, keys.tensors, 70, False, "auto"),
        attention: (*both, bias, mask, 1.5, 70, False, "auto"),
    }


@pytest.mark.parametrize("operator", [encode, decode, scores, attention], ids=lambda op: op._name)
def test_operators_are_what_torch_expects(operator, arguments):
    checks = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(operator, arguments[operator], test_utils=checks)


def test_a_compiled_function_calls_the_kernels(arguments):
    query, data, plan, *others = arguments[scores]

    def double(query):
        return 2 * scores(query, data, plan, *others)

    compiled = torch.compile(double, backend="eager", fullgraph=True)
    assert torch.equal(compiled(query), double(query))


def test_tensors_elsewhere_go_the_torch_way(arguments):
    """The reference computes wherever torch does; here by name, on the CPU."""
    found = scores(*arguments[scores][:-1], "reference")
    near = scores(*arguments[scores][:-2], True, "auto")
    torch.testing.assert_close(found, near, rtol=0, atol=1e-3 * float(found.std()))


def test_codes_on_another_device_than_the_query_are_refused(arguments):
    query, keys, *_ = arguments[attention]
    layer = make_layer("narrow", 2, 12, torch.Generator().manual_seed(0))
    plans = layer.plan("keys"), layer.plan("values")
    away = torch.empty((2, keys.shape[1], plans[1].block_bytes), dtype=torch.uint8, device="meta")
    keys = torch.zeros((2, keys.shape[1], plans[0].block_bytes), dtype=torch.uint8)
    with pytest.raises(SettingError, match="found one on meta"):
        attend(query, [CodeRun(keys, away, 70)], plans)
