"""Scoring finished models and floors on the frozen test slates, and everything that follows from the scores."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sirius_rec.config import ArmSection, Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.floors import FLOOR_LABELS, FLOORS
from sirius_rec.evaluation.results import build_results, read_results, write_results
from sirius_rec.evaluation.tables import ScoreTable, read_tables, table_name, write_table
from sirius_rec.processes import is_main
from sirius_rec.rankers.methods import method_label
from sirius_rec.recipes.diagnosis import read_curves
from sirius_rec.recipes.job import Ticker, open_job, say
from sirius_rec.recipes.models import computes_in_bf16, load_run_tokenizer, load_stage_model, place, settle_attention
from sirius_rec.recipes.run_folder import RunFolder, versions, write_json
from sirius_rec.schema import CANDIDATES, HISTORY, ROW_ID, TARGET, USER_ID, SlateName

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.prompts.templates import Template
    from sirius_rec.rankers.llm import LLMRanker
    from sirius_rec.report.material import RunMaterial


def test_slates(config: Config, dataset: Dataset) -> list[str]:
    """Names of the slates that results are measured on; ConfigError naming the known ones."""
    known = [name for name in dataset.slate_names if SlateName.parse(name).split == "test"]
    if config.evaluation.slates is None:
        if not known:
            raise ConfigError("data.slates: no slates cover the test split, so nothing can be evaluated")
        return known
    for name in config.evaluation.slates:
        if name not in known:
            raise ConfigError(f"evaluation.slates: no test slates '{name}'; there are {', '.join(known) or 'none'}")
    return list(config.evaluation.slates)


def model_slates(config: Config, dataset: Dataset) -> list[str]:
    """The test slates that language models are scored on: all but the whole catalogue, which is for floors."""
    return [name for name in test_slates(config, dataset) if SlateName.parse(name).protocol != "full"]


def method_labels(config: Config) -> dict[str, str]:
    """Method key → how tables call it: an arm's own name, else its preset's label and what differs from the preset."""
    from sirius_rec.objectives.losses import LOSSES

    arms = {arm.key: arm.name or _arm_label(config, arm) for arm in config.arms}
    methods = {m.key: m.name or method_label(m.method, m.preset, m.options) for m in config.methods}
    if config.backbone.name == "tiny":  # nothing was learnt anywhere
        methods |= {m.key: f"{methods[m.key]} (random weights)" for m in config.methods if m.method == "zero_shot"}
    return {**FLOOR_LABELS, "sft": LOSSES["sft"].label, **arms, **methods}


def _arm_label(config: Config, arm: ArmSection) -> str:
    """`S-DPO (softmax), negatives=5`: a part of the preset that the arm overrides is not named as if it held."""
    from sirius_rec.objectives.losses import LOSSES

    preset = asdict(config.objective(ArmSection(loss=arm.loss)))
    own = {key: value for key, value in asdict(config.objective(arm)).items() if value != preset[key]}
    if arm.learning_rate not in (None, config.align.learning_rate):
        own["learning_rate"] = arm.learning_rate
    label = LOSSES[arm.loss].label
    said = {
        "negatives": "whole slate" if preset["negatives"] == "all" else str(preset["negatives"]),
        "anchor": f"{preset['anchor']} anchor",
    }
    for words in (said[key] for key in own if key in said):
        label = label.replace(f" ({words})", "").replace(f", {words})", ")")
    if own.get("anchor") == "none":
        label = label.replace(" + SIRIUS", "")
    if own.get("nll_weight") == 0:
        label = label.replace(" + NLL", "")
    return ", ".join([label, *(f"{key}={_in_yaml(value)}" for key, value in own.items())])


def _in_yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def objectives(config: Config) -> dict[str, dict[str, str]]:
    """Trained method → its reward and comparison, which say whether a reward margin is trained at all."""
    from sirius_rec.objectives.losses import build_objective

    made = {"sft": build_objective("sft"), **{arm.key: config.objective(arm) for arm in config.arms}}
    return {method: {"reward": one.reward, "comparison": one.comparison} for method, one in made.items()}


def check_trained(run: RunFolder, config: Config) -> None:
    """RunError naming the first model that is not trained yet, and the command that trains it."""
    from sirius_rec.recipes.baselines import method_seeds

    language = [("sft", "sft"), *(("align", arm.key) for arm in config.arms)] if config.trains_language_model else []
    wanted = [(command, key, seed, run.stage(key, seed)) for command, key in language for seed in config.seeds]
    wanted += [
        ("run", m.key, seed, run.method(m.key, seed)) for m in config.methods for seed in method_seeds(config, m)
    ]
    for command, key, seed, folder in wanted:
        if not (folder / "done.json").is_file():
            how = f"sirius {command} {run.config_file} --out {run.path}"
            raise RunError(f"{run.path}: {key} of seed {seed} is not trained yet: train it with `{how}`")


def floors(path: str) -> None:
    """Job: score the floors that need no language model."""
    from sirius_rec.rankers.floors import DirectedItemKNN, ItemKNN, Popularity, RandomRanker

    run, config, dataset = open_job(path)
    names = test_slates(config, dataset)
    if all(all_there(run, config, method, 0, slates) for method in FLOOR_LABELS for slates in names):
        return
    sequences, train = dataset.train_sequences(), dataset.examples("train")
    rankers: dict[str, Any] = {
        "random": RandomRanker(seed=0).fit(sequences, dataset.n_items),
        "popularity": Popularity().fit(sequences, dataset.n_items),
        "item_knn": ItemKNN().fit(sequences, dataset.n_items),
        "item_knn_directed": DirectedItemKNN().fit(
            [row.to_numpy() for row in train[HISTORY]], train[TARGET].to_numpy(), dataset.n_items
        ),
    }
    for slates in names:
        histories, candidates = slate_arrays(dataset, slates)
        for method, ranker in rankers.items():
            if all_there(run, config, method, 0, slates):
                continue
            write_scores(run, config, dataset, method, 0, slates, ranker.score(histories, candidates))


def evaluate_model(path: str, method: str, seed: int) -> None:
    """Job: score one trained model's checkpoints on every test slate, and let it answer by generation."""
    run, config, dataset = open_job(path)
    folder = run.stage(method, seed)

    def build(checkpoint: str) -> LLMRanker:
        model = load_stage_model(config, folder / checkpoint)
        return llm_ranker(run, config, dataset, model, config.prompts.form())

    score_checkpoints(run, config, dataset, method, seed, json.loads((folder / "done.json").read_text()), build)


