"""The same output options on every command, and how measurements are printed and plotted.

Without options a measurement is printed as tables that fit 80 columns; ``--json`` prints the
whole record and its tables at full precision; ``--csv`` prints the main table. Commands whose
results are worth looking at draw them too, into the file of ``--plot``.
"""

from __future__ import annotations

import inspect
import json
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pandas as pd
    from rich.table import Table

    from gonio.records import Measurement, Value

__all__ = ["Output", "ProgressCallback", "output_options", "plot_option", "progress_bar"]

ProgressCallback = Callable[[str, int, int], None]  # what is done, steps done, steps in all

_WIDTH = 80
_SENTENCE = 24  # longer texts are printed below the numbers


@dataclass(frozen=True)
class Output:
    """Where and in which form a command prints its result.

    Attributes:
        form: ``text``, ``json`` or ``csv``.
        path: File to write instead of standard output.
        plot: File to draw measurements into.
    """

    form: str = "text"
    path: Path | None = None
    plot: Path | None = None

    def write(
        self,
        measurement: Measurement,
        tables: Sequence[tuple[str, pd.DataFrame]] = (),
        main_table: str | None = None,
    ) -> None:
        """Print a measurement: values and condensed tables, or JSON, or the main table as CSV.

        Then draw it, where ``--plot`` was given: what was printed stays if it cannot be drawn.

        Args:
            measurement: Record and tables.
            tables: Titles and tables made for people, printed after the values in text form.
            main_table: The table that ``--csv`` prints; the record's first one unless given.
        """
        record = measurement.record
        if self.form == "json":
            rows = {name: _rows(table) for name, table in measurement.tables.items()}
            content = {"record": record.model_dump(mode="json"), "tables": rows}
            self._emit(json.dumps(content, indent=2) + "\n")
        elif self.form == "csv":
            table = measurement.tables[main_table or record.tables[0]]
            self._emit(table.to_csv(index=False))
        else:
            sentences = [v for v in record.values if _is_sentence(v)]
            numbers = [v for v in record.values if not _is_sentence(v)]
            parts = [_render(record.title, _value_table(numbers))]
            parts += [_paragraph(f"{v.name.replace('_', ' ')}: {v.value}") for v in sentences]
            parts += [_render(title, _frame_table(table)) for title, table in tables]
            self._emit("\n".join(parts))
        if self.plot is not None:
            from gonio.site.record_plots import plot_measurement

            plot_measurement(measurement, self.plot)

    def write_table(
        self, title: str, table: pd.DataFrame, columns: Sequence[str] | None = None
    ) -> None:
        """Print a data frame; in text form only ``columns``, so that it fits 80 columns."""
        if self.form == "json":
            self._emit(json.dumps({"title": title, "rows": _rows(table)}, indent=2) + "\n")
        elif self.form == "csv":
            self._emit(table.to_csv(index=False))
        else:
            shown = table if columns is None else table[list(columns)]
            self._emit(_render(title, _frame_table(shown)))

    def _emit(self, text: str) -> None:
        if self.path is None:
            click.echo(text, nl=False)
            return
        from gonio.files import write_text

        write_text(self.path, text)


def output_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--json``, ``--csv`` and ``--output FILE``; the command receives ``output``."""

    @click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
    @click.option("--csv", "as_csv", is_flag=True, help="Print the main table as CSV.")
    @click.option(
        "--output",
        "path",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Write to FILE instead of standard output.",
        metavar="FILE",
    )
    @click.option("--force", "overwrite", is_flag=True, help="Replace files that exist.")
    @wraps(command)
    def wrapper(
        *args: Any, as_json: bool, as_csv: bool, path: Path | None, overwrite: bool, **kwargs: Any
    ) -> Any:
        if as_json and as_csv:
            raise click.UsageError("--json and --csv exclude each other")
        refuse_existing(path, overwrite)
        form = "json" if as_json else "csv" if as_csv else "text"
        if _accepts_overwrite(command):
            kwargs["overwrite"] = overwrite
        return command(*args, output=Output(form, path), **kwargs)

    return wrapper


def plot_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--plot FILE``; stands below :func:`output_options`, whose ``output`` then draws.

    A file that exists or whose suffix names no format is refused before the command starts.
    """

    @click.option(
        "--plot",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Draw the result into FILE: .html (interactive), .png or .svg.",
        metavar="FILE",
    )
    @wraps(command)
    def wrapper(
        *args: Any, plot: Path | None, output: Output, overwrite: bool, **kwargs: Any
    ) -> Any:
        if plot is not None:
            from gonio.site.record_plots import require_plottable

            refuse_existing(require_plottable(plot), overwrite)
        if _accepts_overwrite(command):
            kwargs["overwrite"] = overwrite
        return command(*args, output=replace(output, plot=plot), **kwargs)

    return wrapper


