"""`sirius paper`: the paper's values, ours beside them, formats, what lacks."""

from __future__ import annotations

import csv
import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.results import FORMAT
from sirius_rec.report import paper_values
from sirius_rec.report.formats import Table
from sirius_rec.report.paper import ROWS, find, paper_table


def row(method: str, hit: float, slates: str = "test-uniform-20-s0") -> dict[str, Any]:
    made: dict[str, Any] = {"method": method, "slates": slates, "checkpoint": "best", "seeds": [0, 1], "n": 500}
    for metric in ("hr@1", "hr@5", "ndcg@5", "hr@10", "ndcg@10", "valid_ratio"):
        made |= {metric: hit, f"{metric}_low": hit - 0.01, f"{metric}_high": hit + 0.01}
    return made


def results(source: str = "lastfm") -> dict[str, Any]:
    arms = [
        {"loss": "dpo", "name": None, "anchor_constant": None},
        {"loss": "dpo", "name": "dpo_b2", "anchor_constant": None},
        {"loss": "simpo_no_ln_sirius", "name": "ten", "anchor_constant": 10.0},
    ]
    methods = [{"method": "sasrec", "name": None, "preset": preset} for preset in ("tuned", "paper")]
    points = [{"epoch": e, "hr@1": 0.1 * e} for e in (0.0, 0.5, 1.0, 2.0)]
    return {
        "format": FORMAT,
        "config": {"arms": arms, "methods": methods, "backbone": {"name": "tiny"}},
        "data": {"source": source, "statistics": {"n_sequences": 1220, "n_items": 4606, "n_interactions": 73510}},
        "summary": [row("dpo", 0.3), row("dpo_b2", 0.9), row("sasrec", 0.2), row("sasrec_paper", 0.25), row("ten", 0.4),
                    row("dpo", 0.1, "test-uniform-100-s0"), row("ten", 0.15, "test-uniform-100-s0")],
        "curves": {"ten": {"0": points, "1": [{**p, "hr@1": p["hr@1"] + 0.2} for p in points]}},
    }  # fmt: skip


def cells(table: Table, label: str) -> list[str]:
    return next(list(line[1:]) for line in table.rows if line[0] == label)


def test_ours_stand_beside_the_papers() -> None:
    table = paper_table(1, [results()])
    assert cells(table, "DPO")[:4] == ["0.3000 [0.290, 0.310]", "0.6393", "0.3000 [0.290, 0.310]", "0.9984"]
    assert cells(table, "SASRec")[:2] == ["0.2500 [0.240, 0.260]", "0.2492"]  # with the paper's settings
    assert cells(table, "S-DPO")[0] == "–" and cells(table, "DPO")[4] == "–"
    assert len(table.headings) == 13 and [line[0] for line in table.rows] == list(ROWS)
    assert any("backbone tiny" in note and "500 rows, 2 seeds" in note for note in table.notes)
    assert "Ours are sasrec_paper for sasrec, ten for simpo_no_ln_sirius." in table.notes
    assert table.notes[-1].startswith("Missing: arms or methods gru4rec, caser,")


def test_every_table_has_the_papers_values() -> None:
    assert cells(paper_table(2, [results()]), "LastFM") == ["1,220", "1,220", "4,606", "4,606", "73,510", "73,510"]
    third = paper_table(3, [results()])
    assert cells(third, "SASRec HR@10")[:2] == ["0.2500 [0.240, 0.260]", "0.5082"]
    assert cells(paper_table(4, [results()]), "SimPO w/o LN + SIRIUS")[:2] == ["0.4000 [0.390, 0.410]", "0.7640"]
    assert cells(paper_table(5, [results()]), "SimPO w/o LN + SIRIUS")[:2] == ["0.1500 [0.140, 0.160]", "0.2665"]
    sixth = cells(paper_table(6, [results()]), "LastFM, r_0 = 10")
    assert sixth[::2] == ["0.1000", "0.2000", "0.3000", "–", "–", "–"] and sixth[1] == "0.6239"


def test_the_papers_tables_agree_with_each_other() -> None:
    """Table 3 repeats Table 1's HR@1 (GRU4Rec on Steam is 0.4121 and 0.4120), Table 6 ends where Table 1 stands."""
    for label, by_data in paper_values.TABLE_3.items():
        for dataset, values in by_data.items():
            assert values[0] == pytest.approx(paper_values.TABLE_1[label][dataset][0], abs=1.01e-4)
    for dataset in ("lastfm", "goodreads"):
        assert paper_values.TABLE_6[dataset][0][-1] == paper_values.TABLE_1["SimPO w/o LN + SIRIUS"][dataset][0]
    assert set(paper_values.TABLE_1) == set(ROWS)


def test_which_method_stands_for_a_row() -> None:
    assert find(results(), "dpo") == "dpo" and find(results(), "sasrec") == "sasrec_paper"
    assert find(results(), "simpo_no_ln_sirius") == "ten" and find(results(), "caser") is None


