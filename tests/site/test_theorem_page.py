"""Cards, index, status table, dependencies and cross-links, as data and in a real browser."""

import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from gonio.site import build_site
from gonio.site.collection import collect
from gonio.site.pages import COMMANDS, make_pages
from gonio.site.reference_pages import glossary_page, methods_page
from gonio.site.statement_map import dependency_graph
from gonio.site.statements import SOURCE_WORDS
from gonio.site.status_export import STATUS_FILE
from gonio.theorems import load_catalogue, load_families
from gonio.theorems.status_file import read_status_file
from gonio.theorems.tables import locked_proofs

ANCHORS = Path(__file__).with_name("anchors.txt")


@pytest.fixture(scope="module")
def entries():
    return {entry.name: entry for entry in load_catalogue()}


@pytest.fixture(scope="module")
def context(records):
    """What the templates are given for the full site."""
    return make_pages(collect(records), load_families())


def article(site, name):
    """The text of one card."""
    text = (site / "theorems.html").read_text(encoding="utf-8")
    return text.split(f'id="theorem-{name}"')[1].split("</article>")[0]


def hrefs(text):
    return re.findall(r'href="([^"]+)"', text)


@pytest.mark.parametrize("folder", ["site", "empty_site"])
def test_anchors_are_never_lost(folder, request, read):
    """Others link to these, whatever the records; a line leaves the list only with its name."""
    pages = read.parse(request.getfixturevalue(folder))
    lost = []
    for line in ANCHORS.read_text(encoding="utf-8").split():
        page, _, anchor = line.partition("#")
        if anchor not in pages[page].ids:
            lost.append(line)
    assert lost == []


def test_every_statement_is_among_the_anchors(entries):
    """So that the list grows with the catalogue."""
    lines = set(ANCHORS.read_text(encoding="utf-8").split())
    assert {f"theorems.html#theorem-{name}" for name in entries} <= lines
    errata = {name for name, entry in entries.items() if entry.erratum is not None}
    assert {f"errata.html#erratum-{name}" for name in errata} <= lines


def test_both_words_stand_on_the_card(site, entries):
    """Ours computed, the source's as the source spells it, and a filter for either."""
    for name, entry in entries.items():
        head = article(site, name).split("</header>")[0]
        assert 'class="chip s-' in head
        if entry.source == "gonio":
            assert "theirs" not in head.split(">", 1)[1]
        else:
            assert f'<span class="chip theirs">{entry.source}: {entry.source_status}</span>' in head
            assert f'data-theirs="{entry.source_status}"' in head
            assert entry.source_status in SOURCE_WORDS


def test_the_card_names_every_proof_and_axiom(site, entries):
    proofs = locked_proofs()
    for name, entry in entries.items():
        text = article(site, name)
        for declared in entry.declarations:
            proof = proofs[declared]
            assert f"<code>{proof.name}</code>, <code>{proof.file}</code> line {proof.line}" in text
            assert all(f"<code>{axiom}</code>" in text for axiom in proof.axioms)
        assert ("As the prover states it" in text) == bool(entry.declarations)


def test_withdrawn_names_say_where_they_went(site, entries):
    gone = [entry for entry in entries.values() if entry.replaced_by]
    assert gone
    listed = (site / "theorems.html").read_text(encoding="utf-8").split('id="withdrawn"')[1]
    for entry in gone:
        targets = {f"theorems.html#theorem-{name}" for name in entry.replaced_by}
        assert targets <= set(hrefs(article(site, entry.name)))
        assert targets <= set(hrefs(listed))


def test_the_status_table_holds_every_statement_and_the_counts(site, entries, context):
    text = (site / "theorems.html").read_text(encoding="utf-8")
    table = text.split('id="status-table"')[1].split("</section>")[0]
    rows = re.findall(r'<tr id="status-(\w+)">(.*?)</tr>', table, re.DOTALL)
    statuses = {card.entry.name: card.status for card in context["theorems.html"]["cards"]}
    assert [name for name, _ in rows] == list(entries)
    for name, row in rows:
        assert f">{statuses[name]}</span>" in row
        assert ("errata.html#erratum-" in row) == (entries[name].erratum is not None)
    last = re.findall(r'<tr><th scope="row">all</th>(.*?)</tr>', table)[0]
    numbers = [int(number) for number in re.findall(r">(\d+)<", last)]
    assert sum(numbers[:-1]) == numbers[-1] == len(entries)
    for heading in ("schema", "commit", "checks of", "their sources"):
        assert f"<dt>{heading}</dt>" in table


