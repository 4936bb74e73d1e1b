"""The engine: answers of mixed batches equal those of merged models, one request at a time."""

import threading
import time

import pytest
import torch

from gonio.errors import RequestError, SettingError
from gonio.serving import CompletionEngine, CompletionRequest, EngineLimits, Sampling
from gonio.serving.answer_text import AnswerText
from gonio.serving.sampling import TokenPicker

from .conftest import family_model

SUBSETS = [{}, {"one": 1.0}, {"two": 1.5}, {"one": 1.0, "two": 1.0}, {"three": 0.5, "two": 1.0}]


def prompt(number: int) -> tuple[int, ...]:
    length = 1 + 5 * number % 13
    generator = torch.Generator().manual_seed(number)
    return tuple(torch.randint(1, 400, (length,), generator=generator).tolist())


def greedy(model: torch.nn.Module, ids: tuple[int, ...], max_tokens: int) -> tuple[int, ...]:
    """Token by token without a cache, padding or batch."""
    tokens = list(ids)
    for _ in range(max_tokens):
        with torch.no_grad():
            token = int(model(torch.tensor([tokens])).logits[0, -1].argmax())
        if token == model.config.eos_token_id:
            break
        tokens.append(token)
    return tuple(tokens[len(ids) :])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox"])
def test_mixed_batches_answer_as_merged_models(family, read_adapters, merged_model, tokenizer):
    """Requests of all lengths join and leave while others run."""
    model = family_model(family)
    limits = EngineLimits(max_batch=4)
    requests = [
        CompletionRequest(prompt(n), SUBSETS[n % len(SUBSETS)], max_tokens=3 + 7 * n % 9)
        for n in range(15)
    ]
    with CompletionEngine(model, tokenizer, read_adapters(family), limits=limits) as engine:
        tickets = [engine.submit(request) for request in requests]
        answers = [ticket.result(60) for ticket in tickets]
        stats = engine.stats
    assert stats.largest_batch == 4
    assert stats.finished == 15
    assert stats.tokens == sum(len(answer.tokens) for answer in answers)
    for at, subset in enumerate(SUBSETS):
        merged = merged_model(family, subset)
        for request, answer in list(zip(requests, answers, strict=True))[at :: len(SUBSETS)]:
            assert answer.tokens == greedy(merged, request.prompt, request.max_tokens)
            assert answer.prompt_tokens == len(request.prompt)
            full = len(answer.tokens) == request.max_tokens
            assert answer.finish_reason == ("length" if full else "stop")
    assert len({answer.tokens for answer in answers}) > 10  # the adapters matter
    assert not any(module._forward_hooks for module in model.modules())


@pytest.fixture(scope="module")
def engine(read_adapters, tokenizer):
    limits = EngineLimits(max_prompt_tokens=20)
    with CompletionEngine(
        family_model("llama"), tokenizer, read_adapters("llama"), limits=limits
    ) as started:
        yield started


def test_seeded_draws_do_not_depend_on_the_batch(engine):
    sampled = CompletionRequest(prompt(1), {"one": 1.0}, 12, Sampling(1.0, 0.9, seed=5))
    alone = engine.submit(sampled).result(60)
    crowd = [engine.submit(CompletionRequest(prompt(n), max_tokens=9)) for n in range(6)]
    assert engine.submit(sampled).result(60).tokens == alone.tokens
    other = CompletionRequest(prompt(1), {"one": 1.0}, 12, Sampling(1.0, 0.9, seed=6))
    assert engine.submit(other).result(60).tokens != alone.tokens
    assert all(ticket.result(60) for ticket in crowd)


def test_pieces_join_to_the_text_and_stop_strings_end_it(engine):
    pieces: list[str] = []
    whole = engine.submit(CompletionRequest(prompt(2), max_tokens=30), pieces.append).result(60)
    assert "".join(pieces) == whole.text
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    before = whole.text[: whole.text.find(stop)]
    told: list[str] = []
    request = CompletionRequest(prompt(2), max_tokens=30, stop=("never there", stop))
    stopped = engine.submit(request, told.append).result(60)
    assert (stopped.text, stopped.finish_reason) == (before, "stop")
    assert "".join(told) == before
    assert len(stopped.tokens) < len(whole.tokens)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (CompletionRequest((1,), {"four": 1.0}), "unknown_adapter", "there are: one, two, three"),
        (CompletionRequest((1,), {"one": float("inf")}), "invalid_adapters", "finite"),
        (CompletionRequest(()), "empty_prompt", "no tokens"),
        (CompletionRequest((1, 400)), "invalid_prompt", "from 0 to 399"),
        (
            CompletionRequest((1,) * 21),
            "prompt_too_long",
            "21 tokens, this server takes at most 20",
        ),
        (CompletionRequest((1,), max_tokens=64), "context_length_exceeded", "64 positions"),
        (CompletionRequest((1,), max_tokens=0), "invalid_max_tokens", "at least 1"),
        (CompletionRequest((1,), stop=("",)), "invalid_stop", "empty"),
    ],
)
def test_what_cannot_be_answered_is_refused(engine, request_, code, message):
    with pytest.raises(RequestError, match=message) as caught:
        engine.submit(request_)
    assert caught.value.code == code


