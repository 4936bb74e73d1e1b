"""The demo on a tiny model: interrupted anywhere it goes on; it takes no folder but its own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock

from gonio.errors import OutputError
from gonio.pipelines.demo import QUICK, STEPS, DemoSettings, run_demo
from gonio.pipelines.steps import Step
from gonio.records import find_measurements, read_measurement


class Interrupter:
    """Stops the demo, as Ctrl-C would, when the given step reports progress or begins."""

    def __init__(self, at: str | None = None) -> None:
        self.at = at
        self.current = ""
        self.seconds: dict[str, float | None] = {}

    def start(self, step: Step, number: int, total: int) -> None:
        assert 1 <= number <= total == len(STEPS)
        self.current = step.name

    def progress(self, what: str, done: int, total: int) -> None:
        if self.current == self.at and done:
            raise KeyboardInterrupt

    def finish(self, step: Step, seconds: float | None) -> None:
        self.seconds[step.name] = seconds

    @property
    def ran(self) -> list[str]:
        return [name for name, seconds in self.seconds.items() if seconds is not None]


@pytest.fixture
def settings(tiny_folder: Path) -> DemoSettings:
    return replace(
        QUICK,
        model=str(tiny_folder),
        train_steps=2,
        calibration_tokens=128,
        evaluation_tokens=128,
        window=64,
        prefill=32,
        iterations=3,
        convergence_layers=1,
        examples=3,
    )


def test_interrupted_anywhere_it_redoes_only_the_unfinished_step(tmp_path, settings):
    out = tmp_path / "demo"
    order = [step.name for step in STEPS]
    finished: list[str] = []
    for stop in ("train-dpo", "base-clm", "codec-learned", "evaluation"):
        listener = Interrupter(stop)
        with pytest.raises(KeyboardInterrupt):
            run_demo(out, settings, listener)
        assert listener.ran == order[len(finished) : order.index(stop)]
        finished += listener.ran
    listener = Interrupter()
    summary, ran = run_demo(out, settings, listener)
    assert listener.ran == ["evaluation", "certificate"]
    assert ran == 2
    assert [path.name for path in find_measurements(out / "records")] == sorted([*order, "summary"])
    assert summary.record.value("theorems: failed checks").value == 0
    assert not list(out.rglob(".trainer"))
    again = Interrupter()
    assert run_demo(out, settings, again)[1] == 0
    assert again.ran == []


def test_a_lost_result_is_redone_with_all_that_rests_on_it(tmp_path, settings):
    out = tmp_path / "demo"
    run_demo(out, settings, Interrupter())
    (out / "codecs" / "sign-haar.safetensors").unlink()
    listener = Interrupter()
    run_demo(out, settings, listener)
    assert listener.ran == ["codec-haar", "evaluation"]
    (out / "records" / "pair" / "record.json").write_text("{")
    listener = Interrupter()
    run_demo(out, settings, listener)
    assert listener.ran == ["pair"]


def test_the_records_carry_what_they_were_made_from(tmp_path, settings):
    out = tmp_path / "demo"
    run_demo(out, settings, Interrupter())
    for folder in find_measurements(out / "records"):
        record = read_measurement(folder).record
        assert record.environment.packages["torch"] == torch.__version__
        if folder.name != "theorems":
            assert record.inputs, folder.name
    evaluation = read_measurement(out / "records" / "evaluation")
    assert {"full", "zeros", "sign-learned", "transform-both"} <= set(
        evaluation.tables["methods"]["method"]
    )
    assert set(evaluation.tables["methods"]["protocol"]) == {"teacher-forced", "cache"}


def test_folders_of_others_are_refused(tmp_path, settings):
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("precious")
    with pytest.raises(OutputError, match=r"holds no run of gonio \(found thesis\.tex\)"):
        run_demo(other, settings, Interrupter())
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(OutputError, match="a file is there"):
        run_demo(file, settings, Interrupter())


def test_other_settings_and_a_second_run_are_refused(tmp_path, settings):
    out = tmp_path / "demo"
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, settings, Interrupter("theorems"))
    with pytest.raises(OutputError, match=r"other settings \(examples, seed\)"):
        run_demo(out, replace(settings, seed=1, examples=4), Interrupter())
    with FileLock(out / ".lock"), pytest.raises(OutputError, match="another run"):
        run_demo(out, settings, Interrupter())
    (out / "settings.json").write_text(json.dumps({"model": "x"})[:-1])
    with pytest.raises(OutputError, match="cannot read"):
        run_demo(out, settings, Interrupter())
