import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.errors import InputError
from fastreward.rewards.base import RewardCounts
from fastreward.rewards.format import FormatReward, sound_pairs

SOUND = "<explanation>It pumps.</explanation> <answer>B</answer>"


def worth(text: str, tags: object = ("a", "b"), **options: object) -> float | None:
    return FormatReward(tags, **options)(completions=[text])[0]


@pytest.mark.parametrize(
    "text",
    [
        SOUND,
        f"Well: {SOUND} That is all.",
        f"<think>First <answer>A</answer>?</think>{SOUND}",
        "<EXPLANATION>It pumps.</Explanation><Answer>B</ANSWER>",
        "<explanation>It <b>pumps</b> a < b and <unknown>.</explanation>\n\n<answer>B</answer>",
        "<explanation>x</explanation><answer>B</answer></other>",
    ],
)
def test_the_form_is_kept_if_every_pair_stands_once_and_in_order(text):
    assert FormatReward()(completions=[text]) == [1.0]


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("", 0.0),
        ("a b", 0.0),
        ("<a>x</a>", 0.5),
        ("<a>x</a><b>y", 0.5),
        ("<a>x</a>y</b>", 0.5),
        ("<a>x<b>y</b>", 0.5),
        ("<a>x</a><a>x</a><b>y</b>", 0.5),
        ("<a>x</a><b>y</b><b>", 0.5),
        ("<b>y</b><a>x</a>", 0.5),
        ("<a><b>y</b></a>", 0.0),
        ("<a>x<b>y</a>z</b>", 0.0),
        ("<a>x</a><b></b>", 0.5),
        ("<a>x</a><b> \n </b>", 0.5),
        ("</a>x<a><b>y</b>", 0.5),
        ("<a >x</a><b>y</b>", 0.5),
        ("<a>x</ a><b>y</b>", 0.5),
        ("<think>no end <a>x</a><b>y</b>", 0.0),
        ("<a>x</a><b>y</b>", 1.0),
    ],
)
def test_what_breaks_the_form_costs_all_or_its_share(text, share):
    assert worth(text) == float(share == 1.0)
    assert worth(text, graded=True) == share


@pytest.mark.parametrize(
    ("order", "in_order"), [("abc", 3), ("bac", 2), ("cab", 2), ("bca", 2), ("cba", 1), ("acb", 2)]
)
def test_of_pairs_in_another_order_as_many_count_as_stand_in_order(order, in_order):
    text = "".join(f"<{tag}>x</{tag}>" for tag in order)
    assert worth(text, ("a", "b", "c"), graded=True) == in_order / 3


def test_text_outside_can_be_forbidden():
    strict = FormatReward(("a", "b"), outside=False)
    texts = ["<a>x</a>\n<b>y</b>\n", "Well: <a>x</a><b>y</b>", "<a>x</a> or <b>y</b>", "<a>x</a><b>y</b>."]
    assert strict(completions=texts) == [1.0, 0.0, 0.0, 0.0]
    graded = FormatReward(("a", "b"), outside=False, graded=True)
    assert graded(completions=[*texts[:2], "<a>x</a> y"]) == [1.0, 2 / 3, 1 / 3]


def test_an_empty_pair_can_be_allowed():
    assert worth("<a></a><b> </b>", empty=True) == 1.0


def test_thinking_is_kept_where_its_tag_is_asked_for():
    reward = FormatReward(("think", "answer"))
    assert reward(completions=["<think>Hm.</think><answer>B</answer>", "<answer>B</answer>"]) == [1.0, 0.0]


def test_a_prefix_is_what_the_prompt_has_begun():
    begun = FormatReward(("think", "answer"), prefix="<think>\n")
    assert begun(completions=["Hm.</think><answer>B</answer>", "<answer>B</answer>"]) == [1.0, 0.0]
    assert FormatReward("answer", prefix="<think>")(completions=["Hm.</think><answer>B</answer>"]) == [1.0]


def test_a_single_name_is_one_tag():
    assert worth("<answer>B</answer>", "answer") == 1.0


def test_a_name_that_begins_like_another_is_another():
    assert worth("<a>x</a><ab>y</ab>", ("a", "ab")) == 1.0
    assert worth("<a>x</a><a-b>y</a-b>", ("a", "a-b")) == 1.0


def test_a_completion_without_text_is_counted_and_worth_what_no_text_says():
    reward = FormatReward(no_text="none")
    logged = []
    rewards = reward(completions=["", "<think>", SOUND], log_metric=lambda *pair: logged.append(pair))
    assert rewards == [None, None, 1.0]
    assert reward.counts == RewardCounts(samples=3, scored=1, no_text=2)
    assert logged == [("format_reward/no_text_ratio", 2 / 3)]


def test_conversations_are_read():
    assert FormatReward()(completions=[[{"role": "assistant", "content": SOUND}]]) == [1.0]


PIECES = st.sampled_from(["<a>", "</a>", "<b>", "</b>", "<c>", "</c>", "x", " "])


@settings(deadline=None, max_examples=500)
@given(st.lists(PIECES, max_size=10).map("".join))
def test_a_pattern_for_the_whole_text_agrees_on_every_small_text(text):
    inside, between = r"(?:(?!</?[ab]>).)*", r"(?:(?!</?[ab]>).)*"
    pattern = rf"{between}<a>{inside}</a>{between}<b>{inside}</b>{between}"
    assert worth(text, empty=True) == float(bool(re.fullmatch(pattern, text, re.DOTALL)))


@settings(deadline=None, max_examples=200)
@given(st.lists(PIECES, max_size=14).map("".join))
def test_every_sound_pair_is_what_its_places_say(text):
    for pair in sound_pairs(["a", "b", "c"], text):
        tag = "abc"[pair.rank]
        assert text[pair.start : pair.end] == f"<{tag}>{pair.text}</{tag}>"
        assert text.count(f"<{tag}>") == text.count(f"</{tag}>") == 1
        assert not re.search("</?[abc]>", pair.text)


@pytest.mark.parametrize(
    "options",
    [
        {"tags": ()},
        {"tags": ("a", "A")},
        {"tags": ("a b",)},
        {"tags": ("<a>",)},
        {"tags": 7},
        {"tags": ("a", None)},
        {"prefix": None},
        {"tags": "think", "strip_thinking": True},
        {"no_text": "skip"},
    ],
)
def test_an_argument_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(InputError):
        FormatReward(**options)


def test_the_repr_shows_the_configuration():
    assert repr(FormatReward(("Think", "answer"), graded=True)) == (
        "FormatReward(('think', 'answer'), outside=True, empty=False, graded=True, prefix='', "
        "strip_thinking=False, no_text='zero', name='format_reward')"
    )
