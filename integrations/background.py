"""Rewards beside other work: in a thread, on a CUDA stream, and if asked to while others are generated."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias

import torch

from fastreward.integrations.prompts import Prompts
from fastreward.profiling import Timeline
from fastreward.rewards.base import TextReward
from fastreward.rewards.combine import CombinedReward, CombinedScores
from fastreward.rewards.components import awaits, call

Scored: TypeAlias = Future[tuple[CombinedScores, dict[str, float]]]
"""Scores, and the means of what the rewards logged."""


class Judge:
    """Calls the rewards of a run, in one thread, in the order in which it is asked to.

    Args:
        reward: The rewards.
        tokenizer: Of the policy.
        timeline: Where they are recorded: each reward, and all of a rollout's as "rewards".
        device: Of the policy; on CUDA the rewards have a stream of their own there.
    """

    def __init__(self, reward: CombinedReward, tokenizer: Any, timeline: Timeline, device: Any) -> None:
        self.reward, self.tokenizer, self.timeline = reward, tokenizer, timeline
        self.parts = [timeline.wrap(part) for part in reward.rewards]
        self.parts_alone = [timeline.wrap(part) for part in ungrouped(reward).rewards]
        # What judges each text by itself can judge it before the others are written.
        self.early = [k for k, p in enumerate(reward.rewards) if _judges_alone(p) and not awaits(p)]
        self.worker = ThreadPoolExecutor(1, thread_name_prefix="reward")
        self.stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]


def ungrouped(reward: CombinedReward) -> CombinedReward:
    """The same combination where completions are no groups, as in an evaluation: a weighted sum.

    So are those that are its components themselves; one within a `Shaped`, or watched by a timeline, stays as
    it is. It has `last` in common with the one that it is made of.
    """
    other = reward.by_prompts()
    other.aggregation = "sum_then_normalize"
    other.rewards = tuple(ungrouped(p) if isinstance(p, CombinedReward) else p for p in reward.rewards)
    return other


def _judges_alone(reward: Any) -> bool:
    return isinstance(reward, TextReward) and reward.judges_alone


class Case:
    """One rollout's completions before the judge.

    Args:
        judge: Of the run.
        prompts: P prompts.
        count: Completions of each; one makes no group, and is worth the weighted sum of its rewards.
    """

    def __init__(self, judge: Judge, prompts: Prompts, count: int) -> None:
        self._judge, self._prompts, self._count = judge, prompts, count
        self._known: dict[int, dict[int, float | None]] = {k: {} for k in judge.early}
        self._logged: defaultdict[str, list[tuple[float, int]]] = defaultdict(list)
        self._waiting: dict[int, list[int]] = {}
        self._pieces: list[Future[None]] = []

    def ended(self, completions: dict[int, list[int]]) -> None:
        """Take completions that have ended, and score what waits as soon as the thread is free."""
        self._waiting |= completions
        if not self._judge.early:
            return
        if not self._pieces or self._pieces[-1].done():
            piece, self._waiting = self._waiting, {}
            texts = self._prompts.texts(list(piece.values()), self._judge.tokenizer)
            self._pieces.append(self._judge.worker.submit(self._score_some, piece, texts))

    def close(self, texts: list[Any], completion_ids: list[list[int]]) -> Scored:
        """Score the rest of the completions, of which these are all."""
        score = self._judge.timeline.wrap(self._score_rest, name="rewards")
        return self._judge.worker.submit(score, texts, completion_ids)

    def _score_rest(
        self, texts: list[Any], completion_ids: list[list[int]]
    ) -> tuple[CombinedScores, dict[str, float]]:
        parts = list(self._judge.parts if self._count > 1 else self._judge.parts_alone)
        if self._pieces:
            for piece in self._pieces:
                piece.result()  # it is done, for one thread does all; what it raised is raised here
            done = next(iter(self._known.values()), {})
            rest = {place: ids for place, ids in enumerate(completion_ids) if place not in done}
            self._score_some(rest, [texts[place] for place in rest])
            for k, values in self._known.items():
                found = [values[place] for place in range(len(texts))]
                parts[k] = lambda completions, found=found, **columns: found
        reward = self._judge.reward.by_prompts() if self._count > 1 else ungrouped(self._judge.reward)
        reward.rewards, reward.num_generations = tuple(parts), self._count
        columns = self._columns(range(len(texts)), completion_ids)
        with torch.cuda.stream(self._judge.stream):  # None changes nothing
            scores = reward.evaluate(texts, **columns)
        sums = {name: sum(v * n for v, n in values) for name, values in self._logged.items()}
        return scores, {name: sums[name] / sum(n for _, n in v) for name, v in self._logged.items()}

    def _score_some(self, completions: dict[int, list[int]], texts: list[Any]) -> None:
        columns = self._columns(list(completions), list(completions.values()))
        with torch.cuda.stream(self._judge.stream):
            for k in self._judge.early if completions else ():
                values = call(self._judge.parts[k], texts, columns)
                self._known[k].update(zip(completions, values, strict=True))

    def _columns(self, places: Sequence[int], completion_ids: list[list[int]]) -> dict[str, Any]:
        def log_metric(name: str, value: float) -> None:
            self._logged[name].append((float(value), len(places)))

        columns = self._prompts.columns(places, self._count)
        return columns | {"completion_ids": completion_ids, "log_metric": log_metric}
