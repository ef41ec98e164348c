"""TRL's own trainers on the CPU, with a small random policy: the rewards that arrive are the scorer's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastreward import Scorer, SemanticReward
from fastreward.integrations.trl import reward_arguments
from fastreward.ops.group_advantage import normalize_then_sum, sum_then_normalize
from fastreward.rewards.combine import CombinedReward
from fastreward.rewards.completion import Extractor, completion_text

pytest.importorskip("trl", reason="needs the extra trl")

Train = Callable[..., Any]


@pytest.fixture(scope="module")
def scorer(minilm: Callable[..., Scorer]) -> Scorer:
    return minilm(device="cpu", dtype="float32")


@pytest.fixture
def train(run: ModuleType, tokenizer: Any, tmp_path: Path) -> Train:
    """Train for one step with GRPO or RLOO; return the trainer and its table of completions."""

    def trained(kind: str, rewards: list[Any], *, conversational: bool = False, **options: Any) -> Any:
        import trl

        config = getattr(trl, f"{kind}Config")(**run.group_settings(tmp_path, **options))
        trainer = getattr(trl, f"{kind}Trainer")(
            run.make_model(tokenizer),
            reward_funcs=rewards,
            args=config,
            train_dataset=run.make_dataset(conversational=conversational, missing=(1,)),
            processing_class=tokenizer,
        )
        trainer.train()
        logs = trainer._logs
        columns = {name: logs[name] for name in ("prompt", "completion", "advantages")}
        columns |= logs["rewards"] | logs["extra"]
        return trainer, {name: list(values) for name, values in columns.items()}

    return trained


def explanations(run: ModuleType, prompts: list[str]) -> list[str]:
    known = {item["question"]: item["explanation"] for item in run.ITEMS}
    return [known[prompt] for prompt in prompts]


def close(values: Any, expected: Any, atol: float = 2e-6) -> None:
    torch.testing.assert_close(
        torch.as_tensor(values, dtype=torch.float32),
        torch.as_tensor(expected, dtype=torch.float32),
        atol=atol,
        rtol=0,
        equal_nan=True,
    )


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
def test_the_logged_rewards_are_the_scorers(
    kind: str, conversational: bool, train: Train, run: ModuleType, scorer: Scorer
):
    reward = SemanticReward(scorer, reference="explanation")
    options = {"beta": 0.0}  # without a copy of the policy, which would be loaded by its name
    trainer, table = train(kind, [reward, run.brevity_reward], conversational=conversational, **options)
    if conversational:
        prompts = [messages[0]["content"] for messages in table["prompt"]]
        completions = [completion_text(messages) for messages in table["completion"]]
    else:
        prompts, completions = table["prompt"], table["completion"]
    assert len(set(completions)) == len(completions) == 2 * run.GENERATIONS
    expected = scorer.score(completions, explanations(run, prompts))
    expected[run.GENERATIONS :] = torch.nan  # the second prompt has no reference
    close(table["semantic_reward"], expected)
    (log,) = (entry for entry in trainer.state.log_history if "reward" in entry)
    close(log["rewards/semantic_reward/mean"], expected.nanmean())
    assert log["semantic_reward/missing_reference_ratio"] == 0.5


def test_a_trainer_in_bf16_gets_the_same_scores(train: Train, run: ModuleType, scorer: Scorer):
    reward = SemanticReward(scorer, reference="explanation")
    trainer, table = train("GRPO", [reward], bf16=True)
    assert trainer.accelerator.mixed_precision == "bf16"
    first = {name: values[: run.GENERATIONS] for name, values in table.items()}
    references = explanations(run, first["prompt"])
    close(first["semantic_reward"], scorer.score(first["completion"], references))


@pytest.mark.parametrize("aggregation", ["sum_then_normalize", "normalize_then_sum"])
def test_a_combination_in_parts_is_aggregated_by_the_trainer(
    aggregation: str, train: Train, run: ModuleType, scorer: Scorer
):
    combined = CombinedReward(
        [SemanticReward(scorer, reference="explanation"), run.brevity_reward, brief],
        weights=[1.0, 0.25, 0.0],
        gates={"semantic_reward": "brief"},
        aggregation=aggregation,
    )
    arguments = reward_arguments(combined, log_text=Extractor())
    before = scorer.stats
    trainer, table = train("GRPO", arguments.reward_funcs, **arguments.config)
    done = scorer.stats - before
    assert done.encoded_texts == run.GENERATIONS + done.reference_misses  # the others have no reference

    names = ["semantic_reward", "brevity_reward", "brief"]
    references = explanations(run, table["prompt"])
    references[run.GENERATIONS :] = [None] * run.GENERATIONS
    columns = {"prompts": table["prompt"], "explanation": references}
    expected = combined.evaluate(table["completion"], **columns)
    components = torch.tensor([table[name] for name in names]).T
    close(components, expected.components)
    shut = components[: run.GENERATIONS, 2] == 0.0
    assert shut.any()
    assert not shut.all()
    assert (components[: run.GENERATIONS, 0][shut] == 0.0).all()

    aggregate = {"sum_then_normalize": sum_then_normalize, "normalize_then_sum": normalize_then_sum}
    weights = torch.tensor(combined.weights)
    advantages = aggregate[aggregation](components, weights, run.GENERATIONS)
    close(table["advantages"], advantages, atol=1e-6)

    assert table["combined_reward/text"] == table["completion"]
    if aggregation == "sum_then_normalize":
        close(table["combined_reward/total"], expected.total)
    (log,) = (entry for entry in trainer.state.log_history if "reward" in entry)
    shares = [log[f"combined_reward/{name}/advantage_share"] for name in names]
    assert sum(shares) == pytest.approx(1.0)
    assert set(names) == {key.split("/")[1] for key in log if key.startswith("rewards/")}


def test_rloo_takes_a_combination_in_parts_and_sums_it(train: Train, run: ModuleType, scorer: Scorer):
    semantic = SemanticReward(scorer, reference="explanation")
    combined = CombinedReward(
        [semantic, brief], weights=[1.0, 0.25], gates={"semantic_reward": "brief"}, num_generations=3
    )
    arguments = reward_arguments(combined, log_text=Extractor())
    trainer, table = train("RLOO", arguments.reward_funcs, beta=0.0, **arguments.config)
    assert combined.last is not None  # of the trainer's step
    components = torch.tensor([table["semantic_reward"], table["brief"]]).T
    close(components, combined.last.components)
    opened = torch.tensor(brief(table["completion"]))
    cosines = scorer.score(table["completion"], explanations(run, table["prompt"]))
    cosines[run.GENERATIONS :] = torch.nan  # the second prompt has no reference
    close(components, torch.stack([cosines * opened, opened], dim=1))
    total = (cosines.nan_to_num() + 0.25) * opened
    close(table["combined_reward/total"], total)
    (log,) = (entry for entry in trainer.state.log_history if "reward" in entry)
    close(log["reward"], total.mean())

    grouped = total.view(-1, run.GENERATIONS)  # what RLOO subtracts is the mean of the others in the group
    others = (grouped.sum(dim=1, keepdim=True) - grouped) / (run.GENERATIONS - 1)
    close(table["advantages"], (grouped - others).flatten(), atol=1e-5)


def brief(completions: list[str], **columns: Any) -> list[float]:
    """It opens for some of the random policy's texts and not for others."""
    return [float(len(text) % 2) for text in completions]


