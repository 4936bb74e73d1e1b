"""Work in this process while a thread reads what comes next.

Reading files and hashing them needs no Python for long, so that both go on at once. How much is
read ahead is bounded, hence memory too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from typing import TypeAlias, TypeVar

import torch

__all__ = ["Stopped", "run_ahead"]

Item = TypeVar("Item")
Read = TypeVar("Read")
Result = TypeVar("Result")
Stopped: TypeAlias = Callable[[], bool]

_THREAD = "gonio-reader"


def run_ahead(
    read: Callable[[Item, Item | None, Stopped], Read],
    work: Callable[[Read], Result],
    items: Iterable[Item],
    *,
    ahead: int = 1,
) -> Generator[tuple[Item, Result | Exception], None, None]:
    """Read each item in a thread and work on it in this one; each with its result or exception.

    Closing the iterator, or Ctrl-C, stops the reader and waits for it. While it runs, torch has
    one thread fewer for its operations, at least one: the reader needs it.

    Args:
        read: Called as ``read(item, next item, stopped)``, in the thread; the next item is None
            for the last. Returns early, in any way, once ``stopped()`` is true.
        work: Called on what was read.
        items: What to read, in this order.
        ahead: Items that are read, or have been, while another is worked on; at least 1. So many
            and one more are in memory at most.

    Yields:
        ``(item, result or exception)`` in order; an exception of either step.
    """
    waiting = deque(items)
    held: deque[tuple[Item, Future[Read]]] = deque()
    stop = Event()
    pool = ThreadPoolExecutor(1, thread_name_prefix=_THREAD)

    def submit() -> None:
        while waiting and len(held) < ahead:
            item = waiting.popleft()
            following = waiting[0] if waiting else None
            held.append((item, pool.submit(read, item, following, stop.is_set)))

    try:
        with _one_thread_fewer():
            submit()
            while held:
                item, future = held.popleft()
                error = future.exception()  # waits
                submit()
                yield item, _worked(work, future, error)
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _worked(
    work: Callable[[Read], Result], future: Future[Read], error: BaseException | None
) -> Result | Exception:
    """The result, or the exception of either step as a value."""
    if error is not None and not isinstance(error, Exception):
        raise error
    try:
        return work(future.result())
    except Exception as raised:
        return raised


@contextmanager
def _one_thread_fewer() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before - 1))
    try:
        yield
    finally:
        torch.set_num_threads(before)
