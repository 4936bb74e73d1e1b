"""The HTTP server: 64 mixed requests at once, refusals, streams, and a clean stop by signal."""

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
import torch

from gonio.errors import MissingDependencyError, SettingError
from gonio.serving import CompletionEngine, EngineLimits
from gonio.serving.server import is_loopback, require_serving, running_server

from .conftest import family_model
from .test_serving_engine import SUBSETS, greedy, prompt

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def server(read_adapters, tokenizer):
    """A running server and its engine."""
    limits = EngineLimits(max_batch=16, max_prompt_tokens=20)
    adapters = read_adapters("llama")
    started = CompletionEngine(family_model("llama"), tokenizer, adapters, limits=limits)
    with started as engine, running_server(engine, "tiny") as url:
        yield url, engine


def post(url: str, path: str = "/v1/completions", **body) -> httpx.Response:
    return httpx.post(url + path, json={"temperature": 0, "max_tokens": 4, **body}, timeout=60)


def test_64_concurrent_requests_answer_as_merged_models(server, merged_model, tokenizer):
    url, engine = server
    bodies = [
        {
            "prompt": list(prompt(n)),
            "adapters": SUBSETS[n % len(SUBSETS)],
            "max_tokens": 3 + n % 6,
            "temperature": 0,
        }
        for n in range(64)
    ]

    async def ask_all() -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=64)
        async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
            asked = [client.post("/v1/completions", json=body) for body in bodies]
            return await asyncio.gather(*asked)

    # A browser's tests leave a running loop in the thread of those that follow.
    with ThreadPoolExecutor(1) as pool:
        answers = pool.submit(asyncio.run, ask_all()).result()
    merged = [merged_model("llama", subset) for subset in SUBSETS]
    for body, answer in zip(bodies, answers, strict=True):
        assert answer.status_code == 200, answer.text
        found = answer.json()
        model = merged[SUBSETS.index(body["adapters"])]
        expected = greedy(model, tuple(body["prompt"]), body["max_tokens"])
        assert found["usage"]["completion_tokens"] == len(expected)
        start = len(tokenizer.decode(body["prompt"][-4:]))
        text = tokenizer.decode(body["prompt"][-4:] + list(expected))[start:]
        assert found["choices"][0]["text"] == text
        assert found["adapters"] == body["adapters"]
    assert engine.stats.largest_batch == 16  # they did run together


@pytest.mark.parametrize(
    ("body", "status", "code", "message"),
    [
        ({"adapters": ["four"]}, 400, "unknown_adapter", "there are: one, two, three"),
        ({"adapters": {"four": 0.5}}, 400, "unknown_adapter", "'four'"),
        ({"adapters": ["one", "one"]}, 400, "invalid_adapters", "twice"),
        ({"model": "four"}, 404, "model_not_found", "there are: tiny, one, two, three"),
        ({"model": "one", "adapters": ["two"]}, 400, "invalid_adapters", "give model 'tiny'"),
        ({"prompt": [5] * 21}, 400, "prompt_too_long", "21 tokens, this server takes at most 20"),
        ({"prompt": "word " * 300_000}, 400, "prompt_too_long", "1500000 characters"),
        ({"prompt": [5, 400]}, 400, "invalid_prompt", "0 to 399"),
        ({"prompt": ["a", "b"]}, 400, "invalid_request", "prompt"),
        ({"prompt": []}, 400, "empty_prompt", "no tokens"),
        ({"max_tokens": 60, "prompt": [5] * 20}, 400, "context_length_exceeded", "64"),
        ({"temperature": -1}, 400, "invalid_temperature", "0 to 100"),
        ({"n": 2}, 400, "invalid_request", "n:"),
        ({"logprobs": 3}, 400, "invalid_request", "logprobs"),
        ({"colour": "red"}, 400, "invalid_request", "colour: Extra inputs"),
    ],
)
def test_refusals_say_what_is_wrong(server, body, status, code, message):
    answer = post(server[0], **({"prompt": "Once"} | body))
    assert answer.status_code == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert message in error["message"]
    assert error["type"] == "invalid_request_error"


def test_broken_requests_are_refused_too(server):
    url, _ = server
    plain = {"content-type": "text/x"}
    broken = httpx.post(f"{url}/v1/completions", content=b"{", headers=plain, timeout=60)
    assert broken.status_code == 400
    assert broken.json()["error"]["code"] == "invalid_request"
    assert httpx.get(f"{url}/v1/nothing", timeout=60).json()["error"]["code"] == "not_found"
    assert httpx.get(f"{url}/v1/completions", timeout=60).status_code == 405
    other_name = httpx.get(f"{url}/health", headers={"host": "example.org"}, timeout=60)
    assert other_name.status_code == 400


def test_models_and_health(server):
    url, _ = server
    listed = httpx.get(f"{url}/v1/models", timeout=60).json()["data"]
    assert [model["id"] for model in listed] == ["tiny", "one", "two", "three"]
    assert [model["parent"] for model in listed] == [None, "tiny", "tiny", "tiny"]
    health = httpx.get(f"{url}/health", timeout=60).json()
    assert (health["status"], health["running"]) == ("ok", 0)


