"""Compiling at first use, and a package that works and says why where that fails."""

import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from gonio.errors import SettingError
from gonio.kernels import build, kernel_status, native
from gonio.kernels.build import BuildError, build_library, find_compiler, source_files

HAS_COMPILER = any(shutil.which(name) for name in ("cc", "gcc", "clang"))


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    """A cache folder without a library, and a fresh view of it."""
    monkeypatch.setenv("GONIO_CACHE", str(tmp_path))
    native.forget()
    yield tmp_path / "kernels"
    monkeypatch.undo()
    native.forget()


def test_the_sources_are_part_of_the_package():
    names = {path.name for path in source_files()}
    assert {"gonio_kernels.h", "scores.c", "attention.c", "codes.c"} <= names
    assert not any("fast-math" in flag for flag in build.FLAGS)


def test_without_a_compiler_torch_computes_and_the_status_says_so(empty_cache, monkeypatch):
    monkeypatch.setenv("CC", "no-such-compiler")
    status = kernel_status()
    assert status.level == "reference"
    assert status.library is None
    assert "no C compiler found (looked for no-such-compiler)" in status.reason


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
def test_a_failed_compilation_is_remembered_and_says_why(empty_cache, tmp_path, monkeypatch):
    broken = tmp_path / "broken.c"
    broken.write_text("this is not C\n")
    monkeypatch.setattr(build, "source_files", lambda: [broken])
    with pytest.raises(BuildError, match=r"cannot compile the kernels: .*broken\.c"):
        build_library()
    monkeypatch.setattr(build, "_compile", None)  # would fail if it were called again
    with pytest.raises(BuildError, match="tried before; to try again, remove"):
        build_library()
    assert not list(empty_cache.glob("*.so"))


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
def test_who_does_not_want_to_wait_gets_what_was_compiled_before(empty_cache):
    assert native.built_library() is None
    assert not empty_cache.exists()
    assert native.native_library() is not None
    assert native.built_library() is native.native_library()
    native.forget()  # as in a later process
    assert native.built_library() is native.native_library()


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
def test_two_that_ask_at_once_share_one_compilation(empty_cache, tmp_path, monkeypatch):
    log = tmp_path / "log"
    wrapper = tmp_path / "counting-cc"
    wrapper.write_text(f'#!/bin/sh\necho "$@" >> {log}\nexec {find_compiler().path} "$@"\n')
    wrapper.chmod(0o755)
    small = tmp_path / "small.c"
    small.write_text("int gonio_small(void) { return 3; }\n")
    monkeypatch.setenv("CC", str(wrapper))
    monkeypatch.setattr(build, "source_files", lambda: [small])
    with ThreadPoolExecutor(2) as pool:
        libraries = set(pool.map(lambda _: build_library(), range(2)))
    assert len(libraries) == 1
    assert sum("-shared" in line for line in log.read_text().splitlines()) == 1


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
def test_it_compiles_for_processors_without_vectors(empty_cache, monkeypatch):
    """As on RISC-V: the same functions, and the portable level is the best."""
    flags = ("-DGONIO_PORTABLE_ONLY", "-Wall", "-Wextra", "-Werror", *build.FLAGS, "-O1")
    monkeypatch.setattr(build, "FLAGS", flags)
    status = kernel_status()
    assert status.level == "portable"
    assert status.reason == "this processor has no avx2 (see docs/kernels.md)"


class LibraryOf:
    """A library compiled for another processor, as far as its levels go."""

    def __init__(self, *levels):
        self.numbers = [native.LEVELS.index(level) for level in levels]

    def gonio_has_level(self, number):
        return int(number in self.numbers)


@pytest.mark.parametrize(
    ("levels", "reason"),
    [
        (["portable"], "this processor has no avx2 (see docs/kernels.md)"),
        (["portable", "avx2"], "this processor has no avxvnni (see docs/kernels.md)"),
        (["portable", "avx2", "avxvnni"], "this processor has no avx512 (see docs/kernels.md)"),
        (["portable", "avx2", "avx512"], ""),
        (["portable", "neon"], ""),
    ],
    ids=["neither", "avx2", "avxvnni", "avx512", "arm"],
)
def test_each_processor_has_levels_of_its_own(levels, reason, monkeypatch, choose_kernels):
    choose_kernels("")
    monkeypatch.setattr(native, "_load", lambda: (LibraryOf(*levels), "", "kernels.so"))
    assert native.available_levels() == ("reference", *levels)
    assert kernel_status() == native.KernelStatus(levels[-1], reason, "kernels.so")


def test_levels_are_numbered_as_in_the_header():
    header = next(path for path in source_files() if path.suffix == ".h").read_text()
    names = re.search(r"enum level \{ (.*), LEVEL_COUNT \}", header)[1].lower().split(", ")
    assert names == [f"{name} = {number}" for number, name in enumerate(native.LEVELS)]


def test_a_level_can_be_asked_for(choose_kernels):
    choose_kernels("reference")
    assert kernel_status().level == "reference"
    choose_kernels("abacus")
    with pytest.raises(SettingError, match="level 'abacus' cannot run here"):
        kernel_status()


def describe_caches(folder, *caches):
    for number, (level, kind, size) in enumerate(caches):
        index = folder / f"index{number}"
        index.mkdir(parents=True)
        for name, text in (("level", level), ("type", kind), ("size", size)):
            (index / name).write_text(f"{text}\n")


def test_the_size_of_the_nearest_cache_is_compiled_in_where_it_is_known(tmp_path, monkeypatch):
    second = (2, "Unified", "1024K")
    for name, caches, expected in (
        ("usual", [(1, "Instruction", "64K"), (1, "Data", "32K"), second], 32 << 10),
        ("larger", [(1, "Data", "48K"), (1, "Instruction", "32K"), second], 48 << 10),
        ("only the second", [second], None),
        ("strange", [(1, "Data", "much")], None),
        ("nothing", [], None),
    ):
        describe_caches(tmp_path / name, *caches)
        monkeypatch.setattr(build, "CACHES", tmp_path / name)
        assert build.nearest_cache() == expected
        more = () if expected is None else (f"-DGONIO_NEAREST_CACHE={expected}",)
        assert build.compile_flags() == (*build.FLAGS, *more)


@pytest.mark.skipif(shutil.which("getconf") is None, reason="nothing to compare with")
def test_it_is_what_the_system_says_by_another_way():
    asked = subprocess.run(
        ["getconf", "LEVEL1_DCACHE_SIZE"], capture_output=True, text=True, check=False
    ).stdout.strip()
    if asked not in ("", "0", "undefined") and build.CACHES.is_dir():
        assert build.nearest_cache() == int(asked)


@pytest.mark.skipif(not HAS_COMPILER, reason="no C compiler here")
def test_another_cache_makes_another_library(empty_cache, monkeypatch):
    """A home that several machines share holds a library for each kind of them."""
    found = set()
    for size in ("32K", "48K"):
        describe_caches(empty_cache / size, (1, "Data", size))
        monkeypatch.setattr(build, "CACHES", empty_cache / size)
        found.add(build._library_path(find_compiler(), source_files()))
    assert len(found) == 2
