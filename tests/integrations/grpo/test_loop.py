"""Whole steps of the loop with a small random policy on the CPU."""

from __future__ import annotations

import copy
import importlib.util
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreward import AnswerReward, FormatReward, PromptCopyReward, RougeLReward, Scorer, SemanticReward
from fastreward.errors import BackendUnavailableError, InputError, NonFiniteError
from fastreward.integrations.checkpoints import Checkpoints
from fastreward.integrations.grpo import GRPO, LoopConfig, load_config
from fastreward.profiling import Timeline
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.completion import completion_text
from fastreward.rewards.shaping import Power, Shaped

TRL_RUN = Path(__file__).resolve().parents[1] / "trl_run.py"
Make = Callable[..., GRPO]


def weights(trainer: GRPO) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in trainer.model.parameters()]).clone()


def update(trainer: GRPO, step: int = 0) -> Tensor:
    """What a step adds to the weights."""
    before = weights(trainer)
    trainer.step(step)
    return weights(trainer) - before


def assert_same_update(found: Tensor, expected: Tensor) -> None:
    # AdamW's first update is the gradient's sign, wherever its rounding lets that be told.
    assert expected.abs().max() > 1e-4
    assert (found - expected).square().mean().sqrt() < 1e-3 * expected.square().mean().sqrt()


def log_of(trainer: GRPO) -> list[dict[str, float]]:
    lines = (Path(trainer.config.output_dir) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


# --------------------------------------------------------------------------- a step


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_step_logs_what_trl_logs_for_the_same_completions(
    make: Make, run: ModuleType, tokenizer: Any, tmp_path: Path, aggregation: Any
) -> None:
    pytest.importorskip("trl", reason="needs the extra trl")
    from trl import GRPOConfig, GRPOTrainer

    kept: dict[str, list[Any]] = {}

    def recorded(completions: list[str], **columns: Any) -> list[float]:
        kept.update(prompts=columns["prompts"], ids=columns["completion_ids"])
        return run.odd_words(completions)

    rewards = [recorded, run.brevity_reward]
    combined = CombinedReward(rewards, weights=[1.0, 0.5], aggregation=aggregation)
    ours = make(combined, shuffle=False, loss_type="grpo", micro_batch_size=6)
    metrics = ours.step(0)

    def written(prompts: list[str], trainer: Any) -> dict[str, Any]:
        assert prompts == kept["prompts"]
        ids = [list(row) for row in kept["ids"]]
        prompt_ids = tokenizer(prompts)["input_ids"]
        return {"prompt_ids": prompt_ids, "completion_ids": ids, "logprobs": [[0.0] * len(i) for i in ids]}

    options = run.group_settings(tmp_path, max_completion_length=8, per_device_train_batch_size=12)
    options |= {"multi_objective_aggregation": aggregation}
    trainer = GRPOTrainer(
        run.make_model(tokenizer),
        reward_funcs=[run.odd_words, run.brevity_reward],
        args=GRPOConfig(**options, reward_weights=[1.0, 0.5], loss_type="grpo"),
        train_dataset=run.make_dataset(),
        processing_class=tokenizer,
        rollout_func=written,
    )
    trainer.train()
    theirs = {
        name.replace("odd_words", "recorded"): value for name, value in trainer.state.log_history[0].items()
    }
    names = [name for name in metrics if name in theirs and name not in ("step", "epoch", "step_time")]
    for needed in (
        "loss",
        "grad_norm",
        "reward",
        "reward_std",
        "entropy",
        "clip_ratio/low_mean",
        "num_tokens",
    ):
        assert needed in names
    assert sum(name.startswith("rewards/") for name in names) == 4
    assert sum(name.startswith("completions/") for name in names) == 7
    for name in names:
        assert metrics[name] == pytest.approx(theirs[name], abs=2e-6, rel=1e-5), name


@pytest.mark.parametrize("loss_type", ["grpo", "dapo", "cispo"])
def test_two_updates_by_one_rollout_are_those_written_out_by_hand(
    make: Make, loss_type: Any, run: ModuleType, tokenizer: Any
) -> None:
    high = 1.5 if loss_type == "cispo" else 0.3
    options = {"loss_type": loss_type, "epsilon_high": high, "num_iterations": 2, "beta": 0.1}
    kept: list[Any] = []

    def recorded(completions: list[str], **columns: Any) -> list[float]:
        kept.append((columns["prompts"], columns["completion_ids"], run.odd_words(completions)))
        return kept[-1][2]

    trainer = make(recorded, **options, micro_batch_size=5, learning_rate=0.01)
    by_hand = copy.deepcopy(trainer.model).double()
    before = weights(trainer)
    trainer.step(0)
    prompts, completions, rewards = kept[0]
    grouped = torch.tensor(rewards, dtype=torch.float64).view(-1, 4)
    advantages = (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)
    optimizer = torch.optim.AdamW(by_hand.parameters(), lr=0.01, weight_decay=0.0)
    old: list[Tensor] = []
    for _ in range(2):
        terms = []
        for row, (prompt, ids) in enumerate(zip(prompts, completions, strict=True)):
            tokens = torch.tensor([tokenizer(prompt)["input_ids"] + ids])
            logprobs = by_hand(tokens).logits[0, :-1].log_softmax(-1)
            chosen = logprobs.gather(-1, tokens[0, 1:, None])[-len(ids) :, 0]
            if len(old) == row:
                old.append(chosen.detach())
            ratio, a = torch.exp(chosen - old[row]), advantages.flatten()[row]
            if loss_type == "cispo":
                loss = -ratio.clamp(max=1.5).detach() * a * chosen
            else:
                loss = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.3) * a)
            d = old[row] - chosen  # the reference is the policy at the start
            terms.append(loss + 0.1 * ratio * (torch.exp(d) - d - 1))
        means = torch.stack([term.mean() for term in terms])
        (means.mean() if loss_type == "grpo" else torch.cat(terms).mean()).backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    after = torch.cat([weight.detach().flatten() for weight in by_hand.parameters()])
    found, expected = weights(trainer) - before, after - before
    # AdamW divides by the gradient's size, so that a weight whose gradient is rounding may go either way.
    assert (found - expected).square().mean().sqrt() < 0.01 * expected.square().mean().sqrt()


