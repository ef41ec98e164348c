"""`fastreward profile -- python my_training.py …`: runs an unchanged training and says where its time went.

The command runs as a child, with a folder on ``PYTHONPATH`` whose `sitecustomize` has the trainers of each
Python process recorded; this process forwards signals to it, waits, and reports on all ranks together.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fastreward.errors import FastRewardError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from fastreward.profiling import Report
    from fastreward.profiling.replay import ReplayResult

CONTEXT_SETTINGS: Final[dict[str, Any]] = {"allow_interspersed_args": False}
"""What the command's registration takes: options of the command that is profiled are its own."""

RECORDINGS: Final = "recordings"
"""In the output folder: what each process recorded, and the texts of its rewards."""

KEPT_STEPS: Final = 1000
"""Steps of each rank that are kept one by one."""

COSTLY: Final = 0.01
"""A reward is replayed if it takes this part of the steps at least: a rule takes less than any encoder."""

WIDTH: Final = 120
"""Characters of a line of the tables where there is no terminal."""

FROM_TERMINAL: Final = (signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""Signals that a terminal sends to all processes in its foreground."""

FORWARDED: Final = (*FROM_TERMINAL, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""Signals that are the command's; schedulers announce an end by the last two."""


@dataclass(frozen=True)
class Run:
    """A command that has ended.

    Attributes:
        command: The command.
        began_ns: When it began, in nanoseconds since 1970.
        ended_ns: When it ended.
        exit_code: As a shell counts: 128 and the signal where one ended it.
    """

    command: list[str]
    began_ns: int
    ended_ns: int
    exit_code: int


def profile(
    command: Annotated[
        list[str],
        typer.Argument(metavar="COMMAND", help="The training, as it is started without: best behind a --."),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="A folder for the report; it must not hold an earlier one.",
            show_default="fastreward-profile-DATE-TIME",
        ),
    ] = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay",
            help="Keep the rewards' texts, and afterwards score those that have references with this "
            "library, to see what that costs here.",
        ),
    ] = False,
    reference: Annotated[
        str | None,
        typer.Option(
            help="With --replay: the column of the references.", show_default="the likeliest one there is"
        ),
    ] = None,
) -> None:
    """Run a training with TRL as it stands, and report where the time of its steps goes.

    fastreward profile -- python my_training.py --any option; so too accelerate launch, torchrun, python -m.

    All its processes are recorded, and reported on together. The tables go to standard error.

    The folder gets report.html, timeline.json, and trace.json for Perfetto or Chrome.

    Ctrl-C and SIGTERM go to the command, and the report is written all the same.

    The exit code is the command's.

    A Python without fastreward, or one that was started with -I, -E or -S, is not recorded.
    """
    folder = Path(time.strftime("fastreward-profile-%Y%m%d-%H%M%S")) if out is None else out
    was_there = folder.exists()
    recordings = _new_folder(folder)
    if replay or reference is not None:
        _ask_for_texts(recordings, reference)
    try:
        run = run_command(command, recordings)
    except InputError:
        _remove(folder, recordings, was_there)
        raise
    try:
        if not _conclude(run, folder, recordings, replay or reference is not None):
            _remove(folder, recordings, was_there)
    except (FastRewardError, OSError) as error:
        typer.echo(f"fastreward profile: {error}", err=True)
    except Exception:  # the command's exit code stands, whatever became of the report
        typer.echo(f"fastreward profile has a bug:\n{traceback.format_exc()}", err=True)
    raise typer.Exit(run.exit_code)


# --------------------------------------------------------------------------- the command


def run_command(command: list[str], recordings: Path) -> Run:
    """Run a command with the recorder in each of its Python processes.

    Args:
        command: The command.
        recordings: A folder for what they record.

    Raises:
        InputError: If there is no such command.
    """
    from fastreward.integrations import trl_startup

    with tempfile.TemporaryDirectory(prefix="fastreward-profile-") as hook:
        shutil.copyfile(trl_startup.__file__, Path(hook) / "sitecustomize.py")
        paths = [hook, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(paths),
            trl_startup.VARIABLE: str(recordings.resolve()),
        }
        began_ns = time.time_ns()
        with _forwarding() as forward_to:
            try:
                child = subprocess.Popen(command, env=environment)
            except OSError as error:
                raise InputError(
                    "a command that can be run",
                    f"{shlex.join(command)} ({error.strerror})",
                    "Write it as you would without: fastreward profile -- python my_training.py",
                ) from error
            forward_to(child)
            code = child.wait()
        return Run(command, began_ns, time.time_ns(), 128 - code if code < 0 else code)


