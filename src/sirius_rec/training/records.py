"""Preference records → tokenised rows → trees of candidates.

A record is TRL's: `prompt` (text, or a list of chat messages), `chosen` (text) and `rejected` (text, or a list of
texts). With more rejected texts than the objective asks for, that many are drawn anew in every epoch. Losses that
weight records also read `reward`, a number that was observed, a rating for example.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from sirius_rec.errors import ConfigError, DataError, TrainingError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import build_tree, count_nodes
from sirius_rec.training.batching import StepLayout, by_user, grouped
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.negatives import HARD, NegativeSource

if TYPE_CHECKING:
    from sirius_rec.objectives.losses import Objective
    from sirius_rec.training.mining import Miner

_SURROGATE = re.compile("[\ud800-\udfff]")


def _text(value: Any, column: str, number: int) -> str:
    """A completion as text; TRL's chat form is a list with one assistant message."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 1 and isinstance(value[0], Mapping):
        value = value[0].get("content")
    if not isinstance(value, str) or not value:
        raise DataError(f"record {number}: '{column}' must be a text that is not empty, got {value!r}")
    if not value.isascii() and _SURROGATE.search(value):
        raise DataError(f"record {number}: '{column}' holds half a character (a lone surrogate): {value!r}")
    return value


def _rejected(value: Any, number: int) -> list[str]:
    if value is None:
        return []
    chat = isinstance(value, Sequence) and value and isinstance(value[0], Mapping)
    if isinstance(value, str) or chat:
        return [_text(value, "rejected", number)]
    if not isinstance(value, Iterable):
        raise DataError(f"record {number}: 'rejected' must be a text or a list of texts, got {value!r}")
    return [_text(item, "rejected", number) for item in value]


def _is_chat(value: Any, number: int) -> bool:
    """Whether a prompt is a list of chat messages rather than a text; DataError if it is neither."""
    if isinstance(value, str):
        return False
    if isinstance(value, Sequence) and value and all(isinstance(message, Mapping) for message in value):
        return True
    raise DataError(f"record {number}: 'prompt' must be a text or a list of chat messages, got {value!r}")


def encode_records(
    records: Iterable[Mapping[str, Any]], encoder: Encoder, numbers: Iterable[int] | None = None
) -> list[PromptCompletions]:
    """Tokenise records; completion 0 is the chosen one, the others the rejected in their order.

    numbers: how errors call them; from 0 unless given.
    Raises DataError naming record and column: missing columns, empty texts, a chosen text among the rejected ones.
    """
    prompts: list[Any] = []
    completions: list[list[list[int]]] = []
    for number, record in zip(itertools.count() if numbers is None else numbers, records, strict=False):
        missing = [column for column in ("prompt", "chosen") if column not in record]
        if missing:
            raise DataError(f"record {number}: column '{missing[0]}' is missing (has: {', '.join(record)})")
        chosen = _text(record["chosen"], "chosen", number)
        rejected = _rejected(record.get("rejected"), number)
        if chosen in rejected:
            raise DataError(f"record {number}: the chosen text {chosen!r} is also among the rejected ones")
        if _is_chat(record["prompt"], number) != _is_chat((prompts or [record["prompt"]])[0], 0):
            raise DataError(f"record {number}: 'prompt' is not of the same kind (text or chat messages) as in others")
        prompts.append(record["prompt"])
        encode = encoder.completion if isinstance(record["prompt"], str) else encoder.turn
        completions.append([encode(text) for text in (chosen, *rejected)])
        for text, ids in zip((chosen, *rejected), completions[-1], strict=True):
            if encoder.special.intersection(ids[:-1]):
                raise DataError(f"record {number}: {text!r} contains a special token of the tokenizer: change the text")
    if not prompts:
        raise DataError("the data set has no records")
    if isinstance(prompts[0], str):
        prompt_ids = encoder.prompts(prompts)
    else:
        if not encoder.tokenizer.chat_template:
            raise DataError("record 0: 'prompt' holds chat messages, but the tokenizer has no chat template: use texts")
        prompt_ids = [
            encoder.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False, enable_thinking=False
            )
            for messages in prompts
        ]
    return [PromptCompletions(ids, ys) for ids, ys in zip(prompt_ids, completions, strict=True)]


