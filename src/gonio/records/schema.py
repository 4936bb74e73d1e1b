"""What a record holds: settings, inputs, environment, and values that never stand alone.

A record is the JSON half of a measurement; its tables are data frames stored beside it. Values
keep full precision: rounding, thresholds and verdicts belong to presentation.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "SCHEMA_VERSION",
    "Environment",
    "InputFile",
    "IntervalRecord",
    "Measurement",
    "Record",
    "Value",
]

SCHEMA_VERSION = 1

Slug = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")]


class _Strict(BaseModel):
    """Unknown fields are errors; NaN and infinities are written as null by the caller."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class IntervalRecord(_Strict):
    """A confidence interval as stored: bounds, confidence level and how it was computed."""

    low: float
    high: float
    confidence: float = Field(gt=0.0, lt=1.0)
    method: str


class Value(_Strict):
    """One measured quantity with what chance gives and how sure we are.

    Attributes:
        name: Stable name of the quantity, the field's standard term.
        value: The number at full precision; null where it is undefined (the note says why).
        unit: Unit, empty for dimensionless quantities.
        chance: What chance gives for the same quantity, where a null exists.
        interval: Confidence interval of the value, where one can be computed.
        note: One sentence a reader needs, for example what chance means here.
    """

    name: str
    value: float | int | str | None
    unit: str = ""
    chance: float | None = None
    interval: IntervalRecord | None = None
    note: str = ""


class InputFile(_Strict):
    """One input by name and content: a file's, or a text's, sha256."""

    name: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Environment(_Strict):
    """Versions and machine class the numbers were computed with."""

    gonio: str
    python: str
    platform: str
    packages: dict[str, str]
    threads: int


class Record(_Strict):
    """The JSON half of a measurement.

    Attributes:
        schema_version: Version of this schema.
        kind: What was measured, for example ``adapter-spectrum``; the site chooses pages by it.
        title: One line for people.
        created: UTC time in ISO 8601.
        settings: Every setting that changes the numbers.
        inputs: Name and sha256 of every file or text read.
        environment: Package versions and threads.
        seed: Seed of everything random, null where nothing is.
        dtype: Precision of the computation, for example ``float32``.
        device: Device type, for example ``cpu``.
        values: Summary values.
        tables: Names of the tables stored beside the record.
    """

    schema_version: int = Field(default=SCHEMA_VERSION, ge=SCHEMA_VERSION, le=SCHEMA_VERSION)
    kind: Slug
    title: str
    created: str
    settings: dict[str, Any]
    inputs: tuple[InputFile, ...]
    environment: Environment
    seed: int | None
    dtype: str
    device: str
    values: tuple[Value, ...]
    tables: tuple[Slug, ...]

    def value(self, name: str) -> Value:
        """The value called ``name``.

        Raises:
            KeyError: No value has that name.
        """
        for value in self.values:
            if value.name == name:
                return value
        raise KeyError(f"record {self.kind!r} has no value {name!r}")


@dataclass(frozen=True)
class Measurement:
    """A record and its tables, as produced by a pipeline and as read back from disk."""

    record: Record
    tables: dict[str, pd.DataFrame] = field(default_factory=dict)
