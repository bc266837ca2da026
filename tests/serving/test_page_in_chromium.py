"""The page at / as a browser runs it against a service: a history is built, ranked, compared, explained.

The service says that nothing may frame its page and that scripts are its own files; here it also serves the test's
script, and a frame as narrow as a phone, which no window of a headless browser is.
"""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--enable-logging=stderr",
         "--hide-scrollbars", "--virtual-time-budget=20000")  # fmt: skip

SCRIPT = """
"use strict";
window.addEventListener("load", async function () {
  const out = {}, $ = (id) => document.getElementById(id);
  const texts = (query) => Array.from(document.querySelectorAll(query)).map((e) => e.textContent);
  const rows = () => Array.from($("ranking").tBodies[0].rows).map((r) => Array.from(r.cells).map((c) => c.textContent));
  async function until(what) {
    for (let n = 0; n < 400; n++) { if (what()) return; await new Promise((r) => setTimeout(r, 20)); }
    out.stuck = out.stuck || String(what);
  }
  const press = (on, key) => on.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  async function type(field, text) {
    field.value = text;
    field.dispatchEvent(new Event("input"));
    await until(() => !$("found").hidden || !$("slate-found").hidden);
  }
  await until(() => $("model").options.length);
  await until(() => $("status").textContent);
  out.empty = $("status").textContent;
  press(document.body, "/");
  out.focus = document.activeElement.id;
  await type($("search"), "a");
  out.found = texts("#found li");
  press($("search"), "ArrowDown");
  out.active = $($("search").getAttribute("aria-activedescendant")).textContent;
  press($("search"), "Enter");
  await until(() => !$("ranking").hidden && rows().length === 7);
  out.all = rows();
  out.moved = $("moved").textContent;
  await type($("search"), "high");
  press($("search"), "Enter");
  await until(() => texts("#reasons li").length === 2);
  out.history = texts("#history li span");
  out.reasons = texts("#reasons li .words");
  $("what-slate").click();
  await until(() => $("status").textContent.startsWith("Add candidates"));
  for (const word of ["blur", "can", "low"]) {
    await type($("slate-search"), word);
    press($("slate-search"), "Enter");
  }
  await until(() => rows().length === 3);
  out.slate = rows();
  out.hash = location.hash;
  const remove = document.querySelector("#history button");
  remove.focus();
  press(remove, "Delete");
  await until(() => texts("#history li").length === 1 && texts("#reasons li").length === 1);
  out.left = texts("#history li span");
  $("model").value = "counts";
  $("model").dispatchEvent(new Event("change"));
  await until(() => $("meaning").textContent.startsWith("counts"));
  out.disabled = $("what-all").disabled;
  out.counts = rows();
  out.stray = document.querySelectorAll("td b, li b, #answer script").length;
  out.labelled = Array.from(document.querySelectorAll("input, select")).every((c) =>
    c.labels.length || c.getAttribute("aria-label"));
  out.width = [innerWidth, document.documentElement.scrollWidth];
  out.ground = getComputedStyle(document.body).backgroundColor;
  const note = document.createElement("pre");
  note.id = "self-test";
  note.textContent = JSON.stringify(out);
  parent.document.body.append(note);
});
"""


def framed(app: Any, script: str) -> Any:
    """The application with /frame.html?width, whose page runs `script` too."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        own: dict[str, tuple[str, str]] = {"/self-test.js": ("text/javascript", script)}
        width = scope.get("query_string", b"").decode() or "1280"
        frame = f'<!doctype html><body style="margin:0"><iframe src="/" style="border:0;width:{width}px;height:1400px">'
        own["/frame.html"] = ("text/html", frame)
        if scope["type"] != "http" or (scope["path"] != "/" and scope["path"] not in own):
            await app(scope, receive, send)
            return
        if scope["path"] in own:
            kind, text = own[scope["path"]]
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind.encode())]})
            await send({"type": "http.response.body", "body": text.encode()})
            return

        async def changed(message: Any) -> None:
            if message["type"] == "http.response.start":
                headers = {name: value for name, value in message["headers"] if name != b"content-length"}
                policy = headers[b"content-security-policy"]
                headers[b"content-security-policy"] = policy.replace(
                    b"frame-ancestors 'none'", b"frame-ancestors 'self'"
                )
                message = {**message, "headers": list(headers.items())}
            elif message.get("body"):
                test = b'<script src="self-test.js" defer></script></head>'
                message = {**message, "body": message["body"].replace(b"</head>", test)}
            await send(message)

        await app(scope, receive, changed)

    return wrapped


@pytest.fixture
def seen(running: Callable[..., Any], at_work: Any, tmp_path: Any) -> Callable[..., tuple[dict[str, Any], list[str]]]:
    """seen(width, *flags) → what SCRIPT saw, and the console's lines."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium found: install chromium to test the page in a browser")
    service = running(batching={"wait": 0.005})

    def look(width: int, *flags: str) -> tuple[dict[str, Any], list[str]]:
        with at_work(framed(service.app, SCRIPT)) as address:
            done = subprocess.run(
                [browser, *FLAGS, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,1500",
                 "--dump-dom", f"{address}/frame.html?{width}"],
                capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
        console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        result = re.search(r'<pre id="self-test">(.*?)</pre>', done.stdout, re.DOTALL)
        assert result, (console, done.stderr[-2000:], done.stdout[-2000:])
        return json.loads(html.unescape(result[1])), console

    return look


def test_a_reader_with_a_keyboard(seen: Callable[..., Any]) -> None:
    found, console = seen(1280)
    assert console == [] and "stuck" not in found, found.get("stuck")
    assert found["empty"].startswith("Add what a user chose") and found["focus"] == "search"
    assert found["found"] == ["Air", "Can", "Red House Painters"] and found["active"] == "Can"
    first = [row[:4] for row in found["all"]]
    # item n scores −n − (length of the history); `counts` ranks the other way round
    assert [row[1] for row in first] == ["Air", "Blur", "Can", "Red House Painters", "Low & <b>High</b>", "Öx", "i1"]
    assert first[0] == ["1", "Air", "63 %", "7 ▲6"] and first[3][3] == "4 =" and first[6][3] == "1 ▼6"
    assert found["moved"] == "lm places 6 of 7 otherwise than counts; counts has i1 first."
    assert found["history"] == ["Can", "Low & <b>High</b>"]
    assert found["reasons"] == ["without it nothing changes"] * 2  # the length alone counts, and cancels out
    assert [row[1] for row in found["slate"]] == ["Blur", "Can", "Low & <b>High</b>"]
    assert found["hash"] == "#h=i2,i4&m=lm&b=counts&c=i1,i2,i4"
    assert found["left"] == ["Low & <b>High</b>"]
    assert found["disabled"] is True and found["counts"][0][1] == "Low & <b>High</b>"
    assert found["stray"] == 0 and found["labelled"] is True


def test_a_phone_in_the_dark(seen: Callable[..., Any]) -> None:
    found, console = seen(390, "--blink-settings=preferredColorScheme=0")
    assert console == [] and "stuck" not in found
    assert found["width"][0] == 390 and found["width"][1] <= 390
    assert found["ground"] == "rgb(20, 23, 27)"
