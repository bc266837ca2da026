"""Items that training never met, named in requests of a run (`--items`); their like for a plain model; new users."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, DataError, RunError
from sirius_rec.rankers.requests import Request
from sirius_rec.rankers.trivial import Popularity
from sirius_rec.recipes.listing import listing_of
from sirius_rec.recipes.ranking import load_run_ranker
from sirius_rec.recipes.run import Run


def call(command: str, tmp_path: Path, model: Any, rows: list[dict[str, Any]], *arguments: Any) -> tuple[Any, str]:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    requests.write_text("".join(json.dumps(row) + "\n" for row in rows))
    out.unlink(missing_ok=True)
    asked = [command, "--model", model, "--input", requests, "--out", out, *arguments]
    result = CliRunner().invoke(cli.app, list(map(str, asked)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()], result.output


def table(path: Path, rows: list[tuple[str, str]]) -> Path:
    path.write_text("item_id,title\n" + "".join(f"{item},{title}\n" for item, title in rows))
    return path


def test_new_items_are_ranked_as_their_titles_are(run: Run, ids: list[str], tmp_path: Path) -> None:
    """By new id or by title: the same scores. In histories, too; what nobody knows is dropped and counted."""
    title = dict(zip(ids, run.dataset.titles, strict=True))
    items = table(tmp_path / "new.csv", [("new1", "The Tale of a New Item"), ("new2", "Another one")])
    named = {**title, "new1": "The Tale of a New Item", "new2": "Another one"}
    rows = [
        {"history": [*ids[:3], "new2"], "candidates": [*ids[10:13], "new1"]},
        {"history": ["new1"], "candidates": ["new2", ids[4]]},
    ]
    by_id, output = call("rank", tmp_path, run.folder.path, rows, "--items", items, "--method", "sft")
    assert "new.csv: 2 items that the run's catalogue lacks" in output
    assert "2 titles are not in the catalogue" in output  # this backbone was trained from scratch
    titled = [{k: [named[i] for i in v] for k, v in row.items()} for row in rows]
    by_title, _ = call("rank", tmp_path, run.folder.path, titled, "--titles", "--method", "sft")
    for one, other in zip(by_id, by_title, strict=True):
        assert [named[i] for i in one["candidates"]] == other["candidates"]
        np.testing.assert_allclose(one["scores"], other["scores"], atol=1e-5)
    unknown = [{"history": [ids[0], "who"], "candidates": ["new1", "new2"]}]
    [answer], _ = call("rank", tmp_path, run.folder.path, unknown, "--items", items)
    assert answer["unknown"] == 1 and "by" not in answer
    # Nothing of the history is known: popularity answers, for which new items are the least popular.
    [answer], _ = call(
        "rank", tmp_path, run.folder.path, [{"history": ["who"], "candidates": ["new1", *ids[:40]]}], "--items", items
    )
    assert answer["by"] == "popularity" and answer["candidates"].index("new1") > 30


def test_new_items_are_recommended(run: Run, ids: list[str], tmp_path: Path) -> None:
    items = table(tmp_path / "new.csv", [("new1", "A"), (ids[0], run.dataset.titles[0])])
    rows = [{"history": ids[:3], "exclude": ids}]
    [answer], _ = call("recommend", tmp_path, run.folder.path, rows, "--items", items, "--top", 1)
    assert (answer["items"], answer["titles"], answer["exact"]) == (["new1"], ["A"], True)
    [all_of_them], _ = call(
        "recommend", tmp_path, run.folder.path, [{"history": ids[:3]}], "--items", items, "--top", 81
    )
    assert sorted(all_of_them["items"]) == sorted([*ids, "new1"])


def test_the_runs_titles_stay_and_equal_ones_are_told_apart(
    run: Run, ids: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = table(tmp_path / "new.csv", [(ids[1], "Renamed since"), ("twin", run.dataset.titles[0]), ("more", "B")])
    listing = listing_of(run, items)
    assert listing.own == len(ids) and len(listing.ids) == len(ids) + 2
    assert listing.titles[: listing.own] == run.dataset.titles
    assert (listing.ids[-2:], listing.titles[-2:]) == (["twin", "more"], [f"{run.dataset.titles[0]} (2)", "B"])
    said = capsys.readouterr().err
    assert f"1 items such as {ids[1]!r} have another title in the run: that one stays" in said
    assert "1 titles are those of other items and got a number, such as " in said and "data/items.parquet" not in said
    assert listing.recipe != listing_of(run, table(tmp_path / "new.csv", [("twin", "C"), ("more", "B")])).recipe
    assert listing_of(run).recipe == {}


def test_what_cannot_have_new_items_says_so(run: Run, ids: list[str], tmp_path: Path) -> None:
    items = table(tmp_path / "new.csv", [("new1", "A")])
    row = [{"history": ids[:2], "candidates": ["new1", ids[5]]}]
    with pytest.raises(RunError, match="markov cannot rank items that training never met"):
        call("rank", tmp_path, run.folder.path, row, "--items", items, "--method", "markov")
    with pytest.raises(ConfigError, match=r"--items: with --titles any title is read"):
        call("rank", tmp_path, run.folder.path, row, "--items", items, "--titles")
    with pytest.raises(ConfigError, match="--items: for a search of the whole catalogue; --retriever finds items of"):
        call("recommend", tmp_path, run.folder.path, [{"history": ids[:1]}], "--items", items, "--retriever", "markov")
    with pytest.raises(DataError, match=r"new\.csv: item 'x' has no title"):
        call("rank", tmp_path, run.folder.path, row, "--items", table(tmp_path / "new.csv", [("x", ""), ("y", "B")]))
    with pytest.raises(DataError, match=r"item 'new1' is not in the catalogue"):
        call("rank", tmp_path, run.folder.path, row)


@pytest.mark.parametrize("method", ["sft", "markov"])
def test_a_new_user_gets_what_is_popular(run: Run, ids: list[str], tmp_path: Path, method: str) -> None:
    """An empty history is answered as one of unknown items alone; where nobody knows what is popular, it is refused."""
    asked: tuple[Any, ...] = (tmp_path, run.folder.path, [{"history": []}, {"history": ["who"]}])
    (new, unknown), _ = call("recommend", *asked, "--method", method, "--top", 5)
    counts = Popularity().fit(run.dataset.train_sequences(), len(ids)).counts
    assert new["items"] == [ids[i] for i in np.argsort(-counts, kind="stable")[:5]]
    assert new["by"] == "popularity" and "unknown" not in new
    assert unknown == {**new, "line": 2, "unknown": 1}
    refused = pytest.raises(DataError, match="line 1: history is empty; there is nothing to recommend from")
    with refused:
        call("recommend", *asked, "--method", method, "--unknown", "refuse")
    items = table(tmp_path / "items.csv", list(zip(ids, run.dataset.titles, strict=True)))
    with refused:
        call("recommend", tmp_path, run.folder.sft(0) / "best", asked[2], "--items", items)
    [ranked] = load_run_ranker(run, method=method).answers([Request(0, (), tuple(ids[:7]))])
    assert ranked["by"] == "popularity"
    assert ranked["candidates"] == [ids[i] for i in sorted(range(7), key=lambda i: -counts[i])]


@pytest.mark.parametrize("command", ["rank", "recommend"])
@pytest.mark.parametrize("plain", [False, True])
def test_other_items_are_another_task(run: Run, ids: list[str], tmp_path: Path, command: str, plain: bool) -> None:
    """Else the first answers of a file would be of one table and the last ones of another."""
    known = list(zip(ids, run.dataset.titles, strict=True)) if plain else []
    items = table(tmp_path / "items.csv", [*known, ("new1", "A")])
    model = run.folder.sft(0) / "best" if plain else run.folder.path
    slate = {"candidates": ids[3:5]} if command == "rank" else {}
    rows = [{"history": ids[:2], **slate}, {"history": 1, **slate}]
    options = ("--items", items, *(("--no-slate",) if plain and command == "rank" else ()))
    with pytest.raises(DataError, match="line 2: history is 1"):
        call(command, tmp_path, model, rows, *options)
    asked = [command, "--model", model, "--input", tmp_path / "requests.jsonl", "--out", tmp_path / "out.jsonl"]
    for other in ([("new1", "B")], [("new2", "A")]):
        table(items, [*known, *other])
        with pytest.raises(RunError, match="was made from another input, model or options"):
            CliRunner().invoke(cli.app, list(map(str, [*asked, *options])), catch_exceptions=False)


def test_a_plain_model_ranks_ids_of_its_table(run: Run, ids: list[str], tmp_path: Path) -> None:
    folder, titles = run.folder.sft(0) / "best", run.dataset.titles
    items = table(tmp_path / "items.csv", list(zip(ids, titles, strict=True)))
    row = {"history": ids[:2], "candidates": ids[5:9]}
    [by_id], output = call("rank", tmp_path, folder, [row], "--items", items, "--no-slate")
    assert "are read as titles" not in output
    titled = {k: [titles[ids.index(i)] for i in v] for k, v in row.items()}
    [by_title], output = call("rank", tmp_path, folder, [titled], "--no-slate")
    assert "are read as titles" in output
    assert [titles[ids.index(i)] for i in by_id["candidates"]] == by_title["candidates"]
    np.testing.assert_allclose(by_id["scores"], by_title["scores"], atol=1e-5)
    [dropped], _ = call(
        "rank", tmp_path, folder, [{**row, "history": ["who", *ids[:2]]}], "--items", items, "--no-slate"
    )
    assert (dropped["unknown"], dropped["scores"]) == (1, by_id["scores"])
    with pytest.raises(DataError, match="history holds no item of the catalogue"):
        call("rank", tmp_path, folder, [{**row, "history": ["who"]}], "--items", items, "--no-slate")
