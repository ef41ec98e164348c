"""Time on a device: events in its queue, which are read once they are reached, and never waited for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from sys import modules
from typing import TYPE_CHECKING, Any, Protocol

from fastreward.profiling.spans import Span

if TYPE_CHECKING:
    import torch


class DeviceClock(Protocol):
    """What a timeline needs of a device; `CudaClock` is the one for CUDA."""

    def record(self) -> tuple[Any, bool] | None:
        """Queue an event on the current stream, without waiting.

        Returns:
            The event, and whether the stream had nothing left to do before it; ``None`` if no device is in
            use.
        """

    def reached(self, event: Any) -> bool:
        """Whether the device has come to an event, found out without waiting."""

    def seconds(self, first: Any, second: Any) -> float:
        """Device time between two events that are reached; negative if the second came first."""

    def synchronize(self) -> None:
        """Wait until the device has done all that is queued."""


class CudaClock:
    """Events on the current stream of this process's GPU.

    It does nothing until the process itself uses CUDA, and nothing while the current stream is recorded into
    a CUDA graph, which an event of its own would spoil.

    Args:
        device: The GPU's index; ``None`` is this process's, as for a `Scorer`, whichever thread asks.

    Example:
        >>> clock = CudaClock()  # where nothing has used CUDA, as here
        >>> clock.record() is None
        True
    """

    def __init__(self, device: int | None = None) -> None:
        self._asked = device
        self._index = device

    def __reduce__(self) -> tuple[Any, ...]:
        # As it was asked for: where it arrives, the process has a GPU of its own.
        return type(self), (self._asked,)

    def record(self) -> tuple[torch.cuda.Event, bool] | None:
        """Queue an event; ``None`` if CUDA is not in use or a graph is being recorded."""
        if "torch" not in modules or (torch := _torch_on_cuda()) is None:
            return None
        with torch.cuda.device(self._device()):
            if torch.cuda.is_current_stream_capturing():
                return None
            stream = torch.cuda.current_stream()
            idle = bool(stream.query())
            event = torch.cuda.Event(enable_timing=True)
            event.record(stream)
            return event, idle

    def reached(self, event: torch.cuda.Event) -> bool:
        """Whether the device has come to the event."""
        return bool(event.query())  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped

    def seconds(self, first: torch.cuda.Event, second: torch.cuda.Event) -> float:
        """Device time between two events."""
        return float(first.elapsed_time(second)) / 1e3

    def synchronize(self) -> None:
        """Wait for the device, if it is in use and no graph is being recorded."""
        if (torch := _torch_on_cuda()) is None:
            return
        with torch.cuda.device(self._device()):
            if not torch.cuda.is_current_stream_capturing():
                torch.cuda.synchronize()

    def _device(self) -> int:
        """The process's GPU: a thread begins on GPU 0, where a stray event would take another's memory."""
        if self._index is None:
            from fastreward.backends import resolve_device

            self._index = resolve_device("cuda").index
        return self._index


def _torch_on_cuda() -> Any:
    """PyTorch, if this process has used CUDA; it is not imported for it, and CUDA is not begun."""
    torch = modules.get("torch")
    # While another thread imports PyTorch, it is there in part.
    cuda = getattr(torch, "cuda", None)
    return torch if cuda is not None and getattr(cuda, "is_initialized", bool)() else None


@dataclass(frozen=True)
class Mark:
    """An event and the host's time at which it was queued.

    Attributes:
        event: The device clock's.
        host_ns: In nanoseconds of the shared clock.
        was_idle: Whether nothing was queued before it, so that it was reached at once.
        anchor: Else the last mark of which that is true; ``None`` if there was none.
    """

    event: Any
    host_ns: int
    was_idle: bool
    anchor: Mark | None


class DeviceTimer:
    """Marks the begins and ends of spans in a device's queue and finds their times later.

    A device's clock is not the host's, and no event says by itself when it was reached in the host's time.
    But an event that is queued while nothing else is, is reached at once: from such an anchor the times of
    other events are told by the device time between. The anchors are renewed as often as one is found, so
    that the clocks' drift does not count. A reward that hands its scores to the host ends with one.

    Args:
        clock: The device's.
        fail: Is told of an error of the clock, which is then done without; by default it is raised.
    """

    def __init__(self, clock: DeviceClock, fail: Callable[[Exception], None] | None = None) -> None:
        self._clock: DeviceClock | None = clock
        self._fail = fail
        self._anchor: Mark | None = None

    def mark(self, now_ns: int) -> Mark | None:
        """Mark the end of what is queued now; ``None`` if no device is in use."""
        if self._clock is None:
            return None
        try:
            recorded = self._clock.record()
        except Exception as error:
            self._do_without(error)
            return None
        if recorded is None:
            return None
        event, idle = recorded
        mark = Mark(event, now_ns, idle, None if idle else self._anchor)
        if idle:
            self._anchor = mark
        return mark

    def resolve(self, span: Span) -> bool:
        """Fill in the device's times of a span that has ended, if they are known by now.

        Returns:
            Whether there is nothing left to wait for.
        """
        clock = self._clock
        if clock is None:
            return True
        if span.marks is None or span.end_ns is None:
            return span.end_ns is not None
        begin, end = span.marks
        try:
            if begin is not None and end is not None:
                if not (clock.reached(begin.event) and clock.reached(end.event)):
                    return False
                span.device_s = clock.seconds(begin.event, end.event)
                span.drain_s = self._drain(clock, span, begin, end)
        except Exception as error:
            self._do_without(error)
        span.marks = None
        return True

    def synchronize(self) -> bool:
        """Wait until the device has done all that is queued; return whether there is one."""
        if self._clock is None:
            return False
        try:
            self._clock.synchronize()
        except Exception as error:
            self._do_without(error)
            return False
        return True

    def _do_without(self, error: Exception) -> None:
        if self._fail is None:
            raise error
        self._clock = None
        self._fail(error)

    @staticmethod
    def _drain(clock: DeviceClock, span: Span, begin: Mark, end: Mark) -> float | None:
        """From the span's begin until the device came to it, in seconds, within its wall time."""
        assert span.end_ns is not None
        if begin.was_idle:
            return 0.0
        reached_ns: float
        if end.was_idle:
            reached_ns = end.host_ns - clock.seconds(begin.event, end.event) * 1e9
        elif begin.anchor is not None:
            reached_ns = begin.anchor.host_ns + clock.seconds(begin.anchor.event, begin.event) * 1e9
        else:
            return None
        return min(max(reached_ns - begin.host_ns, 0.0), span.end_ns - span.begin_ns) / 1e9
