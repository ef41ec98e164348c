import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.errors import InputError
from fastreward.rewards.answer import AnswerCounts, AnswerReward

EXAMPLES = Path(__file__).parents[2] / "examples" / "data" / "explanations.jsonl"
OPTIONS = ["T cells", "B cells", "the heart", "0.25", "E. coli"]
RIGHT, WRONG, NO_ANSWER = 1.0, 0.0, -1.0


def worth(text: str, answer: object, options: list[str] | None = None, **settings: object) -> float | None:
    """What a text is worth: RIGHT, WRONG or NO_ANSWER."""
    reward = AnswerReward(no_answer=NO_ANSWER, options=options and "options", **settings)
    return reward(completions=[text], answer=[answer], options=[options])[0]


# --------------------------------------------------------------------------- letters

NAMES_B = [
    "B",
    "b",
    "(B)",
    "(b)",
    "[B]",
    "B.",
    "B)",
    "**B**",
    "`B`",
    '"B"',
    "Ｂ",
    "B) The lung",
    "B. The lung",
    "B: the lung",
    "B - the lung",
    "**B)** the lung",
    "option B",
    "Option (B)",
    "opzione B",
    "Opzione: B",
    "la lettera B",
    "B\n\nBecause it pumps the blood.",
    "**B**\n\nA cell needs oxygen.",
    "It pumps the blood.\n\nB",
    "A) is too small.\nB) fits.\nC) is too large.\n\nB",
    "It pumps.\nQuindi la B.",
    "Answer: B",
    "answer: b",
    "Answer:B",
    "**Answer:** B",
    "**Answer: B**",
    "Answer:\nB",
    "Answer: (B) the lung",
    "Answer: B. The lung has two parts.",
    "Answer: B, since A is too small.",
    "Final Answer: B",
    "The answer is B",
    "The answer is B.",
    "The answer is: B",
    "The answer is (b).",
    "the answer is b.",
    "The answer is **B**.",
    "The answer is B because it pumps.",
    "The answer is B as A does not beat.",
    "The answer is option B.",
    "The answer is therefore B.",
    "The answer to the second question is B.",
    "The answer is\n\nB",
    "The answer is $B$.",
    "The answer is \\text{B}.",
    "The correct answer is B) the lung, and A is wrong.",
    "The correct option is B.",
    "The right choice would be B.",
    "So B is the correct answer.",
    "Option B is correct.",
    "Hence (B) is right, while A is wrong.",
    "I choose B.",
    "I would go with B.",
    "risposta: B",
    "Risposta: b.",
    "La risposta è B",
    "La risposta è la B.",
    "La risposta corretta è la B, perché pompa il sangue.",
    "La risposta corretta e' la B.",
    "la risposta corretta è la b.",
    "La risposta giusta è l'opzione B.",
    "La risposta corretta è quindi la lettera B.",
    "La risposta alla domanda è B.",
    "L'opzione corretta è la B.",
    "L'alternativa esatta è: B",
    "La risposta e\u0300 B",
    "La B è corretta.",
    "La risposta B è quella corretta.",
    "È corretta la B.",
    "Scelgo la B.",
    "Rispondo B.",
    "<answer>B</answer>",
    "<ANSWER> b </ANSWER>",
    "<answer>(B)</answer> or so",
    "<answer>B. The lung</answer>",
    "<answer>\nLa risposta corretta è la B.\n</answer>",
    "<answer>B</answer> and once more <answer>b.</answer>",
    "The answer is A. <answer>B</answer> The answer is C.",
    "<answer>B</answer><answer>A",
    "\\boxed{B}",
    "The answer is $\\boxed{\\text{B}}$.",
    "First \\boxed{A}, but then \\boxed{B}",
    "The answer is A. No, wait: the answer is B.",
    "If the answer is A, the heart stops. So the answer is B.",
    "The wrong answer is A. The answer is B.",
    "The answer is not A. The answer is B.",
    "The answer is B. The answer is not A.",
    "A\u200b is wrong: the answer is \u200bB\u200b.",
]


