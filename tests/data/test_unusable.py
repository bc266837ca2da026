"""One option for all sources: what cannot be used is refused with its place, or dropped and counted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sirius_rec.data.options import SlateOptions, SplitOptions, WindowOptions
from sirius_rec.data.prepare import prepare
from sirius_rec.data.statistics import summary_lines
from sirius_rec.data.store import Dataset
from sirius_rec.errors import DataError, RunError

LONG = "Deluxe " * 40
NAMES = ["Red", "Blue", "Green", "Grey", LONG, ""]  # the fifth is too long, the last has no title


def table(folder: Path) -> None:
    rows = "".join(f"u{u},{(u + k) % 7},{100 + k}\n" for u in range(8) for k in range(3))  # item 6 is not listed
    (folder / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows},1,5\nu0,1,soon\n")
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)))


def windows(folder: Path) -> None:
    rows = [
        {"history": [str(u % 7), str((u + 1) % 7)], "target": str((u + 2) % 7), "split": "train"} for u in range(14)
    ]
    (folder / "windows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)))


def movielens(folder: Path) -> None:
    rows = "".join(f"{u},{(u + k) % 7},5,{100 + k}\n" for u in range(8) for k in range(3))
    (folder / "ratings.csv").write_text(f"userId,movieId,rating,timestamp\n{rows}")
    (folder / "movies.csv").write_text("movieId,title\n" + "".join(f"{k},{name}\n" for k, name in enumerate(NAMES)))


def lastfm(folder: Path) -> None:
    rows = "".join(f"{u}\t{(u + k) % 7}\t1\t{1_200_000_000_000 + k}\n" for u in range(8) for k in range(3))
    (folder / "user_taggedartists-timestamps.dat").write_text(f"userID\tartistID\ttagID\ttimestamp\n{rows}")
    (folder / "artists.dat").write_text("id\tname\n" + "".join(f"{k}\t{name}\n" for k, name in enumerate(NAMES)))


def prepared(folder: Path, source: str, out: str, **options: Any) -> Dataset:
    splits = ("train",)
    return prepare(
        source,
        folder,
        folder / out,
        window=WindowOptions(max_history=2, min_history=1),
        slates=[SlateOptions(size=2, splits=splits, protocol="uniform")],
        **options,
    )


@pytest.mark.parametrize("source", [table, windows, movielens, lastfm])
def test_every_source_refuses_or_drops(tmp_path: Path, source: Any) -> None:
    source(tmp_path)
    name = source.__name__
    if name == "movielens":
        with pytest.raises(DataError, match=r"no title for 1 of 6 items .* set missing_titles to drop .* or id"):
            prepared(tmp_path, name, "refused", max_title=50)
    else:
        with pytest.raises(DataError, match=r"line \d+: (empty|no title|history item '6' is not in)"):
            prepared(tmp_path, name, "refused", max_title=50)
    dataset = prepared(tmp_path, name, "out", max_title=50, unusable="drop")
    assert dataset.titles == NAMES[:4]
    long = dataset.info["source"]["notes"]["long_titles_dropped"]
    assert long["items"] == 1 and long["first"] == {"item_id": "4", "characters": len(LONG.strip())}
    assert long["rows" if name == "windows" else "events"] > 0
    assert any("titles longer than max_title, dropped: 1 items" in line for line in summary_lines(dataset))
    for account in dataset.info["source"]["notes"]["lines"]:
        assert account["read"] == account["kept"] + sum(account["dropped"].values()) + account["malformed"]["count"]


def test_a_long_title_is_named_with_its_length(tmp_path: Path) -> None:
    table(tmp_path)
    drop = {"missing_titles": "drop", "unknown_items": "drop", "bad_rows": "drop"}
    with pytest.raises(
        DataError, match=r"item '4': its title has 279 characters, data.max_title is 50; .*unusable: drop"
    ):
        prepared(tmp_path, "table", "refused", options=drop, max_title=50)
    dataset = prepared(tmp_path, "table", "out", options=drop)
    assert dataset.n_items == 5
    dropped = dataset.info["source"]["notes"]["lines"][0]["dropped"]
    assert dropped["empty user_id"] == 1 and dropped["timestamp does not parse"] == 1
    with pytest.raises(DataError, match="nothing is left"):
        prepared(tmp_path, "table", "none", options=drop, max_title=1, unusable="drop")


def test_an_option_of_the_source_goes_before_the_shared_one(tmp_path: Path) -> None:
    table(tmp_path)
    with pytest.raises(DataError, match=r"item is not in .*: '6'"):
        prepared(tmp_path, "table", "refused", options={"unknown_items": "error"}, unusable="drop")


def test_folders_made_before_the_option_are_still_theirs(tmp_path: Path) -> None:
    table(tmp_path)
    drop = {"missing_titles": "drop", "unknown_items": "drop", "bad_rows": "drop"}
    first = prepared(tmp_path, "table", "out", options=drop)
    assert not {"unusable", "max_title"} & set(first.info["recipe"])
    assert prepared(tmp_path, "table", "out", options=drop).fingerprint == first.fingerprint
    with pytest.raises(RunError, match=r"differs in: .*unusable"):
        prepared(tmp_path, "table", "out", options=drop, unusable="drop")


def test_a_user_who_leaves_no_negatives_does_not_stop_the_others(tmp_path: Path) -> None:
    rows = "".join(f"u{u},{item},{item}\n" for u in range(5) for item in range(2)) + "".join(
        f"all,{k},{k}\n" for k in range(4)
    )
    (tmp_path / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (tmp_path / "items.csv").write_text("item_id,title\n" + "".join(f"{k},T{k}\n" for k in range(4)))
    with pytest.raises(DataError, match=r"leaves only 0 of 4 items .*3 such rows.* data.unusable: drop"):
        prepared(tmp_path, "table", "refused", split=SplitOptions(ratios=(1, 0, 0)))
    dataset = prepared(tmp_path, "table", "out", split=SplitOptions(ratios=(1, 0, 0)), unusable="drop")
    assert dataset.info["filters"]["rows_without_enough_negatives_dropped"] == 3
    assert dataset.examples("train")["user_id"].to_list() == [f"u{u}" for u in range(5)]
    assert any("too few items for the negatives" in line for line in summary_lines(dataset))


def test_the_first_item_of_a_catalogue_without_a_header_is_not_lost(tmp_path: Path) -> None:
    table(tmp_path)
    (tmp_path / "items.csv").write_text("".join(f"{k},T{k}\n" for k in range(7)))
    drop = {"item_columns": {"item_id": "0", "title": "T0"}, "unknown_items": "drop", "bad_rows": "drop"}
    with pytest.raises(DataError, match=r"items.csv, line 1: '0' is the id of an item .* item_names"):
        prepared(tmp_path, "table", "out", options=drop)


def test_dropping_is_no_advice_where_every_row_is_short(tmp_path: Path) -> None:
    rows = "".join(f"u{u},{k},{100 + k}\n" for u in range(8) for k in range(4))
    (tmp_path / "interactions.csv").write_text(f"user_id,item_id,timestamp\n{rows}")
    (tmp_path / "items.csv").write_text("item_id,title\n0,A\n1,B\n2,C\n3,D\n")
    asked: dict[str, Any] = {"window": WindowOptions(max_history=2, min_history=1), "slates": [SlateOptions(size=3)]}
    for unusable in ("refuse", "drop"):
        with pytest.raises(DataError, match=r"\(all \d+ such rows\); use a smaller size$"):
            prepare("table", tmp_path, tmp_path / "out", unusable=unusable, **asked)  # type: ignore[arg-type]
