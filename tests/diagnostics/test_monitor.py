"""RewardHackingMonitor inside TRL's DPOTrainer, inside ours, by hand, and on a resume."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sirius_rec import SiriusConfig, SiriusTrainer
from sirius_rec.diagnostics.golden import fit_golden
from sirius_rec.diagnostics.monitor import RewardHackingMonitor
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.recipes.diagnosis import diagnose_log, write_curves_csv
from sirius_rec.scoring.scorer import score_rows
from sirius_rec.training.held_out import read_held_out
from sirius_rec.training.metrics_log import read_metrics
from sirius_rec.training.records import encode_records


def records(titles: tuple[str, ...], n: int, rejected: int = 4) -> list[dict[str, Any]]:
    rng = np.random.default_rng(n)
    out = []
    for number in range(n):
        order = [titles[i] for i in rng.permutation(len(titles))]
        out.append({"prompt": f"{order[0]}\nNext {number}:\n", "chosen": order[1], "rejected": order[2 : 2 + rejected]})
    return out


def train(monitor: RewardHackingMonitor, model: Any, tokenizer: Any, titles: tuple[str, ...], out: Path) -> None:
    config = SiriusConfig(
        output_dir=str(out), loss="dpo", max_steps=4, per_device_train_batch_size=4, learning_rate=1e-2,
        logging_steps=1, save_strategy="no", use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    SiriusTrainer(model, config, records(titles, 8), tokenizer, callbacks=[monitor]).train()


def test_inside_trl(tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl", reason="TRL is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    held_out = records(catalogue, 6)
    monitor = RewardHackingMonitor(held_out, tokenizer, every=2, beta=0.3, folder=tmp_path / "monitor")
    pairs = [{**r, "rejected": r["rejected"][0]} for r in records(catalogue, 12)]
    model = tiny_llama(tokenizer)
    trainer = trl.DPOTrainer(
        model=model,
        ref_model=tiny_llama(tokenizer),
        args=trl.DPOConfig(
            output_dir=str(tmp_path / "trl"), beta=0.3, max_steps=5, per_device_train_batch_size=4, learning_rate=1e-2,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, bf16=False,
        ),
        train_dataset=datasets.Dataset.from_list(pairs),
        processing_class=tokenizer,
        callbacks=[monitor],
    )  # fmt: skip
    trainer.train()
    assert [point["step"] for point in monitor.points] == [0, 2, 4, 5]
    first, last = monitor.points[0], monitor.points[-1]
    assert first["reward_margin"] == first["kl"] == first["logp_drift"] == 0.0
    assert last["kl"] > 0 and last["reward_margin"] != 0.0
    rows = encode_records(held_out, Encoder(tokenizer))
    ours = score_rows(trainer.model, rows, Encoder(tokenizer).pad_id)
    assert last["hr@1"] == pytest.approx(np.mean([row[0] > row[1:].max() for row in ours]))
    assert last["logp_drift"] == pytest.approx(np.mean([row[0] for row in ours]) - first["logp_positive"], abs=1e-4)
    assert [line["step"] for line in read_metrics(tmp_path / "monitor" / "metrics.jsonl")] == [0, 2, 4, 5]
    kept = read_held_out(tmp_path / "monitor" / "held_out")
    assert all(map(np.array_equal, kept[-1].logp_R, ours))
    assert monitor.onset().looks == 4 and monitor.golden_fit().n == 3


def test_evidence_by_hand(tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]) -> None:
    """Margins of the DPO reward from the same log-probs in plain loops."""
    held_out = [*records(catalogue, 5), *records(catalogue, 3, rejected=2)]
    monitor = RewardHackingMonitor(
        held_out, tokenizer, beta=0.5, popularity={title: n for n, title in enumerate(catalogue)}, generation_rows=4
    )
    reference = monitor.evaluate(tiny_llama(tokenizer), 0, 0.0)
    point = monitor.evaluate(tiny_llama(tokenizer, seed=1), 7, 0.5)
    assert reference["reward_margin"] == 0.0 and point["step"] == 7
    margins: dict[bool, list[float]] = {True: [], False: []}
    policy, start = monitor.snapshots[1].logp_R, monitor.snapshots[0].logp_R
    for r, (row, ref) in enumerate(zip(policy, start, strict=True)):
        reward = 0.5 * (row.astype(float) - ref)
        for c in range(1, len(row)):
            margins[bool(monitor._sampled_RC[r, c])].append(reward[0] - reward[c])
    assert len(margins[True]) == 8
    assert point["reward_margin"] == pytest.approx(np.mean(margins[True]))
    assert point["reward_margin_unsampled"] == pytest.approx(np.mean(margins[False]))
    assert 0 <= point["top_popularity"] <= 9 and 0 <= point["valid_ratio"] <= 1


def test_tables(tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path) -> None:
    monitor = RewardHackingMonitor(records(catalogue, 6), tokenizer, every=1)
    train(monitor, tiny_llama(tokenizer), tokenizer, catalogue, tmp_path / "run")
    monitor.write_csv(tmp_path / "m.csv")
    monitor.write_json(tmp_path / "m.json")
    with (tmp_path / "m.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [int(line["step"]) for line in lines] == [0, 1, 2, 3, 4]
    assert float(lines[-1]["kl"]) == pytest.approx(monitor.points[-1]["kl"])
    content = json.loads((tmp_path / "m.json").read_text())
    assert content["onset"]["looks"] == 5 and content["golden_fit"]["n"] == 4


def test_a_resumed_training_keeps_its_reference(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    held_out = records(catalogue, 6)
    first = RewardHackingMonitor(held_out, tokenizer, every=2, folder=tmp_path / "m")
    train(first, tiny_llama(tokenizer), tokenizer, catalogue, tmp_path / "run")

    class State:
        global_step, epoch, is_world_process_zero = 2, 0.5, True

    class Other(State):
        is_world_process_zero = False

    written = (tmp_path / "m" / "metrics.jsonl").read_text()
    other = RewardHackingMonitor(held_out, tokenizer, every=2, folder=tmp_path / "m")
    other.on_train_begin(None, Other, None, model=tiny_llama(tokenizer, seed=2))
    # of several processes one cuts the logs back; two at once would lose them
    assert (tmp_path / "m" / "metrics.jsonl").read_text() == written

    again = RewardHackingMonitor(held_out, tokenizer, every=2, folder=tmp_path / "m")
    again.on_train_begin(None, State, None, model=tiny_llama(tokenizer, seed=2))
    assert [point["step"] for point in again.points] == [0, 2]
    assert again.points == first.points[:2]
    assert all(map(np.array_equal, again.reference, first.snapshots[0].logp_R))
    alone = RewardHackingMonitor(held_out, tokenizer)
    with pytest.raises(ConfigError, match="goes on at step 2, so the reference is unknown"):
        alone.on_train_begin(None, State, None, model=tiny_llama(tokenizer))


def test_the_command_reads_what_the_monitor_was_given(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    """Users, and a reference that is not the first evaluation: `sirius diagnose FOLDER` says what the monitor says."""
    held_out, encoder = records(catalogue, 12), Encoder(tokenizer)
    reference = score_rows(tiny_llama(tokenizer, seed=5), encode_records(held_out, encoder), encoder.pad_id)
    users = ["heavy"] * 8 + ["a", "b", "c", "d"]
    given = {"every": 1, "users": users, "ref_logps": reference}
    monitor = RewardHackingMonitor(held_out, tokenizer, folder=tmp_path / "m", **given)
    train(monitor, tiny_llama(tokenizer), tokenizer, catalogue, tmp_path / "run")
    found = diagnose_log(tmp_path / "m")
    assert monitor.points[0]["distance"] > 0.1  # far from the reference at its start
    assert found["onset"]["m"]["all"] == json.loads(json.dumps(monitor.onset().as_dict()))
    assert found["golden_fit"]["m"] == json.loads(json.dumps(monitor.golden_fit().as_dict()))
    start = np.mean([row[0] > row[1:].max() for row in reference])
    gains = [point["hr@1"] - start for point in monitor.points]
    by_hand = fit_golden([point["distance"] for point in monitor.points], gains)
    assert monitor.golden_fit() == by_hand and by_hand.n == 5
    write_curves_csv(tmp_path / "m", tmp_path / "c.csv")
    with (tmp_path / "c.csv").open() as file:
        assert [float(line["kl"]) for line in csv.DictReader(file)] == pytest.approx([p["kl"] for p in monitor.points])

    class State:
        global_step, epoch, is_world_process_zero = 2, 0.5, True

    again = RewardHackingMonitor(held_out, tokenizer, every=1, folder=tmp_path / "m")
    again.on_train_begin(None, State, None, model=tiny_llama(tokenizer, seed=2))
    assert again.reference is not None and all(map(np.array_equal, again.reference, reference))
    assert len(set(np.asarray(again.users).tolist())) == 5


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"reward": "ppo"}, ConfigError, "unknown reward 'ppo'"),
        ({"every": 0}, ConfigError, "every must be at least 1"),
        ({"beta": 0.0}, ConfigError, "beta positive"),
        ({"negatives": 4}, ConfigError, "between 1 and 3"),
        ({"users": [1, 2]}, DataError, "2 users for 3 records"),
        ({"ref_logps": [np.zeros(5)] * 2}, DataError, "ref_logps: 2 entries for 3 records"),
        ({"ref_logps": [np.zeros(4)] * 3}, DataError, r"ref_logps: record 0 has \[4\] log-probs for 5 completions"),
    ],
)
def test_bad_options(
    options: dict[str, Any], error: type[Exception], message: str, tokenizer: Any, catalogue: tuple[str, ...]
) -> None:
    with pytest.raises(error, match=message):
        RewardHackingMonitor(records(catalogue, 3), tokenizer, **options)


def test_a_record_with_one_rejected_text_is_named(tokenizer: Any, catalogue: tuple[str, ...]) -> None:
    held_out = [*records(catalogue, 2), *records(catalogue, 1, rejected=1)]
    with pytest.raises(ConfigError, match="record 2 has 1 rejected texts: the monitor needs two or more"):
        RewardHackingMonitor(held_out, tokenizer)


@pytest.mark.parametrize("frame", ["pandas", "polars"])
def test_records_of_a_data_frame(frame: str, tokenizer: Any, catalogue: tuple[str, ...]) -> None:
    held_out = records(catalogue, 4)
    table = pytest.importorskip(frame).DataFrame(held_out)
    assert RewardHackingMonitor(table, tokenizer).rows == RewardHackingMonitor(held_out, tokenizer).rows


def test_users_are_the_records_own(tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...]) -> None:
    """The onset is tested by user where records say whose they are: as many users flip as there are."""
    names = ["heavy"] * 8 + ["a", "b", "c", "d"]
    held_out = [{**record, "user": user} for record, user in zip(records(catalogue, 12), names, strict=True)]
    asked = RewardHackingMonitor(records(catalogue, 12), tokenizer, users=names)
    own = RewardHackingMonitor(held_out, tokenizer)
    alone = RewardHackingMonitor(held_out, tokenizer, users=list(range(12)))
    for monitor in (asked, own, alone):
        monitor.evaluate(tiny_llama(tokenizer), 0, 0.0)
        monitor.evaluate(tiny_llama(tokenizer, seed=1), 5, 1.0)
    assert own.onset() == asked.onset() != alone.onset()
    assert RewardHackingMonitor(records(catalogue, 3), tokenizer).users is None
    with pytest.raises(DataError, match="record 1 has no 'user', others have"):
        RewardHackingMonitor([held_out[0], {**held_out[1], "user": float("nan")}], tokenizer)


def test_reward_and_beta_are_the_trainers(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    """Nothing given: the margin is the one that SiriusTrainer logs, whatever its loss."""

    class State:
        global_step, epoch, is_world_process_zero = 0, 0.0, True

    class DPOConfig:
        beta = 0.3

    held_out = records(catalogue, 3)
    monitor = RewardHackingMonitor(held_out, tokenizer)
    assert (monitor.reward, monitor.beta) == ("dpo", 1.0)
    model, given = tiny_llama(tokenizer), {"output_dir": str(tmp_path), "use_cpu": True}
    for args, scale in (
        (SiriusConfig(loss="simpo", beta=2.5, **given), ("simpo", 2.5)),
        (SiriusConfig(loss="sft", **given), ("simpo_no_ln", 1.0)),
        (DPOConfig(), ("dpo", 0.3)),
        (None, ("dpo", 1.0)),
    ):
        monitor.on_train_begin(args, State, None, model=model)
        assert (monitor.reward, monitor.beta) == scale
    own = RewardHackingMonitor(held_out, tokenizer, beta=0.1)
    with pytest.warns(UserWarning, match=r"monitor: beta is 0\.1, but the trainer's 1\.0: margins") as caught:
        own.on_train_begin(SiriusConfig(**given), State, None, model=model)
    assert len(caught) == 1 and own.beta == 0.1


def test_an_own_loop_writes_the_folder(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    held_out = records(catalogue, 6)
    (tmp_path / "m" / "held_out").mkdir(parents=True)
    (tmp_path / "m" / "metrics.jsonl").write_text('{"kind": "eval", "step": 9}\n')  # of an earlier loop
    monitor = RewardHackingMonitor(held_out, tokenizer, folder=tmp_path / "m")
    for step in (0, 3, 6):
        monitor.evaluate(tiny_llama(tokenizer, seed=step), step, step / 6)
    lines = read_metrics(tmp_path / "m" / "metrics.jsonl")
    assert [{k: v for k, v in line.items() if k != "kind"} for line in lines] == monitor.points
    assert diagnose_log(tmp_path / "m")["onset"]["m"]["all"]["looks"] == 3
    with pytest.raises(ConfigError, match="step 6 comes after step 6, which is evaluated: steps increase"):
        monitor.evaluate(tiny_llama(tokenizer), 6, 1.0)

    # Begun again at step 6 after a kill: what was evaluated before stays, and the reference with it.
    again = RewardHackingMonitor(held_out, tokenizer, folder=tmp_path / "m")
    again.evaluate(tiny_llama(tokenizer, seed=6), 6, 1.0)
    assert again.points == monitor.points


def test_a_second_training_begins_anew(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    """A cell of a notebook that is run again: points, folder and reference are the second model's."""
    folders = (None, tmp_path / "m")
    for folder in folders:
        monitor = RewardHackingMonitor(records(catalogue, 6), tokenizer, every=2, folder=folder)
        for seed in (0, 1):
            train(monitor, tiny_llama(tokenizer, seed=seed), tokenizer, catalogue, tmp_path / f"run{seed}")
        assert [point["step"] for point in monitor.points] == [0, 2, 4]
        assert monitor.points[0]["kl"] == 0.0 and monitor.onset().looks == 3
    assert [line["step"] for line in read_metrics(tmp_path / "m" / "metrics.jsonl")] == [0, 2, 4]