NAMES_NONE = [
    "B cells make antibodies.",
    "C is the speed of light.",
    "C'è ossigeno nel sangue.",
    "D-glucose is a sugar.",
    "E. coli is a bacterium.",
    "C. elegans is a worm.",
    "A cell needs oxygen.",
    "E poi il sangue torna al cuore.",
    "A causa della pressione il sangue torna.",
    "Vitamin B",
    "B12",
    "Answer: a heart beats.",
    "Answer: A heart beats.",
    "The answer is a heart.",
    "The answer is B12.",
    "The answer is D-glucose.",
    "The answer is B?",
    "The answer is C'est la vie.",
    "The answer is not B.",
    "La risposta non è B.",
    "La risposta: a causa della pressione.",
    "Risposta: E poi il sangue torna.",
    "If the answer is B, the heart stops.",
    "Se la risposta è B, il cuore si ferma.",
    "The wrong answer is B.",
    "B is not correct.",
    "La B non è corretta.",
    "I would say that B cells are it.",
    "A) T cells\nB) B cells\nC) plasma",
    "A\nB\nC",
    "<answer></answer> The answer is B.",
    "<answer>I do not know</answer> The answer is B.",
    "The answer is F.",
    "Answer: none of them",
    "?",
    "...",
    "Answer:",
]

NAMES_TWO = [
    "A or B",
    "B and C",
    "B e C",
    "B/C",
    "(A) or (B)",
    "The answer is A or B.",
    "The answer is B or A.",
    "The answer is either B or C.",
    "The answer is B, C.",
    "The answer is B/C.",
    "The answer is both B and C.",
    "La risposta corretta è la B o la C.",
    "La risposta è B oppure C.",
    "The answer is A, B and C.",
    "B and C is correct.",
    "<answer>B</answer> <answer>C</answer>",
    "<answer>B, C</answer>",
    "\\boxed{B, C}",
]

HEDGES = [
    "The answer is B, or C.",
    "The answer is B or possibly C.",
    "Answer: B (or C)",
    "Answer: B. Or C.",
    "Answer: B or the option C",
    "Answer: B vs C",
    "Answer: B | C",
    "Answer: **B** or **C**",
    "#### B, or C",
    "The answer is B or C depending on the case.",
    "The answer is B, but it could also be C.",
    "The answer is B, perhaps C.",
    "The answer is b or else c.",
    "The answer is B, otherwise C.",
    "B is correct, or maybe C.",
    "Either B is correct or C is correct.",
    "The answer is B or the answer is C.",
    "B. Or C.",
    "<answer>B or maybe C</answer>",
    "<answer>B, or else C</answer>",
    "\\boxed{B} or \\boxed{C}",
    "\\boxed{B}, or maybe $\\boxed{C}$.",
    "La risposta è B oppure la C.",
    "La risposta è la B, oppure forse la C.",
    "La risposta corretta è la B o forse la C.",
    "La risposta è B oppure C a seconda del caso.",
    "La risposta è sia la B che la C.",
    "Risposta: B (o C)",
    "Risposta: B, ma potrebbe essere anche la C.",
    "Scelgo la B, o in alternativa la C.",
    "La B è corretta, o forse la C.",
    "La risposta è B oppure la risposta è C.",
]

DECIDED = [
    "The answer is B. A is wrong.",
    "The answer is B, C is wrong.",
    "The answer is B, but C is tempting.",
    "The answer is B, since A or C would be too small.",
    "The answer is B, not A or C.",
    "The answer is B. C or D would need more.",
    "The answer is B, or so it seems.",
    "Answer: B (A is wrong).",
    "Either A or C would fail, so the answer is B.",
    "B is correct because A or C would fail.",
    "La risposta è B, perché A o C non bastano.",
    "La risposta è la B, non la A o la C.",
    "La risposta è la B: la valvola o il setto.",
    "La risposta è B, mentre C è sbagliata.",
]


@pytest.mark.parametrize("text", NAMES_B)
def test_a_letter_is_found_where_it_is_the_answer(text):
    assert worth(text, "B") == RIGHT
    assert worth(text, "D") == WRONG


@pytest.mark.parametrize("text", NAMES_NONE)
def test_a_stray_letter_is_no_answer(text):
    assert [worth(text, letter) for letter in "ABCDE"] == [NO_ANSWER] * 5


@pytest.mark.parametrize("text", NAMES_TWO)
def test_two_letters_at_once_are_no_answer(text):
    assert [worth(text, letter) for letter in "ABC"] == [NO_ANSWER] * 3


