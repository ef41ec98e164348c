"""A small random policy, the example explanations as a data set, and a GRPO run for one process or several.

Tests get its functions by a fixture. As a script it trains for two steps and leaves TRL's log in a folder:

    python -m torch.distributed.run --standalone --nproc-per-node 2 trl_run.py FOLDER ROWS AGGREGATION

with so many rows for each process.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import queue
import re
import sys
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

DATA = Path(__file__).resolve().parents[2] / "examples" / "data" / "explanations.jsonl"
ITEMS = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
PIECE = r"</?explanation>|\w+|[^\w\s]"
CHAT = "{% for message in messages %}{{ message['role'] }} : {{ message['content'] }} {% endfor %}"
GENERATIONS = 4
SPECIAL = {"pad_token": "[PAD]", "eos_token": "[EOS]", "unk_token": "[UNK]"}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Every word of the data is a token, so that what a random policy writes is words."""
    texts = [text for item in ITEMS for text in (item["question"], *item["candidates"].values())]
    words = sorted({piece for text in texts for piece in re.findall(PIECE, text)})
    tokens = [*SPECIAL.values(), "<explanation>", "</explanation>", *words]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "removed", invert=True)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, chat_template=CHAT, **SPECIAL)


def make_model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    torch.manual_seed(0)
    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            num_key_value_heads=4,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def make_dataset(*, conversational: bool = False, missing: tuple[int, ...] = ()) -> Dataset:
    """Questions as prompts, their explanations as references; `missing` are rows without one."""
    questions = [item["question"] for item in ITEMS]
    prompts = [[{"role": "user", "content": q}] for q in questions] if conversational else questions
    references = [None if i in missing else item["explanation"] for i, item in enumerate(ITEMS)]
    return Dataset.from_dict({"prompt": prompts, "explanation": references})


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    """What the configurations of all trainers here have in common."""
    common = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2 * GENERATIONS,
        "max_steps": 1,
        "logging_steps": 1,
        "learning_rate": 1e-3,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "bf16": False,
        "seed": 0,
    }
    return common | more


def group_settings(folder: Path, **more: Any) -> dict[str, Any]:
    """The same for GRPO and RLOO."""
    return settings(
        folder,
        **(
            {
                "num_generations": GENERATIONS,
                "max_completion_length": 16,
                "log_completions": True,
                "num_completions_to_print": 1,
                "shuffle_dataset": False,
            }
            | more
        ),
    )


def tagged(text: str, row: int) -> str:
    """Three rows of four are well formed."""
    return f"<explanation>{text}</explanation>" if row % 4 else text


def written_by_row(prompts: list[str], trainer: Any) -> dict[str, Any]:
    """Complete prompts with explanations of the data, chosen by the row in the batch of all processes."""
    tokenizer = trainer.processing_class
    candidates = {item["question"]: list(item["candidates"].values()) for item in ITEMS}
    first = trainer.accelerator.process_index * len(prompts)
    texts = [
        tagged(candidates[prompt][(first + i) % 4 + 2 * trainer.state.global_step], first + i)
        for i, prompt in enumerate(prompts)
    ]
    completions = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(texts)["input_ids"]]
    return {
        "prompt_ids": tokenizer(prompts)["input_ids"],
        "completion_ids": completions,
        "logprobs": [[0.0] * len(ids) for ids in completions],
    }


def tags_reward(completions: list[str], **columns: Any) -> list[float]:
    return [float("<explanation>" in str(text)) for text in completions]


def odd_words(completions: list[str], **columns: Any) -> list[float]:
    """The share of words with an odd number of letters: nothing but the text decides."""
    return [sum(len(word) % 2 for word in text.split()) / 8 for text in completions]


def brevity_reward(completions: list[str], **columns: Any) -> list[float | None]:
    """It has no opinion on a quarter of the texts."""
    return [None if len(text) % 4 == 0 else -len(text) / 100 for text in completions]


