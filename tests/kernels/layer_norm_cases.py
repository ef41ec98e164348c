"""What `layer_norm` and `embed_layer_norm` launch, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.layer_norm import plan_layer_norm

TOKENS = 1000
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def of_rows(
    hidden_size: int, dtype: torch.dtype, *, residual: bool = True, bias: bool = True, sums: bool = False
) -> tuple[Launch, ...]:
    """What the launcher would launch for rows and a residual."""
    x = torch.empty(TOKENS, hidden_size, dtype=dtype)
    weight = torch.empty(hidden_size, dtype=dtype)
    return plan_layer_norm(
        x,
        weight,
        weight if bias else None,
        1e-12,
        out=torch.empty_like(x),
        residual=torch.empty_like(x) if residual else None,
        sums=torch.empty_like(x) if sums else None,
    )


def of_tables(
    hidden_size: int, dtype: torch.dtype, *, positions: bool = True, bias: bool = True
) -> tuple[Launch, ...]:
    """What the launcher would launch for tokens and their embedding tables."""
    weight = torch.empty(hidden_size, dtype=dtype)
    ids = torch.empty(TOKENS, dtype=torch.int64)
    return plan_layer_norm(
        torch.empty(30_522, hidden_size, dtype=dtype),
        weight,
        weight if bias else None,
        1e-12,
        out=torch.empty(TOKENS, hidden_size, dtype=dtype),
        residual=torch.empty(512, hidden_size, dtype=dtype) if positions else None,
        input_ids=ids,
        position_ids=ids if positions else None,
    )


CASES = {
    "384-bf16": partial(of_rows, 384, BF16),
    "384-fp16": partial(of_rows, 384, FP16),
    "384-fp32": partial(of_rows, 384, FP32),
    "768-bf16-sum-no-bias": partial(of_rows, 768, BF16, bias=False, sums=True),
    "1024-bf16-no-residual": partial(of_rows, 1024, BF16, residual=False),
    "1024-bf16": partial(of_rows, 1024, BF16),
    "4096-bf16-sum": partial(of_rows, 4096, BF16, sums=True),
    "4096-fp32-sum": partial(of_rows, 4096, FP32, sums=True),
    "384-bf16-embed": partial(of_tables, 384, BF16),
    "768-fp32-embed": partial(of_tables, 768, FP32),
    "768-bf16-embed-words-no-bias": partial(of_tables, 768, BF16, positions=False, bias=False),
}
