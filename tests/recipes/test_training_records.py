"""What is trained on: records from frozen slates, the rows a stage sees, batches, and when checkpoints are written."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
from transformers import TrainerControl, TrainerState

from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.prompts.templates import get_template
from sirius_rec.recipes import records as recipe_records
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.arguments import accumulation
from sirius_rec.recipes.callbacks import Clock, EpochLines
from sirius_rec.recipes.diagnosis import read_curves
from sirius_rec.recipes.environment import processor
from sirius_rec.recipes.methods import arms, build_methods, finetuned
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE, RunFolder
from sirius_rec.recipes.scoring import answered_rows
from sirius_rec.recipes.story import run_stages
from sirius_rec.schema import SlateName
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import count_nodes

TRAIN = SlateName("train", "uniform", 6, 0)
GENERIC = get_template("generic")


def test_slate_records(trained: Any) -> None:
    dataset = trained.dataset
    titles = dataset.titles
    rows = np.array([5, 0, 17])
    records = recipe_records.slate_records(dataset, TRAIN, GENERIC, rows)
    examples, slates = dataset.examples("train"), dataset.slates(TRAIN)
    for record, r in zip(records, rows.tolist(), strict=True):
        target, shown = examples["target"][r], slates["candidates"][r].to_list()
        assert record["chosen"] == titles[target]
        assert record["rejected"] == [titles[i] for i in shown if i != target]
        assert len(record["rejected"]) == 5 and record["chosen"] not in record["rejected"]
        history = [titles[i] for i in examples["history"][r]]
        assert record["prompt"] == GENERIC.render(history, [titles[i] for i in shown])
    assert len(recipe_records.slate_records(dataset, TRAIN, GENERIC)) == examples.height


def test_pretraining_reads_train_histories_only(trained: Any) -> None:
    """Every epoch holds each training user's items once, in pieces; nobody else's order or items."""
    dataset = trained.dataset
    wanted = Counter(dataset.titles[i] for sequence in dataset.train_sequences() for i in sequence)
    records = recipe_records.pretraining_records(dataset, GENERIC, piece=4, epochs=3, seed=1)
    read = Counter(title for record in records for title in record["chosen"].split("\n"))
    assert read == Counter({title: 3 * count for title, count in wanted.items()})
    assert max(len(record["chosen"].split("\n")) for record in records) <= 4
    assert {record["prompt"] for record in records} == {GENERIC.history + "\n"}
    assert records == recipe_records.pretraining_records(dataset, GENERIC, piece=4, epochs=3, seed=1)
    assert records != recipe_records.pretraining_records(dataset, GENERIC, piece=4, epochs=3, seed=2)


@pytest.mark.parametrize("shuffle", [False, True])
def test_every_title_of_a_piece_but_its_first_is_a_target_of_those_before(trained: Any, shuffle: bool) -> None:
    dataset, form = trained.dataset, replace(GENERIC, answer=None, shows_slate=False)
    options = {"piece": 4, "epochs": 2, "seed": 1, "shuffle": shuffle}
    records = recipe_records.reading_records(dataset, form, dataset.titles, **options)
    pieces: dict[int, list[str]] = {}
    for record in records:
        shown = record["prompt"].split("\n")
        assert shown[0] == form.history and shown[-1] == ""
        piece = pieces.setdefault(record["user"], shown[1:2])
        assert shown[1:-1] == piece  # the records of a piece come in its order
        piece.append(record["chosen"])
    assert max(map(len, pieces.values())) == 4
    sequences = [[dataset.titles[i] for i in sequence] for sequence in dataset.train_sequences()]
    lone = 2 * sum(map(len, sequences)) - sum(map(len, pieces.values()))  # pieces of one title teach nothing
    assert 0 <= lone <= 4 * len(sequences)
    joined = ["\n".join(sequence) for sequence in sequences]
    kept = [any("\n".join(piece) in whole for whole in joined) for piece in pieces.values()]
    assert all(kept) if not shuffle else not all(kept)
    assert records == recipe_records.reading_records(dataset, form, dataset.titles, **options)
    assert records != recipe_records.reading_records(dataset, form, dataset.titles, **{**options, "seed": 2})


def test_sft_reads_histories_whose_titles_are_computed_once(mini: Callable[..., Config], tmp_path: Path) -> None:
    words = "{history: They had, answer: null}"
    config = mini(f"prompts.template={words}", "prompts.slate=false", "training.share=user", "sft.targets=all",
                  "sft.epochs=2", "data.options.n_users=30")  # fmt: skip
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("sft",), lambda line: None)
    lines = [json.loads(line) for line in (run.folder.sft(0) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    sft = build_methods(config)["sft"]
    records = sft.training_set(run, 0, np.arange(3))["records"]
    an_epoch = math.ceil(math.ceil(len(records) / 2) / 32)
    assert json.loads((run.folder.sft(0) / DONE).read_text())["steps"] == 2 * an_epoch
    assert steps[-1]["loss"] < steps[0]["loss"]
    encoder = run.encoder
    first = [record for record in records if record["user"] == records[0]["user"]]
    rows = [PromptCompletions(encoder.prompt(r["prompt"]), [encoder.completion(r["chosen"])]) for r in first]
    alone = sum(len(row.prompt) + len(row.completions[0]) - 1 for row in rows)
    # Behind each title the tiny tokenizer has a line break of its own, which the next prompt joins to its title.
    assert count_nodes(rows) <= len(rows[-1].prompt) + 2 * len(rows) < alone


def test_an_epoch_of_histories_is_never_more_than_all_of_them(mini: Callable[..., Config], tmp_path: Path) -> None:
    """examples_per_epoch above what there is takes what there is, as with rows; it read every title epochs² times."""
    words = ("prompts.template={history: They had, answer: null}", "prompts.slate=false", "sft.targets=all")
    config = mini(*words, "sft.epochs=3", "sft.examples_per_epoch=1000000", "backbone.pretrain=null")
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, (), lambda line: None)
    given = build_methods(config)["sft"].training_set(run, 0, np.arange(3))
    assert given["stage"].examples_per_epoch == math.ceil(len(given["records"]) / 3)
    few = config.changed(sft=config.sft.changed(examples_per_epoch=7))
    run.config = few
    assert build_methods(few)["sft"].training_set(run, 0, np.arange(3))["stage"].examples_per_epoch == 7


def test_targets_all_wants_prompts_that_go_on(mini: Callable[..., Config]) -> None:
    for overrides in ((), ("prompts.slate=false",), ("prompts.template={history: a, answer: null}",)):
        with pytest.raises(ConfigError, match=r"sft.targets: all reads histories as texts that go on|null continues"):
            mini("sft.targets=all", *overrides)


def test_stage_rows(mini: Callable[..., Config]) -> None:
    few = mini("align.epochs=2", "align.examples_per_epoch=30").align
    rows = recipe_records.stage_rows(1000, few, 0, 3)
    assert len(rows) == 60 == len(set(rows.tolist()))
    assert rows.tolist() == sorted(rows.tolist()) and rows[-1] < 1000
    assert rows.tolist() == recipe_records.stage_rows(1000, few, 0, 3).tolist()
    assert rows.tolist() != recipe_records.stage_rows(1000, few, 1, 3).tolist()
    assert rows.tolist() != recipe_records.stage_rows(1000, few, 0, 2).tolist()
    assert recipe_records.stage_rows(50, few, 0, 3).tolist() == list(range(50))
    assert recipe_records.stage_rows(7, mini().align, 0, 3).tolist() == list(range(7))


def test_validation_rows_are_the_same_for_everybody(mini: Callable[..., Config]) -> None:
    def rows(n_rows: int, *overrides: str) -> list[int]:
        return run_over([None] * n_rows, mini(*overrides)).validation_rows.tolist()

    few = "evaluation.validation_rows=10"
    assert len(set(rows(200, few))) == 10
    assert rows(200, few) == rows(200, few, "seeds=[3]") != list(range(10))
    assert rows(20) == list(range(20))


def test_every_draw_of_a_seed_has_a_stream_of_its_own(trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """SFT and alignment see different rows of a large set; shared streams would show both the same."""
    streams = [recipe_records.PRETRAIN_STREAM, recipe_records.SFT_STREAM, recipe_records.ALIGN_STREAM]
    assert len({*streams, recipe_records.QUESTION_STREAM}) == 4

    class Asked(Exception):
        pass

    def asked(run: Run, stage: Any, seed: int, stream: int) -> np.ndarray:
        raise Asked(stream)

    methods = build_methods(trained.config)
    for key, module in (("sft", finetuned), ("dpo_sirius", arms)):
        monkeypatch.setattr(module, "training_rows", asked)
        with pytest.raises(Asked) as caught:
            methods[key].fit(trained, 1)  # seed 0 of SFT is done
        assert caught.value.args == ({"sft": streams[1], "dpo_sirius": streams[2]}[key],)


def test_questions_draw_their_negatives_by_row(trained: Run) -> None:
    """Each row its own: neither the same place of every slate, nor another draw where other rows are asked too."""
    rows = np.arange(40)
    pairs = recipe_records.question_pairs(trained.dataset, TRAIN, rows, 2, 0)
    slates = trained.dataset.slates(TRAIN)["candidates"].to_list()
    targets = trained.dataset.examples("train")["target"].to_list()
    places = [[item for item in slates[r] if item != targets[r]].index(item) for r, item in pairs if item != targets[r]]
    assert Counter(r for r, _ in pairs) == dict.fromkeys(range(40), 3)
    first = Counter(places[::2])
    assert set(first) == set(range(5)) and max(first.values()) < 20
    some = recipe_records.question_pairs(trained.dataset, TRAIN, rows[7:9], 2, 0)
    assert some == pairs[21:27]
    assert pairs != recipe_records.question_pairs(trained.dataset, TRAIN, rows, 2, 1)


def test_answered_rows_are_a_sample() -> None:
    """Examples come user by user, so the first ones would be a few users'."""
    rows = answered_rows(50, 1000)
    assert rows == sorted(set(rows)) == answered_rows(50, 1000) and len(rows) == 50
    assert sum(r < 500 for r in rows) in range(12, 39) and rows[-1] > 900
    assert answered_rows(50, 7) == list(range(7))


