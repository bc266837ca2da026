"""Names of the floors: methods without a language model that stand in every result table. Light, no imports."""

from __future__ import annotations

from typing import Final

# Method key → how tables call it.
FLOOR_LABELS: Final = {
    "random": "Random",
    "popularity": "Popularity",
    "item_knn": "Item-kNN (cosine)",
    "item_knn_directed": "Item-kNN (directed)",
}
FLOORS: Final = tuple(FLOOR_LABELS)
