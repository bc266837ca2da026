"""Every raw source, from its files to a dataset folder by one command, on the real samples."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sirius_rec import cli
from sirius_rec.data.official import OFFICIAL, Official, RemoteFile
from sirius_rec.data.options import WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.sources import SOURCES
from sirius_rec.data.store import Dataset, open_dataset
from sirius_rec.errors import ConfigError
from sirius_rec.recipes.configuration import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sirius(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """sirius("prepare", …) → exit code, stdout, stderr."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sirius", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return call


@pytest.mark.parametrize("name", ["movielens", "steam", "goodreads", "amazon"])
def test_the_configurations_are_valid_and_name_what_download_brings(name: str) -> None:
    config = load_config(CONFIGS / f"{name}.yaml")
    assert config.data.source == name and config.data.input is not None
    assert OFFICIAL[config.data.input.name].source == name
    assert f"sirius data download {config.data.input.name}" in (CONFIGS / f"{name}.yaml").read_text()


CASES: dict[str, tuple[str, list[str], list[str]]] = {
    "movielens": (
        "movielens_100k/raw",
        ["data.filter={}", "data.slates=[{size: 20, splits: [train, test]}]", "data.limits={train: 500, test: 500}"],
        ["100,000, kept 100,000", "943          1,682        100,000", "ties: 75,772 events share user and time"],
    ),
    "steam": (
        "raw_samples/steam",
        ["data.options.games_share=1.0", "data.filter={}", "data.window.min_history=1", "data.slates=[{size: 10}]"],
        ["1,000, kept 1,000", "32,135, kept 32,132; dropped: 1 repeated id, 2 without id", "11,938          3,581"],
    ),
    "goodreads": (
        "raw_samples/goodreads/goodreads_interactions.head200001.csv.gz",
        ["data.options.undated=newest_first", "data.options.missing_titles=id", "data.options.books=BOOKS"],
        ["200,000, kept 27,435; dropped: 171,680 rating below 5, 885 user with fewer than 20", "6,031          4,550"],
    ),
    "amazon": (
        "raw_samples/amazon",
        [],
        ["10,261, kept 10,261", "1,429            900         10,261", "caution: no metadata file"],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_command_prepares_and_prints_statistics(name: str, shared_data: Path, tmp_path: Path, sirius: Run) -> None:
    where, overrides, expected = CASES[name]
    books = shared_data / "raw_samples" / "goodreads" / "goodreads_books_poetry.1line.json"
    overrides = [override.replace("BOOKS", str(books)) for override in overrides]
    out = tmp_path / "out"
    config = CONFIGS / f"{name}.yaml"
    code, printed, err = sirius("prepare", config, f"data.input={shared_data / where}", *overrides, "--out", out)
    assert code == 0 and err.startswith("reading source") and "sirius:" not in err  # progress
    for text in expected:
        assert text in printed
    dataset = open_dataset(out)
    dataset.verify()
    numbers = dataset.info["statistics"]
    assert numbers["n_sequences"] <= numbers["n_users"]
    assert numbers["events_per_user"]["mean"] == pytest.approx(numbers["n_interactions"] / numbers["n_users"])
    assert sum(numbers["users"].values()) == numbers["n_sequences"] or name == "movielens"
    paper = {"steam": 274_726, "goodreads": 220_100}.get(name)
    assert numbers.get("paper", {}).get("n_interactions") == paper


def histories_are_in_time_order(dataset: Dataset, events: dict[tuple[str, str], int]) -> bool:
    """Whether each row's items are the user's, in time order, up to the target."""
    ids = dataset.items["item_id"].to_list()
    for split in ("train", "val", "test"):
        for row in dataset.examples(split).iter_rows(named=True):
            times = [events[row["user_id"], ids[item]] for item in (*row["history"], row["target"])]
            if times != sorted(times) or times[-1] != row["timestamp"]:
                return False
    return True


def test_rows_agree_with_the_raw_ratings(shared_data: Path, tmp_path: Path) -> None:
    """MovieLens: every history and target of the prepared set, looked up in u.data."""
    dataset = prepare("movielens", shared_data / "movielens_100k", tmp_path / "out", slates=(), limits={"train": 3000})
    raw = (shared_data / "movielens_100k" / "raw" / "u.data").read_text().splitlines()
    events = {(user, item): int(at) for user, item, _, at in (line.split("\t") for line in raw)}
    assert histories_are_in_time_order(dataset, events)
    assert dataset.titles[dataset.items["item_id"].to_list().index("50")] == "Star Wars (1977)"


def test_the_steam_table(shared_data: Path, tmp_path: Path, sirius: Run) -> None:
    out = tmp_path / "out"
    code, printed, _ = sirius(
        "prepare", "--source", "table", "--input", shared_data / "steam_reviews_au", "--out", out,
        "data.options.missing_titles=drop", "data.window.min_history=2", "data.slates=[{size: 20}]",
    )  # fmt: skip
    assert code == 0
    assert "5,802          3,518         47,795" in printed
    assert "ties: 5,241 events share user and time" in printed
    raw = (shared_data / "steam_reviews_au" / "interactions.csv").read_text(encoding="utf-8").splitlines()[1:]
    events = {(user, item): int(at) for user, item, at, _ in (line.rsplit(",", 3) for line in raw)}
    dataset = open_dataset(out)
    assert histories_are_in_time_order(dataset, events)
    assert dataset.titles[dataset.items["item_id"].to_list().index("440")] == "Team Fortress 2"


def test_ties_and_seed_are_part_of_what_is_prepared(tmp_path: Path) -> None:
    """Ten users with six items of one day: the order is another for each seed, or the file's if asked for."""
    rows = "".join(f"u{user},i{item},86400\n" for user in range(10) for item in range(6))
    (tmp_path / "interactions.csv").write_text("user_id,item_id,timestamp\n" + rows)
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"i{k},T{k}\n" for k in range(20)))
    made = {}
    for name, options, seed in (("a", {}, 0), ("b", {}, 1), ("c", {"ties": "file"}, 0), ("d", {"ties": "file"}, 1)):
        dataset = prepare(
            "table",
            tmp_path,
            tmp_path / name,
            options=options,
            seed=seed,
            slates=(),
            window=WindowOptions(max_history=5, min_history=5),
        )
        targets = [row for split in ("train", "val", "test") for row in dataset.examples(split)["target"].to_list()]
        made[name] = targets
        assert dataset.info["source"]["notes"]["ties"]["rows"] == 60
    assert made["c"] == made["d"] == [5] * 10
    assert len(set(made["a"])) > 2 and made["a"] != made["b"]
    with pytest.raises(ConfigError, match="option ties='random' is not one of shuffle, file"):
        prepare("table", tmp_path, tmp_path / "e", options={"ties": "random"})


