"""``--plot`` of the commands: refused before the work, drawn after what was printed."""

import json
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from gonio.cli.main import cli
from gonio.cli.output import Output
from gonio.errors import RecordError, SettingError
from gonio.pipelines.bench import TokenBudget, open_bench
from gonio.pipelines.cache_allocate import AllocationPlan, allocate_cache
from gonio.pipelines.cache_calibrate import calibrate_cache
from gonio.pipelines.cache_certify import certify_cache
from gonio.pipelines.cache_compare import CacheComparison, compare_caches
from gonio.pipelines.fleet import inspect_fleet
from gonio.pipelines.study import SPEC_FILE, study_status
from gonio.pipelines.study_analysis import STUDY_RECORD
from gonio.pipelines.study_spec import StudySpec
from gonio.pipelines.weights import measure_weights
from gonio.records import make_measurement, write_measurement
from gonio.site.collection import collect
from gonio.site.publish import print_spec
from gonio.site.record_plots import PLOTS, plot_figures
from gonio.site.reference import reference_records
from gonio.weights import SignSettings

# Every command whose result can be drawn, with arguments that fail once the work begins.
COMMANDS = {
    "adapter inspect": ["nowhere"],
    "adapter compare": ["nowhere", "nowhere"],
    "adapter sweep": ["nowhere", "--truncate", "nowhere", "--rank", "1"],
    "cache observe": ["nowhere"],
    "cache calibrate": ["nowhere", "--out", "codec.safetensors"],
    "cache evaluate": ["nowhere", "--codec", "nowhere"],
    "cache certify": ["nowhere", "--codec", "nowhere"],
    "cache compare": ["nowhere"],
    "cache allocate": ["nowhere", "--bits", "2"],
    "weights measure": ["nowhere"],
    "study show": ["nowhere"],
    "theorem check": ["nowhere"],
    "train dpo": ["nowhere", "--data", "nowhere", "--out", "run"],
    "train clm": ["nowhere", "--data", "nowhere", "--out", "run"],
    "train bitfit": ["nowhere", "--data", "nowhere", "--out", "run"],
}


def options_of(words):
    command = cli
    for word in words.split():
        command = command.get_command(None, word)
    return {option for parameter in command.params for option in parameter.opts}


def all_commands():
    for noun in cli.list_commands(None):
        group = cli.get_command(None, noun)
        for verb in getattr(group, "commands", ()):
            yield f"{noun} {verb}"


def test_the_list_above_is_complete():
    assert {words for words in all_commands() if "--plot" in options_of(words)} == set(COMMANDS)


@pytest.mark.parametrize("words", COMMANDS)
def test_a_wrong_name_is_refused_before_the_work(words, tmp_path, monkeypatch):
    """Neither a missing model nor a missing folder is noticed: nothing was read yet."""
    monkeypatch.chdir(tmp_path)
    arguments = [*words.split(), *COMMANDS[words], "--plot"]
    done = CliRunner().invoke(cli, [*arguments, "figure.pdf"])
    assert done.exit_code == 2, done.output
    assert "cannot plot to figure.pdf: it ends in .pdf, expected .html, .png, .svg" in done.output
    (tmp_path / "figure.svg").write_text("mine")
    done = CliRunner().invoke(cli, [*arguments, "figure.svg"])
    assert done.exit_code == 2, done.output
    assert "figure.svg exists" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["figure.svg"]


