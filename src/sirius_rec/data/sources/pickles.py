"""pandas tables out of pickle files, without running anything that stands in them.

Unpickling calls whatever the file names. Here every name becomes a recorder: a name that is no pandas or NumPy data
type is refused, a call is written down, and the table is then put together from the records. pandas takes no part.
What a file may make of few bytes (shared lists, repeated calls, announced lengths) is limited by its size.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import struct
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from sirius_rec.errors import DataError

_MULTIARRAY = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC = ("numpy.core.numeric", "numpy._core.numeric")
_RECONSTRUCT = {f"{module}._reconstruct" for module in _MULTIARRAY}
_FROM_BUFFER = {f"{module}._frombuffer" for module in _NUMERIC}
_SLICE = {"builtins.slice", "__builtin__.slice"}
_BLOCKS = {"pandas._libs.internals._unpickle_block", "pandas.core.internals.blocks.new_block"}
_MANAGERS = {"pandas.core.internals.managers.BlockManager", "pandas.core.internals.BlockManager"}
_PLACEMENT = {"pandas._libs.internals.BlockPlacement"}
_INDEXES = {
    f"{package}.{name}"
    for package in ("pandas.core.indexes", "pandas.indexes")
    for name in ("base._new_Index", "base.Index", "range.RangeIndex", "numeric.Int64Index")
}
_ENCODE = "_codecs.encode"  # how bytes are written in old protocols; only Latin-1, and only on text
ADMITTED = frozenset(
    {"pandas.core.frame.DataFrame", "numpy.ndarray", "numpy.dtype", _ENCODE}
    | _RECONSTRUCT | _FROM_BUFFER | _SLICE | _BLOCKS | _MANAGERS | _PLACEMENT | _INDEXES
)  # fmt: skip
# no plain table needs them: other people's objects, sets, and memory from outside the file
_REFUSED_OPCODES = (
    "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "EMPTY_SET", "ADDITEMS", "FROZENSET",
    "NEXT_BUFFER", "READONLY_BUFFER",
)  # fmt: skip
_MOST_ARGS = 8  # of a call; each call copies its arguments, and no pandas table needs more than 4
_MOST_TIMES = 16  # values of the table per byte of the file; more than 1 only where rows share a list
_MOST_DEPTH = 4  # of lists in a cell


def read_frame(path: Path) -> dict[str, list[Any]]:
    """Columns of a pickled pandas DataFrame as lists of plain values.

    Raises:
        DataError: the file is no such pickle, is damaged, or names something that is no pandas or NumPy data type.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        with warnings.catch_warnings():  # odd escapes in the text of old protocols are no concern here
            warnings.simplefilter("ignore")
            return _columns(_Reader(content).load(), _Budget(_MOST_TIMES * len(content)))
    except _Refused as error:
        raise DataError(f"{path}: {error}; only plain pandas tables are read, save it as one") from error
    except (
            ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError, EOFError,
            struct.error, pickle.UnpicklingError,
        ) as error:  # fmt: skip
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a pickled pandas table, or damaged ({why[:120]}); fetch it again") from error


class _Refused(Exception):
    """The pickle asks for something that is not admitted."""


class _Budget:
    """How many values may still be made."""

    def __init__(self, left: int) -> None:
        self.left = left

    def spend(self, count: int) -> None:
        self.left -= count
        if self.left < 0:
            raise ValueError("it would grow far beyond the size of the file")


class _Call:
    """What a pickle would have built by calling `name` with `args`, and the state it would have given it."""

    name: ClassVar[str]
    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _Call:
        if len(args) > _MOST_ARGS:
            raise ValueError(f"a call with {len(args)} arguments")
        call = super().__new__(cls)
        call.args, call.state = args, None
        return call


_RECORDERS = {name: type("Recorder", (_Call,), {"name": name}) for name in ADMITTED}


def _refusing(opcode: str) -> Callable[[Any], None]:
    def handler(_: Any) -> None:
        raise ValueError(f"it uses {opcode}, which no pandas table needs")

    return handler


def _with_text_keys(handler: Callable[[Any], None], keys: slice) -> Callable[[Any], None]:
    """`handler`, where `keys` of the stack are text: hashing tuples of shared tuples could take for ever."""

    def checked(reader: Any) -> None:
        if not all(isinstance(key, str) for key in reader.stack[keys]):
            raise ValueError("a key that is not text")
        handler(reader)

    return checked


