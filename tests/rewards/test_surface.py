import math
import random
import tracemalloc
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastreward.errors import InputError
from fastreward.rewards.base import RewardCounts
from fastreward.rewards.surface import LengthReward, RepetitionReward, distinct_share
from fastreward.rewards.words import words
from fastreward.scorer import Scorer


def text_of(count: int) -> str:
    return " ".join(["word"] * count)


# --------------------------------------------------------------------------- length


@settings(deadline=None, max_examples=200)
@given(st.integers(1, 300), st.integers(1, 300), st.floats(0, 3))
def test_the_reward_for_length_is_its_formula(length, wanted, tolerance):
    reward = LengthReward(tolerance=tolerance)(completions=[text_of(length)], reference=[text_of(wanted)])[0]
    distance = abs(math.log(length / wanted))
    assert reward == pytest.approx(math.exp(-max(0.0, distance - math.log1p(tolerance))), abs=1e-12)


def test_too_short_and_too_long_cost_the_same():
    reward = LengthReward()
    assert reward(completions=[text_of(5), text_of(20)], reference=[text_of(10)] * 2) == [0.5, 0.5]


def test_the_band_of_tolerance_ends_where_it_should():
    reward = LengthReward(tolerance=0.5)
    lengths = [6, 7, 10, 15, 16, 30]
    rewards = reward(completions=[text_of(n) for n in lengths], reference=[text_of(10)] * 6)
    assert rewards == pytest.approx([0.9, 1.0, 1.0, 1.0, 0.9375, 0.5])


def test_of_several_references_the_nearest_in_length_counts():
    several = [[text_of(2), None, text_of(40)]]
    assert LengthReward()(completions=[text_of(20)], reference=several) == [0.5]


def test_units_are_words_characters_tokens_or_ones_own():
    text, reference = "un'aorta molto grande", "the heart"
    scorer = Scorer(dtype="float32", device="cpu")
    tokens = [len(ids) - 2 for ids in scorer.tokenizer([text, reference])]
    expected = {"words": 2 / 3, "characters": 9 / 21, scorer: tokens[1] / tokens[0], len: 9 / 21}
    for unit, ratio in expected.items():
        rewards = LengthReward(unit=unit)(completions=[text], reference=[reference])
        assert rewards == [pytest.approx(ratio, abs=1e-12)]


def test_tokens_are_counted_beyond_what_the_encoder_reads():
    scorer = Scorer(dtype="float32", device="cpu", max_seq_length=8)
    reward = LengthReward(unit=scorer)
    assert reward(completions=["heart " * 100], reference=["heart " * 50]) == [0.5]


def test_a_text_of_no_length_is_like_another_and_unlike_the_rest():
    reward = LengthReward(unit=lambda text: text.count("x"))
    assert reward(completions=["a", "a", "x"], reference=["b", "x", "b"]) == [1.0, 0.0, 0.0]


def test_what_is_missing_is_none_or_zero_and_counted():
    reward = LengthReward("target")
    assert reward(completions=["a", "", "a"], target=[None, "a", "a"]) == [None, 0.0, 1.0]
    assert reward.counts == RewardCounts(samples=3, scored=1, missing_reference=1, no_text=1)


@pytest.mark.parametrize("length", [-1, float("nan"), float("inf"), "3", None, True])
def test_a_unit_function_that_returns_no_length_is_an_error(length):
    with pytest.raises(InputError, match="from the unit function"):
        LengthReward(unit=lambda text: length)(completions=["a"], reference=["a"])


@pytest.mark.parametrize(
    "options",
    [
        {"unit": "letters"},
        {"unit": None},
        {"tolerance": -0.1},
        {"tolerance": math.inf},
        {"tolerance": math.nan},
        {"tolerance": True},
        {"reference": None},
        {"reference": ["text"]},
    ],
)
def test_an_argument_of_the_length_reward_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(InputError):
        LengthReward(**options)


# --------------------------------------------------------------------------- repetition


@pytest.mark.parametrize(
    ("text", "n", "reward"),
    [
        ("the heart pumps blood", 1, 1.0),
        ("the heart pumps the blood", 1, 0.8),
        ("the heart the heart the heart", 2, 0.4),
        ("The heart, the HEART; the heart.", 2, 0.4),
        ("a b c a b c a b c a b c", 3, 0.3),
        ("a b", 3, 1.0),
        ("a b c", 3, 1.0),
        ("no", 1, 1.0),
        ("da da da da", 1, 0.25),
        ("!!! !!! !!! !!!", 1, 0.25),
        ("心心心心", 1, 0.25),
        ("blo\u200bod bl\u200dood blood\ufeff blood\u00ad", 1, 0.25),
    ],
)
def test_the_reward_is_the_share_of_distinct_n_grams(text, n, reward):
    assert RepetitionReward(n)(completions=[text]) == [reward]


