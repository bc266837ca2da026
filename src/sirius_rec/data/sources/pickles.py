"""pandas tables out of pickle files, without running anything that stands in them.

Unpickling calls whatever the file names. Here the pickle is only taken apart: opcodes that build plain values do so,
and a call becomes a record of what would have been called. A name that is no pandas or NumPy data type is refused, and
the table is then put together from the records. Neither pandas nor `pickle` takes part.
"""

from __future__ import annotations

import io
import pickletools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
    "pandas.core.indexes.base._new_Index",
    "pandas.core.indexes.base.Index",
    "pandas.core.indexes.range.RangeIndex",
    "pandas.core.indexes.numeric.Int64Index",
    "pandas.indexes.base._new_Index",
    "pandas.indexes.base.Index",
    "pandas.indexes.range.RangeIndex",
    "pandas.indexes.numeric.Int64Index",
}
_ENCODE = "_codecs.encode"  # how bytes are written in old protocols; only Latin-1, and only on text
ADMITTED = frozenset(
    {"pandas.core.frame.DataFrame", "numpy.ndarray", "numpy.dtype", _ENCODE}
    | _RECONSTRUCT | _FROM_BUFFER | _SLICE | _BLOCKS | _MANAGERS | _PLACEMENT | _INDEXES
)  # fmt: skip


@dataclass(frozen=True)
class Name:
    """A class or function that a pickle names."""

    text: str


@dataclass
class Made:
    """What a pickle would have built by calling `name` with `args`, and the state it would have given it."""

    name: str
    args: Any
    state: Any = None


class _Mark:
    """Where a group begins on the stack."""


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
            return _columns(_Reader().read(content))
    except _Refused as error:
        raise DataError(f"{path}: {error}; only plain pandas tables are read, save it as one") from error
    except (
            ValueError, TypeError, AttributeError, LookupError, ArithmeticError, MemoryError, RecursionError,
        ) as error:  # fmt: skip
        why = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path}: not a pickled pandas table, or damaged ({why[:120]}); fetch it again") from error


class _Refused(Exception):
    """The pickle asks for something that is not admitted."""