@pytest.mark.parametrize("text", HEDGES)
def test_an_answer_that_leaves_open_which_of_two_it_is_is_none_and_counted(text):
    assert [worth(text, letter) for letter in "ABC"] == [NO_ANSWER] * 3
    reward = AnswerReward()
    assert reward(completions=[text], answer=["B"]) == [0.0]
    assert reward.counts.no_answer == 1


@pytest.mark.parametrize("text", DECIDED)
def test_another_letter_that_is_ruled_out_or_in_the_reason_takes_nothing_back(text):
    assert [worth(text, letter) for letter in "ABC"] == [WRONG, RIGHT, WRONG]


@pytest.mark.parametrize(
    "text",
    [
        "The answer is the heart, or T cells.",
        "The answer is the heart (or maybe B cells).",
        "Answer: C, or T cells",
        "Risposta: the heart, oppure A",
        "Answer: 0.25, or maybe the heart",
        "Answer: the heart; forse la A",
        "Answer: 0,25, or maybe the heart",
    ],
)
def test_the_wordings_of_two_options_are_no_answer(text):
    assert [worth(text, letter, OPTIONS) for letter in "ABCDE"] == [NO_ANSWER] * 5


@pytest.mark.parametrize(
    "text", ["C, or the heart", "the heart, not T cells", "the heart. T cells are wrong."]
)
def test_the_same_option_twice_and_one_that_is_ruled_out_are_one_answer(text):
    assert [worth(f"Answer: {text}", letter, OPTIONS) for letter in "ABC"] == [WRONG, WRONG, RIGHT]


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is the heart.", "C"),
        ("The answer is B cells.", "B"),
        ("The answer is T cells.", "A"),
        ("The answer is E. coli.", "E"),
        ("Answer: E", "E"),
        ("The answer is C. The heart", "C"),
        ("<answer>Heart</answer>", "C"),
        ("The answer is 0,25.", "D"),
        ("The answer is 1/4.", "D"),
        ("The answer is $\\frac{1}{4}$", "D"),
        ("B cells", "B"),
        ("The heart", "C"),
        ("La risposta è: the heart, perché pompa.", "C"),
    ],
)
def test_the_wording_of_an_option_names_it(text, letter):
    assert worth(text, letter, OPTIONS) == RIGHT
    assert worth(text, "ABCDE"["ABCDE".index(letter) - 1], OPTIONS) == WRONG


@pytest.mark.parametrize(
    "text",
    [
        "Answer: A. The heart",
        "<answer>B) T cells</answer>",
        "The heart pumps the blood.",
        "The answer is the heart or T cells.",
        "The answer is plasma.",
        "The answer is 0.25 kg.",
    ],
)
def test_a_letter_with_the_wording_of_another_option_and_an_unknown_wording_are_no_answer(text):
    assert [worth(text, letter, OPTIONS) for letter in "ABCDE"] == [NO_ANSWER] * 5


def test_options_may_come_by_letter_with_their_own_markings_or_not_at_all():
    by_letter = {"a": "lung", "b": "heart"}
    marked = ["A) lung", "B) heart"]
    for several in (by_letter, marked, ("lung", "heart")):
        assert worth("The answer is: the heart.", "B", several) == RIGHT
        assert worth("The answer is: the heart.", "heart", several) == RIGHT
        assert worth("The answer is C.", "B", several) == NO_ANSWER
    reward = AnswerReward(options="choices")
    answers = reward(completions=["Answer: B", "B"], answer=["B", "heart"], choices=[None, marked])
    assert answers == [RIGHT, RIGHT]


def test_a_lone_letter_is_a_letter_even_where_an_option_reads_like_one():
    blood_groups = ["0", "A", "B", "AB"]
    assert worth("Answer: B", "B", blood_groups) == RIGHT
    assert worth("Answer: AB", "D", blood_groups) == RIGHT


@pytest.mark.parametrize(
    "options", ["A", 7, [], ["heart", None], {"AB": "heart"}, {"1": "heart"}, ["x"] * 27]
)
def test_options_of_another_form_are_an_error_with_the_index(options):
    reward = AnswerReward(options="options")
    with pytest.raises(InputError, match=r"in options\[1\]"):
        reward(completions=["A", "A"], answer=["A", "A"], options=[["heart"], options])


