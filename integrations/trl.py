"""TRL's trainers: what they need beyond a reward itself, which is a reward function for them as it stands.

| trainer | pass |
| --- | --- |
| `GRPOTrainer`, `RLOOTrainer`, one reward | the reward: ``reward_funcs=[SemanticReward(…)]`` |
| `GRPOTrainer`, `RLOOTrainer`, a combination | what `reward_arguments` makes of it |
| `OnlineDPOTrainer`, `AsyncGRPOTrainer` | the reward or the combination |

A combination that is passed whole gives the trainer its totals. In its parts, the trainer weighs, logs and
compares each, and does so with the rewards of all ranks: a group may lie on several of them. The last two
trainers log no parts, AsyncGRPO knows no weights, and OnlineDPO awaits nothing and takes ``None`` for 0.0:
leave prompts without a reference out of its data.

AsyncGRPO scores in a child process that sees no GPU. A reward gets there by pickle and works on the CPU,
which it says once; one whose device is "cuda" raises there.

TRL itself (``pip install "fastreward[trl]"``, 1.15 or 1.16) is not imported here.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from fastreward.errors import InputError
from fastreward.rewards.combine import CombinedReward, CombinedScores
from fastreward.rewards.completion import Completion, Extractor, completion_text, describe

__all__ = ["RewardArguments", "reward_arguments"]

PENDING: Final = 16
"""Batches that are held until every component has been asked for them; an older one is forgotten."""


@dataclass(frozen=True)
class RewardArguments:
    """A combination in the arguments of a TRL trainer.

    Attributes:
        reward_funcs: For the trainer: a function for each of K components, under its name.
        config: For the trainer's configuration: ``reward_weights``, and for GDPO
            ``multi_objective_aggregation``, which of TRL's configurations that of GRPO alone has.
    """

    reward_funcs: list[Any]
    config: dict[str, Any]


def reward_arguments(reward: CombinedReward, *, log_text: Extractor | None = None) -> RewardArguments:
    """Hand a combination to a trainer in its parts, so that the trainer weighs and aggregates them itself.

    The trainer then logs each component, and with ``"normalize_then_sum"`` (GDPO) it scales them by groups
    that it has gathered from all ranks. The combination's gates hold, and it logs what it logs. The parts
    share their work: in a step the combination is evaluated once, with the first part that is asked, to which
    TRL's profiler therefore charges all of it. A part called alone evaluates as much.

    Every step also logs, if there is a function ``log_extra(column, values)``, columns for the trainer's
    table of completions:

    - ``{name}/total``, the weighted sum, with ``"sum_then_normalize"``;
    - ``{name}/text``, what `log_text` takes from the completion, if it is given.

    If a component is asynchronous, so are all parts, and the trainer awaits them at once. They pickle, best
    together: parts that were pickled one by one no longer share.

    Args:
        reward: The combination. Its `num_generations` is not used: the trainer has its own, and what is
            logged goes by the prompts. Its `last` is that of the trainer's latest step in this process.
        log_text: Takes a text to be logged from each completion.

    Returns:
        The arguments.

    Raises:
        InputError: The reward is no combination, or a combination inside it normalises by groups, of which
            it may see a part.

    Example:
        >>> from fastreward import SemanticReward
        >>> def brief(completions, **columns):
        ...     return [float(len(text) < 80) for text in completions]
        >>> combined = CombinedReward(
        ...     [SemanticReward(), brief], weights=[1.0, 0.2], aggregation="normalize_then_sum"
        ... )
        >>> arguments = reward_arguments(combined)
        >>> [part.__name__ for part in arguments.reward_funcs]
        ['semantic_reward', 'brief']
        >>> arguments.config
        {'reward_weights': [1.0, 0.2], 'multi_objective_aggregation': 'normalize_then_sum'}

    Both go on to the trainer: ``GRPOTrainer(…, reward_funcs=arguments.reward_funcs,
    args=GRPOConfig(…, **arguments.config))``.

    Source: TRL 1.16, `GRPOTrainer._calculate_rewards` and what follows it.
    """
    if not isinstance(reward, CombinedReward):
        raise InputError(
            "a CombinedReward",
            describe(reward),
            "Pass a single reward to the trainer as it is: reward_funcs=[reward].",
        )
    if log_text is not None and not isinstance(log_text, Extractor):
        raise InputError(
            "an Extractor or None as log_text",
            describe(log_text),
            "Pass Extractor('explanation') for what stands in <explanation>…</explanation>.",
        )
    for component in reward.rewards:
        _require_sums(component)
    config: dict[str, Any] = {"reward_weights": list(reward.weights)}
    if reward.aggregation != "sum_then_normalize":  # which is every trainer's own default
        config["multi_objective_aggregation"] = reward.aggregation
    shared = _Shared(reward, log_text)
    part = _AsyncPart if reward.is_async else _Part
    return RewardArguments([part(shared, k) for k in range(len(reward.rewards))], config)


def _require_sums(component: object) -> None:
    if not isinstance(component, CombinedReward):
        return
    if component.aggregation == "normalize_then_sum":
        raise InputError(
            "combinations inside another that are plain sums",
            f"{component.__name__!r} with 'normalize_then_sum'",
            "A group may lie on several ranks, and it would scale what it sees of it. Let the outermost "
            "combination normalise.",
        )
    for inner in component.rewards:
        _require_sums(inner)


class _Batch:
    """A trainer's batch that the components ask for one after another.

    Attributes:
        completions: The trainer's own list, by which the batch is known.
        waiting: Components that have not asked yet.
        scores: Of all components, when they are there.
    """

    def __init__(self, completions: Sequence[Completion], waiting: set[int]) -> None:
        self.completions = completions
        self.waiting = waiting
        self.scores: Future[CombinedScores] = Future()


class _Shared:
    """Evaluates a combination once for all of its parts.

    A batch is known by the list of completions itself: a trainer hands the same object to all of its reward
    functions. A part that asks for it a second time starts it anew.
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = frozenset({"_lock", "_batches"})

    _lock: threading.Lock
    _batches: deque[_Batch]

    def __init__(self, reward: CombinedReward, log_text: Extractor | None) -> None:
        # A rank may hold parts of groups. Only what is logged depends on them, and can go by prompts.
        self.reward = reward if reward.num_generations is None else reward.by_prompts()
        self._log_text = log_text
        self._start()

    def evaluate(self, part: int, completions: Sequence[Completion], columns: dict[str, Any]) -> _Batch:
        """Return the batch with its scores there, or on their way in another thread."""
        batch, first = self._batch_for(part, completions)
        if first:
            try:
                scores = self.reward.evaluate(completions, **columns)
                self._log(scores, completions, columns)
            except BaseException as error:
                self._fail(batch, error)
                raise
            batch.scores.set_result(scores)
        return batch

    async def aevaluate(
        self, part: int, completions: Sequence[Completion], columns: dict[str, Any]
    ) -> CombinedScores:
        """Return the scores without holding the event loop up."""
        batch, first = self._batch_for(part, completions)
        if not first:
            return await asyncio.shield(asyncio.wrap_future(batch.scores))
        try:
            scores = await self.reward.aevaluate(completions, **columns)
            self._log(scores, completions, columns)
        except BaseException as error:
            self._fail(batch, error)
            raise
        batch.scores.set_result(scores)
        return scores

    def _batch_for(self, part: int, completions: Sequence[Completion]) -> tuple[_Batch, bool]:
        """The batch of these completions, and whether this part is the first that asks for it."""
        with self._lock:
            for batch in self._batches:
                if batch.completions is completions and part in batch.waiting:
                    batch.waiting.remove(part)
                    if not batch.waiting:
                        self._batches.remove(batch)
                    return batch, False
            batch = _Batch(completions, set(range(len(self.reward.rewards))) - {part})
            if batch.waiting:
                self._batches.append(batch)
            return batch, True

    def _fail(self, batch: _Batch, error: BaseException) -> None:
        with self._lock:
            if batch in self._batches:
                self._batches.remove(batch)
        batch.scores.set_exception(error)

    def _log(
        self, scores: CombinedScores, completions: Sequence[Completion], columns: dict[str, Any]
    ) -> None:
        log_extra = columns.get("log_extra")
        if not callable(log_extra):
            return
        name = self.reward.__name__
        if self.reward.aggregation == "sum_then_normalize":
            log_extra(f"{name}/total", scores.rewards)
        if self._log_text is not None:
            log_extra(f"{name}/text", [self._log_text(completion_text(entry)) for entry in completions])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in self._OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        """Set what belongs to this object in this process and is never copied."""
        self._lock = threading.Lock()
        self._batches = deque(maxlen=PENDING)


class _Part:
    """One component of a combination as a trainer's reward function."""

    def __init__(self, shared: _Shared, index: int) -> None:
        self.__name__ = shared.reward.names[index]
        self._shared = shared
        self._index = index

    def __call__(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch: N floats, or ``None``, gates applied."""
        batch = self._shared.evaluate(self._index, completions, columns)
        return _column(batch.scores.result(), self._index)

    def __repr__(self) -> str:
        return f"<{self.__name__!r} of {self._shared.reward!r}>"


class _AsyncPart(_Part):
    """The same for a combination that has asynchronous components."""

    async def __call__(  # type: ignore[override]  # a trainer asks which of the two it is
        self, /, completions: Sequence[Completion], **columns: Any
    ) -> list[float | None]:
        """Score a batch: N floats, or ``None``, gates applied."""
        return _column(await self._shared.aevaluate(self._index, completions, columns), self._index)


def _column(scores: CombinedScores, index: int) -> list[float | None]:
    values: list[float] = scores.components[:, index].tolist()
    return [None if math.isnan(value) else value for value in values]
