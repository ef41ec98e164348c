"""Conversion of units: lengths, masses, volumes, times and speeds."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, measured

_FACTORS: Final = {  # how many of the second unit make one of the first
    ("km", "m"): 1000,
    ("m", "cm"): 100,
    ("cm", "mm"): 10,
    ("t", "kg"): 1000,
    ("kg", "g"): 1000,
    ("g", "mg"): 1000,
    ("L", "mL"): 1000,
    ("L", "dL"): 10,
    ("h", "min"): 60,
    ("min", "s"): 60,
}
_KMH: Final = Fraction(36, 10)  # km/h in one m/s


def _pairs() -> list[Parameters]:
    return [(large, small, value) for (large, small), value in product(_FACTORS, range(2, 41))]


def _speeds() -> list[Parameters]:
    return [(value,) for value in range(5, 201, 5)]


def _read(parameters: Parameters) -> tuple[str, str, int, int]:
    large, small, value = str(parameters[0]), str(parameters[1]), int(parameters[2])
    return large, small, value, _FACTORS[large, small]


def _to_smaller(parameters: Parameters, language: Language) -> Solution:
    large, small, value, factor = _read(parameters)
    right = value * factor
    other = 100 if factor != 100 else 1000
    mistakes: list[Number] = [right * 10, Fraction(right, 10), value, Fraction(value, factor), value * other]
    mistakes += [value + factor, right + factor, right - factor]
    return measured(right, mistakes, small, language, _fields(large, small, value, factor))


def _to_larger(parameters: Parameters, language: Language) -> Solution:
    large, small, right, factor = _read(parameters)
    value = right * factor
    mistakes: list[Number] = [right * 10, Fraction(right, 10), value, value * factor, Fraction(value, 100)]
    mistakes += [right + 1, right - 1, value - factor]
    return measured(right, mistakes, large, language, _fields(large, small, value, factor))


def _speed(parameters: Parameters, language: Language) -> Solution:
    value = int(parameters[0])
    right = value * _KMH
    mistakes: list[Number] = [
        value / _KMH,
        right * 10,
        right / 10,
        value * 6,
        value * 60,
        Fraction(value, 1000),
    ]
    mistakes += [value, right + 10, right - 10]
    return measured(right, mistakes, "km/h", language, {"value": value})


def _fields(large: str, small: str, value: int, factor: int) -> dict[str, Number | str]:
    return {"large": large, "small": small, "value": value, "factor": factor}


TO_SMALLER: Final = Task(
    "units",
    "to_smaller",
    _pairs,
    _to_smaller,
    {
        "en": Texts(
            asked=(
                "How much is {value} {large} in {small}?",
                "Convert {value} {large} into {small}.",
                "Which quantity in {small} equals {value} {large}?",
            ),
            held_out=("A form wants {small}, but you have measured {value} {large}. What do you fill in?",),
            explained=(
                "One {large} equals {factor} {small}, and to a smaller unit we multiply. "
                "For {value} {large} this is {value} × {factor} = {result}.",
                "Each of the {value} {large} holds {factor} {small}. "
                "The number becomes larger because the unit becomes smaller: {value} × {factor} = {result}.",
                "The rule is 1 {large} = {factor} {small}. Multiplying both sides by {value} turns {value} "
                "{large} into {value} × {factor}, that is {result}.",
            ),
            told=("Since 1 {large} = {factor} {small}, {value} {large} are {value} × {factor} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quanto fanno {value} {large} in {small}?",
                "Converti {value} {large} in {small}.",
                "Quale quantità in {small} è uguale a {value} {large}?",
            ),
            held_out=("Un modulo chiede {small}, ma tu hai misurato {value} {large}. Che cosa scrivi?",),
            explained=(
                "1 {large} equivale a {factor} {small}, e verso un'unità più piccola si moltiplica. "
                "Per {value} {large} si ha {value} × {factor} = {result}.",
                "Ogni {large} contiene {factor} {small}. Il numero diventa più grande perché "
                "l'unità diventa più piccola: {value} × {factor} = {result}.",
                "La regola è 1 {large} = {factor} {small}. Moltiplicando entrambi i lati per {value}, "
                "{value} {large} diventano {value} × {factor}, cioè {result}.",
            ),
            told=(
                "Poiché 1 {large} = {factor} {small}, {value} {large} sono {value} × {factor} = {result}.",
            ),
        ),
    },
)

TO_LARGER: Final = Task(
    "units",
    "to_larger",
    _pairs,
    _to_larger,
    {
        "en": Texts(
            asked=(
                "How much is {value} {small} in {large}?",
                "Convert {value} {small} into {large}.",
                "Which quantity in {large} equals {value} {small}?",
            ),
            held_out=("A label says {value} {small}. What would it say with {large} as the unit?",),
            explained=(
                "It takes {factor} {small} to make one {large}, and to a larger unit we divide. "
                "For {value} {small} this is {value} / {factor} = {result}.",
                "We count how often {factor} {small}, which are one {large}, fit into {value} {small}. "
                "The answer is {value} / {factor} = {result}.",
                "The rule is 1 {large} = {factor} {small}. The number becomes smaller because the unit "
                "becomes larger: {value} divided by {factor} gives {result}.",
            ),
            told=("Since {factor} {small} = 1 {large}, {value} {small} are {value} / {factor} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quanto fanno {value} {small} in {large}?",
                "Converti {value} {small} in {large}.",
                "Quale quantità in {large} è uguale a {value} {small}?",
            ),
            held_out=("Un'etichetta dice {value} {small}. Che cosa direbbe con {large} come unità?",),
            explained=(
                "Occorrono {factor} {small} per fare 1 {large}, e verso un'unità più grande si divide. "
                "Per {value} {small} si ha {value} / {factor} = {result}.",
                "Si conta quante volte {factor} {small}, che fanno 1 {large}, stanno in {value} {small}. "
                "Il risultato è {value} / {factor} = {result}.",
                "La regola è 1 {large} = {factor} {small}. Il numero diventa più piccolo perché l'unità "
                "diventa più grande: {value} diviso per {factor} dà {result}.",
            ),
            told=(
                "Poiché {factor} {small} = 1 {large}, {value} {small} sono {value} / {factor} = {result}.",
            ),
        ),
    },
)

SPEED: Final = Task(
    "units",
    "speed",
    _speeds,
    _speed,
    {
        "en": Texts(
            asked=(
                "How much is {value} m/s in km/h?",
                "Convert a speed of {value} m/s into km/h.",
                "Which speed in km/h equals {value} m/s?",
            ),
            held_out=(
                "A dial that is marked in km/h measures something moving at {value} m/s. What does it show?",
            ),
            explained=(
                "An hour has 3600 s and a kilometre 1000 m, so 1 m/s = 3.6 km/h. "
                "For {value} m/s this is {value} × 3.6 = {result}.",
                "In 3600 seconds, {value} m/s lead {value} × 3600 metres far. Divided by 1000 to have "
                "kilometres, this is {value} × 3.6 = {result}.",
                "From m/s to km/h we multiply by 3.6, as 3600 / 1000 = 3.6. "
                "The product of {value} and 3.6 is the speed we look for, {result}.",
            ),
            told=("A speed of {value} m/s is {value} × 3.6 = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quanto fanno {value} m/s in km/h?",
                "Converti una velocità di {value} m/s in km/h.",
                "Quale velocità in km/h è uguale a {value} m/s?",
            ),
            held_out=(
                "Uno strumento graduato in km/h misura un corpo che va a {value} m/s. Che cosa segna?",
            ),
            explained=(
                "Un'ora ha 3600 s e un chilometro 1000 m, quindi 1 m/s = 3,6 km/h. "
                "Per {value} m/s si ha {value} × 3,6 = {result}.",
                "In 3600 secondi, {value} m/s portano a {value} × 3600 metri. Dividendo per 1000 per avere i "
                "chilometri, si ha {value} × 3,6 = {result}.",
                "Da m/s a km/h si moltiplica per 3,6, perché 3600 / 1000 = 3,6. "
                "Il prodotto di {value} e 3,6 è la velocità cercata, {result}.",
            ),
            told=("Una velocità di {value} m/s è {value} × 3,6 = {result}.",),
        ),
    },
)

TASKS: Final = (TO_SMALLER, TO_LARGER, SPEED)