def run_over(users: list[str | None], config: Config) -> Run:
    """A run with one validation row per entry."""
    run = Run(RunFolder(Path("nowhere")), config)
    frame = pl.DataFrame({"row_id": range(len(users)), "user_id": pl.Series(users, dtype=pl.String)})
    run.__dict__["dataset"] = SimpleNamespace(examples=lambda split: frame)
    return run


def test_half_of_the_users_choose_the_epoch_of_sft(mini: Callable[..., Config]) -> None:
    """All rows of a user on one side: the other side knows nothing of the choice. The same draw for every seed."""
    users: list[str | None] = [f"u{row % 30}" for row in range(100)]
    run = run_over(users, mini("evaluation.validation_rows=80"))
    selecting = run.selecting
    assert selecting is not None and len(selecting) == 80 == len(run.validation_rows)
    sides = [
        {users[r] for r, one in zip(run.validation_rows, selecting, strict=True) if one == side} for side in (0, 1)
    ]
    assert not sides[0] & sides[1] and abs(len(sides[0]) - len(sides[1])) <= 1
    assert sides[1] != set(sorted(sides[0] | sides[1])[: len(sides[1])])  # drawn, not the first ones
    again = run_over(users, mini("evaluation.validation_rows=80", "seeds=[3]")).selecting
    assert again is not None and again.tolist() == selecting.tolist()
    unnamed = run_over([None] * 9, mini()).selecting
    assert unnamed is not None and unnamed.sum() == 4
    assert run_over(["u"] * 9, mini()).selecting is None