def llm_ranker(
    run: RunFolder, config: Config, dataset: Dataset, model: Any, form: Template, kind: Any = None, **further: Any
) -> Any:
    """A ranker around a model of this run, placed and precise as configured. kind: `LLMRanker`, or one like it."""
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.rankers.llm import LLMRanker

    encoder = further.pop("encoder", None) or Encoder(load_run_tokenizer(run, config), chat=config.prompts.chat)
    model = place(model, config)
    settle_attention(run, config, model, (), encoder.pad_id)
    return (kind or LLMRanker)(
        model,
        encoder,
        form,
        dataset.titles,
        scoring=config.compute.scoring,
        batch_tokens=config.evaluation.batch_tokens,
        bf16=computes_in_bf16(config),
        **further,
    )


def score_checkpoints(
    run: RunFolder,
    config: Config,
    dataset: Dataset,
    method: str,
    seed: int,
    done: dict[str, Any],
    build: Callable[[str], Any],
    *,
    answers: bool = True,
) -> None:
    """Score tables and generated answers of a model's checkpoints, those that are missing.

    done: `steps` and `best_step`. build: the ranker of a checkpoint. answers: whether what it generates is a title.
    """
    scored: dict[int, str] = {}
    if len(model_slates(config, dataset)) < len(test_slates(config, dataset)):
        say(f"{method} s{seed}: a language model does not rank the whole catalogue; full slates are for floors")
    for checkpoint in config.evaluation.checkpoints:
        step = done["best_step"] if checkpoint == "best" else done["steps"]
        ranker: Any = None
        for number, slates in enumerate(model_slates(config, dataset)):
            generates = answers and number == 0 and config.evaluation.generation_rows > 0
            file = answers_file(run, method, seed, slates, checkpoint)
            there = (run.scores / table_name(method, seed, slates, checkpoint)).is_file()
            if there and (not generates or file.is_file()):
                continue
            if step in scored:  # best and last are the same step: same weights, same scores
                if not is_main():
                    continue
                _copy(run, config, dataset, method, seed, slates, scored[step], checkpoint, generates)
                continue
            histories, candidates = slate_arrays(dataset, slates)
            if ranker is None:
                ranker = build(checkpoint)
            if generates and is_main():
                write_json(file, _generate(ranker, config, dataset, slates, method, seed, checkpoint))
            if not there:
                ranker.progress = Ticker(f"{method} s{seed} on {slates}", len(histories))
                scores = ranker.score(histories, candidates)
                if is_main():
                    _write(run, config, dataset, method, seed, slates, checkpoint, scores)
        scored.setdefault(step, checkpoint)


