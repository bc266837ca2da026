"""MoRec: a rule that only titles show is learnt, unseen items are ranked by their titles, encoders of both kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.evaluation.metrics import per_example
from sirius_rec.rankers.sequential import encoders
from sirius_rec.rankers.sequential.encoders import load_encoder, mean_over_tokens
from sirius_rec.rankers.sequential.losses import LOSSES
from sirius_rec.rankers.sequential.morec import MoRecRanker
from sirius_rec.rankers.sequential.networks import SASRec
from sirius_rec.rankers.sequential.options import PRESETS, TUNED, MoRecOptions, morec_options
from sirius_rec.rankers.sequential.ranker import Validation

COLOURS, THINGS = ("red", "green", "blue", "black"), ("fox", "house", "river", "stone", "lamp", "moon")
# 24 items; a user stays with one colour. "moon" is never seen in training.
TITLES = [f"{colour} {thing}" for colour in COLOURS for thing in THINGS]
N = len(TITLES)


def world(users: int, seed: int, things: int = 5) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [int(rng.integers(4)) * 6 + rng.permutation(things)[:4] for _ in range(users)]


def slates(seed: int, thing: int | None = None) -> Validation:
    """History of three things of one colour; the candidates are one thing in each colour."""
    rng = np.random.default_rng(seed)
    histories = [s[:3] for s in world(60, seed)]
    target = np.array([int(h[0]) // 6 for h in histories])
    shown = [int(rng.integers(5)) if thing is None else thing for _ in histories]
    return Validation(histories, [np.arange(4) * 6 + t for t in shown], target)


def hr(ranker: MoRecRanker, found: Validation) -> float:
    scores = ranker.score(found.histories, found.candidates)
    return float(per_example(scores, found.target)["hr@1"].to_numpy().mean())


def options(**changes: Any) -> MoRecOptions:
    small = {"dimension": 32, "heads": 2, "length": 6, "batch_size": 16, "epochs": 20, "learning_rate": 2e-3,
             "weight_decay": 0.0, "dropout": 0.0, "negatives": 16, "encoder_learning_rate": 1e-3}  # fmt: skip
    return morec_options(TUNED["sasrec"], **{**small, **changes})


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text encoder in a folder, as the hub has them."""
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    encoder, _ = load_encoder("tiny", TITLES, 32)
    encoder.save_pretrained(folder)
    from sirius_rec.rankers.sequential.encoders import _tiny

    _tiny(TITLES, 32)[1].save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["tiny", "frozen"])
def fitted(request: pytest.FixtureRequest, bert: Path) -> MoRecRanker:
    made = options() if request.param == "tiny" else options(encoder=str(bert), tune=False, epochs=25)
    return MoRecRanker(made, TITLES).fit(world(150, 0), N, slates(1))


def test_a_rule_in_the_titles_is_learnt_and_holds_for_items_never_seen(fitted: MoRecRanker) -> None:
    assert hr(fitted, slates(2)) > 0.9
    assert hr(fitted, slates(2, thing=5)) > 0.5  # "red moon" after red things; chance is 0.25


