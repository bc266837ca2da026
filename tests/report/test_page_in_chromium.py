"""The page as a browser runs it: no console error, tables sort, the explorer filters, nothing scrolls sideways."""

from __future__ import annotations

import csv
import html
import io
import json
import re
import shutil
import subprocess

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr",
         "--virtual-time-budget=4000")  # fmt: skip

# What a reader does, with what came of it; runs in the page after its own scripts.
SCRIPT = """
<script>
window.addEventListener("load", function () {
  var out = { width: [innerWidth, document.documentElement.scrollWidth] };
  var $ = function (id) { return document.getElementById(id); };
  var table = document.querySelector("table.sortable"), head = table.tHead.rows[0].cells;
  function column(n) { return Array.from(table.tBodies[0].rows).map(function (r) { return r.cells[n].textContent; }); }
  out.answer = Array.from(document.querySelectorAll(".answer li")).map(function (line) {
    return [line.textContent, line.getBoundingClientRect().bottom]; });
  out.over = Array.from(document.querySelectorAll("#content .wide")).filter(function (box) {
    return box.clientWidth && box.scrollWidth > box.clientWidth; }).map(function (box) { return box.ariaLabel; });
  var wide = table.parentNode, corner = head[0];
  wide.scrollLeft = 60;
  out.fixed = [wide.scrollLeft, corner.getBoundingClientRect().left - wide.getBoundingClientRect().left,
    table.tBodies[0].rows[0].cells[0].getBoundingClientRect().left - wide.getBoundingClientRect().left];
  out.hint = !wide.nextSibling.querySelector(".hint").hidden;
  wide.scrollLeft = 0;
  out.copies = Array.from(document.querySelectorAll("#content .wide > table")).map(function (one) {
    var buttons = one.parentNode.nextSibling.querySelectorAll("button");
    return Array.from(buttons).map(function (b) { return b.copied(); }); });
  out.tools = Array.from(wide.nextSibling.querySelectorAll("button")).map(function (b) { return b.textContent; });
  out.buttons = Array.from(document.querySelectorAll("table.sortable thead th")).every(function (th) {
    return th.querySelector("button") && th.scope === "col"; });
  out.start = [column(0), head[1].getAttribute("aria-sort")];
  head[1].firstChild.focus(); out.focus = document.activeElement === head[1].firstChild;
  head[1].firstChild.click(); out.up = [column(0), head[1].getAttribute("aria-sort")];
  head[0].firstChild.click();
  out.names = [column(0), head[0].getAttribute("aria-sort"), head[1].getAttribute("aria-sort")];
  function examples() {
    return Array.from(document.querySelectorAll(".example > summary")).map(function (s) {
      return Array.from(s.children).map(function (c) { return c.textContent; }).join("|"); });
  }
  function set(id, value, kind) { $(id).value = value; $(id).dispatchEvent(new Event(kind || "change")); }
  out.methods = Array.from($("ex-method").options).map(function (o) { return o.text; });
  out.all = examples(); out.status = $("ex-status").textContent;
  set("ex-change", "broken"); out.broken = examples();
  set("ex-change", "all"); set("ex-text", "AIR", "input"); out.air = examples();
  set("ex-text", "", "input"); set("ex-order", "fall"); out.fall = examples();
  set("ex-method", $("ex-method").options[1].value); out.other = examples();
  set("ex-method", $("ex-method").options[0].value);
  out.labelled = Array.from(document.querySelectorAll(".filters select, .filters input")).every(function (c) {
    return c.labels.length === 1; });
  var first = document.querySelector(".example");
  first.open = true;
  setTimeout(function () {
    out.prompt = first.querySelector("pre").textContent;
    out.slate = Array.from(first.querySelectorAll("tbody tr")).map(function (r) {
      return Array.from(r.cells).map(function (c) { return c.textContent; }).join("|"); });
    out.stray = document.querySelectorAll("#ex-list b b, #ex-list script").length;
    var note = document.createElement("pre");
    note.id = "self-test";
    note.textContent = JSON.stringify(out);
    parent.document.body.appendChild(note);
  }, 50);
});
</script>
"""


@pytest.fixture(scope="module")
def browser():
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium found: install chromium to test the page in a browser")
    return found


@pytest.fixture(scope="module")
def seen(browser, written, tmp_path_factory):
    """seen(width, *flags) → what SCRIPT saw in a frame of that width, and the console's lines."""

    def look(width, *flags):
        folder = tmp_path_factory.mktemp("chromium")
        page = (written / "report.html").read_text(encoding="utf-8")
        frame = html.escape(page.replace("</body>", SCRIPT + "</body>"))
        style = f"border: 0; width: {width}px; height: 900px"
        (folder / "frame.html").write_text(f'<!doctype html><body><iframe style="{style}" srcdoc="{frame}"></iframe>')
        done = subprocess.run(
            [browser, *FLAGS, *flags, f"--user-data-dir={folder / 'profile'}", "--window-size=1500,1000", "--dump-dom",
             f"file://{folder / 'frame.html'}"],
            capture_output=True, text=True, timeout=600, check=False,
        )  # fmt: skip
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        result = re.search(r'<pre id="self-test">(.*?)</pre>', done.stdout, re.DOTALL)
        assert result, (console, done.stderr[-2000:])
        return json.loads(html.unescape(result[1])), console

    return look


