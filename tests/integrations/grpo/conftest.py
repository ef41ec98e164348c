"""A run of the loop with the small random policy of `trl_run`, in a folder of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastreward.integrations.grpo import GRPO, LoopConfig

Make = Callable[..., GRPO]


@pytest.fixture
def small() -> dict[str, Any]:
    """Options of three small steps."""
    return {
        "num_prompts": 3,
        "num_generations": 4,
        "micro_batch_size": 4,
        "max_completion_length": 8,
        "max_steps": 3,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "save_steps": 0,
    }


@pytest.fixture
def make(run: ModuleType, tokenizer: Any, small: dict[str, Any], tmp_path: Path) -> Make:
    """Make a run, rewarded for `odd_words` if not said otherwise; its options are LoopConfig's and GRPO's."""
    folders = iter(range(100))

    def made(reward: Any = None, *, model: Any = None, dataset: Any = None, **options: Any) -> GRPO:
        own = {name: options.pop(name) for name in ("eval_dataset", "timeline") if name in options}
        config = LoopConfig(**({"output_dir": str(tmp_path / f"run-{next(folders)}")} | small | options))
        rows = list(run.make_dataset()) if dataset is None else dataset
        policy = run.make_model(tokenizer) if model is None else model
        reward = run.odd_words if reward is None else reward
        return GRPO(policy, tokenizer, reward, rows, config, report=lambda metrics: None, **own)

    return made
