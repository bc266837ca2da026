"""Makes docs/configuration.md, every key, from the code: python docs/make_configuration.py"""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from sirius_rec.config import Config
from sirius_rec.data.recipe import NO_OPTIONS
from sirius_rec.data.sources import SOURCES
from sirius_rec.objectives.presets import LOSSES
from sirius_rec.options import Options
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.rankers.sequential.options import MoRecOptions, SequentialOptions
from sirius_rec.recipes.methods import METHODS, Method
from sirius_rec.recipes.methods.closed_form import ClosedForm
from sirius_rec.recipes.methods.finetuned import FinetunedBaseline
from sirius_rec.recipes.methods.networks import NetworkMethod

PAGE = Path(__file__).with_name("configuration.md")
_OPENING = """# Configuration: every key, its values and its default

A configuration is a YAML file; `key=value` behind it on the command line overrides a key (`align.epochs=3`,
`data.slates='[{size: 100}]'`). Unknown keys are refused with the nearest known one. This page is made from the code
(`python docs/make_configuration.py`), and a test keeps it so.
"""


def page() -> str:
    """The whole page."""
    parts = [_OPENING, *_sections(Config, ""), *_losses(), *_sources(), *_methods()]
    parts += _templates()
    return "\n".join(parts)


def _sections(section: type[BaseModel], path: str) -> Iterator[str]:
    """A table of the section's keys, then its sections, each once."""
    lines = [f"## {path or 'The top'}", ""]
    # A base model's own docstring is inherited where a section has none.
    if section.__doc__ and section.__doc__ != Options.__doc__:
        lines += [inspect.cleandoc(section.__doc__), ""]
    lines += ["| key | values | default |", "|---|---|---|"]
    inner: list[tuple[str, type[BaseModel]]] = []
    for name, field in section.model_fields.items():
        annotation = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        below = _section_in(annotation)
        if below is not None:
            inner.append((f"{path}.{name}".lstrip("."), below))
        lines.append(f"| `{name}` | {_values(annotation)} | {_default(field.default)} |")
    yield "\n".join([*lines, ""])
    for name, below in inner:
        yield from _sections(below, name)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _section_in(part)) is not None), None)


def _values(annotation: Any) -> str:
    """A type in words: choices, bounds, lists."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [text for extra in args[1:] for text in _bounds(extra)]
        return " ".join([_values(args[0]), *bounds])
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in args)
    if origin in (Union, types.UnionType):
        return " or ".join(_values(part) for part in args)
    if origin is tuple:
        return f"list of {_values(args[0])}" if args[-1] is Ellipsis else f"{len(args)} × {_values(args[0])}"
    if origin is dict:
        return f"{_values(args[0])} → {_values(args[1])}"
    if annotation is type(None):
        return "null"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return "section"
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true, false", "Path": "path"}
    return words.get(getattr(annotation, "__name__", ""), "any")


def _bounds(extra: Any) -> Iterator[str]:
    for part in (extra, *getattr(extra, "metadata", ())):
        for name, sign in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if getattr(part, name, None) is not None:
                yield f"{sign} {getattr(part, name)}"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "must be given"
    if isinstance(value, BaseModel):
        return "as below"
    if isinstance(value, tuple):
        named = [getattr(entry, "key", None) or entry for entry in value]
        return "as below" if any(isinstance(entry, BaseModel) for entry in named) else f"`{_plain(list(named))}`"
    return f"`{_plain(value)}`"


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_plain(entry) for entry in value)}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return "{}" if isinstance(value, dict) else str(value)


def _losses() -> Iterator[str]:
    yield "## Losses, for `arms`\n"
    yield "Parts of a preset that an arm may change stand under arms; docs/losses.md explains them."
    yield "z = r_i − r_j, with the reward r of the preset.\n"
    yield "| name | in tables | loss of one example | from |\n|---|---|---|---|"
    for name, preset in LOSSES.items():
        formula = preset.formula.replace("|", "\\|")
        yield f"| `{name}` | {preset.label} | {formula} | {preset.source} |"
    yield ""


def _sources() -> Iterator[str]:
    yield "## Sources, for `data.source`, with their `data.options`\n"
    for name, load in SOURCES.items():
        parameters = inspect.signature(load).parameters
        options = [f"`{key}: {_plain(p.default)}`" for key, p in parameters.items() if key not in NO_OPTIONS]
        said = inspect.getdoc(load) or ""
        yield f"### {name}\n\nOptions: {', '.join(options) or 'none'}.\n\n```text\n{said}\n```\n"


def _methods() -> Iterator[str]:
    yield "## Methods, for `methods`\n\n`docs/baselines.md` says what they are; options of networks:\n"
    yield f"```text\n{inspect.getdoc(SequentialOptions)}\n```\n\nMoRec also:\n"
    yield f"```text\n{inspect.getdoc(MoRecOptions)}\n```\n"
    yield "| name | in tables | own options |\n|---|---|---|"
    yield "\n".join(f"| `{name}` | {method.title} | {_own_options(method)} |" for name, method in METHODS.items())
    yield ""


def _own_options(method: type[Method]) -> str:
    if issubclass(method, NetworkMethod):
        return "those above"
    if issubclass(method, FinetunedBaseline):
        own = ", ".join(f"`{option}`" for option in method.OwnOptions.model_fields)
        return f"{own} and those of `sft`" if own else "those of `sft`"
    if issubclass(method, ClosedForm):
        return ", ".join(f"`{option}`" for option in method.Settings.model_fields) or "none"
    return "see docs/baselines.md"


def _templates() -> Iterator[str]:
    yield "## Prompt templates\n\nExactly what a model reads, for a history of one and a slate of two.\n"
    for name, template in TEMPLATES.items():
        yield f"`{name}`:\n\n```text\n{template.render(['Air'], ['Can', 'Low'])}```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
