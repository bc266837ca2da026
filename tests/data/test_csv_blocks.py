"""Read in small blocks, a file has the records, line numbers, notes and faults that it has when read at once."""

from __future__ import annotations

import gzip
import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sirius_rec.data.sources.csv_records import ROW, Dialect
from sirius_rec.data.sources.csv_table import frames, look, read_csv
from sirius_rec.data.sources.files import file_note
from sirius_rec.errors import DataError

WANTED = ("user_id", "item_id")


def at_once(path: Path, dialect: Dialect) -> Any:
    try:
        table = read_csv(path, dialect, WANTED)
    except DataError as error:
        return str(error)
    return table.frame.rows(named=True), table.notes


def by_blocks(path: Path, dialect: Dialect, size: int) -> Any:
    try:
        layout = look(path, dialect, WANTED, size)
        parts, continued = [], 0
        for span in layout.spans:
            for frame, inside in frames(layout, span, size):
                assert frame.columns == layout.empty.columns
                parts += frame.rows(named=True)
                continued += inside
    except DataError as error:
        return str(error)
    assert layout.sha256 == file_note(path)["sha256"] and layout.bytes == path.stat().st_size
    return parts, layout.notes(len(parts), continued)


FIELD = st.sampled_from(
    ["u1", "i22", "7", "", " ", "é", '"a"', '"a,b"', '"x\ny"', '"12\\" rack"', '"12"" x"', 'q"', "a b"]
)
LINE = st.one_of(
    st.lists(FIELD, min_size=3, max_size=3).map(",".join), st.sampled_from(["", "u", "u,i", "u,i,1,2", ",,"])
)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(LINE, max_size=9), st.sampled_from(["\n", "\r\n", "\r"]), st.booleans(),
    st.sampled_from(["utf-8", "utf-8-sig", "cp1252", "utf-16"]), st.booleans(), st.sampled_from([1, 7, 64, 1 << 20]),
    st.sampled_from(["user_id,item_id,time", "\nuser_id,item_id,time", "user_id:token,item_id:token,t:float"]),
)  # fmt: skip
def test_the_same_by_blocks(
    lines: list[str], end: str, closed: bool, encoding: str, packed: bool, size: int, header: str
) -> None:
    text = end.join([header.replace("\n", end), *(line.replace("\n", end) for line in lines)]) + (end if closed else "")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / ("f.csv.gz" if packed else "f.csv")
        raw = text.encode(encoding)
        path.write_bytes(gzip.compress(raw) if packed else raw)
        assert by_blocks(path, Dialect(), size) == at_once(path, Dialect())


@pytest.mark.parametrize(
    "dialect",
    [
        Dialect(names=["user_id", "item_id", "t"]), Dialect(quotes=False), Dialect(separator=";"),
        Dialect(encoding="latin1"), Dialect(encoding="utf-8"), Dialect(names=["a", "b"]), Dialect(encoding="utf-16"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [5, 1 << 20])
def test_what_is_said_of_a_file_holds(tmp_path: Path, dialect: Dialect, size: int) -> None:
    path = tmp_path / "f.csv"
    path.write_bytes('user_id;item_id;t\nu1;ï;5\n\nu2;"b;6\nu3;c;7\n'.encode("cp1252"))
    assert by_blocks(path, dialect, size) == at_once(path, dialect)
    path.write_bytes(b"user_id,item_id,t\nu1,a,5\n\nu2,b,6\nu3,c\n")
    assert by_blocks(path, dialect, size) == at_once(path, dialect)


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\x1f\x8b broken", b"a,b\nu,\x81\n", b"a,b,a\n1,2,3\n", b"a,b"])
def test_broken_files_are_named_alike(tmp_path: Path, content: bytes) -> None:
    for name in ("f.csv", "f.csv.gz"):
        path = tmp_path / name
        path.write_bytes(content)
        assert by_blocks(path, Dialect(), 4) == at_once(path, Dialect())
    whole = gzip.compress(b"a,b\n" * 1000)
    path.write_bytes(whole[:-9])
    assert by_blocks(path, Dialect(), 4) == at_once(path, Dialect())
    path.unlink()
    assert "cannot be read" in by_blocks(path, Dialect(), 4)


def test_a_plain_file_is_cut_and_its_parts_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "f.csv"
    path.write_text("user_id,item_id\n" + "".join(f"u{k},i{k}\n" for k in range(5000)))
    layout = look(path, Dialect(), WANTED, 4096)
    parts = [pl.concat(frame for frame, _ in frames(layout, span, 4096)) for span in layout.spans]
    assert len(parts) > 10 and max(part.height for part in parts) < 600
    whole = pl.concat(parts)
    assert whole["user_id"].to_list() == [f"u{k}" for k in range(5000)] and whole[ROW].to_list() == [*range(2, 5002)]
