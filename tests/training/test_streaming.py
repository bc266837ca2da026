"""Records that are read as their steps come: the same training, resumed exactly, and nothing held."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec import SiriusTrainer
from sirius_rec.errors import ConfigError, DataError, PromptError
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.training import logp_shards, streaming
from sirius_rec.training.batching import POOL, StepLayout
from sirius_rec.training.logp_shards import LogpShards
from sirius_rec.training.records import PreferenceDataset, encode_records
from sirius_rec.training.streaming import EncodedRows, StreamedDataset

from .test_trainer import KillAt, Killed, assert_close, lines_of, weights

Build = Callable[..., SiriusTrainer]
World = Callable[..., list[dict[str, Any]]]


class Watched:
    """Records that remember which of them were read."""

    def __init__(self, records: list[dict[str, Any]]) -> None:
        self.records, self.read = records, list[int]()

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, number: int) -> dict[str, Any]:
        self.read.append(number)
        return self.records[number]


def streamed(rows: EncodedRows, **options: Any) -> StreamedDataset:
    return StreamedDataset(
        rows,
        **{
            "negatives": 2,
            "score_unsampled": 1,
            "seed": 0,
            "examples_per_epoch": None,
            "layout": StepLayout(2),
            **options,
        },
    )


@pytest.fixture
def rows(world: World, tokenizer: Any) -> EncodedRows:
    """So many that they make three pools of steps of two, the last one not whole."""
    return EncodedRows(world(5 * POOL + 3), Encoder(tokenizer))


def test_an_epoch_is_every_row_once_and_another_epoch_another_order(rows: EncodedRows) -> None:
    data = streamed(rows)
    first = [data[slot].row for slot in range(len(data))]
    data.set_epoch(1)
    second = [data[slot].row for slot in range(len(data))]
    assert set(first[: 2 * POOL]) != set(second[: 2 * POOL]), "the same rows come first"
    assert sorted(first) == sorted(second) == list(range(len(rows)))
    assert first != second


def test_epochs_of_fewer_examples_walk_through_all_rows(rows: EncodedRows) -> None:
    data, met = streamed(rows, examples_per_epoch=60), list[int]()
    for epoch in range(3):
        data.set_epoch(epoch)
        met += [data[slot].row for slot in range(len(data))]
    assert len(met) == 180 > len(rows) == len(set(met))
    assert len(set(met[: len(rows) // 60 * 60])) == len(rows) // 60 * 60


def test_any_slot_can_be_the_first_one(rows: EncodedRows) -> None:
    data = streamed(rows)
    whole = [data[slot] for slot in range(len(data))]
    for slot in (len(data) - 1, 2 * POOL + 1, 3):
        fresh = streamed(rows)
        assert fresh[slot].row == whole[slot].row
        assert fresh[slot].columns.tolist() == whole[slot].columns.tolist()


def test_draws_are_those_of_rows_that_are_held(rows: EncodedRows) -> None:
    """Of the same seed, epoch and row; and the positive is never among them twice."""
    data = streamed(rows, seed=4)
    held = PreferenceDataset(rows[:], negatives=2, score_unsampled=1, seed=4)
    for epoch in (0, 1):
        data.set_epoch(epoch)
        held.set_epoch(epoch)
        for slot in range(0, len(data), 7):
            draw = data[slot]
            expected = held.draw(draw.row)
            assert draw.columns.tolist() == expected.columns.tolist()
            assert draw.n_sampled == expected.n_sampled == 2


def test_rows_of_a_step_are_of_similar_length(rows: EncodedRows) -> None:
    """Prompts of one, two or three titles: in random pairs two of three would differ."""
    data = streamed(rows)
    sizes = [rows[data[slot].row].only(data[slot].columns.tolist()).packed_length for slot in range(len(data))]
    spread = np.mean([abs(a - b) for a, b in zip(sizes[::2], sizes[1::2], strict=False)])
    rng = np.random.default_rng(0)
    shuffled = rng.permutation(sizes)
    assert spread < 0.2 * np.mean(np.abs(shuffled[:-1:2] - shuffled[1::2]))


def test_steps_are_the_same_however_they_are_split(rows: EncodedRows) -> None:
    whole, split = streamed(rows, layout=StepLayout(8)), streamed(rows, layout=StepLayout(2, 2, 2))
    n = len(rows) // 8 * 8
    steps = [[sorted(data[slot].row for slot in range(at, at + 8)) for at in range(0, n, 8)] for data in (whole, split)]
    assert steps[0] == steps[1]
    assert [split[slot].weight for slot in range(len(rows), len(split))] == [0.0] * (len(split) - len(rows))


def test_only_the_pool_at_hand_is_read(world: World, tokenizer: Any) -> None:
    records = Watched(world(5 * POOL + 3))
    data = streamed(EncodedRows(records, Encoder(tokenizer)))
    [data[slot] for slot in range(2 * POOL)]
    assert len(records.read) == len(set(records.read)) == 2 * POOL
    assert len(data.rows._at_hand) == 2 * POOL


OPTIONS: dict[str, Any] = {
    "loss": "softmax_dpo_sirius", "num_train_epochs": 2, "per_device_train_batch_size": 12, "score_unsampled": "all",
}  # fmt: skip


def assert_trained_alike(build: Build, tmp_path: Path, **options: Any) -> None:
    """Whether the records are held or streamed."""
    held = build(output_dir=str(tmp_path / "held"), **options)
    held.train()
    stream = build(output_dir=str(tmp_path / "stream"), stream=True, **options)
    stream.train()
    assert stream.state.global_step == held.state.global_step == 2
    assert_close(weights(stream), weights(held), atol=2e-6)


@pytest.mark.parametrize("loss", ["softmax_dpo_sirius", "simpo_no_ln", "sft"])
def test_steps_of_all_records_train_the_same_weights(build: Build, tmp_path: Path, loss: str) -> None:
    """Where a step holds all rows, their order is nothing to it: streamed or held, the same gradients."""
    options = {**OPTIONS, "loss": loss}
    assert_trained_alike(build, tmp_path, **options)


def test_resumed_from_the_middle_of_an_epoch_equals_uninterrupted(build: Build, tmp_path: Path, world: World) -> None:
    """Saved at step 5 and killed before step 8: weights bit-equal, the log equal but for the speed."""
    options: dict[str, Any] = {
        "loss": "softmax_dpo_sirius", "stream": True, "examples_per_epoch": 8, "per_device_train_batch_size": 2,
        "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 5, "eval_strategy": "steps", "eval_steps": 5,
        "eval_dataset": world(5, seed=1),
    }  # fmt: skip
    whole = build(output_dir=str(tmp_path / "whole"), **options)
    whole.train()
    broken = build(output_dir=str(tmp_path / "broken"), callbacks=[KillAt(7)], **options)
    with pytest.raises(Killed):
        broken.train()
    (scored,) = (tmp_path / "broken" / "reference").glob("*.npy")
    before = scored.stat().st_mtime_ns
    resumed = build(output_dir=str(tmp_path / "broken"), **options)
    resumed.train(resume_from_checkpoint=True)
    assert scored.stat().st_mtime_ns == before, "the reference was scored again"
    assert resumed.state.global_step == whole.state.global_step == 12
    assert_close(weights(resumed), weights(whole), atol=0)
    assert lines_of(resumed) == lines_of(whole)


def test_a_new_training_in_the_folder_scores_its_own_reference(
    build: Build, tmp_path: Path, tiny_llama: Any, tokenizer: Any, world: World
) -> None:
    options = {**OPTIONS, "stream": True, "output_dir": str(tmp_path / "one")}
    build(**options).train()
    model = tiny_llama(tokenizer)
    with torch.no_grad():
        model.lm_head.weight.mul_(3.0)
    second = build(model=model, eval_dataset=world(4, seed=1), **options)
    second.evaluate()  # scores nothing of the records that are trained on
    expected = second.score(second.train_dataset.rows)
    second.train()
    for row, logp_C in enumerate(expected):
        np.testing.assert_array_equal(second.collator.ref_logps[row], logp_C)


def test_a_hugging_face_data_set_is_read_by_number(build: Build, tmp_path: Path, world: World) -> None:
    datasets = pytest.importorskip("datasets")
    listed = build(output_dir=str(tmp_path / "list"), stream=True, **OPTIONS)
    listed.train()
    table = datasets.Dataset.from_list(world(12))
    read = build(output_dir=str(tmp_path / "hf"), stream=True, train_dataset=table, **OPTIONS)
    read.train()
    assert_close(weights(read), weights(listed), atol=0)


def test_rewards_are_read_with_their_records(build: Build, tmp_path: Path, world: World) -> None:
    records = [{**record, "reward": 1.0 + n % 3} for n, record in enumerate(world(12))]
    options = {**OPTIONS, "loss": "reward_weighted_sft", "train_dataset": records}
    assert_trained_alike(build, tmp_path, **options)


def test_the_heaviest_micro_batch_is_no_lighter_than_any(build: Build, world: World) -> None:
    trainer = build(stream=True, per_device_train_batch_size=3, train_dataset=world(60))
    heaviest = sum(row.packed_length for row in trainer.train_dataset.heaviest())
    data = trainer.train_dataset
    drawn = [data.rows[data[slot].row].only(data[slot].columns.tolist()).packed_length for slot in range(60)]
    assert heaviest >= max(sum(drawn[at : at + 3]) for at in range(0, 60, 3))


def of(rows: EncodedRows, score: Any) -> Any:
    """What scores rows, for `LogpShards.fill`, which names them by number."""
    return lambda numbers: score(rows[numbers.start : numbers.stop])


def test_logps_in_files_are_those_of_the_rows(
    rows: EncodedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ragged rows in files of 50; a missing file is scored again, and no other."""
    monkeypatch.setattr(logp_shards, "_ROWS", 50)
    asked: list[int] = []

    def score(some: Any) -> list[np.ndarray]:
        asked.append(len(some))
        return [
            np.arange(len(row.completions) - len(row.prompt) % 2, dtype=np.float32) - len(row.prompt) for row in some
        ]

    shards = LogpShards(tmp_path, len(rows), "a").fill(of(rows, score))
    assert shards.complete and not LogpShards(tmp_path, len(rows), "b").complete
    assert asked == [50, 50, 50, 13]
    for at, row in enumerate(rows):
        own = score([row])[0]
        np.testing.assert_array_equal(shards[at][: len(own)], own)
        assert np.isnan(shards[at][len(own) :]).all()
    shards.file(1).unlink()
    asked.clear()
    assert not shards.complete
    LogpShards(tmp_path, len(rows), "a").fill(of(rows, score))
    assert asked == [50]
    asked.clear()
    other = LogpShards(tmp_path, len(rows), "b").fill(of(rows, lambda some: [logp_C + 1 for logp_C in score(some)]))
    assert asked == [50, 50, 50, 13] and other[60][0] == score([rows[60]])[0][0] + 1


