"""Engines: one function over many items, in this process, in several, or on a Ray cluster.

Every engine yields each item with its result or with the exception it ended in, as they finish.
A worker that dies (killed, out of memory) costs its item a retry, never the run.
"""

from __future__ import annotations

import os
import signal
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from importlib.util import find_spec
from multiprocessing import get_context
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import torch

from gonio.errors import GonioError, MissingDependencyError, SettingError

__all__ = [
    "Engine",
    "EngineError",
    "WorkerLostError",
    "available_cpus",
    "require_engine",
    "run_tasks",
]

Engine: TypeAlias = Literal["local", "ray"]
Item = TypeVar("Item")
Result = TypeVar("Result")

_RETRIES = 2  # of an item whose worker died; the first death may have been a neighbor's doing
# Results are small tables and /dev/shm may be small too; Ray's least is 75 MiB.
_OBJECT_STORE_BYTES = 96 << 20


class EngineError(GonioError, RuntimeError):
    """An engine could not be started."""


class WorkerLostError(GonioError, RuntimeError):
    """A worker process died while it held an item, also when the item was retried."""


def run_tasks(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    engine: Engine = "local",
    workers: int | None = None,
    cpus: int = 1,
    gpus: float = 0.0,
) -> Generator[tuple[Item, Result | Exception], None, None]:
    """Call a function on every item; each comes back with its result or its exception.

    Closing the iterator, or Ctrl-C, cancels the items that have not started; at most one item per
    worker is then still finished (local) or abandoned (Ray).

    Args:
        function: Importable by name and without side effects that a retry would repeat.
        items: What to call it on; must pickle, as must results, unless all is done in-process.
        engine: ``"local"``: this process for one worker, else fresh (spawned) processes with one
            torch thread each. ``"ray"``: the cluster at ``RAY_ADDRESS``, else a local one that
            ends with the iterator; a Ray this process is already connected to is used and kept.
        workers: Items worked on at a time, at least 1. None: 1 for ``"local"``, for ``"ray"`` as
            many as the cluster has CPUs for.
        cpus: CPUs Ray sets aside for an item.
        gpus: Accelerators, or their share, Ray sets aside for an item.

    Yields:
        ``(item, result or exception)``, in order for one local worker, else as they finish.

    Raises:
        SettingError: An unknown engine, or fewer than one worker.
        MissingDependencyError: Ray is asked for and not installed.
        EngineError: Ray cannot be started or reached (raised when iteration begins).
    """
    require_engine(engine, workers)
    if engine == "ray":
        return _with_ray(function, items, workers, cpus, gpus)
    if workers is None or workers == 1:
        return ((item, _attempt(function, item)) for item in items)
    return _in_processes(function, items, workers)


def require_engine(engine: str, workers: int | None) -> None:
    """Refuse what cannot run, before any work.

    Raises:
        SettingError: An unknown engine, or fewer than one worker.
        MissingDependencyError: Ray is asked for and not installed.
    """
    if engine not in get_args(Engine):
        raise SettingError(f"engine is {engine!r}, expected {' or '.join(get_args(Engine))}")
    if workers is not None and workers < 1:
        raise SettingError(f"{workers} workers asked for, expected at least 1")
    if engine == "ray" and find_spec("ray") is None:
        raise MissingDependencyError(
            "the engine ray is not installed\nInstall it with: pip install 'gonio[ray]'"
        )


