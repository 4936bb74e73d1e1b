"""``gonio cache generate`` on a tiny model: streams, caches between processes, stops, refusals."""

import json
import subprocess
import sys

import pytest
import torch
from click.testing import CliRunner, Result

from gonio.cli.main import cli
from gonio.kernels import kernel_status
from gonio.kvcache import load_codec
from gonio.kvcache.storage import cached_tokens
from gonio.models import load_model

PROMPT = "The quick brown fox jumps over the lazy dog, and then the dog " * 3


def run(*arguments: str, **options) -> Result:
    return CliRunner().invoke(cli, ["cache", *arguments], prog_name="gonio", **options)


@pytest.fixture(scope="module")
def codec(tiny_folder, tmp_path_factory) -> str:
    path = tmp_path_factory.mktemp("codec") / "three"
    options = ["--method", "affine", "--bits", "3", "--value-bits", "4", "--sinks", "2"]
    sizes = ["--calibration-tokens", "128", "--window", "64"]
    made = run("calibrate", str(tiny_folder), "--out", str(path), *options, *sizes)
    assert made.exit_code == 0, made.output
    return str(path)


def generate(folder, *arguments: str, prompt: str | None = PROMPT, **options) -> Result:
    told = [] if prompt is None else ["--prompt", prompt]
    return run("generate", str(folder), *told, "--max-new-tokens", "12", *arguments, **options)


def record_of(result: Result) -> tuple[dict, dict, list]:
    assert result.exit_code == 0, result.output
    content = json.loads(result.stdout)
    values = {each["name"]: each["value"] for each in content["record"]["values"]}
    return values, content["record"]["settings"], content["tables"]["tokens"]


def test_without_a_codec_it_is_transformers_own_greedy_generation(tiny_folder):
    model, tokenizer = load_model(tiny_folder)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    expected = model.generate(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"],
        max_new_tokens=12, do_sample=False, pad_token_id=0,
    )[0, inputs["input_ids"].shape[1] :]  # fmt: skip
    values, settings, tokens = record_of(generate(tiny_folder, "--json"))
    assert [each["token_id"] for each in tokens] == expected.tolist()
    assert values["text"] == tokenizer.decode(expected, skip_special_tokens=True)
    assert settings["codec"] is None
    assert settings["stopped"] == "length"
    count = inputs["input_ids"].shape[1]
    assert values["prompt_tokens"] == count
    assert values["cached_tokens"] == count + 11  # the last token was never read
    assert values["raw_bytes"] == 2 * 2 * 2 * 2 * 8 * (count + 11)
    assert values["cache_bytes"] == 2 * values["raw_bytes"]  # the model is in float32
    assert values["key_bits"] == values["value_bits"] == 32
    assert 0 < values["cache_share"] < values["attention_share"] < 1
    streamed = generate(tiny_folder)
    assert streamed.stdout == values["text"] + "\n"


def test_through_a_codec_it_is_generate_with_the_codecs_cache(codec, tiny_folder):
    model, tokenizer = load_model(tiny_folder)
    ids = torch.tensor([tokenizer(PROMPT)["input_ids"]])
    cache = load_codec(codec).new_cache(model)
    with torch.no_grad():
        model(input_ids=ids[:, :-1], past_key_values=cache, use_cache=True)
    expected = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), past_key_values=cache,
        max_new_tokens=12, do_sample=False, pad_token_id=0,
    )[0, ids.shape[1] :]  # fmt: skip
    values, settings, tokens = record_of(generate(tiny_folder, "--codec", codec, "--json"))
    assert [each["token_id"] for each in tokens] == expected.tolist()
    assert values["cache_bytes"] == cache.key_bytes + cache.value_bytes
    assert settings["codec"]["method"] == "affine"
    assert values["compression_ratio"] == values["raw_bytes"] / values["cache_bytes"]


