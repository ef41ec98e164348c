"""The answer of every question is right, and no other option is: by what the question's text says alone.

Nothing of the generator is used here but its questions. A family has a solver of its own, which reads the
numbers and units, genotypes, strands or statements from the text in either language, and works them out in
its own way.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.integrations.exams import FAMILIES, SPLITS, Question, questions

PER_SPLIT = 400  # questions of each family, in both languages


def number(text: str) -> Fraction:
    return Fraction(text.replace(",", "."))


def option(text: str) -> tuple[Fraction, str]:
    """An option's number and its unit."""
    value, _, unit = text.partition(" ")
    return number(value), unit


def quantities(text: str, unit: str) -> list[Fraction]:
    return [number(found) for found in re.findall(rf"(\d+(?:[.,]\d+)?) {re.escape(unit)}(?![\w/²])", text)]


def one(found: list[Fraction]) -> Fraction:
    (value,) = found
    return value


# --------------------------------------------------------------------------- chemistry, motion, units

ATOMS = {"H": 1, "C": 12, "N": 14, "O": 16, "F": 19, "Na": 23, "S": 32, "Ca": 40}


def molar_mass(formula: str) -> int:
    formula = formula.translate(str.maketrans("₂₃₄", "234"))
    return sum(ATOMS[atom] * int(count or 1) for atom, count in re.findall(r"([A-Z][a-z]?)(\d?)", formula))


def solve_dilutions(item: Question, unit: str) -> Fraction:
    volumes, strengths = quantities(item.question, "mL"), quantities(item.question, "g/L")
    if unit == "g/L":  # the solute is in the small volume first and in the large one then
        return min(volumes) * one(strengths) / max(volumes)
    assert unit == "mL"
    return one(volumes) * max(strengths) / min(strengths) - one(volumes)


def solve_molarity(item: Question, unit: str) -> Fraction:
    text = item.question
    litres, moles = quantities(text, "L"), quantities(text, "mol")
    if litres:
        return one(moles) / one(litres) if unit == "mol/L" else one(quantities(text, "mol/L")) * one(litres)
    grams = quantities(text, "g") + quantities(text, "g/mol")
    (formula,) = re.findall(r"\b(?:[A-Z][a-z]?[₂₃₄]?){2,}|[NO]₂", text)
    mass = molar_mass(formula)
    grams.remove(Fraction(mass))  # what the question says of the substance is so
    return one(moles) * mass if unit == "g" else one(grams) / mass


def solve_kinematics(item: Question, unit: str) -> Fraction:
    text = item.question
    a, v, s, t = (quantities(text, u) for u in ("m/s²", "m/s", "m", "s"))
    at_rest = re.search(r"\brest\b|still|da fermo|è ferma", text)
    if unit == "m/s²":
        return (max(v) - min(v)) / one(t)
    if unit == "m" and at_rest:
        paths = (one(a or v) * (2 * second + 1) / 2 for second in range(int(one(t))))  # of each second
        return sum(paths, Fraction(0))
    if unit == "m":
        return one(v) * one(t)
    if unit == "m/s":
        return one(v) + one(a) * one(t) if a else one(s) / one(t)
    assert unit == "s"
    return one(s) / one(v)


IN_BASE_UNITS = {
    **{"km": ("m", 1000), "m": ("m", 1), "cm": ("m", Fraction(1, 100)), "mm": ("m", Fraction(1, 1000))},
    **{"t": ("g", 10**6), "kg": ("g", 1000), "g": ("g", 1), "mg": ("g", Fraction(1, 1000))},
    **{"L": ("L", 1), "dL": ("L", Fraction(1, 10)), "mL": ("L", Fraction(1, 1000))},
    **{"h": ("s", 3600), "min": ("s", 60), "s": ("s", 1)},
    **{"km/h": ("m/s", Fraction(1000, 3600)), "m/s": ("m/s", 1)},
}


