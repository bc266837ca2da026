"""A run whose training is denied items and users: its numbers are of what is left, and its results say so."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.results import read_results
from sirius_rec.evaluation.tables import read_table
from sirius_rec.rankers.fusion import fit_apart
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import load_config, parse_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.methods.fusion import Fusion
from sirius_rec.recipes.methods.networks import validation
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import prepare_data

RAW: dict[str, Any] = {
    "name": "held",
    "data": {
        "source": "simulated", "options": {"n_items": 80, "n_users": 60, "events_per_user": 14},
        "window": {"max_history": 5, "min_history": 2}, "limits": {"train": 20},
        "hold_out": {"cold_items": 0.2, "train_users": 0.5},
        "slates": [{"size": 6}, {"protocol": "full", "splits": ["test"]}],
    },
    "arms": [],
    "methods": ["ease", "markov", {"method": "fusion", "options": {"of": ["ease", "markov"], "cold": True}}],
    "evaluation": {"baseline": "ease", "full_rows": 30, "retrieved": [{"retriever": "ease", "size": 20}]},
    "compute": {"device": "cpu", "threads": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("held")
    (folder / "c.yaml").write_text(yaml.safe_dump(RAW))
    result = CliRunner().invoke(cli.app, ["run", str(folder / "c.yaml"), "--out", str(folder / "run")])
    assert result.exit_code == 0, result.output
    return Run.open(folder / "run")


def test_what_users_had_in_dropped_rows_is_no_negative_of_the_policy(tmp_path: Path) -> None:
    data = {**RAW["data"], "window": {"max_history": 5, "min_history": 5}, "slates": [{"size": 6}]}
    arms = [{"loss": "dpo", "name": "dpo_policy", "negatives_from": "on_policy"}]
    tiny = {"hidden_size": 16, "layers": 1, "heads": 2, "intermediate_size": 24, "vocab_size": 300, "context": 256}
    raw = {**RAW, "data": data, "arms": arms, "methods": [], "prompts": {"slate": False}, "evaluation": {},
           "backbone": {"tiny": tiny, "pretrain": None}}  # fmt: skip
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    result = CliRunner().invoke(cli.app, ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, ConfigError)
    assert "arms (dpo_policy): negatives_from on_policy: data.hold_out dropped rows" in str(result.exception)


def had_by_user(run: Run) -> dict[str, set[int]]:
    """What each train user had, counted anew from the rows."""
    had: dict[str, set[int]] = {}
    for row in run.dataset.all_train_examples().iter_rows(named=True):
        had.setdefault(row["user_id"], set()).update([*row["history"], row["target"]])
    return had


def test_results_say_what_training_was_denied(run: Run) -> None:
    held, left = run.dataset.info["hold_out"], run.dataset.n_all_train
    (note,) = (note for note in read_results(run.folder.results)["notes"] if "data.hold_out" in note)
    assert note.startswith(
        f"data.hold_out: training met none of 16 cold items (of 80) and 24 of 48 users: {left} of "
        f"{left + held['train_rows_dropped']} train rows are left"
    )
    assert left > run.dataset.n_rows("train") == 20  # data.limits has a note of its own


@pytest.mark.parametrize("slates", ["test-uniform-6-s0", "test-full-80-s0", "test-retrieved_ease-20-s0"])
def test_what_is_unseen_and_popular_is_so_in_what_training_was_left(run: Run, slates: str) -> None:
    had = had_by_user(run)
    count_I = np.bincount([i for items in had.values() for i in items], minlength=80)
    cold = set(run.dataset.info["hold_out"]["items"])
    assert not count_I[list(cold)].any()
    rows = run.dataset.examples("test")[run.tested_rows(slates).tolist()]
    unseen = sum(int(count_I[target] == 0) for target in rows["target"].to_list())
    assert unseen >= sum(target in cold for target in rows["target"].to_list()) > 0
    beyond = json.loads(run.folder.results.read_text())["beyond"]["rows"]
    (popular,) = (row for row in beyond if (row["method"], row["slates"]) == ("popularity", slates))
    assert {bucket["name"]: bucket["n"] for bucket in popular["buckets"]}["unseen"] == unseen
    k = 1 if "uniform" in slates else 10
    bits = [
        -np.log2((count_I[item] + 1) / (len(had) + 1))
        for slate in run.slate_arrays(slates)[1]
        for item in slate[np.argsort(-count_I[slate], kind="stable")[:k]]
    ]
    assert popular["novelty"]["mean"] == pytest.approx(np.mean(bits))


def test_what_training_never_met_has_weights_of_its_own(run: Run, tmp_path: Path) -> None:
    """Fitted on validation as it is scored on test: each part less its mean over the warm items."""
    done = json.loads((run.folder.method("fusion", 0) / "done.json").read_text())
    cold_I = np.isin(np.arange(80), [*run.dataset.info["hold_out"]["items"]])
    cold_I |= ~np.isin(np.arange(80), [i for items in had_by_user(run).values() for i in items])
    assert done["weights"]["ease"] > 0 and done["offset"] != 0 and done["parameters"] == 5
    held_out, warm = validation(run), np.flatnonzero(~cold_I)  # fewer than there may be reference items: all of them
    rankers = {key: build_methods(run.config)[key].ranker(run, 0, "best") for key in ("ease", "markov")}

    def levels(histories: list[np.ndarray], key: str) -> np.ndarray:
        return np.array([np.mean(row) for row in rankers[key].score(histories, [warm] * len(histories))])

    above = [
        [row - level for row, level in zip(ranker.score(held_out.histories, held_out.candidates),
                                           levels(held_out.histories, key), strict=True)]
        for key, ranker in rankers.items()
    ]  # fmt: skip
    weights, own, offset = fit_apart(above, held_out.target.tolist(), [cold_I[slate] for slate in held_out.candidates])
    assert [done["weights"][key] for key in rankers] == pytest.approx(weights.tolist(), rel=1e-6)
    assert [done["cold"][key] for key in rankers] == pytest.approx(own.tolist(), rel=1e-6)
    assert done["offset"] == pytest.approx(offset, rel=1e-6)
    slates = "test-uniform-6-s0"
    ease, markov, fused = (
        read_table(run.folder.scores / f"{key}-s0-{slates}-best.parquet").frame["scores"].to_list()
        for key in ("ease", "markov", "fusion")
    )
    histories, candidates = run.slate_arrays(slates)
    level = {key: levels(histories, key) for key in rankers}
    for n, (slate, *parts, scores) in enumerate(zip(candidates, ease, markov, fused, strict=True)):
        cold, wanted = cold_I[slate], np.where(cold_I[slate], done["offset"], 0.0)
        for key, part in zip(("ease", "markov"), map(np.array, parts), strict=True):
            wanted += np.where(cold, done["cold"][key], done["weights"][key]) * (part - level[key][n])
        assert scores == pytest.approx(wanted.tolist(), abs=1e-6)


def test_new_items_need_new_items_on_validation(tmp_path: Path) -> None:
    data = {**RAW["data"], "hold_out": {"train_users": 0.9}, "limits": {}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**RAW, "data": data}))
    result = CliRunner().invoke(cli.app, ["run", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith("fusion: options.cold: no target of the ")
    assert str(result.exception).endswith("hold some out (data.hold_out.cold_items)")
    assert not (tmp_path / "run").exists()


def test_the_best_of_all_that_is_left_are_all_of_it(run: Run, tmp_path: Path) -> None:
    most = max(map(len, run.slate_arrays("test-full-80-s0")[1]))
    assert most < 80
    before = run.folder.config_file.read_bytes()
    asked = ["evaluate", str(run.folder.path), f"evaluation.retrieved=[{{retriever: ease, size: {most}}}]"]
    result = CliRunner().invoke(cli.app, asked)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception).startswith(f"evaluation.retrieved.0: the best {most} of at most {most} items are all")
    assert run.folder.config_file.read_bytes() == before


def test_a_mistyped_name_costs_no_data(tmp_path: Path) -> None:
    """Formulas are trained by nobody, so that the folder holds nothing but what was prepared."""
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**RAW, "methods": ["ease"]}))
    config = load_config(tmp_path / "c.yaml")
    folder = open_run(tmp_path / "run", config)
    prepare_data(config, folder, lambda line: None)
    result = CliRunner().invoke(cli.app, ["evaluate", str(folder.path), "evaluation.slates=[typo]"])
    assert isinstance(result.exception, ConfigError) and "no test slates 'typo'" in str(result.exception)
    assert (folder.data / "dataset.json").is_file()


def test_a_language_models_log_probs_have_their_level(run: Run) -> None:
    fused = {"method": "fusion", "options": {"of": ["ease", "zero_shot"], "cold": True}}
    methods = build_methods(parse_config({**RAW, "methods": ["ease", "zero_shot", fused]}, "c"))
    fusion = methods["fusion"]
    assert isinstance(fusion, Fusion) and fusion._cold(run).levelled == [True, False]


def test_a_fusion_has_no_level() -> None:
    inner = {"method": "fusion", "name": "inner", "options": {"of": ["ease", "markov"]}}
    outer = {"method": "fusion", "options": {"of": ["inner", "ease"], "cold": True}}
    with pytest.raises(ConfigError, match="'inner' is a fusion, whose scores have no level: with cold name its parts"):
        parse_config({**RAW, "methods": ["ease", "markov", inner, outer]}, "c")
