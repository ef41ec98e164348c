import asyncio
import copy
import math
import pickle
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings

from fastreward.errors import InputError
from fastreward.ops.group_advantage import advantage_shares, group_deviations, group_scores, weighted_total
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.gates import Gate

NAN = math.nan


class Column:
    """A reward that reads its numbers from a column of the batch."""

    def __init__(self, name):
        self.__name__ = name

    def __call__(self, /, completions, **columns):
        return list(columns[self.__name__])


class Waiting(Column):
    """The same, asynchronous."""

    async def __call__(self, /, completions, **columns):
        await asyncio.sleep(0)
        return list(columns[self.__name__])


def broken(completions, **columns):
    raise ZeroDivisionError("no such thing")


async def broken_later(completions, **columns):
    await asyncio.sleep(0)
    raise ZeroDivisionError("no such thing")


MEANING, FORM, ANSWER = Column("meaning"), Column("form"), Column("answer")
BATCH = {
    "completions": ["a", "b", "c", "d"],
    "prompts": ["p", "p", "q", "q"],
    "meaning": [0.9, 0.4, None, 0.2],
    "form": [1.0, 0.0, 1.0, None],
    "answer": [1.0, 1.0, None, 0.0],
}


def matrix(*names):
    rows = [[NAN if value is None else value for value in BATCH[name]] for name in names]
    return torch.tensor(rows, dtype=torch.float64).T


def equal(actual, expected):
    return torch.allclose(actual, expected, rtol=0, atol=1e-12, equal_nan=True)


# --------------------------------------------------------------------------- sums, weights and None


def test_the_total_is_the_weighted_sum_of_what_has_a_value():
    reward = CombinedReward([MEANING, FORM, ANSWER], weights=[0.7, 0.2, 0.1])
    expected = [0.7 * 0.9 + 0.2 + 0.1, 0.7 * 0.4 + 0.1, 0.2, 0.7 * 0.2]
    assert reward(**BATCH) == pytest.approx(expected, abs=1e-15)


def test_a_sample_that_no_component_can_judge_stays_none():
    assert CombinedReward([MEANING, ANSWER])(**BATCH)[2] is None


def test_weights_by_name_are_those_by_position_and_one_by_default():
    by_name = CombinedReward([MEANING, FORM, ANSWER], weights={"answer": 0.5, "meaning": 2})
    assert by_name.weights == (2.0, 1.0, 0.5)
    assert by_name(**BATCH) == CombinedReward([MEANING, FORM, ANSWER], weights=[2, 1, 0.5])(**BATCH)


def test_evaluate_returns_every_component_and_the_total():
    reward = CombinedReward([MEANING, FORM], weights=[1, 0.5])
    assert reward.last is None
    scores = reward.evaluate(**BATCH)
    assert scores.names == ("meaning", "form")
    assert equal(scores.components, matrix("meaning", "form"))
    assert equal(scores.total, weighted_total(scores.components, torch.tensor([1, 0.5])))
    assert scores.components.dtype == scores.total.dtype == torch.float64
    assert reward.last is scores
    assert scores.rewards == reward(**BATCH)


def test_each_component_is_called_once_with_all_columns():
    calls = []

    def watching(completions, **columns):
        calls.append((completions, columns))
        return [0.0] * len(completions)

    CombinedReward([MEANING, watching])(**BATCH, trainer_state="state")
    ((completions, columns),) = calls
    assert completions == BATCH["completions"]
    assert columns == {**{k: v for k, v in BATCH.items() if k != "completions"}, "trainer_state": "state"}


def test_an_empty_batch_gives_an_empty_list():
    logged = {}
    reward = CombinedReward([MEANING, FORM])
    empty = {"meaning": [], "form": [], "prompts": []}
    assert reward(completions=[], **empty, log_metric=logged.__setitem__) == []
    assert set(logged.values()) == {0.0}