def test_scalar_transform_codes_are_read_as_they_are_stored(tiny_folder, tmp_path):
    path = tmp_path / "t"
    options = ["--method", "transform", "--bits", "4", "--value-method", "transform"]
    options += ["--value-bits", "4", "--states", "1", "--sinks", "2", "--held-out-tokens", "0"]
    sizes = ["--calibration-tokens", "256", "--window", "64", "--context", "512"]
    made = run("calibrate", str(tiny_folder), "--out", str(path), *options, *sizes)
    assert made.exit_code == 0, made.output
    long = PROMPT * 3
    values, settings, tokens = record_of(
        generate(tiny_folder, "--codec", str(path), "--json", prompt=long)
    )
    model, tokenizer = load_model(tiny_folder)
    inputs = tokenizer(long, return_tensors="pt")
    cache = load_codec(path).new_cache(model)
    assert settings["attention"] == ("codes" if kernel_status().level != "reference" else "decoded")
    expected = model.generate(
        **inputs, past_key_values=cache, max_new_tokens=12, do_sample=False, pad_token_id=0
    )[0, inputs["input_ids"].shape[1] :]
    agree = [a["token_id"] == b for a, b in zip(tokens, expected.tolist(), strict=True)]
    assert sum(agree) >= 10  # tables of 8 bits move logits a little, where two are close
    assert values["key_bits"] < 32


def test_another_process_continues_a_saved_cache_identically(codec, tiny_folder, tmp_path):
    file = str(tmp_path / "prompt.cache")
    first = generate(tiny_folder, "--codec", codec, "--save-cache", file)
    assert first.exit_code == 0, first.output
    command = [sys.executable, "-c", "from gonio.cli.main import cli; cli()", "cache", "generate"]
    command += [str(tiny_folder), "--codec", codec, "--load-cache", file, "--max-new-tokens", "12"]
    second = subprocess.run(command, capture_output=True, text=True, check=True)
    assert second.stdout == first.stdout
    assert len(cached_tokens(file)) == len(load_model(tiny_folder)[1](PROMPT)["input_ids"])
    refused = generate(tiny_folder, "--codec", codec, "--save-cache", file)
    assert refused.exit_code == 2
    assert "--force" in refused.stderr


def test_a_loaded_cache_serves_longer_shorter_and_other_prompts(codec, tiny_folder, tmp_path):
    """What a prompt shares with the cache is not read again; what differs is dropped."""
    file = str(tmp_path / "prompt.cache")
    saved, _, _ = record_of(generate(tiny_folder, "--codec", codec, "--save-cache", file, "--json"))
    count = saved["prompt_tokens"]
    loaded = ["--codec", codec, "--load-cache", file, "--json"]
    same, _, _ = record_of(generate(tiny_folder, *loaded))
    assert same["text"] == saved["text"]
    assert same["reused_tokens"] == count - 1
    longer, _, _ = record_of(generate(tiny_folder, *loaded, prompt=PROMPT + "sleeps\nwell"))
    assert longer["prompt_tokens"] > count
    assert count - 3 < longer["reused_tokens"] <= count - 1
    shorter, _, _ = record_of(generate(tiny_folder, *loaded, prompt=PROMPT[:60]))
    assert shorter["reused_tokens"] < shorter["prompt_tokens"] < count
    other = generate(tiny_folder, *loaded, prompt="99 other words")
    assert other.exit_code == 2
    assert "shares no beginning" in other.stderr


def test_a_prompt_read_in_chunks_reads_what_is_stored(codec, tiny_folder):
    """Chunks change nothing for an exact cache; a codec's later chunks read its codes."""
    whole, _, _ = record_of(generate(tiny_folder, "--json"))
    parts, _, _ = record_of(generate(tiny_folder, "--prefill-chunk", "7", "--json"))
    assert parts["text"] == whole["text"]
    coded, _, _ = record_of(
        generate(tiny_folder, "--codec", codec, "--prefill-chunk", "7", "--json")
    )
    assert coded["cached_tokens"] == whole["cached_tokens"]


