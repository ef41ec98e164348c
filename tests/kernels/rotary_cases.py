"""What `rotary` launches, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.rotary import plan_rotary


def launches(slots: int, rotated: int, heads: int, head_dim: int, dtype: torch.dtype) -> tuple[Launch, ...]:
    return plan_rotary(
        torch.empty(1000, slots, heads, head_dim, dtype=dtype),
        torch.empty(1000, dtype=torch.int32),
        torch.empty(8192, head_dim),
        rotated=rotated,
    )


BF16, FP32 = torch.bfloat16, torch.float32
# slots, slots that are turned, heads, head dim, dtype
SHAPES = {
    "12x64-bf16": (3, 2, 12, 64, BF16),
    "12x64-bf16-keys": (2, 1, 12, 64, BF16),
    "12x64-fp32": (3, 2, 12, 64, FP32),
    "16x64-bf16": (3, 2, 16, 64, BF16),
    "12x32-bf16": (3, 2, 12, 32, BF16),
    "8x128-bf16": (3, 2, 8, 128, BF16),
    "4x256-fp32": (3, 2, 4, 256, FP32),
}

CASES = {name: partial(launches, *shape) for name, shape in SHAPES.items()}