@pytest.mark.parametrize("loss_type", ["grpo", "dr_grpo", "dapo"])
def test_the_update_does_not_depend_on_the_size_of_a_micro_batch(make: Make, loss_type: str) -> None:
    whole = update(make(loss_type=loss_type, micro_batch_size=12))
    assert_same_update(update(make(loss_type=loss_type, micro_batch_size=5)), whole)


@pytest.mark.parametrize("loss_type", ["grpo", "dapo"])
def test_skipping_groups_without_spread_saves_work_and_changes_no_update(
    make: Make, run: ModuleType, loss_type: str
) -> None:
    def all_alike_for_the_first_prompt(completions: list[str], prompts: list[str], **_: Any) -> list[float]:
        scores = run.odd_words(completions)
        return [0.1 + 0.2 if p == prompts[0] else s for p, s in zip(prompts, scores, strict=True)]

    def rows_of_forwards(trainer: GRPO) -> list[int]:
        seen: list[int] = []

        def count(module: Any, arguments: Any, options: Any) -> None:
            if trainer.model.training:
                seen.append(len(options["input_ids"]))

        trainer.model.register_forward_pre_hook(count, with_kwargs=True)
        return seen

    plain = make(all_alike_for_the_first_prompt, loss_type=loss_type)
    skipping = make(all_alike_for_the_first_prompt, loss_type=loss_type, skip_groups_without_spread=True)
    rows = rows_of_forwards(plain), rows_of_forwards(skipping)
    expected = update(plain)
    assert_same_update(update(skipping), expected)
    assert (sum(rows[0]), sum(rows[1])) == (12, 8)


def test_a_step_without_any_spread_makes_no_update_where_such_groups_are_skipped(make: Make) -> None:
    trainer = make(lambda completions, **columns: [0.5] * len(completions), skip_groups_without_spread=True)
    before = weights(trainer)
    metrics = trainer.step(0)
    assert weights(trainer).equal(before)
    assert (metrics["frac_reward_zero_std"], metrics["loss"]) == (1.0, 0.0)


