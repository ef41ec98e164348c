"""Rows of a JSONL or CSV file, each of them out again with its score, one at a time.

All that is not the score stays as it was: in JSONL every other character of the object (numbers keep their
digits, text keeps its escapes), in CSV every field, the line ends and the byte order mark.
"""

from __future__ import annotations

import csv
import io
import json
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO, ClassVar, Final

from fastreward.errors import InputError

_BOM: Final = b"\xef\xbb\xbf"
# csv's own limit of 131,072 characters is less than a long completion; with none at all, one quote that is
# never closed would read the rest of the file into one field.
_CSV_FIELD_CHARACTERS: Final = 2**26
_WHITESPACE: Final = " \t\r\n"  # what JSON takes for it
_BETWEEN_TOKENS: Final = re.compile(rf"[{_WHITESPACE}]*[,:]?[{_WHITESPACE}]*")


class TableError(InputError):
    """A row that cannot be read or scored.

    Args:
        location: Where it stands ("explanations.jsonl, line 17, column 'explanation'").
        expected: What was expected there.
        received: What stands there.
        remedy: One sentence that says how to mend it.

    Example:
        >>> str(TableError("a.jsonl, line 2", "a JSON object", "a list", "Write one object a line."))
        'a.jsonl, line 2: expected a JSON object, got a list. Write one object a line.'
    """

    def __init__(self, location: str, expected: str, received: str, remedy: str) -> None:
        super().__init__(expected, received, remedy)
        self.location = location
        self.args = (location, expected, received, remedy)  # what unpickling calls the class with

    def __str__(self) -> str:
        return f"{self.location}: expected {self.expected}, got {self.received}. {self.remedy}"


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns that scoring reads and writes.

    Attributes:
        completion: Column of the text to score; in JSONL perhaps a dotted path ("candidates.good").
        reference: Column of the text, or in JSONL the list of texts, to score it against; perhaps dotted too.
        score: Column to add; in JSONL a key of the outermost object.
        overwrite: Replace the values of a score column that is already there, which is otherwise an error.

    Raises:
        InputError: If the scores would replace what is scored.
    """

    completion: str
    reference: str
    score: str = "score"
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.score in (self.completion, self.reference):
            raise InputError(
                "a score column other than those that are read",
                repr(self.score),
                "Name another with --score-column.",
            )


@dataclass(frozen=True, slots=True)
class Row:
    """One row: what is scored, and the row's text on either side of the score.

    Attributes:
        line: Line of the input on which it begins, counted from 1.
        completion: Value of the completion column, of any type that the format has.
        reference: Value of the reference column, likewise.
        before: Text of the row up to the score.
        after: Text of the row behind the score, its line end included.
    """

    line: int
    completion: object
    reference: object
    before: str
    after: str


class Table(ABC):
    r"""An input that is read row by row, once.

    Args:
        stream: The input's bytes, UTF-8 with or without a byte order mark.
        name: What messages call the input.
        columns: The columns to read and to write.

    Attributes:
        bytes_read: Bytes read so far.
        header: What precedes the first row in the output; empty where nothing does.

    Example:
        >>> stream = io.BytesIO(b'{"id": 1.50, "answer": "Rome", "gold": "Roma"}')
        >>> table = JsonlTable(stream, "cities.jsonl", Columns("answer", "gold"))
        >>> [table.scored(row, 0.5) for row in table.rows()]
        [b'{"id": 1.50, "answer": "Rome", "gold": "Roma", "score": 0.5}\n']
    """

    missing: ClassVar[str]
    """How the format writes a score that is None."""

    def __init__(self, stream: BinaryIO, name: str, columns: Columns) -> None:
        self.name = name
        self.columns = columns
        self.bytes_read = 0
        self.header = b""
        self._stream = stream
        self._newline = "\n"
        self._bom = b""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Read the rows one after the other; blank lines between them are skipped.

        Raises:
            TableError: At the first row that is malformed or lacks one of the columns.
        """

    def scored(self, row: Row, score: float | None) -> bytes:
        """Return a row of this table as it is written, with its score."""
        return f"{row.before}{self.missing if score is None else repr(score)}{row.after}".encode()

    def error(self, line: int, column: str | None, expected: str, received: str, remedy: str) -> TableError:
        """Return the exception that names a place in this table."""
        place = f"{self.name}, line {line}" + (f", column {column!r}" if column is not None else "")
        return TableError(place, expected, received, remedy)

    def _lines(self) -> Iterator[str]:
        """Decode line by line, line ends kept. Only LF ends a line: JSON text may hold U+2028 and its kin."""
        for number, line in enumerate(self._stream, 1):
            self.bytes_read += len(line)
            if number == 1:
                self._bom = _BOM if line.startswith(_BOM) else b""
                self._newline = "\r\n" if line.endswith(b"\r\n") else "\n"
                line = line.removeprefix(_BOM)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                found = f"the byte 0x{line[error.start]:02x} at position {error.start + 1}"
                raise self.error(number, None, "UTF-8 text", found, "Save the input as UTF-8.") from error
            yield text

    def _refuse_overwriting(self, line: int) -> None:
        if not self.columns.overwrite:
            remedy = "Pass --overwrite to replace its values, or name another with --score-column."
            raise self.error(line, self.columns.score, "no such column yet", "one", remedy)


