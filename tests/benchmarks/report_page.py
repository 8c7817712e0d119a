"""How fast the report opens in a browser with many slow images, and how long its list and its pictures take to write.

    python tests/benchmarks/report_page.py [--images 10000] [--levels 4] [--side 64] [--repeats 5]

Opens report.html from disk in headless Chromium (LATEBLOOM_CHROMIUM names another one than Debian's), each time in a
new browser: milliseconds until the first paint, until the load event, until the list shows its first row, until a word
typed into its search has its answer, and until the end of the list is drawn after a jump there.
"""

import argparse
import dataclasses
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, sync_playwright

sys.path.insert(0, str(Path(__file__).parents[1] / "support"))
from listed import listed
from reports import NOTHING, report

from latebloom.flows.report.listing import Listing
from latebloom.flows.report.page import write_report

FACTS = """() => new Promise(done => requestAnimationFrame(() => setTimeout(() => {
  const [load] = performance.getEntriesByType("navigation");
  const paint = performance.getEntriesByName("first-contentful-paint")[0];
  done({paint: paint ? paint.startTime : NaN, load: load.loadEventEnd, nodes: document.querySelectorAll("*").length,
        rows: document.querySelectorAll("#slow-list tbody th").length});
})))"""
# From the change until the browser has painted what it led to.
PAINTED = "await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));"
SEARCH = f"""async () => {{
  const find = document.querySelector("#slow-list input"), start = performance.now();
  find.value = "fox 99"; find.dispatchEvent(new Event("input")); {PAINTED}
  const took = performance.now() - start; find.value = ""; find.dispatchEvent(new Event("input")); return took;
}}"""
JUMP = f"""async () => {{
  const view = document.querySelector("#slow-list .window"), start = performance.now();
  view.scrollTop = view.scrollHeight; {PAINTED} return performance.now() - start;
}}"""


def noisy(images: int, levels: int, side: int) -> Listing:
    """A list whose pictures are noise: the largest files that pictures of this size make."""
    rng = np.random.default_rng(0)

    def pixels(start: int, end: int) -> np.ndarray:
        return rng.integers(0, 256, (end - start, side, side, 3)).astype(np.uint8)

    found = listed(images, levels=levels, side=side, channels=3)
    return dataclasses.replace(found, pictures=pixels, variant_pictures=pixels)


def measured(page: Page, file: Path) -> dict[str, float]:
    page.goto(file.as_uri())
    page.wait_for_selector("#slow-list tbody th")
    facts: dict[str, float] = page.evaluate(FACTS)
    return facts | {"search": page.evaluate(SEARCH), "jump": page.evaluate(JUMP)}


def main() -> None:
    parser = argparse.ArgumentParser()
    for name, default in (("images", 10_000), ("levels", 4), ("side", 64), ("repeats", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    chromium = os.environ.get("LATEBLOOM_CHROMIUM", "/usr/bin/chromium")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        start = time.perf_counter()
        found = noisy(given.images, given.levels, given.side)
        file = write_report(Path(folder), report(), dataclasses.replace(NOTHING, listing=found))
        took = time.perf_counter() - start
        pictures = list((Path(folder) / "report").iterdir())
        size = sum(picture.stat().st_size for picture in pictures)
        print(f"{given.images:,} images, {given.images * given.levels:,} variants of {given.side} pixels")
        print(f"written in {took:.1f} s: page {file.stat().st_size / 1e6:.2f} MB,", end=" ")
        print(f"{len(pictures)} files of pictures {size / 1e6:.0f} MB")
        runs = []
        for _ in range(given.repeats + 1):  # the first warms the disk cache up
            browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            runs.append(measured(browser.new_page(viewport={"width": 1280, "height": 900}), file))
            browser.close()
        for name in runs[0]:
            values = [run[name] for run in runs[1:]]
            print(f"{name:7} {np.mean(values):8.0f} ({min(values):.0f} to {max(values):.0f})")


if __name__ == "__main__":
    main()
