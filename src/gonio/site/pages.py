"""What each page shows: sections in order, each with its figures or the command that is missing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gonio.site.adapter_figures import stable_rank_figure
from gonio.site.allocation_figures import allocation_figures
from gonio.site.cache_figures import evaluation_figures
from gonio.site.certificate_figures import certificate_figures
from gonio.site.collection import Collection, SiteRecord
from gonio.site.commands import COMMANDS, PURPOSES
from gonio.site.cross_model_figures import (
    centering_figure,
    cross_model_figure,
    moment_reference_figure,
)
from gonio.site.depth_figures import depth_correlator_figure
from gonio.site.distance_figures import cosine_figure, gain_figure
from gonio.site.explorer import make_explorer
from gonio.site.figure import Figure
from gonio.site.fleet_figures import fleet_figure
from gonio.site.home_figures import MOST_NAMES, adapter_summary, perplexity_summary
from gonio.site.limit_figures import limit_excess_figure, limit_figure
from gonio.site.observation_figures import observation_figures
from gonio.site.overlap_figures import base_overlap_figure, pair_overlap_figure
from gonio.site.pareto_figures import comparison_figures
from gonio.site.projection_figures import projection_overlap_figure
from gonio.site.protractor import make_protractor
from gonio.site.reference_pages import (
    errata_page,
    glossary_page,
    methods_page,
    published_numbers,
)
from gonio.site.spectrum_figures import ratio_heatmap, spectrum_figure
from gonio.site.statements import STATUS_MEANINGS, Card, Use, count_families, make_cards
from gonio.site.study_behavior_figures import behavior_figure, bitfit_figure
from gonio.site.study_figures import overlap_figure, step_figure, width_figure
from gonio.site.study_null_figures import alignment_figure, depth_figure, study_gain_figure
from gonio.site.sweep_figures import sweep_figure
from gonio.site.theorem_page import theorems_page
from gonio.site.training_figures import training_figure
from gonio.site.weight_figures import expert_gap_figure, weight_sign_figure
from gonio.theorems import Family

__all__ = ["Built", "Section", "make_pages"]


@dataclass(frozen=True)
class Section:
    """Part of a page.

    Attributes:
        name: Anchor.
        title: Heading.
        kind: Kind of record it shows.
        records: The records of that kind.
        figures: Their figures; empty when there is no record to draw.
    """

    name: str
    title: str
    kind: str
    records: tuple[SiteRecord, ...]
    figures: tuple[Figure, ...]


@dataclass(frozen=True)
class Built:
    """What the foot of every page says of the site as a whole; empty where nothing is known."""

    date: str = ""
    commit: str = ""


def make_pages(
    collection: Collection, families: Sequence[Family], built: Built | None = None
) -> dict[str, dict[str, Any]]:
    """The context of every page's template, by file name.

    Raises:
        RecordError: A record of a known kind lacks a table or a column.
    """
    adapters = _unique(_adapter_sections(collection))
    caches = _unique(_cache_sections(collection))
    sections = {"adapters.html": adapters, "caches.html": caches}
    cards = make_cards(families, collection, _figure_links(sections), _resting(sections))
    counts = count_families(families, cards)
    known = {card.entry.name for card in cards}
    foot = built or Built(date=collection.newest)
    shared = {"known_theorems": known, "status_meanings": STATUS_MEANINGS, "built": foot}
    pages: dict[str, dict[str, Any]] = {
        "index.html": _home(collection, cards, counts),
        "adapters.html": {"sections": adapters, "explorer": make_explorer(collection)},
        "caches.html": {"sections": caches},
        "theorems.html": {
            **theorems_page(collection, cards, foot.commit, _all_figures(sections)),
            "counts": counts,
            "totals": _totals(cards),
        },
        "errata.html": errata_page(cards),
        "methods.html": methods_page(COMMANDS, PURPOSES),
        "glossary.html": glossary_page(),
        "provenance.html": {
            "records": collection.records,
            "drawn": _drawn(sections),
            "published": published_numbers(),
        },
    }
    return {name: {**shared, **context} for name, context in pages.items()}


def _adapter_sections(collection: Collection) -> tuple[Section, ...]:
    def spectra(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [
            stable_rank_figure(records),
            spectrum_figure(records),
            ratio_heatmap(records),
            depth_correlator_figure(records),
        ]

    def fleets(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [fleet_figure(entry) for entry in records]

    def with_base(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [
            base_overlap_figure(records),
            projection_overlap_figure(records),
            gain_figure(records),
        ]

    def with_each_other(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [pair_overlap_figure(records), cosine_figure(records)]

    def studies(records: Sequence[SiteRecord]) -> list[Figure | None]:
        draw = (
            *(width_figure, step_figure, overlap_figure, alignment_figure, study_gain_figure),
            *(depth_figure, behavior_figure, bitfit_figure),
        )
        return [make(entry) for entry in records for make in draw]

    def sweeps(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [sweep_figure(entry) for entry in records]

    fleet = _section(collection, "adapter-fleet", "Fleets", fleets)
    return (
        _section(collection, "training", "Training", training_figure),
        _section(collection, "adapter-spectrum", "Spectra", spectra),
        _section(collection, "adapter-base-overlap", "Against the base model", with_base),
        _section(collection, "adapter-pair", "Against each other", with_each_other),
        _section(collection, "adapter-sweep", "Ranks", sweeps),
        _section(collection, "study", "Studies", studies),
        *([fleet] if fleet.records else []),  # nobody misses a fleet
    )


def _cache_sections(collection: Collection) -> tuple[Section, ...]:
    def geometry(records: Sequence[SiteRecord]) -> list[Figure | None]:
        models = (cross_model_figure, centering_figure, moment_reference_figure)
        return [
            *(make(records) for make in models),
            *(figure for entry in records for figure in observation_figures(entry)),
        ]

    def calibrations(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [limit_figure(records), limit_excess_figure(records)]

    def weights(records: Sequence[SiteRecord]) -> list[Figure | None]:
        draw = (weight_sign_figure, expert_gap_figure)
        return [make(entry) for entry in records for make in draw]

    def evaluations(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [figure for entry in records for figure in evaluation_figures(entry)]

    def certificates(records: Sequence[SiteRecord]) -> list[Figure | None]:
        return [figure for entry in records for figure in certificate_figures(entry)]

    return (
        _section(collection, "key-geometry", "Keys and their signs", geometry),
        _section(collection, "cache-evaluation", "Predictions", evaluations),
        _section(collection, "cache-certificate", "Certificates", certificates),
        _section(collection, "cache-allocation", "Budgets", allocation_figures),
        _section(collection, "cache-comparison", "Beside other packages", comparison_figures),
        _section(collection, "cache-calibration", "Limits", calibrations),
        _section(collection, "weight-signs", "Weights", weights),
    )


def _section(
    collection: Collection,
    kind: str,
    title: str,
    draw: Callable[[Sequence[SiteRecord]], Figure | list[Figure | None] | None],
) -> Section:
    records = collection.of_kind(kind)
    drawn = draw(records)
    figures = drawn if isinstance(drawn, list) else [drawn]
    return Section(
        name=kind,
        title=title,
        kind=kind,
        records=records,
        figures=tuple(figure for figure in figures if figure is not None),
    )


def _unique(sections: Sequence[Section]) -> tuple[Section, ...]:
    """The same sections with distinct figure names.

    Of figures of one name, those after the first are named after their record too, so that their
    anchors stay when other records come.
    """
    seen: set[str] = set()
    renamed = []
    for section in sections:
        figures = []
        for figure in section.figures:
            name = figure.name
            if name in seen:
                name = "-".join([name, *(entry.identifier for entry in figure.sources)])
            while name in seen:
                name += "-again"
            seen.add(name)
            figures.append(replace(figure, name=name))
        renamed.append(replace(section, figures=tuple(figures)))
    return tuple(renamed)


def _all_figures(
    sections: Mapping[str, Sequence[Section]],
) -> Iterable[tuple[str, Figure]]:
    for page, parts in sections.items():
        for section in parts:
            for figure in section.figures:
                yield page, figure


def _figure_links(sections: Mapping[str, Sequence[Section]]) -> dict[str, str]:
    return {figure.name: f"{page}#figure-{figure.name}" for page, figure in _all_figures(sections)}


def _resting(sections: Mapping[str, Sequence[Section]]) -> dict[str, list[Use]]:
    """The figures that rest on each statement, with links."""
    resting: dict[str, list[Use]] = {}
    for page, figure in _all_figures(sections):
        for theorem in figure.theorems:
            use = Use(f"figure: {figure.title}", f"{page}#figure-{figure.name}")
            resting.setdefault(theorem, []).append(use)
    return resting


def _drawn(sections: Mapping[str, Sequence[Section]]) -> dict[str, list[Use]]:
    """The figures that each record is drawn in, with links, by the record's identifier."""
    drawn: dict[str, list[Use]] = {}
    for page, figure in _all_figures(sections):
        for entry in figure.sources:
            use = Use(figure.title, f"{page}#figure-{figure.name}")
            drawn.setdefault(entry.identifier, []).append(use)
    return drawn


