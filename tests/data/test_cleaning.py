"""A log in several files is one log, and tallies and day counts of parts add up to those of the whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sirius_rec.data.checking import check_lines
from sirius_rec.data.options import SlateOptions, SplitOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sources.csv_records import ROW
from sirius_rec.data.sources.span import Days, iso, time_notes
from sirius_rec.data.sources.table import load
from sirius_rec.data.sources.timestamps import Evidence, evidence, to_seconds
from sirius_rec.errors import DataError, RunError
from sirius_rec.schema import TIMESTAMP

HEAD = "user_id,item_id,timestamp\n"
ITEMS = "item_id,title\na,Red\nb,Blue\nc,Green\n"
YEAR = 365.25 * 86_400


def parts(folder: Path, texts: Sequence[str], head: str = HEAD) -> Path:
    """A folder with one file of events per text."""
    (folder / "interactions").mkdir(parents=True)
    for number, text in enumerate(texts):
        (folder / "interactions" / f"part-{number}.csv").write_text(head + text, encoding="utf-8")
    (folder / "items.csv").write_text(ITEMS, encoding="utf-8")
    return folder


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    texts = ["v,b,20\nu,a,10\n", "u,c,5\n", "v,a,20\nv,c,1\n"]
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "interactions.csv").write_text(HEAD + "".join(texts), encoding="utf-8")
    (tmp_path / "one" / "items.csv").write_text(ITEMS, encoding="utf-8")
    one, many = load(tmp_path / "one", ties="file"), load(parts(tmp_path / "many", texts), ties="file")
    assert many.events.rows() == [("v", "c", 1), ("v", "b", 20), ("v", "a", 20), ("u", "c", 5), ("u", "a", 10)]
    assert many.events.equals(one.events) and many.notes["ties"] == one.notes["ties"]
    names = [Path(note["path"]).name for note in many.notes["files"]]
    assert names == ["part-0.csv", "part-1.csv", "part-2.csv", "items.csv"]
    assert many.notes["lines"] == [{**one.notes["lines"][0], "file": str(tmp_path / "many" / "interactions")}]
    assert many.notes["events_format"]["records"] == 5 and many.notes["events_format"]["lines"] == 8
    (tmp_path / "many" / "interactions" / "_SUCCESS").touch()
    assert load(tmp_path / "many", ties="file").events.equals(one.events)
    lines, problems = check_lines("table", tmp_path / "many", {})
    assert not problems and sum("part-" in line and "3 lines" in line for line in lines) == 2


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["u,a,1\n", "u,b,soon\nu,c,x\n", "u,c,y\n"], "part-1.csv, line 2: timestamp does not parse: 'soon'; 3 such"),
        (["u,a,1\n,b,2\n", "u,b,soon\n"], "part-0.csv, line 3: empty user_id; fill"),
        (["u,a,1\n", "u,b,1395273600000\n"], "part-1.csv, line 2: timestamps 1 and 1395273600000 cannot be in one"),
        (["u,a,1\n", "u,z,1\n", "u,z,2\n"], "part-1.csv, line 2: item is not in .*: 'z'; 2 such rows"),
        (["u,a,soon\n", "u,b,1,2\n"], "part-1.csv, line 2: 4 fields, the header has 3"),
    ],
)
def test_faults_name_the_first_file_and_count_in_all(tmp_path: Path, texts: list[str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(parts(tmp_path, texts))


def test_what_the_folder_may_not_hold(tmp_path: Path) -> None:
    parts(tmp_path, ["u,a,1\n"])
    (tmp_path / "interactions" / "more.parquet").touch()
    with pytest.raises(DataError, match=r"part-0.csv: is of another kind than more.parquet"):
        load(tmp_path)
    (tmp_path / "interactions" / "more.parquet").rename(tmp_path / "interactions" / "readme.md")
    with pytest.raises(DataError, match=r"readme.md: is none of .parquet, .csv"):
        load(tmp_path)
    (tmp_path / "interactions.csv").touch()
    with pytest.raises(DataError, match=r"the folder interactions and interactions.csv are both there"):
        load(tmp_path)
    (tmp_path / "interactions.csv").unlink()
    for file in (tmp_path / "interactions").iterdir():
        file.unlink()
    with pytest.raises(DataError, match="interactions: holds no files"):
        load(tmp_path)


def test_files_with_different_types_of_time(tmp_path: Path) -> None:
    parts(tmp_path, [])
    frame = pl.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [5]})
    frame.write_parquet(tmp_path / "interactions" / "a.parquet")
    dated = frame.with_columns(pl.from_epoch("timestamp"))
    dated.write_parquet(tmp_path / "interactions" / "b.parquet")
    with pytest.raises(DataError, match=r"column 'timestamp' holds .*Datetime|Datetime.* holds"):
        load(tmp_path)


TIMES = ["5", "7", "1395273600000", "2010-01-01", " 12 ", "1.5", "soon", "+3"]


@given(st.lists(st.sampled_from(TIMES), min_size=1, max_size=9), st.data())
def test_evidence_of_parts_adds_up(times: list[str], data: Any) -> None:
    """The unit of a column, or the message about it, does not depend on how the column is cut."""
    frame = pl.DataFrame({ROW: range(1, len(times) + 1), TIMESTAMP: times})
    cut = data.draw(st.integers(0, len(times)))
    for bad in ("error", "null"):
        whole = evidence(frame, Path("f.csv"), "auto", bad)  # type: ignore[arg-type]
        joined = Evidence()
        for part in (frame[:cut], frame[cut:]):
            joined += evidence(part, Path("f.csv"), "auto", bad)  # type: ignore[arg-type]
        assert outcome(joined, bad) == outcome(whole, bad)


def outcome(found: Evidence, bad: Any) -> str:
    try:
        return found.unit("auto", bad)
    except DataError as error:
        return str(error)


def test_whole_numbers_are_read_as_any_numbers_are() -> None:
    """The quick way for a column of whole numbers, and the slow one, which one number with a point asks for."""
    texts = ["0", "-5", "00012", "99999999999", " 7"]
    quick = to_seconds(pl.DataFrame({ROW: range(4), TIMESTAMP: texts[:4]}), Path("f.csv"), "s")[0]
    slow = to_seconds(pl.DataFrame({ROW: range(5), TIMESTAMP: texts}), Path("f.csv"), "s")[0]
    assert quick.to_list() == slow.to_list()[:4] == [0.0, -5.0, 12.0, 99999999999.0]
    with pytest.raises(DataError, match=r"does not parse: '\+5'"):
        to_seconds(pl.DataFrame({ROW: [1, 2], TIMESTAMP: ["1", "+5"]}), Path("f.csv"), "s")


def naive_notes(time: Any) -> dict[str, Any]:
    """`time_notes` by the definition, over all sorted times."""
    ordered = sorted(time)
    notes: dict[str, Any] = {"first": iso(ordered[0]), "last": iso(ordered[-1])}
    gaps = [k for k in range(len(ordered) - 1) if ordered[k + 1] - ordered[k] > 3 * YEAR]
    most = int(0.2 * len(ordered))
    early = max((k + 1 for k in gaps if k + 1 <= most), default=0)
    late = max((len(ordered) - k - 1 for k in gaps if len(ordered) - k - 1 <= most), default=0)
    if not early + late and gaps:
        early = gaps[0] + 1 if ordered[gaps[0]] < YEAR and gaps[0] + 1 < len(ordered) / 2 else 0
    if early or late:
        rest = ordered[early : len(ordered) - late]
        notes |= {"early": early, "late": late, "others": {"first": iso(rest[0]), "last": iso(rest[-1])}}
    return notes


_MOMENTS = st.one_of(
    st.integers(0, 10), st.integers(1_500_000_000, 1_500_400_000), st.integers(4_000_000_000, 4_000_000_009),
    st.floats(1_400_000_000, 1_400_100_000),
)  # fmt: skip


@given(st.lists(_MOMENTS, min_size=1, max_size=30), st.integers(0, 30))
def test_days_of_parts_give_the_notes_of_all_times(times: list[float], cut: int) -> None:
    expected = naive_notes(times)
    assert time_notes(np.array(times)) == expected
    assert Days.joined([Days.of(np.array(times[:cut])), Days.of(np.array(times[cut:]))]).notes() == expected


def test_a_file_that_joins_the_folder_later_is_noticed(tmp_path: Path) -> None:
    rows = "".join(f"u{k % 3},{item},{k}\n" for k in range(9) for item in "abc")
    window, slates = WindowOptions(max_history=1, min_history=1), (SlateOptions(size=2, splits=("train",)),)
    folder = parts(tmp_path / "log", [rows])
    asked: dict[str, Any] = {"window": window, "slates": slates, "split": SplitOptions(kind="leave_last_out")}
    prepare("table", folder, tmp_path / "out", **asked)
    prepare("table", folder, tmp_path / "out", **asked)
    (folder / "interactions" / "part-1.csv").write_text(f"{HEAD}u9,a,1\n")
    with pytest.raises(RunError, match=r"part-1.csv was not there when it was prepared"):
        prepare("table", folder, tmp_path / "out", **asked)
