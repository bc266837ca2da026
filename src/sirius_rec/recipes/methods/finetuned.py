"""What the methods on the run's language model share: prompts, checks of their lengths, loading, ranking, training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import ValidationError

from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError, PromptError
from sirius_rec.evaluation.metrics import LISTED
from sirius_rec.option_errors import in_one_line
from sirius_rec.options import Flag, Options, options_of, unknown_option
from sirius_rec.rankers.catalogue.trie import catalogue_trie
from sirius_rec.recipes.methods.base import Method, Prerequisite, alone, no_preset
from sirius_rec.recipes.models import computes_in_bf16, configured_context, load_stage_model, place, select_attention
from sirius_rec.recipes.records import SFT_STREAM, train_records, training_rows, validation_set
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE, read_done
from sirius_rec.recipes.streamed import LONGEST, Rows, StreamedRecords, item_tokens, longest_rows
from sirius_rec.recipes.training import pretrain, pretrains, starting_model, train_stage
from sirius_rec.schema import CANDIDATES, HISTORY, ITEM_ID, SlateName
from sirius_rec.training.options import StageOptions

if TYPE_CHECKING:
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import Template

_ROWS = 4096  # prompts held at once
# The paper's E.3.1: LLM-based baselines are trained for a single epoch.
_PAPER_STAGE = {"epochs": 1}
Ids = Sequence[Sequence[int]]


class PromptOptions(Options):
    """slate: list the candidates in the prompt; null takes `prompts.slate`."""

    slate: Flag | None = None


class LanguageModel(Method):
    """A method that prompts a model made of the run's backbone."""

    uses_backbone = True
    ranks_catalogue = False
    answers = True
    alone = False
    reads_titles = True
    probabilities = True
    # Whether it ranks by log π(title | prompt), whose sums bound what is below them in the catalogue's trie.
    searches: ClassVar[bool] = True

    def template(self, run: Run) -> Template:
        """What it prompts with."""
        return run.template

    def tokenizer(self, run: Run) -> Any:
        return run.tokenizer

    def encoder(self, run: Run) -> Encoder:
        return run.encoder_of(self.tokenizer(run))

    def check(self, run: Run) -> None:
        """PromptError if titles cannot be told apart, or if a prompt of any slates that it meets does not fit into
        the context with its longest candidate."""
        context = configured_context(run.config)  # first: it says where there is no such model
        encoder = self.encoder(run)
        encoder.check_distinct(run.dataset.titles)
        if context is None:
            return
        met = {*map(str, filter(None, (run.train_slates, run.validation_slates)))}
        if run.has_tests:
            met |= {*run.sized_test_slates}
        for name in sorted(met & set(run.dataset.slate_names)):
            self._check_lengths(run, encoder, name, context)

    def _check_lengths(self, run: Run, encoder: Encoder, name: str, context: int) -> None:
        if run.config.training.stream and name == str(run.train_slates):
            every = StreamedRecords(run, self.template(run), range(run.dataset.n_rows("train")))
            histories, slates = every.longest_rows(LONGEST)
            n_rows = len(every)
        else:
            rows = run.met_rows(name)
            history_R = run.dataset.examples(SlateName.parse(name).split)[HISTORY].gather(rows)
            slate_R = run.dataset.slates(name)[CANDIDATES].gather(rows)
            if len(rows) > LONGEST:
                longest = longest_rows(history_R, slate_R, *item_tokens(run, encoder), self.template(run).shows_slate)
                history_R, slate_R = history_R.gather(longest), slate_R.gather(longest)
            histories, slates = history_R.to_list(), slate_R.to_list()
            n_rows = len(rows)
        lengths: list[int] = []
        for start in range(0, len(slates), _ROWS):
            some = slice(start, start + _ROWS)
            lengths += self.lengths(run, encoder, histories[some], slates[some])
        too_long = int((np.array(lengths) > context).sum())
        if too_long:
            what = self._title_beyond(run, encoder, context)
            looked = "" if n_rows == len(lengths) else "the longest "
            raise PromptError(
                f"slates {name}: {too_long} of {looked}{len(lengths)} prompts with their longest candidate exceed the "
                f"context of {context} tokens (longest: {max(lengths)}): "
                f"{what or 'shorten histories or slates, or lengthen the context'}"
            )

    def _title_beyond(self, run: Run, encoder: Encoder, context: int) -> str | None:
        """Which title alone is longer than the context, and what to do: then shorter histories do not help."""
        lengths = [len(encoder.completion(title)) for title in run.dataset.titles]
        longest = int(np.argmax(lengths))
        if lengths[longest] <= context:
            return None
        item, title = run.dataset.items[ITEM_ID][longest], run.dataset.titles[longest]
        count = sum(length > context for length in lengths)
        more = f"; {count} such items" if count > 1 else ""
        return (
            f"the title of item {item!r} ({title[:40]!r}…) alone has {lengths[longest]} tokens, {len(title)} "
            f"characters{more}: shorten it, or drop such items with data.unusable=drop data.max_title=200"
        )

    def lengths(self, run: Run, encoder: Encoder, histories: Ids, slates: Ids) -> list[int]:
        """Tokens of each row's prompt with its longest candidate."""
        titles, shown, template = run.dataset.titles, run.shown, self.template(run)
        texts = [
            template.render([shown[i] for i in history], [shown[i] for i in slate])
            for history, slate in zip(histories, slates, strict=True)
        ]
        longest = [max(len(encoder.completion(titles[i])) for i in slate) for slate in slates]
        # The last token of a completion is never an input.
        return [len(ids) + more - 1 for ids, more in zip(encoder.prompts(texts), longest, strict=True)]

    def request_length(self, run: Run) -> Callable[[list[int], list[int]], int]:
        encoder = self.encoder(run)
        return lambda history, slate: self.lengths(run, encoder, [history], [slate])[0]

    def ranks(self, run: Run, slates: str) -> bool:
        """The whole catalogue is searched for the best titles, which prompts that list candidates do not allow."""
        return (self.searches and not self.template(run).shows_slate) or super().ranks(run, slates)

    @property
    def no_catalogue(self) -> str:  # type: ignore[override]
        reason = "lists the candidates in its prompts" if self.searches else "is asked about each candidate alone"
        return f"{reason}, so it does not rank the whole catalogue"

    def scores(self, run: Run, ranker: Any, slates: str, seed: int, checkpoint: str) -> Any:
        """Of the whole catalogue, the exact best; all others are at −inf. PromptError as `check`: since that was asked
        others of the rows may have been chosen to be ranked."""
        context = configured_context(run.config)
        if context is not None and slates in run.dataset.slate_names and slates in run.sized_test_slates:
            self._check_lengths(run, self.encoder(run), slates, context)
        if SlateName.parse(slates).protocol != "full":
            return super().scores(run, ranker, slates, seed, checkpoint)
        trie = catalogue_trie(ranker.encoder, run.dataset.titles)
        return ranker.score_best(trie, *run.slate_arrays(slates), LISTED)

    def llm_ranker(self, run: Run, model: Any, kind: Any = None, **further: Any) -> Any:
        """A ranker around a model, placed and precise as configured. kind: `LLMRanker`, or one like it."""
        from sirius_rec.rankers.llm import LLMRanker

        encoder = further.pop("encoder", None) or self.encoder(run)
        if kind is None:  # TALLRec's questions hold titles alone
            further.setdefault("shown", run.shown)
        model = place(model, run.config)
        select_attention(run.folder, run.config, model, (), encoder.pad_id)
        return (kind or LLMRanker)(
            model,
            encoder,
            self.template(run),
            run.dataset.titles,
            scoring=run.config.compute.scoring,
            batch_tokens=run.config.evaluation.batch_tokens,
            bf16=computes_in_bf16(run.config),
            **further,
        )


