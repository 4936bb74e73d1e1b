"""Charts as files: PNG and SVG for papers, and one HTML page that needs nothing else.

The specifications are those of the site, in a theme for print: white paper, fonts that stay
readable at column width, colors that people with color-vision deficiencies can tell apart
(Okabe and Ito 2008), and a legend inside the drawing. A full drawing is about 690 units wide,
7 inches at 96 per inch: the width of two columns.
"""

from __future__ import annotations

import copy
import html
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from gonio.errors import SettingError
from gonio.files import replace_file
from gonio.site.dependencies import require_site_packages
from gonio.site.figure import Figure, Panel

__all__ = ["SUFFIXES", "print_spec", "print_theme", "require_suffix", "save_chart"]

SUFFIXES = (".html", ".png", ".svg")

_PNG_SCALE = 3.0  # 288 pixels per inch at full width
_WIDTHS = {1: 520, 2: 250}  # of the plotting area, by charts side by side
_NAMED = ("color", "shape")

Chart = Figure | Sequence[Figure] | Mapping[str, Any]


def save_chart(chart: Chart | Any, path: str | Path) -> Path:
    """Write a chart in the format of the file's suffix.

    Args:
        chart: A figure of the site, several (drawn below each other), an Altair chart or a
            Vega-Lite specification.
        path: ``.html`` (interactive, in one file, offline), ``.png`` (288 pixels per inch) or
            ``.svg``. An existing file is replaced.

    Returns:
        The path.

    Raises:
        SettingError: Another suffix.
        MissingDependencyError: The ``site`` extra is not installed.
        OutputError: The file cannot be written.
    """
    target = require_suffix(path)
    require_site_packages()
    with replace_file(target) as staging:
        staging.write_bytes(_WRITERS[target.suffix.lower()](chart))
    return target


def require_suffix(path: str | Path) -> Path:
    """The path, whose suffix names a format.

    Raises:
        SettingError: The suffix is none of :data:`SUFFIXES`.
    """
    target = Path(path)
    if target.suffix.lower() not in SUFFIXES:
        found = f"ends in {target.suffix}" if target.suffix else "has no suffix"
        raise SettingError(f"cannot plot to {target}: it {found}, expected {', '.join(SUFFIXES)}")
    return target


def print_theme() -> dict[str, Any]:
    """The Vega-Lite configuration for print."""
    text = (files("gonio.site") / "assets" / "print_theme.json").read_text(encoding="utf-8")
    theme: dict[str, Any] = json.loads(text)
    return theme


def print_spec(chart: Chart | Any) -> dict[str, Any]:
    """The whole drawing as one Vega-Lite specification with the theme for print."""
    if isinstance(chart, Figure):
        spec = _figure_spec(chart)
    elif isinstance(chart, Mapping):
        spec = copy.deepcopy(dict(chart))
    elif isinstance(chart, Sequence):
        parts = [_figure_spec(figure) for figure in chart]
        spec = {"vconcat": parts, "resolve": _resolve("independent"), "spacing": 30}
        _hoist(spec, parts)
    else:
        spec = chart.to_dict()
    return {**spec, "config": _merge(print_theme(), spec.get("config", {})), "$schema": _schema()}


def _figure_spec(figure: Figure) -> dict[str, Any]:
    """A figure's charts side by side, at most two, with one legend and a word on chance."""
    columns = min(2, len(figure.panels))
    panels = [_panel_spec(panel, figure, _WIDTHS[columns]) for panel in figure.panels]
    spec: dict[str, Any] = {"concat": panels, "columns": columns, "resolve": _resolve("shared")}
    _hoist(spec, panels)
    _bind(spec["params"], figure)
    if figure.chance:
        spec["title"] = {
            "text": f"Gray: {figure.chance}" + _choice(figure),
            "orient": "bottom",
            "anchor": "start",
            "fontSize": 10,
            "fontWeight": "normal",
        }
    return spec


def _choice(figure: Figure) -> str:
    choice = figure.choice
    return f". {choice.label} = {choice.selected}" if choice else ""


def _panel_spec(panel: Panel, figure: Figure, width: int) -> dict[str, Any]:
    spec: dict[str, Any] = copy.deepcopy(dict(panel.spec))
    _show_legends(spec, figure.legend)
    if panel.title:
        spec["title"] = panel.title
    return _with_width(spec, width)


