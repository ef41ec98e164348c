"""Rows in, rows out: what is not the score stays as it was, and what is malformed is named by its place."""

from __future__ import annotations

import io
import json
import os
import pickle
import stat
import threading
from pathlib import Path

import pytest

from fastreward.errors import InputError
from fastreward.table_io import TABLES, Columns, CsvTable, JsonlTable, TableError, replacement

COLUMNS = Columns("answer", "gold")
OVERWRITING = Columns("answer", "gold", overwrite=True)


def jsonl(text: str | bytes, columns: Columns = COLUMNS) -> JsonlTable:
    return JsonlTable(io.BytesIO(text.encode() if isinstance(text, str) else text), "in.jsonl", columns)


def csv_table(text: str | bytes, columns: Columns = COLUMNS) -> CsvTable:
    return CsvTable(io.BytesIO(text.encode() if isinstance(text, str) else text), "in.csv", columns)


def written(table: JsonlTable | CsvTable, *scores: float | None) -> bytes:
    rows = [table.scored(row, score) for row, score in zip(table.rows(), scores, strict=True)]
    return table.header + b"".join(rows)


def message(table: JsonlTable) -> str:
    with pytest.raises(TableError) as caught:
        list(table.rows())
    return str(caught.value)


def csv_message(text: str | bytes, columns: Columns = COLUMNS) -> str:
    with pytest.raises(TableError) as caught:
        list(csv_table(text, columns).rows())
    return str(caught.value)


# --------------------------------------------------------------------------- JSONL


def test_the_score_is_appended_and_every_other_character_of_the_object_stays() -> None:
    line = (
        '{"id": 1.50, "n": 12345678901234567890, "answer":"\\u00e8 è \\ud800", "gold": "g" ,"x": [1e5, NaN]'
    )
    assert written(jsonl(line + " }\n"), 0.25).decode() == line + ', "score": 0.25}\n'


def test_a_missing_score_is_null_and_a_float_is_written_so_that_it_reads_back_equal() -> None:
    lines = '{"answer": "a", "gold": "b"}\n' * 2
    score = 0.8712345361709595
    back = [json.loads(line) for line in written(jsonl(lines), None, score).splitlines()]
    assert [row["score"] for row in back] == [None, score]


def test_the_name_of_the_score_column_is_the_users_and_is_written_as_it_is() -> None:
    columns = Columns("answer", "gold", score='qualità "A"')
    assert json.loads(written(jsonl('{"answer": "a", "gold": "b"}', columns), 1.0))['qualità "A"'] == 1.0
    assert "qualità" in written(jsonl('{"answer": "a", "gold": "b"}', columns), 1.0).decode()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"score": 7, "answer": "a", "gold": "b"}', '{"score": 0.5, "answer": "a", "gold": "b"}'),
        ('{"answer": "a", "score":{"x": [1,"}"]},"gold": "b"}', '{"answer": "a", "score":0.5,"gold": "b"}'),
        ('{"answer": "a","gold": "b" , "score" : "old" }', '{"answer": "a","gold": "b" , "score" : 0.5 }'),
        ('{"n": {"score": 1}, "score": 2, "answer": "a", "gold": "b"}',
         '{"n": {"score": 1}, "score": 0.5, "answer": "a", "gold": "b"}'),
        ('{"\\u0073core": 2,"answer":"a","gold":"b"}', '{"\\u0073core": 0.5,"answer":"a","gold":"b"}'),
        ('{"answer": "a", "gold": "b"}', '{"answer": "a", "gold": "b", "score": 0.5}'),
    ],
)  # fmt: skip
def test_overwriting_replaces_the_value_of_the_score_alone(given: str, expected: str) -> None:
    assert written(jsonl(given, OVERWRITING), 0.5).decode() == expected + "\n"


def test_overwriting_a_key_that_occurs_twice_changes_the_value_that_readers_see() -> None:
    line = '{"score": 1, "answer": "a", "gold": "b", "score": 2}'
    assert json.loads(written(jsonl(line, OVERWRITING), 0.5))["score"] == 0.5


def test_a_dotted_path_leads_into_objects_and_a_key_literally_so_named_wins() -> None:
    columns = Columns("candidates.good", "meta.gold")
    nested = '{"candidates": {"good": "inner"}, "meta": {"gold": ["x", "y"]}}\n'
    literal = '{"candidates.good": "outer", "candidates": {"good": "inner"}, "meta": {"gold": "z"}}\n'
    rows = list(jsonl(nested + literal, columns).rows())
    assert [(row.completion, row.reference) for row in rows] == [("inner", ["x", "y"]), ("outer", "z")]


def test_a_null_on_a_dotted_path_makes_the_value_null() -> None:
    (row,) = jsonl('{"answer": "a", "meta": null}', Columns("answer", "meta.gold")).rows()
    assert row.reference is None


