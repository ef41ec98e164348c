"""Rotary position embedding in place against PyTorch, eager and compiled.

    python -m pytest benchmarks/bench_rotary.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest
import torch
from torch import Tensor

from benchmarks.measure import require_close
from benchmarks.shapes import D768, D1024_64K, Noise, PackedShape
from benchmarks.workloads import AUTOTUNED, COMPILED, EAGER, OURS, Case, TimeWorkload, Workload, compiled
from fastreward.ops.rotary import apply_rotary, rotary_bytes, rotary_table

# Normal inputs that are turned stay under 16, whose rounding in bf16 is 2⁻⁵ at most.
MAX_ERROR: Final = {torch.float32: 1e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}

THETA: Final = 160_000.0
"""Base of the wave lengths in ModernBERT's global layers."""


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x1, x2 = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-x2, x1], dim=-1) * sin


def eager(qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """What Hugging Face's models do with cosines and sines [T, hd] in fp32, which cost nothing here."""
    query, key, _ = qkv.unbind(1)
    cos, sin = cos[:, None], sin[:, None]
    return turned(query.float(), cos, sin).to(qkv.dtype), turned(key.float(), cos, sin).to(qkv.dtype)


def ours(qkv: Tensor, position_ids: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    apply_rotary(qkv, position_ids, table, rotated=2)
    return qkv[:, 0], qkv[:, 1]


def in_fp64(qkv: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Queries and keys turned by angles in fp64."""
    head_dim = qkv.shape[-1]
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=qkv.device)
    angles = torch.outer(position_ids.double(), THETA ** (-pairs / head_dim)).repeat(1, 2)[:, None]
    query, key = (turned(x.double(), angles.cos(), angles.sin()) for x in (qkv[:, 0], qkv[:, 1]))
    return query, key


def draw(shape: PackedShape, heads: int, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw queries, keys and values of ragged texts as one buffer."""
    shape = shape.sized(device, shrunk)
    heads = 3 if shrunk else heads
    head_dim = shape.hidden_size // heads
    drawn = Noise(device)(shape.num_tokens, 3, heads, head_dim, dtype=dtype)
    qkv = drawn.clone()
    position_ids = torch.cat([torch.arange(length) for length in shape.lengths()]).to(device, torch.int32)
    table = rotary_table(shape.max_tokens, head_dim, THETA, device)
    cos, sin = (half.repeat(1, 2) for half in table[position_ids].chunk(2, dim=1))

    def put_back() -> None:
        qkv.copy_(drawn)

    return Case(
        ours=OURS,
        variants={
            OURS: partial(ours, qkv, position_ids, table),
            EAGER: partial(eager, qkv, cos, sin),
            COMPILED: partial(compiled(eager, AUTOTUNED), qkv, cos, sin),
        },
        expected=partial(in_fp64, drawn, position_ids),
        max_error=MAX_ERROR[dtype],
        peer_max_error=MAX_ERROR[dtype],
        moved_bytes=rotary_bytes(shape.num_tokens, 2, heads, head_dim, dtype),
        flops=0,
        reset=put_back,
        describe={**shape.describe(), "heads": heads, "head_dim": head_dim},
    )


def check_edges(device: torch.device) -> None:
    """Hold the op against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for num_tokens, heads, head_dim in [(0, 12, 64), (1, 12, 64), (257, 12, 64), (31, 5, 6), (31, 3, 256)]:
        position_ids = torch.arange(num_tokens, dtype=torch.int32, device=device)
        table = rotary_table(300, head_dim, THETA, device)
        for dtype in dtypes:
            qkv = Noise(device)(num_tokens, 3, heads, head_dim, dtype=dtype)
            right = in_fp64(qkv, position_ids)
            what = f"rotary, {num_tokens} × {heads} × {head_dim}, {dtype}"
            for got, wanted in zip(ours(qkv, position_ids, table), right, strict=True):
                require_close(what, got, wanted, max_error=MAX_ERROR[dtype])


WORKLOADS: Final = (
    Workload("rotary", "d768", "memory", partial(draw, D768, 12)),
    Workload("rotary", "d1024-64k", "memory", partial(draw, D1024_64K, 16)),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_rotary(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
