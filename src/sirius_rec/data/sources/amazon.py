"""Amazon reviews (McAuley): who reviewed which product, and when. The releases of 2014 and 2018 give days, 2023 times.

One record per line: strict JSON in the reviews, Python literals in the 2014 metadata; 2023 also has tables of ratings.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles
from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.csv_table import read_csv
from sirius_rec.data.sources.dumps import Dump, Fields, Record, file_in
from sirius_rec.data.sources.events import TIME, Ties
from sirius_rec.data.sources.files import require_columns, require_file
from sirius_rec.data.sources.lines import MAX_MALFORMED, Account, keep, lines, number_of, only_one, reject
from sirius_rec.data.sources.literals import parse_either, parse_json
from sirius_rec.data.sources.span import Moment, TimeSpan
from sirius_rec.data.sources.timestamps import EARLIEST, LATEST
from sirius_rec.errors import ConfigError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, USER_ID, Interactions

_REVIEWS = ("reviews_*.json.gz", "reviews_*.json", "*_5.json.gz", "*_5.json")
_REVIEWS_2023 = ("[!m]*.jsonl.gz", "[!m]*.jsonl", "m[!e]*.jsonl.gz", "m[!e]*.jsonl")  # all but meta_*
_RATINGS_2023 = ("*.csv.gz", "*.csv")
_METADATA = ("meta_*.json.gz", "meta_*.json", "meta_*.jsonl.gz", "meta_*.jsonl")
_COLUMNS_2023 = (USER, PARENT, RATING, TIMESTAMP) = ("user_id", "parent_asin", "rating", "timestamp")


def load(
    path: Path,
    *,
    seed: int = 0,
    metadata: Path | str | None = None,
    fields: list[str] | None = None,
    min_rating: float | None = None,
    missing_titles: MissingTitles = "drop",
    min_time: Moment = None,
    max_time: Moment = None,
    ties: Ties = "shuffle",
    max_malformed: float = MAX_MALFORMED,
    advance: Advance | None = None,
) -> Interactions:
    """Read reviews and, where there is one, the metadata with the titles.

    Reviews of 2014 and 2018 have reviewerID, asin, overall, unixReviewTime (days); those of 2023 user_id, parent_asin,
    rating, timestamp (milliseconds). A product is its asin, in 2023 its parent_asin: the variants of one product share
    a title.

    Args:
        path: `reviews_CATEGORY[_5].json[.gz]`, of 2023 `CATEGORY.jsonl[.gz]` or the ratings alone, `CATEGORY.csv[.gz]`;
            or a folder with one of them.
        seed: of the order inside ties.
        metadata: `meta_CATEGORY.json[.gz]`, of 2023 `.jsonl[.gz]`; default the one beside the reviews. Without any,
            products go by their ASIN, which the notes say: such titles tell a language model nothing.
        fields: of the metadata that the catalogue keeps, as text, for prompts (`prompts.fields`): of 2023 `store`,
            `main_category`, `categories`, `price`, of 2014 `brand`, `categories`, `price`.
        min_rating: reviews rated lower are dropped.
        missing_titles: products that the metadata gives no title are an 'error', 'drop'ped, or shown by their 'id'.
        min_time, max_time: events before or after are dropped and counted, as if they had never happened; a date (UTC)
            or seconds since 1970.
        ties: reviews of one user and day in a seeded random order ('shuffle'), or as in the 'file'.
        max_malformed: the share of malformed lines above which the run stops.
        advance: called as bytes are read.

    A repeated (user, product) pair keeps its first review.

    Raises:
        ConfigError: an option is not what it may be.
        DataError: a file is missing or broken, has too many malformed lines, or nothing is left.
    """
    span = TimeSpan.of(min_time, max_time)
    reviews = _reviews(Path(path))
    titles_path = Path(metadata) if metadata is not None else _metadata_beside(reviews)
    if titles_path is not None:
        require_file(titles_path, "metadata file")
    if fields and titles_path is None:
        raise ConfigError("option fields: there is no metadata file; name it with option metadata, or leave fields out")
    kept: dict[str, dict[str, str]] = {name: {} for name in fields or ()}
    dump = Dump(
        reviews, titles_path, "reviews", "product", seed, missing_titles, ties, max_malformed, advance, span, kept
    )
    if titles_path is None:
        dump.missing_titles = "id"
    new = _is_2023(reviews)
    if reviews.name.endswith((".csv", ".csv.gz")):
        frames = _ratings(dump)
    elif new:
        frames = dump.frames(parse_json, Fields(USER, PARENT, TIMESTAMP, _moment_2023, rating=RATING))
    else:
        frames = dump.frames(parse_either, Fields("reviewerID", "asin", "unixReviewTime", _moment, rating="overall"))
    key = PARENT if new else "asin"
    loaded = dump.interactions(
        dump.rated(frames, min_rating),
        lambda wanted: dump.titles(parse_either, key, ("title",), wanted) if titles_path else ({}, []),
    )
    if titles_path is None:
        loaded.notes["caution"] = "no metadata file: product ids (ASINs) stand in for titles"
    return loaded


def _metadata_beside(reviews: Path) -> Path | None:
    """`meta_X.json[l][.gz]` for `reviews_X[_5].json[.gz]` or `X.jsonl[.gz]`, else the one of the folder, else None."""
    stem = reviews.name.partition(".")[0].removeprefix("reviews_")
    for name in (stem.removesuffix("_5"), stem):
        for suffix in (".json.gz", ".json", ".jsonl.gz", ".jsonl"):
            if (file := reviews.parent / f"meta_{name}{suffix}").is_file():
                return file
    return only_one(reviews.parent, _METADATA, "metadata file", optional=True)


def _reviews(path: Path) -> Path:
    """The one reviews file: of 2014 or 2018 if there is one, else of 2023, else the ratings of 2023."""
    if path.is_dir():
        for patterns in (_REVIEWS, _REVIEWS_2023, _RATINGS_2023):
            if (file := only_one(path, patterns, "reviews file", optional=True)) is not None:
                return file
    return file_in(path, (*_REVIEWS, "*.jsonl[.gz]", "*.csv[.gz]"), "reviews file")


def _is_2023(reviews: Path) -> bool:
    """Whether the first line that is a record has the fields of 2023, or the file is a table."""
    if reviews.name.endswith((".csv", ".csv.gz")):
        return True
    for block in lines(reviews, Account(reviews)):
        for _, text in block[:1]:
            return f'"{PARENT}"' in text
    return False


def _ratings(dump: Dump) -> Iterator[pl.DataFrame]:
    """The table of ratings of 2023: user_id, item_id, `TIME`, rating."""
    table = read_csv(dump.path, wanted=_COLUMNS_2023)
    require_columns(table.frame, dump.path, {name: name for name in _COLUMNS_2023}, "columns")
    dump.account.read = table.frame.height
    frame = table.frame.select(
        ROW,
        pl.col(USER).alias(USER_ID),
        pl.col(PARENT).alias(ITEM_ID),
        (pl.col(TIMESTAMP).cast(pl.Float64, strict=False) / 1000).floor().alias(TIME),
        pl.col(RATING).cast(pl.Float64, strict=False),
        pl.col(TIMESTAMP),
    )
    frame = keep(frame, pl.col(USER_ID).is_not_null(), f"without {USER}", dump.account)
    frame = keep(frame, pl.col(ITEM_ID).is_not_null(), f"without {PARENT}", dump.account)
    frame = reject(frame, ~pl.col(RATING).is_finite().fill_null(False), RATING, "rating is no number:", dump.account)
    inside = pl.col(TIME).is_between(EARLIEST, LATEST).fill_null(False)
    frame = reject(frame, ~inside, TIMESTAMP, "timestamp is not in milliseconds:", dump.account)
    yield frame.drop(TIMESTAMP).with_columns(pl.col(TIME).cast(pl.Int64))


def _moment_2023(record: Record) -> int | None:
    if record.get(TIMESTAMP) is None:
        return None
    seconds = number_of(record, TIMESTAMP) // 1000
    if not EARLIEST <= seconds <= LATEST:
        raise ValueError(f"timestamp {seconds * 1000:g} ms lies outside the years 1 to 9999")
    return int(seconds)


def _moment(record: Record) -> int | None:
    if record.get("unixReviewTime") is None:
        return None
    seconds = number_of(record, "unixReviewTime")
    if not EARLIEST <= seconds <= LATEST:
        raise ValueError(f"unixReviewTime {seconds:g} lies outside the years 1 to 9999")
    return int(seconds)
