"""The packages only the site needs, asked for once and with one message."""

from __future__ import annotations

from importlib.util import find_spec

from gonio.errors import MissingDependencyError

__all__ = ["require_site_packages"]

_PACKAGES = {
    "altair": "altair",
    "jinja2": "jinja2",
    "latex2mathml": "latex2mathml",
    "vl_convert": "vl-convert-python",
}


def require_site_packages() -> None:
    """Fail before any work when a package of the ``site`` extra is missing.

    Raises:
        MissingDependencyError: At least one is not installed; the message names all of them.
    """
    missing = [name for module, name in _PACKAGES.items() if find_spec(module) is None]
    if missing:
        raise MissingDependencyError(
            f"the site cannot be built: {', '.join(missing)} not installed\n"
            "Install what it needs with: pip install 'gonio[site]'"
        )
