"""Filters, search, explorer, cross-links and theme, by mouse and by keyboard, wide and narrow."""

import re

import pytest

pytestmark = pytest.mark.browser

WIDTHS = pytest.mark.parametrize("width", [360, 1600])
PLACES = (
    "all => all.map(e => [...e.querySelectorAll('.mark-symbol path')]"
    ".map(p => p.getAttribute('transform')).sort().join())"
)
PAUSE = 300  # ms for a chart to redraw


def tab_to(page, selector, most=150):
    """Press Tab until the element has the focus."""
    for _ in range(most):
        page.keyboard.press("Tab")
        if page.evaluate("s => document.activeElement.matches(s)", selector):
            return
    pytest.fail(f"Tab does not reach {selector}")


@WIDTHS
def test_the_theorem_filter_by_mouse(width, open_page):
    """Text, family and both status words narrow the cards together; clearing shows all of them."""
    page = open_page("theorems", width=width)
    shown = page.locator(".card:visible")
    total = shown.count()
    page.fill("#filter-text", "softmax shift")
    found = shown.count()
    assert 0 < found < total
    assert page.inner_text("#filter-count") == f"{found} of {total} statements"
    page.fill("#filter-text", "")
    page.select_option("#filter-family", "B")
    letters = shown.evaluate_all("all => all.map(c => c.closest('.family').dataset.family)")
    assert set(letters) == {"B"}
    assert 0 < len(letters) < total
    page.select_option("#filter-family", "")
    page.select_option("#filter-status", "refuted")
    statuses = shown.evaluate_all("all => all.map(c => c.dataset.status)")
    assert set(statuses) == {"refuted"}
    page.fill("#filter-text", "no such words")
    assert shown.count() == 0
    assert page.locator("#filter-none").is_visible()
    page.click("button[type=reset]")
    page.wait_for_function("!document.querySelector('.card[hidden]')")
    assert shown.count() == total
    assert page.errors == []


@WIDTHS
def test_the_theorem_filter_by_keyboard(width, open_page):
    """From the skip link through search and selectors, without a mouse."""
    page = open_page("theorems", width=width)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    tab_to(page, "#filter-text")
    page.keyboard.type("stable rank")
    found = page.locator(".card:visible").count()
    assert 0 < found < page.locator(".card").count()
    tab_to(page, "#filter-family")
    page.keyboard.press("ArrowDown")
    assert page.input_value("#filter-family") == "A"
    tab_to(page, "button[type=reset]")
    page.keyboard.press("Enter")
    page.wait_for_function("!document.querySelector('.card[hidden]')")
    tab_to(page, ".card h3 a, .card h4 a")
    page.keyboard.press("Enter")
    assert re.search(r"#theorem-\w", page.url)
    assert page.errors == []


def test_a_filter_can_be_addressed(open_page):
    """A link opens the page filtered; an option that does not exist is ignored."""
    page = open_page("theorems", place="?status=refuted&family=nonsense#statements")
    statuses = page.locator(".card:visible").evaluate_all("all => all.map(c => c.dataset.status)")
    assert set(statuses) == {"refuted"}
    assert page.input_value("#filter-family") == ""


def test_a_link_to_a_filtered_card_shows_it(open_page):
    page = open_page("theorems")
    anchor = page.locator(".card").first.get_attribute("id")
    page.fill("#filter-text", "no such words")
    assert not page.locator(f"#{anchor}").is_visible()
    page.evaluate(f"location.hash = '{anchor}'")
    page.wait_for_function("!document.querySelector('.card[hidden]')")
    assert page.locator(f"#{anchor}").is_visible()


def test_cross_links_lead_both_ways(open_page):
    """Figure to card, card to figure, matrix to both, table to erratum; every target in sight."""
    page = open_page("adapters")
    caption = page.locator("figure .sources a[href*='theorems.html#theorem-']").first
    figure = caption.evaluate("a => a.closest('figure').id")
    name = caption.get_attribute("href").partition("#")[2]
    caption.click()
    page.wait_for_load_state()
    card = page.locator(f"#{name}")
    assert card.evaluate("e => e.matches(':target')")
    assert card.evaluate("e => { const b = e.getBoundingClientRect(); return b.top < innerHeight }")
    back = card.locator(f"a[href$='#{figure}']").first
    back.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/adapters.html#{figure}")
    page.goto(page.url.partition("adapters.html")[0] + "theorems.html#cross-links")
    mark = page.locator(".matrix tbody td a").first
    target = mark.get_attribute("href")
    mark.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{target}")
    assert page.evaluate("document.querySelector(':target') !== null")
    assert page.errors == []


