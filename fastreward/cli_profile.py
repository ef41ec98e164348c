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
from dataclasses import dataclass, replace
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
    replays = replay or reference is not None
    if replays:
        _ask_for_texts(recordings, reference)
    report: Report | None = None
    with _forwarding() as forward_to:  # until the report is written: to a command that has ended nothing goes
        try:
            run = run_command(command, recordings, forward_to)
        except InputError:
            _remove(folder, recordings, was_there)
            raise
        with _said():
            report = _report_on(run, folder, recordings)
            if report is None:
                _remove(folder, recordings, was_there)
    if report is not None:
        with _said():
            _conclude(report, run, folder, recordings, replays)
    raise typer.Exit(run.exit_code)


# --------------------------------------------------------------------------- the command


def run_command(
    command: list[str], recordings: Path, forward_to: Callable[[subprocess.Popen[bytes]], None]
) -> Run:
    """Run a command with the recorder in each of its Python processes.

    Args:
        command: The command.
        recordings: A folder for what they record.
        forward_to: Is told of the command's process, which signals are for from then on.

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
        if children and number in FROM_TERMINAL and _is_in_the_foreground():
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


@contextmanager
def _said() -> Iterator[None]:
    """Say what goes wrong: the command's exit code stands, whatever becomes of the report."""
    try:
        yield
    except (FastRewardError, OSError) as error:
        typer.echo(f"fastreward profile: {error}", err=True)
    except Exception:
        typer.echo(f"fastreward profile has a bug:\n{traceback.format_exc()}", err=True)


def _report_on(run: Run, folder: Path, recordings: Path) -> Report | None:
    """Report on what was recorded in the folder; say why nothing was."""
    from fastreward.integrations.trl_startup import why_nothing
    from fastreward.profiling import Timeline
    from fastreward.profiling.files import SUFFIX

    if not any(recordings.glob(f"*{SUFFIX}")):
        typer.echo(f"fastreward profile: nothing was recorded: {why_nothing(str(recordings))}", err=True)
        return None
    report = Timeline.merge(recordings, keep_steps=KEPT_STEPS)
    _write(report, run, folder, None)
    return report


def _conclude(report: Report, run: Run, folder: Path, recordings: Path, replays: bool) -> None:
    """Replay the texts if that is wanted, and show what was found."""
    from rich.console import Console

    replayed = _replayed_or_why_not(recordings, folder, report) if replays else None
    with _forwarding():  # to nobody: whoever is impatient presses Ctrl-C more than once
        if replayed is not None:
            _write(report, run, folder, replayed)
        # A log file has lines as long as the tables need.
        width = None if sys.stderr.isatty() else WIDTH
        console = Console(stderr=True, markup=False, highlight=False, width=width)
        _show(report, run, console, replayed)
        files = "report.html, timeline.json, trace.json (for ui.perfetto.dev)"
        console.print(f"{folder}: {files}", soft_wrap=True)


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
    calls = cut_off = 0
    with (folder / "calls.jsonl").open("wb") as everything, tempfile.TemporaryDirectory() as scratch:
        worth_it = Path(scratch) / "calls.jsonl"
        with worth_it.open("wb") as target:
            for path in sorted(recordings.glob(f"*{CALLS}")):
                # The last line of a process that was killed may lack its end.
                for line in (text + b"\n" for text in path.read_bytes().splitlines()):
                    everything.write(line)
                    name = _reward_of(line)
                    calls += name is not None
                    cut_off += name is None
                    if name in costly:
                        target.write(line)
                path.unlink()
        if not worth_it.stat().st_size:
            why = "no reward takes 1 % of the steps" if calls else "no call of a reward was kept"
            typer.echo(f"fastreward profile: nothing to replay: {why}.", err=True)
            return None
        found = replay(worth_it, SemanticReward())
        return replace(found, broken_lines=found.broken_lines + cut_off)


def _reward_of(line: bytes) -> str | None:
    """Whose call a line is; ``None`` of one that was cut off, as by a full disk or the process's end."""
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
    trace = {"traceEvents": report.chrome_trace(), "displayTimeUnit": "ms"}
    with tempfile.TemporaryDirectory(dir=folder, prefix=".") as scratch:
        made = Path(scratch)
        (made / "timeline.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")
        (made / "trace.json").write_text(json.dumps(trace), encoding="utf-8")
        write_page(report, made / "report.html", title=shlex.join(run.command), replayed=replayed)
        for path in list(made.iterdir()):  # whole: what was there stays until then
            path.replace(folder / path.name)


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