class JsonlTable(Table):
    """One JSON object a line. A byte order mark is dropped, as RFC 8259 (8.1) allows none."""

    missing = "null"

    def rows(self) -> Iterator[Row]:
        """Read the objects one after the other; blank lines are skipped."""
        for line, raw in enumerate(self._lines(), 1):
            if text := raw.strip(_WHITESPACE):
                record = self._parse(line, text)
                completion = self._value(line, record, self.columns.completion)
                reference = self._value(line, record, self.columns.reference)
                yield Row(line, completion, reference, *self._split(line, record, text))

    def _parse(self, line: int, text: str) -> dict[str, object]:
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            raise self._not_json(line, f"{error.msg}, character {error.pos + 1}") from error
        except (ValueError, RecursionError) as error:  # an integer of too many digits; nested too deep
            raise self._not_json(line, str(error)) from error
        if not isinstance(record, dict):
            raise self.error(line, None, "a JSON object", json_type(record), "Write one object a line.")
        return record

    def _not_json(self, line: int, reason: str) -> TableError:
        return self.error(
            line, None, "a JSON object", f"what is not JSON ({reason})", "Correct or remove it."
        )

    def _value(self, line: int, record: dict[str, object], column: str) -> object:
        """Return the value of the key so named, or else of the dotted path, which is null behind a null."""
        if column in record:
            return record[column]
        value: object = record
        for key in column.split("."):
            if value is None:
                return None
            if not isinstance(value, dict):
                expected = f"an object that holds {key!r}"
                raise self.error(line, column, expected, json_type(value), "Correct the path.")
            if key not in value:
                remedy = "Add it to the line, or name another column."
                raise self.error(line, column, f"the key {key!r}", _listed("key", value), remedy)
            value = value[key]
        return value

    def _split(self, line: int, record: dict[str, object], text: str) -> tuple[str, str]:
        """Return the object's text before and behind its score."""
        key = self.columns.score
        if key in record:
            self._refuse_overwriting(line)
            start, end = _value_span(text, key)
            return text[:start], text[end:] + self._newline
        # The comma is never the first: the object holds the columns that were read.
        return f"{text[:-1].rstrip()}, {json.dumps(key, ensure_ascii=False)}: ", "}" + self._newline


