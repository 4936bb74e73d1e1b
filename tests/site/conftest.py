"""Made-up measurements with the shape of real ones, and tools to read built pages back.

Test data: no number here was measured.
"""

import math
import shutil
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import unquote, urlsplit

import numpy as np
import pandas as pd
import pytest

from gonio.linalg.resampling import Interval
from gonio.records import Measurement, make_measurement, make_value, text_input
from gonio.site import build_site
from gonio.theorems import load_catalogue

SHAPES = {
    "q_proj": (576, 576),
    "k_proj": (192, 576),
    "v_proj": (192, 576),
    "o_proj": (576, 576),
    "gate_proj": (1536, 576),
    "up_proj": (1536, 576),
    "down_proj": (576, 1536),
}
TITLE = "TEST DATA, not measured"
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PATIENCE = 120_000  # ms; a busy machine is no error


@pytest.fixture(scope="session")
def browser():
    """Chromium of the system."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip("no Chromium on this machine (looked for chromium, google-chrome)")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS, timeout=PATIENCE)
        yield chromium
        chromium.close()


def training(label: str, steps: int, rng: np.random.Generator) -> Measurement:
    """A falling loss, and for ``dpo`` a rising margin."""
    step = np.arange(1, steps + 1)
    progress = 1 - np.exp(-step / 12)
    log = pd.DataFrame({"step": step, "loss": 3.4 - 0.6 * progress + rng.normal(0, 0.1, steps)})
    if label == "dpo":
        log["loss"] = math.log(2) * (1 - 0.5 * progress) + rng.normal(0, 0.05, steps)
        log["reward_margin"] = 1.4 * progress + rng.normal(0, 0.2, steps)
        log["preference_accuracy"] = np.clip(0.5 + 0.45 * progress, 0, 1).round(1)
    return measurement("training", {"kind": label, "steps": steps}, {"log": log})


def spectrum(label: str, layers: int, rng: np.random.Generator) -> Measurement:
    """Stable ranks well below a made-up null, and one zero update."""
    rows = []
    for layer in range(layers):
        for place, (projection, (rows_m, columns_n)) in enumerate(SHAPES.items()):
            null = (
                10.4 + 0.9 * (min(rows_m, columns_n) > 192) + 0.5 * (max(rows_m, columns_n) > 576)
            )
            value = 1.4 + 0.3 * place + 0.02 * layer + rng.gamma(4, 0.12)
            rows.append(
                {
                    "module": f"model.layers.{layer}.{projection}",
                    "layer": layer,
                    "projection": projection,
                    "out_features": rows_m,
                    "in_features": columns_n,
                    "rank": 16,
                    "scaling": 2.0,
                    "stable_rank": value + (0.8 if label == "clm" else 0.0),
                    "random_lora_stable_rank": null,
                    "random_lora_stable_rank_low": null - 0.45,
                    "random_lora_stable_rank_high": null + 0.45,
                }
            )
    rows[-1]["stable_rank"] = math.nan
    table = pd.DataFrame(rows).astype({"layer": "Int64"})
    median = float(table["stable_rank"].median())
    value = make_value(
        "median_stable_rank",
        median,
        chance=11.2,
        interval=Interval(median - 0.1, median + 0.1, 0.95, "BCa bootstrap"),
        note="over modules; chance: random factors",
    )
    undefined = make_value("undefined_quantity", math.nan, note="made up")
    settings = {"label": label, "samples": 500, "nested": {"k": [5, 10]}}
    return measurement("adapter-spectrum", settings, {"modules": table}, [value, undefined])


def overlap(kind: str, settings: dict, layers: int, rng: np.random.Generator) -> Measurement:
    """Overlaps above chance on the left side, at chance on the right."""
    rows = []
    is_base = kind == "adapter-base-overlap"
    last = "stable_rank" if is_base else "numerical_rank"
    for layer in range(layers):
        for projection, shape in SHAPES.items():
            for side, dimension in zip(("left", "right"), shape, strict=True):
                for k, source in ((5, "fixed"), (10, "fixed"), (2 + layer % 2, last)):
                    chance, spread = k / dimension, 0.3 / math.sqrt(k)
                    lift = rng.gamma(3, 2.0) if side == "left" else abs(rng.normal(1, spread))
                    z_score = (lift - 1) / spread
                    rows.append(
                        {
                            "module": f"model.layers.{layer}.{projection}",
                            "layer": layer,
                            "projection": projection,
                            "side": side,
                            "dimension": dimension,
                            "k": k,
                            "k_from": source,
                            "overlap": lift * chance,
                            "chance": chance,
                            "overlap_ratio": lift,
                            "z_score": z_score,
                        }
                    )
    tables = {
        "overlaps": pd.DataFrame(rows).astype({"layer": "Int64"}),
        "gains" if is_base else "cosines": distances(is_base, layers, rng),
    }
    return measurement(kind, settings, tables)


def distances(is_base: bool, layers: int, rng: np.random.Generator) -> pd.DataFrame:
    """Gain residuals (base) or cosines (pair) with a made-up null and z-scores."""
    names = ("column_gain_residual", "row_gain_residual") if is_base else ("cosine",)
    rows = []
    for layer in range(layers):
        for projection, shape in SHAPES.items():
            row = {"module": f"model.layers.{layer}.{projection}", "layer": layer}
            row["projection"] = projection
            for name, dimension in zip(names, shape, strict=False):
                prefix = f"{name}_" if is_base else ""
                z_score, null = rng.normal(-1, 3), 1 - 1 / dimension if is_base else 0.0
                row[name] = null + z_score * 1e-4
                row[f"{prefix}chance"], row[f"{prefix}z_score"] = null, z_score
            rows.append(row)
    return pd.DataFrame(rows).astype({"layer": "Int64"})


def geometry(layers: int, heads: int, rng: np.random.Generator) -> Measurement:
    """1-bit cosines: worse than chance without a rotation, better with a learned one."""
    plain = {"none": 0.665, "haar": 0.801, "hadamard": 0.796, "learned": 0.916}
    means = {("key_post", name): mean for name, mean in plain.items()} | {
        ("key_post", "channel"): 0.767,
        ("value", "none"): 0.773,
        ("value", "learned"): 0.833,
    }
    rows = []
    for layer in range(layers):
        for head in range(heads):
            for (what, transform), mean in means.items():
                wide = 0.002 if transform == "haar" else 0.02
                value = mean + rng.normal(0, wide) + 0.02 * math.sin(layer / 4)
                rows.append(
                    {
                        "layer": layer,
                        "head": head,
                        "what": what,
                        "transform": transform,
                        "mean_cosine": value,
                        "low": value - 0.006,
                        "high": value + 0.006,
                        "beta": value**2 - 0.01,
                        "chance": 0.8010,
                    }
                )
    curves = [
        {
            "layer": layer,
            "start": start,
            "seed": seed,
            "iteration": iteration,
            "mean_cosine": 0.91 - 0.11 * math.exp(-iteration / 6) + 0.004 * seed - 0.001 * layer,
        }
        for layer in (0, layers // 2, layers - 1)
        for start in ("random", "hadamard")
        for seed in range(3)
        for iteration in range(51)
    ]
    tables = {"heads": pd.DataFrame(rows), "convergence": pd.DataFrame(curves)}
    tables |= observations(layers, heads, rng)
    value = make_value("mean_cosine_learned", 0.916, chance=0.801)
    return measurement("key-geometry", {"model": "none"}, tables, [value])


def observations(layers: int, heads: int, rng: np.random.Generator) -> dict[str, pd.DataFrame]:
    """Collapse, spectra and sinks: heads of 16 coordinates, a sink from layer 1 on."""
    dim, chance = 16, 1 / 16
    decay = {"key_post": 0.7, "key_pre": 0.5, "value": 0.95}
    shares = {what: rate ** np.arange(dim) for what, rate in decay.items()}
    shares = {what: values / values.sum() for what, values in shares.items()}
    collapse = [
        {
            "layer": layer,
            "what": what,
            "phase_angle": 80 * rate + rng.normal(),
            "lattice_angle": 85 * rate + rng.normal(),
            "angle_chance": 80.2,
            "moment_ratio": 0.64 + rng.normal(0, 0.01),
            "moment_ratio_chance": 2 / math.pi,
            "excess_kurtosis": rng.normal(0, 0.2),
            "top_channel_energy": 0.3 - 0.2 * rate,
            "top_channel_chance": chance,
        }
        for what, rate in decay.items()
        for layer in range(layers)
    ]
    spectra = [
        {
            "layer": layer,
            "head": head,
            "what": what,
            "energy": 10.0,
            "effective_rank": 10 * rate + head,
            "stable_rank": 1.5,
            "top_share": shares[what][0],
            "top_chance": chance,
        }
        for what, rate in decay.items()
        for layer in range(layers)
        for head in range(heads)
    ]
    eigenvalues = [
        {"layer": layer, "what": what, "index": index, "share": share}
        for what, values in shares.items()
        for layer in range(layers)
        for index, share in enumerate(values)
    ]
    places = [(0, "", 1.0, 0.5), (None, " the", 0.5, 0.4), (None, "\n", 0.25, 0.31)]
    sinks = [
        {
            "layer": layer,
            "criterion": criterion,
            "position": position,
            "token_id": None if position == 0 else 7,
            "token": token,
            "found": int(8 * often),
            "per_window": often,
            "first_position": 0 if position == 0 else 9,
            "last_position": 0 if position == 0 else 40,
            "value": value if criterion == "attention" else 0.2 + layer / 100,
            "chance": 0.02 if criterion == "attention" else 1.0,
            "threshold": 0.3 if criterion == "attention" else 3.0,
        }
        for criterion in ("attention", "key_norm")
        for layer in range(min(1, layers - 1), layers)
        for position, token, often, value in places
    ]
    leading = [
        {
            "layer": layer,
            "position": position,
            "attention": (0.4 if layer else 0.02) / (1 + position),
            "chance": 0.02,
            "key_norm": 0.5 if position == 0 else 1.1,
            "value_norm": 0.1 if position == 0 else 0.9,
        }
        for layer in range(layers)
        for position in range(8)
    ]
    return {
        "layers": pd.DataFrame(collapse),
        "leading_tokens": pd.DataFrame(leading),
        "spectra": pd.DataFrame(spectra),
        "eigenvalues": pd.DataFrame(eigenvalues),
        "sinks": pd.DataFrame(sinks).astype({"position": "float64", "token_id": "float64"}),
    }


def evaluation() -> Measurement:
    """Perplexities of both protocols; the zeros of one protocol are undefined."""
    scores = {
        "full": (16.0, 17.02, 0.0),
        "sign-learned": (1.25, 69.3, 1.4),
        "sign-hadamard": (1.25, 214.0, 2.5),
        "sign-haar": (1.25, 228.1, 2.6),
        "sign-none": (1.25, 2242.0, 4.9),
        "zeros": (0.0, 18412.0, 7.1),
    }
    rows = [
        {
            "method": method,
            "protocol": protocol,
            "bits_per_element": bits,
            "side_bits_per_element": 0.5 if "sign" in method else 0.0,
            "perplexity": perplexity * factor,
            "perplexity_low": perplexity * factor * 0.86,
            "perplexity_high": perplexity * factor * 1.17,
            "perplexity_ratio": perplexity / 17.02,
            "logit_kl": divergence,
            "same_top1": math.exp(-divergence),
            "scored_tokens": 3066,
            "context_length": 512,
        }
        for protocol, factor in (("teacher-forced", 1.0), ("cache", 0.84))
        for method, (bits, perplexity, divergence) in scores.items()
    ]
    for column in ("perplexity", "perplexity_low", "perplexity_high", "same_top1"):
        rows[-1][column] = math.nan
    return measurement("cache-evaluation", {"windows": 6}, {"methods": pd.DataFrame(rows)})


def checks() -> Measurement:
    """One row per catalogue entry, its status chosen by its place."""
    words = ("checked", "proved", "proved-weaker", "refuted", "empirical", "open", "failed")
    rows = []
    for place, entry in enumerate(load_catalogue()):
        status = "refuted" if entry.kind == "refuted" else words[place % len(words)]
        ran = status not in {"open"}
        rows.append(
            {
                "name": entry.name,
                "family": entry.family,
                "source": entry.source,
                "source_status": entry.source_status,
                "status": status,
                "passed": status != "failed" if ran else None,
                "examples": 200 if ran else None,
                "worst_margin": 0.01 * place if ran else math.nan,
                "mutant_rejected": True if ran else None,
                "seconds": 0.4,
                "counterexample": "x = <0>" if status == "failed" else None,
            }
        )
    table = pd.DataFrame(rows)
    return measurement("theorem-check", {"examples": 200}, {"checks": table})


def measurement(kind, settings, tables, values=()):
    """A record that says it is test data."""
    return make_measurement(
        kind,
        f"{kind}: {TITLE}",
        settings=settings,
        tables=tables,
        values=values,
        inputs=[text_input("made-up input", kind)],
        seed=0,
    )


def make_records(layers: int = 4, heads: int = 3, steps: int = 20) -> list[Measurement]:
    """One record of every kind (two of the adapter kinds)."""
    rng = np.random.default_rng(7)
    labels = ("dpo", "clm")
    folders = [{"adapter": f"runs/{label}"} for label in labels]
    pair = dict(zip(("first", "second"), folders, strict=True))
    return [
        *(training(label, steps, rng) for label in labels),
        *(spectrum(label, layers, rng) for label in labels),
        *(overlap("adapter-base-overlap", folder, layers, rng) for folder in folders),
        overlap("adapter-pair", pair, layers, rng),
        geometry(layers, heads, rng),
        evaluation(),
        checks(),
    ]


VOID_ELEMENTS = {"meta", "link", "input", "br", "hr", "img", "wbr"}


class Page(HTMLParser):
    """Elements, links, anchors and problems of one page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.problems: list[str] = []
        self.ids: Counter[str] = Counter()
        self.links: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.specs: list[str] = []
        self.words: list[str] = []
        self._in_spec = False
        self.feed(text)
        self.close()
        self.problems += [f"<{tag}> is never closed" for tag in self.open]
        self.problems += [f"id {name!r} occurs {n} times" for name, n in self.ids.items() if n > 1]

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        if len(names) != len(set(names)):
            self.problems.append(f"<{tag}> repeats an attribute")
        attributes = dict(attrs)
        self.elements.append((tag, attributes))
        if "id" in attributes:
            self.ids[attributes["id"]] += 1
        if attributes.get("rel") != "external noreferrer":  # where a source publishes something
            self.links += [attributes[name] for name in ("href", "src") if attributes.get(name)]
        self._in_spec = tag == "script" and attributes.get("class") == "spec"
        if self._in_spec:
            self.specs.append("")
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID_ELEMENTS:
            self.open.pop()

    def handle_endtag(self, tag):
        if not self.open or self.open[-1] != tag:
            self.problems.append(f"</{tag}> closes <{self.open[-1] if self.open else 'nothing'}>")
            return
        self.open.pop()
        self._in_spec = False

    def handle_data(self, data):
        if self._in_spec:
            self.specs[-1] += data
        else:
            self.words.append(data)


