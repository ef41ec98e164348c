"""How well a model does: accuracy, semantic score, format rate and length of its completions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastreward.errors import InputError
from fastreward.integrations.pipeline.data import Kind, check_prompt_lengths, check_rows
from fastreward.integrations.pipeline.prompts import complete
from fastreward.integrations.pipeline.ratings import Judge, verdict
from fastreward.integrations.prompts import RESERVED, context_length, prompt_ids
from fastreward.rewards.answer import AnswerReward
from fastreward.rewards.completion import Extractor, describe
from fastreward.rewards.format import FormatReward
from fastreward.rewards.semantic import SemanticReward

if TYPE_CHECKING:
    from fastreward.scorer import Scorer

TAG: Final = "explanation"
COLUMNS: Final[dict[str, Kind]] = {"prompt": "prompt", "answer": "answer", TAG: "reference"}
"""What rows to evaluate with must have."""


@dataclass(frozen=True)
class Evaluation:
    """What a model wrote to N questions, and how good that is.

    Attributes:
        accuracy: Share of the answers that are right; what gives none is wrong.
        semantic: Mean cosine between explanation and reference; a completion without one counts 0.
        format_rate: Share of the completions with an explanation and an answer in their tags, in order.
        mean_length: Tokens of a completion.
        truncated: Share of the completions that were cut off.
        win_rate: Share of the explanations that the judge prefers to the reference, ties as half; ``None``
            without a judge.
        questions: N prompts as texts.
        references: N references, each a text or a list of texts.
        completions: N texts.
        explanations: N texts, ``None`` where there is none.
        correct: N.
        cosines: N.
        lengths: N, tokens.
        encoder: Name of the encoder that gave the cosines.
        temperature: Of sampling; 0: the likeliest token.
    """

    accuracy: float
    semantic: float
    format_rate: float
    mean_length: float
    truncated: float
    win_rate: float | None
    questions: tuple[str, ...]
    references: tuple[Any, ...]
    completions: tuple[str, ...]
    explanations: tuple[str | None, ...]
    correct: tuple[bool, ...]
    cosines: tuple[float, ...]
    lengths: tuple[int, ...]
    encoder: str
    temperature: float

    @classmethod
    def of_texts(
        cls, questions: Sequence[str], explanations: Sequence[str | None], references: Sequence[Any]
    ) -> Evaluation:
        """Take explanations from elsewhere, to be rated by `bradley_terry`; they are not measured.

        Raises:
            InputError: The three are not of one length.
        """
        if not len(questions) == len(explanations) == len(references):
            received = f"{len(questions)}, {len(explanations)} and {len(references)}"
            raise InputError("as many questions, explanations and references", received, "Pass one of each.")
        nan = float("nan")
        count = len(questions)
        return cls(
            *(nan, nan, nan, nan, nan, None),
            questions=tuple(questions),
            references=tuple(references),
            completions=tuple(text or "" for text in explanations),
            explanations=tuple(explanations),
            correct=(False,) * count,
            cosines=(nan,) * count,
            lengths=(0,) * count,
            encoder="",
            temperature=0.0,
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures alone, for JSON."""
        names = ("accuracy", "semantic", "format_rate", "mean_length", "truncated", "win_rate")
        figures = {name: getattr(self, name) for name in names}
        return figures | {
            "rows": len(self.questions),
            "encoder": self.encoder,
            "temperature": self.temperature,
        }

    def rows(self) -> Iterator[dict[str, Any]]:
        """Yield question, completion, reference and scores of each row, for JSONL."""
        for i, question in enumerate(self.questions):
            yield {
                "question": question,
                "completion": self.completions[i],
                "reference": self.references[i],
                "correct": self.correct[i],
                "semantic": self.cosines[i],
                "tokens": self.lengths[i],
            }


