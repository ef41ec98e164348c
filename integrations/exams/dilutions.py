"""Dilutions: what concentration is left, and how much water it takes."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, measured


def _dilutions() -> list[Parameters]:
    return list(product(range(2, 10), range(2, 7), (5, 10, 15, 20, 25, 30, 40, 50)))


def _after(parameters: Parameters, language: Language) -> Solution:
    end, times, volume = map(int, parameters)
    start, total = end * times, volume * times
    mistakes: list[Number] = [
        start * times,  # the ratio of the volumes upside down
        Fraction(start, times - 1),  # water that is added in place of the whole volume
        start,
        Fraction(start, 2),
        end * 10,
        Fraction(end, 10),
        end + 1,
        end - 1,
    ]
    fields: dict[str, Number | str] = {"start": start, "volume": volume, "total": total, "times": times}
    return measured(end, mistakes, "g/L", language, fields)


def _water(parameters: Parameters, language: Language) -> Solution:
    end, times, volume = map(int, parameters)
    total = volume * times
    right = total - volume
    mistakes: list[Number] = [
        total,  # the final volume in place of what is added
        total + volume,
        Fraction(volume, times),
        volume,
        right * 10,
        Fraction(right, 10),
        right - volume,
        right + 10,
        right - 5,
    ]
    fields: dict[str, Number | str] = {
        "start": end * times,
        "end": end,
        "volume": volume,
        "total": total,
        "times": times,
    }
    return measured(right, mistakes, "mL", language, fields)


AFTER: Final = Task(
    "dilutions",
    "after",
    _dilutions,
    _after,
    {
        "en": Texts(
            asked=(
                "Water is added to {volume} mL of a {start} g/L solution until there are {total} mL. What "
                "is the concentration then?",
                "A solution of {start} g/L is diluted from {volume} mL to {total} mL. Which concentration "
                "results?",
                "What concentration has a solution after {volume} mL at {start} g/L have been made up to "
                "{total} mL with water?",
            ),
            held_out=(
                "A nurse fills {volume} mL of a drug at {start} g/L into a bag and tops it up with water to "
                "{total} mL. What concentration does the bag hold?",
            ),
            explained=(
                "Diluting does not change the amount of solute, C1 × V1 = C2 × V2. The volume grows {times} "
                "times, from {volume} to {total} mL, so C2 = {start} / {times} = {result}.",
                "The same solute is spread over {total} mL in place of {volume} mL, that is {times} times "
                "the volume. The concentration is divided by as much: {start} / {times} = {result}.",
                "From C1 × V1 = C2 × V2 we get C2 = {start} × {volume} / {total}. As {total} / {volume} = "
                "{times}, this is {start} / {times}, hence {result}.",
            ),
            told=(
                "Diluted from {volume} mL to {total} mL, a solution of {start} g/L has {start} / {times} = "
                "{result} left.",
            ),
        ),
        "it": Texts(
            asked=(
                "A {volume} mL di una soluzione di {start} g/L si aggiunge acqua fino a {total} mL. Qual è "
                "ora la concentrazione?",
                "Una soluzione di {start} g/L viene diluita da {volume} mL a {total} mL. Quale "
                "concentrazione risulta?",
                "Quale concentrazione ha una soluzione dopo che {volume} mL a {start} g/L sono stati "
                "portati a {total} mL con acqua?",
            ),
            held_out=(
                "Un'infermiera versa in una sacca {volume} mL di un farmaco a {start} g/L e la riempie con "
                "acqua fino a {total} mL. Quale concentrazione contiene la sacca?",
            ),
            explained=(
                "La diluizione non cambia la quantità di soluto, C1 × V1 = C2 × V2. Il volume cresce di "
                "{times} volte, da {volume} a {total} mL, quindi C2 = {start} / {times} = {result}.",
                "Lo stesso soluto si distribuisce in {total} mL invece che in {volume} mL, cioè in un "
                "volume {times} volte maggiore. La concentrazione si divide per altrettanto: {start} / "
                "{times} = {result}.",
                "Da C1 × V1 = C2 × V2 si ricava C2 = {start} × {volume} / {total}. Poiché {total} / "
                "{volume} = {times}, si ha {start} / {times}, dunque {result}.",
            ),
            told=(
                "Diluita da {volume} mL a {total} mL, una soluzione di {start} g/L scende a {start} / "
                "{times} = {result}.",
            ),
        ),
    },
)

WATER: Final = Task(
    "dilutions",
    "water",
    _dilutions,
    _water,
    {
        "en": Texts(
            asked=(
                "How much water must be added to {volume} mL of a {start} g/L solution to bring it to {end} "
                "g/L?",
                "You have {volume} mL of a solution of {start} g/L and need {end} g/L. How much water do "
                "you add?",
                "Which volume of water turns {volume} mL at {start} g/L into a solution of {end} g/L?",
            ),
            held_out=(
                "A cleaner at {start} g/L is too strong; {end} g/L is wanted. What volume of water has to be "
                "poured into a bottle with {volume} mL of it?",
            ),
            explained=(
                "By C1 × V1 = C2 × V2 the volume grows {start} / {end} = {times} times, to {times} × "
                "{volume} = {total} mL. The water added is {total} - {volume} = {result}.",
                "The concentration falls {times} times, so the final volume is {times} × {volume} = {total} "
                "mL. As {volume} mL were there before, the water is {total} - {volume} = {result}.",
                "The amount of solute stays the same, and so {start} × {volume} = {end} × {total}. "
                "To come from {volume} mL to {total} mL we must add {result}.",
            ),
            told=(
                "To bring {volume} mL from {start} g/L to {end} g/L, {total} - {volume} = {result} of water "
                "are added.",
            ),
        ),
        "it": Texts(
            asked=(
                "Quanta acqua si deve aggiungere a {volume} mL di una soluzione di {start} g/L per portarla "
                "a {end} g/L?",
                "Hai {volume} mL di una soluzione di {start} g/L e ti serve a {end} g/L. Quanta acqua "
                "aggiungi?",
                "Quale volume di acqua trasforma {volume} mL a {start} g/L in una soluzione di {end} g/L?",
            ),
            held_out=(
                "Un detergente a {start} g/L è troppo forte e lo si vuole a {end} g/L. Quale volume di "
                "acqua va versato in una bottiglia che ne contiene {volume} mL?",
            ),
            explained=(
                "Per C1 × V1 = C2 × V2 il volume cresce di {start} / {end} = {times} volte, fino a {times} × "
                "{volume} = {total} mL. L'acqua aggiunta è {total} - {volume} = {result}.",
                "La concentrazione si riduce di {times} volte, quindi il volume finale è {times} × {volume} "
                "= {total} mL. Poiché {volume} mL c'erano già, l'acqua è {total} - {volume} = {result}.",
                "La quantità di soluto resta la stessa, perciò {start} × {volume} = {end} × {total}. "
                "Per passare da {volume} mL a {total} mL bisogna aggiungere {result}.",
            ),
            told=(
                "Per portare {volume} mL da {start} g/L a {end} g/L si aggiungono {total} - {volume} = "
                "{result} di acqua.",
            ),
        ),
    },
)

TASKS: Final = (AFTER, WATER)
