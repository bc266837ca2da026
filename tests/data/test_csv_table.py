"""One CSV reader: no line of a file is lost without a word."""

from __future__ import annotations

import csv
import gzip
import random
from pathlib import Path

import polars as pl
import pytest

from sirius_rec.data.sources.csv_records import ROW, Dialect
from sirius_rec.data.sources.csv_table import frames, look, read_csv
from sirius_rec.data.sources.movielens import load as load_movielens
from sirius_rec.data.sources.table import load
from sirius_rec.data.sources.windows import load as load_windows
from sirius_rec.errors import ConfigError, DataError

HEAD = "user_id,item_id,timestamp"
WANTED = ("user_id", "item_id", "timestamp")


def written(tmp_path: Path, text: str | bytes, name: str = "log.csv") -> Path:
    file = tmp_path / name
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return file


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_quotes_escaped_by_a_backslash_are_read_whatever_their_number(tmp_path: Path, count: int) -> None:
    """Pairs of them used to swallow the rows between, and an even number was no fault at all."""
    rows = [
        f'u{k},i{k},{k},"a 12\\" rack"' if k < 2 * count and k % 2 == 0 else f"u{k},i{k},{k},plain" for k in range(9)
    ]
    table = read_csv(written(tmp_path, "\n".join([HEAD + ",review", *rows])), wanted=WANTED)
    assert table.frame["user_id"].to_list() == [f"u{k}" for k in range(9)]
    assert table.frame["review"][0] == 'a 12" rack' and table.frame[ROW].to_list() == list(range(2, 11))
    assert table.notes["quotes_escaped_by_backslash"] == count
    assert (table.notes["lines"], table.notes["records"], table.notes["blank"]) == (10, 9, 0)


def test_quotes_escaped_in_two_ways_stop_with_the_line(tmp_path: Path) -> None:
    text = 'item_id,title\na,"Maxi 7\\" single"\nb,"Say ""hi"" \\" twice"\nc,"an \\"odd" one"\n'
    with pytest.raises(DataError, match=r"log.csv, line 2: a quoted field .* double the quotes .* write them twice"):
        read_csv(written(tmp_path, text))


def test_a_backslash_before_a_proper_end_stays(tmp_path: Path) -> None:
    table = read_csv(written(tmp_path, 'item_id,title\na,"C:\\"\nb,"x, ""y"""\n'))
    assert table.frame["title"].to_list() == ["C:\\", 'x, "y"'] and "quotes_escaped_by_backslash" not in table.notes


def test_every_line_is_accounted_for_as_pythons_csv_reads_it(tmp_path: Path) -> None:
    rng = random.Random(3)
    for trial in range(40):
        notes_of_rows = ["plain", "", "ö 5"]  # without quotes a file is read in another way
        notes_of_rows += ['has "quotes"', "a, comma", "two\nlines", "three\n\nlines"] if trial % 2 else []
        rows = [[f"u{k}", rng.choice(notes_of_rows)] for k in range(rng.randrange(1, 9))]
        file = tmp_path / f"{trial}.csv"
        with file.open("w", newline="") as stream:
            writer = csv.writer(stream, lineterminator="\n")
            writer.writerow(["user_id", "note"])
            for row in rows:
                writer.writerow(row)
                if rng.random() < 0.3:
                    stream.write("\n")
        table = read_csv(file)
        assert table.frame.drop(ROW).rows() == [(user, note or None) for user, note in rows]
        notes = table.notes
        parts = 1 + notes["records"] + notes["blank"] + notes.get("inside_quoted_fields", 0)
        assert parts == notes["lines"] == file.read_text().count("\n")
        text = file.read_text().split("\n")
        assert all(text[line - 1].startswith(user) for line, user in table.frame.select(ROW, "user_id").iter_rows())


@pytest.mark.parametrize("source", ["table", "windows", "movielens"])
def test_catalogues_of_all_sources_keep_the_items_between_escaped_quotes(tmp_path: Path, source: str) -> None:
    items = ["a,Zero", 'b,"Maxi 7\\" single"', "c,Two", "d,Three", 'e,"Other 12\\" single"', "f,Five"]
    if source == "movielens":
        head, name = "movieId,title", "movies.csv"
        items = [f"{number},{line.partition(',')[2]}" for number, line in enumerate(items)]
        written(
            tmp_path, "userId,movieId,rating,timestamp\n" + "".join(f"1,{k},5,{k}\n" for k in range(6)), "ratings.csv"
        )
    else:
        head, name = "item_id,title", "items.csv"
        rows = "".join(f"u,{item},{k}\n" for k, item in enumerate("abcdef"))
        written(tmp_path, f"{HEAD}\n{rows}", "interactions.csv")
        written(tmp_path, '{"history": ["a", "c"], "target": "d", "split": "train"}\n', "windows.jsonl")
    written(tmp_path, "\n".join([head, *items]), name)
    loaded = {"table": load, "windows": load_windows, "movielens": load_movielens}[source](tmp_path)
    assert loaded.items["title"].to_list() == ["Zero", 'Maxi 7" single', "Two", "Three", 'Other 12" single', "Five"]


