"""Sequences: arithmetic and geometric ones."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, measured


def _arithmetic() -> list[Parameters]:
    return list(product(range(2, 31), range(2, 10)))


def _geometric() -> list[Parameters]:
    return list(product(range(2, 26), range(2, 5)))


def _places() -> list[Parameters]:
    return list(product(range(2, 13), range(2, 8), range(5, 13)))


def _next_of_sum(parameters: Parameters, language: Language) -> Solution:
    a, d = map(int, parameters)
    w, x, y, z = (a + i * d for i in range(4))
    right = z + d
    mistakes: list[Number] = [
        right + 1,
        right - 1,
        right + d,
        z + a,
        z + y - x + 2,
        right + 10,
        z + y,
        right - 2,
    ]
    return measured(right, mistakes, "", language, {"w": w, "x": x, "y": y, "z": z, "d": d})


def _next_of_product(parameters: Parameters, language: Language) -> Solution:
    a, r = map(int, parameters)
    x, y, z = (a * r**i for i in range(3))
    right = z * r
    mistakes: list[Number] = [
        2 * z - y,
        z + y,
        right + r,
        right * r,
        z + r,
        right - 1,
        Fraction(z, r),
        z * (r + 1),
    ]
    return measured(right, mistakes, "", language, {"x": x, "y": y, "z": z, "r": r})


def _term(parameters: Parameters, language: Language) -> Solution:
    a, d, n = map(int, parameters)
    steps = n - 1
    added = steps * d
    right = a + added
    mistakes: list[Number] = [
        a + n * d,
        right - d,
        n * d,
        added,
        (a + d) * steps,
        a * n + d,
        right + 1,
        right - 1,
    ]
    fields: dict[str, Number | str] = {"a": a, "d": d, "n": n, "steps": steps, "added": added}
    return measured(right, mistakes, "", language, fields)


ARITHMETIC_NEXT: Final = Task(
    "sequences",
    "arithmetic_next",
    _arithmetic,
    _next_of_sum,
    {
        "en": Texts(
            asked=(
                "Which number continues the arithmetic sequence {w}, {x}, {y}, {z}?",
                "The differences of the sequence {w}, {x}, {y}, {z} are all the same. What comes next?",
                "Find the fifth term of the arithmetic sequence that begins {w}, {x}, {y}, {z}.",
            ),
            held_out=(
                "The rows of a theatre have {w}, {x}, {y} and {z} seats, and they go on growing evenly. "
                "How many seats has the next row?",
            ),
            explained=(
                "In an arithmetic sequence the difference of neighbours is constant. Here it is "
                "{x} - {w} = {d}, so the next term is {z} + {d} = {result}.",
                "From {w} to {x}, from {x} to {y} and from {y} to {z} we always add {d}. "
                "Adding it once more gives {z} + {d} = {result}.",
                "The common difference is {z} - {y} = {d}. Whatever follows must be larger than the last "
                "term, {z}, by just this {d}, which makes {result}.",
            ),
            told=("The arithmetic sequence {w}, {x}, {y}, {z} grows by {d} and goes on with {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quale numero continua la successione aritmetica {w}, {x}, {y}, {z}?",
                "Le differenze della successione {w}, {x}, {y}, {z} sono tutte uguali. Che numero viene "
                "dopo?",
                "Trova il quinto termine della successione aritmetica che inizia con {w}, {x}, {y}, {z}.",
            ),
            held_out=(
                "Le file di un teatro hanno {w}, {x}, {y} e {z} posti e continuano a crescere in modo "
                "regolare. Quanti posti ha la fila seguente?",
            ),
            explained=(
                "In una successione aritmetica la differenza tra termini vicini è costante. Qui è "
                "{x} - {w} = {d}, quindi il termine seguente è {z} + {d} = {result}.",
                "Da {w} a {x}, da {x} a {y} e da {y} a {z} si aggiunge sempre {d}. "
                "Aggiungendolo ancora una volta si ha {z} + {d} = {result}.",
                "La differenza comune è {z} - {y} = {d}. "
                "Ciò che segue deve superare l'ultimo termine, {z}, proprio di {d}, e dunque è {result}.",
            ),
            told=("La successione aritmetica {w}, {x}, {y}, {z} cresce di {d} e continua con {result}.",),
        ),
    },
)

GEOMETRIC_NEXT: Final = Task(
    "sequences",
    "geometric_next",
    _geometric,
    _next_of_product,
    {
        "en": Texts(
            asked=(
                "Which number continues the geometric sequence {x}, {y}, {z}?",
                "In the sequence {x}, {y}, {z} each term is the same multiple of the one before. What comes "
                "next?",
                "Find the fourth term of the geometric sequence that begins {x}, {y}, {z}.",
            ),
            held_out=(
                "A culture has {x} cells, an hour later {y} and after another hour {z}, always by the same "
                "factor. How many are there one hour later?",
            ),
            explained=(
                "In a geometric sequence the ratio of neighbours is constant. Here it is {y} / {x} = {r}, "
                "so the next term is {z} × {r} = {result}.",
                "From {x} to {y} and from {y} to {z} we always multiply by {r}. "
                "Multiplying once more gives {z} × {r} = {result}.",
                "The common ratio is {z} / {y} = {r}. Whatever follows must be {r} times as large as the "
                "last term, {z}, and that makes {result}.",
            ),
            told=(
                "The geometric sequence {x}, {y}, {z} is multiplied by {r} at each step and goes on with "
                "{result}.",
            ),
        ),
        "it": Texts(
            asked=(
                "Quale numero continua la successione geometrica {x}, {y}, {z}?",
                "Nella successione {x}, {y}, {z} ogni termine è lo stesso multiplo del precedente. "
                "Che numero viene dopo?",
                "Trova il quarto termine della successione geometrica che inizia con {x}, {y}, {z}.",
            ),
            held_out=(
                "Una coltura ha {x} cellule, un'ora dopo {y} e dopo un'altra ora {z}, sempre con lo stesso "
                "fattore. Quante sono un'ora più tardi?",
            ),
            explained=(
                "In una successione geometrica il rapporto tra termini vicini è costante. Qui è "
                "{y} / {x} = {r}, quindi il termine seguente è {z} × {r} = {result}.",
                "Da {x} a {y} e da {y} a {z} si moltiplica sempre per {r}. "
                "Moltiplicando ancora una volta si ha {z} × {r} = {result}.",
                "Il rapporto comune è {z} / {y} = {r}. Ciò che segue deve essere {r} volte l'ultimo termine, "
                "{z}, e dunque è {result}.",
            ),
            told=(
                "La successione geometrica {x}, {y}, {z} si moltiplica per {r} a ogni passo e continua con "
                "{result}.",
            ),
        ),
    },
)

TERM: Final = Task(
    "sequences",
    "term",
    _places,
    _term,
    {
        "en": Texts(
            asked=(
                "An arithmetic sequence starts with {a} and has the difference {d}. What is its term number "
                "{n}?",
                "What stands in place {n} of the arithmetic sequence with first term {a} and difference {d}?",
                "A sequence begins with {a}, and every further term is larger by {d}. How large is term {n}?",
            ),
            held_out=(
                "A saver puts {a} coins aside in the first week and in each later week {d} more than in the "
                "one before. How many coins does week {n} bring?",
            ),
            explained=(
                "The term in place n is a + (n - 1) × d. With a = {a}, n = {n} and d = {d} it is "
                "{a} + {steps} × {d} = {a} + {added} = {result}.",
                "Term {n} lies {steps} steps behind the first, and each step adds {d}. "
                "That makes {steps} × {d} = {added}, and {a} + {added} = {result}.",
                "To get from the first term to place {n} we take {steps} steps of {d}, which is {added}. "
                "Added to the first term, {a}, this gives {result}.",
            ),
            told=("Starting with {a} and adding {d} each time, term {n} is {a} + {added} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Una successione aritmetica inizia con {a} e ha differenza {d}. Quanto vale il termine "
                "numero {n}?",
                "Che cosa sta al posto {n} della successione aritmetica con primo termine {a} e differenza "
                "{d}?",
                "Una successione inizia con {a} e ogni altro termine cresce di {d}. Quanto vale il termine "
                "{n}?",
            ),
            held_out=(
                "Un risparmiatore mette da parte {a} monete nella prima settimana e in ogni settimana "
                "seguente {d} più che in quella prima. Quante monete porta la settimana {n}?",
            ),
            explained=(
                "Il termine al posto n è a + (n - 1) × d. Con a = {a}, n = {n} e d = {d} vale "
                "{a} + {steps} × {d} = {a} + {added} = {result}.",
                "Il termine {n} viene {steps} passi dopo il primo e ogni passo aggiunge {d}. "
                "In tutto {steps} × {d} = {added}, e {a} + {added} = {result}.",
                "Per andare dal primo termine al posto {n} si fanno {steps} passi di {d}, in tutto {added}. "
                "Sommando il primo termine, {a}, si ottiene {result}.",
            ),
            told=(
                "Iniziando con {a} e aggiungendo ogni volta {d}, il termine {n} è {a} + {added} = {result}.",
            ),
        ),
    },
)

TASKS: Final = (ARITHMETIC_NEXT, GEOMETRIC_NEXT, TERM)
