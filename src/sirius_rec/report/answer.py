"""What a run found, in three sentences, for the top of the page and the end of the terminal's output.

They are made from the rows and tests that the tables show, in the words of `decision`, so they cannot say otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from sirius_rec.diagnostics.wording import onset_found
from sirius_rec.evaluation.results import TRIVIAL, Facts, decision
from sirius_rec.report.text import count, interval, number, slate_size
from sirius_rec.schema import SlateName

Row = Mapping[str, Any]
_RANDOM: Final = "random"  # the trivial baseline that the chance of a slate already stands for
DECISIONS: Final = ("better", "worse", "on these seeds only", "no clear difference")


def result_keys(results: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(slates, checkpoint) of every section, small slates first, of a size uniform ones; slates with trivial baselines
    alone have their own."""
    summary = results["summary"]
    keys = {(row["slates"], row["checkpoint"]) for row in summary if row["role"] != TRIVIAL}
    models_on = {slates for slates, _ in keys}
    keys |= {(row["slates"], row["checkpoint"]) for row in summary if row["slates"] not in models_on}
    return sorted(keys, key=lambda key: (slate_size(key[0]), SlateName.parse(key[0]).protocol != "uniform", *key))


def rows_of(results: Mapping[str, Any], slates: str, checkpoint: str) -> list[Row]:
    """Summary rows of one section; trivial baselines stand in every checkpoint of their slates."""
    summary = results["summary"]
    here = [row for row in summary if row["slates"] == slates and row["checkpoint"] == checkpoint]
    named = {row["method"] for row in here}
    return here + [r for r in summary if r["slates"] == slates and r["role"] == TRIVIAL and r["method"] not in named]


def tests_of(results: Mapping[str, Any], slates: str, checkpoint: str) -> list[Row]:
    """Paired tests of one section."""
    return [test for test in results["paired"] if (test["slates"], test["checkpoint"]) == (slates, checkpoint)]


def answer(results: Mapping[str, Any], diagnostics: Mapping[str, Any] | None) -> list[str]:
    """Three statements: the best method, whether the anchor helped, and whether reward hacking was found.

    The first two are about the first section of the page (the smallest slates), which they name where there are
    several; the first also says where else another method is the best.
    """
    keys = result_keys(results)
    tests, labels = tests_of(results, *keys[0]), {row["method"]: row["label"] for row in results["summary"]}
    best = best_sentence(rows_of(results, *keys[0]), tests, results["methods"])
    anchor = anchor_sentence(tests, labels)
    if len(keys) > 1:
        name = section_names(keys)
        best = f"On {name[keys[0]]}, {best[0].lower()}{best[1:]}{_elsewhere(results, keys, name)}"
        if any(test["against_base"] for test in tests):
            anchor = f"On {name[keys[0]]}, {anchor[0].lower()}{anchor[1:]}"
    return [best, anchor, hacking_sentence(diagnostics, labels)]


def section_names(keys: Sequence[tuple[str, str]]) -> dict[tuple[str, str], str]:
    """The slates, and the checkpoint where there are several."""
    several = len({checkpoint for _, checkpoint in keys}) > 1
    return {key: f"{key[0]}, {key[1]} checkpoint" if several else key[0] for key in keys}


def _elsewhere(results: Mapping[str, Any], keys: Sequence[tuple[str, str]], name: Mapping[tuple[str, str], str]) -> str:
    """A sentence for each other section with another best method, or on another side of the trivial baselines."""
    tops, sides, out = {}, {}, ""
    for key in keys:
        rows = rows_of(results, *key)
        tops[key], strongest = _top(rows), _strongest(rows)
        sides[key] = _side(tops[key], strongest, tests_of(results, *key)) if strongest else ("", "")
        if (tops[key]["method"], sides[key][0]) != (tops[keys[0]]["method"], sides[keys[0]][0]):
            side, rest = sides[key]
            beside = f", {side} {strongest['label']} at {number(strongest['hr@1'])}{rest}" if strongest else ""
            out += f" On {name[key]}: {tops[key]['label']}, {number(tops[key]['hr@1'])}{beside}."
    return out


def _top(rows: Sequence[Row]) -> Row:
    """The trained method with the highest HR@1; where nothing was trained, the best trivial baseline."""
    trained = [row for row in rows if row["role"] != TRIVIAL]
    return max(trained or rows, key=lambda row: (row["hr@1"], row["label"]))


def best_sentence(rows: Sequence[Row], tests: Sequence[Row], methods: Facts) -> str:
    """The best trained method of one section, against the best trivial baseline and against chance."""
    top = _top(rows)
    span = interval(top, "hr@1_low", "hr@1_high")
    seeds = ", one seed" if methods[top["method"]]["random"] and len(top["seeds"]) == 1 else ""
    score = f"{top['label']}, HR@1 {number(top['hr@1'])}{f' {span}' if span else ''}{seeds}"
    strongest, chance = _strongest(rows), _against_chance(top)
    if top["role"] == TRIVIAL:
        return f"No method was trained; the best trivial baseline is {score}, {chance}."
    if strongest is None:
        return f"The best trained method is {score}, {chance}; no trivial baseline was scored."
    return f"The best trained method is {score}, {_against_simple(top, strongest, tests)}, and {chance}."


