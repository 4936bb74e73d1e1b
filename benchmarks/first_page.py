"""How much the first page of a site loads, and how soon it can be used, opened from disk.

Run on a built site, on a quiet machine:

    .venv/bin/python benchmarks/first_page.py gonio-demo/site

Checks that nothing but files of the site is asked for, then prints the bytes of every file that
the page loads and the medians of several visits: until the page answers (DOM interactive, and the
deferred scripts have run) and until its last chart is drawn. Each visit has a cache of its own.
"""

import argparse
import shutil
import statistics
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

__all__ = ["main"]

LIMIT_BYTES = 1_000_000
LIMIT_MS = 1000
TIMES = """() => {
  const entry = performance.getEntriesByType("navigation")[0];
  return [entry.domInteractive, entry.domContentLoadedEventEnd, performance.now()];
}"""


def main() -> int:
    """Measure, print, and fail when a limit is broken."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("site", type=Path, help="folder of a built site")
    parser.add_argument("--page", default="index.html")
    parser.add_argument("--visits", type=int, default=7)
    options = parser.parse_args()
    page_path = (options.site / options.page).resolve()
    browser_path = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
    if browser_path is None or not page_path.is_file():
        print(f"needs Chromium and {page_path}")
        return 2
    asked: list[str] = []
    times = []
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for _ in range(options.visits):
            page = browser.new_context().new_page()
            page.on("request", lambda request: asked.append(request.url))
            page.goto(page_path.as_uri(), wait_until="domcontentloaded")
            has_charts = page.locator(".chart").count() > 0
            if has_charts:
                page.wait_for_function("document.documentElement.dataset.charts === 'ready'")
            times.append(page.evaluate(TIMES))
            page.close()
        browser.close()
    folder = page_path.parent.as_uri()
    outside = {url for url in asked if not url.startswith((folder, "data:"))}
    if outside:
        print("asked for", *sorted(outside))
        return 1
    names = sorted({url.removeprefix(folder + "/") for url in asked if url.startswith(folder)})
    sizes = {name: (page_path.parent / name).stat().st_size for name in names}
    for name, size in sizes.items():
        print(f"{size:>10,} bytes  {name}")
    total = sum(sizes.values())
    interactive, usable, drawn = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{total:>10,} bytes  in all (limit {LIMIT_BYTES:,})")
    print(f"{interactive:>10.0f} ms     parsed, {usable:.0f} ms usable (limit {LIMIT_MS})")
    print(f"{drawn:>10.0f} ms     last chart drawn" if has_charts else "no charts")
    return int(total >= LIMIT_BYTES or usable >= LIMIT_MS)


if __name__ == "__main__":
    sys.exit(main())
