"""What the reference shows is documented, and examples in docstrings do what they say."""

from __future__ import annotations

import doctest
import importlib
import inspect
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
_DIRECTIVE = re.compile(r"^::: (\S+)\n(?:    options: (.*)\n)?", re.M)
SHOWN = [
    (found[1], yaml.safe_load(found[2] or "{}"))
    for page in sorted((ROOT / "docs/reference").glob("*.md"))
    for found in _DIRECTIVE.finditer(page.read_text(encoding="utf-8"))
]
WITH_EXAMPLES = sorted(path for path in (ROOT / "src").rglob("*.py") if ">>> " in path.read_text(encoding="utf-8"))


def _object(path: str) -> Any:
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def _members(thing: Any, options: dict[str, Any]) -> dict[str, Any]:
    chosen = options.get("members")
    if chosen is False or not (inspect.isclass(thing) or inspect.ismodule(thing)):
        return {}
    if chosen is not None:
        missing = [name for name in chosen if not hasattr(thing, name)]
        assert not missing, f"no {missing}"
        return {name: inspect.getattr_static(thing, name) for name in chosen}
    kinds = (property, classmethod, staticmethod)
    return {
        name: value
        for name, value in vars(thing).items()
        if not name.startswith("_") and (inspect.isfunction(value) or isinstance(value, kinds))
    }


@pytest.mark.parametrize(("path", "options"), SHOWN, ids=[path for path, _ in SHOWN])
def test_what_the_reference_shows_is_documented(path: str, options: dict[str, Any]) -> None:
    thing = _object(path)
    for name, shown in {path: thing, **_members(thing, options)}.items():
        said = getattr(shown, "__doc__", None)
        assert said and not said.startswith(f"{name.rpartition('.')[2]}("), f"{name} of {path} has no docstring"


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=lambda path: path.relative_to(ROOT / "src").as_posix())
def test_examples_in_docstrings(path: Path) -> None:
    name = ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted and not outcome.failed


def test_arguments_in_docstrings_become_lists_and_examples_code() -> None:
    pytest.importorskip("griffe", reason="needs the extra docs")
    page = runpy.run_path(str(ROOT / "docs/site_docstrings.py"))
    changed = page["as_markdown"](
        "Scores.\n\na, b (≥ 0): one,\n    and on. c: two. d: three.\n\nEnd: no.\n\n>>> 1\n1", {"c"}
    )
    lists = "Scores.\n\n- `a`, `b` (≥ 0): one,\n    and on.\n- `c`: two. d: three.\n\nEnd: no."
    assert changed == f"{lists}\n\n```pycon\n>>> 1\n1\n```"