class _Reader:
    """A pickle machine that builds plain values and records calls."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def read(self, content: bytes) -> Any:
        """The value of a pickle."""
        handlers: dict[str, Callable[[Any], None]] = {
            name.removeprefix("_op_").upper(): getattr(self, name) for name in dir(self) if name.startswith("_op_")
        }
        push = self.stack.append
        for opcode, argument, _ in pickletools.genops(io.BytesIO(content)):
            name = opcode.name
            if name in _CONSTANTS:
                push(argument)
            elif name in handlers:
                handlers[name](argument)
            elif name == "STOP":
                return self.stack.pop()
            elif name not in ("PROTO", "FRAME"):
                raise _Refused(f"the pickle uses {name}, which no pandas table needs")
        raise ValueError("it ends early")

    def _group(self) -> list[Any]:
        """Everything above the last mark, taken off with it."""
        at = next((k for k in range(len(self.stack) - 1, -1, -1) if self.stack[k] is _Mark), None)
        if at is None:
            raise ValueError("a group without a beginning")
        group = self.stack[at + 1 :]
        del self.stack[at:]
        return group

    def _top(self, kind: type) -> Any:
        if not isinstance(self.stack[-1], kind):
            raise ValueError(f"{kind.__name__} expected, {type(self.stack[-1]).__name__} found")
        return self.stack[-1]

    def _tuple(self, count: int) -> None:
        if len(self.stack) < count:
            raise ValueError("the stack is empty")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _op_mark(self, _: Any) -> None:
        self.stack.append(_Mark)

    def _op_none(self, _: Any) -> None:
        self.stack.append(None)

    def _op_newtrue(self, _: Any) -> None:
        self.stack.append(True)

    def _op_newfalse(self, _: Any) -> None:
        self.stack.append(False)

    def _op_empty_list(self, _: Any) -> None:
        self.stack.append([])

    def _op_empty_tuple(self, _: Any) -> None:
        self.stack.append(())

    def _op_empty_dict(self, _: Any) -> None:
        self.stack.append({})

    def _op_list(self, _: Any) -> None:
        self.stack.append(self._group())

    def _op_tuple(self, _: Any) -> None:
        self.stack.append(tuple(self._group()))

    def _op_tuple1(self, _: Any) -> None:
        self._tuple(1)

    def _op_tuple2(self, _: Any) -> None:
        self._tuple(2)

    def _op_tuple3(self, _: Any) -> None:
        self._tuple(3)

    def _op_dict(self, _: Any) -> None:
        self.stack.append(_pairs(self._group()))

    def _op_append(self, _: Any) -> None:
        value = self.stack.pop()
        self._top(list).append(value)

    def _op_appends(self, _: Any) -> None:
        values = self._group()
        self._top(list).extend(values)

    def _op_setitem(self, _: Any) -> None:
        self._tuple(2)
        pair = self.stack.pop()
        self._top(dict).update(_pairs(pair))

    def _op_setitems(self, _: Any) -> None:
        pairs = _pairs(self._group())
        self._top(dict).update(pairs)

    def _op_pop(self, _: Any) -> None:
        self.stack.pop()

    def _op_pop_mark(self, _: Any) -> None:
        self._group()

    def _op_dup(self, _: Any) -> None:
        self.stack.append(self.stack[-1])

    def _op_memoize(self, _: Any) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _op_put(self, number: int) -> None:
        self.memo[number] = self.stack[-1]

    _op_binput = _op_long_binput = _op_put

    def _op_get(self, number: int) -> None:
        self.stack.append(self.memo[number])

    _op_binget = _op_long_binget = _op_get

    def _op_global(self, argument: str) -> None:
        self.stack.append(_admitted(argument.replace(" ", ".", 1)))

    def _op_stack_global(self, _: Any) -> None:
        self._tuple(2)
        module, name = self.stack.pop()
        if not (isinstance(module, str) and isinstance(name, str)):
            raise ValueError("a name that is not text")
        self.stack.append(_admitted(f"{module}.{name}"))

    def _op_reduce(self, _: Any) -> None:
        self._tuple(2)
        called, args = self.stack.pop()
        if not (isinstance(called, Name) and isinstance(args, tuple)):
            raise ValueError("a call of something that has no name")
        made: Any = Made(called.text, args)
        if called.text == _ENCODE:
            text, *coding = args
            if coding not in (["latin1"], ["latin-1"]) or not isinstance(text, str):
                raise _Refused(f"the pickle calls {_ENCODE} for something other than bytes")
            made = text.encode("latin-1")
        self.stack.append(made)

    _op_newobj = _op_reduce

    def _op_build(self, _: Any) -> None:
        state = self.stack.pop()
        self._top(Made).state = state


# opcodes whose argument is the value
_CONSTANTS = frozenset(
    [
        "INT",
        "BININT",
        "BININT1",
        "BININT2",
        "LONG",
        "LONG1",
        "LONG4",
        "FLOAT",
        "BINFLOAT",
        "STRING",
        "BINSTRING",
        "SHORT_BINSTRING",
        "UNICODE",
        "SHORT_BINUNICODE",
        "BINUNICODE",
        "BINUNICODE8",
        "BINBYTES",
        "BINBYTES8",
        "SHORT_BINBYTES",
        "BYTEARRAY8",
    ]
)


def _admitted(name: str) -> Name:
    if name not in ADMITTED:
        raise _Refused(f"the pickle names {name[:120]!r}, which is no pandas or NumPy data type: it is not run")
    return Name(name)


def _pairs(flat: Any) -> dict[Any, Any]:
    if len(flat) % 2:
        raise ValueError("a key without a value")
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _columns(frame: Any) -> dict[str, list[Any]]:
    """The columns of what was recorded for a DataFrame."""
    if not isinstance(frame, Made) or frame.name != "pandas.core.frame.DataFrame":
        found = frame.name if isinstance(frame, Made) else type(frame).__name__
        raise ValueError(f"it holds {found}, a pandas DataFrame is expected")
    state = frame.state if isinstance(frame.state, dict) else {}
    manager = state.get("_mgr", state.get("_data"))
    if not isinstance(manager, Made) or manager.name not in _MANAGERS:
        raise ValueError("the table has no data")
    if manager.state is not None:  # before pandas 1.3
        stored = manager.state[3]["0.14.1"]
        axes, blocks = stored["axes"], [(block["values"], block["mgr_locs"]) for block in stored["blocks"]]
    else:
        made, axes = manager.args
        blocks = [block.args[:2] for block in made if isinstance(block, Made) and block.name in _BLOCKS]
        if len(blocks) < len(made):
            raise ValueError("a block of the table is no block")
    names = _labels(axes[0])
    columns: dict[str, list[Any]] = {}
    for values, where in blocks:
        table = _array(values)
        places = _places(where, len(names))
        if table.ndim != 2 or table.shape[0] != len(places):
            raise ValueError("a block of the table has another shape than its columns")
        for place, row in zip(places, table, strict=True):
            columns[names[place]] = row.tolist()
    if len(columns) < len(names) or len({len(column) for column in columns.values()}) > 1:
        raise ValueError("the columns of the table are incomplete")
    return {name: columns[name] for name in names}


def _labels(index: Any) -> list[str]:
    if not isinstance(index, Made) or index.name not in _INDEXES:
        raise ValueError("the columns have no names")
    data = index.args[1].get("data") if len(index.args) > 1 else None
    labels: list[Any] = _array(data).tolist()
    if not all(isinstance(label, str) for label in labels) or len(set(labels)) < len(labels):
        raise ValueError("the columns have no names of their own")
    return labels


def _places(where: Any, count: int) -> list[int]:
    if isinstance(where, Made) and where.name in _PLACEMENT:
        where = where.args[0]
    if isinstance(where, Made) and where.name in _SLICE:
        return list(range(count))[slice(*where.args)]
    places = [int(place) for place in _array(where)]
    if not all(0 <= place < count for place in places):
        raise ValueError("a column number is out of range")
    return places


def _array(made: Any) -> npt.NDArray[Any]:
    """The array that was recorded, of numbers or of Python objects."""
    if not isinstance(made, Made):
        raise ValueError(f"{type(made).__name__} where an array is expected")
    if made.name in _RECONSTRUCT:
        shape, kind, fortran, data = made.state[-4:]
        order = "F" if fortran else "C"
    elif made.name in _FROM_BUFFER:
        data, kind, shape, order = made.args
    else:
        raise ValueError(f"{made.name} where an array is expected")
    dtype = _dtype(kind)
    size = 1
    for length in shape:
        size *= int(length)
    if not dtype.hasobject and isinstance(data, bytes | bytearray):  # bytes(n) of a number would be n zeros
        flat = np.frombuffer(data, dtype=dtype)
    elif dtype.hasobject and isinstance(data, list):
        flat = np.empty(len(data), dtype=object)
        flat[:] = data
    else:
        raise ValueError(f"the entries of an array are {type(data).__name__}")
    if flat.size != size or any(length < 0 for length in shape):
        raise ValueError("an array has another size than its shape")
    return flat.reshape(shape, order="F" if order == "F" else "C")


_KINDS = frozenset(["O", "O8", "b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f4", "f8"])


def _dtype(made: Any) -> np.dtype[Any]:
    if not isinstance(made, Made) or made.name != "numpy.dtype" or made.args[0] not in _KINDS:
        raise ValueError("an array of a kind that is neither numbers nor objects")
    code = made.args[0]
    order = made.state[1] if isinstance(made.state, tuple) and made.state[1] in ("<", ">") else "<"
    return np.dtype(object) if code.startswith("O") else np.dtype(order + code)
