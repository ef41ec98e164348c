"""What `scaled_linear` launches, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.scaled_linear import plan_quantize_rows


def launches(in_features: int, dtype: torch.dtype, *, gelu: bool = False) -> tuple[Launch, ...]:
    """What the launcher would launch for a thousand rows."""
    x = torch.empty(1000, in_features, dtype=dtype)
    return plan_quantize_rows(
        x, torch.empty(x.shape, dtype=torch.float8_e4m3fn), torch.empty(1000), gelu=gelu
    )


CASES = {
    "768-bf16": partial(launches, 768, torch.bfloat16),
    "1024-bf16": partial(launches, 1024, torch.bfloat16),
    "2624-bf16": partial(launches, 2624, torch.bfloat16),
    "3072-bf16-gelu": partial(launches, 3072, torch.bfloat16, gelu=True),
    "4096-bf16-gelu": partial(launches, 4096, torch.bfloat16, gelu=True),
    "1024-fp16": partial(launches, 1024, torch.float16),
}

# sm_80 has no e4m3, and gfx942 has another one.
TARGETS = dict.fromkeys(CASES, ("sm_90", "sm_100"))
