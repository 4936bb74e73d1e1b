"""``gonio demo``: the main job, with progress, resumable."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from gonio.cli.output import Output, output_options

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from gonio.pipelines.demo import DemoRun
    from gonio.pipelines.steps import Step

__all__ = ["demo"]


@click.command("demo")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("gonio-demo"),
    show_default=True,
    help="Folder of the results; one that holds an unfinished demo is taken up again.",
)
@click.option("--quick", is_flag=True, help="Smaller sizes: under two minutes on two cores.")
@output_options
def demo(out: Path, quick: bool, output: Output) -> None:
    """Measure, train, compress and check everything on a small real model.

    On SmolLM2-135M: trains a CLM and a DPO adapter, compares them with each other and with the
    base against chance, observes the keys of every layer, calibrates and evaluates 1-bit caches,
    checks the theorems, and builds a site. Interrupt it at any time; the same command goes on
    where it stopped.

    \b
    Example:
      gonio demo --out gonio-demo
      gonio demo --quick --out gonio-demo-quick
    """
    from gonio.pipelines.demo import FULL, QUICK, run_demo
    from gonio.site import build_site
    from gonio.site.reference import reference_records

    with _StepBars() as bars:
        summary, ran = run_demo(out, QUICK if quick else FULL, bars)
    page = out / "site" / "index.html"
    if ran or not page.exists():
        page = build_site([out / "records", *reference_records()], out / "site")
    output.write(summary)
    click.echo(f"{ran} steps ran; the records are in {out / 'records'}", err=True)
    click.echo(f"Open {page.resolve()}", err=output.form != "text" or output.path is not None)


class _StepBars:
    """One line per finished step and a bar for the running one, on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = Console(stderr=True, highlight=False)
        self._bars: Progress = Progress(
            TextColumn("{task.description:<52}", markup=False),
            BarColumn(bar_width=16),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task: TaskID | None = None
        self._title = ""

    def __enter__(self) -> _StepBars:
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()

    def start(self, step: Step[DemoRun], number: int, total: int) -> None:
        """A step begins: show its bar."""
        self._title = f"[{number:>2}/{total}] {step.title}"
        self._task = self._bars.add_task(self._title, total=None)

    def progress(self, what: str, done: int, total: int) -> None:
        """Part of the step is done: move its bar."""
        if self._task is not None:
            title = f"{self._title}: {what}"[:52]
            self._bars.update(self._task, description=title, completed=done, total=total)

    def finish(self, step: Step[DemoRun], seconds: float | None) -> None:
        """The step ended: replace its bar by a line."""
        if self._task is not None:
            self._bars.remove_task(self._task)
        took = "done before" if seconds is None else f"{seconds:.1f} s"
        self._console.print(f"{self._title:<56}{took:>12}", markup=False)
