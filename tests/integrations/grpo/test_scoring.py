"""Rewards of completions that have ended while others are still generated."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from fastreward import ContrastReward, FormatReward, RepetitionReward, Scorer, SemanticReward
from fastreward.integrations.grpo import GRPO
from fastreward.profiling import Timeline
from fastreward.rewards.base import TextReward
from fastreward.rewards.combine import CombinedReward

Make = Callable[..., GRPO]


class Watched(TextReward):
    """The share of odd words, by text; it keeps what it was called with, and when."""

    _NEEDS_REFERENCE = False

    def __init__(self) -> None:
        super().__init__(reference=None, name="watched")
        self.calls: list[tuple[list[str], float]] = []
        self.columns: list[dict[str, Any]] = []

    def __call__(self, /, completions: Any, **columns: Any) -> list[float | None]:
        self.calls.append((list(completions), time.perf_counter()))
        self.columns.append(columns)
        return super().__call__(completions, **columns)

    def _score(self, texts: list[str], references: list[Any]) -> list[float]:
        return [sum(len(word) % 2 for word in text.split()) / 8 for text in texts]


def whole_batch(completions: list[str], **columns: Any) -> list[float]:
    """What no text has by itself: how many others are shorter."""
    assert len(completions) == 12
    return [sum(len(other) < len(text) for other in completions) / 12 for text in completions]


@pytest.fixture
def policy(run: ModuleType, tokenizer: Any) -> Any:
    """A policy for which an eighth of the words end a completion."""
    model = run.make_model(tokenizer)
    model.generation_config.eos_token_id = list(range(10, 10 + len(tokenizer) // 8))
    return model


def test_scores_weights_and_metrics_are_those_of_scoring_at_the_end(
    make: Make, policy: Any, minilm: Callable[..., Scorer]
) -> None:
    import copy

    scorer = minilm(device="cpu", dtype="float32")

    def trained(early: bool) -> tuple[GRPO, list[dict[str, float]]]:
        semantic = SemanticReward(scorer, reference="explanation")
        contrast = ContrastReward(scorer, reference="explanation")
        parts = [semantic, FormatReward(), Watched(), whole_batch, contrast]
        weights = [1.0, 0.5, 1.0, 0.25, 0.5]
        reward = CombinedReward(parts, gates={"semantic_reward": "watched"}, weights=weights)
        options: dict[str, Any] = {"score_while_generating": early, "max_completion_length": 24}
        trainer = make(reward, model=copy.deepcopy(policy), **options)
        return trainer, [trainer.step(number) for number in range(2)]

    (plain, expected), (early, found) = trained(False), trained(True)
    watched = early.reward.rewards[2]
    assert sum(len(texts) for texts, _ in watched.calls) == 24
    assert len(watched.calls) > 3
    for ours, theirs in zip(early.model.parameters(), plain.model.parameters(), strict=True):
        assert (ours - theirs).abs().max() < 1e-5  # a cosine depends on its batch by 2e-6
    for metrics, wanted in zip(found, expected, strict=True):
        assert metrics.keys() == wanted.keys()
        same = [name for name in metrics if "time" not in name]
        assert [metrics[n] for n in same] == pytest.approx([wanted[n] for n in same], abs=1e-5, rel=1e-4)


def test_a_reward_gets_the_columns_of_those_that_have_ended(make: Make, policy: Any, run: ModuleType) -> None:
    watched = Watched()
    make(watched, model=policy, score_while_generating=True, max_completion_length=24).step(0)
    known = {item["question"]: item["explanation"] for item in run.ITEMS}
    for (texts, _), columns in zip(watched.calls, watched.columns, strict=True):
        assert len(texts) == len(columns["prompts"]) == len(columns["completion_ids"]) > 0
        assert columns["explanation"] == [known[prompt] for prompt in columns["prompts"]]


def test_it_scores_while_others_are_generated_and_hides_there(make: Make, policy: Any) -> None:
    scored = threading.Event()
    waited: list[bool] = []

    class Slow(Watched):
        def _score(self, texts: list[str], references: list[Any]) -> list[float]:
            time.sleep(0.05)
            scored.set()
            return super()._score(texts, references)

    def still_generates(module: Any, arguments: Any) -> None:
        if not module.training and not scored.is_set():
            waited.append(scored.wait(0.2))  # generation goes on only when something was scored

    policy.register_forward_pre_hook(still_generates)
    timeline = Timeline()
    trainer = make(
        Slow(), model=policy, score_while_generating=True, max_completion_length=24, timeline=timeline
    )
    metrics = trainer.step(0)
    assert waited[-1]
    assert metrics["time/reward_hidden"] > 0.04
    assert timeline.report().rewards[0].count > 1


def test_what_a_reward_raises_early_comes_out_of_the_step(make: Make, policy: Any) -> None:
    class Broken(Watched):
        def _score(self, texts: list[str], references: list[Any]) -> list[float]:
            raise KeyError("early")

    with pytest.raises(KeyError, match="early"):
        make(Broken(), model=policy, score_while_generating=True, max_completion_length=24).step(0)


def test_a_step_in_which_nothing_ends_early_is_scored_at_the_end(make: Make) -> None:
    watched = Watched()
    metrics = make([watched, RepetitionReward()], score_while_generating=True).step(0)
    assert [len(texts) for texts, _ in watched.calls] == [12]
    assert "rewards/watched/mean" in metrics
