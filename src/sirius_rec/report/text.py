"""How the page writes numbers, intervals, names of slates and nested facts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from sirius_rec.schema import RETRIEVED, SlateName

MINUS: Final = "\u2212"
NO_MODEL: Final = "\u00b0"


def number(value: float | None, digits: int = 3, signed: bool = False) -> str:
    """Fixed digits with a typographic minus; a dash for what was not measured."""
    if value is None:
        return "–"
    return f"{value:{'+' if signed else ''}.{digits}f}".replace("-", MINUS)


def p_value(value: float) -> str:
    """Three digits; smaller ones as "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def interval(row: Mapping[str, Any], low: str, high: str, signed: bool = False) -> str:
    """[low, high], empty where there is none."""
    if row[low] is None:
        return ""
    return f"[{number(row[low], signed=signed)}, {number(row[high], signed=signed)}]"


def count(n: int, what: str) -> str:
    """1 method, 2 methods.

    >>> count(1200, "row")
    '1,200 rows'
    """
    return f"{n:,} {what}" if n == 1 else f"{n:,} {what}s"


def has_model(facts: Mapping[str, Any]) -> bool:
    """Whether a method, an entry of results["methods"], has a language model in it."""
    return bool(facts["language_model"])


def marked_labels(results: Mapping[str, Any]) -> dict[str, str]:
    """Method → its label as tables write it: marked by `NO_MODEL` where others have a language model and it has not."""
    without = {key for key, facts in results["methods"].items() if not has_model(facts)}
    mark = f"\u00a0{NO_MODEL}" if without != set(results["methods"]) else ""
    return {row["method"]: row["label"] + (mark if row["method"] in without else "") for row in results["summary"]}


def minus(text: str) -> str:
    """Hyphens that are signs, as minus signs."""
    for before in ("[", " ", "("):
        text = text.replace(f"{before}-", f"{before}{MINUS}")
    return MINUS + text[1:] if text.startswith("-") else text


def on_axis(label: str, most: int = 40) -> str:
    """A method's label as an axis of a figure can bear it: so many characters at most, the table has the rest.

    >>> on_axis("SASRec, loss=bce, dropout=0.5, length=50, heads=1")
    'SASRec, loss=bce, dropout=0.5, length=5…'
    """
    return label if len(label) <= most else label[: most - 1] + "…"


def slates_in_words(name: str) -> str:
    """What a set of slates is, for people."""
    slate = SlateName.parse(name)
    if slate.protocol == "full":
        return f"{slate.split} split, the whole catalogue of {slate.size:,} items"
    if slate.protocol.startswith(RETRIEVED):
        retriever = slate.protocol.removeprefix(RETRIEVED)
        best = f"the {slate.size} best of the whole catalogue by {retriever}"
        return f"{slate.split} split, {best}, which may lack the target"
    leaky = "LEAKY, seeded by the target as published: " if slate.leaky else ""
    if slate.exclusion_leaks:
        leaky = "LEAKY, negatives leave out what users interacted with later: "
    negatives = "what was shown and passed over" if slate.protocol == "impressions" else f"{slate.protocol} negatives"
    return f"{leaky}{slate.split} split, {slate.size} candidates, {negatives}, slate seed {slate.seed}"


def slate_size(name: str) -> int:
    """Number of candidates."""
    return SlateName.parse(name).size


def flat(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as ("a, b", text) pairs, their keys in words; long lists are shortened."""
    if isinstance(value, Mapping):
        names = {key: str(key).removeprefix("n_").replace("_", " ") for key in value}
        return [pair for key in value for pair in flat(value[key], f"{prefix}, {names[key]}" if prefix else names[key])]
    if isinstance(value, list):
        shown = ", ".join(json.dumps(entry, ensure_ascii=False) for entry in value[:8])
        return [(prefix, shown + (f", … ({len(value)})" if len(value) > 8 else "") if value else "none")]
    if isinstance(value, bool):
        return [(prefix, "yes" if value else "no")]
    if isinstance(value, int):
        return [(prefix, f"{value:,}" if abs(value) >= 10_000 else str(value))]
    return [(prefix, "–" if value is None else str(value))]
