"""The one place where tensors enter the library's arithmetic."""

import torch
from torch import Tensor

from gonio.errors import SettingError

__all__ = ["upcast"]


def upcast(tensor: Tensor, name: str = "tensor") -> Tensor:
    """The tensor in a dtype fit for arithmetic: float32 or float64 as is, narrower as float32.

    Args:
        tensor: Any floating tensor.
        name: What the caller calls it, for the error.

    Returns:
        The same values in float32 or float64; no copy where none is needed.

    Raises:
        SettingError: The tensor is not real floating point.
    """
    if not tensor.is_floating_point():
        raise SettingError(
            f"{name} has dtype {tensor.dtype}, expected real floating point; convert it first"
        )
    if tensor.dtype in (torch.float32, torch.float64):
        return tensor
    return tensor.to(torch.float32)
