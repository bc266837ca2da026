"""Training on more records than fit into memory: they are read and tokenised as their steps come.

Nothing of a record is held but for the steps at hand. Orders are computed, not stored (`permutation`), so a training
that goes on begins in the middle of an epoch without going through what is before.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from sirius_rec.errors import DataError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.batching import POOL, StepLayout, grouped
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.permutation import Permutation
from sirius_rec.training.records import (
    Draw,
    check_enough,
    draw_of,
    draw_options,
    encode_records,
    observed_rewards,
    training_set,
    users_of,
)

_WALK, _ORDER, _STEPS = 0x57A1, 0x0DE5, 0x57E9  # independent streams of one seed
_LOOK = 256  # records that stand for all in a fingerprint
_KEPT = 1 << 20  # completions whose ids are kept: the titles of a catalogue
_SAMPLE = 4096  # records from which the longest are taken where nothing is known of them


class EncodedRows(Sequence[PromptCompletions]):
    """Records, tokenised when they are asked for.

    records: anything with a length that gives a record for a number; `__getitems__` (a list of numbers), where it has
        that, reads many at once; `longest(n)` gives the numbers of the n that are longest, as far as is known without
        tokenising all.
    check: is called with what was tokenised, for errors.
    """

    def __init__(
        self, records: Any, encoder: Encoder, check: Callable[[Sequence[PromptCompletions]], None] = lambda rows: None
    ) -> None:
        if not (hasattr(records, "__len__") and hasattr(records, "__getitem__")):
            raise DataError(
                "stream: needs records that have a length and are read by number, not one after the other: a Hugging "
                "Face Dataset (not an IterableDataset) or a list"
            )
        if not len(records):
            raise DataError("the data set has no records")
        self.records, self.encoder, self._check = records, encoder, check
        self._at_hand: dict[int, PromptCompletions] = {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return self._encoded(range(len(self))[number])
        row = self._at_hand.get(number)
        return self._encoded([number])[0] if row is None else row

    def read(self, numbers: Sequence[int]) -> list[PromptCompletions]:
        """The rows of these records, which are kept until the next call."""
        rows = self._encoded(numbers)
        self._at_hand = dict(zip(numbers, rows, strict=True))
        return rows

    def _encoded(self, numbers: Sequence[int]) -> list[PromptCompletions]:
        wanted = list(numbers)
        many = getattr(self.records, "__getitems__", None)
        records = many(wanted) if many is not None else [self.records[n] for n in wanted]
        self.encoder.forget(_KEPT)
        rows = encode_records(records, self.encoder, wanted)
        self._check(rows)
        return rows

    def fingerprint(self) -> str:
        """SHA-256 of how many rows there are and of some of them as token ids: other records have another."""
        digest = hashlib.sha256(str(len(self)).encode())
        for row in self._encoded(np.unique(np.linspace(0, len(self) - 1, _LOOK).astype(int)).tolist()):
            for ids in (row.prompt, *row.completions):
                digest.update(np.asarray([len(ids), *ids], dtype=np.int64).tobytes())
        return digest.hexdigest()

    def longest(self, n: int) -> list[PromptCompletions]:
        """About the n longest rows: of all, where the records say so, else of a sample."""
        say: Callable[[int], Sequence[int]] | None = getattr(self.records, "longest", None)
        if say is not None:
            return self._encoded(say(n))
        rows = self._encoded(np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(int)).tolist())
        return sorted(rows, key=lambda row: -row.packed_length)[:n]


class Observed(Sequence[float]):
    """The observed reward of each record, read when asked for."""

    def __init__(self, records: Any) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: Any) -> Any:
        record: Mapping[str, Any] = self.records[number]
        return observed_rewards([record], [number])[0]


class StreamedDataset(Dataset[Draw]):
    """`PreferenceDataset` whose rows are read a pool of steps at a time.

    The order of rows is a seeded permutation, and epochs walk through it. Within a pool, rows of similar length, as
    drawn for the epoch, are put into steps together and the steps shuffled. All of it rests on (seed, epoch, slot):
    any slot can be the first one asked for. Several processes all read each pool.
    """

    miner = None
    users = None

    def __init__(
        self,
        rows: EncodedRows,
        *,
        negatives: int | str,
        score_unsampled: int | str,
        seed: int,
        examples_per_epoch: int | None,
        layout: StepLayout,
        required: bool = True,
    ) -> None:
        """required: whether the loss takes the negatives; otherwise they are watched alone, where a row has any."""
        self.rows, self.negatives, self.score_unsampled = rows, negatives, score_unsampled
        self.required = required
        self.seed, self.layout = seed, layout
        self.n_examples = min(examples_per_epoch or len(rows), len(rows))
        self._pool_size = layout.batch * POOL
        self._walk = Permutation(len(rows), [seed, _WALK])
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Fix the rows, their order and the draws of an epoch."""
        self.epoch = int(epoch)
        self._order = Permutation(self.n_examples, [self.seed, _ORDER, self.epoch])
        self._pool: int | None = None
        self._draws: list[Draw] = []

    def __len__(self) -> int:
        return self.layout.slots(self.n_examples)

    def __getitem__(self, slot: int) -> Draw:
        """The example in a slot; slots behind the last example repeat others of its pool with weight 0."""
        pool = min(slot, self.n_examples - 1) // self._pool_size  # the last one holds places behind its examples
        if pool != self._pool:
            self._draws = self._read(pool)
            self._pool = pool
        draw = self._draws[(slot - pool * self._pool_size) % len(self._draws)]
        return Draw(draw.row, draw.columns, draw.n_sampled, self.layout.weight(slot, self.n_examples))

    def _read(self, pool: int) -> list[Draw]:
        """The examples of a pool, in the order of its slots."""
        start = pool * self._pool_size
        places = self._order(np.arange(start, min(start + self._pool_size, self.n_examples)))
        numbers = self._walk((self.epoch * self.n_examples + places) % len(self.rows))
        rows = self.rows.read(numbers.tolist())
        draws = [self._draw(number, row, self.epoch) for number, row in zip(numbers.tolist(), rows, strict=True)]
        if self.layout.batch == 1:
            return draws
        lengths = np.array([_drawn(row, draw).packed_length for row, draw in zip(rows, draws, strict=True)])
        rng = np.random.default_rng([self.seed, _STEPS, self.epoch, pool])
        return [draws[at] for at in grouped(np.arange(len(draws)), lengths, self.layout.batch, rng).tolist()]

    def columns_drawn(self, number: int, row: PromptCompletions, epochs: int) -> np.ndarray:
        """The columns that a record may draw in epochs 0 to `epochs` - 1, ascending, whichever of them it is in."""
        drawn = [self._draw(number, row, epoch).columns for epoch in range(epochs)]
        return np.unique(np.concatenate([np.empty(0, dtype=np.int64), *drawn]))

    def draws_key(self, epochs: int) -> str:
        """Text that names what `columns_drawn` depends on beside the records."""
        return f"{self.negatives} {self.required} {self.score_unsampled} {self.seed} {epochs}"

    def _draw(self, number: int, row: PromptCompletions, epoch: int) -> Draw:
        n_rejected, negatives = len(row.completions) - 1, self.negatives
        if self.required:
            check_enough(negatives, n_rejected, f"record {number}")
        elif negatives != "all":
            negatives = min(int(negatives), n_rejected)
        return draw_of(number, row, negatives, self.score_unsampled, self.seed, epoch)

    def heaviest(self, scoring: str = "packed") -> list[PromptCompletions]:
        """A micro-batch of the longest rows, with candidates as drawn for this epoch: no lighter than any, as far as
        is known without tokenising all rows."""
        rows = self.rows.longest(4 * self.layout.micro)
        drawn = [_drawn(row, self._draw(number, row, self.epoch)) for number, row in enumerate(rows)]
        return sorted(drawn, key=lambda row: -row.length(scoring))[: self.layout.micro]


def _drawn(row: PromptCompletions, draw: Draw) -> PromptCompletions:
    return row.only(draw.columns.tolist())


def training_data(
    records: Any, args: SiriusConfig, encoder: Encoder, check: Callable[[Sequence[PromptCompletions]], None]
) -> tuple[Any, Sequence[float] | None]:
    """What epochs draw from the records, held or streamed, and the observed reward of each where the loss needs it."""
    needs_observed = args.objective().needs_observed
    if args.stream:
        streamed = EncodedRows(records, encoder, check)
        check(streamed.longest(args.per_device_train_batch_size))
        return streamed_set(streamed, args), Observed(records) if needs_observed else None
    records = list(records)
    rows = encode_records(records, encoder)
    check(rows)
    dataset = training_set(rows, args, users_of(records) if args.share == "user" else None)
    return dataset, observed_rewards(records) if needs_observed else None


def streamed_set(rows: EncodedRows, args: SiriusConfig) -> StreamedDataset:
    """What each epoch draws from the rows (`draw_options`), whose first one says how many completions there are."""
    options = draw_options(args, len(rows[0].completions) - 1)
    return StreamedDataset(rows, required=args.objective().uses_negatives, **options)
