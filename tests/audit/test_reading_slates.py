"""Every form that slates come in gives the same rows, and every fault is one line that names its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from sirius_rec.audit.readers import read_audit_input
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.prompts.templates import get_template

TITLES = ["Air", "Blur", "Can", "Low", "Pulp", "Suede"]
ROWS: list[tuple[list[int], int, list[int]]] = [
    ([0, 1], 2, [3, 2, 4]),
    ([0, 1, 2], 3, [3, 4, 5]),
    ([4], 0, [1, 3, 0]),
]


def named(items: list[int]) -> list[str]:
    return [TITLES[i] for i in items]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    text = "".join(json.dumps(row) + "\n" for row in rows)
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


def items_csv(folder: Path) -> None:
    (folder / "items.csv").write_text("item_id,title\n" + "".join(f"{100 + k},{t}\n" for k, t in enumerate(TITLES)))


def plain_ids(folder: Path) -> Path:
    rows = [
        {"history": [100 + i for i in h], "target": 100 + t, "candidates": [100 + i for i in c]} for h, t, c in ROWS
    ]
    return write(folder / "plain.jsonl.gz", rows)


def plain_titles(folder: Path) -> Path:
    return write(
        folder / "titles.jsonl",
        [{"history": named(h), "target": TITLES[t], "candidates": named(c)} for h, t, c in ROWS],
    )


def sdpo(folder: Path) -> Path:
    rows = [{"historyList": "::".join(named(h)), "itemList": named(c), "trueSelection": TITLES[t]} for h, t, c in ROWS]
    path = folder / "slates.json"
    path.write_text(json.dumps(rows))
    return path


def trl(folder: Path) -> Path:
    form = get_template("music")
    rows = [
        {
            "prompt": form.render(named(h), named(c)),
            "chosen": TITLES[t],
            "rejected": [TITLES[i] for i in sorted(c) if i != t],
        }
        for h, t, c in ROWS
    ]
    return write(folder / "trl.jsonl", rows)


@pytest.mark.parametrize("form", [plain_ids, plain_titles, sdpo, trl])
def test_all_forms_read_alike(form: Any, tmp_path: Path) -> None:
    items_csv(tmp_path)
    given = read_audit_input(form(tmp_path))
    slates = given.audited
    assert slates.candidates_RC.tolist() == [c for _, _, c in ROWS]
    assert slates.target_R.tolist() == [t for _, t, _ in ROWS]
    assert slates.history_RH.tolist() == [[-1, 0, 1], [0, 1, 2], [-1, -1, 4]]
    assert slates.position_R.tolist() == [1, 0, 2]
    assert slates.ordered
    # the second window continues the first, the third starts anew
    assert slates.group_R.tolist() == [0, 0, 1]
    assert given.catalogue.columns["item_id"].tolist() == [100.0 + k for k in range(6)]


def test_trl_without_the_slate_in_the_prompt_has_no_order(tmp_path: Path) -> None:
    path = write(tmp_path / "t.jsonl", [{"prompt": "Liked:\nAir\nNext:", "chosen": "Blur", "rejected": "Air"}] * 2)
    slates = read_audit_input(path).audited
    assert not slates.ordered
    assert [[slates.candidates_RC.shape[1]], slates.history_RH.tolist()] == [[2], [[0], [0]]]


def test_slates_of_different_sizes(tmp_path: Path) -> None:
    rows = [
        {"history": ["a"], "target": "b", "candidates": ["b", "c"]},
        {"history": ["a"], "target": "c", "candidates": ["a", "b", "c"]},
    ]
    slates = read_audit_input(write(tmp_path / "x.jsonl", rows)).audited
    assert slates.size_R.tolist() == [2, 3]
    assert np.allclose(slates.chance_R, [1 / 2, 1 / 3])


def test_rows_that_name_their_split_teach_each_other(tmp_path: Path) -> None:
    rows = [
        {"history": ["a"], "target": "b", "candidates": ["b", "c"], "split": split}
        for split in ("train", "val", "test")
    ]
    given = read_audit_input(write(tmp_path / "x.jsonl", rows))
    assert given.audited.n_rows == 1
    assert {name: s.n_rows for name, s in given.learn.items()} == {"train": 1, "val": 1}


def test_a_table_of_interactions_teaches_windows(tmp_path: Path) -> None:
    items_csv(tmp_path)
    lines = ["user_id,item_id,timestamp", "u,102,3", "u,100,1", "v,104,9", "u,101,2"]
    (tmp_path / "log.csv").write_text("\n".join(lines) + "\n")
    train = read_audit_input(sdpo(tmp_path), train=[tmp_path / "log.csv"]).learn["train"]
    assert train.history_RH.tolist() == [[-1, -1], [-1, 0], [0, 1], [-1, -1]]
    assert train.target_R.tolist() == [0, 1, 2, 4]
    assert train.group_R.tolist() == [0, 0, 0, 1]


def test_id_columns_by_item_id_and_by_title(tmp_path: Path) -> None:
    items_csv(tmp_path)
    (tmp_path / "ids.csv").write_text("item_id,year,note\n101,1995,x\n100,1998,y\n")
    columns = read_audit_input(sdpo(tmp_path), ids=tmp_path / "ids.csv").catalogue.columns
    assert list(columns) == ["item_id", "year"]
    assert columns["year"][:2].tolist() == [1998.0, 1995.0] and np.isnan(columns["year"][2:]).all()
    (tmp_path / "ids.csv").write_text("title,year\nBlur,1995\n")
    assert read_audit_input(sdpo(tmp_path), ids=tmp_path / "ids.csv").catalogue.columns["year"][1] == 1995.0


GOOD = '{"history": ["a"], "target": "b", "candidates": ["b", "c"]}'
LONG_NUMBER = GOOD.replace("}", ', "more": ' + "9" * 5000 + "}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"x\.jsonl: no rows"),
        (f"{GOOD}\n{{", r"x\.jsonl, line 2: not JSON"),
        ("[1, 2]", r"entry 1: a int, not an object"),
        ('[{"a": 1}', r"x\.jsonl, line 1: not JSON"),
        ('{"a": 1}', r"line 1: none of the known forms \(found a\)"),
        (f'{GOOD}\n{{"history": [], "candidates": ["b"]}}', r"line 2: no 'target'"),
        (
            '{"history": ["a"], "target": "z", "candidates": ["b", "c"]}',
            r"line 1: the target 'z' is not among the cand",
        ),
        ('{"history": ["a"], "target": "b", "candidates": ["b"]}', r"line 1: a slate of 1; it needs at least two"),
        ('{"history": "a", "target": "b", "candidates": ["b", "c"]}', r"line 1: history is 'a', not a list"),
        ('{"history": [null], "target": "b", "candidates": ["b", "c"]}', r"line 1: history holds None"),
        ('{"history": ["a"], "target": "b"}', r"its rows have no candidates"),
        (f'{GOOD}\n{{"history": ["a"], "target": "b"}}', r"line 2: no candidates, but other rows have them"),
        (GOOD.replace("}", ', "split": "dev"}'), r"line 1: split 'dev' is not one of train, val, test"),
        (GOOD.replace("}", ', "timestamp": "now"}'), r"line 1: timestamp 'now' is not a number"),
        (GOOD.replace("}", ', "timestamp": 1e999}'), r"line 1: timestamp is out of range"),
        (GOOD.replace("}", ', "epoch": NaN}'), r"line 1: epoch is out of range"),
        (GOOD.replace("}", f', "row_id": {10**20}}}'), r"line 1: row_id is out of range"),
        (LONG_NUMBER, r"x\.jsonl, line 1: not JSON"),
        (f"[{LONG_NUMBER}]", r"x\.jsonl: not JSON"),
        ('{"prompt": 3, "chosen": "a", "rejected": "b"}', r"line 1: 3 is neither text nor messages"),
        ('{"prompt": "p", "chosen": "", "rejected": "b"}', r"line 1: chosen or rejected is empty"),
    ],
)
def test_faults_name_file_line_and_what_to_do(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message) as caught:
        read_audit_input(path)
    assert "\n" not in str(caught.value)


def test_faults_of_the_other_files(tmp_path: Path) -> None:
    items_csv(tmp_path)
    path = sdpo(tmp_path)
    with pytest.raises(DataError, match="slates file not found"):
        read_audit_input(tmp_path / "none.json")
    with pytest.raises(ConfigError, match="--slates chooses among the slates of a dataset folder"):
        read_audit_input(path, slates="test-uniform-20-s0")
    for row, message in (
        ("u,,5", "line 3: empty item_id"),
        (",a,5", "line 3: empty user_id"),
        ("u,a,inf", "line 3: timestamp does not parse: 'inf'"),
    ):
        (tmp_path / "log.csv").write_text(f"user_id,item_id,timestamp\nu,a,1\n{row}\n")
        with pytest.raises(DataError, match=message):
            read_audit_input(path, train=[tmp_path / "log.csv"])
    (tmp_path / "ids.csv").write_text("key,year\n1,2\n")
    with pytest.raises(DataError, match="no column item_id or title"):
        read_audit_input(path, ids=tmp_path / "ids.csv")
    (tmp_path / "ids.csv").write_text("item_id,year\n999,2\n")
    with pytest.raises(DataError, match="no item_id belongs to an item of the slates"):
        read_audit_input(path, ids=tmp_path / "ids.csv")
    (tmp_path / "ids.csv").write_text("item_id,note\n100,x\n")
    with pytest.raises(DataError, match="no column of numbers beside item_id"):
        read_audit_input(path, ids=tmp_path / "ids.csv")
    (tmp_path / "log.csv").write_text("user_id,item_id,timestamp\nu,100,soon\n")
    with pytest.raises(DataError, match="line 2: timestamp does not parse: 'soon'"):
        read_audit_input(path, train=[tmp_path / "log.csv"])


def test_tables_are_read_as_prepare_reads_them(tmp_path: Path) -> None:
    """Escaped quotes, ISO times, other separators, Parquet: the same windows from each."""
    slates = tmp_path / "slates.jsonl"
    slates.write_text('{"history": ["a"], "target": "b", "candidates": ["b", "c"]}\n')
    (tmp_path / "items.csv").write_text('item_id,title\na,"7\\" A"\nb,B\nc,"12\\" C"\n')
    events = [("u", "a", 0), ("u", "b", 86_400), ("v", "c", 0), ("v", "a", 86_400)]
    plain = "user_id,item_id,timestamp\n" + "".join(f"{u},{i},{t}\n" for u, i, t in events)
    iso = plain.replace(",86400", ",1970-01-02").replace(",0\n", ",1970-01-01\n")
    (tmp_path / "plain.csv").write_text(plain)
    (tmp_path / "iso.csv").write_text(iso)
    (tmp_path / "tabs.tsv").write_text(plain.replace(",", "\t"))
    (tmp_path / "quoted.csv").write_text(
        "user_id,item_id,timestamp,note\n" + "".join(f'{u},{i},{t},"a 5\\" one"\n' for u, i, t in events)
    )
    pl.DataFrame(events, schema=["user_id", "item_id", "timestamp"], orient="row").write_parquet(tmp_path / "p.parquet")
    expected = None
    for name in ("plain.csv", "iso.csv", "tabs.tsv", "quoted.csv", "p.parquet"):
        given = read_audit_input(slates, train=[tmp_path / name])
        assert given.catalogue.titles == ['7" A', "B", '12" C'], name
        learned = given.learn["train"]
        found = (learned.history_RH.tolist(), learned.target_R.tolist(), learned.time_R.tolist())
        expected = expected or found
        assert found == expected and len(found[1]) == 4, name
