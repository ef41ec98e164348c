"""The door to packed bidirectional attention: every token sees its own text and nothing else."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def packed_attention(
    qkv: Tensor, cu_seqlens: Tensor, lengths: Sequence[int], *, batch_invariant: bool = False
) -> Tensor:
    """Attend within each text: softmax(q kᵀ / √head_dim) v over packed tokens.

    On CUDA in fp16 and bf16 this is `torch.nn.attention.varlen.varlen_attn` (FlashAttention-2, arXiv
    2307.08691); elsewhere PyTorch's scaled dot product attention over runs of texts of equal length, which
    needs no padding either. Sort texts by length to make the runs long.

    Args:
        qkv: [T, 3, H, head_dim]: queries, keys and values.
        cu_seqlens: [N + 1], int32, on the device of `qkv`.
        lengths: The N lengths on the host.
        batch_invariant: Compute each text by calls whose shape depends on that text alone, so that its bits
            do not depend on its neighbours.

    Returns:
        [T, H · head_dim], in the dtype of `qkv`.

    Example:
        >>> qkv = torch.randn(5, 3, 2, 8)
        >>> packed_attention(qkv, torch.tensor([0, 2, 5], dtype=torch.int32), [2, 3]).shape
        torch.Size([5, 16])
    """
    if _flash_attention_takes(qkv):
        return _varlen(qkv, cu_seqlens, max(lengths, default=0), batch_invariant)
    return _equal_length_runs(qkv, lengths, 1 if batch_invariant else len(lengths))


def _flash_attention_takes(qkv: Tensor) -> bool:
    """FlashAttention-2's limits: 16-bit, Ampere or later, head_dim a multiple of 8 and 256 at most."""
    if qkv.device.type != "cuda" or qkv.dtype not in (torch.float16, torch.bfloat16):
        return False
    head_dim = qkv.shape[-1]
    return head_dim % 8 == 0 and head_dim <= 256 and torch.cuda.get_device_capability(qkv.device) >= (8, 0)


def _varlen(qkv: Tensor, cu_seqlens: Tensor, max_seqlen: int, batch_invariant: bool) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    query, key, value = qkv.unbind(1)
    # One split of the keys makes FlashAttention's bits independent of the batch.
    options: dict[str, Any] = (
        {"num_splits": 1} if batch_invariant and "num_splits" in _varlen_parameters() else {}
    )
    attended = varlen_attn(
        query=query,
        key=key,
        value=value,
        cu_seq_q=cu_seqlens,
        cu_seq_k=cu_seqlens,
        max_q=max_seqlen,
        max_k=max_seqlen,
        **options,
    )
    assert isinstance(attended, Tensor)
    return attended.flatten(1)


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    """Parameters of `varlen_attn` in this PyTorch: they grow from release to release."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def _equal_length_runs(qkv: Tensor, lengths: Sequence[int], longest_run: int) -> Tensor:
    num_tokens, _, heads, head_dim = qkv.shape
    attended = qkv.new_empty((num_tokens, heads, head_dim))
    for start, count, length in _runs(lengths, longest_run):
        rows = slice(start, start + count * length)
        query, key, value = qkv[rows].view(count, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        result = F.scaled_dot_product_attention(query, key, value)  # [count, H, length, head_dim]
        attended[rows].view(count, length, heads, head_dim).copy_(result.transpose(1, 2))
    return attended.flatten(1)


def _runs(lengths: Sequence[int], longest_run: int) -> Iterator[tuple[int, int, int]]:
    """Yield (first token, texts, length) for runs of neighbours of equal length, empty texts left out."""
    start = text = 0
    while text < len(lengths):
        length, count = lengths[text], 1
        while count < longest_run and text + count < len(lengths) and lengths[text + count] == length:
            count += 1
        if length:
            yield start, count, length
        start += count * length
        text += count
