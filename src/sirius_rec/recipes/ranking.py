"""`sirius rank`: requests in JSON lines ranked by a trained model of a run, or by any causal language model."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sirius_rec.config import Config
from sirius_rec.data.store import Dataset
from sirius_rec.errors import RunError
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes.baselines import method_seeds
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import ITEM_ID


@dataclass(frozen=True)
class Served:
    """A loaded ranker. name: for people. recipe: what its answers depend on. score, check: see `rank_file`."""

    name: str
    recipe: dict[str, Any]
    score: Callable[[list[Request]], list[Any]]
    check: Callable[[Request], str | None]


def load_run_ranker(run: RunFolder, *, method: str | None, seed: int | None, checkpoint: str, titles: bool) -> Served:
    """The ranker of a run: sft, an arm, or a network; by default what had the highest HR@1 on validation slates.

    titles: requests hold titles (a language model also ranks titles that the catalogue lacks), not item ids.
    Raises RunError if nothing of that name and seed is trained.
    """
    from sirius_rec.data.store import open_dataset
    from sirius_rec.recipes.job import quiet

    quiet()
    config, dataset = run.config(), open_dataset(run.data)
    method, seed = _chosen(run, config, method, seed)
    if (run.stage(method, seed) / "done.json").is_file():
        return _language_model(run, config, dataset, method, seed, checkpoint, titles)
    return _method(run, dataset, method, seed, titles)


def _chosen(run: RunFolder, config: Config, method: str | None, seed: int | None) -> tuple[str, int]:
    trained: dict[tuple[str, int], float] = {}
    for key in ("sft", *(arm.key for arm in config.arms)) if config.trains_language_model else ():
        for s in config.seeds:
            if (done := run.stage(key, s) / "done.json").is_file():
                trained[key, s] = json.loads(done.read_text()).get("best_hr@1") or 0.0
    for entry in config.methods:
        for s in method_seeds(config, entry):
            if (run.method(entry.key, s) / "ranker.json").is_file():
                history = json.loads((run.method(entry.key, s) / "ranker.json").read_text())["history"]
                # The weights kept are those of the epoch with the best NDCG@10.
                kept = max(history, key=lambda point: point.get("ndcg@10", -1.0), default={})
                trained[entry.key, s] = kept.get("hr@1", 0.0)
    fitting = {k: v for k, v in trained.items() if method in (None, k[0]) and seed in (None, k[1])}
    if not fitting:
        there = ", ".join(f"{key} (seed {s})" for key, s in trained) or "nothing yet"
        asked = " ".join([method or "a model", *([f"of seed {seed}"] if seed is not None else [])])
        raise RunError(
            f"{run.path}: {asked} is not here to be served (sft, arms, gru4rec, caser, sasrec and morec are); "
            f"there is {there}"
        )
    return max(fitting, key=lambda k: fitting[k])


def _language_model(
    run: RunFolder, config: Config, dataset: Dataset, method: str, seed: int, checkpoint: str, titles: bool
) -> Served:
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.recipes.models import computes_in_bf16, load_run_tokenizer, load_stage_model, place

    folder = run.stage(method, seed) / checkpoint
    model = place(load_stage_model(config, folder), config)
    texts = None if titles else dict(zip(_item_ids(dataset), dataset.titles, strict=True))
    requests = TextRequests(
        model,
        Encoder(load_run_tokenizer(run, config), chat=config.prompts.chat),
        config.prompts.form(),
        texts,
        max_history=config.data.window.max_history,
        scoring=config.compute.scoring,
        batch_tokens=config.evaluation.batch_tokens,
        bf16=computes_in_bf16(config),
    )
    recipe = {"run": str(run.path.resolve()), "data": dataset.fingerprint, "method": method, "seed": seed,
              "checkpoint": checkpoint, "weights": _weights(folder), "titles": titles}  # fmt: skip
    return Served(f"{method} of seed {seed} ({checkpoint} checkpoint)", recipe, requests.score, requests.check)


def load_plain_model(
    name: str, *, template: str, shows_slate: bool, max_history: int, chat: bool = False, dtype: str = "float32"
) -> Served:
    """Any causal language model by hub id or folder (of SiriusTrainer, say); requests hold titles.

    chat: prompts as user turns of the tokenizer's chat template. dtype: float32 or bfloat16, of the weights.
    """
    import torch

    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import get_template
    from sirius_rec.recipes.job import quiet
    from sirius_rec.training.backbones import is_adapter, load_backbone, load_tokenizer, load_trained

    quiet()
    form = get_template(template, shows_slate=shows_slate)
    tokenizer = load_tokenizer(name)
    folder = Path(name)
    if is_adapter(folder):
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        model = load_trained(folder, base, dtype=dtype)
    else:
        model = load_backbone(name, dtype=dtype)
    model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    requests = TextRequests(model, Encoder(tokenizer, chat=chat), form, None, max_history=max_history)
    recipe = {"model": name, "weights": _weights(folder), "template": template, "slate": shows_slate, "chat": chat,
              "dtype": dtype, "max_history": max_history}  # fmt: skip
    return Served(name, recipe, requests.score, requests.check)


def _weights(folder: Path) -> list[list[Any]]:
    """Name, bytes and time (ns) of a folder's weight files: whether answers come from the same ones. [] of a hub id."""
    files = sorted(path for path in folder.glob("*") if path.suffix in (".safetensors", ".bin"))
    return [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files]


