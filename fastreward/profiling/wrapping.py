"""A reward that is watched: the same callable to a trainer, and recorded at each call."""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
import weakref
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from fastreward.profiling.counting import scorer_watch, text_finder

OWN: Final = frozenset({"recorder", "find_texts", "scorers", "_texts"})
"""Attributes of a watched reward that are not the reward's."""


class CallRecorder(Protocol):
    """What records the calls: a `Timeline`. None of its methods raises what the reward did not."""

    def begin_call(self, watched: Watched, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call begins; what is returned goes to `enter_call` and `end_call`."""

    def enter_call(self, call: Any) -> None:
        """A call that has begun goes on in another context."""

    def leave_call(self, call: Any) -> None:
        """Its code leaves this context and goes on elsewhere."""

    def end_call(self, call: Any, result: object, error: BaseException | None) -> None:
        """A call ends."""


class Watched:
    """A reward that a timeline watches; see `Timeline.wrap`.

    Attributes:
        __wrapped__: The reward.
        __name__: The name under which it is reported and trainers log it.
        find_texts: Finds the texts among the arguments of a call.
        scorers: Reads what its scorers count; ``None`` of a function, which holds none.
    """

    def __init__(
        self, recorder: CallRecorder, reward: Callable[..., Any], name: str, texts: str | None
    ) -> None:
        functools.update_wrapper(self, reward, updated=())
        self.__name__ = name
        self.__wrapped__ = reward
        self.recorder = recorder
        self.find_texts = text_finder(reward, texts)
        self.scorers = scorer_watch(reward)
        self._texts = texts

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Call the reward."""
        call = self.recorder.begin_call(self, args, kwargs)
        try:
            result = self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            self.recorder.end_call(call, None, error)
            raise
        if isinstance(result, types.CoroutineType):
            self.recorder.leave_call(call)
            held: list[Coroutine[Any, Any, Any]] = [result]
            rest = self._finish(call, held)
            # Cancelled before its first step, it is dropped without a line of it having run.
            weakref.finalize(rest, _drop, self.recorder, call, held).atexit = False
            return rest
        if hasattr(result, "add_done_callback"):  # a future: the work goes on after the return
            self.recorder.leave_call(call)
            result.add_done_callback(functools.partial(self._finish_future, call))
            return result
        self.recorder.end_call(call, result, None)
        return result

    async def _finish(self, call: Any, held: list[Coroutine[Any, Any, Any]]) -> Any:
        coroutine = held.pop()  # from here on this one ends the call
        self.recorder.enter_call(call)
        try:
            result = await coroutine
        except BaseException as error:
            self.recorder.end_call(call, None, error)
            raise
        self.recorder.end_call(call, result, None)
        return result

    def _finish_future(self, call: Any, future: Any) -> None:
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        self.recorder.end_call(call, None if error else future.result(), error)

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        # A watched function in a class body is a method, as the function would be.
        if instance is None or not inspect.isfunction(self.__wrapped__):
            return self
        return types.MethodType(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        value = getattr(self.__wrapped__, name)
        if name == "ascore":  # the other door to the same reward
            return WatchedAsync(self.recorder, value, self.__name__, self._texts)
        return value

    def __setattr__(self, name: str, value: object) -> None:
        # Whoever changes a reward by the trainer's list, such as a curriculum, means the reward.
        if name in OWN or name.startswith("__"):
            object.__setattr__(self, name, value)
        else:
            setattr(self.__wrapped__, name, value)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.__wrapped__,)

    def __repr__(self) -> str:
        return f"<{self.__name__} on a timeline: {self.__wrapped__!r}>"


class WatchedAsync(Watched):
    """The same for a reward that is awaited, whose `__call__` trainers recognise by its ``async def``."""

    async def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """Await the reward."""
        call = self.recorder.begin_call(self, args, kwargs)
        try:
            result = await self.__wrapped__(*args, **kwargs)
        except BaseException as error:
            self.recorder.end_call(call, None, error)
            raise
        self.recorder.end_call(call, result, None)
        return result


class WatchedClass:
    """A class of rewards of which each instance is watched: for trainers that make it themselves."""

    def __init__(self, recorder: CallRecorder, reward: type, name: str | None, texts: str | None) -> None:
        functools.update_wrapper(self, reward, updated=())
        self.__wrapped__ = reward
        self._recorder = recorder
        self._options = name, texts

    def __call__(self, /, *args: Any, **kwargs: Any) -> Watched | WatchedClass:
        """Make an instance and watch it."""
        return watched(self._recorder, self.__wrapped__(*args, **kwargs), *self._options)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.__wrapped__, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.__wrapped__,)


def watched(
    recorder: CallRecorder, reward: Callable[..., Any], name: str | None, texts: str | None
) -> Watched | WatchedClass:
    """Watch a reward, each kind in its way."""
    if inspect.isclass(reward):
        return WatchedClass(recorder, reward, name, texts)
    kind = WatchedAsync if is_awaited(reward) else Watched
    return kind(recorder, reward, name or callable_name(reward), texts)


def callable_name(reward: Callable[..., Any]) -> str:
    """The name under which trainers log a reward.

    Example:
        >>> callable_name(functools.partial(len))
        'len'
    """
    while isinstance(reward, functools.partial):
        reward = reward.func
    return str(getattr(reward, "__name__", type(reward).__name__))


def is_awaited(reward: Callable[..., Any]) -> bool:
    """Whether a call of the reward is declared ``async def``, of its own or of its class.

    Example:
        >>> is_awaited(asyncio.sleep), is_awaited(len)
        (True, False)
    """
    while isinstance(reward, functools.partial):
        reward = reward.func
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


def _drop(recorder: CallRecorder, call: Any, held: list[Coroutine[Any, Any, Any]]) -> None:
    """End a call whose coroutine nobody has begun, nor will: once begun it is not held any more."""
    if held:
        held.pop().close()
        recorder.end_call(call, None, GeneratorExit())


def _unpickled(reward: Callable[..., Any]) -> Callable[..., Any]:
    return reward
