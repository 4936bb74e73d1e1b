"""The optional packages training needs, imported only when training starts."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from gonio.errors import MissingDependencyError, SettingError

__all__ = ["is_main_process", "require_datasets", "require_trackers", "require_trl"]

_UNLISTED = {"azure_ml", "flyte"}  # transformers does not always tell whether these are there


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


def require_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that would stop the trainer from being made.

    Args:
        names: As in ``report_to`` of a recipe.

    Raises:
        SettingError: ``transformers`` has no such tracker.
        MissingDependencyError: The tracker's own package is not installed.
    """
    from transformers.integrations import integration_utils as trackers

    known = sorted(trackers.INTEGRATION_TO_CALLBACK)
    for name in names:
        if name not in known:
            raise SettingError(f"no tracker {name!r}; transformers has {', '.join(known)}")
        if name not in {*trackers.get_available_reporting_integrations(), *_UNLISTED}:
            raise MissingDependencyError(
                f"the tracker {name} is not installed here\n"
                "Install its own package, or leave it out of report_to."
            )


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
