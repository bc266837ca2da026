"""Two CPU processes (gloo) through the real command: the losses, weights and scores of one process, each row once.

Losses and log-probs agree within 1e-4, weights within 1e-5: sums are taken in another order. The last step of an epoch
has 18 of 32 examples, so that one process's last micro-batch holds none that count.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from safetensors.torch import load_file

from sirius_rec.config import Config
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.recipes.story import STAGES, run_stages
from sirius_rec.training.metrics_log import read_metrics

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"
WORKER = Path(__file__).with_name("fsdp2_on_cpu.py")
TREES = Path(__file__).with_name("trees_in_processes.py")
SMALL = ["backbone.pretrain=null", "arms=[dpo_sirius]", "evaluation.generation_rows=4", "evaluation.baseline=sft"]
METHODS = (
    "[{method: sasrec, options: {epochs: 1, dimension: 8, length: 5}}, {method: llara, options: {curriculum: 0.6}}]"
)
SMALL.append(f"methods={METHODS}")
UNEVEN = ["align.examples_per_epoch=50", "align.micro_batch_size=8", "align.save_steps=null", "sft.micro_batch_size=16"]


def torchrun(*command: str) -> subprocess.CompletedProcess[str]:
    """The command in two processes."""
    free = {k: v for k, v in os.environ.items() if not k.startswith(("ACCELERATE_", "FSDP_"))}
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *command],
        capture_output=True, text=True, check=False, timeout=900, env={**free, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def launched(*command: str) -> str:
    """What the command says in two processes."""
    done = torchrun(*command)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def recipe(*command: str, out: Path) -> str:
    return launched(*command, str(MINI), *SMALL, *UNEVEN, "--out", str(out))


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The run of a single process."""

    config: Config = load_config(MINI, [*SMALL, *UNEVEN])
    run = open_run(tmp_path_factory.mktemp("one") / "run", config)
    run_stages(Run(run, config), STAGES, lambda text: None)
    return run


def curve(folder: Path) -> list[dict[str, Any]]:
    lines = read_metrics(folder / "metrics.jsonl")
    # An epoch's fraction counts micro-batches, of which several processes have others.
    return [{k: v for k, v in line.items() if k not in ("tokens_per_second", "epoch")} for line in lines]


def assert_same_training(run: RunFolder, other: RunFolder, *methods: str) -> None:
    def folders(r: RunFolder) -> list[Path]:
        return [r.sft(0), r.arm("dpo_sirius", 0), *(r.method(method, 0) for method in methods)]

    for folder, alone in zip(folders(run), folders(other), strict=True):
        ours, theirs = curve(folder), curve(alone)
        assert len(ours) == len(theirs) > 4
        for mine, their in zip(ours, theirs, strict=True):
            if abs(their.get("reward_margin", 1.0)) < 1e-4:
                # Policy and reference are one at first: which of two equal rewards is larger, rounding says.
                mine, their = ({k: v for k, v in line.items() if "misordered" not in k} for line in (mine, their))
            assert mine == pytest.approx(their, abs=1e-4)
        for kind in ("best", "last"):
            mine, their = (load_file(f / kind / "model.safetensors") for f in (folder, alone))
            # FSDP writes a tied output layer out a second time.
            assert set(mine) - set(their) <= {"lm_head.weight"}
            if "lm_head.weight" in mine:
                assert mine["lm_head.weight"].equal(mine["model.embed_tokens.weight"])
            assert max(float((mine[name] - their[name]).abs().max()) for name in their) <= 1e-5
    steps = [line["loss"] for line in curve(run.arm("dpo_sirius", 0)) if line["kind"] == "train"]
    assert len(steps) == 4
    assert len(set(steps)) == 4


def assert_same_reference(run: RunFolder, other: RunFolder) -> None:
    with np.load(run.reference(0)) as mine, np.load(other.reference(0)) as their:
        for split in ("train", "val"):
            np.testing.assert_array_equal(mine[f"{split}_length"], their[f"{split}_length"])
            np.testing.assert_allclose(mine[f"{split}_logp"], their[f"{split}_logp"], atol=1e-4)


