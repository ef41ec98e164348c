"""Rewards inside rewards: their names, how they are called, and what they may return."""

from __future__ import annotations

import asyncio
import functools
import inspect
import math
from collections.abc import Coroutine, Mapping, Sequence
from typing import Any, TypeVar

from fastreward.errors import InputError
from fastreward.rewards.base import ColumnKind, as_list
from fastreward.rewards.completion import Completion, describe

T = TypeVar("T")

__all__ = ["awaits", "call", "call_async", "columns_read", "reward_name", "run_to_the_end"]


def reward_name(reward: Any) -> str:
    """Find the name under which trainers log a reward.

    Args:
        reward: A function, a partial of one, or an object that can be called.

    Returns:
        Its ``__name__``, that of the function for a partial, and that of the class for an object without one.

    Raises:
        InputError: It cannot be called, or is a class.

    Example:
        >>> reward_name(functools.partial(len))
        'len'
    """
    if not callable(reward) or isinstance(reward, type):
        raise InputError(
            "rewards that can be called: reward(completions=…, **columns)",
            describe(reward),
            "Pass an instance such as SemanticReward(), or a function.",
        )
    inner = _unwrapped(reward)
    return str(getattr(inner, "__name__", type(inner).__name__))


def columns_read(reward: Any) -> dict[str, ColumnKind]:
    """Name the columns that a reward is known to need: what its method of this name says, if it has one.

    Example:
        >>> from fastreward.rewards import LengthReward
        >>> columns_read(LengthReward("explanation")), columns_read(len)
        ({'explanation': 'reference'}, {})
    """
    says = getattr(reward, "columns_read", None)
    return dict(says()) if callable(says) else {}


def awaits(reward: Any) -> bool:
    """Whether a call of the reward must be awaited, or is better made by its `ascore`.

    Example:
        >>> async def judge(completions, **columns):
        ...     return [1.0]
        >>> awaits(judge), awaits(len)
        (True, False)
    """
    return _is_coroutine_function(reward) or bool(getattr(reward, "is_async", False))


def call(reward: Any, completions: Sequence[Completion], columns: Mapping[str, Any]) -> list[float | None]:
    """Call a reward that is not asynchronous and check what it returns.

    An exception of the reward passes through, with a note that names the reward.

    Args:
        reward: The reward.
        completions: N completions.
        columns: The other keywords.

    Returns:
        N finite floats or ``None``; NaN has become ``None``.

    Raises:
        InputError: The reward returned anything else.

    Example:
        >>> call(lambda completions, **columns: [1, float("nan")], ["a", "b"], {})
        [1.0, None]
    """
    try:
        values = reward(completions=completions, **columns)
    except Exception as error:
        error.add_note(f"It was raised by the reward {reward_name(reward)!r}.")
        raise
    return _checked(reward, values, len(completions))


async def call_async(
    reward: Any, completions: Sequence[Completion], columns: Mapping[str, Any]
) -> list[float | None]:
    """Call any reward without holding the event loop up and check what it returns, as `call` does.

    An asynchronous reward is awaited; another is called in a worker thread.

    Args:
        reward: The reward.
        completions: N completions.
        columns: The other keywords.

    Returns:
        N finite floats or ``None``; NaN has become ``None``.

    Raises:
        InputError: The reward returned anything else.

    Example:
        >>> asyncio.run(call_async(lambda completions, **columns: [1], ["a"], {}))
        [1.0]
    """
    if not awaits(reward):
        return await asyncio.to_thread(call, reward, completions, columns)
    waiting = reward if _is_coroutine_function(reward) else reward.ascore
    try:
        values = await waiting(completions=completions, **columns)
    except Exception as error:
        error.add_note(f"It was raised by the reward {reward_name(reward)!r}.")
        raise
    return _checked(reward, values, len(completions))


def run_to_the_end(coroutine: Coroutine[Any, Any, T], name: str) -> T:
    """Run a coroutine where no event loop runs.

    Args:
        coroutine: What to run; it is closed if it cannot be.
        name: The reward's name, for the message.

    Returns:
        What the coroutine returns.

    Raises:
        InputError: An event loop runs in this thread.

    Example:
        >>> run_to_the_end(asyncio.sleep(0, "done"), "judge")
        'done'
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    coroutine.close()
    raise InputError(
        f"a call of {name!r}, which holds asynchronous rewards, outside an event loop",
        "one inside a running loop",
        "Write await reward.ascore(…) there.",
    )


def _unwrapped(reward: Any) -> Any:
    while isinstance(reward, functools.partial):
        reward = reward.func
    return reward


def _is_coroutine_function(reward: Any) -> bool:
    inner = _unwrapped(reward)
    # A class's own `__call__` is what a call of its instance runs.
    return inspect.iscoroutinefunction(inner) or inspect.iscoroutinefunction(type(inner).__call__)


def _checked(reward: Any, values: object, count: int) -> list[float | None]:
    name = reward_name(reward)
    if inspect.iscoroutine(values):
        values.close()
        raise InputError(
            f"numbers from the reward {name!r}",
            "a coroutine",
            "Declare its call with async def, and it is awaited.",
        )
    entries = as_list(f"rewards of {name}", values)
    if len(entries) != count:
        raise InputError(
            f"one number per completion from the reward {name!r}",
            f"{len(entries)} for {count} completions",
            "Return None for what it cannot judge.",
        )
    return [_number(name, index, entry) for index, entry in enumerate(entries)]


def _number(name: str, index: int, value: Any) -> float | None:
    if value is None:
        return None
    try:
        number = math.inf if isinstance(value, str | bytes) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        number = math.inf
    if math.isinf(number):
        raise InputError(
            f"a finite number or None from the reward {name!r}",
            f"{describe(value)} for completions[{index}]",
            "Bound it, or return None.",
        )
    return None if math.isnan(number) else number
