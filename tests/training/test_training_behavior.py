"""Log-probabilities against trl's own and against a plain loop; margins by hand."""

import math

import pytest
import torch
from scipy import stats

from gonio.errors import DataError, ModelError, SettingError, ShapeError
from gonio.training import (
    PairLogProbs,
    PreferencePair,
    keep_fitting,
    pair_log_probs,
    response_log_probs,
    summarize_preferences,
    tokenize_pair,
)

MAX_LENGTH = 24


def float32_tolerance(num_tokens: int, size: float) -> float:
    """Two float32 passes differ by a few roundings of every token's log-probability."""
    return 64 * num_tokens * size * torch.finfo(torch.float32).eps


def trl_trainer(model, tokenizer, pairs, folder, max_length=MAX_LENGTH):
    """Trl's DPO trainer on the pairs as they are, without an adapter."""
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in pairs]
    settings = trl.DPOConfig(
        output_dir=str(folder),
        max_length=max_length,
        precompute_ref_log_probs=True,
        per_device_train_batch_size=2,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        report_to="none",
    )
    dataset = datasets.Dataset.from_list(rows)
    return trl.DPOTrainer(model, args=settings, train_dataset=dataset, processing_class=tokenizer)


@pytest.mark.parametrize("max_length", [MAX_LENGTH, 12])
def test_tokens_and_log_probs_are_those_of_trl(tmp_path, make_model, tokenizer, pairs, max_length):
    pairs, _ = keep_fitting(tokenizer, pairs, max_length)
    ours = pair_log_probs(make_model(), tokenizer, pairs, max_length=max_length, batch_size=3)
    rows = trl_trainer(make_model(), tokenizer, pairs, tmp_path, max_length).train_dataset
    for pair, row in zip(pairs, rows, strict=True):
        tokens = tokenize_pair(tokenizer, pair, max_length)
        assert list(tokens.prompt) == row["prompt_ids"]
        room = max_length - len(tokens.prompt)
        assert list(tokens.chosen) == row["chosen_ids"][:room]
        assert list(tokens.rejected) == row["rejected_ids"][:room]
    atol = float32_tolerance(max_length, math.log(len(tokenizer)))
    for name in ("chosen", "rejected"):
        theirs = torch.tensor(rows[f"ref_{name}_logps"], dtype=torch.float64)
        torch.testing.assert_close(getattr(ours, name), theirs, rtol=0, atol=atol)
        assert not torch.allclose(getattr(ours, name) * 1.001, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "gpt2"])
def test_log_probs_are_those_of_a_plain_loop_in_double(make_model, tokenizer, pairs, family):
    """One sequence at a time, unpadded, float64; also: a prompt token scored would be noticed."""
    model = make_model(family)
    sequences = []
    for pair in pairs:
        tokens = tokenize_pair(tokenizer, pair, MAX_LENGTH)
        sequences.append((tokens.prompt, tokens.chosen))
    ours = response_log_probs(model, sequences, batch_size=3)
    model.double()
    expected, shifted = [], []
    for prompt, response in sequences:
        ids = torch.tensor([[*prompt, *response]])
        with torch.no_grad():
            table = model(input_ids=ids).logits[0, :-1].log_softmax(dim=-1)
        token_scores = table.gather(-1, ids[0, 1:, None]).squeeze(-1)
        expected.append(token_scores[len(prompt) - 1 :].sum())
        shifted.append(token_scores[len(prompt) - 2 :].sum())
    atol = float32_tolerance(MAX_LENGTH, math.log(len(tokenizer)))
    torch.testing.assert_close(ours, torch.stack(expected), rtol=0, atol=atol)
    assert not torch.allclose(ours, torch.stack(shifted), rtol=0, atol=atol)


