"""What a preparation can be asked for: splits, filters, windows, slates; each checked as it is made."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from sirius_rec.data.splitting import KINDS, check_ratios
from sirius_rec.errors import ConfigError
from sirius_rec.schema import SPLITS

PROTOCOLS = ("uniform", "popularity", "hard", "full", "sdpo-legacy", "given")
DEFAULT_SIZE = 20


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

    protocol: `uniform` (negatives uniform over items that the row's user never touched), `popularity` (by train count),
    `hard` (near the history in train co-occurrence), `full` (the whole catalogue, written as a description), `given`
    (the source's own candidates), `sdpo-legacy` (the published target-seeded slates, LEAKY).
    size counts the target; 20 when not given; `full` takes none. Splits without rows are passed over.

    A negative is an item that the row's user never touched, in any split (`given` and `sdpo-legacy` aside). Where users
    have rows in several splits (`time`, `leave_last_out`), a user's val and test targets are therefore never among the
    same user's train negatives: a weak train–test channel, recorded as a `caution` in dataset.json.
    """

    protocol: str = "uniform"
    size: int | None = None
    seed: int = 0
    splits: tuple[str, ...] = SPLITS

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
