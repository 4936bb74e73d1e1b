"""Instructions that the attention kernels take on a 64-bit ARM processor, counted in an emulator.

Not a speed: instructions differ in cost, and memory costs nothing here. The library is compiled for
ARM with gonio's flags; qemu runs one call for four query rows of one head of 128 coordinates and
writes a line for each instruction. Counts of 2,048 tokens less those of 1,024, so that neither the
start of the program nor the filling of tables is in them, per 64 tokens.

Needs aarch64-linux-gnu-gcc and qemu-aarch64 (on Debian on x86-64: make system-deps).
Run: python benchmarks/arm_instructions.py [--bits 1 2 4]
"""

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from gonio.kernels.build import FLAGS, source_files
from gonio.kernels.native import LEVELS

DRIVER = Path(__file__).parent.parent / "tests" / "kernels" / "sanitizer_driver.c"
COMPILER = "aarch64-linux-gnu-gcc"
TOKENS, BLOCK = 1024, 64  # of a tile, of a block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bits", nargs="+", default=["1", "2", "4"], choices=list("12345678"))
    chosen = parser.parse_args()
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None or shutil.which(COMPILER) is None:
        sys.exit(f"needs {COMPILER} and qemu-aarch64")
    with tempfile.TemporaryDirectory() as folder:
        driver = Path(folder) / "driver"
        units = [path for path in source_files() if path.suffix == ".c"]
        flags = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]
        command = [COMPILER, *flags, "-static", f"-I{units[0].parent}", "-o", driver, DRIVER]
        subprocess.run([*command, *units, "-lm"], check=True)
        for what in ("scores", "attention"):
            for bits in chosen.bits:
                portable, neon = (
                    per_block(emulator, driver, what, level, bits) for level in ("portable", "neon")
                )
                print(f"{what}, {bits} bits, instructions for 64 tokens of 4 rows:", end=" ")
                print(f"portable {portable:,.0f}, neon {neon:,.0f}, {portable / neon:.1f} times")


def per_block(emulator: str, driver: Path, what: str, level: str, bits: str) -> float:
    """Instructions for 64 more tokens."""
    once, twice = (
        count([emulator, *single_steps(emulator), "-d", "exec,nochain"], *arguments)
        for arguments in (
            (driver, what, LEVELS.index(level), bits, tokens) for tokens in (TOKENS, 2 * TOKENS)
        )
    )
    return (twice - once) / (TOKENS // BLOCK)


def single_steps(emulator: str) -> list[str]:
    """The option that makes qemu write a line for each instruction, by its version."""
    text = subprocess.run([emulator, "--help"], capture_output=True, text=True, check=False).stdout
    return ["-one-insn-per-tb"] if "one-insn-per-tb" in text else ["-singlestep"]


def count(command: list[str], *arguments: object) -> int:
    """Lines of the trace of a program that must end well."""
    with subprocess.Popen(
        [*command, *map(str, arguments)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL
    ) as program:
        assert program.stderr is not None
        lines = sum(line.startswith(b"Trace") for line in program.stderr)
    if program.returncode:
        sys.exit(f"the driver ended with {program.returncode}")
    return lines


if __name__ == "__main__":
    main()