@contextmanager
def _forwarding() -> Iterator[Callable[[subprocess.Popen[bytes]], None]]:
    """Hand signals on to a child, and stay alive."""
    children: list[subprocess.Popen[bytes]] = []
    early: list[int] = []

    def forward(number: int, frame: FrameType | None) -> None:
        if number in FROM_TERMINAL and _is_in_the_foreground():
            return  # the terminal has sent it to the child as well
        early.append(number)
        for child in children:
            child.send_signal(number)

    def forward_to(child: subprocess.Popen[bytes]) -> None:
        children.append(child)
        for number in early:
            child.send_signal(number)

    # What is ignored, as under nohup, the child is to ignore as well: it would not if it were handled here.
    unheeded = (signal.SIG_IGN, None)  # None: of a handler that is not Python's
    heeded = [number for number in FORWARDED if signal.getsignal(number) not in unheeded]
    before = {number: signal.signal(number, forward) for number in heeded}
    try:
        yield forward_to
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_in_the_foreground() -> bool:
    """Whether this process's group is the one that the terminal sends Ctrl-C to."""
    try:
        with open("/dev/tty", "rb") as terminal:
            return os.tcgetpgrp(terminal.fileno()) == os.getpgrp()
    except OSError:  # there is no terminal
        return False


def _new_folder(folder: Path) -> Path:
    """Make the folder of recordings, which is to be empty, and return it."""
    recordings = folder / RECORDINGS
    try:
        recordings.mkdir(parents=True)
    except FileExistsError as error:
        raise InputError(
            "a folder without an earlier profile", str(recordings), "Name another one: --out DIR."
        ) from error
    except OSError as error:
        raise InputError(
            "a folder that can be made", f"{folder} ({error.strerror})", "Name another one: --out DIR."
        ) from error
    return recordings


def _remove(folder: Path, recordings: Path, was_there: bool) -> None:
    """Take back what `_new_folder` has made."""
    shutil.rmtree(recordings)
    if not was_there and not any(folder.iterdir()):
        folder.rmdir()


def _ask_for_texts(recordings: Path, reference: str | None) -> None:
    from fastreward.integrations.trl_recording import TEXTS

    (recordings / TEXTS).write_text(json.dumps({"reference": reference}), encoding="utf-8")


# --------------------------------------------------------------------------- the report


def _conclude(run: Run, folder: Path, recordings: Path, replays: bool) -> bool:
    """Report on what was recorded, or say why nothing was; return whether something was."""
    from rich.console import Console

    from fastreward.profiling import Timeline
    from fastreward.profiling.files import SUFFIX

    if not any(recordings.glob(f"*{SUFFIX}")):
        typer.echo(f"fastreward profile: {_why_nothing(recordings)}", err=True)
        return False
    with _undisturbed():
        report = Timeline.merge(recordings, keep_steps=KEPT_STEPS)
        _write(report, run, folder, None)
    replayed = _replayed_or_why_not(recordings, folder, report) if replays else None
    if replayed is not None:
        _write(report, run, folder, replayed)
    # A log file has lines as long as the tables need.
    width = None if sys.stderr.isatty() else WIDTH
    console = Console(stderr=True, markup=False, highlight=False, width=width)
    _show(report, run, console, replayed)
    console.print(f"{folder}: report.html, timeline.json, trace.json (for ui.perfetto.dev)", soft_wrap=True)
    return True


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Overhear Ctrl-C: whoever is impatient presses it more than once."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _why_nothing(recordings: Path) -> str:
    """Why there is no recording, from what the processes wrote down."""
    from fastreward.integrations.trl_startup import SEEN

    path = recordings / SEEN
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    seen = {line.split(" ", 2)[1] for line in lines}
    if "import" in seen:
        return "nothing was recorded: the Python of the command cannot import fastreward (see above)."
    if "train" in seen:
        return (
            "nothing was recorded: a trainer began, and failed before its first step or could not be watched."
        )
    if "trainer" in seen:
        return (
            "nothing was recorded: the command imported trainers, but none of them was trained, or only by a "
            "class whose train() does not call that of transformers.Trainer: Timeline records such a loop."
        )
    if "python" in seen:
        return (
            "nothing was recorded: the command trains with no trainer of TRL or transformers. Any other loop "
            "is recorded by fastreward.profiling.Timeline."
        )
    return (
        "nothing was recorded: the command started no Python that can be watched. Python's options -I, -E "
        "and -S switch that off, as does a PYTHONPATH that the command sets anew."
    )


