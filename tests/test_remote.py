"""Files by address: fetched once, again when they change, and answers that arrive whole or not at all."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

fsspec = pytest.importorskip("fsspec")

from sirius_rec import cache, remote  # noqa: E402
from sirius_rec.commands.serve import _answer, _places  # noqa: E402
from sirius_rec.config import Config  # noqa: E402
from sirius_rec.data.checking import check_lines  # noqa: E402
from sirius_rec.data.prepare import prepare  # noqa: E402
from sirius_rec.errors import ConfigError, DataError, RunError, SiriusError  # noqa: E402
from sirius_rec.recipes.answering import AnswererSpec  # noqa: E402
from sirius_rec.recipes.ranking import Served  # noqa: E402
from sirius_rec.remote import fetched, located, outbox  # noqa: E402

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
    first = fetched(ADDRESS, said.append)
    assert read(first) == everything
    assert len(store.taken) == 3 and said == [f"fetching {ADDRESS}; kept in {first.parent}"]
    assert fetched(ADDRESS) == first and len(store.taken) == 3
    fill(store, {"interactions/a.csv": "4"})  # of the same size
    store.rm("/bucket/log/interactions/b.csv")
    assert read(fetched(ADDRESS)) == {"items.csv": "1", "interactions/a.csv": "4"}
    assert store.taken[3:] == ["/bucket/log/interactions/a.csv"]
    assert read(first) == everything, "a copy that somebody may be reading was changed"


def test_a_folder_that_became_a_file_and_back(store: Any) -> None:
    fill(store, {"x/a.csv": "1"})
    fetched(ADDRESS)
    store.rm("/bucket/log/x", recursive=True)
    fill(store, {"x": "2"})
    assert read(fetched(ADDRESS)) == {"x": "2"}


def test_a_file_keeps_its_name(store: Any) -> None:
    fill(store, {"requests.jsonl": "{}"})
    path = fetched(f"{ADDRESS}/requests.jsonl")
    assert path.name == "requests.jsonl" and path.read_text() == "{}"


def test_names_in_the_root_of_a_file_system(store: Any, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "log.zip", "w") as archive:
        archive.writestr("items.csv", "1")
        archive.writestr("interactions/a.csv", "2")
    assert read(fetched(f"zip://::file://{tmp_path / 'log.zip'}")) == {"items.csv": "1", "interactions/a.csv": "2"}


def test_where_a_storage_says_nothing_of_changes_a_file_is_fetched_each_time(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1"})
    monkeypatch.setattr(remote, "_CHANGING", ())
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


def test_a_log_that_grows_while_it_is_fetched_is_fetched_once(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1", "b": "2"})
    get, new = store.get_file, iter("cde")

    def meanwhile(path: str, target: str, **options: Any) -> None:
        get(path, target, **options)
        if name := next(new, None):
            fill(store, {name: "new"})

    with monkeypatch.context() as broken:
        broken.setattr(store, "get_file", meanwhile)
        copy = fetched(ADDRESS)
    assert read(copy) == {"a": "1", "b": "2", "c": "new", "d": "new", "e": "new"}
    assert sorted(store.taken) == [f"/bucket/log/{name}" for name in "abcde"]
    assert [path.name for path in cache.root().iterdir() if path.is_dir()] == [copy.parent.name]


def test_what_changes_again_and_again_is_no_copy(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1", "b": "2"})
    get = store.get_file

    def meanwhile(path: str, target: str, **options: Any) -> None:
        get(path, target, **options)
        fill(store, {"a": "3"})

    with monkeypatch.context() as broken, pytest.raises(DataError, match="changed 5 times while it was fetched"):
        broken.setattr(store, "get_file", meanwhile)
        fetched(ADDRESS)
    assert read(fetched(ADDRESS)) == {"a": "3", "b": "2"} and store.taken.count("/bucket/log/b") == 1


def test_a_folder_that_cannot_be_listed_is_not_left_out(tmp_path: Path, store: Any, monkeypatch: Any) -> None:
    local = fsspec.filesystem("file")
    for name in ("items.csv", "interactions/a.csv", "interactions/p2/b.csv"):
        (tmp_path / "log" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "log" / name).write_text(name)
    ls = local.ls

    def broken(path: str, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith("p2"):
            raise OSError(5, "Input/output error")
        return ls(path, *arguments, **options)

    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"cannot be read .*Input/output error"):
        patch.setattr(local, "ls", broken)
        fetched(f"file://{tmp_path}/log")
    assert set(read(fetched(f"file://{tmp_path}/log"))) == {"items.csv", "interactions/a.csv", "interactions/p2/b.csv"}


def test_a_name_that_leads_out_of_the_folder_is_refused(store: Any, monkeypatch: Any) -> None:
    fill(store, {"a": "1"})
    found = [{**store.info("/bucket/log/a"), "name": "/bucket/log/../../../../evil"}]
    with monkeypatch.context() as broken, pytest.raises(DataError, match="leads out of its folder"):
        broken.setattr(store, "ls", lambda path, detail: found)
        fetched(ADDRESS)


@pytest.mark.parametrize(
    ("address", "error", "words"),
    [
        (ADDRESS, DataError, "memory://bucket/log: no such file or folder"),
        ("nosuch://a/b", ConfigError, "nosuch://a/b: Protocol not known"),
    ],
)
def test_one_line_says_what_is_wrong(store: Any, address: str, error: Any, words: str) -> None:
    with pytest.raises(error) as caught:
        fetched(address)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)


def test_a_cache_that_cannot_be_written_is_not_the_address_s_fault(store: Any, tmp_path: Path) -> None:
    fill(store, {"a": "1"})
    (tmp_path / "cache").write_text("a file in its place")
    for call in (lambda: fetched(ADDRESS), lambda: outbox(f"{ADDRESS}/out")):
        with pytest.raises(ConfigError, match=r"cache: cannot keep memory://.*another folder in SIRIUS_CACHE"):
            call()


def test_an_address_that_was_made_a_path_of_is_refused() -> None:
    with pytest.raises(ConfigError, match="is given as text"):
        located(Path("s3://bucket/log"))


@pytest.fixture
def log(store: Any, tmp_path: Path) -> Path:
    """A log at the address; the same on this machine."""
    events = "".join(f"u{u},i{(u * t) % 61},{t}\n" for u in range(1, 40) for t in range(1, 15))
    files = {"items.csv": "item_id,title\n" + "".join(f"i{n},T{n}\n" for n in range(61)),
             "interactions.csv": "user_id,item_id,timestamp\n" + events}  # fmt: skip
    fill(store, files)
    (tmp_path / "here").mkdir()
    for name, text in files.items():
        (tmp_path / "here" / name).write_text(text)
    return tmp_path / "here"


def test_prepared_from_an_address_it_is_the_same_dataset(log: Path, tmp_path: Path) -> None:
    section = Config.model_validate({"data": {"source": "table", "input": ADDRESS}}).data
    assert section.input == ADDRESS and section.model_dump(mode="json")["input"] == ADDRESS
    from_address = prepare("table", section.input, tmp_path / "a")
    assert from_address.fingerprint == prepare("table", log, tmp_path / "b").fingerprint
    assert from_address.info["recipe"]["input"] == ADDRESS


def test_a_log_that_grew_leaves_what_was_prepared_from_it_alone(store: Any, log: Path, tmp_path: Path) -> None:
    first = prepare("table", ADDRESS, tmp_path / "a")
    more = "".join(f"v{u},i{t},{t}\n" for u in range(9) for t in range(1, 15))
    fill(store, {"interactions.csv": (log / "interactions.csv").read_text() + more})
    assert prepare("table", ADDRESS, tmp_path / "b").fingerprint != first.fingerprint
    said: list[str] = []
    assert prepare("table", ADDRESS, tmp_path / "a", progress=said.append).fingerprint == first.fingerprint
    assert said == [f"{tmp_path / 'a'} is already prepared; {ADDRESS} was not looked at again"]


def test_an_address_is_checked(log: Path) -> None:
    lines, problems = check_lines("table", ADDRESS, {})
    assert not problems and f'    input: "{ADDRESS}"' in lines


REQUESTS = "".join(json.dumps({"history": ["a"], "candidates": ["x", "y"], "id": n}) + "\n" for n in range(5))


def call(source: remote.Place, target: remote.Place, calls: list[int], dies_at: int = 0) -> None:
    def score(requests: list[Any]) -> list[list[float]]:
        if dies_at in [request.line for request in requests]:
            raise KeyboardInterrupt
        calls.extend(request.line for request in requests)
        return [[1.0, 2.0] for _ in requests]

    spec = AnswererSpec(lambda: Served("m", {}, score, lambda request: None), None)
    _answer(spec, *_places(str(source), str(target)), None, None, verb="ranking", unknown=None, part=2)


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

    def torn(source: str, target: str, **_: Any) -> None:
        store.pipe_file(target, b"half")
        raise PermissionError("Access Denied")

    with (
        monkeypatch.context() as broken,
        pytest.raises(
            DataError,
            match=r"\(Permission.*; all answers are kept in .*outbox.*command sends them",
        ),
    ):
        broken.setattr(store, "put_file", torn)
        call(source, target, calls)
    assert not store.exists(target), "half a file has the name of a whole one"
    call(source, target, calls)
    assert calls == [1, 2, 3, 4, 5] and store.cat_file("/bucket/log/answers.jsonl").count(b"\n") == 5
    assert not [path for path in (cache.root() / "outbox").rglob("*") if path.is_file()]


def test_a_storage_in_which_files_appear_whole_gets_them_in_one_go(store: Any, monkeypatch: Any) -> None:
    fill(store, {"requests.jsonl": REQUESTS})
    put, names = store.put_file, list[str]()

    def noted(source: str, target: str, **options: Any) -> None:
        names.append(target)
        put(source, target, **options)

    for kinds, name in (({"memory"}, "one.jsonl"), (set(), "two.jsonl")):
        with monkeypatch.context() as patch:
            patch.setattr(store, "put_file", noted)
            patch.setattr(remote, "_WHOLE", kinds)
            call(f"{ADDRESS}/requests.jsonl", f"{ADDRESS}/{name}", [])
    assert names == ["/bucket/log/one.jsonl", "/bucket/log/two.jsonl.partial"]
    assert sorted(store.find("/bucket/log")) == [f"/bucket/log/{n}.jsonl" for n in ("one", "requests", "two")]


def test_answers_wait_for_the_requests_that_they_are_of(store: Any, monkeypatch: Any) -> None:
    """Not sent, and then the requests change: old answers are no answers."""
    fill(store, {"requests.jsonl": REQUESTS})
    source, target = f"{ADDRESS}/requests.jsonl", f"{ADDRESS}/answers.jsonl"
    with monkeypatch.context() as broken, pytest.raises(DataError):
        broken.setattr(store, "put_file", lambda *_, **__: 1 / 0)
        call(source, target, [])
    fill(store, {"requests.jsonl": REQUESTS.replace('"y"', '"z"')})
    with pytest.raises(SiriusError, match="its first 5 lines are not those that were answered before"):
        call(source, target, [])
    assert not store.exists(target)


def test_a_call_that_was_quicker_is_not_written_over(store: Any) -> None:
    fill(store, {"requests.jsonl": REQUESTS})
    source, target = f"{ADDRESS}/requests.jsonl", f"{ADDRESS}/answers.jsonl"

    class Quicker(list[int]):
        def extend(self, lines: Any) -> None:
            store.pipe_file("/bucket/log/answers.jsonl", b"theirs")

    with pytest.raises(RunError, match=r"answers\.jsonl: exists already"):
        call(source, target, Quicker())
    assert store.cat_file("/bucket/log/answers.jsonl") == b"theirs"


def test_a_bad_line_is_one_of_the_address(store: Any) -> None:
    fill(store, {"requests.jsonl": REQUESTS + "no json\n"})
    with pytest.raises(DataError, match=rf"^{ADDRESS}/requests\.jsonl, line 6: not a JSON object"):
        call(f"{ADDRESS}/requests.jsonl", f"{ADDRESS}/answers.jsonl", [])