def test_contract(fitted: MoRecRanker, tmp_path: Path) -> None:
    """Batch = single, permuted candidates, a slate of one, an empty history, save and load."""
    found = slates(3)
    scores = fitted.score(found.histories, found.candidates)
    single = fitted.score(found.histories[4:5], found.candidates[4:5])[0]
    np.testing.assert_allclose(single, scores[4], atol=1e-5)
    np.testing.assert_allclose(
        fitted.score([found.histories[0]], [found.candidates[0][::-1]])[0], scores[0][::-1], atol=1e-5
    )
    assert fitted.score([np.array([], dtype=np.int64)], [np.array([3])])[0].shape == (1,)
    fitted.save(tmp_path)
    again = MoRecRanker.load(tmp_path)
    assert again.options == fitted.options and again.history == fitted.history
    for ours, theirs in zip(again.score(found.histories, found.candidates), scores, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    (tmp_path / "weights.safetensors").write_bytes(b"torn")
    with pytest.raises(RunError, match="not a saved ranker"):
        MoRecRanker.load(tmp_path)


def test_the_mean_is_over_real_tokens_only(bert: Path) -> None:
    """Every title has the features that it has alone, whatever stands beside it and in whatever order."""
    titles = ["a red house by the green river", "red fox", "moon", "the blue lamp", "fox", "a black stone by a lamp"]
    encoder, ids = load_encoder(str(bert), titles, 32)
    encoder.eval()
    with torch.no_grad():
        together = mean_over_tokens(encoder, ids)
        for n, row in enumerate(ids):
            states = encoder(input_ids=row[None, : int((row >= 0).sum())]).last_hidden_state[0].mean(0)
            torch.testing.assert_close(together[n], states, atol=1e-5, rtol=0)
            torch.testing.assert_close(mean_over_tokens(encoder, ids[n : n + 1])[0], states, atol=1e-5, rtol=0)


def test_what_a_step_asks_for_is_encoded_once_and_is_the_same() -> None:
    """Prepared, or encoded when asked: the same embeddings and gradients; also padding, and items not prepared."""
    ranker = MoRecRanker(options(encoder_learning_rate=None), TITLES)
    torch.manual_seed(0)
    items = ranker._build(N).items.train()
    for module in items.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    asked = torch.tensor([[N, 3, 8], [8, 23, 3]])
    given = torch.randn(2, 3, 32)
    found = []
    for prepared in (None, asked, torch.tensor([5, 23, N])):
        items.zero_grad()
        items._step = None
        if prepared is not None:
            items.prepare(prepared)
        calls: list[int] = []
        handle = items.project.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        out = items(asked)
        handle.remove()
        assert bool(calls) == (prepared is not asked)
        (out * given).sum().backward()
        found.append([out.detach(), *(p.grad.clone() for p in items.parameters() if p.grad is not None)])
    assert (found[0][0][0, 0] == 0).all() and len(found[0]) > 10
    for other in found[1:]:
        for ours, theirs in zip(found[0], other, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)
    items.eval()
    assert items.train()._step is None


def test_a_frozen_encoder_stays_and_a_tuned_one_learns(bert: Path) -> None:
    tuned = MoRecRanker(options(encoder=str(bert), epochs=1), TITLES).fit(world(20, 0), N)
    before, _ = load_encoder(str(bert), TITLES, 32)
    assert tuned.network is not None
    moved = [
        not torch.equal(p, q)
        for p, q in zip(tuned.network.items.encoder.parameters(), before.parameters(), strict=True)
    ]
    assert any(moved)
    frozen = MoRecRanker(options(encoder=str(bert), tune=False, epochs=1), TITLES).fit(world(20, 0), N)
    assert frozen.network is not None and frozen.network.items.encoder is None
    assert frozen.parameters < tuned.parameters


def test_one_seed_is_one_model_whether_vectors_are_kept_or_made(
    bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loading an encoder whose file lacks a head draws that head's weights; reading vectors draws nothing."""
    vectors = encoders.title_vectors

    def draws(*given: Any) -> torch.Tensor:
        torch.rand(7)
        return vectors(*given)

    monkeypatch.setattr(encoders, "title_vectors", draws)
    made = options(encoder=str(bert), tune=False, epochs=1)
    first, second = (
        MoRecRanker(made, TITLES, 0, vectors=tmp_path / "titles.npz").fit(world(20, 0), N) for _ in range(2)
    )
    asked = [np.array([0, 1])], [np.arange(N)]
    np.testing.assert_array_equal(first.score(*asked)[0], second.score(*asked)[0])


def test_the_papers_grid_is_not_searched() -> None:
    made = morec_options(PRESETS["paper"]["sasrec"])
    assert made.weight_decays == () and made.weight_decay == 1e-5 and not made.decoupled
    assert morec_options(PRESETS["paper"]["sasrec"], weight_decay="1e-4").weight_decay == 1e-4


def test_no_bias_per_item_and_the_encoders_own_rate() -> None:
    """Popularity must be read off the text; and what is counted as trained is what is trained."""
    ranker = MoRecRanker(options(epochs=2, encoder_learning_rate=1e-12, weight_decay=0.0), TITLES).fit(world(20, 0), N)
    network = ranker.network
    assert network is not None and (network.bias == 0).all()
    torch.manual_seed(ranker.seed)
    before = ranker._build(N)
    for name, weight in before.items.encoder.named_parameters():
        torch.testing.assert_close(network.items.encoder.get_parameter(name), weight, atol=1e-6, rtol=0)
    assert not torch.allclose(network.items.project.weight, before.items.project.weight, atol=1e-3)
    assert ranker.parameters == sum(p.numel() for p in network.parameters()) - N


def test_shared_softmax_by_hand() -> None:
    """Every item drawn, none twice: the full softmax, with the target counted once."""
    torch.manual_seed(0)
    network = SASRec(3, dimension=4, layers=1, heads=1, dropout=0.0, length=2)
    with torch.no_grad():
        network.items.weight[:3] = torch.tensor([[1.0, 0, 0, 0], [0, 2.0, 0, 0], [0, 0, 3.0, 0]])
        network.bias[:] = torch.tensor([0.5, 0.0, 0.0])
    generator = torch.Generator().manual_seed(0)
    while sorted(torch.randint(3, (3,), generator=(probe := generator.clone_state())).tolist()) != [0, 1, 2]:
        generator = probe
    found = LOSSES["shared_softmax"](network, torch.ones(1, 4), torch.tensor([0]), 3, generator)
    # scores 1.5, 2, 3: log(e^1.5 + e^2 + e^3) - 1.5
    assert float(found.detach()) == pytest.approx(np.log(np.exp([1.5, 2, 3]).sum()) - 1.5, abs=1e-5)


def test_refusals(bert: Path) -> None:
    with pytest.raises(ConfigError, match="tune: false leaves the tiny encoder random"):
        options(tune=False)
    with pytest.raises(ConfigError, match="encodes every title in every step: use shared_softmax"):
        options(loss="full_softmax")
    with pytest.raises(ConfigError, match="unknown option 'encodr' of morec, did you mean 'encoder'"):
        options(encodr="x")
    with pytest.raises(ConfigError, match="encoder '/no/such/encoder': no such folder: name a local") as caught:
        MoRecRanker(options(encoder="/no/such/encoder"), TITLES).fit(world(5, 0), N)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="2 titles for 24 items"):
        MoRecRanker(options(), TITLES[:2]).fit(world(5, 0), N)
