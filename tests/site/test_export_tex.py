"""Records as LaTeX: harmless whatever names hold, complete, read back to the same numbers."""

import csv
import json
import math
import re
import shutil
import subprocess
from importlib.resources import files

import pandas as pd
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from pylatexenc import latexwalker
from pylatexenc.latex2text import LatexNodes2Text

from gonio.cli.main import cli
from gonio.errors import OutputError, RecordError
from gonio.linalg.resampling import Interval
from gonio.records import make_measurement, make_value
from gonio.site.collection import collect
from gonio.site.export_tex import MARKER, export_tex, table_keys, value_macros
from gonio.site.tex_tables import identifying_columns, table_tex
from gonio.site.tex_text import escape, number_text, numbers_with_interval

HOSTILE = (
    r"\input{/etc/passwd} 100% a_b $x$ & # ^ ~ [1]* {unclosed <script> -- '' \end{document}"
    " caf\N{LATIN SMALL LETTER E WITH ACUTE}"
    " \N{GREEK SMALL LETTER SIGMA} \N{CJK UNIFIED IDEOGRAPH-4E2D}"
)
COMMAND = re.compile(r"\\([A-Za-z]+)")
SYMBOLS = json.loads((files("gonio.site") / "tex_symbols.json").read_text(encoding="utf-8"))
# What an escaped name may say to TeX: print a character, put an accent on one.
ALLOWED = {"texttt", "i", "j", *SYMBOLS["accents"].values()}
for _part in ("special", "text", "math"):
    ALLOWED |= {name for text in SYMBOLS[_part].values() for name in COMMAND.findall(text)}


def walk(text):
    """The parse of a LaTeX text; malformed groups, formulas and environments raise."""
    walker = latexwalker.LatexWalker(text, tolerant_parsing=False)
    return walker.get_latex_nodes()[0]


def plain(text):
    return LatexNodes2Text().latex_to_text(text.replace(r"\,", "").replace(r"\ensuremath", ""))


def made(**tables):
    values = [
        make_value("gap", 1.23456, interval=Interval(1.12, 1.35, 0.95, "BCa"), chance=0.5),
        make_value("gap ", -3.0),
        make_value("count", 12345, unit="%"),
        make_value("says", HOSTILE),
        make_value("undefined", math.nan),
    ]
    return make_measurement(
        "odd-kind", HOSTILE, settings={"label": HOSTILE}, values=values, tables=tables
    )


@pytest.fixture(scope="module")
def hostile():
    """A record whose every name tries to be a command."""
    frame = pd.DataFrame(
        {
            HOSTILE: [HOSTILE, "b"],
            "x": [0.1 + 0.2, 1e-12],
            "x_low": [0.25, 0.5e-12],
            "x_high": [0.35, 2e-12],
            "a_b": [1, 2],
            "a-b": [3, 4],
            "missing": [math.nan, 5.5],
        }
    )
    return made(table=frame, empty=pd.DataFrame({"x": []}))


@given(st.text())
def test_no_name_is_a_command(text):
    """Any text becomes ASCII on one line whose only commands are those that print characters."""
    latex = escape(text)
    assert latex.isascii()
    assert "\n" not in latex
    assert set(COMMAND.findall(latex)) <= ALLOWED
    bare = re.sub(r"\\[A-Za-z]+|\\[^A-Za-z]|\$[^$]*\$", "", latex)
    assert not set(bare) & set("%_^&#$~\\")
    walk(latex)


@given(st.text(alphabet=[chr(code) for code in range(32, 127) if chr(code) not in "\"`^~'"]))
def test_ascii_names_read_the_same(text):
    """An independent reader of LaTeX gives the name back, up to white space."""
    assert "".join(plain(escape(text)).split()) == "".join(text.split())


@pytest.mark.parametrize(
    ("value", "latex"),
    [
        (3, "3"),
        (12345, r"\ensuremath{12\,345}"),
        (0.000012344, r"\ensuremath{1.234\times10^{-5}}"),
        (-3.5, r"\ensuremath{-3.5}"),
        (math.nan, "---"),
        (None, "---"),
    ],
)
def test_numbers(value, latex):
    assert number_text(value) == latex


