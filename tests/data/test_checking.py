"""`prepare --check`: every problem at once, and a configuration that reads the files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from sirius_rec import cli
from sirius_rec.data.checking import check_lines
from sirius_rec.data.sources.table import load
from sirius_rec.errors import ConfigError, DataError

PLAIN = "user_id,item_id,timestamp\n" + "".join(
    f"u{u},{c},{100 * u + k}\n" for u in range(6) for k, c in enumerate("abc")
)
ITEMS = "item_id,title\na,Red\nb,Blue\nc,Green\nd,Grey\n"


def sirius(*arguments: str) -> int:
    """The exit code of the command."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setattr("sys.argv", ["sirius", *arguments])
        cli.main()
    return int(caught.value.code or 0)


def messy(folder: Path) -> Path:
    """Tabs, other names, no title, an item twice, unknown items, repeats, time zones, 1970, a time that is none."""
    rows = [
        f"c{u}\t{'abcd'[(u + k) % 4]}\t2024-03-{k + 1:02d}T10:00:00{('Z', '+02:00', '')[k % 3]}\tview"
        for u in range(8)
        for k in range(3)
    ]
    rows += ["c0\ta\t2024-03-09\tpurchase", "c1\tgone\t2024-03-09\tview", "c1\tb\t1970-01-01\tview"]
    rows += ["\tb\t2024-03-09\tview", "c1\tc\tn/a\tview"]
    (folder / "interactions.tsv").write_text("\n".join(["customer_id\tsku\tevent_time\tevent", *rows]))
    items = "sku;name\na;Red\nb;Blüe\nc;\nd;" + "long " * 80 + "\na;Red again\ne;Teal\nf;Pink\ng;Gold\n"
    (folder / "items.csv").write_text(items, encoding="cp1252")
    return folder


def test_a_messy_log_is_read_in_one_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    messy(tmp_path)
    lines, problems = check_lines("table", tmp_path, {})
    text = "\n".join(lines)
    assert problems
    for said in (
        "interactions.tsv: separated by tabs, utf-8; 30 lines = 1 header + 29 rows",
        "items.csv: separated by semicolons, cp1252",
        "no column 'user_id'; 'customer_id' is taken for it",
        "no column 'title'; 'name' is taken for it",
        "1 items listed a second time, the first in line 6",
        "1 items without a title, the first in line 4",
        "1 titles longer than 300 characters, the first in line 5",
        "1 rows without user_id, the first in line 29",
        "1 times that do not parse as iso, the first in line 30",
        "1 events lie years apart from all others",
        "events of 2 items that are not listed with a title",
        "16 times have a time zone, 12 have none and are taken as UTC",
        "column 'event' has view 28, purchase 1; choose with where: {event: view}",
        "repeated pairs of user and item",
    ):
        assert said in text, said
    start, stop = lines.index("a configuration that reads these files:") + 1, lines.index("with it:")
    config = tmp_path / "data.yaml"
    config.write_text("\n".join(lines[start:stop]))
    assert set(yaml.safe_load(config.read_text())["data"]) == {"source", "input", "unusable", "max_title", "options"}
    window, slates = "data.window={max_history: 2, min_history: 1}", "data.slates=[{size: 2, splits: [train]}]"
    assert sirius("prepare", str(config), window, slates, "--out", str(tmp_path / "out")) == 0
    printed = capsys.readouterr().out
    assert "event times: 2024-03-01T10:00:00Z to" in printed and "titles longer than max_title, dropped: 1" in printed


def test_clean_files_have_no_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "interactions.csv").write_text(PLAIN)
    (tmp_path / "items.csv").write_text(ITEMS)
    lines, problems = check_lines("table", tmp_path, {})
    assert not problems and not any("problem" in line or "unusable" in line for line in lines)
    assert sirius("prepare", "--source", "table", "--input", str(tmp_path), "--check") == 0
    assert "with it:" in capsys.readouterr().out


def test_a_mistyped_option_and_a_log_without_events(tmp_path: Path) -> None:
    (tmp_path / "items.csv").write_text("item_id,title\na,Air\n")
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp,event\n")
    with pytest.raises(ConfigError, match="source 'table' has no option 'wher'; it has "):
        check_lines("table", tmp_path, {"wher": {"event": "click"}})
    lines, wrong = check_lines("table", tmp_path, {})
    assert wrong and not any("choose with where" in line for line in lines)


