"""prompt.json of an exported model: the prompt that it was trained with, so that whoever ranks with it asks as then."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sirius_rec import atomic
from sirius_rec.errors import ConfigError
from sirius_rec.prompts.templates import Template, get_template

if TYPE_CHECKING:
    from sirius_rec.recipes.run import Run

PROMPT_FILE = "prompt.json"
EXPORTED = "exported"  # name of a template that a model brought along
_MAX_HISTORY = 10  # of a model that does not say


@dataclass(frozen=True)
class PromptForm:
    """form: the template. max_history: newest titles shown. chat: within the tokenizer's chat template."""

    form: Template
    max_history: int
    chat: bool

    @property
    def recipe(self) -> dict[str, Any]:
        """What answers depend on. A template of the package goes by its name."""
        named = self.form.name == EXPORTED
        return {"template": asdict(self.form) if named else self.form.name, "slate": self.form.shows_slate,
                "chat": self.chat, "max_history": self.max_history}  # fmt: skip


def write_prompt(folder: Path, run: Run, template: Template) -> None:
    """Write the file of a model that is exported."""
    lines = {key: value for key, value in asdict(template).items() if key != "name"}
    prompts = run.config.prompts
    behind = {"fields": list(prompts.fields), "field_tokens": prompts.field_tokens} if prompts.fields else {}
    content = {**lines, **behind, "max_history": run.config.data.window.max_history, "chat": prompts.chat}
    atomic.write_json(folder / PROMPT_FILE, content)


def prompt_form(
    folder: str | Path, *, template: str | None, shows_slate: bool | None, max_history: int | None, chat: bool | None
) -> PromptForm:
    """What is asked for, else what the model's file says, else template `generic` with the slate and ten titles.

    folder: of the model, or its hub id.

    ConfigError for a file that is none of ours, for a model that read more behind titles than requests hold, and for a
    slate in prompts that name no line between it and the answer.
    """
    own = _read(_found(folder))
    if own.get("fields"):
        raise ConfigError(
            f"{folder}: was trained on titles with {', '.join(own['fields'])} behind them, which requests do not hold: "
            "rank with the run that it comes from"
        )
    if template is None and own:
        form = Template(EXPORTED, own["history"], own["candidates"], own["answer"], own["shows_slate"])
    else:
        form = get_template(template or "generic")
    if shows_slate is not None:
        form = replace(form, shows_slate=shows_slate)
    if form.shows_slate and form.answer is None:
        raise ConfigError(
            f"{folder}: its prompts continue the history, and behind a slate the answer looks like one more candidate: "
            "leave --slate out, or choose a --template"
        )
    if max_history is None:
        max_history = int(own.get("max_history", _MAX_HISTORY))
    return PromptForm(form, max_history, bool(own.get("chat", False) if chat is None else chat))


def is_exported(folder: Path) -> bool:
    """Whether a folder on this machine holds a model that `sirius export` made."""
    return bool(_read(folder / PROMPT_FILE))


_KINDS = {
    "history": str,
    "candidates": str,
    "answer": str | None,
    "shows_slate": bool,
    "max_history": int,
    "chat": bool,
}


def in_words(name: str, recipe: Mapping[str, Any]) -> str:
    """Of a `PromptForm.recipe`, for people: `NAME, prompts as its prompt.json says: history of 10, no slate`."""
    whose = f"of template {recipe['template']}" if isinstance(recipe["template"], str) else f"as its {PROMPT_FILE} says"
    slate, chat = "" if recipe["slate"] else ", no slate", ", as chat" if recipe["chat"] else ""
    return f"{name}, prompts {whose}: history of {recipe['max_history']}{slate}{chat}"


def _found(model: str | Path) -> Path | None:
    """The file in a model's folder, or on the hub; None where there is none, or the hub is not reached."""
    if Path(model).is_dir():
        return Path(model) / PROMPT_FILE
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(str(model), PROMPT_FILE))
    except (HfHubHTTPError, OSError, ValueError):  # what is wrong with the id itself, loading the model says
        return None


def _read(file: Path | None) -> dict[str, Any]:
    """What our file says; nothing of somebody else's of that name."""
    if file is None:
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or not {"shows_slate", "max_history"} <= content.keys():
        return {}
    for key, kind in _KINDS.items():
        if not isinstance(content.get(key, ...), kind) or (kind is int and content[key] < 0):
            raise ConfigError(f"{file}: '{key}' is missing or no value that it can have: export the model again")
    return content
