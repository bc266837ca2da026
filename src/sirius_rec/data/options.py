"""What a preparation can be asked for: splits, filters, windows, slates; each checked as it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sirius_rec.data.splitting import KINDS, check_ratios
from sirius_rec.errors import ConfigError
from sirius_rec.schema import SPLITS

PROTOCOLS = ("uniform", "popularity", "hard", "full", "sdpo-legacy", "given")
DRAWN = ("uniform", "popularity", "hard")  # protocols that draw negatives, and so have items to exclude
DEFAULT_SIZE = 20
PAST, INTERACTED, INTERACTED_LEAKY = "past", "interacted", "interacted-LEAKY"
EXCLUDES = (PAST, INTERACTED, INTERACTED_LEAKY)


def check_whole(name: str, value: object, least: int) -> None:
    """Raise a `ConfigError` unless `value` is a whole number of at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} is not a whole number of at least {least}")


@dataclass(frozen=True)
class SplitOptions:
    """kind: `user`, `time` or `leave_last_out` (see `splitting`); ratios of train (> 0), val, test for the first two.

    Sources that bring ready-made windows bring their splits too; for them this is not used.
    """

    kind: str = "user"
    seed: int = 0
    ratios: tuple[int, int, int] = (8, 1, 1)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"split kind {self.kind!r} is unknown; use one of {', '.join(KINDS)}")
        check_whole("split seed", self.seed, 0)
        check_ratios(self.ratios)
        if self.ratios[0] == 0:
            raise ConfigError(f"split ratios {list(self.ratios)} leave nothing to train on; make the first above 0")


@dataclass(frozen=True)
class FilterOptions:
    """Least events per item and per user (iterated to a fixed point), then least events per sequence; 1 is off."""

    min_item: int = 1
    min_user: int = 1
    min_sequence: int = 1

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            check_whole(f"filter {name}", value, 1)


@dataclass(frozen=True)
class WindowOptions:
    """The history is the last max_history items; an event with fewer than min_history before it is no target."""

    max_history: int = 10
    min_history: int = 10

    def __post_init__(self) -> None:
        check_whole("window max_history", self.max_history, 1)
        check_whole("window min_history", self.min_history, 0)
        if self.min_history > self.max_history:
            raise ConfigError(
                f"window min_history={self.min_history} is above max_history={self.max_history}; lower it"
            )


@dataclass(frozen=True)
class SlateOptions:
    """One frozen set of slates per split. docs/protocol.md says how the protocols differ and when to use which.

    protocol: `uniform` (negatives uniform over the items that are not excluded), `popularity` (by train count),
    `hard` (near the history in train co-occurrence), `full` (the whole catalogue, written as a description), `given`
    (the source's own candidates), `sdpo-legacy` (the published target-seeded slates, LEAKY).
    size counts the target; 20 when not given; `full` takes none. Splits without rows are passed over.

    exclude: which items are no negatives of a row (`uniform`, `popularity` and `hard` only). `past`: what its user
    interacted with up to and including its target. `interacted`: what its user ever interacted with, as in the paper.
    None: `interacted` where no user has rows in two splits (split `user`), `past` elsewhere (`time`, `leave_last_out`).
    There `interacted` leaks, since a user's later targets are never negatives of the same user's train rows; it is
    refused unless asked for as `interacted-LEAKY`, which marks the slates' names.
    """

    protocol: str = "uniform"
    size: int | None = None
    seed: int = 0
    splits: tuple[str, ...] = SPLITS
    exclude: str | None = None

    def __post_init__(self) -> None:
        if self.protocol not in PROTOCOLS:
            raise ConfigError(f"slate protocol {self.protocol!r} is unknown; use one of {', '.join(PROTOCOLS)}")
        if self.protocol == "full":
            if self.size is not None:
                raise ConfigError(f"slate size {self.size}: protocol full takes the whole catalogue; leave size out")
        else:
            object.__setattr__(self, "size", DEFAULT_SIZE if self.size is None else self.size)
            check_whole("slate size", self.size, 2)
        check_whole("slate seed", self.seed, 0)
        for split in self.splits:
            if split not in SPLITS:
                raise ConfigError(f"slate split {split!r} is unknown; use some of {', '.join(SPLITS)}")
        if self.exclude is not None and self.exclude not in EXCLUDES:
            raise ConfigError(f"slate exclude {self.exclude!r} is unknown; use one of {', '.join(EXCLUDES)}")
        if self.exclude is not None and self.protocol not in DRAWN:
            raise ConfigError(
                f"slate exclude {self.exclude}: protocol {self.protocol} draws no negatives; leave it out"
            )

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
