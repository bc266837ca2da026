"""From a source to a dataset folder: load, filter, split, window, freeze slates, write."""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import polars as pl
from pydantic import ConfigDict, TypeAdapter, ValidationError

from sirius_rec.data.example_set import EXAMPLE_SCHEMA, ExampleSet, check_no_filters, from_examples, from_interactions
from sirius_rec.data.fingerprint import combined_fingerprint, table_fingerprint
from sirius_rec.data.options import (
    DRAWN,
    INTERACTED_LEAKY,
    PAST,
    FilterOptions,
    SlateOptions,
    SplitOptions,
    WindowOptions,
)
from sirius_rec.data.protocols import (
    EXCLUSION_WARNING,
    HARD_CAUTION,
    LEGACY_WARNING,
    hard_slates,
    legacy_slates,
    popularity_slates,
    train_counts,
)
from sirius_rec.data.recipe import NO_OPTIONS, adopted, make_recipe, reusable
from sirius_rec.data.slates import interacted_items, seen_items, slates_from_examples, uniform_slates
from sirius_rec.data.sources import SOURCES
from sirius_rec.data.sources.simulated import SimulatedWorld
from sirius_rec.data.statistics import paper_statistics, row_statistics
from sirius_rec.data.store import ALL_TRAIN, Dataset, check_slates, full_slates, write_dataset
from sirius_rec.data.usable import Unusable, short_titles, source_options
from sirius_rec.data.windows import as_lists
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import (
    CANDIDATES,
    HISTORY,
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

_LEARNING = ("popularity", "hard")  # protocols that need the train rows


def prepare(
    source: str,
    input: Path | None,
    out: Path,
    *,
    options: Mapping[str, Any] | None = None,
    filter: FilterOptions = FilterOptions(),
    split: SplitOptions = SplitOptions(),
    window: WindowOptions = WindowOptions(),
    slates: Sequence[SlateOptions] = (SlateOptions(),),
    seed: int = 0,
    limits: Mapping[str, int] | None = None,
    unusable: Unusable = "refuse",
    max_title: int | None = None,
    prepared: Path | None = None,
    progress: Callable[[str], None] | None = None,
    advance: Advance | None = None,
) -> Dataset:
    """Write a dataset folder, or open the one that this very recipe has written before.

    Args:
        source: a name in `SOURCES`.
        input: the source's file or folder; None for a simulated world.
        options: of the source.
        filter: least events per item, user and sequence.
        split: who or what is trained on, validated and tested.
        window: how much history a row has.
        slates: what is frozen, one entry for each set.
        out: the folder to write; it appears only when it is complete.
        seed: of the source (ties, simulated world) and of the rows that limits choose.
        limits: at most so many rows per split, drawn at random; the rows kept are the same rows, with the same slates,
            as without a limit. Train rows beyond the limit stay in a table of their own, for all but language models.
        unusable: rows and items that cannot be used (items without title, rows of unknown items or with times that do
            not parse, titles beyond `max_title`) are refused, or dropped and counted, as far as the source has such.
        max_title: longer titles, in characters, cannot be used; None is no bound.
        prepared: a folder that this recipe has made, on this machine or another: it is copied, so that its rows and
            slates stay as they were frozen, and input is not needed.
        progress: called with one line per stage.
        advance: called with (file, bytes done, bytes in all) as a raw dump is read, for a progress bar.

    Raises:
        ConfigError: an option is unknown or out of range.
        DataError: the input is not what it should be.
        RunError: out holds something else, or the input has changed since it was prepared.
    """
    say = progress or (lambda line: None)
    out, input = Path(out).expanduser(), None if input is None else Path(input).expanduser()
    options, limits = dict(options or {}), dict(limits or {})
    _check_request(source, prepared or input, options, slates, limits, seed, split.kind)
    options = source_options(source, options, unusable)
    recipe = make_recipe(source, input, options, filter, split, window, slates, seed, limits)
    if unusable != "refuse" or max_title is not None:  # recipes older than these options stay as they are
        recipe |= {"unusable": unusable, "max_title": max_title}
    if prepared is not None:
        say(f"{out}: as {prepared}")
        return adopted(Path(prepared), out, recipe)
    if (known := reusable(out, recipe)) is not None:
        say(f"{out} is already prepared")
        return known

    if input is not None and not input.exists():
        raise DataError(
            f"{input}: no such file or folder: name yours with data.input=PATH, or fetch a publisher's files with "
            "`sirius data download` (`sirius data list` has the names)"
        )
    say(f"reading source {source}")
    bar = {"advance": advance} if "advance" in inspect.signature(SOURCES[source]).parameters else {}
    loaded = short_titles(SOURCES[source](input, seed=seed, **options, **bar), max_title, unusable)
    say("filtering, splitting and windowing")
    example_set = _example_set(loaded, filter, split, window)
    notes = loaded.notes
    del loaded  # the events, which the examples now hold
    excludes = _excludes(slates, split.kind != "user" or _shares_users(example_set))
    if unusable == "drop":
        example_set = _with_negatives(example_set, slates, excludes)
    base = combined_fingerprint(
        {"items": table_fingerprint(example_set.items), "examples": table_fingerprint(example_set.examples)}
    )
    learns = any(option.protocol in _LEARNING for option in slates)  # before the limits, which are no reason to unlearn
    train = example_set.select(learns & (example_set.examples[SPLIT] == "train").to_numpy())
    every = example_set.examples.filter(pl.col(SPLIT) == "train").select(list(EXAMPLE_SCHEMA))
    example_set = _limited(example_set, limits, seed)
    examples = example_set.examples.select(list(EXAMPLE_SCHEMA))
    cut = every.height > examples.filter(pl.col(SPLIT) == "train").height
    world = SimulatedWorld.from_notes(notes) if "world" in notes else None
    names = _slate_names(slates, excludes, example_set)
    frozen, described = _frozen_slates(example_set, names, train, base, world, say)
    info = {
        "recipe": recipe,
        "source": {"name": source, "notes": notes},
        "statistics": {**example_set.statistics, **row_statistics(examples), **paper_statistics(source)},
        "filters": example_set.filters,
        "titles": example_set.titles,
        "slates": described,
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
        if name.protocol == "full":
            rule = "every item of the catalogue, in its order, but those that the user interacted with before"
            seen = seen_items(part.examples, part.past)
            tables[f"slates/{name}"] = seen
            described[str(name)] = {
                "rows": seen.height, "size": name.size, "candidates": rule, "fingerprint": table_fingerprint(seen),
            }  # fmt: skip
            if world is not None:
                frozen = full_slates(part.examples, seen, example_set.items.height)
                tables[f"truth/{name}"] = true_utilities(world, example_set.items, part.examples, frozen)
            continue
        frozen = _freeze(part, name, exclude, train, fingerprint)
        check_slates(f"slates {name}", frozen, part.examples, example_set.items.height)
        tables[f"slates/{name}"] = frozen
        described[str(name)] = {"rows": frozen.height, "size": name.size, "fingerprint": table_fingerprint(frozen)}
        if exclude is not None:
            described[str(name)]["exclude"] = exclude
        if cautions := _cautions(name):
            described[str(name)]["caution"] = "; ".join(cautions)
        if world is not None:
            tables[f"truth/{name}"] = true_utilities(world, example_set.items, part.examples, frozen)
    return tables, described


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


def _shares_users(example_set: ExampleSet) -> bool:
    """Whether a user has rows in more than one split."""
    pairs = example_set.examples.select(USER_ID, SPLIT).drop_nulls(USER_ID).unique()
    return pairs[USER_ID].n_unique() < pairs.height


def _with_negatives(
    example_set: ExampleSet, slates: Sequence[SlateOptions], excludes: Sequence[str | None]
) -> ExampleSet:
    """The rows whose user leaves enough items for the negatives of every slate; all where that is no row."""
    short = np.zeros(example_set.examples.height, dtype=bool)
    for option, exclude in zip(slates, excludes, strict=True):
        if option.protocol in DRAWN and option.size is not None:
            excluded = example_set.past if exclude == PAST else example_set.interacted
            asked = example_set.examples[SPLIT].is_in(option.splits).to_numpy()
            short |= asked & (example_set.items.height - excluded.count_R < option.size - 1)
    if not short.any() or short.all():
        return example_set
    filters = {**example_set.filters, "rows_without_enough_negatives_dropped": int(short.sum())}
    return replace(example_set.select(~short), filters=filters)


def _excludes(slates: Sequence[SlateOptions], shared_users: bool) -> list[str | None]:
    """What each entry excludes. ConfigError where that leaks and is not called so."""
    return [option.excludes(shared_users) for option in slates]


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
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(split_R == name)
        if name in limits and len(rows) > limits[name]:
            keep[np.random.default_rng([seed, number]).permutation(rows)[limits[name] :]] = False
    return example_set if keep.all() else example_set.select(keep)


def _slate_names(
    slates: Sequence[SlateOptions], excludes: Sequence[str | None], example_set: ExampleSet
) -> dict[SlateName, str | None]:
    """Names of the sets of slates, with what each excludes."""
    present = set(example_set.examples[SPLIT].unique())
    every = example_set.items.height
    return {
        SlateName(split, option.protocol, option.size or every, option.seed, exclude == INTERACTED_LEAKY): exclude
        for option, exclude in zip(slates, excludes, strict=True)
        for split in option.splits
        if split in present
    }


def _freeze(
    part: ExampleSet, name: SlateName, exclude: str | None, train: ExampleSet, fingerprint: str
) -> pl.DataFrame:
    n_items = part.items.height
    if name.protocol == "given":
        return slates_from_examples(part.examples, name=name)
    if name.protocol == "sdpo-legacy":
        return legacy_slates(part.examples, n_items=n_items, name=name)
    excluded = part.past if exclude == PAST else part.interacted
    if name.protocol == "popularity":
        counts = train_counts(train.examples, n_items)
        return popularity_slates(part.examples, excluded, counts, name=name, fingerprint=fingerprint)
    if name.protocol == "hard":
        of_train = train.past if exclude == PAST else interacted_items(train.examples)
        return hard_slates(
            part.examples, excluded, train.examples, of_train, n_items=n_items, name=name, fingerprint=fingerprint
        )
    return uniform_slates(part.examples, excluded, n_items=n_items, name=name, fingerprint=fingerprint)


def _check_request(
    source: str,
    input: Path | None,
    options: Mapping[str, Any],
    slates: Sequence[SlateOptions],
    limits: Mapping[str, int],
    seed: int,
    split_kind: str,
) -> None:
    if source not in SOURCES:
        raise ConfigError(f"source {source!r} is unknown; use one of {', '.join(SOURCES)}")
    parameters = inspect.signature(SOURCES[source]).parameters
    if input is None and parameters["path"].default is inspect.Parameter.empty:
        raise ConfigError(f"source {source!r} needs an input; name its file or folder")
    known = [name for name in parameters if name not in NO_OPTIONS]
    for name in options:
        if name not in known:
            raise ConfigError(f"source {source!r} has no option {name!r}; it has {', '.join(known) or 'none'}")
    _check_option_types(source, options)
    _check_whole("seed", seed, 0)
    for name, limit in limits.items():
        if name not in SPLITS:
            raise ConfigError(f"limit for split {name!r}: use some of {', '.join(SPLITS)}")
        _check_whole(f"limit for {name}", limit, 1)
    if split_kind != "user":  # with users split, only the rows say whether a source's own splits share users
        _excludes(slates, True)
    names = [
        str(SlateName(s, o.protocol, o.size or 0, o.seed, o.exclude == INTERACTED_LEAKY))
        for o in slates
        for s in o.splits
    ]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"slates {name} are asked for twice; give one of them another size or seed")


def _check_whole(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not a whole number of at least {least}")


def _check_option_types(source: str, options: Mapping[str, Any]) -> None:
    """Raise a `ConfigError` for the first option whose value is not of the type in the signature of the source."""
    hints = get_type_hints(SOURCES[source])
    for name, value in options.items():
        if name not in hints:  # of a source that says no types
            continue
        adapter = TypeAdapter(hints[name], config=ConfigDict(strict=True, allow_inf_nan=False))
        try:
            adapter.validate_python(value)
        except ValidationError as error:
            raise ConfigError(
                f"source {source!r}: option {name}={value!r} is not {_in_words(hints[name])}; mend it or leave it out"
            ) from error


def _in_words(hint: Any) -> str:
    """What a type of option accepts, for people.

    >>> _in_words(float | None), _in_words(Literal["s", "ms"])
    ('a number or null', 'one of s, ms')
    """
    if get_origin(hint) is Literal:
        return f"one of {', '.join(get_args(hint))}"
    if get_origin(hint) in (Union, types.UnionType):
        parts = get_args(hint)  # a path may always be given as text
        return " or ".join(_in_words(part) for part in parts if not (part is str and Path in parts))
    words = {int: "a whole number", float: "a number", str: "text", Path: "a path", types.NoneType: "null"}
    return words.get(hint, "a mapping of text to text" if get_origin(hint) is dict else str(hint))
