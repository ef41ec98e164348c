"""Domain text for continued pre-training: facts, definitions, tables and worked examples."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from fastreward.integrations.exams.draw import Draw
from fastreward.integrations.exams.facts import FACTS
from fastreward.integrations.exams.generate import LANGUAGES, check_count, chosen, tasks_of
from fastreward.integrations.exams.task import Language, Task

_EXAMPLES: Final = 3  # of one task in a text
_TABLES: Final = 6  # one text in so many is a piece of a table of products or sums
_LARGEST_FACTOR: Final = 12


def corpus(
    count: int,
    *,
    seed: int = 0,
    languages: Iterable[str] = LANGUAGES,
    families: Iterable[str] | None = None,
) -> list[str]:
    """Write texts about what the questions are about, without a question in them.

    A text holds two facts of a family, short examples of one of its tasks and a worked one; one in six holds
    lines of a table of products or sums instead, as every pupil knows them. The numbers of all examples are
    those of training: nothing that is held out of `questions` is calculated here. (A table belongs to no
    family, and so to no split.) A text depends on the seed and its place, as a question does.

    Args:
        count: Number of texts, 0 or more.
        seed: Any integer.
        languages: Some of ``"en"`` and ``"it"``.
        families: Some of `FAMILIES`; ``None`` for all.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> (text,) = corpus(1, languages=["en"], families=["kinematics"])
        >>> len(text.split()) > 20
        True
    """
    check_count(count, seed)
    spoken = chosen("languages", languages, LANGUAGES)
    by_family = tasks_of(families)
    return [_text(Draw("corpus", seed, i), spoken, by_family) for i in range(count)]


def _text(draw: Draw, languages: list[Language], families: list[list[Task]]) -> str:
    language = draw.pick(languages)
    if draw.below(_TABLES) == 0:
        return _table(draw, language)
    task = draw.pick(draw.pick(families))
    sentences = draw.sample(FACTS[task.family][language], 2)
    texts = task.texts[language]
    for place in range(_EXAMPLES):
        solution = task.solve(draw.pick(task.side(held_out=False)), language)
        fields = {**solution.fields, "result": solution.right}
        wording = draw.pick(texts.told if place < _EXAMPLES - 1 else texts.explained)
        sentences.append(wording.format_map(fields))
    return " ".join(sentences)


def _table(draw: Draw, language: Language) -> str:
    """Some products and quotients, or sums and differences, of small numbers."""
    lines = []
    for _ in range(8):
        a, b = (2 + draw.below(_LARGEST_FACTOR - 1) for _ in range(2))
        if draw.below(2):
            c = 10 * draw.below(_LARGEST_FACTOR) + a
            lines.append(f"{c} + {b} = {c + b}, {c + b} - {b} = {c}")
        else:
            lines.append(f"{a} × {b} = {a * b}, {a * b} / {b} = {a}")
    return {"en": "To calculate: ", "it": "Per calcolare: "}[language] + "; ".join(lines) + "."
