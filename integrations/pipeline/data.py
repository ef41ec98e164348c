"""Rows of data: read from files or from the generator of exam questions, and checked before any training."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import parse_qsl

from fastreward.errors import InputError
from fastreward.rewards.base import is_missing
from fastreward.rewards.completion import describe

Kind: TypeAlias = Literal["text", "prompt", "answer", "reference", "options"]
"""What a column must hold; `check_rows` says what that means."""

EXAMS: Final = "exams:"
CORPUS: Final = "corpus"
ALL_WORDINGS: Final = "all"
BOM: Final = "\ufeff"
FIELD_CHARACTERS: Final = 2**26  # csv's own limit is less than a long document

_WANTED: Final[dict[Kind, str]] = {
    "text": "a text that is not empty",
    "prompt": "a text that is not empty, or a conversation of messages with role and content, not all empty",
    "answer": "an answer: a text that is not empty, a number, or a list of those",
    "reference": "a text that is not empty, or a list of those",
    "options": "options: a list that is not empty, a mapping from letter to text, or null",
}


class Rows(list[dict[str, Any]]):
    """Rows, and what messages call each: a line of a file, or its number.

    Args:
        rows: The rows.
        places: As many names, or ``None`` for ``row 0`` and so on.
    """

    def __init__(self, rows: Iterable[Mapping[str, Any]] = (), places: Iterable[str] | None = None) -> None:
        super().__init__(dict(row) for row in rows)
        self.places = [f"row {i}" for i in range(len(self))] if places is None else list(places)

    @classmethod
    def of(cls, rows: Iterable[Mapping[str, Any]]) -> Rows:
        """Copy rows; those of a file keep their names."""
        return cls(rows, rows.places if isinstance(rows, Rows) else None)

    def picked(self, numbers: Sequence[int]) -> Rows:
        """Return some of them, with their names."""
        return Rows([self[i] for i in numbers], [self.places[i] for i in numbers])


def load_rows(source: str) -> Rows:
    """Read rows from a file, by how its name ends, or make exam questions.

    ``exams:SPLIT?count=1000&seed=0&languages=en,it&families=…&wordings=all`` makes the questions of
    `fastreward.integrations.exams`, and ``exams:corpus?count=…`` its texts for continued pre-training, in a
    column ``text``. With ``wordings=all`` the completions take the explanation's wordings in turn; by default
    they have the reference's.

    Args:
        source: FILE.jsonl, FILE.csv, FILE.parquet, or ``exams:…``.

    Raises:
        InputError: The file cannot be read, is malformed, with the line named, or has no row.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "rows.jsonl"
        ...     written = path.write_text('{"prompt": "Why?", "answer": 4}', encoding="utf-8")
        ...     load_rows(str(path))
        [{'prompt': 'Why?', 'answer': 4}]
    """
    if source.startswith(EXAMS):
        rows = _exam_rows(source)
    else:
        suffix = Path(source).suffix.lower()
        if suffix not in _READERS:
            expected = f"a file that ends in {', '.join(_READERS)}, or exams:SPLIT?count=…"
            raise InputError(expected, repr(source), "Convert or rename the file.")
        try:
            rows = _READERS[suffix](source)
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "a file of UTF-8 that can be read", f"{source}: {error}", "Correct it, or its name."
            ) from error
    if not rows:
        raise InputError("a row at least", f"none in {source}", "Name other data.")
    return rows


def check_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, Kind]) -> Rows:
    """Check that each row has some columns, and what they must hold.

    A ``"text"`` is not blank; a ``"prompt"`` is one, or a conversation; an ``"answer"`` is one, a number, or
    a list of those; a ``"reference"`` is a text or a list of texts, one of which is not blank; ``"options"``
    are a list or a mapping that is not empty, or missing.

    Args:
        rows: The rows; those of `load_rows` are called by their lines.
        columns: What must be there.

    Returns:
        A copy of the rows.

    Raises:
        InputError: There is no row, or one is not so; the message names it.

    Example:
        >>> check_rows([{"answer": "B"}, {"answer": " "}], {"answer": "answer"})
        Traceback (most recent call last):
        fastreward.errors.InputError: Expected an answer: a text that is not empty, a number, or a list of \
