"""What the README says of runs on a CPU, from files of which the figures are known."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def numbers(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    load_script(ROOT / "benchmarks" / "readme_numbers.py")  # it puts the repository on the path
    return importlib.import_module("benchmarks.readme_numbers")


@pytest.fixture
def filed(tmp_path: Path) -> Callable[..., Path]:
    """File a result of a suite; return the folder of all."""

    def write(suite: str, settings: Mapping[str, Any], **content: Any) -> Path:
        content |= {"date": "2026-01-02T03:04:05+00:00", "commit": "0" * 12, "uncommitted_changes": False}
        content |= {"cpu": "A", "torch_threads": 1, "device": "CPU A, 1 threads", "settings": settings}
        folder = tmp_path / "cpu-a"
        folder.mkdir(exist_ok=True)
        (folder / f"{suite}-1.json").write_text(json.dumps(content), encoding="utf-8")
        return tmp_path

    return write


def test_a_step_of_grpo_is_quoted_arm_by_arm(numbers: ModuleType, filed: Callable[..., Path]) -> None:
    rows = [
        {
            "arm": arm,
            **{name: {"p50_s": scale * place} for name, scale in (("step", 2.0), ("reward", 0.5))},
            "exposed": {"p50_s": 0.25},
            "reward_share_of_step": 0.25,
            "exposed_share_of_step": 0.125 / place,
        }
        for place, arm in enumerate(numbers.QUOTED["bench_grpo"], 1)
    ]
    settings = {"completions": 64, "tokens": 96, "rounds": 10, "policy": "medium", "micro_batch": 32}
    found = {"policy_parameters": 8_400_000, "reward_has_a_core_of_its_own": True, "rows": rows}
    block = numbers.block(filed("bench_grpo", settings, **found))
    assert "| TRL, fastreward | 4.00 s | 1.00 s | 25 % | 0.25 s | 6.2 % |" in block
    text = " ".join(block.split())
    assert "64 completions of 96 tokens each, a policy of 8.4 M parameters" in text
    assert "which leaves the reward a core" in text
    assert "bench_grpo-1.json" in text
    no_arm = filed("bench_grpo", settings, **found | {"rows": rows[:2]})
    assert "GRPO step" not in numbers.block(no_arm)


def test_what_training_came_to_is_quoted_over_the_seeds(
    numbers: ModuleType, filed: Callable[..., Path]
) -> None:
    rows = [
        {
            "stage": stage,
            "seed": seed,
            **({"parameters": 2_000_000} if stage == "start" else {}),
            "held_out_numbers": {"accuracy": base + 0.1 * seed, "semantic": base, "rouge_l": 0.5},
        }
        for stage, base in (("start", 0.0), ("sft", 0.4), ("semantic", 0.6))
        for seed in range(3)
    ]
    block = numbers.block(filed("train_arms", {"grpo_steps": 60}, rows=rows))
    assert "| fine-tuned | 0.500 ± 0.100 | 0.400 ± 0.000 | 0.500 ± 0.000 |" in block
    assert "| then GRPO by the semantic score | 0.700 ± 0.100 | 0.600 ± 0.000 |" in block
    assert "ROUGE-L |" in block
    assert "GRPO by ROUGE-L" not in block  # an arm that was not run
    assert "over 3 seeds" in " ".join(block.split())
