"""Recall: a model built to copy finds the passage, and only through what its cache stores."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from transformers import LlamaConfig

from gonio.errors import DataError, SettingError
from gonio.kvcache import control_codec
from gonio.kvcache.filling import fill_caches
from gonio.kvcache.recall import (
    RecallSettings,
    random_passages,
    recall_probes,
    summarize_recall,
)

VOCABULARY, POSITIONS = 61, 160
SETTINGS = RecallSettings(
    lengths=(96, 128), depths=(0.0, 0.5, 1.0), trials=2, passage=20, cue=4, chunk=5
)


class Copier(nn.Module):
    """Two attention layers built by hand that continue a sequence as it went on before.

    Layer 0 finds the token before each token by position; layer 1 finds the places that follow
    the current token and reads what stood there: an induction head.
    """

    def __init__(self) -> None:
        super().__init__()
        self.config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=POSITIONS,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
            head_dim=POSITIONS,
        )
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, input_ids, past_key_values, use_cache=True, logits_to_keep=0):
        start, count = past_key_values.get_seq_length(), input_ids.shape[1]
        here = torch.arange(start, start + count)
        token = one_hot(input_ids, POSITIONS).float()[:, None]
        keys, values = past_key_values.update(_rows(here), token, 0)
        before = _attend(_rows(here - 1), keys, values, start)
        keys, values = past_key_values.update(before, token, 1)
        logits = 20 * _attend(token, keys, values, start)[:, 0, :, :VOCABULARY]
        return SimpleNamespace(logits=logits[:, -logits_to_keep:])


def _rows(places: Tensor) -> Tensor:
    """One-hot rows ``(1, 1, n, POSITIONS)``; zeros before the first place."""
    return (one_hot(places.clamp_min(0), POSITIONS) * (places >= 0)[:, None]).float()[None, None]


def _attend(queries: Tensor, keys: Tensor, values: Tensor, start: int) -> Tensor:
    mask = torch.ones(queries.shape[2], keys.shape[2]).tril(start).bool()
    scores = (50 * queries @ keys.mT).masked_fill(~mask, -math.inf)
    return scores.softmax(-1) @ values


@pytest.fixture
def text(rng) -> Tensor:
    return torch.randint(1, 30, (140,), generator=rng)


@pytest.fixture
def passages(rng) -> Tensor:
    """Tokens that the text does not use, each once in a passage."""
    return torch.stack([30 + torch.randperm(30, generator=rng)[:20] for _ in range(2)])


def test_a_copier_recalls_through_lossless_and_not_through_zeros(text, passages):
    model = Copier()
    codecs = {name: control_codec(model, name) for name in ("lossless", "zeros")}
    probes = recall_probes(model, text, passages, codecs, SETTINGS)
    assert len(probes) == 2 * 2 * (3 + 1) * 3  # lengths, trials, depths and absent, methods
    mean = probes.groupby(["is_present", "method"])[["copied", "correct_top1", "nll"]].mean()
    for name in ("full", "lossless"):
        assert mean.loc[(True, name), "copied"] == 1
        assert mean.loc[(True, name), "correct_top1"] == 1
        assert mean.loc[(True, name), "nll"] < 0.01
        assert mean.loc[(False, name), "correct_top1"] < 0.1  # chance
    assert mean.loc[(True, "zeros"), "correct_top1"] < 0.1
    assert mean.loc[(True, "zeros"), "nll"] > 3
    assert probes["scored_tokens"].eq(16).all()


def test_a_probe_whose_passage_is_not_there_would_recall_nothing(text, passages, monkeypatch):
    """The mutant hides another passage than it asks for."""
    from gonio.kvcache import recall

    hide = recall._hide
    monkeypatch.setattr(
        recall, "_hide", lambda text, passage, *rest: hide(text, passage.flip(0), *rest)
    )
    probes = recall_probes(Copier(), text, passages, {}, SETTINGS)
    assert probes["correct_top1"].max() < 0.5


@pytest.mark.parametrize("chunk", [1, 5])
def test_copied_is_what_greedy_decoding_repeats(text, passages, chunk):
    """A token that comes twice in a passage leads the copier astray: decode, and count."""
    model = Copier()
    passage = passages[:1].clone()
    passage[0, 12] = passage[0, 6]  # two continuations: it takes the first listed, or errs here
    settings = RecallSettings((96,), (0.5,), trials=1, passage=20, cue=4, chunk=chunk)
    found = recall_probes(model, text, passage, {}, settings).set_index("is_present")
    room = 96 - 4 - 20
    start = round(0.5 * room)
    context = torch.cat([text[:start], passage[0], text[start:room]])
    with torch.no_grad():
        cache = fill_caches(model, context[None], {})["full"]
        logits = model(passage[:, :4], cache).logits
        decoded = []
        for _ in range(16):
            decoded.append(logits[0, -1].argmax().item())
            logits = model(torch.tensor([decoded[-1:]]), cache).logits
    same = [a == b for a, b in zip(decoded, passage[0, 4:].tolist(), strict=True)]
    prefix = same.index(False) if False in same else 16
    assert 0 < prefix < 16
    assert found.loc[True, "copied"] == prefix / 16
    assert found.loc[True, "correct_top1"] > found.loc[True, "copied"]


def test_the_context_holds_the_passage_where_it_says(text, passages):
    from gonio.kvcache.recall import _hide

    for depth, start in ((0.0, 0), (0.5, 30), (1.0, 60)):
        context = _hide(text, passages[0], depth, 80)
        assert context.tolist() == (
            text[:start].tolist() + passages[0].tolist() + text[start:60].tolist()
        )
    assert _hide(text, passages[0], None, 80).tolist() == text[:80].tolist()


def test_summaries_keep_depths_and_the_absent_control_apart(text, passages):
    probes = recall_probes(Copier(), text, passages, {}, SETTINGS)
    table = summarize_recall(probes)
    assert len(table) == 2 * 4
    assert table["trials"].eq(2).all()
    assert table.loc[~table["is_present"], "depth"].isna().all()
    assert table.loc[table["is_present"], "copied_low"].eq(1).all()
    alone = summarize_recall(probes[probes["trial"] == 0])
    assert alone["nll_low"].isna().all()


def test_passages_are_words_drawn_once_and_the_same_every_time(tiny_folder):
    from gonio.models import load_text, load_tokenizer

    tokenizer, text = load_tokenizer(tiny_folder), load_text().text[:20_000]
    passages = random_passages(tokenizer, text, count=3, length=40, seed=1)
    assert passages.shape == (3, 40)
    again = random_passages(tokenizer, text, count=3, length=40, seed=1)
    assert torch.equal(passages, again)
    assert not torch.equal(passages, random_passages(tokenizer, text, count=3, length=40, seed=2))
    for passage in passages:
        words = tokenizer.decode(passage).split()[:-1]  # the last may be cut
        assert len(words) == len(set(words))
        assert set(words) <= set(text.replace("\n", " ").split()) | {
            word for word in words if word in text
        }
    with pytest.raises(DataError, match="only 2 distinct words"):
        random_passages(tokenizer, "too few", count=1, length=40)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"depths": (1.5,)}, r"depths must lie in \[0, 1\]"),
        ({"passage": 4, "cue": 4}, "none to score"),
        ({"lengths": (24,), "passage": 20, "cue": 4}, "no room"),
        ({"trials": 0}, "at least 1 trial"),
        ({"lengths": ()}, "needs a length"),
    ],
    ids=["depth", "cue", "room", "trials", "lengths"],
)
def test_impossible_probes_are_refused(change, complaint):
    with pytest.raises(SettingError, match=complaint):
        RecallSettings(**change)


def test_texts_and_passages_must_fit(text, passages):
    with pytest.raises(SettingError, match="needs as many tokens of text, found 100"):
        recall_probes(Copier(), text[:100], passages, {}, SETTINGS)
    with pytest.raises(SettingError, match=r"expected passages \(2, 20\), found \(1, 20\)"):
        recall_probes(Copier(), text, passages[:1], {}, SETTINGS)


@pytest.mark.slow
def test_the_bundled_model_recalls_and_chance_does_not():
    from gonio.models import load_model, load_text, split_tokens

    model, tokenizer = load_model("smollm2-135m")
    source = load_text()
    settings = RecallSettings(lengths=(512,), depths=(0.5,), trials=2)
    split = split_tokens(tokenizer, source, calibration=0, evaluation=1024)
    passages = random_passages(tokenizer, source.text, count=2, length=settings.passage)
    codecs = {name: control_codec(model, name) for name in ("lossless", "zeros")}
    probes = recall_probes(model, split.evaluation, passages, codecs, settings)
    mean = probes.groupby(["is_present", "method"])["correct_top1"].mean()
    assert mean[True, "full"] > 0.8
    assert mean[True, "lossless"] == pytest.approx(mean[True, "full"], abs=0.02)
    assert mean[True, "zeros"] < 0.1
    assert mean[False].max() < 0.15
