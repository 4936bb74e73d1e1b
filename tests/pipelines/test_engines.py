"""Engines: one process, several and Ray give the same; errors and dead workers come back."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from gonio.errors import MissingDependencyError, SettingError
from gonio.pipelines import engines
from gonio.pipelines.engines import EngineError, WorkerLostError, run_tasks

ENGINES = [
    pytest.param({"workers": 1}, id="in-process"),
    pytest.param({"workers": 2}, id="processes"),
    pytest.param({"engine": "ray", "workers": 2}, id="ray", marks=pytest.mark.slow),
]


def half(number):
    """Half of an even number."""
    if number % 2:
        raise ValueError(f"{number} is odd")
    return number // 2, torch.get_num_threads()


def die_once(marker):
    """Kill the worker that runs this, unless it was done before."""
    path = Path(marker)
    if path.suffix == ".first" and not path.exists():
        path.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if path.suffix == ".always":
        os.kill(os.getpid(), signal.SIGKILL)
    return path.suffix


def slow(marker):
    """Leave a file, then take a while."""
    Path(marker).touch()
    time.sleep(0.5)


@pytest.mark.parametrize("how", ENGINES)
def test_every_item_comes_back_with_its_result_or_error(how):
    found = dict(run_tasks(half, range(6), **how))
    assert [found[n][0] for n in (0, 2, 4)] == [0, 1, 2]
    assert [str(found[n]) for n in (1, 3, 5)] == ["1 is odd", "3 is odd", "5 is odd"]
    assert all(isinstance(found[n], ValueError) for n in (1, 3, 5))
    if how["workers"] > 1:
        assert found[0][1] == 1  # thread per worker


@pytest.mark.parametrize("how", ENGINES[1:])
def test_a_killed_worker_is_retried_or_reported(how, tmp_path):
    """Killed once: the item is done again. Killed always: reported, and the others are done."""
    suffixes = ["a.ok", "b.first", "c.ok", "d.always", "e.ok", "f.ok"]
    markers = [str(tmp_path / name) for name in suffixes]
    found = {Path(item).name: result for item, result in run_tasks(die_once, markers, **how)}
    assert found.keys() == set(suffixes)
    assert isinstance(found.pop("d.always"), WorkerLostError)
    assert found == {name: Path(name).suffix for name in found}


@pytest.mark.parametrize("how", ENGINES[:2])
def test_closing_the_iterator_leaves_the_rest_undone(how, tmp_path):
    markers = [tmp_path / str(number) for number in range(8)]
    tasks = run_tasks(slow, markers, **how)
    next(tasks)
    tasks.close()
    done = len(list(tmp_path.iterdir()))
    assert 1 <= done <= 3  # what was running with it, and one that took its place
    time.sleep(0.6)
    assert len(list(tmp_path.iterdir())) == done


@pytest.mark.slow
def test_interrupt_ends_the_workers(tmp_path):
    """Ctrl-C reaches the whole process group; the run ends soon, without workers' tracebacks."""
    script = tmp_path / "script.py"
    script.write_text(
        "import pathlib, sys, time\n"
        "from gonio.pipelines.engines import EngineError, run_tasks\n"
        "def slow(path):\n"
        "    path.touch(); time.sleep(1)\n"
        "if __name__ == '__main__':\n"
        "    paths = [pathlib.Path(sys.argv[1]) / f'{n}.done' for n in range(50)]\n"
        "    try:\n"
        "        list(run_tasks(slow, paths, workers=2))\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    command = [sys.executable, str(script), str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(tmp_path.glob("*.done")):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=120)  # on a busy machine workers end late
    assert process.returncode == 130
    assert errors == ""
    assert len(list(tmp_path.glob("*.done"))) < 10


@pytest.mark.parametrize(
    ("how", "error", "words"),
    [
        ({"engine": "dask"}, SettingError, "local or ray"),
        ({"workers": 0}, SettingError, "at least 1"),
    ],
)
def test_wrong_settings_are_refused_before_the_first_item(how, error, words):
    with pytest.raises(error, match=words):
        run_tasks(half, [1], **how)


def test_ray_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(engines, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gonio\[ray\]'"):
        run_tasks(half, [1], engine="ray")


def test_a_ray_that_does_not_start_is_one_message(monkeypatch):
    ray = pytest.importorskip("ray")

    def refuse(**settings):
        raise ConnectionError("nobody answers at 10.0.0.1:6379\nmore")

    monkeypatch.setattr(ray, "init", refuse)
    for address, named in (("10.0.0.1:6379", "RAY_ADDRESS"), ("", "gonio's own")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(EngineError, match=rf"{named}[\s\S]*nobody answers at 10.0.0.1:6379\n"):
            list(run_tasks(half, [1], engine="ray"))


@pytest.mark.slow
def test_a_ray_of_the_caller_is_kept():
    import ray

    ray.init(address="local", num_cpus=1, object_store_memory=96 << 20, include_dashboard=False)
    try:
        assert dict(run_tasks(half, [4], engine="ray"))[4][0] == 2
        assert ray.is_initialized()
    finally:
        ray.shutdown()
    dict(run_tasks(half, [4], engine="ray", workers=1))
    assert not ray.is_initialized()