def _replayed_or_why_not(recordings: Path, folder: Path, report: Report) -> ReplayResult | None:
    """Replay the texts. Whatever becomes of it, the report is there."""
    try:
        return _replayed(recordings, folder, report)
    except KeyboardInterrupt:
        why = "it was interrupted"
    except Exception as error:  # of the encoder's libraries, any
        why = str(error) or type(error).__name__
    typer.echo(f"fastreward profile: not replayed: {why}", err=True)
    return None


def _replayed(recordings: Path, folder: Path, report: Report) -> ReplayResult | None:
    """Gather the texts of all processes and replay those of the rewards that cost something."""
    from fastreward.integrations.trl_recording import CALLS
    from fastreward.profiling.replay import replay
    from fastreward.rewards import SemanticReward

    costly = {row.name for row in report.rewards if row.total_s >= COSTLY * report.wall_s}
    with (folder / "calls.jsonl").open("wb") as everything, tempfile.TemporaryDirectory() as scratch:
        worth_it = Path(scratch) / "calls.jsonl"
        with worth_it.open("wb") as target:
            for path in sorted(recordings.glob(f"*{CALLS}")):
                for line in path.read_bytes().splitlines(keepends=True):
                    everything.write(line)
                    if _reward_of(line) in costly:
                        target.write(line)
                path.unlink()
        if not worth_it.stat().st_size:
            typer.echo("fastreward profile: nothing to replay: no reward takes 1 % of the steps.", err=True)
            return None
        return replay(worth_it, SemanticReward())


def _reward_of(line: bytes) -> str | None:
    """Whose call a line is; ``None`` of one that was cut off, as by a full disk."""
    try:
        return str(json.loads(line)["reward"])
    except ValueError:
        return None


def _write(report: Report, run: Run, folder: Path, replayed: ReplayResult | None) -> None:
    from fastreward.profiling.advice import advice
    from fastreward.profiling.page import write_page
    from fastreward.profiling.step_table import times_around

    facts = {
        "command": run.command,
        "exit_code": run.exit_code,
        "begin_unix_s": run.began_ns / 1e9,
        **times_around(report, run.began_ns, run.ended_ns),
        "advice": advice(report),
        "replay": None if replayed is None else replayed.as_json(),
        "report": report.as_json(),
    }
    (folder / "timeline.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
    trace = {"traceEvents": report.chrome_trace(), "displayTimeUnit": "ms"}
    (folder / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
    write_page(report, folder / "report.html", title=shlex.join(run.command), replayed=replayed)


def _show(report: Report, run: Run, console: Console, replayed: ReplayResult | None) -> None:
    """Print the tables, and in words what holds a step back."""
    from fastreward.profiling.advice import advice
    from fastreward.profiling.step_table import step_table, times_around
    from fastreward.profiling.wording import percent, time_text

    console.print()
    console.print(step_table(report))
    if report.rewards:
        console.print(report.rewards_table())
    times = times_around(report, run.began_ns, run.ended_ns)
    if times["recorded_share"] is not None:
        console.print(
            f"{time_text(times['start_s'])} from the command's begin to the first step, with imports and "
            f"loading; {time_text(times['steps_s'])} from there to the last step's end, of which "
            f"{percent(times['recorded_share'], 1)} is recorded in phases and rewards; "
            f"{time_text(times['end_s'])} after it.",
            soft_wrap=True,
        )
    else:
        console.print("No step was begun.")
    console.print(
        f"The profiler took {time_text(report.overhead_s)} in all, "
        f"{time_text(report.overhead_s / report.recorded if report.recorded else None)} a call.",
        soft_wrap=True,
    )
    sentences = [*advice(report), *(() if replayed is None else replayed.sentences())]
    for sentence in sentences:
        console.print(f"- {sentence}", soft_wrap=True)
    if replayed is not None:
        console.print(replayed.as_table())
