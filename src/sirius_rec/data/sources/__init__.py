"""Where events and ready-made windows come from. `SOURCES` is the one list of them.

Each source is a function `load(path, *, seed, **options) -> Interactions | Examples`; its keyword parameters are the
options that `prepare` accepts for it, but for `advance`, which it calls as it reads (see `progress.Advance`).
"""

from __future__ import annotations

from collections.abc import Callable

from sirius_rec.data.sources import (
    amazon,
    goodreads,
    lastfm,
    llara,
    movielens,
    sdpo,
    simulated,
    steam,
    table,
    windows,
)
from sirius_rec.schema import Examples, Interactions

SOURCES: dict[str, Callable[..., Interactions | Examples]] = {
    "table": table.load,
    "windows": windows.load,
    "lastfm": lastfm.load,
    "goodreads": goodreads.load,
    "steam": steam.load,
    "movielens": movielens.load,
    "amazon": amazon.load,
    "sdpo": sdpo.load,
    "llara": llara.load,
    "simulated": simulated.load,
}