class _Reader(pickle._Unpickler):
    """Python's own unpickler, in which names are recorders and nothing else can be called."""

    stack: list[Any]
    read: Callable[[int], bytes]

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="latin-1")
        self._encoded = _Budget(len(content))

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path not in ADMITTED:
            raise _Refused(f"the pickle names {path[:120]!r}, which is no pandas or NumPy data type: it is not run")
        return self._encode if path == _ENCODE else _RECORDERS[path]

    def _encode(self, text: Any, *coding: Any) -> bytes:
        if coding not in (("latin1",), ("latin-1",)) or not isinstance(text, str):
            raise _Refused(f"the pickle calls {_ENCODE} for something other than bytes")
        self._encoded.spend(len(text))
        return text.encode("latin-1")

    def _build(self) -> None:
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Call):
            raise ValueError(f"{type(self.stack[-1]).__name__} is given a state")
        self.stack[-1].state = state

    def _bytearray8(self) -> None:
        """As long as the file is, not as it says: Python's own would allocate the announced length first."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.stack.append(bytearray(self.read(length)))

    _plain: ClassVar[dict[int, Any]] = pickle._Unpickler.dispatch
    dispatch: ClassVar[dict[int, Any]] = {
        **_plain,
        pickle.BUILD[0]: _build,
        pickle.BYTEARRAY8[0]: _bytearray8,
        pickle.SETITEM[0]: _with_text_keys(_plain[pickle.SETITEM[0]], slice(-2, -1)),
        pickle.SETITEMS[0]: _with_text_keys(_plain[pickle.SETITEMS[0]], slice(None, None, 2)),
        pickle.DICT[0]: _with_text_keys(_plain[pickle.DICT[0]], slice(None, None, 2)),
        **{ord(op.code): _refusing(op.name) for op in pickletools.opcodes if op.name in _REFUSED_OPCODES},
    }


def _columns(frame: Any, budget: _Budget) -> dict[str, list[Any]]:
    """The columns of what was recorded for a DataFrame."""
    if not isinstance(frame, _Call) or frame.name != "pandas.core.frame.DataFrame":
        found = frame.name if isinstance(frame, _Call) else type(frame).__name__
        raise ValueError(f"it holds {found}, a pandas DataFrame is expected")
    state = frame.state if isinstance(frame.state, dict) else {}
    manager = state.get("_mgr", state.get("_data"))
    if not isinstance(manager, _Call) or manager.name not in _MANAGERS:
        raise ValueError("the table has no data")
    if manager.state is not None:  # before pandas 1.3
        stored = manager.state[3]["0.14.1"]
        axes, blocks = stored["axes"], [(block["values"], block["mgr_locs"]) for block in stored["blocks"]]
    else:
        made, axes = manager.args
        blocks = [block.args[:2] for block in made if isinstance(block, _Call) and block.name in _BLOCKS]
        if len(blocks) < len(made):
            raise ValueError("a block of the table is no block")
    names = _labels(axes[0])
    columns: dict[str, list[Any]] = {}
    for values, where in blocks:
        table = _array(values)
        places = _places(where, len(names))
        budget.spend(len(places) + table.size)
        if table.ndim != 2 or table.shape[0] != len(places):
            raise ValueError("a block of the table has another shape than its columns")
        for place, row in zip(places, table, strict=True):
            columns[names[place]] = _plain_cells(row.tolist(), budget)
    if len(columns) < len(names) or len({len(column) for column in columns.values()}) > 1:
        raise ValueError("the columns of the table are incomplete")
    return {name: columns[name] for name in names}


def _plain_cells(cells: list[Any], budget: _Budget) -> list[Any]:
    """The cells, all of them scalars or short of endless: lists that share lists may stand for very many values."""
    level = cells
    for _ in range(_MOST_DEPTH):
        if other := {type(value) for value in level} - _CELLS:
            raise ValueError(f"a cell holds {other.pop().__name__}")
        lists = [value for value in level if isinstance(value, list | tuple)]
        if not lists:
            return cells
        budget.spend(sum(map(len, lists)))
        level = [entry for entries in lists for entry in entries]
    raise ValueError(f"a cell holds lists nested deeper than {_MOST_DEPTH}")


def _labels(index: Any) -> list[str]:
    if not isinstance(index, _Call) or index.name not in _INDEXES:
        raise ValueError("the columns have no names")
    data = index.args[1].get("data") if len(index.args) > 1 else None
    labels: list[Any] = _array(data).tolist()
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ValueError("the columns have no names of their own")
    return labels


def _places(where: Any, count: int) -> Sequence[int]:
    if isinstance(where, _Call) and where.name in _PLACEMENT:
        where = where.args[0]
    if isinstance(where, _Call) and where.name in _SLICE:
        return range(count)[slice(*where.args)]
    places = [int(place) for place in _array(where)]
    if not all(0 <= place < count for place in places):
        raise ValueError("a column number is out of range")
    return places


def _array(made: Any) -> npt.NDArray[Any]:
    """The array that was recorded, of numbers or of Python objects."""
    if not isinstance(made, _Call):
        raise ValueError(f"{type(made).__name__} where an array is expected")
    if made.name in _RECONSTRUCT:
        shape, kind, fortran, data = made.state[-4:]
        order = "F" if fortran else "C"
    elif made.name in _FROM_BUFFER:
        data, kind, shape, order = made.args
    else:
        raise ValueError(f"{made.name} where an array is expected")
    dtype = _dtype(kind)
    if not 1 <= len(shape) <= 2 or not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError("an array without a shape of one or two dimensions")
    if not dtype.hasobject and isinstance(data, bytes | bytearray):  # bytes(n) of a number would be n zeros
        flat = np.frombuffer(data, dtype=dtype)
    elif dtype.hasobject and isinstance(data, list):
        flat = np.empty(len(data), dtype=object)
        flat[:] = data
    else:
        raise ValueError(f"the entries of an array are {type(data).__name__}")
    if flat.size != math.prod(shape):
        raise ValueError("an array has another size than its shape")
    return flat.reshape(shape, order="F" if order == "F" else "C")


_CELLS = frozenset([type(None), bool, int, float, str, bytes, list, tuple])
_KINDS = frozenset(["O", "O8", "b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f4", "f8"])


def _dtype(made: Any) -> np.dtype[Any]:
    code = made.args[0] if isinstance(made, _Call) and made.name == "numpy.dtype" else None
    if not isinstance(code, str) or code not in _KINDS:
        raise ValueError("an array of a kind that is neither numbers nor objects")
    order = made.state[1] if isinstance(made.state, tuple) and made.state[1] in ("<", ">") else "<"
    return np.dtype(object) if code.startswith("O") else np.dtype(order + code)
