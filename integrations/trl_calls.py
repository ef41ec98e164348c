"""Calls of a TRL trainer's reward functions on a timeline: functions, models, and combinations by parts."""

from __future__ import annotations

import functools
import inspect
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

from fastreward.integrations.trl import _Part
from fastreward.profiling import Timeline
from fastreward.profiling.exclusive import ELSEWHERE, ExclusivePhases, call_quietly
from fastreward.profiling.wrapping import Watched, callable_name, is_awaited, watched

COLLECT: Final = "collect rewards"
"""The phase around all calls."""


@dataclass(frozen=True)
class RewardCall:
    """A call of a reward function that has returned.

    Attributes:
        reward: Its name.
        seconds: How long it took.
        arguments: The keywords that the trainer passed, `completions` among them.
        function: The reward function, or the model.
    """

    reward: str
    seconds: float
    arguments: Mapping[str, Any]
    function: Any


OnCall: TypeAlias = Callable[[RewardCall], None]


@dataclass(slots=True)
class _Begun:
    """A call that runs.

    Attributes:
        place: That of the interruption which it is for the trainer's phases.
        begin_s: By `time.perf_counter`.
        arguments: The keywords of the call.
        call: The timeline's, of a model.
        index: Which of the reward functions it is, of a model.
    """

    place: int
    begin_s: float
    arguments: Mapping[str, Any]
    call: Any = None
    index: int = 0


class RewardCalls:
    """Watches a trainer's reward functions.

    A trainer calls a model itself, after it has filled in templates and tokenised for it, and takes one
    reward function after another: a model's call is counted from where the one before it has ended.

    Args:
        timeline: Where they are recorded.
        phases: Those of the trainer, which a call interrupts.
        on_call: Is told of each call that returns.
    """

    def __init__(self, timeline: Timeline, phases: ExclusivePhases, on_call: OnCall | None) -> None:
        self.phases = phases
        self._timeline = timeline
        self._on_call = on_call
        self._functions: list[Any] = []
        self._models: dict[int, Watched] = {}
        self._running: _Begun | None = None  # a model
        self._arguments: Mapping[str, Any] = {}

    def set(self, trainer: Any) -> None:
        """Watch all reward functions of a trainer, if it has them."""
        self._functions = list(getattr(trainer, "reward_funcs", None) or ())
        if not self._functions:
            return
        names = getattr(trainer, "reward_func_names", None) or list(map(callable_name, self._functions))
        # A new list: the trainer may have that which its user has made.
        trainer.reward_funcs = [
            self._watched(function, name, index)
            for index, (function, name) in enumerate(zip(self._functions, names, strict=True))
        ]
        for name in ("_calculate_rewards", "_calculate_rewards_from_functions"):
            if (method := getattr(trainer, name, None)) is not None:
                setattr(trainer, name, self._collecting(method))

    def _watched(self, function: Any, name: str, index: int | None) -> Any:
        if isinstance(function, _Part):
            self._watch_components(function)
            return function
        if _is_module(function):
            if index is not None:
                self._watch_model(function, name, index)
            return function
        recorder = _Around(self, function, name, index)
        around: Any = watched(recorder, self._timeline.wrap(function, name=name), name, None)
        if not is_awaited(function):
            return around

        # A function: whoever asks whether it is awaited may not look at an object's `__call__`.
        @functools.wraps(around, updated=())
        async def call(*args: Any, **kwargs: Any) -> Any:
            return await around(*args, **kwargs)

        return call

    def _watch_components(self, part: _Part) -> None:
        """Watch a combination's components: the part that is asked first computes them all."""
        shared = part._shared
        if any(isinstance(component, Watched) for component in shared.reward.rewards):
            return
        combination = shared.reward.by_prompts()  # a copy: the user's own is left alone
        combination.rewards = tuple(
            self._watched(component, name, None)
            for component, name in zip(combination.rewards, combination.names, strict=True)
        )
        shared.reward = combination

    # ------------------------------------------------------------------ what the calls do

    def begin(self, arguments: Mapping[str, Any]) -> _Begun:
        """A call begins."""
        return _Begun(self.phases.push(None), time.perf_counter(), arguments)

    def end(self, begun: _Begun, function: Any, name: str, *, returned: bool) -> None:
        """A call ends."""
        seconds = time.perf_counter() - begun.begin_s
        if returned and self._on_call is not None:
            self._quietly(self._on_call, RewardCall(name, seconds, begun.arguments, function))
        self.leave(begun)

    def leave(self, begun: _Begun) -> None:
        """The trainer's phases go on, whether the call has ended or not."""
        self.phases.pop(begun.place)
        begun.place = ELSEWHERE

    def next_after(self, index: int | None) -> None:
        """A reward function is done: the next one may be a model, on which the trainer now works."""
        if index is None:
            return
        index += 1
        while index < len(self._functions) and is_awaited(self._functions[index]):
            index += 1  # the trainer leaves them for the end
        if index in self._models:
            self._begin_model(index)

    def _collecting(self, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            place = self.phases.push(COLLECT, waits=True)
            try:
                self._arguments = signature.bind(*args, **kwargs).arguments
                self._quietly(self.next_after, -1)
                return method(*args, **kwargs)
            finally:
                self._quietly(self._end_model, sys.exception())
                self._arguments = {}
                self.phases.pop(place)

        return call

    # ------------------------------------------------------------------ models

    def _watch_model(self, model: Any, name: str, index: int) -> None:
        self._models[index] = self._timeline.wrap(model, name=name, texts="completions")

        def before(*_: Any) -> None:
            if self._running is None and self.phases.holds(COLLECT):
                self._quietly(self._begin_model, index)

        def after(*_: Any) -> None:
            if self._running is not None and self._running.index == index:
                self._quietly(self._end_model, None)
                self._quietly(self.next_after, index)

        model.register_forward_pre_hook(before)
        model.register_forward_hook(after)

    def _begin_model(self, index: int) -> None:
        watched_model = self._models[index]
        begun = self.begin(self._arguments)
        begun.index = index
        begun.call = watched_model.recorder.begin_call(watched_model, (), dict(self._arguments))
        self._running = begun

    def _end_model(self, error: BaseException | None) -> None:
        begun, self._running = self._running, None
        if begun is not None:
            model = self._models[begun.index]
            model.recorder.end_call(begun.call, (), error)
            self.end(begun, model.__wrapped__, model.__name__, returned=error is None)

    def _quietly(self, function: Callable[..., Any], *args: Any) -> None:
        call_quietly(self.phases.recorder, function, *args)


class _Around:
    """What is done around each call of a function that the timeline times; as a `wrapping.CallRecorder`."""

    def __init__(self, calls: RewardCalls, function: Any, name: str, index: int | None) -> None:
        self._calls = calls
        self._function = function
        self._name = name
        self._index = index

    def begin_call(self, watched: Watched, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Begun:
        """Interrupt the trainer's phase."""
        return self._calls.begin(kwargs)

    def enter_call(self, call: _Begun) -> None:
        """Nothing: what is awaited runs beside the trainer."""

    def leave_call(self, call: _Begun) -> None:
        """The trainer goes on while the call does."""
        self._calls.leave(call)

    def end_call(self, call: _Begun, result: object, error: BaseException | None) -> None:
        """Go on with the trainer's phase."""
        self._calls.end(call, self._function, self._name, returned=error is None)
        self._calls.next_after(self._index)


def _is_module(function: object) -> bool:
    """Whether the trainer takes it for a model; PyTorch is not imported to find out."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(function, torch.nn.Module)
