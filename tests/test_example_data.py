"""The example data keeps the structure that its README promises."""

import json
import unicodedata
from collections import Counter
from pathlib import Path

import pytest

DATA = Path(__file__).resolve().parents[1] / "examples" / "data" / "explanations.jsonl"
ROWS = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]

KEYS = ["id", "language", "subject", "question", "options", "answer", "explanation", "candidates"]
LABELS = ["good", "paraphrase", "partial", "negated", "off_topic", "stuffed"]
LANGUAGES = ["it", "en"]
SUBJECTS = ["biology", "chemistry", "physics", "mathematics", "logic"]
WORDS = {
    "question": (10, 60),
    "explanation": (40, 90),
    "good": (35, 90),
    "paraphrase": (35, 95),
    "partial": (15, 50),
    "negated": (35, 95),
    "off_topic": (30, 80),
    "stuffed": (20, 60),
}

each_row = pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])


def texts(row: dict) -> dict[str, str]:
    return {"question": row["question"], "explanation": row["explanation"], **row["candidates"]}


def test_there_are_sixty_items_or_more():
    assert len(ROWS) >= 60


def test_half_of_the_items_are_italian_and_half_are_english():
    counts = Counter(row["language"] for row in ROWS)
    assert counts == {"it": len(ROWS) // 2, "en": len(ROWS) // 2}


def test_every_subject_has_as_many_items_in_both_languages():
    counts = Counter((row["subject"], row["language"]) for row in ROWS)
    assert set(counts) == {(subject, language) for subject in SUBJECTS for language in LANGUAGES}
    assert len(set(counts.values())) == 1


def test_items_are_sorted_by_subject_then_language_then_number():
    order = [(SUBJECTS.index(r["subject"]), LANGUAGES.index(r["language"]), r["id"]) for r in ROWS]
    assert order == sorted(order)


def test_no_answer_letter_is_much_more_frequent_than_chance():
    counts = Counter(row["answer"] for row in ROWS)
    assert set(counts) == set("ABCDE")
    assert max(counts.values()) <= 0.3 * len(ROWS)


def test_ids_are_unique():
    assert len({row["id"] for row in ROWS}) == len(ROWS)


def test_no_text_occurs_twice():
    counts = Counter(text.casefold() for row in ROWS for text in texts(row).values())
    assert [text for text, count in counts.items() if count > 1] == []


def test_the_file_is_plain_composed_utf8_with_one_object_a_line():
    raw = DATA.read_bytes().decode("utf-8")
    assert raw.endswith("\n")
    assert "\r" not in raw
    assert unicodedata.is_normalized("NFC", raw)
    assert raw == "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)


@each_row
def test_keys_and_their_order(row):
    assert list(row) == KEYS
    assert list(row["candidates"]) == LABELS


@each_row
def test_id_names_language_and_subject(row):
    language, subject, number = row["id"].split("-")
    assert (language, subject) == (row["language"], row["subject"])
    assert len(number) == 2
    assert number.isdigit()


@each_row
def test_five_different_options_and_an_answer_letter(row):
    assert len(row["options"]) == 5
    assert len({option.casefold() for option in row["options"]}) == 5
    assert all(option and option == option.strip() for option in row["options"])
    assert row["answer"] in ["A", "B", "C", "D", "E"]


@each_row
def test_lengths_in_words(row):
    lengths = {name: len(text.split()) for name, text in texts(row).items()}
    wrong = {name: n for name, n in lengths.items() if not WORDS[name][0] <= n <= WORDS[name][1]}
    assert wrong == {}


@each_row
def test_texts_have_no_stray_white_space(row):
    for name, text in texts(row).items():
        assert text == text.strip(), name
        assert "  " not in text, name
        assert text.isprintable(), name