def solve_units(item: Question, unit: str) -> Fraction:
    ((value, given_unit),) = re.findall(r"(\d+) ([A-Za-z/]+)", item.question)
    (dimension, size), (wanted, wanted_size) = IN_BASE_UNITS[given_unit], IN_BASE_UNITS[unit]
    assert dimension == wanted
    return Fraction(value) * size / wanted_size


# --------------------------------------------------------------------------- sequences, percentages


def solve_sequences(item: Question, unit: str) -> Fraction:
    text = item.question
    numbers = [Fraction(found) for found in re.findall(r"\d+", text)]
    if item.template.startswith("sequences/term"):
        places = re.findall(
            r"(?<!first )(?<!primo )(?:number|numero|place|posto|[Tt]erm|termine|week|settimana) (\d+)", text
        )
        step = re.search(r"(?:difference|differenza|larger by|cresce di) (\d+)|(\d+) (?:more|più)", text)
        assert step
        n, d = int(places[-1]), int(step[1] or step[2])
        numbers.remove(Fraction(n))
        numbers.remove(Fraction(d))
        value = one(numbers)
        for _ in range(n - 1):
            value += d
        return value
    steps = {after - before for before, after in pairwise(numbers)}
    ratios = {after / before for before, after in pairwise(numbers)}
    if "geometric" in item.template:
        (ratio,) = ratios
        return numbers[-1] * ratio
    (step_size,) = steps
    return numbers[-1] + step_size


def solve_percentages(item: Question, unit: str) -> Fraction:
    text = item.question
    percent = [Fraction(found) for found in re.findall(r"(\d+)%", text)]
    others = [Fraction(found) for found in re.findall(r"(\d+)(?!\d|%)", text)]
    if not percent:
        price = one(quantities(text, "€"))
        others.remove(price)
        few, many = others
        return price / few * many
    if unit == "€":
        return one(others) * (100 - one(percent)) / 100
    if re.search(r"which number|quale numero|by bus|in autobus|needed|servono|pages|pagine", text):
        return one(others) * 100 / one(percent)
    return one(others) * one(percent) / 100


def solve_probability(item: Question, unit: str) -> Fraction:
    text = item.question
    if odds := re.findall(r"\d+/\d+", text):
        first, second = map(Fraction, odds)
        return first * second
    colour = r"(\d+) (?:\w+ )?(red|ross[aeio]|blue?|green|verdi)\b"
    balls = [(name[:2], int(count)) for count, name in re.findall(colour, text)]
    assert len(balls) == 3
    red = Fraction(sum(count for name, count in balls if name in ("re", "ro")), sum(n for _, n in balls))
    return 1 - red if re.search(r"\bnot\b|any colour but|\bnon\b|diverso", text) else red


# --------------------------------------------------------------------------- inheritance


def probability_that(mother: str, father: str, holds: Callable[[str], bool]) -> Fraction:
    children = [a + b for a, b in product(mother, father)]
    return Fraction(sum(map(holds, children)), len(children))


def solve_crosses(item: Question, unit: str) -> Fraction:
    text = item.question
    if "dihybrid" in item.template:
        mother, father = (found[0] for found in re.findall(r"\b((\w)(?i:\2)(\w)(?i:\3))\b", text))
        trait = r"(dominant|recessive|dominante|recessivo)(?: trait)?(?: quanto)?"
        asked = re.findall(trait + r" (?:as to|for|of|in|per|di|a) ([A-Z])\b", text)
        assert len(asked) == 2
        likely = Fraction(1)
        for place, (trait, letter) in zip((0, 2), asked, strict=True):
            assert mother[place].upper() == letter
            shows = probability_that(
                mother[place : place + 2], father[place : place + 2], lambda child, big=letter: big in child
            )
            likely *= shows if trait.startswith("dominant") else 1 - shows
        return likely
    mother, father = (found[0] for found in re.findall(r"\b(([A-Za-z])(?i:\2))\b", text))
    if re.search("heterozyg|eterozig", text):
        return probability_that(mother, father, lambda child: child[0] != child[1])
    shows = probability_that(mother, father, lambda child: not child.islower())
    wanted = re.search(r"(dominant|recessive) trait|carattere (dominante|recessivo)", text)
    assert wanted
    return shows if (wanted[1] or wanted[2]).startswith("dominant") else 1 - shows