def test_nan_of_a_component_counts_as_none():
    assert CombinedReward([MEANING])(completions=["a", "b"], meaning=[NAN, 1]) == [None, 1.0]


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_the_default_dtype_of_the_trainer_changes_nothing(aggregation):
    reward = CombinedReward([MEANING, FORM], aggregation=aggregation)
    columns = {"meaning": [0.9, 0.4, 0.2, 0.7, 0.1, 0.6], "form": [0.1, None, 0.3, 0.8, 0.2, 0.5]}
    batch = {
        "completions": ["a"] * 6,
        "prompts": ["p"] * 6,
        **columns,
    }  # sixths and fifths are inexact in bf16
    expected, logged = {}, {}
    rewards = reward(**batch, log_metric=expected.__setitem__)
    torch.set_default_dtype(torch.bfloat16)
    try:
        assert reward(**batch, log_metric=logged.__setitem__) == rewards
    finally:
        torch.set_default_dtype(torch.float32)
    assert logged == expected


# --------------------------------------------------------------------------- gates


def test_a_gated_component_counts_only_where_the_other_reaches_one():
    reward = CombinedReward([MEANING, FORM], gates={"meaning": "form"})
    batch = {"completions": ["a", "b", "c"], "meaning": [0.9, 0.8, 0.7], "form": [1.0, 0.99, 0.0]}
    assert reward.evaluate(**batch).components[:, 0].tolist() == [0.9, 0.0, 0.0]


def test_a_component_without_a_value_stays_without_whatever_the_gate():
    reward = CombinedReward([MEANING, FORM], gates={"meaning": "form"})
    batch = {"completions": ["a", "b"], "meaning": [None, None], "form": [1.0, 0.0]}
    assert reward.evaluate(**batch).components[:, 0].isnan().all()


@pytest.mark.parametrize(("undecided", "expected"), [("shut", 0.0), ("open", 0.8), ("none", None)])
def test_a_gate_without_a_value_does_what_it_was_told(undecided, expected):
    reward = CombinedReward(
        [MEANING, FORM], weights={"form": 0}, gates={"meaning": Gate("form", undecided=undecided)}
    )
    assert reward(completions=["a"], meaning=[0.8], form=[None]) == [expected]
    assert CombinedReward([MEANING, FORM], gates={"meaning": "form"}).gates["meaning"].undecided == "shut"


def test_a_threshold_is_in_the_deciders_own_units_and_what_is_shut_may_be_worth_something():
    gate = Gate("form", at_least=-0.25, otherwise=-1.0)
    reward = CombinedReward([MEANING, FORM], weights={"form": 0.0, "meaning": 2.0}, gates={"meaning": gate})
    assert reward(completions=["a", "b"], meaning=[0.5, 0.5], form=[-0.25, -0.3]) == [1.0, -2.0]


@pytest.mark.parametrize("order", [[MEANING, FORM, ANSWER], [ANSWER, FORM, MEANING], [FORM, MEANING, ANSWER]])
@pytest.mark.parametrize("turned", [False, True])
def test_gates_of_gates_are_shut_from_the_first_on(order, turned):
    gates = {"meaning": "answer", "answer": "form"}
    if turned:
        gates = dict(reversed(gates.items()))
    reward = CombinedReward(order, gates=gates)
    batch = {"completions": ["a", "b"], "meaning": [0.9, 0.9], "answer": [1.0, 1.0], "form": [1.0, 0.0]}
    scores = reward.evaluate(**batch)
    columns = dict(zip(scores.names, scores.components.T.tolist(), strict=True))
    assert columns == {"form": [1.0, 0.0], "answer": [1.0, 0.0], "meaning": [0.9, 0.0]}


@pytest.mark.parametrize(
    "gates",
    [
        {"meaning": "meaning"},
        {"meaning": "form", "form": "meaning"},
        {"meaning": "form", "form": "answer", "answer": "meaning"},
    ],
)
def test_gates_in_a_circle_are_refused_and_named(gates):
    with pytest.raises(InputError, match=r"circle, got .*meaning"):
        CombinedReward([MEANING, FORM, ANSWER], gates=gates)


