"""From a source to a dataset folder: load, filter, split, window, freeze slates, write."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sirius_rec.cluster import Cluster
from sirius_rec.data.example_set import (
    EXAMPLE_SCHEMA,
    ExampleSet,
    check_no_filters,
    drawn_from,
    from_examples,
    from_interactions,
)
from sirius_rec.data.fingerprint import combined_fingerprint, table_fingerprint
from sirius_rec.data.freezing import description, excludes, freeze, slate_names, too_few_negatives
from sirius_rec.data.holding_out import HeldOut, hold_out
from sirius_rec.data.impressions import filled_in_words, filled_up
from sirius_rec.data.intake import checked, content_fingerprint
from sirius_rec.data.options import (
    FilterOptions,
    HoldOutOptions,
    Preparation,
    Sharding,
    SlateOptions,
    SplitOptions,
    Unusable,
    WindowOptions,
)
from sirius_rec.data.protocols import train_counts
from sirius_rec.data.recipe import adopted, make_recipe, reusable
from sirius_rec.data.request import check_request, options_from, slates_from
from sirius_rec.data.sharded.work import clear
from sirius_rec.data.sources import FRAMES, is_ours, source_of
from sirius_rec.data.sources.simulated import SimulatedWorld
from sirius_rec.data.splitting import chosen
from sirius_rec.data.statistics import paper_statistics, row_statistics
from sirius_rec.data.store import ALL_TRAIN, Dataset, check_slates, full_slates, write_dataset
from sirius_rec.data.usable import short_titles, source_options
from sirius_rec.data.windows import as_lists
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.progress import Advance
from sirius_rec.remote import Place, fetched, is_address, located
from sirius_rec.schema import (
    CANDIDATES,
    HISTORY,
    IMPRESSIONS,
    ITEM_ID,
    ROW_ID,
    SPLIT,
    SPLITS,
    USER_ID,
    UTILITY,
    Examples,
    Interactions,
    SlateName,
)

Slates = SlateOptions | Mapping[str, Any] | str
_LEARNING = ("popularity", "hard")  # protocols that need the train rows


def prepare(
    source: str | Interactions | Examples,
    input: Place | None,
    out: Path | str,
    *,
    options: Mapping[str, Any] | None = None,
    filter: FilterOptions | Mapping[str, Any] = FilterOptions(),
    split: SplitOptions | Mapping[str, Any] | str = SplitOptions(),
    window: WindowOptions | Mapping[str, Any] = WindowOptions(),
    slates: Slates | Sequence[Slates] = (SlateOptions(),),
    seed: int = 0,
    limits: Mapping[str, int] | None = None,
    unusable: Unusable = "refuse",
    max_title: int | None = None,
    prepared: Path | None = None,
    sharding: Sharding | None = None,
    held_out: HoldOutOptions | Mapping[str, Any] = HoldOutOptions(),
    cluster: Cluster | None = None,
    progress: Callable[[str], None] | None = None,
    advance: Advance | None = None,
) -> Dataset:
    """Write a dataset folder, or open the one that this very recipe has written before.

    Options may be objects or dicts: `window={"max_history": 4, "min_history": 2}`.

    Args:
        source: a name in `SOURCES`; or the events and items themselves, in frames of polars or pandas.
        input: the source's file or folder, or the address of one; None for a simulated world and for frames.
        options: of the source.
        filter: least events per item, user and sequence.
        split: who or what is trained on, validated and tested; a word is its `kind`.
        window: how much history a row has.
        slates: what is frozen, one entry for each set; a word is its `protocol`. An empty list: rows without slates.
        out: the folder to write; it appears only when it is complete.
        seed: of the source (ties, simulated world) and of the rows that limits choose.
        limits: at most so many rows per split, drawn at random; the rows kept are the same rows, with the same slates,
            as without a limit. Train rows beyond the limit stay in a table of their own, for all but language models.
        unusable: rows and items that cannot be used (items without title, rows of unknown items or with times that do
            not parse, titles beyond `max_title`) are refused, or dropped and counted, as far as the source has such.
        max_title: longer titles, in characters, cannot be used; None is no bound.
        prepared: a folder that this recipe has made, on this machine or another: it is copied, so that its rows and
            slates stay as they were frozen, and input is not needed.
        sharding: how a log is divided so that it is prepared in bounded memory; None holds all of it. For source
            `table`; the result is the same.
        held_out: what training is denied.
        cluster: where shards are worked on instead of `sharding.jobs` processes; input and out must be on a disk that
            every node has.
        progress: called with one line per stage.
        advance: called with (file, bytes done, bytes in all) as a raw dump is read, for a progress bar.

    Raises:
        ConfigError: an option is unknown or out of range, or a cluster is to hold all of a log.
        DataError: the input is not what it should be.
        RunError: out holds something else, or the input has changed since it was prepared: its files, or, where a
            source of yours names none in its notes, what it returns.
    """
    say = progress or (lambda line: None)
    out, input = Path(out).expanduser(), None if input is None else located(input)
    handed = None if isinstance(source, str) else checked(source, FRAMES)
    if handed is not None and input is not None:
        raise ConfigError(f"source {FRAMES!r} reads no input (got {input}); give None")
    asked = Preparation(
        source=source if isinstance(source, str) else FRAMES,
        input=input,
        options=dict(options or {}),
        filter=options_from(FilterOptions, filter, "filter"),
        split=options_from(SplitOptions, split, "split", "kind"),
        window=options_from(WindowOptions, window, "window"),
        slates=slates_from(slates),
        seed=seed,
        limits=dict(limits or {}),
        unusable=unusable,
        max_title=max_title,
        held_out=options_from(HoldOutOptions, held_out, "held_out"),
    )
    check_request(asked if prepared is None else replace(asked, input=prepared), sharded=sharding is not None)
    asked = replace(asked, options=source_options(asked.source, asked.options, unusable))
    recipe = make_recipe(asked)
    if cluster is not None and sharding is None:
        raise ConfigError("--engine ray: works on shards: add --shards N, or data.shards")
    if prepared is not None and handed is not None:
        raise ConfigError(f"prepared={prepared}: frames are prepared themselves; leave one of the two out")
    if prepared is not None:
        say(f"{out}: as {prepared}")
        return adopted(Path(prepared), out, recipe)
    if (known := reusable(out, recipe)) is not None:
        _check_content(known, asked, handed, say)
        say(f"{out} is already prepared" + (f"; {input} was not looked at again" if is_address(input) else ""))
        clear(out)
        return known

    path = None if input is None else fetched(input, say, *([] if advance is None else [advance]))
    if path is not None and not path.exists():
        raise DataError(
            f"{path}: no such file or folder: name yours with data.input=PATH, or fetch a publisher's files with "
            "`sirius data download` (`sirius data list` has the names)"
        )
    if sharding is None:
        say(f"reading source {asked.source}")
        loaded = _loaded(asked, path, advance) if handed is None else handed
        return _prepare_whole(asked, loaded, out, recipe, say)
    if asked.source != "table" or path is None:
        raise ConfigError(f"data.shards: source {asked.source} is read at once; leave shards out, or make tables of it")
    from sirius_rec.data.sharded.prepare import prepare_sharded

    return prepare_sharded(asked, path, out, recipe, sharding, cluster, say)


def _loaded(asked: Preparation, path: Path | None, advance: Advance | None = None) -> Interactions | Examples:
    """What the source hands over, checked unless the source is ours. path: where the input is on this machine."""
    source = source_of(asked.source)
    bar = {"advance": advance} if "advance" in inspect.signature(source).parameters else {}
    loaded = source(path, seed=asked.seed, **asked.options, **bar)
    return loaded if is_ours(source) else checked(loaded, f"source {asked.source!r}")


def _goes_by_content(asked: Preparation, notes: Mapping[str, Any]) -> bool:
    """Whether what the source hands over says whether it has changed: of frames, and where its notes name no files."""
    return asked.source == FRAMES or (not is_ours(source_of(asked.source)) and not notes.get("files"))


def _check_content(
    known: Dataset, asked: Preparation, handed: Interactions | Examples | None, say: Callable[[str], None]
) -> None:
    """Raise a `RunError` where a dataset goes by content, and that is another one now."""
    noted, input = known.info["source"], asked.input
    if not _goes_by_content(asked, noted["notes"]) or is_address(input):
        return
    if handed is None and input is not None and not Path(input).exists():  # as files that are gone by now
        return
    if handed is None:
        say(f"reading source {asked.source}, which names no files, to see whether it has changed")
        handed = _loaded(asked, None if input is None else Path(input))
    if "content" not in noted:
        raise RunError(
            f"{known.path}: was prepared by a version that did not note what source {asked.source} hands over; "
            "remove it, and it is prepared again"
        )
    if content_fingerprint(handed) != noted["content"]:
        raise RunError(
            f"{known.path}: source {asked.source} hands over other events, rows or items than when it was prepared; "
            "choose another folder or remove it"
        )


def _prepare_whole(
    asked: Preparation,
    loaded: Interactions | Examples,
    out: Path,
    recipe: dict[str, Any],
    say: Callable[[str], None],
) -> Dataset:
    """`prepare` with all events in memory."""
    window, slates, held_out = asked.window, asked.slates, asked.held_out
    content = {"content": content_fingerprint(loaded)} if _goes_by_content(asked, loaded.notes) else {}
    loaded = short_titles(loaded, asked.max_title, asked.unusable)
    say("filtering, splitting and windowing")
    example_set = _example_set(loaded, asked.filter, asked.split, window)
    notes = loaded.notes
    del loaded  # the events, which the examples now hold
    excluded = excludes(slates, asked.split.kind != "user" or _shares_users(example_set))
    if asked.unusable == "drop":
        example_set = _with_negatives(example_set, slates, excluded)
    # Without impressions, which other slates do not depend on.
    drawn_for = table_fingerprint(example_set.examples.drop(IMPRESSIONS, strict=False))
    base = combined_fingerprint({"items": drawn_from(example_set.items), "examples": drawn_for})
    held: HeldOut | None = None
    if held_out:  # behind the fingerprint: rows and slates of evaluation are those without it
        example_set, held = hold_out(example_set, held_out, window.min_history)
        say(f"data.hold_out: {held.rows:,} train rows are left out, {held.left:,} stay")
    learns = any(option.protocol in _LEARNING for option in slates)  # before the limits, which are no reason to unlearn
    train = example_set.select(learns & (example_set.examples[SPLIT] == "train").to_numpy())
    every = example_set.examples.filter(pl.col(SPLIT) == "train").select(list(EXAMPLE_SCHEMA))
    example_set = _limited(example_set, asked.limits, asked.seed)
    examples = example_set.examples.select(list(EXAMPLE_SCHEMA))
    cut = every.height > examples.filter(pl.col(SPLIT) == "train").height
    world = SimulatedWorld.from_notes(notes) if "world" in notes else None
    present = set(example_set.examples[SPLIT].unique())
    names = slate_names(slates, excluded, present, example_set.items.height)
    frozen, described = _frozen_slates(example_set, names, train, base, world, held, say)
    info = {
        "recipe": recipe,
        "source": {"name": asked.source, "notes": notes, **content},
        "statistics": {**example_set.statistics, **row_statistics(examples), **paper_statistics(asked.source)},
        "filters": example_set.filters,
        "titles": example_set.titles,
        "slates": described,
        **({} if held is None else {"hold_out": held.info(held_out)}),
    }
    say(f"writing {out}")
    return write_dataset(
        out, {"items": example_set.items, "examples": examples, **({ALL_TRAIN: every} if cut else {}), **frozen}, info
    )


def _frozen_slates(
    example_set: ExampleSet,
    names: Mapping[SlateName, str | None],
    train: ExampleSet,
    fingerprint: str,
    world: SimulatedWorld | None,
    held: HeldOut | None,
    say: Callable[[str], None],
) -> tuple[dict[str, pl.DataFrame], dict[str, Any]]:
    """Tables `slates/NAME` (and `truth/NAME` in a simulated world), and a description of each set of slates.

    names: with what each set excludes.
    """
    tables: dict[str, pl.DataFrame] = {}
    described: dict[str, Any] = {}
    for name, exclude in names.items():
        say(f"slates {name}")
        part = example_set.select((example_set.examples[SPLIT] == name.split).to_numpy())
        if held is not None and name.split == "train":
            part = held.denied_to(part)
        n_items = example_set.items.height
        counts = train_counts(train.examples, n_items) if name.protocol == "popularity" else None
        frozen = freeze(part, name, exclude, n_items=n_items, fingerprint=fingerprint, count_I=counts, train=train)
        tables[f"slates/{name}"] = frozen
        described[str(name)] = description(name, exclude, frozen.height, table_fingerprint(frozen))
        if name.protocol == "impressions":
            filled = described[str(name)]["filled_up"] = filled_up(part.examples, frozen)
            say(filled_in_words(name, filled, frozen.height))
        if name.protocol != "full":
            check_slates(f"slates {name}", frozen, part.examples, n_items)
        if world is not None:
            slates = full_slates(part.examples, frozen, n_items) if name.protocol == "full" else frozen
            tables[f"truth/{name}"] = true_utilities(world, example_set.items, part.examples, slates)
    return tables, described


def _shares_users(example_set: ExampleSet) -> bool:
    """Whether a user has rows in more than one split."""
    pairs = example_set.examples.select(USER_ID, SPLIT).drop_nulls(USER_ID).unique()
    return pairs[USER_ID].n_unique() < pairs.height


def _with_negatives(
    example_set: ExampleSet, slates: Sequence[SlateOptions], excluded: Sequence[str | None]
) -> ExampleSet:
    """The rows whose user leaves enough items for the negatives of every slate; all where that is no row."""
    short = too_few_negatives(example_set, example_set.items.height, slates, excluded)
    if not short.any() or short.all():
        return example_set
    filters = {**example_set.filters, "rows_without_enough_negatives_dropped": int(short.sum())}
    return replace(example_set.select(~short), filters=filters)


def true_utilities(
    world: SimulatedWorld, items: pl.DataFrame, examples: pl.DataFrame, slates: pl.DataFrame
) -> pl.DataFrame:
    """row_id, utility (list[float64], aligned with the candidates) of each row's slate in a simulated world."""
    world_item = world.item_index(items[ITEM_ID].to_list())
    recent = examples.select(
        pl.col(HISTORY).list.get(-back, null_on_oob=True).fill_null(-1).alias(str(back))
        for back in range(world.memory, 0, -1)
    ).to_numpy()
    histories = np.where(recent >= 0, world_item[recent], -1)
    users = world.user_index(examples[USER_ID].to_list())
    candidates = [world_item[slate.to_numpy()] for slate in slates[CANDIDATES]]
    if len({len(slate) for slate in candidates}) == 1:
        table = world.utility_table(users, histories, np.stack(candidates))
        return pl.DataFrame({ROW_ID: slates[ROW_ID], UTILITY: as_lists(UTILITY, table)})
    ragged = [
        world.utility_table(users[r : r + 1], histories[r : r + 1], slate[None])[0].tolist()
        for r, slate in enumerate(candidates)
    ]
    return pl.DataFrame({ROW_ID: slates[ROW_ID], UTILITY: pl.Series(ragged, dtype=pl.List(pl.Float64))})


