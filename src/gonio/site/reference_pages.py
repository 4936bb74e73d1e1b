"""Contexts of the pages that explain: errata, methods, glossary; and numbers of others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from gonio.site.formula import to_mathml
from gonio.site.statements import SOURCE_WORDS, SOURCES, Card

__all__ = [
    "PUBLISHED_FILE",
    "errata_page",
    "glossary_page",
    "methods_page",
    "published_numbers",
    "published_text",
]

PUBLISHED_FILE = "first-study.json"
_LABELS = {
    "theorem": "What holds.",
    "refuted": "Refuted.",
    "empirical": "A measurement.",
    "deprecated": "Withdrawn.",
}


@dataclass(frozen=True)
class ErrataGroup:
    """The errata of one source."""

    name: str
    title: str
    cards: tuple[Card, ...]


def errata_page(cards: Sequence[Card]) -> dict[str, Any]:
    """Context of ``errata.html``: the statements whose printed form was wrong, by source."""
    found = [card for card in cards if card.entry.erratum is not None]
    groups = [
        ErrataGroup(name, title, tuple(card for card in found if card.entry.source == name))
        for name, title in SOURCES.items()
    ]
    return {
        "groups": [group for group in groups if group.cards],
        "total": len(found),
        "refuted": sum(card.entry.kind == "refuted" for card in found),
        "statements": len(cards),
        "labels": _LABELS,
    }


def methods_page(commands: Mapping[str, str], purposes: Mapping[str, str]) -> dict[str, Any]:
    """Context of ``methods.html``.

    Args:
        commands: What writes each kind of record.
        purposes: What each kind holds, a few words.
    """
    content = _read("glossary.json")
    protocols = [
        {
            "kind": kind,
            "command": command,
            "purpose": purposes[kind],
            "meaning": content["protocols"].get(kind, ""),
        }
        for kind, command in commands.items()
    ]
    return {
        "protocols": protocols,
        "terms": content["terms"],
        "intervals": content["intervals"],
        "source_words": SOURCE_WORDS,
    }


def glossary_page() -> dict[str, Any]:
    """Context of ``glossary.html``: quantities and other words, in alphabetical order."""
    content = _read("glossary.json")
    bare = {"code": "", "latex": "", "chance": "", "see": []}
    terms = [bare | term for term in (*content["terms"], *content["words"])]
    for term in terms:
        term["formula"] = to_mathml(term["latex"]) if term["latex"] else ""
    return {"terms": sorted(terms, key=lambda term: str(term["term"]).lower())}


def published_numbers() -> dict[str, Any]:
    """What figures show beside our own numbers: whose, where published, in which setting."""
    content = _read("first_study.json")
    return {
        "source": content["source"],
        "url": content["url"],
        "setting": content["setting"],
        "file": PUBLISHED_FILE,
    }


def published_text() -> str:
    """The published numbers as JSON, as the package holds them."""
    return _text("first_study.json")


def _read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(_text(name))
    return content


def _text(name: str) -> str:
    return (files("gonio.site") / name).read_text(encoding="utf-8")
