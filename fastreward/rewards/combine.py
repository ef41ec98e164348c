"""CombinedReward: several rewards as one, with weights and gates, and a measure of which of them matters."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal, cast, get_args

import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.ops.group_advantage import advantage_shares, group_deviations, group_scores, weighted_total
from fastreward.rewards.base import ColumnKind, as_list
from fastreward.rewards.completion import Completion, describe
from fastreward.rewards.components import awaits, call, columns_read, reward_name, run_to_the_end
from fastreward.rewards.gates import Gate, Gates, close_gates, is_number, read_gates, require_known
from fastreward.rewards.together import call_together

__all__ = ["Aggregation", "CombinedReward", "CombinedScores", "Gate"]

Aggregation = Literal["sum_then_normalize", "normalize_then_sum"]

PROMPTS: Final = "prompts"
"""The column in which trainers hand the prompts over."""


@dataclass(frozen=True)
class CombinedScores:
    """What one call of a `CombinedReward` came to.

    Attributes:
        names: Of the K components.
        components: [N, K], fp64, on the CPU: what each gave each completion, gates applied; NaN for ``None``.
        total: [N], fp64, on the CPU: the rewards; NaN for ``None``.
    """

    names: tuple[str, ...]
    components: Tensor
    total: Tensor

    @property
    def rewards(self) -> list[float | None]:
        """The total as a trainer takes it."""
        return [None if math.isnan(value) else value for value in self.total.tolist()]


@dataclass(eq=False)
class _Latest:
    """The latest call's scores, which combinations may have in common; set and read whole, so unlocked."""

    scores: CombinedScores | None = None


