"""The report in a browser, where one is there: no errors, no requests, keys, contrast, and two widths.

It needs Debian's chromium (or Chrome) and the Python package playwright: `make pages` has them in its environment.
"""

from __future__ import annotations

import shutil

import pytest
import torch
from torch import nn

import tiledse as ts
from tests.cli.known import Gate
from tests.report.test_page import images  # noqa: F401  # a fixture

playwright = pytest.importorskip("playwright.sync_api", reason="`make pages` installs it")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no chromium here")]

# Contrast of each text with what lies behind it (WCAG 2.2, 1.4.3), by the formula of its definition of luminance.
CONTRAST = """() => {
  const rgba = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgba(getComputedStyle(e).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || !element.checkVisibility()) continue;
    if (element.closest("script, style, .sr, .skip")) continue;
    const style = getComputedStyle(element);
    const ink = rgba(element.closest("svg") ? style.fill : style.color);
    const [high, low] = [light(ink), light(behind(element))].sort((a, b) => b - a);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.66 && style.fontWeight >= 700);
    const ratio = (high + 0.05) / (low + 0.05);
    const text = walker.currentNode.textContent.trim().slice(0, 40);
    if (ratio < (large ? 3 : 4.5)) found.push(`${ratio.toFixed(2)} ${text}`);
  }
  return found;
}"""


class Many(nn.Module):
    """More blocks than a narrow page has room for."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), *(Gate() for _ in range(14)))

    def forward(self, x):
        return self.net(x).mean((2, 3))


@pytest.fixture(scope="module")
def page_file(tmp_path_factory, images):  # noqa: F811
    file = tmp_path_factory.mktemp("page") / "report.html"
    network = ts.open(Many(), (3, 20, 16))
    level = {"drop": 0.5, "drop_ci95": [0.1, 0.9], "divergence": 0.1, "calibrated": False}
    points = [
        {"kind": kind, "tiles": [tile], "buffer": buffer, **level}
        for kind, tile, buffer in (("uniform", "7xW", 1792), ("front", "1xW", 256), ("front", "3xW", 768))
    ]
    search = {"metric": "top1", "n": 24, "points": points, "chosen": points[2]}
    ts.report(network, {"mine": network.plan.with_tile("2xW")}, images, search=search, output=file)
    return file


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(params=[(1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")], ids=str)
def shown(request, chromium, page_file):
    """The page, with all that it said and asked for."""
    width, scheme = request.param
    context = chromium.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    page.said, page.asked = [], []
    page.on("console", lambda message: page.said.append(message.text))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("request", lambda asked: page.asked.append(asked.url))
    page.goto(page_file.as_uri())
    yield page
    assert page.said == []
    assert [url for url in page.asked if not url.startswith(("data:", page_file.as_uri()))] == []
    context.close()


def test_it_fits_and_can_be_read(shown):
    assert shown.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert shown.evaluate(CONTRAST) == []
    assert shown.locator("section").count() == 8
    for name in ("#blocks", "#totals", "#timeline", "#accuracy", "#search", "#misses", "#made"):
        assert shown.locator(f"{name} h2").is_visible()
    # Nothing is cut: what is wider than the page scrolls in its own box, which keys reach.
    for box in shown.locator(".scroll").all():
        assert box.get_attribute("tabindex") == "0"


def test_it_is_used_with_keys_alone(shown):
    shown.keyboard.press("Tab")
    assert shown.evaluate("document.activeElement.textContent") == "Skip to the report"
    for _ in range(40):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.className") == "block":
            break
    shown.keyboard.press("Enter")
    assert shown.locator(".detail:visible h3").inner_text() == "net.1"
    for _ in range(40):
        shown.keyboard.press("Tab")
        if shown.evaluate("document.activeElement.id") == "clock":
            break
    clock, before = shown.locator("#clock"), shown.locator("#now").inner_text()
    at = int(clock.input_value())
    left = shown.locator("#left .cursor").first.get_attribute("x1")
    shown.keyboard.press("ArrowRight")
    assert int(clock.input_value()) == at + 1
    assert float(shown.locator("#left .cursor").first.get_attribute("x1")) == float(left) + 1
    assert "stages work" in shown.locator("#right .readout").inner_text()
    shown.keyboard.press("End")
    assert shown.locator("#now").inner_text() != before
    assert "0 stages work" in shown.locator("#right .readout").inner_text()


def test_settings_change_what_is_shown(shown):
    cell = shown.locator("tfoot .bytes").first
    one = cell.inner_text()
    shown.select_option("#dtype", "4")
    assert float(cell.inner_text().split()[0]) == pytest.approx(4 * float(one.split()[0]), rel=0.01)
    shown.select_option("#beside", "1")
    assert shown.locator("#right h3").inner_text().startswith("7xW: ")
    assert shown.locator(".beside-name").inner_text() == "with 7xW"
    share = shown.locator(".block").first.evaluate("e => getComputedStyle(e).getPropertyValue('--share')")
    assert float(share) == pytest.approx(7 / 20, abs=1e-3)
    shade = "getComputedStyle(document.body).backgroundColor"
    before = shown.evaluate(shade)
    shown.click("#theme")
    assert shown.evaluate(shade) != before
    assert shown.evaluate(CONTRAST) == []
    shown.click("#play")
    shown.wait_for_timeout(120)
    shown.click("#play")
    shown.emulate_media(media="print")
    assert not shown.locator(".bar").is_visible()
    assert shown.locator("#totals table").is_visible()
