"""Work on ranges of blocks, side by side in ``torch.get_num_threads()`` threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from itertools import pairwise

import torch

__all__ = ["block_ranges", "run_together"]

LEAST_BLOCKS = 32  # blocks times heads that are worth a thread of their own


def block_ranges(blocks: int, heads: int) -> list[tuple[int, int]]:
    """First and last block of each thread; one range when there is little to do."""
    parts = min(torch.get_num_threads(), blocks * heads // LEAST_BLOCKS, blocks)
    if parts <= 1:
        return [(0, blocks)]
    return list(pairwise(blocks * part // parts for part in range(parts + 1)))


def run_together(jobs: Sequence[Callable[[], None]]) -> None:
    """Run the jobs side by side, the first in this thread.

    Compiled code runs without the interpreter's lock.
    """
    if len(jobs) == 1:
        jobs[0]()
        return
    others = [_pool(len(jobs) - 1).submit(job) for job in jobs[1:]]
    try:
        jobs[0]()
    finally:
        wait(others)
    for done in others:
        done.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="gonio-kernels")