@pytest.mark.slow
def test_ddp_is_one_process(one: RunFolder, tmp_path: Path) -> None:
    said = recipe("-m", "sirius_rec", "run", out=tmp_path / "run")
    two = RunFolder(tmp_path / "run")
    assert_same_training(two, one, "llara")
    assert_same_reference(two, one)
    names = sorted(path.name for path in one.scores.iterdir())
    assert sorted(path.name for path in two.scores.iterdir()) == names
    for name in names:
        mine, their = (pl.read_parquet(r.scores / name) for r in (two, one))
        assert mine["row_id"].to_list() == their["row_id"].to_list()
        assert mine["candidates"].to_list() == their["candidates"].to_list()
        np.testing.assert_allclose(mine["scores"].explode(), their["scores"].explode(), atol=1e-4)
    # Whatever is said is said once, and the page is there.
    lines = said.splitlines()
    assert sum(line.startswith("report:") for line in lines) == 1
    assert sum("] dpo_sirius s0 done" in line for line in lines) == 1
    assert json.loads(two.results.read_text())["summary"]
    assert (two.path / "report.html").is_file()


@pytest.mark.slow
def test_fsdp2_is_one_process(one: RunFolder, tmp_path: Path) -> None:
    said = launched(str(WORKER), "align", str(MINI), *SMALL, *UNEVEN, "methods=[]", "--out", str(tmp_path / "run"))
    assert said.count("sharded: DTensor\n") == said.count("sharded:") == 4
    two = RunFolder(tmp_path / "run")
    assert_same_training(two, one)
    assert_same_reference(two, one)
    assert not list(two.path.rglob("pytorch_model_fsdp*"))


@pytest.mark.parametrize(
    ("there", "words"),
    [
        ("nothing", "methods: llara saves the whole model of one process"),
        ("a file", "is not a run folder"),
        ("a lock", "another process is working in this run folder"),
    ],
)
@pytest.mark.slow
def test_what_the_main_process_refuses_ends_all_in_one_line(there: str, words: str, tmp_path: Path) -> None:
    """The others waited for a process that had gone, and died of that with a traceback."""
    options = [str(MINI), *SMALL, "--out", str(tmp_path / "run")]
    with ExitStack() as held:
        if there == "a file":
            (tmp_path / "run").mkdir()
            (tmp_path / "run" / "notes.txt").touch()
        elif there == "a lock":
            held.enter_context(open_run(tmp_path / "run", load_config(MINI, SMALL)).lock())
        done = torchrun(str(WORKER), "align", *options)
    assert done.returncode != 0
    assert done.stderr.count("sirius: ") == done.stderr.count(words) == 1
    assert "[rank" not in done.stderr


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any, Any], Path]:
    """users(tokenizer, model) → a folder for trees_in_processes.py; what one process makes of it is alone.npz."""
    folder = tmp_path_factory.mktemp("users")

    def made(tokenizer: Any, model: Any) -> Path:
        if (folder / "alone.npz").is_file():
            return folder
        for part in (tokenizer, model):
            part.save_pretrained(folder / "model")
        rng = np.random.default_rng(0)
        records = []
        for user in range(6):  # 23 rows, so that the last step of an epoch has 7
            titles = [f"Artist {i}" for i in rng.permutation(30).tolist()]
            for n in range(1, 5 - (user == 5)):
                slate = titles[n : n + 5]
                prompt = "\n".join([*titles[:n], ""])
                records.append({"user": user, "prompt": prompt, "chosen": slate[0], "rejected": slate[1:]})
        (folder / "records.json").write_text(json.dumps(records))
        trees = runpy.run_path(str(TREES))
        for way in trees["WAYS"]:
            np.savez(folder / f"{way}.npz", **trees["train"](folder, 8, mined=way))
        np.savez(folder / "alone.npz", **trees["train"](folder, 8))
        return folder

    return made


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "parameters"), [("ddp", "Parameter"), ("fsdp2", "DTensor")])
def test_trees_of_whole_users_are_those_of_one_process(
    users: Callable[..., Path], tokenizer: Any, tiny_llama: Callable[..., Any], kind: str, parameters: str
) -> None:
    """Also where the head goes in chunks, where layers are computed again in the backward pass, and where each process
    takes negatives for its own rows from the policy."""
    folder = users(tokenizer, tiny_llama(tokenizer))
    said = launched(str(TREES), str(folder), kind)
    assert said.count("random trees: right\n") == (6 if kind == "ddp" else 0)
    assert said.count("searches: right\n") == (2 if kind == "ddp" else 0)
    with np.load(folder / "alone.npz") as alone:
        assert len(alone["losses"]) == 6
        assert len(np.unique(alone["losses"])) > 4
    for case in ("plain", "chunks", "checkpointing"):
        assert_same_weights(folder / f"{case}-{kind}.npz", folder / "alone.npz", parameters)
    for way in ("search", "exhaustive") if kind == "ddp" else ():
        assert_same_weights(folder / f"{way}-{kind}.npz", folder / f"{way}.npz", parameters)