class TextRequests:
    """Scores requests by log π(title | prompt), in nats.

    texts: item id → title; None where requests hold titles themselves. max_history: only so many of the newest items
    are shown, as in training.
    """

    def __init__(
        self, model: Any, encoder: Any, form: Any, texts: dict[str, str] | None, *, max_history: int, **scoring: Any
    ) -> None:
        from sirius_rec.scoring.packed import unwrapped

        self.model, self.encoder, self.form, self.texts = model, encoder, form, texts
        self.max_history, self.scoring = max_history, scoring
        self.context = getattr(unwrapped(model).config, "max_position_embeddings", None)

    def check(self, request: Request) -> str | None:
        """Why a request cannot be scored: an unknown item, a title without tokens, a prompt beyond the context."""
        from sirius_rec.errors import PromptError

        if self.texts is not None:
            for item in (*self._shown(request), *request.candidates):
                if item not in self.texts:
                    return f"item {item!r} is not in the catalogue; give titles with --titles, or leave it out"
        try:
            longest = max(len(self.encoder.completion(self._title(c))) for c in request.candidates)
            prompt = self.encoder.prompt(self._prompt(request))
        except PromptError as error:
            return str(error)
        if self.context is not None and len(prompt) + longest - 1 > self.context:
            return (
                f"prompt and longest candidate take {len(prompt) + longest - 1} tokens, the context is {self.context}"
            )
        return None

    def _shown(self, request: Request) -> tuple[str, ...]:
        """The newest items of the history."""
        return request.history[max(0, len(request.history) - self.max_history) :]

    def _title(self, item: str) -> str:
        return item if self.texts is None else self.texts[item]

    def _prompt(self, request: Request) -> str:
        history = [self._title(item) for item in self._shown(request)]
        return str(self.form.render(history, [self._title(item) for item in request.candidates]))

    def score(self, requests: list[Request]) -> list[Any]:
        from sirius_rec.rankers.llm import LLMRanker

        shown = [([self._title(i) for i in self._shown(r)], [self._title(i) for i in r.candidates]) for r in requests]
        titles = list(dict.fromkeys(title for history, slate in shown for title in (*history, *slate)))
        number = {title: n for n, title in enumerate(titles)}
        ranker = LLMRanker(self.model, self.encoder, self.form, titles, **self.scoring)
        return ranker.score(*_numbered(shown, number))


def _item_ids(dataset: Dataset) -> list[str]:
    return list(map(str, dataset.items[ITEM_ID].to_list()))


def _numbered(
    shown: Sequence[tuple[Sequence[str], Sequence[str]]], number: dict[str, int]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    return (
        [np.array([number[i] for i in history], dtype=np.int64) for history, _ in shown],
        [np.array([number[i] for i in slate], dtype=np.int64) for _, slate in shown],
    )


def _method(run: RunFolder, dataset: Dataset, method: str, seed: int, titles: bool) -> Served:
    from sirius_rec.rankers.sequential.morec import load_ranker

    ranker = load_ranker(run.method(method, seed))
    number = {item: n for n, item in enumerate(dataset.titles if titles else _item_ids(dataset))}

    def check(request: Request) -> str | None:
        unknown = next((i for i in (*request.history, *request.candidates) if i not in number), None)
        return None if unknown is None else f"item {unknown!r} is not in the catalogue, which {method} cannot rank"

    def score(requests: list[Request]) -> list[Any]:
        return ranker.score(*_numbered([(r.history, r.candidates) for r in requests], number))

    recipe = {"run": str(run.path.resolve()), "data": dataset.fingerprint, "method": method, "seed": seed,
              "weights": _weights(run.method(method, seed)), "titles": titles}  # fmt: skip
    return Served(f"{method} of seed {seed}", recipe, score, check)
