"""Amazon reviews (McAuley, 2014 and 2018 releases): who reviewed which product, and on which day.

One record per line: strict JSON in the reviews, Python literals in the 2014 metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles, gather_titles, titled_items
from sirius_rec.data.sources.events import TIME, EventLog, Ties
from sirius_rec.data.sources.files import check_choice, file_note, require_file
from sirius_rec.data.sources.lines import (
    MAX_MALFORMED,
    Account,
    check_share,
    keep,
    number_of,
    only_one,
    records,
    text_id,
)
from sirius_rec.data.sources.literals import parse_either
from sirius_rec.data.sources.timestamps import EARLIEST, LATEST
from sirius_rec.errors import DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, RATING, USER_ID, Interactions

_REVIEWS = ("reviews_*.json.gz", "reviews_*.json", "*_5.json.gz", "*_5.json")
_METADATA = ("meta_*.json.gz", "meta_*.json")


def load(
    path: Path,
    *,
    seed: int = 0,
    metadata: Path | str | None = None,
    min_rating: float | None = None,
    missing_titles: MissingTitles = "drop",
    ties: Ties = "shuffle",
    max_malformed: float = MAX_MALFORMED,
    advance: Advance | None = None,
) -> Interactions:
    """Read reviews (reviewerID, asin, overall, unixReviewTime) and, where there is one, the metadata with the titles.

    Args:
        path: `reviews_CATEGORY[_5].json[.gz]`, or a folder with it.
        seed: of the order inside ties.
        metadata: `meta_CATEGORY.json[.gz]`; default the one beside the reviews. Without any, products go by their ASIN,
            which the notes say: such titles tell a language model nothing.
        min_rating: reviews rated lower are dropped.
        missing_titles: products that the metadata gives no title are an 'error', 'drop'ped, or shown by their 'id'.
        ties: reviews of one user and day in a seeded random order ('shuffle'), or as in the 'file'.
        max_malformed: the share of malformed lines above which the run stops.
        advance: called as bytes are read.

    A repeated (user, product) pair keeps its first review.

    Raises:
        ConfigError: an option is not what it may be.
        DataError: a file is missing or broken, has too many malformed lines, or nothing is left.
    """
    check_choice("missing_titles", missing_titles, MissingTitles)
    check_choice("ties", ties, Ties)
    check_share(max_malformed)
    path = Path(path)
    reviews_path = only_one(path, _REVIEWS, "reviews file") if path.is_dir() else require_file(path, "reviews file")
    assert reviews_path is not None
    metadata_path = Path(metadata) if metadata is not None else _metadata_beside(reviews_path)
    if metadata_path is not None:
        require_file(metadata_path, "metadata file")

    account = Account(reviews_path)
    log = EventLog()
    for frame in _reviews(reviews_path, account, advance):
        if min_rating is not None:
            frame = keep(frame, pl.col(RATING) >= min_rating, f"rating below {min_rating:g}", account)
        log.add(frame)
    account.check(max_malformed)
    if not len(log):
        raise DataError(f"{reviews_path}: no reviews left of {account.read:,}; dropped: {dict(account.dropped)}")
    ordered = log.finish(ties=ties, seed=seed)
    account.drop("user had the product before", ordered.repeated)

    titles: dict[str, str] = {}
    files, accounts = [reviews_path], [account]
    if metadata_path is not None:
        titles, of_metadata = gather_titles(
            metadata_path,
            parse_either,
            "asin",
            ("title",),
            wanted=set(log.items()),
            max_malformed=max_malformed,
            advance=advance,
        )
        files.append(metadata_path)
        accounts.append(of_metadata)
    missing: MissingTitles = "id" if metadata_path is None else missing_titles
    items, item_notes = titled_items(log.items(), titles, missing, metadata_path or reviews_path)
    events = ordered.events.filter(pl.col(ITEM_ID).is_in(items[ITEM_ID].implode()))
    account.drop("product without title", ordered.events.height - events.height)
    account.kept = events.height
    notes: dict[str, Any] = {
        "files": [file_note(file) for file in files],
        "lines": [one.note() for one in accounts],
        **item_notes,
        "ties": ordered.ties,
    }
    if metadata_path is None:
        notes["caution"] = "no metadata file: product ids (ASINs) stand in for titles"
    return Interactions(events, items, notes)


def _metadata_beside(reviews: Path) -> Path | None:
    """`meta_X.json[.gz]` for `reviews_X[_5].json[.gz]`, else the one metadata file of the folder, else None."""
    stem = reviews.name.removesuffix(".gz").removesuffix(".json").removeprefix("reviews_")
    for name in (stem.removesuffix("_5"), stem):
        for suffix in (".json.gz", ".json"):
            if (file := reviews.parent / f"meta_{name}{suffix}").is_file():
                return file
    return only_one(reviews.parent, _METADATA, "metadata file", optional=True)


def _reviews(path: Path, account: Account, advance: Advance | None) -> Iterator[pl.DataFrame]:
    def extract(record: Mapping[str, Any]) -> tuple[Any, ...] | str:
        user, item = text_id(record, "reviewerID"), text_id(record, "asin")
        if not user or not item:
            return "without reviewerID" if not user else "without asin"
        if record.get("unixReviewTime") is None:
            return "without unixReviewTime"
        seconds = number_of(record, "unixReviewTime")
        if not EARLIEST <= seconds <= LATEST:
            raise ValueError(f"unixReviewTime {seconds:g} lies outside the years 1 to 9999")
        return user, item, number_of(record, "overall"), int(seconds)

    schema = {USER_ID: pl.String, ITEM_ID: pl.String, RATING: pl.Float64, TIME: pl.Int64}
    yield from records(path, parse_either, extract, schema, account, advance)