def test_rewards_without_a_value_teach_nothing(make: Make) -> None:
    trainer = make(lambda completions, **columns: [None] * len(completions))
    metrics = trainer.step(0)
    assert metrics["grad_norm"] == 0.0
    assert "reward" not in metrics
    assert json.dumps(metrics, allow_nan=False)


def test_truncated_completions_can_be_left_out(make: Make) -> None:
    trainer = make(mask_truncated_completions=True)  # an end token is one of thousands: all are truncated
    metrics = trainer.step(0)
    assert metrics["completions/clipped_ratio"] == 1.0
    assert metrics["grad_norm"] == 0.0
    assert make().step(0)["grad_norm"] > 0


def test_normalize_then_sum_is_used_where_the_combination_asks_for_it(make: Make, run: ModuleType) -> None:
    rewards = [run.odd_words, run.brevity_reward]
    plain = update(make(CombinedReward(rewards)))
    other = update(make(CombinedReward(rewards, aggregation="normalize_then_sum")))
    assert (plain - other).abs().max() > 1e-4


def brief(completions: list[str], **columns: Any) -> list[float]:
    return [1 / (1 + len(text)) for text in completions]


@pytest.mark.parametrize("num_generations", [None, 4])
def test_with_gdpo_what_is_logged_and_evaluated_is_the_weighted_sum(
    make: Make, run: ModuleType, num_generations: int | None
) -> None:
    options: dict[str, Any] = {"aggregation": "normalize_then_sum", "num_generations": num_generations}
    inner = CombinedReward([brief], **options, name="inner")
    combined = CombinedReward([run.odd_words, brief, inner], weights=[1.0, 0.5, 0.0], **options)
    # Five rows to evaluate with are no whole groups of four.
    trainer = make(combined, eval_dataset=list(run.make_dataset())[:5])
    for prefix, metrics in (("", trainer.step(0)), ("eval_", trainer.evaluate())):
        odd, short = (metrics[f"{prefix}rewards/{name}/mean"] for name in ("odd_words", "brief"))
        assert odd > 0.1
        assert metrics[f"{prefix}reward"] == pytest.approx(odd + 0.5 * short)
        assert metrics[f"{prefix}reward_std"] > 0.01
    # A combination within the other one has no groups either.
    assert metrics["eval_rewards/inner/mean"] == pytest.approx(metrics["eval_rewards/brief/mean"])


def test_the_latest_scores_are_those_of_the_callers_own_combination(make: Make, run: ModuleType) -> None:
    combined = CombinedReward([run.odd_words, brief])
    metrics = make(combined, eval_dataset=list(run.make_dataset())[:5]).step(0)
    assert combined.last is not None
    assert combined.last.components.shape == (12, 2)
    assert float(combined.last.total.mean()) == pytest.approx(metrics["reward"])


# --------------------------------------------------------------------------- hiding the reward


@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_the_first_training_forward_runs_while_the_reward_does(
    make: Make, run: ModuleType, beta: float
) -> None:
    started, reached = threading.Event(), threading.Event()

    def waits(completions: list[str], **columns: Any) -> list[float]:
        started.set()
        assert reached.wait(20), "the forward came after the reward"
        return run.odd_words(completions)

    def slow_forward(module: Any, arguments: Any) -> None:
        if module.training and not reached.is_set():
            assert started.wait(20), "the reward came after the forward"
            time.sleep(0.2)

    trainer = make(waits, beta=beta)
    trainer.model.register_forward_pre_hook(slow_forward)
    trainer.model.register_forward_hook(lambda module, *_: reached.set() if module.training else None)
    metrics = trainer.step(0)
    # The wait for the reward's thread to come back is exposed, some milliseconds on a busy machine.
    assert metrics["time/reward_hidden"] > 0.1


def test_a_hidden_reward_gives_the_same_weights_as_one_that_is_waited_for(make: Make) -> None:
    assert update(make(hide_reward=True)).equal(update(make(hide_reward=False)))


@pytest.mark.parametrize("option", [{"hide_reward": False}, {"skip_groups_without_spread": True}], ids=str)
def test_nothing_hides_a_reward_that_is_needed_first(
    make: Make, run: ModuleType, option: dict[str, Any]
) -> None:
    def slow(completions: list[str], **columns: Any) -> list[float]:
        time.sleep(0.2)
        return run.odd_words(completions)

    metrics = make(slow, **option).step(0)
    assert metrics["time/reward_exposed"] > 0.19
    assert metrics["time/reward_wait"] > 0.1  # on a busy machine the reward begins before the loop waits
    assert metrics["time/reward_hidden"] < 0.01