def test_formats() -> None:
    table = Table("A_b", ["x", "y 50%"], [["p|q", "−1"], ["a & b", "2"]], ["R^2"])
    assert table.text("md") == "**A_b**\n\n| x | y 50% |\n|---|---:|\n| p\\|q | −1 |\n| a & b | 2 |\n\n- R^2\n"
    assert list(csv.reader(io.StringIO(table.text("csv")))) == [["x", "y 50%"], ["p|q", "−1"], ["a & b", "2"]]
    tex = table.text("tex")
    assert r"\caption{A\_b}" in tex and r"a \& b & 2 \\" in tex and r"y 50\%" in tex and "$-$1" in tex
    assert tex.count(r"\begin") == tex.count(r"\end{") == 2


def run(*arguments: Any) -> Any:
    return CliRunner().invoke(cli.app, ["paper", *map(str, arguments)], catch_exceptions=False)


def test_the_command(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text(json.dumps(results("windows")))
    result = run(f"lastfm={tmp_path}", "--table", 2, "--format", "csv", "--out", tmp_path / "t.csv")
    assert result.exit_code == 0 and "1,220" in (tmp_path / "t.csv").read_text()
    assert "0.6393" in run(f"lastfm={tmp_path / 'results.json'}", "--table", 1).output
    for table in (1, 2):
        output = " ".join(run(f"lastfm={tmp_path}", "--table", table).output.split())
        assert "Ours, lastfm (named so; data.source windows)" in output
    with pytest.raises(ConfigError, match=r"nothing of it in these runs \(data: windows; NAME=RUN"):
        run(tmp_path, "--table", 1)
    with pytest.raises(ConfigError, match="name one of --table"):
        run(tmp_path)
    with pytest.raises(ConfigError, match="the paper has figures 1b, 2"):
        run(tmp_path, "--figure", 7)
    with pytest.raises(ConfigError, match="run `sirius report` first"):
        run(tmp_path, "--figure", "1b")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "margin_dpo.png").write_bytes(b"png")
    assert run(tmp_path, "--figure", "1b", "--out", tmp_path / "f").exit_code == 0
    assert (tmp_path / "f" / "margin_dpo.png").read_bytes() == b"png"
    with pytest.raises(RunError, match="holds no results of a run"):
        run(tmp_path / "none", "--table", 1)


def test_intervals_of_earlier_formats_are_left_out(tmp_path: Path) -> None:
    """They were bootstraps over few seeds: too narrow to stand beside the others."""
    file = tmp_path / "old.json"
    file.write_text(json.dumps({**results(), "format": 2}))
    shown = run(file, "--table", 1).output
    assert "0.3000" in shown and "0.3000 [" not in shown and "no intervals: the file's are too narrow" in shown
    file.write_text(json.dumps(results()))
    shown = run(file, "--table", 1).output
    assert "0.3000 [0.290, 0.310]" in shown and "95 % intervals" in shown


def test_figures_of_several_runs_stand_side_by_side(tmp_path: Path) -> None:
    for name in ("lr=0.1", "lr=0.2"):
        (tmp_path / name / "figures").mkdir(parents=True)
        (tmp_path / name / "figures" / "margin_dpo.png").write_text(name)
    runs, out = [tmp_path / "lr=0.1", tmp_path / "lr=0.2"], tmp_path / "out"
    run(*runs, "--figure", "1b", "--out", out)
    assert {file.name: file.read_text() for file in out.iterdir()} == {
        "lr=0.1-margin_dpo.png": "lr=0.1", "lr=0.2-margin_dpo.png": "lr=0.2"
    }  # fmt: skip
    again = tmp_path / "other" / "lr=0.1"
    shutil.copytree(tmp_path / "lr=0.1", again)
    with pytest.raises(ConfigError, match=r"two runs are called lr=0\.1: tell them apart with NAME=RUN"):
        run(runs[0], again, "--figure", "1b")
    with pytest.raises(ConfigError, match="a name in front of a run has no folders in it"):
        run(runs[0], f"../b={again}", "--figure", "1b", "--out", out)
    run(runs[0], f"b={again}", "--figure", "1b", "--out", out)
    assert (out / "b-margin_dpo.png").read_text() == "lr=0.1"


def test_the_note_is_of_the_slates_of_the_cells_and_leaky_ones_are_none() -> None:
    """Popular negatives are another task, and what leaks its answers is no equal of the paper's slates."""
    found = results()
    other = [row("dpo", 0.9, name) for name in ("test-popularity-20-s0", "test-uniform-LEAKY-20-s0")]
    table, plain = paper_table(1, [{**found, "summary": [*other, *found["summary"]]}]), paper_table(1, [found])
    assert (table.rows, table.notes) == (plain.rows, plain.notes)