def observed_rewards(records: Iterable[Mapping[str, Any]], numbers: Iterable[int] | None = None) -> list[float]:
    """The `reward` of every record, a finite number such as a rating. DataError naming the first that has none.

    numbers: as `encode_records` takes them.
    """
    rewards = []
    for number, record in zip(itertools.count() if numbers is None else numbers, records, strict=False):
        value = record.get("reward")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise DataError(
                f"record {number}: this loss weights records by an observed 'reward', a finite number, got {value!r}"
            )
        rewards.append(float(value))
    return rewards


def users_of(records: Iterable[Mapping[str, Any]]) -> list[Hashable]:
    """Whose each record is, from its `user`; DataError for a record without one."""
    users = [record.get("user") for record in records]
    unknown = [n for n, user in enumerate(users) if user is None or user != user]  # data frames say NaN
    if unknown:
        raise DataError(f"record {unknown[0]}: share: user needs to know whose it is: give every record a 'user'")
    return users


# Keys of the independent streams of one seed.
_WALK, _ORDER = 0xE90C, 1 << 32


@dataclass(frozen=True)
class Draw:
    """One example as the collator gets it: candidate columns in scoring order, the first 1 + n_sampled in the loss.

    weight: what it counts in its micro-batch's loss (`StepLayout.weight`); None in data sets without a layout.
    """

    row: int
    columns: np.ndarray
    n_sampled: int
    weight: float | None = None


def numbered(users: Sequence[Hashable]) -> np.ndarray:
    """Users as numbers, in the order of their first rows."""
    numbers: dict[Hashable, int] = {}
    return np.array([numbers.setdefault(user, len(numbers)) for user in users])


