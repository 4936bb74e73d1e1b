"""``theorem-status.json`` of a site: the words on its cards, for machines.

A site that was built from such a file hands it on. Otherwise the file is made of the lock of the
proofs and of the checks among the records, and a site built from it shows the same cards.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gonio
from gonio.site.collection import Collection, SiteRecord
from gonio.site.interchange import to_json
from gonio.site.statements import Card, proofs_of
from gonio.theorems.rocq import read_lock
from gonio.theorems.status_file import (
    SCHEMA_VERSION,
    ProofOrigin,
    TheoremStatusFile,
    count_words,
    status_rows,
)

__all__ = ["STATUS_FILE", "status_file", "status_text"]

STATUS_FILE = "theorem-status.json"


def status_file(collection: Collection, cards: Sequence[Card]) -> TheoremStatusFile:
    """The statuses of a site's cards, with where the answers about proofs come from.

    Raises:
        TheoremError: No file of statuses was given, and the package has no lock of its proofs.
    """
    if collection.statuses is not None:
        return collection.statuses
    proofs = proofs_of(collection)
    rows = tuple(
        row.model_copy(update={"status": card.status, "check_passed": card.passed})
        for card, row in zip(
            cards, status_rows([card.entry for card in cards], {}, proofs), strict=True
        )
    )
    counts, family_counts = count_words(rows)
    lock = read_lock()
    return TheoremStatusFile(
        schema_version=SCHEMA_VERSION,
        gonio=gonio.__version__,
        proofs=ProofOrigin(
            method="lock",
            prover=lock.prover,
            digest=lock.digest,
            sources="absent",  # a site is built from records, wherever the sources are
            allowed_axioms=lock.allowed_axioms,
            library=None,
        ),
        drift=(),
        counts=counts,
        family_counts=family_counts,
        theorems=rows,
        checks=_checks(collection.of_kind("theorem-check")),
    )


def status_text(file: TheoremStatusFile) -> str:
    """The file as JSON."""
    return json.dumps(file.model_dump(mode="json"), indent=1) + "\n"


def _checks(records: Sequence[SiteRecord]) -> dict[str, Any] | None:
    """The record of the checks as the file embeds it; nothing unless there is exactly one."""
    if len(records) != 1:
        return None
    content: dict[str, Any] = json.loads(to_json(records[0].measurement))
    return content
