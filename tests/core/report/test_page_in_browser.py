"""The page in headless Chromium, at the width of a phone and of a desktop."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from core.report.measured import write_everything
from fourfold.report import collect, write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
#: Measures the page; appended to a copy of it, as the page itself has no script. The copy stands in a frame of the
#: wanted width, as a browser's own window is never narrower than 500 pixels; what it finds is copied to the outside.
PROBE = """<script>
const root = document.documentElement, body = document.body;
const plots = [...document.querySelectorAll("svg")].map(svg => ({
  name: svg.getAttribute("aria-label"),
  marks: [...svg.querySelectorAll(".mark")].filter(m => m.getBoundingClientRect().width > 0).length,
  outside: [...svg.querySelectorAll("text, .mark")].filter(e => {
    const a = e.getBoundingClientRect(), b = svg.getBoundingClientRect();
    return a.left < b.left - 2 || a.right > b.right + 2;
  }).length,
  text: Math.min(...[...svg.querySelectorAll("text")].map(t => t.getBoundingClientRect().height)),
}));
body.setAttribute("data-probe", JSON.stringify({
  width: window.innerWidth, scroll: root.scrollWidth, client: root.clientWidth, plots: plots,
  ink: getComputedStyle(body).color, paper: getComputedStyle(body).backgroundColor,
}));
</script>"""
FRAME = """<!doctype html><meta charset="utf-8"><body style="margin: 0">
<iframe style="border: 0; width: {width}px; height: 4000px" srcdoc="{inner}"></iframe><script>
window.onload = () => document.body.setAttribute(
  "data-probe", document.querySelector("iframe").contentDocument.body.getAttribute("data-probe"));
</script>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here (Debian: apt-get install chromium)")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("page") / "run"
    write_everything(folder)
    write_report(collect(folder), folder / "report")
    return folder / "report" / "report.html"


def probe(page: Path, width: int, *flags: str) -> tuple[dict[str, Any], str]:
    """What the probe measured, and everything the browser's console said."""
    inner = html.escape(page.read_text(encoding="utf-8").replace("</body>", f"{PROBE}</body>"), quote=True)
    copy = page.with_name(f"probed-{width}.html")
    copy.write_text(FRAME.format(width=width, inner=inner), encoding="utf-8")
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,4000", *flags]
    command += [f"--user-data-dir={page.parent / f'profile-{width}'}", "--enable-logging=stderr", "--dump-dom"]
    done = subprocess.run([*command, copy.as_uri()], capture_output=True, text=True, check=True, timeout=120)
    match = re.search(r'<body[^>]*? data-probe="([^"]*)"', done.stdout)
    assert match, done.stderr[-2000:]
    return json.loads(html.unescape(match[1])), "\n".join(x for x in done.stderr.splitlines() if "CONSOLE" in x)


@pytest.mark.parametrize("width", [390, 1280])
def test_no_sideways_scrolling_no_errors_and_marks_in_every_plot(page: Path, width: int) -> None:
    found, console = probe(page, width)
    assert found["width"] == width
    assert found["scroll"] <= found["client"]
    assert console == ""
    assert len(found["plots"]) >= 9
    for plot in found["plots"]:
        assert plot["marks"] > 0, plot
        assert plot["outside"] == 0, plot
        assert plot["text"] >= 8, plot


def test_dark_where_the_reader_prefers_it(page: Path) -> None:
    light, _ = probe(page, 801)
    dark, _ = probe(page, 802, "--blink-settings=preferredColorScheme=0")
    assert light["paper"] == "rgb(255, 255, 255)"
    assert dark["paper"] == "rgb(13, 17, 23)"
    assert dark["ink"] != light["ink"]


def test_the_probe_sees_what_it_is_there_to_see(page: Path) -> None:
    """Planted: an element wider than a phone, a plot without marks, an error of the console."""
    fault = (
        '<div style="width: 900px">wide</div><svg aria-label="empty"><text>only text</text></svg>'
        "<script>console.error('planted')</script></body>"
    )
    planted = page.with_name("planted.html")
    planted.write_text(page.read_text(encoding="utf-8").replace("</body>", fault), encoding="utf-8")
    found, console = probe(planted, 391)
    assert found["scroll"] > found["client"]
    assert [plot["name"] for plot in found["plots"] if not plot["marks"]] == ["empty"]
    assert "planted" in console
