"""Fusion: methods of the run as one, weighted on validation slates."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from sirius_rec.atomic import write_json
from sirius_rec.config import Config, MethodSection
from sirius_rec.data.protocols import train_counts
from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.tables import SCORES, read_table, table_name
from sirius_rec.options import Flag, Options, options_of
from sirius_rec.recipes.job import Ticker, log
from sirius_rec.recipes.methods.base import Method, hash_of, no_preset
from sirius_rec.recipes.run_folder import DONE, read_done
from sirius_rec.schema import ROW_ID, TARGET

if TYPE_CHECKING:
    from sirius_rec.rankers.fusion import Cold
    from sirius_rec.recipes.run import Run

_CHECKPOINT = "best"  # of its parts: the one that weights are chosen for


class FusionOptions(Options):
    """of: keys of the methods that are fused, two or more: a language model and a network, say. cold: items that
    training never met have weights of their own, and an offset."""

    of: tuple[str, ...]
    cold: Flag = False


class Fusion(Method):
    """The weighted sum of other methods' scores, of the best checkpoint of each; see `rankers.fusion`."""

    name, title = "fusion", "Fusion"
    probabilities = True  # a conditional logit

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        no_preset(entry.method, entry.preset)
        self.options: FusionOptions = options_of(FusionOptions, dict(entry.options), entry.method)
        if len(set(self.options.of)) < 2:
            raise ConfigError("options.of: name two methods or more, each once")
        self.parts: list[Method] = []

    def join(self, others: Mapping[str, Method]) -> None:
        for key in self.options.of:
            if key not in others:
                raise ConfigError(f"options.of: '{key}' is no method listed before it: choose from {', '.join(others)}")
            if self.options.cold and isinstance(others[key], Fusion):
                raise ConfigError(
                    f"options.of: '{key}' is a fusion, whose scores have no level: with cold name its parts"
                )
            if others[key].remote:
                raise ConfigError(f"options.of: '{key}' asks somebody else's model, and gives no scores to weigh")
        self.parts = [others[key] for key in self.options.of]
        self.uses_backbone = any(part.uses_backbone for part in self.parts)
        self.alone = all(part.alone for part in self.parts)
        self.studied = any(part.studied for part in self.parts)
        self.ranks_catalogue = all(part.ranks_catalogue for part in self.parts)

    @property
    def label(self) -> str:
        return self.entry.name or " + ".join(part.label for part in self.parts)

    @property
    def random(self) -> bool:
        return any(part.random for part in self.parts)

    @property
    def seeds(self) -> tuple[int, ...]:
        return self.config.seeds if self.random else (0,)

    def train_rows(self, run: Run) -> int | None:
        return max((rows for part in self.parts if (rows := part.train_rows(run)) is not None), default=None)

    def builds_on(self) -> tuple[str, ...]:
        return self.options.of

    def reads_tables_of(self) -> tuple[str, ...]:
        return self.options.of

    def made_in(self, run: Run, seed: int) -> list[Any]:
        parts = [folder for part in self.parts for folder in part.made_in(run, part.seed_for(seed))]
        return [*dict.fromkeys(parts), self.folder(run, seed)]

    def trained_as(self, run: Run, seed: int) -> str:
        return hash_of(super().trained_as(run, seed), *self._parts_as(run, seed).values())

    def _parts_as(self, run: Run, seed: int) -> dict[str, str]:
        return {part.key: part.trained_as(run, part.seed_for(seed)) for part in self.parts}

    def is_done(self, run: Run, seed: int) -> bool:
        """Weights are of the parts that they were chosen for: one that was trained anew takes new ones."""
        if not super().is_done(run, seed):
            return False
        done = read_done(self.folder(run, seed))
        return done.get("of") in (None, self._parts_as(run, seed))  # nothing is said in folders of before

    def check(self, run: Run) -> None:
        from sirius_rec.recipes.methods.networks import require_validation

        require_validation(run)
        if not self.options.cold:
            return
        targets = run.dataset.examples("val")[TARGET].gather(run.validation_rows.tolist()).to_numpy()
        if not self._cold(run).items_I[targets].any():
            raise ConfigError(
                f"{self.key}: options.cold: no target of the {len(targets):,} validation rows is new to training, so "
                "nothing says what new items are worth: hold some out (data.hold_out.cold_items)"
            )

    def fit(self, run: Run, seed: int) -> None:
        from sirius_rec.rankers.fusion import above_level, fit_apart, fit_weights, told_apart
        from sirius_rec.recipes.methods.networks import validation

        if self.is_done(run, seed):
            return
        started, held_out = time.monotonic(), validation(run)
        rankers = self._rankers(run, seed)
        self._say_progress(rankers, f"s{seed}, weights", len(held_out.histories))
        scores = [ranker.score(held_out.histories, held_out.candidates) for ranker in rankers]
        positions, of = held_out.target.tolist(), self.options.of
        if self.options.cold:
            new = self._cold(run)
            levels = [new.levels(ranker, held_out.histories) if levelled else None
                      for ranker, levelled in zip(rankers, new.levelled, strict=True)]  # fmt: skip
            above = [above_level(rows, level) for rows, level in zip(scores, levels, strict=True)]
            masks = [new.items_I[slate] for slate in held_out.candidates]
            weights, cold, offset = fit_apart(above, positions, masks)
            more = {"cold": dict(zip(of, cold.tolist(), strict=True)), "offset": offset}
            if not told_apart(above, cold.tolist(), masks):
                log(f"{self.key} s{seed}: none of {', '.join(of)} tells new items apart on validation: all stand alike")
        else:
            weights, more = fit_weights(scores, positions), {}
        done = {
            "weights": dict(zip(of, weights.tolist(), strict=True)),
            **more,
            "of": self._parts_as(run, seed),
            "rows": len(held_out.histories),
            "parameters": 2 * len(of) + 1 if more else len(of),
            "seconds": round(time.monotonic() - started, 1),
        }
        write_json(self.folder(run, seed) / DONE, done)

    def scores(self, run: Run, ranker: Any, slates: str, seed: int, checkpoint: str) -> Any:
        """From its parts' tables where they are there. (That of a language model holds no more than its best of a whole
        catalogue, which no fusion of one ranks.)"""
        self._say_progress(ranker.rankers, f"s{seed} on {slates}", len(run.tested_rows(slates)))
        ranker.progress = None

        def of(part: Method, own: Any) -> Sequence[Any]:
            at = part.seed_for(seed)
            stored = _stored(run, part, at, slates)
            return part.scores(run, own, slates, at, _CHECKPOINT) if stored is None else stored

        parts = [partial(of, part, own) for part, own in zip(self.parts, ranker.rankers, strict=True)]
        return ranker.fused(parts, *run.slate_arrays(slates))

    def _say_progress(self, rankers: Sequence[Any], what: str, rows: int) -> None:
        for part, ranker in zip(self.parts, rankers, strict=True):
            ranker.progress = Ticker(f"{self.key} {what}: {part.key}", rows)

    def _rankers(self, run: Run, seed: int) -> list[Any]:
        return [part.ranker(run, part.seed_for(seed), _CHECKPOINT) for part in self.parts]

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        from sirius_rec.rankers.fusion import FusionRanker

        self.fit(run, seed)  # where it retrieves, nothing is fitted yet
        done, of = read_done(self.folder(run, seed)), self.options.of
        cold = self._cold(run, [done["cold"][key] for key in of], done["offset"]) if "cold" in done else None
        return FusionRanker(self._rankers(run, seed), [done["weights"][key] for key in of], cold)

    def _cold(self, run: Run, weights: Sequence[float] = (), offset: float = 0.0) -> Cold:
        """What stands in no train row. A language model's log-probs have a level already."""
        from sirius_rec.rankers.fusion import Cold

        cold_I = train_counts(run.dataset.all_train_examples(), run.dataset.n_items) == 0
        return Cold(cold_I, weights, offset, [not part.uses_backbone for part in self.parts])


def _stored(run: Run, part: Method, seed: int, slates: str) -> list[Any] | None:
    """A part's scores of the rows that are ranked; None where there is no table of them, of this training."""
    file = run.folder.scores / table_name(part.key, seed, slates, _CHECKPOINT)
    table = read_table(file) if file.is_file() else None
    if table is None or table.frame[ROW_ID].to_list() != run.tested_ids(slates):
        return None
    if table.training not in (None, part.trained_as(run, seed)):
        return None
    return [row.to_numpy() for row in table.frame[SCORES]]
