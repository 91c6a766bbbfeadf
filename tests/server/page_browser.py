"""A headless Chromium for the tests of the page, and what is looked for in every view."""

from __future__ import annotations

import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
WIDE, PHONE = {"width": 1280, "height": 860}, {"width": 390, "height": 844}
# Text nodes that are seen, the colour they have and the colour behind them.
CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgba = (colour) => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return Array.from(canvas.getImageData(0, 0, 1, 1).data, (v, i) => (i < 3 ? v : v / 255));
  };
  const over = (top, under) => under.map((v, i) => (i < 3 ? top[i] * top[3] + v * (1 - top[3]) : 1));
  const behind = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) layers.push(rgba(getComputedStyle(at).backgroundColor));
    return layers.reverse().reduce((under, top) => over(top, under), [255, 255, 255, 1]);
  };
  const light = (colour) => colour.slice(0, 3).map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), node = walker.currentNode.parentElement;
    if (!text || !node.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (node.closest(".unseen, option, noscript, script, :disabled, .skip")) continue;
    const style = getComputedStyle(node), back = behind(node);
    const front = over(rgba(node instanceof SVGElement ? style.fill : style.color), back);
    const [a, b] = [light(front), light(back)].sort((x, y) => y - x);
    found.push([text.slice(0, 60), (a + 0.05) / (b + 0.05)]);
  }
  return found;
}"""
# Controls without a name, and names that stand twice as an id.
UNNAMED = """() => {
  const ids = [...document.querySelectorAll("[id]")].map((n) => n.id);
  const bad = ids.filter((id, i) => ids.indexOf(id) !== i).map((id) => `twice: ${id}`);
  const controls = "button, a[href], input, select, textarea, iframe, summary, meter, progress";
  for (const node of document.querySelectorAll(controls)) {
    const named = node.getAttribute("aria-label") || node.getAttribute("title") || node.textContent.trim()
      || (node.labels && [...node.labels].some((label) => label.textContent.trim()));
    if (!named) bad.push(node.outerHTML.slice(0, 80));
  }
  return bad;
}"""


def chromium() -> str:
    """Its program. AFINA_CHROMIUM names another; with AFINA_REQUIRE_CHROMIUM its absence is a failure."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    found = os.environ.get("AFINA_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        from playwright.sync_api import sync_playwright

        with sync_playwright() as playwright:
            own = playwright.chromium.executable_path
        found = own if Path(own).is_file() else None
    if found is not None:
        return found
    reason = "no Chromium: install Debian's chromium, run `playwright install chromium`, or set AFINA_CHROMIUM"
    if os.environ.get("AFINA_REQUIRE_CHROMIUM"):
        pytest.fail(reason)
    pytest.skip(reason)


@dataclass
class Visit:
    """One tab. trouble: console errors, page errors and requests to other hosts."""

    page: Any
    url: str
    shots: Path
    name: str
    trouble: list[str] = field(default_factory=list[str])

    def go(self, view: str) -> None:
        self.page.goto(f"{self.url}/#/{view}")
        self.page.locator(f'[data-view="{view.split("?")[0].split("/")[0]}"]').wait_for()

    def shot(self, name: str, *, whole: bool = False) -> None:
        self.page.screenshot(path=self.shots / f"{self.name}-{name}.png", full_page=whole)

    def ask(self, question: str) -> None:
        done = self.page.locator(".answer.done")
        before = done.count()
        columns = self.page.locator(".pair select").count()
        self.page.fill(".composer textarea", question)
        self.page.click(".composer .primary")
        done.nth(before + columns - 1).wait_for(timeout=60_000)

    def check_errors(self, expected: int) -> None:
        """Refusals that the browser notes in its console, and nothing else."""
        assert len(self.trouble) == expected, self.trouble
        assert all("Failed to load resource" in line for line in self.trouble)
        self.trouble.clear()

    def check(self) -> int:
        """What holds in every view. How many texts were measured."""
        contrasts = self.page.evaluate(CONTRASTS)
        dim = [(text, round(ratio, 2)) for text, ratio in contrasts if ratio < 4.5]
        assert dim == []
        assert self.page.evaluate(UNNAMED) == []
        assert self.page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
        assert self.trouble == []
        return len(contrasts)


@contextmanager
def visiting(
    browser: Any, url: str, shots: Path, name: str, *, key: str | None, phone: bool = False, **options: Any
) -> Generator[Visit]:
    """A tab on the page, opened by its link. options: of the browser's context, as color_scheme and locale."""
    context = browser.new_context(viewport=PHONE if phone else WIDE, has_touch=phone, **options)
    page = context.new_page()
    page.set_default_timeout(20_000)
    visit = Visit(page, url, shots, name)
    page.on("pageerror", lambda error: visit.trouble.append(f"error: {error}"))
    page.on("console", lambda m: visit.trouble.append(f"console: {m.text}") if m.type in ("error", "warning") else None)
    page.on("request", lambda r: visit.trouble.append(f"elsewhere: {r.url}") if not r.url.startswith(url) else None)
    page.goto(f"{url}/#key={key}" if key else f"{url}/")
    try:
        yield visit
    finally:
        context.close()
