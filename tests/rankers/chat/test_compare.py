"""ChatRec through `sirius compare`, against a real endpoint on this machine: table, costs, resuming, no key shown."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, RunError, ScoringError
from sirius_rec.recipes.run_folder import RunFolder

KEY = "sk-Qy42-never-to-be-seen"


def alphabetical(prompt: str) -> str:
    """A model that leaves out the last candidate and makes one up, with the rest in alphabetical order."""
    lines = prompt.split("\n\n")[0].split("Candidates for the next item:\n")[1].splitlines()
    return "Sure:\n" + "\n".join(f"{n}. {title}" for n, title in enumerate([*sorted(lines[:-1]), "A Made-Up One"], 1))


@pytest.fixture
def endpoint(serve: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    started = serve(alphabetical)
    started.key = KEY
    monkeypatch.setenv("CHAT_KEY", KEY)
    return started


def config(folder: Path, endpoint: Any, **options: Any) -> Path:
    made = {"model": "small", "base_url": endpoint.base_url, "key_env": "CHAT_KEY", "backoff": 0.01, "retries": 1}
    raw = {
        "name": "chat",
        "data": {
            "source": "simulated",
            "options": {"n_items": 80, "n_users": 30, "events_per_user": 12},
            "window": {"max_history": 5, "min_history": 5},
            "slates": [{"size": 6}, {"size": 10, "splits": ["test"]}, {"protocol": "full", "splits": ["test"]}],
        },
        "arms": [],
        "methods": [{"method": "chatrec", "options": {**made, **options}}],
        "evaluation": {"generation_rows": 15},
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(raw))
    return folder / "c.yaml"


def compare(file: Path) -> Any:
    out = file.parent / "run"
    return CliRunner().invoke(cli.app, ["compare", str(file), "--out", str(out), "--json", str(file.parent / "t.json")])


def test_the_table_counts_cost_and_a_second_run_asks_nothing(endpoint: Any, tmp_path: Path) -> None:
    file = config(tmp_path, endpoint, price_in=1.0, price_out=10.0)
    result = compare(file)
    assert result.exit_code == 0, result.output
    asked = len(endpoint.requests)
    rows = {r["slates"]: r for r in json.loads((tmp_path / "t.json").read_text())["rows"] if r["method"] == "chatrec"}
    assert set(rows) == {"test-uniform-6-s0", "test-uniform-10-s0"} and "ChatRec (small)" in result.output
    small = rows["test-uniform-6-s0"]
    assert small["valid_ratio"] == 1.0 and small["n_generated"] == 15 and 0 < small["hr@1"] < 0.6
    assert small["requests"] == asked == 2 * small["n"] and small["completion_tokens"] == 3 * asked
    assert small["cost"] == pytest.approx((small["prompt_tokens"] + 10 * small["completion_tokens"]) / 1e6, abs=1e-6)
    before = (tmp_path / "t.json").read_text()
    for table in (tmp_path / "run" / "scores").glob("chatrec*"):
        table.unlink()
    assert compare(file).exit_code == 0
    assert len(endpoint.requests) == asked and (tmp_path / "t.json").read_text() == before


def test_a_stopped_run_goes_on_and_the_key_shows_nowhere(endpoint: Any, tmp_path: Path) -> None:
    file = config(tmp_path, endpoint)
    endpoint.faults = [None] * 10 + [500] * 1000
    result = compare(file)
    assert isinstance(result.exception, ScoringError)
    said = str(result.exception)
    assert "HTTP 500 (no luck), after 2 tries" in said and "answers are kept in" in said and "\n" not in said
    kept = len(list((tmp_path / "run" / "methods" / "chatrec").rglob("*.json")))
    assert kept >= 10 - 4
    endpoint.faults, before = [], len(endpoint.requests)
    done = compare(file)
    assert done.exit_code == 0, done.output
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    needed = next(r["requests"] for r in rows if r["method"] == "chatrec")
    assert len(endpoint.requests) - before == needed - kept
    texts = [p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()] + [done.output.encode(), said.encode()]
    assert not any(KEY.encode() in text for text in texts)


def test_a_wrong_key_is_one_line(endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHAT_KEY", "sk-wrong")
    result = compare(config(tmp_path, endpoint))
    assert isinstance(result.exception, ScoringError)
    assert "does not accept the key in $CHAT_KEY (HTTP 401)" in str(result.exception)
    assert "sk-wrong" not in str(result.exception) + result.output


def replies_from(endpoint: Any, folder: Path) -> Any:
    """Compare against an endpoint that is there."""
    result = compare(config(folder, endpoint))
    assert result.exit_code == 0, (result.output, result.exception)
    return result


def test_after_a_dead_endpoint_the_address_is_mended_in_the_same_folder(
    serve: Callable[..., Any], endpoint: Any, tmp_path: Path
) -> None:
    dead = serve(alphabetical)
    dead.close()
    result = compare(config(tmp_path, dead))
    assert isinstance(result.exception, ScoringError) and "cannot be reached" in str(result.exception)
    run = RunFolder(tmp_path / "run")
    assert not (run.path / "methods").exists()
    replies_from(endpoint, tmp_path)
    assert endpoint.requests and run.config().methods[0].options["base_url"] == endpoint.base_url


@pytest.mark.parametrize("change", ["other options", "another address", "gone", "another model"])
def test_what_may_change_once_some_answers_are_kept(
    serve: Callable[..., Any], endpoint: Any, tmp_path: Path, change: str
) -> None:
    endpoint.faults = [None] * 10 + [500] * 1000
    assert isinstance(compare(config(tmp_path, endpoint)).exception, ScoringError)
    kept = len(list((tmp_path / "run").rglob("answers/*/*.json")))
    endpoint.faults = [500, 500]
    before = len(endpoint.requests)
    if change in ("gone", "another model"):
        file = config(tmp_path, endpoint, model="large")
        if change == "gone":
            file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"methods": ["markov"]}))
        said = {"gone": "methods.chatrec: begun in the folder, missing now",
                "another model": "methods.chatrec.options.model: saved 'small', now 'large'"}[change]  # fmt: skip
        with pytest.raises(RunError, match=re.escape(f"another configuration ({said})")):
            raise compare(file).exception
        return
    if change == "another address":
        other = serve(alphabetical)
        replies_from(other, tmp_path)
        assert len(endpoint.requests) == before and other.requests
        return
    mended = {"timeout": 9.0, "retries": 4, "requests_per_minute": 60000, "concurrency": 1, "price_in": 1.0}
    result = compare(config(tmp_path, endpoint, **mended))
    assert result.exit_code == 0, (result.output, result.exception)
    rows = json.loads((tmp_path / "t.json").read_text())["rows"]
    row = next(r for r in rows if r["method"] == "chatrec")
    assert len(endpoint.requests) - before == row["requests"] - kept + 2, "two faults, which one retry did not survive"
    assert row["cost"] == pytest.approx(row["prompt_tokens"] / 1e6, abs=1e-6)


def test_without_any_answer_chatrec_may_be_taken_away_again(endpoint: Any, tmp_path: Path) -> None:
    endpoint.faults = [404] * 1000
    assert isinstance(compare(config(tmp_path, endpoint)).exception, ScoringError)
    file = config(tmp_path, endpoint)
    raw = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(raw | {"methods": ["markov"]}))
    result = compare(file)
    assert result.exit_code == 0 and "chatrec" not in (tmp_path / "t.json").read_text()


@pytest.mark.slow
def test_mended_prices_are_those_of_the_table(endpoint: Any, tmp_path: Path) -> None:
    replies_from(endpoint, tmp_path)
    asked = len(endpoint.requests)
    assert compare(config(tmp_path, endpoint, price_out=1000.0)).exit_code == 0
    row = next(r for r in json.loads((tmp_path / "t.json").read_text())["rows"] if r["method"] == "chatrec")
    assert row["cost"] == pytest.approx(3 * asked / 1e3) and len(endpoint.requests) == asked


@pytest.mark.slow
def test_answers_that_name_nobody_are_counted_at_the_end(
    serve: Callable[..., Any], endpoint: Any, tmp_path: Path
) -> None:
    assert "named no candidate" not in replies_from(endpoint, tmp_path).output
    (tmp_path / "b").mkdir()
    shy = serve(lambda prompt: "I cannot say." if len(prompt) % 2 else alphabetical(prompt))
    result = replies_from(shy, tmp_path / "b")
    silent = sum(len(r["messages"][0]["content"]) % 2 for r in shy.requests)
    assert 0 < silent < len(shy.requests)
    assert f"chatrec: {silent} of {len(shy.requests)} answers named no candidate" in result.output
    assert result.output.count("named no candidate") == 1


def test_an_endpoint_that_fails_is_known_before_anything_is_trained(endpoint: Any, tmp_path: Path) -> None:
    file = config(tmp_path, endpoint)
    raw = yaml.safe_load(file.read_text())
    raw["methods"].insert(0, {"method": "sasrec", "options": {"epochs": 1}})
    file.write_text(yaml.safe_dump(raw))
    endpoint.faults = [401] * 1000
    result = compare(file)
    assert isinstance(result.exception, ScoringError) and "\n" not in str(result.exception)
    assert "epoch" not in result.output and not (tmp_path / "run" / "methods").exists()
    endpoint.faults = []
    result = compare(file)
    assert result.exit_code == 0 and "sasrec s0  epoch 1" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backbone": {"name": "/no/such"}}, "no such folder"),
        ({"data": {"slates": [{"size": 6, "splits": ["train", "val"]}, {"protocol": "full", "splits": ["test"]}]}},
         "every test slate is the whole catalogue"),
    ],
)  # fmt: skip
def test_nothing_is_asked_while_the_rest_is_unsound(
    endpoint: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    file = config(tmp_path, endpoint)
    sound = yaml.safe_load(file.read_text())
    raw = {**sound, **changes, "data": {**sound["data"], **changes.get("data", {})}}
    if "backbone" in changes:
        raw["methods"] = [*raw["methods"], "zero_shot"]
    file.write_text(yaml.safe_dump(raw))
    result = compare(file)
    assert isinstance(result.exception, ConfigError) and message in str(result.exception)
    assert not endpoint.requests and not (tmp_path / "run").exists()


def test_going_on_asks_before_others_are_trained(endpoint: Any, tmp_path: Path) -> None:
    """Also where the first rows have their answers already."""
    file = config(tmp_path, endpoint)
    endpoint.faults = [None] * 5 + [401] * 1000
    assert isinstance(compare(file).exception, ScoringError)
    raw = yaml.safe_load(file.read_text())
    raw["methods"].insert(0, {"method": "sasrec", "options": {"epochs": 1}})
    file.write_text(yaml.safe_dump(raw))
    result = compare(file)
    assert isinstance(result.exception, ScoringError) and "epoch" not in result.output
