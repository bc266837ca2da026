"""Jobs of the baselines on the run's backbone: zero-shot, TALLRec in both forms, LLaRA; made as SFT is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_rec import processes
from sirius_rec.config import Config, MethodSection
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.prompts.templates import NO, QUESTION, YES, Template, get_template
from sirius_rec.rankers.methods import LanguageOptions, split_options
from sirius_rec.recipes.baselines import fitted_network, shared_sasrec
from sirius_rec.recipes.evaluation import llm_ranker, score_checkpoints
from sirius_rec.recipes.models import initial_model, load_run_tokenizer, load_stage_model
from sirius_rec.recipes.records import (
    SFT_STREAM,
    question_pairs,
    question_records,
    question_validation,
    slate_records,
    stage_rows,
    train_slates,
    validation_set,
)
from sirius_rec.recipes.run_folder import RunFolder, write_json
from sirius_rec.recipes.training import DONE, starting_model, train_stage

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset


def own_options(method: MethodSection) -> LanguageOptions:
    return LanguageOptions(**split_options(method.method, method.options)[0])


def method_form(config: Config, method: MethodSection) -> Template:
    """The template that a method prompts with: the configured one, with the slate where the method shows it."""
    form = config.prompts.form()
    if method.method == "tallrec_listwise":
        return replace(form, shows_slate=True)
    slate = own_options(method).slate
    return form if slate is None else get_template(config.prompts.template, shows_slate=slate)


def method_tokenizer(run: RunFolder, config: Config, method: MethodSection) -> Any:
    """The run's tokenizer; for TALLRec on the tiny backbone with its question and answers as single tokens.

    They are added for it alone: the ids, and so the results, of all other models stay as they are.
    """
    tokenizer = load_run_tokenizer(run, config)
    if method.method != "tallrec" or config.backbone.name != "tiny":
        return tokenizer
    from sirius_rec.training.tiny import with_lines

    return with_lines(tokenizer, [QUESTION, YES, NO])


def fit_and_score(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """Train what is not trained yet, and score every slate that language models rank."""
    folder = run.method(method.key, seed)
    trained = {"tallrec": _tallrec, "tallrec_listwise": _listwise, "llara": _llara}.get(method.method)
    if trained is None:
        _zero_shot(run, config, dataset, method, seed)
        return
    if not (folder / DONE).is_file():
        trained(run, config, dataset, method, seed)
    form, done = method_form(config, method), json.loads((folder / DONE).read_text())

    def build(checkpoint: str) -> Any:
        model = load_stage_model(config, folder / checkpoint)
        if method.method == "tallrec":
            from sirius_rec.rankers.yes_no import YesNoRanker

            encoder = Encoder(method_tokenizer(run, config, method), chat=config.prompts.chat)
            return llm_ranker(run, config, dataset, model, form, YesNoRanker, encoder=encoder)
        if method.method == "llara":
            from sirius_rec.training.hybrid import load_projector

            load_projector(model, folder / checkpoint)
            return llm_ranker(run, config, dataset, model, form, **_hybrid(run, config, dataset, method, seed, model))
        return llm_ranker(run, config, dataset, model, form)

    # A model that answers Yes or No names no title.
    answers = method.method != "tallrec"
    score_checkpoints(run, config, dataset, method.key, seed, done, build, answers=answers)


def _zero_shot(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """The backbone as it comes, without a step of training."""
    form, size = method_form(config, method), 0

    def build(_: str) -> Any:
        nonlocal size
        model = initial_model(config, load_run_tokenizer(run, config), seed)
        size = sum(p.numel() for p in model.parameters())
        return llm_ranker(run, config, dataset, model, form)

    score_checkpoints(run, config, dataset, method.key, seed, {"steps": 0, "best_step": 0}, build)
    if not (run.method(method.key, seed) / DONE).is_file():
        if not size:
            build("")
        content = {"parameters": size, "trainable_parameters": 0, "seconds": 0.0}
        write_json(run.method(method.key, seed) / DONE, content)


def _tallrec(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """TALLRec: is this the next item, Yes or No; the target and sampled others of the train slate.

    The stage's examples are rows; every row is 1 + `negatives` questions.
    """
    stage, form, options = config.method_stage(method), config.prompts.form(), own_options(method)
    name = train_slates(config)
    rows = stage_rows(dataset.examples("train").height, stage, seed, SFT_STREAM)
    records = question_records(dataset, name, form, question_pairs(dataset, name, rows, options.negatives, seed))
    if stage.examples_per_epoch is not None:
        stage = stage.model_copy(update={"examples_per_epoch": stage.examples_per_epoch * (1 + options.negatives)})
    tokenizer = method_tokenizer(run, config, method)
    model = starting_model(run, config, tokenizer, seed)
    if config.backbone.name == "tiny":
        from sirius_rec.training.tiny import with_embeddings

        model = with_embeddings(model, tokenizer, seed)
    train_stage(
        run,
        config,
        stage,
        run.method(method.key, seed),
        name=f"{method.key} s{seed}",
        model=model,
        tokenizer=tokenizer,
        records=records,
        loss={"loss": "sft", "score_unsampled": 0},
        seed=seed,
        validation=question_validation(config, dataset, form),
    )


def _listwise(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """What the SIRIUS paper's tables call TALLRec: SFT on titles, from prompts that show the slate."""
    stage, form = config.method_stage(method), method_form(config, method)
    rows = stage_rows(dataset.examples("train").height, stage, seed, SFT_STREAM)
    tokenizer = load_run_tokenizer(run, config)
    train_stage(
        run,
        config,
        stage,
        run.method(method.key, seed),
        name=f"{method.key} s{seed}",
        model=starting_model(run, config, tokenizer, seed),
        tokenizer=tokenizer,
        records=slate_records(dataset, train_slates(config), form, rows),
        loss={"loss": "sft", "score_unsampled": 0},
        seed=seed,
        validation=validation_set(config, dataset, form),
    )