# --------------------------------------------------------------------------- trees


def test_a_tree_gives_what_its_leaves_give():
    inner = CombinedReward([FORM, ANSWER], weights=[0.5, 0.5], name="rules")
    outer = CombinedReward(
        [MEANING, inner], weights={"rules": 2.0}, gates={"meaning": Gate("rules", at_least=0.5)}
    )
    flat = CombinedReward([MEANING, FORM, ANSWER])
    batch = BATCH | {"form": [1.0, 0.0, 0.0, 1.0]}
    scores = outer.evaluate(**batch)
    assert equal(scores.components[:, 1], torch.tensor([1.0, 0.5, 0.0, 0.5], dtype=torch.float64))
    assert flat(**batch)[:2] == pytest.approx(outer(**batch)[:2], abs=1e-12)
    assert pickle.loads(pickle.dumps(outer))(**batch) == outer(**batch)


def test_a_tree_of_asynchronous_rewards_is_asynchronous():
    inner = CombinedReward([FORM, Waiting("answer")], name="rules")
    assert CombinedReward([MEANING, inner]).is_async
    assert not CombinedReward([MEANING, FORM]).is_async
    assert CombinedReward([MEANING, inner])(**BATCH) == pytest.approx([2.9, 1.4, 1.0, 0.2])


# --------------------------------------------------------------------------- normalize_then_sum


@pytest.mark.parametrize("options", [{}, {"num_generations": 2}])
def test_normalised_totals_are_weighted_sums_of_the_scores_within_groups(options):
    names, weights = ["meaning", "form", "answer"], torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)
    reward = CombinedReward(
        [MEANING, FORM, ANSWER], weights=weights.tolist(), aggregation="normalize_then_sum", **options
    )
    scores = reward.evaluate(**BATCH)
    values = matrix(*names)
    assert equal(scores.components, values)
    assert equal(scores.total, weighted_total(group_scores(values, 2), weights, like=values))


def test_groups_are_runs_of_equal_prompts_conversations_too():
    prompts = [[{"role": "user", "content": text}] for text in "ppqq"]
    plain = CombinedReward([MEANING, FORM], aggregation="normalize_then_sum")
    assert plain(**BATCH | {"prompts": prompts}) == plain(**BATCH)
    assert plain(**BATCH | {"prompts": ["p"] * 4}) != plain(**BATCH)


def test_normalising_without_whole_groups_is_refused_with_the_remedy():
    batch = {k: v for k, v in BATCH.items() if k != "prompts"}
    with pytest.raises(InputError, match="no prompts"):
        CombinedReward([MEANING], aggregation="normalize_then_sum")(**batch)
    with pytest.raises(InputError, match=r"groups of 3.*reward\.weights to the trainer"):
        CombinedReward([MEANING], aggregation="normalize_then_sum", num_generations=3)(**batch)
    with pytest.raises(InputError, match=r"groups of 3"):  # prompts do not tell whether groups are whole
        CombinedReward([MEANING], aggregation="normalize_then_sum", num_generations=3)(**BATCH)
    with pytest.raises(InputError, match="4 completions and 3 prompts"):
        CombinedReward([MEANING], aggregation="normalize_then_sum")(**batch, prompts=["p"] * 3)


# --------------------------------------------------------------------------- metrics


