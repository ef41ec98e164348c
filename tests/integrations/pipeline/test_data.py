"""Rows from files and from the generator, and what is refused before any training."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from fastreward.errors import InputError
from fastreward.integrations.exams import corpus, questions
from fastreward.integrations.pipeline import load_rows
from fastreward.integrations.pipeline.data import Kind, check_rows

ROWS: list[dict[str, Any]] = [
    {"prompt": "Perché?\n", "answer": "B", "explanation": 'Così, "detto".'},
    {"prompt": "Why?", "answer": "C", "explanation": "So\nthat."},
]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        lines = [json.dumps(row, ensure_ascii=False) + "\n\n" for row in rows]
        path.write_text("\ufeff" + "".join(lines), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv", "rows.parquet"])
def test_every_format_gives_the_rows_that_were_written(tmp_path: Path, name: str) -> None:
    rows = load_rows(write(tmp_path / name, ROWS))
    assert rows == ROWS
    places = {"jsonl": ["line 1", "line 3"], "csv": ["line 2", "line 4"], "parquet": ["row 0", "row 1"]}
    assert [place.rpartition(", ")[2] for place in rows.places] == places[name.rpartition(".")[2]]
    rows[1]["answer"] = "  "
    with pytest.raises(InputError, match=rf"{rows.places[1]}, column 'answer', got str '  '"):
        check_rows(rows, {"answer": "answer"})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a JSON object in .*line 2, got Expecting value"),
        ("a.jsonl", b"[1]\n", "a JSON object in .*line 1, got list"),
        ("a.jsonl", b'{"a": "\xff"}\n', "a file of UTF-8 that can be read, got .*0xff"),
        ("a.jsonl", b"\n", "a row at least, got none"),
        ("a.csv", b"a,b\n1\n", "2 fields in .*line 2, as in the header, got 1"),
        ("a.csv", b'a,b\n1,"x" y\n', "comma-separated fields in .*line 2"),
        ("a.csv", b"a,b\n", "a row at least"),
        ("a.csv", b"a,b,a\n1,2,3\n", "names that differ in the header"),
        ("a.parquet", b"no table", "a Parquet file at"),
        ("a.txt", b"text", r"a file that ends in \.jsonl, \.csv, \.parquet, or exams"),
    ],
)
def test_a_malformed_file_is_named_with_the_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_rows(str(tmp_path / name))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for suffix in ("jsonl", "csv", "parquet"):
        with pytest.raises(InputError, match=f"No such file.*none.{suffix}"):
            load_rows(str(tmp_path / f"none.{suffix}"))


# --------------------------------------------------------------------------- what rows hold


@pytest.mark.parametrize(
    ("kind", "good", "bad"),
    [
        ("text", ["a"], ["", " \n", None, float("nan"), 3, ["a"], {}]),
        (
            "prompt",
            ["a", [{"role": "user", "content": "a"}]],
            [
                "",
                None,
                [],
                [{"content": "a"}],
                ["a"],
                [{"role": "user"}],
                [{"role": "user", "content": " "}],
                3,
            ],
        ),
        ("answer", ["B", 0, 1.5, ["B", "C"], [None, "B"]], ["", None, float("nan"), [], [" "], True, {}]),
        ("reference", ["a", ["a", ""]], ["", None, [], ["", None], 3, {}]),
    ],
)
def test_a_column_holds_what_its_kind_says(kind: Kind, good: list[Any], bad: list[Any]) -> None:
    for value in good:
        assert check_rows([{"c": value}], {"c": kind}) == [{"c": value}]
    for value in bad:
        with pytest.raises(InputError, match="in row 1, column 'c', got"):
            check_rows([{"c": good[0]}, {"c": value}], {"c": kind})


def test_a_missing_column_is_named_with_its_row() -> None:
    with pytest.raises(InputError, match=r"a column 'answer' in row 1, got only 'prompt'\. Add it"):
        check_rows(
            [{"prompt": "?", "answer": "B"}, {"prompt": "?"}], {"prompt": "prompt", "answer": "answer"}
        )
    with pytest.raises(InputError, match="a row at least"):
        check_rows([], {})


# --------------------------------------------------------------------------- exam questions


def test_exam_questions_are_those_of_the_generator() -> None:
    rows = load_rows("exams:held_out_numbers?count=20&seed=3&languages=it")
    made = questions(20, seed=3, split="held_out_numbers", languages=("it",))
    assert rows == [question.row() for question in made]
    texts = load_rows("exams:corpus?count=5&seed=1&languages=en")
    assert [row["text"] for row in texts] == corpus(5, seed=1, languages=("en",))
    assert len(load_rows("exams:train")) == 1000


def test_all_wordings_take_turns_in_the_completions_and_the_reference_stays() -> None:
    rows, plain = (load_rows(f"exams:train?count=12{more}") for more in ("&wordings=all", ""))
    made = questions(12)
    for i, (row, question) in enumerate(zip(rows, made, strict=True)):
        assert row["completion"] == question.completion(i % len(question.explanations))
    assert [row["explanation"] for row in rows] == [row["explanation"] for row in plain]
    assert sum(row["completion"] != other["completion"] for row, other in zip(rows, plain, strict=True)) >= 6


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("exams:tests", "exams: and one of train, held_out_numbers, held_out_templates, corpus"),
        ("exams:train?number=3", "count, seed, languages, families, wordings, each once, in .*got number"),
        ("exams:train?count=3&count=4", "each once, in .*got count"),
        (f"exams:train?count={'9' * 5000}", "count of 1 or more"),
        ("exams:train?count=0", "count of 1 or more"),
        ("exams:train?count=many", "count of 1 or more in .*got 'many'"),
        ("exams:train?count", "name=value&name=value"),
        ("exams:train?languages=fr", "languages among en, it in .*got 'fr'"),
        ("exams:train?families=cooking", "families among .*got 'cooking'"),
        ("exams:train?wordings=two", "wordings=all or wordings=reference"),
        ("exams:corpus?wordings=all", "count, seed, languages, each once, in"),
    ],
)
def test_a_source_of_exam_questions_is_checked(source: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_rows(source)