def test_batching_and_padding_change_nothing(make_model, tokenizer, pairs):
    model = make_model()
    alone = pair_log_probs(model, tokenizer, pairs, max_length=MAX_LENGTH, batch_size=1)
    atol = float32_tolerance(MAX_LENGTH, math.log(len(tokenizer)))
    for batch_size in (2, 3, 100):
        other = pair_log_probs(
            model, tokenizer, pairs, max_length=MAX_LENGTH, batch_size=batch_size
        )
        torch.testing.assert_close(other.difference, alone.difference, rtol=0, atol=2 * atol)


@pytest.mark.parametrize("mode", [True, False])
def test_the_mode_of_the_model_is_put_back(make_model, tokenizer, pairs, mode):
    model = make_model().train(mode)
    pair_log_probs(model, tokenizer, pairs, max_length=MAX_LENGTH)
    assert model.training is mode


def test_a_prompt_that_fills_the_length_is_refused_and_can_be_left_out(
    make_model, tokenizer, pairs
):
    long = PreferencePair(" ".join(["river"] * 40), " stone", " copper")
    with pytest.raises(DataError, match="has no tokens"):
        pair_log_probs(make_model(), tokenizer, [long], max_length=MAX_LENGTH)
    kept, left_out = keep_fitting(tokenizer, [*pairs, long], MAX_LENGTH)
    assert (kept, left_out) == (pairs, 1)
    with pytest.raises(DataError, match="none of 1 prompts is shorter"):
        keep_fitting(tokenizer, [long], MAX_LENGTH)


def test_bad_requests_are_refused(make_model, tokenizer, pairs):
    with pytest.raises(DataError, match="no pairs"):
        pair_log_probs(make_model(), tokenizer, [], max_length=MAX_LENGTH)
    with pytest.raises(SettingError, match="batch_size"):
        pair_log_probs(make_model(), tokenizer, pairs, max_length=MAX_LENGTH, batch_size=0)
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        pair_log_probs(make_model(), tokenizer, pairs, max_length=MAX_LENGTH)


def log_probs(chosen, rejected):
    return PairLogProbs(
        torch.tensor(chosen, dtype=torch.float64), torch.tensor(rejected, dtype=torch.float64)
    )


def test_margins_by_hand():
    base = log_probs([-10.0, -20.0, -30.0, -5.0], [-12.0, -18.0, -30.0, -4.0])
    trained = log_probs([-9.0, -19.0, -31.0, -5.0], [-14.0, -18.0, -30.0, -4.0])
    summary = summarize_preferences(trained, base)
    assert summary.margins.tolist() == [3.0, 1.0, -1.0, 0.0]
    assert summary.mean_margin == 0.75
    assert summary.accuracy == 0.625  # two of four, and half for the tie
    assert summary.base_accuracy == 0.375
    assert summary.trained_accuracy == 0.25
    assert summary.margin_interval.low < 0.75 < summary.margin_interval.high


@pytest.mark.parametrize(("positive", "count"), [(16, 16), (13, 16), (0, 5)])
def test_the_accuracy_interval_is_exact_and_never_without_width(positive, count):
    """Clopper-Pearson bounds are beta quantiles."""
    zeros = [0.0] * count
    chosen = [1.0] * positive + [-1.0] * (count - positive)
    interval = summarize_preferences(
        log_probs(chosen, zeros), log_probs(zeros, zeros)
    ).accuracy_interval
    low = stats.beta.ppf(0.025, positive, count - positive + 1) if positive else 0.0
    high = stats.beta.ppf(0.975, positive + 1, count - positive) if positive < count else 1.0
    assert interval.low == pytest.approx(low, abs=1e-9)
    assert interval.high == pytest.approx(high, abs=1e-9)
    assert interval.low < interval.high


def test_a_single_pair_has_no_margin_interval():
    assert (
        summarize_preferences(log_probs([1.0], [0.0]), log_probs([0.0], [0.0])).margin_interval
        is None
    )


def test_different_numbers_of_pairs_are_refused():
    with pytest.raises(ShapeError, match="trained has 1 pairs, base has 2"):
        summarize_preferences(log_probs([1.0], [1.0]), log_probs([1.0, 2.0], [1.0, 2.0]))
