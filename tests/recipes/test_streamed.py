"""`training.stream`: a run that holds no train rows trains what one that holds them does."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from safetensors.numpy import load_file

from sirius_rec.config import Config
from sirius_rec.data import mapped
from sirius_rec.data.store import Dataset
from sirius_rec.errors import ConfigError, PromptError, RunError
from sirius_rec.recipes import records as recipe_records
from sirius_rec.recipes import reference, streamed
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.methods import build_methods, finetuned
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages
from sirius_rec.recipes.streamed import StreamedRecords

# Every step is the whole train set, so that the order of rows, which differs, is nothing to the weights.
WHOLE = ("backbone.pretrain=null", "sft.batch_size=512", "sft.warmup=0", "sft.epochs=2", "align.batch_size=512",
         "align.warmup=0", "data.window={max_history: 5, min_history: 1}",
         "data.options={n_items: 80, n_users: 40, events_per_user: 14}", "arms=[dpo_sirius]",
         "evaluation.baseline=dpo_sirius")  # fmt: skip


def made(mini: Callable[..., Config], folder: Path, *overrides: str) -> Run:
    config = mini(*WHOLE, *overrides)
    run = Run(open_run(folder, config), config)
    run_stages(run, ("sft", "align"), lambda line: None)
    return run


@pytest.fixture(scope="module")
def both(mini: Callable[..., Config], tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    folder = tmp_path_factory.mktemp("streamed")
    return made(mini, folder / "held"), made(mini, folder / "streamed", "training.stream=true")


def test_the_weights_are_the_same(both: tuple[Run, Run]) -> None:
    held, streamed = both
    assert held.dataset.n_rows("train") <= 512
    before = None
    for folder in ("sft", "align/dpo_sirius"):
        ours, other = (load_file(run.folder.path / folder / "s0/last/model.safetensors") for run in (streamed, held))
        for name, values in other.items():
            np.testing.assert_allclose(ours[name], values, atol=2e-5, err_msg=f"{folder} {name}")
        if before is not None:
            assert max(np.abs(other[name] - before[name]).max() for name in other) > 1e-3, "nothing was trained"
        before = other


def test_the_reference_is_the_same_and_lies_in_files(both: tuple[Run, Run]) -> None:
    held, streamed = (reference.read_reference(run, 0) for run in both)
    assert len(held["train"]) == len(streamed["train"]) == both[0].dataset.n_rows("train")
    for ours, other in zip(streamed["train"], held["train"], strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4)
    for ours, other in zip(streamed["val"], held["val"], strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-4)
    assert list(both[1].folder.reference_shards(0).glob("*.npy"))
    with np.load(both[1].folder.reference(0)) as stored:
        assert not [name for name in stored if name.startswith("train")]


def test_records_are_those_that_are_held(both: tuple[Run, Run]) -> None:
    run = Run.open(both[1].folder.path)
    rows = np.array([0, 3, 77])
    run.__dict__["shown"] = [f"{title} (so)" for title in run.dataset.titles]
    held = recipe_records.slate_records(run.dataset, run.train_slates, run.template, rows, run.shown)
    records = StreamedRecords(run, run.template, rows)
    assert "(so)" in records[0]["prompt"] and "(so)" not in records[0]["chosen"]
    assert [records[n] for n in range(3)] == [{k: v for k, v in r.items() if k != "user"} for r in held]


@pytest.mark.parametrize("some", [False, True])
def test_the_longest_are_the_longest(both: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch, some: bool) -> None:
    """By the encoder itself: none that is left out is longer than those chosen, but for merges across titles."""
    from sirius_rec.training.records import encode_records

    run = both[1]
    monkeypatch.setattr(mapped, "_BLOCK", 50)
    n_rows = run.dataset.n_rows("train")
    rows = np.sort(np.random.default_rng(0).permutation(n_rows)[:200]) if some else range(n_rows)
    records = StreamedRecords(run, run.template, rows)
    lengths = np.array(
        [row.longest_path for row in encode_records([records[n] for n in range(len(records))], run.encoder)]
    )
    chosen = records.longest(20)
    assert len(set(chosen)) == 20 and np.unique(lengths).size > 3
    assert sorted(lengths[chosen]) == sorted(lengths)[-20:]
    numbers = [(rows if some else np.arange(n_rows))[number] for number in chosen]
    assert records.longest_rows(20)[0] == [records.mapped.history(row).tolist() for row in numbers]
    assert records.longest_rows(20)[1] == records.mapped.candidates_RC[numbers].tolist()


def test_no_stage_reads_all_train_rows(
    both: tuple[Run, Run], mini: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither rows nor their slates; only the tokenizer and baselines count items."""
    asked: list[str] = []
    examples, slates = Dataset.examples, Dataset.slates
    monkeypatch.setattr(Dataset, "examples", lambda self, split: asked.append(split) or examples(self, split))
    monkeypatch.setattr(Dataset, "slates", lambda self, name: asked.append(str(name)) or slates(self, name))
    config = mini(*WHOLE, "training.stream=true")
    run = Run(both[1].folder, config)
    for key in ("sft", "dpo_sirius"):
        build_methods(config)[key].check(run)
    assert not [name for name in asked if name.startswith("train")]
    fresh = Run(open_run(tmp_path / "run", config), config)
    fresh.folder.backbone.mkdir()
    for file in run.folder.backbone.iterdir():
        (fresh.folder.backbone / file.name).write_bytes(file.read_bytes())
    run_stages(fresh, ("sft", "align"), lambda line: None)
    assert "val" in asked and not [name for name in asked if name.startswith("train")]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["training.share=user"], "training.stream: rows come in a random order"),
        (
            ["sft.targets=all", "prompts.slate=false", "prompts.template={history: Read, answer: null}"],
            "training.stream: sft.targets",
        ),
        (
            ["arms=[{loss: dpo, negatives_from: on_policy}]", "prompts.slate=false", "evaluation.baseline=dpo"],
            "the policy's negatives need all rows at hand",
        ),
    ],
)
def test_what_needs_all_rows_is_refused(mini: Callable[..., Config], overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mini("training.stream=true", *overrides)


def test_a_prompt_beyond_the_context_is_found_before_training(both: tuple[Run, Run]) -> None:
    """By the same count, where there are fewer rows than are looked at."""
    messages = []
    for run in both:
        method = build_methods(run.config)["sft"]
        with pytest.raises(
            PromptError, match=r"slates train-uniform-6-s0: \d+ of (the longest )?\d+ prompts .* exceed the context"
        ) as e:
            method._check_lengths(run, run.encoder, str(run.train_slates), 14)  # type: ignore[attr-defined]
        messages.append(str(e.value))
    assert messages[0] == messages[1].replace("the longest ", "")


def test_a_choice_of_rows_is_without_replacement_and_seeded() -> None:
    from sirius_rec.recipes.streamed import streamed_rows

    rows = streamed_rows(1000, 300, 1, 2)
    assert len(set(rows.tolist())) == 300 and rows.tolist() == sorted(rows.tolist()) and rows.max() < 1000
    assert streamed_rows(1000, 300, 1, 2).tolist() == rows.tolist() != streamed_rows(1000, 300, 1, 3).tolist()
    assert streamed_rows(1000, 1000, 1, 2) == range(1000)


def test_a_reference_of_something_else_is_not_read(both: tuple[Run, Run], tmp_path: Path) -> None:
    """Neither of other rows nor of another model, and reading removes nothing."""
    shutil.copytree(both[1].folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    shards = run.folder.reference_shards(0)
    whole = reference.read_reference(run, 0)["train"]
    before = [whole[row].tolist() for row in range(len(whole))]
    fewer = Run(run.folder, run.config.changed(align=run.config.align.changed(examples_per_epoch=50)))
    assert reference.ReferenceCache(fewer, 0).key != reference.ReferenceCache(run, 0).key
    with pytest.raises(RunError, match="the reference cache is missing, of another model"):
        reference.read_reference(fewer, 0)
    (shards / "key.txt").write_text("another")  # a scoring under another key was killed here
    with pytest.raises(RunError, match="the reference cache is missing, of another model"):
        reference.read_reference(run, 0)
    assert list(shards.glob("*.npy"))
    reference.score_reference(str(run.folder.path), 0)
    again = reference.read_reference(run, 0)["train"]
    assert [again[row].tolist() for row in range(len(again))] == before
    next(shards.glob("*.npy")).unlink()
    reference.score_reference(str(run.folder.path), 0)
    again = reference.read_reference(run, 0)["train"]
    assert [again[row].tolist() for row in range(len(again))] == before


def test_the_reference_key_knows_what_stands_for_an_item(both: tuple[Run, Run]) -> None:
    keys = []
    for words in ("", " (so)"):
        run = Run.open(both[1].folder.path)
        # of an item that none of the first rows shows
        run.__dict__["shown"] = [*run.dataset.titles[:-1], run.dataset.titles[-1] + words]
        keys.append(reference.ReferenceCache(run, 0).key)
    assert keys[0] != keys[1]


def test_methods_that_hold_their_rows_still_train(mini: Callable[..., Config], tmp_path: Path) -> None:
    """And a dry run counts."""
    from sirius_rec.recipes.dry_run import dry_run

    config = mini(*WHOLE, "training.stream=true", "methods=[tallrec, tallrec_listwise]", "backbone.tiny.context=512")
    run = Run(open_run(tmp_path / "run", config), config)
    run_stages(run, ("sft",), lambda line: None)
    for key in ("tallrec", "tallrec_listwise"):
        method = build_methods(config)[key]
        method.check(run)
        method.fit(run, 0)
        assert method.is_done(run, 0)
    assert dry_run(config, device="a100")["stages"]


def test_records_go_to_a_worker_without_the_run(both: tuple[Run, Run]) -> None:
    records = StreamedRecords(both[1], both[1].template, range(10))
    sent = pickle.dumps(records)
    assert len(sent) < 20_000 and pickle.loads(sent)[3] == records[3]


@pytest.mark.parametrize("shows_slate", [True, False])
def test_the_longest_of_rows_that_are_held(monkeypatch: pytest.MonkeyPatch, shows_slate: bool) -> None:
    """Against sums in Python, empty histories among them."""
    monkeypatch.setattr(streamed, "LONGEST", 15)
    rng = np.random.default_rng(0)
    tokens_I, longest_I = rng.integers(1, 9, (2, 50))
    histories = [rng.integers(0, 50, rng.integers(0, 7)).tolist() for _ in range(80)]
    slates = rng.integers(0, 50, (80, 4)).tolist()
    lengths = [
        sum(tokens_I[i] for i in history)
        + max(longest_I[i] for i in slate)
        + shows_slate * sum(tokens_I[i] for i in slate)
        for history, slate in zip(histories, slates, strict=True)
    ]
    columns = [pl.Series(lists, dtype=pl.List(pl.Int32)) for lists in (histories, slates)]
    found = streamed.longest_rows(*columns, tokens_I, longest_I, shows_slate)
    assert len(found) == 15 and sorted(lengths[r] for r in found) == sorted(lengths)[-15:]


def test_of_many_rows_the_longest_are_measured(both: tuple[Run, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (finetuned, streamed):
        monkeypatch.setattr(module, "LONGEST", 10)
    run = both[0]
    with pytest.raises(PromptError, match=r"slates train-uniform-6-s0: 10 of the longest 10 prompts") as error:
        build_methods(run.config)["sft"]._check_lengths(run, run.encoder, str(run.train_slates), 14)
    assert "(longest: 16)" in str(error.value)