def combination(aggregation: str) -> Any:
    from fastreward import Scorer, SemanticReward
    from fastreward.rewards.combine import CombinedReward

    semantic = SemanticReward(Scorer(device="cpu", dtype="float32"), reference="explanation")
    return CombinedReward(
        [semantic, tags_reward, brevity_reward],
        weights=[1.0, 0.25, 0.5],
        gates={"semantic_reward": "tags_reward"},
        aggregation=aggregation,
    )


def score_as_async_grpo_does(source: Path, target: Path) -> None:
    """Score groups as AsyncGRPO's rollout worker does, in its environment and with its own code.

    `source` holds pickled jobs by name, each of reward functions, completions and columns; `target` gets, by
    name, the samples' metrics, or the exception that was raised.
    """
    from accelerate.state import PartialState
    from trl.experimental.async_grpo import async_rollout_worker as worker

    worker._scrub_child_env()
    PartialState()
    results: dict[str, Any] = {}
    for name, (rewards, completions, columns) in pickle.loads(source.read_bytes()).items():
        group = group_of(completions, columns)
        try:
            samples = asyncio.run(rollout_loop(rewards)._score_group(group))
            results[name] = [sample.metrics for sample in samples]
        except RuntimeError as error:
            results[name] = f"{type(error).__name__}: {error}"
    target.write_text(json.dumps(results), encoding="utf-8")


def rollout_loop(rewards: list[Any]) -> Any:
    """What AsyncGRPO's child runs, with these rewards and nothing that generates."""
    from trl.experimental.async_grpo import async_rollout_worker as worker

    tokenizer = make_tokenizer()
    tokenizer.response_template = {}  # TRL would look for that of a model that it knows
    queues = ("rollout_buffer", "exception_info_queue", "metrics_queue")
    shared = ("model_version_value", "heartbeat_value", "failed_event")
    return worker._AsyncRolloutLoop(
        model_name="none",
        dataset=make_dataset(),
        reward_funcs=rewards,
        processing_class=tokenizer,
        eos_token_ids=[tokenizer.eos_token_id],
        **dict.fromkeys(queues, queue.Queue()),
        **dict.fromkeys(shared),
    )


def group_of(completions: list[str], columns: dict[str, list[Any]]) -> Any:
    """A group as AsyncGRPO has it when the policy has written these."""
    from trl.experimental.async_grpo import async_rollout_worker as worker

    count = len(completions)
    return worker.RolloutGroup(
        prompts=[[{"role": "user", "content": "?"}]] * count,
        reward_kwargs=columns,
        completions=[[{"role": "assistant", "content": text}] for text in completions],
        completions_ids=[[1]] * count,
        completions_sequences=[[worker.TrainingSequence([1, 1], [0, 1], [0.0, 0.0], "")]] * count,
        tool_call_counts=[0] * count,
        tool_failure_counts=[0] * count,
        model_version=0,
        group_id=0,
        env_rewards=[None] * count,
        rollout_rewards=[None] * count,
    )


def main(folder: Path, rows: int, aggregation: str) -> None:
    from trl import GRPOConfig, GRPOTrainer

    from fastreward.integrations.trl import reward_arguments
    from fastreward.rewards.completion import Extractor

    tokenizer = make_tokenizer()
    arguments = reward_arguments(combination(aggregation), log_text=Extractor("explanation"))
    shape: dict[str, Any] = {"per_device_train_batch_size": rows, "steps_per_generation": 1, "max_steps": 2}
    if "LOCAL_RANK" in os.environ:
        shape["ddp_backend"] = "gloo"
    trainer = GRPOTrainer(
        make_model(tokenizer),
        reward_funcs=arguments.reward_funcs,
        args=GRPOConfig(**group_settings(folder, **shape), **arguments.config),
        train_dataset=make_dataset(missing=(1, 4)),
        processing_class=tokenizer,
        rollout_func=written_by_row,
    )
    trainer.train()
    if trainer.accelerator.is_main_process:
        (folder / "log.json").write_text(json.dumps(trainer.state.log_history), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