def test_a_file_without_a_header_gets_names(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("u,a,1600000000\nu,b,1600000001\n")
    (tmp_path / "items.csv").write_text(ITEMS)
    lines, problems = check_lines("table", tmp_path, {})
    assert problems and '      names: ["user_id", "item_id", "timestamp"]' in lines
    assert "read" in lines[-1] and "2, kept 2" in lines[-1]


def test_what_cannot_be_guessed_is_said(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("x,y\n1,2\n")
    (tmp_path / "items.csv").write_text(ITEMS)
    lines, problems = check_lines("table", tmp_path, {})
    assert problems and any("no column 'user_id' (has: x, y); map it with option columns" in line for line in lines)
    with pytest.raises(ConfigError, match="unknown"):
        check_lines("tables", tmp_path, {})


def test_a_mistyped_column_is_not_passed_over_where_a_guess_fits(tmp_path: Path) -> None:
    (tmp_path / "interactions.csv").write_text("customer,item_id,timestamp\nu,a,1600000000\nu,b,1600000001\n")
    (tmp_path / "items.csv").write_text(ITEMS)
    lines, problems = check_lines("table", tmp_path, {"columns": {"user_id": "custmer"}})
    assert problems
    assert any("option columns: no column 'custmer' for user_id; 'customer' is taken for it" in line for line in lines)


def test_other_sources_are_tried(tmp_path: Path) -> None:
    rows = [
        '{"history": ["a"], "target": "b", "split": "train"}',
        '{"history": ["a"], "target": "z", "split": "train"}',
    ]
    (tmp_path / "windows.jsonl").write_text("\n".join([*rows, "{"]))
    (tmp_path / "items.csv").write_text(ITEMS)
    lines, problems = check_lines("windows", tmp_path, {})
    assert problems and "3, kept 1; dropped: 1 with an item not listed" in lines[-2]


def test_repeats_stay_and_rows_are_chosen(tmp_path: Path) -> None:
    rows = [("u", "a", 1, "view"), ("u", "a", 2, "purchase"), ("u", "b", 3, "purchase"), ("u", "a", 4, "purchase")]
    text = "\n".join(["user_id,item_id,timestamp,event", *(",".join(map(str, row)) for row in rows)])
    (tmp_path / "interactions.csv").write_text(text)
    (tmp_path / "items.csv").write_text(ITEMS)
    assert load(tmp_path).events["item_id"].to_list() == ["a", "b"]
    bought = load(tmp_path, where={"event": "purchase"}, keep_repeats=True)
    assert bought.events.rows() == [("u", "a", 2), ("u", "b", 3), ("u", "a", 4)]
    assert bought.notes["lines"][0]["dropped"] == {"event is not purchase": 1}
    assert load(tmp_path, where={"event": ["purchase", "view"], "timestamp": 1}).events.height == 1
    with pytest.raises(ConfigError, match="has no column 'evnt'"):
        load(tmp_path, where={"evnt": "view"})
    with pytest.raises(DataError, match="no events left"):
        load(tmp_path, where={"event": "return"})


def test_repeats_exclude_each_item_once_and_are_cautioned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = "".join(f"u{u},{c},{k}\n" for u in range(6) for k, c in enumerate("abab"))
    (tmp_path / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (tmp_path / "items.csv").write_text(ITEMS)
    arguments = [
        "prepare", "--source", "table", "--input", str(tmp_path), "--out", str(tmp_path / "out"),
        "data.options={keep_repeats: true}", "data.window={max_history: 2, min_history: 2}",
        "data.slates=[{size: 3, splits: [train]}]",
    ]  # fmt: skip
    assert sirius(*arguments) == 0  # a, b of four items are excluded: two are left, though four events happened
    out = capsys.readouterr().out
    assert "caution: 12 targets are in their own history" in out
    assert "events 24 -> 12 rows" in out and "users 6 -> 6 sequences" in out
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert info["filters"]["targets_in_own_history"] == 12
