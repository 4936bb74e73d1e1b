"""Rendering: Jinja templates of the package, escaping everything that is not marked safe."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from gonio import __version__
from gonio.site.commands import WAYS
from gonio.site.numbers import show, show_interval, slug

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["PAGES", "make_environment", "render"]

# File name and name in the menu, in the order of the menu.
PAGES = {
    "index.html": "Home",
    "adapters.html": "Adapters",
    "caches.html": "Caches",
    "theorems.html": "Theorems",
    "errata.html": "Errata",
    "methods.html": "Methods",
    "glossary.html": "Glossary",
    "provenance.html": "Provenance",
}


def make_environment() -> Environment:
    """An environment that fails on undefined names and escapes all values."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("gonio.site"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        breakable=_breakable,
        compact_json=_compact_json,
        show=show,
        show_interval=show_interval,
        slug=slug,
    )
    environment.globals.update(pages=PAGES, version=__version__, ways=WAYS)
    return environment


def render(environment: Environment, page: str, context: dict[str, Any]) -> str:
    """The text of one page.

    Args:
        environment: From :func:`make_environment`.
        page: File name, a key of :data:`PAGES`; its template is named after it.
        context: What the template needs.
    """
    return environment.get_template(f"{page}.j2").render(page=page, **context)


def _breakable(name: str) -> Markup:
    """A name that may be broken after underscores and dots, and is copied without the break."""
    return Markup("").join(
        Markup("{}<wbr>").format(part) if part in "_." else part
        for part in re.split("([_.])", name)
    )


def _compact_json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
