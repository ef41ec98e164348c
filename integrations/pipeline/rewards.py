"""Rewards from a file: names, weights and options → one `CombinedReward`, and the columns that it reads."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from fastreward import rewards as library
from fastreward.errors import InputError
from fastreward.integrations.pipeline.data import Kind
from fastreward.integrations.prompts import reference_columns
from fastreward.rewards import CombinedReward, Gate
from fastreward.rewards.completion import describe
from fastreward.rewards.shaping import Chain, Clip, Power, Rescale, Sigmoid
from fastreward.rewards.words import words

if TYPE_CHECKING:
    from fastreward.scorer import Scorer

REFERENCE: Final = "explanation"
"""Column of the references, and tag of a completion's explanation, if not said otherwise."""

REWARDS: Final[dict[str, str]] = {
    "semantic": "SemanticReward",
    "answer": "AnswerReward",
    "format": "FormatReward",
    "rouge": "RougeLReward",
    "bertscore": "BERTScoreReward",
    "length": "LengthReward",
    "repetition": "RepetitionReward",
    "language": "LanguageReward",
    "ending": "EndingReward",
    "prompt_copy": "PromptCopyReward",
    "contrast": "ContrastReward",
}
SHAPINGS: Final[dict[str, Callable[..., Any]]] = {
    "clip": Clip,
    "power": Power,
    "rescale": Rescale,
    "sigmoid": Sigmoid,
}


@dataclass(frozen=True)
class RewardPlan:
    """What a file's rewards come to.

    Attributes:
        reward: All of them as one.
        columns: The columns of the data that they read, and what these must hold.
    """

    reward: CombinedReward
    columns: dict[str, Kind]


def make_scorer(encoder: str | Mapping[str, Any]) -> Scorer:
    """Make the scorer that all rewards of a run share.

    Args:
        encoder: The encoder's name or folder, or arguments of `Scorer` by name, ``encoder`` among them.

    Raises:
        InputError: An argument is not known or refused.

    Example:
        >>> make_scorer({"dtype": "float32"}).dtype
        torch.float32
    """
    from fastreward.scorer import Scorer

    arguments = {"encoder": encoder} if isinstance(encoder, str) else dict(encoder)
    _require_known("encoder", arguments, list(inspect.signature(Scorer).parameters))
    return Scorer(**arguments)


def make_reward(
    rewards: Mapping[str, Any],
    scorer: Scorer | None = None,
    *,
    gates: Mapping[str, Any] | None = None,
    aggregation: str = "sum_then_normalize",
) -> RewardPlan:
    """Make one reward of several.

    The names are those of `REWARDS`. Each has a weight, 1.0 if it is not said, and its class's options by
    name; the column of references and what is extracted are ``explanation`` if not said otherwise. ROUGE-L
    and LengthReward are functions of words: for ROUGE-L, ``tokenize: words`` reads accented letters as
    letters. A `shaping` is a mapping such as ``{rescale: 0.7}``, or a list of those, one after the other.

    Args:
        rewards: By name a weight, options with a ``weight`` among them, or ``None`` for neither.
        scorer: The encoder that they share; ``None`` for the default one.
        gates: By the name of a gated reward, the name of the one that decides, or the arguments of a `Gate`.
        aggregation: That of `CombinedReward`.

    Raises:
        InputError: A name or an option is not known or refused.

    Example:
        >>> plan = make_reward({"answer": 0.5, "format": {"weight": 0.25, "graded": True}})
        >>> plan.reward.names, plan.reward.weights, plan.columns
        (('answer_reward', 'format_reward'), (0.5, 0.25), {'answer': 'answer'})
    """
    if not rewards:
        raise InputError("a reward at least", "none", f"Name some of {', '.join(REWARDS)}.")
    _require_known("rewards", rewards, list(REWARDS))
    made, weights = [], []
    for name, said in rewards.items():
        options = {"weight": said} if isinstance(said, int | float) else said or {}
        if not isinstance(options, Mapping):
            raise InputError(f"a weight or options of {name}", describe(said), "Write for instance 0.5.")
        options = dict(options)
        weights.append(options.pop("weight", 1.0))
        made.append(_made(name, options, scorer))
    named = {name: reward.__name__ for name, reward in zip(rewards, made, strict=True)}
    combined = CombinedReward(
        made,
        weights=weights,
        gates={named.get(gated, gated): _gate(rule, named) for gated, rule in (gates or {}).items()},
        aggregation=aggregation,  # type: ignore[arg-type]  # which checks it
    )
    return RewardPlan(combined, {**reference_columns(combined)})


def _made(name: str, options: dict[str, Any], scorer: Scorer | None) -> Any:
    """Make a reward, whose columns are called as the data has them if it is not said otherwise."""
    kind = getattr(library, REWARDS[name])
    parameters = inspect.signature(kind).parameters
    takes_scorer = "scorer" in parameters
    _require_known(name, options, [one for one in parameters if one != "scorer"])
    if takes_scorer:
        options["scorer"] = scorer
    option, column = ("answer", "answer") if name == "answer" else ("reference", REFERENCE)
    if option in parameters:
        said = options.setdefault(option, column)
        if not isinstance(said, str):
            raise InputError(f"a column's name as {option} of {name}", describe(said), "Write one name.")
    if "extract" in parameters and "reference" in parameters:
        options.setdefault("extract", REFERENCE)
    if options.get("tokenize") == "words":
        options["tokenize"] = words
    if "shaping" in options:
        options["shaping"] = _shaping(name, options["shaping"])
    try:
        return kind(**options)
    except TypeError as error:  # an option of another type than it has
        raise InputError(f"options of {name}", str(error), "Correct the value.") from error


def _gate(rule: Any, named: Mapping[str, str]) -> str | Gate:
    if isinstance(rule, str):
        return named.get(rule, rule)
    if not isinstance(rule, Mapping) or not isinstance(rule.get("component"), str):
        remedy = "Write its name, or component, at_least, otherwise and undecided."
        raise InputError("what a gate is decided by", describe(rule), remedy)
    _require_known("gates", rule, list(inspect.signature(Gate).parameters))
    return Gate(**{**rule, "component": named.get(rule["component"], rule["component"])})


def _shaping(name: str, said: Any) -> Any:
    steps = said if isinstance(said, list) else [said]
    made = []
    for step in steps:
        if not isinstance(step, Mapping) or len(step) != 1:
            remedy = "Write for instance {rescale: 0.7}, or a list of such."
            raise InputError(f"a shaping of {name}", describe(step), remedy)
        _require_known(f"shaping of {name}", step, list(SHAPINGS))
        ((kind, arguments),) = step.items()
        try:
            if isinstance(arguments, Mapping):
                made.append(SHAPINGS[kind](**arguments))
            else:
                made.append(SHAPINGS[kind](arguments))
        except TypeError as error:
            raise InputError(f"arguments of {kind}", str(error), "Correct them.") from error
    return made[0] if len(made) == 1 else Chain(*made)


def _require_known(what: str, given: Mapping[str, Any], known: list[str]) -> None:
    unknown = [repr(name) for name in given if name not in known]
    if unknown:
        raise InputError(f"{what} among {', '.join(known)}", ", ".join(unknown), "Correct the name.")
