"""Files that are whole or absent: writes go to a temporary sibling and are renamed.

The temporary name starts with a dot and lies beside the destination, so that the rename stays on
one file system and a reader, or a run that resumes, never meets half a result.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gonio.errors import DataError, OutputError

__all__ = ["file_sha256", "replace_file", "replace_folder", "require_writable", "write_text"]


@contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """A new folder to fill, renamed to ``folder`` on success and removed on any error.

    An existing ``folder`` is moved aside, replaced, then deleted; killed between the two renames,
    the old content is still beside it under a dotted name.

    Raises:
        OutputError: The parent cannot be created or written, or the rename fails.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        staging.chmod(0o755)  # mkdtemp makes it private; results are as public as their parent
    except OSError as error:
        raise _cannot_write(folder, error) from error
    try:
        yield staging
        _move_folder(staging, folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _move_folder(staging: Path, folder: Path) -> None:
    try:
        if folder.exists():
            aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
            folder.rename(aside / folder.name)
            staging.rename(folder)
            shutil.rmtree(aside)
        else:
            staging.rename(folder)
    except OSError as error:
        raise _cannot_write(folder, error) from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """A temporary path to write, renamed to ``path`` on success and removed on any error.

    Raises:
        OutputError: The parent cannot be created or written, or the rename fails.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, prefix=f".{path.name}.", delete=False
        ) as stream:
            staging = Path(stream.name)
        staging.chmod(0o644)
    except OSError as error:
        raise _cannot_write(path, error) from error
    try:
        yield staging
        try:
            staging.replace(path)
        except OSError as error:
            raise _cannot_write(path, error) from error
    finally:
        staging.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> Path:
    """Write UTF-8 text to ``path`` and return it.

    Raises:
        OutputError: The file cannot be written.
    """
    with replace_file(path) as staging:
        try:
            staging.write_text(text, encoding="utf-8")
        except OSError as error:
            raise _cannot_write(path, error) from error
    return path


def require_writable(folder: Path) -> None:
    """Fail now rather than after the work: ``folder`` can be created and written.

    Raises:
        OutputError: It, or its parent, cannot be created or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".gonio-probe."):
            pass
    except OSError as error:
        raise _cannot_write(folder, error) from error


def file_sha256(path: Path) -> str:
    """Hexadecimal sha256 of a file, read in blocks.

    Raises:
        DataError: The file cannot be read.
    """
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error


def _cannot_write(path: Path, error: OSError) -> OutputError:
    return OutputError(
        f"cannot write {path}: {error.strerror or error}\nChoose a place you may write to."
    )
