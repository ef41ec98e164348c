"""TRL's trainers on a timeline: one call times each step, reward by reward, and replaces no class.

    timeline = attach(trainer)
    trainer.train()
    rich.print(timeline.report().as_table())

It works with `GRPOTrainer`, `RLOOTrainer` and `OnlineDPOTrainer`; of a trainer without reward functions, such
as `SFTTrainer`, it times what there is. Phases do not overlap, so that they add up:

| phase | what it is |
| --- | --- |
| data | the next batches from the loader |
| generate | the policy writes, by transformers, vLLM or a `rollout_func` |
| sync weights | vLLM gets the policy's weights |
| log-probs | of the old policy and the reference; those of the loss belong to the loss |
| collect rewards (waits) | around the reward functions: for asynchronous ones and for other ranks |
| loss | the policy's forward and the loss |
| backward | gradients, and their reduction over ranks |
| optimizer | from there to the step's end: clipping, the update, and what the device still had to do |
| log | metrics to the log and its trackers; save: a checkpoint |
| prepare | the rest of the trainer's work on a batch: tokenising prompts, decoding, advantages |

`AsyncGRPOTrainer` scores in another process, which is not seen: of it the steps are timed alone.

A step lasts from the loading of its batches to that of the next one's, or to the end of the epoch. An
evaluation ends the step, and is in none.

TRL itself (``pip install "fastreward[trl]"``, 1.15 or 1.16) is not imported here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from fastreward.errors import InputError
from fastreward.integrations.trl_calls import COLLECT, OnCall, RewardCall, RewardCalls
from fastreward.profiling import StepReport, Timeline
from fastreward.profiling.exclusive import ExclusivePhases, call_quietly

__all__ = ["RewardCall", "attach"]

GENERATION: Final = ("_generate_single_turn", "_generate_vllm", "_generate")
"""Methods that generate; of GRPO's and RLOO's the first, without what is around it."""

TRL_NAMES: Final[Mapping[str, str]] = {
    "log-probs": "_get_per_token_logps_and_entropies",
    "loss": "compute_loss",
    "sync weights": "sync_weights",
    COLLECT: "_calculate_rewards",
    "prepare": "_prepare_inputs",
}
"""Phases that TRL's own profiler has by another name; its `_prepare_inputs` has all that is within it."""

PREFIX: Final = "profiling/Time taken"


def attach(
    trainer: Any, timeline: Timeline | None = None, *, log: bool = True, on_call: OnCall | None = None
) -> Timeline:
    """Record a trainer's steps, before its `train`. A second time it returns the first time's timeline.

    The trainer's methods, reward functions and callbacks are wrapped in this one object. What they do, return
    and raise stays as it is, and an error of the profiler's own reaches none of them.

    With `log`, each training log also has, in seconds of a step on this process, as a mean over the steps
    since the last one,

    - ``profiling/Time taken: {Trainer}.{what}``, where `what` is TRL's own name: of each reward function,
      ``transformers.generate`` or ``vLLM.generate``, ``_get_per_token_logps_and_entropies``,
      ``compute_loss``, ``sync_weights``, and the phases that TRL does not time under the names above;
    - ``profiling/reward_exposed``, ``profiling/reward_hidden`` and ``profiling/reward_tail``, as `Timeline`
      defines them, ``profiling/step`` and ``profiling/unrecorded``.

    TRL's own timers go to wandb, MLflow and Trackio alone, count a phase with all that is within it, and
    charge a reward for what the GPU still had to do before it. These go wherever the trainer logs.

    Args:
        trainer: A trainer of TRL or of transformers.
        timeline: Where it is recorded; ``None`` makes one.
        log: Whether figures are added to the trainer's log.
        on_call: Is told of each call of a reward function, outside of its time.

    Returns:
        The timeline.

    Raises:
        InputError: If it is no such trainer, or it is attached to another timeline.

    Example:
        >>> from fastreward.integrations.trl_profiling import attach
        >>> timeline = attach(trainer)  # doctest: +SKIP
        >>> trainer.train()  # doctest: +SKIP
        >>> timeline.report().reward_exposed_s  # doctest: +SKIP
        0.61

    Source: the methods are those of TRL 1.15 and 1.16 and of transformers 5; the metrics' names are those of
    TRL's `extras.profiling`.
    """
    return hooked(trainer, timeline, log=log, on_call=on_call).timeline