@pytest.mark.parametrize("answer", ["C", "plasma", 2, "A or B"])
def test_a_right_answer_that_is_no_option_is_an_error_with_the_index(answer):
    reward = AnswerReward(options="options")
    with pytest.raises(InputError, match=r"of an option \(A, B\).* in answer\[1\]"):
        reward(completions=["A", "A"], answer=["A", answer], options=[["heart", "lung"]] * 2)


@pytest.mark.parametrize("marked", ["b", "(B)", "B.", "B)", " B ", "B) the lung"])
def test_the_right_letter_may_be_marked(marked):
    assert [worth(text, marked) for text in ("Answer: B", "Answer: A")] == [RIGHT, WRONG]


# --------------------------------------------------------------------------- numbers


@pytest.mark.parametrize(
    ("right", "same", "others"),
    [
        (
            "3.5",
            ["3,5", "3.5", "3.50", "7/2", "3 1/2", "3½", "$3.5$", "3.5 kg", "+3.5", "35e-1"],
            ["35", "3,6"],
        ),
        (3.5, ["3,5", "3.5"], ["3", "-3.5"]),
        (
            "1234567",
            ["1,234,567", "1.234.567", "1 234 567", "1'234'567", "1234567.0"],
            ["1.234567", "1234,567"],
        ),
        ("1234.5", ["1,234.5", "1.234,5", "1234,5", "1 234,5", "1{,}234.5"], ["1234", "12345"]),
        ("1234", ["1.234", "1,234", "1234"], ["1.2345", "12,34"]),
        (1.234, ["1,234", "1.234"], ["1,23401", "12.34"]),
        ("-7", ["-7", "−7", "– 7", "-7.0"], ["7"]),
        (
            "0.000001",
            ["1e-6", "10^-6", "10⁻⁶", "1 × 10^{-6}", "1·10⁻⁶", "1/1000000", "0,000001"],
            ["1e6", "10-6"],
        ),
        ("6.02e23", ["6.02×10^23", "6,02 · 10²³", "6.02 \\times 10^{23}", "6.02*10**23"], ["6.02×10^22"]),
        (0, ["0", "0.0", "0/5", "-0"], ["1e-9", "1"]),
        (0.75, ["3/4", "\\frac{3}{4}", "\\dfrac{3}{4}", "¾", "0.75"], ["4/3"]),
        ("50%", ["50%", "50 %", "50\\%", "100/2 %"], ["50", "0.5", "50 kg"]),
        ("5 kg", ["5 kg", "5kg", "5,0 kg of water"], ["5", "5 g", "5 kgs", "5 KG"]),
        ("5 m/s^2", ["5 m/s²", "5 m/s^2", "5 m / s^2"], ["5 m/s", "5"]),
        (
            42,
            ["x = 42", "6 × 7 = 42", "42, since 6 times 7 is that", "42 (not 43)", "circa 42", "42."],
            ["6 × 8"],
        ),
    ],
)
def test_a_number_is_the_same_in_every_notation(right, same, others):
    for written in same:
        for text in (f"The answer is {written}", f"<answer>{written}</answer>", f"Il risultato è {written}"):
            assert worth(text, right) == RIGHT, text
    for written in others:
        assert worth(f"The answer is {written}", right) != RIGHT, written


@pytest.mark.parametrize(
    "text",
    [
        "3 or 4",
        "4 o 3",
        "3 e 4",
        "3-4",
        "3 kg or 4 kg",
        "3, 4",
        "3; 4",
        "da 3 a 4",
        "3, or 4",
        "3 (or 4)",
        "3 or maybe 4",
        "3 kg, or maybe 4 kg",
        "3, but it could be 4",
        "3. Or 4",
        "3 oppure forse 4",
        "3, o 4",
        "\\boxed{3} or \\boxed{4}",
    ],
)
def test_two_numbers_at_once_are_no_answer(text):
    assert [worth(f"The answer is {text}.", number) for number in (3, 4)] == [NO_ANSWER] * 2


@pytest.mark.parametrize(
    "text", ["3, not 4", "3 (see 4)", "3, because 4 is too much", "3 or 3", "3, but 4 of them"]
)
def test_another_number_in_the_reason_takes_nothing_back(text):
    assert [worth(f"The answer is {text}.", number) for number in (3, 4)] == [RIGHT, WRONG]


