"""What a chat endpoint is asked with. The key is never an option: only the name of the variable that holds it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from sirius_rec.errors import ConfigError
from sirius_rec.options import Count, NotNegative, Number, Options, Positive, options_of

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Sent unless `parameters` says otherwise; null there takes one out.
_DEFAULTS: dict[str, Any] = {"temperature": 0, "max_tokens": 2048}
_OURS = ("model", "messages", "stream", "n")
# How answers are fetched and what they cost, not what they say: they may change while a run is under way.
PLUMBING: Final = (
    "base_url", "key_env", "timeout", "retries", "backoff", "requests_per_minute", "concurrency", "price_in",
    "price_out",
)  # fmt: skip


class ChatOptions(Options):
    """model: the endpoint's name for it. base_url: up to and without /chat/completions. key_env: see above.

    parameters: of the request, over temperature 0 and max_tokens 2048; null takes one out. timeout: seconds for a whole
    answer. retries: after passing faults, with pauses of `backoff` seconds, doubled each time. requests_per_minute:
    null for no limit. concurrency: requests under way at once. price_in, price_out: per million tokens.
    """

    model: str
    base_url: str = "https://api.openai.com/v1"
    key_env: str = "OPENAI_API_KEY"
    parameters: Mapping[str, Any] = {}
    timeout: Annotated[Number, Field(ge=0.1)] = 120.0
    retries: Count = 6
    backoff: NotNegative = 1.0
    requests_per_minute: Annotated[Number, Field(ge=0.01)] | None = None
    concurrency: Positive = 4
    price_in: NotNegative = 0.0
    price_out: NotNegative = 0.0

    # Values are not repeated where somebody may have put a secret.

    @field_validator("model", "key_env", "base_url", "parameters", mode="before")
    @classmethod
    def _no_secret_is_repeated(cls, value: Any, info: Any) -> Any:
        if info.field_name == "model" and (not isinstance(value, str) or not value.strip()):
            raise ValueError("must be the endpoint's name of a model")
        if info.field_name == "key_env" and (not isinstance(value, str) or not _VARIABLE.fullmatch(value)):
            raise ValueError("must be the name of an environment variable, and never the key itself")
        if info.field_name == "parameters" and (not isinstance(value, Mapping) or any(key in _OURS for key in value)):
            raise ValueError(f"must be a section of key: value lines without {', '.join(_OURS)}")
        if info.field_name == "base_url":
            _check_url(value)
        return value

    @property
    def sent(self) -> dict[str, Any]:
        """Parameters of every request."""
        return {key: value for key, value in {**_DEFAULTS, **self.parameters}.items() if value is not None}

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return round((prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6, 6)


def chat_options(options: Mapping[str, Any]) -> ChatOptions:
    """Options of a configuration; ConfigError for an unknown one, naming the nearest."""
    unknown = [key for key in options if key not in ChatOptions.model_fields]
    if any("key" in str(key).lower() for key in unknown[:1]):
        raise ConfigError(
            f"unknown option '{unknown[0]}' of chatrec: the key comes from the variable that key_env names"
        )
    if not unknown and "model" not in options:
        raise ConfigError("model: which one should be asked?")
    made: ChatOptions = options_of(ChatOptions, dict(options), "chatrec")
    return made


def _check_url(url: Any) -> None:
    try:
        address = urlsplit(url if isinstance(url, str) else "")
        right = address.scheme in ("http", "https") and bool(address.hostname) and (address.port or 1) > 0
    except ValueError:
        right = False
    if not right:
        raise ValueError("must be an address like https://api.openai.com/v1")
    if "@" in address.netloc or address.query or address.fragment:
        raise ValueError("must hold no user, password, query or fragment: keys come from key_env's variable")
