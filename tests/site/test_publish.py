"""Charts as files: really rendered, with the table's numbers, readable without the site."""

import json
import math
import struct
import zlib
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
import torch

from gonio.errors import RecordError, SettingError
from gonio.records import Measurement
from gonio.site.adapter_figures import stable_rank_figure
from gonio.site.collection import collect
from gonio.site.fleet_figures import fleet_figure
from gonio.site.publish import print_spec, print_theme, save_chart
from gonio.site.record_plots import PLOTS, plot_figures, plot_measurement
from gonio.site.spectrum_figures import ratio_heatmap, spectrum_figure

RANK = 8


def with_tables(measurement, **tables):
    tables = {**measurement.tables, **tables}
    record = measurement.record.model_copy(update={"tables": tuple(tables)})
    return Measurement(record, tables)


def with_spectra(measurement, rank=RANK):
    """Add made-up singular values with the columns of the library's table."""
    modules = measurement.tables["modules"].assign(rank=rank)
    rows = []
    for place, row in enumerate(modules.to_dict(orient="records")):
        sigma = 0.3 * np.exp(-np.arange(rank) / (2 + place % 5))
        energy = sigma**2 / (sigma**2).sum()
        for index in range(rank):
            rows.append(
                {name: row[name] for name in ("module", "layer", "projection")}
                | {"index": index + 1, "sigma": sigma[index], "error_bound": 1e-9}
                | {"energy_share": energy[index], "cumulative_energy": energy[: index + 1].sum()}
            )
    return with_tables(measurement, modules=modules, singular_values=pd.DataFrame(rows))


def made_up_fleet(measurement, steps):
    """A fleet of two runs, or of four adapters without steps."""
    rows = []
    for place in range(4):
        step = 100 * (1 + place % 2) if steps else pd.NA
        name = f"checkpoint-{step}" if steps else f"run-{place}"
        mean = 2.0 + 0.25 * place
        rows.append(
            {"adapter": f"{place // 2}/{name}", "path": f"runs/{'ab'[place // 2]}/{name}"}
            | {"step": step, "stable_rank": mean, "stable_rank_chance": 10.5}
            | {"stable_rank_layers_low": mean - 0.2, "stable_rank_layers_high": mean + 0.3}
        )
    adapters = pd.DataFrame(rows).astype({"step": "Int64"})
    one = measurement.tables["modules"]
    modules = pd.concat([one.assign(adapter=row["adapter"]) for row in rows], ignore_index=True)
    record = measurement.record.model_copy(
        update={"kind": "adapter-fleet", "tables": ("modules", "adapters")}
    )
    return Measurement(record, {"modules": modules, "adapters": adapters})


@pytest.fixture(scope="module")
def measured(records):
    """One measurement of each kind that has plots, by kind."""
    found = {m.record.kind: m for m in reversed(records) if m.record.kind in PLOTS}
    spectrum = with_spectra(found["adapter-spectrum"])
    fleet = made_up_fleet(found["adapter-spectrum"], steps=True)
    return found | {"adapter-spectrum": spectrum, "adapter-fleet": fleet}


def png_size(data):
    """Width and height of a PNG whose pixels are all there and not all white."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, color = struct.unpack(">IIBB", data[16:26])
    assert (depth, color) == (8, 6)  # RGBA
    pixels, place = b"", 8
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if data[place + 4 : place + 8] == b"IDAT":
            pixels += data[place + 8 : place + 8 + length]
        place += 12 + length
    raw = zlib.decompress(pixels)
    assert len(raw) == height * (1 + 4 * width)
    assert len(set(raw[1::997])) > 2
    return width, height


def texts(svg):
    return [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def chart_rows(spec, *fields):
    """Rows of the drawing's inline data that have all of the fields."""
    return [
        row
        for rows in spec["datasets"].values()
        for row in rows
        if all(field in row for field in fields)
    ]


