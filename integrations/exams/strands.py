"""Base pairing: the complementary strand of DNA and the RNA that is transcribed from it."""

from __future__ import annotations

from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Parameters, Solution, Task, Texts

_LENGTH: Final = 4  # bases
_PARTNER: Final = str.maketrans("ATGC", "TACG")
_MISTAKEN: Final = str.maketrans("ATGC", "GCAT")  # purines and pyrimidines with their own kind


def _strands() -> list[Parameters]:
    return [("".join(bases),) for bases in product("ATGC", repeat=_LENGTH)]


def _spelled(strand: str) -> str:
    return "-".join(strand)


def _solution(strand: str, right: str, mistakes: list[str]) -> Solution:
    unique = dict.fromkeys(mistake for mistake in mistakes if mistake != right)
    pairs = ", ".join(map("-".join, zip(strand, right, strict=True)))
    fields = {"strand": _spelled(strand), "pairs": pairs}
    return Solution(_spelled(right), tuple(map(_spelled, unique)), fields)


def _one_changed(strand: str, alphabet: str) -> list[str]:
    """The strand with its first, second or last base replaced by the next one of the alphabet."""
    changed = []
    for place in (0, 1, len(strand) - 1):
        base = alphabet[(alphabet.index(strand[place]) + 1) % len(alphabet)]
        changed.append(strand[:place] + base + strand[place + 1 :])
    return changed


def _complement(parameters: Parameters, language: Language) -> Solution:
    strand = str(parameters[0])
    right = strand.translate(_PARTNER)
    mistakes = [strand, right[::-1], strand.translate(_MISTAKEN), strand[::-1], *_one_changed(right, "ATGC")]
    return _solution(strand, right, mistakes)


def _transcript(parameters: Parameters, language: Language) -> Solution:
    strand = str(parameters[0])
    pairs = strand.translate(_PARTNER)
    right = pairs.replace("T", "U")
    mistakes = [pairs, strand.replace("T", "U"), right[::-1], strand, *_one_changed(right, "AUGC")]
    return _solution(strand, right, mistakes)


COMPLEMENT: Final = Task(
    "base_pairing",
    "complement",
    _strands,
    _complement,
    {
        "en": Texts(
            asked=(
                "One strand of DNA reads {strand}. Which bases stand opposite, in the same order?",
                "What is the complementary DNA strand of {strand}, written base under base?",
                "A DNA double helix has {strand} on one side. What is on the other side, base by base?",
            ),
            held_out=(
                "A polymerase copies the DNA template {strand} into new DNA. "
                "Which bases does it set, one for each of the template from left to right?",
            ),
            explained=(
                "In DNA adenine pairs with thymine and guanine with cytosine. Setting the partner of each "
                "base of {strand} in the same order gives {result}.",
                "The partners are A with T and G with C. From left to right the pairs are {pairs}, "
                "and so the strand opposite {strand} reads {result}.",
                "Complementary means that every A faces a T and every G a C. "
                "Going through {strand} base by base we find {pairs}, which is {result}.",
            ),
            told=("Opposite the DNA strand {strand} stands {result}.",),
        ),
        "it": Texts(
            asked=(
                "Un filamento di DNA è {strand}. Quali basi gli stanno di fronte, nello stesso ordine?",
                "Qual è il filamento di DNA complementare a {strand}, scritto base sotto base?",
                "Una doppia elica di DNA ha {strand} su un lato. Che cosa c'è sull'altro lato, base per "
                "base?",
            ),
            held_out=(
                "Una polimerasi copia lo stampo di DNA {strand} in nuovo DNA. "
                "Quali basi inserisce, una per ciascuna dello stampo da sinistra a destra?",
            ),
            explained=(
                "Nel DNA l'adenina si appaia con la timina e la guanina con la citosina. Mettendo il "
                "partner di ogni base di {strand} nello stesso ordine si ottiene {result}.",
                "Le coppie sono A con T e G con C. Da sinistra a destra si ha {pairs}, "
                "e quindi il filamento di fronte a {strand} è {result}.",
                "Complementare vuol dire che ogni A ha di fronte una T e ogni G una C. "
                "Scorrendo {strand} base per base si trova {pairs}, cioè {result}.",
            ),
            told=("Di fronte al filamento di DNA {strand} sta {result}.",),
        ),
    },
)

TRANSCRIPT: Final = Task(
    "base_pairing",
    "transcript",
    _strands,
    _transcript,
    {
        "en": Texts(
            asked=(
                "The template strand of a gene reads {strand}. Which RNA is made from it, base by base?",
                "Which messenger RNA, written base under base, is transcribed from the DNA template "
                "{strand}?",
                "RNA is built along the DNA strand {strand}. What does it read, in the same order?",
            ),
            held_out=(
                "An RNA polymerase moves along {strand} on the DNA template. "
                "Which bases of RNA does it join, one for each that it passes?",
            ),
            explained=(
                "In transcription A of the DNA pairs with U, T with A, G with C and C with G. "
                "Applied to each base of {strand} in order, this gives {result}.",
                "RNA has uracil in place of thymine, otherwise the bases pair as in DNA. "
                "The template {strand} makes the pairs {pairs}, and the RNA is {result}.",
                "We write the partner of every base of {strand}, with U wherever the template has A. "
                "The pairs {pairs} show that the transcript is {result}.",
            ),
            told=("From the DNA template {strand} the RNA {result} is transcribed.",),
        ),
        "it": Texts(
            asked=(
                "Il filamento stampo di un gene è {strand}. Quale RNA se ne ricava, base per base?",
                "Quale RNA messaggero, scritto base sotto base, viene trascritto dallo stampo di DNA "
                "{strand}?",
                "Lungo il filamento di DNA {strand} si forma RNA. Qual è la sua sequenza, nello stesso "
                "ordine?",
            ),
            held_out=(
                "Una RNA polimerasi scorre su {strand} dello stampo di DNA. "
                "Quali basi di RNA unisce, una per ciascuna di quelle che incontra?",
            ),
            explained=(
                "Nella trascrizione A del DNA si appaia con U, T con A, G con C e C con G. "
                "Applicata in ordine a ogni base di {strand}, la regola dà {result}.",
                "L'RNA ha l'uracile al posto della timina, per il resto le basi si appaiano come nel DNA. "
                "Lo stampo {strand} forma le coppie {pairs} e l'RNA è {result}.",
                "Si scrive il partner di ogni base di {strand}, con U dovunque lo stampo abbia A. "
                "Le coppie {pairs} mostrano che il trascritto è {result}.",
            ),
            told=("Dallo stampo di DNA {strand} viene trascritto l'RNA {result}.",),
        ),
    },
)

TASKS: Final = (COMPLEMENT, TRANSCRIPT)
