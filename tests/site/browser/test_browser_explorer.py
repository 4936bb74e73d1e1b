"""The explorer and what a figure is saved as, by mouse and keyboard."""

import csv
from xml.etree import ElementTree

import pytest

pytestmark = pytest.mark.browser

PAUSE = 400  # ms in which a chart follows its controls
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def explorer(open_page):
    """The page of adapters and its explorer."""
    page = open_page("adapters")
    return page, page.locator("#figure-explorer")


def points(page, figure) -> list[str]:
    """Where the chart's points are."""
    page.wait_for_timeout(PAUSE)
    return figure.locator(".mark-symbol path").evaluate_all(
        "all => all.map(e => e.getAttribute('transform'))"
    )


def test_runs_are_chosen_by_keyboard_and_by_mouse(explorer):
    page, figure = explorer
    everything = points(page, figure)
    boxes = figure.locator("input[data-run]")
    total = boxes.count()
    assert total > 1
    boxes.first.focus()
    page.keyboard.press("Space")
    assert 0 < len(points(page, figure)) < len(everything)
    assert f" of {total} runs: stable rank" in page.inner_text("#explorer-says")
    figure.locator("button[data-pick=none]").click()
    assert page.inner_text("#explorer-says") == "No run is chosen."
    assert not figure.locator(".chart").is_visible()
    figure.locator("button[data-pick=all]").focus()
    page.keyboard.press("Enter")
    assert sorted(points(page, figure)) == sorted(everything)
    assert page.errors == []


def test_axis_quantity_and_projection_move_the_points(explorer):
    page, figure = explorer
    seen = [points(page, figure)]
    for param, choice in (("axis", "depth"), ("quantity", "left_overlap"), ("projection", 1)):
        select = figure.locator(f"select[data-param={param}]")
        chosen = {"index": choice} if isinstance(choice, int) else {"value": choice}
        select.select_option(**chosen)
        seen.append(points(page, figure))
    title = figure.locator(".chart svg text", has_text="fractional depth")
    assert "left side" in title.first.text_content()
    assert figure.locator(".chart svg text", has_text="1.0").count() >= 1
    assert seen[1] != seen[2] != seen[3]
    assert all(seen)
    assert page.errors == []


def test_a_choice_that_no_run_has_says_so_and_draws_nothing(explorer):
    page, figure = explorer
    for box in figure.locator("input[data-run]").all():
        box.uncheck()
    figure.locator("select[data-param=quantity]").select_option("cosine")
    figure.locator("input[data-run]").first.check()
    assert page.inner_text("#explorer-says").startswith("None of the chosen runs has this")
    assert not figure.locator(".chart").is_visible()
    figure.locator("select[data-param=quantity]").select_option("stable_rank")
    assert figure.locator(".chart").is_visible()
    assert points(page, figure)
    assert page.errors == []


def test_the_choice_survives_another_theme(explorer):
    page, figure = explorer
    figure.locator("input[data-run]").first.uncheck()
    before = points(page, figure)
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(4 * PAUSE)
    assert len(points(page, figure)) == len(before)
    assert page.errors == []


@pytest.mark.parametrize("name", ["figure-explorer", "figure-stable-rank", "figure-base-overlap"])
def test_a_figure_is_saved_as_drawing_picture_and_table(explorer, name, tmp_path):
    """By keyboard: an SVG that parses and holds the legend, a PNG, a CSV with the table's rows."""
    page, _ = explorer
    figure = page.locator(f"#{name}")
    files = {}
    for kind in ("SVG", "PNG", "CSV"):
        button = figure.get_by_role("button", name=f"Save as {kind}")
        button.focus()
        with page.expect_download() as download:
            page.keyboard.press("Enter")
        files[kind] = tmp_path / download.value.suggested_filename
        assert files[kind].name == f"gonio-{name}.{kind.lower()}"
        download.value.save_as(files[kind])
    root = ElementTree.parse(files["SVG"]).getroot()
    assert root.find(f"{SVG}title").text == figure.locator(".figure-title").inner_text()
    words = [each.text for each in root.iter(f"{SVG}text")]
    for entry in figure.locator(".legend .key").all():
        is_drawn = entry.locator("input:not(:checked)").count() == 0  # a run that was not chosen
        assert (entry.inner_text().strip() in words) == is_drawn
    assert files["PNG"].read_bytes().startswith(b"\x89PNG")
    with files["CSV"].open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert len(rows) == figure.locator("details.numbers tr").count()
    assert len({len(row) for row in rows}) == 1
    assert page.errors == []
