"""Lines of the file formats that carry slates → plain records, each fault named by file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from sirius_rec.data.sources.files import open_text, require_file
from sirius_rec.errors import DataError
from sirius_rec.schema import CANDIDATES, HISTORY, SPLITS, TARGET, TIMESTAMP, USER_ID

SDPO_KEYS: Final = ("historyList", "itemList", "trueSelection")
TRL_KEYS: Final = ("prompt", "chosen", "rejected")
PLAIN_KEYS: Final = (HISTORY, TARGET)
_SEPARATOR: Final = "::"
_LARGEST: Final = 2**62  # of row ids, epochs and times; NaN and infinity are out of range too


@dataclass
class Record:
    """One row: names of items (ids or titles); `candidates` is None where the file has no slate."""

    place: str
    history: list[Any]
    target: Any
    candidates: list[Any] | None
    ordered: bool = True
    user: str = ""
    time: float = float("nan")
    split: str | None = None
    epoch: int | None = None
    row_id: int | None = None


def read_records(path: Path) -> tuple[list[Record], str]:
    """Every record of a JSON list or of JSON lines (plain or .gz), and the format: `sdpo`, `trl` or `plain`.

    Raises:
        DataError: naming file, line (of a JSON list: entry) and fault.
    """
    require_file(path, "slates file")
    raw = list(_objects(path))
    if not raw:
        raise DataError(f"{path}: no rows; one JSON object per line, or a JSON list of objects, is expected")
    first = raw[0][1]
    forms = {"sdpo": SDPO_KEYS, "trl": TRL_KEYS, "plain": PLAIN_KEYS}
    name = next((form for form, keys in forms.items() if all(key in first for key in keys)), None)
    if name is None:
        raise DataError(
            f"{raw[0][0]}: none of the known forms (found {', '.join(map(str, first))}); rows need "
            f"{', '.join(SDPO_KEYS)} or {', '.join(TRL_KEYS)} or {', '.join(PLAIN_KEYS)}[, candidates]"
        )
    if name == "trl":
        return _trl(raw), name
    parse = _sdpo if name == "sdpo" else _plain
    return [_guarded(parse, where, entry) for where, entry in raw], name


def _guarded(parse: Callable[[str, dict[str, Any]], Record], where: str, entry: dict[str, Any]) -> Record:
    try:
        record = parse(where, entry)
    except (KeyError, ValueError, OverflowError) as error:
        text = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{where}: {text}; mend the row") from error
    if record.candidates is not None:
        if len(record.candidates) < 2:
            raise DataError(f"{where}: a slate of {len(record.candidates)}; it needs at least two candidates")
        if record.target not in record.candidates:
            raise DataError(f"{where}: the target {record.target!r} is not among the candidates; mend the row")
    return record


def _objects(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, object) of a JSON list, of one object per line, or of a file that holds a single object."""
    with open_text(path) as stream:
        text = stream.read()
    places: Iterator[tuple[str, Any]]
    if text.lstrip().startswith("["):
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
            raise DataError(f"{path}{line}: not JSON ({error}); mend the file") from error
        places = ((f"{path}, entry {k + 1}", entry) for k, entry in enumerate(entries))
    else:
        places = _lines(path, text)
    for where, entry in places:
        if not isinstance(entry, dict):
            raise DataError(f"{where}: a {type(entry).__name__}, not an object; one object per row is expected")
        yield where, entry


def _lines(path: Path, text: str) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path}, line {number}: not JSON ({error}); write one object per line") from error
        yield f"{path}, line {number}", entry


def _names(value: object, what: str, split: str | None = None) -> list[Any]:
    if isinstance(value, str) and split is not None:
        return [part for part in value.split(split) if part]
    if not isinstance(value, list):
        raise ValueError(f"{what} is {value!r}, not a list of items")
    return [_name(entry, what) for entry in value]


def _name(value: object, what: str) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int) or value == "":
        raise ValueError(f"{what} holds {value!r}, not an id or a title")
    return value