KEYS = {
    f"combined_reward/{component}/{what}"
    for component in ("meaning", "form")
    for what in ("mean", "value_ratio", "group_std", "advantage_share")
}


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_metrics_are_those_of_the_components_within_groups(aggregation):
    logged = {}
    reward = CombinedReward([MEANING, FORM], weights=[1, 0.5], aggregation=aggregation)
    reward(**BATCH, log_metric=logged.__setitem__)
    values, weights = matrix("meaning", "form"), torch.tensor([1, 0.5], dtype=torch.float64)
    parts = values if aggregation == "sum_then_normalize" else group_scores(values, 2)
    assert set(logged) == KEYS
    assert all(type(value) is float for value in logged.values())
    for k, name in enumerate(("meaning", "form")):
        assert logged[f"combined_reward/{name}/mean"] == pytest.approx(float(values[:, k].nanmean()))
        assert logged[f"combined_reward/{name}/value_ratio"] == 0.75
        assert logged[f"combined_reward/{name}/group_std"] == pytest.approx(
            float(group_deviations(values, 2)[k])
        )
        scale = "group" if aggregation == "sum_then_normalize" else "batch"
        share = float(advantage_shares(parts, weights, 2, scale=scale)[k])
        assert logged[f"combined_reward/{name}/advantage_share"] == pytest.approx(share)
    assert logged["combined_reward/meaning/advantage_share"] + logged[
        "combined_reward/form/advantage_share"
    ] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "columns", "groups"),
    [
        ({}, {"prompts": ["p", "p", "q", "q"]}, 2),
        ({"num_generations": 2}, {"prompts": ["p"] * 4}, 2),
        ({"num_generations": 3}, {"prompts": ["p", "p", "q", "q"]}, 2),  # a rank has parts of groups
        ({"num_generations": 3}, {}, 4),
        ({}, {}, 4),
    ],
)
def test_metrics_go_by_whole_groups_then_by_prompts_then_by_the_batch(options, columns, groups):
    logged = {}
    batch = {"completions": ["a", "b", "c", "d"], "meaning": [0.1, 0.5, 0.9, 0.2], **columns}
    CombinedReward([MEANING], **options)(**batch, log_metric=logged.__setitem__)
    runs = torch.tensor(batch["meaning"], dtype=torch.float64).split(groups)
    expected = sum(float(run.std()) for run in runs) / len(runs)
    assert logged["combined_reward/meaning/group_std"] == pytest.approx(expected, abs=1e-12)


