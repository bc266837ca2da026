"""What can be known to fail before anything is trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, PromptError
from sirius_rec.prompts.templates import NO, YES
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import CANDIDATES, HISTORY, TIMESTAMP, SlateName

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import Template

_ROWS = 4096  # prompts held at once


def context_of(config: Config) -> int | None:
    """The backbone's context in tokens; None where its configuration names none."""
    if config.backbone.name == "tiny":
        return config.backbone.tiny.context
    from transformers import AutoConfig

    name = config.backbone.name
    if name.startswith(("/", ".", "~")) and not Path(name).is_dir():
        raise ConfigError(f"backbone '{name}': no such folder: name a local folder or a Hugging Face id")
    try:
        found = AutoConfig.from_pretrained(name)
    except Exception as error:  # the hub raises many kinds
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"backbone '{name}': cannot read its configuration ({first})") from error
    return getattr(found.get_text_config(), "max_position_embeddings", None)


def check_prompts(run: RunFolder, config: Config, dataset: Dataset) -> None:
    """PromptError if titles cannot be told apart, or marked for LLaRA, or if a prompt of any slates, test slates too,
    does not fit into the context with its longest candidate.

    Asked once, before the first training of a run, for SFT's prompts and those of every method on the backbone.
    """
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.recipes.baselines import method_seeds
    from sirius_rec.recipes.evaluation import model_slates
    from sirius_rec.recipes.language import method_form, method_tokenizer
    from sirius_rec.recipes.models import load_run_tokenizer
    from sirius_rec.recipes.records import train_slates, validation_slates
    from sirius_rec.recipes.training import DONE

    folders = [run.stage("sft", seed) for seed in config.seeds] if config.trains_language_model else []
    folders += [run.method(m.key, seed) for m in config.language_methods for seed in method_seeds(config, m)]
    if all((folder / DONE).is_file() for folder in folders):
        return
    context = context_of(config)
    encoder = Encoder(load_run_tokenizer(run, config), chat=config.prompts.chat)
    encoder.check_distinct(dataset.titles)
    for form in {method_form(config, m) for m in config.language_methods if m.method == "llara"}:
        _check_marks(dataset, encoder, form, str(train_slates(config)))
    if context is None:
        return
    asked = [(config.prompts.form(), "sft", encoder)] if config.trains_language_model else []
    for method in config.language_methods:
        its_own = Encoder(method_tokenizer(run, config, method), chat=config.prompts.chat)
        asked.append((method_form(config, method), method.method, its_own))
    trained = (train_slates(config), validation_slates(config, dataset))
    used = {*map(str, filter(None, trained)), *model_slates(config, dataset)}
    for name in sorted(used & set(dataset.slate_names)):
        for form, kind, encoder in asked:
            _check_slates(dataset, encoder, form, kind, name, context)


def check_methods(run: RunFolder, config: Config, dataset: Dataset) -> None:
    """What methods that are not done lack, said before anything is trained: an encoder, timestamps, room for a matrix,
    slates to stop by, slates to ask about."""
    from sirius_rec.rankers.linear import check_size, checked_times
    from sirius_rec.rankers.methods import METHODS, network_options
    from sirius_rec.rankers.sequential.morec import check_encoder
    from sirius_rec.recipes.baselines import DONE, method_seeds, no_validation_slates
    from sirius_rec.recipes.evaluation import model_slates
    from sirius_rec.recipes.records import validation_slates

    for method in config.methods:
        if all((run.method(method.key, seed) / DONE).is_file() for seed in method_seeds(config, method)):
            continue
        network = METHODS[method.method].kind == "sequential" or method.method == "llara"
        if network and validation_slates(config, dataset) is None:
            raise no_validation_slates()
        if method.method == "morec":
            check_encoder(network_options("morec", method.preset, method.options).encoder)
        elif method.method == "ease":
            check_size(dataset.n_items)
        elif method.method == "chatrec" and not model_slates(config, dataset):
            raise ConfigError("chatrec: every test slate is the whole catalogue: add one with a `size` to data.slates")
        elif method.method == "recency":
            train = dataset.examples("train")
            checked_times(train[TIMESTAMP].to_numpy(), train.height)


def ask_endpoints(run: RunFolder, config: Config, dataset: Dataset) -> None:
    """One row of every chatrec that is not done, whose answer is kept: a wrong key or address is known before others
    are trained."""
    from sirius_rec.recipes.baselines import DONE
    from sirius_rec.recipes.chat import ask_next

    for method in config.methods:
        if method.method == "chatrec" and not (run.method(method.key, 0) / DONE).is_file():
            ask_next(run, config, dataset, method, 0)


def _check_marks(dataset: Dataset, encoder: Encoder, form: Template, name: str) -> None:
    """PromptError if marked titles cannot be encoded, or not be found in a prompt; tried on the first one."""
    from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles

    shown = marked_titles(dataset.titles, np.ones(len(dataset.titles), dtype=bool))
    histories = dataset.examples(SlateName.parse(name).split)[HISTORY].head(1).to_list()
    slates = dataset.slates(name)[CANDIDATES].head(1).to_list()
    HybridEncoder(encoder.tokenizer, len(encoder.tokenizer), chat=encoder.chat).prompts(
        [
            form.render([shown[i] for i in history], [shown[i] for i in slate])
            for history, slate in zip(histories, slates, strict=True)
        ]
    )


def _check_slates(dataset: Dataset, encoder: Encoder, form: Template, method: str, name: str, context: int) -> None:
    histories = dataset.examples(SlateName.parse(name).split)[HISTORY].to_list()
    slates = dataset.slates(name)[CANDIDATES].to_list()
    lengths: list[int] = []
    for start in range(0, len(slates), _ROWS):
        part = slice(start, start + _ROWS)
        lengths += _lengths(dataset.titles, encoder, form, method, histories[part], slates[part])
    too_long = int((np.array(lengths) > context).sum())
    if too_long:
        raise PromptError(
            f"slates {name}: {too_long} of {len(lengths)} prompts with their longest candidate exceed the context "
            f"of {context} tokens (longest: {max(lengths)}): shorten histories or slates, or lengthen the context"
        )


def _lengths(
    titles: Sequence[str],
    encoder: Encoder,
    form: Template,
    method: str,
    histories: Sequence[Sequence[int]],
    slates: Sequence[Sequence[int]],
) -> list[int]:
    """Tokens of each row's prompt with its longest candidate, as `method` prompts."""
    sizes = [[len(encoder.completion(titles[i])) for i in slate] for slate in slates]
    if method == "tallrec":  # the candidate stands in the prompt
        widest = [slate[int(np.argmax(size))] for slate, size in zip(slates, sizes, strict=True)]
        texts = [
            form.render_question([titles[i] for i in history], titles[item])
            for history, item in zip(histories, widest, strict=True)
        ]
        more = [max(len(encoder.completion(answer)) for answer in (YES, NO))] * len(texts)
    else:
        texts = [
            form.render([titles[i] for i in history], [titles[i] for i in slate])
            for history, slate in zip(histories, slates, strict=True)
        ]
        more = [max(size) for size in sizes]
    if method == "llara":  # a virtual token behind every title
        more = [
            extra + len(history) + len(slate) * form.shows_slate
            for extra, history, slate in zip(more, histories, slates, strict=True)
        ]
    # The last token of a completion is never an input.
    return [len(ids) + extra - 1 for ids, extra in zip(encoder.prompts(texts), more, strict=True)]