def test_the_status_file_is_one_that_can_be_built_from(site, entries, read, tmp_path):
    """Same words, same cards; and a commit that is given is named."""
    found = read_status_file(site / STATUS_FILE)
    assert [row.name for row in found.theorems] == list(entries)
    assert found.counts["statements"] == len(entries)
    again = build_site([site / STATUS_FILE], tmp_path / "again", commit="0123abc").parent
    assert (again / STATUS_FILE).read_bytes() == (site / STATUS_FILE).read_bytes()
    for name in entries:
        statuses = [re.findall(r'data-status="([\w-]+)"', article(s, name)) for s in (site, again)]
        assert statuses[0] == statuses[1]
    assert "0123abc" in " ".join(read.parse(again)["theorems.html"].words)


def test_proofs_come_from_the_status_file(site, read, tmp_path):
    """A site built from a file of other proofs shows those, not the lock's."""
    content = json.loads((site / STATUS_FILE).read_text(encoding="utf-8"))
    row = next(row for row in content["theorems"] if row["declarations"])
    row["declarations"][0] |= {"file": "theories/Elsewhere.v", "line": 4711}
    content["checks"] = None
    path = tmp_path / "statuses.json"
    path.write_text(json.dumps(content))
    built = build_site([path], tmp_path / "out").parent
    assert "<code>theories/Elsewhere.v</code> line 4711" in article(built, row["name"])
    assert read.broken_links(built, read.parse(built)) == []


def test_the_graph_has_every_dependency_once(entries, context, site):
    """Below what it follows from, one line each, and every statement in it or listed apart."""
    graph = dependency_graph(context["theorems.html"]["cards"])
    place = {card.entry.name: number for number, card in enumerate(graph.rows)}
    wanted = {(p, name) for name, entry in entries.items() for p in entry.prerequisites}
    assert {(arc.source, arc.target) for arc in graph.arcs} == wanted
    assert len(graph.arcs) == len(wanted)
    assert all(place[before] < place[after] for before, after in wanted)
    assert set(place) | {card.entry.name for card in graph.alone} == set(entries)
    text = (site / "theorems.html").read_text(encoding="utf-8")
    drawn = text.split('class="arcs"')[1].split("</ol>")[0]
    assert hrefs(drawn) == [f"#theorem-{name}" for name in place]


def test_lines_of_the_graph_do_not_run_into_each_other(context):
    """No two dependencies share a stretch of one rail."""
    graph = dependency_graph(context["theorems.html"]["cards"])
    rails: dict[str, list[tuple[float, float]]] = {}
    for arc in graph.arcs:
        right, start, rail, end, back = re.findall(r"-?[\d.]+", arc.path)
        assert right == back
        assert 0 < float(rail) < graph.width
        rails.setdefault(rail, []).append((float(start), float(end)))
    for spans in rails.values():
        spans.sort()
        assert all(before[1] < after[0] for before, after in pairwise(spans))


def test_the_matrix_links_both_ways(context, site):
    """A mark for each pair, and from every figure's caption back to its column."""
    links = context["theorems.html"]["links"]
    marked = {
        (card.entry.name, column.name)
        for card, marks in links.rows
        for column, is_marked in zip(links.columns, marks, strict=True)
        if is_marked
    }
    text = (site / "theorems.html").read_text(encoding="utf-8")
    matrix = text.split('id="cross-links"')[1].split("</table>")[0]
    said = 0
    for page in ("adapters.html", "caches.html"):
        html = (site / page).read_text(encoding="utf-8")
        for section in context[page]["sections"]:
            for figure in section.figures:
                for theorem in figure.theorems:
                    assert (theorem, figure.name) in marked
                    said += 1
                back = f'href="theorems.html#links-figure-{figure.name}"'
                assert (back in html) == bool(figure.theorems)
                if figure.theorems:
                    assert f'href="{page}#figure-{figure.name}"' in matrix
                    assert f'id="links-figure-{figure.name}"' in matrix
    assert said > 10
    undrawn = [column.name for column in links.columns if not column.page]
    assert undrawn  # the records of these tests lack certificates
    assert all(f"#figure-{name}" not in matrix for name in undrawn)