def test_the_phases_add_up_to_the_step(make: Make) -> None:
    metrics = make(beta=0.1).step(0)
    shown = ("generate", "reward_wait", "logprobs", "update")
    phases = sum(metrics[f"time/{name}"] for name in shown)
    # Between phases little is done: 1 % of this small step, and on a busy machine a turn of another process.
    assert 0.85 * metrics["step_time"] < phases <= metrics["step_time"]
    assert all(metrics[f"time/{name}"] > 0 for name in ("generate", "logprobs", "update"))


def test_a_timeline_that_is_handed_in_has_every_step_and_every_reward(make: Make, run: ModuleType) -> None:
    timeline = Timeline()
    trainer = make([run.odd_words, run.brevity_reward], timeline=timeline)
    logged = [trainer.step(number) for number in range(2)]
    report = timeline.report()
    assert [step.number for step in report.kept_steps] == [1, 2]
    assert {phase.name for phase in report.phases} == {"generate", "logprobs", "reward wait", "update"}
    counts = {reward.name: (reward.count, reward.texts) for reward in report.rewards}
    assert counts["odd_words"] == counts["brevity_reward"] == (2, 24)
    for step, metrics in zip(report.kept_steps, logged, strict=True):
        assert metrics["step_time"] == pytest.approx(step.wall_s)
        assert metrics["time/generate"] == pytest.approx(step.phases["generate"])
        assert metrics["time/reward_exposed"] == pytest.approx(step.reward_exposed_s)
        assert metrics["time/reward_hidden"] == pytest.approx(step.reward_hidden_s)


def test_what_a_reward_raises_comes_out_of_the_step(make: Make) -> None:
    def broken(completions: list[str], **columns: Any) -> list[float]:
        raise KeyError("explanation")

    with pytest.raises(KeyError, match="explanation"):
        make(broken).step(0)


def test_a_reward_gets_the_columns_of_its_completions_and_may_log(make: Make, run: ModuleType) -> None:
    def checks(completions: list[str], **columns: Any) -> list[float]:
        known = {item["question"]: item["explanation"] for item in run.ITEMS}
        assert columns["explanation"] == [known[prompt] for prompt in columns["prompts"]]
        assert columns["prompts"][0] == columns["prompts"][3] != columns["prompts"][4]
        columns["log_metric"]("mine", 2.0)
        return run.odd_words(completions)

    assert make(checks).step(0)["mine"] == 2.0


@pytest.mark.parametrize("conversational", [False, True])
def test_the_librarys_own_rewards_get_what_they_need(
    make: Make, run: ModuleType, minilm: Callable[..., Scorer], conversational: bool
) -> None:
    scorer = minilm(device="cpu", dtype="float32")
    kept: dict[str, Any] = {}

    def recorded(completions: list[Any], **columns: Any) -> list[float]:
        kept.update(completions=completions, references=columns["explanation"])
        return [0.0] * len(completions)

    combined = CombinedReward([SemanticReward(scorer, reference="explanation"), FormatReward(), recorded])
    trainer = make(combined, dataset=list(run.make_dataset(conversational=conversational)))
    metrics = trainer.step(0)
    texts = [completion_text(entry) for entry in kept["completions"]]
    assert isinstance(kept["completions"][0], list) == conversational
    expected = scorer.score(texts, kept["references"])
    assert metrics["rewards/semantic_reward/mean"] == pytest.approx(float(expected.mean()), abs=2e-6)
    assert metrics["rewards/format_reward/mean"] == 0.0
    assert metrics["combined_reward/semantic_reward/advantage_share"] == pytest.approx(1.0)


# --------------------------------------------------------------------------- models


def test_weights_in_half_precision_are_refused(make: Make, run: ModuleType, tokenizer: Any) -> None:
    with pytest.raises(InputError, match=r"a model in fp32, got torch\.bfloat16"):
        make(model=run.make_model(tokenizer).bfloat16())