def test_an_interval_sets_the_digits():
    """Two digits of the half width, for the value and both bounds; whole numbers stay whole."""
    assert numbers_with_interval(1.23456, 1.12, 1.35) == ("1.23", "1.12", "1.35")
    assert numbers_with_interval(0.50012, 0.4994, 0.5006) == ("0.50012", "0.49940", "0.50060")
    assert numbers_with_interval(4, 2, 8) == ("4", "2", "8")
    assert numbers_with_interval(2.5, 2.5, 2.5) == ("2.5", "2.5", "2.5")
    assert numbers_with_interval(2.5, None, None) == ("2.5", "---", "---")


def test_values_have_keys_for_all_their_parts(hostile):
    """Names that look alike get different keys, the same ones in any order."""
    values = hostile.record.values
    macros = value_macros("r", values)
    assert "r/gap" not in macros  # two quantities would share it
    assert macros["r/count"] == r"\ensuremath{12\,345}"
    assert macros["r/undefined"] == "---"
    (gap,) = [key for key in macros if key.endswith("/interval")]
    assert macros[gap] == "{[}1.12, 1.35{]}"
    assert macros[gap.replace("interval", "chance")] == "0.5"
    assert value_macros("r", values[::-1]) == macros


def test_rows_are_named_by_what_tells_them_apart():
    """Adding a row renames none; a table that nothing identifies numbers its rows."""
    frame = pd.DataFrame(
        {"module": ["a", "a", "b"], "side": ["l", "r", "l"], "k": [5, 5, 5], "x": [0.1, 0.2, 0.3]}
    )
    assert identifying_columns(frame) == ("module", "side")
    assert table_keys(frame)[0] == ["a-l", "a-r", "b-l"]
    more = pd.concat([frame, frame.assign(module="c")[:1]], ignore_index=True)
    assert table_keys(more)[0][:3] == table_keys(frame)[0]
    assert table_keys(frame[["x"]])[0] == ["1", "2", "3"]
    alike = pd.DataFrame({"name": ["a b", "a-b", "c"], "x": [1.0, 2.0, 3.0]})
    keys = table_keys(alike)[0]
    assert len(set(keys)) == 3
    assert keys[2] == "c"
    assert table_keys(alike[::-1].reset_index(drop=True))[0] == keys[::-1]


def test_every_number_has_a_key_that_is_found_once(records, hostile, tmp_path):
    """Keys are legal, distinct over the whole export, and as many as there are numbers."""
    out = export_tex([*records, hostile], tmp_path / "out").parent
    found, row = [], ""
    for path in sorted((out / "macros").iterdir()):
        for line in path.read_text().splitlines():
            command, key, text = re.fullmatch(r"\\(gonio\w+)\{([^{}]+)\}(.*)", line).groups()
            row = key if command == "goniorow" else row
            if command != "goniorow":
                found.append(key if command == "goniovalue" else f"{row}/{key}")
                assert text.startswith("{")
                assert text.endswith("}")
    assert len(found) == len(set(found))
    assert all(re.fullmatch(r"[a-z0-9/-]+", key) for key in found)
    numbers = sum(
        table[name].map(lambda cell: cell is None or isinstance(cell, (int, float))).sum()
        - table[name].map(lambda cell: isinstance(cell, bool)).sum()
        for m in [*records, hostile]
        for table in m.tables.values()
        for name in table.select_dtypes("number")
    )
    assert len([key for key in found if key.count("/") == 3]) >= numbers


