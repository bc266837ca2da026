"""`metrics.jsonl`: one JSON line per logged step or evaluation, consistent with the checkpoint after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sirius_rec import atomic
from sirius_rec.errors import RunError


class MetricsLog:
    """Appends lines {"kind": "train"|"eval"|"other", "step": …, "epoch": …, …} and flushes each."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, line: dict[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def rewind(self, step: int) -> None:
        """Drop lines of later steps than `step`, and a half-written last line: what a killed run had gone ahead."""
        if not self.path.exists():
            return
        lines = [json.dumps(line) for line in read_metrics(self.path, tolerate_tail=True) if line["step"] <= step]
        atomic.write_text(self.path, "".join(line + "\n" for line in lines))


def read_metrics(path: Path, *, tolerate_tail: bool = False) -> list[dict[str, Any]]:
    """All lines of a metrics file. RunError naming the line if one cannot be read (the last may be, if tolerated)."""
    lines = path.read_text().splitlines()
    out: list[dict[str, Any]] = []
    for number, text in enumerate(lines, 1):
        try:
            out.append(json.loads(text))
        except json.JSONDecodeError as error:
            if tolerate_tail and number == len(lines):
                break
            raise RunError(f"{path}, line {number}: not a metrics line ({error.msg})") from error
    return out
