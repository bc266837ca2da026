"""Negatives beyond random ones of the slate: the strongest of a pool, and the policy's own exact list."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec import progress, stopping
from sirius_rec.errors import ConfigError, Stopped
from sirius_rec.objectives.losses import compute_loss
from sirius_rec.objectives.presets import build_objective
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.rankers.catalogue.trie import build_trie
from sirius_rec.scoring.scorer import score_rows
from sirius_rec.training import mining
from sirius_rec.training.mining import Catalogue
from sirius_rec.training.negatives import NegativeSource, strongest
from sirius_rec.training.trainer import SiriusTrainer


def test_the_strongest_of_a_pool_by_hand() -> None:
    logp = torch.tensor([[-1.0, -5.0, -2.0, -3.0, 0.0], [-1.0, -2.0, -2.0, -9.0, -9.0]])
    pool = torch.tensor([[False, True, True, True, False], [False, True, True, True, False]])
    assert strongest(logp, pool, 1).nonzero().tolist() == [[0, 2], [1, 1]]  # the last one is not in the pool
    assert strongest(logp, pool, 2).nonzero().tolist() == [[0, 2], [0, 3], [1, 1], [1, 2]]
    assert torch.equal(strongest(logp, pool, 7), pool)


@pytest.mark.parametrize(
    ("source", "loss", "message"),
    [
        (NegativeSource("nearest"), "dpo", "choose one of slate, hard, on_policy, got 'nearest'"),
        (NegativeSource(pool=3), "dpo", "for negatives_from hard and on_policy"),
        (NegativeSource("hard", skip=1), "dpo", "for negatives_from on_policy"),
        (NegativeSource("hard"), "sft_continued", "this loss takes no negatives"),
        (NegativeSource("hard"), "softmax_ref_free", "the strongest of some negatives are not all"),
        (NegativeSource("hard", pool=2), "softmax_dpo", "pool 2 is smaller than the 3 negatives"),
        (NegativeSource("on_policy", refresh=0), "dpo", "refresh 0"),
        (NegativeSource("on_policy", skip=-1), "dpo", "skip -1"),
    ],
)
def test_a_source_that_cannot_be(source: NegativeSource, loss: str, message: str) -> None:
    assert message in next(source.problems(build_objective(loss)))


@pytest.mark.parametrize("source", [NegativeSource(), NegativeSource("hard", 4), NegativeSource("on_policy", 4, 1, 2)])
def test_a_source_that_can_be(source: NegativeSource) -> None:
    assert not list(source.problems(build_objective("softmax_dpo")))


def selected(trainer: SiriusTrainer, slots: range) -> dict[str, Any]:
    return trainer.collator([trainer.train_dataset[slot] for slot in slots])


def test_hard_negatives_are_the_strongest_of_the_drawn_ones(build: Callable[..., SiriusTrainer]) -> None:
    trainer = build(loss="simpo", negatives_from="hard", pool=3, score_unsampled=1)
    batch = selected(trainer, range(4))
    tree, pool_BC = batch["tree"], batch["sampled_BC"].clone()
    assert pool_BC.sum(dim=1).tolist() == [3] * 4 and tree.valid_BC.sum(dim=1).tolist() == [5] * 4
    draws = [trainer.train_dataset[slot] for slot in range(4)]
    rows = [trainer.train_dataset.rows[d.row].only(d.columns.tolist()) for d in draws]
    logp_BC = torch.tensor(np.stack(score_rows(trainer.model, rows, trainer.encoder.pad_id, mode="naive")))
    hardest = torch.zeros_like(pool_BC)
    for b, logps in enumerate(logp_BC.tolist()):
        hardest[b, max((1, 2, 3), key=lambda c: logps[c])] = True
    expected = compute_loss(trainer.objective, logp_BC, tree.length_BC, hardest, tree.valid_BC)
    loss = trainer.compute_loss(trainer.model, batch)
    assert loss.item() == pytest.approx(expected.loss_B.mean().item(), abs=1e-5)
    assert torch.equal(batch["sampled_BC"], hardest)
    # without it the loss is that of the whole pool
    whole = compute_loss(trainer.objective, logp_BC, tree.length_BC, pool_BC, tree.valid_BC)
    assert loss.item() != pytest.approx(whole.loss_B.mean().item(), abs=1e-4)


@pytest.fixture
def mined(
    build: Callable[..., SiriusTrainer], world: Callable[..., Any], catalogue: tuple[str, ...], tokenizer: Any
) -> Callable[..., SiriusTrainer]:
    """A trainer whose negatives are the policy's: its first record may have no item but the last five."""
    records = world(12)
    number = {title: n for n, title in enumerate(catalogue)}
    leave_out = [np.array([number[record["chosen"]]]) for record in records]
    leave_out[0] = np.unique([*range(len(catalogue) - 5), *leave_out[0]])

    def make(**options: Any) -> SiriusTrainer:
        found = Catalogue(build_trie(Encoder(tokenizer), catalogue), leave_out)
        given = {"pool": 4, "skip": 1, "refresh": 2, "negatives": 2, "num_train_epochs": 2, **options}
        return build(negatives_from="on_policy", train_dataset=records, catalogue=found, **given)

    return make


