"""WCAG 2.2 AA: axe, contrast, names, headings, landmarks, focus, targets, motion."""

import pytest

from gonio.site.environment import PAGES

pytestmark = pytest.mark.browser

NAMES = tuple(name.removesuffix(".html") for name in PAGES)


@pytest.mark.parametrize("name", NAMES)
def test_a_page_can_be_read_by_everybody(name, open_page):
    """Structure once, contrast in both schemes."""
    page = open_page(name, width=360)
    assert page.evaluate(STRUCTURE) == []
    assert page.evaluate(CONTRAST) == []
    assert open_page(name, width=360, scheme="dark").evaluate(CONTRAST) == []


@pytest.mark.parametrize("name", ["index", "methods"])
def test_axe_finds_nothing_on_short_pages(name, open_page, audit):
    assert audit(open_page(name), everything=True) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "width"), [("light", 1600), ("dark", 1600), ("light", 360), ("dark", 360)]
)
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_serious(name, scheme, width, open_page, audit, real_site):
    """On measured records, with every folded part open."""
    page = open_page(name, width=width, scheme=scheme, folder=real_site)
    page.evaluate("document.querySelectorAll('details').forEach(d => { d.open = true })")
    assert audit(page) == []
    assert page.errors == []


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_axe_finds_nothing_without_records(name, open_page, audit, empty_site):
    assert audit(open_page(name, folder=empty_site), everything=True) == []


def test_what_is_wrong_is_found(open_page, audit):
    """The checks can fail: a page made worse is refused by each of them."""
    page = open_page("methods")
    page.evaluate(
        "document.querySelector('main').insertAdjacentHTML('beforeend',"
        '\'<h5>x</h5><p style="color:#999">pale</p><img src="data:,"><table><tr><td>1</table>\')'
    )
    found = " ".join(page.evaluate(STRUCTURE))
    for problem in ("h5 follows", "table without", "img without"):
        assert problem in found
    assert page.evaluate(CONTRAST)
    assert any("image-alt" in problem for problem in audit(page))


@pytest.mark.parametrize("name", ["index", "theorems"])
def test_the_focus_can_be_seen(name, open_page):
    """Each of the first stops is on the screen and outlined, two pixels or more."""
    page = open_page(name)
    seen = []
    for _ in range(25):
        page.keyboard.press("Tab")
        seen.append(page.evaluate(FOCUS))
    assert [problem for problem in seen if problem] == []


def test_nothing_moves_where_motion_is_unwelcome(open_page):
    page = open_page("index", reduced_motion="reduce")
    assert page.evaluate(MOVING) == []


FOCUS = """() => {
  const node = document.activeElement;
  const style = getComputedStyle(node), box = node.getBoundingClientRect();
  const name = `${node.tagName} ${node.id || node.textContent.slice(0, 30)}`;
  if (node === document.body) return 'the focus is lost';
  if (style.outlineStyle === 'none' || parseFloat(style.outlineWidth) < 2)
    return `${name} is not outlined`;
  if (box.bottom <= 0 || box.top >= innerHeight || !box.width) return `${name} is out of sight`;
  return '';
}"""

MOVING = """() => [...document.querySelectorAll('*')].filter(node => {
  const style = getComputedStyle(node);
  return [style.transitionDuration, style.animationDuration]
    .some(all => all.split(',').some(one => parseFloat(one) > 0.01)) ||
    style.scrollBehavior === 'smooth';
}).map(node => node.tagName)"""

# Problems of structure. A target may be smaller than 24 px in a line of text (WCAG 2.5.8).
STRUCTURE = """() => {
  const problems = [];
  const all = selector => [...document.querySelectorAll(selector)];
  const visible = node => node.getClientRects().length > 0;
  if (!document.documentElement.lang) problems.push('no language');
  if (!document.title.trim()) problems.push('no title');
  for (const one of ['main', 'header', 'footer', 'h1', 'nav[aria-label="Pages"]'])
    if (all(one).length !== 1 && !(one === 'header' && all('body > header').length === 1))
      problems.push(`${all(one).length} times ${one}`);
  let last = 0;
  for (const heading of all('h1, h2, h3, h4, h5, h6')) {
    const level = Number(heading.tagName[1]);
    if (level > last + 1) problems.push(`h${level} follows h${last}: ${heading.textContent}`);
    last = level;
  }
  const named = node => node.getAttribute('aria-label') || node.getAttribute('aria-labelledby')
    || node.querySelector?.('title, caption');
  for (const table of all('table')) {
    const label = named(table) || named(table.closest('[role=region]') || table);
    const heads = table.querySelectorAll('th[scope]').length;
    if (!label || !heads) problems.push(`table without name or heads: ${table.innerText}`);
  }
  for (const image of all('img')) if (!image.hasAttribute('alt')) problems.push('img without alt');
  for (const chart of all('.chart, svg:not(.chart svg)'))
    if (!named(chart) && !chart.closest('[aria-hidden=true], [aria-label]'))
      problems.push(`drawing without words: ${chart.outerHTML.slice(0, 80)}`);
  for (const field of all('input, select'))
    if (visible(field) && !field.labels.length && !named(field))
      problems.push(`field without label: ${field.outerHTML.slice(0, 80)}`);
  for (const node of all('a[href], button, summary, input, select')) {
    if (!visible(node) || node.matches('.skip')) continue;
    const box = (node.closest('label') || node).getBoundingClientRect();
    const inline = getComputedStyle(node).display === 'inline' || node.closest('p, h3, h4, td, th');
    if (!inline && (box.width < 23.9 || box.height < 23.9))
      problems.push(`target ${box.width.toFixed()} by ${box.height.toFixed()}: ` +
        node.outerHTML.slice(0, 80));
    if (!(node.textContent.trim() || named(node) || node.labels?.length || node.value))
      problems.push(`no name: ${node.outerHTML.slice(0, 80)}`);
  }
  if (all('[tabindex]').some(node => node.tabIndex > 0)) problems.push('positive tabindex');
  return problems;
}"""

# Texts under 4.5 to 1 on the color behind them.
CONTRAST = """() => {
  const context = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const known = new Map();
  const rgb = color => {
    if (!known.has(color)) {
      context.clearRect(0, 0, 1, 1);
      context.fillStyle = color;
      context.fillRect(0, 0, 1, 1);
      known.set(color, [...context.getImageData(0, 0, 1, 1).data]);
    }
    return known.get(color);
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
