"""Files by address: fetched once, again when they change, and answers that arrive whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from sirius_rec import cache, remote  # noqa: E402
from sirius_rec.commands.serve import _answer  # noqa: E402
from sirius_rec.config import Config  # noqa: E402
from sirius_rec.data.prepare import prepare  # noqa: E402
from sirius_rec.errors import ConfigError, DataError, RunError  # noqa: E402
from sirius_rec.recipes.answering import Loading  # noqa: E402
from sirius_rec.recipes.ranking import Served  # noqa: E402
from sirius_rec.remote import fetched, outbox  # noqa: E402

ADDRESS = "memory://bucket/log"


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A storage in memory, empty; `taken` lists what was fetched from it."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    system = fsspec.filesystem("memory")
    get, system.taken = system.get_file, []

    def counted(path: str, *arguments: Any, **options: Any) -> None:
        system.taken.append(path)
        get(path, *arguments, **options)

    monkeypatch.setattr(system, "get_file", counted, raising=False)
    yield system
    system.rm("/", recursive=True)


def fill(store: Any, files: dict[str, str], folder: str = "/bucket/log") -> None:
    for name, text in files.items():
        store.pipe_file(f"{folder}/{name}", text.encode())


def read(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_a_path_is_itself(tmp_path: Path) -> None:
    assert fetched(tmp_path / "absent") == tmp_path / "absent"
    assert remote.located("~/x") == Path.home() / "x" and remote.located("s3://a/b") == "s3://a/b"


def test_a_folder_is_fetched_once_and_what_changed_again(store: Any) -> None:
    everything = {"items.csv": "1", "interactions/a.csv": "2", "interactions/b.csv": "3"}
    fill(store, everything)
    said: list[str] = []
    assert read(fetched(ADDRESS, said.append)) == everything
    assert len(store.taken) == 3 and said[0].startswith(f"fetching {ADDRESS}: 3 of 3 files")
    fetched(ADDRESS)
    assert len(store.taken) == 3
    fill(store, {"interactions/a.csv": "4"})  # of the same size
    store.rm("/bucket/log/interactions/b.csv")
    assert read(fetched(ADDRESS)) == {"items.csv": "1", "interactions/a.csv": "4"}
    assert store.taken[3:] == ["/bucket/log/interactions/a.csv"]


def test_a_file_keeps_its_name(store: Any) -> None:
    fill(store, {"requests.jsonl": "{}"})
    path = fetched(f"{ADDRESS}/requests.jsonl")
    assert path.name == "requests.jsonl" and path.read_text() == "{}"


def test_where_a_storage_says_nothing_of_changes_a_file_is_fetched_each_time(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1"})
    monkeypatch.setattr(remote, "_MARKS", ())
    fetched(ADDRESS), fetched(ADDRESS)
    assert len(store.taken) == 2


def test_what_a_killed_call_left_is_not_fetched_again(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1", "b": "2", "c": "3"})
    get = store.get_file

    def torn(path: str, target: str, **options: Any) -> None:
        if path.endswith("b"):
            Path(target).write_text("half")
            raise KeyboardInterrupt
        get(path, target, **options)

    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(store, "get_file", torn)
        fetched(ADDRESS)
    assert read(fetched(ADDRESS)) == {"a": "1", "b": "2", "c": "3"}
    assert store.taken == ["/bucket/log/a", "/bucket/log/b", "/bucket/log/c"]


def test_a_name_that_leads_out_of_the_folder_is_refused(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1"})
    found = {"/bucket/log/../../../../evil": store.info("/bucket/log/a")}
    with monkeypatch.context() as broken, pytest.raises(DataError, match="would be written elsewhere"):
        broken.setattr(store, "find", lambda path, detail: found)
        fetched(ADDRESS)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        (ADDRESS, DataError, "memory://bucket/log: no such file or folder"),
        ("nosuch://a/b", ConfigError, "nosuch://a/b: Protocol not known"),
        ("http://127.0.0.1:9/log", (ConfigError, DataError), "http://127.0.0.1:9/log: "),
    ],
)
def test_one_line_says_what_is_wrong(store: Any, address: str, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        fetched(address)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_prepared_from_an_address_it_is_the_same_dataset(store: Any, tmp_path: Path) -> None:
    events = "".join(f"u{u},i{(u * t) % 61},{t}\n" for u in range(1, 40) for t in range(1, 15))
    files = {"items.csv": "item_id,title\n" + "".join(f"i{n},T{n}\n" for n in range(61)),
             "interactions.csv": "user_id,item_id,timestamp\n" + events}  # fmt: skip
    fill(store, files)
    here = tmp_path / "here"
    here.mkdir()
    for name, text in files.items():
        (here / name).write_text(text)
    section = Config.model_validate({"data": {"source": "table", "input": ADDRESS}}).data
    assert section.input == ADDRESS and section.model_dump(mode="json")["input"] == ADDRESS
    from_address = prepare("table", section.input, tmp_path / "a")
    assert from_address.fingerprint == prepare("table", here, tmp_path / "b").fingerprint
    assert from_address.info["recipe"]["input"] == ADDRESS
    said: list[str] = []
    prepare("table", ADDRESS, tmp_path / "a", progress=said.append)
    assert said == [f"{tmp_path / 'a'} is already prepared; {ADDRESS} was not looked at again"]


REQUESTS = "".join(json.dumps({"history": ["a"], "candidates": ["x", "y"], "id": n}) + "\n" for n in range(5))


def call(source: remote.Place, target: remote.Place, calls: list[int], dies_at: int = 0) -> None:
    def score(requests: list[Any]) -> list[list[float]]:
        if dies_at in [request.line for request in requests]:
            raise KeyboardInterrupt
        calls.extend(request.line for request in requests)
        return [[1.0, 2.0] for _ in requests]

    loading = Loading(lambda: Served("m", {}, score, lambda request: None), True, None)
    _answer(loading, source, target, None, None, verb="ranking", unknown=None, part=2)


def test_answers_go_to_an_address_whole_and_a_killed_call_goes_on(store: Any, tmp_path: Path) -> None:
    fill(store, {"requests.jsonl": REQUESTS})
    source, target, calls = f"{ADDRESS}/requests.jsonl", f"{ADDRESS}/answers.jsonl", list[int]()
    with pytest.raises(KeyboardInterrupt):
        call(source, target, calls, dies_at=3)
    assert calls == [1, 2] and not store.exists(target)
    call(source, target, calls)
    assert calls == [1, 2, 3, 4, 5]
    here = tmp_path / "here.jsonl"
    call(fetched(source), here, [])
    assert store.cat_file("/bucket/log/answers.jsonl") == here.read_bytes()
    with pytest.raises(RunError, match=r"answers\.jsonl: exists already"):
        call(source, target, calls)
    assert calls == [1, 2, 3, 4, 5]


def test_answers_that_could_not_be_sent_are_sent_by_the_next_call(store: Any, monkeypatch: Any) -> None:
    fill(store, {"requests.jsonl": REQUESTS})
    source, target, calls = f"{ADDRESS}/requests.jsonl", f"{ADDRESS}/answers.jsonl", list[int]()

    def refused(*_: Any, **__: Any) -> None:
        raise PermissionError("Access Denied")

    with monkeypatch.context() as broken, pytest.raises(DataError, match=r"cannot be written \(Permission"):
        broken.setattr(store, "put_file", refused)
        call(source, target, calls)
    call(source, target, calls)
    assert calls == [1, 2, 3, 4, 5] and store.cat_file("/bucket/log/answers.jsonl").count(b"\n") == 5
    assert not list(cache.root().glob("outbox-*"))


def test_other_answers_do_not_go_on_with_these(store: Any) -> None:
    assert outbox(f"{ADDRESS}/a", {"top": 1}).path != outbox(f"{ADDRESS}/a", {"top": 2}).path
