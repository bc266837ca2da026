"""Records as JSON, or as the Python literals that UCSD's older dumps are written in. Nothing is ever evaluated.

`ast.literal_eval` builds a syntax tree and takes some 12 times as long as JSON (measured on a thousand short Steam
reviews, as literals and as JSON). So a literal is first rewritten as JSON, string by string, some 7 times as long with
the reading; whatever that does not cover (tuples, bytes, adjacent strings) goes to `ast.literal_eval` itself.
"""

from __future__ import annotations

import ast
import json
import re
import warnings
from typing import Any, NoReturn

# literal_eval's parser recurses in C; records longer than this are no records of any known dump
_LONGEST_LITERAL = 1 << 20

_STRING = re.compile(r"""('[^'\\]*(?:\\.[^'\\]*)*'|"[^"\\]*(?:\\.[^"\\]*)*")""", re.DOTALL)
_WORD = re.compile(r"(?<![\d.])[A-Za-z_]\w*")  # not the e of 1e5
_WORDS = {"True": "true", "False": "false", "None": "null"}
# stands between what was around the strings; JSON has no place for it, so one left over is an error
_GAP = "\0"
_escape = json.encoder.encode_basestring


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON value")


def strict_json() -> json.JSONDecoder:
    """A decoder that refuses NaN and Infinity, which are not JSON, and takes raw control characters in text."""
    return json.JSONDecoder(parse_constant=_no_constant, strict=False)


_decoder = strict_json()


def parse_json(text: str) -> Any:
    """The value of one line of JSON. NaN and Infinity, which are not JSON, are refused.

    Raises:
        ValueError: in one line, why it is not JSON.
    """
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at column {error.colno})") from error
    except RecursionError as error:
        raise ValueError("brackets nest too deep") from error


def parse_literal(text: str) -> Any:
    """The value of one line that holds a Python literal, of Python 2 or 3 (for JSON too: `parse_either`).

    >>> parse_literal("{u'user': u'It\\\\'s \\\\xe9', 'hours': 0.1, 'early': False, 'tags': (1, 2)}")
    {'user': "It's é", 'hours': 0.1, 'early': False, 'tags': (1, 2)}

    Raises:
        ValueError: in one line, why it is none.
    """
    try:
        return _decoder.decode(_as_json(text))
    except (ValueError, RecursionError):
        return _literal_eval(text)


def parse_either(text: str) -> Any:
    """JSON if it is that, else a Python literal.

    Raises:
        ValueError: it is neither.
    """
    try:
        return _decoder.decode(text)
    except (ValueError, RecursionError):
        return parse_literal(text)


def _as_json(text: str) -> str:
    """JSON of the same value, or text that is not JSON."""
    chunks = _STRING.split(text)
    around = _GAP.join(chunks[::2]).replace("u" + _GAP, _GAP)
    # a word that JSON knows and Python does not must not become a value
    around = _WORD.sub(lambda word: _WORDS.get(word.group(), "<"), around)
    chunks[::2] = around.split(_GAP)
    chunks[1::2] = [
        (f'"{string[1:-1]}"' if string[0] == '"' or '"' not in string else _escape(string[1:-1]))
        if "\\" not in string
        else _escape(_unescaped(string))
        for string in chunks[1::2]
    ]
    return "".join(chunks)


def _unescaped(string: str) -> str:
    body = string[1:-1]
    # For ASCII without \N{...} and unknown escapes, the codec reads escapes as Python's own parser does.
    if body.isascii() and not _UNUSUAL.search(body):
        return body.encode("ascii").decode("unicode_escape")
    return str(_literal_eval(string))


_UNUSUAL = re.compile(r"""\\(?:[^nrtxuU'"\\bfav0-7]|$)""")


def _literal_eval(text: str) -> Any:
    if len(text) > _LONGEST_LITERAL:
        raise ValueError("neither JSON nor a Python literal of less than 1 MiB")
    try:
        with warnings.catch_warnings():  # unknown escapes such as '\d' are what they say
            warnings.simplefilter("ignore")
            return ast.literal_eval(text.strip())
    except SyntaxError as error:
        where = f" at column {error.offset}" if error.offset else ""
        raise ValueError(f"neither JSON nor a Python literal ({error.msg}{where})") from error
    except (ValueError, TypeError) as error:
        reason = "a call, a name or an operation stands in it" if "malformed node" in str(error) else str(error)
        raise ValueError(f"neither JSON nor a Python literal ({reason})") from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("brackets nest too deep") from error
