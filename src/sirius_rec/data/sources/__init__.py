"""Where events and ready-made windows come from. `SOURCES` is the one list of them.

Each source is a function `load(path, *, seed, **options) -> Interactions | Examples`; its keyword parameters are the
options that `prepare` accepts for it.
"""

from __future__ import annotations

from collections.abc import Callable

from sirius_rec.data.sources import lastfm, simulated, table, windows
from sirius_rec.schema import Examples, Interactions

SOURCES: dict[str, Callable[..., Interactions | Examples]] = {
    "table": table.load,
    "windows": windows.load,
    "lastfm": lastfm.load,
    "simulated": simulated.load,
}
