"""Score tables survive the disk, and say what is wrong with a bad one."""

from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.errors import DataError, RunError
from sirius_rec.evaluation.tables import ScoreTable, parse_name, read_table, read_tables, table_name, write_table

WORD = st.from_regex(r"[A-Za-z0-9_.]+", fullmatch=True)


def frame(**changes):
    columns = {"row_id": [3, 1], "candidates": [[5, 6], [7, 8, 9]], "scores": [[0.1, 0.2], [1.0, 2.0, 3.0]]} | changes
    types = {"row_id": pl.Int64, "candidates": pl.List(pl.Int32), "scores": pl.List(pl.Float32)}
    return pl.DataFrame(columns, schema={key: types[key] for key in columns})


def table(**changes):
    return ScoreTable("dpo_sirius", "DPO + SIRIUS", 2, "test-uniform-20-s0", "last", frame(**changes))


@settings(max_examples=40)
@given(WORD, st.integers(0, 10**6), st.from_regex(r"[a-z]+-[a-z-]+-[0-9]+-s[0-9]+", fullmatch=True), WORD)
def test_names_parse_back(method, seed, slates, checkpoint):
    assert parse_name(table_name(method, seed, slates, checkpoint)) == (method, seed, slates, checkpoint)


def test_round_trip(tmp_path):
    path = write_table(table(), tmp_path / "scores")
    assert path.name == "dpo_sirius-s2-test-uniform-20-s0-last.parquet"
    back = read_table(path)
    assert (back.key, back.label) == (table().key, "DPO + SIRIUS")
    assert back.frame.equals(table().frame) and back.frame.schema == table().frame.schema
    assert [entry.name for entry in read_tables(tmp_path / "scores")] == [path.name]
    assert sorted(p.name for p in path.parent.iterdir()) == [path.name]


def test_a_failed_write_leaves_the_old_table(tmp_path, monkeypatch):
    path = write_table(table(), tmp_path)
    before = path.read_bytes()

    def broken(self, file, **_):
        file.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", broken)
    with pytest.raises(OSError, match="disk full"):
        write_table(table(row_id=[8, 9]), tmp_path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_unusable_files(tmp_path):
    path = write_table(table(), tmp_path)
    renamed = path.with_name(path.name.replace("s2", "s3"))
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(RunError, match="give it back its name"):
        read_table(renamed)
    renamed.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="not a readable Parquet file"):
        read_table(renamed)
    table().frame.write_parquet(renamed)
    with pytest.raises(RunError, match="metadata is missing"):
        read_table(renamed)
    with pytest.raises(RunError, match="no such score table"):
        read_table(tmp_path / "a-s0-b-c.parquet")
    with pytest.raises(RunError, match="no score tables"):
        read_tables(tmp_path / "empty")
    with pytest.raises(DataError, match="expected <method>"):
        parse_name("nonsense.parquet")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"row_id": [1, 1]}, "row_id 1 is duplicated"),
        ({"scores": [[0.1], [1.0, 2.0, 3.0]]}, "row_id 3 has 2 candidates and 1 scores"),
        ({"scores": [[0.1, 0.2], None]}, "'scores' is null in row 1"),
        ({"row_id": [], "candidates": [], "scores": []}, "no rows"),
    ],
)
def test_bad_frames(changes, message):
    with pytest.raises(DataError, match=message):
        table(**changes)


def test_bad_columns_and_names():
    with pytest.raises(DataError, match="'scores' is missing"):
        ScoreTable("a", "A", 0, "b", "c", frame().drop("scores"))
    with pytest.raises(DataError, match="must be a list of floats"):
        ScoreTable("a", "A", 0, "b", "c", frame().with_columns(pl.col("scores").cast(pl.List(pl.Int64))))
    with pytest.raises(DataError, match="method 'a-b'"):
        table_name("a-b", 0, "x", "last")