def _home(collection: Collection, cards: Sequence[Card], counts: Any) -> dict[str, Any]:
    evaluations = collection.of_kind("cache-evaluation")
    # Checks that newer ones replace stay on the page of provenance.
    used = {card.record for card in cards}
    checks = [e for e in collection.of_kind("theorem-check") if e.identifier in used]
    panel = [
        {
            "kind": kind,
            "records": checks if kind == "theorem-check" else collection.of_kind(kind),
        }
        for kind in COMMANDS
        if kind != "adapter-fleet"
    ]
    return {
        "protractor": make_protractor(collection.of_kind("key-geometry")),
        "adapter_figure": adapter_summary(collection.of_kind("adapter-spectrum")),
        "cache_figure": perplexity_summary(evaluations[0]) if evaluations else None,
        "panel": panel,
        "most_names": MOST_NAMES,
        "counts": counts,
        "total": len(cards),
        "num_errata": sum(card.entry.erratum is not None for card in cards),
        "check_records": checks,
        "totals": _totals(cards),
        "environments": _environments(collection),
        "inputs": sorted({i.sha256 for e in collection.records for i in e.record.inputs}),
        "num_records": len(collection.records),
    }


def _totals(cards: Sequence[Card]) -> dict[str, int]:
    """Number of statements by status, only those that occur."""
    words = [card.status for card in cards]
    return {status: words.count(status) for status in STATUS_MEANINGS if status in words}


def _environments(collection: Collection) -> list[str]:
    found = {
        f"gonio {e.record.environment.gonio}, Python {e.record.environment.python}, "
        f"{e.record.environment.platform}, {e.record.device}"
        for e in collection.records
    }
    return sorted(found)
