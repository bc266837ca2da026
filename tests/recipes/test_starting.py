"""Warm starts: training begins at another run's checkpoint, once, with what that was compared with; leaks are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from safetensors.torch import load_file

from sirius_rec.config import Config
from sirius_rec.data.sources import SOURCES
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.recipes import starting
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.merging import merge_runs
from sirius_rec.recipes.methods.sft import Sft
from sirius_rec.recipes.models import load_stage_model
from sirius_rec.recipes.records import slate_records
from sirius_rec.recipes.reference import read_reference
from sirius_rec.recipes.results import collect
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages
from sirius_rec.scoring.scorer import score_rows
from sirius_rec.training.held_out import read_held_out
from sirius_rec.training.records import encode_records

Mini = Callable[..., Config]
FEW = ("arms=[dpo_sirius]", "align.epochs=1", "evaluation.generation_rows=0", "evaluation.baseline=sft")
# The next day: as many users, another catalogue of the same titles and more, other events.
NEWER = (*FEW, "data.options={n_items: 90, n_users: 60, events_per_user: 16}", "data.seed=4")


def begin(config: Config, path: Path, *stages: str, say: list[str] | None = None) -> Run:
    run = Run(open_run(path, config), config)
    run_stages(run, stages, (say if say is not None else []).append)
    return run


@pytest.fixture(scope="module")
def yesterday(trained: Run, mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The miniature run with one arm."""
    path = tmp_path_factory.mktemp("yesterday") / "run"
    shutil.copytree(trained.folder.path, path)
    shutil.rmtree(path / "align", ignore_errors=True)
    config = mini()
    return begin(config, path, "align")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(iter(folder.glob("*.safetensors"))))


def same(one: Path, other: Path) -> bool:
    a, b = weights(one), weights(other)
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def naive_validation(run: Run, folder: Path) -> list[np.ndarray]:
    """The validation slates of a run, by the model of a folder: separate rows, no tree."""
    assert run.validation_slates is not None
    records = slate_records(run.dataset, run.validation_slates, run.template, run.validation_rows)
    model = load_stage_model(run.config, folder)
    rows = encode_records(records, run.encoder)
    return score_rows(model, rows, run.encoder.pad_id, mode="naive", max_tokens=8192)


