"""The three sentences of the top: true to the rows and tests of the tables, above all where these seem to disagree."""

from __future__ import annotations

import pytest

from sirius_rec.evaluation.results import decision
from sirius_rec.report.answer import answer

SLATES = "test-uniform-20-s0"


def facts(role, base=None, random=True):
    return {"role": role, "random": random, "base": base}


METHODS = {
    "random": facts("trivial", random=False), "popularity": facts("trivial", random=False),
    "item_knn": facts("trivial", random=False), "ease": facts("baseline", random=False), "sft": facts("sft"),
    "dpo": facts("arm"), "dpo_sirius": facts("arm", "dpo"),
    "dpo_c1": facts("arm", "dpo"), "sdpo": facts("arm"), "sdpo_sirius": facts("arm", "sdpo"),
}  # fmt: skip
LABELS = {"item_knn": "Item-kNN", "dpo": "DPO", "dpo_sirius": "DPO + SIRIUS", "sdpo": "S-DPO", "sft": "SFT"}


def row(method, hr, width=0.02, seeds=(0, 1, 2), **more):
    low, high = (None, None) if width is None else (hr - width, hr + width)
    return {
        "method": method, "label": LABELS.get(method, method), "role": METHODS[method]["role"], "seeds": list(seeds),
        "slates": SLATES, "checkpoint": "best", "chance": 0.05, "hr@1": hr, "hr@1_low": low, "hr@1_high": high, **more,
    }  # fmt: skip


def pair(method, against, difference, low, high, p=0.001, these=None, one_seed=False, **more):
    return {
        "method": method, "against": against, "slates": SLATES, "checkpoint": "best", "difference": difference,
        "low": low, "high": high, "p_holm": p, "p_holm_these_seeds": p if these is None else these,
        "one_seed": one_seed, "seeded": True, "against_base": METHODS[method]["base"] == against, **more,
    }  # fmt: skip


BETTER, WORSE = (0.05, 0.01, 0.09), (-0.05, -0.09, -0.01)


def said(rows, tests=(), diagnostics=None):
    return answer({"summary": list(rows), "paired": list(tests), "methods": METHODS}, diagnostics)


def best(*rows, tests=()):
    return said(rows, tests)[0]


def anchor(*tests):
    return said([row("dpo", 0.5), row("sdpo", 0.5)], tests)[1]


@pytest.mark.parametrize(
    ("spread", "more", "words"),
    [
        (BETTER, {}, "above the best trivial baseline, Item-kNN at 0.400"),
        (WORSE, {}, "below the best trivial baseline, Item-kNN at 0.400"),
        (BETTER, {"p": 0.3}, "with no clear difference from the best trivial baseline, Item-kNN at 0.400"),
        # p is small, but the interval over seeds holds zero; and one seed says nothing of others
        ((0.05, -0.01, 0.11), {}, "higher than the best trivial baseline, Item-kNN at 0.400 on these seeds only"),
        (WORSE, {"one_seed": True}, "lower than the best trivial baseline, Item-kNN at 0.400 on these seeds only"),
        # over seeds nothing is clear, on these seeds it is
        ((0.05, -0.2, 0.3), {"p": 0.6, "these": 0.01}, "higher than the best trivial baseline, Item-kNN at 0.400 on"),
    ],
)
def test_the_paired_test_outvotes_the_values(spread, more, words):
    """Values say +0.1, intervals do not overlap: the sentence says what the table's test says."""
    test = pair("dpo", "item_knn", *spread, **more)
    text = best(row("dpo", 0.5), row("item_knn", 0.4, seeds=(0,)), tests=[test])
    assert text == (
        f"The best trained method is DPO, HR@1 0.500 [0.480, 0.520], {words}, and above random choice (0.050)."
    ) or (words.endswith(" on") and words in text)
    assert "not tested" not in text
    assert (decision(test) == "better") == (", above the best" in text)


@pytest.mark.parametrize(
    ("mine", "other", "words"),
    [
        (row("dpo", 0.5), row("item_knn", 0.4), "higher than the best trivial baseline, Item-kNN at 0.400 (not tested; "
         "intervals apart)"),
        (row("dpo", 0.5), row("item_knn", 0.49), "(not tested; intervals overlap)"),
        (row("dpo", 0.39), row("item_knn", 0.4), "lower than the best trivial baseline"),
        (row("dpo", 0.4), row("item_knn", 0.4), "level with the best trivial baseline"),
        (row("dpo", 0.5, width=None), row("item_knn", 0.4), "(not tested), and higher than random choice (0.050), "
         "without an interval."),
    ],
)  # fmt: skip
def test_without_a_test_it_says_so(mine, other, words):
    elsewhere = pair("dpo", "sft", *BETTER)
    text = best(mine, other, row("sft", 0.3), tests=[elsewhere])
    assert words in text and ", above the best" not in text and ", below the best" not in text


def test_chance():
    assert best(row("dpo", 0.08, width=0.01)).endswith("above random choice (0.050); no trivial baseline was scored.")
    assert "not clearly above random choice" in best(row("dpo", 0.08, width=0.04))
    assert "below random choice" in best(row("dpo", 0.02, width=0.01))
    # the random baseline is chance itself, not a baseline to be beaten
    assert "no trivial baseline was scored" in best(row("dpo", 0.5), row("random", 0.9))