class PreferenceDataset(Dataset[Draw]):
    """Rows with their sampled negatives, drawn anew each epoch by (seed, epoch, row) alone.

    negatives: how many rejected completions are sampled; "all" for every one; 0 for none.
    score_unsampled: how many of the others are scored as well, for the logs ("all" or a number).
    examples_per_epoch: an epoch is that many rows; epochs walk through one seeded order of all rows, so that none is
        seen twice before each was seen once. None: all rows.
    layout: how steps are computed. The order of an epoch is shuffled by (seed, epoch), then rows of similar length, as
        drawn for this epoch, are put into steps together and the steps shuffled. Read it sequentially: slot after slot.
    users: whose each row is, for steps of whole runs of a user's rows, in their order: users are shuffled instead of
        rows, and an epoch of fewer examples is one of fewer users.
    """

    def __init__(
        self,
        rows: Sequence[PromptCompletions],
        *,
        negatives: int | str,
        score_unsampled: int | str = "all",
        seed: int = 0,
        examples_per_epoch: int | None = None,
        layout: StepLayout | None = None,
        users: Sequence[Hashable] | None = None,
    ) -> None:
        fewest, number = min((len(row.completions) - 1, number) for number, row in enumerate(rows))
        check_enough(negatives, fewest, f"record {number}")
        self.rows = rows
        self.negatives = negatives
        self.score_unsampled = score_unsampled
        self.seed = seed
        self.layout = layout or StepLayout()
        self._length = min(examples_per_epoch or len(rows), len(rows))
        self.users = users
        # Has other completions of a row to draw from, where they come from the policy (`mining`). Orders and lengths
        # rest on the rows as they came.
        self.miner: Miner | None = None
        self._user_R = None if users is None else numbered(users)
        walk = np.random.Generator(np.random.Philox(key=[seed, _WALK]))
        self._walk = walk.permutation(len(rows)) if self._user_R is None else by_user(self._user_R, walk)
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Fix the rows, their order and the draws of an epoch."""
        self.epoch = int(epoch)
        rows = self._rows_of(self.epoch)
        rng = np.random.Generator(np.random.Philox(key=[self.seed, _ORDER + self.epoch]))
        rows = (
            rng.permutation(rows) if self._user_R is None else np.sort(rows)[by_user(self._user_R[np.sort(rows)], rng)]
        )
        # Drawn once for the lengths and for training: a generator per row costs more than all else in a batch.
        self._drawn = {r: self.draw(r) for r in rows.tolist()}
        if self._user_R is None and self.layout.batch > 1:
            rows = grouped(rows, self._drawn_lengths(rows), self.layout.batch, rng)
        self.order = rows

    def _rows_of(self, epoch: int) -> np.ndarray:
        start = epoch * self._length
        return self._walk[np.arange(start, start + self._length) % len(self.rows)]

    def _drawn_lengths(self, rows: np.ndarray) -> np.ndarray:
        """Packed tokens of each row with the candidates drawn for it: what a row really takes up."""
        lengths = np.empty(len(rows), dtype=np.int64)
        for at, r in enumerate(rows.tolist()):
            row = self.rows[r]
            inputs = sum(len(row.completions[c]) - 1 for c in self._drawn[r].columns.tolist())
            lengths[at] = len(row.prompt) + inputs
        return lengths

    def heaviest(self, scoring: str = "packed") -> list[PromptCompletions]:
        """The rows of this epoch's longest micro-batch in that mode of scoring, with the candidates drawn for them."""
        micro = self.layout.micro
        drawn = [self.rows[r].only(self._drawn[r].columns.tolist()) for r in self.order.tolist()]
        lengths = np.array([row.length(scoring) for row in drawn])
        starts = np.arange(0, len(drawn), micro)
        sums = np.add.reduceat(lengths, starts)
        largest, found = -1, drawn[:micro]
        for at in np.argsort(-sums, kind="stable").tolist():
            if sums[at] <= largest:  # rows share tokens and never add any: no further one can be larger
                break
            batch = drawn[starts[at] : starts[at] + micro]
            size = int(sums[at]) if scoring == "naive" else count_nodes(batch)
            if size > largest:
                largest, found = size, batch
        return found

    @property
    def n_examples(self) -> int:
        """Examples of an epoch, without those that only fill up the last round."""
        return self._length

    def __len__(self) -> int:
        return self.layout.slots(self._length)

    def __getitem__(self, slot: int) -> Draw:
        """The example in a slot; slots behind the last example repeat earlier ones with weight 0."""
        row = int(self.order[slot % self._length])
        drawn = self._drawn[row]
        if self.miner is not None:
            self.miner.prepare(self.epoch, slot, self.order, self.layout)
            drawn = self._draw(row, self.miner.row(row), self.epoch)
        return Draw(drawn.row, drawn.columns, drawn.n_sampled, self.layout.weight(slot, self._length))

    def columns_drawn(self, epochs: int) -> list[np.ndarray]:
        """Of each row the columns that epochs 0 to `epochs` - 1 draw, ascending; none of a row that is in none."""
        columns_R: list[set[int]] = [set() for _ in self.rows]
        for epoch in range(epochs):
            for row in self._rows_of(epoch).tolist():
                columns_R[row].update(self._draw(row, self.rows[row], epoch).columns.tolist())
        return [np.array(sorted(columns), dtype=np.int64) for columns in columns_R]

    def draw(self, row: int) -> Draw:
        """The columns of `row` in this epoch: the positive, the sampled negatives, the other scored candidates."""
        return self._draw(row, self.rows[row], self.epoch)

    def _draw(self, row: int, completions: PromptCompletions, epoch: int) -> Draw:
        return draw_of(row, completions, self.negatives, self.score_unsampled, self.seed, epoch)


def check_enough(negatives: int | str, n_rejected: int, which: str) -> None:
    """ConfigError where a record has too few rejected completions."""
    if (1 if negatives == "all" else int(negatives)) > n_rejected:
        raise ConfigError(
            f"{negatives} negatives were asked for, but {which} has only {n_rejected} rejected completions"
        )


def draw_of(
    number: int,
    row: PromptCompletions,
    negatives: int | str,
    score_unsampled: int | str,
    seed: int,
    epoch: int,
) -> Draw:
    """The columns of a row in an epoch, by (seed, epoch, number) alone; see `PreferenceDataset`."""
    n_rejected = len(row.completions) - 1
    n_sampled = n_rejected if negatives == "all" else int(negatives)
    n_others = n_rejected if score_unsampled == "all" else int(score_unsampled)
    key = (seed << 32) ^ epoch
    order = np.random.Generator(np.random.Philox(key=[key & (2**64 - 1), number])).permutation(n_rejected) + 1
    return Draw(number, np.concatenate([[0], order[: n_sampled + n_others]]), n_sampled)


def training_set(
    rows: Sequence[PromptCompletions], args: SiriusConfig, users: Sequence[Hashable] | None
) -> PreferenceDataset:
    """What each epoch draws from the rows (`draw_options`)."""
    fewest = min(len(row.completions) for row in rows) - 1
    return PreferenceDataset(rows, users=users, **draw_options(args, fewest))


