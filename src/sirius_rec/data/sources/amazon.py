"""Amazon reviews (McAuley, 2014 and 2018 releases): who reviewed which product, and on which day.

One record per line: strict JSON in the reviews, Python literals in the 2014 metadata.
"""

from __future__ import annotations

from pathlib import Path

from sirius_rec.data.sources.catalogue import MissingTitles
from sirius_rec.data.sources.dumps import Dump, Fields, Record, file_in
from sirius_rec.data.sources.events import Ties
from sirius_rec.data.sources.files import check_choice, require_file
from sirius_rec.data.sources.lines import MAX_MALFORMED, check_share, number_of, only_one
from sirius_rec.data.sources.literals import parse_either
from sirius_rec.data.sources.span import Moment, TimeSpan
from sirius_rec.data.sources.timestamps import EARLIEST, LATEST
from sirius_rec.progress import Advance
from sirius_rec.schema import Interactions

_REVIEWS = ("reviews_*.json.gz", "reviews_*.json", "*_5.json.gz", "*_5.json")
_METADATA = ("meta_*.json.gz", "meta_*.json")


def load(
    path: Path,
    *,
    seed: int = 0,
    metadata: Path | str | None = None,
    min_rating: float | None = None,
    missing_titles: MissingTitles = "drop",
    min_time: Moment = None,
    max_time: Moment = None,
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
    check_choice("missing_titles", missing_titles, MissingTitles)
    check_choice("ties", ties, Ties)
    check_share(max_malformed)
    span = TimeSpan.of(min_time, max_time)
    reviews = file_in(Path(path), _REVIEWS, "reviews file")
    titles_path = Path(metadata) if metadata is not None else _metadata_beside(reviews)
    if titles_path is not None:
        require_file(titles_path, "metadata file")
    missing: MissingTitles = "id" if titles_path is None else missing_titles
    dump = Dump(reviews, titles_path, "reviews", "product", seed, missing, ties, max_malformed, advance, span)
    fields = Fields("reviewerID", "asin", "unixReviewTime", _moment, rating="overall")
    loaded = dump.interactions(
        dump.rated(dump.frames(parse_either, fields), min_rating),
        lambda wanted: dump.titles(parse_either, "asin", ("title",), wanted) if titles_path else ({}, []),
    )
    if titles_path is None:
        loaded.notes["caution"] = "no metadata file: product ids (ASINs) stand in for titles"
    return loaded


def _metadata_beside(reviews: Path) -> Path | None:
    """`meta_X.json[.gz]` for `reviews_X[_5].json[.gz]`, else the one metadata file of the folder, else None."""
    stem = reviews.name.removesuffix(".gz").removesuffix(".json").removeprefix("reviews_")
    for name in (stem.removesuffix("_5"), stem):
        for suffix in (".json.gz", ".json"):
            if (file := reviews.parent / f"meta_{name}{suffix}").is_file():
                return file
    return only_one(reviews.parent, _METADATA, "metadata file", optional=True)


def _moment(record: Record) -> int | None:
    if record.get("unixReviewTime") is None:
        return None
    seconds = number_of(record, "unixReviewTime")
    if not EARLIEST <= seconds <= LATEST:
        raise ValueError(f"unixReviewTime {seconds:g} lies outside the years 1 to 9999")
    return int(seconds)
