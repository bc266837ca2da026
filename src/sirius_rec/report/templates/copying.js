/* Under every table: copy as Markdown, CSV, LaTeX; and a hint where it scrolls sideways. */
(function () {
  function text(node) { return node.textContent.replace(/\s+/g, " ").trim(); }
  /* [value, interval or note] of a cell. */
  function parts(cell) {
    var small = cell.querySelector("small"), copy = cell.cloneNode(true);
    if (!small || !cell.matches("td")) return [text(cell), ""];
    copy.querySelector("small").remove();
    return [text(copy), text(small)];
  }
  function rows(table) {
    return Array.from(table.rows).map(function (row) { return Array.from(row.cells).map(parts); });
  }
  function joined(cell) { return cell[1] ? cell[0] + " " + cell[1] : cell[0]; }

  function markdown(table) {
    var lines = rows(table).map(function (row) {
      return "| " + row.map(function (cell) { return joined(cell).replace(/\|/g, "\\|"); }).join(" | ") + " |";
    });
    var rule = Array.from(table.tHead.rows[0].cells).map(function (head, n) {
      return n === 0 || head.classList.contains("text") ? "---" : "---:";
    });
    lines.splice(1, 0, "| " + rule.join(" | ") + " |");
    return lines.join("\n") + "\n";
  }

  /* Numbers as programs read them; an interval has two columns of its own. */
  function csv(table) {
    var all = rows(table), spans = all[0].map(function (_, n) {
      return all.some(function (row) { return row[n] && /^\[.*, .*\]$/.test(row[n][1]); });
    });
    function quoted(value) {
      value = value.replace(/\u2212/g, "-");
      if (value === "\u2013") value = "";
      if (/^-?\d{1,3}(,\d{3})+$/.test(value)) value = value.replace(/,/g, "");
      return /[",\n]/.test(value) ? '"' + value.replace(/"/g, '""') + '"' : value;
    }
    return all.map(function (row, r) {
      var out = [];
      row.forEach(function (cell, n) {
        if (!spans[n]) { out.push(joined(cell)); return; }
        var ends = r ? cell[1].slice(1, -1).split(", ") : [cell[0] + " low", cell[0] + " high"];
        out.push(cell[0], ends[0] || "", ends[1] || "");
      });
      return out.map(quoted).join(",");
    }).join("\n") + "\n";
  }

  var SIGNS = { "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "\u2212": "$-$",
    "\u2013": "--", "\u00b0": "$^\\circ$", "\u03b5": "$\\varepsilon$", "\u03a9": "$\\Omega$", "\u03b1": "$\\alpha$",
    "\u03b2": "$\\beta$", "\u2192": "$\\to$", "\u00b2": "$^2$", "<": "$<$", ">": "$>$", "\u2019": "'", "\u2026": "\\dots{}" };
  function tex(value) {
    return value.replace(/[&%$#_{}]/g, "\u0000$&").replace(/[\\~^\u2212\u2013\u00b0\u03b5\u03a9\u03b1\u03b2\u2192\u00b2<>\u2019\u2026]/g,
      function (sign) { return SIGNS[sign]; }).replace(/\u0000/g, "\\");
  }
  function latex(table) {
    var align = Array.from(table.tHead.rows[0].cells).map(function (head, n) {
      return n === 0 || head.classList.contains("text") ? "l" : "r";
    }).join("");
    var lines = rows(table).map(function (row) {
      return row.map(function (cell) { return tex(joined(cell)); }).join(" & ") + " \\\\";
    });
    lines.splice(1, 0, "\\midrule");
    return ["\\begin{tabular}{" + align + "}", "\\toprule"].concat(lines, ["\\bottomrule", "\\end{tabular}"]).join("\n") + "\n";
  }

  /* A page opened as a file may have no clipboard interface; a selected text box always has. */
  function byHand(content) {
    var box = document.body.appendChild(document.createElement("textarea"));
    box.value = content;
    box.style.position = "fixed";
    box.select();
    var done = document.execCommand("copy");
    box.remove();
    return done;
  }
  function put(content, button) {
    var name = button.dataset.name;
    function say(done) {
      button.textContent = done ? "copied" : "cannot copy here";
      setTimeout(function () { button.textContent = name; }, 1500);
    }
    if (navigator.clipboard && window.isSecureContext) {
      navigator.clipboard.writeText(content).then(function () { say(true); }, function () { say(byHand(content)); });
    } else say(byHand(content));
  }

  var hints = [];
  document.querySelectorAll("#content .wide > table").forEach(function (table) {
    var wide = table.parentNode, tools = document.createElement("div"), hint = document.createElement("span");
    var copy = document.createElement("span");
    tools.className = "tools";
    hint.className = "hint";
    hint.textContent = "\u2194 scroll sideways for more columns";
    copy.append("Copy as");
    tools.append(hint, copy);
    [["Markdown", markdown], ["CSV", csv], ["LaTeX", latex]].forEach(function (kind) {
      var button = copy.appendChild(document.createElement("button"));
      button.type = "button";
      button.textContent = button.dataset.name = kind[0];
      button.copied = function () { return kind[1](table); };
      button.addEventListener("click", function () { put(button.copied(), button); });
    });
    wide.after(tools);
    hints.push(function () {
      var scrolls = wide.scrollWidth > wide.clientWidth + 1;
      hint.hidden = !scrolls && wide.clientWidth > 0;
      wide.classList.toggle("scrolls", scrolls);
    });
  });
  function update() { hints.forEach(function (one) { one(); }); }
  window.addEventListener("resize", update);
  document.addEventListener("toggle", update, true);
  update();
})();