@pytest.mark.parametrize(
    ("kind", "suffixes"),
    [
        ("adapter-spectrum", (".png", ".svg", ".html")),
        ("adapter-base-overlap", (".png", ".svg")),
        ("adapter-pair", (".svg",)),
        ("adapter-fleet", (".png", ".svg")),
    ],
)
def test_every_kind_is_drawn(kind, suffixes, measured, tmp_path):
    for suffix in suffixes:
        path = plot_measurement(measured[kind], tmp_path / f"plot{suffix}")
        data = path.read_bytes()
        if suffix == ".png":
            width, height = png_size(data)
            assert 1500 < width < 2400  # two columns at 288 pixels per inch are 2016
            assert 500 < height < 4000
        elif suffix == ".svg":
            words = texts(data)
            assert any(w == "layer" or w == "training step" for w in words)
            assert any(w.startswith("Gray: ") for w in words if w)
            assert b"NaN" not in data
            assert b"var(--" not in data
        else:
            assert b"<!doctype html>" in data
            assert b"http" not in data.split(b"<script>")[0]
    assert len(list(tmp_path.iterdir())) == len(suffixes)


@pytest.mark.parametrize(
    ("kind", "plot"),
    [
        ("adapter-spectrum", "stable-rank"),
        ("adapter-base-overlap", "gain"),
        ("adapter-pair", "cosine"),
    ],
)
def test_other_plots_are_drawn_by_name(kind, plot, measured, tmp_path):
    path = plot_measurement(measured[kind], tmp_path / "plot.svg", kind=plot)
    assert "aria-label" in path.read_text()


def test_the_spectrum_holds_the_table(measured):
    """Every singular value over the first of its module, its energy, and the medians."""
    measurement = measured["adapter-spectrum"]
    table = measurement.tables["singular_values"]
    figure = spectrum_figure(collect([measurement]).records)
    spec = print_spec(figure)
    panels = [pd.DataFrame(chart_rows(spec, "module", name)) for name in ("ratio", "energy")]
    rows = panels[0].drop_duplicates().merge(panels[1].drop_duplicates())
    assert len(rows) == len(table)
    joined = rows.merge(table, on=["module", "index"])
    first = table.groupby("module")["sigma"].first()
    expected = joined["sigma"] / joined["module"].map(first)
    drawn = {"rtol": 1e-5, "atol": 5e-5}  # four decimals, or six digits, are drawn
    np.testing.assert_allclose(joined["ratio"], expected, **drawn)
    np.testing.assert_allclose(joined["energy"], joined["cumulative_energy"], **drawn)
    medians = pd.DataFrame(chart_rows(spec, "series", "ratio")).drop_duplicates()
    one = medians[(medians["series"] == "q_proj") & (medians["x"] == 3)]["ratio"].item()
    mine = joined[(joined["projection_x"] == "q_proj") & (joined["index"] == 3)]["ratio"]
    assert one == pytest.approx(mine.median(), rel=1e-5, abs=5e-5)
    assert len(figure.panels) == 2
    assert tuple(spec["concat"][0]["layer"]) != ()


def test_the_null_band_is_that_of_random_factors(measured, rng):
    """The ends are the extremes over the shapes of quantiles of products made in full."""
    measurement = measured["adapter-spectrum"]
    spec = print_spec(spectrum_figure(collect([measurement]).records))
    band = {row["x"]: row for row in chart_rows(spec, "ratio_low", "energy_high")}
    assert sorted(band) == list(range(1, RANK + 1))
    lows, highs = [], []
    for m, n in {
        tuple(s) for s in measurement.tables["modules"][["out_features", "in_features"]].values
    }:
        left = torch.randn(300, m, RANK, generator=rng, dtype=torch.float64)
        right = torch.randn(300, RANK, n, generator=rng, dtype=torch.float64)
        core = torch.linalg.qr(left).R @ torch.linalg.qr(right.mT).R.mT
        sigma = torch.linalg.svdvals(core)
        ratio = (sigma[:, 4] / sigma[:, 0]).numpy()
        lows.append(np.quantile(ratio, 0.025))
        highs.append(np.quantile(ratio, 0.975))
    # Standard error of such a quantile of 300 values: about 0.15 standard deviations, here 0.006.
    assert band[5]["ratio_low"] == pytest.approx(min(lows), abs=0.025)
    assert band[5]["ratio_high"] == pytest.approx(max(highs), abs=0.025)
    assert band[6]["ratio_low"] < min(lows) - 0.025  # the band of another index is another