def test_one_row_without_a_user_is_alone_and_parts_no_others(mini: Callable[..., Config]) -> None:
    """Of every user the same share is validated on; all of it stands on one side of the choice."""
    users: list[str | None] = [*(f"u{row % 5}" for row in range(40)), None]
    run = run_over(users, mini("training.share=user", "evaluation.validation_rows=17"))
    shown = [users[row] for row in run.validation_rows]
    assert all(abs(shown.count(user) - 17 / 41 * users.count(user)) < 1 for user in {*users})
    run = run_over(users, mini())
    assert run.selecting is not None
    of_side = [{users[r] for r in np.flatnonzero(run.selecting == side)} for side in (False, True)]
    assert not of_side[0] & of_side[1] and sorted(map(len, of_side)) == [3, 3]
    # Where every row has a user, or none has, the draws are what they were.
    for named in (users[:-1], [None] * 40):
        labels = np.arange(40) if named[0] is None else np.array(named)
        groups, codes = np.unique(labels, return_inverse=True)
        drawn = np.random.default_rng([0, 1]).permutation(len(groups)) < len(groups) // 2
        selecting = run_over(named, mini()).selecting
        assert selecting is not None and selecting.tolist() == drawn[codes].tolist()


@pytest.mark.parametrize(("batch", "micro", "processes", "steps"), [(128, 128, 1, 1), (128, 16, 1, 8), (128, 16, 4, 2)])
def test_accumulation_keeps_the_effective_batch(batch: int, micro: int, processes: int, steps: int) -> None:
    assert accumulation(batch, micro, processes) == steps
    assert steps * micro * processes == batch


