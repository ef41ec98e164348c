"""Where the figures of a training run go: standard output, JSONL, TensorBoard, trackio, wandb; its bar."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fastreward.errors import InputError

Metrics = Mapping[str, float]
PHASES: Final = ("generate", "reward_exposed", "reward_hidden", "logprobs", "update")
PACKAGES: Final = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}


class Tracker(Protocol):
    """Anything that takes the metrics of a step, which are numbers by name, `step` among them."""

    def log(self, metrics: Metrics) -> None:
        """Take a step's metrics."""

    def close(self) -> None:
        """Write what is not written yet."""


def open_trackers(
    names: Sequence[str], folder: str | Path, options: Mapping[str, Any] | None = None, *, done: int = 0
) -> list[Tracker]:
    """Open trackers by name.

    ``"stdout"`` prints; ``"tensorboard"`` writes event files to ``runs`` in the folder; ``"trackio"`` and
    ``"wandb"`` log a run that is called as the folder is, of the project that ``TRACKIO_PROJECT`` or
    ``WANDB_PROJECT`` names, else "fastreward".

    Args:
        names: Of trackers.
        folder: Of the run.
        options: What the run was told; trackers that can, show it.
        done: Steps of the run that were done before. TensorBoard hides what it has of later ones, which are
            done again; with trackio and wandb what is resumed is a run of its own, of the rest alone.

    Raises:
        InputError: A name is not known, or its package is not installed.

    Example:
        >>> [tracker] = open_trackers(["stdout"], "run")
        >>> tracker.log({"step": 1.0, "step_time": 0.5, "reward": 0.25})
        step 1: 0.500 s
          reward 0.25
    """
    require_trackers(names)
    opened: list[Tracker] = []
    for name in names:
        if name == "stdout":
            opened.append(Printed())
        elif name == "tensorboard":
            opened.append(TensorBoard(Path(folder) / "runs", done))
        else:
            opened.append(Service(name, folder, options or {}))
    return opened


def require_trackers(names: Sequence[str]) -> None:
    """Refuse trackers whose packages are not installed, without opening any.

    Raises:
        InputError: A name is not known, or its package is not installed.

    Example:
        >>> require_trackers(["stdout"])
    """
    unknown = [name for name in names if name != "stdout" and name not in PACKAGES]
    if unknown:
        expected = f"trackers among stdout, {', '.join(PACKAGES)}"
        raise InputError(expected, ", ".join(map(repr, unknown)), "Correct the name.")
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(name) is None:
            raise InputError(f"the package {name}", "none", f"pip install {PACKAGES[name]}")


class Printed:
    """Prints a step on standard output, first where its time went."""

    def log(self, metrics: Metrics) -> None:
        """Print."""
        shown = dict(metrics)
        times = [(name, shown.pop(f"time/{name}", None)) for name in PHASES]
        parts = [f"{name.replace('_', ' ')} {s:.3f}" for name, s in times if s is not None]
        head = f"step {shown.pop('step', 0):.0f}: {shown.pop('step_time', 0.0):.3f} s"
        text = f"{head} ({', '.join(parts)})" if parts else head
        text += "\n  " + "  ".join(f"{name} {value:.4g}" for name, value in shown.items())
        Console(soft_wrap=True).print(text, markup=False, highlight=False)

    def close(self) -> None:
        """Do nothing: all is printed."""


def rewrite(path: Path, text: str) -> None:
    """Write a text in a file's place, whole or not at all: a run's log may be all that is left of its steps.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     rewrite(Path(folder) / "log.jsonl", "{}")
        ...     [path.name for path in Path(folder).iterdir()]
        ['log.jsonl']
    """
    beside = path.with_name(f"{path.name}.partial")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, path)


class JsonLines:
    """Writes a line for each step, in the order of the steps.

    Args:
        path: The file, in a folder that exists.
        steps: Lines of an earlier run to keep, the first ones: what came later is done again, and the last
            line of a run that was killed may be half a line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     JsonLines(Path(folder) / "log.jsonl").log({"step": 1.0})
        ...     (Path(folder) / "log.jsonl").read_text().split()
        ['{"step":', '1.0}']
    """

    def __init__(self, path: Path, steps: int = 0) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rewrite(path, "".join(lines[:steps]))

    def log(self, metrics: Metrics) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dict(metrics)) + "\n")

    def close(self) -> None:
        """Do nothing: all is written."""


class TensorBoard:
    """Writes event files.

    Args:
        folder: Of the files.
        done: Steps that were done before; later ones of files that are there are hidden.

    Raises:
        InputError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path, done: int = 0) -> None:
        require_trackers(["tensorboard"])  # torch's own message does not say what to install
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1)

    def log(self, metrics: Metrics) -> None:
        """Write a step's scalars."""
        for name, value in metrics.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(metrics["step"]))

    def close(self) -> None:
        """Flush the files."""
        self._writer.close()


class Service:
    """Logs to trackio or wandb, whose functions have the same names.

    Args:
        name: "trackio" or "wandb".
        folder: Of the run; its last part names it.
        options: What the run was told.

    Raises:
        InputError: The package is not installed.
    """

    def __init__(self, name: str, folder: str | Path, options: Mapping[str, Any]) -> None:
        require_trackers([name])
        self._package: Any = importlib.import_module(name)
        project = os.environ.get(f"{name.upper()}_PROJECT", "fastreward")
        self._package.init(project=project, name=Path(folder).name, config=dict(options))

    def log(self, metrics: Metrics) -> None:
        """Log a step."""
        values = {name: value for name, value in metrics.items() if name != "step"}
        self._package.log(values, step=int(metrics["step"]))

    def close(self) -> None:
        """Finish the run."""
        self._package.finish()


class RunReports:
    """What a run reports: every step to ``log.jsonl`` in its folder, those that are shown to trackers too.

    A context manager, which also shows a bar over the steps where standard error is a terminal.

    Args:
        folder: Of the run; it exists.
        names: Of trackers.
        total: Steps of the run.
        done: Steps that were done before, whose lines stay.
        options: What the run was told.
        report: Called instead of the trackers.
        silent: Report nothing: for all processes but one.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        total: int,
        done: int = 0,
        options: Mapping[str, Any] | None = None,
        *,
        report: Callable[[Metrics], None] | None = None,
        silent: bool = False,
    ) -> None:
        self._log = None if silent else JsonLines(Path(folder) / "log.jsonl", done)
        self._trackers = [] if silent or report else open_trackers(names, folder, options, done=done)
        self._report = None if silent else report
        columns = (TextColumn("training"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        hidden = silent or not sys.stderr.isatty()
        self._bar = Progress(*columns, console=Console(stderr=True), disable=hidden)
        self._task = self._bar.add_task("training", total=total, completed=done)

    def log(self, metrics: Metrics, *, shown: bool = True) -> None:
        """Take a step's metrics."""
        self._bar.advance(self._task)
        if self._log is not None:
            self._log.log(metrics)
        for tracker in self._trackers if shown else ():
            tracker.log(metrics)
        if shown and self._report is not None:
            self._report(metrics)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        for tracker in self._trackers:
            tracker.close()
