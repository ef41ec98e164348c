"""Percentages and proportions."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, measured


def _percentages() -> list[Parameters]:
    # Not 80: "l'80%" would need an article of its own in Italian.
    return list(product((5, 10, 15, 20, 25, 30, 40, 50, 60, 70, 75), range(40, 401, 20)))


def _proportions() -> list[Parameters]:
    return list(product(range(2, 10), range(2, 13), range(2, 7)))


def _share(parameters: Parameters, language: Language) -> Solution:
    p, whole = map(int, parameters)
    part = p * whole // 100
    mistakes: list[Number] = [
        whole - part,  # what remains
        part * 10,
        Fraction(part, 10),
        Fraction(whole, p),  # divided by the percentage
        whole - p,
        part + p,
        part + 10,
        part - 1,
    ]
    return measured(part, mistakes, "", language, {"p": p, "whole": whole})


def _whole(parameters: Parameters, language: Language) -> Solution:
    p, whole = map(int, parameters)
    part = p * whole // 100
    mistakes: list[Number] = [
        Fraction(part * p, 100),  # the percentage of the part
        part + p,
        part * p,
        whole - part,
        whole * 10,
        Fraction(whole, 10),
        whole + part,
        whole - 20,
    ]
    return measured(whole, mistakes, "", language, {"p": p, "part": part})


def _discount(parameters: Parameters, language: Language) -> Solution:
    p, price = map(int, parameters)
    cut = p * price // 100
    right = price - cut
    mistakes: list[Number] = [
        cut,  # the reduction itself
        price - p,  # percent taken for euros
        price + cut,
        right + 10,
        right - 10,
        price - Fraction(cut, 10),
        right - cut,
        right * 10,
    ]
    return measured(right, mistakes, "€", language, {"p": p, "price": price, "cut": cut})


def _proportion(parameters: Parameters, language: Language) -> Solution:
    a, b, times = map(int, parameters)
    c = a * times
    right = b * times
    mistakes: list[Number] = [
        b + c - a,  # the difference carried over in place of the ratio
        Fraction(a * c, b),
        Fraction(b, times),
        b * c,
        right + b,
        right - b,
        right * 10,
        right + 1,
        right - 2,
    ]
    return measured(right, mistakes, "€", language, {"a": a, "b": b, "c": c, "times": times})


SHARE: Final = Task(
    "percentages",
    "share",
    _percentages,
    _share,
    {
        "en": Texts(
            asked=(
                "How much is {p}% of {whole}?",
                "Of {whole} students {p}% passed the test. How many students passed?",
                "A box holds {whole} screws, and {p}% of them are too long. How many is that?",
            ),
            held_out=(
                "In a town hall {whole} people vote, and a proposal gets {p}% of the votes. How many votes?",
            ),
            explained=(
                "A percentage is a number of hundredths, so we multiply the whole by {p} / 100. "
                "Here {whole} × {p} / 100 = {result}.",
                "One hundredth of {whole} is {whole} / 100. To have {p} hundredths we take it {p} times: "
                "{p} × {whole} / 100 = {result}.",
                "The part is to the whole as {p} is to 100. From part = {p} × {whole} / 100 it follows that "
                "the part is {result}.",
            ),
            told=("Of {whole}, {p}% are {whole} × {p} / 100 = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Quanto fa il {p}% di {whole}?",
                "Su {whole} studenti il {p}% ha superato la prova. Quanti studenti l'hanno superata?",
                "Una scatola contiene {whole} viti, e il {p}% è troppo lungo. Quante viti sono?",
            ),
            held_out=(
                "In municipio votano {whole} persone e una proposta ottiene il {p}% dei voti. Quanti sono?",
            ),
            explained=(
                "Una percentuale è un numero di centesimi, quindi si moltiplica il totale per {p} / 100. "
                "Qui {whole} × {p} / 100 = {result}.",
                "Un centesimo di {whole} è {whole} / 100. Per averne {p} centesimi lo si prende {p} volte: "
                "{p} × {whole} / 100 = {result}.",
                "La parte sta al totale come {p} sta a 100. Da parte = {p} × {whole} / 100 segue che la "
                "parte è {result}.",
            ),
            told=("Il {p}% di {whole} è {whole} × {p} / 100 = {result}.",),
        ),
    },
)

WHOLE: Final = Task(
    "percentages",
    "whole",
    _percentages,
    _whole,
    {
        "en": Texts(
            asked=(
                "{part} is {p}% of which number?",
                "In a school {part} students, that is {p}%, come by bus. How many students are there?",
                "A saver has {part} coins, {p}% of what is needed. How many coins are needed?",
            ),
            held_out=(
                "After {part} pages a reader has finished {p}% of a book. How many pages has the book?",
            ),
            explained=(
                "The whole is the part divided by its percentage and multiplied by 100. "
                "With {part} for {p}%, this is {part} × 100 / {p} = {result}.",
                "If {p} hundredths are {part}, one hundredth is {part} / {p}. "
                "A hundred of them make {part} / {p} × 100 = {result}.",
                "The part is to the whole as {p} is to 100, and so the whole is {part} × 100 / {p}. "
                "The calculation gives {result}.",
            ),
            told=("If {part} is {p}% of a number, the number is {part} × 100 / {p} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "{part} è il {p}% di quale numero?",
                "In una scuola {part} studenti, cioè il {p}%, arrivano in autobus. Quanti sono gli studenti?",
                "Un risparmiatore ha {part} monete, il {p}% di quelle che servono. Quante monete servono?",
            ),
            held_out=("Dopo {part} pagine un lettore è al {p}% di un libro. Quante pagine ha il libro?",),
            explained=(
                "Il totale è la parte divisa per la sua percentuale e moltiplicata per 100. "
                "Con {part} per il {p}% si ha {part} × 100 / {p} = {result}.",
                "Se {p} centesimi sono {part}, un centesimo è {part} / {p}. "
                "Cento di questi fanno {part} / {p} × 100 = {result}.",
                "La parte sta al totale come {p} sta a 100, e quindi il totale è {part} × 100 / {p}. "
                "Il calcolo dà {result}.",
            ),
            told=("Se {part} è il {p}% di un numero, il numero è {part} × 100 / {p} = {result}.",),
        ),
    },
)

DISCOUNT: Final = Task(
    "percentages",
    "discount",
    _percentages,
    _discount,
    {
        "en": Texts(
            asked=(
                "A coat for {price} € is reduced by {p}%. What does it cost now?",
                "What is the price after a discount of {p}% on {price} €?",
                "A shop takes {p}% off an article of {price} €. How much is to be paid?",
            ),
            held_out=("A bill of {price} € shrinks by {p}% for a loyal customer. Which amount is left?",),
            explained=(
                "The discount is the percentage of the price, {price} × {p} / 100 = {cut} €. "
                "It is subtracted from the price: {price} - {cut} = {result}.",
                "First find what is taken off: {p}% of {price} € are {cut} €. "
                "Then what remains to be paid is {price} - {cut} = {result}.",
                "A reduction of {p}% on {price} € makes {cut} €, since {price} × {p} / 100 = {cut}. "
                "The new price is lower by this, {result}.",
            ),
            told=("A discount of {p}% on {price} € is {cut} €, and {price} - {cut} = {result} are left.",),
        ),
        "it": Texts(
            asked=(
                "Un cappotto da {price} € è scontato del {p}%. Quanto costa ora?",
                "Qual è il prezzo dopo uno sconto del {p}% su {price} €?",
                "Un negozio toglie il {p}% a un articolo da {price} €. Quanto si deve pagare?",
            ),
            held_out=(
                "Un conto di {price} € si riduce del {p}% per un cliente fedele. Quale importo resta?",
            ),
            explained=(
                "Lo sconto è la percentuale del prezzo, {price} × {p} / 100 = {cut} €. "
                "Si sottrae dal prezzo: {price} - {cut} = {result}.",
                "Prima si trova quanto viene tolto: il {p}% di {price} € è {cut} €. "
                "Poi resta da pagare {price} - {cut} = {result}.",
                "Una riduzione del {p}% su {price} € fa {cut} €, perché {price} × {p} / 100 = {cut}. "
                "Tolti questi, il nuovo prezzo è {result}.",
            ),
            told=("Uno sconto del {p}% su {price} € è di {cut} €, e restano {price} - {cut} = {result}.",),
        ),
    },
)

PROPORTION: Final = Task(
    "percentages",
    "proportion",
    _proportions,
    _proportion,
    {
        "en": Texts(
            asked=(
                "If {a} kg of apples cost {b} €, what do {c} kg cost?",
                "A recipe for {a} people needs ingredients for {b} €. What do they cost for {c} people?",
                "For {a} hours a worker gets {b} €. How much is paid for {c} hours?",
            ),
            held_out=("Every {a} km of a taxi ride add {b} € to the fare. What does a ride of {c} km add?",),
            explained=(
                "In direct proportion both quantities change by the same factor. From {a} to {c} it is "
                "{c} / {a} = {times}, so the price is {b} × {times} = {result}.",
                "As {c} is {times} times {a}, the price must be {times} times {b} €. "
                "Multiplying in this way we get {times} × {b} = {result}.",
                "The proportion {a} : {b} = {c} : x gives x = {b} × {c} / {a}. "
                "Because {c} / {a} is {times}, x is {b} × {times}, that is {result}.",
            ),
            told=(
                "If {a} cost {b} €, {c} cost {c} / {a} = {times} times as much: {b} × {times} = {result}.",
            ),
        ),
        "it": Texts(
            asked=(
                "Se {a} kg di mele costano {b} €, quanto costano {c} kg?",
                "Una ricetta per {a} persone richiede ingredienti per {b} €. Quanto costano per {c} persone?",
                "Per {a} ore un operaio riceve {b} €. Quanto si paga per {c} ore?",
            ),
            held_out=(
                "Ogni {a} km di taxi aggiungono {b} € alla tariffa. Quanto aggiunge una corsa di {c} km?",
            ),
            explained=(
                "Nella proporzionalità diretta le due grandezze variano dello stesso fattore. Da {a} a {c} è "
                "{c} / {a} = {times}, quindi il prezzo è {b} × {times} = {result}.",
                "Poiché {c} è {times} volte {a}, anche il prezzo deve essere {times} volte {b} €. "
                "Moltiplicando così si ottiene {times} × {b} = {result}.",
                "La proporzione {a} : {b} = {c} : x dà x = {b} × {c} / {a}. "
                "Poiché {c} / {a} è {times}, x è {b} × {times}, cioè {result}.",
            ),
            told=(
                "Se {a} costano {b} €, {c} costano {c} / {a} = {times} volte tanto: {b} × {times} = "
                "{result}.",
            ),
        ),
    },
)

TASKS: Final = (SHARE, WHOLE, DISCOUNT, PROPORTION)
