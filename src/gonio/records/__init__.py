"""Records: what was measured, from what, with what, and how to read it back."""

from gonio.records.provenance import (
    describe_environment,
    file_input,
    make_measurement,
    make_value,
    text_input,
)
from gonio.records.schema import (
    Environment,
    InputFile,
    IntervalRecord,
    Measurement,
    Record,
    Value,
)
from gonio.records.store import (
    find_measurements,
    read_measurement,
    write_measurement,
)

__all__ = [
    "Environment",
    "InputFile",
    "IntervalRecord",
    "Measurement",
    "Record",
    "Value",
    "describe_environment",
    "file_input",
    "find_measurements",
    "make_measurement",
    "make_value",
    "read_measurement",
    "text_input",
    "write_measurement",
]
