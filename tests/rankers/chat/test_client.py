"""The chat client against a real server on this machine: every fault it may meet, and a key that never shows."""

from __future__ import annotations

import email.utils
import importlib.util
import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.errors import ConfigError, ScoringError
from sirius_rec.rankers.chat import client as module
from sirius_rec.rankers.chat.client import ChatClient
from sirius_rec.rankers.chat.options import PLUMBING, ChatOptions, chat_options

KEY = "sk-Zx81-never-to-be-seen"
PROMPTS = [f"prompt {n}" for n in range(12)]


@pytest.fixture
def endpoint(serve: Callable[..., Any]) -> Any:
    return serve(lambda prompt: f"echo {prompt}")


def client(endpoint: Any, folder: Path, **options: Any) -> ChatClient:
    made = {"model": "small", "base_url": endpoint.base_url, "backoff": 0.01, "timeout": 5.0, "retries": 3}
    return ChatClient(ChatOptions(**{**made, **options}), folder)


def test_answers_come_in_order_and_are_kept(endpoint: Any, tmp_path: Path) -> None:
    done: list[int] = []
    replies = client(endpoint, tmp_path).ask_all([*PROMPTS, PROMPTS[0]], done.append)
    assert [reply.content for reply in replies] == [f"echo {p}" for p in [*PROMPTS, PROMPTS[0]]]
    assert len(endpoint.requests) == len(PROMPTS) and sum(done) == len(PROMPTS) + 1
    assert all(reply.prompt_tokens == 2 and reply.completion_tokens == 3 and reply.seconds > 0 for reply in replies)
    assert endpoint.requests[0].keys() == {"model", "messages", "temperature", "max_tokens"}
    again: list[int] = []
    assert client(endpoint, tmp_path).ask_all(PROMPTS, again.append) == replies[: len(PROMPTS)]
    assert len(endpoint.requests) == len(PROMPTS) and sum(again) == len(PROMPTS)


def test_another_model_or_parameter_is_another_answer(endpoint: Any, tmp_path: Path) -> None:
    client(endpoint, tmp_path).ask_all(["x"])
    client(endpoint, tmp_path, model="large").ask_all(["x"])
    client(endpoint, tmp_path, parameters={"temperature": None, "max_tokens": None, "top_p": 0.5}).ask_all(["x"])
    assert len(endpoint.requests) == 3 and endpoint.requests[2].keys() == {"model", "messages", "top_p"}


def test_a_damaged_cache_file_is_asked_again(endpoint: Any, tmp_path: Path) -> None:
    client(endpoint, tmp_path).ask_all(PROMPTS[:3])
    files = sorted(tmp_path.rglob("*.json"))
    files[0].write_text(files[0].read_text()[:20])
    files[1].write_text('{"reply": {"content": "x"}}')
    replies = client(endpoint, tmp_path).ask_all(PROMPTS[:3])
    assert len(endpoint.requests) == 5 and [r.content for r in replies] == [f"echo {p}" for p in PROMPTS[:3]]
    assert not list(tmp_path.rglob("*.partial"))


@pytest.mark.parametrize(
    "fault", [429, 500, 502, 503, 529, "truncated", "truncated json", "hang up", (200, {}, b"<html>"), (200, {}, b"{}"),
              (200, {}, b'{"choices": []}'), (200, {}, b'{"choices": [{"message": {"content": 5}}]}')]
)  # fmt: skip
def test_passing_faults_are_tried_again(endpoint: Any, tmp_path: Path, fault: Any) -> None:
    endpoint.faults = [fault, fault]
    assert client(endpoint, tmp_path).ask_all(["x"])[0].content == "echo x"
    assert len(endpoint.times) == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (500, "HTTP 500 (no luck), after 2 tries"),
        (429, "HTTP 429 (no luck), after 2 tries"),
        ("truncated", "the answer broke off (RemoteProtocolError)"),
        ("truncated json", "the answer is not whole JSON"),
        ((200, {}, b'"hello"'), "the answer is not a chat completion"),
        ("hang up", "the answer broke off (RemoteProtocolError)"),
    ],
)
def test_what_does_not_pass_is_one_line_and_nothing_is_lost(
    endpoint: Any, tmp_path: Path, fault: Any, message: str
) -> None:
    client(endpoint, tmp_path).ask_all(PROMPTS[:5])
    endpoint.faults = [fault] * 100
    with pytest.raises(ScoringError) as caught:
        client(endpoint, tmp_path, retries=1).ask_all(PROMPTS)
    said = str(caught.value)
    assert message in said and endpoint.base_url in said and "\n" not in said
    assert "5 of 12 answers are kept" in said and str(tmp_path) in said
    endpoint.faults = []
    client(endpoint, tmp_path).ask_all(PROMPTS)
    asked = [request["messages"][0]["content"] for request in endpoint.requests]
    assert all(asked.count(prompt) == 1 for prompt in PROMPTS[:5])


