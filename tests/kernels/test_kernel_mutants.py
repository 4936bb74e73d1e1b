"""The driver rejects AVX2 kernels of values and weights with a mistake made on purpose."""

import re
import subprocess
from pathlib import Path

import pytest

from gonio.kernels import available_levels
from gonio.kernels.build import FLAGS, find_compiler

from .conftest import write_mutant

DRIVER = Path(__file__).parent / "sanitizer_driver.c"
MUTANTS = {
    "saturation": ("weights_avx2.c", "PAIR_OF_WEIGHTS 257.999f", "PAIR_OF_WEIGHTS 510.0f"),
    "low bytes": ("weights_avx2.c", "a = _mm256_srli_epi16(a, 7)", "a = _mm256_srli_epi16(a, 8)"),
    "their unit": ("weights_avx2.c", "tile->unit[row] /= LOW_UNITS;", ""),
    "order of tokens": ("weights_avx2.c", "epi32(0, 4, 1, 5, 2, 6", "epi32(0, 4, 1, 5, 6, 2"),
    "power": ("weights_avx2.c", "_mm256_castps_si256(moved), 23", "_mm256_castps_si256(moved), 22"),
    "table": ("values_avx2.c", "shuffle_epi8(table[1], codes)", "shuffle_epi8(table[0], codes)"),
    "lane": ("values_avx2.c", "first, second, 0x31)", "first, second, 0x20)"),
    "bytes of a coordinate": ("values_avx2.c", "loadu_ps(tile->unit)", "loadu_ps(tile->byte_unit)"),
}
if "avx2" not in available_levels():
    pytest.skip("these are kernels of AVX2", allow_module_level=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_driver_rejects_values_that_are_wrong(name, tmp_path):
    write_mutant(tmp_path, *MUTANTS[name])
    flags = [flag for flag in FLAGS if flag not in ("-shared", "-O3")]
    units = [DRIVER, *sorted(tmp_path.glob("*.c"))]
    command = [find_compiler().path, *flags, "-O1", f"-I{tmp_path}", "-o", tmp_path / "driver"]
    subprocess.run([*command, *units, "-lm"], check=True)
    ran = subprocess.run([tmp_path / "driver"], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert re.search("level [12] differs from portable", ran.stderr)
