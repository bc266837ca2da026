"""What a chat endpoint is asked with. The key is never an option: only the name of the variable that holds it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Final
from urllib.parse import urlsplit

from sirius_rec.errors import ConfigError

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Sent unless `parameters` says otherwise; null there takes one out.
_DEFAULTS: dict[str, Any] = {"temperature": 0, "max_tokens": 2048}
_OURS = ("model", "messages", "stream", "n")
# How answers are fetched and what they cost, not what they say: they may be mended while a run is under way.
PLUMBING: Final = (
    "base_url", "key_env", "timeout", "retries", "backoff", "requests_per_minute", "concurrency", "price_in",
    "price_out",
)  # fmt: skip


@dataclass(frozen=True)
class ChatOptions:
    """model: the endpoint's name for it. base_url: up to and without /chat/completions. key_env: see above.

    parameters: of the request, over temperature 0 and max_tokens 2048; null takes one out. timeout: seconds for a whole
    answer. retries: after passing faults, with pauses of `backoff` seconds, doubled each time. requests_per_minute:
    null for no limit. concurrency: requests under way at once. price_in, price_out: per million tokens.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    requests_per_minute: float | None = None
    concurrency: int = 4
    price_in: float = 0.0
    price_out: float = 0.0

    def __post_init__(self) -> None:
        # Values are not repeated where somebody may have put a secret.
        if not isinstance(self.model, str) or not self.model.strip():
            raise ConfigError("model: must be the endpoint's name of a model")
        _check_url(self.base_url)
        if not isinstance(self.key_env, str) or not _VARIABLE.fullmatch(self.key_env):
            raise ConfigError("key_env: must be the name of an environment variable, and never the key itself")
        if not isinstance(self.parameters, Mapping) or any(key in _OURS for key in self.parameters):
            raise ConfigError(f"parameters: must be a section of key: value lines without {', '.join(_OURS)}")
        for name, least, whole in (
            ("timeout", 0.1, False), ("retries", 0, True), ("backoff", 0, False), ("concurrency", 1, True),
            ("price_in", 0, False), ("price_out", 0, False),
        ):  # fmt: skip
            _check_number(name, getattr(self, name), least, whole)
        if self.requests_per_minute is not None:
            _check_number("requests_per_minute", self.requests_per_minute, 0.01, False)

    @property
    def sent(self) -> dict[str, Any]:
        """Parameters of every request."""
        return {key: value for key, value in {**_DEFAULTS, **self.parameters}.items() if value is not None}

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return round((prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6, 6)


def chat_options(options: Mapping[str, Any]) -> ChatOptions:
    """Options of a configuration; ConfigError for an unknown one, naming the nearest."""
    from sirius_rec.rankers.methods import unknown_option

    names = tuple(f.name for f in fields(ChatOptions))
    for key in options:
        if key not in names:
            if "key" in str(key).lower():
                raise ConfigError(
                    f"unknown option '{key}' of chatrec: the key comes from the variable that key_env names"
                )
            raise unknown_option(key, "chatrec", names)
    if "model" not in options:
        raise ConfigError("model: which one should be asked?")
    return ChatOptions(**options)


def _check_url(url: Any) -> None:
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        right = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        right = False
    if not right:
        raise ConfigError("base_url: must be an address like https://api.openai.com/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError("base_url: must hold no user, password, query or fragment: keys come from key_env's variable")


def _check_number(name: str, value: Any, least: float, whole: bool) -> None:
    kind = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not least <= value < float("inf"):
        raise ConfigError(f"{name}: must be a {'whole ' if whole else ''}number from {least:g}, got {value!r}")