def test_a_scoring_that_fails_leaves_no_half_of_a_file(rows: EncodedRows, tmp_path: Path) -> None:
    def broken(some: Any) -> list[np.ndarray]:
        raise MemoryError

    with pytest.raises(MemoryError):
        LogpShards(tmp_path / "r", len(rows), "a").fill(broken)
    assert [file.name for file in (tmp_path / "r").iterdir()] == ["key.txt"]


def test_many_files_take_no_descriptors(rows: EncodedRows, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A log of a hundred million rows has twelve thousand files, a process a thousand descriptors."""
    import resource

    monkeypatch.setattr(logp_shards, "_ROWS", 1)
    shards = LogpShards(tmp_path, len(rows), "a").fill(lambda some: [np.zeros(3, dtype=np.float32)] * len(some))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (100, limits[1]))
    try:
        read = [shards[row] for row in range(len(rows))]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(read) == len(rows) > 150


def test_a_worker_of_another_process_reads_them(rows: EncodedRows, tmp_path: Path) -> None:
    shards = LogpShards(tmp_path, len(rows), "a").fill(lambda some: [np.ones(3, dtype=np.float32)] * len(some))
    assert pickle.loads(pickle.dumps(shards))[5].tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"share": "user"}, "set share none"),
        ({"negatives_from": "on_policy"}, "set stream off"),
    ],
)
def test_what_needs_all_rows_is_refused(build: Build, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(stream=True, loss="dpo", **options)


def test_records_without_numbers_are_refused(build: Build, world: World) -> None:
    with pytest.raises(DataError, match="read by number"):
        build(stream=True, train_dataset=iter(world(3)))


def test_a_bad_record_is_named_by_its_number_when_it_comes(build: Build, world: World) -> None:
    records = world(40)
    records[17] = {**records[17], "rejected": [records[17]["chosen"]]}
    data = streamed(EncodedRows(records, Encoder(build().processing_class)))
    with pytest.raises(DataError, match=r"record 17: the chosen text"):
        [data[slot] for slot in range(40)]
    few = world(40)
    few[3] = {**few[3], "rejected": few[3]["rejected"][:1]}
    data = streamed(EncodedRows(few, Encoder(build().processing_class)))
    with pytest.raises(ConfigError, match=r"2 negatives were asked for, but record 3 has only 1"):
        [data[slot] for slot in range(40)]


def test_a_prompt_beyond_the_context_is_found_before_training(build: Build, world: World) -> None:
    records = world(40)
    longest = max(len(encode_records([r], Encoder(build().processing_class))[0].prompt) for r in records)
    records[11] = {**records[11], "prompt": records[11]["prompt"] * 9}
    with pytest.raises(PromptError, match="exceed the model's context"):
        build(stream=True, train_dataset=records, max_length=3 * longest)


def test_every_row_that_is_read_is_checked(world: World, tokenizer: Any) -> None:
    seen: list[int] = []
    rows = EncodedRows(world(9), Encoder(tokenizer), lambda some: seen.append(len(some)))
    rows.read([3, 4, 5])
    assert seen == [3]


def test_records_may_be_an_object_of_yours(build: Build, tmp_path: Path, world: World) -> None:
    listed = build(output_dir=str(tmp_path / "list"), stream=True, **OPTIONS)
    listed.train()
    own = build(output_dir=str(tmp_path / "own"), stream=True, train_dataset=Watched(world(12)), **OPTIONS)
    own.train()
    assert_close(weights(own), weights(listed), atol=0)


def test_completions_are_not_kept_for_ever(world: World, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_KEPT", 5)
    rows = EncodedRows(world(40), Encoder(tokenizer))
    for start in range(0, 40, 4):
        rows.read(range(start, start + 4))
    assert len(rows.encoder._completions) <= 5 + 4 * 5


def test_a_loss_without_negatives_watches_those_that_there_are(build: Build, tmp_path: Path, world: World) -> None:
    """As when records are held: a text without rejected ones is likelihood alone."""
    records = [{**record, "rejected": record["rejected"] if n % 3 == 0 else []} for n, record in enumerate(world(12))]
    options = {**OPTIONS, "loss": "sft", "score_unsampled": 1, "train_dataset": records}
    assert_trained_alike(build, tmp_path, **options)


def test_other_records_have_another_reference(world: World, tokenizer: Any) -> None:
    first, changed = world(20), world(20)
    changed[7] = {**changed[7], "prompt": changed[7]["prompt"] + "x"}
    prints = [EncodedRows(records, Encoder(tokenizer)).fingerprint() for records in (first, changed, first[:-1], first)]
    assert prints[0] == prints[3] and len(set(prints)) == 3
