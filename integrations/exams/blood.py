"""Blood groups: their inheritance, and who may give red cells to whom."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations, product
from typing import Final

from fastreward.integrations.exams.task import Language, Parameters, Solution, Task, Texts, chance

_GENOTYPES: Final = ("AA", "AO", "BB", "BO", "AB", "OO")
_GROUPS: Final = ("A", "B", "AB", "O")
_GROUP: Final = {"AA": "A", "AO": "A", "BB": "B", "BO": "B", "AB": "AB", "OO": "O"}
_BLOODS: Final = tuple(group + sign for group in _GROUPS for sign in "+-")

_VERDICTS: Final[dict[Language, dict[str, str]]] = {
    "en": {
        "": "it is compatible",
        "A": "antigen A is foreign",
        "B": "antigen B is foreign",
        "AB": "antigens A and B are foreign",
        "D": "antigen D (Rh) is foreign",
    },
    "it": {
        "": "è compatibile",
        "A": "l'antigene A è estraneo",
        "B": "l'antigene B è estraneo",
        "AB": "gli antigeni A e B sono estranei",
        "D": "l'antigene D (Rh) è estraneo",
    },
}


def _parents() -> list[Parameters]:
    """All pairs of parents, with the groups for which at least one of them has each allele that it takes."""
    return [
        (one, two, group)
        for one, two, group in product(_GENOTYPES, _GENOTYPES, _GROUPS)
        if set(group) <= set(one + two)
    ]


def _transfusions() -> list[Parameters]:
    """Pairs of donor and recipient that differ, and not by antigens of both systems that are foreign."""
    pairs = permutations(_BLOODS, 2)
    return [pair for pair in pairs if _foreign(*pair) in _VERDICTS["en"]]


def _antigens(blood: str) -> str:
    """The antigens of a group with its Rh sign: "AB+" has A, B and D."""
    return blood[:-1].replace("O", "") + ("D" if blood.endswith("+") else "")


def _foreign(donor: str, recipient: str) -> str:
    return "".join(antigen for antigen in _antigens(donor) if antigen not in _antigens(recipient))


def _listed(antigens: str, language: Language) -> str:
    """Write antigens as a list in words: "A, B and D"."""
    if not antigens:
        return {"en": "none", "it": "nessuno"}[language]
    joint = {"en": " and ", "it": " e "}[language]
    return joint.join(part for part in (", ".join(antigens[:-1]), antigens[-1]) if part)


def _local(name: str, language: Language) -> str:
    """Write a group or genotype as the language does: Italian has the digit 0 for the letter O."""
    return name.replace("O", "0") if language == "it" else name


def _inheritance(parameters: Parameters, language: Language) -> Solution:
    mother, father, group = map(str, parameters)
    children = ["".join(sorted(pair)) for pair in product(mother, father)]
    count = sum(_GROUP[child] == group for child in children)
    fields = {
        "one": _local(mother, language),
        "two": _local(father, language),
        "group": _local(group, language),
        "children": ", ".join(_local(child, language) for child in children),
        "count": str(count),
    }
    return chance(Fraction(count, 4), [Fraction(i, 4) for i in range(5)], language, fields)


def _transfusion(parameters: Parameters, language: Language) -> Solution:
    donor, recipient = map(str, parameters)
    verdicts = _VERDICTS[language]
    right = verdicts[_foreign(donor, recipient)]
    fields = {
        "donor": _local(donor, language),
        "recipient": _local(recipient, language),
        "given": _listed(_antigens(donor), language),
        "own": _listed(_antigens(recipient), language),
    }
    return Solution(right, tuple(text for text in verdicts.values() if text != right), fields)


INHERITANCE: Final = Task(
    "blood_groups",
    "inheritance",
    _parents,
    _inheritance,
    {
        "en": Texts(
            asked=(
                "The parents have the blood group genotypes {one} and {two}. With what probability does a "
                "child have group {group}?",
                "Alleles A and B are codominant, O is recessive. Which share of the children of {one} and "
                "{two} has blood group {group}?",
                "A mother is {one} and a father {two} in the ABO system. How likely is a child of group "
                "{group}?",
            ),
            held_out=(
                "A couple with the genotypes {one} and {two} of the ABO system expects a baby. What is the "
                "chance that its blood turns out to be of group {group}?",
            ),
            explained=(
                "A and B are codominant and O is recessive. From {one} × {two} the children {children} are "
                "equally likely. Group {group} has {count} of 4, or {result}.",
                "Each parent gives one allele, so {one} and {two} can have {children}. "
                "The share with group {group} is {count} of 4, which is a probability of {result}.",
                "A square of {one} and {two} holds {children}. Only OO makes group O, and A or B shows "
                "above O; the count for group {group} is {count} in 4, hence {result}.",
            ),
            told=("From {one} × {two} come {children}: group {group} has the probability {result}.",),
        ),
        "it": Texts(
            asked=(
                "I genitori hanno per il gruppo sanguigno i genotipi {one} e {two}. Con quale probabilità "
                "un figlio ha il gruppo {group}?",
                "Gli alleli A e B sono codominanti, 0 è recessivo. Quale parte dei figli di {one} e {two} "
                "ha il gruppo sanguigno {group}?",
                "Nel sistema AB0 una madre è {one} e un padre {two}. Quanto è probabile un figlio di gruppo "
                "{group}?",
            ),
            held_out=(
                "Una coppia con i genotipi {one} e {two} del sistema AB0 aspetta un bambino. Qual è la "
                "probabilità che il suo sangue risulti di gruppo {group}?",
            ),
            explained=(
                "A e B sono codominanti e 0 è recessivo. Da {one} × {two} sono ugualmente probabili i figli "
                "{children}. Il gruppo {group} ne ha {count} su 4, cioè {result}.",
                "Ogni genitore dà un allele, quindi {one} e {two} possono avere {children}. "
                "La parte di gruppo {group} è {count} su 4, con una probabilità di {result}.",
                "Il quadrato di {one} e {two} contiene {children}. Solo 00 dà il gruppo 0, e A o B prevale "
                "su 0; per il gruppo {group} si conta {count} su 4, dunque {result}.",
            ),
            told=("Da {one} × {two} vengono {children}: il gruppo {group} ha la probabilità {result}.",),
        ),
    },
)

TRANSFUSION: Final = Task(
    "blood_groups",
    "transfusion",
    _transfusions,
    _transfusion,
    {
        "en": Texts(
            asked=(
                "Red cells of group {donor} are to be given to a patient of group {recipient}. What holds?",
                "Donor {donor}, recipient {recipient}: what is to be said of a transfusion of red cells?",
                "May somebody of group {recipient} receive red cells of group {donor}?",
            ),
            held_out=(
                "On the ward lies a patient with {recipient} on the wristband, and the bag of red cells is "
                "labelled {donor}. How do you judge this?",
            ),
            explained=(
                "Red cells may carry only antigens that the recipient has as well. The donor {donor} carries "
                "{given}, the recipient {recipient} has {own}. So {result}.",
                "We compare antigens. On red cells of {donor}: {given}; in a patient of {recipient}: {own}. "
                "What the patient lacks is attacked, and here {result}.",
                "A transfusion fails if the donor's cells bring an antigen that the patient lacks. "
                "Cells {donor} bring {given}; a patient {recipient} owns {own}: {result}.",
            ),
            told=("Red cells {donor} for a patient {recipient}: {result}.",),
        ),
        "it": Texts(
            asked=(
                "A un paziente di gruppo {recipient} si vogliono dare globuli rossi di gruppo {donor}. Che "
                "cosa vale?",
                "Donatore {donor}, ricevente {recipient}: che cosa si deve dire di una trasfusione di "
                "globuli rossi?",
                "Una persona di gruppo {recipient} può ricevere globuli rossi di gruppo {donor}?",
            ),
            held_out=(
                "In reparto c'è un paziente con {recipient} sul braccialetto, e la sacca di globuli rossi "
                "porta la scritta {donor}. Come giudichi la cosa?",
            ),
            explained=(
                "I globuli rossi possono portare solo antigeni che anche il ricevente ha. Il donatore "
                "{donor} porta {given}, il ricevente {recipient} ha {own}. Quindi {result}.",
                "Si confrontano gli antigeni. Sui globuli rossi di {donor}: {given}; nel paziente di "
                "{recipient}: {own}. Ciò che manca al paziente viene attaccato, e qui {result}.",
                "Una trasfusione fallisce se le cellule del donatore portano un antigene che manca al "
                "paziente. Le cellule {donor} portano {given}; un paziente {recipient} possiede {own}: "
                "{result}.",
            ),
            told=("Globuli rossi {donor} per un paziente {recipient}: {result}.",),
        ),
    },
)

TASKS: Final = (INHERITANCE, TRANSFUSION)