def evaluate(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    *,
    options: str | None = None,
    scorer: Scorer | None = None,
    judge: Judge | None = None,
    both_orders: bool = True,
    temperature: float = 0.0,
    max_completion_length: int = 256,
    batch_size: int = 16,
    seed: int = 0,
) -> Evaluation:
    """Let a model answer questions, and measure the answers with the rewards that training uses.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer, with an end token and a padding token.
        rows: N rows with a `prompt` (a text or a conversation), the right `answer` and an `explanation`, the
            reference.
        options: Name of the column with each question's options, as `AnswerReward` takes them: an answer is
            then an option, by its letter or in its words. ``None``: the right answer tells what is compared.
        scorer: The encoder of the semantic score; ``None`` for the default one.
        judge: Compares each explanation with its reference, for `Evaluation.win_rate`.
        both_orders: Ask the judge twice, with the two exchanged.
        temperature: Of sampling; 0 takes the likeliest token.
        max_completion_length: Tokens of a completion at most.
        batch_size: Prompts that are completed together.
        seed: Of sampling.

    Raises:
        InputError: A row lacks something, its answer is none of its options or may mean two things, or
            its prompt leaves the model no room; or an argument is refused.

    Example:
        Before and after training, on questions that it never saw::

            before = evaluate(model, tokenizer, held_out)
            finetune(model, tokenizer, rows, TuningConfig(output_dir="runs/sft"))
            print(before.accuracy, evaluate(model, tokenizer, held_out).accuracy)
    """
    _check_options(temperature, max_completion_length, batch_size)
    checked = check_rows(rows, columns_of(options))
    columns = {name: [row[name] for row in checked] for name in columns_of(options) if name != "prompt"}
    right = AnswerReward(kind="auto" if options is None else "option", options=options)
    right([""] * len(checked), **columns)  # so that a wrong row is named before anything is written
    ids = prompt_ids(tokenizer, [row["prompt"] for row in checked])
    check_prompt_lengths(checked, ids, context_length(model), max_completion_length)
    written = complete(
        model,
        tokenizer,
        ids,
        max_completion_length=max_completion_length,
        batch_size=batch_size,
        temperature=temperature,
        seed=seed,
    )
    semantic = SemanticReward(scorer, reference=TAG, extract=TAG)
    texts = [one.text for one in written]
    correct = [bool(value) for value in right(completions=texts, **columns)]
    cosines = [float(value or 0.0) for value in semantic(completions=texts, **columns)]
    formats = [float(value or 0.0) for value in FormatReward()(completions=texts, **columns)]
    extract = Extractor(TAG)
    explanations = [extract(text) for text in texts]
    questions = [_question(row["prompt"]) for row in checked]
    won: float | None = None
    if judge is not None:
        compared = zip(questions, explanations, columns[TAG], strict=True)
        ahead = [verdict(judge, q, text or "", _one(r), r, both_orders) for q, text, r in compared]
        won = sum((1 + value) / 2 for value in ahead) / len(ahead)
    lengths = [one.tokens for one in written]
    return Evaluation(
        accuracy=_mean(correct),
        semantic=_mean(cosines),
        format_rate=_mean(formats),
        mean_length=_mean(lengths),
        truncated=_mean([one.truncated for one in written]),
        win_rate=won,
        questions=tuple(questions),
        references=tuple(columns[TAG]),
        completions=tuple(texts),
        explanations=tuple(explanations),
        correct=tuple(correct),
        cosines=tuple(cosines),
        lengths=tuple(lengths),
        encoder=semantic.scorer.encoder_name,
        temperature=float(temperature),
    )


def columns_of(options: str | None) -> dict[str, Kind]:
    """Name the columns that rows to evaluate with must have, and what these must hold.

    Args:
        options: As of `evaluate`.

    Raises:
        InputError: It names no column, or one that is something else.

    Example:
        >>> columns_of("choices")
        {'prompt': 'prompt', 'answer': 'answer', 'explanation': 'reference', 'choices': 'options'}
    """
    if options is None:
        return dict(COLUMNS)
    taken = (*COLUMNS, *RESERVED)
    if not isinstance(options, str) or options in taken:
        expected = f"the name of a column as options, not one of {', '.join(taken)}"
        raise InputError(expected, describe(options), "Name the column that holds the options.")
    return {**COLUMNS, options: "options"}


def _check_options(temperature: object, max_completion_length: object, batch_size: object) -> None:
    if not (isinstance(temperature, int | float) and 0 <= temperature < float("inf")):
        raise InputError("a temperature of 0 or more", describe(temperature), "Pass 0.0 for the likeliest.")
    for name, value in (("max_completion_length", max_completion_length), ("batch_size", batch_size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise InputError(f"{name} of 1 or more", describe(value), "Correct the number.")


def _question(prompt: Any) -> str:
    """Return a prompt as a text: of a conversation the contents of its messages, a paragraph each."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(str(message["content"]) for message in prompt)


def _one(reference: Any) -> str:
    """Return the first reference of a row that has several."""
    return reference if isinstance(reference, str) else next(text for text in reference if text)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