def _sdpo(where: str, entry: dict[str, Any]) -> Record:
    history = _names(entry["historyList"], "historyList", _SEPARATOR)
    slate = _names(entry["itemList"], "itemList", _SEPARATOR)
    return Record(where, history, _name(entry["trueSelection"], "trueSelection"), slate)


def _plain(where: str, entry: dict[str, Any]) -> Record:
    slate = entry.get(CANDIDATES)
    split = entry.get("split")
    if split is not None and split not in SPLITS:
        raise ValueError(f"split {split!r} is not one of {', '.join(SPLITS)}")
    numbers = {}
    for key in (TIMESTAMP, "epoch", "row_id"):
        value = entry.get(key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise ValueError(f"{key} {value!r} is not a number")
        if value is not None and not abs(value) < _LARGEST:
            raise ValueError(f"{key} is out of range")
        numbers[key] = value
    return Record(
        where,
        _names(entry[HISTORY], HISTORY),
        _name(entry[TARGET], TARGET),
        None if slate is None else _names(slate, CANDIDATES),
        user="" if entry.get(USER_ID) is None else str(entry[USER_ID]),
        time=float("nan") if numbers[TIMESTAMP] is None else float(numbers[TIMESTAMP]),
        split=split,
        epoch=None if numbers["epoch"] is None else int(numbers["epoch"]),
        row_id=None if numbers["row_id"] is None else int(numbers["row_id"]),
    )


def _trl(raw: list[tuple[str, dict[str, Any]]]) -> list[Record]:
    """prompt, chosen, rejected: history and slate order are read off the prompt where it shows them."""
    parsed = []
    for where, entry in raw:
        try:
            prompt, chosen = _text(entry["prompt"]), _text(entry["chosen"]).strip()
            rejected = entry["rejected"] if isinstance(entry["rejected"], list) else [entry["rejected"]]
            others = [_text(one).strip() for one in _conversation(rejected)]
            split, user = entry.get("split"), entry.get(USER_ID)
        except (KeyError, ValueError) as error:
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{where}: {text}; TRL records have prompt, chosen, rejected") from error
        if split is not None and split not in SPLITS:
            raise DataError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}; mend the row")
        if not chosen or not others or not all(others):
            raise DataError(f"{where}: chosen or rejected is empty; give at least one text of each")
        parsed.append((where, prompt, chosen, others, split, "" if user is None else str(user)))
    titles = {title for _, _, chosen, others, _, _ in parsed for title in (chosen, *others)}
    records = []
    for where, prompt, chosen, others, split, user in parsed:
        history, slate, ordered = _from_prompt(prompt, chosen, others, titles)
        records.append(Record(where, history, chosen, slate, ordered, user, split=split))
    return records


def _conversation(value: list[Any]) -> list[Any]:
    """A list of rejected texts; one conversation (a list of messages) counts as one text."""
    return [value] if value and isinstance(value[0], dict) else value


def _text(value: Any) -> str:
    """Text, or the last message of a conversation."""
    if isinstance(value, list) and value and isinstance(value[-1], dict):
        value = value[-1].get("content")
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is neither text nor messages")
    return value


_PIECES: Final = re.compile(r"\n|::|;|\t")
_BULLET: Final = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")


def _from_prompt(prompt: str, chosen: str, others: list[str], titles: set[str]) -> tuple[list[str], list[str], bool]:
    """(history, slate, whether the slate's order is the prompt's).

    Lines (or pieces between `::`, `;` and tabs) that are exactly a known title are items. The slate is the last run of
    them that holds every candidate once; what stands before it is the history.
    """
    pieces = [_BULLET.sub("", piece).strip() for piece in _PIECES.split(prompt)]
    items = [piece for piece in pieces if piece in titles]
    slate = [chosen, *others]
    tail = items[-len(slate) :]
    if sorted(tail) == sorted(slate):
        return items[: -len(slate)], tail, True
    return items, slate, False
