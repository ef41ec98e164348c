import functools

import numpy as np
import pytest

import fastreward.rewards.reference_reward as reference_reward
from fastreward.errors import InputError
from fastreward.profiling import Timeline
from fastreward.rewards import SemanticReward
from fastreward.rewards.answer import AnswerCounts, AnswerReward
from fastreward.rewards.base import Reward, RewardCounts, TextReward, is_missing, several
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.components import columns_read
from fastreward.rewards.format import FormatReward
from fastreward.rewards.guards import ContrastReward, PromptCopyReward
from fastreward.rewards.shaping import Power, Shaped
from fastreward.rewards.surface import LengthReward


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


def test_a_reward_tells_the_column_of_its_references_which_nobody_can_set():
    assert [reward.reference for reward in (AnswerReward("key"), FormatReward())] == ["key", None]
    with pytest.raises(AttributeError):
        AnswerReward("key").reference = "other"


def test_a_reward_without_a_reference_reads_no_column_and_one_with_it_does():
    assert FormatReward("a")(completions=["<a>x</a>"], reference=7) == [1.0]
    with pytest.raises(ValueError, match="a column 'answer', which answer_reward reads"):
        AnswerReward()(completions=["B"])


ARRAYS = [
    np.array(["one two", "one two three four"]),
    np.array(["one two", None, "one two three four"], dtype=object),
    np.array(["one two", "one two three four"], dtype=np.dtypes.StringDType()),
    ("one two", float("nan"), "one two three four"),
]


@pytest.mark.parametrize("references", ARRAYS, ids=["text", "objects", "strings", "tuple"])
def test_one_samples_references_may_stand_in_an_array(references):
    texts = ["one two", "one two three four", "one"]
    expected = [1.0, 1.0, 0.5]
    assert LengthReward()(completions=texts, reference=[references] * 3) == expected
    shared = np.empty(3, dtype=object)
    shared[:] = [references] * 3
    assert LengthReward()(completions=texts, reference=shared) == expected


@pytest.mark.parametrize(
    "references", [np.array([], dtype=object), np.array([None, " "]), np.array([np.nan])]
)
def test_an_array_without_a_reference_is_a_missing_one(references):
    assert LengthReward()(completions=["one"], reference=[references]) == [None]


@pytest.mark.parametrize("references", [np.array([["one"], ["two"]]), np.array(["one", 7], dtype=object)])
def test_an_array_of_anything_else_is_an_error_with_the_index(references):
    with pytest.raises(
        InputError, match=r"a string, a list of strings or None as reference.* in reference\[1\]"
    ):
        LengthReward()(completions=["one", "one"], reference=["one", references])


def test_right_answers_and_options_may_stand_in_arrays():
    reward = AnswerReward(options="options")
    options = np.array(["heart", "lung"])
    rewards = reward(
        completions=["Answer: B", "Answer: A", "Answer: the lung"],
        answer=[np.array(["A", "B"]), np.array(["B"]), np.array("B")],
        options=[options] * 3,
    )
    assert rewards == [1.0, 0.0, 1.0]
    numbers = AnswerReward()(
        completions=["Answer: 4", "Answer: 4"], answer=[np.array([3, 4]), np.array([5.0])]
    )
    assert numbers == [1.0, 0.0]


def test_what_a_column_holds_for_one_sample_is_one_thing_or_several():
    assert several(np.array("text")) == ["text"]
    assert several(np.array([1, 2])) == [1, 2]
    assert several({"a": 1}) == [{"a": 1}]


REFERENCE = {"explanation": "reference"}


@pytest.mark.parametrize(
    ("reward", "columns"),
    [
        (SemanticReward("some/encoder", reference="explanation"), REFERENCE),
        (FormatReward(), {}),
        (AnswerReward("letter"), {"letter": "answer"}),
        (AnswerReward("letter", options="choices"), {"letter": "answer", "choices": "options"}),
        (PromptCopyReward(reference="explanation"), {"prompts": "prompt"}),
        (PromptCopyReward(prompt="question"), {"question": "prompt"}),
        (
            PromptCopyReward(allowed="reference", reference="explanation"),
            {"prompts": "prompt", "explanation": "reference"},
        ),
        (Shaped(LengthReward("explanation"), Power(2)), REFERENCE),
        (Timeline().wrap(Shaped(LengthReward("explanation"), Power(2))), REFERENCE),
        (CombinedReward([AnswerReward("why"), Shaped(LengthReward("why"), Power(2))]), {"why": "answer"}),
        (CombinedReward([Timeline().wrap(LengthReward("explanation")), by_length]), REFERENCE),
        (by_length, {}),
        (Timeline().wrap(by_length), {}),
    ],
)
def test_a_reward_names_the_columns_that_it_reads_and_one_of_ones_own_none(reward, columns):
    assert columns_read(reward) == columns


def test_only_what_compares_completions_does_not_judge_each_by_itself():
    assert not ContrastReward().judges_alone
    assert all(one.judges_alone for one in (PromptCopyReward(), AnswerReward(), SemanticReward()))