def antigens(blood: str) -> set[str]:
    return {sign for sign in blood.replace("+", "D") if sign in "ABD"}


def check_transfusion(item: Question) -> None:
    text = item.question
    bloods = re.findall(r"\b(?:AB|A|B|O|0)[+-]", text)
    giver = re.search(
        r"(?:[Rr]ed cells of group|Donor|labelled|rossi di gruppo|Donatore|scritta) (\w+[+-])", text
    )
    assert giver
    donor = giver[1]
    bloods.remove(donor)
    (recipient,) = bloods
    foreign = antigens(donor) - antigens(recipient)
    fitting = [letter for letter, text in zip("ABCDE", item.options, strict=True) if named(text) == foreign]
    assert fitting == [item.answer]


def named(verdict: str) -> set[str]:
    return set(re.findall(r"\b[ABD]\b", verdict))


def solve_blood_groups(item: Question, unit: str) -> Fraction:
    text = item.question.replace("0", "O")
    mother, father = re.findall(r"\b[ABO]{2}\b", text)[:2]
    wanted = re.findall(r"(?:group|gruppo|gruppo sanguigno) (AB|A|B|O)\b", text)[-1]
    return probability_that(mother, father, lambda child: antigens(child) == antigens(wanted))


# --------------------------------------------------------------------------- strands, syllogisms


def check_base_pairing(item: Question) -> None:
    (strand,) = re.findall(r"[ATGC](?:-[ATGC])+", item.question)
    partners = {"A": "T", "T": "A", "G": "C", "C": "G"}
    if "transcript" in item.template:
        partners["A"] = "U"
    right = "-".join(partners[base] for base in strand.split("-"))
    assert [letter for letter, text in zip("ABCDE", item.options, strict=True) if text == right] == [
        item.answer
    ]


Statement = tuple[str, str, str]  # a, e, i or o; subject; predicate
ENGLISH = re.compile(r"\b(all|no|some) (\w+) are (not )?(\w+)", re.IGNORECASE)
ITALIAN = re.compile(r"\b(tutti i|nessun|alcuni) (\w+) (non )?(?:sono|è) (\w+)", re.IGNORECASE)


def statements(text: str, language: str) -> list[Statement]:
    """The statements in a text; nouns are told by their stems, so that singular and plural are one."""
    form = {"all": "a", "tutti i": "a", "no": "e", "nessun": "e", "some": "i", "alcuni": "i"}
    pattern = ENGLISH if language == "en" else ITALIAN
    return [
        ("o" if negated else form[quantity.lower()], subject[:4], predicate[:4])
        for quantity, subject, negated, predicate in pattern.findall(text)
    ]


@functools.cache
def worlds(*terms: str) -> list[list[frozenset[str]]]:
    """Every way in which three classes that are not empty can overlap: the kinds of individuals there are."""
    kinds = [
        frozenset(t for t, there in zip(terms, bits, strict=True) if there)
        for bits in product((0, 1), repeat=3)
    ]
    all_worlds = [
        [kind for kind, there in zip(kinds, bits, strict=True) if there] for bits in product((0, 1), repeat=8)
    ]
    return [world for world in all_worlds if all(any(term in kind for kind in world) for term in terms)]


def holds(statement: Statement, world: list[frozenset[str]]) -> bool:
    form, subject, predicate = statement
    inside = [predicate in kind for kind in world if subject in kind]
    return {"a": all(inside), "e": not any(inside), "i": any(inside), "o": not all(inside)}[form]


def follows(conclusion: Statement, premises: list[Statement]) -> bool:
    terms = sorted({term for premise in premises for term in premise[1:]})
    return all(holds(conclusion, w) for w in worlds(*terms) if all(holds(premise, w) for premise in premises))


