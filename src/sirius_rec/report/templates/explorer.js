(function () {
  var source = document.getElementById("explorer-data");
  if (!source) return;
  var runs = JSON.parse(source.textContent), STEP = 20, shown = STEP;
  var $ = function (id) { return document.getElementById(id); };
  var method = $("ex-method"), change = $("ex-change"), text = $("ex-text"), order = $("ex-order");
  var list = $("ex-list"), status = $("ex-status"), more = $("ex-more");

  function make(tag, content, name) {
    var node = document.createElement(tag);
    if (content !== undefined) node.textContent = content;
    if (name) node.className = name;
    return node;
  }
  function fixed(value, digits, signed) {
    var out = Math.abs(value).toFixed(digits);
    var sign = Number(out) === 0 ? "" : value < 0 ? "\u2212" : signed ? "+" : "";
    return sign + out;
  }
  function rank(value) { return String(Math.round(value * 10) / 10); }

  runs.forEach(function (run, r) {
    var home = method;
    if (runs.length > 1) {
      home = method.appendChild(document.createElement("optgroup"));
      home.label = run.run;
    }
    run.methods.forEach(function (entry, m) {
      home.appendChild(new Option(entry.label, r + "/" + m));
    });
    run.rows.forEach(function (row) {
      row.words = row.history.concat(row.slate).map(function (n) { return run.titles[n]; }).join("\n").toLowerCase();
    });
  });

  /* What alignment by the chosen method did to one row: m counts the methods, scores[0] and ranks[0] are SFT's. */
  function effect(row, m) {
    var before = row.ranks[0], after = row.ranks[m + 1];
    return {
      row: row, m: m, before: before, after: after, rise: before - after,
      gain: row.scores[m + 1][row.target] - row.scores[0][row.target],
      kinds: [after < before ? "improved" : after > before ? "worsened" : "unchanged",
        before !== 1 && after === 1 ? "fixed" : before === 1 && after !== 1 ? "broken" : ""]
    };
  }
  var ORDERS = {
    rise: function (a, b) { return b.rise - a.rise || b.gain - a.gain; },
    fall: function (a, b) { return a.rise - b.rise || a.gain - b.gain; },
    gain: function (a, b) { return b.gain - a.gain; },
    loss: function (a, b) { return a.gain - b.gain; },
    row: function (a, b) { return a.row.id - b.row.id; }
  };

  function slateTable(run, found) {
    var row = found.row, before = row.scores[0], after = row.scores[found.m + 1];
    var box = make("div", undefined, "wide"), table = box.appendChild(document.createElement("table"));
    box.tabIndex = 0;
    box.setAttribute("role", "region");
    box.setAttribute("aria-label", "Scores of the slate");
    var head = table.createTHead().insertRow();
    ["Candidate", "before", "after", "change"].forEach(function (name, n) {
      var cell = head.appendChild(make("th", name, n ? "" : "text"));
      cell.scope = "col";
    });
    var body = table.createTBody();
    row.slate.map(function (item, n) { return n; }).sort(function (a, b) { return after[b] - after[a] || a - b; })
      .forEach(function (n) {
        var line = body.insertRow();
        if (n === row.target) line.className = "target";
        line.appendChild(make("td", run.titles[row.slate[n]] + (n === row.target ? " (target)" : ""), "text"));
        line.appendChild(make("td", fixed(before[n], 2)));
        line.appendChild(make("td", fixed(after[n], 2)));
        line.appendChild(make("td", fixed(after[n] - before[n], 2, true)));
      });
    return box;
  }

  function fill(details, run, found) {
    var row = found.row, title = function (n) { return run.titles[n]; };
    var lines = [run.prompt.history].concat(row.history.map(title));
    if (run.prompt.candidates !== null) lines = lines.concat([run.prompt.candidates], row.slate.map(title));
    var body = details.appendChild(make("div", undefined, "body"));
    var left = body.appendChild(document.createElement("div"));
    left.appendChild(make("h4", "Prompt of row " + row.id));
    left.appendChild(make("pre", lines.concat([run.prompt.answer]).join("\n")));
    var right = body.appendChild(document.createElement("div"));
    right.appendChild(make("h4", "Slate, log \u03c0 in nats, highest after alignment first"));
    right.appendChild(slateTable(run, found));
  }

  function example(run, found) {
    var details = make("details", undefined, "example"), line = details.appendChild(document.createElement("summary"));
    line.appendChild(make("b", run.titles[found.row.slate[found.row.target]]));
    line.appendChild(make("span", "rank " + rank(found.before) + " \u2192 " + rank(found.after), "num"));
    line.appendChild(make("span", "\u0394 log \u03c0 " + fixed(found.gain, 2, true), "num"));
    var word = found.kinds[1] || found.kinds[0];
    line.appendChild(make("span", word, "num" + (found.rise > 0 ? " good" : found.rise < 0 ? " warn" : "")));
    details.addEventListener("toggle", function () {
      if (details.open && details.children.length === 1) fill(details, run, found);
    });
    return details;
  }

  function draw() {
    var place = method.value.split("/"), run = runs[Number(place[0])], m = Number(place[1]), entry = run.methods[m];
    var wanted = text.value.trim().toLowerCase(), kind = change.value;
    var found = run.rows.filter(function (row) { return row.words.indexOf(wanted) >= 0; })
      .map(function (row) { return effect(row, m); })
      .filter(function (one) { return kind === "all" || one.kinds.indexOf(kind) >= 0; })
      .sort(ORDERS[order.value]);
    list.replaceChildren.apply(list, found.slice(0, shown).map(function (one) { return example(run, one); }));
    more.hidden = found.length <= shown;
    var c = entry.counts;
    status.textContent = found.length + " of " + run.rows.length + " sampled rows. Over all " +
      run.of.toLocaleString("en") + " rows of " + run.slates + ", seed " + run.seed + ", checkpoint " + run.checkpoint +
      ", " + entry.label + " against " + run.start + ": " + c.fixed + " fixed, " + c.broken + " broken; the target's rank " +
      c.improved + " times better, " + c.worsened + " worse, " + c.unchanged + " unchanged.";
  }
  [method, change, order].forEach(function (control) {
    control.addEventListener("change", function () { shown = STEP; draw(); });
  });
  text.addEventListener("input", function () { shown = STEP; draw(); });
  more.addEventListener("click", function () {
    var first = list.children.length;
    shown += STEP;
    draw();
    if (list.children[first]) list.children[first].firstChild.focus();
  });
  draw();
})();
