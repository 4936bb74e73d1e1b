"""What gcc and clang make of the C sources: no warnings, and the same bits."""

import subprocess
from pathlib import Path

import pytest

from gonio.kernels.build import FLAGS, source_files

from .conftest import installed_compilers

DRIVER = Path(__file__).parent / "sanitizer_driver.c"
PROGRAM = [flag for flag in FLAGS if flag not in ("-shared", "-fPIC")]


def run_driver(compiler, output, *flags):
    sources = source_files()
    units = [DRIVER, *(path for path in sources if path.suffix == ".c")]
    command = [compiler, *PROGRAM, *flags, f"-I{sources[0].parent}", "-o", output, *units, "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return subprocess.run([output], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_compilers_agree_to_the_bit(tmp_path):
    """The driver compares the levels of a library, and prints a digest of all scores."""
    said = set()
    for compiler in installed_compilers():
        ran = run_driver(compiler, tmp_path / "driver", "-Wall", "-Wextra", "-Werror")
        assert ran.returncode == 0, f"{compiler}: {ran.stderr}"
        said.add(ran.stdout)
    if not said:
        pytest.skip("no C compiler here")
    assert len(said) == 1


@pytest.mark.slow
@pytest.mark.parametrize("compiler", installed_compilers())
def test_they_would_not_where_products_and_sums_are_contracted(compiler, tmp_path):
    ran = run_driver(compiler, tmp_path / "driver", "-ffp-contract=fast")
    if ran.returncode == 0:
        pytest.skip("no level of this processor has such instructions in its plain C")
    assert "differs from portable" in ran.stderr