@pytest.mark.parametrize("fault", ["slow", "drip"])
def test_a_slow_endpoint_times_out(endpoint: Any, tmp_path: Path, fault: str) -> None:
    endpoint.faults = [fault]
    started = time.monotonic()
    assert client(endpoint, tmp_path, timeout=0.5).ask_all(["x"])[0].content == "echo x"
    endpoint.faults = [fault] * 2
    with pytest.raises(ScoringError, match=r"within 0.5 s, after 2 tries"):
        client(endpoint, tmp_path, timeout=0.5, retries=1).ask_all(["y"])
    assert time.monotonic() - started < 10


def test_retry_after_is_heeded_by_all_threads(endpoint: Any, tmp_path: Path) -> None:
    endpoint.faults = [(429, {"Retry-After": "0.6"}, b"{}")]
    client(endpoint, tmp_path, concurrency=1).ask_all(PROMPTS[:3])
    assert endpoint.times[1] - endpoint.times[0] >= 0.55
    # a date, which has whole seconds
    endpoint.faults = [(503, {"Retry-After": email.utils.formatdate(time.time() + 2, usegmt=True)}, b"{}")]
    before = len(endpoint.times)
    client(endpoint, tmp_path).ask_all(["dated"])
    assert endpoint.times[before + 1] - endpoint.times[before] >= 0.9
    endpoint.faults = [(429, {"Retry-After": "86400"}, b"{}")]
    with pytest.raises(ScoringError, match="HTTP 429, to be asked again in 86400 s only"):
        client(endpoint, tmp_path).ask_all(["tomorrow"])


def test_a_used_up_quota_is_not_asked_again(endpoint: Any, tmp_path: Path) -> None:
    body = {"error": {"code": "insufficient_quota", "message": "You exceeded your current quota"}}
    endpoint.faults = [(429, {}, json.dumps(body).encode())]
    with pytest.raises(ScoringError, match=r"HTTP 429 \(insufficient_quota: You exceeded"):
        client(endpoint, tmp_path).ask_all(["x"])
    assert len(endpoint.times) == 1


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_wrong_request_is_not_repeated(endpoint: Any, tmp_path: Path, status: int) -> None:
    endpoint.faults = [status]
    with pytest.raises(ScoringError, match=rf"refuses the request: HTTP {status} \(no luck\)"):
        client(endpoint, tmp_path).ask_all(["x"])
    assert len(endpoint.times) == 1


def test_nobody_there(endpoint: Any, tmp_path: Path) -> None:
    endpoint.close()
    with pytest.raises(ScoringError, match=r"cannot be reached .*after 2 tries$"):
        client(endpoint, tmp_path, retries=1).ask_all(["x"])


def test_the_folder_is_made_for_the_first_answer(endpoint: Any, tmp_path: Path) -> None:
    """Without an answer nothing has begun, and the configuration may still be mended."""
    endpoint.faults = [404]
    with pytest.raises(ScoringError, match="HTTP 404"):
        client(endpoint, tmp_path / "method" / "answers").ask_all(["x"])
    assert not (tmp_path / "method").exists()
    client(endpoint, tmp_path / "method" / "answers").ask_all(["x"])
    assert len(list((tmp_path / "method" / "answers").rglob("*.json"))) == 1