class Finetuned(LanguageModel):
    """A language model that a stage of training has made."""

    training: StageOptions
    # How its checkpoints rank, for the model card.
    ranks_by: ClassVar[str] = (
        "Candidates are ranked by log π(title | prompt), summed over the title's tokens and the end of sequence; the "
        "answer is the bare title"
    )

    def train_rows(self, run: Run) -> int | None:
        """The rows that its own epochs show it."""
        shown = self.training.changed(epochs=self.training.trained_epochs, stop_after=None)
        return shown.wanted(run.dataset.n_rows("train"))

    @property
    def random(self) -> bool:
        return True

    def prerequisites(self) -> tuple[Prerequisite, ...]:
        return (Prerequisite("pretrain", "sft", pretrain),) if pretrains(self.config) else ()

    def made_in(self, run: Run, seed: int) -> list[Any]:
        before = [run.folder.pretrain(seed)] if pretrains(run.config) else []
        return [*before, self.folder(run, seed)]

    def done(self, run: Run, seed: int) -> dict[str, Any]:
        """What training left: steps, best_step, best_hr@1, parameters, seconds."""
        return read_done(self.folder(run, seed))

    def steps(self, run: Run, seed: int) -> Mapping[str, int]:
        done = self.done(run, seed)
        return {"best": done["best_step"], "last": done["steps"]}

    def validation_hit(self, run: Run, seed: int) -> float | None:
        return self.done(run, seed).get("best_hr@1")

    def _stop(self, run: Run, seed: int) -> int | None:
        """The epoch of its best checkpoint; None of what took another run's over."""
        return best_epoch(self.done(run, seed), self.training)

    def _before(self, run: Run, seed: int) -> dict[str, Any]:
        """Sections of a configuration in which what comes before it stops at its best epoch."""
        folder, options = run.folder.pretrain(seed), run.config.backbone.pretrain
        if not pretrains(run.config) or options is None or not (folder / DONE).is_file():
            return {}
        stop = best_epoch(read_done(folder), options)
        return {"backbone": run.config.backbone.changed(pretrain=options.changed(stop_after=stop))}

    def load(self, run: Run, seed: int, checkpoint: str) -> Any:
        """The model of a checkpoint, `best` or `last`."""
        return load_stage_model(run.config, self.folder(run, seed) / checkpoint)

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        return self.llm_ranker(run, self.load(run, seed, checkpoint))

    def fit(self, run: Run, seed: int) -> None:
        """Train on the rows of the stage, from prompts as `template` renders them, with the likelihood of titles."""
        if self.is_done(run, seed):
            return
        rows = training_rows(run, self.training, seed, SFT_STREAM)
        given = {"stage": self.training, **self.training_set(run, seed, rows)}
        train_stage(
            run,
            folder=self.folder(run, seed),
            name=f"{self.key} s{seed}",
            loss={"loss": "sft", "score_unsampled": 0},
            seed=seed,
            card=self.card(seed),
            **given,
        )

    def card(self, seed: int) -> dict[str, str]:
        """What the model card says of it."""
        return {
            "name": f"{self.label}, seed {seed}",
            "ranks_by": self.ranks_by,
            "options": f"--method {self.key} --seed {seed}",
        }

    def starting_model(self, run: Run, tokenizer: Any, seed: int) -> Any:
        """What its training begins with."""
        return starting_model(run, tokenizer, seed)

    def training_set(self, run: Run, seed: int, rows: Rows) -> dict[str, Any]:
        """Arguments of `train_stage`: model, tokenizer, records, validation, and what a method adds."""
        template, tokenizer = self.template(run), self.tokenizer(run)
        return {
            "model": self.starting_model(run, tokenizer, seed),
            "tokenizer": tokenizer,
            "records": train_records(run, template, rows),
            "validation": validation_set(run, template),
        }


