"""Pickled tables are taken apart, never run."""

from __future__ import annotations

import pickle
import random
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


def array_of(data: bytes) -> bytes:
    dtype = called("numpy.dtype", b"(" + text_of("i8") + b"t")
    state = b"(" + number(1) + b"(" + number(1 << 20) + b"t" + dtype + b"\x89" + data + b"t"
    return called("numpy.core.multiarray._reconstruct", b"(t", state)


@pytest.mark.parametrize(
    ("index_args", "message"),
    [
        (number(1) + number(2), "'int' object has no attribute 'get'"),
        # bytes(8 << 20) would be a column of a million zeros out of four bytes
        (number(1) + b"}" + text_of("data") + array_of(number(8 << 20)) + b"s", "the entries of an array are int"),
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