def test_blank_lines_are_skipped_and_still_counted() -> None:
    rows = list(jsonl('\n{"answer": "a", "gold": "b"}\n  \t\n\r\n{"answer": "c", "gold": "d"}').rows())
    assert [row.line for row in rows] == [2, 5]


@pytest.mark.parametrize("table", [jsonl, csv_table])
@pytest.mark.parametrize("text", [b"", b"\n", b"\xef\xbb\xbf", b"\r\n\r\n"])
def test_an_input_without_rows_gives_an_empty_output(table: type, text: bytes) -> None:
    assert written(table(text)) == b""


def test_only_a_line_feed_ends_a_line() -> None:
    text = '{"answer": "a\u2028b\u0085c", "gold": "d"}\n'
    (row,) = jsonl(text).rows()
    assert row.completion == "a\u2028b\u0085c"


def test_a_byte_order_mark_is_dropped_and_crlf_line_ends_are_kept() -> None:
    text = b'\xef\xbb\xbf{"answer": "a", "gold": "b"}\r\n{"answer": "a", "gold": "b"}'
    assert written(jsonl(text), 0.5, None) == (
        b'{"answer": "a", "gold": "b", "score": 0.5}\r\n{"answer": "a", "gold": "b", "score": null}\r\n'
    )


@pytest.mark.parametrize(
    ("bad", "parts"),
    [
        (
            '{"answer": "a" "gold": "b"}',
            ["a JSON object", "not JSON (Expecting ',' delimiter, character"],
        ),
        ('{"answer": "a', ["a JSON object", "not JSON (Unterminated string"]),
        ("[" * 100_000, ["a JSON object", "not JSON"]),
        ('{"answer": ' + "9" * 5000 + "}", ["a JSON object", "not JSON"]),
        ("\u00a0{}", ["a JSON object", "not JSON"]),
        ('["a"]', ["a JSON object", "got a list"]),
        ('"a"', ["a JSON object", "got a string"]),
        ("3", ["a JSON object", "got a number"]),
        ("null", ["a JSON object", "got null"]),
        ('{"answer": "a"}', ["column 'gold'", "the key 'gold'", "got the key 'answer'"]),
        ("{}", ["column 'answer'", "the key 'answer'", "got no key"]),
        ('{"answer": "a", "gold": "b", "score": 1}', ["column 'score'", "--overwrite"]),
    ],
)
def test_a_malformed_line_is_named_by_file_line_and_column(bad: str, parts: list[str]) -> None:
    text = message(jsonl('{"answer": "a", "gold": "b"}\n\n' + bad + "\n"))
    assert text.startswith("in.jsonl, line 3")
    assert [part for part in parts if part not in text] == []
    assert len(text) < 400


def test_a_dotted_path_that_leads_nowhere_is_named() -> None:
    columns = Columns("a.b.c", "gold")
    assert "column 'a.b.c': expected the key 'b', got the keys 'x', 'y'" in message(
        jsonl('{"a": {"x": 1, "y": 2}, "gold": "b"}', columns)
    )
    assert "column 'a.b.c': expected an object that holds 'c', got a string" in message(
        jsonl('{"a": {"b": "text"}, "gold": "b"}', columns)
    )


def test_bytes_that_are_not_utf_8_are_named_by_their_position() -> None:
    good = b'{"answer": "a", "gold": "b"}\n'
    text = message(jsonl(good + '{"answer": "caffè"'.encode("latin-1")))
    assert "in.jsonl, line 2: expected UTF-8 text, got the byte 0xe8 at position 17." in text
    assert "in.csv, line 2: expected UTF-8" in csv_message(b"answer,gold\ncaff\xe8,b\n")


def test_scores_may_not_replace_what_is_scored() -> None:
    with pytest.raises(InputError, match="--score-column"):
        Columns("answer", "gold", score="gold", overwrite=True)


def test_the_error_pickles_with_its_place() -> None:
    error = TableError("in.jsonl, line 2", "an object", "a list", "Mend it.")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


# --------------------------------------------------------------------------- CSV


def test_csv_fields_with_commas_quotes_and_line_breaks_survive() -> None:
    given = 'id,answer,gold\n1,"a, ""b""\r\nc",d\n2,,"e\n"\n3,"\r",f\n'
    assert written(csv_table(given), 0.5, None, 1.0).decode() == (
        'id,answer,gold,score\n1,"a, ""b""\r\nc",d,0.5\n2,,"e\n",\n3,"\r",f,1.0\n'
    )


def test_csv_keeps_its_byte_order_mark_and_its_line_ends() -> None:
    given = b'\xef\xbb\xbf"answer",gold\r\na,b'
    assert written(csv_table(given), 0.5) == b"\xef\xbb\xbfanswer,gold,score\r\na,b,0.5\r\n"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("score,answer,gold\n,a,b\n", "score,answer,gold\n0.5,a,b\n"),
        ("answer,score,gold\na,7,b\n", "answer,score,gold\na,0.5,b\n"),
        ("answer,gold,score\na,b,old\n", "answer,gold,score\na,b,0.5\n"),
    ],
)
def test_overwriting_in_csv_keeps_the_order_of_the_columns(given: str, expected: str) -> None:
    assert written(csv_table(given, OVERWRITING), 0.5).decode() == expected


