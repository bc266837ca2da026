"""Which sets of slates are frozen, how they are called and described, and the slates themselves.

Of all rows or of some of them: a row's slate depends on the row alone, and on what all train rows say of the items.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.example_set import ExampleSet
from sirius_rec.data.impressions import impression_slates
from sirius_rec.data.options import DRAWN, INTERACTED_LEAKY, PAST, SlateOptions
from sirius_rec.data.protocols import (
    EXCLUSION_WARNING,
    HARD_CAUTION,
    LEGACY_WARNING,
    hard_slates,
    legacy_slates,
    popularity_slates,
)
from sirius_rec.data.slates import (
    ExcludedItems,
    Int,
    interacted_items,
    seen_items,
    slates_from_examples,
    uniform_slates,
)
from sirius_rec.schema import SPLIT, SlateName

_FULL = "every item of the catalogue, in its order, but those that the user interacted with before"


class Rows(Protocol):
    """Examples and, aligned with them, what their users interacted with, ever and up to each target."""

    @property
    def examples(self) -> pl.DataFrame: ...
    @property
    def interacted(self) -> ExcludedItems: ...
    @property
    def past(self) -> ExcludedItems: ...


def excludes(slates: Sequence[SlateOptions], shared_users: bool) -> list[str | None]:
    """What each entry excludes. ConfigError where that leaks and is not called so."""
    return [option.excludes(shared_users) for option in slates]


def slate_names(
    slates: Sequence[SlateOptions], excluded: Sequence[str | None], present: Collection[str], n_items: int
) -> dict[SlateName, str | None]:
    """Names of the sets of slates, with what each excludes. present: the splits that have rows."""
    return {
        SlateName(split, option.protocol, option.size or n_items, option.seed, exclude == INTERACTED_LEAKY): exclude
        for option, exclude in zip(slates, excluded, strict=True)
        for split in option.splits
        if split in present
    }


def too_few_negatives(
    rows: Rows, n_items: int, slates: Sequence[SlateOptions], excluded: Sequence[str | None]
) -> npt.NDArray[np.bool_]:
    """Rows whose user leaves too few items for the negatives of some slate."""
    short = np.zeros(rows.examples.height, dtype=bool)
    for option, exclude in zip(slates, excluded, strict=True):
        if option.protocol in DRAWN and option.size is not None:
            asked = rows.examples[SPLIT].is_in(option.splits).to_numpy()
            short |= asked & (n_items - excluded_by(rows, exclude).count_R < option.size - 1)
    return short


def excluded_by(rows: Rows, exclude: str | None) -> ExcludedItems:
    return rows.past if exclude == PAST else rows.interacted


def freeze(
    rows: Rows,
    name: SlateName,
    exclude: str | None,
    *,
    n_items: int,
    fingerprint: str,
    count_I: Int | None = None,
    train: ExampleSet | None = None,
) -> pl.DataFrame:
    """row_id and candidates (protocol full: excluded items) of rows of one split.

    fingerprint: of the data set's items and examples. count_I: see `train_counts`, for protocol popularity. train: all
    train rows, for protocol hard.
    """
    if name.protocol == "full":
        return seen_items(rows.examples, rows.past)
    if name.protocol == "given":
        return slates_from_examples(rows.examples, name=name)
    if name.protocol == "sdpo-legacy":
        return legacy_slates(rows.examples, n_items=n_items, name=name)
    excluded = excluded_by(rows, exclude)
    if name.protocol == "impressions":
        return impression_slates(rows.examples, excluded, n_items=n_items, name=name, fingerprint=fingerprint)
    if name.protocol == "popularity":
        assert count_I is not None
        return popularity_slates(rows.examples, excluded, count_I, name=name, fingerprint=fingerprint)
    if name.protocol == "hard":
        assert train is not None
        of_train = train.past if exclude == PAST else interacted_items(train.examples)
        return hard_slates(
            rows.examples, excluded, train.examples, of_train, n_items=n_items, name=name, fingerprint=fingerprint
        )
    return uniform_slates(rows.examples, excluded, n_items=n_items, name=name, fingerprint=fingerprint)


def description(name: SlateName, exclude: str | None, rows: int, fingerprint: str) -> dict[str, Any]:
    """What dataset.json says of a set of slates."""
    about: dict[str, Any] = {"rows": rows, "size": name.size}
    if name.protocol == "full":
        return {**about, "candidates": _FULL, "fingerprint": fingerprint}
    about["fingerprint"] = fingerprint
    if exclude is not None:
        about["exclude"] = exclude
    if cautions := _cautions(name):
        about["caution"] = "; ".join(cautions)
    return about


def _cautions(name: SlateName) -> list[str]:
    """What to know before these slates are trusted."""
    found = []
    if name.exclusion_leaks:
        found.append(EXCLUSION_WARNING)
    elif name.leaky:
        found.append(LEGACY_WARNING)
    if name.protocol == "hard":
        found.append(HARD_CAUTION)
    return found
