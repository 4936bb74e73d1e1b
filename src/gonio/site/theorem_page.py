"""What the theorem page shows beside the cards: index, status table, dependencies, cross-links."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from gonio.site.collection import Collection
from gonio.site.figure import Figure
from gonio.site.statement_map import cross_links, dependency_graph
from gonio.site.statements import Card
from gonio.site.status_export import STATUS_FILE, status_file
from gonio.theorems.status_file import TheoremStatusFile

__all__ = ["theorems_page"]


def theorems_page(
    collection: Collection,
    cards: Sequence[Card],
    commit: str,
    figures: Iterable[tuple[str, Figure]],
) -> dict[str, Any]:
    """Context of ``theorems.html`` but for the counts.

    Args:
        collection: Records and statuses of the site.
        cards: One per statement.
        commit: Commit that the site names, empty if none was given.
        figures: File of the page and figure, for the cross-links.

    Raises:
        TheoremError: The package has no lock of its proofs, and no file of statuses was given.
    """
    graph = dependency_graph(cards)
    links = cross_links(cards, figures)
    checks = collection.of_kind("theorem-check")
    checked = max((entry.record.created for entry in checks), default="")
    return {
        "cards": cards,
        "their_words": sorted({card.theirs for card in cards if card.theirs}),
        "index": sorted(cards, key=lambda card: (card.entry.name.lower(), card.entry.name)),
        "origin": _origin(status_file(collection, cards), commit, checked),
        "graph": graph,
        "graph_names": {card.entry.name for card in graph.rows},
        "links": links,
        "linked_names": {card.entry.name for card, _ in links.rows},
        "has_checks": bool(checks),
    }


def _origin(file: TheoremStatusFile, commit: str, checked: str) -> list[tuple[str, str]]:
    """Heading and text of what the statuses rest on as a whole."""
    proofs = file.proofs
    asked = "compiled, and the prover asked" if proofs.method == "compiled" else "as last reviewed"
    facts = [
        ("schema", f"{STATUS_FILE}, version {file.schema_version}"),
        ("commit", commit or "not given"),
        ("checks of", checked or "none has run"),
        ("written by", f"gonio {file.gonio}"),
        ("proofs", f"Rocq {proofs.prover}, {asked}"),
        ("their sources", f"sha256 {proofs.digest}"),
        ("drift", "; ".join(file.drift) or "none"),
    ]
    if proofs.library is not None:
        own = ", ".join(proofs.library.own) or "no axiom and nothing unsafe of their own"
        facts.append(("coqchk", f"{proofs.library.modules} modules, {own}"))
    return facts
