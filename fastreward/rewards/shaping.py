"""Shaping: what is done to a score before it is a reward. And `Shaped`, which does it to any reward.

A shaping is a small frozen dataclass that maps a number to a number. None of them turns an order round: of
two scores the larger never gets less. ``None`` never reaches them: what has no score has no reward.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fastreward.errors import InputError
from fastreward.rewards.base import ColumnKind
from fastreward.rewards.completion import Completion, describe
from fastreward.rewards.components import (
    awaits,
    call,
    call_async,
    columns_read,
    reward_name,
    run_to_the_end,
)
from fastreward.rewards.gates import is_number

__all__ = ["Chain", "Clip", "Power", "Rescale", "Shaped", "Shaping", "Sigmoid"]


@runtime_checkable
class Shaping(Protocol):
    """Maps a score to a reward; any function from a float to a float is one."""

    def __call__(self, score: float, /) -> float:
        """Shape one finite score."""
        ...


@dataclass(frozen=True)
class Clip:
    """Cut what is below `low` and above `high`: min(max(s, low), high).

    Clipped at 0, all that is unrelated to the reference counts alike.

    Args:
        low: The least that comes out.
        high: The most.

    Raises:
        InputError: They are no numbers, or `low` is above `high`.

    Example:
        >>> [Clip(0)(score) for score in (-0.2, 0.0, 0.7)]
        [0.0, 0.0, 0.7]
    """

    low: float = 0.0
    high: float = math.inf

    def __post_init__(self) -> None:
        _check_number("low", self.low, infinite=True)
        _check_number("high", self.high, infinite=True)
        if self.low > self.high:
            raise InputError("a low up to high in Clip", f"{self.low} and {self.high}", "Swap the two.")

    def __call__(self, score: float, /) -> float:
        """Shape one score."""
        return float(min(max(score, self.low), self.high))


@dataclass(frozen=True)
class Power:
    """Raise what is above 0 to a power: max(0, s)^exponent. It keeps 0 and 1.

    An exponent above 1 rewards the last step to the reference more than the first ones.

    Args:
        exponent: Above 0.

    Raises:
        InputError: It is no number above 0.

    Example:
        >>> [Power(2)(score) for score in (-0.2, 0.5, 1.0)]
        [0.0, 0.25, 1.0]

    Source: PGSRM (arXiv 2512.06920).
    """

    exponent: float

    def __post_init__(self) -> None:
        _check_number("exponent", self.exponent, above=0.0)

    def __call__(self, score: float, /) -> float:
        """Shape one score."""
        return float(max(0.0, score) ** self.exponent)


@dataclass(frozen=True)
class Rescale:
    """Put what unrelated texts score at 0 and keep 1: (s - baseline) / (1 - baseline).

    For encoders whose cosines all lie in a narrow band below 1. It changes no advantage of a reward that
    stands alone and is scaled within its group; it does where rewards are mixed.

    Args:
        baseline: The mean score of unrelated texts, below 1.

    Raises:
        InputError: It is no number below 1.

    Example:
        >>> [round(Rescale(0.7)(score), 2) for score in (0.7, 0.85, 1.0)]
        [0.0, 0.5, 1.0]

    Source: the rescaling with a baseline of BERTScore's authors.
    """

    baseline: float

    def __post_init__(self) -> None:
        _check_number("baseline", self.baseline, below=1.0)

    def __call__(self, score: float, /) -> float:
        """Shape one score."""
        return (score - self.baseline) / (1.0 - self.baseline)


@dataclass(frozen=True)
class Sigmoid:
    """Make a soft step: 1 / (1 + exp(-slope (s - center))), from 0 to 1, one half at `center`.

    Args:
        center: Where the step is.
        slope: How steep, above 0; at the centre the curve rises by a quarter of it.

    Raises:
        InputError: They are no finite numbers, or the slope is not above 0.

    Example:
        >>> [round(Sigmoid(center=0.6, slope=20)(score), 3) for score in (0.4, 0.6, 0.8)]
        [0.018, 0.5, 0.982]
    """

    center: float
    slope: float

    def __post_init__(self) -> None:
        _check_number("center", self.center)
        _check_number("slope", self.slope, above=0.0)

    def __call__(self, score: float, /) -> float:
        """Shape one score."""
        # By the hyperbolic tangent, which does not overflow however far the score is from the centre.
        return 0.5 * (1.0 + math.tanh(0.5 * self.slope * (score - self.center)))


@dataclass(frozen=True, init=False)
class Chain:
    """Shape one after another, the first first.

    Args:
        *steps: Shapings, one at least.

    Raises:
        InputError: There is none, or one cannot be called.

    Example:
        >>> shape = Chain(Rescale(0.5), Clip(0), Power(2))
        >>> [shape(score) for score in (0.3, 0.75, 1.0)]
        [0.0, 0.25, 1.0]
    """

    steps: tuple[Shaping, ...]

    def __init__(self, *steps: Shaping) -> None:
        wrong = next((step for step in steps if not callable(step)), None)
        if not steps or wrong is not None:
            raise InputError(
                "shapings, one at least, in Chain",
                describe(wrong) if steps else "none",
                "Pass for instance Chain(Rescale(0.7), Clip(0)).",
            )
        object.__setattr__(self, "steps", steps)

    def __call__(self, score: float, /) -> float:
        """Shape one score."""
        for step in self.steps:
            score = step(score)
        return score


class Shaped:
    """Any reward with a shaping behind it.

    Every number that the reward returns is shaped, a 0.0 for a completion without text as well; ``None``
    stays ``None``. To have the 0.0 left alone, give a reward of this library ``no_text="none"``, or its own
    ``shaping``, where it has one.

    Args:
        reward: The reward, plain or asynchronous.
        shaping: What is done to its numbers, one by one.
        name: The ``__name__`` under which trainers log it; ``None`` takes the reward's own.

    Raises:
        InputError: An argument is not one of the above.

    Example:
        >>> def cosine(completions, **columns):
        ...     return [0.5, None, -0.1]
        >>> Shaped(cosine, Power(2))(completions=["a", "b", "c"])
        [0.25, None, 0.0]
    """

    def __init__(self, reward: Any, shaping: Shaping, *, name: str | None = None) -> None:
        if not callable(shaping):
            raise InputError(
                "a shaping such as Clip(0), or a function from float to float",
                describe(shaping),
                "Pass for instance shaping=Power(2).",
            )
        self.reward = reward
        self.shaping = shaping
        self.__name__ = reward_name(reward) if name is None else name

    @property
    def is_async(self) -> bool:
        """Whether the reward inside is asynchronous, and so must be awaited."""
        return awaits(self.reward)

    def columns_read(self) -> dict[str, ColumnKind]:
        """The columns that the reward inside needs."""
        return columns_read(self.reward)

    def __call__(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch with the reward and shape what it returns.

        Args:
            completions: N completions.
            **columns: What the trainer passes by keyword; the reward gets all of it.

        Returns:
            N rewards, each a float or ``None``.

        Raises:
            InputError: The reward returned no list of N numbers or ``None``, the shaping no finite number, or
                an asynchronous reward is called where an event loop runs: await `ascore` there.
        """
        if self.is_async:
            return run_to_the_end(self.ascore(completions, **columns), self.__name__)
        return self._shape(call(self.reward, completions, columns))

    async def ascore(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Do the same without holding an event loop up.

        Args:
            completions: As in a plain call.
            **columns: As in a plain call.

        Returns:
            The same as a plain call.

        Raises:
            InputError: As a plain call does.
        """
        return self._shape(await call_async(self.reward, completions, columns))

    def _shape(self, values: list[float | None]) -> list[float | None]:
        return [None if value is None else shaped(self.shaping, value) for value in values]

    def __repr__(self) -> str:
        return f"Shaped({self.reward!r}, {self.shaping!r}, name={self.__name__!r})"


def shaped(shaping: Shaping, score: float) -> float:
    """Shape one score and check what comes out.

    Args:
        shaping: The shaping.
        score: A finite score.

    Returns:
        A finite float.

    Raises:
        InputError: The shaping gave anything else.

    Example:
        >>> shaped(abs, -0.5)
        0.5
    """
    value = shaping(score)
    if is_number(value):
        return float(value)
    raise InputError(
        "a finite number from the shaping",
        f"{describe(value)} for {score!r}",
        "Bound it, for instance with Chain(Clip(0), …).",
    )


def _check_number(
    name: str, value: object, *, above: float = -math.inf, below: float = math.inf, infinite: bool = False
) -> None:
    if isinstance(value, int | float) and not isinstance(value, bool):
        number = float(value)
        if above < number < below or (infinite and math.isinf(number)):
            return
    bounds = [f"above {above:g}"] * (above > -math.inf) + [f"below {below:g}"] * (below < math.inf)
    expected = " ".join(["a finite number", *bounds, "as", name])
    raise InputError(expected, describe(value), "Correct it.")
