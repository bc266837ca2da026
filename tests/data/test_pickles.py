"""Pickled tables are taken apart, never run."""

from __future__ import annotations

import pickle
import random
import tracemalloc
import warnings
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.data.sources.pickles import read_frame
from sirius_rec.errors import DataError


class Evil:
    """Unpickling it would write a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", range(6))
def test_a_call_is_refused_by_name_and_not_run(tmp_path: Path, protocol: int) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / "evil.df"
    file.write_bytes(pickle.dumps({"seq": [Evil(mark)]}, protocol=protocol))
    with pytest.raises(DataError, match=r"evil.df: the pickle names '(io|_io|__builtin__)\.open', .*: it is not run"):
        read_frame(file)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"cos\nsystem\n(S'echo ran'\ntR.", "names 'os.system'"),
        (
            b"cnumpy.testing._private.utils\nrunstring\n(S'x'\nS'y'\ntR.",
            "names 'numpy.testing._private.utils.runstring'",
        ),
        (b"cpandas.core.frame\nDataFrame.eval\n.", "names 'pandas.core.frame.DataFrame.eval'"),
        (b"(S'echo'\nios\nsystem\n.", "uses INST"),
        (b"\x80\x02\x82\x01.", "uses EXT1"),
        (b"S'id'\nP1\n.", "uses PERSID"),
        (b"\x80\x04\x8f.", "uses EMPTY_SET"),
        (b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.", "calls _codecs.encode for something other than bytes"),
        (pickle.dumps([1, 2]), "it holds list, a pandas DataFrame is expected"),
        (b"cpandas.core.frame\nDataFrame\n)\x81.", "the table has no data"),
        (b"", "not a pickled pandas table"),
        (b"PAR1 something else", "not a pickled pandas table"),
        # a memo number for which the C unpickler would take 16 GB
        (b"\x80\x05]r\xff\xff\xff\x7f.", "it holds list"),
    ],
)
def test_what_is_no_table(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.df"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        read_frame(file)
    assert "\n" not in str(caught.value)


def called(name: str, args: bytes, state: bytes = b"") -> bytes:
    """Opcodes that call `name` with args and give the result a state."""
    module, _, function = name.rpartition(".")
    return f"c{module}\n{function}\n".encode() + args + b"R" + (state + b"b" if state else b"")


def text_of(word: str) -> bytes:
    return b"X" + len(word).to_bytes(4, "little") + word.encode()


def number(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little")


def list_of(*values: bytes) -> bytes:
    return b"](" + b"".join(values) + b"e"


def array_of(data: bytes, *shape: int, kind: str = "i8") -> bytes:
    dtype = called("numpy.dtype", b"(" + text_of(kind) + b"t")
    lengths = b"".join(map(number, shape))
    state = b"(" + number(1) + b"(" + lengths + b"t" + dtype + b"\x89" + data + b"t"
    return called("numpy.core.multiarray._reconstruct", b"(t", state)


def frame_of(names: list[str], *blocks: bytes) -> bytes:
    """A table of these columns, as pandas writes it."""
    labels = array_of(list_of(*map(text_of, names)), len(names), kind="O")
    index = called("pandas.core.indexes.base._new_Index", b"(N}" + text_of("data") + labels + b"st")
    manager = called("pandas.core.internals.managers.BlockManager", b"((" + b"".join(blocks) + b"t]" + index + b"at")
    return called("pandas.core.frame.DataFrame", b")", b"}" + text_of("_mgr") + manager + b"s") + b"."


def block_of(cells: bytes, first: int = 0, count: int = 1) -> bytes:
    where = called("builtins.slice", b"(" + number(first) + number(first + count) + b"t")
    return called("pandas._libs.internals._unpickle_block", b"(" + cells + where + b"t")


def object_column(cell: bytes) -> bytes:
    """A table of one cell."""
    return frame_of(["x"], block_of(array_of(list_of(cell), 1, 1, kind="O")))


def test_a_table_by_hand(tmp_path: Path) -> None:
    """What the next tests change is a table without the change."""
    file = tmp_path / "x.df"
    numbers = b"C\x10" + (1).to_bytes(8, "little") + (2).to_bytes(8, "little")
    file.write_bytes(frame_of(["x"], block_of(array_of(numbers, 1, 2))))
    assert read_frame(file) == {"x": [1, 2]}
    file.write_bytes(object_column(list_of(number(3), b"N", text_of("four"))))
    assert read_frame(file) == {"x": [[3, None, "four"]]}


SHARED = b"](" + b"K\x01" * 4000 + b"eq\x00"  # a list of 4,000 numbers, kept as number 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        # 4,000 times the list of 4,000
        (object_column(SHARED + b"0" + list_of(b"h\x00" * 4000)), "grow far beyond the size of the file"),
        # a list of itself; lists ever deeper
        (object_column(b"]q\x00h\x00a"), "nested deeper than 4"),
        (object_column(b"]" * 9 + b"a" * 8), "nested deeper than 4"),
        (object_column(called("numpy.ndarray", b")")), "a cell holds Recorder"),
        # 2^60 steps to the hash of 60 pairs of the same
        (b"}K\x01K\x01\x86" + b"2\x86" * 60 + b"Ns.", "a key that is not text"),
        (b"}(K\x01K\x01\x86" + b"2\x86" * 60 + b"Nu.", "a key that is not text"),
        (b"(K\x01K\x01\x86" + b"2\x86" * 60 + b"Nd.", "a key that is not text"),
        (called("numpy.dtype", b"K\x01K\x01\x86" + b"2\x86" * 60 + b"\x85") + b".", "it holds numpy.dtype"),
        (
            frame_of(
                ["x"], block_of(array_of(b"C\x00", 1, 1).replace(b"X\x02\x00\x00\x00i8", b"K\x01" + b"2\x86" * 60))
            ),
            "neither numbers nor objects",
        ),
        # lengths that are announced and not there: 4 GB of bytes, 1 GB and 16 EB of a bytearray
        (b"\x80\x05B\xff\xff\xff\xffabc", "damaged"),
        (b"\x80\x05\x96\x00\x00\x00\x40\x00\x00\x00\x00abc", "damaged"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\xffabc", "damaged"),
        # one text of 4,000 letters made bytes 1,000 times
        (
            b"c_codecs\nencode\nq\x010"
            + text_of("x" * 4000)
            + text_of("latin1")
            + b"\x86q\x000"
            + b"h\x01h\x00R" * 1000,
            "grow far beyond the size of the file",
        ),
        # arguments are copied for each call
        (SHARED + b"0cnumpy\nndarray\nh\x00R.", "a call with 4000 arguments"),
        # 4,000 columns of the same 4,000 numbers
        (
            frame_of(
                [f"c{k}" for k in range(4000)],
                array_of(b"B" + (4000).to_bytes(4, "little") + bytes(4000), 1, 4000, kind="i1") + b"q\x000",
                *(block_of(b"h\x00", k) for k in range(4000)),
            ),
            "grow far beyond the size of the file",
        ),
        # attributes of what stands for a class
        (b"cnumpy\nndarray\n}" + text_of("args") + b"Nsb.", "type is given a state"),
        (b"c_codecs\nencode\nN}" + text_of("args") + b"Ns\x86b.", "method is given a state"),
        (b"]" * 200_000 + b"a" * 199_999 + b".", "it holds list"),
    ],
)
def test_a_small_file_cannot_take_much_memory_or_time(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.df"
    file.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=message) as caught:
            read_frame(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20 or peak < 200 * len(content)


@pytest.mark.parametrize(
    ("index_args", "message"),
    [
        (number(1) + number(2), "'int' object has no attribute 'get'"),
        # bytes(8 << 20) would be a column of a million zeros out of four bytes
        (
            number(1) + b"}" + text_of("data") + array_of(number(8 << 20), 1 << 20) + b"s",
            "the entries of an array are int",
        ),
    ],
)
def test_calls_with_other_arguments_than_pandas_gives(tmp_path: Path, index_args: bytes, message: str) -> None:
    index = called("pandas.core.indexes.base._new_Index", b"(" + index_args + b"t")
    manager = called("pandas.core.internals.managers.BlockManager", b"((t]" + index + b"at")
    file = tmp_path / "x.df"
    file.write_bytes(called("pandas.core.frame.DataFrame", b")", b"}" + text_of("_mgr") + manager + b"s") + b".")
    with pytest.raises(DataError, match=message):
        read_frame(file)


def test_equals_pandas(shared_data: Path) -> None:
    """Every row of the published files as pandas itself reads them."""
    pandas = pytest.importorskip("pandas", reason="pandas comes with the dev extra's datasets")
    for name in ("Test_data.df", "Val_data.df"):
        file = shared_data / "lastfm" / "raw" / name
        with warnings.catch_warnings():  # NumPy has moved what the files name
            warnings.simplefilter("ignore")
            theirs = pandas.read_pickle(file)
        assert read_frame(file) == {column: theirs[column].tolist() for column in theirs.columns}


def test_damaged_files_end_in_one_line(shared_data: Path, tmp_path: Path) -> None:
    """300 copies with cut ends, changed, swapped and inserted bytes: read, or refused; nothing else."""
    content = (shared_data / "lastfm" / "raw" / "Val_data.df").read_bytes()
    rng = random.Random(0)
    file = tmp_path / "damaged.df"
    refused = 0
    for _ in range(300):
        damaged = bytearray(content)
        kind = rng.randrange(4)
        at = rng.randrange(len(damaged))
        if kind == 0:
            del damaged[at:]
        elif kind == 1:
            for _ in range(rng.randrange(1, 6)):
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        elif kind == 2:
            damaged[at:at] = rng.randbytes(rng.randrange(1, 9))
        else:
            del damaged[at : at + rng.randrange(1, 9)]
        file.write_bytes(bytes(damaged))
        try:
            columns = read_frame(file)
        except DataError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert len({len(column) for column in columns.values()}) == 1
    assert refused > 100