def test_the_csv_keeps_every_digit_and_names_the_keys(hostile, tmp_path):
    out = export_tex([hostile], tmp_path / "out").parent
    name = collect([hostile]).records[0].identifier
    with (out / f"tables/{name}--table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["x"]) for row in rows] == [0.1 + 0.2, 1e-12]
    assert rows[0][HOSTILE] == HOSTILE
    assert rows[0]["missing"] == ""
    keys = {row["key"] for row in rows}
    text = (out / f"macros/{name}--table.tex").read_text()
    assert set(re.findall(r"\\goniorow\{(.*)\}", text)) == keys


def test_tables_hold_the_numbers_and_parse(records, hostile, tmp_path):
    """Balanced for an independent parser, one line a row, as many cells as columns."""
    out = export_tex([*records, hostile], tmp_path / "out").parent
    for path in sorted((out / "tables").glob("*.tex")):
        text = path.read_text()
        assert text.isascii()
        if len(text) < 30_000:
            walk(text)
        for line in text.splitlines():
            if line.endswith(r"\\"):
                assert not line.lstrip().startswith(("[", "*"))
    walk((out / "main.tex").read_text())
    name = collect([hostile]).records[0].identifier
    table = (out / f"tables/{name}--table.tex").read_text()
    assert "0.300 {[}0.250, 0.350{]}" in table


def test_bounds_that_do_not_enclose_stay_columns_of_their_own():
    """What is called low and high is an interval only where the numbers say so."""
    frame = pd.DataFrame({"name": ["a"], "x": [1.0], "low": [0.5], "high": [2.0]})
    assert "{[}" in table_tex(frame)
    assert "{[}" not in table_tex(frame.assign(high=[0.7]))


def test_long_tables_may_break_and_wide_ones_are_split():
    long = pd.DataFrame({"name": [f"n{i}" for i in range(60)], "x": range(60)})
    assert table_tex(long).count(r"\begin{longtable}") == 1
    wide = pd.DataFrame({"name": ["a", "b"]} | {f"quantity {i}": [0.1, 0.2] for i in range(30)})
    text = table_tex(wide)
    assert text.count(r"\begin{tabular}") == text.count("\na & ") > 1


def test_two_exports_are_byte_identical(records, hostile, tmp_path):
    first = export_tex([*records, hostile], tmp_path / "one").parent
    second = export_tex([hostile, *reversed(records)], tmp_path / "two").parent
    names = sorted(p.relative_to(first) for p in first.rglob("*") if p.is_file())
    assert names == sorted(p.relative_to(second) for p in second.rglob("*") if p.is_file())
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_nothing_is_overwritten_unasked(hostile, tmp_path):
    out = tmp_path / "out"
    export_tex([hostile], out)
    with pytest.raises(OutputError, match="--force"):
        export_tex([hostile], out)
    (out / "stale").write_text("old")
    export_tex([hostile], out, overwrite=True)
    assert not (out / "stale").exists()
    (out / MARKER).unlink()
    with pytest.raises(OutputError, match="something else"):
        export_tex([hostile], out, overwrite=True)
    assert (out / "main.tex").exists()


def test_a_failed_export_leaves_nothing(tmp_path):
    with pytest.raises(RecordError, match="no folder of records"):
        export_tex([tmp_path / "nowhere"], tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_the_command(hostile, tmp_path):
    from gonio.records import write_measurement

    write_measurement(hostile, tmp_path / "results" / "one")
    arguments = ["site", "export-tex", "--from", str(tmp_path / "results")]
    arguments += ["--out", str(tmp_path / "out")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.strip() == str((tmp_path / "out" / "main.tex").resolve())
    again = CliRunner().invoke(cli, arguments)
    assert again.exit_code == 2
    assert "--force" in again.output
    assert CliRunner().invoke(cli, [*arguments, "--force"]).exit_code == 0


@pytest.mark.slow
def test_the_document_compiles(records, hostile, tmp_path):
    """With a real engine: every page set, every key known; an unknown key is an error."""
    engine = shutil.which("pdflatex")
    if engine is None:
        pytest.skip("no pdflatex on this machine (Debian: texlive-latex-recommended)")
    out = export_tex([*records, hostile], tmp_path / "out").parent
    run = [engine, "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape"]
    done = subprocess.run([*run, "main.tex"], cwd=out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:]
    assert (out / "main.pdf").stat().st_size > 10_000
    name = collect([*records, hostile]).of_kind("odd-kind")[0].identifier
    paper = (
        "\\documentclass{article}\\usepackage{gonio}\\begin{document}"
        f"\\input{{macros/{name}--table}}\\section{{\\gonio{{{name}/table/b/missing}}}}"
        "\\message{<\\gonio{%s/table/b/missing}>}KEY\\end{document}" % name
    )
    for key, works in (("", True), (f"\\gonio{{{name}/table/b/mising}}", False)):
        (out / "paper.tex").write_text(paper.replace("KEY", key))
        done = subprocess.run(
            [*run, "paper.tex"], cwd=out, capture_output=True, text=True, check=False
        )
        assert (done.returncode == 0) == works
    assert "<5.5>" in done.stdout
    assert "No number is called" in done.stdout
