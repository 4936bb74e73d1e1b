"""The C kernels under address and undefined-behavior sanitizers."""

import subprocess
from pathlib import Path

import pytest

from gonio.kernels.build import BuildError, find_compiler, source_files

DRIVER = Path(__file__).parent / "sanitizer_driver.c"
FLAGS = ["-std=c11", "-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.slow
def test_no_kernel_reads_or_writes_out_of_bounds(tmp_path):
    try:
        compiler = find_compiler().path
    except BuildError as error:
        pytest.skip(str(error))
    probe = tmp_path / "probe.c"
    probe.write_text("int main(void) { return 0; }\n")
    if compile_and_link(compiler, tmp_path / "probe", [probe]).returncode:
        pytest.skip(f"{compiler} has no sanitizers")
    sources = source_files()
    units = [DRIVER, *(path for path in sources if path.suffix == ".c")]
    done = compile_and_link(compiler, tmp_path / "driver", units, f"-I{sources[0].parent}")
    assert done.returncode == 0, done.stderr
    ran = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("clean")


def compile_and_link(compiler, output, units, *flags):
    command = [compiler, *FLAGS, *flags, "-o", output, *units, "-lm"]
    return subprocess.run(command, capture_output=True, text=True, check=False)