def available_cpus() -> int:
    """CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _attempt(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    """The result, or the exception as a value, so that all engines report it alike."""
    try:
        return function(item)
    except Exception as error:
        return error


def _in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int
) -> Generator[tuple[Item, Result | Exception], None, None]:
    """Items in a pool; those it held when a worker died run again, each alone in a fresh pool.

    A pool names no culprit, so all it held are suspects; alone, a suspect that kills its worker
    again is the one.
    """
    waiting = deque(items)
    while waiting:
        suspects: list[Item] = []
        yield from _one_pool(function, waiting, workers, suspects)
        for item in suspects:
            yield item, _alone(function, item)


def _one_pool(
    function: Callable[[Item], Result], waiting: deque[Item], workers: int, suspects: list[Item]
) -> Generator[tuple[Item, Result | Exception], None, None]:
    """Empty ``waiting`` through one pool; if it breaks, what it held is left in ``suspects``."""
    held: dict[Future[Result | Exception], Item] = {}
    with _pool(min(workers, len(waiting))) as pool:
        while (waiting and not suspects) or held:
            while waiting and not suspects and len(held) < workers:
                item = waiting.popleft()
                held[_submit(pool, function, item)] = item
            for future in wait(held, return_when=FIRST_COMPLETED).done:
                item = held.pop(future)
                if isinstance(future.exception(), BrokenProcessPool):
                    suspects.append(item)
                else:
                    yield item, _result_of(future)


def _alone(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    for _ in range(_RETRIES):
        with _pool(1) as pool:
            future = _submit(pool, function, item)
            if not isinstance(future.exception(), BrokenProcessPool):
                return _result_of(future)
    return _lost()


def _submit(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item
) -> Future[Result | Exception]:
    """Submit; a pool that is already broken gives a future that says so."""
    try:
        with _interrupts_blocked():  # a pool starts its processes when there is work for them
            return pool.submit(_attempt, function, item)
    except BrokenProcessPool as error:
        future: Future[Result | Exception] = Future()
        future.set_exception(error)
        return future


def _result_of(future: Future[Result | Exception]) -> Result | Exception:
    """What the task returned, or why it could not come back (it does not pickle)."""
    error = future.exception()
    if error is None:
        return future.result()
    return error if isinstance(error, Exception) else RuntimeError(repr(error))


def _lost() -> WorkerLostError:
    return WorkerLostError(
        "the worker process died, and died again each time the task was retried\n"
        "  A system short of memory kills processes; ask for fewer workers.\n"
        "  In a script, start the work below if __name__ == '__main__': workers import the script."
    )


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    # Spawned, because a forked torch may hold locks of threads that no longer exist.
    pool = ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _interrupts_blocked() -> Iterator[None]:
    """Processes started within never see Ctrl-C, which a terminal sends to all of them.

    Acting on it is the parent's business; there it arrives when the block ends.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _with_ray(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    workers: int | None,
    cpus: int,
    gpus: float,
) -> Generator[tuple[Item, Result | Exception], None, None]:
    """At most ``workers`` Ray tasks at a time; Ray itself retries those whose worker died."""
    import ray

    waiting = deque(items)
    held: dict[Any, Item] = {}
    with _connected(None if workers is None else workers * cpus):
        workers = workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)
        task = ray.remote(max_retries=_RETRIES, num_cpus=cpus, num_gpus=gpus)(
            _attempt_on_one_thread
        )
        try:
            while waiting or held:
                while waiting and len(held) < workers:
                    held[task.remote(function, waiting[0])] = waiting[0]
                    waiting.popleft()
                for reference in ray.wait(list(held), num_returns=1)[0]:
                    item = held.pop(reference)
                    try:
                        result = ray.get(reference)
                    except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError):
                        result = _lost()
                    except ray.exceptions.RayError as error:  # it does not pickle, for one
                        result = error
                    yield item, result
        finally:
            for reference in held:
                ray.cancel(reference, force=True)


def _attempt_on_one_thread(function: Callable[[Item], Result], item: Item) -> Result | Exception:
    torch.set_num_threads(1)
    return _attempt(function, item)


@contextmanager
def _connected(cpus: int | None) -> Iterator[None]:
    """A Ray to work on, of so many CPUs; stopped in the end if it was started here."""
    import ray

    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    settings: dict[str, Any] = {
        "address": address or "local",
        "log_to_driver": False,
        "logging_level": "error",
    }
    if not address:
        settings |= {
            "num_cpus": cpus or available_cpus(),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    try:
        ray.init(**settings)
    except Exception as error:  # Ray raises plain exceptions when a part of it is late
        ray.shutdown()
        what = f"the Ray at RAY_ADDRESS, {address}," if address else "a Ray of gonio's own"
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise EngineError(
            f"cannot use {what}: {reason}\n"
            "Try again when the machine is less busy, or take the engine local."
        ) from error
    try:
        yield
    finally:
        ray.shutdown()
