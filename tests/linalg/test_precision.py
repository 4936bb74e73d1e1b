"""The one upcast."""

import pytest
import torch

from gonio.errors import SettingError
from gonio.linalg import upcast


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_working_dtypes_pass_untouched(dtype):
    tensor = torch.ones(3, dtype=dtype)
    assert upcast(tensor) is tensor


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn], ids=str)
def test_narrow_dtypes_become_float32_exactly(dtype):
    values = torch.tensor([0.0, -1.5, 240.0])
    assert torch.equal(upcast(values.to(dtype)), values)
    assert upcast(values.to(dtype)).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64], ids=str)
def test_other_dtypes_are_refused_by_name(dtype):
    with pytest.raises(SettingError, match=f"weight has dtype {dtype}"):
        upcast(torch.ones(2, dtype=dtype), "weight")
