"""Where events and ready-made windows come from. `SOURCES` is the one list of them.

Each source is a function `load(path, *, seed, **options) -> Interactions | Examples`; its keyword parameters are the
options that `prepare` accepts for it, but for `advance`, which it calls as it reads (see `progress.Advance`).
`data.intake` checks what sources added in code return.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
from sirius_rec.errors import ConfigError
from sirius_rec.schema import Examples, Interactions

Source = Callable[..., Interactions | Examples]

SOURCES: dict[str, Source] = {
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

_OURS = tuple(SOURCES.values())
FRAMES = "frames"  # what recipes call frames that were handed to `prepare` in place of a source


def source_of(name: str) -> Source:
    """The function of a source."""
    return _frames if name == FRAMES else SOURCES[name]


def is_ours(source: Source) -> bool:
    """Whether this package brings a source, and thus vouches for what it returns."""
    return source in _OURS


def _frames(path: Path | None = None, *, seed: int = 0) -> Interactions:
    raise ConfigError(
        f"source {FRAMES!r}: give prepare() the frames in place of the name, or name what it made of them with "
        "data.prepared"
    )
