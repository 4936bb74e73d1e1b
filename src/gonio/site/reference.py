"""Records that come with gonio: measurements of its own that take longer than a demo may."""

from __future__ import annotations

from pathlib import Path

__all__ = ["reference_records"]


def reference_records() -> tuple[Path, ...]:
    """Files to build a site from beside one's own records, as ``--json --output FILE`` wrote them.

    Returns:
        Paths in order of their names; none where the package was stripped of them.

    Example:
        >>> build_site([folder, *reference_records()], out)  # doctest: +SKIP
    """
    return tuple(sorted(Path(__file__).with_name("records").glob("*.json")))
