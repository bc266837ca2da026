"""Column names and the few record types that every stage shares.

Items have two names. `item_id` is the publisher's id, kept as text and shown to people. `item` is a dense integer
0 … n_items - 1, the row number in `items.parquet`; histories, targets and slates are lists of it.

    DATA/
      items.parquet       item (int32, = row number), item_id (str), title (str, unique, not empty), and the columns
                          that option `fields` of a source asks for (str)
      examples.parquet    row_id (int64), user_id (str), history (list[int32], oldest first), target (int32),
                          timestamp (int64 seconds of the target, null where the source has none), split (str)
      slates/<split>-<protocol>-<size>-s<seed>.parquet
                          row_id (int64), candidates (list[int32], the target among them, order as shown);
                          of protocol full in their place excluded (list[int32]): all others are candidates
      truth/<same name>.parquet   only for simulated worlds: row_id, utility (list[float64], aligned with candidates)
      dataset.json        statistics, filters, provenance, fingerprints

A large table is a folder of that name in place of the file, `examples.parquet/part-00000.parquet` …: one behind the
other its parts are the table.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from sirius_rec.errors import DataError

if TYPE_CHECKING:
    import polars as pl

# events, as a source hands them over
USER_ID: Final = "user_id"
ITEM_ID: Final = "item_id"
TIMESTAMP: Final = "timestamp"
RATING: Final = "rating"
TITLE: Final = "title"

# prepared data
ITEM: Final = "item"
ROW_ID: Final = "row_id"
HISTORY: Final = "history"
TARGET: Final = "target"
SPLIT: Final = "split"
CANDIDATES: Final = "candidates"
IMPRESSIONS: Final = "impressions"
EXCLUDED: Final = "excluded"
UTILITY: Final = "utility"

SPLITS: Final = ("train", "val", "test")


@dataclass(frozen=True)
class Interactions:
    """What a source of events hands over.

    events: user_id (str), item_id (str), timestamp (int64 seconds since 1970, UTC); one row per interaction, each
        user's together and in time order. Rows of equal time stand in the order they are to be used in (the source says
        how ties were broken: an order by item id tells the next item by its id).
    items: item_id (str), title (str); unique item_id. May hold items without events.
    notes: provenance for dataset.json: files with sha256, rows read and dropped with the reason, tie-breaking.
    repeats: whether a user may have an item more than once. Then targets may stand in their own histories, which
        negatives, that leave out what the user had, do not.
    impressions: user_id, item_id, timestamp of what users were shown and passed over, in any order, for slates of
        protocol `impressions`; None where a source has none.

    In frames of your own ids may be numbers, times datetimes, and users interleaved: `data.intake` sees to that.
    """

    events: pl.DataFrame
    items: pl.DataFrame
    notes: dict[str, Any] = field(default_factory=dict)
    repeats: bool = False
    impressions: pl.DataFrame | None = None


@dataclass(frozen=True)
class Examples:
    """What a source of ready-made windows hands over (no events to split).

    items: item_id (str), title (str); unique item_id.
    rows: history (list[str] of item_id, oldest first), target (str), split (str), optionally user_id (str),
        timestamp (int64), candidates (list[str]).
    """

    items: pl.DataFrame
    rows: pl.DataFrame
    notes: dict[str, Any] = field(default_factory=dict)


# Protocols that give the target away on purpose, kept to repeat published figures.
LEAKY_PROTOCOLS: Final = ("sdpo-legacy",)
_LEAKY_MARK: Final = "-LEAKY"
_SLATE_NAME = re.compile(r"([^-]+)-(.+)-(\d+)-s(\d+)")
# Protocols of slates that a run makes itself: the candidates of a retriever, `retrieved_<its key>`.
RETRIEVED: Final = "retrieved_"


@dataclass(frozen=True)
class SlateName:
    """Name of one frozen set of slates, e.g. `test-uniform-20-s0`.

    The name of a leaky protocol's slates says so, `test-sdpo-legacy-LEAKY-20-s0`, and with it every file, table, label
    and report that names them. So does that of slates whose excluded items tell later targets
    (`exclude: interacted-LEAKY`), `train-uniform-LEAKY-20-s0`.
    """

    split: str
    protocol: str
    size: int
    seed: int
    exclusion_leaks: bool = field(default=False, repr=False)

    @property
    def leaky(self) -> bool:
        """Whether the slates give targets away on purpose."""
        return self.exclusion_leaks or self.protocol in LEAKY_PROTOCOLS

    def __str__(self) -> str:
        return f"{self.split}-{self.protocol}{_LEAKY_MARK if self.leaky else ''}-{self.size}-s{self.seed}"

    @classmethod
    def parse(cls, text: str) -> SlateName:
        """Inverse of `str`.

        >>> SlateName.parse("test-uniform-20-s0")
        SlateName(split='test', protocol='uniform', size=20, seed=0)

        Raises:
            DataError: the text is no such name.
        """
        if (parts := _SLATE_NAME.fullmatch(text)) is None:
            raise DataError(f"slates {text!r}: names are SPLIT-PROTOCOL-SIZE-sSEED, as test-uniform-20-s0")
        split, protocol, size, seed = parts.groups()
        plain = protocol.removesuffix(_LEAKY_MARK)
        marked = plain != protocol and plain not in LEAKY_PROTOCOLS
        return cls(split, plain, int(size), int(seed), marked)