@pytest.fixture(scope="module")
def laptop(seen):
    return seen(1280)


@pytest.fixture(scope="module")
def phone(seen):
    return seen(390, "--blink-settings=preferredColorScheme=0")


@pytest.fixture(scope="module")
def desk(seen):
    return seen(1440)


def test_no_console_error(laptop):
    assert laptop[1] == []


def test_tables_sort(laptop):
    found = laptop[0]
    best_first = ["DPO", "DPO + SIRIUS", "SFT continued", "popularity\u00a0°"]
    assert found["start"] == [best_first, "descending"]
    assert found["up"] == [best_first[::-1], "ascending"]
    assert found["names"] == [["SFT continued", "popularity\u00a0°", "DPO + SIRIUS", "DPO"], "descending", None]
    assert found["buttons"] and found["focus"]


def test_the_explorer_filters_and_sorts(laptop):
    found = laptop[0]
    assert found["methods"] == ["DPO", "SimPO"] and found["labelled"]
    fixed = "</script><b>Blur|rank 2 → 1|Δ log π +1.50|fixed"
    broken = "Pulp|rank 1 → 2|Δ log π −2.00|broken"
    same = "Low|rank 1 → 1|Δ log π 0.00|unchanged"
    assert found["all"] == [fixed, same, broken]
    assert found["status"].startswith("3 of 3 sampled rows. Over all 3 rows of test-uniform-20-s0, seed 0, checkpoint")
    assert "DPO against SFT: 1 fixed, 1 broken" in found["status"]
    assert found["broken"] == [broken] and found["fall"] == [broken, same, fixed]
    assert found["air"] == [fixed, same]  # row 8 has not heard Air
    assert all(line.endswith("Δ log π 0.00|unchanged") for line in found["other"])


def test_an_example_opens(laptop):
    """The first by largest loss is row 8: its prompt, and its slate by score after alignment, the target marked."""
    found = laptop[0]
    assert found["prompt"] == "Liked:\nCan\nCandidates:\n</script><b>Blur\nPulp\nNext:"
    assert found["slate"] == ["</script><b>Blur|−2.00|−2.00|0.00", "Pulp (target)|−1.00|−3.00|−2.00"]
    assert found["stray"] == 0


def test_a_phone_in_the_dark_does_not_scroll_sideways(phone):
    found, console = phone
    assert found["width"][0] == 390 and found["width"][1] <= 390
    assert console == []


def test_the_answer_stands_in_the_first_800_pixels(phone, desk):
    for found, _ in (phone, desk):
        lines = [text for text, _ in found["answer"]]
        assert [line.split(" ", 3)[:3] for line in lines] == [
            ["The", "best", "trained"], ["The", "SIRIUS", "anchor"], ["Reward", "hacking", "was"],
        ]  # fmt: skip
        assert max(bottom for _, bottom in found["answer"]) < 800


def test_wide_tables_keep_their_first_column_and_say_that_they_scroll(phone, desk):
    scrolled, corner, label = phone[0]["fixed"]
    assert scrolled == 60 and abs(corner) < 3 and abs(label) < 3 and phone[0]["hint"]
    assert desk[0]["over"] == [] and desk[0]["fixed"][0] == 0 and not desk[0]["hint"]


def test_tables_are_copied_as_markdown_csv_and_latex(laptop):
    found = laptop[0]
    assert found["tools"] == ["Markdown", "CSV", "LaTeX"]
    markdown, table, latex = found["copies"][0]
    lines = markdown.splitlines()
    assert lines[0] == "| Method | HR@1 | HR@5 | HR@10 | NDCG@5 | NDCG@10 | MRR | SD of seeds |"
    assert lines[1] == "| --- |" + " ---: |" * 7
    assert lines[2].startswith("| DPO | 0.450 [0.430, 0.470] | 0.450 [0.430, 0.470] |") and len(lines) == 6
    rows = list(csv.reader(io.StringIO(table)))
    assert rows[0][:4] == ["Method", "HR@1", "HR@1 low", "HR@1 high"] and {len(row) for row in rows} == {20}
    assert rows[1][:4] == ["DPO", "0.450", "0.430", "0.470"] and rows[4][-1] == ""  # one seed has no SD
    lines = latex.splitlines()
    assert lines[:3] == [r"\begin{tabular}{lrrrrrrr}", r"\toprule", lines[2]] and lines[3] == r"\midrule"
    assert lines[-1] == r"\end{tabular}" and lines[4].startswith("DPO & 0.450 [0.430, 0.470] & ")
    assert lines[7].startswith("popularity $^\\circ$ & 0.180")
    tests = next(one for one in found["copies"] if one[1].startswith("Method,against,Difference"))
    assert "DPO,SFT continued,-0.012,-0.021,-0.003,< 0.001,< 0.001,worse" in tests[1]
    assert "$-$0.012 [$-$0.021, $-$0.003] & $<$ 0.001" in tests[2]