@WIDTHS
def test_the_explorer_by_mouse(width, open_page):
    """Runs come and go, another quantity and axis move the points."""
    page = open_page("adapters", width=width)
    figure = page.locator("#figure-explorer")
    before = figure.locator(".chart").evaluate_all(PLACES)
    box = figure.locator("input[data-run]").first
    box.click()
    page.wait_for_timeout(PAUSE)
    fewer = figure.locator(".chart").evaluate_all(PLACES)
    assert 0 < len(fewer[0]) < len(before[0])
    box.click()
    page.wait_for_timeout(PAUSE)
    assert figure.locator(".chart").evaluate_all(PLACES) == before
    axes = figure.locator("select[data-param=axis]")
    axes.select_option(index=1)
    page.wait_for_timeout(PAUSE)
    assert "fraction" in figure.locator("svg.marks").text_content().lower()
    figure.locator("button[data-pick=none]").click()
    page.wait_for_timeout(PAUSE)
    assert not figure.locator(".chart").is_visible()
    assert "No run" in page.inner_text("#explorer-says")
    assert page.errors == []


def test_the_explorer_by_keyboard(open_page):
    page = open_page("adapters")
    figure = page.locator("#figure-explorer")
    before = figure.locator(".chart").evaluate_all(PLACES)
    page.locator("#explorer").evaluate("e => { e.tabIndex = -1; e.focus() }")
    tab_to(page, "#figure-explorer select[data-param=quantity]")
    page.keyboard.press("ArrowDown")
    page.wait_for_timeout(PAUSE)
    assert figure.locator(".chart").evaluate_all(PLACES) != before
    page.keyboard.press("ArrowUp")
    tab_to(page, "#figure-explorer input[data-run]")
    page.keyboard.press("Space")
    page.wait_for_timeout(PAUSE)
    fewer = figure.locator(".chart").evaluate_all(PLACES)
    assert len(fewer[0]) < len(before[0])
    assert page.errors == []


def test_the_selector_of_k_redraws(open_page):
    """Another k gives other points, in every chart of the figure, and back again."""
    page = open_page("adapters")
    figure = page.locator("#figure-base-overlap")
    before = figure.locator(".chart").evaluate_all(PLACES)
    figure.locator("select").select_option("10")
    page.wait_for_timeout(PAUSE)
    other = figure.locator(".chart").evaluate_all(PLACES)
    assert all(a != b for a, b in zip(before, other, strict=True))
    figure.locator("select").select_option("5")
    page.wait_for_timeout(PAUSE)
    assert figure.locator(".chart").evaluate_all(PLACES) == before
    assert page.errors == []


def test_the_legend_fades_the_other_series_by_keyboard(open_page):
    page = open_page("adapters")
    key = page.locator("#figure-stable-rank .key").first
    faded = page.locator("#figure-stable-rank .mark-symbol path[opacity='0.12']")
    assert faded.count() == 0
    key.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(PAUSE)
    assert key.get_attribute("aria-pressed") == "true"
    assert faded.count() > 0
    page.keyboard.press("Enter")
    page.wait_for_timeout(PAUSE)
    assert faded.count() == 0


@WIDTHS
def test_the_theme_is_chosen_and_kept(width, open_page):
    """By keyboard, against the system's; charts follow; the next page and a reload keep it."""
    page = open_page("adapters", width=width)
    figure = page.locator("#figure-base-overlap")
    figure.locator("select").select_option("10")
    colors = (
        "() => [...document.querySelectorAll('.chart svg text')].map(t => t.getAttribute('fill'))"
    )
    paper = "getComputedStyle(document.body).backgroundColor"
    light, light_paper = page.evaluate(colors), page.evaluate(paper)
    page.focus("#theme")
    page.keyboard.press("d")
    page.wait_for_function(f"({colors})().every(c => !{sorted(set(light))!r}.includes(c))")
    dark_paper = page.evaluate(paper)
    assert dark_paper != light_paper
    assert figure.locator("select").input_value() == "10"
    page.locator("nav[aria-label=Pages] a", has_text="Methods").click()
    page.wait_for_load_state()
    assert page.evaluate(paper) == dark_paper
    page.select_option("#theme", "")
    assert page.evaluate(paper) == light_paper
    assert page.errors == []


def test_the_system_theme_is_followed(open_page):
    page = open_page("index", scheme="light")
    paper = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(paper)
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"{paper} !== '{before}'")
    page.select_option("#theme", "light")
    page.wait_for_function(f"{paper} === '{before}'")
    assert page.errors == []


@pytest.mark.parametrize(("form", "start"), [("SVG", b"<svg"), ("PNG", b"\x89PNG"), ("CSV", b"")])
def test_a_figure_is_saved(form, start, open_page):
    """What is saved is the drawing as it stands, or the numbers of its table."""
    page = open_page("adapters")
    figure = page.locator("#figure-stable-rank")
    with page.expect_download() as waiting:
        figure.locator(".downloads button", has_text=form).click()
    data = waiting.value.path().read_bytes()
    assert data.startswith(start)
    assert len(data) > 500
    assert waiting.value.suggested_filename.endswith(form.lower())
    assert page.errors == []
