"""Frozen slates and histories → records, and which rows a stage sees."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.data.options import PAST
from sirius_rec.data.slates import interacted_items, past_items
from sirius_rec.diagnostics.curves import HIT
from sirius_rec.errors import ConfigError
from sirius_rec.prompts.templates import NO, YES
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.streamed import Rows, StreamedRecords, streamed_rows
from sirius_rec.schema import CANDIDATES, HISTORY, ROW_ID, TARGET, USER_ID, UTILITY, SlateName
from sirius_rec.training.batching import by_user
from sirius_rec.training.options import StageOptions

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.prompts.templates import Template

Record = dict[str, Any]
SELECTION = "hr@1_selection"  # HR@1 on the validation rows that choose SFT's best epoch
# Independent random streams of one seed, so that stages do not share their draws.
PRETRAIN_STREAM, SFT_STREAM, ALIGN_STREAM, QUESTION_STREAM = 1, 2, 3, 4


def slate_records(
    dataset: Dataset,
    name: SlateName,
    template: Template,
    rows: Rows | None = None,
    prompted: Sequence[str] | None = None,
) -> list[Record]:
    """TRL-style records of frozen slates: prompt, chosen (the target's title), rejected (the others, in slate order).
    And whose it is, `user`.

    rows: numbers of the rows to take, in that order; None for all. prompted: what stands for an item in the prompt,
    where that is not its title.
    """
    titles = dataset.titles
    prompted = titles if prompted is None else prompted
    table = dataset.examples(name.split).select(HISTORY, TARGET, USER_ID, dataset.slates(name)[CANDIDATES])
    out = []
    for history, target, user, slate in (table if rows is None else table[np.asarray(rows)]).iter_rows():
        chosen = titles[target]
        out.append(
            {
                "prompt": template.render([prompted[i] for i in history], [prompted[i] for i in slate]),
                "chosen": chosen,
                "rejected": [titles[i] for i in slate if i != target],
                "user": user,
            }
        )
    return out


def pretraining_records(dataset: Dataset, template: Template, *, piece: int, epochs: int, seed: int) -> list[Record]:
    """Training histories as plain text, `epochs` times, each time in another random order and cut.

    prompt = the template's first line, chosen = the titles. The shuffling teaches what goes together, which small data
    can teach without being learnt by heart; the order of events is left to SFT.
    """
    header = template.history + "\n"
    titles = dataset.titles
    pieces = _pieces(dataset, piece, epochs, np.random.default_rng([seed, PRETRAIN_STREAM]), shuffle=True)
    texts = ("\n".join(titles[i] for i in cut) for cut in pieces)
    return [{"prompt": header, "chosen": text, "rejected": []} for text in texts]


def reading_records(
    dataset: Dataset,
    template: Template,
    prompted: Sequence[str],
    *,
    piece: int,
    epochs: int,
    seed: int,
    shuffle: bool,
) -> list[Record]:
    """Training histories, `epochs` times, as one record for every title of a piece with those before it as its prompt.

    The records of a piece have one `user`: together they are a text in which every title but the first is a target.
    prompted: what stands for an item in prompts. shuffle: each history in another random order in every epoch;
    otherwise only the cuts differ.
    """
    titles = dataset.titles
    cuts = _pieces(dataset, piece, epochs, np.random.default_rng([seed, SFT_STREAM]), shuffle=shuffle)
    out: list[Record] = []
    for number, cut in enumerate(cuts):
        shown = [prompted[i] for i in cut]
        for at in range(1, len(shown)):
            prompt = template.render(shown[:at], [])
            out.append({"prompt": prompt, "chosen": titles[cut[at]], "rejected": [], "user": number})
    return out


def _pieces(
    dataset: Dataset, piece: int, epochs: int, rng: np.random.Generator, *, shuffle: bool
) -> Iterator[np.ndarray]:
    """Every training user's items once an epoch, cut at random into pieces of at most `piece`."""
    sequences = dataset.train_sequences(limited=True)
    for _ in range(epochs):
        for sequence in sequences:
            read = rng.permutation(sequence) if shuffle else sequence
            offset = int(rng.integers(1, piece + 1))
            for start, end in pairwise([0, *range(offset, len(read), piece), len(read)]):
                yield read[start:end]


def continuation_records(dataset: Dataset, name: SlateName, template: Template, rows: np.ndarray) -> list[Record]:
    """Slates as a text continued: prompt = the history without the slate, candidates = its possible next lines."""
    header = template.history
    titles = dataset.titles
    histories = dataset.examples(name.split)[HISTORY].gather(rows.tolist()).to_list()
    out = slate_records(dataset, name, template, rows)
    for record, history in zip(out, histories, strict=True):
        record["prompt"] = "\n".join([header, *(titles[i] for i in history)])
    return out


def stage_rows(n_rows: int, stage: StageOptions, seed: int, stream: int, users: np.ndarray | None = None) -> np.ndarray:
    """The training rows that a stage will see at all: those of its epochs, a seeded choice without replacement.

    users: whose each row is, where it is users that are chosen, with all their rows.
    """
    wanted = stage.wanted(n_rows)
    rng = np.random.default_rng([seed, stream])
    order = rng.permutation(n_rows) if users is None else by_user(np.unique(users, return_inverse=True)[1], rng)
    return np.sort(order[:wanted])


def training_rows(run: Run, stage: StageOptions, seed: int, stream: int) -> Rows:
    """`stage_rows` of an open run: users are chosen with `training.share: user`."""
    users = None
    if run.config.training.share == "user":
        examples = run.dataset.examples("train")
        if examples[USER_ID].null_count():
            raise ConfigError(
                "training.share: user needs rows that say whose they are, and this data does not: set none"
            )
        users = examples[USER_ID].to_numpy()
    n_rows = run.dataset.n_rows("train")
    if run.config.training.stream:
        return streamed_rows(n_rows, stage.wanted(n_rows), seed, stream)
    return stage_rows(n_rows, stage, seed, stream, users)


def train_records(run: Run, template: Template, rows: Rows) -> Sequence[Record]:
    """`slate_records` of train rows; with `training.stream` made as they are asked for."""
    if run.config.training.stream:
        return StreamedRecords(run, template, rows)
    return slate_records(run.dataset, run.train_slates, template, rows, run.shown)


def interacted_by(run: Run, rows: Rows) -> list[np.ndarray]:
    """Of each of these train rows the items that are no negatives of it, by the rule of the train slates, and those
    that training must not meet.

    `past` ones where users have rows in several splits; without a rule (slates of the source) past ones too.
    """
    examples, every = run.dataset.examples("train"), run.dataset.all_train_examples()
    rule = run.dataset.info["slates"][str(run.train_slates)].get("exclude", PAST)
    excluded = past_items(every) if rule == PAST else interacted_items(every)
    place = {row_id: n for n, row_id in enumerate(every[ROW_ID].to_list())}
    numbers = [place[row_id] for row_id in examples[ROW_ID].gather(np.asarray(rows)).to_list()]
    cold = np.array(run.dataset.info.get("hold_out", {}).get("items", []), dtype=np.int64)
    own = [excluded.item[excluded.start_R[n] : excluded.stop_R[n]] for n in numbers]
    return [np.concatenate([items, cold]) for items in own] if cold.size else own


@dataclass(frozen=True)
class ValidationSet:
    """What a training is evaluated on after each epoch.

    records: as its own are. hook: gets the log-probs of their rows, and gives further metrics. rows: `row_id` of what
    the records are of, where each is one row. best_by: the metric that chooses the best epoch.
    """

    records: list[Record]
    hook: Callable[[list[np.ndarray]], dict[str, float]] | None = None
    rows: list[int] | None = None
    best_by: str = HIT


def validation_set(
    run: Run, template: Template | None = None, prompted: Sequence[str] | None = None
) -> ValidationSet | None:
    """The validation rows as `slate_records`, with, in a simulated world, true reward; None where there are none.

    template, prompted: as `slate_records` takes them; as configured unless given.
    """
    name, rows = run.validation_slates, run.validation_rows
    if name is None:
        return None
    records = slate_records(run.dataset, name, template or run.template, rows, prompted or run.shown)
    return ValidationSet(records, true_reward_hook(run.dataset, name, rows), validation_row_ids(run))


def validation_row_ids(run: Run) -> list[int]:
    """`row_id` of the validation rows."""
    ids: list[int] = run.dataset.examples("val")[ROW_ID].gather(run.validation_rows.tolist()).to_list()
    return ids


def selection_set(run: Run) -> ValidationSet | None:
    """`validation_set` whose best epoch is chosen on half of the rows, by `SELECTION`; see `Run.selecting`."""
    validation = validation_set(run)
    selecting = run.selecting if validation else None
    if validation is None or selecting is None:
        return validation
    from sirius_rec.diagnostics.slates import hits

    further = validation.hook

    def hook(logps: list[np.ndarray]) -> dict[str, float]:
        return {SELECTION: float(hits(logps)[selecting].mean()), **(further(logps) if further else {})}

    return replace(validation, hook=hook, best_by=SELECTION)


def question_records(
    dataset: Dataset, name: SlateName, template: Template, pairs: Iterable[tuple[int, int]]
) -> list[Record]:
    """Records of yes/no questions about (row, candidate) pairs: chosen is Yes where the candidate is the target."""
    titles = dataset.titles
    examples = dataset.examples(name.split)
    histories, targets, users = (examples[column].to_list() for column in (HISTORY, TARGET, USER_ID))
    out = []
    for row, item in pairs:
        right, wrong = (YES, NO) if item == targets[row] else (NO, YES)
        prompt = template.render_question([titles[i] for i in histories[row]], titles[item])
        out.append({"prompt": prompt, "chosen": right, "rejected": [wrong], "user": users[row]})
    return out


def question_pairs(dataset: Dataset, name: SlateName, rows: Rows, negatives: int, seed: int) -> list[tuple[int, int]]:
    """(row, item) of every row's target and of `negatives` others of its slate, drawn by seed and row."""
    targets = dataset.examples(name.split)[TARGET].to_list()
    slates = dataset.slates(name)[CANDIDATES].to_list()
    out = []
    for r in np.asarray(rows).tolist():
        others = [item for item in slates[r] if item != targets[r]]
        drawn = np.random.default_rng([seed, QUESTION_STREAM, r]).permutation(len(others))[:negatives]
        out += [(r, targets[r]), *((r, others[at]) for at in drawn.tolist())]
    return out


def question_validation(run: Run) -> ValidationSet | None:
    """A question about every candidate of the validation slates, and the hook that ranks the slates by the answers.

    The hook's HR@1 and NDCG@10 are over slates, and take the place of the share of questions answered rightly, which
    becomes `answered`.
    """
    dataset, name, rows = run.dataset, run.validation_slates, run.validation_rows
    if name is None:
        return None
    from sirius_rec.evaluation.metrics import METRICS, per_example, target_positions

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

    return ValidationSet(question_records(dataset, name, run.template, pairs), hook)


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
