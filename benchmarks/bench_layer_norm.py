"""layer_norm and embed_layer_norm against PyTorch, eager and compiled.

    python -m pytest benchmarks/bench_layer_norm.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import require_close
from benchmarks.shapes import D384, D768, D1024_64K, Noise, PackedShape
from benchmarks.workloads import AUTOTUNED, COMPILED, EAGER, OURS, Case, TimeWorkload, Workload, compiled
from fastreward.ops.layer_norm import (
    LayerNorm,
    embed_layer_norm,
    embed_layer_norm_bytes,
    layer_norm,
    layer_norm_bytes,
)

# A result in bf16 is rounded by 2⁻⁶ at most where it is under 8, and nearly all are. On a CPU the sum is
# rounded as well, as a peer rounds it everywhere.
MAX_ERROR: Final = {torch.float32: 1e-5, torch.float16: 2.0**-7, torch.bfloat16: 2.0**-4}
RMS_ERROR: Final = {torch.float32: 1e-6, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}

VOCABULARY: Final = 30_522
"""Rows of BERT's table of words; a shrunk one has a hundredth of them."""


def norm_of(noise: Noise, hidden_size: int, dtype: torch.dtype) -> LayerNorm:
    """Draw the parameters of a LayerNorm."""
    weight = 1.0 + noise(hidden_size, scale=0.1)
    return LayerNorm(weight.to(dtype), noise(hidden_size, scale=0.1, dtype=dtype), 1e-12)


def in_fp64(rows: Tensor, norm: LayerNorm) -> Tensor:
    assert norm.bias is not None
    return F.layer_norm(rows, rows.shape[1:], norm.weight.double(), norm.bias.double(), norm.eps)


def eager(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, return_sum: bool) -> tuple[Tensor, ...]:
    total = x + residual
    normed = F.layer_norm(total, weight.shape, weight, bias, 1e-12)
    return (normed, total) if return_sum else (normed,)


def eager_embeddings(
    input_ids: Tensor, position_ids: Tensor, words: Tensor, positions: Tensor, weight: Tensor, bias: Tensor
) -> Tensor:
    x = F.embedding(input_ids, words) + F.embedding(position_ids, positions)
    return F.layer_norm(x, weight.shape, weight, bias, 1e-12)


def draw_rows(
    shape: PackedShape, return_sum: bool, device: torch.device, dtype: torch.dtype, shrunk: bool
) -> Case:
    """Draw rows and a residual; with `return_sum` the sum is asked for too, as pre-norm encoders do."""
    shape = shape.sized(device, shrunk)
    noise = Noise(device)
    x, residual = (noise(shape.num_tokens, shape.hidden_size, dtype=dtype) for _ in range(2))
    norm = norm_of(noise, shape.hidden_size, dtype)
    arguments = (x, residual, norm.weight, norm.bias, return_sum)

    def expected() -> tuple[Tensor, ...]:
        total = x.double() + residual.double()
        return (in_fp64(total, norm), total) if return_sum else (in_fp64(total, norm),)

    return Case(
        ours=OURS,
        variants={
            OURS: partial(layer_norm, x, norm, residual=residual, return_sum=return_sum),
            EAGER: partial(eager, *arguments),
            COMPILED: partial(compiled(eager, AUTOTUNED), *arguments),
        },
        expected=expected,
        max_error=MAX_ERROR[dtype],
        peer_max_error=MAX_ERROR[dtype],
        moved_bytes=layer_norm_bytes(
            shape.num_tokens, shape.hidden_size, dtype, residual=True, return_sum=return_sum
        ),
        flops=0,
        rms_error=RMS_ERROR[dtype],
        describe={**shape.describe(), "return_sum": return_sum},
    )


def draw_embeddings(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw tokens evenly from a vocabulary, in texts whose positions begin at 0."""
    shape = shape.sized(device, shrunk)
    vocabulary = VOCABULARY // 100 if shrunk else VOCABULARY
    noise = Noise(device)
    words = noise(vocabulary, shape.hidden_size, dtype=dtype)
    positions = noise(shape.max_tokens, shape.hidden_size, dtype=dtype)
    norm = norm_of(noise, shape.hidden_size, dtype)
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(vocabulary, (shape.num_tokens,), generator=generator).to(device, torch.int32)
    position_ids = torch.cat([torch.arange(length) for length in shape.lengths()]).to(device, torch.int32)
    tables = (words, positions, norm.weight, norm.bias)
    return Case(
        ours=OURS,
        variants={
            OURS: partial(
                embed_layer_norm, input_ids, words, norm, position_ids=position_ids, positions=positions
            ),
            EAGER: partial(eager_embeddings, input_ids, position_ids, *tables),
            COMPILED: partial(compiled(eager_embeddings, AUTOTUNED), input_ids, position_ids, *tables),
        },
        expected=lambda: in_fp64(words[input_ids].double() + positions[position_ids].double(), norm),
        max_error=MAX_ERROR[dtype],
        peer_max_error=MAX_ERROR[dtype],
        moved_bytes=embed_layer_norm_bytes(
            shape.num_tokens, shape.hidden_size, dtype, input_ids.dtype, positions=True
        ),
        flops=0,
        rms_error=RMS_ERROR[dtype],
        describe={**shape.describe(), "vocabulary": vocabulary},
    )


def check_edges(device: torch.device) -> None:
    """Hold the op against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    sizes = [(0, 384), (1, 384), (257, 384), (1021, 48), (31, 1), (31, 1000), (13, 4096)]
    for num_tokens, hidden_size in sizes:
        for dtype in dtypes:
            noise = Noise(device)
            x, residual = (noise(num_tokens, hidden_size, dtype=dtype) for _ in range(2))
            norm = norm_of(noise, hidden_size, dtype)
            right = in_fp64(x.double() + residual.double(), norm)
            what = f"layer_norm, {num_tokens} × {hidden_size}, {dtype}"
            require_close(what, layer_norm(x, norm, residual=residual), right, max_error=MAX_ERROR[dtype])


WORKLOADS: Final = (
    Workload("layer_norm", "d384", "memory", partial(draw_rows, D384, False)),
    Workload("layer_norm", "d768-sum", "memory", partial(draw_rows, D768, True)),
    Workload("layer_norm", "d1024-64k", "memory", partial(draw_rows, D1024_64K, False)),
    Workload("layer_norm", "d384-embed", "memory", partial(draw_embeddings, D384)),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_layer_norm(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
