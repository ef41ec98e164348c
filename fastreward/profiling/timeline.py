"""The timeline: what a training loop calls to see where its time goes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, SupportsIndex

from fastreward.errors import InputError
from fastreward.profiling.devices import CudaClock, DeviceClock
from fastreward.profiling.files import read_folder
from fastreward.profiling.opened import Open, Options
from fastreward.profiling.recorder import Recorder
from fastreward.profiling.report import Report, StepReport
from fastreward.profiling.spans import Kind
from fastreward.profiling.summary import merge_recordings
from fastreward.profiling.wrapping import watched

GENERATION = ("generate",)


class Timeline:
    """Records where the time of a training goes, and how much of the rewards' time anybody waits for.

    Rewards are wrapped, other work is marked by phases, and steps are marked too::

        timeline = Timeline()
        reward = timeline.wrap(reward)  # the same callable
        for batch in batches:
            timeline.next_step()
            with timeline.phase("generate"):
                completions = generate(batch)
            with timeline.phase("reward wait", waits=True):
                rewards = pending.result()

    It works in threads, asyncio tasks and several processes, and adds no synchronisation with a GPU.

    **Exposed and hidden.** A moment of a reward is *hidden* if a phase works at that moment that is neither
    around the reward nor within it. Any other moment is *exposed*: there the reward costs time. Which is
    around which goes by threads and tasks: a task is within the phase in which it was made, and so is what
    `asyncio.to_thread` runs; a plain thread is within nothing. A phase with ``waits=True`` does not work, nor
    do, meanwhile, those around it in its own thread and task. Phases of other steps count as well, those of
    other ranks do not. Of phases the same is said: exposed is what no other phase hid. Rewards hide
    nothing. ::

        main thread   |== generate ==|== log-probs ==|-- reward wait (waits) --|== update ==|
        reward thread                |~~~~~~~~~~ reward ~~~~~~~~~~~~~~~~~~~~~~~|
                                     |    hidden     |         exposed         |
                                     |<------------- tail time --------------->|

    **Tail time** of a step: from the end of its last generation to the end of its last reward, of those that
    began in the step and ended; 0 if rewards end first. The **tail ratio** is its part of the step's time.

    **On CUDA** an event is queued at each begin and end, and read once it is reached. A reward that waits for
    its scores first waits for what was queued before it: that *drain* is within its wall time and is reported
    apart. Device time runs from the event at the begin to that at the end. With `synchronize` the device is
    waited for at each begin and end, which gives each its own work and takes the overlap away; asynchronous
    rewards and what runs in tasks are left as they are.

    A failure of the timeline itself never reaches the training: it is said once and counted. Of a long run
    the last steps are kept as they were, the rest in sums.

    Args:
        generation: Names of the phases that generate, for the tail.
        folder: Where each process writes what it records, once a second and at its end, for `merge`; a folder
            of its own for each run. One that is killed or ends by `os._exit` loses the last second. Workers
            of `multiprocessing` do not if they return: the end of a `with Pool()` kills them.
        rank: Of this process; ``None`` reads ``RANK``.
        device_clock: "cuda" for the GPU of this process, once it is in use; ``None`` for wall time alone; or
            a clock of one's own.
        synchronize: Wait for the device at every begin and end outside of asyncio tasks.
        keep_steps: Steps that are kept one by one, with all their spans.
        keep_spans: Spans that are kept at most, whatever the steps.

    Raises:
        InputError: If an argument is not one of the above.

    Example:
        >>> timeline = Timeline()
        >>> def brief(completions, **columns):
        ...     return [1.0 if len(text) < 10 else None for text in completions]
        >>> reward = timeline.wrap(brief)
        >>> with timeline.step(), timeline.phase("rewards"):
        ...     reward(completions=["a text", "a text", "a longer text"])
        [1.0, 1.0, None]
        >>> found = timeline.report().rewards[0]
        >>> found.name, found.count, found.texts, found.unique_texts, found.none, found.hidden_s
        ('brief', 1, 3, 2, 1, 0.0)

    Source: tail time, its ratio and the number in flight are those of radixark/miles_diffusion, pull request
    19.
    """

    def __init__(
        self,
        *,
        generation: Sequence[str] = GENERATION,
        folder: str | PathLike[str] | None = None,
        rank: int | None = None,
        device_clock: DeviceClock | Literal["cuda"] | None = "cuda",
        synchronize: bool = False,
        keep_steps: int = 64,
        keep_spans: int = 20_000,
    ) -> None:
        if isinstance(device_clock, str) and device_clock != "cuda":
            raise InputError(
                "'cuda', None or a DeviceClock as device_clock", repr(device_clock), "Correct the name."
            )
        for name, value, least in (("keep_steps", keep_steps, 1), ("keep_spans", keep_spans, 2)):
            if not _is_whole(value) or value < least:
                raise InputError(f"{name} of {least} or more", repr(value), "Pass a whole number.")
        if rank is not None and (not _is_whole(rank) or rank < 0):
            raise InputError("a rank of 0 or more, or None", repr(rank), "Pass the process's number.")
        self._recorder = Recorder(
            Options(
                _names(generation),
                None if folder is None else Path(folder),
                rank,
                CudaClock() if isinstance(device_clock, str) else device_clock,
                synchronize,
                keep_steps,
                keep_spans,
            )
        )

    def wrap(self, reward: Callable[..., Any], *, name: str | None = None, texts: str | None = None) -> Any:
        """Watch a reward: any callable, awaited or not, or a class of rewards, whose instances are watched.

        What comes back has the reward's name, signature and attributes, is awaited if the reward is, and
        pickles to the reward itself. It counts the texts of each call, before it begins, and how many got
        ``None``. An `ascore` of the reward is watched as well. A coroutine or a future that a plain function
        returns counts until it is done.

        Args:
            reward: The reward.
            name: What to report it under; ``None`` is the name under which trainers log it.
            texts: The argument that holds the texts; ``None`` finds those of the known trainers
                (``completions``, ``responses``, ``solution_str`` …) and else takes the first one.

        Returns:
            The watched reward.

        Raises:
            InputError: If it cannot be called.

        Example:
            >>> import pickle
            >>> reward = Timeline().wrap(len)
            >>> reward.__name__, reward(["a", "b"]), pickle.loads(pickle.dumps(reward)) is len
            ('len', 2, True)
        """
        if not callable(reward):
            raise InputError(
                "a reward that can be called",
                repr(reward) if isinstance(reward, str) else type(reward).__name__,
                "A model that a trainer loads by itself is timed with phase(…) around its call.",
            )
        return watched(self._recorder, reward, name, texts)

    def phase(self, name: str, *, waits: bool = False) -> Phase:
        """Mark work, or a wait, as a context manager.

        Args:
            name: What to report it under.
            waits: It only waits, for a reward or anything else: it hides nothing, and nor do the phases
                around it.

        Raises:
            InputError: If the name is none.

        Example:
            >>> timeline = Timeline()
            >>> with timeline.phase("generate"):
            ...     completions = ["a text"]
            >>> timeline.report().phases[0].name
            'generate'
        """
        if not isinstance(name, str) or not name:
            raise InputError("the name of a phase", repr(name), "Pass for instance 'generate'.")
        return Phase(self._recorder, "wait" if waits else "phase", name)

    @contextmanager
    def step(self, number: SupportsIndex | None = None) -> Iterator[None]:
        """Mark a step, as a context manager; a step that still runs ends.

        Args:
            number: As the trainer counts; ``None`` goes on from the last one, and begins with 1.

        Raises:
            InputError: If the number is no whole one.
        """
        step = self._recorder.begin_step(_step_number(number))
        try:
            yield
        finally:
            if step is not None:
                self._recorder.end_step(step)

    def next_step(self, number: SupportsIndex | None = None) -> None:
        """End the step that runs, if there is one, and begin the next.

        Args:
            number: As in `step`.

        Raises:
            InputError: If the number is no whole one.
        """
        self._recorder.begin_step(_step_number(number))

    def end_step(self) -> None:
        """End the step that runs; what follows is outside of steps, as an evaluation is."""
        self._recorder.end_step(None)

    def report(self) -> Report:
        """Report on this process up to now; what still runs is counted up to now.

        Device times are those that are known by now: nothing is waited for.
        """
        return self._recorder.report()

    def latest_step(self) -> StepReport | None:
        """Report on the step that runs, up to now, or else on the last one; ``None`` before the first.

        It is cheap enough for every step.

        Example:
            >>> timeline = Timeline()
            >>> with timeline.step(7), timeline.phase("generate"):
            ...     completions = ["a text"]
            >>> latest = timeline.latest_step()
            >>> latest.number, list(latest.phases)
            (7, ['generate'])
        """
        return self._recorder.latest_step()

    def close(self) -> None:
        """End the step that runs, write everything to the folder and stop writing; done by itself at exit."""
        self._recorder.close()

    @staticmethod
    def merge(
        folder: str | PathLike[str],
        *,
        generation: Sequence[str] = GENERATION,
        keep_steps: int | None = None,
    ) -> Report:
        """Report on all processes that wrote to a folder.

        A process that works for a rank, such as one that computes its rewards, has the rank's number: what it
        does hides, and is hidden by, what the rank's other processes do.

        Args:
            folder: As the timelines were given.
            generation: Names of the phases that generate.
            keep_steps: Steps of each rank that are kept one by one; ``None`` for all.

        Raises:
            InputError: If no timeline wrote there.
        """
        return merge_recordings(read_folder(Path(folder)), _names(generation), keep_steps)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        # In another process it records for itself, into the same folder.
        return _rebuilt, (self._recorder.options,)


class Phase:
    """A stretch of code that is recorded each time it is entered; see `Timeline.phase`."""

    __slots__ = ("_kind", "_name", "_opened", "_recorder")

    def __init__(self, recorder: Recorder, kind: Kind, name: str) -> None:
        self._recorder = recorder
        self._kind = kind
        self._name = name
        self._opened: list[Open | None] = []

    def __enter__(self) -> None:
        self._opened.append(self._recorder.begin(self._kind, self._name))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._recorder.end(self._opened.pop(), error)


def _rebuilt(options: Options) -> Timeline:
    timeline = Timeline.__new__(Timeline)
    timeline._recorder = Recorder(options)
    return timeline


def _step_number(number: SupportsIndex | None) -> int | None:
    """A trainer may count with NumPy or PyTorch; a file takes Python's own numbers."""
    try:
        return None if number is None else int(operator.index(number))
    except TypeError as error:
        raise InputError(
            "a whole number as a step's, or None", repr(number), "Pass what the trainer counts."
        ) from error


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise InputError("a list of phases' names as generation", repr(names), "Pass ['generate'].")
    return tuple(names)