@pytest.mark.parametrize(
    "text",
    [
        "There are 42 of them.",
        "We need 6 and 7.",
        "1. First, 42.\n2. Then more.",
        "The answer is 4:2.",
        "?",
        "4*2",
    ],
)
def test_a_stray_number_is_no_answer(text):
    assert [worth(text, number) for number in (42, 4, 2, 6)] == [NO_ANSWER] * 4


@pytest.mark.parametrize(
    "text", ["42", "42 kg", "It is six times seven.\n\n42", "42\n\nIt is.", "#### 42", "\\boxed{42}"]
)
def test_a_number_on_its_own_is_an_answer(text):
    assert [worth(text, 42), worth(text, 43)] == [RIGHT, WRONG]


def test_a_decimal_mark_settles_what_a_point_is():
    assert worth("Answer: 1.234", 1234, decimal=",") == RIGHT
    assert worth("Answer: 1.234", 1234, decimal=".") == WRONG
    assert worth("Answer: 1.234", 1.234, decimal=",") == WRONG
    assert worth("Answer: 3,5", 3.5, decimal=".") == NO_ANSWER


def test_a_tolerance_is_relative_to_the_right_answer():
    assert worth("Answer: 3.14", math.pi, tolerance=1e-3) == RIGHT
    assert worth("Answer: 3.14", math.pi) == WRONG
    assert worth("Answer: 0.001", 0, tolerance=0.5) == WRONG


@settings(deadline=None, max_examples=200)
@given(st.floats(allow_nan=False, allow_infinity=False, width=32) | st.integers(-(10**12), 10**12))
def test_every_number_in_pythons_own_notation_is_itself(number):
    assert worth(f"The answer is {number!r}.", number) == RIGHT
    assert worth(f"The answer is {number!r}.", repr(number)) == RIGHT
    assert worth(f"The answer is {number!r}.", number + max(1, abs(number) / 100)) == WRONG


@settings(deadline=None, max_examples=100)
@given(st.integers(10**3, 10**15), st.integers(0, 99))
def test_every_number_with_separators_is_itself(whole, cents):
    english = f"{whole:,}.{cents:02}"
    italian = english.translate(str.maketrans(",.", ".,"))
    for written in (english, italian, english.replace(",", " "), english.replace(",", "'")):
        assert worth(f"Answer: {written}", whole + cents / 100) == RIGHT


# --------------------------------------------------------------------------- texts


@pytest.mark.parametrize(
    "text",
    [
        "Answer: Paris",
        "The answer is paris.",
        "The answer is PARIS, the capital of France.",
        "The answer is **Paris** because it is the capital.",
        "La risposta è Parigi o meglio: no. <answer> Paris </answer>",
        "\\boxed{\\text{Paris}}",
        "Paris",
        "It is the capital.\nParis.",
    ],
)
def test_words_are_right_whatever_stands_around_them(text):
    assert worth(text, "Paris") == RIGHT


@pytest.mark.parametrize(
    "text",
    [
        "The answer is Paris or London.",
        "The answer is Paris, or London.",
        "The answer is Paris (or London).",
        "Answer: Paris, maybe London",
        "Answer: Paris. Or London.",
        "La risposta è Paris, oppure Londra.",
        "<answer>Paris / London</answer>",
    ],
)
def test_the_right_words_and_others_beside_them_are_no_answer(text):
    assert worth(text, "Paris") == NO_ANSWER


@pytest.mark.parametrize(
    "text", ["Paris, because of London or Rome", "Paris, not London", "Paris (the capital)"]
)
def test_other_words_in_the_reason_take_nothing_back(text):
    assert worth(f"The answer is {text}.", "Paris") == RIGHT


def test_what_holds_an_or_itself_is_right_as_a_whole():
    assert worth("The answer is true or false.", "true or false") == RIGHT
    assert worth("La risposta è vero o falso.", "vero") == NO_ANSWER


@pytest.mark.parametrize("text", ["Answer: Parisian", "Answer: London or Rome", "<answer>London</answer>"])
def test_other_words_are_wrong(text):
    assert worth(text, "Paris") == WRONG


@pytest.mark.parametrize("text", ["I like Paris in spring.", "Paris is nice.", "<answer></answer> Paris"])
def test_words_in_prose_are_no_answer(text):
    assert worth(text, "Paris") == NO_ANSWER


