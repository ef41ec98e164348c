"""The texts that `fastreward bench` times: the user's, or this library's own."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeAlias

from fastreward.errors import InputError
from fastreward.table_io import TABLES, Columns, Row, Table, json_type

STEP: Final = 64 * 8
"""Texts of a whole step."""

GROUP: Final = 8

LEAST_TEXTS: Final = 16

Group: TypeAlias = tuple[list[str], str | None]
"""Texts that are compared with each other, and their reference."""


@dataclass(frozen=True)
class Texts:
    """What is timed: N texts, those of a group beside each other, and their references.

    Attributes:
        completions: N distinct texts.
        references: N; without references of one's own, one text stands for all.
        groups: N numbers; texts of one number are compared with each other. Empty where there are no groups.
        source: Where they come from.
    """

    completions: tuple[str, ...]
    references: tuple[str, ...]
    groups: tuple[int, ...]
    source: str

    def first(self, count: int) -> Texts:
        """The first `count`."""
        return self.rows(range(min(count, len(self.completions))))

    def halves(self) -> tuple[Texts, Texts]:
        """Every other group, or every other text where there are fewer than two groups, and the rest."""
        numbers = self.groups if len(set(self.groups)) > 1 else tuple(range(len(self.completions)))
        order = {number: place for place, number in enumerate(dict.fromkeys(numbers))}
        first, second = (
            self.rows([row for row, number in enumerate(numbers) if order[number] % 2 == half])
            for half in (0, 1)
        )
        return first, second

    def rows(self, rows: Sequence[int]) -> Texts:
        """Some of them."""
        groups = tuple(self.groups[row] for row in rows) if self.groups else ()
        texts, references = (tuple(all_[row] for row in rows) for all_ in (self.completions, self.references))
        return Texts(texts, references, groups, self.source)

    @classmethod
    def own(cls) -> Texts:
        """A step of 64 × 8 texts of a few sentences; each group keeps more and more of its reference."""
        from fastreward.measurement import SENTENCES

        draw = random.Random(0)
        completions: list[str] = []
        references: list[str] = []
        for number in range(STEP // GROUP):
            reference = draw.sample(SENTENCES, 4)
            others = [sentence for sentence in SENTENCES if sentence not in reference]
            for place in range(GROUP):
                kept = draw.sample(reference, place * 4 // (GROUP - 1))
                more = draw.sample(others, draw.randint(0 if kept else 1, 4))
                completions.append(" ".join([*kept, *more, f"({number}.{place})"]))
                references.append(" ".join([*reference, f"({number})"]))
        groups = tuple(row // GROUP for row in range(STEP))
        return cls(tuple(completions), tuple(references), groups, "this library's own texts")


def read_texts(file: Path | None, column: str | None, reference: str | None) -> Texts | None:
    """Read the user's texts; each counts once. None stands for this library's own.

    Raises:
        InputError: If a column is not there or not text, or there are too few texts.
    """
    if file is None:
        if column is not None or reference is not None:
            raise InputError("a file of texts", "none", "Pass --texts FILE.")
        return None
    kind = file.suffix.removeprefix(".").lower()
    if kind not in TABLES:
        if column is not None or reference is not None:
            raise InputError("FILE.jsonl or FILE.csv, which have columns", str(file), "Leave --field out.")
        groups: list[Group] = [([line], None) for line in _lines(file)]
    elif column is None:
        raise InputError("the column of the texts", "none", "Pass --field NAME.")
    else:
        # The score column is of no use here, and must be none that the file has.
        columns = Columns(column, column if reference is None else reference, "\0", overwrite=True)
        with file.open("rb") as stream:
            groups = list(_groups(TABLES[kind](stream, str(file), columns), reference is not None))
    return _as_texts(groups, str(file))


def _lines(file: Path) -> list[str]:
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError("texts in UTF-8", f"{file}: {error}", "Convert the file.") from error


def _groups(table: Table, has_references: bool) -> Iterator[Group]:
    """The texts of each row, and its reference if there are references; a row that lacks one is left out."""
    for row in table.rows():
        texts = _texts_of(table, row, table.columns.completion, row.completion)
        known = _texts_of(table, row, table.columns.reference, row.reference) if has_references else []
        if texts and (known or not has_references):
            yield texts, known[0] if known else None


def _texts_of(table: Table, row: Row, column: str, found: object) -> list[str]:
    """A text, or those of a list or an object; what is empty or null is left out."""
    values = (
        list(found.values()) if isinstance(found, dict) else found if isinstance(found, list) else [found]
    )
    for value in values:
        if not isinstance(value, str) and value is not None:
            expected = "a text, a list of texts or an object of texts"
            raise table.error(row.line, column, expected, json_type(value), "Name another column.")
    return [value for value in values if isinstance(value, str) and value.strip()]


def _as_texts(rows: list[Group], source: str) -> Texts:
    by_group: dict[int | str, Group] = {}
    seen: set[str] = set()
    for number, (texts, reference) in enumerate(rows):
        members, _ = by_group.setdefault(number if reference is None else reference, ([], reference))
        members += [text for text in dict.fromkeys(texts) if text not in seen]
        seen.update(texts)
    groups = [group for group in by_group.values() if group[0]]
    completions = tuple(text for members, _ in groups for text in members)
    if len(completions) < LEAST_TEXTS:
        raise InputError(
            f"{LEAST_TEXTS} different texts at least", f"{len(completions)} in {source}", "Pass more texts."
        )
    # Texts without references are scored against one of them: it takes the same time.
    references = tuple(reference or completions[0] for members, reference in groups for _ in members)
    numbers = tuple(number for number, (members, _) in enumerate(groups) for _ in members)
    grouped = any(len(members) > 2 for members, _ in groups)
    return Texts(completions, references, numbers if grouped else (), source)