those in row 1, column 'answer', got str ' '. Correct the row, or leave it out.
    """
    checked = Rows.of(rows)
    if not checked:
        raise InputError("a row at least", "none", "Pass some rows.")
    for row, place in zip(checked, checked.places, strict=True):
        for column, kind in columns.items():
            if column not in row:
                received = f"only {', '.join(map(repr, sorted(row)))}" if row else "no column"
                raise InputError(f"a column {column!r} in {place}", received, "Add it to the row.")
            if not _holds(row[column], kind):
                expected = f"{_WANTED[kind]} in {place}, column {column!r}"
                raise InputError(expected, describe(row[column]), "Correct the row, or leave it out.")
    return checked


def check_prompt_lengths(
    rows: Rows, ids: Sequence[Sequence[int]], context: int | None, max_completion_length: int
) -> None:
    """Check that each prompt leaves a model room for a completion.

    Args:
        rows: The rows, for their names.
        ids: Their prompts as tokens.
        context: Tokens that the model has positions for, or ``None`` if that is not known.
        max_completion_length: Tokens of a completion.

    Raises:
        InputError: One is empty or leaves no room; the message names it.
    """
    for tokens, place in zip(ids, rows.places, strict=True):
        if not tokens or (context is not None and len(tokens) + max_completion_length > context):
            room = "" if context is None else f" to {context - max_completion_length}"
            expected = f"1{room} tokens as the prompt of {place}, beside {max_completion_length} to complete"
            raise InputError(expected, str(len(tokens)), "Shorten it, or lower max_completion_length.")


def _holds(value: Any, kind: Kind) -> bool:
    if kind == "options":  # one question among others may be without
        return is_missing(value) or (isinstance(value, Mapping | list | tuple) and len(value) > 0)
    if isinstance(value, str):
        return bool(value.strip())
    if kind == "text" or is_missing(value):
        return False
    if kind == "prompt":
        return _is_conversation(value)
    if isinstance(value, list | tuple):
        return any(_holds(item, kind) for item in value if not isinstance(item, list | tuple))
    return kind == "answer" and isinstance(value, int | float) and not isinstance(value, bool)


def _is_conversation(value: Any) -> bool:
    if not isinstance(value, list | tuple) or not value:
        return False
    return all(map(_is_message, value)) and any(map(_says, value))


def _is_message(value: Any) -> bool:
    return isinstance(value, Mapping) and isinstance(value.get("role"), str) and "content" in value


def _says(message: Mapping[str, Any]) -> bool:
    content = message["content"]
    return bool(content.strip() if isinstance(content, str) else content or message.get("tool_calls"))


# --------------------------------------------------------------------------- sources


def _jsonl_rows(source: str) -> Rows:
    rows, places = [], []
    with Path(source).open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            line = line.removeprefix(BOM) if number == 1 else line
            if not line.strip():
                continue
            place = f"{source}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"a JSON object in {place}", str(error), "Correct the line.") from error
            if not isinstance(row, dict):
                raise InputError(f"a JSON object in {place}", describe(row), "Write one object a line.")
            rows.append(row)
            places.append(place)
    return Rows(rows, places)


def _csv_rows(source: str) -> Rows:
    csv.field_size_limit(max(csv.field_size_limit(), FIELD_CHARACTERS))
    with Path(source).open(encoding="utf-8-sig", newline="") as file:
        records = list(_csv_records(source, csv.reader(file, strict=True)))
    if not records:
        return Rows()
    names = records[0][1]
    if len(set(names)) < len(names):
        raise InputError(f"names that differ in the header of {source}", str(names), "Rename a column.")
    for place, fields in records:
        if len(fields) != len(names):
            expected = f"{len(names)} fields in {place}, as in the header"
            raise InputError(expected, str(len(fields)), "Put fields that hold commas in double quotes.")
    rows = [dict(zip(names, fields, strict=True)) for _, fields in records[1:]]
    return Rows(rows, [place for place, _ in records[1:]])


def _csv_records(source: str, reader: Any) -> Iterator[tuple[str, list[str]]]:
    """Yield the place where each record begins, and its fields; blank lines are skipped."""
    while True:
        place = f"{source}, line {reader.line_num + 1}"
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise InputError(
                f"comma-separated fields in {place}", str(error), "Correct its quotes."
            ) from error
        if fields is None:
            return
        if fields:
            yield place, fields


def _parquet_rows(source: str) -> Rows:
    try:
        import pyarrow.lib  # type: ignore[import-untyped]  # it ships no type information
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise InputError("pyarrow for Parquet files", "none", 'pip install "fastreward[trl]"') from error
    Path(source).open("rb").close()  # what is not there is told as of other files
    try:
        rows = pyarrow.parquet.read_table(source).to_pylist()
    except pyarrow.lib.ArrowException as error:
        raise InputError(f"a Parquet file at {source}", str(error), "Write it again.") from error
    return Rows(rows, [f"{source}, row {i}" for i in range(len(rows))])


_READERS: Final[dict[str, Callable[[str], Rows]]] = {
    ".jsonl": _jsonl_rows,
    ".csv": _csv_rows,
    ".parquet": _parquet_rows,
}


def _exam_rows(source: str) -> Rows:
    from fastreward.integrations.exams import FAMILIES, SPLITS, corpus, questions

    split, _, query = source.removeprefix(EXAMS).partition("?")
    known = (*SPLITS, CORPUS)
    if split not in known:
        raise InputError(f"exams: and one of {', '.join(known)}", repr(source), "Correct the name.")
    options = _query(source, query, split)
    listed = {"languages": ("en", "it"), "families": FAMILIES}
    arguments: dict[str, Any] = {"seed": _whole(source, options, "seed", 0, 0)}
    for name, all_of_them in listed.items():
        if name in options:
            arguments[name] = tuple(options[name].split(","))
            unknown = [one for one in arguments[name] if one not in all_of_them]
            if unknown:
                expected = f"{name} among {', '.join(all_of_them)} in {source}"
                raise InputError(expected, ", ".join(map(repr, unknown)), "Correct the name.")
    count = _whole(source, options, "count", 1000, 1)
    if split == CORPUS:
        texts = corpus(count, **arguments)
        return Rows(({"text": text} for text in texts), [f"{source}, text {i}" for i in range(len(texts))])
    made = questions(count, split=split, **arguments)  # type: ignore[arg-type]  # checked above
    turns = _wordings(source, options)
    rows = [q.row(i % len(q.explanations) if turns else 0) for i, q in enumerate(made)]
    return Rows(rows, [f"{source}, question {i}" for i in range(len(rows))])


def _query(source: str, query: str, split: str) -> dict[str, str]:
    names = ["count", "seed", "languages"] + ([] if split == CORPUS else ["families", "wordings"])
    try:
        pairs = parse_qsl(query, strict_parsing=True) if query else []
    except ValueError as error:
        raise InputError("name=value&name=value after ?", repr(source), "Write it so.") from error
    given = [name for name, _ in pairs]
    unknown = [name for name in given if name not in names or given.count(name) > 1]
    if unknown:
        raise InputError(f"{', '.join(names)}, each once, in {source}", ", ".join(unknown), "Correct it.")
    return dict(pairs)


def _whole(source: str, options: Mapping[str, str], name: str, default: int, least: int) -> int:
    text = options.get(name, str(default))
    if not (text.isascii() and text.isdigit() and len(text) < 16 and int(text) >= least):
        raise InputError(
            f"{name} of {least} or more in {source[:80]}", repr(text[:80]), "Correct the number."
        )
    return int(text)


def _wordings(source: str, options: Mapping[str, str]) -> bool:
    value = options.get("wordings", "reference")
    if value not in ("reference", ALL_WORDINGS):
        raise InputError(f"wordings=all or wordings=reference in {source}", repr(value), "Correct it.")
    return value == ALL_WORDINGS