def hooked(
    trainer: Any, timeline: Timeline | None, *, log: bool = True, on_call: OnCall | None = None
) -> Hooks:
    """Do what `attach` does and return the hooks."""
    missing = [name for name in ("train", "callback_handler", "accelerator", "args") if _lacks(trainer, name)]
    if missing:
        raise InputError(
            "a trainer of TRL or transformers",
            f"{type(trainer).__name__} without {', '.join(missing)}",
            "Pass the trainer's instance, before train(): attach(trainer).",
        )
    if timeline is not None and not isinstance(timeline, Timeline):
        raise InputError("a Timeline or None", type(timeline).__name__, "Pass timeline=Timeline().")
    for callback in trainer.callback_handler.callbacks:
        if isinstance(known := getattr(callback, "hooks", None), Hooks):
            if timeline not in (None, known.timeline):
                raise InputError(
                    "a trainer with one timeline",
                    "a second one for it",
                    "Use that of the first attach(trainer). A script that is run by `fastreward profile`, "
                    "which attaches one, leaves its own attach out.",
                )
            return known
    hooks = Hooks(trainer, Timeline() if timeline is None else timeline, on_call)
    hooks.set(log)
    return hooks


class Hooks:
    """What is set around one trainer.

    Args:
        trainer: The trainer.
        timeline: Where it is recorded.
        on_call: As in `attach`.
    """

    def __init__(self, trainer: Any, timeline: Timeline, on_call: OnCall | None) -> None:
        self.trainer = trainer
        self.timeline = timeline
        self.phases = ExclusivePhases(timeline)
        self._calls = RewardCalls(timeline, self.phases, on_call)
        self._steps: list[StepReport] = []  # since the last log

    def set(self, log: bool) -> None:
        """Set all of them."""
        trainer, phases = self.trainer, self.phases
        self._replace("train", self._train)
        self._replace("get_batch_samples", self._next_batches)
        self._replace("evaluate", self._evaluate)
        self._replace("training_step", self._training_step)
        self._set_generation()
        for name, phase in (
            ("_get_per_token_logps_and_entropies", "log-probs"),
            ("_forward", "log-probs"),  # OnlineDPO
            ("_move_model_to_vllm", "sync weights"),  # OnlineDPO
            ("compute_loss", "loss"),
            ("_save_checkpoint", "save"),
            ("_maybe_log_save_evaluate", "log"),
        ):
            self._replace(name, functools.partial(self._phase, phase))
        trainer.accelerator.backward = phases.around("backward", trainer.accelerator.backward)
        self._calls.set(trainer)
        if log:
            self._replace("log", self._log)
        trainer.add_callback(_callback_class()(self, log))

    def _replace(self, name: str, change: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        method = getattr(self.trainer, name, None)
        if method is not None:
            setattr(self.trainer, name, functools.wraps(method)(change(method)))

    def _phase(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            # The log-probs of the loss are the loss.
            if name == "log-probs" and self.phases.holds("loss"):
                return method(*args, **kwargs)
            place = self.phases.push(name)
            try:
                return method(*args, **kwargs)
            finally:
                self.phases.pop(place)

        return call

    def _set_generation(self) -> None:
        trainer, around = self.trainer, self.phases.around
        engine = getattr(trainer, "vllm_generation", None)
        if engine is not None:
            engine.generate = around("generate", engine.generate)
            engine.sync_weights = around("sync weights", engine.sync_weights)
        elif (name := next((one for one in GENERATION if hasattr(trainer, one)), None)) is not None:
            # A generation that calls another one is one.
            for one in (name,) if name == GENERATION[0] else GENERATION:
                self._replace(one, functools.partial(around, "generate"))
        if getattr(trainer, "rollout_func", None) is not None:
            trainer.rollout_func = around("generate", trainer.rollout_func)

    # ------------------------------------------------------------------ steps

    def begin_step(self) -> None:
        """A step begins, and the one before ends."""
        self.phases.clear()
        self.timeline.next_step(self.trainer.state.global_step + 1)

    def end_step(self) -> None:
        """The step ends, if one runs."""
        self.phases.clear()
        self.timeline.end_step()

    def step_done(self) -> None:
        """All of the step is done but its log."""
        step = self.timeline.latest_step()
        if step is not None:
            self._steps.append(step)

    def _next_batches(self, method: Callable[..., Any]) -> Callable[..., Any]:
        load = self.phases.around("data", method)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.quietly(self.begin_step)
            return load(*args, **kwargs)

        return call

    def _training_step(self, method: Callable[..., Any]) -> Callable[..., Any]:
        work = self.phases.around("prepare", method)

        def call(*args: Any, **kwargs: Any) -> Any:
            if self.phases.holds("optimizer"):  # the batch before was one of several of a step
                self.phases.clear()
            result = work(*args, **kwargs)
            self.phases.push("optimizer")
            return result

        return call

    def _evaluate(self, method: Callable[..., Any]) -> Callable[..., Any]:
        work = self.phases.around("evaluate", method)

        def call(*args: Any, **kwargs: Any) -> Any:
            self.quietly(self.end_step)
            return work(*args, **kwargs)

        return call

    def _train(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            finally:  # an exception leaves a step behind
                self.quietly(self.end_step)

        return call

    def quietly(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call something that serves the profiler alone."""
        return call_quietly(self.phases.recorder, function, *args)

    # ------------------------------------------------------------------ the trainer's log

    def _log(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(logs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
            if self._steps and "loss" in logs:  # the log of steps, not of an evaluation or of the whole run
                more = self.quietly(_metrics, self.trainer, self._steps)
                logs.update(more or {})
                self._steps = []
            return method(logs, *args, **kwargs)

        return call


def _metrics(trainer: Any, steps: Sequence[StepReport]) -> dict[str, float]:
    """Seconds of a step, as a mean over steps, by the names of metrics."""
    kind = type(trainer).__name__
    by_vllm = getattr(trainer, "use_vllm", False) or getattr(trainer.args, "use_vllm", False)
    names = {**TRL_NAMES, "generate": "vLLM.generate" if by_vllm else "transformers.generate"}
    # A reward has the name that TRL gives it, and a phase that would have the same is told apart.
    rewards = {name for step in steps for name in step.rewards}
    phases = {name: names.get(name, name) for step in steps for name in step.phases}
    phases |= {name: f"{shown} (phase)" for name, shown in phases.items() if shown in rewards}
    sums: dict[str, float] = {}
    for step in steps:
        seconds = {phases[name]: spent for name, spent in step.phases.items()} | dict(step.rewards)
        values = {f"{PREFIX}: {kind}.{name}": spent for name, spent in seconds.items()}
        values |= {
            "profiling/reward_exposed": step.reward_exposed_s,
            "profiling/reward_hidden": step.reward_hidden_s,
            "profiling/reward_tail": step.tail_s or 0.0,
            "profiling/step": step.wall_s,
            "profiling/unrecorded": step.idle_s,
        }
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
    return {name: value / len(steps) for name, value in sums.items()}


@functools.cache
def _callback_class() -> type:
    """The callback's class, made when transformers is there."""
    from transformers import TrainerCallback

    class TimelineCallback(TrainerCallback):
        """Tells a trainer's hooks where its steps are."""

        def __init__(self, hooks: Hooks, log: bool) -> None:
            self.hooks = hooks
            self._log = log

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.hooks.phases.clear()
            if self._log:
                self.hooks.quietly(self.hooks.step_done)

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            self.hooks.quietly(self.hooks.end_step)

    return TimelineCallback


def _lacks(trainer: object, name: str) -> bool:
    return getattr(trainer, name, None) is None
