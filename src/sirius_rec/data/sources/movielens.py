"""MovieLens (Harper & Konstan 2015) in each of its layouts, told apart by the files that are there.

100k                         u.data (tab)                 u.item (|, Latin-1)
1m, 10m                      ratings.dat (::)             movies.dat (::, Latin-1 in 1m, UTF-8 in 10m)
20m, 25m, 32m, latest[-small] ratings.csv                 movies.csv
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles
from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.delimited import delimited, text_rows
from sirius_rec.data.sources.dumps import Dump
from sirius_rec.data.sources.events import TIME, Ties
from sirius_rec.data.sources.files import load_items
from sirius_rec.data.sources.lines import MAX_MALFORMED, Account, blocks, keep, reject
from sirius_rec.data.sources.span import Moment, TimeSpan
from sirius_rec.data.sources.timestamps import EARLIEST, LATEST
from sirius_rec.errors import DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, RATING, TIMESTAMP, TITLE, USER_ID, Interactions


@dataclass(frozen=True)
class Layout:
    """One way in which MovieLens is written."""

    ratings: str
    movies: str
    separator: str
    movie_separator: str
    names: tuple[str, ...] | None


_NAMES = ("userId", "movieId", "rating", "timestamp")
LAYOUTS = {
    "100k": Layout("u.data", "u.item", "\t", "|", _NAMES),
    "1m or 10m": Layout("ratings.dat", "movies.dat", "::", "::", _NAMES),
    "20m, 25m, 32m or latest": Layout("ratings.csv", "movies.csv", ",", ",", None),
}


def load(
    path: Path,
    *,
    seed: int = 0,
    min_rating: float | None = None,
    missing_titles: MissingTitles = "error",
    min_time: Moment = None,
    max_time: Moment = None,
    ties: Ties = "shuffle",
    max_malformed: float = MAX_MALFORMED,
    advance: Advance | None = None,
) -> Interactions:
    """Read ratings and movies; every rating is an interaction unless `min_rating` says otherwise.

    Args:
        path: the folder of the unpacked archive, or one that holds it; files may be gzipped.
        seed: of the order inside ties. Many ratings of one user carry the same second, because the site shows a page of
            movies to rate at a time; the files list them by movie id or by an order of their own.
        min_rating: ratings below are dropped.
        missing_titles: movies without a title are an 'error', 'drop'ped, or shown by their 'id'.
        min_time, max_time: events before or after are dropped and counted, as if they had never happened; a date (UTC)
            or seconds since 1970.
        ties: ratings of one user and second in a seeded random order ('shuffle'), or as in the 'file'.
        max_malformed: the share of malformed lines above which the run stops.
        advance: called as bytes are read.

    Movies without a rating are left out; ratings of movies that the movies file lacks are dropped.

    Raises:
        ConfigError: an option is not what it may be.
        DataError: no layout is recognised, a file is broken, or has too many malformed lines.
    """
    span = TimeSpan.of(min_time, max_time)
    layout, ratings_path, movies_path = _recognise(Path(path))
    dump = Dump(ratings_path, movies_path, "ratings", "movie", seed, missing_titles, ties, max_malformed, advance, span)
    titles, of_movies = _movies(movies_path, LAYOUTS[layout], max_malformed, advance)
    frames = dump.rated(_ratings(dump, LAYOUTS[layout], titles), min_rating)
    loaded = dump.interactions(frames, lambda _: (titles, [of_movies] if of_movies else []))
    loaded.notes["layout"] = layout
    return loaded


def _ratings(dump: Dump, layout: Layout, titles: Iterable[str]) -> Iterator[pl.DataFrame]:
    """user_id, item_id, `TIME` and rating of the ratings of movies that are listed, block by block."""
    listed_movies = pl.Series(list(titles), dtype=pl.String).cast(pl.Int64, strict=False).drop_nulls().implode()
    wanted = {"userId": pl.Int64, "movieId": pl.Int64, RATING: pl.Float64, TIMESTAMP: pl.Int64}
    names = {USER_ID: pl.col("userId").cast(pl.String), ITEM_ID: pl.col("movieId").cast(pl.String)}
    account = dump.account
    for frame in delimited(
        dump.path, wanted, account, separator=layout.separator, names=layout.names, advance=dump.advance
    ):
        outside = ~pl.col(TIMESTAMP).is_between(EARLIEST, LATEST)
        frame = reject(frame, outside, TIMESTAMP, "timestamp outside the years 1 to 9999:", account)
        frame = keep(frame, pl.col("movieId").is_in(listed_movies), "movie not in the movies file", account)
        yield frame.select(ROW, RATING, pl.col(TIMESTAMP).alias(TIME), **names)


def _recognise(path: Path) -> tuple[str, Path, Path]:
    """The layout, ratings file and movies file in a folder, or in its only subfolder that has them."""
    if path.is_file():
        path = path.parent
    if not path.is_dir():
        raise DataError(f"{path}: no such folder; name the folder of the unpacked MovieLens archive")
    for folder in (path, *sorted(entry for entry in path.iterdir() if entry.is_dir())):
        layouts = [
            (name, ratings, movies)
            for name, layout in LAYOUTS.items()
            if (ratings := _plain_or_gz(folder / layout.ratings)) and (movies := _plain_or_gz(folder / layout.movies))
        ]
        if len(layouts) > 1:
            raise DataError(f"{folder}: holds MovieLens in {len(layouts)} layouts; keep one in a folder of its own")
        if layouts:
            return layouts[0]
    pairs = "; ".join(f"{layout.ratings} and {layout.movies}" for layout in LAYOUTS.values())
    raise DataError(f"{path}: no MovieLens found (looked for {pairs}); name the folder of the unpacked archive")


def _plain_or_gz(path: Path) -> Path | None:
    return next((file for file in (path, path.with_name(f"{path.name}.gz")) if file.is_file()), None)


def _movies(
    path: Path, layout: Layout, max_malformed: float, advance: Advance | None
) -> tuple[dict[str, str], Account | None]:
    """Movie id → title, "" where there is none."""
    if layout.names is None:  # titles with commas are quoted, so this is a proper CSV
        items, untitled, _ = load_items(path, {ITEM_ID: "movieId", TITLE: "title"}, "drop")
        return dict(items.select(ITEM_ID, TITLE).iter_rows()) | dict.fromkeys(untitled, ""), None
    account = Account(path)
    titles: dict[str, str] = {}
    rows = text_rows(path, layout.movie_separator, 2, account, encoding=_encoding(path), advance=advance)
    for number, (movie, title, *_) in rows:
        movie = movie.strip()
        if not (movie.isascii() and movie.isdigit()):
            account.bad(number, f"movie id {movie!r} and title {title!r}; a whole number and a title are expected")
        elif movie in titles:
            account.drop("repeated movie id")
        else:
            titles[movie] = title
            account.kept += 1
    account.check(max_malformed)
    return titles, account


def _encoding(path: Path) -> str:
    """UTF-8 if the whole file is that, else Latin-1, in which every byte is a character."""
    for _, block in blocks(path):
        try:
            block.decode()
        except UnicodeDecodeError:
            return "latin-1"
    return "utf-8"
