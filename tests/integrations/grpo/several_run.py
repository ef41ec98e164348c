"""Runs of the loop for one process or several, which leave weights and metrics in a folder:

    python -m torch.distributed.run --standalone --nproc-per-node 2 several_run.py FOLDER

Tests call `main` for the one process.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from fastreward.errors import InputError
from fastreward.integrations.grpo import GRPO, LoopConfig

SHAPE: dict[str, Any] = {
    "num_prompts": 4,
    "num_generations": 4,
    "micro_batch_size": 3,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 1e-2,
    "save_steps": 0,
}
CASES: dict[str, dict[str, Any]] = {
    "dapo": {"beta": 0.1, "eval_steps": 1},
    "grpo": {
        "loss_type": "grpo",
        "scale_rewards": "batch",
        "num_iterations": 2,
        "score_while_generating": True,
    },
    "skipping": {"skip_groups_without_spread": True, "shuffle": False},
    "ahead": {"off_policy_steps": 1, "max_steps": 3},
    "resumed": {"off_policy_steps": 1, "max_steps": 3, "save_steps": 2},
}


def trl_run() -> ModuleType:
    spec = importlib.util.spec_from_file_location("trl_run", Path(__file__).parents[1] / "trl_run.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def odd_words(completions: list[str], log_metric: Any, **columns: Any) -> list[float]:
    """The share of odd words, but the same for all completions of flat prompts."""
    log_metric("words", sum(len(text.split()) for text in completions))
    scores = [sum(len(word) % 2 for word in text.split()) / 8 for text in completions]
    return [0.5 if flat else score for flat, score in zip(columns["flat"], scores, strict=True)]


def runs(folder: Path, run: ModuleType) -> Iterator[tuple[str, GRPO]]:
    tokenizer = run.make_tokenizer()
    rows = [dict(row) | {"flat": number < 3} for number, row in enumerate(run.make_dataset())]
    for name, options in CASES.items():
        torch.manual_seed(0)
        model = run.make_model(tokenizer).double()  # so that rounding decides nothing
        config = LoopConfig(output_dir=str(folder / name), **(SHAPE | options))
        evaluation = rows[:5] if "eval_steps" in options else ()
        yield name, GRPO(model, tokenizer, odd_words, rows, config, eval_dataset=evaluation, report=print)


def main(folder: Path, run: ModuleType) -> None:
    for name, trainer in runs(folder, run):
        if name == "resumed":
            # All processes stop, the first where it reports and the others with it.
            step, trainer.step = trainer.step, stopping(trainer.step)  # type: ignore[method-assign]
            try:
                trainer.train()
            except KeyboardInterrupt:
                trainer.step = step  # type: ignore[method-assign]
            [trainer] = [again for other, again in runs(folder, run) if other == name]
            trainer.train(resume=True)
        else:
            trainer.train()
        rank = trainer.processes.rank
        torch.save([weight.detach() for weight in trainer.model.parameters()], folder / f"{name}-{rank}.pt")
    tokenizer = run.make_tokenizer()
    try:
        config = LoopConfig(output_dir=str(folder / "odd"), **(SHAPE | {"num_prompts": 3}))
        GRPO(run.make_model(tokenizer), tokenizer, odd_words, list(run.make_dataset()), config)
    except InputError as error:
        (folder / "refused.json").write_text(json.dumps(str(error)), encoding="utf-8")


def stopping(step: Any) -> Any:
    def stopped(number: int) -> Any:
        if number == 2:
            raise KeyboardInterrupt
        return step(number)

    return stopped


if __name__ == "__main__":
    main(Path(sys.argv[1]), trl_run())
