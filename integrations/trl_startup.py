"""The `sitecustomize` of a profiled command's processes: has each trainer recorded as it begins to train.

`fastreward profile` copies this file into a folder of that name's and puts the folder on ``PYTHONPATH``. All
Python processes of the command run it, most of which train nothing: it imports little, and waits until
`transformers.trainer` is imported. Whatever goes wrong here is said, and the command goes on.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any

VARIABLE = "FASTREWARD_PROFILE"
"""Names the folder that recordings go to."""

SEEN = "processes.txt"
"""In that folder: a line for each process and what it came to."""

TRAINERS = "transformers.trainer"


class Finder:
    """Finds the module of trainers as it would be found without, and patches it once it is there."""

    def __init__(self) -> None:
        self._finding = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        """Look a module up; `importlib` calls it."""
        if name != TRAINERS or self._finding:
            return None
        self._finding = True
        try:
            found = (
                finder.find_spec(name, path, target)
                for finder in sys.meta_path
                if hasattr(finder, "find_spec")
            )
            spec = next((spec for spec in found if spec is not None), None)
        finally:
            self._finding = False
        quietly(patch_after, None if spec is None else spec.loader)
        return spec


def patch_after(loader: Any) -> None:
    """Have the loader patch the module that it executes."""
    if not hasattr(loader, "exec_module"):
        return
    execute = loader.exec_module

    def execute_and_patch(module: ModuleType) -> None:
        execute(module)
        quietly(patch, module)

    loader.exec_module = execute_and_patch


def patch(module: ModuleType) -> None:
    """Have every trainer recorded when it trains."""
    note("trainer")
    train = module.Trainer.train

    @functools.wraps(train)
    def recorded(self: Any, *args: Any, **kwargs: Any) -> Any:
        end = quietly(begin, self)
        try:
            return train(self, *args, **kwargs)
        finally:
            if end is not None:
                quietly(end)

    module.Trainer.train = recorded


def begin(trainer: Any) -> Any:
    """Record a trainer; what is returned is called when it has trained."""
    try:
        from fastreward.integrations.trl_recording import record
    except ImportError as error:
        note("import")
        raise RuntimeError(
            f"{sys.executable} cannot import fastreward ({error}): install it there, or start the command "
            "with the Python that has it"
        ) from error
    note("train")
    return record(trainer, os.environ[VARIABLE])


def quietly(function: Any, *args: Any) -> Any:
    """Call something that serves the profiler alone."""
    try:
        return function(*args)
    except Exception as error:  # whatever it is: a profiler may not end a training
        with contextlib.suppress(AttributeError, OSError, ValueError):  # it may be closed, or not be there
            sys.stderr.write(f"fastreward profile: this process is not recorded: {error}\n")
        return None


def note(what: str) -> None:
    """Write down what this process came to, if the folder is still there."""
    line = f"{os.getpid()} {what} {sys.executable}\n".encode()
    path = os.path.join(os.environ[VARIABLE], SEEN)
    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except FileNotFoundError:  # the command has ended, and this process goes on
        return
    try:
        os.write(file, line)
    finally:
        os.close(file)


def why_nothing(folder: str) -> str:
    """Why a folder has no recording, from what the processes have noted there."""
    path = os.path.join(folder, SEEN)
    seen = set()
    if os.path.exists(path):
        with open(path, encoding="utf-8") as file:
            seen = {line.split(" ", 2)[1] for line in file}
    if "import" in seen:
        return "the Python of the command cannot import fastreward (see above)."
    if "train" in seen:
        return (
            "a trainer began, and failed before its first step or could not be watched, as one that the "
            "script attaches to a timeline of its own (see above)."
        )
    if "trainer" in seen:
        return (
            "the command imported trainers, but none of them was trained, or only by a class whose train() "
            "does not call that of transformers.Trainer: Timeline records such a loop."
        )
    if "python" in seen:
        return (
            "the command trains with no trainer of TRL or transformers. Any other loop is recorded by "
            "fastreward.profiling.Timeline."
        )
    return (
        "the command started no Python that can be watched. Python's options -I, -E and -S switch that off, "
        "as does a PYTHONPATH that the command sets anew."
    )


def run_the_next_one(folder: str) -> None:
    """Run the `sitecustomize` that this one stands before, if there is one; it may raise, as it could."""
    paths = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(folder)]
    spec = PathFinder.find_spec("sitecustomize", paths)
    if spec is not None and spec.loader is not None:
        spec.loader.exec_module(module_from_spec(spec))


if __name__ == "sitecustomize":
    if VARIABLE in os.environ:
        quietly(note, "python")
        sys.meta_path.insert(0, Finder())
    run_the_next_one(os.path.dirname(__file__))