def _llara(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """LLaRA: SFT whose prompts turn from titles to titles with projected SASRec embeddings."""
    from sirius_rec.training.curriculum import CurriculumTrainer
    from sirius_rec.training.hybrid import install

    stage, form = config.method_stage(method), method_form(config, method)
    if not processes.is_main():  # a network that is not there yet is trained once, by the main process
        processes.wait()
    sasrec = sasrec_of(run, config, dataset, method, seed)
    if processes.is_main():
        processes.wait()
    tokenizer = load_run_tokenizer(run, config)
    model = starting_model(run, config, tokenizer, seed)
    install(model, sasrec.network.items.weight[: dataset.n_items], seed=seed)
    hybrid = _hybrid(run, config, dataset, method, seed, model)
    rows = stage_rows(dataset.examples("train").height, stage, seed, SFT_STREAM)
    train_stage(
        run,
        config,
        stage,
        run.method(method.key, seed),
        name=f"{method.key} s{seed}",
        model=model,
        tokenizer=tokenizer,
        records=slate_records(dataset, train_slates(config), form, rows, hybrid["shown"]),
        loss={"loss": "sft", "score_unsampled": 0},
        seed=seed,
        validation=validation_set(config, dataset, form, hybrid["shown"]),
        trainer_class=CurriculumTrainer,
        curriculum=own_options(method).curriculum,
        encoder=hybrid["encoder"],
    )


def _hybrid(
    run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int, model: Any
) -> dict[str, Any]:
    """Marked titles and their encoder, for a model with its projector installed."""
    from sirius_rec.prompts.hybrid import HybridEncoder, marked_titles
    from sirius_rec.training.hybrid import installed

    sasrec = sasrec_of(run, config, dataset, method, seed)
    encoder = HybridEncoder(load_run_tokenizer(run, config), installed(model).first_virtual, chat=config.prompts.chat)
    return {"encoder": encoder, "shown": marked_titles(dataset.titles, sasrec.seen_I)}


def sasrec_folder(run: RunFolder, config: Config, method: MethodSection, seed: int) -> Path:
    """Where LLaRA's SASRec lies: the run's own, else one beside the method: for all seeds, once one has it."""
    own, shared = run.method(method.key, seed) / "sasrec", shared_sasrec(config)
    begun = any(own.parent.parent.glob(f"s[0-9]*/{own.name}/{DONE}"))
    return own if shared is None or begun else run.method(shared.key, seed)


def sasrec_of(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> Any:
    """LLaRA's SASRec of the same seed, tuned, trained first if need be."""
    shared = shared_sasrec(config) or MethodSection(method="sasrec")
    return fitted_network(shared, config, dataset, sasrec_folder(run, config, method, seed), seed)
