"""What `sirius theory` prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sirius_rec.cli import app
from sirius_rec.theory import claims


def test_example_1_as_printed_and_as_meant() -> None:
    printed, meant = claims.example_1()
    assert printed["rewards"] == [-6.0, -6.5, -4.0] and meant["rewards"] == [-6.0, -6.5, -3.0]
    assert (printed["p_ij"], printed["p_ik"], printed["sensitivity"]) == pytest.approx((0.622, 0.119, 0.447), abs=5e-4)
    assert (meant["p_ik"], meant["sensitivity"]) == pytest.approx((0.047, 0.192), abs=5e-4)


def test_errata_quote_the_computed_figures() -> None:
    text = json.dumps(claims.errata(), ensure_ascii=False)
    for figure in ("30.3%", "18.8%", "0.119", "0.447", "0.047", "0.192", "0.818"):
        assert figure in text


def test_command(tmp_path: Path) -> None:
    out, file = tmp_path / "theory", tmp_path / "theory.json"
    result = CliRunner().invoke(app, ["theory", "--out", str(out), "--json", str(file), "--points", "20000"])
    assert result.exit_code == 0, result.output
    assert "0.3029" in result.output and "0.1884" in result.output and "Example 1" in result.output
    content = json.loads(file.read_text())
    rows = {(row["epsilon"], row["coordinates"]): row for row in content["areas"]}
    assert {"epsilon", "coordinates", "area", "monte_carlo", "stderr"} <= set(content["areas"][0])
    assert rows[0.99, "p_ij,p_kj"]["area"] == pytest.approx(0.6384, abs=5e-5)
    assert all(abs(row["area"] - row["monte_carlo"]) < 5 * row["stderr"] for row in content["areas"])
    assert {path.name for path in out.iterdir()} == {"figure2.png", "figure2.svg", "figure5.png", "figure5.svg"}
    assert (out / "figure2.png").read_bytes()[:4] == b"\x89PNG" and "<svg" in (out / "figure5.svg").read_text()


def test_another_model(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    arguments = ["theory", "--out", str(tmp_path / "o"), "--model", "thurstone", "--points", "20000"]
    assert CliRunner().invoke(app, [*arguments, "--json", str(file)]).exit_code == 0
    content = json.loads(file.read_text())
    assert content["model"] == "thurstone"
    assert all(row["printed"] is None for row in content["areas"])
    # φ(2)/φ(0.5) = e^(−2 + 0.125)
    assert content["example1"][0]["sensitivity"] == pytest.approx(0.1534, abs=1e-4)
