"""The fused blocks of 384-wide encoders against the ops that the encoder uses in their place, and PyTorch.

    python -m pytest benchmarks/bench_mlp.py --benchmark-only [--quick] [--rounds N]

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
from benchmarks.shapes import D384, Noise, PackedShape
from benchmarks.workloads import COMPILED, EAGER, NOT_AUTOTUNED, OURS, Case, TimeWorkload, Workload, compiled
from fastreward.ops.layer_norm import LayerNorm, layer_norm
from fastreward.ops.linear import Linear
from fastreward.ops.mlp import (
    fused_mlp,
    fused_mlp_bytes,
    fused_mlp_flops,
    project_layer_norm,
    project_layer_norm_bytes,
    project_layer_norm_flops,
)

SEPARATE: Final = "separate"
"""`Linear.gelu`, `Linear` and `layer_norm`: the encoder's own way, which the fused block has to beat."""

# A norm's result stays under 8, whose rounding in bf16 is 2⁻⁶ at most; a peer rounds what comes in as well.
MAX_ERROR: Final = {torch.float32: 2e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5}
PEERS_SHARE: Final = 4.0

WIDTH: Final = 384


class Block:
    """Random weights of a layer and input for either op."""

    def __init__(self, tokens: int, features: int, device: torch.device, dtype: torch.dtype) -> None:
        noise = Noise(device)
        self.x = noise(tokens, WIDTH, dtype=dtype)
        self.attended = noise(tokens, WIDTH, dtype=dtype)
        self.up = noise(features, WIDTH, scale=WIDTH**-0.5, dtype=dtype)
        self.up_bias = noise(features, dtype=dtype)
        self.down = noise(WIDTH, features, scale=features**-0.5, dtype=dtype)
        self.output = noise(WIDTH, WIDTH, scale=WIDTH**-0.5, dtype=dtype)
        self.bias = noise(WIDTH, dtype=dtype)
        weight = 1.0 + noise(WIDTH, scale=0.1)
        self.norm = LayerNorm(weight.to(dtype), noise(WIDTH, scale=0.1, dtype=dtype), 1e-12)

    def mlp_arguments(self) -> tuple[Tensor, ...]:
        return self.x, self.up, self.up_bias, self.down, self.bias

    def projection_arguments(self) -> tuple[Tensor, ...]:
        return self.attended, self.output, self.bias, self.x

    def norm_arguments(self) -> tuple[Tensor, Tensor]:
        assert self.norm.bias is not None
        return self.norm.weight, self.norm.bias


def eager_mlp(
    x: Tensor,
    up: Tensor,
    up_bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
) -> Tensor:
    inner = F.gelu(F.linear(x, up, up_bias))
    return F.layer_norm(x + F.linear(inner, down, down_bias), (WIDTH,), norm_weight, norm_bias, 1e-12)


def eager_projection(
    attended: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm_weight: Tensor, norm_bias: Tensor
) -> Tensor:
    total = residual + F.linear(attended, weight, bias)
    return F.layer_norm(total, (WIDTH,), norm_weight, norm_bias, 1e-12)


def in_fp64(function: str, block: Block) -> Tensor:
    eager, tensors = {
        "mlp": (eager_mlp, block.mlp_arguments()),
        "projection": (eager_projection, block.projection_arguments()),
    }[function]
    return eager(*(tensor.double() for tensor in (*tensors, *block.norm_arguments())))


def separate_mlp(block: Block, up: Linear, down: Linear) -> Tensor:
    return layer_norm(down(up.gelu(block.x)), block.norm, residual=block.x)


def separate_projection(block: Block, output: Linear) -> Tensor:
    return layer_norm(output(block.attended), block.norm, residual=block.x)


def draw_mlp(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw a feed-forward block, 384 wide even where the rest is tiny: the kernel has no other width."""
    shape = shape.sized(device, shrunk)
    features = 64 if shrunk else 4 * WIDTH
    block = Block(shape.num_tokens, features, device, dtype)
    up, down = Linear(block.up, block.up_bias), Linear(block.down, block.bias)
    arguments = (*block.mlp_arguments(), *block.norm_arguments())
    return Case(
        ours=OURS,
        variants={
            OURS: partial(fused_mlp, *block.mlp_arguments(), block.norm),
            SEPARATE: partial(separate_mlp, block, up, down),
            EAGER: partial(eager_mlp, *arguments),
            COMPILED: partial(compiled(eager_mlp, NOT_AUTOTUNED), *arguments),
        },
        expected=partial(in_fp64, "mlp", block),
        max_error=MAX_ERROR[dtype],
        peer_max_error=PEERS_SHARE * MAX_ERROR[dtype],
        moved_bytes=fused_mlp_bytes(shape.num_tokens, WIDTH, features, dtype),
        flops=fused_mlp_flops(shape.num_tokens, WIDTH, features),
        describe={**shape.describe(), "features": features},
    )


def draw_projection(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw the attention's output, 384 wide too."""
    shape = shape.sized(device, shrunk)
    block = Block(shape.num_tokens, 64, device, dtype)
    output = Linear(block.output, block.bias)
    arguments = (*block.projection_arguments(), *block.norm_arguments())
    return Case(
        ours=OURS,
        variants={
            OURS: partial(project_layer_norm, *block.projection_arguments(), block.norm),
            SEPARATE: partial(separate_projection, block, output),
            EAGER: partial(eager_projection, *arguments),
            COMPILED: partial(compiled(eager_projection, NOT_AUTOTUNED), *arguments),
        },
        expected=partial(in_fp64, "projection", block),
        max_error=MAX_ERROR[dtype],
        peer_max_error=PEERS_SHARE * MAX_ERROR[dtype],
        moved_bytes=project_layer_norm_bytes(shape.num_tokens, WIDTH, WIDTH, dtype),
        flops=project_layer_norm_flops(shape.num_tokens, WIDTH, WIDTH),
        describe=shape.describe(),
    )


def check_edges(device: torch.device) -> None:
    """Hold the ops against fp64 where implementations go wrong first, in the precisions that they have."""
    dtypes = [torch.bfloat16, torch.float16 if device.type == "cuda" else torch.float32]
    for tokens, features in [(0, 32), (1, 1536), (63, 32), (65, 96), (1021, 1536)]:
        for dtype in dtypes:
            block = Block(tokens, features, device, dtype)
            what = f"{tokens} tokens, {features} features, {dtype}"
            got = fused_mlp(*block.mlp_arguments(), block.norm)
            require_close(f"fused_mlp, {what}", got, in_fp64("mlp", block), max_error=MAX_ERROR[dtype])
            got = project_layer_norm(*block.projection_arguments(), block.norm)
            right = in_fp64("projection", block)
            require_close(f"project_layer_norm, {what}", got, right, max_error=MAX_ERROR[dtype])


WORKLOADS: Final = (
    Workload("mlp", "d384-fused", "compute", partial(draw_mlp, D384)),
    Workload("mlp", "d384-project", "memory", partial(draw_projection, D384)),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_mlp(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
