"""Syllogisms: which conclusion follows from two premises, and what is wrong with one that does not."""

from __future__ import annotations

from itertools import permutations
from typing import Final

from fastreward.integrations.exams.task import Language, Parameters, Solution, Task, Texts

_PLURAL: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "doctor": "doctors",
        "painter": "painters",
        "swimmer": "swimmers",
        "poet": "poets",
        "cook": "cooks",
        "cyclist": "cyclists",
        "dancer": "dancers",
        "reader": "readers",
    },
    "it": {
        "doctor": "medici",
        "painter": "pittori",
        "swimmer": "nuotatori",
        "poet": "poeti",
        "cook": "cuochi",
        "cyclist": "ciclisti",
        "dancer": "ballerini",
        "reader": "lettori",
    },
}
_SINGULAR: Final = {
    "doctor": "medico",
    "painter": "pittore",
    "swimmer": "nuotatore",
    "poet": "poeta",
    "cook": "cuoco",
    "cyclist": "ciclista",
    "dancer": "ballerino",
    "reader": "lettore",
}
"""Italian, for "nessun …": masculine nouns without exception, so that one form of the sentence fits all."""

_STATEMENTS: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "a": "all {x} are {y}",
        "e": "no {x} are {y}",
        "i": "some {x} are {y}",
        "o": "some {x} are not {y}",
    },
    "it": {
        "a": "tutti i {x} sono {y}",
        "e": "nessun {x} è {y}",
        "i": "alcuni {x} sono {y}",
        "o": "alcuni {x} non sono {y}",
    },
}

# Premises and conclusions are written by form and terms: "aSM" is "all S are M". With S in the first premise
# and P in the second, the form of a syllogism is its premises. From some of them more follows than the
# conclusion given ("no P are S" with "no S are P"), and none of that is among the options.
_MOODS: Final[dict[str, str]] = {
    "aSM aMP": "aSP",
    "aSM eMP": "eSP",
    "aSM ePM": "eSP",
    "eSM aPM": "eSP",
    "iSM aMP": "iSP",
    "iSM eMP": "oSP",
    "iSM ePM": "oSP",
    "oSM aPM": "oSP",
    "aSM aPM": "",
    "iSM iMP": "",
    "eSM eMP": "",
    "aSM iMP": "",
}
_OFFERED: Final[dict[str, tuple[str, ...]]] = {
    "aSP": ("aPS", "eSP", "oSP", ""),
    "eSP": ("aSP", "iSP", "aPS", ""),
    "iSP": ("aSP", "eSP", "aPS", "oSP", ""),
    "oSP": ("aSP", "eSP", "iSP", "aPS", ""),
    "": ("aSP", "eSP", "iSP", "oSP"),
}
_NOTHING: Final[dict[Language, str]] = {"en": "none of these follows", "it": "non segue nessuna di queste"}

_WHY: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "aSP": "the {m} lie within the {p}, and the {s} within the {m}",
        "eSP": "the premises keep {s} and {p} apart, one group inside the {m} and the other outside",
        "iSP": "those {s} that are {m} must be {p} too",
        "oSP": "the {s} in question and the {p} are on opposite sides of the {m}",
        "": "the premises leave open how {s} and {p} meet, since the {m} do not link them",
    },
    "it": {
        "aSP": "i {m} stanno dentro i {p}, e i {s} dentro i {m}",
        "eSP": "le premesse separano i {s} dai {p}, gli uni dentro i {m} e gli altri fuori",
        "iSP": "quei {s} che sono {m} devono essere anche {p}",
        "oSP": "i {s} in questione e i {p} stanno da parti opposte rispetto ai {m}",
        "": "le premesse lasciano aperto il rapporto tra i {s} e i {p}, perché i {m} non li legano",
    },
}

_ARGUMENTS: Final[dict[str, str]] = {
    "aSM aMP aSP": "valid",
    "aSM eMP eSP": "valid",
    "iSM aMP iSP": "valid",
    "iSM eMP oSP": "valid",
    "aSM aPM aSP": "middle",
    "aSM iPM iSP": "middle",
    "eSM eMP eSP": "negative",
    "eSM oPM oSP": "negative",
    "iSM aMP aSP": "some",
    "iSM eMP eSP": "some",
    "eSM aPM aSP": "affirmative",
    "aSM eMP aSP": "affirmative",
}
_VERDICTS: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "valid": "it is valid",
        "middle": "no premise covers all of the middle term",
        "negative": "both premises are negative",
        "some": "it concludes about all from some",
        "affirmative": "it affirms although a premise denies",
    },
    "it": {
        "valid": "è valido",
        "middle": "nessuna premessa copre tutto il termine medio",
        "negative": "le premesse sono entrambe negative",
        "some": "conclude su tutti da alcuni",
        "affirmative": "afferma benché una premessa neghi",
    },
}

_JUDGED: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "valid": "the {m} carry the very link that the conclusion states",
        "middle": "{s} and {p} may be different parts of the {m}",
        "negative": "two denials tell nothing of how {s} and {p} are linked",
        "some": "only some of the {s} are among the {m}",
        "affirmative": "from a denial no affirmation can be drawn",
    },
    "it": {
        "valid": "i {m} portano proprio il legame che la conclusione afferma",
        "middle": "i {s} e i {p} possono essere parti diverse dei {m}",
        "negative": "due negazioni non dicono nulla sul legame tra i {s} e i {p}",
        "some": "solo una parte dei {s} sta tra i {m}",
        "affirmative": "da una negazione non si ricava un'affermazione",
    },
}


def _moods() -> list[Parameters]:
    return [(mood, *terms) for mood in _MOODS for terms in permutations(_SINGULAR, 3)]