def test_the_divergence_from_the_start_is_none_at_first_and_grows(make: Make) -> None:
    trainer = make(beta=0.01)
    assert trainer.step(0)["kl"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.step(1)["kl"] > 1e-5
    assert make().reference is None


def test_lora_trains_the_adapter_alone_and_refers_to_the_base(make: Make) -> None:
    pytest.importorskip("peft", reason="needs the extra trl")
    trainer = make(lora_rank=2, beta=0.01)
    names = [name for name, weight in trainer.model.named_parameters() if weight.requires_grad]
    assert names
    assert all("lora_" in name for name in names)
    base = {n: w.detach().clone() for n, w in trainer.model.named_parameters() if n not in names}
    assert trainer.step(0)["kl"] == pytest.approx(0.0, abs=1e-6)
    assert trainer.step(1)["kl"] > 1e-9
    assert all(w.equal(base[n]) for n, w in trainer.model.named_parameters() if n in base)


@pytest.mark.filterwarnings("error:.gradient_checkpointing:FutureWarning")
def test_gradient_checkpointing_changes_no_update(make: Make) -> None:
    assert_same_update(update(make(gradient_checkpointing=True)), update(make()))


def test_bf16_keeps_the_weights_in_fp32_and_moves_them_alike(make: Make) -> None:
    trainer = make(bf16=True)
    found, before = trainer.step(0), weights(trainer)
    assert before.dtype == torch.float32
    # The same seed draws nearly the same completions; the entropy is that of a policy near to uniform.
    assert found["entropy"] == pytest.approx(make().step(0)["entropy"], rel=0.01)
    assert math.isfinite(found["loss"])
    assert found["grad_norm"] > 0


def test_a_gradient_that_is_not_finite_stops_the_run_before_the_weights_are_touched(make: Make) -> None:
    trainer = make()
    before = weights(trainer)
    next(trainer.model.parameters()).register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(NonFiniteError, match="a finite gradient, got nan"):
        trainer.step(0)
    assert weights(trainer).equal(before)


def test_the_policy_learns_what_is_rewarded(make: Make) -> None:
    trainer = make(max_steps=25, learning_rate=0.02, num_prompts=2, num_generations=8, micro_batch_size=16)
    rewards = [trainer.step(number)["reward"] for number in range(25)]
    # The mean of 80 completions strays by 0.02 where nothing is learned.
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.1


# --------------------------------------------------------------------------- runs


def test_a_run_logs_every_step_evaluates_and_leaves_a_model_that_loads(
    make: Make, run: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    shown: list[Any] = []
    trainer = make(eval_steps=2, eval_dataset=list(run.make_dataset())[:5], logging_steps=2)
    trainer._report = shown.append
    last = trainer.train()
    assert [line["step"] for line in log_of(trainer)] == [1, 2, 3]
    assert [line["step"] for line in shown] == [2, 3]
    assert ["eval_reward" in line for line in log_of(trainer)] == [False, True, True]
    assert {"eval_rewards/odd_words/mean", "eval_completions/mean_length"} <= set(shown[0])
    assert last.name == "checkpoint-000003"
    loaded = AutoModelForCausalLM.from_pretrained(last)
    assert torch.cat([w.flatten() for w in loaded.parameters()]).equal(weights(trainer))


def test_metrics_are_printed_with_the_time_table_first(
    make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    from fastreward.integrations.trackers import open_trackers

    open_trackers(["stdout"], "run")[0].log(make().step(0))
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("step 1: ")
    for phase in ("generate", "reward exposed", "reward hidden", "logprobs", "update"):
        assert f"{phase} 0." in first
    assert "rewards/odd_words/mean" in second


def test_every_row_is_taken_once_before_any_is_taken_twice(make: Make) -> None:
    trainer = make(num_prompts=4)
    count = len(trainer._data.rows)
    taken = [row for step in range(count) for row in trainer._data.rows_of(step, 4, 0)]
    for epoch in range(4):
        assert sorted(taken[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert taken[:count] != taken[count : 2 * count]


def test_two_runs_with_one_seed_are_the_same_and_with_another_not(make: Make) -> None:
    first, second, other = make(seed=5), make(seed=5), make(seed=6)
    for trainer in (first, second, other):
        trainer.train()
    assert weights(first).equal(weights(second))
    assert not weights(first).equal(weights(other))


@pytest.mark.parametrize("options", [{"beta": 0.1, "lr_scheduler_type": "cosine"}, {"lora_rank": 2}], ids=str)
def test_a_resumed_run_ends_in_the_weights_of_one_that_never_stopped(
    make: Make, options: dict[str, Any], tmp_path: Path
) -> None:
    if "lora_rank" in options:
        pytest.importorskip("peft", reason="needs the extra trl")
    options = options | {"max_steps": 4, "save_steps": 2}
    whole = make(**options)
    whole.train()

    def dies(metrics: Any) -> None:
        if metrics["step"] == 3:
            raise KeyboardInterrupt

    options["output_dir"] = str(tmp_path / "killed")
    broken = make(**options)
    broken._report = dies
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = make(**options, logging_steps=2)
    resumed.train(resume=True)
    assert weights(resumed).equal(weights(whole))
    assert [line["step"] for line in log_of(resumed)] == [1, 2, 3, 4]
    same = ("reward", "loss", "num_tokens", "learning_rate")
    assert [[line[n] for n in same] for line in log_of(resumed)] == [
        [x[n] for n in same] for x in log_of(whole)
    ]
    assert len(list((tmp_path / "killed").glob("checkpoint-*"))) == 2


def test_with_an_encoder_that_is_batch_invariant_a_resumed_run_is_the_same_over_two_epochs(
    make: Make, run: ModuleType, minilm_folder: Path, tmp_path: Path
) -> None:
    def trainer(folder: str) -> GRPO:
        # A scorer of its own each time: the resumed run has encoded no reference of the first epoch.
        options: dict[str, Any] = {"device": "cpu", "dtype": "float32", "num_layers": 1}
        scorer = Scorer(minilm_folder, batch_invariant=True, **options)
        reward, rows = SemanticReward(scorer, reference="explanation"), list(run.make_dataset())[:6]
        where = str(tmp_path / folder)
        return make(reward, dataset=rows, max_steps=4, save_steps=3, output_dir=where)

    def dies(metrics: Any) -> None:
        if metrics["step"] == 4:
            raise KeyboardInterrupt

    whole, broken, resumed = trainer("whole"), trainer("killed"), trainer("killed")
    whole.train()
    broken._report = dies
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed.train(resume=True)
    assert log_of(resumed)[-1]["epoch"] == 2
    assert weights(resumed).equal(weights(whole))


KILLED = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("trl_run", sys.argv[1])
run = importlib.util.module_from_spec(spec)
spec.loader.exec_module(run)
from fastreward.integrations.grpo import GRPO, LoopConfig
import json
tokenizer = run.make_tokenizer()
config = LoopConfig(**json.loads(sys.argv[2]))
GRPO(run.make_model(tokenizer), tokenizer, run.odd_words, list(run.make_dataset()), config).train()
"""


def test_a_run_that_is_killed_ends_after_resuming_in_the_same_weights(
    make: Make, small: dict[str, Any], tmp_path: Path
) -> None:
    """SIGKILL at a moment that nobody chose: a random one while steps are made and checkpoints written."""
    options = small | {"max_steps": 400, "save_steps": 1, "output_dir": str(tmp_path / "killed")}
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(TRL_RUN), json.dumps(options)],
        env=environment,
        stdout=subprocess.DEVNULL,
    )
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 60
    while not (log.exists() and log.read_bytes().count(b"\n") >= 2) and time.monotonic() < deadline:
        assert child.poll() is None
        time.sleep(0.01)
    time.sleep(torch.rand((), generator=torch.Generator().manual_seed(time.time_ns())).item() * 0.3)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL

    done = log.read_bytes().count(b"\n")
    assert done < 400
    resumed = make(**options)
    steps = resumed_to(resumed, done + 3)
    whole = make(**(options | {"output_dir": str(tmp_path / "whole")}))
    for step in range(steps):
        whole.step(step)
    assert weights(resumed).equal(weights(whole))


def resumed_to(trainer: GRPO, steps: int) -> int:
    """Resume and go on up to so many steps; the last step's number is returned."""
    checkpoints = Checkpoints(trainer.config.output_dir, 2, {})
    for step in range(trainer._restored(checkpoints.load(trainer.model)), steps):
        trainer.step(step)
    return steps


def test_checkpoints_are_sorted_by_number_however_many_digits_it_has(tmp_path: Path) -> None:
    names = ["checkpoint-1000000", "checkpoint-000002", "checkpoint-999999"]
    for name in [*names, "checkpoint-1000001.partial", "checkpoint-best"]:
        (tmp_path / name).mkdir()
    found = [path.name for path in Checkpoints(tmp_path, 2, {}).all()]
    assert found == ["checkpoint-000002", "checkpoint-999999", "checkpoint-1000000"]


# --------------------------------------------------------------------------- what is refused


def test_a_new_run_does_not_write_over_an_old_one_nor_resume_what_is_not_there(make: Make) -> None:
    trainer = make(max_steps=1)
    with pytest.raises(InputError, match="a checkpoint, got none in"):
        trainer.train(resume=True)
    trainer.train()
    with pytest.raises(InputError, match="a folder without checkpoints"):
        trainer.train()


def test_a_run_is_not_resumed_with_another_configuration(make: Make, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    make(output_dir=folder, max_steps=1).train()
    with pytest.raises(InputError, match=r"beta=0\.0, got .*0\.5"):
        make(output_dir=folder, max_steps=1, beta=0.5).train(resume=True)


def test_a_folder_that_cannot_be_written_fails_before_the_first_step(make: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    trainer = make(
        lambda completions, **columns: pytest.fail("it was run"), output_dir=str(tmp_path / "file" / "run")
    )
    with pytest.raises(InputError, match="a folder that can be written"):
        trainer.train()


def test_a_full_disk_fails_before_the_first_step(make: Make) -> None:
    trainer = make(lambda completions, **columns: pytest.fail("it was run"), save_total_limit=10**15)
    with pytest.raises(InputError, match=r"GB free in .*run-0, got"):
        trainer.train()


def test_a_resumed_run_whose_disk_has_become_full_fails_before_its_first_step(
    make: Make, tmp_path: Path
) -> None:
    folder = str(tmp_path / "run")
    make(output_dir=folder, max_steps=1).train()
    trainer = make(lambda completions, **columns: pytest.fail("it was run"), output_dir=folder, max_steps=1)
    trainer.config.__dict__["save_total_limit"] = 10**15
    with pytest.raises(InputError, match=r"GB free in .*run, got"):
        trainer.train(resume=True)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], "a row at least"),
        ([{"prompt": "a b", "answer": "x"}, {"prompt": "a b"}], "a column 'answer' in row 1"),
        ([{"question": "a b"}], "a column 'prompt' in row 0"),
        ([{"prompt": "a b", "completions": "x"}], "no column 'completions' in row 0"),
        ([{"prompt": "a b"}, {"prompt": "a " * 40_000}], "tokens as the prompt of row 1"),
    ],
    ids=["none", "missing", "prompt", "reserved", "long"],
)
def test_rows_that_cannot_be_used_are_named(make: Make, rows: Any, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        make(dataset=rows)


def test_vllm_is_refused_with_what_to_install_where_it_is_not(make: Make) -> None:
    if importlib.util.find_spec("vllm") is not None:
        pytest.skip("vLLM is installed")
    with pytest.raises(BackendUnavailableError, match=r"vLLM, for use_vllm, got none\. pip install vllm"):
        make(use_vllm=True)


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_written(
    run: ModuleType, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = LoopConfig(output_dir=str(tmp_path / "run"), report_to=["wandb"])
    with pytest.raises(InputError, match="pip install wandb"):
        GRPO(run.make_model(tokenizer), tokenizer, run.odd_words, list(run.make_dataset()), config)
    assert not (tmp_path / "run").exists()


def test_there_is_no_evaluation_without_rows(make: Make) -> None:
    with pytest.raises(InputError, match="eval_dataset"):
        make().evaluate()


# --------------------------------------------------------------------------- configuration


def test_a_configuration_is_read_from_yaml_and_overrides_win(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: run\nlearning_rate: 1e-5\nbeta: 1\nmax_steps: 7\n", encoding="utf-8")
    config = load_config(path, ["max_steps=9", "loss_type=grpo", "bf16=true", "epsilon_high=0.3"])
    assert (config.learning_rate, config.beta, config.max_steps) == (1e-5, 1.0, 9)
    assert (config.loss_type, config.bf16, config.epsilon_high) == ("grpo", True, 0.3)
    assert load_config(path).epsilon_high is None


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], "output_dir, got none"),
        (["output_dir=x", "learning_rat=1"], "options among .*, got learning_rat"),
        (["output_dir=x", "bf16"], "name=value"),
        (["output_dir=x", "bf16=[1"], "YAML that can be read"),
        (["output_dir=x", "bf16=1"], "bf16 as bool, got 1"),
        (["output_dir=x", "max_steps=2.5"], "max_steps as int, got 2.5"),
        (["output_dir=x", "max_steps=true"], "max_steps as int, got True"),
        (["output_dir=x", "max_steps=0"], "max_steps of 1 or more, got 0"),
        (["output_dir=x", "learning_rate=fast"], "learning_rate as float, got 'fast'"),
        (["output_dir=x", "learning_rate=.nan"], "learning_rate of 0 or more, got nan"),
        (["output_dir=x", "learning_rate=.inf"], "learning_rate of 0 or more, got inf"),
        (["output_dir=x", "num_generations=1"], "num_generations of 2 or more"),
        (["output_dir=x", "temperature=0"], "temperature of"),
        (["output_dir=x", "top_p=1.5"], "top_p from"),
        (["output_dir=x", "scale_rewards=std"], "scale_rewards as 'group' or 'batch' or 'none'"),
        (["output_dir=x", "epsilon="], "epsilon as float, got None"),
        (["output_dir="], "output_dir as str, got None"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_option_that_cannot_be_used_is_named(overrides: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        load_config(None, overrides)


@pytest.mark.parametrize("text", [None, "- a\n- b\n", "a: [1\n"], ids=["missing", "list", "broken"])
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        load_config(path)


@pytest.mark.parametrize("empty", ["", " \n", None, math.nan, []], ids=repr)
def test_a_row_without_what_its_completions_are_judged_by_is_named(make: Make, empty: Any) -> None:
    rewards = [AnswerReward("answer"), CombinedReward([RougeLReward(reference="explanation")])]
    rows = [{"prompt": "a b", "answer": "4", "explanation": "because", "hint": ""} for _ in range(3)]
    make(rewards, dataset=rows)
    for name in ("answer", "explanation"):
        broken = [*rows, rows[0] | {name: empty}]
        with pytest.raises(InputError, match=f"something in '{name}' of row 3"):
            make(rewards, dataset=broken)
    with pytest.raises(InputError, match="a column 'explanation' in row 0"):
        make(rewards, dataset=[{"prompt": "a b", "answer": "4"}])


@pytest.mark.parametrize(
    ("reward", "column"),
    [
        (AnswerReward("answer", options="choices"), "choices"),
        (PromptCopyReward(prompt="question"), "question"),
        (PromptCopyReward(allowed="reference", reference="explanation"), "explanation"),
        (Shaped(RougeLReward("explanation"), Power(2)), "explanation"),
        (Timeline().wrap(Shaped(RougeLReward("explanation"), Power(2))), "explanation"),
    ],
    ids=["options", "prompt", "reference of a prompt", "shaped", "watched"],
)
def test_a_column_that_a_reward_reads_is_missed_before_training(make: Make, reward: Any, column: str) -> None:
    row = {"prompt": "a b", "answer": "B", "choices": ["x", "y"], "question": "a?", "explanation": "because"}
    make(reward, dataset=[row])
    with pytest.raises(InputError, match=f"a column '{column}' in row 0"):
        make(reward, dataset=[{name: value for name, value in row.items() if name != column}])


def test_what_a_reward_does_not_read_is_not_asked_for(make: Make) -> None:
    make(PromptCopyReward(), dataset=[{"prompt": "a b"}])
    rows = [{"prompt": "a b", "answer": "B", "choices": choices} for choices in (["x", "y"], None)]
    make(AnswerReward("answer", options="choices"), dataset=rows)
    with pytest.raises(InputError, match="read the column 'prompts', got one that reads 'prompt'"):
        make(PromptCopyReward(prompt="prompt"), dataset=[{"prompt": "a b"}])