def test_one_seed_is_said_of_what_has_others():
    assert "0.520], one seed, " in best(row("dpo", 0.5, seeds=(3,)), row("item_knn", 0.4, seeds=(0,)))
    assert "one seed" not in best(row("ease", 0.5, seeds=(0,)), row("item_knn", 0.4, seeds=(0,)))
    text = best(row("popularity", 0.2, seeds=(0,)), row("item_knn", 0.4, seeds=(0,)))
    assert text.startswith("No method was trained; the best trivial baseline is Item-kNN, HR@1 0.400 [0.380, 0.420], a")


def test_the_anchor():
    up, down, flat = ("dpo_sirius", "dpo", *BETTER), ("sdpo_sirius", "sdpo", *WORSE), (0.01, -0.02, 0.04)
    assert anchor(pair(*up)) == "The SIRIUS anchor helped HR@1: better for DPO (+0.050)."
    assert anchor(pair(*up), pair(*down)) == (
        "The SIRIUS anchor helped HR@1 in 1 of 2 comparisons: better for DPO (+0.050); worse for S-DPO (−0.050)."
    )
    assert anchor(pair(*down)) == "The SIRIUS anchor did not help HR@1: worse for S-DPO (−0.050)."
    unclear = pair("sdpo_sirius", "sdpo", *flat, p=0.4)
    assert anchor(pair("dpo_sirius", "dpo", *flat, p=0.4), unclear) == (
        "The SIRIUS anchor showed no clear effect on HR@1: no clear difference for DPO (+0.010) and S-DPO (+0.010)."
    )
    # a gain of one seed is no help, however small its p
    assert anchor(pair(*up, one_seed=True), unclear) == (
        "The SIRIUS anchor showed no clear effect on HR@1: on these seeds only for DPO (+0.050); no clear difference "
        "for S-DPO (+0.010)."
    )
    # a test of the anchored method against something else is not about the anchor
    # of two anchors on one base each has its own name
    rows = [row("dpo", 0.5), row("dpo_sirius", 0.55), row("dpo_c1", 0.45)]
    assert said(rows, [pair(*up), pair("dpo_c1", "dpo", *WORSE)])[1] == (
        "The SIRIUS anchor helped HR@1 in 1 of 2 comparisons: better for DPO + SIRIUS (+0.050); worse for dpo_c1 − DPO "
        "(−0.050)."
    )
    assert "was not tested" in anchor(pair("dpo_sirius", "sft", *BETTER)) and "was not tested" in anchor()


def diagnosed(**steps):
    onset = {m: {"all": {"step": step}, "seeds": {}} for m, step in steps.items()}
    return {"methods": {m: {"margin_trained": m != "sft"} for m in steps}, "onset": onset}


def test_reward_hacking():
    rows = [row("dpo", 0.5), row("sft", 0.4)]
    assert "was not tested" in said(rows)[2]
    # a margin that nothing trains is not tested, whatever its curve did
    assert "was not tested" in said(rows, diagnostics=diagnosed(sft=20))[2]
    assert said(rows, diagnostics=diagnosed(dpo=None, sft=20))[2].startswith(
        "No reward hacking was found in the one method tested"
    )
    assert said(rows, diagnostics=diagnosed(dpo=20, sdpo=None))[2] == (
        "Reward hacking was found in 1 of 2 methods tested: DPO at step 20."
    )


def test_another_answer_on_other_slates_is_not_hidden():
    large = {"slates": "test-full-900-s0"}
    rows = [row("dpo", 0.5), row("sft", 0.4), row("item_knn", 0.3)]
    rows += [row("dpo", 0.01, **large), row("sft", 0.02, **large), row("item_knn", 0.03, **large)]
    text, second, _ = said(rows, [pair("dpo_sirius", "dpo", *BETTER)])
    assert text.startswith(f"On {SLATES}, the best trained method is DPO, HR@1 0.500")
    assert text.endswith(
        " On test-full-900-s0: SFT, 0.020, lower than Item-kNN at 0.030 (not tested; intervals overlap)."
    )
    assert second == f"On {SLATES}, the SIRIUS anchor helped HR@1: better for DPO (+0.050)."
    # where the two were tested, as the table says it
    unclear = pair("sft", "item_knn", -0.01, -0.03, 0.01, 0.4) | large
    assert said(rows, [unclear])[0].endswith(
        " On test-full-900-s0: SFT, 0.020, with no clear difference from Item-kNN at 0.030."
    )
    # the same method and the same side: nothing to add
    same = [*rows[:3], row("dpo", 0.05, **large), *rows[4:]]
    assert said(same)[0].endswith("and above random choice (0.050).")
    # the same method, but below the baseline there
    rows[3]["hr@1"] = 0.025
    assert said(rows)[0].endswith(
        " On test-full-900-s0: DPO, 0.025, lower than Item-kNN at 0.030 (not tested; intervals overlap)."
    )


def test_checkpoints_are_named_where_there_are_two():
    rows = [row("dpo", 0.5), row("dpo", 0.4, checkpoint="last"), row("sft", 0.45, checkpoint="last")]
    assert (
        said(rows)[0].startswith(f"On {SLATES}, best checkpoint, the best") and "last checkpoint: SFT" in said(rows)[0]
    )