def test_pauses_double_from_backoff_on(endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each between half and one and a half of 10, 20, 40, … seconds, and not the same for everybody."""

    def pauses(folder: str) -> list[float]:
        endpoint.faults = [500] * 5
        asking = client(endpoint, tmp_path / folder, backoff=10.0, retries=5)
        waited: list[float] = []
        monkeypatch.setattr(asking._stop, "wait", lambda seconds: bool(waited.append(seconds)))
        asking.ask_all(["x"])
        return [seconds for seconds in waited if seconds > 0.1]

    found = [pauses(str(n)) for n in range(4)]
    for row in found:
        assert len(row) == 5
        assert all(0.5 * 10 * 2**n <= seconds <= 1.5 * 10 * 2**n for n, seconds in enumerate(row))
    assert len({row[0] for row in found}) > 1


def test_redirects_do_not_carry_the_key_away(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    thief, endpoint = serve(lambda p: "x"), serve(lambda p: "x")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    endpoint.faults = [(307, {"Location": f"{thief.base_url}/chat/completions"}, b"")]
    with pytest.raises(ScoringError, match=r"has moved \(HTTP 307\)"):
        client(endpoint, tmp_path).ask_all(["x"])
    assert not thief.requests


def test_the_key_is_sent_and_shows_nowhere(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not in answers that repeat it, errors that repeat it, cache files, options, or the client's own text."""
    endpoint = serve(lambda prompt: f"you sent {KEY}")
    endpoint.key = KEY
    monkeypatch.setenv("MY_KEY", f" {KEY}\n")
    asking = client(endpoint, tmp_path, key_env="MY_KEY")
    reply = asking.ask_all(["x"])[0]
    assert endpoint.keys == [f"Bearer {KEY}"] and reply.content == "you sent [key]"
    said = [repr(reply), repr(asking), repr(asking.options), str(asking.options)]
    for body in (b'{"error": {"message": "%s is tired"}}' % KEY.encode(), b'{"error": "%s"}' % KEY.encode()):
        endpoint.faults = [(400, {}, body)]
        with pytest.raises(ScoringError, match=r"\[key\]") as caught:
            client(endpoint, tmp_path, key_env="MY_KEY").ask_all([str(body)])
        said.append(str(caught.value))
    said += [file.read_text() for file in tmp_path.rglob("*") if file.is_file()]
    said += list(capsys.readouterr())
    assert len(list(tmp_path.rglob("*.json"))) == 1 and not any(KEY in text for text in said)


def test_the_key_is_in_no_log(
    serve: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The HTTP libraries log the headers of answers, and an unkind endpoint repeats the key there."""
    endpoint = serve(lambda prompt: "x")
    body = b'{"choices": [{"message": {"content": "x"}}]}'
    endpoint.faults = [(500, {"X-Sent": f"Bearer {KEY}"}, b""), (200, {"X-Sent": f"Bearer {KEY}"}, body)]
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("sirius_rec.test").debug("the log is on")
        client(endpoint, tmp_path).ask_all(["x"])
    assert endpoint.keys == [f"Bearer {KEY}"] * 2
    assert "the log is on" in caplog.text and KEY not in caplog.text


def test_an_answer_without_end_is_not_read_to_the_end(
    endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_MOST_BYTES", 1 << 20)
    endpoint.faults = [(200, {}, b"x" * (64 << 20)), (400, {}, b"x" * (64 << 20))]
    with pytest.raises(ScoringError, match="broke off"):
        client(endpoint, tmp_path, retries=0).ask_all(["x"])
    with pytest.raises(ScoringError, match=r"refuses the request: HTTP 400$"):
        client(endpoint, tmp_path, retries=0).ask_all(["x"])


def test_without_httpx_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"^chatrec needs httpx2, .*: pip install 'sirius-rec\[chat\]'$"):
        ChatClient(ChatOptions(model="small"), tmp_path)


def test_importing_the_client_needs_no_httpx() -> None:
    """Without the extra everything but chatrec works."""
    code = "import sys; sys.modules['httpx2'] = None; import sirius_rec.rankers.chat.ranker"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_wrong_key_is_one_clear_line(endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endpoint.key = "right"
    with pytest.raises(ScoringError, match=r"asks for a key: set \$OPENAI_API_KEY \(HTTP 401\)"):
        client(endpoint, tmp_path).ask_all(PROMPTS)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(ScoringError, match=r"does not accept the key in \$OPENAI_API_KEY \(HTTP 401\)") as caught:
        client(endpoint, tmp_path).ask_all(PROMPTS)
    assert KEY not in str(caught.value) and "\n" not in str(caught.value)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-a\nb")
    with pytest.raises(ConfigError, match="a key has no spaces, line breaks") as broken:
        client(endpoint, tmp_path)
    assert "sk-a" not in str(broken.value)


def test_requests_run_side_by_side_and_within_the_rate(serve: Callable[..., Any], tmp_path: Path) -> None:
    def slowly(prompt: str) -> str:
        time.sleep(0.1)
        return "x"

    endpoint = serve(slowly)
    client(endpoint, tmp_path / "a", concurrency=3).ask_all(PROMPTS)
    assert endpoint.most_active == 3
    endpoint.times.clear()
    client(endpoint, tmp_path / "b", concurrency=4, requests_per_minute=600).ask_all(PROMPTS[:6])
    assert endpoint.times[-1] - endpoint.times[0] >= 0.45


def test_an_answer_without_content_or_usage_counts(serve: Callable[..., Any], tmp_path: Path) -> None:
    endpoint = serve(lambda prompt: "x")
    endpoint.faults = [
        (200, {}, b'{"choices": [{"message": {"content": null}, "finish_reason": "content_filter"}]}'),
    ]
    reply = client(endpoint, tmp_path).ask_all(["x"])[0]
    assert (reply.content, reply.prompt_tokens, reply.finish_reason) == ("", 0, "content_filter")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "model: which one"),
        ({"model": ""}, "model: must be"),
        ({"model": "m", "modle": "x"}, "unknown option 'modle' of chatrec, did you mean 'model'"),
        (
            {"model": "m", "api_key": KEY},
            "unknown option 'api_key' of chatrec: the key comes from the variable that key_env",
        ),
        ({"model": "m", "key_env": KEY}, "key_env: must be the name of an environment variable"),
        ({"model": "m", "base_url": f"https://u:{KEY}@host/v1"}, "base_url: must hold no user, password"),
        ({"model": "m", "base_url": f"https://host/v1?key={KEY}"}, "base_url: must hold no user, password"),
        ({"model": "m", "base_url": "host/v1"}, "base_url: must be an address"),
        ({"model": "m", "base_url": "http://host:port/v1"}, "base_url: must be an address"),
        ({"model": "m", "parameters": {"stream": True}}, "parameters: must be a section"),
        ({"model": "m", "timeout": 0}, "timeout: must be at least 0.1, got 0"),
        ({"model": "m", "retries": 1.5}, "retries: must be a whole number, got 1.5"),
        ({"model": "m", "concurrency": True}, "concurrency: must be a whole number, got True"),
        ({"model": "m", "price_in": -1}, "price_in: must be at least 0, got -1"),
        ({"model": "m", "requests_per_minute": 0}, "requests_per_minute: must be at least 0.01"),
    ],
)
def test_wrong_options_are_one_line_without_the_key(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        chat_options(options)
    assert message in str(caught.value) and KEY not in str(caught.value)


def test_every_option_either_decides_answers_or_is_plumbing() -> None:
    """A new option must be put on one side: what decides answers may not change in a run folder."""
    assert set(ChatOptions.model_fields) == {"model", "parameters", *PLUMBING}


def test_cost_is_per_million_tokens() -> None:
    assert ChatOptions(model="m", price_in=2.5, price_out=10.0).cost(1_000_000, 200_000) == 4.5
