"""Negatives from the policy: every so many steps, the exact best of the catalogue for the rows that come next.

A list is drawn from like a record's rejected completions, in whose place it stands. Lists are kept in files, so that a
resumed training goes on with those that it had.
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec import atomic, stopping
from sirius_rec.errors import ConfigError, Stopped, TrainingError
from sirius_rec.progress import Pace
from sirius_rec.rankers.catalogue.top import top_k
from sirius_rec.rankers.catalogue.trie import Trie
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import score_rows
from sirius_rec.training.batching import StepLayout
from sirius_rec.training.config import SiriusConfig


@dataclass(frozen=True)
class Catalogue:
    """What negatives are taken from. trie: its titles, read by the trainer's tokenizer. leave_out_R: of each record the
    item numbers that are no negatives: its target, and what its user interacted with."""

    trie: Trie
    leave_out_R: Sequence[np.ndarray]


def _check_enough(catalogue: Catalogue, n_records: int, skip: int, fewest: int) -> None:
    if len(catalogue.leave_out_R) != n_records:
        raise ConfigError(f"catalogue: leave_out_R has {len(catalogue.leave_out_R)} entries for {n_records} records")
    for r, out in enumerate(catalogue.leave_out_R):
        if (left := catalogue.trie.n_titles - len(np.unique(out))) < skip + fewest:
            raise ConfigError(
                f"negatives_from on_policy: record {r} leaves {left} items of the catalogue, fewer than skip {skip} "
                f"and {fewest} negatives"
            )


def _counted(pace: Pace) -> Callable[[int], None]:
    """What counts finished rows, 0 as well, and ends a long round where SIGTERM has come.

    A training only looks after a step, and a policy that is sure of nothing may take an hour to search.
    """

    def count(rows: int) -> None:
        if stopping.requested():
            raise Stopped("stopped by SIGTERM while negatives were taken from the policy")
        pace(rows)

    return count


class Miner:
    """Makes the lists of a round of steps when its first example is asked for.

    The policy is the one at that time. Batches are put together ahead, so it may be that of one step before the round.
    rows: of the records; their prompts and chosen completions stay what they are. say: gets a line for each round.
    """

    def __init__(
        self, model: Any, catalogue: Catalogue | None, rows: list[PromptCompletions], args: SiriusConfig, pad_id: int
    ) -> None:
        """ConfigError without a catalogue of these records, or where one of them leaves too few items."""
        self.source, objective = args.negative_source(), args.objective()
        if catalogue is None:
            raise ConfigError("negatives_from on_policy: hand over the `catalogue` that negatives are taken from")
        n = objective.negatives
        _check_enough(catalogue, len(rows), self.source.skip, n if isinstance(n, int) else 1)
        self.model, self.catalogue, self._records = model, catalogue, rows
        # The reference is the policy before its first step; it has to score titles that nobody knows beforehand.
        self.reference = copy.deepcopy(model).eval().requires_grad_(False) if objective.needs_reference else None
        self.folder, self.process, self.pad_id = Path(args.output_dir) / "mined", args.process_index, pad_id
        self.scoring: dict[str, Any] = {
            "mode": args.scoring,
            "max_tokens": args.eval_batch_tokens,
            "bf16": bool(args.bf16),
        }
        self.say: Callable[[str], None] = lambda line: None
        self._round: tuple[int, int] | None = None  # epoch and first step
        self._rows: dict[int, PromptCompletions] = {}
        self._refs: dict[int, np.ndarray] = {}

    def row(self, r: int) -> PromptCompletions:
        """Record r of the round at hand: completion 0 is the chosen one, the others are its list, best first."""
        return self._rows[r]

    def ref(self, r: int) -> np.ndarray | None:
        """log π_ref of the completions of `row(r)`, in nats; None where the loss needs no reference."""
        return None if self.reference is None else self._refs[r]

    def restart(self) -> None:
        """Forget the lists of an earlier training in this folder."""
        self._round = None
        shutil.rmtree(self.folder, ignore_errors=True)

    def prepare(self, epoch: int, slot: int, order: np.ndarray, layout: StepLayout) -> None:
        """Make sure that the lists of the round of `slot` are there. order: row of each example of this epoch."""
        step = slot // layout.batch // self.source.refresh * self.source.refresh
        if self._round == (epoch, step):
            return
        slots = np.arange(step * layout.batch, (step + self.source.refresh) * layout.batch)
        # Micro-batches are dealt to the processes in turn.
        own = slots[(slots // layout.micro) % layout.processes == self.process]
        wanted = np.unique(order[own[own < layout.slots(len(order))] % len(order)])
        file = self.folder / f"e{epoch}-s{step}-p{self.process}.npz"
        if not file.is_file():
            self._mine(wanted, file, f"epoch {epoch}, step {step}")
        self._read(wanted, file)
        self._round = (epoch, step)

    def _mine(self, wanted: np.ndarray, file: Path, when: str) -> None:
        started, trie = time.perf_counter(), self.catalogue.trie
        prompts = [self._records[r].prompt for r in wanted]
        k = min(self.source.skip + self.source.pool, trie.n_titles)
        found = top_k(
            self.model, trie, prompts, k, pad_id=self.pad_id,
            leave_out=[self.catalogue.leave_out_R[r] for r in wanted], max_tokens=self.scoring["max_tokens"],
            bf16=self.scoring["bf16"], scoring=self.scoring["mode"],
            progress=_counted(Pace(f"{when}: negatives from the policy", len(wanted), self.say)),
        )  # fmt: skip
        items = [one.items[self.source.skip :] for one in found]
        arrays = {
            "row": wanted, "item": np.concatenate(items), "length": np.array([len(own) for own in items]),
            "logp": np.concatenate([one.scores[self.source.skip :] for one in found]),
        }  # fmt: skip
        if self.reference is not None:
            rows = [self._with_list(r, own) for r, own in zip(wanted.tolist(), items, strict=True)]
            reference = self.reference.to(next(self.model.parameters()).device)
            count = _counted(Pace(f"{when}: reference log-probs of these", len(rows), self.say))
            # Of this process's rows: the others have their own.
            logps = score_rows(reference, rows, self.pad_id, progress=count, together=False, **self.scoring)
            arrays["ref_logp"] = np.concatenate(logps)
        atomic.write_npz(file, arrays)
        self.say(f"{when}: negatives of {len(wanted):,} rows from the policy in {time.perf_counter() - started:.0f} s")

    def _with_list(self, r: int, items: np.ndarray) -> PromptCompletions:
        """Record r with these items in the place of its rejected completions."""
        record, trie = self._records[r], self.catalogue.trie
        leaves = trie.leaves()[trie.place_I[items]]
        return PromptCompletions(record.prompt, [record.completions[0], *(trie.tokens(int(leaf)) for leaf in leaves)])

    def _read(self, wanted: np.ndarray, file: Path) -> None:
        with np.load(file) as stored:
            if not np.array_equal(stored["row"], wanted):
                raise TrainingError(f"{file}: lists of other rows than this training's: delete {self.folder}")
            ends, numbers = np.cumsum(stored["length"]), wanted.tolist()
            lists = np.split(stored["item"], ends[:-1])
            self._rows = {r: self._with_list(r, items) for r, items in zip(numbers, lists, strict=True)}
            if self.reference is not None:
                # With the reference's log-prob of the target before each list.
                logps = np.split(stored["ref_logp"], (ends + np.arange(1, len(ends) + 1))[:-1])
                self._refs = dict(zip(numbers, logps, strict=True))
