"""A client of OpenAI-compatible chat endpoints: cached, patient, silent about keys.

Answers are cached on disk, one file each, under a hash of model, prompt and parameters, so that whatever stops a long
series of requests, nothing is paid for twice. Redirects are not followed: they would carry the key to another host.
"""

from __future__ import annotations

import email.utils
import hashlib
import importlib.util
import json
import logging
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from sirius_rec import atomic
from sirius_rec.errors import ConfigError, ScoringError
from sirius_rec.rankers.chat.options import ChatOptions

if TYPE_CHECKING:
    import httpx2

_LONGEST_WAIT = 600.0  # seconds that an endpoint may ask us to wait
_PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529)
_MOST_BYTES = 32 << 20


@dataclass(frozen=True)
class Reply:
    """content: what the model said. Tokens as the endpoint counts them (0 where it does not), seconds it took."""

    content: str
    prompt_tokens: int
    completion_tokens: int
    finish_reason: str
    seconds: float


class _PassingFault(Exception):
    """Worth another try; after: seconds that the endpoint asks for."""

    def __init__(self, what: str, after: float = 0.0) -> None:
        super().__init__(what)
        self.after = after


class _Stopped(Exception):
    """Another request has failed for good."""


class ChatClient:
    """Asks `options.model` prompts, one user message each.

    cache: folder of the answers, made for the first of them: a method without any has not begun. Raises ConfigError for
    a key that cannot be one, and where httpx2 is not installed.
    """

    _http: httpx2.Client

    def __init__(self, options: ChatOptions, cache: Path) -> None:
        self.options, self.cache = options, cache
        self._key = _read_key(options.key_env)
        _require_httpx()
        self._turn, self._next = threading.Lock(), 0.0
        self._stop = threading.Event()

    # many

    def ask_all(self, prompts: Sequence[str], progress: Callable[[int], None] | None = None) -> list[Reply]:
        """Replies in the order of the prompts, from the cache where they are there; equal prompts are asked once.

        Raises ScoringError, with the number of answers kept if there are any, when the endpoint fails for good.
        progress gets the number of prompts just answered.
        """
        self._stop.clear()
        times = Counter(prompts)
        found = {prompt: self._cached(prompt) for prompt in times}
        missing = [prompt for prompt, reply in found.items() if reply is None]
        if progress:
            progress(sum(times[prompt] for prompt, reply in found.items() if reply is not None))
        pool = ThreadPoolExecutor(self.options.concurrency)
        self._http = _connections(self.options)
        try:
            futures = {pool.submit(self._ask, prompt): prompt for prompt in missing}
            for future in as_completed(futures):
                found[futures[future]] = future.result()
                if progress:
                    progress(times[futures[future]])
        except BaseException as error:
            self._stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            if isinstance(error, ScoringError):
                kept = sum(self.answered(prompt) for prompt in found)
                if kept:
                    kept_in = f"{kept} of {len(found)} answers are kept in {self.cache}: start again to go on"
                    raise ScoringError(f"{error}; {kept_in}") from None
            raise
        finally:
            pool.shutdown()
            self._http.close()
        return [reply for prompt in prompts if (reply := found[prompt]) is not None]

    # the cache

    def _file(self, prompt: str) -> Path:
        asked = json.dumps([self.options.model, prompt, self.options.sent], sort_keys=True)
        name = hashlib.sha256(asked.encode()).hexdigest()
        return self.cache / name[:2] / f"{name}.json"

    def answered(self, prompt: str) -> bool:
        """Whether the answer is in the cache."""
        return self._cached(prompt) is not None

    def _cached(self, prompt: str) -> Reply | None:
        """The kept reply; a file that is not one counts as missing."""
        try:
            return Reply(**json.loads(self._file(prompt).read_text(encoding="utf-8"))["reply"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def _keep(self, prompt: str, reply: Reply) -> None:
        content = {"model": self.options.model, "parameters": self.options.sent, "prompt": prompt}
        text = json.dumps({**content, "reply": asdict(reply)}, ensure_ascii=False, indent=1)
        atomic.write_text(self._file(prompt), text + "\n")

    # one

    def _ask(self, prompt: str) -> Reply:
        body = {"model": self.options.model, "messages": [{"role": "user", "content": prompt}], **self.options.sent}
        data = json.dumps(body).encode()
        for attempt in range(self.options.retries + 1):
            self._wait_for_turn()
            try:
                reply = self._post(data)
            except _PassingFault as fault:
                if attempt == self.options.retries:
                    tries = f"{attempt + 1} tries" if attempt else "one try"
                    raise ScoringError(f"chatrec: {self.options.base_url}: {fault}, after {tries}") from None
                pause = self.options.backoff * 2**attempt * (0.5 + random.random())
                self._pause(max(pause, fault.after), everyone=fault.after > 0)
            else:
                self._keep(prompt, reply)
                return reply
        raise AssertionError("the last attempt returns or raises")

    def _wait_for_turn(self) -> None:
        """Starts of requests stand `60 / requests_per_minute` seconds apart, over all threads."""
        limit = self.options.requests_per_minute
        with self._turn:
            start = max(time.monotonic(), self._next)
            self._next = start + (60.0 / limit if limit else 0.0)
        self._pause(start - time.monotonic())

    def _pause(self, seconds: float, everyone: bool = False) -> None:
        if everyone:
            with self._turn:
                self._next = max(self._next, time.monotonic() + seconds)
        if self._stop.wait(max(seconds, 0.0)):
            raise _Stopped

    def _post(self, data: bytes) -> Reply:
        import httpx2

        # no compression: an answer is short, and what is read is what was sent
        headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        url = f"{self.options.base_url.rstrip('/')}/chat/completions"
        started = time.monotonic()
        deadline = started + self.options.timeout
        try:
            with self._http.stream("POST", url, content=data, headers=headers) as response:
                if not response.is_success:
                    self._refused(response, deadline)
                text = _read(response, deadline)
        except (httpx2.TimeoutException, TimeoutError):
            raise _PassingFault(f"no whole answer within {self.options.timeout:g} s") from None
        except (httpx2.ConnectError, httpx2.ProxyError, httpx2.UnsupportedProtocol, httpx2.InvalidURL) as error:
            raise _PassingFault(f"cannot be reached ({self._clean(error)})") from None
        except (httpx2.HTTPError, OSError) as error:
            raise _PassingFault(f"the answer broke off ({type(error).__name__})") from None
        return self._understood(text, time.monotonic() - started)

    def _understood(self, text: bytes, seconds: float) -> Reply:
        try:
            answer = json.loads(text)
        except ValueError:
            raise _PassingFault("the answer is not whole JSON") from None
        try:
            choice = answer["choices"][0]
            content = choice["message"]["content"]
            usage = answer.get("usage") or {}
            asked, said = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
            reason = str(choice.get("finish_reason") or "")
        except (LookupError, TypeError, ValueError, AttributeError):
            raise _PassingFault("the answer is not a chat completion") from None
        if content is not None and not isinstance(content, str):
            raise _PassingFault("the answer is not a chat completion")
        # A model may refuse, or spend all its tokens on thinking: an empty answer, which names nothing.
        return Reply(self._clean(content or "", 0), asked, said, self._clean(reason), round(seconds, 3))

    def _refused(self, response: httpx2.Response, deadline: float) -> NoReturn:
        """Raise what an HTTP status means."""
        import httpx2

        status, variable = response.status_code, self.options.key_env
        if status in (401, 403):
            how = f"does not accept the key in ${variable}" if self._key else f"asks for a key: set ${variable}"
            raise ScoringError(f"chatrec: {self.options.base_url} {how} (HTTP {status})")
        if 300 <= status < 400:
            raise ScoringError(f"chatrec: {self.options.base_url} has moved (HTTP {status}): give its new address")
        try:
            message = _message(_read(response, deadline))
        except (httpx2.HTTPError, OSError):
            message = ""
        message = f" ({self._clean(message)})" if message else ""
        if status not in _PASSING or "insufficient_quota" in message:
            raise ScoringError(f"chatrec: {self.options.base_url} refuses the request: HTTP {status}{message}")
        after = _retry_after(response.headers.get("Retry-After"))
        if after > _LONGEST_WAIT:
            raise ScoringError(
                f"chatrec: {self.options.base_url}: HTTP {status}, to be asked again in {after:.0f} s only"
            )
        raise _PassingFault(f"HTTP {status}{message}", after)

    def _clean(self, text: object, longest: int = 200) -> str:
        """Text from outside, without the key, and in one short line unless longest is 0."""
        out = str(text)
        if self._key:
            out = out.replace(self._key, "[key]")
        return " ".join(out.split())[:longest] if longest else out


def _read_key(variable: str) -> str | None:
    """The key in an environment variable; None where there is none (servers of one's own ask for none)."""
    key = os.environ.get(variable, "").strip()
    if key and not all("!" <= sign <= "~" for sign in key):
        # httpx would report it too, and repeat the key in its message.
        raise ConfigError(f"${variable}: a key has no spaces, line breaks or accents inside: set it again")
    return key or None


def _require_httpx() -> None:
    if importlib.util.find_spec("httpx2") is None:
        raise ConfigError("chatrec needs httpx2, which is not installed: pip install 'sirius-rec[chat]'")
    # Below warnings they log the headers of answers, and an endpoint may repeat the key there.
    for name in ("httpx2", "httpcore2"):
        logging.getLogger(name).setLevel(logging.WARNING)


def _connections(options: ChatOptions) -> httpx2.Client:
    import httpx2

    limits = httpx2.Limits(max_connections=options.concurrency)
    return httpx2.Client(timeout=options.timeout, limits=limits, follow_redirects=False)


def _read(response: httpx2.Response, deadline: float) -> bytes:
    """The whole body; TimeoutError at the deadline, OSError for one without end."""
    body = bytearray()
    for chunk in response.iter_bytes():
        body += chunk
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(body) > _MOST_BYTES:
            raise OSError("the answer has no end")
    return bytes(body)


def _message(body: bytes) -> str:
    """What an error body says, where it is in the usual form; `code: message`."""
    try:
        error = json.loads(body)["error"]
        if isinstance(error, str):
            return error
        return ": ".join(str(error[name]) for name in ("code", "message") if error.get(name))
    except (ValueError, LookupError, TypeError, AttributeError):
        return ""


def _retry_after(value: str | None) -> float:
    """Seconds of a Retry-After header: a number or a date; 0 where it says neither."""
    if not value:
        return 0.0
    try:
        return max(float(value), 0.0)
    except ValueError:
        pass
    try:
        return max(email.utils.parsedate_to_datetime(value).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError):
        return 0.0
