"""Texts: sources, hashes, and parts that never overlap."""

import argparse
import hashlib

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from gonio.errors import DataError, SettingError
from gonio.models import Text, load_text, split_tokens, token_windows
from gonio.models.texts import spread_windows


@pytest.fixture
def tokenizer():
    vocabulary = {"<unk>": 0} | {str(number): number for number in range(1, 1000)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words)


def test_the_bundled_text_is_long_english_and_hashed():
    text = load_text("bundled")
    assert len(text.text) > 300_000
    assert "The following sections" in text.text or "statement" in text.text
    assert text.sha256 == hashlib.sha256(text.text.encode()).hexdigest()


def test_a_second_text_is_long_differs_and_is_the_same_every_time():
    text = load_text("docstrings")
    assert len(text.text) > 200_000
    assert text.sha256 == load_text("docstrings").sha256
    assert text.sha256 != load_text("bundled").sha256
    assert text.name.startswith("standard library docstrings of Python 3.")
    assert argparse.__doc__.strip() in text.text


def test_a_python_without_sources_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(DataError, match="this Python has none"):
        load_text("docstrings")


def test_files_and_folders(tmp_path):
    (tmp_path / "b.txt").write_text("second")
    (tmp_path / "a.md").write_text("first")
    (tmp_path / "c.bin").write_bytes(b"\xff")
    assert load_text(tmp_path / "b.txt").text == "second"
    assert load_text(tmp_path).text == "first\n\nsecond"


def test_bad_texts_are_refused(tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    with pytest.raises(DataError, match=r"not UTF-8 text: .*byte 3"):
        load_text(tmp_path / "latin.txt")
    (tmp_path / "empty.txt").write_text(" \n")
    with pytest.raises(DataError, match="is empty"):
        load_text(tmp_path / "empty.txt")
    with pytest.raises(DataError, match="no text file or folder"):
        load_text(tmp_path / "absent.txt")
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match=r"found no \.txt"):
        load_text(tmp_path / "none")


def test_a_data_set_is_read_by_its_text_column(tmp_path):
    """The library's own loader on a local data set; a hub name takes the same way."""
    from gonio.models.texts import _dataset_text

    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "first"}\n{"text": "second"}\n')
    (folder / "test.jsonl").write_text('{"text": "held out"}\n')
    assert _dataset_text(str(folder)).text == "first\n\nsecond"
    assert _dataset_text(f"{folder}::test").text == "held out"
    (folder / "train.jsonl").write_text('{"body": "first"}\n')
    (folder / "test.jsonl").unlink()
    with pytest.raises(DataError, match=r"no column 'text', only \['body'\]"):
        _dataset_text(str(folder))


def test_parts_come_from_the_two_ends_and_never_overlap(tokenizer):
    text = Text("numbers", " ".join(str(number) for number in range(1, 101)))
    split = split_tokens(tokenizer, text, calibration=60, evaluation=40)
    assert split.calibration.tolist() == list(range(1, 61))
    assert split.evaluation.tolist() == list(range(61, 101))
    with pytest.raises(DataError, match="100 tokens, 61 for calibration and 40"):
        split_tokens(tokenizer, text, calibration=61, evaluation=40)
    with pytest.raises(SettingError, match=">= 0"):
        split_tokens(tokenizer, text, calibration=-1, evaluation=40)


def test_windows_leave_out_a_shorter_rest():
    windows = token_windows(torch.arange(11), 4)
    assert windows.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    with pytest.raises(DataError, match="3 tokens make no window of 4"):
        token_windows(torch.arange(3), 4)


def test_spread_windows_reach_from_end_to_end():
    windows = token_windows(torch.arange(28), 4)
    assert spread_windows(windows, 3)[:, 0].tolist() == [0, 12, 24]
    assert spread_windows(windows, 7).tolist() == windows.tolist()
    assert spread_windows(windows, 1)[:, 0].tolist() == [0]
    for count in (0, 8):
        with pytest.raises(DataError, match="cannot be spread over a text of 7 windows"):
            spread_windows(windows, count)
