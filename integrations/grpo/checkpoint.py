"""The folder of a run: its log, and checkpoints from which it goes on as if it had never stopped."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from fastreward.errors import InputError

if TYPE_CHECKING:
    from fastreward.integrations.grpo.loop import GRPO

LOG: Final = "log.jsonl"
STATE: Final = "state.pt"
MAY_CHANGE: Final = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "eval_steps")
"""Options that a resumed run may have otherwise, for they change nothing of what is computed."""


class Checkpoints:
    """Writes and reads a run's folder: ``log.jsonl``, a line for each step, and ``checkpoint-000100``.

    A checkpoint holds what ``from_pretrained`` reads (of LoRA, the adapter), the tokenizer, and ``state.pt``.
    It appears whole or not at all. Random numbers need no state, for each step has a seed of its own.
    """

    def __init__(self, run: GRPO) -> None:
        self._run = run
        self._folder = Path(run.config.output_dir)

    def begin(self) -> int:
        """Prepare the folder of a new run, with a checkpoint of step 0, which shows that there is room."""
        if self.all():
            raise InputError(
                "a folder without checkpoints",
                str(self._folder),
                "Resume the run, or name another output_dir.",
            )
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            (self._folder / LOG).write_text("", encoding="utf-8")
            self.save(0)
            free = shutil.disk_usage(self._folder).free
        except OSError as error:
            raise InputError(
                "a folder that can be written", str(error), "Name another output_dir."
            ) from error
        # AdamW has two more numbers for each weight; one checkpoint more exists while it is written.
        trained = sum(weight.nbytes for weight in self._run.trained)
        weights = sum(path.stat().st_size for path in self.all()[-1].rglob("*"))
        needed = (self._run.config.save_total_limit + 1) * (weights + 2 * trained) - weights
        if free < needed:
            asked, has = (f"{size / 1e9:.2f} GB" for size in (needed, free))
            raise InputError(
                f"{asked} free for checkpoints in {self._folder}", has, "Make room, or keep fewer."
            )
        return 0

    def resume(self) -> int:
        """Put the run into the state of the newest checkpoint; return how many steps it had done."""
        if not self.all():
            raise InputError("a checkpoint", f"none in {self._folder}", "Start the run without resume.")
        state = torch.load(self.all()[-1] / STATE, map_location="cpu", weights_only=True)
        now = asdict(self._run.config)
        changed = [name for name in now if name not in MAY_CHANGE and state["config"].get(name) != now[name]]
        if changed:
            was = ", ".join(f"{name}={state['config'].get(name)!r}" for name in changed)
            raise InputError(
                f"the configuration of the run, {was}", str({n: now[n] for n in changed}), "Restore it."
            )
        self._load_weights(self.all()[-1])
        self._run.optimizer.load_state_dict(state["optimizer"])
        self._run.scheduler.load_state_dict(state["scheduler"])
        self._run.num_tokens = state["num_tokens"]
        log = self._folder / LOG
        lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.exists() else []
        # What came after the checkpoint is done again; the last line may be half a line.
        log.write_text("".join(lines[: state["step"]]), encoding="utf-8")
        return int(state["step"])

    def save(self, step: int) -> None:
        """Write the checkpoint of a step, and remove those that are too many."""
        run, target = self._run, self._folder / f"checkpoint-{step:06d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        run.model.save_pretrained(partial)
        run.tokenizer.save_pretrained(partial)
        state = {
            "step": step,
            "num_tokens": run.num_tokens,
            "optimizer": run.optimizer.state_dict(),
            "scheduler": run.scheduler.state_dict(),
            "config": asdict(run.config),
        }
        torch.save(state, partial / STATE)
        os.replace(partial, target)
        for old in self.all()[: -run.config.save_total_limit]:
            shutil.rmtree(old)

    def log(self, metrics: Mapping[str, float]) -> None:
        """Append a line to the log."""
        with (self._folder / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def all(self) -> list[Path]:
        """List the checkpoints, the newest last."""
        return sorted(self._folder.glob("checkpoint-??????"))

    def _load_weights(self, folder: Path) -> None:
        model: Any = self._run.model
        if self._run.config.lora_rank:
            from peft import load_peft_weights, set_peft_model_state_dict

            set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
        else:
            model.load_state_dict(type(model).from_pretrained(folder, dtype="auto").state_dict())
