"""Contexts that keep training from leaving traces: on the model, on global state, on the screen.

trl and PEFT replace modules and the forward method of the model they are given, zero its dropout,
freeze its parameters and set its padding token; seeding is global. All of it is put back here,
also after an error.
"""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gonio.training.backend import require_datasets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["quiet_libraries", "restored_model", "restored_randomness"]


@contextmanager
def restored_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Put the model and the padding token of its tokenizer back as they were.

    Every attribute of every module is restored (submodules, hooks, modes, replaced methods), as
    are the gradient flags and the configurations. Tensors are not copied: a weight changed in
    place stays changed, which training an adapter does not do.
    """
    modules = [(module, _shallow(vars(module))) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    configs = [model.config, model.config.get_text_config(), model.generation_config]
    settings = [(config, _shallow(vars(config))) for config in configs if config is not None]
    pad_token = tokenizer.pad_token
    try:
        yield
    finally:
        for owner, attributes in [*modules, *settings]:
            vars(owner).clear()
            vars(owner).update(attributes)
        for parameter, requires_grad in gradients:
            parameter.requires_grad_(requires_grad)
            parameter.grad = None
        tokenizer.pad_token = pad_token


@contextmanager
def restored_randomness() -> Iterator[None]:
    """Put the global generators of Python, NumPy and torch back as they were."""
    python_state = random.getstate()
    numpy_state = np.random.get_state()  # noqa: NPY002 - the trainers seed the legacy generator
    devices = range(torch.cuda.device_count())
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002 - see above


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars of datasets and trl, and none of the deprecations they trigger."""
    datasets = require_datasets()
    had_bars = not datasets.are_progress_bars_disabled()
    variable, before = "TQDM_DISABLE", os.environ.get("TQDM_DISABLE")
    datasets.disable_progress_bars()
    os.environ[variable] = "1"  # the only switch of trl's reference pass
    try:
        with warnings.catch_warnings():
            # trl 1.16 and PEFT 0.21 read an attribute by its old name; no user could change that.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        if had_bars:
            datasets.enable_progress_bars()
        if before is None:
            del os.environ[variable]
        else:
            os.environ[variable] = before


def _shallow(attributes: dict[str, Any]) -> dict[str, Any]:
    """A copy of the attributes and of the containers among them, sharing what those hold."""
    return {
        name: copy.copy(value) if isinstance(value, dict | list | set) else value
        for name, value in attributes.items()
    }
