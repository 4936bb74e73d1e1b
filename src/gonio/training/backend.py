"""The optional packages training needs, imported only when training starts."""

from __future__ import annotations

import os
from importlib import import_module
from types import ModuleType

from gonio.errors import MissingDependencyError

__all__ = ["is_main_process", "require_datasets", "require_trl"]


def is_main_process() -> bool:
    """Whether this process writes results: the first of those that `accelerate launch` starts."""
    return os.environ.get("RANK", "0") == "0"


def require_trl() -> ModuleType:
    """The ``trl`` package.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return _require("trl")


def require_datasets() -> ModuleType:
    """The ``datasets`` package.

    Raises:
        MissingDependencyError: It is not installed.
    """
    return _require("datasets")


def _require(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise  # installed but broken: the real error says more
        raise MissingDependencyError(
            f"training needs the package {name}, which is not installed\n"
            "Install it with: pip install 'gonio[train]'"
        ) from error