def _arguments() -> list[Parameters]:
    return [(form, *terms) for form in _ARGUMENTS for terms in permutations(_SINGULAR, 3)]


def _statement(code: str, terms: dict[str, str], language: Language) -> str:
    """Put a statement such as "aSM" into words; terms are by their letter."""
    subject = terms[code[1]]
    singular = language == "it" and code[0] == "e"
    words = _SINGULAR if singular else _PLURAL[language]
    return _STATEMENTS[language][code[0]].format(x=words[subject], y=words[terms[code[2]]])


def _terms(parameters: Parameters) -> dict[str, str]:
    return dict(zip("SMP", map(str, parameters[1:]), strict=True))


def _fields(premises: list[str], terms: dict[str, str], language: Language) -> dict[str, str]:
    one, two = (_statement(code, terms, language) for code in premises)
    plurals = {letter.lower(): _PLURAL[language][noun] for letter, noun in terms.items()}
    return {
        "one": one,
        "One": one[0].upper() + one[1:],
        "two": two,
        "Two": two[0].upper() + two[1:],
        **plurals,
    }


def _conclusion(parameters: Parameters, language: Language) -> Solution:
    mood, terms = str(parameters[0]), _terms(parameters)
    right = _MOODS[mood]

    def shown(code: str) -> str:
        return _statement(code, terms, language) if code else _NOTHING[language]

    fields = _fields(mood.split(), terms, language)
    fields["why"] = _WHY[language][right].format_map(fields)
    return Solution(shown(right), tuple(map(shown, _OFFERED[right])), fields)


def _validity(parameters: Parameters, language: Language) -> Solution:
    form, terms = str(parameters[0]), _terms(parameters)
    *premises, conclusion = form.split()
    verdicts = _VERDICTS[language]
    verdict = _ARGUMENTS[form]
    right = verdicts[verdict]
    fields = _fields(premises, terms, language)
    fields["why"] = _JUDGED[language][verdict].format_map(fields)
    fields["end"] = _statement(conclusion, terms, language)
    return Solution(right, tuple(text for text in verdicts.values() if text != right), fields)


CONCLUSION: Final = Task(
    "syllogisms",
    "conclusion",
    _moods,
    _conclusion,
    {
        "en": Texts(
            asked=(
                "{One}. {Two}. Which conclusion follows?",
                "We know that {one} and that {two}. What can be concluded with certainty?",
                "Premises: {one}; {two}. Which of the statements must be true?",
            ),
            held_out=("If it holds that {two}, and also that {one}, what else is then certain?",),
            explained=(
                "The {m} are the middle term. {One}, and {two}: {why}. So: {result}.",
                "Let us see how the {m} link {s} with {p}. As {one} and {two}, {why}. Hence {result}.",
                "Given that {one} and that {two}, we look at the {m}: {why}. The conclusion is that "
                "{result}.",
            ),
            told=("Say that {one} and that {two}. Then {why}.",),
        ),
        "it": Texts(
            asked=(
                "{One}. {Two}. Quale conclusione ne segue?",
                "Sappiamo che {one} e che {two}. Che cosa si può concludere con certezza?",
                "Premesse: {one}; {two}. Quale delle affermazioni è necessariamente vera?",
            ),
            held_out=("Se vale che {two}, e inoltre che {one}, che cos'altro è allora certo?",),
            explained=(
                "I {m} sono il termine medio. {One} e {two}: {why}. Quindi: {result}.",
                "Vediamo come i {m} legano i {s} ai {p}. Poiché {one} e {two}, {why}. Dunque {result}.",
                "Dato che {one} e che {two}, guardiamo i {m}: {why}. La conclusione è che {result}.",
            ),
            told=("Poniamo che {one} e che {two}. Allora {why}.",),
        ),
    },
)

VALIDITY: Final = Task(
    "syllogisms",
    "validity",
    _arguments,
    _validity,
    {
        "en": Texts(
            asked=(
                "{One}. {Two}. Therefore {end}. What is to be said of this argument?",
                "Somebody argues: {one} and {two}, so {end}. How do you judge this reasoning?",
                "From the premises {one} and {two} it is inferred that {end}. Which remark is right?",
            ),
            held_out=(
                "It is claimed that {end}, because {one} and because {two}. What do you reply to this proof?",
            ),
            explained=(
                "The {m} have to link the {s} with the {p}. {One}, {two}, therefore {end}: {why}. So "
                "{result}.",
                "Given that {one} and that {two}, it is claimed that {end}. Now {why}; we say: {result}.",
                "To conclude that {end}, the premises must link all terms by the {m}. We observe: {why}; "
                "{result}.",
            ),
            told=("The argument: {one} and {two}, therefore {end}. The verdict: {result}.",),
        ),
        "it": Texts(
            asked=(
                "{One}. {Two}. Pertanto {end}. Che cosa si deve dire di questo argomento?",
                "Qualcuno argomenta: {one} e {two}, quindi {end}. Come giudichi questo ragionamento?",
                "Dalle premesse {one} e {two} si ricava che {end}. Quale osservazione è giusta?",
            ),
            held_out=(
                "Si sostiene che {end}, perché {one} e perché {two}. Che cosa rispondi a questa prova?",
            ),
            explained=(
                "I {m} devono legare i {s} ai {p}. {One}, {two}, pertanto {end}: {why}. Quindi {result}.",
                "Dato che {one} e che {two}, si sostiene che {end}. Ora {why}; si dice: {result}.",
                "Per concludere che {end}, le premesse devono legare i termini con i {m}. Si osserva: "
                "{why}; {result}.",
            ),
            told=("L'argomento: {one} e {two}, pertanto {end}. Il giudizio: {result}.",),
        ),
    },
)

TASKS: Final = (CONCLUSION, VALIDITY)
