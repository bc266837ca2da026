"""The service over a trained run: every answer is that of `sirius rank` and `sirius recommend`, whoever asks how."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, DataError, RunError, ScoringError
from sirius_rec.recipes import serving
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.configuration import load_config
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages
from sirius_rec.serving.options import Batching, Service
from sirius_rec.serving.server import application

MINI = Path(__file__).resolve().parents[1] / "mini.yaml"
METHODS = ("sft", "markov", "item_knn", "popularity", "sasrec")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """SFT whose prompts show no slate, formulas and a network."""
    network = "{method: sasrec, options: {epochs: 2}}"
    config = load_config(MINI, ["prompts.slate=false", f"methods=[markov, {network}]"])
    opened = Run(open_run(tmp_path_factory.mktemp("serve") / "run", config), config)
    run_stages(opened, ("sft",), lambda line: None)
    for key in METHODS[1:]:
        build_methods(config)[key].fit(opened, 0)
    return opened


def source(run: Run, *methods: str, cache: int = 64, **options: Any) -> serving.Source:
    batching = Batching(prefix_cache=cache, wait=0.02)
    return serving.Source(str(run.folder.path), methods, service=Service(batching=batching), **options)


@pytest.fixture
def served(at_work: Any) -> Iterator[Callable[..., httpx2.Client]]:
    """served(source) → a client of its service, in this process over a real port."""
    open_: list[Any] = []

    def start(what: serving.Source) -> httpx2.Client:
        app = application(partial(serving.load, what), what.service, log=lambda line: None)
        context = at_work(app)
        client = httpx2.Client(base_url=context.__enter__(), timeout=60)
        open_.append((client, context))
        return client

    yield start
    for client, context in open_:
        client.close()
        context.__exit__(None, None, None)


@pytest.fixture(scope="module")
def requests(run: Run) -> list[dict[str, Any]]:
    """By id: growing histories, one longer than is shown, an empty one, one with what nobody knows."""
    ids = [str(item) for item in run.dataset.items["item_id"].to_list()]
    rng = np.random.default_rng(0)
    rows = [
        {"history": [ids[i] for i in rng.permutation(80)[:n]], "candidates": [ids[i] for i in rng.permutation(80)[:6]]}
        for n in (1, 2, 5, 9, 3, 3)
    ]
    rows[4]["history"].insert(1, "nobody")
    rows[5]["history"] = ["nobody"]
    return [*rows, {"history": [], "candidates": ids[:5]}]


def answered(tmp_path: Path, command: str, model: Any, rows: list[dict[str, Any]], *options: Any) -> list[Any]:
    given, out = tmp_path / "r.jsonl", tmp_path / "o.jsonl"
    given.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out.unlink(missing_ok=True)
    asked = [command, "--model", model, "--input", given, "--out", out, *options]
    result = CliRunner().invoke(cli.app, list(map(str, asked)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


@pytest.mark.parametrize("cache", [0, 64])
def test_ranks_what_the_command_ranks(
    run: Run, requests: list[dict[str, Any]], served: Callable[..., httpx2.Client], tmp_path: Path, cache: int
) -> None:
    client = served(source(run, *METHODS, cache=cache))
    for method in METHODS:
        expected = answered(tmp_path, "rank", run.folder.path, requests, "--method", method)
        for _ in range(2):  # the second time, prompts are cached
            for row, want in zip(requests, expected, strict=True):
                got = client.post("/v1/rerank", json={**row, "model": method}).json()
                name = "log_prob" if method == "sft" and "by" not in want else "score"
                assert [r["id"] for r in got["results"]] == want["candidates"], (method, row)
                np.testing.assert_allclose([r[name] for r in got["results"]], want["scores"], atol=1e-5)
                assert (got.get("unknown"), got.get("by")) == (want.get("unknown"), want.get("by"))
                relevance = [r["relevance_score"] for r in got["results"]]
                assert relevance == sorted(relevance, reverse=True) and relevance[-1] >= 0 and relevance[0] <= 1
                if name == "log_prob":
                    share = np.exp(want["scores"]) / np.exp(want["scores"]).sum()
                    np.testing.assert_allclose(relevance, share, atol=1e-5)
    found = client.get("/metrics").text
    assert ('found="whole",model="sft"' in found) == bool(cache)


def test_recommends_what_the_command_recommends(
    run: Run, requests: list[dict[str, Any]], served: Callable[..., httpx2.Client], tmp_path: Path
) -> None:
    client = served(source(run, "sft", "markov", "sasrec"))
    rows = [{"history": row["history"], "exclude": row["candidates"][:2]} for row in requests[:-1]]
    for method in ("sft", "markov", "sasrec"):
        for extra in ((), ("--exclude-seen",)):
            expected = answered(tmp_path, "recommend", run.folder.path, rows, "--method", method, "--top", 4, *extra)
            for row, want in zip(rows, expected, strict=True):
                asked = {**row, "model": method, "top_n": 4, "exclude_seen": bool(extra)}
                got = client.post("/v1/recommend", json=asked).json()
                assert got["items"] == want["items"] and got["titles"] == want["titles"]
                np.testing.assert_allclose(got["scores"], want["scores"], atol=1e-5)
                assert got["exact"] is True and got.get("by") == want.get("by")


def test_coheres_client(run: Run, requests: list[dict[str, Any]], served: Callable[..., httpx2.Client]) -> None:
    cohere = pytest.importorskip("cohere", reason="Cohere's client is not installed")
    client = served(source(run, "sft"))
    title = dict(zip(map(str, run.dataset.items["item_id"].to_list()), run.dataset.titles, strict=True))
    row = requests[1]
    query, documents = "\n".join(title[i] for i in row["history"]), [title[i] for i in row["candidates"]]
    want = client.post("/v1/rerank", json=row).json()["results"]
    for kind in (cohere.ClientV2, cohere.Client):
        theirs = kind(api_key="any key at all", base_url=str(client.base_url).rstrip("/"))
        found = theirs.rerank(model="sft", query=query, documents=documents, top_n=3)
        assert [r.index for r in found.results] == [r["index"] for r in want[:3]]
        for got, own in zip(found.results, want, strict=False):
            assert got.relevance_score == pytest.approx(own["relevance_score"], abs=1e-6)
        assert found.id
        with pytest.raises(cohere.core.ApiError) as caught:
            theirs.rerank(model="rerank-v3.5", query=query, documents=documents)
        assert caught.value.status_code == 404


def test_jinas_form(run: Run, requests: list[dict[str, Any]], served: Callable[..., httpx2.Client]) -> None:
    client = served(source(run, "sft"))
    title = dict(zip(map(str, run.dataset.items["item_id"].to_list()), run.dataset.titles, strict=True))
    row = requests[1]
    documents = [{"text": title[i]} for i in row["candidates"]]
    body = {"model": "sft", "query": "\n".join(title[i] for i in row["history"]), "documents": documents, "top_n": 2}
    answer = client.post("/v1/rerank", json=body, headers={"Authorization": "Bearer jina_anything"}).json()
    assert set(answer) >= {"model", "usage", "results"} and answer["usage"]["total_tokens"] > 0
    assert [r["document"] for r in answer["results"]] == [documents[r["index"]] for r in answer["results"]]
    assert len(answer["results"]) == 2


def test_titles_that_the_catalogue_lacks(run: Run, served: Callable[..., httpx2.Client], tmp_path: Path) -> None:
    client = served(source(run, "sft", titles=True))
    row = {"history": [run.dataset.titles[3]], "candidates": ["Something New", run.dataset.titles[5]]}
    (want,) = answered(tmp_path, "rank", run.folder.path, [row], "--method", "sft", "--titles")
    got = client.post("/v1/rerank", json=row).json()["results"]
    assert [r["document"]["text"] for r in got] == want["candidates"]
    np.testing.assert_allclose([r["log_prob"] for r in got], want["scores"], atol=1e-5)
    long = client.post("/v1/rerank", json={"history": [], "candidates": ["word " * 300]})
    assert long.status_code == 422 and "the context is 256" in long.json()["detail"]


def test_a_plain_model_as_sirius_rank_has_it(run: Run, served: Callable[..., httpx2.Client], tmp_path: Path) -> None:
    folder = run.folder.sft(0) / "best"
    titles = run.dataset.titles
    row = {"history": titles[:2], "candidates": titles[5:9]}
    items = tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"x{n},{title}\n" for n, title in enumerate(titles)))
    what = serving.Source(str(folder), plain={"shows_slate": False}, items=str(items))
    client = served(what)
    (want,) = answered(tmp_path, "rank", folder, [row], "--no-slate")
    got = client.post("/v1/rerank", json=row).json()["results"]
    assert [r["title"] for r in got] == want["candidates"]
    np.testing.assert_allclose([r["log_prob"] for r in got], want["scores"], atol=1e-5)
    (best,) = answered(
        tmp_path, "recommend", folder, [{"history": titles[:2]}], "--items", items, "--titles", "--top", 3
    )
    asked = {"history": titles[:2], "top_n": 3}
    assert client.post("/v1/recommend", json=asked).json()["items"] == best["items"]


def test_a_plain_model_with_a_catalogue_reads_its_ids(
    run: Run, served: Callable[..., httpx2.Client], tmp_path: Path
) -> None:
    """An id is never scored as if it were a title, and one that the catalogue lacks is refused."""
    folder, titles, items = run.folder.sft(0) / "best", run.dataset.titles, tmp_path / "items.csv"
    items.write_text("item_id,title\n" + "".join(f"{n},{title}\n" for n, title in enumerate(titles)))
    client = served(serving.Source(str(folder), plain={"shows_slate": False}, items=str(items)))
    by_title = client.post("/v1/rerank", json={"history": titles[:2], "candidates": titles[5:9]}).json()["results"]
    by_id = client.post("/v1/rerank", json={"history": [0, 1], "candidates": [5, 6, 7, 8]}).json()["results"]
    assert [(r["title"], r["log_prob"]) for r in by_id] == [(r["title"], r["log_prob"]) for r in by_title]
    refused = client.post("/v1/rerank", json={"history": [0, 1], "candidates": [5, "5x"]})
    assert refused.status_code == 422 and "'5x' is not in the catalogue" in refused.json()["detail"]
    (best,) = answered(tmp_path, "recommend", folder, [{"history": ["0", "1"]}], "--items", items, "--top", 3)
    got = client.post("/v1/recommend", json={"history": ["0", "1"], "top_n": 3}).json()
    assert (got["items"], got["scores"]) == (best["items"], pytest.approx(best["scores"], abs=1e-5))
    assert client.post("/v1/recommend", json={"history": ["0", "of tomorrow", "1"]}).json()["unknown"] == 1
    nothing = client.post("/v1/recommend", json={"history": ["of tomorrow"]})
    assert nothing.status_code == 422 and "history holds no item of the catalogue" in nothing.json()["detail"]
    ranked = client.post("/v1/rerank", json={"history": ["of tomorrow"], "candidates": [5, 6]})
    assert ranked.status_code == 422 and "history holds no item of the catalogue" in ranked.json()["detail"]
    titled = served(serving.Source(str(folder), plain={"shows_slate": False}, titles=True, items=str(items)))
    some = {"history": [], "candidates": ["A title of tomorrow", "5"]}
    assert titled.post("/v1/rerank", json=some).status_code == 200


def test_a_run_with_items_of_tomorrow(run: Run, served: Callable[..., httpx2.Client], tmp_path: Path) -> None:
    """What reads titles ranks and recommends them beside its own; what knows its catalogue alone goes on as it was."""
    items = tmp_path / "new.csv"
    items.write_text("item_id,title\nnew,A title of tomorrow\n")
    ids = [str(item) for item in run.dataset.items["item_id"].to_list()]
    client = served(source(run, "markov", "sft", items=str(items)))
    asked = {"history": [ids[0], "new"], "candidates": ["new", ids[5]], "model": "sft"}
    got = {r["id"]: r["log_prob"] for r in client.post("/v1/rerank", json=asked).json()["results"]}
    row = {k: asked[k] for k in ("history", "candidates")}
    (want,) = answered(tmp_path, "rank", run.folder.path, [row], "--items", items, "--method", "sft")
    assert got == pytest.approx(dict(zip(want["candidates"], want["scores"], strict=True)), abs=1e-5)
    wish = {"history": ids[:2], "exclude": ids, "top_n": 1, "model": "sft"}
    assert client.post("/v1/recommend", json=wish).json()["items"] == ["new"]
    refused = client.post("/v1/rerank", json={**asked, "model": "markov"})
    assert refused.status_code == 422 and "'new' is not in the catalogue, which markov" in refused.json()["detail"]
    best = client.post("/v1/recommend", json={"history": ids[:2], "top_n": 80, "model": "markov"}).json()["items"]
    assert sorted(best) == sorted(ids)
    with pytest.raises(RunError, match="markov cannot rank items that training never met"):
        serving.check(source(run, "markov", items=str(items)))
    with pytest.raises(DataError, match=r"gone\.csv"):
        serving.check(source(run, "sft", items=str(tmp_path / "gone.csv")))


def test_without_a_name_the_best_that_reads_titles_gets_new_items(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `sirius rank` has it, though a network is better on validation."""
    items = tmp_path / "new.csv"
    items.write_text("item_id,title\nnew,A title of tomorrow\n")
    network = type(build_methods(run.config)["sasrec"])
    monkeypatch.setattr(network, "validation_hit", lambda self, run, seed: 0.99)
    assert list(serving.load(source(run)).models) == ["sasrec"]
    assert list(serving.load(source(run, items=str(items))).models) == ["sft"]


