"""The last stage: the bundled GRPO loop, and the model that it leaves for use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastreward.integrations.checkpoints import Checkpoints
from fastreward.integrations.pipeline.data import check_prompt_lengths, check_rows
from fastreward.integrations.pipeline.folders import (
    begin_folder,
    newest_checkpoint,
    publish,
)
from fastreward.integrations.pipeline.policy import merged, weight_bytes
from fastreward.integrations.pipeline.rewards import RewardPlan
from fastreward.integrations.processes import Processes
from fastreward.integrations.prompts import context_length, prompt_ids
from fastreward.integrations.run_config import require_room

if TYPE_CHECKING:
    from fastreward.integrations.grpo import LoopConfig


def train_grpo(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    reward: Any,
    config: LoopConfig,
    *,
    eval_rows: Sequence[Mapping[str, Any]] = (),
    resume: bool = False,
    **options: Any,
) -> Path:
    """Train a model with the bundled loop, and write what comes out where the other stages write it.

    Args:
        model: A causal language model of transformers in fp32, on its device, or in bf16 with `lora_rank`.
        tokenizer: Its tokenizer, with an end token and a padding token.
        rows: With a `prompt` and the columns that the reward reads.
        reward: A reward, a list of them, a `CombinedReward`, or what `make_reward` returns, whose columns are
            then checked too.
        config: The run.
        eval_rows: Rows to evaluate with.
        resume: Go on from the newest checkpoint of the folder.
        options: What else `GRPO` takes.

    Returns:
        ``config.output_dir``, with the trained model for ``from_pretrained``, an adapter merged into it.

    Raises:
        InputError: A row lacks something or leaves the model no room; the folder cannot be written, lacks
            room, or has a run already, or has none to resume.

    Example:
        ::

            plan = make_reward({"semantic": 1.0, "answer": 0.5, "format": 0.25})
            folder = train_grpo(model, tokenizer, rows, plan, LoopConfig(output_dir="runs/grpo"))
    """
    from fastreward.integrations.grpo import GRPO

    columns: dict[str, Any] = {"prompt": "prompt"}
    if isinstance(reward, RewardPlan):
        columns |= reward.columns
        reward = reward.reward
    for given in (rows, eval_rows) if eval_rows else (rows,):
        checked = check_rows(given, columns)
        ids = prompt_ids(tokenizer, [row["prompt"] for row in checked])
        check_prompt_lengths(checked, ids, context_length(model), config.max_completion_length)
    folder, processes, published = Path(config.output_dir), Processes(model.device), weight_bytes(model)
    if resume:
        newest_checkpoint(folder)
    else:
        processes.first(partial(begin_folder, folder, 0))
    trainer = GRPO(model, tokenizer, reward, rows, config, eval_dataset=eval_rows, **options)
    # Only now is known what is trained. The model comes beside the checkpoints that are kept.
    to_come = Checkpoints(folder, config.save_total_limit, {}).needed_bytes(trainer.model)
    processes.first(partial(require_room, folder, published + to_come))
    trainer.train(resume=resume)
    processes.first(partial(publish, merged(trainer.model).eval(), tokenizer, folder))
    return folder
