"""What `pooled_cosine` launches, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.pooled_cosine import CHUNK_TOKENS, plan_pooled_cosine


def launches(
    hidden_size: int, dtype: torch.dtype, pooling: str, layer_norm: bool, longest: int
) -> tuple[Launch, ...]:
    """What the launcher would launch for texts that share half as many references."""
    texts, references = 8, 4
    hidden_states = torch.empty(1000, hidden_size, dtype=dtype)
    vector = torch.empty(hidden_size, dtype=dtype)
    return plan_pooled_cosine(
        hidden_states,
        torch.empty(texts + 1, dtype=torch.int32),
        pooling=pooling,
        max_seqlen=longest,
        references=torch.empty(references, hidden_size),
        reference_index=torch.empty(texts, dtype=torch.int64),
        residual=torch.empty_like(hidden_states) if layer_norm else None,
        weight=vector if layer_norm else None,
        bias=vector if layer_norm else None,
        eps=1e-12,
        scores=torch.empty(texts),
        embeddings=None,
    )


BF16, FP32 = torch.bfloat16, torch.float32
SHORT, LONG = CHUNK_TOKENS, CHUNK_TOKENS + 1
# hidden size, dtype, pooling, LayerNorm fused, longest text
SHAPES = {
    "384-bf16": (384, BF16, "mean", False, SHORT),
    "384-bf16-norm": (384, BF16, "mean", True, SHORT),
    "384-bf16-norm-long": (384, BF16, "mean", True, LONG),
    "384-bf16-norm-max": (384, BF16, "max", True, SHORT),
    "384-fp32-norm": (384, FP32, "mean", True, SHORT),
    "768-bf16-norm": (768, BF16, "mean", True, SHORT),
    "768-bf16-norm-cls": (768, BF16, "cls", True, SHORT),
    "1024-bf16-norm": (1024, BF16, "mean", True, SHORT),
    "4096-bf16-long": (4096, BF16, "mean", False, LONG),
}

CASES = {name: partial(launches, *shape) for name, shape in SHAPES.items()}