def test_progress_is_no_option_and_reaches_the_end(shared_data: Path, tmp_path: Path) -> None:
    calls: list[tuple[str, int, int]] = []
    path = shared_data / "raw_samples" / "amazon"
    window = WindowOptions(max_history=10, min_history=3)
    prepare("amazon", path, tmp_path / "out", slates=(), window=window, advance=lambda *call: calls.append(call))
    assert calls[-1][1] == calls[-1][2] == (path / "reviews_Musical_Instruments_5.json.gz").stat().st_size
    with pytest.raises(
        ConfigError, match="source 'amazon' has no option 'advance'; it has metadata, fields, min_rating"
    ):
        prepare("amazon", path, tmp_path / "two", options={"advance": 1})
    assert set(SOURCES) >= {"goodreads", "steam", "movielens", "amazon", "sdpo", "llara"}


def test_malformed_lines_are_printed(tmp_path: Path, sirius: Run) -> None:
    lines = [
        json.dumps({"reviewerID": f"u{k % 5}", "asin": f"i{k}", "overall": 5, "unixReviewTime": 86_400 * k})
        for k in range(40)
    ]
    (tmp_path / "reviews_X.json").write_text("\n".join([*lines[:3], lines[3][:20], *lines[4:]]))
    arguments = ["--source", "amazon", "--input", tmp_path, "data.window.min_history=2", "data.slates=[{size: 5}]"]
    code, _, err = sirius("prepare", *arguments, "--out", tmp_path / "out")
    assert code == 2 and err.count("sirius: ") == 1
    assert "reviews_X.json, line 4: neither JSON nor a Python literal" in err
    assert not (tmp_path / "out").exists()
    code, out, _ = sirius("prepare", *arguments, "data.options.max_malformed=0.1", "--out", tmp_path / "out")
    assert code == 0
    assert "malformed lines dropped: 1, the first is line 4: neither JSON nor a Python literal" in out


def test_data_commands(tmp_path: Path, sirius: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, _ = sirius("data", "list")
    assert code == 0 and "movielens-100k" in out and "No redistribution" in out
    code, _, err = sirius("data", "download", "movielens-100")
    assert code == 2 and "did you mean 'movielens-100k'?" in err and err.count("\n") == 1
    # what is already there and recorded is not fetched: no network in this test
    monkeypatch.setitem(
        OFFICIAL, "here", Official("Here", "table", "page", "Terms first.", (RemoteFile("https://x.invalid/f"),))
    )
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "f").write_bytes(b"")
    code, out, err = sirius("data", "download", "here", "--out", folder)
    assert (code, err) == (0, "")
    assert out.index("terms: Terms first.") < out.index("f: 0 bytes, sha256 e3b0c44298fc1c14")
    assert sirius("data", "--help")[0] == 0
    code, out, _ = sirius("data", "download", "--help")
    assert code == 0 and "Example: sirius data download movielens-100k" in out
