"""What of a begun arm or method may change: a method's own seeds grow, chatrec's plumbing is mended, nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.errors import RunError
from sirius_rec.recipes.adoption import adopt, open_run
from sirius_rec.recipes.run_folder import RunFolder

Mini = Callable[..., Config]
CHAT = "{method: chatrec, options: {model: small, %s}}"


def begun(path: Path, config: Config, *keys: str) -> RunFolder:
    run = open_run(path, config)
    for key in keys:
        (run.method(key, 0) if any(m.key == key for m in config.methods) else run.arm(key, 0)).mkdir(parents=True)
    return run


@pytest.mark.parametrize(
    ("before", "after", "difference"),
    [
        ("methods=[ease, {method: sasrec, options: {epochs: 1}}]", "methods=[{method: sasrec, options: {epochs: 2}}]",
         r"methods\.sasrec\.options\.epochs: saved 1, now 2"),
        ("methods=[sasrec]", "methods=[{method: sasrec, options: {epochs: 2}}]",
         r"methods\.sasrec\.options\.epochs: saved not set, now 2"),
        ("methods=[sasrec]", "methods=[{method: sasrec, name: s, preset: paper}]",
         r"methods\.sasrec: begun in the folder, missing now"),
        ("methods=[{method: sasrec, name: s}]", "methods=[{method: sasrec, name: s, preset: paper}]",
         r"methods\.s\.preset: saved 'tuned', now 'paper'"),
        ("methods=[{method: sasrec, seeds: [0, 1]}]", "methods=[{method: sasrec, seeds: [0, 2]}]",
         r"methods\.sasrec\.seeds: saved \[0, 1\], now \[0, 2\]"),
        ("methods=[{method: sasrec, seeds: [0, 1]}]", "methods=[sasrec]",
         r"methods\.sasrec\.seeds: saved \[0, 1\], now \[0\]"),
        ("arms=[{loss: dpo, beta: 0.1}, simpo]", "arms=[simpo, {loss: dpo, beta: 0.2}]",
         r"arms\.dpo\.beta: saved 0\.1, now 0\.2"),
        (f"methods=[{CHAT % ''}]", f"methods=[{CHAT % 'parameters: {top_p: 0.5}'}]",
         r"methods\.chatrec\.options\.parameters: saved not set, now \{'top_p': 0\.5\}"),
        (f"methods=[{CHAT % ''}]", "methods=[{method: chatrec, options: {model: large}}]",
         r"methods\.chatrec\.options\.model: saved 'small', now 'large'"),
    ],
)  # fmt: skip
def test_the_entry_and_the_option_that_differ_are_named(
    mini: Mini, tmp_path: Path, before: str, after: str, difference: str
) -> None:
    arms = () if "arms" in before else ("arms=[dpo]",)
    evaluation = "evaluation.baseline=random"
    run = begun(tmp_path / "run", mini(*arms, evaluation, before), "sasrec", "s", "dpo", "chatrec")
    with pytest.raises(RunError, match=f"another configuration \\({difference}\\): choose another --out") as caught:
        open_run(run.path, mini(*arms, evaluation, after))
    assert "\n" not in str(caught.value) and "{'method'" not in str(caught.value)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("{method: sasrec, seeds: [0]}", "{method: sasrec, seeds: [2, 0, 1]}"),
        ("sasrec", "{method: sasrec, seeds: [0, 1]}"),
        ("{method: sasrec, seeds: [0]}", "sasrec"),
        (CHAT % "", CHAT % "base_url: 'http://127.0.0.1:9/v1', key_env: MINE, timeout: 5, retries: 9, backoff: 2"),
        (CHAT % "requests_per_minute: 5, concurrency: 2, price_in: 1, price_out: 2", CHAT % "price_in: 3"),
    ],
)
def test_seeds_may_grow_and_plumbing_be_mended(mini: Mini, tmp_path: Path, before: str, after: str) -> None:
    """The new values are the folder's, once it is adopted."""
    run = begun(tmp_path / "run", mini(f"methods=[{before}]"), "sasrec", "chatrec")
    changed = mini(f"methods=[{after}]")
    adopt(open_run(run.path, changed), changed)
    assert run.config() == changed


def test_only_the_new_seed_is_trained(tmp_path: Path) -> None:
    def compare(seeds: list[int]) -> Any:
        raw = {
            "name": "grows",
            "data": {
                "source": "simulated",
                "options": {"n_items": 80, "n_users": 60, "events_per_user": 14},
                "window": {"max_history": 5, "min_history": 5},
                "slates": [{"size": 6}],
            },
            "arms": [],
            "methods": [{"method": "sasrec", "seeds": seeds, "options": {"epochs": 1}}],
            "compute": {"device": "cpu", "threads": 1},
        }
        (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
        result = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
        assert result.exit_code == 0, (result.output, result.exception)
        return result.output

    assert "sasrec s0  epoch 1" in compare([0])
    weights = tmp_path / "run" / "methods" / "sasrec" / "s0" / "weights.safetensors"
    written = weights.stat().st_mtime_ns
    output = compare([0, 1])
    assert "sasrec s1  epoch 1" in output and "sasrec s0  epoch" not in output
    assert weights.stat().st_mtime_ns == written and (weights.parents[1] / "s1" / "done.json").is_file()
