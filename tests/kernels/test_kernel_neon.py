"""The kernels as ARM processors run them: cross-compiled, and emulated by qemu.

The driver compares every level of the library with the portable one and prints a digest of all
scores, which must be that of this machine's library too: their bits do not depend on the processor.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from gonio.kernels.build import FLAGS, BuildError, build_library, find_compiler, source_files

from .conftest import write_mutant

DRIVER = Path(__file__).parent / "sanitizer_driver.c"
CROSS = "aarch64-linux-gnu-gcc"
CLANG = ("clang", "--target=aarch64-linux-gnu", "-isystem", "/usr/aarch64-linux-gnu/include")
STRICT = tuple(flag for flag in FLAGS if flag not in ("-shared", "-fPIC"))
SANITIZERS = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
MUTANTS = {
    "shift": ("scores_neon.c", "vshrq_n_u8(bytes, 4)", "vshrq_n_u8(bytes, 3)"),
    "accumulator": ("scores_neon.c", "vmlal_high_s8(second, b", "vmlal_high_s8(first, b"),
    "high bytes": ("scores_neon.c", "vshll_high_n_s16(high, 8)", "vshll_high_n_s16(high, 7)"),
    "overflow": ("scores_neon.c", "#define WORDS_APART 16", "#define WORDS_APART 64"),
    "zip": ("values_neon.c", "vzip2q_u16(low[k], high[k])", "vzip1q_u16(low[k], high[k])"),
    "last coordinate": ("values_neon.c", "if (count) add_nibbles", "if (!count) add_nibbles"),
    "rows": ("values_neon.c", "vpaddq_f32(sum[2], sum[3])", "vpaddq_f32(sum[3], sum[2])"),
    "maximum": ("softmax.c", "i += 4) most = vmaxq_f32", "i += 64) most = vmaxq_f32"),
}

EMULATOR = next(
    (found for name in ("qemu-aarch64-static", "qemu-aarch64") if (found := shutil.which(name))),
    None,
)
if shutil.which(CROSS) is None or EMULATOR is None:
    pytest.skip(
        f"needs {CROSS} and qemu-aarch64 (make system-deps, on Debian on x86-64)",
        allow_module_level=True,
    )


def compile_driver(output, sources, *flags):
    units = [str(path) for path in sources if path.suffix == ".c"]
    link(CROSS, output, sources[0].parent, *flags, *units)


def compile_driver_with_clang(output, sources, *flags):
    units = [str(path) for path in sources if path.suffix == ".c"]
    link(CLANG[0], output, sources[0].parent, *CLANG[1:], *flags, *units)


def link(compiler, output, headers, *arguments):
    command = [compiler, *STRICT, "-I", str(headers), "-o", str(output), str(DRIVER)]
    done = subprocess.run(
        [*command, *arguments, "-lm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def emulate(program, *arguments):
    """On the plainest 64-bit processor: no instructions beyond those of Armv8.0."""
    command = [EMULATOR, "-cpu", "cortex-a53", "-L", "/usr/aarch64-linux-gnu", program]
    return subprocess.run(
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """The driver and the library, with the flags that gonio compiles with and every warning."""
    output = tmp_path_factory.mktemp("arm") / "driver"
    compile_driver(output, source_files(), "-static", "-Wall", "-Wextra", "-Werror")
    return output


@pytest.fixture(scope="module")
def native_driver(tmp_path_factory):
    """The driver with this machine's library."""
    output = tmp_path_factory.mktemp("native") / "driver"
    try:
        compiler, library = find_compiler().path, build_library()
    except BuildError as error:
        pytest.skip(str(error))
    path = f"-Wl,-rpath,{library.parent}"
    link(compiler, output, source_files()[0].parent, str(library), path)
    return output


def check(driver, native_driver, *arguments):
    ran = emulate(driver, *arguments)
    assert ran.returncode == 0, ran.stderr
    here = subprocess.run(
        [native_driver, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    assert here.returncode == 0, here.stderr
    levels, digest = ran.stdout.strip().split("; ")
    assert levels == "clean: levels 0 4"
    assert digest == here.stdout.strip().split("; ")[1]


def test_neon_scores_are_those_of_every_other_level(driver, native_driver):
    check(driver, native_driver, 36)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("clang") is None, reason="no clang here")
def test_so_are_those_that_clang_compiles(native_driver, tmp_path):
    flags = ("-static", "-Wall", "-Wextra", "-Werror")
    compile_driver_with_clang(tmp_path / "driver", source_files(), *flags)
    check(tmp_path / "driver", native_driver, 36)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [2, 3])
def test_so_are_those_of_other_shapes(driver, native_driver, seed):
    check(driver, native_driver, 400, seed)


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_the_driver_rejects_a_kernel_that_is_wrong(name, tmp_path):
    write_mutant(tmp_path, *MUTANTS[name])
    compile_driver(tmp_path / "driver", sorted(tmp_path.glob("*.[ch]")), "-static")
    ran = emulate(tmp_path / "driver", 72)
    assert ran.returncode == 1
    assert "level 4 differs from portable" in ran.stderr


@pytest.mark.slow
def test_neon_stays_in_bounds(tmp_path, monkeypatch):
    """Under address and undefined-behavior sanitizers; leaks cannot be looked for in qemu."""
    compile_driver(tmp_path / "driver", source_files(), *SANITIZERS)
    monkeypatch.setenv("ASAN_OPTIONS", "detect_leaks=0")
    ran = emulate(tmp_path / "driver", 36)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith("clean: levels 0 4")
