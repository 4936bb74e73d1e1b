"""Compiling the C kernels at first use, once per machine.

The shared library lies in gonio's cache folder under the hash of the sources, the flags and the
compiler's version, so that a new version compiles anew and two processes share one result. Where
there is no compiler, or it fails, the reason is kept and gonio computes with torch.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from filelock import FileLock
from platformdirs import user_cache_path

from gonio.errors import GonioError
from gonio.files import replace_file, write_text

__all__ = [
    "FLAGS",
    "BuildError",
    "Compiler",
    "build_library",
    "compile_flags",
    "find_compiler",
    "is_built",
    "nearest_cache",
    "source_files",
]

# Strict floating point: -ffast-math would change it for the whole process.
FLAGS = (
    *("-std=c11", "-O3", "-fPIC", "-shared", "-fvisibility=hidden"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"),
)
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
TIMEOUT = 300  # seconds that a compiler may take


class BuildError(GonioError, RuntimeError):
    """The kernels cannot be compiled here; the message says why and how to change that."""


@dataclass(frozen=True)
class Compiler:
    """A C compiler: its path, and the first line of what it says of its version."""

    path: str
    version: str


def find_compiler() -> Compiler:
    """``$CC``, or the first of cc, gcc and clang.

    Raises:
        BuildError: There is none, or it does not run.
    """
    chosen = os.environ.get("CC")
    candidates = [chosen] if chosen else ["cc", "gcc", "clang"]
    path = next((found for name in candidates if (found := shutil.which(name))), None)
    if path is None:
        raise BuildError(
            f"no C compiler found (looked for {', '.join(candidates)}); "
            "on Debian: apt-get install gcc libc6-dev"
        )
    done = _run([path, "--version"])
    return Compiler(path, done.stdout.strip().splitlines()[0] if done.stdout.strip() else path)


def compile_flags() -> tuple[str, ...]:
    """:data:`FLAGS`, and the bytes of the nearest data cache where the system tells them."""
    size = nearest_cache()
    return FLAGS if size is None else (*FLAGS, f"-DGONIO_NEAREST_CACHE={size}")


def nearest_cache() -> int | None:
    """Bytes of this processor's nearest data cache; None where Linux does not say."""
    try:
        for folder in sorted(CACHES.glob("index*")):
            level, kind, size = (
                (folder / name).read_text(encoding="ascii").strip()
                for name in ("level", "type", "size")
            )
            if level == "1" and kind in ("Data", "Unified"):
                return int(size.removesuffix("K")) * 1024
    except (OSError, ValueError):
        return None
    return None


def source_files() -> list[Path]:
    """The C sources that make the library, and their headers, in a fixed order."""
    folder = Path(str(resources.files("gonio.kernels").joinpath("csrc")))
    return sorted(folder.glob("*.[ch]"))


def build_library() -> Path:
    """The shared library, compiled unless that was done before.

    Raises:
        BuildError: It cannot be compiled; a failure is remembered until the compiler changes.
    """
    compiler, sources = find_compiler(), source_files()
    library = _library_path(compiler, sources)
    folder, failure = library.parent, library.with_suffix(".failed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(library.with_suffix(".lock")):
            if failure.is_file():
                raise BuildError(failure.read_text(encoding="utf-8"))
            if not library.is_file():
                _compile(compiler, sources, library, failure)
    except OSError as error:
        raise BuildError(f"cannot keep compiled kernels in {folder}: {error}") from error
    return library


def is_built() -> bool:
    """Whether the library was compiled before, for this compiler and these sources."""
    try:
        return _library_path(find_compiler(), source_files()).is_file()
    except (BuildError, OSError):
        return False


def _library_path(compiler: Compiler, sources: list[Path]) -> Path:
    """Where the library of a compiler and sources is kept."""
    digest = hashlib.sha256()
    for part in (*compile_flags(), compiler.path, compiler.version, platform.machine()):
        digest.update(part.encode() + b"\0")
    for path in sources:
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    chosen = os.environ.get("GONIO_CACHE")
    folder = (Path(chosen) if chosen else user_cache_path("gonio")) / "kernels"
    return folder / f"kernels-{digest.hexdigest()[:16]}.so"


def _compile(compiler: Compiler, sources: list[Path], library: Path, failure: Path) -> None:
    units = [str(path) for path in sources if path.suffix == ".c"]
    with replace_file(library) as staging:
        done = _run([compiler.path, *compile_flags(), "-o", str(staging), *units, "-lm"])
        if done.returncode == 0:
            return
        said = done.stderr.strip().splitlines() or ["it printed nothing"]
        message = next((line for line in said if "error" in line), said[0])  # notes may come first
        reason = f"{compiler.path} cannot compile the kernels: {message}"
        write_text(failure, f"{reason}\n(tried before; to try again, remove {failure})")
        raise BuildError(reason)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BuildError(f"cannot run {command[0]}: {error}") from error