def test_accumulation_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match="batch_size 128 is not a multiple of micro_batch_size 16 × 3 processes"):
        accumulation(128, 16, 3)


def test_more_processes_than_examples_in_a_batch(
    mini: Callable[..., Config], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sirius_rec.recipes import arguments

    config = mini("align.batch_size=4")
    monkeypatch.setattr(arguments, "count", lambda: 8)
    with pytest.raises(ConfigError, match="batch_size 4 is less than one example for each of 8 processes: raise it"):
        arguments.training_arguments(config, config.align, tmp_path, {"loss": "dpo"}, 0, n_records=100, best_by="hr@1")


def test_warmup_is_a_share_of_the_steps(mini: Callable[..., Config], tmp_path: Any) -> None:
    """100 records in batches of 32 are 4 steps an epoch, 8 in all; a quarter of them warms up."""
    from sirius_rec.recipes.arguments import training_arguments

    config = mini("align.warmup=0.25")
    args = training_arguments(config, config.align, tmp_path, {"loss": "dpo"}, 0, n_records=100, best_by="hr@1")
    assert args.warmup_steps == 2
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (32, 1)


@pytest.mark.parametrize(("step", "saves"), [(3, False), (6, True), (7, False), (13, True), (14, False)])
def test_no_checkpoint_between_the_last_step_of_an_epoch_and_its_evaluation(step: int, saves: bool) -> None:
    """Two epochs of 7 steps; who resumed from a checkpoint at step 7 would never evaluate the first epoch."""
    args: Any = SimpleNamespace(num_train_epochs=2)
    control = TrainerControl(should_save=step not in (3,))
    callback = EpochLines("x", print, 2)
    state = TrainerState(global_step=step, max_steps=14)
    assert callback.on_step_end(args, state, control).should_save == saves
    assert callback.on_epoch_end(args, state, control).should_save


def test_the_clock_goes_on_from_a_checkpoint_and_starts_anew_with_a_training() -> None:
    kept = {"Clock": {"args": {}, "attributes": {"seconds": 500.0}}}
    for step, low in ((4, 500.0), (0, 0.0)):
        clock, state = Clock(), SimpleNamespace(global_step=step, stateful_callbacks=kept)
        clock.on_train_begin(None, state, None)
        assert low <= clock.seconds < low + 10


def test_sft_is_chosen_on_the_selecting_rows_and_nothing_else_is(trained: Run) -> None:
    """HR@1 on those rows by hand, from the log-probs of the evaluation; best_hr@1 stays that of all rows."""
    from sirius_rec.diagnostics.slates import hits
    from sirius_rec.recipes.records import SELECTION, selection_set, validation_set
    from sirius_rec.training.held_out import read_held_out
    from sirius_rec.training.metrics_log import read_metrics

    folder, selecting = trained.folder.sft(0), trained.selecting
    assert selecting is not None
    evaluated = [line for line in read_metrics(folder / "metrics.jsonl") if line["kind"] == "eval"]
    for line, snapshot in zip(evaluated, read_held_out(folder / "held_out"), strict=True):
        assert line[SELECTION] == pytest.approx(hits(snapshot.logp_R)[selecting].mean())
    assert any(line[SELECTION] != line["hr@1"] for line in evaluated)
    done = json.loads((folder / "done.json").read_text())
    best = max(evaluated[1:], key=lambda line: line[SELECTION])
    assert (done["best_by"], done["best_step"], done["best_hr@1"]) == (SELECTION, best["step"], best["hr@1"])
    assert done["device"] == processor()
    assert json.loads((trained.folder.pretrain(0) / "done.json").read_text())["best_by"] == "hr@1"
    whole, chosen = validation_set(trained), selection_set(trained)
    assert whole is not None and chosen is not None
    assert chosen.records == whole.records and whole.best_by == "hr@1"
    assert "true_reward" in chosen.hook(snapshot.logp_R)  # what the other hook measures is measured still


def test_shared_stages_choose_users_with_all_their_rows(mini: Callable[..., Config]) -> None:
    few = mini().align.changed(epochs=1, examples_per_epoch=40)
    users = np.repeat([f"u{n}" for n in range(25)], 8)
    rows = recipe_records.stage_rows(200, few, 0, 3, users)
    assert len(rows) == 40
    assert len(set(users[rows])) == 5
    assert rows.tolist() == sorted(rows.tolist())
    assert rows.tolist() != recipe_records.stage_rows(200, few, 1, 3, users).tolist()


def test_tested_rows_are_spread_over_users_and_nested(trained: Run) -> None:
    name = trained.test_slates[0]
    examples = trained.dataset.examples("test")
    every = trained.tested_rows(name)
    assert every.tolist() == list(range(examples.height))
    chosen = {}
    for wanted in (3, 9):
        evaluation = trained.config.evaluation.changed(test_rows={name: wanted})
        run = Run(trained.folder, trained.config.changed(evaluation=evaluation))
        chosen[wanted] = run.tested_rows(name).tolist()
        histories, candidates = run.slate_arrays(name)
        assert len(histories) == len(candidates) == wanted
        assert histories[0].tolist() == examples["history"][chosen[wanted][0]].to_list()
        share = wanted / examples.height
        of_user = examples.group_by("user_id").len().iter_rows()
        users = examples["user_id"][chosen[wanted]].to_list()
        assert all(abs(users.count(user) - share * n) < 1 for user, n in of_user)
    assert set(chosen[3]) <= set(chosen[9])


def test_evaluations_of_other_rows_are_not_mixed(trained: Run, tmp_path: Path) -> None:
    """Another version may choose other validation rows: neither gone on with nor read as if they were these."""
    shutil.copytree(trained.folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    file = run.folder.sft(0) / "held_out" / "rows.json"
    rows = json.loads(file.read_text())
    assert rows == [run.dataset.examples("val")["row_id"][int(r)] for r in run.validation_rows]
    assert "sft" in read_curves(run)
    file.write_text(json.dumps(rows[1:]))
    with pytest.raises(RunError, match=r"held_out: its evaluations are of other validation rows"):
        read_curves(run)
    (run.folder.sft(0) / "done.json").unlink()
    with pytest.raises(RunError, match=r"held_out: its evaluations are of other validation rows"):
        build_methods(run.config)["sft"].fit(run, 0)
    file.unlink()  # of a version that did not note them
    assert "sft" in read_curves(run)
