"""Checkpoints of a training run, from which it goes on as if it had never stopped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch

from fastreward.errors import InputError
from fastreward.integrations.run_config import require_room

STATE: Final = "state.pt"


class Checkpoints:
    """The checkpoints in a run's folder: ``checkpoint-000100`` is the state after 100 steps.

    One holds what ``from_pretrained`` reads (of a model of peft, the adapter), the tokenizer, and
    ``state.pt``. It appears whole or not at all.

    Args:
        folder: Of the run.
        keep: How many are kept, the newest ones.
        settings: What the run was told, of what `torch.save` takes; a run is not resumed with other values.
    """

    def __init__(self, folder: str | Path, keep: int, settings: Mapping[str, Any]) -> None:
        self.folder, self._keep, self._settings = Path(folder), keep, dict(settings)

    def begin(self, model: Any) -> None:
        """Prepare the folder of a new run that trains a model with AdamW.

        Raises:
            InputError: It has checkpoints, cannot be written, or lacks room for the checkpoints to come.
        """
        if self.all():
            remedy = "Resume the run, or name another output_dir."
            raise InputError("a folder without checkpoints", str(self.folder), remedy)
        require_room(self.folder, self.needed_bytes(model))

    def save(self, step: int, model: Any, tokenizer: Any, state: Mapping[str, Any]) -> None:
        """Write the checkpoint of a step, and remove those that are too many."""
        target = self.folder / f"checkpoint-{step:06d}"
        partial = target.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        torch.save({**state, "step": step, "settings": self._settings}, partial / STATE)
        os.replace(partial, target)
        for old in self.all()[: -self._keep]:
            shutil.rmtree(old)

    def load(self, model: Any) -> dict[str, Any]:
        """Load the newest checkpoint's weights into a model; return its state and `step`.

        Raises:
            InputError: There is none, or its run was told something else, or the folder cannot be written or
                lacks room.
        """
        if not self.all():
            raise InputError("a checkpoint", f"none in {self.folder}", "Start the run without resume.")
        newest = self.all()[-1]
        state: dict[str, Any] = torch.load(newest / STATE, map_location="cpu", weights_only=True)
        was, now = state["settings"], self._settings
        changed = [name for name in now if name not in was or was[name] != now[name]]
        if changed:
            expected = ", ".join(f"{name}={was.get(name)!r}" for name in changed)
            received = str({name: now[name] for name in changed})
            raise InputError(f"the configuration of the run, {expected}", received, "Restore it.")
        require_room(self.folder, self.needed_bytes(model))
        load_weights(model, newest)
        return state

    def needed_bytes(self, model: Any) -> int:
        """Bound what the checkpoints to come of a model that is trained with AdamW take."""
        trained = sum(weight.nbytes for weight in model.parameters() if weight.requires_grad)
        weights = trained if _has_adapter(model) else sum(weight.nbytes for weight in model.parameters())
        # AdamW has two more numbers for each weight; one checkpoint more exists while it is written.
        to_come = max(self._keep + 1 - len(self.all()), 1)
        return int(to_come * (weights + 2 * trained))

    def all(self) -> list[Path]:
        """List the checkpoints, the newest last; one that was being written is none."""
        found = [path for path in self.folder.glob("checkpoint-*") if _number(path).isdecimal()]
        return sorted(found, key=lambda path: int(_number(path)))


def _number(checkpoint: Path) -> str:
    return checkpoint.name.rpartition("-")[2]


def load_weights(model: Any, folder: Path) -> None:
    """Take over the weights of a checkpoint, with an adapter those of the adapter."""
    if _has_adapter(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(type(model).from_pretrained(folder, dtype="auto").state_dict())


def _has_adapter(model: Any) -> bool:
    return hasattr(model, "peft_config")