def test_repetition_within_a_word_shows_by_characters():
    assert RepetitionReward(2)(completions=["hahahahaha"]) == [1.0]
    assert RepetitionReward(2, unit="characters")(completions=["hahahahaha"]) == [2 / 9]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=40), st.integers(1, 6))
def test_counting_one_by_one_gives_the_same(letters, n):
    counted = Counter(tuple(letters[i : i + n]) for i in range(len(letters) - n + 1))
    expected = len(counted) / counted.total() if counted else 1.0
    assert RepetitionReward(n)(completions=[" ".join(letters)]) == [expected]


@settings(deadline=None, max_examples=200)
@given(
    st.text("abcdefghi", max_size=120) | st.text(max_size=60) | st.text(st.characters(categories=["Cs"])),
    st.integers(1, 32),
)
def test_counting_characters_one_by_one_gives_the_same(text, n):
    counted = {text[i : i + n] for i in range(len(text) - n + 1)}
    expected = len(counted) / (len(text) - n + 1) if counted else 1.0
    assert distinct_share(text, n) == expected


@pytest.mark.parametrize("n", [1, 3, 31, 32])
@pytest.mark.parametrize("alphabet", [2, 50_000])
def test_a_long_text_of_few_or_many_characters_is_counted_exactly(n, alphabet):
    rng = random.Random(n)
    text = "".join(chr(0x4E00 + rng.randrange(alphabet) % 20_000) for _ in range(3000))
    text += text[: 3 * n]
    counted = {text[i : i + n] for i in range(len(text) - n + 1)}
    assert distinct_share(text, n) == len(counted) / (len(text) - n + 1)


def test_a_megabyte_takes_memory_for_its_characters_and_not_for_its_n_grams():
    rng = random.Random(0)
    text = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz ", k=10**6))
    reward = RepetitionReward(32, unit="characters")
    tracemalloc.start()
    try:
        (share,) = reward(completions=[text])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 48 * len(text)
    assert share == 1.0


def test_a_text_said_twice_is_worth_half():
    text = " ".join(f"w{i}" for i in range(1000))
    assert RepetitionReward()(completions=[text, f"{text} {text}"]) == pytest.approx([1.0, 0.5], abs=2e-3)


def test_a_blank_completion_gains_nothing_by_not_repeating_itself():
    reward = RepetitionReward()
    assert reward(completions=["", "<think>"]) == [0.0, 0.0]
    assert reward.counts == RewardCounts(samples=2, no_text=2)


@pytest.mark.parametrize("options", [{"n": 0}, {"n": 33}, {"n": 2.0}, {"n": True}, {"unit": "tokens"}])
def test_an_argument_of_the_repetition_reward_that_cannot_be_is_refused_at_once(options):
    with pytest.raises(InputError):
        RepetitionReward(**options)


# --------------------------------------------------------------------------- words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\u3000 ", []),
        ("L'aorta, «grande»!", ["l'aorta", "grande"]),
        ("perché è così", ["perché", "è", "così"]),
        ("well-known 3,5 E=mc²", ["well-known", "3,5", "e=mc²"]),
        ("... -- ?", ["...", "--", "?"]),
        ("心脏pumps血液", ["心", "脏", "pumps", "血", "液"]),
        ("हृदय पंप", ["हृदय", "पंप"]),
        ("القلب يضخ", ["القلب", "يضخ"]),
        ("STRASSE straße", ["strasse", "strasse"]),
        ("\u202eabc\u202c", ["abc"]),
    ],
)
def test_words_are_what_white_space_separates_but_for_scripts_that_write_none(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("reward", "shown"),
    [
        (
            LengthReward("target", tolerance=1),
            "LengthReward(reference='target', unit='words', tolerance=1.0, extract=None, "
            "strip_thinking=True, no_text='zero', name='length_reward')",
        ),
        (
            RepetitionReward(4),
            "RepetitionReward(n=4, unit='words', extract=None, strip_thinking=True, no_text='zero', "
            "name='repetition_reward')",
        ),
    ],
)
def test_the_repr_shows_the_configuration(reward, shown):
    assert repr(reward) == shown
