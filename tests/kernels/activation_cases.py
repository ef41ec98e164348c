"""What `gelu` and `geglu` launch, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.activation import plan_activation
from fastreward.kernels.launch import Launch


def launches(
    num_features: int, dtype: torch.dtype, *, gated: bool = False, bias: bool = False
) -> tuple[Launch, ...]:
    """What the launcher would launch for that many output columns."""
    x = torch.empty(1000, 2 * num_features if gated else num_features, dtype=dtype)
    out = torch.empty(1000, num_features, dtype=dtype)
    return plan_activation(x, torch.empty(x.shape[1], dtype=dtype) if bias else None, out, gated=gated)


BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
CASES = {
    "1536-bf16-bias": partial(launches, 1536, BF16, bias=True),
    "1536-fp16-bias": partial(launches, 1536, FP16, bias=True),
    "1536-fp32-bias": partial(launches, 1536, FP32, bias=True),
    "3072-bf16": partial(launches, 3072, BF16),
    "1152-bf16-gated": partial(launches, 1152, BF16, gated=True),
    "1152-fp32-gated": partial(launches, 1152, FP32, gated=True),
    "2624-bf16-gated-bias": partial(launches, 2624, BF16, gated=True, bias=True),
}