def test_errata_have_a_place_of_their_own(site, entries, read):
    page = read.parse(site)["errata.html"]
    wanted = {f"erratum-{n}" for n, entry in entries.items() if entry.erratum is not None}
    assert {name for name in page.ids if name.startswith("erratum-")} == wanted
    words = " ".join("".join(page.words).split())
    assert all(" ".join(e.erratum.split()) in words for e in entries.values() if e.erratum)


def test_glossary_and_methods_are_whole():
    """Every reference leads to a term, formulas are MathML, every kind of record is explained."""
    terms = glossary_page()["terms"]
    names = [term["term"] for term in terms]
    assert len(names) == len(set(names)) > 30
    assert {other for term in terms for other in term["see"]} <= set(names)
    assert all(term["formula"].startswith("<math") for term in terms if term["latex"])
    protocols = methods_page(COMMANDS, dict.fromkeys(COMMANDS, "x"))["protocols"]
    assert {item["kind"]: item["meaning"] for item in protocols if not item["meaning"]} == {}


@pytest.fixture
def theorems(browser, site):
    """Opens the theorem page with an address behind its name."""
    pages = []

    def open_it(address="", width=1280):
        page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme="light")
        pages.append(page)
        page.errors = []
        page.on("pageerror", lambda error: page.errors.append(str(error)))
        page.on("console", lambda m: m.type == "error" and page.errors.append(m.text))
        page.goto((site / "theorems.html").as_uri() + address)
        return page

    yield open_it
    for page in pages:
        assert page.errors == []
        page.close()


@pytest.mark.browser
def test_an_address_can_carry_a_filter(theorems):
    """The counts of the home page lead to the filtered cards; nonsense is ignored."""
    page = theorems("?status=refuted&family=nonsense#statements")
    shown = page.locator(".card:visible")
    assert set(shown.evaluate_all("all => all.map(c => c.dataset.status)")) == {"refuted"}
    page.click("button[type=reset]")
    page.wait_for_function("!document.querySelector('.card[hidden]')")
    page.select_option("#filter-theirs", "axiom")
    assert set(shown.evaluate_all("all => all.map(c => c.dataset.theirs)")) == {"axiom"}


@pytest.mark.browser
@pytest.mark.parametrize("width", [360, 1600])
def test_the_graph_lights_up_by_keyboard(width, theorems, entries):
    """Focus shows what a statement follows from; Enter leads to its card; names stay readable."""
    page = theorems(width=width)
    name = next(n for n, e in entries.items() if len(e.prerequisites) > 1)
    link = page.locator(f"#node-{name} a")
    link.focus()
    lit = page.eval_on_selector_all(".arcs path.near", "all => all.map(p => p.dataset.from)")
    assert set(entries[name].prerequisites) <= set(lit)
    assert page.locator(f"#node-{entries[name].prerequisites[0]}.near").count() == 1
    boxes = page.eval_on_selector_all(
        ".arcs li",
        "all => all.map(li => [li.clientHeight, li.firstElementChild.nextElementSibling"
        ".scrollHeight, li.getBoundingClientRect().right, innerWidth])",
    )
    assert all(text <= row for row, text, _, _ in boxes)
    assert all(row >= 24 and right <= wide for row, _, right, wide in boxes)
    link.press("Enter")
    assert page.evaluate("location.hash") == f"#theorem-{name}"
    page.mouse.move(0, 0)
    page.locator("#filter-text").focus()
    assert page.locator(".arcs path.near").count() == 0


@pytest.mark.browser
def test_the_theme_is_chosen_and_kept(theorems, site):
    """Dark in a light system, after a reload and on another page, and back."""
    page = theorems()
    paper = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(paper)
    page.locator("#theme").focus()
    page.keyboard.press("d")
    assert page.input_value("#theme") == "dark"
    dark = page.evaluate(paper)
    assert dark != light
    page.goto((site / "methods.html").as_uri())
    assert page.evaluate(paper) == dark
    assert page.input_value("#theme") == "dark"
    page.select_option("#theme", "light")
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == light
    page.select_option("#theme", "")
    assert page.evaluate(paper) == dark
