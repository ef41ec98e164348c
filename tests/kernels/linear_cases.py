"""What `linear` launches, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.linear import plan_linear

BF16, FP16 = torch.bfloat16, torch.float16


def launches(
    in_features: int,
    out_features: int,
    activation: str,
    dtype: torch.dtype = BF16,
    *,
    bias: bool = True,
) -> tuple[Launch, ...]:
    """What the launcher would launch for a weight [out_features, in_features]."""
    columns = out_features // 2 if activation == "geglu" else out_features
    return plan_linear(
        torch.empty(1000, in_features, dtype=dtype),
        torch.empty(out_features, in_features, dtype=dtype),
        torch.empty(out_features, dtype=dtype) if bias else None,
        torch.empty(1000, columns, dtype=dtype),
        activation=activation,
    )


CASES = {
    "384-1536-gelu": partial(launches, 384, 1536, "gelu"),
    "768-3072-gelu": partial(launches, 768, 3072, "gelu"),
    "768-3072-gelu-fp16": partial(launches, 768, 3072, "gelu", FP16),
    "768-2304-geglu": partial(launches, 768, 2304, "geglu", bias=False),
    "1024-5248-geglu-bias": partial(launches, 1024, 5248, "geglu"),
    "1536-384-none": partial(launches, 1536, 384, "none"),
    "400-1200-gelu": partial(launches, 400, 1200, "gelu"),  # the last step along K, and along N, is short
}

WGMMA = set(CASES)
