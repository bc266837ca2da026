"""Lines of the file formats that carry slates → plain records, each fault named by file and line."""

from __future__ import annotations

import json
import re
from collections import Counter
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
    """One row: names of items (ids or titles); `candidates` is None where the file has no slate, `prompt` no prompt."""

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
    prompt: str | None = None


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
        raise DataError(f"{where}: {text}; correct the row") from error
    if record.candidates is not None:
        if len(record.candidates) < 2:
            raise DataError(f"{where}: a slate of {len(record.candidates)}; it needs at least two candidates")
        if record.target not in record.candidates:
            raise DataError(f"{where}: the target {record.target!r} is not among the candidates; correct the row")
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
            raise DataError(f"{path}{line}: not JSON ({error}); correct the file") from error
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
    """prompt, chosen, rejected: history and slate order are read off the prompt where it shows them.

    The space that most completions have around them (a leading blank, a final newline) is no part of their titles; the
    space that others have is, so that answers written otherwise can be seen.
    """
    parsed = []
    for where, entry in raw:
        try:
            prompt, chosen = _text(entry["prompt"]), _text(entry["chosen"])
            rejected = entry["rejected"] if isinstance(entry["rejected"], list) else [entry["rejected"]]
            others = [_text(one) for one in _conversation(rejected)]
            split, user = entry.get("split"), entry.get(USER_ID)
        except (KeyError, ValueError) as error:
            text = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"{where}: {text}; TRL records have prompt, chosen, rejected") from error
        if split is not None and split not in SPLITS:
            raise DataError(f"{where}: split {split!r} is not one of {', '.join(SPLITS)}; correct the row")
        if not chosen.strip() or not others or not all(one.strip() for one in others):
            raise DataError(f"{where}: chosen or rejected is empty; give at least one text of each")
        parsed.append((where, prompt, [chosen, *others], split, "" if user is None else str(user)))
    around = Counter(_around(text) for _, _, texts, _, _ in parsed for text in texts)
    lead, trail = around.most_common(1)[0][0]
    titles = {text.strip() for _, _, texts, _, _ in parsed for text in texts}
    records = []
    for where, prompt, texts, split, user in parsed:
        written = {text.strip(): _without(text, lead, trail) for text in texts}
        plain = [text.strip() for text in texts]
        history, slate, ordered = _from_prompt(prompt, plain, titles)
        shown = [written[title] for title in slate] if len(written) == len(texts) else slate
        target = written[plain[0]] if len(written) == len(texts) else plain[0]
        records.append(Record(where, history, target, shown, ordered, user, split=split, prompt=prompt))
    return records


def _around(text: str) -> tuple[str, str]:
    return text[: len(text) - len(text.lstrip())], text[len(text.rstrip()) :]


def _without(text: str, lead: str, trail: str) -> str:
    """A completion as a title: stripped if its space is the usual one, else without its usual part."""
    if _around(text) == (lead, trail):
        return text.strip()
    return text.removeprefix(lead).removesuffix(trail)


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


_PARTS: Final = re.compile(r"\n|::|;|\t")
_BULLET: Final = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")


def _from_prompt(prompt: str, slate: list[str], titles: set[str]) -> tuple[list[str], list[str], bool]:
    """(history, slate, whether the slate's order is the prompt's).

    Lines (or pieces between `::`, `;` and tabs) that are exactly a known title are items. The slate is the last run of
    them that holds every candidate once; what stands before it is the history.
    """
    parts = [_BULLET.sub("", part).strip() for part in _PARTS.split(prompt)]
    items = [part for part in parts if part in titles]
    wanted, size = sorted(slate), len(slate)
    for start in range(len(items) - size, -1, -1):
        if sorted(items[start : start + size]) == wanted:
            return items[:start], items[start : start + size], True
    return items, slate, False