def test_sft_begins_at_the_other_runs_best_epoch(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    """Its first evaluation is what the old checkpoint says of the new rows, and only then it moves."""
    run = begin(mini(*NEWER, f"sft.from={yesterday.folder.path}"), tmp_path / "run", "sft")
    old = yesterday.folder.sft(0) / "best"
    first, last = read_held_out(run.folder.sft(0) / "held_out")
    expected = naive_validation(run, old)
    for row, by_hand in zip(first.logp_R, expected, strict=True):
        np.testing.assert_allclose(row, by_hand, atol=1e-4)
    assert not np.allclose(np.concatenate(last.logp_R), np.concatenate(expected), atol=1e-2)
    assert not run.folder.pretrain(0).exists()  # the old model was
    tokenizers = [one.folder.backbone / "tokenizer.json" for one in (yesterday, run)]
    assert tokenizers[0].read_text() == tokenizers[1].read_text()
    assert len(run.dataset.titles) > len(yesterday.dataset.titles)
    for title in run.dataset.titles:  # also the new ones
        ids = run.tokenizer(title, add_special_tokens=False)["input_ids"]
        assert run.tokenizer.decode(ids) == title


def test_items_that_are_called_otherwise_are_named(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    """A twin with a lower id takes the title that an older item had, and the model takes the one for the other."""
    run = Run(open_run(tmp_path / "run", mini(*NEWER)), mini(*NEWER))
    assert not list(starting._renamed(yesterday, yesterday))
    items = yesterday.dataset.items
    first, second = items["title"][0], items["title"][1]
    swapped = items.with_columns(pl.col("title").replace({first: second, second: first}))
    run.__dict__["dataset"] = SimpleNamespace(items=swapped)
    [said] = starting._renamed(yesterday, run)
    assert said.startswith(
        f"warning: 2 items are called otherwise than where it began, such as {items['item_id'][0]}: "
    )
    assert f"{first!r}, now {second!r}" in said


def test_alignment_begins_at_an_arm_and_is_compared_with_its_sft(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    begun = f"align.from={{run: {yesterday.folder.path}, method: dpo_sirius}}"
    run = begin(mini(*NEWER, begun), tmp_path / "run", "sft", "align", "evaluate")
    old_sft, old_arm = yesterday.folder.sft(0) / "best", yesterday.folder.arm("dpo_sirius", 0) / "best"
    assert same(run.folder.sft(0) / "best", old_sft) and not same(old_sft, old_arm)
    for row, by_hand in zip(read_reference(run, 0)["val"], naive_validation(run, old_sft), strict=True):
        np.testing.assert_allclose(row, by_hand, atol=1e-4)
    first = read_held_out(run.folder.arm("dpo_sirius", 0) / "held_out")[0]
    by_arm = naive_validation(run, old_arm)
    for row, by_hand in zip(first.logp_R, by_arm, strict=True):
        np.testing.assert_allclose(row, by_hand, atol=1e-4)
    # SFT's own HR@1 is measured on the new rows, column 0 the target.
    hits = [float(row[0] > row[1:].max()) for row in naive_validation(run, old_sft)]
    assert Sft(run.config).validation_hit(run, 0) == pytest.approx(np.mean(hits))
    results = collect(run)
    assert results["begun_from"]["0"]["method"] == "dpo_sirius"
    assert any("alignment begins at dpo_sirius of run (SHA-256" in note for note in results["notes"])
    assert results["methods"]["sft"]["train_rows"] is None


def test_without_epochs_what_it_begins_from_is_measured_as_it_is(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    """Yesterday's arm on today's rows, with no training; an arm may begin there too, and is compared with it."""
    begun = f"sft.from={{run: {yesterday.folder.path}, method: dpo_sirius}}"
    config = mini(*NEWER, begun, "sft.epochs=0", "arms=[dpo]", "evaluation.baseline=sft")
    run = begin(config, tmp_path / "run", "sft", "align", "evaluate")
    old_arm = yesterday.folder.arm("dpo_sirius", 0) / "best"
    assert same(run.folder.sft(0) / "best", old_arm) and same(run.folder.sft(0) / "last", old_arm)
    assert not (run.folder.sft(0) / "metrics.jsonl").exists()
    hits = [float(row[0] > row[1:].max()) for row in naive_validation(run, old_arm)]
    assert Sft(run.config).validation_hit(run, 0) == pytest.approx(np.mean(hits))
    for row, by_hand in zip(read_reference(run, 0)["val"], naive_validation(run, old_arm), strict=True):
        np.testing.assert_allclose(row, by_hand, atol=1e-4)
    results = collect(run)
    assert results["methods"]["sft"]["train_rows"] is None and results["methods"]["dpo"]["train_rows"] is not None
    assert {row["method"] for row in results["rows"]} >= {"sft", "dpo", "popularity"}
    assert results["begun_from"]["0"]["method"] == "dpo_sirius"


def test_from_a_folder_alone_is_its_sft(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    run = begin(mini(*NEWER, f"align.from={yesterday.folder.path}"), tmp_path / "run", "sft", "align")
    assert same(starting.policy(run, 0), yesterday.folder.sft(0) / "best")
    curve = [json.loads(line) for line in (run.folder.arm("dpo_sirius", 0) / "metrics.jsonl").read_text().splitlines()]
    first = next(line for line in curve if line["kind"] == "eval")
    assert first["reward_margin"] == pytest.approx(0.0, abs=1e-5)


def test_a_run_goes_on_from_what_it_began_with(yesterday: Run, trained: Run, mini: Mini, tmp_path: Path) -> None:
    """The link has moved on, to a run with other weights, and the old run is gone: neither matters any more."""
    live, old = tmp_path / "live", tmp_path / "old"
    shutil.copytree(yesterday.folder.path, old)
    live.symlink_to(old)
    config = mini(*NEWER, f"sft.from={live}")
    before = begin(config, tmp_path / "run")  # begun, nothing trained
    sha = starting.begun_from(before)[0]["sha256"]
    live.unlink()
    live.symlink_to(tmp_path / "nowhere")
    shutil.rmtree(old)
    said: list[str] = []
    run = begin(config, tmp_path / "run", "sft", say=said)
    assert starting.begun_from(run)[0]["sha256"] == sha
    assert any(line.startswith("seed 0 goes on from SFT of old") for line in said)
    assert same(starting.policy(run, 0), yesterday.folder.sft(0) / "best")
    # Another starting point is another run.
    with pytest.raises(RunError, match=r"another configuration \(sft\.from\.run: saved "):
        open_run(tmp_path / "run", mini(*NEWER, f"sft.from={trained.folder.path}"))


def test_each_seed_begins_at_its_twin(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"has no sft of seed 1, .*; trained are sft \(seed 0\), dpo_sirius \(seed 0\)"):
        begin(mini(*NEWER, "seeds=[0, 1]", f"sft.from={yesterday.folder.path}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    old, live = tmp_path / "old", tmp_path / "live"
    shutil.copytree(yesterday.folder.path, old)
    live.symlink_to(old)
    begin(mini(*NEWER, f"sft.from={live}"), tmp_path / "run")
    begin(mini("seeds=[0, 1]", "arms=[dpo_sirius, softmax_dpo]"), old, "sft")
    live.unlink()
    live.symlink_to(yesterday.folder.path)  # without seed 1; the run began elsewhere
    run = begin(mini(*NEWER, "seeds=[0, 1]", f"sft.from={live}"), tmp_path / "run")
    assert same(starting.policy(run, 1), old / "sft/s1/best") and not same(starting.policy(run, 1), old / "sft/s0/best")


@pytest.mark.slow
def test_seeds_trained_apart_keep_what_they_began_from(mini: Mini, tmp_path: Path) -> None:
    few = ("arms=[softmax_ref_free]", "align.epochs=1", "evaluation.generation_rows=0", "backbone.pretrain=null",
           "evaluation.baseline=sft")  # fmt: skip
    old = begin(mini(*few, "seeds=[0, 1]"), tmp_path / "old", "sft")
    parts = []
    for seed in (0, 1):
        config = mini(*few, f"seeds=[{seed}]", f"sft.from={old.folder.path}")
        parts.append(begin(config, tmp_path / f"s{seed}", "sft", "align", "evaluate").folder.path)
    merged = Run(merge_runs(parts, tmp_path / "all"), Config())
    hashes = {seed: about["sha256"] for seed, about in starting.begun_from(merged).items()}
    assert set(hashes) == {0, 1} and hashes[0] != hashes[1]


@pytest.mark.parametrize(
    ("override", "error", "message"),
    [
        ("sft.from={old} backbone.tiny.hidden_size=20", ConfigError,
         r"sft\.from: .* was made with backbone\.tiny: .*'hidden_size': 16, .* this run has .*'hidden_size': 20"),
        ("align.from={old} prompts.slate=false", ConfigError,
         r"align\.from: .* was made with prompts\.slate: True, this run has False: set the same"),
        ("sft.from={old} sft.epochs=0 prompts.slate=false", ConfigError,
         r"sft\.from: .* was made with prompts\.slate: True, this run has False: set the same"),
        ("sft.from={{run: {old}, method: simpo}}", RunError, r"sft\.from: .* has no simpo of seed 0"),
        ("sft.from={old}/data", RunError, r"sft\.from: .*/data: not a run folder"),
        ("sft.from=run", ConfigError, r"sft\.from: .*/run is this run itself"),
    ],
)  # fmt: skip
def test_what_cannot_be_begun_from(
    yesterday: Run, mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    override: str, error: type[Exception], message: str,
) -> None:  # fmt: skip
    """And leaves no folder."""
    monkeypatch.chdir(tmp_path)
    place = override.format(old=yesterday.folder.path)
    parts = place.split(" ") if "backbone" in place or "prompts" in place else [place]
    config = mini(*NEWER, *parts)
    with pytest.raises(error, match=message) as caught:
        begin(config, tmp_path / "run")
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_sft_may_learn_other_prompts(yesterday: Run, mini: Mini, tmp_path: Path) -> None:
    begin(mini(*NEWER, "prompts.slate=false", f"sft.from={yesterday.folder.path}"), tmp_path / "run")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("sft.from=a", "align.from=b"), r"sft\.from, align\.from: alignment begins at the SFT that is trained"),
        (("sft.from=a", "arms=[]", "methods=[ease]"), r"sft\.from: with arms: \[\] and methods nothing begins there"),
        (("align.from={run: a, method: dpo}", "prompts.slate=false", "arms=[{loss: dpo, negatives_from: on_policy}]"),
         r"arms\.0 \(dpo\): negatives_from on_policy is compared with where its training begins"),
        (("sft.from={run: a, methods: dpo}",), r"unknown key 'sft\.from\.methods', did you mean 'sft\.from\.method'"),
        (("sft.epochs=0",), r"sft\.epochs: 0 measures what sft\.from names, and nothing is named"),
        (("backbone.pretrain.from=a",), r"unknown key 'backbone\.pretrain\.from'"),
    ],
)  # fmt: skip
def test_configurations_that_contradict_themselves(mini: Mini, overrides: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        mini(*overrides)


def test_the_key_survives_the_file(mini: Mini, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = mini("sft.from=runs/live", "methods=[tallrec]", "evaluation.baseline=sft")
    assert config.sft.start is not None and config.sft.start.run == str(tmp_path / "runs/live")
    assert yaml.safe_load(config.to_yaml())["sft"]["from"] == {"run": str(tmp_path / "runs/live"), "method": None}
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.fixture
def logged(tmp_path: Path) -> tuple[str, ...]:
    """Overrides for one log, whose users are split by a seed."""
    world = SOURCES["simulated"](None, seed=1, n_items=80, n_users=60, events_per_user=14)
    (tmp_path / "log").mkdir()
    world.events.write_csv(tmp_path / "log/interactions.csv")
    world.items.write_csv(tmp_path / "log/items.csv")
    return (*FEW, "data.source=table", "data.options={}", f"data.input={tmp_path / 'log'}", "backbone.pretrain=null")


def test_rows_that_the_old_run_was_trained_on_are_counted(mini: Mini, tmp_path: Path, logged: tuple[str, ...]) -> None:
    """By hand, row by row: the same events, split by another seed."""
    said: list[str] = []
    yesterday = begin(mini(*logged), tmp_path / "old", "sft")
    config = mini(*logged, "data.split={seed: 4}", f"sft.from={yesterday.folder.path}")
    run = begin(config, tmp_path / "run", "sft", "align", "evaluate", say=said)
    old, new = yesterday.dataset, run.dataset
    last: dict[tuple[str, str], int] = {}
    for row in old.examples("train").iter_rows(named=True):
        for item in [*row["history"], row["target"]]:
            key = row["user_id"], old.items["item_id"][item]
            last[key] = max(last.get(key, row["timestamp"]), row["timestamp"])
    counted = {}
    for split in ("val", "test"):
        rows = new.examples(split)
        keys = [(user, new.items["item_id"][item]) for user, item in zip(rows["user_id"], rows["target"], strict=True)]
        met = [key in last and time <= last[key] for key, time in zip(keys, rows["timestamp"], strict=True)]
        counted[split] = {"rows": rows.height, "seen": sum(met), "unknown": 0}
    assert 0 < counted["test"]["seen"] < counted["test"]["rows"]
    assert starting.begun_from(run)[0]["trained_on"] == counted
    seen, rows = counted["test"]["seen"], counted["test"]["rows"]
    words = f"LEAK: of {rows} test rows, {seen} have a target that seed 0's starting model was trained on"
    assert any(line.startswith(words) for line in said)
    assert any(note.startswith(words) for note in collect(run)["notes"])
    assert {row[:2]: row[2] for row in starting.trained_on(yesterday).iter_rows()} == last
    # What the next run begins from has seen the rows of both.
    pairs, first = ({row[:2] for row in starting.trained_on(one).iter_rows()} for one in (run, yesterday))
    own = set(new.examples("train")["user_id"])
    assert first < pairs and {user for user, _ in pairs - first} <= own


def test_what_came_later_was_not_seen() -> None:
    def trained(*rows: tuple[str, str, int | None]) -> pl.DataFrame:
        return pl.DataFrame(rows, schema={"user_id": pl.String, "item_id": pl.String, "until": pl.Int64}, orient="row")

    class Data:
        items = pl.DataFrame({"item": [0, 1], "item_id": ["a", "b"]}, schema={"item": pl.Int32, "item_id": pl.String})

        def examples(self, split: str) -> pl.DataFrame:
            rows = [("u", 0, 5), ("u", 0, 9), ("v", 1, 5), (None, 1, 5)] if split == "test" else [("u", 1, None)]
            schema: Any = {"user_id": pl.String, "target": pl.Int32, "timestamp": pl.Int64}
            return pl.DataFrame(rows, schema=schema, orient="row")

    data: Any = Data()
    # Bought at 5 and again at 9; the old rows end at 5.
    seen = starting.seen_rows(trained(("u", "a", 5), ("v", "a", 9)), data)
    assert seen["test"] == {"rows": 4, "seen": 1, "unknown": 1} and seen["val"]["seen"] == 0
    # Without times nothing excuses a row.
    assert starting.seen_rows(trained(("u", "a", None), ("u", "b", 3)), data)["test"]["seen"] == 2
    assert starting.seen_rows(trained(("u", "b", 3)), data)["val"]["seen"] == 1


@pytest.mark.slow
def test_an_adapter_goes_on_and_another_rank_is_refused(
    mini: Mini, tmp_path: Path, tokenizer: Any, tiny_llama: Callable[..., Any]
) -> None:
    model = tmp_path / "model"
    tiny_llama(tokenizer, max_position_embeddings=1024).save_pretrained(model)
    tokenizer.save_pretrained(model)
    few = (*FEW, f"backbone.name={model}", "sft.examples_per_epoch=128")
    old = begin(mini(*few, "backbone.lora={rank: 2}"), tmp_path / "old", "sft")
    run = begin(
        mini(*few, "backbone.lora={rank: 2}", "data.seed=4", f"sft.from={old.folder.path}"), tmp_path / "run", "sft"
    )
    by_hand = naive_validation(run, old.folder.sft(0) / "best")
    np.testing.assert_allclose(
        np.concatenate(read_held_out(run.folder.sft(0) / "held_out")[0].logp_R), np.concatenate(by_hand), atol=1e-4
    )
    assert not same(run.folder.sft(0) / "best", old.folder.sft(0) / "best")
    with pytest.raises(ConfigError, match=r"was made with backbone\.lora: \{'rank': 2, .*this run has \{'rank': 3"):
        begin(mini(*few, "backbone.lora={rank: 3}", f"sft.from={old.folder.path}"), tmp_path / "other")
