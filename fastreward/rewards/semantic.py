"""SemanticReward: how near each completion's meaning is to its reference, as a trainer's reward function."""

from __future__ import annotations

from pathlib import Path

from fastreward.errors import InputError
from fastreward.rewards.completion import Extract, describe
from fastreward.rewards.reference_reward import NoText, ReferenceReward, RewardCounts
from fastreward.rewards.shaping import Shaping, shaped
from fastreward.scorer import Scorer

__all__ = ["NoText", "RewardCounts", "SemanticReward"]


class SemanticReward(ReferenceReward):
    """Reward each completion by its semantic similarity to a reference text.

    The reward is the cosine in [-1, 1] between the encoder's embedding of the completion (or of the part of
    it that ``extract`` names) and that of the reference; with several references, the best of them. The
    method is that of "Shaping Explanations: Semantic Reward Modeling with Encoder-Only Transformers for GRPO"
    (arXiv 2509.13081).

    An instance is a plain callable in the form that TRL's trainers and those modelled on them take: it reads
    the columns that it needs from the keywords, ignores the rest and returns Python floats. It may be called
    from many threads at once. It pickles to its configuration: the counts and a scorer that it built itself
    stay behind, and the process that uses the copy builds its own.

    Args:
        scorer: The scorer to use, best shared by all rewards of a run; or the name or folder of an encoder,
            from which one is built when it is first needed; or ``None`` for the default encoder.
        reference: Name of the column with the references: for each completion a string or a list of strings.
            A reference is missing where it is ``None``, NaN, blank, or a list of nothing else.
        extract: The part of the completion to score: ``None`` for all of it, a tag's name such as
            ``"explanation"``, a compiled pattern or a function; `completion.Extractor` has the details.
        strip_thinking: Whether ``<think>…</think>`` is removed first. Left in, it drowns what it leads to.
        no_text: What a completion is worth from which nothing can be extracted (it is blank, lacks the tag or
            never closes its thinking): ``"zero"`` for 0.0, so that it is punished, or ``"none"`` for
            ``None``, so that the trainer leaves it out.
        shaping: What is done to each cosine, for instance ``Clip(0)`` or ``Chain(Rescale(0.7), Power(2))`` of
            `rewards.shaping`; the 0.0 for a completion without text is no cosine and is left alone. ``None``
            leaves cosines as they are.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> reward = SemanticReward(reference="explanation", extract="explanation")
        >>> rewards = reward(
        ...     completions=[
        ...         "<explanation>The heart pumps blood.</explanation>",
        ...         "<think>Is it the heart or",
        ...         "<explanation>The heart pumps blood.</explanation>",
        ...     ],
        ...     explanation=["The heart pumps blood.", "The heart pumps blood.", None],
        ... )
        >>> [value if value is None else round(value, 2) for value in rewards]
        [1.0, 0.0, None]
        >>> reward.counts
        RewardCounts(samples=3, scored=1, missing_reference=1, no_text=1)
    """

    def __init__(
        self,
        scorer: Scorer | str | Path | None = None,
        *,
        reference: str = "reference",
        extract: Extract = None,
        strip_thinking: bool = True,
        no_text: NoText = "zero",
        shaping: Shaping | None = None,
        name: str = "semantic_reward",
    ) -> None:
        if shaping is not None and not callable(shaping):
            raise InputError(
                "a shaping such as Clip(0), a function from float to float, or None",
                describe(shaping),
                "Pass for instance shaping=Power(2).",
            )
        self._shaping = shaping
        super().__init__(
            scorer,
            reference=reference,
            extract=extract,
            strip_thinking=strip_thinking,
            no_text=no_text,
            name=name,
        )

    def _score(self, texts: list[str], references: list[list[str]]) -> list[float]:
        scores: list[float] = self.scorer.score(texts, references).tolist()
        return scores if self._shaping is None else [shaped(self._shaping, score) for score in scores]

    def _options(self) -> dict[str, object]:
        shared = super()._options()
        name = shared.pop("name")
        return shared | {"shaping": self._shaping, "name": name}