def slate_arrays(dataset: Dataset, slates: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    examples = dataset.examples(SlateName.parse(slates).split)
    return (
        [row.to_numpy() for row in examples[HISTORY]],
        [row.to_numpy() for row in dataset.slates(slates)[CANDIDATES]],
    )


def all_there(run: RunFolder, config: Config, method: str, seed: int, slates: str) -> bool:
    return all(
        (run.scores / table_name(method, seed, slates, checkpoint)).is_file()
        for checkpoint in config.evaluation.checkpoints
    )


def _write(
    run: RunFolder, config: Config, dataset: Dataset, method: str, seed: int, slates: str, checkpoint: str, scores: Any
) -> None:
    rows = [np.asarray(row) for row in scores]
    # As precise as they were computed: in float32 seconds, say, would tie.
    kind = pl.Float64 if any(row.dtype == np.float64 for row in rows) else pl.Float32
    column = pl.Series("scores", [row.tolist() for row in rows], dtype=pl.List(kind))
    frame = dataset.slates(slates).select(ROW_ID, CANDIDATES).with_columns(column)
    write_table(ScoreTable(method, method_labels(config)[method], seed, slates, checkpoint, frame), run.scores)


def write_scores(
    run: RunFolder, config: Config, dataset: Dataset, method: str, seed: int, slates: str, scores: Any
) -> None:
    """The score tables of a method without checkpoints: the same scores under each name of one."""
    for checkpoint in config.evaluation.checkpoints:
        _write(run, config, dataset, method, seed, slates, checkpoint, scores)


def answers_file(run: RunFolder, method: str, seed: int, slates: str, checkpoint: str) -> Path:
    return run.generation / table_name(method, seed, slates, checkpoint).replace(".parquet", ".json")


def _copy(
    run: RunFolder,
    config: Config,
    dataset: Dataset,
    method: str,
    seed: int,
    slates: str,
    source: str,
    checkpoint: str,
    generates: bool,
) -> None:
    from sirius_rec.evaluation.tables import read_table

    table = read_table(run.scores / table_name(method, seed, slates, source))
    _write(run, config, dataset, method, seed, slates, checkpoint, table.frame["scores"])
    if generates:
        entry = json.loads(answers_file(run, method, seed, slates, source).read_text())
        write_json(answers_file(run, method, seed, slates, checkpoint), {**entry, "checkpoint": checkpoint})


def _generate(
    ranker: Any, config: Config, dataset: Dataset, slates: str, method: str, seed: int, checkpoint: str
) -> dict[str, Any]:
    """Greedy answers on a seeded sample of the slates' rows, the same for every method."""
    from sirius_rec.rankers.generation import generate_answers

    histories, candidates = slate_arrays(dataset, slates)
    rows = answered_rows(config, len(histories))
    titles = dataset.titles
    targets = dataset.examples(SlateName.parse(slates).split)[TARGET].to_list()
    answers = generate_answers(
        ranker.model,
        ranker.encoder,
        ranker.prompts([histories[r] for r in rows], [candidates[r] for r in rows]),
        [[titles[i] for i in candidates[r]] for r in rows],
        [titles[targets[r]] for r in rows],
        progress=Ticker(f"{method} s{seed} answers", len(rows)),
    )
    return answers_entry(dataset, slates, method, seed, checkpoint, rows, answers)


def answered_rows(config: Config, n_rows: int) -> list[int]:
    """The rows whose generated answers are judged: a seeded sample, the same for every method."""
    n = min(config.evaluation.generation_rows, n_rows)
    return [int(r) for r in np.sort(np.random.default_rng(0).permutation(n_rows)[:n])]


def answers_entry(
    dataset: Dataset, slates: str, method: str, seed: int, checkpoint: str, rows: list[int], answers: Sequence[Any]
) -> dict[str, Any]:
    """What a file of generated answers holds; answers: `rankers.generation.Answer`s of those rows."""
    row_ids = dataset.examples(SlateName.parse(slates).split)[ROW_ID].to_list()
    return {
        "method": method,
        "seed": seed,
        "slates": slates,
        "checkpoint": checkpoint,
        "row_id": [row_ids[r] for r in rows],
        "valid": [int(a.valid) for a in answers],
        "hit": [int(a.hit) for a in answers],
        "text": [a.text for a in answers],
    }


def collect(run: RunFolder, config: Config, dataset: Dataset) -> dict[str, Any]:
    """Score tables, answers and curves → results.json."""
    results = gather(run, config, dataset, config.evaluation.baseline)
    write_results(results, run.results)
    return results


def gather(run: RunFolder, config: Config, dataset: Dataset, baseline: str) -> dict[str, Any]:
    """What results.json holds, with paired tests against `baseline`."""
    from sirius_rec.recipes.baselines import seeded

    tables = read_tables(run.scores) if run.scores.is_dir() else []
    if not tables:
        raise RunError(f"{run.scores}: no score tables: run `sirius evaluate` first")
    names = sorted({table.slates for table in tables})
    truths = {name: dataset.truth(name) for name in names}
    splits = sorted({SlateName.parse(name).split for name in names})
    examples = pl.concat([dataset.examples(split).select(ROW_ID, USER_ID, TARGET) for split in splits])
    info = dataset.info
    return build_results(
        tables,
        examples=examples,
        truths={name: truth for name, truth in truths.items() if truth is not None},
        generation=[
            {k: v for k, v in json.loads(file.read_text()).items() if k != "text"}
            for file in sorted(run.generation.glob("*.json"))
        ],
        curves=read_curves(run, config, dataset),
        config=config.model_dump(mode="json", exclude={"compute": {"jobs"}}),
        environment={"versions": versions(), "seeds": list(config.seeds)},
        data={
            "fingerprint": dataset.fingerprint,
            "source": info["source"]["name"],
            "statistics": info["statistics"],
            "slates": info["slates"],
        },
        objectives=objectives(config),
        baseline=baseline,
        unseeded=(*FLOORS, *(m.key for m in config.methods if not seeded(config, m))),
    )


def report_run(run: RunFolder, *others: RunFolder, baseline: str | None = None, out: Path | None = None) -> Path:
    """results.json, diagnostics.json, audit, scores and data of one run or several → one page.

    baseline: what the paired tests are against, instead of the configured one; any method that was scored. out: the
    page's file; without it RUN/report.html of one run, with its figures in RUN/figures/.
    """
    from sirius_rec.report.page import write_report

    if others and out is None:
        raise ConfigError("report: several runs have no folder of their own: name the page with --out FILE")
    material = [_report_material(one, baseline) for one in (run, *others)]
    return write_report(material, out or run.path / "report.html", run.path / "figures" if out is None else None)


def _report_material(run: RunFolder, baseline: str | None) -> RunMaterial:
    from sirius_rec.audit.audit import read_audit
    from sirius_rec.data.store import open_dataset
    from sirius_rec.report.explorer import sample_examples
    from sirius_rec.report.material import RunMaterial

    results = read_results(run.results)
    name = run.path.resolve().name
    there = run.scores.is_dir() and run.data.is_dir()
    tables = read_tables(run.scores) if there else []
    dataset = open_dataset(run.data) if there else None
    if baseline is not None and baseline != results.get("baseline"):
        scored = sorted({row["method"] for row in results["summary"]})
        if baseline not in scored:
            raise ConfigError(f"--baseline {baseline!r} was not scored: choose one of {', '.join(scored)}")
        if dataset is None:
            raise RunError(f"{run.path}: tests against another baseline need its scores/ and data/: evaluate it again")
        again = gather(run, run.config(), dataset, baseline)
        results |= {key: again[key] for key in ("paired", "baseline", "notes")}
    return RunMaterial(
        name,
        results,
        json.loads(run.diagnostics.read_text()) if run.diagnostics.is_file() else None,
        read_audit(run.data),
        f"sirius audit {run.data}",
        sample_examples(tables, dataset, run.config().prompts.form()) if dataset is not None else None,
    )
