"""What a preparation can be asked for: splits, filters, windows, slates; sections of a configuration, too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import Field, StrictInt, model_validator

from sirius_rec.errors import ConfigError
from sirius_rec.options import Count, Number, Options, Positive, Seed
from sirius_rec.remote import Place
from sirius_rec.schema import SPLITS

Protocol = Literal["uniform", "popularity", "hard", "impressions", "full", "sdpo-legacy", "given"]
Unusable = Literal["refuse", "drop"]
DRAWN = ("uniform", "popularity", "hard", "impressions")  # protocols that draw negatives, and so have items to exclude
DEFAULT_SIZE = 20
_MOST_SHARDS = 1 << 16  # what the sort by shard can tell apart
PAST, INTERACTED, INTERACTED_LEAKY = "past", "interacted", "interacted-LEAKY"


class SplitOptions(Options):
    """kind: `user`, `time` or `leave_last_out` (see `splitting`); ratios of train (> 0), val, test for the first two.

    Sources that bring ready-made windows bring their splits too, and refuse options here.
    """

    kind: Literal["user", "time", "leave_last_out"] = "user"
    seed: Seed = 0
    ratios: tuple[Count, Count, Count] = (8, 1, 1)

    @model_validator(mode="after")
    def _leaves_something_to_train_on(self) -> Self:
        if self.ratios[0] == 0:
            raise ValueError(f"ratios {list(self.ratios)} leave nothing to train on; make the first above 0")
        return self


class FilterOptions(Options):
    """Least events per item and per user (iterated to a fixed point), then least events per sequence; 1 is off."""

    min_item: Positive = 1
    min_user: Positive = 1
    min_sequence: Positive = 1


class WindowOptions(Options):
    """The history is the last max_history items; an event with fewer than min_history before it is no target.

    kind `anchored`: histories start at multiples of `step` in the user's sequence, at the first that leaves at most
    max_history items. Rows of one start are then prefixes of one another, so whatever computes a prefix once has little
    left to compute, and a history has max_history − step + 1 to max_history items, or all there are.
    """

    kind: Literal["sliding", "anchored"] = "sliding"
    max_history: Positive = 10
    min_history: Count = 10
    step: Positive | None = None

    @model_validator(mode="after")
    def _histories_fit(self) -> Self:
        if self.min_history > self.max_history:
            raise ValueError(f"min_history {self.min_history} is above max_history {self.max_history}: lower it")
        if self.kind == "anchored" and self.step is None:
            raise ValueError(f"kind anchored needs a step between starts: give one from 1 to {self.max_history}")
        if self.kind == "sliding" and self.step is not None:
            raise ValueError(f"step {self.step} is for kind anchored: write kind: anchored, or leave step out")
        if self.step is not None and self.step > self.max_history:
            raise ValueError(f"step {self.step} is above max_history {self.max_history}: lower it")
        return self

    @property
    def least(self) -> int:
        """How few items a history may hold although the user has more events before it."""
        return self.max_history - (self.step or 1) + 1

    def check_memory(self, memory: int) -> None:
        """ConfigError where histories may hold fewer than the last `memory` items, by which a simulated user goes."""
        if self.least >= memory:
            return
        at = f"max_history {self.max_history}" if self.step is None else f"step {self.step}"
        fix = (
            f"raise max_history to {memory} or more"
            if self.step is None
            else f"lower step or raise max_history until max_history - step is {memory - 1} or more"
        )
        raise ConfigError(
            f"window.{at}: a simulated user goes by the last {memory} items, and histories may hold {self.least}; {fix}"
        )


class HoldOutOptions(Options):
    """What training is denied, while validation and test rows with their slates stay as they are without it.

    cold_items: share of the catalogue, drawn by seed, that training never meets: they are no targets and no negatives
    of train rows, and taken out of their histories; rows left with fewer than min_history items are dropped.
    train_users: share of the users with train rows who keep them; a smaller share is part of a larger one.
    Networks draw negatives of their own from the whole catalogue, cold items too.
    """

    cold_items: Annotated[Number, Field(ge=0, lt=1)] = 0.0
    train_users: Annotated[Number, Field(gt=0, le=1)] = 1.0
    seed: Seed = 0

    def __bool__(self) -> bool:
        return self.cold_items > 0 or self.train_users < 1


class SlateOptions(Options):
    """One frozen set of slates per split. docs/protocol.md says how the protocols differ and when to use which.

    protocol: `uniform` (negatives uniform over the items that are not excluded), `popularity` (by train count),
    `hard` (near the history in train co-occurrence), `impressions` (what the user was shown with the target and passed
    over, filled up as in `uniform`; of sources that have impressions), `full` (the whole catalogue, written as a
    description), `given` (the source's own candidates), `sdpo-legacy` (the published target-seeded slates, LEAKY).
    size counts the target; `full` takes none. Splits without rows are passed over.

    exclude: which items are no negatives of a row (of protocols that draw negatives: `uniform`, `popularity`,
    `hard`, `impressions`). `past`: what its user
    interacted with up to and including its target. `interacted`: what its user ever interacted with, as in the paper.
    None: `interacted` where no user has rows in two splits (split `user`), `past` elsewhere (`time`, `leave_last_out`).
    There `interacted` leaks, since a user's later targets are never negatives of the same user's train rows; it is
    refused unless asked for as `interacted-LEAKY`, which marks the slates' names.
    """

    protocol: Protocol = "uniform"
    size: Annotated[StrictInt, Field(ge=2)] | None = DEFAULT_SIZE
    seed: Seed = 0
    splits: tuple[Literal["train", "val", "test"], ...] = SPLITS
    exclude: Literal["past", "interacted", "interacted-LEAKY"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _full_has_no_size(cls, value: Any) -> Any:
        """Protocol full stands without a size; any other has one."""
        if not isinstance(value, dict):
            return value
        if value.get("protocol") != "full":
            if "size" in value and value["size"] is None:
                raise ValueError("size: null is for protocol full only: give a number")
            return value
        if value.get("size") is not None:
            raise ValueError(f"size: protocol full takes the whole catalogue: remove size {value['size']}")
        return {**value, "size": None}

    @model_validator(mode="after")
    def _excludes_where_it_draws(self) -> Self:
        if self.exclude is not None and self.protocol not in DRAWN:
            raise ValueError(f"exclude {self.exclude}: protocol {self.protocol} draws no negatives; leave it out")
        return self

    def excludes(self, shared_users: bool) -> str | None:
        """`exclude` with its default. shared_users: whether users may have rows in more than one split.

        Raises:
            ConfigError: the combination leaks and is not called so, or is called leaky and is not.
        """
        if self.protocol not in DRAWN:
            return None
        if self.exclude is None:
            return PAST if shared_users else INTERACTED
        if self.exclude == INTERACTED and shared_users:
            raise ConfigError(
                f"slate exclude {INTERACTED}: users have rows in several splits, so train negatives would tell their "
                f"later targets; use {PAST}, or {INTERACTED_LEAKY} to repeat such slates"
            )
        if self.exclude == INTERACTED_LEAKY and not shared_users:
            raise ConfigError(f"slate exclude {INTERACTED_LEAKY}: no user has rows in two splits; use {INTERACTED}")
        return self.exclude


@dataclass(frozen=True)
class Sharding:
    """How a log is divided so that it need not fit into memory. Nothing of it changes the result.

    shards: of the users; some two million events each are a good size. jobs: processes that work side by side.
    block, rows: bytes of a delimited file, and rows of a Parquet file, that are read at once. events: of a part of the
    result, which is one file of each table.
    """

    shards: int
    jobs: int = 1
    block: int = 1 << 25
    rows: int = 1 << 20
    events: int = 1 << 19

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ConfigError(f"{name}={value} is not a whole number of at least 1")
        if self.shards > _MOST_SHARDS:
            raise ConfigError(f"shards={self.shards} is more than {_MOST_SHARDS:,}")


@dataclass(frozen=True)
class Preparation:
    """What `prepare` is asked for: its docstring says what each of these is, and what it is by default."""

    source: str
    input: Place | None
    options: Mapping[str, Any]
    filter: FilterOptions
    split: SplitOptions
    window: WindowOptions
    slates: Sequence[SlateOptions]
    seed: int
    limits: Mapping[str, int]
    unusable: Unusable
    max_title: int | None
    held_out: HoldOutOptions