def best_epoch(done: Mapping[str, Any], stage: StageOptions) -> int | None:
    """Behind which epoch of a stage its best checkpoint was written. done: what the training left."""
    if not done["steps"]:
        return None
    return max(1, round(done["best_step"] / done["steps"] * stage.trained_epochs))


class FinetunedBaseline(Finetuned):
    """A baseline that is trained as SFT is: its options are its own, and those of the `sft` section in its place."""

    OwnOptions: ClassVar[type[Options]] = Options
    free_options = tuple(sorted(StageOptions.HOW))

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        own = self.OwnOptions.model_fields
        self.options: Any = self.OwnOptions(**{key: value for key, value in entry.options.items() if key in own})
        changes = {key: value for key, value in entry.options.items() if key not in own}
        self.training = self._training(config, entry, changes)

    def settled(self, run: Run, seed: int) -> Config:
        options = {**self.entry.options, "stop_after": self._stop(run, seed)}
        return alone(run.config, self.entry.changed(options=options), **self._before(run, seed))

    def _training(self, config: Config, entry: MethodSection, changes: Mapping[str, Any]) -> StageOptions:
        known = [*self.OwnOptions.model_fields, *StageOptions.model_fields]
        for key in changes:
            if key not in known:
                raise unknown_option(key, entry.method, known)
        paper = _PAPER_STAGE if entry.preset == "paper" else {}
        try:
            stage = StageOptions.model_validate(
                {**config.sft.model_dump(include=set(StageOptions.model_fields) - {"stop_after"}), **paper, **changes}
            )
        except ValidationError as error:
            raise ConfigError(in_one_line(error, StageOptions)) from None
        problem = stage.batch_problem()
        if problem:
            raise ConfigError(problem)
        return stage


def needs_answer_line(config: Config, what: str, otherwise: str) -> None:
    """ConfigError where prompts name no line before the answer and a method shows `what` there. otherwise: the other
    way out."""
    template = config.prompts.template
    if not isinstance(template, str) and template.answer is None:
        raise ConfigError(
            f"prompts.template.answer: null: behind {what} the answer looks like one more title: name the line before "
            f"the answer, or {otherwise}"
        )


def check_slate(config: Config, slate: bool | None) -> None:
    """ConfigError where a method's own option asks for a slate that prompts cannot end with."""
    if slate:
        needs_answer_line(config, "a slate", "leave the method's slate out")


def with_slate(run: Run, slate: bool | None) -> Template:
    """The configured template, with the slate or without; None: as configured."""
    return run.template if slate is None else replace(run.template, shows_slate=slate)


def own_options(kind: type[Options], entry: MethodSection) -> Any:
    """Options of a method that has no training of its own to configure."""
    no_preset(entry.method, entry.preset)
    return options_of(kind, dict(entry.options), entry.method)
