"""How the answer is written: otherwise than the other candidates, or somewhere in the prompt."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np

from sirius_rec.audit.evidence import Evidence, compared, flip_p, groupings
from sirius_rec.audit.learned import class_scores
from sirius_rec.audit.negatives import negatives_of
from sirius_rec.audit.slates import NONE, Catalogue, Int, SlateSet, expected_hits

_ODD_SPACE = re.compile(r"[^\S ]|  |[\u200b-\u200f\u2060\ufeff]")
_WORD = re.compile(r"\w+")
_EDGES = " \t\r\n.,;:!?\"'`*_“”‘’()[]"
_ROUNDS = 10


def plain(title: str) -> str:
    """A title without case, odd spaces, and punctuation at its ends.

    >>> plain(" The\u00a0 Wall. ") == plain("the wall")
    True
    """
    text = unicodedata.normalize("NFKC", title).casefold()
    return " ".join(re.sub(r"[\u200b-\u200f\u2060\ufeff]", "", text).split()).strip(_EDGES)


def _style(title: str) -> tuple[bool | str, ...]:
    """What the way of writing shows apart from the words."""
    letters = [c for c in title if c.isalpha()]
    case = "lower" if title == title.lower() else "upper" if title == title.upper() else "mixed"
    return (
        title != title.strip(),
        bool(_ODD_SPACE.search(title)),
        title.rstrip().endswith((".", "!", ",", ";")),
        title.strip()[:1] in "\"'`*“‘",
        title != unicodedata.normalize("NFC", title),
        case if letters else "none",
    )


def spelling(slates: SlateSet, learn: Sequence[SlateSet], catalogue: Catalogue, seed: int) -> Evidence:
    """The candidate written as targets are: case, spaces, a full stop, or otherwise than the same title elsewhere.

    Learned from the other half of the rows. Control: every candidate written as its title is elsewhere (histories,
    negatives, items table), so that how popular titles are written cancels.
    """
    titles = catalogue.titles
    keys = np.unique(np.array([plain(title) for title in titles]), return_inverse=True)[1]
    mentions_I = np.zeros(len(titles))
    for part in (slates, *learn):
        flat = part.history_RH[part.history_RH != NONE]
        mentions_I += np.bincount(flat, minlength=len(titles))
        if part.has_slates:
            mentions_I += np.bincount(negatives_of(part)[1], minlength=len(titles))
    mentions_I[list(catalogue.tabled)] += 1
    # the title's most frequent way of writing elsewhere; -1 where it is nowhere else
    usual_K = np.full(int(keys.max()) + 1, -1)
    order = np.argsort(mentions_I, kind="stable")
    order = order[mentions_I[order] > 0]
    usual_K[keys[order]] = order
    usual_I = usual_K[keys]
    styles = sorted({_style(title) for title in titles}, key=repr)
    number = {style: k for k, style in enumerate(styles)}
    style_I = np.array([number[_style(title)] for title in titles], dtype=np.int64)
    everywhere = int(np.bincount(style_I, weights=mentions_I).argmax())
    otherwise_I = (usual_I >= 0) & (usual_I != np.arange(len(titles)))
    usual_style_I = np.where(usual_I >= 0, style_I[np.maximum(usual_I, 0)], everywhere)
    item_RC = np.maximum(slates.candidates_RC, 0)
    hits, control = (
        expected_hits(class_scores(slates, class_I[item_RC], slates.position_R), slates.position_R, slates.valid_RC)
        for class_I in (2 * style_I + otherwise_I, 2 * usual_style_I)
    )
    rows: Int = np.arange(slates.n_rows)
    evidence = Evidence("spelling", "channel", "", hits, rows, control)
    evidence.p = flip_p(hits - control, groupings(slates, rows), seed)
    differing = float(otherwise_I[slates.target_R].mean())
    evidence.facts["targets_written_otherwise"] = differing
    evidence.why = (
        f"the candidate written as targets are {compared(evidence, 'every title written as elsewhere')}; "
        f"{differing:.1%} of targets are written otherwise than elsewhere"
    )
    return evidence


def mentions(prompts: Iterable[str], titles: Sequence[str]) -> list[dict[int, int]]:
    """For each prompt, how often each title (by its number) stands in it; of titles inside another, the longest.

    Case and punctuation do not count, so that a title is found in a sentence, in JSON and in a list.

    >>> mentions(["Liked: Air Supply. Answer: air"], ["Air", "Air Supply"])
    [{1: 1, 0: 1}]
    """
    by_words: dict[tuple[str, ...], list[int]] = {}
    for number, title in enumerate(titles):
        if words := tuple(_WORD.findall(title.casefold())):
            by_words.setdefault(words, []).append(number)  # titles that differ in case or punctuation alone
    starts: dict[str, list[tuple[str, ...]]] = {}
    for title_words in sorted(by_words, key=len, reverse=True):
        starts.setdefault(title_words[0], []).append(title_words)
    counted = []
    for prompt in prompts:
        spoken = _WORD.findall(prompt.casefold())
        counts: dict[int, int] = {}
        at = 0
        while at < len(spoken):
            longest = next((w for w in starts.get(spoken[at], ()) if tuple(spoken[at : at + len(w)]) == w), None)
            for number in by_words[longest] if longest else ():
                counts[number] = counts.get(number, 0) + 1
            at += len(longest) if longest else 1
        counted.append(counts)
    return counted


def answer_in_prompt(slates: SlateSet, mentioned: Sequence[dict[int, int]], seed: int) -> Evidence:
    """The candidate that the prompt mentions most often, anywhere: in a sentence, in JSON, after the slate.

    Control: the same with the prompts of random other rows, which hold the words that every prompt has.
    """
    n = slates.n_rows
    rng = np.random.default_rng([seed, 27])
    slate = slates.candidates_RC.tolist()

    def hits(prompt_R: Int) -> np.ndarray:
        score_RC = [
            [mentioned[p].get(item, 0) for item in row] for p, row in zip(prompt_R.tolist(), slate, strict=True)
        ]
        return expected_hits(np.array(score_RC, dtype=np.float64), slates.position_R, slates.valid_RC)

    rows: Int = np.arange(n)
    others = [hits((rows + shift) % n) for shift in rng.integers(1, max(n, 2), _ROUNDS)]
    evidence = Evidence("answer_in_prompt", "channel", "", hits(rows), rows, np.mean(others, axis=0))
    assert evidence.control_R is not None
    evidence.p = flip_p(evidence.hits_R - evidence.control_R, groupings(slates, rows), seed)
    evidence.why = (
        f"the candidate that the prompt mentions most often {compared(evidence, 'the prompts of other rows')}"
    )
    return evidence
