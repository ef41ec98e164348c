import functools

import numpy as np
import pytest

import fastreward.rewards.reference_reward as reference_reward
from fastreward.rewards import SemanticReward
from fastreward.rewards.answer import AnswerCounts, AnswerReward
from fastreward.rewards.base import Reward, RewardCounts, TextReward, is_missing
from fastreward.rewards.format import FormatReward


def by_length(completions, **columns):
    return [float(len(text)) for text in completions]


class Nameless:
    def __call__(self, completions, **columns):
        return []


@pytest.mark.parametrize(
    "reward", [FormatReward(), AnswerReward(), SemanticReward("some/encoder"), by_length]
)
def test_rewards_and_functions_of_ones_own_fit_the_protocol(reward):
    assert isinstance(reward, Reward)


@pytest.mark.parametrize("other", [Nameless(), functools.partial(by_length), "a string", 7, None])
def test_what_has_no_name_or_cannot_be_called_does_not_fit(other):
    assert not isinstance(other, Reward)


def test_counts_of_a_kind_add_up_to_that_kind():
    counts = AnswerCounts(samples=2, scored=2, no_answer=1) + AnswerCounts(samples=1, no_text=1)
    assert counts == AnswerCounts(samples=3, scored=2, no_text=1, no_answer=1)
    assert RewardCounts(samples=1) + RewardCounts(samples=1) == RewardCounts(samples=2)


@pytest.mark.parametrize("kind", [float, np.float16, np.float32, np.float64])
def test_not_a_number_is_missing_in_every_precision(kind):
    assert is_missing(kind("nan"))
    assert not is_missing(kind(0))
    assert AnswerReward()(completions=["4"], answer=[kind("nan")]) == [None]


def test_what_moved_can_still_be_had_from_where_it_was():
    names = {"NoText", "ReferenceReward", "RewardCounts", "as_list", "reference_texts"}
    assert {*reference_reward.__all__} == names
    assert all(hasattr(reference_reward, name) for name in names)
    assert issubclass(reference_reward.ReferenceReward, TextReward)


def test_a_reward_without_a_reference_reads_no_column_and_one_with_it_does():
    assert FormatReward("a")(completions=["<a>x</a>"], reference=7) == [1.0]
    with pytest.raises(ValueError, match="a column 'answer', which answer_reward reads"):
        AnswerReward()(completions=["B"])