@settings(deadline=None, max_examples=40)
@given(
    values=st.lists(
        st.tuples(*[st.one_of(st.none(), st.floats(-3, 3, width=16))] * 2), min_size=0, max_size=9
    ),
    with_prompts=st.booleans(),
    num_generations=st.sampled_from([None, 2, 3]),
)
def test_the_same_finite_metrics_are_logged_whatever_comes(values, with_prompts, num_generations):
    logged = {}
    columns = {"meaning": [v[0] for v in values], "form": [v[1] for v in values]}
    if with_prompts:
        columns["prompts"] = [str(i // 3) for i in range(len(values))]
    reward = CombinedReward([MEANING, FORM], num_generations=num_generations)
    reward(completions=["x"] * len(values), **columns, log_metric=logged.__setitem__)
    assert set(logged) == KEYS
    assert all(math.isfinite(value) for value in logged.values())


def test_components_log_their_own_metrics_too():
    logged = {}

    def logging(completions, log_metric=None, **columns):
        log_metric("logging/own", 3.0)
        return [1.0] * len(completions)

    inner = CombinedReward([logging], name="inner")
    CombinedReward([inner, MEANING], name="outer")(**BATCH, log_metric=logged.__setitem__)
    assert logged["logging/own"] == 3.0
    assert {"inner/logging/mean", "outer/inner/mean", "outer/meaning/mean"} < set(logged)


# --------------------------------------------------------------------------- asynchronous components


def test_asynchronous_components_wait_at_the_same_time():
    arrived = []

    class Meeting(Column):
        async def __call__(self, /, completions, **columns):
            arrived.append(self.__name__)
            async with asyncio.timeout(5):  # one after another they would wait for ever
                while len(arrived) < 3:
                    await asyncio.sleep(0.001)
            return list(columns[self.__name__])

    values = CombinedReward([Meeting(name) for name in ("meaning", "form", "answer")])(**BATCH)
    assert values == CombinedReward([MEANING, FORM, ANSWER])(**BATCH)


def test_awaiting_gives_what_a_call_gives_and_leaves_the_loop_free():
    free = threading.Event()

    def blocking(completions, **columns):
        assert free.wait(5)  # set by the loop, which must not stand still meanwhile
        return [1.0] * len(completions)

    reward = CombinedReward([blocking, Waiting("form")])

    async def score():
        task = asyncio.create_task(reward.ascore(**BATCH))
        await asyncio.sleep(0.01)
        free.set()
        return await task

    assert asyncio.run(score()) == [2.0, 1.0, 2.0, 1.0]


@pytest.mark.parametrize("awaited", [True, False], ids=["awaited", "called"])
def test_what_fails_at_once_is_reported_before_other_components_begin(awaited):
    failed, begun, ended = threading.Event(), [], []

    async def failing(completions, **columns):
        failed.set()
        raise ZeroDivisionError("no such thing")

    async def endless(completions, **columns):
        try:
            await asyncio.sleep(3600)
        finally:
            ended.append("endless")

    class Working(Column):
        def __call__(self, /, completions, **columns):
            begun.append(self.__name__)
            assert failed.wait(5)
            time.sleep(0.1)  # the failure arrives meanwhile
            ended.append(self.__name__)
            return [0.0] * len(completions)

    components = [failing, endless, Working("first"), Working("second"), Working("third")]
    reward = CombinedReward(components)

    async def score():
        with pytest.raises(ZeroDivisionError) as caught:
            await reward.ascore(**BATCH)
        assert "failing" in caught.value.__notes__[0]
        return len(asyncio.all_tasks())

    if awaited:
        assert asyncio.run(score()) == 1  # the one that asks
    else:
        with pytest.raises(ZeroDivisionError):
            reward(**BATCH)
    assert begun == ["first"]
    assert sorted(ended) == ["endless", "first"]
    assert reward.last is None


def test_a_call_that_is_cancelled_leaves_nothing_running():
    begun, ended = threading.Event(), []

    def working(completions, **columns):
        begun.set()
        time.sleep(0.1)
        ended.append("working")
        return [0.0] * len(completions)

    def never(completions, **columns):
        raise AssertionError("it was begun after the call was cancelled")

    async def score():
        task = asyncio.create_task(CombinedReward([working, never, Waiting("form")]).ascore(**BATCH))
        await asyncio.to_thread(begun.wait, 5)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["working"]
        return len(asyncio.all_tasks())

    assert asyncio.run(score()) == 1


def test_a_plain_call_where_a_loop_runs_is_refused_with_the_remedy():
    async def score():
        return CombinedReward([Waiting("form")])(**BATCH)

    with pytest.raises(InputError, match=r"await reward\.ascore"):
        asyncio.run(score())


def test_plain_components_can_be_called_where_a_loop_runs():
    async def score():
        return CombinedReward([MEANING])(**BATCH)

    assert asyncio.run(score()) == BATCH["meaning"]


# --------------------------------------------------------------------------- failures


@pytest.mark.parametrize("reward", [broken, broken_later])
def test_what_a_component_raises_passes_through_and_names_it(reward):
    combined = CombinedReward([MEANING, CombinedReward([reward], name="inner"), Waiting("form")])
    for score in (combined, lambda **batch: asyncio.run(combined.ascore(**batch))):
        with pytest.raises(ZeroDivisionError, match="no such thing") as caught:
            score(**BATCH)
        notes = "\n".join(caught.value.__notes__)
        assert reward.__name__ in notes
        assert "inner" in notes


def forgotten(completions, **columns):
    return Waiting("form")(completions, **columns)


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (lambda completions, **_: [1.0], r"one number per completion .*1 for 4"),
        (lambda completions, **_: 1.0, "a list"),
        (lambda completions, **_: None, "a list"),
        (lambda completions, **_: ["1"] * 4, r"str '1' for completions\[0\]"),
        (lambda completions, **_: [0, 0, math.inf, 0], r"inf for completions\[2\]"),
        (lambda completions, **_: [[1]] * 4, "finite number"),
        (forgotten, "a coroutine"),
    ],
)
def test_what_is_no_list_of_numbers_is_refused_with_the_components_name(reward, expected):
    with pytest.raises(InputError, match=expected) as caught:
        CombinedReward([reward])(**BATCH)
    assert reward.__name__ in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "options", "expected"),
    [
        ([], {}, "one at least"),
        (MEANING, {}, "a list of rewards"),
        ("abc", {}, "a list of rewards"),
        ([MEANING, 3], {}, "can be called"),
        ([Column], {}, "can be called"),
        ([MEANING, Column("meaning")], {}, "'meaning' more than once"),
        ([MEANING], {"weights": [1, 2]}, "2 weights"),
        ([MEANING], {"weights": {"form": 1}}, "names among meaning in weights"),
        ([MEANING], {"weights": [NAN]}, "finite numbers as weights"),
        ([MEANING], {"weights": [True]}, "finite numbers as weights"),
        ([MEANING], {"weights": 1.0}, "a list as 'weights'"),
        ([MEANING], {"gates": {"form": "meaning"}}, "names among meaning in gates"),
        ([MEANING], {"gates": {"meaning": "form"}}, "names among meaning in gates"),
        ([MEANING], {"gates": ["meaning"]}, "a mapping"),
        ([MEANING], {"gates": {"meaning": 3}}, "component's name in Gate"),
        ([MEANING], {"aggregation": "mean"}, "'sum_then_normalize' or"),
        ([MEANING], {"num_generations": 0}, "1 or more"),
        ([MEANING], {"num_generations": 2.0}, "1 or more"),
    ],
)
def test_bad_arguments_are_named(arguments, options, expected):
    with pytest.raises(InputError, match=expected):
        CombinedReward(arguments, **options)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"at_least": NAN}, "as at_least"),
        ({"otherwise": "0"}, "as otherwise"),
        ({"undecided": "shot"}, "undecided"),
    ],
)
def test_a_bad_gate_is_named(options, expected):
    with pytest.raises(InputError, match=expected):
        Gate("form", **options)


