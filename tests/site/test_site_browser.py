"""The built pages in a real browser, opened from disk: no errors, charts drawn, controls work."""

import shutil

import pytest

pytestmark = pytest.mark.browser

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
PAGES = ("index", "adapters", "caches", "theorems", "methods", "provenance")
CHARTED = ("index", "adapters", "caches")
READY = "document.documentElement.dataset.charts === 'ready'"


@pytest.fixture(scope="module")
def browser():
    """Chromium of the system."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = next((found for found in map(shutil.which, names) if found), None)
    if path is None:
        pytest.skip("no Chromium on this machine (looked for chromium, google-chrome)")
    with sync_api.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser, site):
    """Opens a page of the full site by file address and collects what goes wrong on it."""
    pages = []

    def open_it(name, width=1280, scheme="light", folder=site):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        pages.append(page)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on(
            "console",
            lambda message: (
                message.type in {"error", "warning"} and page.errors.append(message.text)
            ),
        )
        page.on("request", lambda request: _note_request(page, request))
        page.goto((folder / f"{name}.html").as_uri())
        if name in CHARTED:
            page.wait_for_function(READY if folder == site else "true")
        return page

    yield open_it
    for page in pages:
        page.close()


def _note_request(page, request):
    if not request.url.startswith(("file://", "data:")):
        page.errors.append(f"asked the network for {request.url}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_opens_without_errors_and_draws_its_charts(name, scheme, open_page):
    page = open_page(name, scheme=scheme)
    holders = page.locator(".chart").count()
    assert (holders > 0) == (name in CHARTED)
    assert page.locator(".chart svg.marks").count() == holders
    drawn = ":is(.mark-symbol, .mark-rect, .mark-line) path"
    marks = page.eval_on_selector_all(
        ".chart", f"all => all.map(e => e.querySelectorAll('{drawn}').length)"
    )
    assert all(count > 0 for count in marks)
    assert page.errors == []


def test_errors_are_noticed(open_page):
    """The collector of errors can fail."""
    page = open_page("methods")
    page.evaluate("console.error('made up'); setTimeout(() => { throw new Error('thrown') })")
    page.wait_for_timeout(100)
    assert len(page.errors) == 2


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [320, 380, 768])
def test_a_page_fits_a_narrow_screen(name, width, open_page):
    """Nothing makes the page itself scroll sideways."""
    page = open_page(name, width=width)
    excess = page.evaluate("document.documentElement.scrollWidth - innerWidth")
    assert excess <= 0


@pytest.mark.parametrize("name", PAGES)
def test_a_page_without_records_opens(name, open_page, empty_site):
    page = open_page(name, folder=empty_site)
    assert page.locator("h1").count() == 1
    assert page.errors == []


def test_the_theorem_filter(open_page):
    """Text, family and status narrow the cards together; clearing shows all of them."""
    page = open_page("theorems")
    shown = page.locator(".card:visible")
    total = shown.count()
    page.fill("#filter-text", "softmax shift")
    assert shown.count() == 1
    assert page.inner_text("#filter-count") == f"1 of {total} statements"
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


def test_a_link_to_a_filtered_card_shows_it(open_page):
    page = open_page("theorems")
    anchor = page.locator(".card").first.get_attribute("id")
    page.fill("#filter-text", "no such words")
    assert not page.locator(f"#{anchor}").is_visible()
    page.evaluate(f"location.hash = '{anchor}'")
    page.wait_for_function("!document.querySelector('.card[hidden]')")
    assert page.locator(f"#{anchor}").is_visible()


def test_the_selector_of_k_redraws(open_page):
    """Another k gives other points, in every chart of the figure, and back again."""
    page = open_page("adapters")
    figure = page.locator("#figure-base-overlap")
    places = (
        "all => all.map(e => [...e.querySelectorAll('.mark-symbol path')]"
        ".map(p => p.getAttribute('transform')).join())"
    )
    before = figure.locator(".chart").evaluate_all(places)
    figure.locator("select").select_option("10")
    page.wait_for_timeout(300)
    other = figure.locator(".chart").evaluate_all(places)
    assert all(a != b for a, b in zip(before, other, strict=True))
    figure.locator("select").select_option("5")
    page.wait_for_timeout(300)
    assert figure.locator(".chart").evaluate_all(places) == before
    assert page.errors == []


def test_the_legend_fades_the_other_series_by_keyboard(open_page):
    page = open_page("adapters")
    key = page.locator("#figure-stable-rank .key").first
    faded = page.locator("#figure-stable-rank .mark-symbol path[opacity='0.12']")
    assert faded.count() == 0
    key.focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert key.get_attribute("aria-pressed") == "true"
    assert faded.count() > 0
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert faded.count() == 0


def test_charts_follow_the_color_scheme(open_page):
    """A change of scheme redraws with other colors and keeps what the reader chose."""
    page = open_page("adapters")
    figure = page.locator("#figure-base-overlap")
    figure.locator("select").select_option("10")
    colors = (
        "() => [...document.querySelectorAll('.chart svg text')].map(t => t.getAttribute('fill'))"
    )
    light, paper = (
        page.evaluate(colors),
        page.evaluate("getComputedStyle(document.body).background"),
    )
    page.emulate_media(color_scheme="dark")
    page.wait_for_function(f"({colors})().every(c => !{sorted(set(light))!r}.includes(c))")
    assert page.evaluate("getComputedStyle(document.body).background") != paper
    assert figure.locator("select").input_value() == "10"
    assert page.errors == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_text_has_contrast(name, scheme, open_page):
    """Every text of the page reaches 4.5 to 1 on the color behind it (WCAG AA)."""
    page = open_page(name, scheme=scheme)
    assert page.evaluate(CONTRAST) == []


CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = color => {
    context.clearRect(0, 0, 1, 1);
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data];
  };
  const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
  const behind = node => {
    for (; node; node = node.parentElement) {
      const found = rgb(getComputedStyle(node).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const poor = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || node.closest('script, noscript, .hidden, .skip'))
      continue;
    if (!node.getClientRects().length) continue;
    const style = getComputedStyle(node);
    const ink = rgb(node.closest('svg') ? style.fill : style.color);
    const [low, high] = [light(ink), light(behind(node))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) poor.push([walker.currentNode.textContent.trim().slice(0, 30), ratio]);
  }
  return poor;
}"""


def test_the_keyboard_reaches_content_and_controls(open_page):
    """The first stop skips the menu; later stops are links, buttons and selectors, all visible."""
    page = open_page("theorems")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"
    stops = []
    for _ in range(25):
        page.keyboard.press("Tab")
        stops.append(page.evaluate("document.activeElement.id"))
    assert {"filter-text", "filter-family", "filter-status"} <= set(stops)