def test_an_article_does_not_matter():
    assert worth("La risposta è il mitocondrio.", "Mitocondrio") == RIGHT
    assert worth("The answer is a mitochondrion.", "the mitochondrion") == RIGHT
    assert worth("La risposta è l'aorta.", "aorta") == RIGHT


def test_a_ratio_and_a_date_are_texts():
    assert [worth(f"The answer is {text}.", "3:1") for text in ("3:1", "1:3")] == [RIGHT, WRONG]
    assert worth("Answer: 12/05/2020", "12/05/2020") == RIGHT


# --------------------------------------------------------------------------- the reward


def test_the_answers_of_the_example_questions_are_found_in_every_format():
    items = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    assert len(items) == 60
    formats = [
        "{explanation}\n<answer>{letter}</answer>",
        "{explanation} The correct answer is {letter}.",
        "{explanation} La risposta corretta è la {letter}.",
        "{letter}) {wording}\n\n{explanation}",
        "Answer: {wording}",
        "Risposta: {letter}. {wording}",
    ]
    columns = {name: [item[name] for item in items] for name in ("answer", "options", "explanation")}
    for form in formats:
        for shift, expected in ((0, 1.0), (1, 0.0)):
            letters = ["ABCDE"[("ABCDE".index(letter) + shift) % 5] for letter in columns["answer"]]
            completions = [
                form.format(
                    explanation=item["explanation"],
                    letter=letter,
                    wording=item["options"]["ABCDE".index(letter)],
                )
                for item, letter in zip(items, letters, strict=True)
            ]
            reward = AnswerReward(options="options")
            assert reward(completions=completions, **columns) == [expected] * 60
            assert reward.counts.no_answer == 0


def test_an_explanation_alone_holds_no_answer():
    items = [json.loads(line) for line in EXAMPLES.read_text(encoding="utf-8").splitlines()]
    reward = AnswerReward(no_answer=None)
    texts = [text for item in items for text in (item["explanation"], item["question"])]
    assert (
        reward(completions=texts, answer=[item["answer"] for item in items for _ in (0, 1)]) == [None] * 120
    )


def test_of_several_right_answers_any_will_do():
    assert worth("Answer: B", ["A", "B"]) == RIGHT
    assert worth("Answer: 0.5", ["1/2", "one half"]) == RIGHT
    assert worth("Answer: one half", ("1/2", None, "one half")) == RIGHT
    assert worth("Answer: C", ["A", "B"]) == WRONG


@pytest.mark.parametrize("missing", [None, float("nan"), "", " \n", [], [None, ""]])
def test_a_missing_answer_gives_none(missing):
    assert worth("Answer: B", missing) is None


@pytest.mark.parametrize("right", [True, {"answer": "B"}, b"B", [["B"]]])
def test_an_answer_of_another_type_is_an_error_with_the_index(right):
    with pytest.raises(InputError, match=r"in answer\[1\]"):
        AnswerReward()(completions=["B", "B"], answer=["B", right])


@pytest.mark.parametrize(
    ("kind", "right"),
    [("option", "F"), ("option", "heart"), ("number", "heart"), ("number", "3 or 4"), ("text", "?")],
)
def test_an_answer_that_is_not_of_its_kind_is_an_error(kind, right):
    with pytest.raises(InputError, match=r"in answer\[0\]"):
        AnswerReward(kind=kind)(completions=["B"], answer=[right])


@pytest.mark.parametrize("right", [float("inf"), -np.inf, 10**400], ids=["inf", "-inf", "huge"])
@pytest.mark.parametrize("kind", ["auto", "number"])
def test_a_number_that_no_float_can_be_is_an_error(kind, right):
    with pytest.raises(InputError, match=r"a finite number as answer.* in answer\[1\]"):
        AnswerReward(kind=kind)(completions=["42", "42"], answer=[42, right])


@pytest.mark.parametrize(
    "name", ["C. elegans", "c. elegans", "B. lung", "E. coli.", "A. Einstein", "C. S. Lewis"]
)
def test_a_name_that_could_be_an_option_is_refused_until_it_is_said_which_it_is(name):
    with pytest.raises(InputError, match=r"an option or a name.* in answer\[1\].*kind='text'"):
        AnswerReward()(completions=["A", "A"], answer=["A", name])
    letter = name[0].upper()
    others = ["Answer: D", "Answer: D. difficile"]
    assert worth(f"Answer: {letter}", name, kind="option") == RIGHT
    assert [worth(text, name, kind="option") for text in others] == [WRONG, WRONG]
    assert worth(f"Answer: {name}", name, kind="text") == RIGHT
    assert worth(f"<answer>{letter}. difficile</answer>", name, kind="text") == WRONG
    assert worth("Answer: A", name, [*OPTIONS[:4], name]) == WRONG  # options tell


