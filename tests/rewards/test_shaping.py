import asyncio
import copy
import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fastreward.errors import InputError
from fastreward.rewards.shaping import Chain, Clip, Power, Rescale, Shaped, Shaping, Sigmoid

COSINES = st.floats(-1, 1)
SHAPINGS = [
    Clip(),
    Clip(0.2, 0.8),
    Power(1),
    Power(2.5),
    Power(0.5),
    Rescale(0.7),
    Rescale(-0.1),
    Sigmoid(0.6, 20),
    Sigmoid(0.0, 1),
    Chain(Rescale(0.5), Clip(0), Power(3)),
    Chain(Clip(0), Chain(Sigmoid(0.5, 8), Rescale(0.1))),
]

each_shaping = pytest.mark.parametrize("shaping", SHAPINGS, ids=repr)


def scores(completions, **columns):
    """A reward whose values are the completions themselves."""
    return [None if text == "none" else float(text) for text in completions]


@each_shaping
@given(low=COSINES, high=COSINES)
def test_of_two_scores_the_larger_never_gets_less(shaping, low, high):
    low, high = sorted((low, high))
    assert shaping(low) <= shaping(high)
    assert math.isfinite(shaping(low))


@pytest.mark.parametrize(
    ("shaping", "ends"),
    [
        (Clip(), [(-1, 0.0), (0, 0.0), (0.3, 0.3), (1, 1.0)]),
        (Clip(-0.5, 0.5), [(-1, -0.5), (-0.5, -0.5), (0.5, 0.5), (1, 0.5)]),
        (Power(2), [(-1, 0.0), (0, 0.0), (0.5, 0.25), (1, 1.0)]),
        (Power(0.5), [(-1, 0.0), (0, 0.0), (0.25, 0.5), (1, 1.0)]),
        (Rescale(0.75), [(-1, -7.0), (0.75, 0.0), (0.875, 0.5), (1, 1.0)]),
        (Sigmoid(0.5, 10), [(0.5, 0.5), (0.5 + 0.2, 1 / (1 + math.exp(-2))), (1, 1 / (1 + math.exp(-5)))]),
        (Chain(Rescale(0.5), Clip(0), Power(2)), [(-1, 0.0), (0.5, 0.0), (0.75, 0.25), (1, 1.0)]),
        (Chain(Power(2), Rescale(0.5)), [(0.5, -0.5), (1, 1.0)]),
    ],
    ids=repr,
)
def test_values_at_the_ends_and_between(shaping, ends):
    assert [shaping(score) for score, _ in ends] == pytest.approx([value for _, value in ends], abs=1e-15)


def test_a_steep_sigmoid_far_from_its_centre_does_not_overflow():
    assert Sigmoid(0.5, 1e6)(-1.0) == 0.0
    assert Sigmoid(0.5, 1e6)(1.0) == 1.0


@each_shaping
def test_shapings_are_values_equal_hashable_and_picklable(shaping):
    again = pickle.loads(pickle.dumps(shaping))
    assert again == shaping == copy.deepcopy(shaping)
    assert hash(again) == hash(shaping)
    assert isinstance(shaping, Shaping)
    with pytest.raises(AttributeError):
        shaping.low = 3.0


def test_a_shaped_reward_shapes_its_numbers_and_keeps_none():
    reward = Shaped(scores, Power(2))
    assert reward(completions=["0.5", "none", "-1"]) == [0.25, None, 0.0]
    assert reward.__name__ == "scores"
    assert Shaped(scores, Power(2), name="sharp").__name__ == "sharp"


def test_nan_of_a_reward_is_none_and_never_shaped():
    assert Shaped(scores, Clip(0))(completions=["nan", "0.5"]) == [None, 0.5]


def test_a_shaped_reward_hands_all_columns_on():
    seen = {}

    def reward(completions, **columns):
        seen.update(columns)
        return [1.0] * len(completions)

    Shaped(reward, Clip(0))(completions=["a"], prompts=["p"], answer=["B"])
    assert seen == {"prompts": ["p"], "answer": ["B"]}


async def judge(completions, **columns):
    await asyncio.sleep(0)
    return [0.5] * len(completions)


def test_an_asynchronous_reward_is_run_to_its_end_or_awaited():
    reward = Shaped(judge, Power(2))
    assert reward(completions=["a"]) == [0.25]
    assert asyncio.run(reward.ascore(completions=["a"])) == [0.25]
    assert reward.is_async
    assert not Shaped(scores, Power(2)).is_async


def test_an_asynchronous_reward_is_refused_in_a_plain_call_where_a_loop_runs():
    async def call():
        return Shaped(judge, Power(2))(completions=["a"])

    with pytest.raises(InputError, match=r"await reward\.ascore"):
        asyncio.run(call())


def test_a_shaped_reward_pickles_copies_and_runs_from_eight_threads():
    reward = Shaped(scores, Chain(Rescale(0.2), Clip(0)))
    texts = ["0.1", "0.6", "none", "1"]
    expected = reward(completions=texts)
    for one in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert one(completions=texts) == expected
        assert repr(one) == repr(reward)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda _: reward(completions=texts), range(64))) == [expected] * 64


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: Clip("0"), "as low"),
        (lambda: Clip(math.nan), "as low"),
        (lambda: Clip(0.5, 0.2), "low up to high"),
        (lambda: Power(0), "above 0 as exponent"),
        (lambda: Power(math.inf), "as exponent"),
        (lambda: Power(True), "as exponent"),
        (lambda: Rescale(1.0), "below 1 as baseline"),
        (lambda: Sigmoid(math.inf, 1), "as center"),
        (lambda: Sigmoid(0.5, -1), "above 0 as slope"),
        (lambda: Chain(), "one at least"),
        (lambda: Chain(Clip(), 2), "shapings"),
        (lambda: Shaped(scores, 2), "a shaping"),
        (lambda: Shaped("scores", Clip()), "can be called"),
        (lambda: Shaped(scores, Clip)(completions=["1"]), "finite number from the shaping"),
        (lambda: Shaped(scores, lambda s: s / 0 if s else math.inf)(completions=["0"]), "from the shaping"),
        (lambda: Shaped(scores, str)(completions=["1"]), "from the shaping"),
    ],
)
def test_bad_input_is_named(make, expected):
    with pytest.raises(InputError, match=expected):
        make()