@pytest.mark.parametrize("with_items", [True, False])
def test_a_plain_model_that_cannot_answer_is_not_loaded(run: Run, tmp_path: Path, with_items: bool) -> None:
    folder, items = tmp_path / "broken", tmp_path / "items.csv"
    shutil.copytree(run.folder.sft(0) / "best", folder)
    items.write_text("item_id,title\n" + "".join(f"x{n},{title}\n" for n, title in enumerate(run.dataset.titles)))
    what = serving.Source(str(folder), plain={"shows_slate": False}, items=str(items) if with_items else None)
    serving.load(what)
    weights = folder / "model.safetensors"
    save_file({name: t * float("nan") for name, t in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ScoringError):
        serving.load(what)


def test_the_run_is_opened_again(
    run: Run, served: Callable[..., httpx2.Client], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other weights in the folder: the old ones answer until the swap, and nothing of their cache is left then."""
    monkeypatch.setenv("SIRIUS_ADMIN_KEY", "swap-it-now")
    shutil.copytree(run.folder.path, tmp_path / "run")
    copy = Run.open(tmp_path / "run")
    client = served(source(copy, "sft"))
    ids = [str(item) for item in run.dataset.items["item_id"].to_list()]
    row = {"history": ids[:3], "candidates": ids[10:16]}

    def scores() -> list[float]:
        return [r["log_prob"] for r in client.post("/v1/rerank", json=row).json()["results"]]

    before = scores()
    for path in (copy.folder.sft(0) / "best").glob("*"):  # the weights before SFT
        other = next((copy.folder.path / "pretrain").rglob(path.name), None)
        if path.suffix == ".safetensors" and other is not None:
            shutil.copy(other, path)
    assert scores() == pytest.approx(before, abs=1e-6)
    key = {"authorization": "Bearer swap-it-now"}
    assert client.post("/admin/reload", headers=key).json() == {"status": "swapped", "models": ["sft"]}
    (want,) = answered(tmp_path, "rank", copy.folder.path, [row], "--method", "sft")
    after = scores()
    assert max(abs(a - b) for a, b in zip(after, before, strict=True)) > 1e-3
    np.testing.assert_allclose(after, want["scores"], atol=1e-5)


def test_what_cannot_be_served_is_said_before_anything_is_loaded(run: Run) -> None:
    with pytest.raises(RunError, match="dpo_sirius is not trained; there is"):
        serving.check(source(run, "dpo_sirius"))
    with pytest.raises(ConfigError, match="names one method twice"):
        serving.check(source(run, "sft", "sft@best"))
    with pytest.raises(ConfigError, match="checkpoints are best and last"):
        serving.check(source(run, "sft@first"))


def test_one_method_twice_by_checkpoint(run: Run) -> None:
    loaded = serving.load(source(run, "sft", "sft@last"))
    assert list(loaded.models) == ["sft", "sft@last"]
    assert loaded.models["sft@last"].about["checkpoint"] == "last"


def test_a_service_says_which_training_it_serves(run: Run, tmp_path: Path) -> None:
    """So that whoever trains every night sees that a swap took the new one."""
    shutil.copytree(run.folder.path, copy := tmp_path / "run")
    before = serving.load(replace(source(run, "sft"), model=str(copy))).models["sft"].about["training"]
    assert before == build_methods(run.config)["sft"].trained_as(run, 0)
    done = copy / "sft" / "s0" / "done.json"
    done.write_text(json.dumps({**json.loads(done.read_text()), "seconds": 1e9}))
    assert serving.load(replace(source(run, "sft"), model=str(copy))).models["sft"].about["training"] != before
    plain = serving.load(serving.Source(str(copy / "sft" / "s0" / "best"), plain={"shows_slate": False}))
    ((name, size, _),) = plain.default.about["weights"]
    assert size == (copy / "sft" / "s0" / "best" / name).stat().st_size


def test_workers_read_what_their_parent_serves(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SIRIUS_SERVE_OPTIONS", raising=False)
    given = source(run, "sft", "markov", titles=True)
    given = replace(given, service=replace(given.service, cors=("https://a.b",), api_keys=tmp_path, workers=2))
    assert serving.hand_on(given) == "sirius_rec.recipes.serving:worker"
    import os

    assert serving._SOURCE.validate_json(os.environ["SIRIUS_SERVE_OPTIONS"]) == given
