"""Mendelian crosses: one gene, and two that are inherited independently."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Parameters, Solution, Task, Texts, chance, ratio

_ASKED: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "dominant": "shows the dominant trait",
        "recessive": "shows the recessive trait",
        "heterozygous": "is heterozygous",
    },
    "it": {
        "dominant": "mostra il carattere dominante",
        "recessive": "mostra il carattere recessivo",
        "heterozygous": "è eterozigote",
    },
}
_TRAIT: Final[dict[Language, dict[str, str]]] = {
    "en": {"dominant": "dominant", "recessive": "recessive"},
    "it": {"dominant": "dominante", "recessive": "recessivo"},
}
_SHARES: Final = [Fraction(n, 16) for n in (1, 2, 3, 4, 6, 9)]  # what such crosses can give
_PAIRS: Final = ("AB", "DE", "GH", "KL", "RT", "BG", "AD", "EK", "HR", "LT", "BE", "GL")


def _one_gene() -> list[Parameters]:
    genotypes = ("AA", "Aa", "aa")
    return list(product("ABDEGHKLRT", genotypes, genotypes, _ASKED["en"]))


def _two_genes() -> list[Parameters]:
    first, second = ("Aa Aa", "Aa aa"), ("Aa Aa", "aa Aa")
    return list(product(_PAIRS, first, second, _TRAIT["en"], _TRAIT["en"]))


def _named(genotype: str, letter: str) -> str:
    return genotype.replace("A", letter).replace("a", letter.lower())


def offspring(mother: str, father: str) -> list[str]:
    """List the four combinations of one allele from each parent, the larger letter first.

    Example:
        >>> offspring("Aa", "aa")
        ['Aa', 'Aa', 'aa', 'aa']
    """
    return ["".join(sorted(pair)) for pair in product(mother, father)]


def _share(mother: str, father: str, asked: str) -> int:
    """How many of the four combinations are what is asked for; the letter is A."""
    wanted = {"dominant": ("AA", "Aa"), "recessive": ("aa",), "heterozygous": ("Aa",)}[asked]
    return sum(child in wanted for child in offspring(mother, father))


def _monohybrid(parameters: Parameters, language: Language) -> Solution:
    letter, mother, father, asked = map(str, parameters)
    count = _share(mother, father, asked)
    fields = {
        "big": letter,
        "small": letter.lower(),
        "one": _named(mother, letter),
        "two": _named(father, letter),
        "children": ", ".join(_named(child, letter) for child in offspring(mother, father)),
        "asked": _ASKED[language][asked],
        "count": str(count),
    }
    return chance(Fraction(count, 4), [Fraction(i, 4) for i in range(5)], language, fields)


def _dihybrid(parameters: Parameters, language: Language) -> Solution:
    letters, first, second, asked_first, asked_second = map(str, parameters)
    (m, f), (n, g) = first.split(), second.split()
    p, q = Fraction(_share(m, f, asked_first), 4), Fraction(_share(n, g, asked_second), 4)
    others = [p * (1 - q), (1 - p) * q, (1 - p) * (1 - q)]
    mistakes = [*others, p, q, (p + q) / 2, *_SHARES]
    fields = {
        "first": letters[0],
        "second": letters[1],
        "one": _named(m, letters[0]) + _named(n, letters[1]),
        "two": _named(f, letters[0]) + _named(g, letters[1]),
        "trait_first": _TRAIT[language][asked_first],
        "trait_second": _TRAIT[language][asked_second],
        "p": ratio(p),
        "q": ratio(q),
    }
    return chance(p * q, mistakes, language, fields)


MONOHYBRID: Final = Task(
    "crosses",
    "monohybrid",
    _one_gene,
    _monohybrid,
    {
        "en": Texts(
            asked=(
                "Allele {big} is completely dominant over {small}. A plant {one} is crossed with a plant "
                "{two}. What fraction of the offspring {asked}?",
                "In the cross {one} × {two}, with {big} completely dominant over {small}, "
                "which share of the offspring {asked}?",
                "The parents are {one} and {two}, and {big} fully dominates {small}. "
                "With what probability is a descendant one that {asked}?",
            ),
            held_out=(
                "Breeders pair an animal {one} with an animal {two}. One copy of {big} hides {small} "
                "altogether. Which part of the litter, on average, {asked}?",
            ),
            explained=(
                "Each parent passes on one of its two alleles with equal chance. From {one} × {two} arise "
                "{children}. The fraction that {asked} is {count} of 4, or {result}.",
                "A Punnett square of {one} and {two} has four equally likely boxes: {children}. "
                "Counting those in which the offspring {asked} gives {count} of 4, or {result}.",
                "We combine every allele of {one} with every allele of {two} and obtain {children}. "
                "Of these four, the share that {asked} is {count} in 4, hence {result}.",
            ),
            told=("The cross {one} × {two} gives {children}: the fraction that {asked} is {result}.",),
        ),
        "it": Texts(
            asked=(
                "L'allele {big} è completamente dominante su {small}. Si incrocia una pianta {one} con una "
                "pianta {two}. Quale frazione della prole {asked}?",
                "Nell'incrocio {one} × {two}, con {big} completamente dominante su {small}, "
                "quale parte della prole {asked}?",
                "I genitori sono {one} e {two}, e {big} domina del tutto su {small}. "
                "Con quale probabilità un discendente {asked}?",
            ),
            held_out=(
                "Un allevatore accoppia un animale {one} con un animale {two}. Una sola copia di {big} "
                "nasconde del tutto {small}. Quale quota della cucciolata, in media, {asked}?",
            ),
            explained=(
                "Ogni genitore trasmette con uguale probabilità uno dei suoi due alleli. Da {one} × {two} "
                "si formano {children}. La frazione che {asked} è {count} su 4, cioè {result}.",
                "Il quadrato di Punnett di {one} e {two} ha quattro caselle ugualmente probabili: "
                "{children}. Contando quelle in cui la prole {asked} si trova {count} su 4, cioè {result}.",
                "Si combina ogni allele di {one} con ogni allele di {two} e si ottengono {children}. "
                "Di questi quattro, la parte che {asked} è {count} su 4, dunque {result}.",
            ),
            told=("L'incrocio {one} × {two} dà {children}: la frazione che {asked} è {result}.",),
        ),
    },
)

DIHYBRID: Final = Task(
    "crosses",
    "dihybrid",
    _two_genes,
    _dihybrid,
    {
        "en": Texts(
            asked=(
                "Genes {first} and {second} are inherited independently, capital letters dominate. In the "
                "cross {one} × {two}, what fraction is {trait_first} for {first} and {trait_second} for "
                "{second}?",
                "Parents {one} and {two} have unlinked genes with complete dominance. Which share of the "
                "offspring has the {trait_first} trait of {first} and the {trait_second} trait of {second}?",
                "Capital letters are dominant and the two genes are on different chromosomes. How likely is "
                "a child of {one} and {two} to be {trait_first} in {first} and {trait_second} in {second}?",
            ),
            held_out=(
                "A gardener pollinates {one} with {two}; the genes assort freely and one capital letter is "
                "enough. Which part of the seedlings looks {trait_first} as to {first} and {trait_second} "
                "as to {second}?",
            ),
            explained=(
                "Independent genes multiply their probabilities. In {one} × {two} the {trait_first} trait of "
                "{first} has {p} and the {trait_second} trait of {second} has {q}: {p} × {q} = {result}.",
                "Take each gene alone: {first} is {trait_first} with probability {p}, {second} is "
                "{trait_second} with {q}. As they assort independently, we multiply: {p} × {q} = {result}.",
                "Splitting {one} × {two} into two crosses gives {p} for {trait_first} {first} and {q} for "
                "{trait_second} {second}. Both together have the product {p} × {q}, that is {result}.",
            ),
            told=(
                "In {one} × {two} the two genes are independent: {trait_first} {first} and {trait_second} "
                "{second} occur together in {p} × {q} = {result}.",
            ),
        ),
        "it": Texts(
            asked=(
                "I geni {first} e {second} si ereditano in modo indipendente, le maiuscole dominano. "
                "Nell'incrocio {one} × {two}, quale frazione ha il carattere {trait_first} per {first} e "
                "{trait_second} per {second}?",
                "I genitori {one} e {two} hanno geni non associati con dominanza completa. Quale parte della "
                "prole ha il carattere {trait_first} di {first} e il carattere {trait_second} di {second}?",
                "Le maiuscole sono dominanti e i due geni stanno su cromosomi diversi. Con quale "
                "probabilità un figlio di {one} e {two} ha il carattere {trait_first} per {first} e "
                "{trait_second} per {second}?",
            ),
            held_out=(
                "Un giardiniere impollina {one} con {two}; i geni si assortiscono liberamente e basta una "
                "maiuscola. Quale quota delle piantine appare con il carattere {trait_first} quanto a "
                "{first} e {trait_second} quanto a {second}?",
            ),
            explained=(
                "Le probabilità di geni indipendenti si moltiplicano. In {one} × {two} il carattere "
                "{trait_first} di {first} ha {p} e il carattere {trait_second} di {second} ha {q}: "
                "{p} × {q} = {result}.",
                "Si guarda ogni gene da solo: {first} dà il carattere {trait_first} con probabilità {p}, "
                "{second} quello {trait_second} con {q}. Essendo indipendenti, si moltiplica: "
                "{p} × {q} = {result}.",
                "Dividendo {one} × {two} in due incroci si trova {p} per il carattere {trait_first} di "
                "{first} e {q} per quello {trait_second} di {second}. Insieme hanno il prodotto {p} × {q}, "
                "cioè {result}.",
            ),
            told=(
                "In {one} × {two} i due geni sono indipendenti: il carattere {trait_first} di {first} e "
                "quello {trait_second} di {second} compaiono insieme in {p} × {q} = {result}.",
            ),
        ),
    },
)

TASKS: Final = (MONOHYBRID, DIHYBRID)