class CombinedReward:
    """Several rewards as one: a weighted sum, with gates, of which every part is kept and measured.

    It calls each of its K components once with the columns that it gets itself, and is a component like any
    other: a tree of them works. A sample that no component can judge gets ``None``; of one that some can, the
    others count nothing.

    A component that is gated counts only where the one that decides reaches its threshold, which is compared
    after that one's own gate. Where it does not, or has no value, the component is worth 0.0; a `Gate` may
    say otherwise. A component that gave ``None`` stays ``None``. To let a component decide and not be
    rewarded, give it the weight 0.

    Every call logs, if there is a function ``log_metric``, of each component, gates applied,

    - ``{name}/{component}/mean``, over the samples with a value,
    - ``{name}/{component}/value_ratio``, the share of samples with one,
    - ``{name}/{component}/group_std``, the standard deviation within a group, averaged over groups,
    - ``{name}/{component}/advantage_share``, its share of the variance of the advantages, by
      `ops.group_advantage.advantage_shares`: a weight says little about who steers the training, this does.
      Sums are taken to be scaled by group, which is the trainers' default.

    All keys are logged whatever came, each a finite number, 0.0 where there is nothing to measure, so that a
    trainer can gather them across ranks. They are measured on the rows of this process.

    A group is `num_generations` consecutive rows; without that, consecutive rows with equal prompts. Only to
    log, the prompts also serve where `num_generations` does not divide the batch, and where no prompts come
    either, the whole batch is taken for one group.

    It may be called from many threads at once, and pickles with its components, without `last`.
    With asynchronous components every plain call, and so every step of a training, runs an event loop of its
    own: what belongs to one loop, such as the session of a client, such a component must make in its call.

    Args:
        rewards: K rewards, one at least, with different names: objects of this library, or functions in the
            form that TRL takes, asynchronous ones too.
        weights: K numbers, or numbers by name, 1.0 for a component not named; ``None`` is 1.0 for all.
        gates: By the name of a gated component, the name of the one that must reach 1.0, or a `Gate`.
        aggregation: ``"sum_then_normalize"``: the total is the weighted sum, and the trainer normalises it.
            ``"normalize_then_sum"``: the total is the weighted sum of components that were scaled within
            their group (GDPO). A trainer normalises that sum once more, by group where GDPO does so by batch;
            to have it exactly, hand `rewards` and `weights` over separately and let the trainer aggregate. It
            needs groups, and all rows of a group in one call.
        num_generations: Rows of a group.
        name: The reward's ``__name__``, under which trainers log it.

    Raises:
        InputError: An argument is not one of the above, two components have one name, or gates go in a
            circle.

    Example:
        >>> def brief(completions, **columns):
        ...     return [float(len(text) < 10) for text in completions]
        >>> def polite(completions, **columns):
        ...     return [float("please" in text) for text in completions]
        >>> reward = CombinedReward([brief, polite], weights={"polite": 0.5}, gates={"polite": "brief"})
        >>> reward(completions=["please", "go", "would you please go"])
        [1.5, 1.0, 0.0]
        >>> reward.last.components
        tensor([[1., 1.],
                [1., 0.],
                [0., 0.]], dtype=torch.float64)

    Source: the weighted sum with auxiliary rewards is that of arXiv 2509.13081; `normalize_then_sum` is GDPO
    (arXiv 2601.05242).
    """

    _OF_THIS_PROCESS: ClassVar[frozenset[str]] = frozenset({"_latest"})

    _latest: _Latest

    def __init__(
        self,
        rewards: Sequence[Any],
        *,
        weights: Sequence[float] | Mapping[str, float] | None = None,
        gates: Gates | None = None,
        aggregation: Aggregation = "sum_then_normalize",
        num_generations: int | None = None,
        name: str = "combined_reward",
    ) -> None:
        if isinstance(rewards, str | bytes | Mapping) or not isinstance(rewards, Sequence) or not rewards:
            raise InputError(
                "a list of rewards, one at least",
                describe(rewards),
                "Pass for instance [SemanticReward(), AnswerReward()].",
            )
        if aggregation not in get_args(Aggregation):
            raise InputError(
                "'sum_then_normalize' or 'normalize_then_sum' as aggregation",
                describe(aggregation),
                "Correct the name.",
            )
        if num_generations is not None and (not _is_whole(num_generations) or num_generations < 1):
            raise InputError(
                "num_generations of 1 or more, or None",
                describe(num_generations),
                "Pass the trainer's own, or None to find groups by their prompts.",
            )
        self.__name__ = name
        self.rewards: tuple[Any, ...] = tuple(rewards)
        self.names = _names(self.rewards)
        self.weights = _read_weights(weights, self.names)
        self.gates = read_gates({} if gates is None else gates, self.names)
        self.aggregation: Aggregation = aggregation
        self.num_generations = num_generations
        self._start()

    @property
    def last(self) -> CombinedScores | None:
        """What the last finished call in this process came to, whichever thread made it.

        Of a call on this object, or on the one that `by_prompts` returns.
        """
        return self._latest.scores

    @property
    def is_async(self) -> bool:
        """Whether a component, however deep, is asynchronous."""
        return any(awaits(reward) for reward in self.rewards)

    def columns_read(self) -> dict[str, ColumnKind]:
        """The columns that the components need; of two that read one, the first says what it holds."""
        parts = [columns_read(reward) for reward in reversed(self.rewards)]
        return {name: kind for part in parts for name, kind in part.items()}

    def by_prompts(self) -> CombinedReward:
        """The same combination where groups may lie on several processes: it finds them by their prompts.

        Returns:
            A copy without `num_generations`, with the same components. It has `last` in common with this one.
        """
        other = copy.copy(self)
        other.num_generations = None
        other._latest = self._latest
        return other

    def __call__(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch.

        Args:
            completions: N completions.
            **columns: What the trainer passes by keyword; every component gets all of it.

        Returns:
            N rewards, each a float, or ``None`` for a sample that no component can judge.

        Raises:
            InputError: A component returned no list of N numbers or ``None``; groups are needed and cannot be
                found; or a component is asynchronous and an event loop runs here: await `ascore` there.
            Exception: What a component raised, with a note that names it.
        """
        return self.evaluate(completions, **columns).rewards

    def evaluate(self, /, completions: Sequence[Completion], **columns: Any) -> CombinedScores:
        """Score a batch and return all of it: what each component gave, and the total.

        Args:
            completions: As in a plain call.
            **columns: As in a plain call.

        Returns:
            Components [N, K] and total [N].

        Raises:
            InputError: As a plain call does.
            Exception: As in a plain call.
        """
        if self.is_async:
            return run_to_the_end(self.aevaluate(completions, **columns), self.__name__)
        entries = _completions(completions)
        return self._finish([call(reward, entries, columns) for reward in self.rewards], columns)

    async def ascore(self, /, completions: Sequence[Completion], **columns: Any) -> list[float | None]:
        """Score a batch without holding an event loop up.

        Asynchronous components are awaited all at once. The others run meanwhile in a worker thread, one
        after another, as in a plain call.

        Args:
            completions: As in a plain call.
            **columns: As in a plain call.

        Returns:
            The same as a plain call.

        Raises:
            InputError: As a plain call does.
            Exception: What a component raised first, with a note that names it. What else is awaited is
                cancelled, and no other component is begun; one at work in the thread is waited for.
        """
        return (await self.aevaluate(completions, **columns)).rewards

    async def aevaluate(self, /, completions: Sequence[Completion], **columns: Any) -> CombinedScores:
        """Score a batch as `ascore` does and return all of it, as `evaluate` does.

        Args:
            completions: As in a plain call.
            **columns: As in a plain call.

        Returns:
            Components [N, K] and total [N].

        Raises:
            InputError: As a plain call does.
            Exception: As in `ascore`.
        """
        entries = _completions(completions)
        return self._finish(await call_together(self.rewards, entries, columns), columns)

    def _finish(self, values: list[list[float | None]], columns: Mapping[str, Any]) -> CombinedScores:
        components = close_gates(
            torch.tensor(
                [[math.nan if value is None else value for value in column] for column in values],
                dtype=torch.float64,
                device="cpu",
            ).T,
            self.names,
            self.gates,
        )
        weights = torch.tensor(self.weights, dtype=torch.float64, device="cpu")
        normalised = self.aggregation == "normalize_then_sum"
        log_metric = columns.get("log_metric")
        groups = self._groups(columns, len(components)) if normalised or callable(log_metric) else None
        if normalised:
            assert groups is not None
            parts = group_scores(components, groups)
            total = weighted_total(parts, weights, like=components)
        else:
            parts = components
            total = weighted_total(components, weights)
        scores = CombinedScores(self.names, components, total)
        self._latest.scores = scores
        if callable(log_metric) and groups is not None:
            shares = advantage_shares(parts, weights, groups, scale="batch" if normalised else "group")
            self._log(log_metric, components, shares, groups)
        return scores

    def _groups(self, columns: Mapping[str, Any], count: int) -> int | Tensor:
        if self.num_generations is not None and count % self.num_generations == 0:
            return self.num_generations
        # Prompts may show parts of groups, which can be measured but not normalised.
        parts = self.aggregation == "sum_then_normalize"
        if (self.num_generations is None or parts) and columns.get(PROMPTS) is not None:
            return _groups_of_prompts(as_list(PROMPTS, columns[PROMPTS]), count)
        if self.aggregation == "normalize_then_sum":
            raise InputError(
                "whole groups for 'normalize_then_sum'",
                f"{count} completions, and no prompts"
                if self.num_generations is None
                else f"{count} completions, and groups of {self.num_generations}",
                "Pass num_generations that divide the batch; where a group's rows lie on several ranks, hand "
                "reward.rewards and reward.weights to the trainer and let it aggregate.",
            )
        return torch.zeros(count, dtype=torch.int64, device="cpu")

    def _log(self, log_metric: Any, components: Tensor, shares: Tensor, groups: int | Tensor) -> None:
        measured = {
            "mean": torch.nan_to_num(components.nanmean(dim=0), nan=0.0),
            "value_ratio": (~components.isnan()).sum(dim=0, dtype=torch.float64) / max(len(components), 1),
            "group_std": group_deviations(components, groups),
            "advantage_share": shares,
        }
        for what, values in measured.items():
            for component, value in zip(self.names, values.tolist(), strict=True):
                log_metric(f"{self.__name__}/{component}/{what}", value)

    def __repr__(self) -> str:
        options = {
            "weights": self.weights,
            "gates": self.gates,
            "aggregation": self.aggregation,
            "num_generations": self.num_generations,
            "name": self.__name__,
        }
        shown = "".join(f", {name}={value!r}" for name, value in options.items())
        return f"CombinedReward({list(self.rewards)!r}{shown})"

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key not in self._OF_THIS_PROCESS}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._start()

    def _start(self) -> None:
        """Set what belongs to this object in this process and is never copied."""
        self._latest = _Latest()


def _completions(completions: object) -> list[Completion]:
    # Each component checks the entries itself.
    return cast(list[Completion], as_list("completions", completions))


def _names(rewards: Sequence[Any]) -> tuple[str, ...]:
    names = tuple(reward_name(reward) for reward in rewards)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InputError(
            "rewards with different names",
            f"{', '.join(map(repr, twice))} more than once",
            "Give one of them another: SemanticReward(name='semantic_to_answer').",
        )
    return names


def _read_weights(weights: object, names: tuple[str, ...]) -> tuple[float, ...]:
    if weights is None:
        return (1.0,) * len(names)
    if isinstance(weights, Mapping):
        require_known(weights, names, "weights")
        values = [weights.get(name, 1.0) for name in names]
    else:
        values = as_list("weights", weights)
    if len(values) != len(names):
        raise InputError(
            f"one weight for each of {len(names)} rewards",
            f"{len(values)} weights",
            "Pass as many, or name them: weights={'semantic_reward': 0.7}.",
        )
    wrong = [value for value in values if not is_number(value)]
    if wrong:
        raise InputError("finite numbers as weights", describe(wrong[0]), "Correct the weight.")
    return tuple(float(value) for value in values)


def _groups_of_prompts(prompts: Sequence[object], count: int) -> Tensor:
    """Number runs of equal prompts: [N], int64."""
    if len(prompts) != count:
        raise InputError(
            "one prompt per completion",
            f"{count} completions and {len(prompts)} prompts",
            "Repeat each prompt.",
        )
    starts = [int(i > 0 and prompts[i] != prompts[i - 1]) for i in range(count)]
    return torch.tensor(starts, dtype=torch.int64, device="cpu").cumsum(0)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
