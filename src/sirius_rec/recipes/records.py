"""Frozen slates and histories → records, and which rows a stage sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.config import Config, StageSection
from sirius_rec.prompts.templates import NO, YES
from sirius_rec.schema import CANDIDATES, HISTORY, ROW_ID, TARGET, UTILITY, SlateName

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.prompts.templates import Template

Record = dict[str, Any]
# Independent random streams of one seed, so that stages do not share their draws.
PRETRAIN_STREAM, SFT_STREAM, ALIGN_STREAM, QUESTION_STREAM = 1, 2, 3, 4


def slate_records(
    dataset: Dataset,
    name: SlateName,
    form: Template,
    rows: np.ndarray | None = None,
    prompted: Sequence[str] | None = None,
) -> list[Record]:
    """TRL-style records of frozen slates: prompt, chosen (the target's title), rejected (the others, in slate order).

    rows: numbers of the rows to take, in that order; None for all. prompted: what stands for an item in the prompt,
    where that is not its title.
    """
    titles = dataset.titles
    prompted = titles if prompted is None else prompted
    examples = dataset.examples(name.split)
    slates = dataset.slates(name)
    histories, targets = examples[HISTORY].to_list(), examples[TARGET].to_list()
    candidates = slates[CANDIDATES].to_list()
    out = []
    for r in range(len(targets)) if rows is None else rows.tolist():
        shown = [titles[i] for i in candidates[r]]
        chosen = titles[targets[r]]
        out.append(
            {
                "prompt": form.render([prompted[i] for i in histories[r]], [prompted[i] for i in candidates[r]]),
                "chosen": chosen,
                "rejected": [title for title in shown if title != chosen],
            }
        )
    return out


def pretraining_records(dataset: Dataset, form: Template, *, piece: int, epochs: int, seed: int) -> list[Record]:
    """Training histories as plain text, `epochs` times, each time in another random order and cut.

    prompt = the template's first line, chosen = the titles. The shuffling teaches what goes together, which small data
    can teach without being learnt by heart; the order of events is left to SFT.
    """
    header = form.history + "\n"
    titles = dataset.titles
    rng = np.random.default_rng([seed, PRETRAIN_STREAM])
    sequences = dataset.train_sequences()
    out: list[Record] = []
    for _ in range(epochs):
        for sequence in sequences:
            sequence = rng.permutation(sequence)
            offset = int(rng.integers(1, piece + 1))
            bounds = [0, *range(offset, len(sequence), piece), len(sequence)]
            for start, end in pairwise(bounds):
                text = "\n".join(titles[i] for i in sequence[start:end])
                out.append({"prompt": header, "chosen": text, "rejected": []})
    return out


def continuation_records(dataset: Dataset, name: SlateName, form: Template, rows: np.ndarray) -> list[Record]:
    """Slates as a text continued: prompt = the history without the slate, candidates = its possible next lines."""
    header = form.history
    titles = dataset.titles
    histories = dataset.examples(name.split)[HISTORY].to_list()
    out = slate_records(dataset, name, form, rows)
    for record, r in zip(out, rows.tolist(), strict=True):
        record["prompt"] = "\n".join([header, *(titles[i] for i in histories[r])])
    return out


def train_slates(config: Config) -> SlateName:
    """The slates that training uses."""
    slate = next(s for s in config.data.slates if "train" in s.splits)
    assert slate.size is not None, "only protocol full has no size, and it covers no train split"
    return SlateName("train", slate.protocol, slate.size, slate.seed, slate.exclude == "interacted-LEAKY")


def stage_rows(n_rows: int, stage: StageSection, seed: int, tag: int) -> np.ndarray:
    """The training rows that a stage will see at all: those of its epochs, a seeded choice without replacement."""
    wanted = n_rows if stage.examples_per_epoch is None else min(n_rows, stage.epochs * stage.examples_per_epoch)
    return np.sort(np.random.default_rng([seed, tag]).permutation(n_rows)[:wanted])


def validation_rows(config: Config, n_rows: int) -> np.ndarray:
    """The validation rows ranked after each epoch; the same for every seed and arm."""
    wanted = min(n_rows, config.evaluation.validation_rows or n_rows)
    return np.sort(np.random.default_rng(0).permutation(n_rows)[:wanted])


def validation_slates(config: Config, dataset: Dataset) -> SlateName | None:
    """The validation slates of the training protocol; None where the data has none."""
    name = replace(train_slates(config), split="val")
    return name if str(name) in dataset.slate_names and dataset.examples("val").height else None


def validation_set(
    config: Config, dataset: Dataset, form: Template | None = None, prompted: Sequence[str] | None = None
) -> dict[str, Any] | None:
    """Validation records and, in a simulated world, the hook that measures true reward on them.

    form, prompted: as `slate_records` takes them; the configured template and titles unless given.
    """
    name = validation_slates(config, dataset)
    if name is None:
        return None
    rows = validation_rows(config, dataset.examples("val").height)
    records = slate_records(dataset, name, form or config.prompts.form(), rows, prompted)
    return {"records": records, "hook": true_reward_hook(dataset, name, rows)}


def question_records(
    dataset: Dataset, name: SlateName, form: Template, pairs: Iterable[tuple[int, int]]
) -> list[Record]:
    """Records of yes/no questions about (row, candidate) pairs: chosen is Yes where the candidate is the target."""
    titles = dataset.titles
    examples = dataset.examples(name.split)
    histories, targets = examples[HISTORY].to_list(), examples[TARGET].to_list()
    out = []
    for row, item in pairs:
        right, wrong = (YES, NO) if item == targets[row] else (NO, YES)
        prompt = form.render_question([titles[i] for i in histories[row]], titles[item])
        out.append({"prompt": prompt, "chosen": right, "rejected": [wrong]})
    return out


def question_pairs(
    dataset: Dataset, name: SlateName, rows: np.ndarray, negatives: int, seed: int
) -> list[tuple[int, int]]:
    """(row, item) of every row's target and of `negatives` others of its slate, drawn by seed and row."""
    targets = dataset.examples(name.split)[TARGET].to_list()
    slates = dataset.slates(name)[CANDIDATES].to_list()
    out = []
    for r in rows.tolist():
        others = [item for item in slates[r] if item != targets[r]]
        drawn = np.random.default_rng([seed, QUESTION_STREAM, r]).permutation(len(others))[:negatives]
        out += [(r, targets[r]), *((r, others[at]) for at in drawn.tolist())]
    return out


def question_validation(config: Config, dataset: Dataset, form: Template) -> dict[str, Any] | None:
    """A question about every candidate of the validation slates, and the hook that ranks the slates by the answers.

    The hook's HR@1 and NDCG@10 are over slates, and take the place of the share of questions answered rightly, which
    becomes `answered`.
    """
    name = validation_slates(config, dataset)
    if name is None:
        return None
    from sirius_rec.evaluation.metrics import METRICS, per_example, target_positions

    rows = validation_rows(config, dataset.examples("val").height)
    targets = dataset.examples("val")[TARGET].to_numpy()[rows]
    slates = [np.asarray(slate) for slate in dataset.slates(name)[CANDIDATES].gather(rows.tolist()).to_list()]
    positions = target_positions(slates, targets)
    pairs = [(r, item) for r, slate in zip(rows.tolist(), slates, strict=True) for item in slate.tolist()]
    says_yes = np.concatenate([slate == target for slate, target in zip(slates, targets, strict=True)])

    def hook(logps: list[np.ndarray]) -> dict[str, float]:
        chosen_R = np.array([logp_C[0] - logp_C[1] for logp_C in logps])
        odds = np.split(np.where(says_yes, chosen_R, -chosen_R), np.cumsum([len(slate) for slate in slates])[:-1])
        ranks = per_example(odds, positions).select(METRICS).mean().to_dicts()[0]
        return {**ranks, "answered": float((chosen_R > 0).mean())}

    return {"records": question_records(dataset, name, form, pairs), "hook": hook}


def true_reward_hook(dataset: Dataset, name: SlateName, rows: np.ndarray) -> Callable[..., dict[str, float]] | None:
    """Metric of a simulated world: mean true reward of the model's choice, 1 the best possible, 0 a random one."""
    truth = dataset.truth(name)
    if truth is None:
        return None
    from sirius_rec.evaluation.metrics import true_reward

    joined = dataset.slates(name).join(truth, on=ROW_ID, how="left", maintain_order="left")
    candidates, utilities = joined[CANDIDATES].to_list(), joined[UTILITY].to_list()
    targets = dataset.examples(name.split)[TARGET].to_list()
    ordered = []
    for r in rows.tolist():
        at = candidates[r].index(targets[r])
        ordered.append(np.array([utilities[r][at], *utilities[r][:at], *utilities[r][at + 1 :]]))

    def hook(logps: list[np.ndarray]) -> dict[str, float]:
        return {"true_reward": float(true_reward(logps, ordered).mean())}

    return hook
