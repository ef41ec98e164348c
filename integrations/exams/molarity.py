"""Molarity: concentration, amount of substance and mass."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, measured

_MOLAR_MASS: Final = {  # g/mol, rounded
    "H₂O": 18,
    "CO₂": 44,
    "NH₃": 17,
    "CH₄": 16,
    "NaOH": 40,
    "CaCO₃": 100,
    "SO₂": 64,
    "N₂": 28,
    "O₂": 32,
    "HF": 20,
}


def _solutions() -> list[Parameters]:
    return list(product(range(2, 13), range(2, 13)))


def _substances() -> list[Parameters]:
    return list(product(_MOLAR_MASS, range(2, 13)))


def _concentration(parameters: Parameters, language: Language) -> Solution:
    c, v = map(int, parameters)
    n = c * v
    mistakes: list[Number] = [Fraction(v, n), n * v, n - v, n + v, c * 10, Fraction(c, 10), c + 1, c - 1, v]
    return measured(c, mistakes, "mol/L", language, {"n": n, "v": v})


def _solute(parameters: Parameters, language: Language) -> Solution:
    c, v = map(int, parameters)
    n = c * v
    mistakes: list[Number] = [
        Fraction(c, v),
        Fraction(v, c),
        c + v,
        n * 10,
        Fraction(n, 10),
        n + c,
        n - c,
        n + 1,
    ]
    return measured(n, mistakes, "mol", language, {"c": c, "v": v})


def _mass(parameters: Parameters, language: Language) -> Solution:
    formula, n = str(parameters[0]), int(parameters[1])
    molar = _MOLAR_MASS[formula]
    m = n * molar
    mistakes: list[Number] = [
        Fraction(molar, n),
        Fraction(n, molar),
        molar + n,
        molar,
        m * 10,
        Fraction(m, 10),
        m + molar,
        m - molar,
    ]
    return measured(m, mistakes, "g", language, {"formula": formula, "molar": molar, "n": n})


def _amount(parameters: Parameters, language: Language) -> Solution:
    formula, n = str(parameters[0]), int(parameters[1])
    molar = _MOLAR_MASS[formula]
    m = n * molar
    mistakes: list[Number] = [
        Fraction(molar, m),
        m * molar,
        m - molar,
        n * 10,
        Fraction(n, 10),
        n + 1,
        n - 1,
        n * 2,
    ]
    return measured(n, mistakes, "mol", language, {"formula": formula, "molar": molar, "m": m})


CONCENTRATION: Final = Task(
    "molarity",
    "concentration",
    _solutions,
    _concentration,
    {
        "en": Texts(
            asked=(
                "A solution of {v} L contains {n} mol of a salt. What is its molarity?",
                "What is the molar concentration if {n} mol are dissolved in {v} L of solution?",
                "{n} mol of glucose are made up to {v} L with water. Which concentration does the solution "
                "have?",
            ),
            held_out=(
                "Somebody dissolves {n} mol of sugar and ends with a tank of {v} L. How many moles does "
                "each litre of it hold?",
            ),
            explained=(
                "Molarity is the amount of substance divided by the volume of solution, c = n / V. "
                "With n = {n} mol and V = {v} L, c = {n} / {v} = {result}.",
                "We ask how many moles each litre holds. Sharing {n} mol among {v} L by c = n / V gives "
                "{n} / {v} = {result}.",
                "The formula c = n / V relates moles to litres. The {n} mol are divided by {v} L, "
                "and the quotient {n} / {v} is {result}.",
            ),
            told=("A solution with {n} mol in {v} L has the molarity {n} / {v} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Una soluzione di {v} L contiene {n} mol di un sale. Qual è la sua molarità?",
                "Qual è la concentrazione molare se {n} mol sono sciolte in {v} L di soluzione?",
                "{n} mol di glucosio sono portate a {v} L con acqua. Quale concentrazione ha la soluzione?",
            ),
            held_out=(
                "Qualcuno scioglie {n} mol di zucchero e ottiene una vasca di {v} L. Quante moli contiene "
                "ogni suo litro?",
            ),
            explained=(
                "La molarità è la quantità di sostanza divisa per il volume della soluzione, c = n / V. "
                "Con n = {n} mol e V = {v} L si ha c = {n} / {v} = {result}.",
                "Ci si chiede quante moli contiene ogni litro. Ripartendo {n} mol in {v} L con c = n / V si "
                "trova {n} / {v} = {result}.",
                "La formula c = n / V lega le moli ai litri. Le {n} mol si dividono per {v} L "
                "e il quoziente {n} / {v} è {result}.",
            ),
            told=("Una soluzione con {n} mol in {v} L ha la molarità {n} / {v} = {result}.",),
        ),
    },
)

SOLUTE: Final = Task(
    "molarity",
    "solute",
    _solutions,
    _solute,
    {
        "en": Texts(
            asked=(
                "How many moles of solute are there in {v} L of a {c} mol/L solution?",
                "Which amount of substance is needed to prepare {v} L of a solution of {c} mol/L?",
                "The molarity of a solution is {c} mol/L. What amount of solute do {v} L contain?",
            ),
            held_out=(
                "A canister holds {v} L of an acid at {c} mol/L. How much acid is in it, expressed in moles?",
            ),
            explained=(
                "The amount of substance is the molarity multiplied by the volume, n = c × V. "
                "With c = {c} mol/L and V = {v} L, n = {c} × {v} = {result}.",
                "Each litre holds {c} mol, so {v} L hold {v} times as much. "
                "The formula n = c × V gives {c} × {v} = {result}.",
                "From c = n / V we obtain the amount by multiplying {c} mol/L by the volume of {v} L. "
                "The product {c} × {v} is {result}.",
            ),
            told=("In {v} L of a solution of {c} mol/L there are {c} × {v} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quante moli di soluto ci sono in {v} L di una soluzione di {c} mol/L?",
                "Quale quantità di sostanza serve per preparare {v} L di una soluzione di {c} mol/L?",
                "La molarità di una soluzione è {c} mol/L. Quale quantità di soluto contengono {v} L?",
            ),
            held_out=(
                "Una tanica contiene {v} L di un acido a {c} mol/L. Quanto acido c'è, espresso in moli?",
            ),
            explained=(
                "La quantità di sostanza è la molarità moltiplicata per il volume, n = c × V. "
                "Con c = {c} mol/L e V = {v} L si ha n = {c} × {v} = {result}.",
                "Ogni litro contiene {c} mol, quindi {v} L ne contengono {v} volte tante. "
                "La formula n = c × V dà {c} × {v} = {result}.",
                "Da c = n / V si ricava la quantità moltiplicando {c} mol/L per il volume di {v} L. "
                "Il prodotto {c} × {v} vale {result}.",
            ),
            told=("In {v} L di una soluzione di {c} mol/L ci sono {c} × {v} = {result}.",),
        ),
    },
)

MASS: Final = Task(
    "molarity",
    "mass",
    _substances,
    _mass,
    {
        "en": Texts(
            asked=(
                "The molar mass of {formula} is {molar} g/mol. What is the mass of {n} mol?",
                "What do {n} mol of {formula} weigh, at a molar mass of {molar} g/mol?",
                "Which mass of {formula} must be weighed out to have {n} mol ({molar} g/mol)?",
            ),
            held_out=(
                "A reaction yields {n} mol of {formula}, and one mole of it weighs {molar} g. How many grams "
                "does the reaction yield?",
            ),
            explained=(
                "The mass is the amount of substance multiplied by the molar mass, m = n × M. "
                "For {formula} this is m = {n} × {molar} = {result}.",
                "One mole of {formula} has a mass of {molar} g, and {n} mol have {n} times as much. "
                "So m = n × M gives {n} × {molar} = {result}.",
                "From moles to grams we multiply by the molar mass of {formula}, which is {molar} g/mol. "
                "The product {n} × {molar} makes {result}.",
            ),
            told=("One mole of {formula} weighs {molar} g, and {n} mol weigh {n} × {molar} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "La massa molare di {formula} è {molar} g/mol. Qual è la massa di {n} mol?",
                "Quanto pesano {n} mol di {formula}, con una massa molare di {molar} g/mol?",
                "Quale massa di {formula} bisogna pesare per avere {n} mol ({molar} g/mol)?",
            ),
            held_out=(
                "Una reazione produce {n} mol di {formula}, e una mole pesa {molar} g. Quanti grammi produce "
                "la reazione?",
            ),
            explained=(
                "La massa è la quantità di sostanza moltiplicata per la massa molare, m = n × M. "
                "Per {formula} si ha m = {n} × {molar} = {result}.",
                "Una mole di {formula} ha una massa di {molar} g e {n} mol ne hanno {n} volte tanto. "
                "Quindi m = n × M dà {n} × {molar} = {result}.",
                "Dalle moli ai grammi si moltiplica per la massa molare di {formula}, che è {molar} g/mol. "
                "Il prodotto {n} × {molar} fa {result}.",
            ),
            told=("Una mole di {formula} pesa {molar} g, e {n} mol pesano {n} × {molar} = {result}.",),
        ),
    },
)

AMOUNT: Final = Task(
    "molarity",
    "amount",
    _substances,
    _amount,
    {
        "en": Texts(
            asked=(
                "How many moles are {m} g of {formula}? Its molar mass is {molar} g/mol.",
                "The molar mass of {formula} is {molar} g/mol. What amount of substance do {m} g contain?",
                "Which amount of {formula}, at {molar} g/mol, has a mass of {m} g?",
            ),
            held_out=(
                "A jar holds {m} g of {formula}, and one mole of it weighs {molar} g. How many moles are in "
                "the jar?",
            ),
            explained=(
                "The amount of substance is the mass divided by the molar mass, n = m / M. "
                "For {formula} this is n = {m} / {molar} = {result}.",
                "One mole of {formula} weighs {molar} g, so we count how often {molar} g fit into {m} g. "
                "By n = m / M this is {m} / {molar} = {result}.",
                "From grams to moles we divide by the molar mass of {formula}, which is {molar} g/mol. "
                "The quotient {m} / {molar} makes {result}.",
            ),
            told=("As one mole of {formula} weighs {molar} g, {m} g are {m} / {molar} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quante moli sono {m} g di {formula}? La massa molare è {molar} g/mol.",
                "La massa molare di {formula} è {molar} g/mol. Quale quantità di sostanza contengono {m} g?",
                "Quale quantità di {formula}, a {molar} g/mol, ha una massa di {m} g?",
            ),
            held_out=(
                "Un barattolo contiene {m} g di {formula}, e una mole pesa {molar} g. Quante moli ci sono "
                "nel barattolo?",
            ),
            explained=(
                "La quantità di sostanza è la massa divisa per la massa molare, n = m / M. "
                "Per {formula} si ha n = {m} / {molar} = {result}.",
                "Una mole di {formula} pesa {molar} g, quindi si conta quante volte {molar} g stanno in {m} "
                "g. Con n = m / M si trova {m} / {molar} = {result}.",
                "Dai grammi alle moli si divide per la massa molare di {formula}, che è {molar} g/mol. "
                "Il quoziente {m} / {molar} fa {result}.",
            ),
            told=("Poiché una mole di {formula} pesa {molar} g, {m} g sono {m} / {molar} = {result}.",),
        ),
    },
)

TASKS: Final = (CONCENTRATION, SOLUTE, MASS, AMOUNT)
