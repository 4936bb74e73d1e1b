"""Interference: losses against merged models, predictions against dense arithmetic."""

import json

import pytest
import torch
from click.testing import CliRunner
from scipy.stats import pearsonr, rankdata

from gonio.cli.main import cli
from gonio.errors import SettingError
from gonio.pipelines.adapter_interference import predicted_ratios, window_losses
from gonio.serving import AdapterMixture

from .conftest import family_model


def test_losses_are_those_of_merged_models(read_adapters, merged_model):
    model = family_model("gpt2")
    window = torch.randint(1, 400, (30,), generator=torch.Generator().manual_seed(0))
    subsets = [{}, {"one": 1.0}, {"one": 1.0, "two": 1.0}]
    with AdapterMixture(model, read_adapters("gpt2")) as mixture:
        found = window_losses(model, mixture, window, subsets)
    for subset, loss in zip(subsets, found, strict=True):
        merged = merged_model("gpt2", subset)
        with torch.no_grad():
            predicted = merged(input_ids=window[None]).logits[0, :-1].log_softmax(dim=-1)
        expected = -predicted[range(29), window[1:]].mean()
        assert float(loss) == pytest.approx(float(expected), rel=1e-10)
    assert found[0] != pytest.approx(float(found[1]), rel=1e-3)


def dense(adapter) -> dict[str, torch.Tensor]:
    return {
        module: update.scaling * update.lora_b.double() @ update.lora_a.double()
        for module, update in adapter.updates.items()
    }


@pytest.mark.parametrize(("first", "second"), [("one", "two"), ("two", "one"), ("one", "three")])
def test_predictions_equal_dense_arithmetic(read_adapters, first, second):
    adapters = read_adapters("neox")
    found = predicted_ratios(adapters[first], adapters[second])
    one, other = dense(adapters[first]), dense(adapters[second])
    flat = [
        torch.cat([side.get(m, torch.zeros_like(both[m])).flatten() for m in both])
        for both in [one | other]
        for side in (one, other)
    ]
    read_too = 0.0
    for module in one.keys() & other.keys():
        projection = torch.linalg.pinv(one[module], rtol=1e-10) @ one[module]
        read_too += float((other[module] @ projection).square().sum())
    size = float(flat[0].square().sum())
    expected = (
        float(torch.nn.functional.cosine_similarity(*flat, dim=0)),
        float(flat[1].square().sum()) / size,
        read_too / size,
    )
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_even_prediction_is_exact_for_an_even_quadratic(read_adapters):
    """A loss |D - D_i|^2 has its minimum at D_i and equal curvature in all directions."""
    adapters = read_adapters("neox")
    one, other = dense(adapters["one"]), dense(adapters["three"])

    def loss(*parts):
        total = {m: sum(part.get(m, 0) for part in parts) - one[m] for m in one}
        return float(sum(change.square().sum() for change in total.values()))

    gain = loss({}) - loss(one)
    change = loss(one, other) - loss(one)
    _, even, inputs = predicted_ratios(adapters["one"], adapters["three"])
    assert gain * even == pytest.approx(change, rel=1e-9)
    assert gain * inputs < change  # curvature along some inputs only predicts less


def test_the_command_measures_every_ordered_pair(make_adapters, tokenizer, tmp_path):
    family_model("llama", torch.float32).save_pretrained(tmp_path / "tiny")
    tokenizer.save_pretrained(tmp_path / "tiny")
    (tmp_path / "own.txt").write_text("An own text for one adapter. " * 60)
    words = [f"--adapter={name}={path}" for name, path in make_adapters("llama").items()]
    words += ["--text=bundled", f"--text=two={tmp_path / 'own.txt'}", "--tokens=96", "--window=32"]
    result = CliRunner().invoke(
        cli, ["adapter", "interference", str(tmp_path / "tiny"), *words, "--json"]
    )
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    pairs = found["tables"]["pairs"]
    assert len(pairs) == 6
    assert {(row["text_of"], row["added"]) for row in pairs} == {
        (one, other)
        for one in ("one", "two", "three")
        for other in ("one", "two", "three")
        if one != other
    }
    for row in pairs:
        assert row["change"] == pytest.approx(row["loss_both"] - row["loss_alone"])
        assert row["change_low"] <= row["change"] <= row["change_high"]
    assert found["record"]["settings"]["texts"]["two"].endswith("own.txt")
    values = {value["name"]: value["value"] for value in found["record"]["values"]}
    ranks = [rankdata([row[key] for row in pairs]) for key in ("inputs_ratio_squared", "change")]
    assert values["rank_correlation_overlap"] == pytest.approx(float(pearsonr(*ranks).statistic))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--adapter=one=A"], "two or more are needed"),
        (["--adapter=one"], "is not NAME=FOLDER"),
        (["--adapter=one=A", "--adapter=one=B"], "twice"),
        (["--adapter=a=A", "--adapter=b=B", "--text=c=x"], "a text is given for 'c'"),
        (["--text=x", "--text=y"], "two texts without a name"),
    ],
)
def test_bad_arguments_are_refused(words, message):
    result = CliRunner().invoke(cli, ["adapter", "interference", "smollm2-135m", *words])
    assert result.exit_code == 2
    assert message in result.output


def test_a_zero_adapter_predicts_nothing(read_adapters):
    from dataclasses import replace

    one = read_adapters("llama")["one"]
    zero = {m: replace(u, lora_b=torch.zeros_like(u.lora_b)) for m, u in one.updates.items()}
    with pytest.raises(SettingError, match="changes nothing"):
        predicted_ratios(one, replace(one, updates=zero))
