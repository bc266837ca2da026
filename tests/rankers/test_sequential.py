"""GRU4Rec, Caser and SASRec: a planted rule is learnt, and the contract every ranker keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from sirius_rec.errors import ConfigError, DataError, RunError, ScoringError, TrainingError
from sirius_rec.evaluation.metrics import per_example
from sirius_rec.extras import missing
from sirius_rec.rankers.protocol import UNSEEN
from sirius_rec.rankers.sequential.chunks import chunks, windows
from sirius_rec.rankers.sequential.losses import LOSSES
from sirius_rec.rankers.sequential.networks import NETWORKS, GRU4Rec, SASRec, _over_windows
from sirius_rec.rankers.sequential.options import PRESETS, TUNED, MoRecOptions, SequentialOptions, with_options
from sirius_rec.rankers.sequential.ranker import SequentialRanker, Validation, build_network
from sirius_rec.rankers.sequential.rectools import RECTOOLS_NETWORKS

N_ITEMS = 24


def planted(users: int, seed: int) -> list[np.ndarray]:
    """Walks in which item i is always followed by i + 5 (mod 20); items 20 … 23 never occur."""
    rng = np.random.default_rng(seed)
    return [(rng.integers(20) + 5 * np.arange(rng.integers(6, 12))) % 20 for _ in range(users)]


def slates(sequences: list[np.ndarray], seed: int = 0) -> Validation:
    rng = np.random.default_rng(seed)
    histories, candidates, targets = [], [], []
    for s in sequences:
        others = rng.permutation(np.setdiff1d(np.arange(20), s[-1:]))[:9]
        place = int(rng.integers(10))
        histories.append(s[:-1])
        candidates.append(np.insert(others, place, s[-1]))
        targets.append(place)
    return Validation(histories, candidates, np.array(targets))


def small(network: str, **changes: object) -> SequentialOptions:
    base = {"dimension": 16, "heads": 2, "length": 6, "batch_size": 16, "epochs": 25, "patience": 25, "dropout": 0.1}
    if network == "caser":  # steps of its convolutions are slow, and every item of a sequence is an example of its own
        base |= {"batch_size": 64, "epochs": 15}
    return with_options(
        TUNED[network],
        **{**base, "learning_rate": {"sasrec": 5e-3, "hstu": 3e-3}.get(network, 1e-2), "weight_decay": 0.0, **changes},
    )


of_rectools = pytest.mark.skipif(missing("rectools") is not None, reason="needs RecTools (extra rectools)")
RECTOOLS = [pytest.param(name, marks=of_rectools) for name in RECTOOLS_NETWORKS]


@pytest.fixture(scope="module", params=[*NETWORKS, *RECTOOLS])
def fitted(request: pytest.FixtureRequest) -> SequentialRanker:
    return SequentialRanker(small(request.param)).fit(planted(150, 0), N_ITEMS, slates(planted(30, 1)))


def test_the_planted_rule_is_learnt(fitted: SequentialRanker) -> None:
    test = slates(planted(60, 2), seed=3)
    assert per_example(fitted.score(test.histories, test.candidates), test.target)["hr@1"].to_numpy().mean() > 0.95


@pytest.mark.parametrize("loss", ["sampled_softmax", "bce", "bpr"])
def test_every_loss_learns_it(loss: str) -> None:
    ranker = SequentialRanker(small("sasrec", loss=loss, negatives=8)).fit(planted(150, 0), N_ITEMS)
    test = slates(planted(60, 2), seed=3)
    assert per_example(ranker.score(test.histories, test.candidates), test.target)["hr@1"].to_numpy().mean() > 0.9


@pytest.mark.parametrize("height", [1, 3, 6])
def test_casers_windows_are_its_convolution(height: int) -> None:
    torch.manual_seed(0)
    conv, image_BTD = torch.nn.Conv2d(1, 5, (height, 8)), torch.randn(4, 6, 8)
    slow = conv(image_BTD[:, None]).squeeze(3).transpose(1, 2)
    torch.testing.assert_close(_over_windows(conv, image_BTD), slow, atol=1e-6, rtol=1e-5)


def test_batch_equals_single(fitted: SequentialRanker) -> None:
    """Histories of different length in one batch, slates of different size."""
    histories = [np.array([3]), np.array([1, 6, 11, 16, 1, 6, 11, 16]), np.array([], int), np.array([2, 7])]
    candidates = [np.array([8, 1]), np.arange(20), np.array([5]), np.array([12, 3, 4])]
    together = fitted.score(histories, candidates)
    for history, slate, scores in zip(histories, candidates, together, strict=True):
        np.testing.assert_allclose(fitted.score([history], [slate])[0], scores, atol=1e-5)


def test_permuting_candidates_permutes_scores(fitted: SequentialRanker) -> None:
    order = np.random.default_rng(0).permutation(20)
    (plain,), (mixed,) = (fitted.score([np.array([4, 9])], [slate]) for slate in (np.arange(20), order))
    np.testing.assert_allclose(mixed, plain[order], atol=1e-6)


def test_what_training_never_saw_ranks_last(fitted: SequentialRanker) -> None:
    (scores,) = fitted.score([np.array([4, 9])], [np.array([21, 14, 23])])
    assert scores[0] == scores[2] == UNSEEN < scores[1]


def test_only_the_newest_items_are_read(fitted: SequentialRanker) -> None:
    long = np.concatenate([np.array([13, 2, 19]), np.array([0, 5, 10, 15, 0, 5])])
    a, b = (fitted.score([history], [np.arange(20)])[0] for history in (long, long[-6:]))
    np.testing.assert_allclose(a, b, atol=1e-6)


def test_save_and_load(fitted: SequentialRanker, tmp_path: Path) -> None:
    fitted.save(tmp_path / "r")
    again = SequentialRanker.load(tmp_path / "r")
    assert again.options == fitted.options and again.history == fitted.history and again.parameters > 0
    for a, b in zip(*(r.score([np.array([4])], [np.arange(24)]) for r in (fitted, again)), strict=True):
        np.testing.assert_array_equal(a, b)
    (tmp_path / "r" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(RunError, match="not a saved ranker"):
        SequentialRanker.load(tmp_path / "r")
    with pytest.raises(RunError, match="not a saved ranker"):
        SequentialRanker.load(tmp_path / "absent")


@pytest.mark.parametrize("network", NETWORKS)
def test_the_seed_decides(network: str) -> None:
    made = [SequentialRanker(small(network, epochs=2), seed).fit(planted(20, 0), N_ITEMS) for seed in (1, 1, 2)]
    scores = [r.score([np.array([4])], [np.arange(20)])[0] for r in made]
    np.testing.assert_array_equal(scores[0], scores[1])
    assert not np.allclose(scores[0], scores[2])


def test_early_stopping_keeps_the_best_epoch() -> None:
    validation = slates(planted(30, 1))
    ranker = SequentialRanker(small("gru4rec", epochs=60, patience=3)).fit(planted(60, 0), N_ITEMS, validation)
    found = [point["ndcg@10"] for point in ranker.history]
    best = int(np.argmax(found))
    assert len(found) == min(60, best + 1 + 3)
    frame = per_example(ranker.score(validation.histories, validation.candidates), validation.target)
    assert frame["ndcg@10"].to_numpy().mean() == pytest.approx(found[best])


@pytest.mark.parametrize("validated", [True, False])
def test_weights_broken_by_the_last_step_are_a_diverged_training(
    monkeypatch: pytest.MonkeyPatch, validated: bool
) -> None:
    """The losses of the epoch are finite: each was taken before its step."""
    epoch = SequentialRanker._epoch

    def broken(self: SequentialRanker, *given: Any) -> float:
        loss = epoch(self, *given)
        assert self.network is not None
        with torch.no_grad():
            next(self.network.parameters()).fill_(torch.nan)
        return loss

    monkeypatch.setattr(SequentialRanker, "_epoch", broken)
    validation = slates(planted(30, 1)) if validated else None
    with pytest.raises(TrainingError, match="not finite in epoch 1: lower learning_rate"):
        SequentialRanker(small("gru4rec", epochs=2)).fit(planted(30, 0), N_ITEMS, validation)


def _by_hand(network: torch.nn.Module, items: list[int]) -> torch.Tensor:
    """The last state of one history, without padding, batches or fused attention."""
    x = network.items(torch.tensor(items))
    if isinstance(network, GRU4Rec):
        cell = torch.nn.GRUCell(x.shape[1], x.shape[1])
        cell.load_state_dict({name.removesuffix("_l0"): weight for name, weight in network.gru.state_dict().items()})
        state = torch.zeros(x.shape[1])
        for row in x:
            state = cell(row, state)
        return network.out(state)
    assert isinstance(network, SASRec)
    x = x + network.positions(torch.arange(len(items)))
    for block in network.blocks:
        queries, keys, values = block.qkv(block.before(x)).chunk(3, -1)
        heads = []
        for h in range(block.heads):
            part = slice(h * x.shape[1] // block.heads, (h + 1) * x.shape[1] // block.heads)
            rows = []
            for t in range(len(items)):
                weights = (keys[: t + 1, part] @ queries[t, part] / (x.shape[1] / block.heads) ** 0.5).softmax(0)
                rows.append(weights @ values[: t + 1, part])
            heads.append(torch.stack(rows))
        x = x + block.joined(torch.cat(heads, -1))
        x = x + block.narrow(F.gelu(block.wide(block.between(x))))
    return network.norm(x)[-1]


@pytest.mark.parametrize("kind", ["sasrec", "gru4rec"])
def test_a_state_is_the_one_by_hand_whatever_padding_stands_before(kind: str) -> None:
    torch.manual_seed(0)
    layers = {"sasrec": 2, "gru4rec": 1}[kind]
    network = build_network(SequentialOptions(network=kind, dimension=8, length=6, layers=layers), 10).eval()
    with torch.no_grad():
        for weight in network.parameters():  # biases too: they are what moves a state over padding
            weight.normal_(std=0.5)
        network.items.weight[10].zero_()
        for items in ([3], [7, 1], [2, 9, 4, 4, 0, 8]):
            padded = torch.tensor([[10] * (6 - len(items)) + items, [5] * 6])
            torch.testing.assert_close(network(padded)[0, -1], _by_hand(network, items), atol=1e-5, rtol=1e-4)
    assert network.train()(padded)[0, -1].dist(network(padded)[0, -1]) > 1e-3  # dropout


def test_sasrec_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    network = build_network(SequentialOptions(network="sasrec", dimension=8, length=5), 10).eval()
    a, b = torch.tensor([[10, 1, 2, 3, 4]]), torch.tensor([[10, 1, 2, 9, 9]])
    states = [network(items)[0] for items in (a, b)]
    torch.testing.assert_close(states[0][1:3], states[1][1:3])
    assert not torch.allclose(states[0][3], states[1][3])


@pytest.mark.parametrize("make", [chunks, windows])
def test_every_item_but_the_first_is_a_target_once(make: object) -> None:
    rng = np.random.default_rng(0)
    sequences = [np.arange(n) for n in (2, 3, 9, 30)]
    for _ in range(5):
        inputs, targets = make(sequences, 4, rng, False)  # type: ignore[operator]
        assert sorted(targets[targets >= 0].tolist()) == sorted(i for n in (2, 3, 9, 30) for i in range(1, n))
        assert inputs.shape[1] == 4
        # the newest input of every target is the item before it
        last = inputs if make is chunks else inputs[:, -1:]
        assert (last[targets >= 0] == targets[targets >= 0] - 1).all()


def test_a_window_of_its_own_is_the_whole_history_of_its_target() -> None:
    """Short histories: a chunk's states and the windows' last ones are the same states, so the loss is the same."""
    sequences = [np.array([3, 8]), np.array([1, 6, 11, 16]), np.array([7, 12, 17])]
    still = {"length": 400, "dropout": 0.0, "learning_rate": 1e-12, "epochs": 1, "batch_size": 64}
    losses = [
        SequentialRanker(small("sasrec", windows=windows, **still)).fit(sequences, N_ITEMS).history[0]["loss"]
        for windows in (False, True)
    ]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_windows_learn_the_rule() -> None:
    ranker = SequentialRanker(small("gru4rec", windows=True, batch_size=32, epochs=20)).fit(planted(150, 0), N_ITEMS)
    test = slates(planted(60, 2), seed=3)
    assert per_example(ranker.score(test.histories, test.candidates), test.target)["hr@1"].to_numpy().mean() > 0.95


def test_losses_by_hand() -> None:
    """Two items drawn, with the draws looked up; scores over the catalogue are state @ embedding + bias."""
    torch.manual_seed(0)
    network = build_network(SequentialOptions(network="gru4rec", dimension=4, heads=1), 6)
    with torch.no_grad():
        network.bias.copy_(torch.arange(6) / 10)
    state, target = torch.randn(3, 4), torch.tensor([0, 4, 2])
    scores = (state @ network.items.weight[:6].T + network.bias).detach()
    drawn = torch.randint(6, (3, 2), generator=torch.Generator().manual_seed(9))
    # shared_softmax draws otherwise: tests/rankers/test_morec.py
    wanted = {name: [] for name in LOSSES if name != "shared_softmax"}
    for n in range(3):
        right = scores[n, target[n]]
        wrong = [scores[n, d] for d in drawn[n] if d != target[n]]
        wanted["full_softmax"].append(torch.logsumexp(scores[n], 0) - right)
        wanted["sampled_softmax"].append(torch.logsumexp(torch.stack([right, *wrong]), 0) - right)
        wanted["bce"].append(F.softplus(-right) + sum((F.softplus(s) for s in wrong), torch.tensor(0.0)) / 2)
        wanted["bpr"].append(sum((F.softplus(s - right) for s in wrong), torch.tensor(0.0)) / 2)
    for name in wanted:
        found = LOSSES[name](network, state, target, 2, torch.Generator().manual_seed(9))
        torch.testing.assert_close(
            found, torch.stack(wanted[name]).mean(), msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("network", NETWORKS)
def test_presets_train(preset: str, network: str) -> None:
    options = with_options(PRESETS[preset][network], epochs=1, length=6)
    ranker = SequentialRanker(options).fit(planted(10, 0), N_ITEMS, slates(planted(5, 1)))
    assert len(ranker.history) == 1


def test_a_grid_is_chosen_from_by_validation(tmp_path: Path) -> None:
    """The best of its members, each trained as if alone; stopped in the second it goes on there."""
    validation, base = slates(planted(30, 1)), small("gru4rec", epochs=4)
    grid = with_options(base, weight_decays=[3.0, 0.0, "1e-1"], decoupled=False)
    alone = [
        SequentialRanker(with_options(grid, weight_decay=one)).fit(planted(60, 0), N_ITEMS, validation)
        for one in (3.0, 0.0, 0.1)
    ]
    best = max(alone, key=lambda ranker: ranker.best_ndcg)
    assert len({ranker.best_ndcg for ranker in alone}) == 3

    def cut(line: str) -> None:
        if line.startswith("weight_decay 0  epoch 2 "):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SequentialRanker(grid).fit(planted(60, 0), N_ITEMS, validation, progress=cut, keep=tmp_path / "u.pt")
    lines: list[str] = []
    found = SequentialRanker(grid).fit(
        planted(60, 0), N_ITEMS, validation, progress=lines.append, keep=tmp_path / "u.pt"
    )
    assert lines[0].startswith("weight_decay 0  epoch 3 ")
    assert found.options == best.options and found.history == best.history and found.options.weight_decays == ()
    for name, weight in best.network.state_dict().items():
        assert found.network.state_dict()[name].equal(weight), name
    assert found.seconds > best.seconds
    with pytest.raises(ConfigError, match="a grid is chosen from by validation slates; give one weight_decay"):
        SequentialRanker(grid).fit(planted(60, 0), N_ITEMS)


@pytest.mark.parametrize("decoupled", [True, False])
def test_the_optimiser_is_the_one_asked_for(decoupled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[str, float]] = []
    for name in ("Adam", "AdamW"):
        kind = getattr(torch.optim, name)

        def note(*args: object, name: str = name, kind: type = kind, **kwargs: float) -> object:
            made.append((name, kwargs["weight_decay"]))
            return kind(*args, **kwargs)

        monkeypatch.setattr(torch.optim, name, note)
    options = small("sasrec", epochs=1, weight_decay=0.3, decoupled=decoupled)
    SequentialRanker(options).fit(planted(5, 0), N_ITEMS)
    assert made == [("AdamW" if decoupled else "Adam", 0.3)]


@pytest.mark.parametrize("make", [chunks, windows])
def test_shuffled_histories_keep_their_items_and_lose_their_order(make: object) -> None:
    cut = lambda shuffle: make([np.arange(9)], 20, np.random.default_rng(0), shuffle)  # type: ignore[operator]  # noqa: E731
    whole = [np.append(inputs[-1], targets[-1, -1]) for inputs, targets in (cut(False), cut(True))]
    plain, mixed = (row[row >= 0].tolist() for row in whole)
    assert plain == list(range(9)) and mixed != plain and set(mixed) <= set(plain)


def test_stopping_early_looks_at_ndcg_and_keeps_its_best_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    found = iter([(0.1, 0.2), (0.2, 0.6), (0.9, 0.5), (0.9, 0.5), (1.0, 0.9)])
    monkeypatch.setattr(
        SequentialRanker, "_validate", lambda self, _: dict(zip(("hr@1", "ndcg@10"), next(found), strict=True))
    )
    options = small("gru4rec", epochs=5, patience=2)
    ranker = SequentialRanker(options).fit(planted(20, 0), N_ITEMS, slates(planted(5, 1)))
    assert len(ranker.history) == 4 and ranker.best_ndcg == 0.6
    second = SequentialRanker(with_options(options, epochs=2)).fit(planted(20, 0), N_ITEMS)
    for name, weight in second.network.state_dict().items():
        assert ranker.network.state_dict()[name].equal(weight), name


def test_an_empty_slate_has_no_scores(fitted: SequentialRanker) -> None:
    assert [len(row) for row in fitted.score([np.array([1])] * 2, [np.array([], int), np.array([3])])] == [0, 1]
    assert len(fitted.score([np.array([1])], [np.array([], int)])[0]) == 0


def test_refusals() -> None:
    for changes, message in (
        ({"loss": "hinge"}, "loss: must be 'full_softmax'.*, got 'hinge'"),
        ({"network": "bert"}, "network: must be 'sasrec', 'gru4rec', 'caser', .* or 'sasrec_rectools', got 'bert'"),
        ({"heads": 3}, "not a multiple of heads"),
        ({"dropout": 1.0}, "dropout: must be below 1"),
        ({"epochs": 0}, "epochs: must be at least 1"),
        ({"width": 3}, "unknown option 'width'"),
        ({"epochs": "ten"}, "epochs: must be a whole number, got 'ten'"),
        ({"epochs": 1.5}, "epochs: must be a whole number"),
        ({"length": True}, "length: must be a whole number"),
        ({"dropout": "a"}, "dropout: must be a number, got 'a'"),
        ({"weight_decay": float("inf")}, "weight_decay: must be a finite number, got inf"),
        ({"learning_rate": True}, "learning_rate: must be a number"),
        ({"windows": "false"}, "windows: must be true or false, got 'false'"),
        ({"loss": 3}, "loss: must be .*, got 3"),
        ({"weight_decays": 0.1}, "weight_decays: must be a list"),
        ({"weight_decays": [0.1, -1]}, "weight_decays.1: must be at least 0, got -1"),
        ({"weight_decays": [0.1], "weight_decay": 0.2}, "weight_decay and weight_decays: give one"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_options(TUNED["sasrec"], **changes)
    # YAML reads 1e-3 as text
    assert with_options(TUNED["sasrec"], learning_rate="1e-3").learning_rate == 1e-3
    ranker = SequentialRanker(small("sasrec", epochs=1))
    with pytest.raises(ScoringError, match="not fitted"):
        ranker.score([np.array([0])], [np.array([0])])
    with pytest.raises(DataError, match="no training sequence has two items"):
        ranker.fit([np.array([1])], N_ITEMS)
    with pytest.raises(DataError, match="holds item 99"):
        ranker.fit([np.array([1, 99])], N_ITEMS)
    ranker.fit(planted(5, 0), N_ITEMS)
    with pytest.raises(DataError, match="candidates: row 1 holds item 24, the catalogue has 24 items"):
        ranker.score([np.array([0])] * 2, [np.array([0]), np.array([24])])
    with pytest.raises(DataError, match="histories: row 0 holds item 99"):  # also where it is no longer read
        ranker.score([np.array([99, *[1] * 30])], [np.array([0])])
    with pytest.raises(ScoringError, match="1 histories for 2 slates"):
        ranker.score([np.array([0])], [np.array([0]), np.array([1])])


@pytest.mark.parametrize(
    "options",
    [
        small("sasrec", epochs=5, dropout=0.3, shuffle=True),
        small("gru4rec", epochs=5, loss="sampled_softmax", negatives=4),
        small("caser", epochs=5, patience=1),
    ],
    ids=["sasrec", "gru4rec", "caser"],
)
def test_a_stopped_fit_goes_on_to_the_same_weights(options: SequentialOptions, tmp_path: Path) -> None:
    """Weights, moments, the order of chunks, dropout and negatives: all streams are taken up where they were."""
    world, validation = planted(40, 0), slates(planted(20, 1))
    whole = SequentialRanker(options, seed=3).fit(world, N_ITEMS, validation)
    keep = tmp_path / "unfinished.pt"

    class PowerCut(Exception):
        pass

    def cut(line: str) -> None:
        if line.startswith("epoch 2 "):
            raise PowerCut

    with pytest.raises(PowerCut):
        SequentialRanker(options, seed=3).fit(world, N_ITEMS, validation, progress=cut, keep=keep)
    torch.manual_seed(99)
    lines: list[str] = []
    again = SequentialRanker(options, seed=3).fit(world, N_ITEMS, validation, progress=lines.append, keep=keep)
    assert lines[0].startswith("epoch 3 ")
    assert again.history == whole.history
    for name, weight in whole.network.state_dict().items():
        assert again.network.state_dict()[name].equal(weight), name
    # Another seed's fit does not go on from it, and a damaged file is one line.
    other = SequentialRanker(options, seed=4).fit(world, N_ITEMS, validation, keep=keep)
    assert other.history == SequentialRanker(options, seed=4).fit(world, N_ITEMS, validation).history
    keep.write_bytes(keep.read_bytes()[:100])
    with pytest.raises(RunError, match=r"unfinished.pt: cannot be read: delete it"):
        SequentialRanker(options, seed=4).fit(world, N_ITEMS, validation, keep=keep)


def test_the_options_name_every_network_and_loss() -> None:
    """They stand there as literals, so that a configuration can be read without torch."""
    fields = SequentialOptions.model_fields
    assert get_args(fields["network"].annotation) == (*NETWORKS, *RECTOOLS_NETWORKS)
    for kind in (SequentialOptions, MoRecOptions):
        assert get_args(kind.model_fields["loss"].annotation) == tuple(LOSSES)


@pytest.mark.skipif(missing("rectools") is None, reason="RecTools is installed")
def test_a_network_of_rectools_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"needs RecTools .*: pip install 'sirius-rec\[rectools\]'"):
        build_network(SequentialOptions(network="hstu"), 5)
