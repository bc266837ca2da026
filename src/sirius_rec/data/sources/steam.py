"""UCSD Steam reviews (Kang & McAuley 2018): who reviewed which game, and on which day.

One record per line, written as Python literals (`{u'username': u'…', …}`); some fields are missing in some records.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles, gather_titles, titled_items
from sirius_rec.data.sources.events import TIME, EventLog, Ties
from sirius_rec.data.sources.files import check_choice, file_note, require_file
from sirius_rec.data.sources.lines import (
    MAX_MALFORMED,
    Account,
    check_share,
    keep,
    only_one,
    records,
    reject,
    text_id,
)
from sirius_rec.data.sources.literals import parse_either
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, USER_ID, Interactions

UserField = Literal["username", "user_id"]

_REVIEWS = ("steam_reviews*.json.gz", "steam_reviews*.json")
_GAMES = ("steam_games*.json.gz", "steam_games*.json")
_TEXT = "__date__"


def load(
    path: Path,
    *,
    seed: int = 0,
    games: Path | str | None = None,
    games_share: float = 0.3,
    user: UserField = "username",
    missing_titles: MissingTitles = "drop",
    ties: Ties = "shuffle",
    max_malformed: float = MAX_MALFORMED,
    advance: Advance | None = None,
) -> Interactions:
    """Read reviews and games; by default a random 30 % of the games, as the paper does (E.1; its sample is not public).

    Args:
        path: `steam_reviews*.json[.gz]`, or a folder with it and the games.
        seed: of the sample of games and of the order inside ties.
        games: `steam_games*.json[.gz]`, for ids and titles; default beside the reviews. Reviews of games that are not
            in it are dropped.
        games_share: share of the games of the games file that are kept, 0 < share ≤ 1, drawn without replacement from
            the ids in sorted order, whatever reviews they have.
        user: which field names the user. 'username' is in every review but may be shared by people; 'user_id' is a
            Steam id but missing in many; reviews without it are dropped.
        missing_titles: games without a title are an 'error', 'drop'ped, or shown by their 'id'.
        ties: reviews of one user and day in a seeded random order ('shuffle'), or as in the 'file'.
        max_malformed: the share of malformed lines above which the run stops.
        advance: called as bytes are read.

    A repeated (user, game) pair keeps its first review.

    Raises:
        ConfigError: an option is not what it may be.
        DataError: a file is missing or broken, has too many malformed lines, or nothing is left.
    """
    for name, value, choices in (
        ("user", user, UserField),
        ("missing_titles", missing_titles, MissingTitles),
        ("ties", ties, Ties),
    ):
        check_choice(name, value, choices)
    check_share(max_malformed)
    if not 0 < games_share <= 1:
        raise ConfigError(f"games_share={games_share!r} is not above 0 and at most 1")
    path = Path(path)
    reviews_path = only_one(path, _REVIEWS, "reviews file") if path.is_dir() else require_file(path, "reviews file")
    assert reviews_path is not None
    games_path = Path(games) if games is not None else only_one(reviews_path.parent, _GAMES, "games file")
    assert games_path is not None
    titles, of_games = gather_titles(
        require_file(games_path, "games file"),
        parse_either,
        "id",
        ("title", "app_name"),
        max_malformed=max_malformed,
        advance=advance,
    )
    chosen = _sample(titles, games_share, seed)

    account = Account(reviews_path)
    log = EventLog()
    listed, sampled = pl.Series(list(titles)).implode(), pl.Series(chosen).implode()
    for frame in _reviews(reviews_path, user, account, advance):
        frame = keep(frame, pl.col(ITEM_ID).is_in(listed), "game not in the games file", account)
        log.add(keep(frame, pl.col(ITEM_ID).is_in(sampled), "game not in the sample", account))
    account.check(max_malformed)
    if not len(log):
        raise DataError(f"{reviews_path}: no reviews left of {account.read:,}; dropped: {dict(account.dropped)}")
    ordered = log.finish(ties=ties, seed=seed)
    account.drop("user had the game before", ordered.repeated)
    items, item_notes = titled_items(log.items(), titles, missing_titles, games_path)
    events = ordered.events.filter(pl.col(ITEM_ID).is_in(items[ITEM_ID].implode()))
    account.drop("game without title", ordered.events.height - events.height)
    account.kept = events.height
    notes: dict[str, Any] = {
        "files": [file_note(reviews_path), file_note(games_path)],
        "lines": [account.note(), of_games.note()],
        "games": {"listed": len(titles), "sampled": len(chosen), "share": games_share, "seed": seed},
        **item_notes,
        "ties": ordered.ties,
    }
    return Interactions(events, items, notes)


def _sample(titles: Mapping[str, str], share: float, seed: int) -> list[str]:
    """A share of the ids, drawn without replacement; the same for the same ids and seed."""
    ids = sorted(titles)
    count = round(share * len(ids))
    picked = np.random.default_rng(seed).permutation(len(ids))[:count]
    return [ids[k] for k in sorted(picked.tolist())]


def _reviews(path: Path, user: UserField, account: Account, advance: Advance | None) -> Iterator[pl.DataFrame]:
    def extract(record: Mapping[str, Any]) -> tuple[Any, ...] | str:
        who, game = text_id(record, user), text_id(record, "product_id")
        if not who or not game:
            return f"without {user}" if not who else "without product_id"
        when = record.get("date")
        if not when:
            return "without date"
        if not isinstance(when, str):
            raise ValueError(f"the date is {when!r}; text such as '2017-12-17' is expected")
        return who, game, when

    schema = {USER_ID: pl.String, ITEM_ID: pl.String, _TEXT: pl.String}
    for frame in records(path, parse_either, extract, schema, account, advance):
        day = frame[_TEXT].str.to_date("%Y-%m-%d", strict=False)
        frame = frame.with_columns((day.dt.epoch("d").cast(pl.Int64) * 86_400).alias(TIME))
        yield reject(frame, pl.col(TIME).is_null(), _TEXT, "date does not parse:", account)
