"""Going on when a device's memory runs out: the batch is split and done again, later ones are smaller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.batching import Batcher
from fastreward.caller import warn_caller
from fastreward.errors import FastRewardError
from fastreward.packing import HostBatch, upload

T = TypeVar("T")


class DeviceMemoryError(FastRewardError, torch.OutOfMemoryError):
    """A single text, or what came of all, does not fit into the memory that the device has left."""


class Computed(NamedTuple):
    """What came of a batch, or of a part of one.

    Attributes:
        rows: [N], int32, which texts of the call it was.
        lengths: Their tokens.
        results: What was computed.
    """

    rows: NDArray[np.int32]
    lengths: Sequence[int]
    results: tuple[Tensor, ...]


Function: TypeAlias = Callable[[HostBatch, NDArray[np.int32]], tuple[Tensor, ...]]
"""From N texts, which it copies to its device, and which texts of the call they are, to results."""


class Recovery:
    """Computes batches, in halves where they do not fit; safe to use from several threads.

    When a batch does not fit, the batcher's budget of tokens is halved and stays so: other work on the
    device, a policy that trains or generates, will be as large at the next call. The first time is said.

    Args:
        batcher: Whose `max_batch_tokens` is lowered.
    """

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._lock = threading.Lock()
        self._said = False

    def compute(self, batch: HostBatch, rows: NDArray[np.int32], function: Function) -> Iterator[Computed]:
        """Yield what `function` gives for a batch of N texts, or for its parts, which together are all of it.

        Raises:
            DeviceMemoryError: If a text does not fit by itself.
        """
        waiting = [(batch, rows)]
        while waiting:
            part, part_rows = waiting.pop()
            budget = self._batcher.max_batch_tokens
            if len(part.lengths) > 1 and part.num_tokens > budget:
                waiting += _halves(part, part_rows)
                continue
            # What failed is not kept in a name: its traceback holds the tensors of the attempt.
            try:
                results, failure = function(part, part_rows), ""
            except RuntimeError as error:
                if not ran_out(error):
                    raise
                results, failure = None, first_line(error)
            if results is not None:
                yield Computed(part_rows, part.lengths, results)
                continue
            if len(part.lengths) == 1:
                raise _does_not_fit(part.num_tokens, failure)
            self._lower(budget, part.num_tokens, failure)
            waiting += _halves(part, part_rows)

    def _lower(self, tried: int, num_tokens: int, failure: str) -> None:
        with self._lock:
            # Threads that ran out together lower it once.
            if self._batcher.max_batch_tokens == tried:
                self._batcher.max_batch_tokens = max(1, tried // 2)
            first, self._said = not self._said, True
        if first:
            warn_caller(
                f"The device ran out of memory with a batch of {num_tokens} tokens ({failure}). The batch is "
                f"done again in parts, and from now on a batch has at most {max(1, tried // 2)} tokens "
                f"instead of {tried}. This is said once, and the budget may be halved again. Pass "
                "max_batch_tokens or max_bytes to begin with less."
            )


def ran_out(error: BaseException) -> bool:
    """Whether memory ran out, as PyTorch's allocator says it or as the driver does.

    The driver's is the memory that PyTorch does not allocate itself: that of graphs, and pinned memory of the
    host, through which a batch is copied.

    Example:
        >>> ran_out(torch.OutOfMemoryError("full")), ran_out(RuntimeError("out of memory"))
        (True, False)
    """
    if isinstance(error, torch.OutOfMemoryError):
        return True
    driver_error = getattr(torch, "AcceleratorError", None)
    return driver_error is not None and isinstance(error, driver_error) and "out of memory" in str(error)


def first_line(error: BaseException) -> str:
    """What an error says, without the allocator's long report."""
    return str(error).partition("\n")[0]