def test_negatives_are_the_exact_list_of_the_policy(
    mined: Callable[..., SiriusTrainer], catalogue: tuple[str, ...]
) -> None:
    trainer = mined()
    data, encoder = trainer.train_dataset, trainer.encoder
    miner, before = data.miner, [list(row.completions) for row in data.rows]
    draw = data[0]
    assert len(draw.columns) <= 5 and draw.n_sampled == 2
    # two steps of four examples: the first round, and nothing of the next one
    assert sorted(miner._rows) == sorted(data.order[:8].tolist())
    titles = [encoder.completion(title) for title in catalogue]
    for r in miner._rows:
        row = miner.row(r)
        assert row.completions[0] == before[r][0]
        [scores] = score_rows(trainer.model, [type(row)(row.prompt, titles)], encoder.pad_id, mode="naive")
        left = np.setdiff1d(np.arange(len(catalogue)), miner.catalogue.leave_out_R[r])
        best = left[np.argsort(-scores[left], kind="stable")][1:5]
        assert row.completions[1:] == [titles[i] for i in best]
        [reference] = score_rows(trainer.model, [row], encoder.pad_id, mode="naive")
        np.testing.assert_allclose(miner.ref(r), reference, atol=1e-4)
    assert [list(row.completions) for row in data.rows] == before
    # before the first step the policy is the reference: what it reads is what the reference has read
    batch = selected(trainer, range(4))
    _, out = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(out["logp_BC"].detach(), batch["ref_logp_BC"], rtol=0, atol=1e-4)


def test_lists_are_made_anew_from_the_policy_as_it_is_then(mined: Callable[..., SiriusTrainer], tmp_path: Path) -> None:
    trainer = mined(learning_rate=0.05)
    trainer.train()
    files = sorted(path.name for path in (tmp_path / "run" / "mined").iterdir())
    # three steps an epoch: two rounds in each, that of step 2 one step long
    assert files == ["e0-s0-p0.npz", "e0-s2-p0.npz", "e1-s0-p0.npz", "e1-s2-p0.npz"]
    stored = [dict(np.load(tmp_path / "run" / "mined" / name)) for name in files]
    assert [len(one["row"]) for one in stored] == [8, 4, 8, 4]
    first, later = (
        dict(zip(one["row"].tolist(), np.split(one["item"], one["length"].cumsum()[:-1]), strict=True))
        for one in (stored[0], stored[2])
    )
    shared = first.keys() & later.keys()
    assert shared and any(first[r].tolist() != later[r].tolist() for r in shared)


def assert_goes_on(resumed: SiriusTrainer, whole: SiriusTrainer) -> None:
    """From its last checkpoint to the weights of the training that nothing stopped."""
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == whole.state.global_step == 6
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6, msg=name)


