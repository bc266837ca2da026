"""`sirius recommend` on trained runs and a plain model: the order of scoring everything, its options and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, DataError, PromptError, RunError, ScoringError
from sirius_rec.rankers.answers import PARTIAL
from sirius_rec.rankers.catalogue import top as catalogue_top
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes import listing
from sirius_rec.recipes.listing import listing_of
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.ranking import Served, chosen_method, load_run_ranker, title_scorer
from sirius_rec.recipes.recommending import Scored, Searched, Shelf, load_run_recommender
from sirius_rec.recipes.reranking import Reranked
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.scorers import CatalogueScorer, TitleScorer


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The catalogue here is so small that everything would be scored."""
    monkeypatch.setattr(catalogue_top, "expected_cost", lambda trie, k, width: (1.0, 2.0))


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def recommend(tmp_path: Path, model: Any, rows: list[dict[str, Any]], *arguments: Any) -> list[dict[str, Any]]:
    requests, out = write(tmp_path / "requests.jsonl", rows), tmp_path / "out.jsonl"
    out.unlink(missing_ok=True)
    asked = ["recommend", "--model", model, "--input", requests, "--out", out, *arguments]
    result = CliRunner().invoke(cli.app, list(map(str, asked)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in out.read_text().splitlines()]


def all_scores(run: Run, method: str, history: list[str], candidates: list[str]) -> Any:
    served = load_run_ranker(run, method=method, seed=None, checkpoint="best", titles=False)
    return np.asarray(served.score([Request(1, tuple(history), tuple(candidates))])[0], dtype=np.float64)


def test_a_recommender_has_no_scores_of_candidates(run: Run, ids: list[str]) -> None:
    served = load_run_recommender(run, method="markov", seed=None, checkpoint="best", titles=False, top=1,
                                  exclude_seen=False, max_opened=None)  # fmt: skip
    with pytest.raises(TypeError, match="markov recommends from a catalogue: call respond"):
        served.score([Request(1, (ids[0],), (ids[1],))])


@pytest.mark.parametrize("method", ["sft", "markov"])
def test_the_first_of_all_items(run: Run, ids: list[str], tmp_path: Path, searched: None, method: str) -> None:
    title = dict(zip(ids, run.dataset.titles, strict=True))
    histories = [ids[3:6], ids[40:41], ids[10:20]]
    rows = [{"history": history, "id": n} for n, history in enumerate(histories)]
    rows.append({"history": ids[3:6], "exclude": [*ids[::2], "sold out long ago"]})
    for extra in ((), ("--exclude-seen",)):
        answers = recommend(tmp_path, run.folder.path, rows, "--method", method, "--top", 7, *extra)
        assert [answer["line"] for answer in answers] == [1, 2, 3, 4]
        assert [answer.get("id") for answer in answers] == [0, 1, 2, None]
        for row, answer in zip(rows, answers, strict=True):
            unwanted = {*row.get("exclude", []), *(row["history"] if extra else ())}
            left = [item for item in ids if item not in unwanted]
            scores = all_scores(run, method, row["history"], left)
            order = np.argsort(-scores, kind="stable")[:7]
            np.testing.assert_allclose(answer["scores"], scores[order], atol=2e-5)
            if (np.diff(scores[order]) < -1e-4).all() or method == "markov":
                assert answer["items"] == [left[i] for i in order]
            assert answer["titles"] == [title[item] for item in answer["items"]]
            assert answer["exact"] is True
            assert (answer["opened"] > 0) == (method == "sft")


def test_titles_unknown_items_and_what_is_left(run: Run, ids: list[str], tmp_path: Path, searched: None) -> None:
    titles = run.dataset.titles
    by_id = recommend(tmp_path, run.folder.path, [{"history": ids[:3]}], "--method", "sft", "--top", 3)
    given = ("--method", "sft", "--top", 3, "--titles")
    by_title = recommend(tmp_path, run.folder.path, [{"history": titles[:3]}], *given)
    assert by_title == by_id
    dropped, popular = recommend(
        tmp_path,
        run.folder.path,
        [{"history": ["who?", *ids[:3]]}, {"history": ["who?"]}],
        "--method",
        "sft",
        "--top",
        3,
    )
    assert dropped == {**by_id[0], "unknown": 1}
    counts = np.bincount(np.concatenate(run.dataset.train_sequences()), minlength=len(ids))
    assert popular["by"] == "popularity"
    assert popular["items"] == [ids[i] for i in np.argsort(-counts, kind="stable")[:3]]
    # All but two are excluded: these two are the answer.
    (few,) = recommend(tmp_path, run.folder.path, [{"history": ids[:3], "exclude": ids[2:]}], "--method", "sft")
    assert sorted(few["items"]) == sorted(ids[:2])


def test_a_budget_is_marked(run: Run, ids: list[str], tmp_path: Path) -> None:
    (answer,) = recommend(tmp_path, run.folder.path, [{"history": ids[:3]}], "--method", "sft", "--max-opened", 2)
    assert answer["exact"] is False
    assert answer["opened"] == 2
    assert answer["bound"] < 0
    assert len(answer["items"]) <= 10


def test_a_plain_model_with_a_table_of_items(run: Run, ids: list[str], tmp_path: Path, searched: None) -> None:
    table = items_table(tmp_path / "items.csv", ids, run.dataset.titles)
    model = run.folder.path / "sft/s0/best"
    plain = recommend(tmp_path, model, [{"history": ids[:3]}], "--items", table, "--max-history", 5)
    assert plain == recommend(tmp_path, run.folder.path, [{"history": ids[:3]}], "--method", "sft")
    for rest, error, why in (
        ((), ConfigError, "--items: .* is no run folder: name its catalogue, a table of item_id and title"),
        (("--items", table, "--top", 5000), ConfigError, "--top 5000: the catalogue has 80 items: ask for 1 to 80"),
    ):
        with pytest.raises(error, match=why):
            recommend(tmp_path, model, [{"history": ids[:3]}], *rest)
    table.write_text("item_id,title\n1,Air\n2,\n")
    with pytest.raises(DataError, match=r"items\.csv: item '2' has no title: give it one, or leave it out"):
        recommend(tmp_path, model, [{"history": ["1"]}], "--items", table, "--top", 1)


def test_numbers_behind_equal_titles_are_the_tables_own(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model knows "Air (2)" as the item that a preparation called so: whoever lists others is told."""
    table = items_table(tmp_path / "items.csv", ["1", "2", "3"], ["Air", "Low", "Air"])
    said: list[str] = []
    monkeypatch.setattr(listing, "log", said.append)
    recommend(tmp_path, run.folder.path / "sft/s0/best", [{"history": ["1"]}], "--items", table, "--top", 1)
    [line] = said
    assert f"warning: {table}: 1 titles are those of an earlier item and got a number, such as 'Air (2)'" in line


def items_table(path: Path, ids: list[str], titles: list[str]) -> Path:
    path.write_text("item_id,title\n" + "".join(f'{i},"{t}"\n' for i, t in zip(ids, titles, strict=True)))
    return path


def test_a_plain_model_drops_what_its_table_lacks(run: Run, ids: list[str], tmp_path: Path) -> None:
    plain = (run.folder.path / "sft/s0/best", "--items", items_table(tmp_path / "items.csv", ids, run.dataset.titles))

    def answers(*histories: list[str], options: tuple[str, ...] = ()) -> list[dict[str, Any]]:
        return recommend(tmp_path, plain[0], [{"history": history} for history in histories], *plain[1:], *options)

    [known] = answers(ids[:3])
    assert answers(["who?", *ids[:2], "and who?", ids[2]]) == [{**known, "unknown": 2}]
    with pytest.raises(DataError, match="line 1: history holds no item of the catalogue; there is nothing to go by"):
        answers(["who?"])
    bad, good = answers(["who?"], ids[:3], options=("--skip-bad",))
    assert "history holds no item of the catalogue" in bad["error"] and good == {**known, "line": 2}
    with pytest.raises(DataError, match=r"item 'who\?' is not in the catalogue"):
        answers(["who?", *ids[:2]], options=("--unknown", "refuse"))


def test_a_language_model_reads_any_title_and_unknown_is_no_option(run: Run, ids: list[str], tmp_path: Path) -> None:
    rows, model = [{"history": ["Nobody Knows This", f" {run.dataset.titles[0]}"]}], run.folder.path
    table = items_table(tmp_path / "items.csv", ids, run.dataset.titles)
    assert recommend(tmp_path, model, rows, "--method", "sft", "--titles")[0].keys() & {"unknown", "by"} == set()
    for source in ((model, "--method", "sft"), (model / "sft/s0/best", "--items", table)):
        for choice in ("drop", "refuse"):
            with pytest.raises(ConfigError, match=f"--unknown {choice}: a language model reads any title"):
                recommend(tmp_path, source[0], rows, *source[1:], "--titles", "--unknown", choice)
    assert not list(tmp_path.glob("out*"))
    [scored] = recommend(tmp_path, model, rows, "--method", "markov", "--titles", "--unknown", "drop")
    assert scored["unknown"] == 1


def test_other_ids_of_the_same_titles_are_another_catalogue(
    run: Run, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the first answers of a file would name items by the old ids and the last ones by the new."""
    table = items_table(tmp_path / "items.csv", ids, run.dataset.titles)
    requests = write(tmp_path / "requests.jsonl", [{"history": ids[:2]}, {"history": []}])
    asked = ["recommend", "--model", run.folder.path / "sft/s0/best", "--items", table, "--input", requests,
             "--out", tmp_path / "out.jsonl"]  # fmt: skip
    for other, why in (
        ([], "line 2: history is empty"),
        (["--max-opened", "5"], "was made from another input, model or options"),
    ):
        with pytest.raises((DataError, RunError), match=why):
            CliRunner().invoke(cli.app, list(map(str, [*asked, *other])), catch_exceptions=False)
    items_table(table, [*ids[:2], *(f"new-{i}" for i in ids[2:])], run.dataset.titles)
    with pytest.raises(RunError, match="was made from another input, model or options"):
        CliRunner().invoke(cli.app, list(map(str, [*asked, "--skip-bad"])), catch_exceptions=False)


class Given:
    """A ranker that gives the first items these scores, whatever the history, and all others 0."""

    def __init__(self, *scores: float) -> None:
        self.scores = np.array(scores)

    def score(self, histories: Any, candidates: list[np.ndarray]) -> list[np.ndarray]:
        return [np.where(items < len(self.scores), self.scores[items % len(self.scores)], 0.0) for items in candidates]


@pytest.mark.parametrize("worst", [float("nan"), float("inf"), float("-inf")])
def test_a_score_that_is_no_number_is_seen_also_where_it_is_not_shown(worst: float) -> None:
    shelf = Shelf(["a", "b", "c"], ["A", "B", "C"], titles_given=False, top=1, exclude_seen=False)
    damaged, sound = (CatalogueScorer(Given(*s), "it", shelf.names) for s in ((worst, 2.0, 1.0), (3.0, 2.0, 1.0)))
    asked = [Request(7, ("a",))]
    assert Scored(shelf, sound).respond(asked)[0]["items"] == ["a"]
    ranker = Served("it", {}, lambda requests: [[1.0, worst][: len(r.candidates)] for r in requests], lambda r: None)
    for reading in (Scored(shelf, damaged), Reranked(shelf, damaged, ranker, 2), Reranked(shelf, sound, ranker, 2)):
        with pytest.raises(ScoringError, match="line 7: a score is not a finite number; the model's weights are dama"):
            reading.respond(asked)


def test_titles_with_control_characters_are_named_as_they_are() -> None:
    titles = ["Air", "Blur\x1fLive", "Can"]
    shelf = Shelf(["a", "b", "c"], titles, titles_given=True, top=3, exclude_seen=True)
    scored = Scored(shelf, CatalogueScorer(Given(1.0, 3.0, 2.0), "it", shelf.names, titles=True))
    assert scored.respond([Request(1, ("Air",))])[0]["titles"] == ["Blur\x1fLive", "Can"]
    assert scored.respond([Request(1, (" Blur\x1fLive",))])[0]["titles"] == ["Can", "Air"]


def test_a_method_that_cannot_is_told_from_one_that_is_not_trained(
    run: Run, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RunError, match=r"markov cannot search titles; trained and able to: sft \(seed 0\)$"):
        chosen_method(run, "markov", None, lambda method: method.reads_titles, "search titles")
    with pytest.raises(RunError, match=r"dpo_sirius is not trained; there is sft \(seed 0\), markov \(seed 0\)$"):
        recommend(tmp_path, run.folder.path, [{"history": ids[:2]}], "--method", "dpo_sirius")
    monkeypatch.setattr(type(build_methods(run.config)["markov"]), "ranks_catalogue", False)
    with pytest.raises(RunError, match=r"markov cannot rank a whole catalogue; trained and able to: sft \(seed 0\)$"):
        recommend(tmp_path, run.folder.path, [{"history": ids[:2]}], "--method", "markov")


def test_it_goes_on_where_it_was_stopped(
    run: Run, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"history": [ids[n % 80], ids[(n + 7) % 80]]} for n in range(70)]
    whole = recommend(tmp_path, run.folder.path, rows, "--method", "sft")
    (tmp_path / "out.jsonl").unlink()
    kept, calls = TitleScorer.top_k, list[int]()

    def dies(self: Any, requests: list[Request], *rest: Any, **options: Any) -> Any:
        calls.append(len(requests))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return kept(self, requests, *rest, **options)

    monkeypatch.setattr(TitleScorer, "top_k", dies)
    asked = ["recommend", "--model", run.folder.path, "--input", tmp_path / "requests.jsonl", "--method", "sft",
             "--out", tmp_path / "out.jsonl"]  # fmt: skip
    CliRunner().invoke(cli.app, list(map(str, asked)))
    assert not (tmp_path / "out.jsonl").exists()
    assert len((tmp_path / f"out.jsonl{PARTIAL}").read_text().splitlines()) == 1 + 64
    for other in (["--exclude-seen"], ["--max-opened", "5"], ["--top", "3"], ["--unknown", "refuse"]):
        with pytest.raises(RunError, match="was made from another input, model or options"):
            CliRunner().invoke(cli.app, [*map(str, asked), *other], catch_exceptions=False)
    assert CliRunner().invoke(cli.app, list(map(str, asked))).exit_code == 0
    assert calls == [32, 32, 6, 6]
    answers = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert answers == whole


def test_bad_requests_are_one_line_each(run: Run, trained: Run, ids: list[str], tmp_path: Path) -> None:
    for row, why in (
        ({}, "line 1: history is missing; give a list"),
        ({"history": ids[:1], "candidates": ids[:2]}, "unknown field 'candidates'; known are id, history, exclude"),
        ({"history": ids[:1], "exclude": "all"}, "exclude is 'all'; give a list"),
    ):
        with pytest.raises(DataError, match=why):
            recommend(tmp_path, run.folder.path, [row])
    with pytest.raises(DataError, match="item 'who' is not in the catalogue"):
        recommend(tmp_path, run.folder.path, [{"history": ["who"]}], "--unknown", "refuse")
    with pytest.raises(ConfigError, match="--top 81: the catalogue has 80 items: ask for 1 to 80"):
        recommend(tmp_path, run.folder.path, [{"history": ids[:1]}], "--top", 81)
    with pytest.raises(ConfigError, match=r"prompts list the candidates.*: train with prompts\.slate: false"):
        recommend(tmp_path, trained.folder.path, [{"history": ids[:1]}])
    (skipped, good) = recommend(tmp_path, run.folder.path, [{"history": 1}, {"history": ids[:1]}], "--skip-bad")
    assert skipped == {"line": 1, "error": "history is 1; give a list"}
    assert len(good["items"]) == 10


def test_a_history_that_leaves_no_room_for_the_longest_title(run: Run, ids: list[str], tmp_path: Path) -> None:
    ranker = build_methods(run.config)["sft"].ranker(run, 0, "best")
    requests = title_scorer(run, ranker, listing_of(run), titles=False)
    shelf = Shelf(ids, run.dataset.titles, titles_given=False, top=1, exclude_seen=False)
    searched = Searched(shelf, requests, None)
    assert requests.check(Request(1, tuple(ids[:3]))) is None
    prompt = len(requests.encoder.prompt(requests._prompt(Request(1, tuple(ids[:3])))))
    requests.context = prompt + searched.trie.longest - 2
    assert "prompt and longest candidate take" in str(requests.check(Request(1, tuple(ids[:3]))))
    requests.model.resize_token_embeddings(20)
    with pytest.raises(
        PromptError, match=r"titles of the catalogue: token id .* lies outside the model's 20 embeddings"
    ):
        Searched(shelf, requests, None)


def test_a_retriever_finds_and_the_model_orders(run: Run, ids: list[str], tmp_path: Path) -> None:
    history = ids[3:8]
    arguments = ["--retriever", "markov", "--retrieve", 12, "--top", 5, "--exclude-seen", "--method", "sft"]
    [answer] = recommend(tmp_path, run.folder.path, [{"history": history, "exclude": [ids[20]]}], *arguments)
    left = [n for n in range(len(ids)) if ids[n] not in {*history, ids[20]}]
    shown = [np.array([ids.index(i) for i in history])]
    scores = build_methods(run.config)["markov"].ranker(run, 0, "best").score(shown, [np.array(left)])[0]
    found = sorted(left[i] for i in np.argsort(-scores, kind="stable")[:12])
    ranker = load_run_ranker(run, method="sft", seed=None, checkpoint="best", titles=False)
    [own] = ranker.score([Request(1, tuple(history), tuple(ids[i] for i in found), False, None)])
    expected = [ids[found[i]] for i in np.argsort(-np.asarray(own), kind="stable")[:5]]
    assert answer["items"] == expected and answer["exact"] is False
    assert answer["scores"] == pytest.approx(sorted(own, reverse=True)[:5], abs=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--retriever", "sft"], "--retriever sft: does not score the whole catalogue: name one of"),
        (["--retriever", "markov", "--retrieve", 5], "--retrieve 5: fewer candidates than --top 10"),
        (["--retriever", "markov", "--max-opened", 5], "--max-opened: bounds a search"),
    ],
)
def test_a_retriever_that_cannot_be_is_refused(
    run: Run, ids: list[str], tmp_path: Path, arguments: list[Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recommend(tmp_path, run.folder.path, [{"history": ids[:2]}], *arguments)


def test_of_equal_scores_the_more_popular_item_comes_first() -> None:
    """A formula that met nothing of a history in training has 0 for all items; the first of the catalogue are no answer
    to that."""
    shelf = Shelf(["a", "b", "c", "d"], ["A", "B", "C", "D"], titles_given=False, top=3, exclude_seen=False)

    class Flat:
        def score(self, histories: Any, candidates: Any) -> Any:
            return [np.where(items == 3, 1.0, 0.0) for items in candidates]

    scorer = CatalogueScorer(Flat(), "flat", shelf.names)
    asked = [Request(1, ("a",)), Request(2, ("a",), exclude=("c",))]
    answers = Scored(shelf, scorer, np.array([1.0, 2.0, 5.0, 0.0])).respond(asked)
    assert [answer["items"] for answer in answers] == [["d", "c", "b"], ["d", "b", "a"]]
    assert Scored(shelf, scorer).respond(asked[:1])[0]["items"] == ["d", "a", "b"]


def test_a_process_of_ones_own_answers_as_the_commands_do(run: Run, ids: list[str], tmp_path: Path) -> None:
    """Unknown items are dropped and marked, popularity answers for nothing else, and what is wrong is said."""
    rows = [{"history": [*ids[3:6], "an item of tomorrow"], "id": 7}, {"history": ["an item of tomorrow"]}]
    lines = recommend(tmp_path, run.folder.path, rows, "--top", 3, "--method", "markov", "--exclude-seen")
    asked = [Request(0, tuple(rows[0]["history"]), key=7, named=True), Request(0, tuple(rows[1]["history"]))]
    recommender = load_run_recommender(run, method="markov", top=3, exclude_seen=True)
    assert recommender.answers(asked) == lines
    assert lines[0]["unknown"] == 1 and lines[1]["by"] == "popularity"
    with pytest.raises(TypeError, match="answers with as many items as it was loaded for: leave top out"):
        recommender.answers(asked, top=2)
    text: Any = "314"
    some = [Request(0, ()), Request(0, text, key="a", named=True), Request(0, tuple(ids[3:6]), candidates=("1",))]
    good = Request(0, tuple(ids[3:6]))
    empty, torn, slate, fine = recommender.answers([*some, good])
    assert empty["by"] == "popularity"
    assert torn == {"line": 2, "id": "a", "error": "history is '314'; give a list"}
    assert "unknown field 'candidates'" in slate["error"] and len(fine["items"]) == 3

    requests = write(tmp_path / "rank.jsonl", [row | {"candidates": ids[8:12]} for row in rows])
    arguments = ["rank", "--model", run.folder.path, "--input", requests, "--out", tmp_path / "ranked.jsonl"]
    result = CliRunner().invoke(cli.app, [*map(str, arguments), "--method", "markov", "--top", "2"])
    assert result.exit_code == 0, result.output
    ranker = load_run_ranker(run, method="markov")
    slates = [replace(request, candidates=tuple(ids[8:12])) for request in asked]
    assert ranker.answers(slates, top=2) == [
        json.loads(x) for x in (tmp_path / "ranked.jsonl").read_text().splitlines()
    ]
    [refused] = ranker.answers([Request(0, (ids[0],), (ids[1], ids[1]))])
    assert refused == {"line": 1, "error": f"candidate {ids[1]!r} is duplicated"}


def test_a_checkpoint_that_no_training_leaves_is_named(run: Run) -> None:
    for load in (load_run_ranker, load_run_recommender):
        with pytest.raises(ConfigError, match="checkpoint 'final': checkpoints are best and last"):
            load(run, method="markov", checkpoint="final")