def test_a_command_prints_and_draws(tmp_path):
    path = tmp_path / "status.svg"
    arguments = ["theorem", "check", "zero_init", "--examples", "3", "--plot", str(path)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert "zero_init" in done.output
    texts = [e.text for e in ElementTree.fromstring(path.read_text()).iter() if e.text]
    assert {"statements", "family"} <= {text.strip() for text in texts}
    assert CliRunner().invoke(cli, arguments).exit_code == 2
    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0


def test_what_was_measured_is_printed_even_if_it_cannot_be_drawn(tmp_path, capsys):
    odd = make_measurement("odd-kind", "TEST DATA", settings={}, values=[], tables={})
    with pytest.raises(SettingError, match="no plot shows"):
        Output("json", plot=tmp_path / "x.svg").write(odd)
    assert "TEST DATA" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def bench(tiny_folder):
    """A tiny model and some text."""
    return open_bench(str(tiny_folder), "bundled", TokenBudget(384, 192, 64))


@pytest.fixture(scope="module")
def codec(bench):
    return calibrate_cache(bench, options={"method": "sign", "bits": 1, "rotation": "haar"})


@pytest.fixture
def measure(bench, codec, tiny_folder, tmp_path, save_adapter):
    """What measures a record of each kind that is not among the made-up ones."""
    plan = CacheComparison(
        methods=("affine 4",), prefill=32, chunk=16, work=tmp_path / "work", peers=()
    )
    shipped = {
        entry.record.kind: entry.measurement for entry in collect(reference_records()).records
    }
    return {
        "adapter-fleet": lambda: inspect_fleet([save_adapter("a-1"), save_adapter("a-2")]),
        "adapter-sweep": lambda: shipped["adapter-sweep"],
        "cache-allocation": lambda: allocate_cache(bench, AllocationPlan(bits=2.5, compare=True))[
            1
        ],
        "cache-calibration": lambda: codec[1],
        "cache-certificate": lambda: certify_cache(bench, codec[0]),
        "cache-comparison": lambda: compare_caches(bench, plan),
        "study": lambda: shipped["study"],
        "study-status": lambda: finished_status(shipped["study"], tmp_path / "study"),
        "weight-signs": lambda: measure_weights(tiny_folder, SignSettings(iterations=2)),
    }


@pytest.fixture
def save_adapter(tmp_path):
    """Writes an adapter of two layers with random factors."""

    def save(name):
        folder = tmp_path / name
        folder.mkdir()
        generator = torch.Generator().manual_seed(len(list(tmp_path.iterdir())))
        tensors = {
            f"base_model.model.model.layers.{layer}.self_attn.q_proj.lora_{half}.weight": (
                torch.randn(shape, generator=generator)
            )
            for layer in range(2)
            for half, shape in (("A", (4, 8)), ("B", (12, 4)))
        }
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    return save


def finished_status(study, out):
    """The status of a study in whose folder its record lies, as a run leaves it."""
    begun(study, out)
    write_measurement(study, out / STUDY_RECORD)
    return study_status(out)


def begun(study, out):
    """The folder of a study that has its specification and no cell yet."""
    out.mkdir()
    spec = StudySpec.model_validate(study.record.settings["study"])
    (out / SPEC_FILE).write_text(spec.model_dump_json())
    return out


@pytest.mark.parametrize("kind", sorted(PLOTS))
def test_every_kind_has_a_drawing(kind, records, measure):
    """Of a made-up record or of one measured here; each holds data and says what it shows."""
    found = [m for m in records if m.record.kind == kind]
    figures = plot_figures(found[0] if found else measure[kind]())
    spec = print_spec(figures)
    assert any(len(rows) for rows in spec["datasets"].values())
    assert all(figure.description and figure.table.rows for figure in figures)


def test_a_study_that_finished_no_cell_says_that_there_is_nothing_to_plot(measure, tmp_path):
    """In one message of the command, after what it printed; nothing is written."""
    out = begun(measure["study"](), tmp_path / "begun")
    path = tmp_path / "study.svg"
    done = CliRunner().invoke(cli, ["study", "show", str(out), "--json", "--plot", str(path)])
    assert done.exit_code == 2, done.output
    assert done.output.count("nothing to plot in") == 1
    assert "its tables are cells and hold no numbers for this plot" in done.output
    assert not path.exists()


def test_an_empty_record_has_nothing_to_plot():
    empty = make_measurement("cache-calibration", "x", settings={}, values=[], tables={})
    with pytest.raises(RecordError, match="nothing to plot"):
        plot_figures(empty)
