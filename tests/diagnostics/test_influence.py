"""The influence probe: on planted movements, against a naive step, and on a model where Eq. 10 must hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.diagnostics import influence
from sirius_rec.diagnostics.influence import probe_influence, summarise_influence
from sirius_rec.errors import DataError, ScoringError
from sirius_rec.objectives.presets import build_objective
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.scoring.naive import naive_logps
from sirius_rec.theory.preference import BRADLEY_TERRY
from sirius_rec.training.records import encode_records


def planted(move_i: float, move_j: float, move_k: float, n: int = 400) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    r = rng.normal(0, 3, (3, n))
    moved = 1e-5 * np.array([move_i, move_j, move_k])[:, None] * np.ones(n)
    return {
        "example": np.repeat(np.arange(n // 4), 4).astype(float),
        **{f"r_{x}": row for x, row in zip("ijk", r, strict=True)},
        **{f"moved_{x}": row for x, row in zip("ijk", moved, strict=True)},
    }


def test_where_only_the_positive_moves_equation_10_holds() -> None:
    found = summarise_influence(planted(1.0, 0.0, 0.0))
    assert found["slope"] == pytest.approx(1.0, abs=1e-3) and found["r2"] == pytest.approx(1.0, abs=1e-4)
    assert found["spearman"] == pytest.approx(1.0, abs=1e-3) and found["agree"] == 1.0
    assert (found["moved_i"], found["moved_j"], found["moved_k"]) == pytest.approx((1.0, 0.0, 0.0))
    assert sum(part["n"] for part in found["regions"]) == found["n"] == 400 and found["examples"] == 100


def test_where_only_the_sampled_negative_moves_nothing_else_does() -> None:
    found = summarise_influence(planted(0.0, -1.0, 0.0))
    assert found["measured"] == 0.0 and found["slope"] == 0.0 and found["r2"] is None
    assert (found["moved_i"], found["moved_j"]) == pytest.approx((0.0, -1.0))


def test_half_and_half() -> None:
    """Half of the margin from each side: the unsampled pair moves half as far as Eq. 10 says, in every region."""
    found = summarise_influence(planted(0.5, -0.5, 0.0))
    assert found["slope"] == pytest.approx(0.5, abs=1e-3)
    # 1 − Σ(m − p)²/Σm² = 1 − (0.5/0.5)² = 0
    assert found["r2"] == pytest.approx(0.0, abs=1e-3)
    for part in found["regions"]:
        assert part["slope"] == pytest.approx(0.5, abs=2e-3)
        assert part["slope_low"] <= part["slope"] <= part["slope_high"]


def test_regions_split_by_sensitivity() -> None:
    found = summarise_influence(planted(1.0, 0.0, 0.0))
    for part in found["regions"]:
        assert part["low"] <= part["predicted"]
        assert part["high"] is None or part["predicted"] <= part["high"]


@pytest.fixture
def rows(tokenizer: Any, catalogue: tuple[str, ...]) -> list[Any]:
    records = [
        {"prompt": f"{catalogue[n]}\nNext:\n", "chosen": catalogue[n + 1], "rejected": list(catalogue[n + 2 : n + 6])}
        for n in range(4)
    ]
    return encode_records(records, Encoder(tokenizer))


def test_a_pair_that_the_hinge_leaves_alone_gives_no_triples(rows: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the margin there is no gradient to follow; in a loss that always has one that is an error."""
    model = torch.nn.Linear(1, 1)
    monkeypatch.setattr(influence, "resolve_mode", lambda model, mode: "naive")
    monkeypatch.setattr(influence, "_rewards", lambda *_: lambda: (0.0 * model.weight.sum(), np.zeros(5)))
    found = probe_influence(model, rows, 0, build_objective("slic_hinge", reward="simpo_no_ln"))
    assert all(len(column) == 0 for column in found.values())
    with pytest.raises(DataError, match="row 0 has a gradient of size 0"):
        probe_influence(model, rows, 0, build_objective("simpo_no_ln"))


