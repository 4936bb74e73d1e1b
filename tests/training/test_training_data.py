"""Pairs from files and data sets, and the split by prompt."""

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gonio.errors import DataError, MissingDependencyError
from gonio.training import (
    PreferencePair,
    PreferenceSplit,
    load_hub_pairs,
    pairs_sha256,
    read_pairs,
    split_pairs,
    write_pairs,
)
from gonio.training.backend import require_trl
from gonio.training.sources import load_split

GOOD = {"prompt": "p", "chosen": " a", "rejected": " b"}


def many_pairs(count):
    return [PreferencePair(f"prompt {i}", f" good {i}", f" bad {i}") for i in range(count)]


@given(st.lists(st.text(min_size=1).filter(str.strip), min_size=1, max_size=5))
def test_files_come_back_unchanged(tmp_path_factory, texts):
    pairs = tuple(PreferencePair(text, text + "+", text + "-") for text in texts)
    path = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", pairs)
    assert read_pairs(path) == pairs


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("{", "not JSON"),
        ("[1]", "expected an object, found list"),
        ('{"prompt": "p", "chosen": "a"}', "expected the fields prompt, chosen, rejected"),
        (json.dumps(GOOD | {"extra": 1}), "found chosen, extra, prompt, rejected"),
        (json.dumps(GOOD | {"prompt": "  "}), "prompt is blank"),
        (json.dumps(GOOD | {"chosen": 3}), "chosen must be text"),
        (json.dumps(GOOD | {"rejected": " a"}), "chosen and rejected are the same"),
    ],
)
def test_a_bad_line_is_named_by_its_number(tmp_path, line, named):
    path = tmp_path / "pairs.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match="line 3: ") as caught:
        read_pairs(path)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_and_missing_and_binary_files_are_refused(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n", encoding="utf-8")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    for name, named in [("empty", "is empty"), ("binary", "cannot read"), ("none", "cannot read")]:
        with pytest.raises(DataError, match=named):
            read_pairs(tmp_path / f"{name}.jsonl")


def test_the_split_is_disjoint_complete_and_independent_of_the_order():
    pairs = many_pairs(50)
    split = split_pairs(pairs, held_out=10, seed=3)
    assert len(split.held_out) == 10
    assert set(split.train) | set(split.held_out) == set(pairs)
    assert split_pairs(pairs[::-1], held_out=10, seed=3) == split
    assert split_pairs(pairs, held_out=10, seed=4).held_out != split.held_out


def test_pairs_of_one_prompt_stay_on_one_side():
    pairs = [PreferencePair(f"prompt {i // 5}", f" good {i}", " bad") for i in range(50)]
    split = split_pairs(pairs, held_out=7)
    assert len(split.held_out) == 10  # two whole prompts
    assert not {p.prompt for p in split.train} & {p.prompt for p in split.held_out}


def test_a_split_that_shares_a_prompt_cannot_be_made():
    one, two = PreferencePair("p", "a", "b"), PreferencePair("p", "c", "d")
    with pytest.raises(DataError, match="1 prompts are in both"):
        PreferenceSplit(train=(one,), held_out=(two,))


@pytest.mark.parametrize(("count", "held_out"), [(3, 3), (0, 1), (3, -1)])
def test_impossible_splits_are_refused(count, held_out):
    with pytest.raises(DataError, match="cannot be split"):
        split_pairs(many_pairs(count), held_out=held_out)


def test_the_hash_of_pairs_sees_every_field_and_the_order():
    pairs = many_pairs(2)
    changed = [PreferencePair("prompt 0", " good 0", " bad!"), pairs[1]]
    assert len({pairs_sha256(pairs), pairs_sha256(pairs[::-1]), pairs_sha256(changed)}) == 3


@pytest.fixture
def datasets_cache(tmp_path, monkeypatch):
    """Keep what `datasets` prepares out of the home folder."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("datasets_cache")
def test_a_data_set_without_prompts_gets_the_common_start(tmp_path):
    rows = [{"chosen": f"Q{i}? yes it is", "rejected": f"Q{i}? no way"} for i in range(4)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(text, encoding="utf-8")
    pairs = load_hub_pairs(str(folder), limit=3)
    assert [pair.prompt for pair in pairs] == ["Q0?", "Q1?", "Q2?"]
    assert pairs[0].chosen == " yes it is"
    assert pairs[0].rejected == " no way"


@pytest.mark.usefixtures("datasets_cache")
def test_a_data_set_of_other_columns_is_refused(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "a"}\n', encoding="utf-8")
    with pytest.raises(DataError, match="missing for preference pairs"):
        load_hub_pairs(str(folder))


def test_sources_by_name(tmp_path, long_text):
    path = write_pairs(tmp_path / "pairs.jsonl", many_pairs(20))
    source = load_split(str(path), train=6, held_out=4)
    assert (len(source.split.train), len(source.split.held_out)) == (6, 4)
    (tmp_path / "text.txt").write_text(long_text, encoding="utf-8")
    source = load_split(str(tmp_path / "text.txt"), train=6, held_out=4)
    assert (len(source.split.train), len(source.split.held_out)) == (6, 4)
    with pytest.raises(DataError, match=r"no training data at nowhere\.txt"):
        load_split("nowhere.txt", train=1, held_out=1)


def test_the_bundled_text_gives_the_pairs_of_the_small_preset():
    source = load_split("bundled", train=40, held_out=16)
    assert "not judged by people" in source.nature
    split = source.split
    train = {pair.prompt for pair in split.train}
    assert len(train) == 40
    assert not train & {pair.prompt for pair in split.held_out}


def test_a_missing_extra_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gonio\[train\]'"):
        require_trl()