def test_a_model_name_chooses_its_adapter(server):
    by_name = post(server[0], prompt="Once", model="one").json()
    by_field = post(server[0], prompt="Once", model="tiny", adapters=["one"]).json()
    assert by_name["choices"] == by_field["choices"]
    assert by_name["adapters"] == {"one": 1.0}
    assert by_name["choices"] != post(server[0], prompt="Once").json()["choices"]


def events(url: str, path: str = "/v1/completions", **body) -> list[str]:
    content = {"temperature": 0, "max_tokens": 8, "stream": True, **body}
    with httpx.stream("POST", url + path, json=content, timeout=60) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [line.removeprefix("data: ") for line in answer.iter_lines() if line]


def test_streams_join_to_the_whole_answer(server):
    whole = post(server[0], prompt="Once upon", adapters=["one"], max_tokens=8).json()
    found = events(server[0], prompt="Once upon", adapters=["one"])
    assert found[-1] == "[DONE]"
    choices = [json.loads(line)["choices"][0] for line in found[:-1]]
    assert "".join(choice["text"] for choice in choices) == whole["choices"][0]["text"]
    reasons = [choice["finish_reason"] for choice in choices]
    assert reasons == [None] * (len(reasons) - 1) + [whole["choices"][0]["finish_reason"]]


def test_chats_follow_the_template(server, tokenizer, monkeypatch):
    url, path = server[0], "/v1/chat/completions"
    messages = [{"role": "user", "content": "Hi"}]
    refused = post(url, path, messages=messages)
    assert refused.json()["error"]["code"] == "no_chat_template"
    monkeypatch.setattr(tokenizer, "chat_template", TEMPLATE)
    answer = post(url, path, messages=messages, adapters=["two"]).json()
    text = "user: Hi\nassistant:"
    plain = post(url, prompt=text, adapters=["two"]).json()
    assert answer["choices"][0]["message"]["content"] == plain["choices"][0]["text"]
    pieces = [json.loads(line) for line in events(url, path, messages=messages)[:-1]]
    assert pieces[0]["object"] == "chat.completion.chunk"
    joined = "".join(piece["choices"][0]["delta"].get("content", "") for piece in pieces)
    assert (
        joined
        == post(url, path, messages=messages, max_tokens=8).json()["choices"][0]["message"][
            "content"
        ]
    )


def test_a_client_that_leaves_frees_its_place(server):
    url, engine = server
    body = {"prompt": "Once", "max_tokens": 60, "stream": True, "temperature": 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    deadline = time.monotonic() + 30
    while engine.stats.running and time.monotonic() < deadline:
        time.sleep(0.05)
    assert engine.stats.running == 0


def test_an_address_in_use_is_refused(server):
    url, engine = server
    port = int(url.rsplit(":", 1)[1])
    with pytest.raises(SettingError, match=f"port {port}"), running_server(engine, "x", port=port):
        pass


def test_missing_packages_are_named_with_the_cure(monkeypatch):
    monkeypatch.setattr("gonio.serving.server.find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'gonio\[serve\]'"):
        require_serving()


def test_loopback_addresses():
    assert all(map(is_loopback, ["127.0.0.1", "127.1.2.3", "::1", "localhost"]))
    assert not any(map(is_loopback, ["0.0.0.0", "::", "192.168.1.2", "example.org", ""]))


@pytest.fixture
def command(make_adapters, tokenizer, tmp_path):
    """The real command on a saved tiny model."""
    family_model("llama", torch.float32).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    folders = make_adapters("llama").items()
    options = [f"--adapter={name}={folder}" for name, folder in folders]
    code = "from gonio.cli.main import main; main()"
    words = ["adapter", "serve", str(tmp_path / "tiny"), *options, "--port=0", "--json"]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


@pytest.mark.parametrize(
    "number", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_the_command_serves_on_loopback_and_stops_cleanly(command, number):
    line = command.stderr.readline()
    found = re.search(r"http://(\S+):(\d+), adapters: one, two, three\.", line)
    assert found, line + command.stderr.read()
    assert found[1] == "127.0.0.1"
    url = f"http://127.0.0.1:{found[2]}"
    assert post(url, prompt="Once", adapters=["one", "two"]).status_code == 200
    body = {"prompt": "Once", "max_tokens": 50, "stream": True}
    running = httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60)
    with running as answer:
        lines = answer.iter_lines()
        next(lines)
        command.send_signal(number)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"  # what ran was finished
    out, err = command.communicate(timeout=60)
    assert command.returncode == 0, err
    values = {value["name"]: value["value"] for value in json.loads(out)["record"]["values"]}
    assert (values["answers"], values["dropped"]) == (2, 0)
    assert values["factor_bytes"] < values["merged_model_bytes"]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", int(found[2])), timeout=5)