@pytest.mark.parametrize("loss", ["simpo_no_ln", "dpo_sirius"])
def test_a_step_is_the_naive_gradient_step(
    loss: str, rows: list[Any], tokenizer: Any, tiny_llama: Callable[..., Any]
) -> None:
    """The same change of rewards by hand: one row, autograd on the whole model, weights stepped and read again.

    Log-probs come from float32 logits (about 1e-6 nats), hence a step of 1e-2 nats and a tolerance of 0.2 %.
    """
    model = tiny_llama(tokenizer).double()
    pad = Encoder(tokenizer).pad_id
    ref = [np.linspace(-9, -7, len(row.completions)) for row in rows]
    objective = build_objective(loss, beta=0.7)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = probe_influence(
        model, rows, pad, objective, ref_logps=ref, descent=1e-2, largest_move=1.0, seed=3, mode="naive"
    )
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    row, offset = rows[0], 0.7 * torch.tensor(ref[0]) if loss == "dpo_sirius" else 0.0

    def rewards() -> torch.Tensor:
        return 0.7 * naive_logps(model, [row], pad, torch.device("cpu"))[0] - offset

    first = found["example"] == 0
    start = rewards()
    j = int(np.argmin(np.abs(start.detach().numpy() - found["r_j"][0])))
    loss_value = -torch.nn.functional.logsigmoid(start[0] - start[j] - objective.gamma)
    if loss == "dpo_sirius":
        loss_value = loss_value - torch.nn.functional.logsigmoid(start[0] + 0.7 * ref[0][0])
    slopes = torch.autograd.grad(loss_value, list(model.parameters()))
    size = sum(float((g**2).sum()) for g in slopes)
    with torch.no_grad():
        for p, g in zip(model.parameters(), slopes, strict=True):
            p -= 1e-2 / size * g
        moved = (rewards() - start).numpy()
    ks = [k for k in range(1, 5) if k != j]
    assert found["moved_i"][first] == pytest.approx([moved[0]] * 3, rel=2e-3)
    assert found["moved_j"][first] == pytest.approx([moved[j]] * 3, rel=2e-3)
    assert found["moved_k"][first] == pytest.approx(moved[ks], rel=2e-3, abs=2e-6)
    assert found["r_k"][first] == pytest.approx(start.detach().numpy()[ks], rel=1e-5)


def test_the_step_lowers_its_loss_by_what_was_asked(
    rows: list[Any], tokenizer: Any, tiny_llama: Callable[..., Any]
) -> None:
    objective = build_objective("simpo_no_ln", gamma=0.0)
    found = probe_influence(tiny_llama(tokenizer), rows, Encoder(tokenizer).pad_id, objective, largest_move=1.0)

    def loss(r_i: np.ndarray, r_j: np.ndarray) -> np.ndarray:
        return np.logaddexp(0.0, r_j - r_i)

    old = loss(found["r_i"], found["r_j"])
    new = loss(found["r_i"] + found["moved_i"], found["r_j"] + found["moved_j"])
    np.testing.assert_allclose(old - new, 1e-3, rtol=0.05)


def test_a_pair_far_apart_is_not_thrown_about(rows: list[Any], tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    """At margins of tens of nats the loss is nearly 0: a step that lowered it by 1e-3 would move them by hundreds."""
    model, pad = tiny_llama(tokenizer), Encoder(tokenizer).pad_id
    objective = build_objective("simpo_no_ln", beta=30.0, gamma=0.0)
    found = probe_influence(model, rows, pad, objective)
    assert (found["r_i"] - found["r_j"]).max() > 15
    for name in ("moved_i", "moved_j", "moved_k"):
        assert 0 < np.abs(found[name]).max() <= 2e-3
    # as small steps do, one five times as long moves the others in the same proportion (log-probs are float32)
    longer = probe_influence(model, rows, pad, objective, largest_move=1e-2)
    ratio, again = (f["moved_k"] / (f["moved_i"] - f["moved_j"]) for f in (found, longer))
    np.testing.assert_allclose(ratio, again, rtol=0.1, atol=0.05)


def test_saturated_pairs_do_not_hide_the_others() -> None:
    """Half of the triples are saturated and large; on them the positive stays, on the others it alone moves."""
    alone, other = planted(1.0, 0.0, 0.0), planted(0.0, -1.0, 0.0)
    sensitive = np.exp(BRADLEY_TERRY.log_sensitivity(*(alone[f"r_{x}"] for x in "ijk"))) < 1
    mixed = {name: np.where(sensitive, alone[name], other[name]) for name in alone}
    found = summarise_influence(mixed)
    assert found["slope"] < 0.2
    assert found["unsaturated"]["slope"] == pytest.approx(1.0, abs=1e-3) and found["saturated"]["slope"] == 0.0
    assert found["unsaturated"]["n"] + found["saturated"]["n"] == found["n"]


def test_what_cannot_be_probed(rows: list[Any], tokenizer: Any, tiny_llama: Callable[..., Any]) -> None:
    model, pad = tiny_llama(tokenizer), Encoder(tokenizer).pad_id
    with pytest.raises(DataError, match="compares no pairs"):
        probe_influence(model, rows, pad, build_objective("sft"))
    with pytest.raises(ScoringError, match="needs reference log-probs"):
        probe_influence(model, rows, pad, build_objective("dpo"))
    short = [type(rows[0])(rows[0].prompt, rows[0].completions[:2])]
    with pytest.raises(DataError, match="row 0 has 2 candidates"):
        probe_influence(model, short, pad, build_objective("simpo"))
    with pytest.raises(DataError, match="no triples"):
        summarise_influence(probe_influence(model, [], pad, build_objective("simpo")))
