"""Two questions that only language models raise: does the order of candidates decide, and is the data known by heart?

Intervals are over users (bootstrap); rows are a seeded sample of test rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from scipy import stats

from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.intervals import GroupBootstrap
from sirius_rec.evaluation.metrics import per_example, target_positions
from sirius_rec.evaluation.tables import user_groups
from sirius_rec.recipes.methods.finetuned import LanguageModel
from sirius_rec.recipes.models import initial_model, place
from sirius_rec.recipes.ranking import chosen_method
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.schema import HISTORY, TARGET, USER_ID, SlateName
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.scorer import score_rows

_HALF: Final = 2  # a title is cut into a beginning and a rest of so many tokens at least


def probe_order(
    run: Run,
    *,
    method: str | None = None,
    seed: int | None = None,
    orders: int = 5,
    rows: int = 300,
    say: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """How often the answer changes, and HR@1 moves, when the slate in the prompt is permuted; see the keys below.

    orders: seeded permutations of every slate, the first as it is frozen. Of `changed`, `hr@1` (of each order) and
    `hr@1_averaged` (log-probs averaged over the orders): `{mean, low, high}`. first, last: share of rows whose best
    candidate stood there; uniform_p: of a chi-square test that the best stands anywhere alike.

    ConfigError for prompts that do not show the slate, or fewer than two orders.
    """
    quiet()
    if orders < 2:
        raise ConfigError(f"--orders {orders}: two or more are compared")
    chosen, seed = chosen_method(
        run, method, seed, lambda m: isinstance(m, LanguageModel), "show candidates in a prompt"
    )
    assert isinstance(chosen, LanguageModel)
    if not chosen.template(run).shows_slate:
        raise ConfigError(f"{chosen.key}: its prompts do not list the candidates, so their order cannot matter")
    name = next(iter(run.sized_test_slates))
    numbers = np.sort(np.random.default_rng(0).permutation(run.tested_rows(name))[:rows])
    examples = run.dataset.examples(SlateName.parse(name).split)[numbers.tolist()]
    histories = [row.to_numpy() for row in examples[HISTORY]]
    slates = [row.to_numpy() for row in run.slates(name)["candidates"].gather(numbers.tolist())]
    ranker = chosen.ranker(run, seed, "best")
    rng = np.random.default_rng([0, 1])
    scores_PRC, places_PR = [], []
    for order in range(orders):
        shuffled = [np.arange(len(s)) if order == 0 else rng.permutation(len(s)) for s in slates]
        found = ranker.score(histories, [s[p] for s, p in zip(slates, shuffled, strict=True)])
        places_PR.append([int(np.argmax(scores)) for scores in found])
        scores_PRC.append(
            [np.asarray(s, dtype=np.float64)[np.argsort(p)] for s, p in zip(found, shuffled, strict=True)]
        )
        say(f"order {order + 1} of {orders}")
    positions = target_positions(slates, examples[TARGET].to_numpy())
    bootstrap = GroupBootstrap(len(numbers), user_groups(examples[USER_ID]))
    tops = np.array([[int(np.argmax(s)) for s in scores] for scores in scores_PRC])
    pairs = [(a, b) for a in range(orders) for b in range(a + 1, orders)]
    changed = np.mean([tops[a] != tops[b] for a, b in pairs], axis=0)
    hits = np.stack([per_example(scores, positions)["hr@1"].to_numpy() for scores in scores_PRC])
    averaged = per_example([np.mean(one, axis=0) for one in zip(*scores_PRC, strict=True)], positions)[
        "hr@1"
    ].to_numpy()
    width_R = np.array([len(slate) for slate in slates])  # slates of retrieved items may differ in it
    counts = np.bincount(np.concatenate(places_PR), minlength=width_R.max())
    alike = orders * np.array([(1 / width_R)[width_R > place].sum() for place in range(len(counts))])
    return {
        "method": chosen.key, "seed": seed, "slates": name, "rows": len(numbers), "orders": orders,
        "changed": _interval(bootstrap, changed),
        "hr@1": [_interval(bootstrap, one) for one in hits],
        "hr@1_averaged": _interval(bootstrap, averaged),
        "averaged_less_single": _interval(bootstrap, averaged - hits.mean(axis=0), share=False),
        "first": float(counts[0] / counts.sum()), "last": float((np.array(places_PR) == width_R - 1).mean()),
        "places": (counts / counts.sum()).tolist(), "uniform_p": float(stats.chisquare(counts, alike).pvalue),
    }  # fmt: skip


def _interval(bootstrap: GroupBootstrap, values_R: Any, *, share: bool = True) -> dict[str, float]:
    values = np.asarray(values_R, dtype=np.float64)
    (found,) = bootstrap.intervals(values)
    if share:
        found = bootstrap.of_share(found, values)
    return {"mean": found.mean, "low": found.low, "high": found.high}


def probe_memory(
    run: Run, *, rows: int = 300, seed: int = 0, say: Callable[[str], None] = lambda line: None
) -> dict[str, Any]:
    """Whether the backbone, before any training here, knows this data by heart.

    titles: how often the rest of a title is likelier behind its own beginning than the rest of another title, in sum
    over its tokens, as long where there is one. order: how often a test row's target is likelier behind its history in
    the order of events than in a random one. Both are `{mean, low, high, n}`; one half is chance. Titles known says
    that the model knows the world that the catalogue is from; the order of one user's events is in no encyclopedia.

    ConfigError for the tiny backbone, which has read nothing.
    """
    quiet()
    run.check_measured()
    if run.config.backbone.name == "tiny":
        raise ConfigError("the tiny backbone has read nothing before this data: probe a pretrained one")
    model, encoder = place(initial_model(run.config, run.tokenizer, 0), run.config), run.encoder_of(run.tokenizer)
    rng = np.random.default_rng(seed)

    def scored(pairs: Sequence[PromptCompletions]) -> list[np.ndarray]:
        return score_rows(model, list(pairs), encoder.pad_id, mode=run.config.compute.scoring,
                          max_tokens=run.config.evaluation.batch_tokens)  # fmt: skip

    begun = [encoder.tokenizer(title, add_special_tokens=False)["input_ids"] for title in run.dataset.titles]
    long = [ids for ids in begun if len(ids) >= 2 * _HALF]
    if len(long) < 2:
        raise RunError(f"{run.folder.path}: hardly a title has {2 * _HALF} tokens: there is nothing to complete")
    some = [long[i] for i in rng.permutation(len(long))[:rows]]
    titles = []
    for ids in some:
        cut = len(ids) // 2
        others = [other for other in long if other != ids]
        alike = [other for other in others if len(other) - len(other) // 2 == len(ids) - cut] or others
        other = alike[int(rng.integers(len(alike)))]
        titles.append(PromptCompletions(ids[:cut], [ids[cut:], other[len(other) // 2 :]]))
    own = np.array([float(s[0] > s[1]) + 0.5 * float(s[0] == s[1]) for s in scored(titles)])
    say(f"{len(own)} titles")

    examples = run.dataset.examples("test")
    numbers = np.sort(rng.permutation(examples.height)[:rows])
    examples = examples[numbers.tolist()]
    names = run.dataset.titles
    in_order: list[Any] = []
    shuffled: list[Any] = []
    for history, target in zip(examples[HISTORY].to_list(), examples[TARGET].to_list(), strict=True):
        answer = encoder.completion(names[target])
        mixed = [history[i] for i in rng.permutation(len(history))]
        for kept, items in ((in_order, history), (shuffled, mixed)):
            kept.append(PromptCompletions(encoder.prompt("\n".join([*(names[i] for i in items), ""])), [answer]))
    first, second = (np.array([float(s[0]) for s in scored(part)]) for part in (in_order, shuffled))
    likelier = (first > second) + 0.5 * (first == second)
    say(f"{len(likelier)} rows")
    by_title, by_user = GroupBootstrap(len(own)), GroupBootstrap(len(likelier), user_groups(examples[USER_ID]))
    return {
        "backbone": run.config.backbone.model,
        "titles": {**_interval(by_title, own), "n": len(own)},
        "order": {**_interval(by_user, likelier), "n": len(likelier)},
        "nats_in_order": _interval(by_user, first - second, share=False),
    }
