"""Tables as people paste them: Markdown, CSV, LaTeX."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

Format = Literal["md", "csv", "tex"]
_TEX: Final = str.maketrans({
    "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}", "\\": r"\textbackslash{}", "–": "--", "−": "$-$", "°": r"$^\circ$",
})  # fmt: skip


@dataclass(frozen=True)
class Table:
    """title, headings, rows of as many cells; notes: sentences below it. The first column is text, others numbers."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def text(self, form: Format) -> str:
        """The whole table, with a line break at its end. CSV holds headings and rows alone."""
        return {"md": self._markdown, "csv": self._csv, "tex": self._latex}[form]()

    def _markdown(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"

        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [f"**{self.title}**", "", line(self.headings), f"|{'|'.join(rule)}|", *map(line, self.rows)]
        notes = ["", *(f"- {note}" for note in self.notes)] if self.notes else []
        return "\n".join([*lines, *notes, ""])

    def _csv(self) -> str:
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([self.headings, *self.rows])
        return out.getvalue()

    def _latex(self) -> str:
        def line(cells: Sequence[str]) -> str:
            return " & ".join(cell.translate(_TEX) for cell in cells) + r" \\"

        body = [
            r"\begin{table}", r"\centering", rf"\caption{{{self.title.translate(_TEX)}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(self.headings) - 1)}}}", r"\toprule", line(self.headings), r"\midrule",
            *map(line, self.rows), r"\bottomrule", r"\end{tabular}",
            *(rf"\\[2pt]{{\footnotesize {note.translate(_TEX)}}}" for note in self.notes), r"\end{table}", "",
        ]  # fmt: skip
        return "\n".join(body)
