"""The order of work on CUDA streams: a stream of one's own, and memory that several streams share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class Written:
    """Lets every stream that reads shared memory find what was written to it, without the host waiting.

    On a CPU there is nothing to order. Calls are made under the lock of what is shared.

    Example:
        >>> written = Written()
        >>> written.wait(torch.device("cpu"))
        >>> written.mark(torch.device("cpu"))
    """

    def __init__(self) -> None:
        self._last: torch.cuda.Event | None = None

    def wait(self, device: torch.device) -> None:
        """Let the current stream go on once everything that was marked is written."""
        if self._last is not None:
            torch.cuda.current_stream(device).wait_event(self._last)

    def mark(self, device: torch.device) -> None:
        """Say that the current stream has written. It has waited before: one event stands for all."""
        if device.type == "cuda":
            self._last = torch.cuda.current_stream(device).record_event()


def new_stream(device: torch.device) -> torch.cuda.Stream:
    """Make a CUDA stream."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # PyTorch leaves it untyped


@contextmanager
def on_stream(stream: torch.cuda.Stream | None) -> Iterator[None]:
    """Work on a stream, or where there is none on the caller's; the caller's goes on behind this work.

    The stream does not wait for the caller's: the work's inputs come from the host, and what the caller has
    queued may go on beside it. For an input on the GPU, see `after_caller`.
    """
    if stream is None:
        yield
        return
    caller = torch.cuda.current_stream(stream.device)
    try:
        with torch.cuda.stream(stream):
            yield
    finally:
        caller.wait_stream(stream)


def after_caller(tensor: Tensor | None, stream: torch.cuda.Stream | None) -> None:
    """Let work on `stream` that is queued from now on read a tensor that the current stream may yet write."""
    if stream is None or not isinstance(tensor, Tensor) or not tensor.is_cuda:
        return
    stream.wait_stream(torch.cuda.current_stream(tensor.device))
    tensor.record_stream(stream)


def used_here(*tensors: Tensor) -> None:
    """Keep the memory of tensors, once it is free, until the current stream has done what is queued on it.

    For tensors that were made on another stream; on a CPU there is nothing to do.
    """
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream(tensor.device))