@pytest.mark.parametrize(("separator", "word"), [("\t", "tabs"), (";", "semicolons"), ("|", "bars"), (",", "commas")])
def test_separators_are_found_and_said(tmp_path: Path, separator: str, word: str) -> None:
    text = f"{HEAD}\nu,a,1\nu,b,2\n".replace(",", separator)
    table = read_csv(written(tmp_path, text), wanted=WANTED)
    assert table.frame.columns == [ROW, *WANTED] and table.notes["separator"] == word
    mapped = read_csv(written(tmp_path, text.replace("user_id", "who")), wanted=("a", "b"))
    assert mapped.frame.columns == [ROW, "who", "item_id", "timestamp"]


def test_recbole_files_lose_the_types_of_their_header(tmp_path: Path) -> None:
    written(tmp_path, "user_id:token\titem_id:token\ttimestamp:float\nu\ta\t2\nu\tb\t1\n", "x.inter")
    written(tmp_path, "item_id:token\tmovie_title:token_seq\na\tRed, or not\nb\tBlue\n", "x.item")
    loaded = load(tmp_path, item_columns={"title": "movie_title"})
    assert loaded.events.rows() == [("u", "b", 1), ("u", "a", 2)]
    assert loaded.items["title"].to_list() == ["Red, or not", "Blue"]
    assert loaded.notes["events_format"]["header_types_removed"] is True


@pytest.mark.parametrize("columns", [None, {"user_id": "u", "item_id": "a", "timestamp": "1600000000"}])
def test_a_file_without_a_header_never_loses_its_first_event(tmp_path: Path, columns: dict[str, str] | None) -> None:
    written(tmp_path, "u,a,1600000000\nu,b,1600000001\n", "interactions.csv")
    written(tmp_path, "a,Red\nb,Blue\n", "items.csv")
    named = {"item_names": ["item_id", "title"]}
    with pytest.raises(
        DataError, match=r"interactions.csv, line 1: looks like data .* names, such as \[user_id, item_id"
    ):
        load(tmp_path, columns=columns, **named)
    loaded = load(tmp_path, names=["user_id", "item_id", "timestamp"], **named)
    assert loaded.events.height == 2 and loaded.items["title"].to_list() == ["Red", "Blue"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_are_found_and_said(tmp_path: Path, encoding: str) -> None:
    file = written(tmp_path, "item_id,title\r\na,Café – “Été”\r\n".encode(encoding))
    table = read_csv(file)
    assert table.frame["title"].to_list() == ["Café – “Été”"] and table.notes["encoding"] == encoding
    assert read_csv(file, Dialect(encoding=encoding)).frame.equals(table.frame)
    packed = written(tmp_path, gzip.compress(file.read_bytes()), "log.csv.gz")
    assert read_csv(packed).frame.equals(table.frame)


def test_faults_are_named(tmp_path: Path) -> None:
    for text, message in (
        ("item_id,item_id,title\na,b,c\n", "line 1: column 'item_id' is in the header twice"),
        ('item_id,title\na,"x"\nb,c,d\n', "line 3: 3 fields, the header has 2"),
        ('item_id,title\na,"x"\nb\n', "line 3: 1 fields, the header has 2"),
        ("", "is empty"),
    ):
        with pytest.raises(DataError, match=message):
            read_csv(written(tmp_path, text))
    for options, fault in (
        ({"separator": "::"}, "one character"),
        ({"encoding": "x"}, "unknown"),
        ({"names": "aa"}, "twice"),
    ):
        with pytest.raises(ConfigError, match=fault):
            Dialect(**options)  # type: ignore[arg-type]


def test_a_wrong_separator_is_guessed_at(tmp_path: Path) -> None:
    written(tmp_path, f"{HEAD}\nu,a,1\n".replace(",", ";"), "interactions.csv")
    written(tmp_path, "item_id,title\na,Red\n", "items.csv")
    with pytest.raises(DataError, match="are fields separated by semicolons"):
        load(tmp_path, separator=",")
    assert load(tmp_path, separator=";").events.equals(load(tmp_path).events)


def test_parquet_rows_are_counted_from_one(tmp_path: Path) -> None:
    pl.DataFrame({"user_id": ["u", None], "item_id": ["a", "a"], "timestamp": [1, 2]}).write_parquet(
        tmp_path / "e.parquet"
    )
    written(tmp_path, "item_id,title\na,Red\n", "items.csv")
    with pytest.raises(DataError, match=r"e\.parquet, row 2: empty user_id"):
        load(tmp_path / "e.parquet")


def test_a_mark_inside_the_file_is_a_character_of_its_field(tmp_path: Path) -> None:
    """polars takes U+FEFF off the beginning of whatever it is given, also where a block begins with it."""
    file = written(tmp_path, "\ufeffa,b\n\ufeff,\n\ufeffx,2\n")
    for size in (1, 1 << 20):
        layout = look(file, size=size)
        whole = pl.concat([layout.empty, *(part for span in layout.spans for part, _ in frames(layout, span, size))])
        assert whole["a"].to_list() == ["\ufeff", "\ufeffx"], size


def test_a_carriage_return_inside_a_line_is_named_as_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 1: a carriage return stands inside it; end all lines alike"):
        read_csv(written(tmp_path, "a,b\rc\n1,2\n"), Dialect(quotes=False))