def _example_set(
    loaded: Interactions | Examples, filter: FilterOptions, split: SplitOptions, window: WindowOptions
) -> ExampleSet:
    if isinstance(loaded, Examples):
        check_no_filters(**filter.model_dump())
        if split != SplitOptions():
            raise ConfigError("split: these rows come with their split; leave the options of split out")
        return from_examples(loaded, window=window)
    if "world" in loaded.notes:  # else true utilities would rest on fewer items than the user went by
        window.check_memory(SimulatedWorld.from_notes(loaded.notes).memory)
    return from_interactions(
        loaded,
        **filter.model_dump(),
        split=split.kind,
        ratios=split.ratios,
        split_seed=split.seed,
        window=window,
    )


def _limited(example_set: ExampleSet, limits: Mapping[str, int], seed: int) -> ExampleSet:
    """At most `limits[split]` rows of a split, chosen at random, in row order."""
    split_R = example_set.examples[SPLIT].to_numpy()
    keep = np.ones(len(split_R), dtype=bool)
    for name in SPLITS:
        rows = np.flatnonzero(split_R == name)
        if name in limits and len(rows) > limits[name]:
            keep[rows] = False
            keep[rows[chosen(len(rows), limits[name], name, seed)]] = True
    return example_set if keep.all() else example_set.select(keep)