def test_unequal_ranks_share_an_axis(measured):
    measurement = measured["adapter-spectrum"]
    modules = measurement.tables["modules"].copy()
    modules.loc[modules["projection"] == "k_proj", "rank"] = 2 * RANK
    figure = spectrum_figure(collect([with_tables(measurement, modules=modules)]).records)
    rows = chart_rows(print_spec(figure), "module", "x")
    assert max(row["x"] for row in rows if row["projection"] == "k_proj") == 0.5
    assert max(row["x"] for row in rows) == 1
    with pytest.raises(SettingError, match="projection or layer"):
        spectrum_figure([], color="head")


def test_long_spectra_are_thinned(measured):
    """A dense update of rank 300: both ends are drawn, 64 points at most."""
    whole = measured["adapter-spectrum"].tables
    modules = whole["modules"].iloc[:1].assign(rank=300)
    index = np.arange(1, 301)
    table = pd.DataFrame(
        {"module": modules["module"].iloc[0], "layer": 0, "projection": "q_proj"}, [0]
    )
    table = table.loc[[0] * 300].assign(
        index=index, sigma=1.0 / index, cumulative_energy=np.cumsum(1.0 / index**2) / 1.64
    )
    measurement = with_tables(
        measured["adapter-spectrum"], modules=modules, singular_values=table.reset_index(drop=True)
    )
    figure = spectrum_figure(collect([measurement]).records, color="layer")
    rows = pd.DataFrame(chart_rows(print_spec(figure), "module", "ratio")).drop_duplicates()
    assert len(rows) <= 64
    assert {1, 300} <= set(rows["index"])


def test_the_heat_map_is_diverging_about_chance(measured):
    measurement = measured["adapter-spectrum"]
    entry = collect([measurement]).records
    spec = print_spec(ratio_heatmap(entry))
    modules = measurement.tables["modules"].dropna(subset=["stable_rank"]).set_index("module")
    ratio = modules["stable_rank"] / modules["random_lora_stable_rank"]
    rows = {row["module"]: row for row in chart_rows(spec, "octaves")}
    assert rows.keys() == set(modules.index)
    for name, row in rows.items():
        assert row["value"] == pytest.approx(ratio[name], rel=1e-5)
        assert row["octaves"] == pytest.approx(math.log2(ratio[name]), rel=1e-4)
    scale = spec["concat"][0]["encoding"]["color"]["scale"]
    low, high = scale["domain"]
    assert low == -high
    assert high == pytest.approx(-math.log2(ratio.min()))
    assert scale["domainMid"] == 0
    plain = print_spec(ratio_heatmap(entry, "scaling"))["concat"][0]["encoding"]["color"]
    assert plain["field"] == "value"
    assert "domainMid" not in plain["scale"]
    with pytest.raises(RecordError, match="no column nonsense"):
        ratio_heatmap(entry, "nonsense")


def test_fleets_by_step_and_adapter_by_adapter(measured, records):
    fleet = measured["adapter-fleet"]
    figure = fleet_figure(collect([fleet]).records[0])
    assert figure.legend == ("a", "b")
    rows = chart_rows(print_spec(figure), "mean", "low", "high", "step")
    table = fleet.tables["adapters"]
    assert [row["mean"] for row in rows] == table["stable_rank"].tolist()
    assert [row["low"] for row in rows] == pytest.approx(table["stable_rank_layers_low"].tolist())
    assert [row["step"] for row in rows] == [100, 200, 100, 200]
    plain = next(m for m in records if m.record.kind == "adapter-spectrum")
    strip = fleet_figure(collect([made_up_fleet(plain, steps=False)]).records[0])
    spec = print_spec(strip)
    values = plain.tables["modules"]["stable_rank"].dropna()
    assert len(chart_rows(spec, "module", "stable_rank")) == 4 * len(values)
    assert strip.legend == ()


