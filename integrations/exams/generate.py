"""Questions by seed, split and place: no two machines draw different ones."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, TypeAlias, TypeVar, get_args

from fastreward.errors import InputError
from fastreward.integrations.exams import (
    blood,
    chances,
    crosses,
    dilutions,
    molarity,
    motion,
    series,
    shares,
    strands,
    syllogisms,
    units,
)
from fastreward.integrations.exams.draw import Draw
from fastreward.integrations.exams.question import LETTERS, Question
from fastreward.integrations.exams.task import Language, Solution, Task

Name = TypeVar("Name", bound=str)

Split: TypeAlias = Literal["train", "held_out_numbers", "held_out_templates"]

SPLITS: Final[tuple[Split, ...]] = get_args(Split)
"""What may be drawn: for training, with combinations it never has, in wordings that it never has."""

LANGUAGES: Final[tuple[Language, ...]] = get_args(Language)

TASKS: Final[tuple[Task, ...]] = (
    *dilutions.TASKS,
    *molarity.TASKS,
    *crosses.TASKS,
    *blood.TASKS,
    *strands.TASKS,
    *motion.TASKS,
    *units.TASKS,
    *series.TASKS,
    *shares.TASKS,
    *chances.TASKS,
    *syllogisms.TASKS,
)

FAMILIES: Final[tuple[str, ...]] = tuple(dict.fromkeys(task.family for task in TASKS))
"""What questions are about; each family has several tasks."""


def questions(
    count: int,
    *,
    seed: int = 0,
    split: Split = "train",
    languages: Iterable[str] = LANGUAGES,
    families: Iterable[str] | None = None,
) -> list[Question]:
    """Draw exam questions.

    A question depends on ``seed``, ``split``, its place in the list, and which languages and families there
    are, and on nothing else: of two lengths, the shorter list is the beginning of the longer. Languages,
    families, and the tasks of a family are drawn alike, and so are the letters of the answers.

    About one in eight combinations of numbers (of terms, strands or genotypes) belongs to
    ``"held_out_numbers"``, whatever the seed: their hash decides. In ``"held_out_templates"`` the numbers are
    those of training and only the wording of the question is new. A long list of a small family repeats
    itself. The order of a combination does not count: of two parents, the exchanged pair is on the same side.

    Args:
        count: Number of questions, 0 or more.
        seed: Any integer.
        split: One of `SPLITS`.
        languages: Some of ``"en"`` and ``"it"``.
        families: Some of `FAMILIES`; ``None`` for all.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> first, second = questions(2, seed=3, languages=["en"], families=["kinematics"])
        >>> first == questions(1, seed=3, languages=["en"], families=["kinematics"])[0]
        True
        >>> len(set(first.options))
        5
    """
    check_count(count, seed)
    if split not in SPLITS:
        raise InputError(f"one of {', '.join(SPLITS)} as split", repr(split), "Correct the name.")
    spoken = chosen("languages", languages, LANGUAGES)
    by_family = tasks_of(families)
    return [_question(Draw("question", seed, split, i), split, spoken, by_family) for i in range(count)]


def tasks_of(families: Iterable[str] | None) -> list[list[Task]]:
    """List the tasks of each of some families; ``None`` for all families.

    Raises:
        InputError: There is no such family.
    """
    names = FAMILIES if families is None else chosen("families", families, FAMILIES)
    return [[task for task in TASKS if task.family == name] for name in names]


def chosen(argument: str, names: object, known: tuple[Name, ...]) -> list[Name]:
    """Read some of the known names, in the order in which they are known; a single string is one name.

    Raises:
        InputError: There are none, or one is not known.
    """
    given = [names] if isinstance(names, str) else list(names) if isinstance(names, Iterable) else []
    if not given or not all(name in known for name in given):
        raise InputError(f"some of {', '.join(known)} as {argument}", repr(names), "Correct the names.")
    return [name for name in known if name in given]


def check_count(count: object, seed: object) -> None:
    """Refuse a number of items, or a seed, that is none.

    Raises:
        InputError: One of them is not an integer, or the first is below 0.
    """
    if not isinstance(count, int) or isinstance(count, bool) or count < 0:
        raise InputError("a count of 0 or more", repr(count), "Say how many are to be drawn.")
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise InputError("an integer as seed", repr(seed), "Pass seed=0.")


def _question(draw: Draw, split: Split, languages: list[Language], families: list[list[Task]]) -> Question:
    language = draw.pick(languages)
    task = draw.pick(draw.pick(families))
    texts = task.texts[language]
    new_wording = split == "held_out_templates"
    template, place = draw.pick(task.templates(held_out=new_wording))
    solution = task.solve(draw.pick(task.side(held_out=split == "held_out_numbers")), language)
    fields = {**solution.fields, "result": solution.right}
    options = _wrong_options(draw, solution)
    right = draw.below(len(LETTERS))
    options.insert(right, solution.right)
    return Question(
        question=(texts.held_out if new_wording else texts.asked)[place].format_map(fields),
        options=tuple(options),
        answer=LETTERS[right],
        explanations=tuple(wording.format_map(fields) for wording in texts.explained),
        language=language,
        family=task.family,
        template=template,
    )


def _wrong_options(draw: Draw, solution: Solution) -> list[str]:
    """Draw four wrong options; of those that have a size, first how many are smaller than the right one."""
    count = len(LETTERS) - 1
    if solution.below is None:
        return draw.sample(solution.wrong, count)
    smaller, larger = solution.wrong[: solution.below], solution.wrong[solution.below :]
    least, most = max(0, count - len(larger)), min(count, len(smaller))
    below = least + draw.below(most - least + 1)
    both = draw.sample(smaller, below) + draw.sample(larger, count - below)
    return draw.sample(both, count)