def refuse_existing(path: Path | None, overwrite: bool) -> None:
    """Refuse to write over ``path`` unless asked to.

    Raises:
        OutputError: The path exists and ``overwrite`` is false.
    """
    from gonio.errors import OutputError

    if path is not None and path.exists() and not overwrite:
        raise OutputError(f"{path} exists and is not replaced; give --force to replace it.")


def _accepts_overwrite(command: Callable[..., Any]) -> bool:
    """Whether the command, or the wrapper around it, has a parameter of that name."""
    return "overwrite" in inspect.signature(command, follow_wrapped=False).parameters


@contextmanager
def progress_bar(title: str) -> Iterator[ProgressCallback]:
    """A progress bar on standard error, driven by ``progress(what, done, total)``."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<34}", markup=False),  # names come from files
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bars:
        task = bars.add_task(title, total=None)

        def advance(what: str, done: int, total: int) -> None:
            bars.update(task, description=what[:34], completed=done, total=total)

        yield advance


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as JSON objects, NaN as null, full precision."""
    return [
        {str(key): _json_value(value) for key, value in row.items()}
        for row in table.to_dict(orient="records")
    ]


def _json_value(value: Any) -> Any:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "tolist"):
        return value.tolist()
    return value


def _is_sentence(value: Value) -> bool:
    """Whether a value is a text too long for a column of numbers."""
    return isinstance(value.value, str) and len(value.value) > _SENTENCE


def _paragraph(text: str) -> str:
    import textwrap

    return textwrap.fill(text, _WIDTH) + "\n"


def _value_table(values: Sequence[Value]) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("quantity", overflow="fold")
    has_interval = any(value.interval is not None for value in values)
    has_chance = any(value.chance is not None for value in values)
    headings = ["value"] + ["95% interval"] * has_interval + ["chance"] * has_chance
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for value in values:
        interval = value.interval
        bounds = f"{_short(interval.low)} .. {_short(interval.high)}" if interval else ""
        chance = "" if value.chance is None else _short(value.chance)
        unit = f" {value.unit}" if value.unit else ""
        shown = "undefined" if value.value is None else _short(value.value) + unit
        cells = [shown] + [bounds] * has_interval + [chance] * has_chance
        table.add_row(value.name.replace("_", " "), *cells)
    return table


def _frame_table(frame: pd.DataFrame) -> Table:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in frame.columns:
        numeric = frame[column].dtype.kind in "fiu"
        table.add_column(str(column).replace("_", " "), justify="right" if numeric else "left")
    for row in frame.itertuples(index=False):
        table.add_row(*(_short(cell) for cell in row))
    return table


def _short(value: Any) -> str:
    """Four significant digits for people; records keep all of them."""
    if value is None:
        return ""
    if isinstance(value, bool | str):
        return str(value)
    number = float(value)
    if math.isnan(number):
        return ""
    if abs(number) < 1e15 and number == int(number):
        return f"{int(number)}"
    return f"{number:.4g}"


def _render(title: str, table: Table) -> str:
    from io import StringIO

    from rich.console import Console

    width = _WIDTH
    if sys.stdout.isatty():
        width = max(_WIDTH, Console().width)
    buffer = StringIO()
    console = Console(file=buffer, width=width, highlight=False, emoji=False, markup=False)
    console.print(title)
    console.print(table)
    return "\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n"
