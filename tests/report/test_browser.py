"""The page in a real headless Chromium: it draws, sorts, filters, pins, and asks the network for nothing."""

import json
import re
import shutil
import subprocess

import pytest

from channelscope.report import html
from report.folders import tiny

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-component-update --disable-sync"
pytestmark = [pytest.mark.browser]

PROBE = """
<script>
window.problems = [];
window.addEventListener("error", (event) => problems.push(String(event.message)));
document.addEventListener("securitypolicyviolation", (event) => problems.push("blocked " + event.blockedURI));
</script>
"""
ACT = """
<script>
setTimeout(async () => {
  const wait = (ms) => new Promise((done) => setTimeout(done, ms));
  const found = {};
  const table = document.getElementById("table");
  const column = (i) => [...table.tBodies[0].rows].map((row) => row.cells[i].textContent);
  found.plots = document.querySelectorAll(".stages .plot .scatterlayer .point").length;
  found.lines = document.querySelectorAll("#alignment .scatterlayer .trace").length;
  found.rows = table.tBodies[0].rows.length;
  [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith("Input capture")).click();
  found.descending = column(2);
  [...table.tHead.rows[0].cells].find((cell) => cell.textContent.startsWith("Input capture")).click();
  found.ascending = column(2);
  const site = document.getElementById("site");
  site.value = "conv1";
  site.dispatchEvent(new Event("change"));
  await wait(300);
  document.querySelector(".stages .plot[data-stage=trained]").emit("plotly_click", { points: [{ customdata: 4 }] });
  await wait(300);
  found.pinned = document.getElementById("pinned").textContent;
  found.marked = [...document.querySelectorAll("tr.pin")].map((row) => row.cells[0].textContent + ":" + row.cells[1].textContent);
  found.sizes = [...document.querySelectorAll(".stages .plot")].map((plot) => plot.data[0].marker.size.filter((size) => size > 8).length);
  document.querySelector("tr.pin").click();
  await wait(300);
  found.unpinned = document.querySelectorAll("tr.pin").length;
  const filter = document.getElementById("filter");
  filter.value = "layer1.0.conv1:3";
  filter.dispatchEvent(new Event("input"));
  found.filtered = table.tBodies[0].rows.length;
  found.requests = performance.getEntriesByType("resource").map((entry) => entry.name);
  found.overflow = document.documentElement.scrollWidth - window.innerWidth;
  found.problems = problems;
  const out = document.createElement("pre");
  out.id = "found";
  out.textContent = JSON.stringify(found);
  document.body.append(out);
}, 500);
</script>
"""


def opened(page, folder, size="1280,2400"):
    text = page.read_text(encoding="utf-8").replace("<style>", PROBE + "<style>", 1).replace("</body>", ACT + "</body>", 1)
    probed = folder / "probed.html"
    probed.write_text(text, encoding="utf-8")
    command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={folder / 'profile'}", f"--window-size={size}"]
    command += ["--virtual-time-budget=15000", "--dump-dom", f"file://{probed}"]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
    return json.loads(
        re.search(r'<pre id="found">(.*?)</pre>', dom, re.DOTALL)[1].replace("&gt;", ">").replace("&lt;", "<").replace("&amp;", "&")
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    assert CHROMIUM, "these tests need Debian's chromium: make test-browser installs it"
    folder = tiny(tmp_path_factory.mktemp("browser"))
    return opened(html.write(folder), folder)


def test_it_opens_without_errors_or_requests(found):
    assert found["problems"] == []
    assert [name for name in found["requests"] if not name.startswith(("data:", "blob:"))] == []


def test_maps_and_curves_are_drawn(found):
    assert found["plots"] == 16  # two stages of the middle layer, eight channels each
    assert found["lines"] == 2
    assert found["rows"] == 14


def test_sorting_puts_undefined_values_last(found):
    for order, reverse in (("ascending", False), ("descending", True)):
        values = found[order]
        assert values[-1] == "undefined"
        numbers = [float(value) for value in values[:-1]]
        assert numbers == sorted(numbers, reverse=reverse)


def test_a_click_marks_the_channel_everywhere_and_again_releases_it(found):
    assert found["pinned"].startswith("conv1:4 · Rayleigh quotient") or found["pinned"].startswith("conv1:4 · Input capture")
    assert found["marked"] == ["conv1:4"]
    assert found["sizes"] == [1, 1]
    assert found["unpinned"] == 0


def test_the_filter_finds_one_channel(found):
    assert found["filtered"] == 1


def test_a_narrow_window_does_not_scroll_sideways(tmp_path):
    folder = tiny(tmp_path)
    assert opened(html.write(folder), folder, "500,2400")["overflow"] <= 0
