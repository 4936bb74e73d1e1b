"""The C kernels under address and undefined-behavior sanitizers, with every compiler there is."""

import os
import subprocess
from pathlib import Path

import pytest

from gonio.kernels.build import source_files

from .conftest import installed_compilers, write_mutant

DRIVER = Path(__file__).parent / "sanitizer_driver.c"
# By default clang contracts a * b + c, and then levels differ, as they must not in the library.
FLAGS = ["-std=c11", "-O1", "-ffp-contract=off"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
each_compiler = pytest.mark.parametrize("compiler", installed_compilers())


@pytest.mark.slow
@each_compiler
def test_no_kernel_reads_or_writes_out_of_bounds(compiler, tmp_path):
    ran = run_driver(compiler, tmp_path, source_files())
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("clean")


@pytest.mark.slow
@each_compiler
def test_pieces_of_one_memory_have_bounds_of_their_own(compiler, tmp_path):
    """A piece that is too small is found although the next one lies behind it."""
    right = "t->halves = take(space, nibbles * sizeof(float));"
    write_mutant(tmp_path, "tables.c", right, "t->halves = take(space, nibbles);")
    ran = run_driver(compiler, tmp_path, sorted(tmp_path.glob("*.[ch]")))
    assert ran.returncode != 0
    assert "use-after-poison" in ran.stderr


def run_driver(compiler, folder, sources):
    probe = folder / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if compile_and_link(compiler, folder / "probe", [probe]).returncode:
        pytest.skip(f"{compiler} has no sanitizers")
    units = [DRIVER, *(path for path in sources if path.suffix == ".c")]
    done = compile_and_link(compiler, folder / "driver", units, f"-I{sources[0].parent}")
    assert done.returncode == 0, done.stderr
    bare = {**os.environ, "ASAN_OPTIONS": "symbolize=0"}  # names of functions can take minutes
    return subprocess.run(
        [folder / "driver"], capture_output=True, text=True, check=False, env=bare
    )


def compile_and_link(compiler, output, units, *flags):
    command = [compiler, *FLAGS, *SANITIZERS, *flags, "-o", output, *units, "-lm"]
    return subprocess.run(command, capture_output=True, text=True, check=False)
