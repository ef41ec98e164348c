"""Texts of different lengths in one batch without padding: one row of tokens and the offsets of the texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
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


def pack(token_ids: Sequence[Sequence[int]], device: torch.device) -> PackedBatch:
    """Pack texts, given as token ids, in their order.

    Example:
        >>> pack([[5, 6, 7], [8, 9]], torch.device("cpu")).cu_seqlens
        tensor([0, 3, 5], dtype=torch.int32)
    """
    lengths = np.fromiter((len(ids) for ids in token_ids), dtype=np.int32, count=len(token_ids))
    cu_seqlens = np.zeros(len(token_ids) + 1, dtype=np.int32)
    np.cumsum(lengths, out=cu_seqlens[1:])
    num_tokens = int(cu_seqlens[-1])
    input_ids = np.empty(num_tokens, dtype=np.int32)
    for ids, start, end in zip(token_ids, cu_seqlens[:-1], cu_seqlens[1:], strict=True):
        input_ids[start:end] = ids
    position_ids = np.arange(num_tokens, dtype=np.int32) - np.repeat(cu_seqlens[:-1], lengths)
    return PackedBatch(
        input_ids=torch.from_numpy(input_ids).to(device),
        position_ids=torch.from_numpy(position_ids).to(device),
        cu_seqlens=torch.from_numpy(cu_seqlens).to(device),
        lengths=tuple(lengths.tolist()),
    )


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
    if max_tokens < 1:
        raise InputError("a token budget of 1 or more", str(max_tokens), "Pass a larger max_batch_tokens.")
    batches: list[list[int]] = []
    room = 0
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not batches or lengths[index] > room:
            batches.append([])
            room = max_tokens
        batches[-1].append(index)
        room -= lengths[index]
    return batches
