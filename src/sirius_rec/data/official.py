"""Where publishers keep the data sets that the sources read, and on what terms.

Only addresses of the publishers themselves stand here. A checksum stands here only where the publisher states one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit


@dataclass(frozen=True)
class RemoteFile:
    """One file to fetch. md5_url: where the publisher states its MD5. unpack: a zip archive, to be unpacked."""

    url: str
    md5_url: str | None = None
    unpack: bool = False

    @property
    def name(self) -> str:
        """The name of the file, the last part of its address."""
        return PurePosixPath(urlsplit(self.url).path).name


@dataclass(frozen=True)
class Official:
    """A published data set: what it is, the source that reads it, its page, its terms, and its files."""

    title: str
    source: str
    page: str
    terms: str
    files: tuple[RemoteFile, ...]


_MOVIELENS = "https://files.grouplens.org/datasets/movielens"
_GOODREADS = "https://mcauleylab.ucsd.edu/public_datasets/gdrive/goodreads"
_STEAM = "https://cseweb.ucsd.edu/~wckang"
_AMAZON = "https://snap.stanford.edu/data/amazon/productGraph/categoryFiles"

_MOVIELENS_TERMS = (
    "Research use with acknowledgement (Harper & Konstan 2015). No redistribution without separate permission, no "
    "commercial use without permission; the archive's README has the full terms."
)
_GOODREADS_TERMS = (
    "Academic use only: do not redistribute, do not use for commercial purposes. "
    "Cite Wan & McAuley 2018 and Wan et al. 2019."
)
_UCSD_TERMS = "No licence is stated; citation is asked for: "

GENRES = (
    "children",
    "comics_graphic",
    "fantasy_paranormal",
    "history_biography",
    "mystery_thriller_crime",
    "poetry",
    "romance",
    "young_adult",
)
CATEGORIES = (
    "Amazon_Instant_Video",
    "Apps_for_Android",
    "Automotive",
    "Baby",
    "Beauty",
    "Books",
    "CDs_and_Vinyl",
    "Cell_Phones_and_Accessories",
    "Clothing_Shoes_and_Jewelry",
    "Digital_Music",
    "Electronics",
    "Grocery_and_Gourmet_Food",
    "Health_and_Personal_Care",
    "Home_and_Kitchen",
    "Kindle_Store",
    "Movies_and_TV",
    "Musical_Instruments",
    "Office_Products",
    "Patio_Lawn_and_Garden",
    "Pet_Supplies",
    "Sports_and_Outdoors",
    "Tools_and_Home_Improvement",
    "Toys_and_Games",
    "Video_Games",
)


def _movielens(name: str) -> Official:
    archive = f"{_MOVIELENS}/ml-{name}.zip"
    return Official(
        f"MovieLens {name}",
        "movielens",
        "https://grouplens.org/datasets/movielens/",
        _MOVIELENS_TERMS,
        (RemoteFile(archive, md5_url=f"{archive}.md5", unpack=True),),
    )


def _goodreads(title: str, *files: str) -> Official:
    page = "https://mengtingwan.github.io/data/goodreads.html"
    return Official(
        title, "goodreads", page, _GOODREADS_TERMS, tuple(RemoteFile(f"{_GOODREADS}/{file}") for file in files)
    )


def _amazon(category: str) -> Official:
    return Official(
        f"Amazon reviews 2014, {category.replace('_', ' ')}, 5-core",
        "amazon",
        "https://snap.stanford.edu/data/amazon/productGraph/",
        _UCSD_TERMS + "He & McAuley 2016, McAuley et al. 2015.",
        (RemoteFile(f"{_AMAZON}/reviews_{category}_5.json.gz"), RemoteFile(f"{_AMAZON}/meta_{category}.json.gz")),
    )


OFFICIAL: dict[str, Official] = {
    **{f"movielens-{name}": _movielens(name) for name in ("100k", "1m", "10m", "20m", "25m", "32m", "latest-small")},
    "lastfm": Official(
        "HetRec 2011 Last.fm",
        "lastfm",
        "https://grouplens.org/datasets/hetrec-2011/",
        "Non-commercial use. Cite last.fm and Cantador, Brusilovsky & Kuflik 2011.",
        (RemoteFile("https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip", unpack=True),),
    ),
    **{
        f"goodreads-{genre.replace('_', '-')}": _goodreads(
            f"Goodreads, {genre.replace('_', ' ')}",
            f"byGenre/goodreads_interactions_{genre}.json.gz",
            f"byGenre/goodreads_books_{genre}.json.gz",
        )
        for genre in GENRES
    },
    "goodreads": _goodreads(
        "Goodreads, all genres, without dates",
        "goodreads_interactions.csv",
        "book_id_map.csv",
        "goodreads_books.json.gz",
    ),
    "steam": Official(
        "Steam reviews and games",
        "steam",
        "https://cseweb.ucsd.edu/~jmcauley/datasets.html",
        _UCSD_TERMS + "Kang & McAuley 2018, Wan & McAuley 2018, Pathak et al. 2017.",
        (RemoteFile(f"{_STEAM}/steam_reviews.json.gz"), RemoteFile(f"{_STEAM}/steam_games.json.gz")),
    ),
    **{f"amazon-{category.replace('_', '-').lower()}": _amazon(category) for category in CATEGORIES},
}