def draw_counts(
    objective: Objective, source: NegativeSource, score_unsampled: int | str, fewest: int
) -> tuple[int | str, int | str]:
    """How many negatives are drawn for a record, as many as the loss takes or those of which the strongest are chosen
    once they are scored, and how many others are scored beside them, to be watched or because the loss reads the slate.

    fewest: rejected completions of a record. ConfigError where they are too few.
    """
    others = "all" if objective.needs_slate else score_unsampled
    negatives = objective.negatives
    if not objective.uses_negatives:
        # A loss without negatives still shows its margin in the logs where candidates are scored at all.
        negatives = min(1, fewest) if others != 0 else 0
    if source.kind == HARD:
        negatives = source.pool
        if negatives > fewest:
            raise ConfigError(f"pool {negatives}: a record has only {fewest} rejected completions: lower it")
    return negatives, others


def draw_options(args: SiriusConfig, fewest: int) -> dict[str, Any]:
    """Options of a data set; see `draw_counts`."""
    negatives, others = draw_counts(args.objective(), args.negative_source(), args.score_unsampled, fewest)
    return {
        "negatives": negatives,
        "score_unsampled": others,
        "seed": args.data_seed if args.data_seed is not None else args.seed,
        "examples_per_epoch": args.examples_per_epoch,
        "layout": StepLayout(args.per_device_train_batch_size, args.gradient_accumulation_steps, args.world_size),
    }


class TreeCollator:
    """Draws → a tree of candidates. Set before training: `ref_logps`, log π_ref per row and completion (nats), and
    `observed`, the observed reward of each row; `miner`, where completions and their log π_ref are its own."""

    def __init__(self, rows: Sequence[PromptCompletions], *, with_rows: bool = False) -> None:
        self.rows = rows
        self.with_rows = with_rows
        self.ref_logps: Sequence[np.ndarray] | None = None
        self.observed: Sequence[float] | None = None
        self.miner: Miner | None = None

    def _row(self, r: int) -> PromptCompletions:
        return self.rows[r] if self.miner is None else self.miner.row(r)

    def _ref(self, r: int) -> np.ndarray | None:
        if self.miner is not None:
            return self.miner.ref(r)
        return None if self.ref_logps is None else self.ref_logps[r]

    def __call__(self, draws: Sequence[Draw]) -> dict[str, Any]:
        """tree, sampled_BC, row_B, weight_B; ref_logp_BC and observed_B where there are any.

        TrainingError where a log-prob of the reference is not finite: a filter would pass over NaN in silence.
        DataError where a record has too few of them.

        n_real: examples that count; those of weight 0 stand behind them.
        """
        chosen = [self._row(d.row).only(d.columns.tolist()) for d in draws]
        tree = build_tree(chosen)
        batch: dict[str, Any] = {"tree": tree}
        shape = tuple(tree.valid_BC.shape)
        columns_C = torch.arange(shape[1])
        n_sampled_B = torch.tensor([d.n_sampled for d in draws])
        batch["sampled_BC"] = (columns_C > 0) & (columns_C <= n_sampled_B[:, None]) & tree.valid_BC
        batch["row_B"] = torch.tensor([d.row for d in draws])
        # Draws of no step are a batch of their own: their mean.
        batch["weight_B"] = torch.tensor([1 / len(draws) if d.weight is None else d.weight for d in draws])
        batch["n_real"] = sum(d.weight != 0 for d in draws)
        refs = [ref for d in draws if (ref := self._ref(d.row)) is not None]
        if refs:
            ref_logp_BC: Tensor = torch.zeros(shape)
            for b, (d, ref) in enumerate(zip(draws, refs, strict=True)):
                if d.columns.max() >= len(ref):
                    raise DataError(
                        f"record {d.row}: {len(ref)} log-probs of the reference are too few: one a completion"
                    )
                logp_C = ref[d.columns]
                if not np.isfinite(logp_C).all():
                    raise TrainingError(
                        f"record {d.row}: the reference log-probs are not finite: the reference model is damaged, or "
                        "candidates are drawn that were not scored"
                    )
                ref_logp_BC[b, : len(d.columns)] = torch.from_numpy(logp_C)
            batch["ref_logp_BC"] = ref_logp_BC
        if self.observed is not None:
            batch["observed_B"] = torch.tensor([self.observed[d.row] for d in draws])
        if self.with_rows:
            batch["rows"] = chosen
        return batch
