"""What a call of a reward is about: its texts, its result, and what its scorers counted."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, Final

from fastreward.profiling.spans import Counts

TEXT_ARGUMENTS: Final = ("completions", "responses", "solution_strs", "solution_str", "response", "texts")
"""Arguments in which trainers hand over what is to be judged, first come first served."""

LISTS: Final = (list, tuple)


def text_finder(reward: Callable[..., Any], argument: str | None) -> Callable[..., object]:
    """Make a function that finds the texts among the arguments of a call.

    Args:
        reward: What is called.
        argument: The argument that holds them; ``None`` looks for one of `TEXT_ARGUMENTS`, and where there is
            none takes the first positional one.

    Example:
        >>> def judge(prompts, completions): ...
        >>> text_finder(judge, None)(["a prompt"], ["a text"])
        ['a text']
    """
    names = TEXT_ARGUMENTS if argument is None else (argument,)
    places = _places(reward)

    def find(*args: object, **kwargs: object) -> object:
        for name in names:
            if name in kwargs:
                return kwargs[name]
            if places.get(name, len(args)) < len(args):
                return args[places[name]]
        return args[0] if args and argument is None else None

    return find


def _places(reward: Callable[..., Any]) -> dict[str, int]:
    """The position of each argument that may be given by position."""
    try:
        parameters = inspect.signature(reward).parameters.values()
    except (TypeError, ValueError):  # some built-in functions have no signature
        return {}
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: place for place, p in enumerate(parameters) if p.kind in by_position}


def count_texts(texts: object) -> tuple[int, int]:
    """How many texts there are, and how many distinct ones; a string is one.

    A conversation is a list of messages; a tensor is known by identity, for to read it could mean to wait.

    Example:
        >>> count_texts(
        ...     [[{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "a"}], "b"]
        ... )
        (3, 2)
    """
    if isinstance(texts, str):
        return 1, 1
    if not isinstance(texts, LISTS) and not isinstance(texts, Sequence):
        return 0, 0
    try:
        return len(texts), len(set(texts))
    except TypeError:  # lists and messages cannot be hashed
        return len(texts), len({_key(text) for text in texts})


def _key(text: object) -> object:
    if isinstance(text, list | tuple):
        return tuple(map(_key, text))
    if isinstance(text, Mapping):
        return tuple((name, _key(value)) for name, value in text.items())
    return text


def count_none(rewards: object, texts: int) -> int:
    """How many of N texts got ``None``: all of them if the call returned it.

    Example:
        >>> count_none([0.5, None], 2), count_none(None, 2)
        (1, 2)
    """
    if rewards is None:
        return max(texts, 1)
    found = 0
    if isinstance(rewards, LISTS):
        for value in rewards:
            if value is None:
                found += 1
    return found


class ScorerWatch:
    """Reads what a reward's scorers count during a call.

    A scorer is whatever the reward holds that has `stats` as a `Scorer` has them; a reward of rewards is
    looked through. The reward's own properties are left alone, for they may build one. Calls that overlap on
    one scorer see each other's counts.

    Args:
        reward: The reward, an object.
    """

    def __init__(self, reward: object) -> None:
        self._reward = reward

    def read(self) -> dict[int, Any]:
        """The stats of each scorer, by its id."""
        return {id(scorer): scorer.stats for scorer in _scorers(self._reward)}

    def add(self, before: Mapping[int, Any], counts: Counts) -> None:
        """Add what was counted since `before`; a scorer that was built since began with nothing."""
        for scorer, stats in self.read().items():
            for field in fields(stats):
                count = getattr(stats, field.name)
                if isinstance(count, int):
                    count -= getattr(before.get(scorer), field.name, 0)
                    counts.scorer[field.name] = counts.scorer.get(field.name, 0) + count


def scorer_watch(reward: object) -> ScorerWatch | None:
    """Watch the scorers of a reward; ``None`` if it is a function or a class, which hold none.

    Example:
        >>> scorer_watch(len) is None
        True
    """
    inner = _inner(reward)
    return None if inspect.isroutine(inner) or inspect.isclass(inner) else ScorerWatch(inner)


def _scorers(reward: object) -> list[Any]:
    """The distinct scorers of a reward, and of the rewards that it is made of."""
    found: dict[int, Any] = {}
    seen: set[int] = set()
    queue = [reward]
    while queue:
        one = queue.pop()
        held = getattr(one, "__dict__", None)
        if held is None or id(one) in seen:
            continue
        seen.add(id(one))
        for value in list(held.values()):
            if hasattr(type(value), "stats") and is_dataclass(value.stats):
                found[id(value)] = value
        parts = held.get("rewards")
        if isinstance(parts, list | tuple):
            queue += map(_inner, parts)
    return list(found.values())


def _inner(reward: object) -> object:
    """What does the work: behind partials, other timelines, and methods their object."""
    while True:
        if isinstance(reward, functools.partial):
            reward = reward.func
        elif inspect.ismethod(reward):
            return reward.__self__
        elif "__wrapped__" in getattr(reward, "__dict__", {}):
            reward = reward.__wrapped__  # type: ignore[attr-defined]  # it is in its __dict__
        else:
            return reward
