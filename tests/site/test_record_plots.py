"""``--plot`` of the commands: refused before the work, drawn after what was printed."""

from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from gonio.cli.main import cli
from gonio.cli.output import Output
from gonio.errors import RecordError, SettingError
from gonio.records import make_measurement
from gonio.site.publish import print_spec
from gonio.site.record_plots import PLOTS, plot_figures

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


@pytest.mark.parametrize("kind", sorted(PLOTS))
def test_every_kind_has_a_drawing(kind, records):
    """Of the made-up records at hand; each drawing holds data and says what it shows."""
    found = [m for m in records if m.record.kind == kind]
    if not found:
        pytest.skip(f"no made-up record of kind {kind}")
    figures = plot_figures(found[0])
    spec = print_spec(figures)
    assert any(len(rows) for rows in spec["datasets"].values())
    assert all(figure.description and figure.table.rows for figure in figures)


def test_an_empty_record_has_nothing_to_plot():
    empty = make_measurement("cache-calibration", "x", settings={}, values=[], tables={})
    with pytest.raises(RecordError, match="nothing to plot"):
        plot_figures(empty)
