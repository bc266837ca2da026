"""ChatRec through `sirius compare`, against a real endpoint on this machine: table, costs, resuming, no key shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ScoringError

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
