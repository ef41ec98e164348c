"""The folder of a stage: checkpoints while it runs, and in the end the model, for the next stage."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from fastreward.errors import InputError
from fastreward.integrations.run_config import require_room

FINISHED: Final = "config.json"
"""The file that a folder has once its stage is done: it comes there last."""

STATES: Final = ("trainer_state.json", "state.pt")
"""What a whole checkpoint has one of: transformers' Trainer and the bundled loop write it last."""

OPTIONS: Final = "options.json"
STAGE: Final = "stage.json"
"""What a run was told by its caller, and what else by its file."""


def begin_folder(folder: Path, needed_bytes: int) -> None:
    """Make the folder of a new run and see that it can be written and has room.

    Raises:
        InputError: It holds a run already, cannot be written or lacks room.
    """
    if is_finished(folder) or checkpoints(folder):
        received = f"{folder} with {'a finished model' if is_finished(folder) else 'checkpoints'}"
        raise InputError("a folder without a run", received, "Resume the run, or name another output_dir.")
    require_room(folder, needed_bytes)


def checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints of a run, the newest last; one that was being written is none."""
    found = [path for path in folder.glob("checkpoint-*") if path.name.rpartition("-")[2].isdigit()]
    whole = [path for path in found if any((path / name).exists() for name in STATES)]
    return sorted(whole, key=lambda path: int(path.name.rpartition("-")[2]))


def newest_checkpoint(folder: Path) -> Path:
    """Return what a run resumes from.

    Raises:
        InputError: The run is finished, or has no checkpoint.
    """
    if is_finished(folder):
        remedy = "Use it as the model of the next stage, or name another output_dir."
        raise InputError(f"a run to resume in {folder}", "one that is finished", remedy)
    found = checkpoints(folder)
    if not found:
        raise InputError("a checkpoint", f"none in {folder}", "Start the run without resume.")
    return found[-1]


def is_finished(folder: Path) -> bool:
    """Whether a stage has left its model."""
    return (folder / FINISHED).exists()


def keep_options(
    folder: Path, options: Mapping[str, Any], may_change: Sequence[str], resume: bool, *, name: str = OPTIONS
) -> None:
    """Write down the options of a new run, or hold those of a resumed one against them.

    Raises:
        InputError: A resumed run has other options, but for those that `may_change`.
    """
    path = folder / name
    text = json.dumps(options, indent=2, default=str)
    if not resume:
        path.write_text(text, encoding="utf-8")
        return
    options = json.loads(text)  # as it is read below: a tuple is a list
    try:
        was = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"the options of the run in {path}", str(error), "Begin a new run.") from error
    changed = [n for n in options if n not in may_change and was.get(n) != options[n]]
    if changed:
        expected = ", ".join(f"{name}={was.get(name)!r}" for name in changed)
        received = ", ".join(f"{name}={options[name]!r}" for name in changed)
        raise InputError(f"the options of the run, {expected}", received, "Restore them.")


def publish(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokenizer, so that the folder counts as finished when all is there.

    Raises:
        OSError: There is no room.
    """
    partial = folder / ".partial"
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    files = sorted(partial.iterdir(), key=lambda path: path.name == FINISHED)
    for path in files:
        os.replace(path, folder / path.name)
    partial.rmdir()
