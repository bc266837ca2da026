"""Python literals and JSON lines: the fast way equals `ast.literal_eval`, and nothing is run."""

from __future__ import annotations

import ast
import json
import warnings
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sirius_rec.data.sources.literals import parse_either, parse_json, parse_literal

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LEAVES = st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | TEXT | st.binary()
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4) | st.tuples(inner, inner),
    max_leaves=12,
)


def naive(text: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return ast.literal_eval(text.strip())


@given(st.dictionaries(TEXT, VALUES, max_size=6))
def test_equals_literal_eval_on_what_python_3_prints(value: dict[str, Any]) -> None:
    text = repr(value)
    if "inf" in text:  # not a literal in Python either
        return
    assert parse_literal(text) == value == naive(text)
    assert [type(x) for x in parse_literal(text).values()] == [type(x) for x in value.values()]


def python_2(value: Any) -> str:
    """How Python 2 prints text: ASCII with escapes and a u before it."""
    if isinstance(value, str):
        return "u" + ascii(value)
    if isinstance(value, list):
        return f"[{', '.join(map(python_2, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{python_2(k)}: {python_2(v)}" for k, v in value.items()) + "}"
    return repr(value)


@given(st.dictionaries(TEXT, TEXT | st.integers() | st.booleans() | st.lists(TEXT, max_size=3), max_size=5))
def test_reads_what_python_2_prints(value: dict[str, Any]) -> None:
    assert parse_literal(python_2(value)) == value


@settings(max_examples=300)
@example("'\"\n'")
@given(st.text(st.sampled_from("{}[](),:'\"\\ux0419eNTrueFalsnb -+._\n\x00é"), max_size=25))
def test_agrees_with_literal_eval_on_any_text(text: str) -> None:
    """Same value or both refuse; raw control characters in text, and text that is JSON, may be read where Python
    refuses them."""
    try:
        expected = naive(text)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):  # literal_eval's, by its documentation
        expected = ValueError
    try:
        got = parse_literal(text)
    except ValueError as error:
        assert "\n" not in str(error)
        assert expected is ValueError
        return
    if expected is ValueError:
        try:
            assert repr(got) == repr(naive(text.replace("\n", r"\n").replace("\0", r"\x00")))
        except (ValueError, TypeError, SyntaxError):
            json.loads(text.replace("'", '"').replace("u", ""), strict=False)
    else:
        assert repr(got) == repr(expected)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').system('echo ran')",
        "{'a': open('/etc/passwd')}",
        "[x for x in (1,)]",
        "{'a': true}",
        "{'a': NaN}",
        "1 if 1 else 2",
        "[" * 5000,
        "-" * 100_000 + "1",
        "'" + "a" * 2_000_000,
        "",
        "\x00",
    ],
    ids=str.__len__,
)
def test_what_is_no_literal_is_refused(text: str) -> None:
    for parse in (parse_literal, parse_either):
        with pytest.raises(ValueError) as caught:
            parse(text)
        assert len(str(caught.value)) < 200


def test_json_is_strict_about_numbers_that_are_none() -> None:
    assert parse_json('{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}
    for text in ('{"a": NaN}', "{'a': 1}", "[" * 100_000, '{"a": 1'):
        with pytest.raises(ValueError):
            parse_json(text)
    assert parse_either('{"a": "it\'s"}') == parse_either("{'a': \"it's\"}") == {"a": "it's"}