def parse(folder: Path) -> dict[str, Page]:
    """Every page of a site, by file name."""
    return {
        path.name: Page(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.html"))
    }


def broken_links(folder: Path, pages: dict[str, Page]) -> list[str]:
    """Links to files or anchors that do not exist, and links that leave the site."""
    broken = []
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme == "data":
                continue
            target = unquote(parts.path) or name
            outside = parts.scheme or parts.netloc or ".." in Path(target).parts
            if outside or not (folder / target).is_file():
                broken.append(f"{name}: {link}")
            elif parts.fragment and unquote(parts.fragment) not in pages[target].ids:
                broken.append(f"{name}: {link} has no such anchor")
    return broken


@pytest.fixture(scope="session")
def make():
    """Makers of test data."""
    return SimpleNamespace(records=make_records, spectrum=spectrum)


@pytest.fixture(scope="session")
def read():
    """Readers of built pages."""
    return SimpleNamespace(Page=Page, parse=parse, broken_links=broken_links)


@pytest.fixture(scope="session")
def records():
    """One record of every kind, small."""
    return make_records()


@pytest.fixture(scope="session")
def site(records, tmp_path_factory):
    """A built site with every kind of record."""
    return build_site(records, tmp_path_factory.mktemp("full") / "site").parent


@pytest.fixture(scope="session")
def empty_site(tmp_path_factory):
    """A site without any record."""
    return build_site([], tmp_path_factory.mktemp("empty") / "site").parent
