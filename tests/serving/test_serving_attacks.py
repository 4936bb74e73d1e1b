"""What clients send by mistake or malice: every answer is JSON, and the server goes on."""

import asyncio
import json
import os
import signal
import socket
import threading
import time

import httpx
import pytest

from gonio.serving import CompletionEngine, EngineLimits
from gonio.serving.body import MAX_BODY_BYTES
from gonio.serving.server import running_server, serve_until_signal

from .conftest import family_model

PATH = "/v1/completions"


@pytest.fixture(scope="module")
def server(read_adapters, tokenizer):
    """A running server and its engine."""
    limits = EngineLimits(max_batch=4, max_prompt_tokens=20)
    started = CompletionEngine(
        family_model("llama"), tokenizer, read_adapters("llama"), limits=limits
    )
    with started as engine, running_server(engine, "tiny") as url:
        yield url, engine


def ask(url: str, **body) -> httpx.Response:
    content = {"prompt": "Once", "temperature": 0, "max_tokens": 4, **body}
    return httpx.post(url + PATH, json=content, timeout=60)


def text_of(answer: httpx.Response) -> str:
    assert answer.status_code == 200, answer.text
    return answer.json()["choices"][0]["text"]


RAW = {
    "nothing": b"",
    "half": b'{"prompt": "Once"',
    "trailing comma": b'{"prompt": "Once",}',
    "a list": b"[1, 2]",
    "a number": b"7",
    "no UTF-8": b'{"prompt": "\xff\xfe"}',
    "UTF-16": '{"prompt": "Once"}'.encode("utf-16")[:7],
    "deep nesting": b'{"prompt": ' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "infinity": b'{"prompt": "Once", "temperature": Infinity}',
    "a number without end": b'{"prompt": "Once", "max_tokens": 1' + b"0" * 5000 + b"}",
    "a lone surrogate": b'{"prompt": "\\ud800"}',
    "a lone surrogate as adapter": b'{"prompt": "Once", "adapters": ["\\ud800"]}',
    "a lone surrogate as key": b'{"prompt": "Once", "adapters": {"\\udfff": 1}}',
    "a lone surrogate as field": b'{"prompt": "Once", "\\udfff": 1}',
    "a lone surrogate as model": b'{"prompt": "Once", "model": "\\ud800"}',
    "a lone surrogate as stop": b'{"prompt": "Once", "stop": ["\\ud800"]}',
    "the same key twice": b'{"prompt": "Once", "adapters": {"one": 1, "one": 2}}',
    "the same field twice": b'{"prompt": "Once", "prompt": "Twice"}',
}


@pytest.mark.parametrize("raw", RAW.values(), ids=RAW)
def test_malformed_bodies_get_openai_s_error_object(server, raw):
    url, engine = server
    headers = {"content-type": "application/json"}
    answer = httpx.post(url + PATH, content=raw, headers=headers, timeout=60)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert engine.accepts