# --------------------------------------------------------------------------- names, copies, threads


def test_names_are_those_under_which_trainers_log():
    named = CombinedReward([partial(broken), partial(partial(broken_later)), MEANING, CombinedReward([FORM])])
    assert named.names == ("broken", "broken_later", "meaning", "combined_reward")
    assert named.__name__ == "combined_reward"
    assert named.rewards[2] is MEANING


def test_a_copy_that_goes_by_prompts_has_last_in_common_and_other_copies_have_not():
    reward = CombinedReward([MEANING, FORM], num_generations=3, weights=[1, 2])
    other = reward.by_prompts()
    assert (other.num_generations, reward.num_generations) == (None, 3)
    assert (other.rewards, other.weights) == (reward.rewards, reward.weights)
    scores = other.evaluate(**BATCH)
    assert other.last is reward.last is scores
    assert copy.copy(reward).last is None
    assert reward.evaluate(**BATCH) is other.last


def test_it_pickles_and_copies_to_its_configuration():
    reward = CombinedReward(
        [MEANING, FORM], weights=[1, 2], gates={"meaning": Gate("form")}, num_generations=2
    )
    expected = reward(**BATCH)
    for one in (pickle.loads(pickle.dumps(reward)), copy.deepcopy(reward)):
        assert one.last is None
        assert one(**BATCH) == expected
        assert (one.names, one.weights, one.gates) == (reward.names, reward.weights, reward.gates)
        assert one.__name__ == reward.__name__


def test_eight_threads_get_the_same():
    reward = CombinedReward([MEANING, FORM], gates={"meaning": "form"}, aggregation="normalize_then_sum")
    batches = [BATCH, {k: v[:2] for k, v in BATCH.items()}]
    expected = [reward.evaluate(**batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda i: reward.evaluate(**batches[i % 2]), range(128)))
    assert all(equal(scores.total, expected[i % 2].total) for i, scores in enumerate(results))
    assert any(reward.last is scores for scores in results)
