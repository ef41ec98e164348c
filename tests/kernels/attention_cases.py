"""What `attention` launches, for the resource table: the heads of encoders, over short and long texts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import torch

from fastreward.kernels.attention import plan_attention
from fastreward.kernels.launch import Launch
from fastreward.ops.attention_tiles import attention_tables

SHORT: Final = (200, 64, 30, 20)  # tiles of 64 rows, some shared
LONG: Final = (512, 512)  # tiles of 128 rows


def launches(
    head_dim: int,
    lengths: tuple[int, ...] = SHORT,
    *,
    dtype: torch.dtype = torch.bfloat16,
    window: int | None = None,
    first_token: bool = False,
    batch_invariant: bool = False,
) -> tuple[Launch, ...]:
    """What the launcher would launch for 12 heads of one tensor of queries, keys and values."""
    query, key, value = torch.empty(sum(lengths), 3, 12, head_dim, dtype=dtype).unbind(1)
    if first_token:
        query = torch.empty(len(lengths), 12, head_dim, dtype=dtype)
    return plan_attention(
        query,
        key,
        value,
        attention_tables(lengths, batch_invariant=batch_invariant),
        torch.empty(len(query), 12 * head_dim, dtype=dtype),
        window=window,
        first_token=first_token,
    )


FP32 = torch.float32
TENSOR_CORES: dict[str, Callable[[], tuple[Launch, ...]]] = {
    "16": partial(launches, 16),
    "32": partial(launches, 32),
    "64": partial(launches, 64),
    "128": partial(launches, 128),
    "64-window": partial(launches, 64, window=64),
    "32-invariant": partial(launches, 32, batch_invariant=True),
    "32-long": partial(launches, 32, LONG),
    "64-long": partial(launches, 64, LONG),
    "128-long": partial(launches, 128, LONG),
    "64-long-window": partial(launches, 64, LONG, window=64),
}

CASES: Final = TENSOR_CORES | {
    "32-fp32": partial(launches, 32, dtype=FP32),
    "64-fp32-long-window": partial(launches, 64, LONG, dtype=FP32, window=64),
    "128-fp32": partial(launches, 128, dtype=FP32),
    "32-first": partial(launches, 32, first_token=True),
    "64-first-window": partial(launches, 64, first_token=True, window=64),
    "128-first": partial(launches, 128, first_token=True),
    "64-first-fp32": partial(launches, 64, dtype=FP32, first_token=True),
}

WGMMA: Final = set(TENSOR_CORES)

# On AMD a block of 32 keys, or a part of 16 columns, is less than 16 bytes for each of a program's threads.
NVIDIA: Final = ("sm_80", "sm_90", "sm_100")
TARGETS: Final = {"16": NVIDIA, "32-fp32": NVIDIA}
