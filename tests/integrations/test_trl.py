"""The TRL adapter by itself: what it hands over, and that the parts of a combination share their work."""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import statistics
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from fastreward import Scorer, SemanticReward
from fastreward.errors import InputError
from fastreward.integrations.trl import PENDING, RewardArguments, reward_arguments
from fastreward.rewards.combine import CombinedReward, Gate
from fastreward.rewards.completion import Extractor

COMPLETIONS = ["<a>one</a>", "two words", "<a>three words here</a>", "four"]
LENGTHS = [10.0, 9.0, 23.0, 4.0]
TAGS = [1.0, 0.0, 1.0, 0.0]


class Counted:
    """A reward of its own that counts its calls."""

    def __init__(self, name: str, values: list[float | None]) -> None:
        self.__name__ = name
        self.values = values
        self.calls = 0

    def __call__(self, completions: list[Any], **columns: Any) -> list[float | None]:
        self.calls += 1
        return self.values[: len(completions)]


def length_reward(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def tag_reward(completions: list[str], **columns: Any) -> list[float]:
    return [float("<a>" in text) for text in completions]


async def slow_reward(completions: list[str], **columns: Any) -> list[float]:
    await asyncio.sleep(0.01)
    return [float(len(text)) for text in completions]


def parts_of(*rewards: Any, **options: Any) -> list[Any]:
    return reward_arguments(CombinedReward(list(rewards), **options)).reward_funcs


def asked(parts: list[Any], completions: list[Any], **columns: Any) -> list[list[float | None]]:
    """What a trainer gets: it hands the same list to all, one after another."""
    return [part(prompts=["?"] * len(completions), completions=completions, **columns) for part in parts]


# --------------------------------------------------------------------------- what is handed over


def test_each_component_becomes_a_function_of_its_name_with_its_weight():
    combined = CombinedReward([length_reward, tag_reward], weights={"tag_reward": 0.5})
    arguments = reward_arguments(combined)
    assert [part.__name__ for part in arguments.reward_funcs] == ["length_reward", "tag_reward"]
    assert arguments.config == {"reward_weights": [1.0, 0.5]}
    assert isinstance(arguments, RewardArguments)


def test_gdpo_is_left_to_the_trainer():
    combined = CombinedReward([length_reward, tag_reward], aggregation="normalize_then_sum")
    assert reward_arguments(combined).config["multi_objective_aggregation"] == "normalize_then_sum"


def test_the_parts_are_the_components_and_none_stays_none():
    parts = parts_of(Counted("some", [1.0, None, 0.5, None]), length_reward)
    assert asked(parts, COMPLETIONS) == [[1.0, None, 0.5, None], LENGTHS]


def test_gates_hold_in_the_parts():
    parts = parts_of(length_reward, tag_reward, gates={"length_reward": "tag_reward"})
    assert asked(parts, COMPLETIONS) == [[10.0, 0.0, 23.0, 0.0], TAGS]


def test_a_gates_other_worth_holds_too():
    gate = Gate("tag_reward", at_least=1.0, otherwise=-1.0)
    parts = parts_of(length_reward, tag_reward, gates={"length_reward": gate})
    assert asked(parts, COMPLETIONS)[0] == [10.0, -1.0, 23.0, -1.0]


def test_groups_that_this_process_holds_in_part_are_no_obstacle():
    combined = CombinedReward(
        [length_reward, tag_reward], aggregation="normalize_then_sum", num_generations=3
    )
    assert asked(reward_arguments(combined).reward_funcs, COMPLETIONS) == [LENGTHS, TAGS]


@pytest.mark.parametrize("num_generations", [None, 2, 3])
def test_the_combination_itself_has_the_latest_scores_and_logs_by_the_prompts(num_generations):
    combined = CombinedReward([length_reward, tag_reward], num_generations=num_generations)
    parts = reward_arguments(combined).reward_funcs
    logged: dict[str, float] = {}
    for part in parts:
        part(prompts=["p", "q", "q", "q"], completions=COMPLETIONS, log_metric=logged.__setitem__)
    assert combined.last is not None
    assert combined.last.components.T.tolist() == [LENGTHS, TAGS]
    assert combined.num_generations == num_generations
    within = statistics.stdev(TAGS[1:])  # the other group has one row, of which there is no deviation
    assert logged["combined_reward/tag_reward/group_std"] == pytest.approx(within)


@pytest.mark.parametrize("reward", [SemanticReward(), [SemanticReward()], length_reward, None])
def test_what_is_no_combination_is_refused_with_the_way_to_pass_it(reward: Any):
    with pytest.raises(InputError, match=r"CombinedReward.*reward_funcs"):
        reward_arguments(reward)


def test_a_log_text_that_is_no_extractor_is_refused():
    with pytest.raises(InputError, match="Extractor"):
        reward_arguments(CombinedReward([length_reward]), log_text="explanation")  # type: ignore[arg-type]


def test_a_combination_inside_that_normalises_is_refused_however_deep():
    inner = CombinedReward([length_reward, tag_reward], aggregation="normalize_then_sum", name="inner")
    middle = CombinedReward([inner], name="middle")
    with pytest.raises(InputError, match="'inner' with 'normalize_then_sum'"):
        reward_arguments(CombinedReward([middle, length_reward]))


def test_a_sum_inside_is_one_part():
    inner = CombinedReward([length_reward, tag_reward], weights=[1.0, 100.0], name="inner")
    parts = parts_of(inner, tag_reward)
    assert asked(parts, COMPLETIONS) == [[110.0, 9.0, 123.0, 4.0], TAGS]


# --------------------------------------------------------------------------- once a step


def test_each_component_is_called_once_a_step():
    first, second = Counted("first", [1.0] * 4), Counted("second", [2.0] * 4)
    parts = parts_of(first, second, gates={"first": "second"})
    for step in range(1, 4):
        asked(parts, list(COMPLETIONS))
        assert (first.calls, second.calls) == (step, step)


def test_a_list_that_comes_again_with_other_texts_is_read_again():
    parts = parts_of(length_reward, tag_reward)
    completions = list(COMPLETIONS)
    asked(parts, completions)
    completions[:] = ["<a>", "", "", ""]
    assert asked(parts, completions) == [[3.0, 0.0, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0]]


def test_a_part_that_is_called_alone_always_evaluates():
    counted = Counted("counted", [1.0] * 4)
    parts = parts_of(counted, length_reward)
    completions = list(COMPLETIONS)
    assert [parts[0](completions=completions) for _ in range(3)] == [[1.0] * 4] * 3
    assert counted.calls == 3


def test_batches_of_which_no_other_part_asks_are_forgotten():
    class Texts(list):
        """A list that can be watched."""

    parts = parts_of(length_reward, tag_reward)
    watched = []
    for _ in range(3 * PENDING):
        batch = Texts(COMPLETIONS)
        watched.append(weakref.ref(batch))
        parts[0](completions=batch)
    del batch
    assert [ref() is None for ref in watched] == [True] * 2 * PENDING + [False] * PENDING
    assert parts[1](completions=watched[-1]()) == TAGS
    assert watched[-1]() is None


def test_after_an_exception_the_same_batch_can_be_tried_again():
    failing = Counted("failing", [])
    parts = parts_of(length_reward, failing)
    completions = list(COMPLETIONS)
    for part in parts:
        with pytest.raises(InputError, match="failing"):
            part(completions=completions)
    failing.values = [1.0] * 4
    assert asked(parts, completions) == [LENGTHS, [1.0] * 4]


def test_an_exception_of_a_component_reaches_the_trainer_as_it_is():
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise ZeroDivisionError("no")

    with pytest.raises(ZeroDivisionError, match="no") as caught:
        asked(parts_of(length_reward, broken), COMPLETIONS)
    assert "broken" in "".join(caught.value.__notes__)


def test_parts_in_eight_threads_give_the_same_and_share():
    counted = Counted("counted", [1.0, 2.0, 3.0, 4.0])
    parts = parts_of(length_reward, counted, tag_reward)
    batches = [list(COMPLETIONS) for _ in range(200)]
    with ThreadPoolExecutor(8) as pool:
        jobs = [(part, batch) for batch in batches for part in parts]
        results = list(pool.map(lambda job: job[0](completions=job[1]), jobs))
    assert results == [LENGTHS, counted.values, TAGS] * 200
    assert counted.calls == 200


def test_texts_are_encoded_once_a_step_and_references_once_a_run(tiny_folder):
    scorer = Scorer(tiny_folder, device="cpu", dtype="float32")
    combined = CombinedReward([SemanticReward(scorer), tag_reward], gates={"semantic_reward": "tag_reward"})
    parts = reward_arguments(combined).reward_funcs
    references = ["the heart", "the heart", "blood", "blood"]
    asked(parts, list(COMPLETIONS), reference=references)
    assert scorer.stats.encoded_texts == 4 + 2
    asked(parts, list(COMPLETIONS), reference=references)
    assert scorer.stats.encoded_texts == 4 + 2 + 4


# --------------------------------------------------------------------------- asynchronous


def test_an_asynchronous_component_makes_all_parts_asynchronous_and_they_share():
    counted = Counted("counted", [1.0] * 4)
    parts = parts_of(slow_reward, counted)

    async def step() -> list[list[float | None]]:
        completions = list(COMPLETIONS)
        return await asyncio.gather(*(part(completions=completions) for part in parts))

    assert asyncio.run(step()) == [LENGTHS, [1.0] * 4]
    assert asyncio.run(step()) == [LENGTHS, [1.0] * 4]
    assert counted.calls == 2


def test_an_exception_reaches_every_asynchronous_part():
    async def broken(completions: list[str], **columns: Any) -> list[float]:
        raise ZeroDivisionError("no")

    parts = parts_of(length_reward, broken)

    async def step() -> list[Any]:
        calls = (part(completions=COMPLETIONS) for part in parts)
        return await asyncio.gather(*calls, return_exceptions=True)

    assert [type(result) for result in asyncio.run(step())] == [ZeroDivisionError, ZeroDivisionError]


# --------------------------------------------------------------------------- logging


def test_total_and_text_are_logged_once_a_step_as_columns():
    combined = CombinedReward([length_reward, tag_reward], weights=[1.0, 100.0], name="both")
    parts = reward_arguments(combined, log_text=Extractor("a")).reward_funcs
    logged: dict[str, list[Any]] = {}
    asked(parts, COMPLETIONS, log_extra=lambda name, values: logged.setdefault(name, []).extend(values))
    assert logged == {
        "both/total": [110.0, 9.0, 123.0, 4.0],
        "both/text": ["one", None, "three words here", None],
    }


def test_a_normalised_total_is_no_column_for_it_is_the_trainers():
    combined = CombinedReward([length_reward], aggregation="normalize_then_sum")
    logged: list[str] = []
    asked(
        reward_arguments(combined).reward_funcs,
        COMPLETIONS,
        log_extra=lambda name, values: logged.append(name),
    )
    assert logged == []


@pytest.mark.parametrize("values", [LENGTHS, [None] * 4, [1.0] * 4])
def test_the_same_finite_metrics_are_logged_whatever_comes(values: list[float | None]):
    parts = parts_of(Counted("some", values), tag_reward)
    logged: dict[str, list[float]] = {}
    asked(parts, COMPLETIONS, log_metric=lambda name, value: logged.setdefault(name, []).append(value))
    measures = ("mean", "value_ratio", "group_std", "advantage_share")
    assert set(logged) == {f"combined_reward/{c}/{m}" for c in ("some", "tag_reward") for m in measures}
    assert all(len(numbers) == 1 and math.isfinite(numbers[0]) for numbers in logged.values())


# --------------------------------------------------------------------------- formats


@pytest.mark.parametrize(
    "form",
    [
        lambda text: [{"role": "assistant", "content": text}],
        lambda text: [{"role": "assistant", "content": [{"type": "text", "text": text}]}],
        lambda text: [
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look_up"}}]},
            {"role": "tool", "name": "look_up", "content": "42"},
            {"role": "assistant", "content": text},
        ],
    ],
    ids=["messages", "blocks", "tools"],
)
def test_a_conversation_is_worth_what_its_last_text_is(form, tiny_folder):
    scorer = Scorer(tiny_folder, device="cpu", dtype="float32")
    combined = CombinedReward([SemanticReward(scorer)])
    parts = reward_arguments(combined, log_text=Extractor("a")).reward_funcs
    references = ["the heart"] * 4
    texts: list[Any] = []
    rewards = asked(
        parts,
        [form(text) for text in COMPLETIONS],
        reference=references,
        log_extra=lambda name, values: texts.append(values),
    )
    assert rewards[0] == pytest.approx(scorer.score(COMPLETIONS, references).tolist(), abs=2e-6)
    assert texts[-1] == ["one", None, "three words here", None]


# --------------------------------------------------------------------------- copies and imports


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda parts: pickle.loads(pickle.dumps(parts))])
def test_copies_give_the_same_and_still_share(duplicate):
    parts = parts_of(length_reward, Counted("counted", [1.0] * 4), gates={"length_reward": "counted"})
    asked(parts[:1], COMPLETIONS)  # a batch that is waiting for the others stays behind
    copies = duplicate(parts)
    assert asked(copies, COMPLETIONS) == [LENGTHS, [1.0] * 4]
    assert copies[0]._shared.reward.rewards[1].calls == 2
    assert [part.__name__ for part in copies] == ["length_reward", "counted"]


def test_a_part_shows_what_it_is_of():
    assert repr(parts_of(tag_reward)[0]).startswith("<'tag_reward' of CombinedReward(")


def test_the_module_imports_without_trl():
    code = "import sys; sys.modules['trl'] = None; import fastreward.integrations.trl"
    subprocess.run([sys.executable, "-c", code], check=True)