def test_one_monitor_goes_on_with_its_training(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    """Resumed at step 2 in the same process: what came later is evaluated again, the reference stays."""

    class State:
        global_step, epoch, is_world_process_zero = 2, 0.5, True

    monitor = RewardHackingMonitor(records(catalogue, 6), tokenizer, every=2)
    train(monitor, tiny_llama(tokenizer), tokenizer, catalogue, tmp_path / "run")
    first = monitor.points[:2]
    monitor.on_train_begin(None, State, None, model=tiny_llama(tokenizer, seed=2))
    assert monitor.points == first


def test_the_trainers_own_folder_and_a_beta_that_is_not_understood_are_said(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    """The trainer logs there, too, and a training that begins anew would remove it."""

    class State:
        global_step, epoch, is_world_process_zero = 0, 0.0, True

    @dataclass
    class CPOConfig:
        output_dir: str
        beta: float = 0.1

    monitor = RewardHackingMonitor(records(catalogue, 3), tokenizer, folder=tmp_path / "out")
    with pytest.raises(ConfigError, match="is the trainer's output_dir, which writes there: name another"):
        monitor.on_train_begin(CPOConfig(str(tmp_path / "out")), State(), None, model=tiny_llama(tokenizer))
    with pytest.warns(UserWarning, match=r"CPOConfig has a beta of its own \(0.1\).*measured with 1.0"):
        monitor.on_train_begin(CPOConfig(str(tmp_path / "other")), State(), None, model=tiny_llama(tokenizer))
    given = RewardHackingMonitor(records(catalogue, 3), tokenizer, beta=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        given.on_train_begin(CPOConfig(str(tmp_path / "other")), State(), None, model=tiny_llama(tokenizer))


def test_a_point_whose_snapshot_a_kill_prevented_is_measured_again(
    tokenizer: Any, tiny_llama: Callable[..., Any], catalogue: tuple[str, ...], tmp_path: Path
) -> None:
    first = RewardHackingMonitor(records(catalogue, 3), tokenizer, folder=tmp_path)
    for step in (0, 5):
        first.evaluate(tiny_llama(tokenizer, seed=step), step, float(step))
    last = max((tmp_path / "held_out").glob("*5*"), key=lambda path: path.name)
    last.unlink()
    again = RewardHackingMonitor(records(catalogue, 3), tokenizer, folder=tmp_path)
    again.evaluate(tiny_llama(tokenizer, seed=5), 6, 6.0)
    assert [point["step"] for point in again.points] == [0, 6]
    assert [snapshot.step for snapshot in again.snapshots] == [0, 6]