def _strongest(rows: Sequence[Row]) -> Row | None:
    """The best trivial baseline that is more than chance."""
    trivial = [row for row in rows if row["role"] == TRIVIAL and row["method"] != _RANDOM]
    return max(trivial, key=lambda row: (row["hr@1"], row["label"]), default=None)


def _against_chance(row: Row) -> str:
    chance, low, high = row["chance"], row["hr@1_low"], row["hr@1_high"]
    random = f"random choice ({number(chance)})"
    if low is None:
        word = "higher than" if row["hr@1"] > chance else "not higher than"
        return f"{word} {random}, without an interval"
    return f"{'above' if low > chance else 'below' if high < chance else 'not clearly above'} {random}"


def _against_simple(top: Row, simple: Row, tests: Sequence[Row]) -> str:
    """By the paired test where the table has one; else by the values, saying whether their intervals overlap."""
    side, rest = _side(top, simple, tests)
    return f"{side} the best trivial baseline, {simple['label']} at {number(simple['hr@1'])}{rest}"


def _side(top: Row, simple: Row, tests: Sequence[Row]) -> tuple[str, str]:
    """What stands before and behind the other's name."""
    test = next((t for t in tests if (t["method"], t["against"]) == (top["method"], simple["method"])), None)
    if test is not None:
        side = "higher than" if test["difference"] > 0 else "lower than"
        return {
            "better": ("above", ""),
            "worse": ("below", ""),
            "on these seeds only": (side, " on these seeds only"),
            "no clear difference": ("with no clear difference from", ""),
        }[decision(test)]
    gap = top["hr@1"] - simple["hr@1"]
    side = "higher than" if gap > 0 else "lower than" if gap < 0 else "level with"
    if None in (top["hr@1_low"], simple["hr@1_low"]):
        return side, " (not tested)"
    apart = top["hr@1_low"] > simple["hr@1_high"] or top["hr@1_high"] < simple["hr@1_low"]
    return side, f" (not tested; intervals {'apart' if apart else 'overlap'})"


def anchor_sentence(tests: Sequence[Row], labels: Mapping[str, str]) -> str:
    """Whether SIRIUS helped its base methods, by the paired tests of one section."""
    pairs = [test for test in tests if test["against_base"]]
    if not pairs:
        return "The SIRIUS anchor was not tested: no method was scored both with it and without, all else being equal."
    groups: dict[str, list[str]] = {}
    for test, name in zip(pairs, pair_names(pairs, labels), strict=True):
        groups.setdefault(decision(test), []).append(f"{name} ({number(test['difference'], signed=True)})")
    better, worse = (len(groups.get(word, ())) for word in ("better", "worse"))
    if better == len(pairs):
        lead = "The SIRIUS anchor helped HR@1"
    elif better:
        lead = f"The SIRIUS anchor helped HR@1 in {better} of {len(pairs)} comparisons"
    elif worse:
        lead = "The SIRIUS anchor did not help HR@1"
    else:
        lead = "The SIRIUS anchor showed no clear effect on HR@1"
    return f"{lead}: {'; '.join(f'{word} for {_listed(groups[word])}' for word in DECISIONS if word in groups)}."


def pair_names(pairs: Sequence[Row], labels: Mapping[str, str]) -> list[str]:
    """What tests of anchored methods against their bases are called: by the base, or by both where it has several."""
    names = []
    for test in pairs:
        variant, base = (labels.get(test[key], test[key]) for key in ("method", "against"))
        several = sum(other["against"] == test["against"] for other in pairs) > 1
        names.append(base if not several else variant if variant.startswith(base) else f"{variant} − {base}")
    return names


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def hacking_sentence(diagnostics: Mapping[str, Any] | None, labels: Mapping[str, str]) -> str:
    """Where reward hacking set in, over all methods whose margin is trained."""
    onsets = onset_found(diagnostics) if diagnostics else {}
    if not onsets:
        return "Reward hacking was not tested: no method has a trained margin and scores of held-out slates."
    hacked = [f"{labels.get(m, m)} at step {one['step']}" for m, one in onsets.items() if one["step"] is not None]
    if not hacked:
        each = "the one method tested" if len(onsets) == 1 else f"any of the {len(onsets)} methods tested"
        return f"No reward hacking was found in {each}: HR@1 did not fall significantly while the margin rose."
    return f"Reward hacking was found in {len(hacked)} of {count(len(onsets), 'method')} tested: {_listed(hacked)}."