def test_an_interruption_keeps_what_was_generated(tiny_folder, monkeypatch):
    """Ctrl-C after some text: the text stays, the statistics come, the exit code is 0."""
    from gonio.cli import cache_generate

    pieces = []

    def interrupted(text: str) -> None:
        pieces.append(text)
        if len(pieces) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(cache_generate, "_write", interrupted)
    result = generate(tiny_folder, "--max-new-tokens", "200")
    assert result.exit_code == 0, result.output
    assert "(interrupted)" in result.stderr
    assert len(pieces) >= 2


def test_sampling_is_seeded(tiny_folder):
    before = torch.random.get_rng_state()
    texts = [
        record_of(generate(tiny_folder, "--temperature", "2", "--seed", seed, "--json"))[0]["text"]
        for seed in ("1", "1", "2")
    ]
    assert texts[0] == texts[1] != texts[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_statistics_go_to_standard_error(codec, tiny_folder, tmp_path):
    (tmp_path / "prompt.txt").write_text(PROMPT)
    options = ["--prompt-file", str(tmp_path / "prompt.txt"), "--codec", codec, "--stats"]
    result = generate(tiny_folder, *options, prompt=None)
    assert result.exit_code == 0, result.output
    for word in ("prefill", "a second", "MiB", "bits", "storing and decoding"):
        assert word in result.stderr
        assert word not in result.stdout
    piped = generate(tiny_folder, "--prompt-file", "-", "--codec", codec, prompt=None, input=PROMPT)
    assert piped.stdout == result.stdout


def test_scratch_saves_time_and_is_reported_apart(codec, tiny_folder):
    """Kept decoded tokens change neither text nor stored bytes, and stay within what is given."""
    plain, _, _ = record_of(generate(tiny_folder, "--codec", codec, "--json"))
    kept, settings, _ = record_of(
        generate(tiny_folder, "--codec", codec, "--scratch", "0.005", "--json")
    )
    assert kept["text"] == plain["text"]
    assert kept["cache_bytes"] == plain["cache_bytes"]
    assert 0 == plain["scratch_bytes"] < kept["scratch_bytes"] <= settings["scratch_bytes"] == 5242


def test_the_chat_template_is_used(tiny_folder, tmp_path):
    import shutil

    folder = tmp_path / "chat"
    shutil.copytree(tiny_folder, folder)
    (folder / "chat_template.jinja").write_text("Q: {{ messages[0].content }} A:")
    chat, settings, _ = record_of(generate(folder, "--chat", "--json", prompt="What?"))
    plain, _, _ = record_of(generate(folder, "--json", prompt="Q: What? A:"))
    assert chat["text"] == plain["text"]
    assert settings["chat"] is True


@pytest.mark.parametrize(
    ("given", "prompt", "complaint"),
    [
        ([], None, "nothing to continue"),
        (["--prompt-file", "-"], PROMPT, "exclude each other"),
        ([], "", "no token"),
        (["--chat"], PROMPT, "no chat template"),
        (["--max-new-tokens", "3000"], PROMPT, "knows 2048 positions"),
        (["--save-cache", "x"], PROMPT, "only caches of a codec"),
        (["--load-cache", "x"], None, "only caches of a codec"),
        (["--codec", "missing"], PROMPT, "no codec file"),
    ],
    ids=lambda each: each if isinstance(each, str) and " " in each else "",
)
def test_what_cannot_be_continued_is_refused(tiny_folder, given, prompt, complaint):
    refused = generate(tiny_folder, *given, prompt=prompt)
    assert refused.exit_code == 2
    assert complaint in refused.stderr


def test_a_cache_that_does_not_say_what_it_holds_is_refused(codec, tiny_folder, tmp_path):
    from gonio.kvcache import save_cache

    model, _ = load_model(tiny_folder)
    save_cache(load_codec(codec).new_cache(model), tmp_path / "silent")
    options = ["--codec", codec, "--load-cache", str(tmp_path / "silent")]
    refused = generate(tiny_folder, *options)
    assert refused.exit_code == 2
    assert "does not say which tokens" in refused.stderr