def test_what_the_theme_prints(measured):
    """White paper, dark text of at least 9 units, and no colors but the theme's."""
    theme = print_theme()
    assert theme["background"] == "#ffffff"
    sizes = json.dumps(theme).split('FontSize": ')[1:]
    assert min(float(size.split(",")[0].rstrip("}")) for size in sizes) >= 10
    assert len(set(theme["range"]["category"])) == 8
    figure = stable_rank_figure(collect([measured["adapter-spectrum"]]).records)
    spec = print_spec(figure)
    assert "#" not in json.dumps(spec["concat"])
    assert [param["name"] for param in spec["params"]] == ["focus"]
    assert spec["params"][0]["bind"]["options"] == [None, *figure.legend]
    # The figure of the site is left as it was.
    assert figure.panels[0].spec["width"] == "container"
    assert "datasets" in figure.panels[0].spec


def test_charts_of_others(tmp_path):
    """An Altair chart and a plain specification, whose own configuration wins."""
    import altair as alt

    chart = alt.Chart(alt.InlineData(values=[{"a": 1}])).mark_point().encode(x="a:Q")
    first = save_chart(chart, tmp_path / "altair.svg").read_text()
    spec = chart.to_dict() | {"config": {"background": "#eeeeee"}}
    second = save_chart(spec, tmp_path / "plain.SVG").read_text()
    assert "#ffffff" in first
    assert "#eeeeee" in second
    assert spec["config"] == {"background": "#eeeeee"}


@pytest.mark.parametrize(
    ("name", "words"),
    [("plot.pdf", "ends in .pdf"), ("plot", "has no suffix")],
)
def test_other_suffixes_are_refused(name, words, measured, tmp_path):
    with pytest.raises(SettingError, match=rf"{words}, expected \.html, \.png, \.svg"):
        plot_measurement(measured["adapter-fleet"], tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_plotted(measured, records):
    record = records[0].record.model_copy(update={"kind": "odd-kind"})
    with pytest.raises(SettingError, match="no plot shows a record of kind 'odd-kind'"):
        plot_figures(Measurement(record, records[0].tables))
    with pytest.raises(SettingError, match="spectrum or heatmap or stable-rank"):
        plot_figures(measured["adapter-spectrum"], kind="pie")
    plain = next(m for m in records if m.record.kind == "adapter-spectrum")
    names = [figure.name for figure in plot_figures(plain)]
    assert names == ["stable-rank", "stable-rank-heatmap"]  # no singular values in the record
    with pytest.raises(RecordError, match="nothing to plot"):
        plot_figures(plain, kind="spectrum")


@pytest.mark.browser
def test_the_page_draws_itself_offline(browser, measured, tmp_path):
    """Opened from disk: no request, no error, all charts drawn, a selector that redraws."""
    path = plot_measurement(measured["adapter-base-overlap"], tmp_path / "plot.html")
    problems = []
    page = browser.new_page()
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda m: m.type in {"error", "warning"} and problems.append(m.text))
    page.on(
        "request",
        lambda request: (
            request.url.startswith(("file://", "data:")) or problems.append(request.url)
        ),
    )
    page.goto(path.as_uri())
    page.wait_for_function("document.documentElement.dataset.charts === 'ready'")
    points = page.locator("svg .mark-symbol path")
    places = "all => all.map(p => p.getAttribute('transform')).join()"
    before = points.evaluate_all(places)
    assert points.count() > 28
    selectors = page.locator("select")
    assert selectors.count() == 2  # the series in focus, and k
    page.locator("select").filter(has_text="10").select_option("10")
    page.wait_for_timeout(300)
    assert points.evaluate_all(places) != before
    page.close()
    assert problems == []
