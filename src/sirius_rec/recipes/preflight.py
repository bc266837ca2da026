"""What can be known to fail before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, PromptError
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import CANDIDATES, HISTORY, SlateName

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset

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
    """PromptError if a prompt of any slates, test slates too, does not fit into the context with its longest candidate.

    Asked once, before the first training of a run.
    """
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.recipes.evaluation import model_slates
    from sirius_rec.recipes.models import load_run_tokenizer
    from sirius_rec.recipes.records import train_slates
    from sirius_rec.recipes.training import DONE

    if all((run.stage("sft", seed) / DONE).is_file() for seed in config.seeds):
        return
    context = context_of(config)
    if context is None:
        return
    encoder = Encoder(load_run_tokenizer(run, config), chat=config.prompts.chat)
    template, titles = config.prompts.form(), dataset.titles
    encoder.check_distinct(titles)
    title_tokens = np.array([len(encoder.completion(title)) for title in titles])
    train = train_slates(config)
    used = {str(train), str(SlateName("val", train.protocol, train.size, train.seed)), *model_slates(config, dataset)}
    for name in sorted(used & set(dataset.slate_names)):
        histories = dataset.examples(SlateName.parse(name).split)[HISTORY].to_list()
        slates = dataset.slates(name)[CANDIDATES].to_list()
        lengths: list[int] = []
        for start in range(0, len(slates), _ROWS):
            part = slice(start, start + _ROWS)
            texts = [
                template.render([titles[i] for i in history], [titles[i] for i in slate])
                for history, slate in zip(histories[part], slates[part], strict=True)
            ]
            # The last token of a completion is never an input.
            longest = [int(title_tokens[slate].max()) - 1 for slate in slates[part]]
            lengths += [len(ids) + more for ids, more in zip(encoder.prompts(texts), longest, strict=True)]
        too_long = int((np.array(lengths) > context).sum())
        if too_long:
            raise PromptError(
                f"slates {name}: {too_long} of {len(lengths)} prompts with their longest candidate exceed the context "
                f"of {context} tokens (longest: {max(lengths)}): shorten histories or slates, or lengthen the context"
            )