async def slow(completions: list[str], **columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_an_asynchronous_component_is_awaited_by_the_trainer(train: Train, run: ModuleType, scorer: Scorer):
    semantic = SemanticReward(scorer, reference="explanation")
    combined = CombinedReward([semantic, slow], weights=[1.0, 0.01])
    arguments = reward_arguments(combined)
    _, table = train("GRPO", arguments.reward_funcs, **arguments.config)
    assert table["slow"] == [len(text) for text in table["completion"]]
    first = {name: values[: run.GENERATIONS] for name, values in table.items()}
    close(first["semantic_reward"], scorer.score(first["completion"], explanations(run, first["prompt"])))


def test_messages_with_blocks_and_tools_reach_the_reward(
    run: ModuleType, tokenizer: Any, tmp_path: Path, scorer: Scorer
):
    """The trainer's own path from completions to gathered rewards, with what a random policy never writes."""
    import trl

    combined = CombinedReward([SemanticReward(scorer, reference="explanation"), brief_message])
    arguments = reward_arguments(combined)
    trainer = trl.GRPOTrainer(
        run.make_model(tokenizer),
        reward_funcs=arguments.reward_funcs,
        args=trl.GRPOConfig(**run.group_settings(tmp_path), **arguments.config),
        train_dataset=run.make_dataset(conversational=True),
        processing_class=tokenizer,
    )
    item = run.ITEMS[0]
    good, partial = item["candidates"]["good"], item["candidates"]["partial"]
    completions = [
        [{"role": "assistant", "content": [{"type": "text", "text": good}]}],
        [
            {"role": "assistant", "tool_calls": [{"type": "function", "function": {"name": "look_up"}}]},
            {"role": "tool", "name": "look_up", "content": item["explanation"]},
            {"role": "assistant", "content": partial},
        ],
    ]
    prompts = [[{"role": "user", "content": item["question"]}]] * 2
    inputs = [{"prompt": prompt, "explanation": item["explanation"]} for prompt in prompts]
    rewards = trainer._calculate_rewards(inputs, prompts, completions, [[1], [2]])
    close(rewards[:, 0], scorer.score([good, partial], [item["explanation"]] * 2))


def brief_message(completions: list[Any], **columns: Any) -> list[float]:
    return [float(len(messages) == 1) for messages in completions]


@pytest.mark.parametrize("conversational", [False, True], ids=["standard", "conversational"])
def test_online_dpo_gets_the_scorers_rewards(
    conversational: bool, run: ModuleType, tokenizer: Any, tmp_path: Path, scorer: Scorer
):
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    seen: dict[str, Any] = {}
    combined = CombinedReward([SemanticReward(scorer, reference="explanation"), slow], weights=[1.0, 0.0])

    def watched(**columns: Any) -> list[float | None]:
        seen.update(columns, rewards=combined(**columns))
        return seen["rewards"]

    options = {"max_new_tokens": 16, "max_length": 256, "per_device_train_batch_size": 4}
    trainer = OnlineDPOTrainer(
        run.make_model(tokenizer),
        reward_funcs=watched,
        args=OnlineDPOConfig(**run.settings(tmp_path, **options)),
        train_dataset=run.make_dataset(conversational=conversational),
        processing_class=tokenizer,
    )
    trainer.train()
    texts = [completion_text(completion) for completion in seen["completions"]]
    assert len(texts) == 8
    expected = scorer.score(texts, seen["explanation"])
    close(seen["rewards"], expected)
    close(trainer.stats["objective/scores"] or logged(trainer, "objective/scores"), [expected.mean()])


def logged(trainer: Any, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]
