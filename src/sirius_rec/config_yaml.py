"""Configuration text: YAML in which every key stands once, and `key.path=value` overrides."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from sirius_rec.errors import ConfigError


class _UniqueKeys(yaml.SafeLoader):  # type: ignore[misc, unused-ignore]  # where PyYAML's types are not installed
    """SafeLoader takes the last of two equal keys without a word; a configuration must not."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node)
            if key in seen:
                problem = f"the key '{key}' is duplicated: keep one of them"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key_node.start_mark)
            seen.add(key)
        made: dict[Any, Any] = super().construct_mapping(node, deep)
        return made


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises ConfigError, naming the line, for a file that cannot be read, is empty, is no YAML, or has a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: save it as UTF-8") from error
    try:
        raw = yaml.load(text, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        raise ConfigError(f"{path}{line}: not valid YAML ({getattr(error, 'problem', error)})") from error
    if raw is None:
        raise ConfigError(f"{path}: the file is empty: start from configs/table.yaml, or run `sirius demo`")
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a configuration is a mapping of sections, found {type(raw).__name__}")
    return raw


def apply_overrides(raw: dict[str, Any], overrides: list[str]) -> dict[str, Any]:
    """`raw` with `key.path=value` overrides, each value read as YAML; `raw` itself is changed."""
    for override in overrides:
        _apply(raw, override)
    return raw


def _apply(raw: dict[str, Any], override: str) -> None:
    key, sep, value = override.partition("=")
    if not sep or not key:
        raise ConfigError(f"override '{override}': write it as key=value, for example align.epochs=3")
    at: Any = raw
    *parents, last = key.split(".")
    for part in parents:
        if at.get(part) is None:
            at[part] = {}
        at = at[part]
        if isinstance(at, list):
            raise ConfigError(f"override '{override}': '{part}' is a list: give the whole of it, {part}=[…]")
        if not isinstance(at, dict):
            raise ConfigError(f"override '{override}': '{part}' is a value, not a section")
    try:
        at[last] = yaml.load(value, Loader=_UniqueKeys)
    except yaml.YAMLError as error:
        twice = getattr(error, "problem", None) or ""
        what = twice if "is duplicated" in twice else "the value is not valid YAML"
        raise ConfigError(f"override '{override}': {what}") from error
