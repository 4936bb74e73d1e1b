"""Time and memory of ``gonio cache observe`` on the bundled model: 8,192 tokens of its text.

The command runs as a process of its own; time and peak memory are those the system reports of it,
everything included (imports, loading the model, learning rotations, bootstraps). The record is
checked before its cost is printed. Wall time means something on an idle machine only: processor
time is printed beside it, and with one thread per process it hardly depends on others.

Usage: python benchmarks/observe.py [--threads 2] [--tokens 8192]
"""

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import time

__all__ = ["main"]

MOST_SECONDS, MOST_GB = 90.0, 3.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=8192, help="half of them to learn from")
    chosen = parser.parse_args()
    half = str(chosen.tokens // 2)
    command = [sys.executable, "-c", "from gonio.cli.main import main; main()", "cache", "observe"]
    sizes = ["--calibration-tokens", half, "--evaluation-tokens", half]
    environment = os.environ | {"OMP_NUM_THREADS": str(chosen.threads)}
    start = time.perf_counter()
    done = subprocess.run(
        [*command, "smollm2-135m", *sizes, "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    wall = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    check(json.loads(done.stdout))
    memory = used.ru_maxrss * 1024 / 1e9
    processor = used.ru_utime + used.ru_stime
    print(f"{chosen.tokens} tokens, {chosen.threads} threads, load {os.getloadavg()[0]:.1f}")
    print(f"  wall       {wall:6.1f} s   (at most {MOST_SECONDS:.0f})")
    print(f"  processor  {processor:6.1f} s")
    print(f"  memory     {memory:6.2f} GB  (at most {MOST_GB:.0f})")
    return 0 if wall <= MOST_SECONDS and memory <= MOST_GB else 1


def check(written: dict) -> None:
    """Refuse a record whose figures cannot be right."""
    values = {value["name"]: value for value in written["record"]["values"]}
    chance = values["mean_cosine_haar"]["chance"]
    if not math.isclose(values["mean_cosine_haar"]["value"], chance, abs_tol=0.01):
        raise SystemExit("a random rotation is off its chance: nothing is timed")
    for name in ("mean_cosine_learned", "mean_cosine_learned_key_pre", "mean_cosine_learned_value"):
        if values[name]["value"] < chance + 0.02:
            raise SystemExit(f"{name} is not above chance: nothing is timed")


if __name__ == "__main__":
    sys.exit(main())
