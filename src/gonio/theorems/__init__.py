"""The statements gonio rests on: a catalogue, executable checks, and a status computed from both.

Running a check needs torch and Hypothesis, so it is imported on its own::

    from gonio.theorems.runner import run_check
"""

from gonio.theorems.catalogue import (
    Entry,
    Family,
    LeanDeclaration,
    Measure,
    get_entry,
    load_catalogue,
    load_families,
    select_entries,
)
from gonio.theorems.status import Status, compute_status, compute_statuses

__all__ = [
    "Entry",
    "Family",
    "LeanDeclaration",
    "Measure",
    "Status",
    "compute_status",
    "compute_statuses",
    "get_entry",
    "load_catalogue",
    "load_families",
    "select_entries",
]
