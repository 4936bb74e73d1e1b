"""Chromium of the system, pages opened by file address, and what goes wrong on them."""

from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from gonio.site import build_site

PATIENCE = 120_000  # ms; a busy machine is no error
READY = "document.documentElement.dataset.charts === 'ready'"
# When the charts were drawn, in ms after the start of the navigation.
STOPWATCH = """new MutationObserver((_, observer) => {
  if (document.documentElement.dataset.charts !== 'ready') return;
  window.chartsReady = performance.now();
  observer.disconnect();
}).observe(document, {attributes: true, subtree: true, attributeFilter: ['data-charts']})"""
# The rules of WCAG 2.2 at levels A and AA, and axe's own advice.
RULES = ("wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice")
ROOT = Path(__file__).parents[3]


@pytest.fixture
def open_page(browser, site):
    """Opens a page of the full site by file address and collects what goes wrong on it."""
    contexts = []

    def open_it(name, width=1600, scheme="light", folder=site, place="", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(PATIENCE)
        page.add_init_script(STOPWATCH)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda message: _note_message(page, message))
        page.on("request", lambda request: _note_request(page, request))
        page.on("requestfailed", lambda request: page.errors.append(f"failed: {request.url}"))
        page.goto((folder / f"{name}.html").as_uri() + place)
        settle(page)
        return page

    yield open_it
    for context in contexts:
        context.close()


class Silent:
    """A listener of the demo that says nothing."""

    def start(self, step, number, total):
        """A step begins."""

    def progress(self, what, done, total):
        """Part of it is done."""

    def finish(self, step, seconds):
        """It ended."""


def _note_message(page, message):
    if message.type in {"error", "warning"}:
        page.errors.append(message.text)


def _note_request(page, request):
    if not request.url.startswith(("file://", "data:", "blob:")):
        page.errors.append(f"asked the network for {request.url}")


def settle(page):
    """Wait until the charts of a page are drawn; a page without charts is ready at once."""
    if page.locator(".chart").count():
        page.wait_for_function(READY)


@pytest.fixture(scope="session")
def audit():
    """Runs axe on a page; the serious and critical violations as text."""
    source = (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")

    def run(page, everything=False):
        page.evaluate(source)
        # Selectors of nodes take most of the time on long pages, and we print the nodes.
        options = {
            "runOnly": {"type": "tag", "values": RULES},
            "preload": False,
            "selectors": False,
            "resultTypes": ["violations"],
        }
        found = page.evaluate("options => axe.run(document, options)", options)["violations"]
        grave = [v for v in found if everything or v["impact"] in {"serious", "critical"}]
        return [
            f"{rule['id']} ({rule['impact']}): {node['html'][:120]} {node['failureSummary'][:200]}"
            for rule in grave
            for node in rule["nodes"][:3]
        ]

    return run


@pytest.fixture(scope="session")
def real_site(tiny_folder, tmp_path_factory):
    """A site of measured records: gonio's own, and those of `make demo`, else of a tiny model."""
    records = ROOT / "gonio-demo" / "records"
    out = tmp_path_factory.mktemp("real")
    if not records.is_dir():
        from gonio.pipelines.demo import QUICK, run_demo

        settings = replace(
            QUICK,
            model=str(tiny_folder),
            train_steps=2,
            calibration_tokens=128,
            evaluation_tokens=128,
            window=64,
            prefill=32,
            iterations=3,
            convergence_layers=1,
            examples=3,
        )
        run_demo(out / "demo", settings, Silent())
        records = out / "demo" / "records"
    shipped = sorted(ROOT.glob("src/gonio/site/records/*.json"))
    return build_site([*shipped, records], out / "site").parent