def _with_width(spec: dict[str, Any], width: int) -> dict[str, Any]:
    return {**spec, "width": width} if spec.get("width") == "container" else spec


def _show_legends(node: Any, legend: Sequence[str]) -> None:
    """The page draws legends beside the chart; on paper the chart draws its own."""
    if isinstance(node, list):
        for inner in node:
            _show_legends(inner, legend)
    if not isinstance(node, dict):
        return
    for name, channel in node.get("encoding", {}).items():
        if name in _NAMED and "legend" in channel and channel["legend"] is None:
            is_series = bool(legend) or channel.get("type") == "quantitative"
            if is_series:
                del channel["legend"]
                channel.setdefault("title", None if legend else channel.get("field"))
    for key, inner in node.items():
        if key not in ("data", "encoding"):
            _show_legends(inner, legend)


def _hoist(spec: dict[str, Any], parts: Sequence[dict[str, Any]]) -> None:
    """Move data and parameters from the parts to the drawing, where Vega-Lite looks for them.

    Parameters of one name become one.
    """
    params: dict[str, dict[str, Any]] = {}
    spec["datasets"] = {}
    for part in parts:
        spec["datasets"] |= part.pop("datasets", {})
        for param in part.pop("params", []):
            params.setdefault(param["name"], param)
    spec["params"] = list(params.values())


def _bind(params: Sequence[dict[str, Any]], figure: Figure) -> None:
    """Selectors for the interactive page: the series to focus on, and the figure's choice."""
    for param in params:
        if param["name"] == "focus" and figure.legend:
            options, labels = [None, *figure.legend], ["all", *figure.legend]
            param["bind"] = {"input": "select", "options": options, "labels": labels}
            param["bind"]["name"] = "Series "
        if figure.choice and param["name"] == figure.choice.param:
            param["bind"] = {"input": "select", "options": list(figure.choice.options)}
            param["bind"]["name"] = f"{figure.choice.label} "


def _resolve(how: str) -> dict[str, Any]:
    return {"scale": dict.fromkeys(_NAMED, how)}


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings; those of ``over`` win."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _schema() -> str:
    import altair

    return str(altair.SCHEMA_URL)


def _version() -> str:
    """The Vega-Lite release that Altair's specifications are made for, as ``6.1``."""
    import altair

    return ".".join(altair.SCHEMA_VERSION.lstrip("v").split(".")[:2])


def _png(chart: Any) -> bytes:
    import vl_convert

    png: bytes = vl_convert.vegalite_to_png(
        print_spec(chart), vl_version=_version(), scale=_PNG_SCALE
    )
    return png


def _svg(chart: Any) -> bytes:
    import vl_convert

    text: str = vl_convert.vegalite_to_svg(print_spec(chart), vl_version=_version())
    return text.encode("utf-8")


def _html(chart: Any) -> bytes:
    import vl_convert

    figures = [chart] if isinstance(chart, Figure) else chart
    figures = figures if isinstance(figures, Sequence) else []
    words = [f"{figure.title}. {figure.caption}" for figure in figures]
    page = _PAGE.format(
        title=html.escape(" / ".join(figure.title for figure in figures) or "Chart"),
        caption="".join(f"<p>{html.escape(text)}</p>" for text in words),
        bundle=vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", _version()),
        spec=Panel("", print_spec(chart)).json,
    )
    return page.encode("utf-8")


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>
body {{ margin: 24px; background: #ffffff; color: #1a1a1a;
  font: 14px/1.45 Helvetica, Arial, "Liberation Sans", sans-serif; }}
figure {{ margin: 0; overflow-x: auto; }}
figcaption {{ max-width: 44em; }}
.vega-bindings {{ margin: 8px 0; }}
</style>
</head>
<body>
<figure><div id="chart"></div><figcaption>{caption}</figcaption></figure>
<script>{bundle}</script>
<script type="application/json" id="spec">{spec}</script>
<script>
vegaEmbed("#chart", JSON.parse(document.getElementById("spec").textContent),
  {{mode: "vega-lite", renderer: "svg", actions: {{export: true, source: false, compiled: false,
   editor: false}}}}).then(() => {{ document.documentElement.dataset.charts = "ready"; }});
</script>
</body>
</html>
"""

_WRITERS: dict[str, Callable[[Any], bytes]] = {".html": _html, ".png": _png, ".svg": _svg}
