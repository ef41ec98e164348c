"""The world of exam questions: its splits, its distribution, its texts, and what the rewards make of them."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward import AnswerReward, FormatReward, SemanticReward
from fastreward.errors import InputError
from fastreward.integrations.exams import FAMILIES, SPLITS, Question, corpus, questions, write_jsonl
from fastreward.integrations.exams.draw import Draw, digest
from fastreward.integrations.exams.generate import TASKS
from fastreward.integrations.exams.task import Language, Task, decimal, ratio
from fastreward.scorer import Scorer

MANY = 6000
LANGUAGES: tuple[Language, ...] = ("en", "it")


@pytest.fixture(scope="module")
def train() -> list[Question]:
    return questions(MANY)


def chi_square(counts: Counter[str], kinds: int) -> float:
    expected = counts.total() / kinds
    return sum((counts[kind] - expected) ** 2 for kind in counts) / expected


# --------------------------------------------------------------------------- drawing


def test_the_draws_are_those_of_every_machine() -> None:
    draw = Draw("seed", 0)
    assert [draw.below(100) for _ in range(6)] == [32, 85, 98, 36, 62, 56]
    assert digest("a", 1) == int(hashlib.sha256(b"a\x1f1").hexdigest()[:32], 16)


def test_a_sample_holds_each_item_once_and_has_every_order() -> None:
    orders = Counter("".join(Draw("order", i).sample("abc", 3)) for i in range(1200))
    assert sorted(orders) == ["abc", "acb", "bac", "bca", "cab", "cba"]
    assert chi_square(orders, 6) < 20.5  # 1 in 1,000 at 5 degrees of freedom


def test_questions_are_the_same_in_another_process() -> None:
    program = (
        "from fastreward.integrations.exams import questions, corpus; import hashlib;"
        "drawn = questions(200, seed=9, split='held_out_numbers'), corpus(50);"
        "print(hashlib.sha256(repr(drawn).encode()).hexdigest())"
    )
    here = hashlib.sha256(
        repr((questions(200, seed=9, split="held_out_numbers"), corpus(50))).encode()
    ).hexdigest()
    environment = {**os.environ, "PYTHONHASHSEED": "12345"}
    there = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert there.stdout.strip() == here


def test_nothing_else_that_draws_is_disturbed_or_disturbs() -> None:
    import random

    random.seed(1)
    first = questions(20)
    after = random.random()
    random.seed(1)
    assert random.random() == after
    assert questions(20) == first


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(), split=st.sampled_from(SPLITS), count=st.integers(0, 6))
def test_a_shorter_list_is_the_beginning_of_a_longer_one(seed: int, split: str, count: int) -> None:
    assert questions(6, seed=seed, split=split)[:count] == questions(count, seed=seed, split=split)


def test_seeds_and_splits_differ() -> None:
    lists = [questions(30, seed=seed, split=split) for seed in (0, 1, -1) for split in SPLITS]
    assert len({tuple(items) for items in lists}) == len(lists)


def test_the_order_in_which_names_are_given_does_not_matter() -> None:
    one = questions(10, languages=["en", "it"], families=["units", "crosses"])
    assert one == questions(10, languages=("it", "en", "it"), families={"crosses", "units"})
    assert questions(4, languages="it") == questions(4, languages=["it"])


# --------------------------------------------------------------------------- splits


def test_no_combination_is_on_both_sides_and_none_is_on_neither() -> None:
    for task in TASKS:
        kept, held_out = set(task.side(held_out=False)), set(task.side(held_out=True))
        assert not kept & held_out
        assert kept | held_out == set(task.space())
        assert len(kept) + len(held_out) == len(list(task.space())), "a combination twice"
        assert held_out
        assert len(kept) >= 3 * len(held_out)


def test_about_one_combination_in_eight_is_held_out() -> None:
    sizes = [(len(task.side(held_out=True)), len(list(task.space()))) for task in TASKS]
    held_out, total = map(sum, zip(*sizes, strict=True))
    assert abs(held_out / total - 1 / 8) < 0.02


def test_tasks_that_share_a_relation_share_what_is_held_out() -> None:
    by_name = {f"{task.family}/{task.name}": task for task in TASKS}
    for names in (("distance", "speed", "time"), ("final_speed", "acceleration")):
        sides = [by_name[f"kinematics/{name}"].side(held_out=True) for name in names]
        assert all(side == sides[0] for side in sides)


def test_held_out_numbers_come_in_training_templates_and_in_questions_that_training_has_not(
    train: list[Question],
) -> None:
    held_out = questions(2000, split="held_out_numbers") + questions(500, seed=4, split="held_out_numbers")
    seen = {item.question for item in train} | {item.question for item in questions(2000, seed=4)}
    assert not {item.question for item in held_out} & seen
    assert {item.template for item in held_out} == {item.template for item in train}


def test_held_out_templates_are_in_no_other_split(train: list[Question]) -> None:
    held_out = {item.template for item in questions(2000, split="held_out_templates")}
    others = {item.template for item in train + questions(2000, split="held_out_numbers")}
    assert not held_out & others
    assert len(held_out) == len(TASKS)
    assert len(others) == sum(len(task.texts["en"].asked) for task in TASKS)


def test_held_out_wordings_are_not_those_of_training_with_other_numbers() -> None:
    for task in TASKS:
        for language in LANGUAGES:
            texts = task.texts[language]
            for new in texts.held_out:
                assert all(new not in old and old not in new for old in texts.asked)


def test_training_has_thousands_of_distinct_items(train: list[Question]) -> None:
    assert len({item.prompt for item in train}) >= 5000
    assert len({item.question for item in train}) >= 4500


# --------------------------------------------------------------------------- distribution


def test_there_are_at_least_nine_families_in_both_languages(train: list[Question]) -> None:
    assert len(FAMILIES) >= 9
    assert {(item.family, item.language) for item in train} == {
        (family, language) for family in FAMILIES for language in LANGUAGES
    }


def test_letters_families_and_languages_are_drawn_alike(train: list[Question]) -> None:
    assert chi_square(Counter(item.answer for item in train), 5) < 18.5  # 1 in 1,000 at 4 degrees of freedom
    assert chi_square(Counter(item.family for item in train), 11) < 29.6  # at 10
    assert chi_square(Counter(item.language for item in train), 2) < 10.9  # at 1
    by_family = defaultdict(Counter[str])
    for item in train:
        by_family[item.family][item.answer] += 1
    assert all(chi_square(counts, 5) < 23.6 for counts in by_family.values())  # 1 in 10,000


def test_the_size_of_numbers_does_not_give_the_answer_away(train: list[Question]) -> None:
    """No rank among the options is right much more often than another; few values are possible in a cross."""
    ranks: dict[str, Counter[int]] = defaultdict(Counter)
    for item in train:
        try:
            values = [Fraction(text.split()[0].replace(",", ".")) for text in item.options]
        except ValueError:
            continue
        ranks[item.template.rpartition("/")[0]][sorted(values).index(values["ABCDE".index(item.answer)])] += 1
    assert len(ranks) > 20
    total = sum(ranks.values(), Counter[int]())
    assert total.most_common(1)[0][1] < 0.25 * total.total()
    assert all(counts.most_common(1)[0][1] < 0.45 * counts.total() for counts in ranks.values())


def test_options_are_five_and_all_different(train: list[Question]) -> None:
    assert all(len(item.options) == len(set(item.options)) == 5 for item in train)


# --------------------------------------------------------------------------- texts


def test_every_task_has_several_templates_and_wordings_in_both_languages() -> None:
    for task in TASKS:
        english, italian = task.texts["en"], task.texts["it"]
        assert len(english.asked) == len(italian.asked) >= 3
        assert len(english.held_out) == len(italian.held_out) >= 1
        for texts in (english, italian):
            assert len(set(texts.explained)) >= 3
            assert len(set(texts.asked)) == len(texts.asked)


def every_solution(task: Task, language: Language) -> list[dict[str, str]]:
    found = []
    for held_out in (False, True):
        for parameters in task.side(held_out)[::7]:
            solution = task.solve(parameters, language)
            found.append({**solution.fields, "result": solution.right})
    return found


def test_every_text_of_every_task_fills_in_and_leaves_nothing_over() -> None:
    for task in TASKS:
        for language in LANGUAGES:
            texts = task.texts[language]
            for fields in every_solution(task, language):
                for text in (*texts.asked, *texts.held_out, *texts.explained, *texts.told):
                    filled = text.format_map(fields)
                    assert not re.search(r"[{}]|None|Fraction|  |\s[.,;?]|[.,]{2}", filled), filled
                    assert filled[-1] in ".?"


def test_explanations_are_of_20_to_45_words_and_end_with_the_result() -> None:
    for task in TASKS:
        for language in LANGUAGES:
            for fields in every_solution(task, language):
                filled = [text.format_map(fields) for text in task.texts[language].explained]
                assert len(set(filled)) == len(filled)
                for text in filled:
                    assert 20 <= len(text.split()) <= 45, text
                    assert text.endswith(f"{fields['result']}."), text


def test_italian_is_italian_and_has_a_decimal_comma(train: list[Question]) -> None:
    words = {"en": {"the", "is", "of", "what"}, "it": {"il", "di", "è", "la", "che"}}
    for item in train[:1500]:
        text = " ".join((item.question, *item.explanations))
        tokens = set(re.findall(r"\w+", text.lower()))
        other = "it" if item.language == "en" else "en"
        assert tokens & words[item.language]
        assert not tokens & (words[other] - {"la"}), text
        assert not re.search(r"\d\.\d" if item.language == "it" else r"\d,\d", text + str(item.options))


def test_numbers_are_written_as_they_should_be() -> None:
    assert [decimal(Fraction(n, 1000), "it") for n in (5, 50, 500, 1500, 2000, 1_200_000)] == [
        "0,005",
        "0,05",
        "0,5",
        "1,5",
        "2",
        "1200",
    ]
    assert [ratio(Fraction(*pair)) for pair in ((0, 4), (4, 4), (2, 4), (9, 16))] == ["0", "1", "1/2", "9/16"]


# --------------------------------------------------------------------------- rewards


def test_the_prompt_is_the_question_its_options_and_the_beginning_of_an_answer() -> None:
    for item in questions(50):
        lines = item.prompt.split("\n")
        assert lines[0] == item.question
        assert lines[1:6] == [f"{letter}) {text}" for letter, text in zip("ABCDE", item.options, strict=True)]
        assert lines[6:] == [{"en": "Answer:", "it": "Risposta:"}[item.language], ""]


def test_format_and_answer_give_full_marks_to_every_wording() -> None:
    items = questions(300)
    completions = [item.completion(wording) for item in items for wording in range(len(item.explanations))]
    answers = [item.answer for item in items for _ in item.explanations]
    assert set(FormatReward()(completions=completions)) == {1.0}
    assert set(FormatReward(outside=False)(completions=completions)) == {1.0}
    assert set(AnswerReward("answer")(completions=completions, answer=answers)) == {1.0}
    wrong = ["ABCDE"["ABCDE".index(answer) - 1] for answer in answers]
    assert set(AnswerReward("answer")(completions=completions, answer=wrong)) == {0.0}


def test_another_wording_is_nearer_to_the_reference_than_the_explanation_of_another_family() -> None:
    scorer = Scorer(dtype="float32")
    reward = SemanticReward(scorer, reference="explanation", extract="explanation")
    items = [
        item
        for family in FAMILIES
        for language in LANGUAGES
        for item in questions(1, languages=language, families=family)
    ]
    references = [item.explanations[0] for item in items]
    assert min(reward(completions=[item.completion() for item in items], explanation=references)) > 0.999
    reworded = reward(completions=[item.completion(1) for item in items], explanation=references)
    elsewhere = [items[i - 2].completion(1) for i in range(len(items))]  # the family before, same language
    strange = reward(completions=elsewhere, explanation=references)
    assert all(own > other for own, other in zip(reworded, strange, strict=True))
    assert sum(reworded) / len(items) > 0.2 + sum(strange) / len(items)


def test_a_row_has_the_columns_of_fine_tuning_and_of_the_rewards() -> None:
    item = questions(1)[0]
    row = item.row(1)
    assert list(row) == ["prompt", "completion", "answer", "explanation", "language", "family", "template"]
    assert row["explanation"] == item.explanations[0]
    assert item.explanations[1] in row["completion"]
    assert item.row()["completion"] == item.completion(0)


# --------------------------------------------------------------------------- corpus and files


def test_the_corpus_asks_nothing_and_calculates_nothing_that_is_held_out() -> None:
    texts = corpus(1200)
    assert len(set(texts)) == len(texts)
    assert not any("?" in text or "A)" in text or "{" in text for text in texts)
    joined = "\n".join(texts)
    assert all(len(text.split()) > 20 for text in texts)
    for task in TASKS:
        for language in LANGUAGES:
            told = task.texts[language].told[0]
            for parameters in task.side(held_out=True)[:40]:
                solution = task.solve(parameters, language)
                assert told.format_map({**solution.fields, "result": solution.right}) not in joined


def test_the_corpus_has_every_family_and_keeps_to_its_languages() -> None:
    for family in FAMILIES:
        assert not any(re.search(r"\bil\b", text) for text in corpus(12, languages="en", families=[family]))
        assert corpus(12, languages="en", families=[family]) != corpus(12, languages="it", families=[family])


def test_the_files_hold_what_the_functions_return(tmp_path: Path) -> None:
    paths = write_jsonl(
        tmp_path / "new" / "folder", train=20, held_out_numbers=5, held_out_templates=4, texts=3
    )
    assert sorted(paths) == ["corpus", "held_out_numbers", "held_out_templates", "train"]
    read = {
        name: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        for name, path in paths.items()
    }
    assert read["train"] == [item.row() for item in questions(20)]
    assert read["held_out_numbers"] == [item.row() for item in questions(5, split="held_out_numbers")]
    assert read["held_out_templates"] == [item.row() for item in questions(4, split="held_out_templates")]
    assert read["corpus"] == [{"text": text} for text in corpus(3)]
    assert sorted(path.name for path in paths["train"].parent.iterdir()) == sorted(
        p.name for p in paths.values()
    )


def test_the_files_of_before_stand_when_the_disk_takes_no_more(tmp_path: Path) -> None:
    before = {name: path.read_bytes() for name, path in write_jsonl(tmp_path, train=3, texts=3).items()}
    program = (
        "import resource, sys; from fastreward.integrations.exams import write_jsonl;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000));"
        "write_jsonl(sys.argv[1], train=3, texts=2000)"
    )
    failed = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True)
    assert failed.returncode != 0
    assert "OSError" in failed.stderr
    assert {path.stem: path.read_bytes() for path in tmp_path.iterdir()} == before


# --------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"count": -1}, "a count of 0 or more"),
        ({"count": 2.0}, "a count of 0 or more"),
        ({"count": True}, "a count of 0 or more"),
        ({"seed": "0"}, "an integer as seed"),
        ({"split": "test"}, "one of train, held_out_numbers, held_out_templates as split"),
        ({"split": None}, "as split"),
        ({"languages": ["en", "de"]}, "some of en, it as languages"),
        ({"languages": []}, "some of en, it as languages"),
        ({"languages": 3}, "some of en, it as languages"),
        ({"families": ["optics"]}, "as families"),
        ({"families": ()}, "as families"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], expected: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=expected):
        questions(**{"count": 1, **arguments})  # type: ignore[arg-type]
    if not {"split", "count"} & arguments.keys():
        with pytest.raises(InputError, match=expected):
            write_jsonl(tmp_path / "none", **arguments)  # type: ignore[arg-type]
        assert not (tmp_path / "none").exists()
    if "split" not in arguments:
        with pytest.raises(InputError, match=expected):
            corpus(**{"count": 1, **arguments})  # type: ignore[arg-type]


def test_a_wording_that_is_not_there_is_named() -> None:
    item = questions(1)[0]
    for wording in (-1, len(item.explanations)):
        with pytest.raises(InputError, match="a wording from 0 to 2"):
            item.completion(wording)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("kept")
    with pytest.raises(InputError, match="a folder to write to"):
        write_jsonl(path, train=1)
    assert path.read_text() == "kept"


def test_no_questions_are_no_questions() -> None:
    assert questions(0) == []
    assert corpus(0) == []
