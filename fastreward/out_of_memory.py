"""Going on when a device's memory runs out: the batch is split and done again, later ones are smaller."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from fastreward.batching import Batcher
from fastreward.caller import warn_caller
from fastreward.errors import FastRewardError
from fastreward.packing import PackedBatch


class DeviceMemoryError(FastRewardError, torch.OutOfMemoryError):
    """A single text does not fit into the memory that the device has left."""


class Computed(NamedTuple):
    """What came of a batch, or of a part of one.

    Attributes:
        rows: Which texts of the call it was, N of them.
        lengths: Their tokens.
        results: What was computed.
    """

    rows: Sequence[int]
    lengths: Sequence[int]
    results: tuple[Tensor, ...]


Function: TypeAlias = Callable[[PackedBatch, Sequence[int]], tuple[Tensor, ...]]
"""From N texts, and which texts of the call they are, to results."""


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

    def compute(self, batch: PackedBatch, rows: Sequence[int], function: Function) -> Iterator[Computed]:
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
            except torch.OutOfMemoryError as error:
                results, failure = None, str(error).partition("\n")[0]
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


def _does_not_fit(num_tokens: int, failure: str) -> DeviceMemoryError:
    return DeviceMemoryError(
        f"device memory for a text of {num_tokens} tokens by itself",
        f"out of memory: {failure}",
        "Free memory on the device, or pass a smaller max_seq_length, dtype='bfloat16' or device='cpu'.",
    )


def _halves(batch: PackedBatch, rows: Sequence[int]) -> list[tuple[PackedBatch, Sequence[int]]]:
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


def _texts(batch: PackedBatch, first: int, last: int, start: int) -> PackedBatch:
    """Texts first … last - 1 of a batch, which begin at its token `start`, in memory of their own."""
    lengths = batch.lengths[first:last]
    tokens = slice(start, start + sum(lengths))
    # Copies: a view may begin at an address that kernels are compiled apart for.
    return PackedBatch(
        batch.input_ids[tokens].clone(),
        batch.position_ids[tokens].clone(),
        batch.cu_seqlens[first : last + 1] - start,
        lengths,
    )
