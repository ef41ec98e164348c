"""Texts of different lengths in one batch without padding: one row of tokens and the offsets of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.errors import InputError


@dataclass(frozen=True)
class PackedBatch:
    """Token ids of N texts, one after another, T tokens in all.

    Attributes:
        input_ids: [T], int32.
        position_ids: [T], int32, 0 at the first token of each text.
        cu_seqlens: [N + 1], int32, offsets of the texts, from 0 to T.
        lengths: The N lengths in tokens, on the host, so that nothing has to be fetched from a GPU.
    """

    input_ids: Tensor
    position_ids: Tensor
    cu_seqlens: Tensor
    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[0]

    @property
    def max_seqlen(self) -> int:
        """The longest text in tokens; 0 in an empty batch."""
        return max(self.lengths, default=0)


@dataclass(frozen=True)
class HostBatch:
    """What makes a `PackedBatch`, still on the host, so that a thread can make it ahead of its use.

    Attributes:
        input_ids: [T].
        position_ids: [T].
        cu_seqlens: [N + 1].
        lengths: The N lengths in tokens.
    """

    input_ids: NDArray[np.int32]
    position_ids: NDArray[np.int32]
    cu_seqlens: NDArray[np.int32]
    lengths: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.input_ids)

    def to(self, device: torch.device) -> PackedBatch:
        """Take it to a device: a GPU's copy is not waited for, a CPU's shares this one's memory."""
        arrays = (self.input_ids, self.position_ids, self.cu_seqlens)
        on_device = list(map(torch.from_numpy, arrays)) if device.type == "cpu" else upload(arrays, device)
        return PackedBatch(on_device[0], on_device[1], on_device[2], self.lengths)


def lay_out(
    token_ids: Sequence[Sequence[int] | NDArray[np.int32]], *, prefix: bytes = b"", suffix: bytes = b""
) -> HostBatch:
    """Lay texts, given as token ids, one after another in their order.

    Args:
        token_ids: The ids of N texts.
        prefix: int32 ids, as bytes, that stand before each text.
        suffix: Those behind it.

    Example:
        >>> cls, sep = (np.int32(token).tobytes() for token in (101, 102))
        >>> lay_out([[5, 6], []], prefix=cls, suffix=sep).input_ids
        array([101,   5,   6, 102, 101, 102], dtype=int32)
    """
    texts = [np.ascontiguousarray(ids, dtype=np.int32) for ids in token_ids]
    specials = (len(prefix) + len(suffix)) // np.dtype(np.int32).itemsize
    lengths = np.fromiter(map(len, texts), dtype=np.int32, count=len(texts)) + np.int32(specials)
    cu_seqlens = np.zeros(len(texts) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    framed = bytearray().join([piece for ids in texts for piece in (prefix, ids.data, suffix)])
    input_ids = np.frombuffer(framed, dtype=np.int32)
    position_ids = np.arange(len(input_ids), dtype=np.int32)
    position_ids -= np.repeat(cu_seqlens[:-1], lengths)
    return HostBatch(input_ids, position_ids, cu_seqlens, tuple(lengths.tolist()))


def pack(token_ids: Sequence[Sequence[int] | NDArray[np.int32]], device: torch.device) -> PackedBatch:
    """Pack texts, given as token ids, in their order.

    Example:
        >>> pack([[5, 6, 7], [8, 9]], torch.device("cpu")).cu_seqlens
        tensor([0, 3, 5], dtype=torch.int32)
    """
    return lay_out(token_ids).to(device)


def upload(arrays: Sequence[NDArray[np.int32]], device: torch.device) -> list[Tensor]:
    """Copy one-dimensional int32 arrays to a device, all in one copy, which on a GPU is not waited for.

    Each tensor begins at a multiple of 16 bytes, for Triton compiles a kernel apart for other addresses.

    Example:
        >>> upload([np.array([1, 2], dtype=np.int32)], torch.device("cpu"))
        [tensor([1, 2], dtype=torch.int32)]
    """
    starts = list(accumulate((-(-len(array) // 4) * 4 for array in arrays), initial=0))
    staged = torch.empty(starts[-1], dtype=torch.int32, device="cpu", pin_memory=device.type == "cuda")
    host = staged.numpy()
    for start, array in zip(starts, arrays, strict=False):
        host[start : start + len(array)] = array
    moved = staged.to(device, non_blocking=True)
    return [moved[start : start + len(array)] for start, array in zip(starts, arrays, strict=False)]


def upload_into(target: Tensor, array: NDArray[np.int32]) -> None:
    """Copy a one-dimensional int32 array into a tensor of its size, which on a GPU is not waited for.

    Example:
        >>> target = torch.zeros(3, dtype=torch.int32)
        >>> upload_into(target[1:], np.array([7, 8], dtype=np.int32))
        >>> target
        tensor([0, 7, 8], dtype=torch.int32)
    """
    if target.device.type == "cuda":  # pinned: PyTorch gives it to no one else before the copy has ended
        staged = torch.empty(len(array), dtype=torch.int32, device="cpu", pin_memory=True)
        staged.numpy()[:] = array
    else:
        staged = torch.from_numpy(array)
    target.copy_(staged, non_blocking=True)


def token_budget_batches(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Split texts into batches of at most `max_tokens` tokens, longest first.

    Texts of equal length end up side by side, and the largest batch comes first, so that memory peaks at the
    start. A text longer than the budget is a batch of its own.

    Args:
        lengths: Tokens of each text.
        max_tokens: The budget of a batch.

    Returns:
        Batches of indices into `lengths`; each index occurs once.

    Raises:
        InputError: If `max_tokens` is less than 1.

    Example:
        >>> token_budget_batches([3, 9, 4, 3], max_tokens=10)
        [[1], [2, 0, 3]]
    """
    order, cuts = token_budget_cuts(np.array(lengths, dtype=np.int64), max_tokens)
    return [order[cut].tolist() for cut in cuts]


def token_budget_cuts(lengths: NDArray[np.int64], max_tokens: int) -> tuple[NDArray[np.int64], list[slice]]:
    """Split as `token_budget_batches` does: N indices, the longest text first, and where to cut them.

    Example:
        >>> order, cuts = token_budget_cuts(np.array([3, 9, 4, 3]), max_tokens=10)
        >>> order.tolist(), cuts
        ([1, 2, 0, 3], [slice(0, 1, None), slice(1, 4, None)])
    """
    if max_tokens < 1:
        raise InputError("a token budget of 1 or more", str(max_tokens), "Pass a larger max_batch_tokens.")
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    cuts: list[slice] = []
    begin = done = 0
    while begin < len(order):
        fitting = int(np.searchsorted(ends, done + max_tokens, side="right"))
        end = max(begin + 1, fitting)
        cuts.append(slice(begin, end))
        begin, done = end, int(ends[end - 1])
    return order, cuts
