"""Files are whole or absent, also when the work inside fails."""

from pathlib import Path

import pytest

from gonio.errors import DataError, OutputError
from gonio.files import file_sha256, replace_file, replace_folder, require_writable, write_text


def test_replace_folder_swaps_in_a_complete_folder(tmp_path):
    target = tmp_path / "out"
    for content in ("first", "second"):
        with replace_folder(target) as staging:
            (staging / "file").write_text(content)
            assert not target.exists() or (target / "file").read_text() != content
        assert (target / "file").read_text() == content
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_inside_keeps_the_old_and_removes_the_new(tmp_path):
    target = tmp_path / "out"
    with replace_folder(target) as staging:
        (staging / "file").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted_folder(target)
    with pytest.raises(KeyboardInterrupt):
        _interrupted_file(target / "file")
    assert (target / "file").read_text() == "old"
    assert [path.name for path in target.iterdir()] == ["file"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def _interrupted_folder(target: Path) -> None:
    with replace_folder(target) as staging:
        (staging / "file").write_text("new")
        raise KeyboardInterrupt


def _interrupted_file(target: Path) -> None:
    with replace_file(target) as staging:
        staging.write_text("half")
        raise KeyboardInterrupt


def test_places_that_cannot_be_written_are_output_errors(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_text(blocked / "x", "")
    with pytest.raises(OutputError, match="cannot write"):
        require_writable(blocked)
    with pytest.raises(OutputError, match="cannot write"), replace_folder(blocked / "x"):
        pass


def test_hash_of_a_missing_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot read"):
        file_sha256(tmp_path / "absent")