def in_order(done: list[Computed], device: torch.device) -> Tensor:
    """Put the first result of each part in the order of the call's texts: [N, ...] on `device`.

    On the device this takes the memory of the results twice more. Where there is none they are taken to the
    host, one part after another, and come back in order: the same bits, and never more than once there.

    Args:
        done: All parts of a call, one at least, with results [n, ...] on `device`; nothing is left in it.
        device: Where the results are.

    Raises:
        DeviceMemoryError: If all results together do not fit.

    Example:
        >>> parts = [
        ...     Computed(np.int32([2, 0]), [5, 4], (torch.tensor([2.0, 0.0]),)),
        ...     Computed(np.int32([1]), [3], (torch.ones(1),)),
        ... ]
        >>> in_order(parts, torch.device("cpu"))
        tensor([0., 1., 2.])
    """
    rows = np.concatenate([part.rows for part in done])
    try:
        ordered = _scattered([part.results[0] for part in done], rows, device)
        done.clear()
        return ordered
    except RuntimeError as error:
        if not ran_out(error):
            raise
    done.reverse()
    # A part that is popped is free on the device as soon as its copy is made.
    on_host = [done.pop().results[0].cpu() for _ in range(len(done))]
    ordered = _scattered(on_host, rows, torch.device("cpu"))
    try:
        return ordered.to(device)
    except RuntimeError as error:
        if not ran_out(error):
            raise
        failure = first_line(error)
    raise no_room(f"the results of {len(rows)} texts", failure)


def no_room(
    wanted: str, failure: str, remedy: str = "Free memory, or pass fewer texts at once."
) -> DeviceMemoryError:
    """What is raised where memory runs out for something that smaller batches do not make smaller."""
    return DeviceMemoryError(f"device memory for {wanted}", f"out of memory: {failure}", remedy)


@contextmanager
def named_shortage(wanted: str) -> Iterator[None]:
    """Say what there was no room for, where memory runs out within and the error does not say it.

    Raises:
        DeviceMemoryError: If memory runs out.

    Example:
        >>> try:
        ...     with named_shortage("two numbers"):
        ...         raise torch.OutOfMemoryError("full")
        ... except DeviceMemoryError as error:
        ...     print(error.expected)
        device memory for two numbers
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, DeviceMemoryError) or not ran_out(error):
            raise
        raise no_room(wanted, first_line(error)) from error


def with_room(wanted: str, load: Callable[[], T]) -> T:
    """Return what `load` brings to a device, to stay there.

    Args:
        wanted: What that is, for the message.
        load: Called once.

    Raises:
        DeviceMemoryError: If memory runs out; nothing of the attempt is held by it.

    Example:
        >>> with_room("two numbers", lambda: torch.zeros(2))
        tensor([0., 0.])
    """
    try:
        return load()
    except RuntimeError as error:
        if not ran_out(error):
            raise
        failure = first_line(error)
    remedy = "Free memory on the device, or pass dtype='bfloat16' or device='cpu'."
    raise no_room(wanted, failure, remedy)


def _scattered(results: list[Tensor], rows: NDArray[np.int32], device: torch.device) -> Tensor:
    computed = torch.cat(results)
    (order,) = upload([rows], device)
    # Assigning to ordered[order] would wake a CPU's threads, for some milliseconds, to copy what is little.
    return torch.empty_like(computed).index_copy_(0, order.long(), computed)


def _does_not_fit(num_tokens: int, failure: str) -> DeviceMemoryError:
    return DeviceMemoryError(
        f"device memory for a text of {num_tokens} tokens by itself",
        f"out of memory: {failure}",
        "Free memory on the device, or pass a smaller max_seq_length, dtype='bfloat16' or device='cpu'.",
    )


def _halves(batch: HostBatch, rows: NDArray[np.int32]) -> list[tuple[HostBatch, NDArray[np.int32]]]:
    """Split a batch of two texts at least in two of like numbers of tokens; the first half comes last."""
    done, half = 0, batch.num_tokens / 2
    cut = 0
    while cut < len(batch.lengths) - 1 and (cut == 0 or done + batch.lengths[cut] <= half):
        done += batch.lengths[cut]
        cut += 1
    return [
        (_texts(batch, cut, len(batch.lengths), done), rows[cut:]),
        (_texts(batch, 0, cut, 0), rows[:cut]),
    ]


def _texts(batch: HostBatch, first: int, last: int, start: int) -> HostBatch:
    """Texts first … last - 1 of a batch, which begin at its token `start`."""
    lengths = batch.lengths[first:last]
    tokens = slice(start, start + sum(lengths))
    return HostBatch(
        batch.input_ids[tokens],
        batch.position_ids[tokens],
        batch.cu_seqlens[first : last + 1] - np.int32(start),
        lengths,
    )
