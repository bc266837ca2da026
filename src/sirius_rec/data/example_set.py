"""From what a source hands over to numbered items and examples, in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from sirius_rec.data.filtering import FilterStep, filter_events
from sirius_rec.data.fingerprint import table_fingerprint
from sirius_rec.data.impressions import Impressions, impression_report
from sirius_rec.data.options import WindowOptions
from sirius_rec.data.slates import ExcludedItems, interacted_items, past_items
from sirius_rec.data.splitting import by_time, by_user, leave_last_out
from sirius_rec.data.titles import distinct_titles
from sirius_rec.data.windows import Windows, anchored_windows
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.schema import (
    CANDIDATES,
    HISTORY,
    ITEM,
    ITEM_ID,
    ROW_ID,
    SPLIT,
    SPLITS,
    TARGET,
    TIMESTAMP,
    TITLE,
    USER_ID,
    Examples,
    Interactions,
)

EXAMPLE_SCHEMA: Final[dict[str, pl.DataType | type[pl.DataType]]] = {
    ROW_ID: pl.Int64,
    USER_ID: pl.String,
    HISTORY: pl.List(pl.Int32),
    TARGET: pl.Int32,
    TIMESTAMP: pl.Int64,
    SPLIT: pl.String,
}


@dataclass(frozen=True)
class ExampleSet:
    """Everything that slates are made of.

    items: item, item_id, title (distinct).
    examples: as in examples.parquet, plus `candidates` (list[int32]) where the source brings slates, or `impressions`
        (list[int32]): what the user was shown with the target, where it brings those.
    interacted, past: aligned with examples; what the row's user ever interacted with, and what up to the row's target.
    statistics, filters, titles: for dataset.json.
    """

    items: pl.DataFrame
    examples: pl.DataFrame
    interacted: ExcludedItems
    past: ExcludedItems
    statistics: dict[str, Any]
    filters: dict[str, Any]
    titles: dict[str, Any]

    def select(self, rows: npt.NDArray[np.bool_]) -> ExampleSet:
        """The same with a selection of examples."""
        chosen = self.examples.filter(pl.Series(rows))
        interacted, past = self.interacted.select(rows), self.past.select(rows)
        return replace(self, examples=chosen, interacted=interacted, past=past)


def from_interactions(
    source: Interactions,
    *,
    min_item: int,
    min_user: int,
    min_sequence: int,
    split: str,
    ratios: Sequence[int],
    split_seed: int,
    window: WindowOptions,
) -> ExampleSet:
    """Filter, split and window a source of events.

    The catalogue keeps every item of the source when no filter is on, and the surviving items otherwise; items keep the
    source's order, and users the order of their first row.

    Raises:
        DataError: the filters leave nothing, or no user has enough events for a window.
    """
    events, steps = filter_events(source.events, min_item=min_item, min_user=min_user, sequence=min_sequence)
    catalogue = source.items
    if max(min_item, min_user, min_sequence) > 1:
        catalogue = catalogue.filter(pl.col(ITEM_ID).is_in(events[ITEM_ID].unique().to_list()))
    items, titles = number_items(catalogue)
    item_E = _numbered(events[ITEM_ID], items)
    users = events[USER_ID].unique(maintain_order=True)
    user_E = events[USER_ID].rle_id().cast(pl.Int64).to_numpy()
    assert user_E[-1] == len(users) - 1, "a source must hand over each user's events together"
    time_E = events[TIMESTAMP].to_numpy()

    splitters: dict[str, Callable[[], npt.NDArray[np.int8]]] = {
        "user": lambda: by_user(user_E, ratios=ratios, seed=split_seed),
        "time": lambda: by_time(time_E, ratios=ratios),
        "leave_last_out": lambda: leave_last_out(user_E),
    }
    shown = None if source.impressions is None else Impressions.of(source.impressions, users, items)
    sequences = Sequences(users, user_E, item_E, time_E, splitters[split](), shown)
    rows = windowed(sequences, window, items.height)
    count_U = np.bincount(user_E, minlength=len(users))
    if not rows.examples.height:
        raise no_windows(len(users), int(count_U.max(initial=0)), window)
    statistics = event_statistics(count_U, items.height, int(np.count_nonzero(np.bincount(item_E))), rows.counts)
    after = {"users": len(users), "items": statistics["n_items_seen"], "events": events.height}
    filters = filter_report(after, steps, rows.counts["repeats"])
    if shown is not None:
        filters |= impression_report(len(shown.item_N), shown.dropped)
    return ExampleSet(items, rows.examples, rows.interacted, rows.past, statistics, filters, titles)


@dataclass(frozen=True)
class Sequences:
    """Events of U users, each user's together and in time order.

    users: ids. user_E: 0 … U-1, each in use, ascending. item_E: item numbers. time_E: seconds. label_E: int8, the
    split of each event as a target. impressions: what the users were shown and passed over, where that is known.
    """

    users: pl.Series
    user_E: npt.NDArray[np.int64]
    item_E: npt.NDArray[np.int64]
    time_E: npt.NDArray[np.int64]
    label_E: npt.NDArray[np.int8]
    impressions: Impressions | None = None


@dataclass(frozen=True)
class Windowed:
    """examples, and interacted and past aligned with them: see `ExampleSet`.

    counts: of sequences with a row, of targets in their own history (`repeats`), and of histories; those of parts of a
    log, users kept together, add up to those of the whole.
    """

    examples: pl.DataFrame
    interacted: ExcludedItems
    past: ExcludedItems
    counts: dict[str, int]


def windowed(sequences: Sequences, window: WindowOptions, n_items: int, first_row: int = 0) -> Windowed:
    """All rows of these users, numbered from `first_row`."""
    user_E, item_E = sequences.user_E, sequences.item_E
    windows = anchored_windows(
        user_E, item_E, max_history=window.max_history, min_history=window.min_history, step=window.step or 1
    )
    target_R = windows.position_R
    user_R = user_E[target_R]
    examples = pl.DataFrame(
        {
            ROW_ID: np.arange(first_row, first_row + target_R.size),
            USER_ID: sequences.users.gather(user_R),
            HISTORY: windows.history,
            TARGET: item_E[target_R],
            TIMESTAMP: sequences.time_E[target_R],
            SPLIT: pl.Series(SPLITS).gather(sequences.label_E[target_R]),
        },
        schema_overrides=EXAMPLE_SCHEMA,
    )
    if sequences.impressions is not None:
        examples = examples.with_columns(sequences.impressions.before(user_E, sequences.time_E, target_R))
    stop_U = np.bincount(user_E, minlength=len(sequences.users)).cumsum()
    start_R, stop_R = np.r_[0, stop_U][user_R], stop_U[user_R]
    # each user's items once, in order of first appearance: a source may keep repeated events
    first_E = pl.Series(user_E * n_items + item_E).is_first_distinct().to_numpy()
    before_E = np.r_[0, first_E.cumsum()]
    interacted = ExcludedItems(item_E[first_E], before_E[start_R], before_E[stop_R])
    past = ExcludedItems(item_E[first_E], before_E[start_R], before_E[target_R + 1])
    counts = {
        "sequences": np.unique(user_R).size,
        "repeats": int(examples.select(pl.col(HISTORY).list.contains(pl.col(TARGET)).sum()).item()),
        **_history_counts(windows, item_E.size),
    }
    return Windowed(examples, interacted, past, counts)


def _history_counts(windows: Windows, n_events: int) -> dict[str, int]:
    length_R = windows.position_R - windows.start_R
    longest_E = np.zeros(n_events + 1, dtype=np.int64)  # of the histories that start at an event
    np.maximum.at(longest_E, windows.start_R, length_R)
    return {
        "starts": int(np.count_nonzero(longest_E)),
        "items": int(length_R.sum()),
        "items_once_per_start": int(longest_E.sum()),
    }


def no_windows(n_users: int, longest: int, window: WindowOptions) -> DataError:
    """The error that no user has enough events for a row."""
    return DataError(
        f"no windows: the longest of {n_users} sequences has {longest} events, a history of {window.min_history} and "
        f"its target need {window.min_history + 1}; lower min_history"
    )


def event_statistics(
    count_U: npt.NDArray[np.integer[Any]], n_items: int, n_seen: int, counts: dict[str, int]
) -> dict[str, Any]:
    """For dataset.json. count_U: events of each user. n_seen: items with events. counts: as in `Windowed`."""
    n_events = int(count_U.sum())
    return {
        "n_users": count_U.size,
        "n_items": n_items,
        "n_items_seen": n_seen,
        "n_interactions": n_events,
        "n_sequences": counts["sequences"],
        "density": n_events / (count_U.size * n_items),
        "events_per_user": {
            "min": int(count_U.min()),
            "median": float(np.median(count_U)),
            "mean": float(count_U.mean()),
            "max": int(count_U.max()),
        },
        "histories": {name: counts[name] for name in ("starts", "items", "items_once_per_start")},
    }


def from_examples(source: Examples, *, window: WindowOptions) -> ExampleSet:
    """Number a source of ready-made windows; histories are cut to the last `max_history` items.

    Rows with fewer than `min_history` history items are dropped and counted; row_id is the row's number in the source.

    Raises:
        ConfigError: anchored windows, which need each history's place in its user's sequence.
        DataError: no row is left.
    """
    if window.kind == "anchored":
        raise ConfigError(
            "window.kind anchored: these rows come with their histories, of which nobody knows where in a user's "
            "sequence they start; use kind sliding"
        )
    items, titles = number_items(source.items)
    rows = source.rows.with_row_index(ROW_ID)
    long_enough = rows.filter(pl.col(HISTORY).list.len() >= window.min_history)
    if not long_enough.height:
        longest = rows[HISTORY].list.len().max()
        raise DataError(
            f"no windows: the longest of {rows.height} histories has {longest!r} items, min_history is "
            f"{window.min_history}; lower it"
        )
    ids = pl.Enum(items[ITEM_ID])  # its physical values are the item numbers
    number = pl.element().to_physical().cast(pl.Int32)
    columns = {
        ROW_ID: pl.col(ROW_ID),
        USER_ID: pl.col(USER_ID) if USER_ID in rows.columns else pl.lit(None),
        HISTORY: pl.col(HISTORY).list.tail(window.max_history).cast(pl.List(ids)).list.eval(number),
        TARGET: pl.col(TARGET).cast(ids).to_physical(),
        TIMESTAMP: pl.col(TIMESTAMP) if TIMESTAMP in rows.columns else pl.lit(None),
        SPLIT: pl.col(SPLIT),
    }
    casts = [expression.cast(EXAMPLE_SCHEMA[name]).alias(name) for name, expression in columns.items()]
    if CANDIDATES in rows.columns:
        casts.append(pl.col(CANDIDATES).cast(pl.List(ids)).list.eval(number).cast(pl.List(pl.Int32)))
    examples = long_enough.select(casts)
    seen = pl.concat([examples[HISTORY].explode().drop_nulls(), examples[TARGET]])
    statistics = {
        "n_users": examples[USER_ID].drop_nulls().n_unique() or None,
        "n_items": items.height,
        "n_items_seen": seen.n_unique(),
        "n_interactions": None,
        "n_sequences": examples.height,
        "density": None,
        "events_per_user": None,
        "histories": None,
    }
    filters = {
        "steps": [],
        "rows_read": rows.height,
        "rows_with_short_history_dropped": rows.height - examples.height,
        "targets_in_own_history": int(examples.select(pl.col(HISTORY).list.contains(pl.col(TARGET)).sum()).item()),
    }
    interacted = interacted_items(examples)
    past = past_items(examples) if examples[USER_ID].drop_nulls().len() else interacted
    return ExampleSet(items, examples, interacted, past, statistics, filters, titles)


def number_items(catalogue: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, Any]]:
    """item, item_id, title with titles made distinct, further columns as they are; and what was renamed."""
    titles, renamed = distinct_titles(catalogue[TITLE].to_list())
    items = pl.DataFrame(
        {ITEM: np.arange(catalogue.height), ITEM_ID: catalogue[ITEM_ID], TITLE: titles},
        schema_overrides={ITEM: pl.Int32},
    ).hstack(catalogue.select(pl.exclude(ITEM_ID, TITLE)).get_columns())
    changes = [{ITEM_ID: items[ITEM_ID][k], TITLE: titles[k]} for k in renamed]
    return items, {"renamed_to_be_distinct": len(renamed), "renamed": changes}


def drawn_from(items: pl.DataFrame) -> str:
    """The fingerprint of what slates are drawn from: further columns of the catalogue change no slates."""
    return table_fingerprint(items.select(ITEM, ITEM_ID, TITLE))


def check_no_filters(**least: int) -> None:
    """Raise a `ConfigError` if a filter on events is asked of a source that brings windows."""
    for name, value in least.items():
        if value > 1:
            raise ConfigError(
                f"{name}={value}: this source brings ready-made windows, which cannot be filtered; set it to 1"
            )


def _numbered(ids: pl.Series, items: pl.DataFrame) -> npt.NDArray[np.int64]:
    return ids.cast(pl.Enum(items[ITEM_ID])).to_physical().cast(pl.Int64).to_numpy()


def filter_report(after: dict[str, int], steps: list[FilterStep], repeats: int) -> dict[str, Any]:
    """For dataset.json. after: users, items and events that the filters left."""
    before = {what: count + sum(getattr(step, what) for step in steps) for what, count in after.items()}
    return {"before": before, "steps": [asdict(step) for step in steps], "after": after} | (
        {"targets_in_own_history": repeats} if repeats else {}
    )
