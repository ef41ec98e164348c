"""TRL's trainers on a timeline, with a small random policy: what is recorded, and that nothing changes."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastreward.errors import InputError
from fastreward.integrations.trl import reward_arguments
from fastreward.integrations.trl_calls import RewardCall
from fastreward.integrations.trl_profiling import attach
from fastreward.integrations.trl_recording import TextLog, references
from fastreward.profiling import Report, Timeline
from fastreward.rewards import AnswerReward
from fastreward.rewards.combine import CombinedReward

pytest.importorskip("trl", reason="needs the extra trl")

Make = Callable[..., Any]
SLACK_S = 0.04  # what other processes may take while a call begins or ends
OURS = ("profiling/reward_exposed", "profiling/reward_hidden", "profiling/reward_tail", "profiling/step")


@pytest.fixture
def make(run: ModuleType, tokenizer: Any, tmp_path: Path) -> Make:
    """Make a trainer of GRPO or RLOO, or of online DPO, that has yet to train."""

    def made(kind: str, rewards: Any, *, trainer: dict[str, Any] | None = None, **options: Any) -> Any:
        import trl

        if kind == "OnlineDPO":
            from trl.experimental import online_dpo as module

            sizes = {"max_new_tokens": 8, "max_length": 256, "per_device_train_batch_size": 4}
            args = run.settings(tmp_path, **(sizes | options))
        else:
            module = trl
            sizes = {"max_completion_length": 4, "log_completions": False}
            args = run.group_settings(tmp_path, **(sizes | options))
        return getattr(module, f"{kind}Trainer")(
            run.make_model(tokenizer),
            reward_funcs=rewards,
            args=getattr(module, f"{kind}Config")(**args),
            train_dataset=run.make_dataset(),
            processing_class=tokenizer,
            **(trainer or {}),
        )

    return made


class Judge:
    """Takes its time, and knows how much it was."""

    def __init__(self, seconds: float, name: str = "judge") -> None:
        self.__name__ = name
        self.seconds: list[float] = []
        self._seconds = seconds

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        begin = time.perf_counter()
        time.sleep(self._seconds)
        self.seconds.append(time.perf_counter() - begin)
        return [float(len(text)) for text in completions]


def near(seconds: float) -> Any:
    """The judge's own time, and a little more for what lies between its stamps and the timeline's."""
    return pytest.approx(seconds + SLACK_S / 2, abs=SLACK_S / 2 + 1e-4)


def total(report: Report, name: str) -> float:
    return sum(row.total_s for row in (*report.phases, *report.rewards) if row.name == name)


def adds_up(report: Report) -> None:
    """Nothing overlaps, so that each step is its phases, its rewards and what was not recorded."""
    for step in report.kept_steps:
        recorded = sum(step.phases.values()) + sum(step.rewards.values())
        assert recorded + step.idle_s == pytest.approx(step.wall_s, rel=1e-6)


# --------------------------------------------------------------------------- what is recorded


def test_grpo_is_recorded_and_trains_as_without(make: Make):
    judge = Judge(0.1)
    plain = make("GRPO", [Judge(0.0)], max_steps=2)
    plain.train()
    trainer = make("GRPO", [judge], max_steps=2)
    timeline = attach(trainer, log=False)
    trainer.train()
    for ours, theirs in zip(trainer.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    names = [set(entry) for entry in trainer.state.log_history]
    assert names == [set(entry) for entry in plain.state.log_history]

    report = timeline.report()
    assert [step.number for step in report.kept_steps] == [1, 2]
    assert report.failures == 0
    adds_up(report)
    assert {row.name: row.count for row in report.phases if row.name != "prepare"} == {
        "data": 2,
        "generate": 2,
        "collect rewards": 4,  # before and after the judge
        "loss": 2,
        "backward": 2,
        "optimizer": 2,
        "log": 3,  # and once at the epoch's end
    }
    (reward,) = report.rewards
    assert (reward.name, reward.count, reward.texts) == ("judge", 2, 16)
    assert reward.total_s == near(sum(judge.seconds))
    assert report.reward_exposed_s == pytest.approx(reward.total_s)
    assert report.tail_total_s >= reward.total_s
    assert report.idle_s <= 0.03 * report.wall_s + SLACK_S


def test_rloo_with_a_reference_policy_has_log_probs_of_their_own(make: Make, run: ModuleType, tokenizer: Any):
    trainer = make("RLOO", [Judge(0.0)], num_iterations=2, max_steps=2, beta=0.0)
    timeline = attach(trainer)
    trainer.train()
    rows = {row.name: row for row in timeline.report().phases}
    assert rows["generate"].count == 1  # the second step goes over the first one's texts again
    assert rows["log-probs"].count == 1  # of the old policy; those of the loss are the loss
    assert rows["loss"].count == 2
    adds_up(timeline.report())


def test_online_dpo_is_recorded(make: Make):
    judge = Judge(0.1)
    trainer = make("OnlineDPO", judge)
    timeline = attach(trainer)
    trainer.train()
    report = timeline.report()
    adds_up(report)
    counts = {row.name: row.count for row in (*report.phases, *report.rewards)}
    assert (counts["generate"], counts["log-probs"], counts["backward"], counts["judge"]) == (1, 2, 1, 1)
    assert total(report, "judge") == near(sum(judge.seconds))


def test_a_step_of_several_batches_is_one(make: Make):
    trainer = make("GRPO", [Judge(0.0)], gradient_accumulation_steps=2, per_device_train_batch_size=4)
    timeline = attach(trainer)
    trainer.train()
    report = timeline.report()
    assert report.steps == 1
    assert {name: total(report, name) > 0 for name in ("loss", "backward", "optimizer")}
    counts = {row.name: row.count for row in report.phases}
    assert (counts["generate"], counts["loss"], counts["backward"]) == (1, 2, 2)
    adds_up(report)


def test_an_evaluation_is_in_no_step(make: Make, run: ModuleType):
    judge = Judge(0.02)
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}
    data = run.make_dataset().select(range(2))
    trainer = make("GRPO", [judge], trainer={"eval_dataset": data}, max_steps=2, **options)
    timeline = attach(trainer)
    trainer.train()
    report = timeline.report()
    assert len(judge.seconds) == report.rewards[0].count == 4  # two steps and two evaluations
    in_steps = sum(step.rewards["judge"] for step in report.kept_steps)
    assert in_steps == near(judge.seconds[0] + judge.seconds[2])
    assert all("evaluate" not in step.phases for step in report.kept_steps)
    assert total(report, "evaluate") > 0


def test_texts_from_elsewhere_are_generated(make: Make, run: ModuleType):
    def written(prompts: list[str], trainer: Any) -> dict[str, Any]:
        time.sleep(0.05)
        return run.written_by_row(prompts, trainer)

    trainer = make("GRPO", [Judge(0.0)], trainer={"rollout_func": written})
    timeline = attach(trainer)
    trainer.train()
    assert 0.05 <= total(timeline.report(), "generate") < 0.05 + 2 * SLACK_S


# --------------------------------------------------------------------------- rewards


def test_awaited_rewards_overlap_and_cost_their_time_once(make: Make):
    async def one(completions: list[str], **columns: Any) -> list[float]:
        await asyncio.sleep(0.1)
        return [1.0] * len(completions)

    class Other:
        async def __call__(self, completions: list[str], **columns: Any) -> list[float]:
            await asyncio.sleep(0.15)
            return [float(len(text)) for text in completions]

    trainer = make("GRPO", [one, Other()])
    assert trainer.reward_func_names == ["one", "Other"]
    timeline = attach(trainer)
    trainer.train()
    report = timeline.report()
    assert {row.name: row.count for row in report.rewards} == {"one": 1, "Other": 1}
    assert report.most_in_flight == 2
    assert 0.15 <= report.reward_exposed_s < 0.15 + 2 * SLACK_S  # and the trainer, which waits, hides nothing
    assert report.reward_hidden_s == 0.0
    assert total(report, "collect rewards") >= 0.15


def test_each_component_of_a_combination_has_its_own_cost(make: Make):
    cheap, costly = Judge(0.0, "cheap"), Judge(0.1, "costly")
    combined = CombinedReward([cheap, costly], weights=[1.0, 0.5])
    arguments = reward_arguments(combined)
    trainer = make("GRPO", arguments.reward_funcs, **arguments.config)
    timeline = attach(trainer)
    trainer.train()
    report = timeline.report()
    assert {row.name: row.count for row in report.rewards} == {"cheap": 1, "costly": 1}
    assert total(report, "costly") == near(sum(costly.seconds))
    assert total(report, "cheap") < 0.05
    assert combined.rewards == (cheap, costly)
    adds_up(report)


def test_a_reward_model_is_timed_with_what_the_trainer_does_for_it(
    make: Make, run: ModuleType, tokenizer: Any
):
    from transformers import Qwen2ForSequenceClassification

    config = run.make_model(tokenizer).config
    config.num_labels, config._name_or_path = 1, "some/reward-model"
    model = Qwen2ForSequenceClassification(config)
    before, after = Judge(0.0, "before"), Judge(0.02, "after")
    classes = {"reward_processing_classes": [None, tokenizer, None]}
    trainer = make("GRPO", [before, model, after], trainer=classes)
    tokenize = trainer.reward_processing_classes[1]
    slow = Judge(0.05)

    def tokenized(*args: Any, **kwargs: Any) -> Any:
        slow([])
        return tokenize(*args, **kwargs)

    trainer.reward_processing_classes[1] = tokenized
    timeline = attach(trainer)
    trainer.train()
    report = timeline.report()
    rows = {row.name: row for row in report.rewards}
    assert set(rows) == {"before", "reward-model", "after"}
    found = rows["reward-model"]
    assert (found.count, found.texts, found.none) == (1, 8, 0)
    assert found.total_s >= sum(slow.seconds)
    assert rows["after"].total_s == near(sum(after.seconds))
    assert trainer.reward_funcs[1] is model
    adds_up(report)


def test_the_users_own_list_of_rewards_is_left_alone(make: Make):
    rewards = [Judge(0.0)]
    kept = list(rewards)
    attach(make("GRPO", rewards))
    assert rewards == kept


def test_whoever_asks_is_told_of_each_call(make: Make):
    judge, calls = Judge(0.02), list[RewardCall]()
    trainer = make("GRPO", [judge])
    attach(trainer, on_call=calls.append)
    trainer.train()
    (call,) = calls
    assert (call.reward, call.function) == ("judge", judge)
    assert call.seconds == near(judge.seconds[0])
    assert len(call.arguments["completions"]) == len(call.arguments["explanation"]) == 8


# --------------------------------------------------------------------------- the log


def test_the_log_has_trls_names_and_the_seconds_of_a_step(make: Make):
    judge = Judge(0.1)
    trainer = make("GRPO", [judge], max_steps=4, logging_steps=2)
    timeline = attach(trainer)
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert [entry["step"] for entry in logs] == [2, 4]
    prefix = "profiling/Time taken: GRPOTrainer."
    known = ("judge", "transformers.generate", "compute_loss", "_prepare_inputs", "_calculate_rewards")
    for number, entry in enumerate(logs):
        assert {*OURS, *(prefix + name for name in known)} <= set(entry)
        of_steps = judge.seconds[2 * number : 2 * number + 2]
        assert entry[prefix + "judge"] == near(sum(of_steps) / 2)
        assert entry["profiling/reward_exposed"] == pytest.approx(entry[prefix + "judge"])
        parts = sum(value for name, value in entry.items() if name.startswith(prefix))
        assert parts + entry["profiling/unrecorded"] == pytest.approx(entry["profiling/step"])
    report = timeline.report()
    sums = 2 * sum(entry[prefix + "compute_loss"] for entry in logs)
    assert sums == pytest.approx(total(report, "loss"))
    summary = trainer.state.log_history[-1]
    assert "train_runtime" in summary
    assert not any(name.startswith("profiling/") for name in summary)


def test_in_the_log_rewards_that_are_named_like_phases_are_apart_from_them(make: Make):
    rewards = [Judge(0.03, "compute_loss"), Judge(0.05, "log"), Judge(0.07, "generate")]
    trainer = make("GRPO", rewards, max_steps=1, logging_steps=1)
    attach(trainer)
    trainer.train()
    (entry,) = [entry for entry in trainer.state.log_history if "loss" in entry]
    prefix = "profiling/Time taken: GRPOTrainer."
    for reward in rewards:
        assert entry[prefix + reward.__name__] == near(sum(reward.seconds))
    assert entry[prefix + "compute_loss (phase)"] > 0
    assert entry[prefix + "transformers.generate"] > 0
    parts = sum(value for name, value in entry.items() if name.startswith(prefix))
    assert parts + entry["profiling/unrecorded"] == pytest.approx(entry["profiling/step"])


# --------------------------------------------------------------------------- when something fails


def test_a_reward_that_raises_does_so_and_ends_its_step(make: Make):
    def gone(completions: list[str], **columns: Any) -> list[float]:
        raise RuntimeError("the judge has left")

    trainer = make("GRPO", [gone])
    timeline = attach(trainer)
    with pytest.raises(RuntimeError, match="the judge has left"):
        trainer.train()
    report = timeline.report()
    assert (report.steps, report.rewards[0].raised) == (1, 1)
    assert not any(row.running for row in (*report.phases, *report.rewards))


def test_errors_of_the_profiler_reach_no_training(make: Make):
    def broken(*args: Any, **kwargs: Any) -> Any:
        raise ValueError("of the profiler")

    trainer = make("GRPO", [Judge(0.0)])
    timeline = attach(trainer, on_call=broken)
    timeline.next_step = broken  # type: ignore[method-assign]
    timeline._recorder._begin = broken  # type: ignore[method-assign]
    timeline.latest_step = broken  # type: ignore[method-assign]
    with pytest.warns(RuntimeWarning, match="keeps from the training: ValueError") as warned:
        trainer.train()
    assert len([one for one in warned if "timeline" in str(one.message)]) == 1
    assert trainer.state.global_step == 1
    assert timeline.report().failures > 10


def test_a_trainer_has_one_timeline(make: Make):
    trainer = make("GRPO", [Judge(0.0)])
    mine = Timeline()
    assert attach(trainer, mine) is mine
    assert attach(trainer) is mine
    with pytest.raises(InputError, match="a second one") as refused:
        attach(trainer, Timeline())
    assert "`fastreward profile`, which attaches one, leaves its own attach out" in str(refused.value)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda trainer: attach("trainer"), "str without train"),
        (lambda trainer: attach(type(trainer)), "without callback_handler"),
        (lambda trainer: attach(trainer, {}), "Expected a Timeline or None, got dict"),
    ],
    ids=["a string", "a class", "no timeline"],
)
def test_bad_arguments_are_named(call: Callable[[Any], Any], named: str, make: Make):
    with pytest.raises(InputError, match=named):
        call(make("GRPO", [Judge(0.0)]))


# --------------------------------------------------------------------------- a process of a profiled command


@pytest.mark.parametrize("own", [False, True], ids=["by default", "with a handler of its own"])
def test_a_process_that_is_terminated_writes_first_unless_it_looks_after_that(tmp_path: Path, own: bool):
    code = f"""
        import signal, sys, time
        if {own}:
            signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
        from fastreward.integrations.trl_recording import _timeline
        timeline = _timeline({str(tmp_path)!r})
        timeline.next_step()
        with timeline.phase("generate"):
            time.sleep(0.01)
        print("here", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == (7 if own else -signal.SIGTERM)
    report = Timeline.merge(tmp_path)
    assert (report.steps, report.phases[0].count, report.phases[0].running) == (1, 1, 0)


def test_a_process_that_is_terminated_twice_writes_all_the_same(tmp_path: Path):
    code = f"""
        import time
        from fastreward.integrations.trl_recording import _timeline
        timeline = _timeline({str(tmp_path)!r})
        write = timeline.close
        def slowly():
            print("writing", flush=True)
            time.sleep(0.3)
            write()
        timeline.close = slowly
        timeline._recorder._is_writing = True  # nothing is written before the end
        timeline.next_step()
        print("here", flush=True)
        time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in ("here\n", "writing\n"):
        assert process.stdout.readline() == line
        process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM
    assert Timeline.merge(tmp_path).steps == 1


# --------------------------------------------------------------------------- texts for a replay


def test_the_texts_of_a_call_are_written_with_their_references(tmp_path: Path):
    log = TextLog(tmp_path, None, lambda: 3)
    messages = [[{"role": "assistant", "content": "b"}], [{"role": "assistant", "content": "\ud800"}]]
    columns = {"completions": messages, "explanation": ["x", None], "prompts": ["p", "p"]}
    log(RewardCall("judge", 0.25, columns, len))
    log(RewardCall("rule", 0.5, {"completions": ["a"], "prompts": ["p"]}, len))
    (path,) = tmp_path.glob("rank0-*.calls.jsonl")
    first, second = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    assert first == {
        "reward": "judge",
        "step": 3,
        "rank": 0,
        "seconds": 0.25,
        "completions": ["b", "\ud800"],
        "references": ["x", None],
    }
    assert (second["references"], second["seconds"]) == (None, 0.5)


def test_references_are_the_named_column_or_the_rewards_own_or_the_likeliest():
    columns = {
        "completions": ["a", "b"],
        "answer": ["1", "2"],
        "reference": [["x", "y"], "z"],
        "mine": [1, 2],
    }
    assert references(len, columns, 2) == [["x", "y"], "z"]
    assert references(AnswerReward("answer"), columns, 2) == ["1", "2"]
    assert references(len, columns, 2, "answer") == ["1", "2"]
    assert references(len, columns, 2, "mine") is None  # no texts
    assert references(len, columns, 2, "nowhere") is None
    assert references(len, columns, 3) is None