@pytest.mark.parametrize("plain", ["B", "B.", "B) lung", "(B) lung", "B: lung", "B. the lung", "B. 42"])
def test_other_markings_are_an_options(plain):
    assert [worth(text, plain) for text in ("Answer: B", "Answer: A")] == [RIGHT, WRONG]


@pytest.mark.parametrize("name", ["H. sapiens", "C.S. Lewis", "C4 plants"])
def test_what_begins_with_no_marked_letter_is_a_text(name):
    assert worth(f"Answer: {name}", name) == RIGHT
    assert worth("Answer: C", name) == WRONG


def test_the_kind_decides_what_the_answer_is():
    assert worth("Answer: A5", "A5", kind="text") == RIGHT
    assert worth("Answer: A", "A", kind="text") == RIGHT
    assert worth("Answer: 5.0", "5", kind="text") == WRONG
    assert worth("Answer: 5.0", "5") == RIGHT


def test_where_limits_the_places_and_sets_their_order():
    text = "The answer is A. \\boxed{C} <answer>B</answer>\nD"
    for where, letter in {("tag",): "B", "statement": "A", ("boxed", "tag"): "C", "line": "D"}.items():
        assert worth(text, letter, where=where) == RIGHT
    assert worth("The answer is A.", "A", where="tag") == NO_ANSWER
    assert worth("<final>A</final> <answer>B</answer>", "A", tag="final") == RIGHT


def test_the_letters_are_those_of_the_options():
    assert worth("Answer: G", "G", letters="ABCDEFG") == RIGHT
    assert worth("Answer: D", "A", letters="ABC") == NO_ANSWER


def test_worths_are_configured_and_counted():
    reward = AnswerReward(right=2, wrong=-1, no_answer=None, extract="final")
    logged = []
    rewards = reward(
        completions=["<final>Answer: A</final>", "<final>B</final>", "<final>Hm</final>", "A", "A"],
        answer=["A", "A", "A", "A", None],
        log_metric=lambda *pair: logged.append(pair),
    )
    assert rewards == [2.0, -1.0, None, 0.0, None]
    assert reward.counts == AnswerCounts(samples=5, scored=3, missing_reference=1, no_text=1, no_answer=1)
    names = ("no_text", "missing_reference", "no_answer")
    assert logged == [(f"answer_reward/{name}_ratio", 0.2) for name in names]


def test_numpy_numbers_and_arrays_are_answers():
    reward = AnswerReward()
    texts = ["Answer: 3", "Answer: 3.5"]
    assert reward(completions=texts, answer=np.array([3.0, 3.5])) == [RIGHT, RIGHT]
    assert reward(completions=texts, answer=np.array([3, 4])) == [RIGHT, WRONG]


@pytest.mark.parametrize(
    "settings",
    [
        {"answer": None},
        {"answer": ["B"]},
        {"kind": "letter"},
        {"options": ["a", "b"]},
        {"where": "tags"},
        {"where": ()},
        {"where": ("tag", "tag")},
        {"where": None},
        {"tag": "a b"},
        {"letters": "abc"},
        {"letters": ""},
        {"tolerance": -1},
        {"tolerance": float("nan")},
        {"decimal": ";"},
        {"right": float("inf")},
        {"wrong": "0"},
        {"no_answer": True},
        {"no_text": "skip"},
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(settings):
    with pytest.raises(InputError):
        AnswerReward(**settings)


def test_the_repr_shows_the_configuration():
    assert repr(AnswerReward("label", tolerance=0.01)) == (
        "AnswerReward('label', kind='auto', options=None, where=('tag', 'boxed', 'statement', 'line'), "
        "tag='answer', letters='ABCDE', tolerance=0.01, decimal='auto', right=1.0, wrong=0.0, no_answer=0.0, "
        "extract=None, strip_thinking=True, no_text='zero', name='answer_reward')"
    )
