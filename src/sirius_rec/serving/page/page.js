"use strict";
// A history and candidates are asked of the service's own API; whatever it says is put into the page as text.
(function () {
  const $ = (id) => document.getElementById(id);
  const state = { models: [], history: [], slate: [], what: "all", items: 0, key: "", turn: 0 };

  function element(name, text, kind) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (kind) made.className = kind;
    return made;
  }

  async function call(path, body) {
    const headers = state.key ? { authorization: "Bearer " + state.key } : {};
    const options = { headers };
    if (body) {
      options.method = "POST";
      options.body = JSON.stringify(body);
      headers["content-type"] = "application/json";
    }
    const answer = await fetch(path, options);
    if (answer.status === 401) $("key-form").hidden = false;
    const said = await answer.json();
    if (!answer.ok) throw new Error(said.detail || "the service answers " + answer.status);
    return said;
  }

  function say(text, error) {
    $("status").textContent = text;
    $("status").className = error ? "error" : "";
  }

  const model = () => state.models.find((m) => m.id === $("model").value);
  const beside = () => state.models.find((m) => m.id === $("beside").value);
  const percent = (share) => (share >= 0.0995 ? (100 * share).toFixed(0) : (100 * share).toFixed(1)) + " %";

  // Search fields: type, arrows, Enter.

  function searching(input, list, add) {
    let items = [], at = -1, turn = 0;
    const show = (open) => { list.hidden = !open; input.setAttribute("aria-expanded", String(open)); };
    function mark(place) {
      at = place;
      Array.from(list.children).forEach((option, n) => option.setAttribute("aria-selected", String(n === at)));
      if (at >= 0 && list.children[at]) {
        input.setAttribute("aria-activedescendant", list.children[at].id);
        list.children[at].scrollIntoView({ block: "nearest" });
      } else input.removeAttribute("aria-activedescendant");
    }
    function choose(place) {
      if (!items[place]) return;
      add(items[place]);
      input.value = "";
      show(false);
      input.focus();
    }
    async function look() {
      const own = ++turn, text = input.value.trim();
      if (!text) { show(false); return; }
      try {
        const found = (await call("v1/items?limit=12&search=" + encodeURIComponent(text))).items;
        if (own !== turn) return;
        items = found;
      } catch (error) { say(error.message, true); return; }
      list.replaceChildren(...items.map((item, n) => {
        const option = element("li", item.title);
        option.id = list.id + "-" + n;
        option.setAttribute("role", "option");
        option.addEventListener("mousedown", (event) => { event.preventDefault(); choose(n); });
        return option;
      }));
      if (!items.length) {
        const none = element("li", "no title has these words", "none");
        none.setAttribute("role", "option");
        list.append(none);
      }
      show(true);
      mark(items.length ? 0 : -1);
    }
    input.addEventListener("input", look);
    input.addEventListener("blur", () => show(false));
    input.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown" || event.key === "ArrowUp") {
        event.preventDefault();
        if (items.length) mark((at + (event.key === "ArrowDown" ? 1 : items.length - 1)) % items.length);
      } else if (event.key === "Enter" && !list.hidden) { event.preventDefault(); choose(at); }
      else if (event.key === "Escape") show(false);
    });
  }

  // What is asked

  function drawHistory() {
    $("history").replaceChildren(...state.history.map((item, n) => {
      const line = element("li");
      const remove = element("button", "✕");
      remove.type = "button";
      remove.setAttribute("aria-label", "Remove " + item.title);
      const take = () => {
        state.history.splice(n, 1);
        changed();
        const next = $("history").querySelectorAll("button")[Math.min(n, state.history.length - 1)];
        (next || $("search")).focus();
      };
      remove.addEventListener("click", take);
      remove.addEventListener("keydown", (event) => {
        if (event.key === "Delete" || event.key === "Backspace") { event.preventDefault(); take(); }
      });
      line.append(element("span", item.title), remove);
      return line;
    }));
    $("slate-box").hidden = state.what !== "slate";
    $("slate-size").textContent = state.slate.length + " candidates";
    $("what-all").disabled = !model().recommends;
    $("no-catalogue").hidden = model().recommends;
    $("what-" + state.what).checked = true;
  }

  function remember() {
    const ids = (items) => items.map((item) => encodeURIComponent(item.id)).join(",");
    const parts = ["h=" + ids(state.history), "m=" + encodeURIComponent($("model").value),
      "b=" + encodeURIComponent($("beside").value)];
    if (state.what === "slate") parts.push("c=" + ids(state.slate));
    history.replaceState(null, "", "#" + parts.join("&"));
  }

  async function recall() {
    const given = new URLSearchParams(location.hash.slice(1));
    const named = async (text) => (await Promise.all(text.split(",").filter(Boolean).map(async (id) => {
      const found = (await call("v1/items?limit=1&search=" + encodeURIComponent(id))).items;
      return found[0] && found[0].id === id ? found[0] : null;
    }))).filter(Boolean);
    for (const [id, name] of [["model", "m"], ["beside", "b"]]) {
      if (given.has(name) && (given.get(name) === "" || state.models.some((m) => m.id === given.get(name)))) {
        $(id).value = given.get(name);
      }
    }
    state.history = await named(given.get("h") || "");
    if (given.has("c")) { state.what = "slate"; state.slate = await named(given.get("c")); }
  }

  function changed() {
    if (!model().recommends) state.what = "slate";
    drawHistory();
    remember();
    rank();
  }

  // The answer

  function rerank(key, past, candidates) {
    return call("v1/rerank", { model: key, history: past, candidates, return_documents: false });
  }

  async function rank() {
    const turn = ++state.turn, own = model(), other = beside();
    const past = state.history.map((item) => item.id);
    const clear = (text) => { $("ranking").hidden = $("why").hidden = true; $("moved").textContent = ""; say(text); };
    if (state.what === "all" && !past.length) return clear("Add what a user chose, and see what comes next.");
    if (state.what === "slate" && !state.slate.length) return clear("Add candidates, or draw some at random.");
    try {
      const candidates = state.what === "slate" ? state.slate.map((item) => item.id)
        : (await call("v1/recommend", { model: own.id, history: past, top_n: Math.min(10, state.items) })).items;
      const without = past.map((_, n) => past.filter((_, at) => at !== n));
      const asked = [rerank(own.id, past, candidates), other ? rerank(other.id, past, candidates) : null,
        ...without.map((rest) => rerank(own.id, rest, candidates))];
      const [first, second, ...reasons] = await Promise.all(asked);
      if (turn !== state.turn) return;
      say("");
      drawRanking(first, second, own, other);
      drawReasons(first, reasons, own);
    } catch (error) {
      if (turn === state.turn) { clear(""); say(error.message, true); }
    }
  }

  function share(result, length) {
    const cell = element("td", undefined, "share"), box = element("div"), track = element("div", undefined, "track");
    const bar = element("div", undefined, "bar");
    bar.style.width = 100 * result.relevance_score / length + "%";
    const shown = "log_prob" in result ? percent(result.relevance_score) : String(+result.score.toPrecision(3));
    track.append(bar);
    box.append(track, element("span", shown));
    cell.title = "log_prob" in result ? "log π = " + result.log_prob.toFixed(3) : "score " + result.score;
    cell.append(box);
    return cell;
  }

  function drawRanking(first, second, own, other) {
    const heads = [["", "n"], ["Title", ""], [own.scores === "log-probs" ? "Probability" : "Score", ""]];
    if (other) heads.push(["Rank by " + other.id, "n"], [other.id, ""]);
    $("ranking").tHead.rows[0].replaceChildren(...heads.map(([text, kind]) => {
      const head = element("th", text, kind);
      head.scope = "col";
      return head;
    }));
    const there = second && new Map(second.results.map((r, n) => [r.index, { place: n, result: r }]));
    const most = (answer) => Math.max(...answer.results.map((r) => r.relevance_score), 1e-9);
    let moved = 0;
    $("ranking").tBodies[0].replaceChildren(...first.results.map((result, n) => {
      const row = element("tr");
      row.append(element("td", n + 1, "n"), element("td", result.title || result.id), share(result, most(first)));
      if (there) {
        const { place, result: theirs } = there.get(result.index), by = place - n;
        moved += by !== 0;
        const cell = element("td", String(place + 1) + " ", "n");
        const word = by > 0 ? "▲" + by : by < 0 ? "▼" + -by : "=";
        const mark = element("span", word, by > 0 ? "up" : by < 0 ? "down" : "same");
        mark.setAttribute("aria-label", by > 0 ? by + " higher here" : by < 0 ? -by + " lower here" : "the same place");
        cell.append(mark);
        row.append(cell, share(theirs, most(second)));
      }
      return row;
    }));
    $("ranking").hidden = false;
    $("moved").textContent = "";
    if (second) {
      const theirs = second.results[0], same = theirs.index === first.results[0].index;
      $("moved").textContent = moved === 0 ? own.id + " and " + other.id + " agree on the order."
        : own.id + " places " + moved + " of " + first.results.length + " otherwise than " + other.id + "; "
          + (same ? "both have the same first." : other.id + " has " + (theirs.title || theirs.id) + " first.");
    }
    const drops = first.unknown ? " " + first.unknown + " of the history are unknown to it." : "";
    $("meaning").textContent = (own.scores === "log-probs"
      ? "Probability: of this title, given the history and that it is one of these candidates (softmax of log π)."
      : own.id + " is no language model: its scores order candidates, and are no probabilities.") + drops;
  }

  function drawReasons(first, reasons, own) {
    const top = first.results[0], isText = "log_prob" in top;
    const value = (result) => (isText ? result.relevance_score : result.score);
    const found = reasons.map((answer, n) => {
      const result = answer.results.find((r) => r.index === top.index);
      return { item: state.history[n], by: value(top) - value(result), result, first: answer.results[0] };
    }).sort((a, b) => Math.abs(b.by) - Math.abs(a.by));
    // A change of less than two points in a hundred fills no axis.
    const most = Math.max(...found.map((reason) => Math.abs(reason.by)), isText ? 0.02 : 1e-9);
    const tenth = (part) => (100 * part).toFixed(1) + " %";
    $("why").hidden = !found.length;
    $("why-title").textContent = (top.title || top.id) + "?";
    $("why-note").textContent = "What changes for it when one item of the history is left out; the largest change first.";
    $("reasons").replaceChildren(...found.map(({ item, by, result, first: instead }) => {
      const line = element("li"), axis = element("span", undefined, "axis"), bar = element("span", undefined, "bar");
      const width = 50 * Math.abs(by) / most;
      bar.style.width = width + "%";
      bar.style.left = (by >= 0 ? 50 : 50 - width) + "%";
      if (by < 0) bar.classList.add("less");
      axis.append(bar);
      axis.setAttribute("role", "img");
      axis.setAttribute("aria-label", (by >= 0 ? "helps it" : "hurts it") + (isText ? "" : " by " + Math.abs(by).toPrecision(2)));
      const now = isText ? tenth(top.relevance_score) + " → " + tenth(result.relevance_score)
        : (by >= 0 ? "−" : "+") + Math.abs(by).toPrecision(2);
      const words = Math.abs(by) < 1e-6 ? "without it nothing changes" : "without it " + now
        + (instead.index === top.index ? "" : "; " + (instead.title || instead.id) + " comes first");
      line.append(element("span", item.title, "title"), axis, element("span", words, "words"));
      return line;
    }));
  }

  async function draw(count, into) {
    try {
      state[into] = (await call("v1/items?limit=100&sample=" + count)).items;
      changed();
    } catch (error) { say(error.message, true); }
  }

  function listen() {
    const into = (name) => (item) => {
      if (!state[name].some((other) => other.id === item.id)) state[name].push(item);
      changed();
    };
    searching($("search"), $("found"), into("history"));
    searching($("slate-search"), $("slate-found"), into("slate"));
    $("clear").addEventListener("click", () => { state.history = []; changed(); });
    $("example").addEventListener("click", () => draw(5, "history"));
    $("draw").addEventListener("click", () => draw(20, "slate"));
    for (const id of ["model", "beside"]) $(id).addEventListener("change", changed);
    for (const radio of document.getElementsByName("what")) {
      radio.addEventListener("change", () => { state.what = radio.value; changed(); });
    }
    document.addEventListener("keydown", (event) => {
      if (event.key === "/" && !/INPUT|SELECT|TEXTAREA/.test(document.activeElement.tagName)) {
        event.preventDefault();
        $("search").focus();
      }
    });
    $("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      state.key = $("key").value.trim(); // kept in this page alone
      $("key-form").hidden = true;
      open();
    });
  }

  async function open() {
    try {
      const listed = await call("v1/models");
      state.models = listed.data;
      state.items = listed.items;
      $("run").textContent = listed.run + " · " + listed.items.toLocaleString("en") + " items";
    } catch (error) { say(error.message, true); return; }
    const option = (m) => new Option(m.id + (m.label && m.label !== m.id ? " · " + m.label : ""), m.id);
    $("model").replaceChildren(...state.models.map(option));
    $("beside").replaceChildren(new Option("nothing", ""), ...state.models.map(option));
    if (state.models.length > 1) $("beside").value = state.models[1].id;
    $("beside").parentNode.hidden = state.models.length < 2;
    try { await recall(); } catch (error) { say(error.message, true); }
    if (!model().recommends && !state.slate.length) { state.what = "slate"; return draw(20, "slate"); }
    changed();
  }

  listen();
  open();
})();
