"""The records a site is built from, each under a stable identifier.

The identifier is the record's anchor on the provenance page and the name of its JSON file. It
depends on the record's content only, never on where the record lay or in which order it came.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from gonio.errors import RecordError
from gonio.records import Measurement, find_measurements, read_measurement
from gonio.site.interchange import read_source, to_json
from gonio.site.numbers import slug

if TYPE_CHECKING:
    import pandas as pd

    from gonio.records import Record
    from gonio.theorems.status_file import TheoremStatusFile

__all__ = ["Collection", "SiteRecord", "collect"]


@dataclass(frozen=True)
class SiteRecord:
    """One measurement and the name the site knows it by.

    Attributes:
        identifier: Letters, digits and hyphens; unique within the site.
        measurement: Record and tables.
        label: What charts call it, from its settings: a label, or the adapter's folder, the kind
            of training, the model; the title where none is set. Unique among records of its kind.
        digest: Sha256 of the record's JSON file: the anchor that no other record can change.
    """

    identifier: str
    measurement: Measurement
    label: str
    digest: str

    @property
    def record(self) -> Record:
        """The JSON half."""
        return self.measurement.record

    def table(self, name: str, columns: Iterable[str]) -> pd.DataFrame:
        """A table of the record that holds at least ``columns``.

        Raises:
            RecordError: The table or a column is missing.
        """
        tables = self.measurement.tables
        if name not in tables:
            raise RecordError(
                f"record {self.identifier} ({self.record.kind}) has no table {name!r}; "
                f"it has {', '.join(sorted(tables)) or 'none'}"
            )
        missing = [column for column in columns if column not in tables[name].columns]
        if missing:
            raise RecordError(
                f"table {name!r} of record {self.identifier} ({self.record.kind}) has no column "
                f"{', '.join(missing)}\nMeasure again with this version of gonio."
            )
        return tables[name]


@dataclass(frozen=True)
class Collection:
    """Every record of a site, sorted by kind, label and content.

    Attributes:
        records: The records.
        statuses: A file of theorem statuses, None if none was given.
    """

    records: tuple[SiteRecord, ...]
    statuses: TheoremStatusFile | None = None

    @property
    def newest(self) -> str:
        """When the newest record was made, empty without one."""
        return max((entry.record.created for entry in self.records), default="")

    def of_kind(self, kind: str) -> tuple[SiteRecord, ...]:
        """The records of one kind, in the collection's order."""
        return tuple(entry for entry in self.records if entry.record.kind == kind)


def collect(sources: Sequence[Measurement | Path | str]) -> Collection:
    """Read and name the records of a site.

    Args:
        sources: Measurements, folders that hold records at any depth, and JSON files as commands
            write them with ``--json --output FILE``. A record met twice counts once. One of the
            files may be of theorem statuses, as ``gonio theorem status`` writes it.

    Raises:
        RecordError: A source is missing or holds no record, a record cannot be read, or two files
            of theorem statuses differ.
        TheoremError: A file of theorem statuses is not of this version.
    """
    found: dict[str, Measurement] = {}
    statuses: TheoremStatusFile | None = None
    for source in sources:
        measurements, given = _read(source)
        for measurement in measurements:
            found[_content_hash(measurement)] = measurement
        if given is not None and statuses not in (None, given):
            raise RecordError(f"{source} is a second file of theorem statuses, unlike the first")
        statuses = given or statuses
    order = sorted(found, key=lambda digest: _sort_key(found[digest], digest))
    labels = Counter((m.record.kind, _label(m.record)) for m in found.values())
    names = Counter(_name(measurement.record) for measurement in found.values())
    entries = []
    for digest in order:
        measurement = found[digest]
        name, label = _name(measurement.record), _label(measurement.record)
        if names[name] > 1:
            name = f"{name}-{digest[:8]}"
        if labels[measurement.record.kind, label] > 1:
            label = f"{label} ({digest[:8]})"
        entries.append(SiteRecord(name, measurement, label, digest))
    return Collection(tuple(entries), statuses)


def _read(
    source: Measurement | Path | str,
) -> tuple[list[Measurement], TheoremStatusFile | None]:
    if isinstance(source, Measurement):
        return [source], None
    path = Path(source)
    if path.is_file():
        measurement, statuses = read_source(path)
        return [] if measurement is None else [measurement], statuses
    folders = find_measurements(path)
    if not folders:
        raise RecordError(
            f"no record in {path}\n  expected record.json in it or below it\n"
            "`gonio demo` writes records of every kind."
        )
    return [read_measurement(folder) for folder in folders], None


def _label(record: Record) -> str:
    return _given_label(record.settings) or record.title


def _given_label(settings: Mapping[str, Any]) -> str:
    """What the settings call the thing measured; empty if nothing does."""
    if "label" in settings:
        return str(settings["label"])
    if isinstance(settings.get("labels"), list | tuple):
        return " and ".join(str(part) for part in settings["labels"])
    if "adapter" in settings:
        return PurePath(str(settings["adapter"])).name
    pair = [settings.get(name) for name in ("first", "second")]
    if all(isinstance(part, Mapping) and "adapter" in part for part in pair):
        return " and ".join(PurePath(str(part["adapter"])).name for part in pair if part)
    return str(settings.get("kind") or PurePath(str(settings.get("model", ""))).name)


def _name(record: Record) -> str:
    """Kind and label; never ``record``, whose JSON file would look like a stored record."""
    name = slug(f"{record.kind} {_given_label(record.settings)} {_codec(record)}")[:80]
    return "record-1" if name == "record" else name


def _codec(record: Record) -> str:
    """What tells the codecs of one model apart; empty of other records."""
    if record.kind != "cache-calibration":
        return ""
    names = ("method", "bits", "rotation", "value_method", "value_bits")
    parts = [record.settings.get(name) for name in names]
    return " ".join(str(part) for part in parts if part is not None)


def _sort_key(measurement: Measurement, digest: str) -> tuple[str, str, str, str]:
    record = measurement.record
    return record.kind, _label(record), record.created, digest


def _content_hash(measurement: Measurement) -> str:
    return hashlib.sha256(to_json(measurement).encode("utf-8")).hexdigest()