BODIES = {
    "many answers": {"n": 10**9},
    "an enormous answer": {"max_tokens": 10**30},
    "a negative answer": {"max_tokens": -5},
    "an empty prompt": {"prompt": ""},
    "no tokens": {"prompt": []},
    "an enormous token": {"prompt": [10**30]},
    "a negative token": {"prompt": [-1]},
    "a true token": {"prompt": [True]},
    "many stops": {"stop": ["x"] * 17},
    "a negative seed": {"seed": -1},
    "an enormous seed": {"seed": 2**64},
    "an adapter twice": {"adapters": ["one", "two", "one"]},
    "an adapter without a name": {"adapters": [""]},
    "a path as adapter": {"adapters": ["../../one"]},
    "a weight that is text": {"adapters": {"one": "much"}},
    "no stream": {"stream": "perhaps"},
    "chat in completions": {"messages": [{"role": "user", "content": "Hi"}]},
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_bodies_out_of_range_are_refused(server, body):
    answer = ask(server[0], **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert server[1].accepts


def test_the_message_says_where_json_breaks_and_which_key_repeats(server):
    headers = {"content-type": "application/json"}

    def said(raw: bytes) -> str:
        answer = httpx.post(server[0] + PATH, content=raw, headers=headers, timeout=60)
        return answer.json()["error"]["message"]

    assert "Expecting ',' delimiter" in said(RAW["half"])
    assert "'one' is given twice" in said(RAW["the same key twice"])


def test_a_body_without_end_is_refused_before_it_is_read(server):
    """The announced length is enough, and so is what came of one that announces none."""
    url, engine = server

    sent = 0

    def endless():
        nonlocal sent
        while sent < 1 << 30:
            sent += 1 << 20
            yield b" " * (1 << 20)

    for content in (b" " * (MAX_BODY_BYTES + 1), endless()):
        try:
            answer = httpx.post(url + PATH, content=content, timeout=60)
        except (httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
            pass  # the server hung up while we were still writing
        else:
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "body_too_large"
    assert sent < 1 << 28  # it did hang up
    assert engine.accepts
    assert text_of(ask(url))


def test_unicode_goes_in_and_comes_out_whole(server):
    prompts = ["語", "🙂🙂", "e\u0301", "\u202eabc", "\x00", "नमस्ते"]
    for prompt in prompts:
        plain = text_of(ask(server[0], prompt=prompt, max_tokens=6))
        with httpx.stream(
            "POST",
            server[0] + PATH,
            json={"prompt": prompt, "temperature": 0, "max_tokens": 6, "stream": True},
            timeout=60,
        ) as answer:
            lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        pieces = [json.loads(line)["choices"][0]["text"] for line in lines[:-1]]
        assert "".join(pieces) == plain


def test_the_order_of_adapters_and_zero_weights_change_nothing(server):
    url = server[0]
    both = text_of(ask(url, adapters=["one", "two"], max_tokens=12))
    assert text_of(ask(url, adapters=["two", "one"], max_tokens=12)) == both
    assert text_of(ask(url, adapters={"two": 1, "one": 1.0}, max_tokens=12)) == both
    base = text_of(ask(url, max_tokens=12))
    for none in ([], {}, {"one": 0}, {"one": 0.0, "three": -0.0}, None):
        assert text_of(ask(url, adapters=none, max_tokens=12)) == base
    assert both != base


def test_null_asks_for_the_default(server):
    """OpenAI's own clients may send null for a field that is not set."""
    nulls = dict.fromkeys(["adapters", "stop", "seed", "top_p", "stream", "n", "user", "model"])
    assert text_of(ask(server[0], **nulls)) == text_of(ask(server[0]))
    assert httpx.post(server[0] + PATH, json={"prompt": None}, timeout=60).status_code == 400


def test_clients_that_hang_up_at_any_moment_leave_nothing_behind(server):
    url, engine = server
    host, port = url.removeprefix("http://").split(":")
    body = json.dumps({"prompt": "Once", "max_tokens": 60, "stream": True}).encode()
    head = f"POST {PATH} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\n"
    whole = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    for sent in (whole[:20], whole[:-5], whole, whole + whole, b"\x16\x03\x01 not http", b""):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            client.sendall(sent)
    plain = {"prompt": "Once", "max_tokens": 60, "temperature": 0}
    for _ in range(4):
        with pytest.raises(httpx.TimeoutException):
            httpx.post(url + PATH, json=plain, timeout=httpx.Timeout(10, read=1e-3))
    deadline = time.monotonic() + 60
    while engine.stats.running + engine.stats.waiting and time.monotonic() < deadline:
        time.sleep(0.05)
    assert (engine.stats.running, engine.stats.waiting) == (0, 0)
    assert text_of(ask(url))


@pytest.mark.parametrize(
    ("number", "grace"), [(signal.SIGTERM, 60.0), (signal.SIGINT, 0.0)], ids=["SIGTERM", "SIGINT"]
)
def test_a_signal_with_requests_in_flight_answers_every_client(
    read_adapters, tokenizer, number, grace
):
    """Running ones are finished within the grace, or refused; waiting ones are refused."""
    limits = EngineLimits(max_batch=2)
    engine = CompletionEngine(
        family_model("llama"), tokenizer, read_adapters("llama"), limits=limits
    )
    found: list[httpx.Response] = []

    async def ask_all(url: str) -> None:
        body = {"prompt": "Once", "temperature": 0, "max_tokens": 55, "seed": 0}
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            asked = [client.post(PATH, json=body | {"adapters": ["one"]}) for _ in range(12)]
            found.extend(await asyncio.gather(*asked))

    def stop_when_busy() -> None:
        while engine.stats.running < 2 or engine.stats.waiting < 5:
            time.sleep(0.002)
        os.kill(os.getpid(), number)

    threads: list[threading.Thread] = []

    def start(url: str) -> None:
        threads.append(threading.Thread(target=lambda: asyncio.run(ask_all(url))))
        threads.append(threading.Thread(target=stop_when_busy))
        for thread in threads:
            thread.start()

    with engine:
        dropped = serve_until_signal(engine, "tiny", port=0, grace=grace, on_start=start)
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    codes = [answer.status_code for answer in found]
    assert len(codes) == 12
    assert set(codes) <= {200, 503}
    assert codes.count(503) >= 5
    for answer in found:
        if answer.status_code == 503:
            assert answer.json()["error"]["code"] == "stopping"
    if grace:
        assert dropped == 0
        assert codes.count(200) >= 2
    else:
        assert dropped == 2