def assert_same_weights(several: Path, one: Path, parameters: str) -> None:
    with np.load(several) as found, np.load(one) as alone:
        assert found["kinds"].tolist() == [parameters]
        np.testing.assert_allclose(found["losses"], alone["losses"], atol=1e-4, rtol=0)
        assert set(found) == set(alone)
        for name in set(alone) - {"losses", "kinds"}:
            # AdamW moves a weight whose gradient is mere rounding as far as any other.
            np.testing.assert_allclose(found[name], alone[name], atol=1e-4, rtol=0, err_msg=name)
            assert np.mean(np.abs(found[name] - alone[name]) > 1e-5) <= 0.002, name


def test_jobs_side_by_side_are_said_to_be_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    from sirius_rec.recipes import schedule

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    done: list[str] = []
    lines: list[str] = []
    jobs = [schedule.Job("shared", done.append, ("shared",)), schedule.Job("main", done.append, ("main",), alone=True)]
    schedule.run_jobs(jobs, workers=4, threads=None, log=lines.append)
    assert done == ["shared"]
    assert lines[0] == "compute.jobs: 4 is for one process: 2 processes do one job after the other, together"


@pytest.mark.parametrize(("rows", "processes"), [(1, 2), (5, 2), (7, 3)])
def test_shares_of_scoring_are_whole(
    monkeypatch: pytest.MonkeyPatch, tiny_llama: Callable[..., Any], tokenizer: Any, rows: int, processes: int
) -> None:
    """Every process's share, put together by hand: each row once, and as many forward passes in each process."""
    from sirius_rec.scoring import scorer
    from sirius_rec.scoring.rows import PromptCompletions

    model = tiny_llama(tokenizer)
    texts = [PromptCompletions([5] * (3 + r), [[7, 2], [8, 9, 2]]) for r in range(rows)]
    alone = scorer.score_rows(model, texts, 0, max_tokens=12)
    shares: list[dict[int, Any]] = []
    passes: list[int] = []
    original = scorer.logps
    monkeypatch.setattr(scorer, "from_all", lambda own, *rest: shares.append(own))
    monkeypatch.setattr(scorer, "logps", lambda *a: passes.append(1) or original(*a))
    counts = []
    for rank in range(processes):
        monkeypatch.setattr(scorer, "place_in_group", lambda rank=rank: (rank, processes))
        passes.clear()
        progress: list[int] = []
        scorer.score_rows(model, texts, 0, max_tokens=12, progress=progress.append)
        counts.append(len(passes))
        assert sum(progress) == rows
    assert len(set(counts)) == 1
    assert sorted(r for share in shares for r in share) == list(range(rows))
    for share in shares:
        for r, logp_C in share.items():
            np.testing.assert_allclose(logp_C, alone[r], atol=1e-5)