def check_conclusion(item: Question, premises: list[Statement]) -> None:
    right = "ABCDE".index(item.answer)
    for place, text in enumerate(item.options):
        read = statements(text, item.language)
        if read:
            assert follows(read[0], premises) == (place == right), text
        else:
            assert re.match("none of these follows|non segue nessuna di queste", text)


def distributed(statement: Statement) -> set[str]:
    """The terms of which a statement speaks in their whole extent."""
    form, subject, predicate = statement
    return {term for term, forms in ((subject, "ae"), (predicate, "eo")) if form in forms}


FAULTS = {
    "valid": "it is valid|è valido",
    "middle": "no premise covers|nessuna premessa copre",
    "negative": "both premises are negative|entrambe negative",
    "some": "about all from some|su tutti da alcuni",
    "affirmative": "affirms although|afferma benché",
}


def check_validity(item: Question, premises: list[Statement], conclusion: Statement) -> None:
    (middle,) = {term for premise in premises for term in premise[1:]} - set(conclusion[1:])
    forms = [premise[0] for premise in premises]
    faults = {
        "middle": not any(middle in distributed(premise) for premise in premises),
        "negative": all(form in "eo" for form in forms),
        "some": any(form in "io" for form in forms) and conclusion[0] in "ae",
        "affirmative": any(form in "eo" for form in forms) and conclusion[0] in "ai",
    }
    found = [name for name, there in faults.items() if there]
    if follows(conclusion, premises):
        assert found == []
        found = ["valid"]
    (verdict,) = found  # one fault, so that no other option is true as well
    right = item.options["ABCDE".index(item.answer)]
    assert re.search(FAULTS[verdict], right)
    assert all(sum(bool(re.search(fault, text)) for text in item.options) == 1 for fault in FAULTS.values())


def check_syllogisms(item: Question) -> None:
    read = statements(item.question, item.language)
    if "conclusion" in item.template:
        assert len(read) == 2
        check_conclusion(item, read)
        return
    conclusion_first = re.match("It is claimed|Si sostiene", item.question)
    conclusion, *premises = read if conclusion_first else [read[-1], *read[:-1]]
    assert len(premises) == 2
    check_validity(item, premises, conclusion)


# --------------------------------------------------------------------------- the tests

SOLVERS: dict[str, Callable[[Question, str], Fraction]] = {
    "dilutions": solve_dilutions,
    "molarity": solve_molarity,
    "crosses": solve_crosses,
    "blood_groups": solve_blood_groups,
    "kinematics": solve_kinematics,
    "units": solve_units,
    "sequences": solve_sequences,
    "percentages": solve_percentages,
    "probability": solve_probability,
}


def check(item: Question) -> None:
    if item.family == "base_pairing":
        check_base_pairing(item)
    elif item.family == "syllogisms":
        check_syllogisms(item)
    elif item.template.startswith("blood_groups/transfusion"):
        check_transfusion(item)
    else:
        read = [option(text) for text in item.options]
        (unit,) = {unit for _, unit in read}
        expected = SOLVERS[item.family](item, unit)
        assert [letter for letter, (value, _) in zip("ABCDE", read, strict=True) if value == expected] == [
            item.answer
        ]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("split", SPLITS)
def test_the_answer_alone_is_right_by_what_the_question_says(family: str, split: str) -> None:
    items = questions(PER_SPLIT, seed=5, split=split, families=[family])
    assert {item.language for item in items} == {"en", "it"}
    for item in items:
        check(item)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(), split=st.sampled_from(SPLITS))
def test_the_answer_is_right_for_any_seed(seed: int, split: str) -> None:
    for item in questions(4, seed=seed, split=split):
        check(item)


def test_the_solvers_can_tell_a_wrong_answer() -> None:
    for family in FAMILIES:
        for item in questions(30, seed=6, families=[family]):
            wrong = Question(**{**vars(item), "answer": "ABCDE"["ABCDE".index(item.answer) - 1]})
            with pytest.raises(AssertionError):
                check(wrong)
