"""What the ops of `mlp` launch, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.mlp import plan_fused_mlp, plan_project_layer_norm


def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype)


def fused_mlp_launches(features: int, dtype: torch.dtype = torch.bfloat16) -> tuple[Launch, ...]:
    """What the launcher would launch for an intermediate with these features."""
    tensor = partial(empty, dtype=dtype)
    return plan_fused_mlp(
        tensor(1000, 384),
        tensor(features, 384),
        tensor(features),
        tensor(384, features),
        tensor(384),
        tensor(384),
        tensor(384),
        1e-12,
        tensor(1000, 384),
    )


def project_layer_norm_launches(*, norm_bias: bool = True) -> tuple[Launch, ...]:
    """What the launcher would launch for a thousand rows."""
    return plan_project_layer_norm(
        empty(1000, 384),
        empty(384, 384),
        empty(384),
        empty(1000, 384),
        empty(384),
        empty(384) if norm_bias else None,
        1e-12,
        empty(1000, 384),
    )


CASES = {
    "fused-1536-bf16": partial(fused_mlp_launches, 1536),
    "fused-1536-fp16": partial(fused_mlp_launches, 1536, torch.float16),
    "project-384-bf16": project_layer_norm_launches,
    "project-384-bf16-no-norm-bias": partial(project_layer_norm_launches, norm_bias=False),
}

WGMMA = set(CASES)
