"""Every page from disk: no error, no request, charts drawn, nothing sticks out, light and small."""

import pytest

from gonio.site.environment import PAGES

pytestmark = pytest.mark.browser

NAMES = tuple(name.removesuffix(".html") for name in PAGES)
CHARTED = {"index", "adapters", "caches"}
DRAWN = ":is(.mark-symbol, .mark-rect, .mark-line, .mark-rule, .mark-area) path, .mark-rule line"
EXCESS = "document.documentElement.scrollWidth - innerWidth"


@pytest.mark.parametrize("name", NAMES)
def test_a_page_opens_without_errors_and_draws_its_charts(name, open_page):
    """Wide and narrow, light and dark, in one visit."""
    page = open_page(name)
    holders = page.locator(".chart").count()
    assert (holders > 0) == (name in CHARTED)
    assert page.locator(".chart svg.marks").count() == holders
    marks = page.eval_on_selector_all(
        ".chart", f"all => all.map(e => e.querySelectorAll('{DRAWN}').length)"
    )
    assert all(count > 0 for count in marks)
    assert page.evaluate(EXCESS) <= 0
    for width in (768, 360, 320):
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_function(f"{EXCESS} <= 0", timeout=10_000)  # charts are drawn anew
    assert page.errors == []


@pytest.mark.parametrize("name", ["index", "adapters", "caches", "theorems", "provenance"])
def test_a_page_without_records_opens(name, open_page, empty_site):
    page = open_page(name, folder=empty_site)
    assert page.locator("h1").count() == 1
    assert page.locator(".chart").count() == 0
    if name in CHARTED:
        assert "gonio " in page.locator(".missing").first.inner_text()
    assert page.errors == []


def test_errors_are_noticed(open_page):
    """The collector of errors can fail."""
    page = open_page("methods")
    page.evaluate("console.error('made up'); setTimeout(() => { throw new Error('thrown') })")
    page.evaluate("new Image().src = 'https://example.invalid/x.png'")
    page.wait_for_timeout(300)
    assert any("made up" in error for error in page.errors)
    assert any("thrown" in error for error in page.errors)
    assert any("asked the network" in error for error in page.errors)


def test_the_first_page_is_light(site):
    """Home and all that it loads: under a megabyte."""
    home = (site / "index.html").read_text(encoding="utf-8")
    loaded = [path for path in (site / "assets").iterdir() if f"assets/{path.name}" in home]
    assert {"vega.js", "site.js", "site.css"} <= {path.name for path in loaded}
    assert len(home.encode()) + sum(path.stat().st_size for path in loaded) < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_page_of_measured_records_opens(name, open_page, real_site):
    """The same on records that were measured, in both schemes and at both widths."""
    for scheme, width in (("light", 1600), ("dark", 360)):
        page = open_page(name, width=width, scheme=scheme, folder=real_site)
        assert page.locator(".chart svg.marks").count() == page.locator(".chart").count()
        assert page.evaluate(EXCESS) <= 0
        assert page.errors == []


@pytest.mark.slow
def test_the_first_page_is_interactive_within_a_second(open_page, real_site):
    """From the start of navigation to charts that answer; the best of five on a busy machine."""
    times = []
    for _ in range(5):
        page = open_page("index", folder=real_site)
        times.append(page.evaluate("window.chartsReady"))
    assert min(times) < 1000