def test_a_resumed_training_goes_on_with_the_lists_that_it_had(
    mined: Callable[..., SiriusTrainer], tmp_path: Path
) -> None:
    """Stopped after step 1 of a round of two steps: the lists of that round are not those of the policy by then."""
    options = {"learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1}
    whole = mined(output_dir=str(tmp_path / "a"), **options)
    whole.train()

    class Stop(Exception):
        pass

    part = mined(output_dir=str(tmp_path / "b"), **options)
    step = part.training_step

    def until_five(*args: Any, **kwargs: Any) -> Any:
        if part.state.global_step == 4:
            raise Stop
        return step(*args, **kwargs)

    part.training_step = until_five
    with pytest.raises(Stop):
        part.train()
    assert_goes_on(mined(output_dir=str(tmp_path / "b"), **options), whole)


def test_sigterm_does_not_wait_for_a_long_round_of_mining(
    mined: Callable[..., SiriusTrainer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The round is given up at its next row, nothing of it is kept; from the last checkpoint all comes out as ever."""
    options = {"learning_rate": 0.05, "save_strategy": "steps", "save_steps": 1}
    whole = mined(output_dir=str(tmp_path / "a"), **options)
    whole.train()
    part = mined(output_dir=str(tmp_path / "b"), **options)
    second = tmp_path / "b" / "mined" / "e0-s2-p0.npz"
    monkeypatch.setattr(stopping, "requested", (second.parent / "e0-s0-p0.npz").is_file)
    with pytest.raises(Stopped, match="while negatives were taken from the policy"):
        part.train()
    assert part.state.global_step == 1 and not second.exists()  # batches are put together one step ahead
    monkeypatch.undo()
    assert_goes_on(mined(output_dir=str(tmp_path / "b"), **options), whole)


def test_sigterm_is_heeded_within_a_search(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which counts no row for a long time: 0 is counted at each of its steps."""
    count = mining._counted(progress.Pace("negatives", 8, lambda line: None))
    count(0)
    monkeypatch.setattr(stopping, "requested", lambda: True)
    with pytest.raises(Stopped):
        count(0)


def test_a_long_round_of_mining_says_how_far_it_is(
    mined: Callable[..., SiriusTrainer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_EVERY", 0.0)
    trainer, said = mined(eval_batch_tokens=40), list[str]()  # batches of a row or two
    trainer.train_dataset.miner.say = said.append
    trainer.train_dataset[0]
    assert re.fullmatch(r"epoch 0, step 0: negatives from the policy: \d of 8, \d+ s left", said[0])
    assert any("reference log-probs of these: " in line for line in said)
    assert said[-1].startswith("epoch 0, step 0: negatives of 8 rows from the policy in ")


def test_a_fresh_training_forgets_the_lists_of_an_earlier_one(
    mined: Callable[..., SiriusTrainer], tmp_path: Path
) -> None:
    (tmp_path / "run" / "mined").mkdir(parents=True)
    np.savez(tmp_path / "run" / "mined" / "e0-s0-p0.npz", row=np.arange(3))
    mined(num_train_epochs=1).train()
    assert len(np.load(tmp_path / "run" / "mined" / "e0-s0-p0.npz")["row"]) == 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"catalogue": None}, "hand over the `catalogue`"),
        ({"skip": 4}, "record 0 leaves 4 items of the catalogue, fewer than skip 4 and 2 negatives"),
        ({"dataloader_num_workers": 1}, "dataloader_num_workers=0"),
    ],
)
def test_on_policy_negatives_that_cannot_be(
    mined: Callable[..., SiriusTrainer], build: Callable[..., Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        if "catalogue" in options:
            build(negatives_from="on_policy")
        mined(**options)


def test_a_model_in_parts_is_not_searched(mined: Callable[..., SiriusTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch` says so in the environment alone: the arguments of the training say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ConfigError, match=r"on_policy: searches a whole model .* no FSDP, no DeepSpeed"):
        mined()
