"""Question: an exam question with its options, its answer and worked explanations of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from fastreward.errors import InputError

LETTERS: Final = "ABCDE"
_BEGINS_ANSWER: Final = {"en": "Answer:", "it": "Risposta:"}


@dataclass(frozen=True)
class Question:
    """One question of an exam.

    Its `completion` is what ``FormatReward()``, ``AnswerReward("answer")`` and
    ``SemanticReward(reference="explanation", extract="explanation")`` read, the first two as they are by
    default, over the columns of `row`.

    Attributes:
        question: What is asked.
        options: The texts of five options, all different.
        answer: The letter of the right one, ``"A"`` to ``"E"``.
        explanations: Worded differently, the same worked explanation; the first is the reference.
        language: ``"en"`` or ``"it"``.
        family: What it is about, one of `FAMILIES`.
        template: Identifier of the question's wording; the same in both languages.

    Example:
        >>> item = Question(
        ...     question="How much is 2 + 2?",
        ...     options=("3", "4", "5", "22", "0"),
        ...     answer="B",
        ...     explanations=("Two and two make 4.", "One more than 3 is 4.", "Twice 2 is 4."),
        ...     language="en",
        ...     family="sums",
        ...     template="sums/plain/0",
        ... )
        >>> print(item.prompt + item.completion(1))
        How much is 2 + 2?
        A) 3
        B) 4
        C) 5
        D) 22
        E) 0
        Answer:
        <explanation>One more than 3 is 4.</explanation>
        <answer>B</answer>
    """

    question: str
    options: tuple[str, ...]
    answer: str
    explanations: tuple[str, ...]
    language: str
    family: str
    template: str

    @property
    def prompt(self) -> str:
        """The question, its options one a line, and the line after which a completion begins."""
        options = (f"{letter}) {text}" for letter, text in zip(LETTERS, self.options, strict=True))
        return "\n".join((self.question, *options, _BEGINS_ANSWER[self.language], ""))

    def completion(self, wording: int = 0) -> str:
        """Write what a perfect candidate would.

        Args:
            wording: Which of the explanations, counted from 0, the reference.

        Raises:
            InputError: There is none of that number.
        """
        if not 0 <= wording < len(self.explanations):
            raise InputError(
                f"a wording from 0 to {len(self.explanations) - 1}",
                repr(wording),
                "Take it modulo len(explanations).",
            )
        return f"<explanation>{self.explanations[wording]}</explanation>\n<answer>{self.answer}</answer>"

    def row(self, wording: int = 0) -> dict[str, str]:
        """Return the columns that fine-tuning and GRPO read.

        Args:
            wording: Which of the explanations ``"completion"`` holds; ``"explanation"`` is the reference.

        Raises:
            InputError: There is none of that number.
        """
        return {
            "prompt": self.prompt,
            "completion": self.completion(wording),
            "answer": self.answer,
            "explanation": self.explanations[0],
            "language": self.language,
            "family": self.family,
            "template": self.template,
        }