class CsvTable(Table):
    """Comma-separated fields under a header, as in RFC 4180. Every field is a string, an empty one too.

    Raises:
        TableError: If the header lacks one of the columns.
    """

    missing = ""

    def __init__(self, stream: BinaryIO, name: str, columns: Columns) -> None:
        super().__init__(stream, name, columns)
        csv.field_size_limit(max(csv.field_size_limit(), _CSV_FIELD_CHARACTERS))
        self._reader = csv.reader(self._lines(), strict=True)
        self._records = self._read_records()
        line, self._names = next(self._records, (0, []))
        if not self._names:
            return  # nothing but blank lines: no header and no rows
        self._completion = self._index(line, columns.completion)
        self._reference = self._index(line, columns.reference)
        self._score: int | None = None
        if columns.score in self._names:
            self._refuse_overwriting(line)
            self._score = self._index(line, columns.score)
        before, after = self._split(self._names)
        self.header = self._bom + f"{before}{_csv_text([columns.score])}{after}".encode()

    def rows(self) -> Iterator[Row]:
        """Read the rows under the header one after the other; blank lines are skipped."""
        for line, fields in self._records:
            if len(fields) != len(self._names):
                expected = f"{len(self._names)} fields, as in the header"
                remedy = "Put fields that hold commas, quotes or line breaks in double quotes."
                raise self.error(line, None, expected, str(len(fields)), remedy)
            yield Row(line, fields[self._completion], fields[self._reference], *self._split(fields))

    def _read_records(self) -> Iterator[tuple[int, list[str]]]:
        """Yield the line on which each record begins, and its fields."""
        while True:
            line = self._reader.line_num + 1
            try:
                fields = next(self._reader, None)
            except csv.Error as error:
                expected, found = "comma-separated fields", f"a row that is not ({error})"
                raise self.error(line, None, expected, found, "Correct its quotes.") from error
            if fields is None:
                return
            if fields:
                yield line, fields

    def _index(self, line: int, column: str) -> int:
        if (count := self._names.count(column)) != 1:
            found = f"{count} of that name" if count else _listed("column", self._names)
            raise self.error(line, column, "one column of that name", found, "Name a column of the header.")
        return self._names.index(column)

    def _split(self, fields: list[str]) -> tuple[str, str]:
        """Return the row's text before and behind its score."""
        position = len(fields) if self._score is None else self._score
        before, after = fields[:position], fields[position + 1 :]
        return (
            (_csv_text(before) + "," if before else ""),
            ("," + _csv_text(after) if after else "") + self._newline,
        )


TABLES: Final[dict[str, type[Table]]] = {"jsonl": JsonlTable, "csv": CsvTable}
"""The formats by name, which is also how the name of such a file ends."""


@contextmanager
def replacement(path: Path) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and is removed when it does not.

    What stands at `path` is untouched until then, so that the block may read it. A link is followed. What is
    no regular file, such as a pipe or `/dev/null`, cannot be replaced and is written straight away.

    Args:
        path: The file to write.

    Yields:
        The open file, binary.

    Raises:
        InputError: If the directory of `path` is absent, or `path` is itself a directory.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacement(Path(folder) / "scores.jsonl") as output:
        ...         written = output.write(b"{}")
        ...     [path.name for path in Path(folder).iterdir()]
        ['scores.jsonl']
    """
    target = path.resolve()
    if target.is_dir():
        raise InputError("a file to write", f"the directory {path}", "Name a file with --output.")
    if not target.parent.is_dir():
        remedy = f"Make it first: mkdir -p {path.parent}"
        raise InputError("an output directory that exists", str(path.parent), remedy)
    if target.exists() and not target.is_file():
        with target.open("wb") as output:
            yield output
        return
    temporary = target.with_name(f".fastreward-{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as output:
            yield output
        if target.exists():
            temporary.chmod(target.stat().st_mode & 0o7777)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def json_type(value: object) -> str:
    """Return what JSON calls the type of a value, as a noun phrase.

    Example:
        >>> json_type({}), json_type(None)
        ('an object', 'null')
    """
    if value is None:
        return "null"
    names = {bool: "a boolean", str: "a string", list: "a list", dict: "an object"}
    return names.get(type(value), "a number")


def _value_span(text: str, key: str) -> tuple[int, int]:
    """Return where the value of `key` begins and ends in the text of an object, which is valid and has it.

    Where a key occurs twice its last value is meant, as in `json.loads`.
    """
    decoder = json.JSONDecoder()
    span = (0, 0)
    position = _next_token(text, 1)  # behind the brace
    while text[position] != "}":
        name, position = decoder.raw_decode(text, position)
        start = _next_token(text, position)
        _, end = decoder.raw_decode(text, start)
        if name == key:
            span = (start, end)
        position = _next_token(text, end)
    return span


def _next_token(text: str, position: int) -> int:
    between = _BETWEEN_TOKENS.match(text, position)
    assert between is not None  # the pattern also matches nothing
    return between.end()


def _csv_text(fields: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\r\n").writerow(fields)  # the writer quotes what its line end holds
    return buffer.getvalue().removesuffix("\r\n")


def _listed(noun: str, names: Collection[str]) -> str:
    shown = ", ".join(repr(name) for name in islice(names, 8)) + (", …" if len(names) > 8 else "")
    return f"the {noun}{'s' * (len(names) != 1)} {shown}" if names else f"no {noun}"