def test_a_csv_header_without_rows_is_written_with_the_score() -> None:
    assert written(csv_table("answer,gold\n")) == b"answer,gold,score\n"


def test_a_csv_column_may_have_a_dot_in_its_name() -> None:
    (row,) = csv_table("a.b,gold\nx,y\n", Columns("a.b", "gold")).rows()
    assert row.completion == "x"


def test_a_csv_row_is_named_by_the_line_on_which_it_begins() -> None:
    text = csv_message('answer,gold\n"two\nlines",b\n\n"x\ny"\n')
    assert text.startswith("in.csv, line 5: expected 2 fields, as in the header, got 1.")


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ("answer,gold\na,b\na\n", ["line 3", "2 fields", "got 1"]),
        ("answer,gold\na,b\na,b,c\n", ["line 3", "2 fields", "got 3"]),
        ('answer,gold\na,b\n"a,b\nc,d\n', ["line 3", "comma-separated fields", "unexpected end of data"]),
        ('answer,gold\na,b\n"a"x,b\n', ["line 3", "comma-separated fields"]),
        ("answer,other\na,b\n", ["line 1", "column 'gold'", "the columns 'answer', 'other'"]),
        ("answer;gold\na;b\n", ["line 1", "column 'answer'", "the column 'answer;gold'"]),
        ("answer,gold,gold\na,b,c\n", ["line 1", "column 'gold'", "2 of that name"]),
        ("answer,gold,score\na,b,c\n", ["line 1", "column 'score'", "--overwrite"]),
    ],
)
def test_a_malformed_csv_is_named_by_file_line_and_column(given: str, parts: list[str]) -> None:
    text = csv_message(given)
    assert text.startswith("in.csv, ")
    assert [part for part in parts if part not in text] == []


def test_a_csv_field_may_be_a_megabyte_long() -> None:
    long = "x " * 500_000
    (row,) = csv_table(f"answer,gold\n{long},b\n").rows()
    assert row.completion == long


# --------------------------------------------------------------------------- streaming and replacing


@pytest.mark.parametrize("name", TABLES)
def test_rows_are_read_when_they_are_asked_for(name: str) -> None:
    first = b'{"answer": "a", "gold": "b"}\n' if name == "jsonl" else b"answer,gold\na,b\n"
    reading, writing = os.pipe()
    with open(reading, "rb") as stream, open(writing, "wb", buffering=0) as sender:
        sender.write(first)
        table_type, rows = TABLES[name], []
        worker = threading.Thread(target=lambda: rows.append(next(table_type(stream, name, COLUMNS).rows())))
        worker.start()
        worker.join(timeout=10)
        alive = worker.is_alive()
    worker.join()
    assert not alive, "the first row did not come before the input had ended"
    assert rows[0].completion == "a"


def test_bytes_read_follow_the_rows() -> None:
    line = '{"answer": "è", "gold": "b"}\n'
    table = jsonl(line * 3)
    rows = table.rows()
    next(rows)
    assert table.bytes_read == len(line.encode())
    list(rows)
    assert table.bytes_read == 3 * len(line.encode())


def test_a_replacement_appears_at_the_end_and_its_target_can_be_read_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_text("old")
    with replacement(path) as output:
        output.write(b"new")
        output.flush()
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_replacement_that_fails_leaves_no_trace(tmp_path: Path, failure: type[BaseException]) -> None:
    path = tmp_path / "out"

    def fail() -> None:
        with replacement(path) as output:
            output.write(b"half")
            raise failure

    with pytest.raises(failure):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_replacement_has_the_permissions_of_what_it_replaces_or_those_of_a_new_file(tmp_path: Path) -> None:
    old, new, plain = tmp_path / "old", tmp_path / "new", tmp_path / "plain"
    old.touch()
    old.chmod(0o640)
    plain.touch()
    for path in (old, new):
        with replacement(path) as output:
            output.write(b"x")
    assert stat.S_IMODE(old.stat().st_mode) == 0o640
    assert stat.S_IMODE(new.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_a_replacement_follows_a_link(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("old")
    link.symlink_to(target)
    with replacement(link) as output:
        output.write(b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_pipe_is_written_and_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append(pipe.read_bytes()))
    reader.start()
    with replacement(pipe) as output:
        output.write(b"through")
    reader.join(timeout=10)
    assert received == [b"through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_an_output_directory_that_is_absent_and_one_that_is_the_output_are_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="mkdir -p"), replacement(tmp_path / "absent" / "out"):
        pass
    with pytest.raises(InputError, match="the directory"), replacement(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []
