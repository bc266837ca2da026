"""UCSD Steam reviews (Kang & McAuley 2018): who reviewed which game, and on which day.

One record per line, written as Python literals (`{u'username': u'…', …}`); some fields are missing in some records.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from sirius_rec.data.sources.catalogue import MissingTitles
from sirius_rec.data.sources.dumps import Dump, Fields, date_text, file_in
from sirius_rec.data.sources.events import Ties
from sirius_rec.data.sources.files import check_choice, require_file
from sirius_rec.data.sources.lines import MAX_MALFORMED, keep
from sirius_rec.data.sources.literals import parse_either
from sirius_rec.data.sources.span import Moment, TimeSpan
from sirius_rec.errors import ConfigError
from sirius_rec.progress import Advance
from sirius_rec.schema import ITEM_ID, Interactions

UserField = Literal["username", "user_id"]

_REVIEWS = ("steam_reviews*.json.gz", "steam_reviews*.json")
_GAMES = ("steam_games*.json.gz", "steam_games*.json")


def load(
    path: Path,
    *,
    seed: int = 0,
    games: Path | str | None = None,
    games_share: float = 0.3,
    user: UserField = "username",
    missing_titles: MissingTitles = "drop",
    min_time: Moment = None,
    max_time: Moment = None,
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
        min_time, max_time: events before or after are dropped and counted, as if they had never happened; a date (UTC)
            or seconds since 1970.
        ties: reviews of one user and day in a seeded random order ('shuffle'), or as in the 'file'.
        max_malformed: the share of malformed lines above which the run stops.
        advance: called as bytes are read.

    A repeated (user, game) pair keeps its first review.

    Raises:
        ConfigError: an option is not what it may be.
        DataError: a file is missing or broken, has too many malformed lines, or nothing is left.
    """
    check_choice("user", user, UserField)
    span = TimeSpan.of(min_time, max_time)
    if not 0 < games_share <= 1:
        raise ConfigError(f"games_share={games_share!r} is not above 0 and at most 1")
    reviews = file_in(Path(path), _REVIEWS, "reviews file")
    titles_path = Path(games) if games is not None else file_in(reviews.parent, _GAMES, "games file")
    require_file(titles_path, "games file")
    dump = Dump(reviews, titles_path, "reviews", "game", seed, missing_titles, ties, max_malformed, advance, span)
    titles, accounts = dump.titles(parse_either, "id", ("title", "app_name"))
    chosen = _sample(titles, games_share, seed)
    listed, sampled = pl.Series(list(titles)).implode(), pl.Series(chosen).implode()
    fields = Fields(
        user, "product_id", "date", lambda record: date_text(record, "date", example="2017-12-17"), _midnight
    )
    frames = (
        keep(
            keep(frame, pl.col(ITEM_ID).is_in(listed), "game not in the games file", dump.account),
            pl.col(ITEM_ID).is_in(sampled), "game not in the sample", dump.account,
        )
        for frame in dump.frames(parse_either, fields)
    )  # fmt: skip
    loaded = dump.interactions(frames, lambda _: (titles, accounts))
    sample = {"listed": len(titles), "sampled": len(chosen), "share": games_share, "seed": seed}
    notes = {"files": [], "lines": [], "games": sample, **loaded.notes}  # in this order
    return Interactions(loaded.events, loaded.items, notes)


def _midnight(texts: pl.Series) -> pl.Series:
    return texts.str.to_date("%Y-%m-%d", strict=False).dt.epoch("d").cast(pl.Int64) * 86_400


def _sample(titles: Mapping[str, str], share: float, seed: int) -> list[str]:
    """A share of the ids, drawn without replacement; the same for the same ids and seed."""
    ids = sorted(titles)
    count = round(share * len(ids))
    picked = np.random.default_rng(seed).permutation(len(ids))[:count]
    return [ids[k] for k in sorted(picked.tolist())]
