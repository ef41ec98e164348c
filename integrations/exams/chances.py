"""Simple probability: one draw, its opposite, and two independent events."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, chance


def _urns() -> list[Parameters]:
    return list(product(range(2, 9), repeat=3))


def _wheels() -> list[Parameters]:
    sectors = [(win, all_) for all_ in range(2, 7) for win in range(1, all_)]
    return [(*one, *two) for one, two in product(sectors, repeat=2)]


def _drawn(parameters: Parameters, language: Language) -> Solution:
    red, blue, green = map(int, parameters)
    total = red + blue + green
    mistakes = [
        Fraction(red, blue + green),  # odds in place of a probability
        Fraction(blue + green, total),
        Fraction(red, blue),
        Fraction(1, red),
        Fraction(1, total),
        Fraction(1, 3),  # as if all colours were alike
        Fraction(red - 1, total),
        Fraction(red + 1, total),
        Fraction(red, total + 1),
        Fraction(red, total - 1),
    ]
    fields: dict[str, Number | str] = {"red": red, "blue": blue, "green": green, "total": total}
    return chance(Fraction(red, total), mistakes, language, fields)


def _other(parameters: Parameters, language: Language) -> Solution:
    red, blue, green = map(int, parameters)
    total = red + blue + green
    rest = blue + green
    mistakes = [
        Fraction(red, total),  # the event itself
        Fraction(red, rest),
        Fraction(blue, total),
        Fraction(green, total),
        Fraction(2, 3),
        Fraction(rest - 1, total),
        Fraction(rest + 1, total),
        Fraction(rest, total + 1),
        Fraction(rest, total - 1),
        Fraction(1, rest),
    ]
    fields: dict[str, Number | str] = {
        "red": red,
        "blue": blue,
        "green": green,
        "total": total,
        "rest": rest,
    }
    return chance(Fraction(rest, total), mistakes, language, fields)


def _both(parameters: Parameters, language: Language) -> Solution:
    a, m, b, n = map(int, parameters)
    p, q = Fraction(a, m), Fraction(b, n)
    mistakes = [
        p + q,
        (p + q) / 2,
        Fraction(a + b, m + n),
        p,
        q,
        Fraction(1, m * n),
        p * q / 2,
        p * (1 - q),
        (1 - p) * q,
        (1 - p) * (1 - q),
        1 - p * q,
    ]
    fields: dict[str, Number | str] = {"a": a, "m": m, "b": b, "n": n, "top": a * b, "bottom": m * n}
    return chance(p * q, mistakes, language, fields)


DRAWN: Final = Task(
    "probability",
    "drawn",
    _urns,
    _drawn,
    {
        "en": Texts(
            asked=(
                "An urn holds {red} red, {blue} blue and {green} green balls. With what probability is a "
                "drawn ball red?",
                "A bag contains {red} red, {blue} blue and {green} green marbles. What is the chance to "
                "draw a red one?",
                "There are {red} red, {blue} blue and {green} green cards in a stack. How likely is it to "
                "pick red?",
            ),
            held_out=(
                "From a drawer with {blue} blue, {green} green and {red} red socks one is taken in the "
                "dark. What is the probability that it is red?",
            ),
            explained=(
                "Probability is the number of favourable cases over that of all cases. There are {red} + "
                "{blue} + {green} = {total} in all and {red} red, so {red} out of {total}, that is {result}.",
                "All {total} items are equally likely and {red} of them are red. "
                "Dividing favourable by possible cases, {red} by {total}, we obtain {result}.",
                "We count first: {red} and {blue} and {green} make {total}. "
                "Of these, {red} are what we want, and the share of {red} in {total} is {result}.",
            ),
            told=("Among {red} red, {blue} blue and {green} green balls, red has the probability {result}.",),
        ),
        "it": Texts(
            asked=(
                "Un'urna contiene {red} palline rosse, {blue} blu e {green} verdi. Con quale probabilità si "
                "estrae una pallina rossa?",
                "In un sacchetto ci sono {red} biglie rosse, {blue} blu e {green} verdi. Qual è la "
                "probabilità di prenderne una rossa?",
                "In un mazzo ci sono {red} carte rosse, {blue} blu e {green} verdi. Quanto è probabile "
                "pescare una carta rossa?",
            ),
            held_out=(
                "Da un cassetto con {blue} calze blu, {green} verdi e {red} rosse se ne prende una al buio. "
                "Qual è la probabilità che sia rossa?",
            ),
            explained=(
                "La probabilità è il numero dei casi favorevoli diviso quello di tutti i casi. In tutto sono "
                "{red} + {blue} + {green} = {total} e i rossi {red}, quindi {red} su {total}, cioè {result}.",
                "Tutti i {total} casi sono ugualmente probabili e {red} di questi sono rossi. "
                "Dividendo i casi favorevoli per i possibili, {red} per {total}, si ottiene {result}.",
                "Prima si conta: {red} e {blue} e {green} fanno {total}. "
                "Di questi, {red} sono quelli cercati, e la quota di {red} su {total} è {result}.",
            ),
            told=(
                "Tra {red} palline rosse, {blue} blu e {green} verdi, il rosso ha la probabilità {result}.",
            ),
        ),
    },
)

OTHER: Final = Task(
    "probability",
    "other",
    _urns,
    _other,
    {
        "en": Texts(
            asked=(
                "An urn holds {red} red, {blue} blue and {green} green balls. With what probability is a "
                "drawn ball not red?",
                "A bag contains {red} red, {blue} blue and {green} green marbles. What is the chance to "
                "draw one that is not red?",
                "There are {red} red, {blue} blue and {green} green cards in a stack. How likely is any "
                "colour but red?",
            ),
            held_out=(
                "Whoever takes red out of {red} red, {blue} blue and {green} green tickets loses. "
                "With what probability does one not lose?",
            ),
            explained=(
                "The opposite event has the rest of the cases. Of {total} in all, {total} - {red} = {rest} "
                "are not red, and {rest} out of {total} is {result}.",
                "Not red means blue or green, so there are {blue} + {green} = {rest} favourable cases among "
                "{total}. Dividing {rest} by {total} we obtain {result}.",
                "Red has {red} cases of {total}. Its complement has 1 minus that share, "
                "which leaves {rest} cases of {total}, and this probability is {result}.",
            ),
            told=(
                "With {red} red, {blue} blue and {green} green balls, not red has the probability {result}.",
            ),
        ),
        "it": Texts(
            asked=(
                "Un'urna contiene {red} palline rosse, {blue} blu e {green} verdi. Con quale probabilità la "
                "pallina estratta non è rossa?",
                "In un sacchetto ci sono {red} biglie rosse, {blue} blu e {green} verdi. Qual è la "
                "probabilità di prenderne una non rossa?",
                "In un mazzo ci sono {red} carte rosse, {blue} blu e {green} verdi. Quanto è probabile un "
                "colore diverso dal rosso?",
            ),
            held_out=(
                "Chi prende un biglietto rosso tra {red} rossi, {blue} blu e {green} verdi perde. "
                "Con quale probabilità non si perde?",
            ),
            explained=(
                "L'evento contrario ha il resto dei casi. Su {total} in tutto, {total} - {red} = {rest} non "
                "sono rossi, e {rest} su {total} è {result}.",
                "Non rosso vuol dire blu o verde, quindi i casi favorevoli sono {blue} + {green} = {rest} su "
                "{total}. Dividendo {rest} per {total} si ottiene {result}.",
                "Il rosso ha {red} casi su {total}. Il suo complemento ha 1 meno questa quota, "
                "il che lascia {rest} casi su {total}, e questa probabilità è {result}.",
            ),
            told=(
                "Con {red} palline rosse, {blue} blu e {green} verdi, non rosso ha la probabilità {result}.",
            ),
        ),
    },
)

BOTH: Final = Task(
    "probability",
    "both",
    _wheels,
    _both,
    {
        "en": Texts(
            asked=(
                "Two independent events have the probabilities {a}/{m} and {b}/{n}. How likely are both "
                "together?",
                "One wheel of fortune wins in {a}/{m} of its sectors, another in {b}/{n}. With what "
                "probability do both win?",
                "The chance of rain here is {a}/{m} and far away, independently, {b}/{n}. What is the "
                "chance of rain in both places?",
            ),
            held_out=(
                "A lamp works with probability {a}/{m} and its battery, whatever the lamp does, with "
                "{b}/{n}. What is the probability that neither lets you down?",
            ),
            explained=(
                "Probabilities of independent events are multiplied. Here {a}/{m} × {b}/{n} has {a} × {b} = "
                "{top} above and {m} × {n} = {bottom} below, which is {result}.",
                "Of {m} × {n} = {bottom} equally likely pairs, {a} × {b} = {top} are favourable. "
                "Since the events are independent, both occur with probability {result}.",
                "The second event occurs in {b}/{n} of the cases in which the first does, and that is "
                "{a}/{m}. We multiply: {top} over {bottom}, hence {result}.",
            ),
            told=("Independent events of {a}/{m} and {b}/{n} occur together with probability {result}.",),
        ),
        "it": Texts(
            asked=(
                "Due eventi indipendenti hanno le probabilità {a}/{m} e {b}/{n}. Quanto sono probabili "
                "insieme?",
                "Una ruota della fortuna vince in {a}/{m} dei suoi settori, un'altra in {b}/{n}. Con quale "
                "probabilità vincono entrambe?",
                "La probabilità di pioggia è {a}/{m} qui e, indipendentemente, {b}/{n} lontano. Qual è la "
                "probabilità che piova in entrambi i luoghi?",
            ),
            held_out=(
                "Una lampada funziona con probabilità {a}/{m} e la sua pila, qualunque cosa faccia la "
                "lampada, con {b}/{n}. Qual è la probabilità che funzionino entrambe?",
            ),
            explained=(
                "Le probabilità di eventi indipendenti si moltiplicano. Qui {a}/{m} × {b}/{n} ha {a} × {b} "
                "= {top} sopra e {m} × {n} = {bottom} sotto, cioè {result}.",
                "Di {m} × {n} = {bottom} coppie ugualmente probabili, {a} × {b} = {top} sono favorevoli. "
                "Essendo indipendenti, i due eventi accadono insieme con probabilità {result}.",
                "Il secondo evento accade in {b}/{n} dei casi in cui accade il primo, che sono {a}/{m}. "
                "Si moltiplica: {top} su {bottom}, dunque {result}.",
            ),
            told=("Eventi indipendenti di {a}/{m} e {b}/{n} accadono insieme con probabilità {result}.",),
        ),
    },
)

TASKS: Final = (DRAWN, OTHER, BOTH)