def test_an_enormous_prompt_is_refused_before_it_is_read(engine):
    with pytest.raises(RequestError, match="1000000 characters"):
        engine.complete("a" * 1_000_000)


@pytest.mark.parametrize("values", [{"temperature": -1}, {"top_p": 0.0}, {"seed": -1}])
def test_bad_sampling_is_refused(values):
    with pytest.raises(RequestError, match="expected"):
        Sampling(**values)
    with pytest.raises(SettingError, match="at least 1"):
        EngineLimits(max_batch=0)


def test_a_cancelled_request_leaves_and_the_others_stay(engine):
    ticket = engine.submit(CompletionRequest(prompt(3), max_tokens=40), lambda _: ticket.cancel())
    other = engine.submit(CompletionRequest(prompt(4), max_tokens=10))
    with pytest.raises(RequestError, match="cancelled"):
        ticket.result(60)
    assert other.result(60).tokens


def test_a_listener_that_fails_ends_its_own_request_only(engine):
    def fail(_: str) -> None:
        raise OSError("gone")

    broken = engine.submit(CompletionRequest(prompt(3), max_tokens=40), fail)
    assert engine.submit(CompletionRequest(prompt(4), max_tokens=10)).result(60)
    with pytest.raises(RequestError, match="cancelled"):
        broken.result(60)


def test_logits_that_are_not_finite_fail_their_own_row(engine):
    alone = engine.submit(CompletionRequest(prompt(4), max_tokens=10)).result(60)
    broken = engine.submit(CompletionRequest(prompt(5), {"one": 1e308}, max_tokens=10))
    other = engine.submit(CompletionRequest(prompt(4), max_tokens=10))
    with pytest.raises(RequestError, match="not finite") as caught:
        broken.result(60)
    assert caught.value.status == 500
    assert other.result(60).tokens == alone.tokens


def out_of_memory(**_):
    raise MemoryError("full")


def test_a_failing_model_fails_its_requests_and_the_engine_goes_on(tokenizer, monkeypatch):
    model = family_model("llama")
    with CompletionEngine(model, tokenizer) as engine:
        right = model.forward
        monkeypatch.setattr(
            model, "forward", lambda **_: (_ for _ in ()).throw(MemoryError("full"))
        )
        with pytest.raises(RequestError, match="MemoryError: full"):
            engine.complete("hello")
        monkeypatch.setattr(model, "forward", right)
        assert engine.complete("hello", max_tokens=2).tokens


def test_a_full_queue_and_a_stopping_engine_refuse(tokenizer):
    model = family_model("llama")
    gate, right = threading.Event(), model.forward
    limits = EngineLimits(max_batch=1, max_waiting=1)
    engine = CompletionEngine(model, tokenizer, limits=limits)

    def slow(**arguments):
        gate.wait(60)
        return right(**arguments)

    model.forward = slow
    with engine:
        first = engine.submit(CompletionRequest((1, 2), max_tokens=5))
        while engine.stats.waiting:
            time.sleep(0.01)
        second = engine.submit(CompletionRequest((1, 2)))
        with pytest.raises(RequestError, match="waiting") as caught:
            engine.submit(CompletionRequest((1, 2)))
        assert (caught.value.code, caught.value.status) == ("overloaded", 503)
        engine.drain()
        with pytest.raises(RequestError, match="stopped"):
            second.result(60)
        with pytest.raises(RequestError, match="stopping"):
            engine.submit(CompletionRequest((1, 2)))
        gate.set()
        assert first.result(60).tokens  # what runs is finished
    engine.close()


def test_closing_drops_what_runs(tokenizer):
    model = family_model("llama")
    began = threading.Event()
    with CompletionEngine(model, tokenizer) as engine:
        request = CompletionRequest((1, 2, 3), max_tokens=60, sampling=Sampling(1.0, seed=0))
        ticket = engine.submit(request, lambda _: (began.set(), time.sleep(0.05)))
        began.wait(60)
    with pytest.raises(RequestError, match="stopped before"):
        ticket.result(0)
    with pytest.raises(SettingError, match="once"):
        engine.__enter__()


def test_draws_follow_the_distribution_and_top_p():
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0])
    picker = TokenPicker(Sampling(1.0, seed=0))
    counts = torch.bincount(torch.tensor([picker.pick(logits) for _ in range(4000)]), minlength=4)
    expected = logits.softmax(0) * 4000
    assert ((counts - expected).square() / expected).sum() < 16.3  # chi-squared, p = 0.001
    narrow = TokenPicker(Sampling(1.0, top_p=0.8, seed=0))
    assert {narrow.pick(logits) for _ in range(500)} == {0, 1}  # 0.64 + 0.24 reach 0.8
    first = TokenPicker(Sampling(1.0, top_p=1e-9, seed=0))
    assert {first.pick(logits) for _ in range(50)} == {0}


def test_characters_of_several_tokens_come_whole(tokenizer):
    prompt_, ids = tokenizer("x")["input_ids"], tokenizer("né → 語 END of")["input_ids"]
    text = AnswerText(tokenizer, prompt_, ("END",))
    pieces = [text.push(token) for token in ids]
    assert "\ufffd" not in "".join(pieces)
    assert "".join(pieces) == "né → 語 "
    assert text.is_stopped
