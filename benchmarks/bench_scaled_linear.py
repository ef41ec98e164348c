"""8-bit linear layers against the same in bf16, and rounding to 8 bits against PyTorch, eager and compiled.

    python -m pytest benchmarks/bench_scaled_linear.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's. On a CPU, where
there is no 8-bit product, "ours" is the definition, to see that the benchmark runs.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import require_close
from benchmarks.shapes import D768_64K, D1024_64K, Noise, PackedShape
from benchmarks.workloads import (
    AUTOTUNED,
    COMPILED,
    EAGER,
    NOT_AUTOTUNED,
    OURS,
    Case,
    TimeWorkload,
    Workload,
    compiled,
)
from fastreward.ops.activation import gelu
from fastreward.ops.linear import linear_flops
from fastreward.ops.scaled_linear import (
    MIN_IN_FEATURES,
    ScaledLinear,
    quantize_rows,
    quantize_rows_bytes,
    quantize_rows_reference,
    scaled_linear_bytes,
    scaled_product_reference,
)

PRODUCT_ALONE: Final = "product alone"
"""Of operands that are in 8 bits already: what rounding costs is the difference to ours."""

SEPARATE: Final = "separate"
"""GELU and rounding in two passes."""

# A product of normal numbers stays under 8, whose rounding in bf16 is 2⁻⁶ at most; tensor cores keep about
# 14 bits of sums. In 16 bits a product differs from the 8-bit one by 4 % of 1 as root mean square.
MAX_ERROR: Final = 2.0**-5
PEER_MAX_ERROR: Final = 0.4

# Rounded numbers go up to 448, where half a step is 16, and scales are about 1/100; GELU of normal numbers
# makes most of them small: the root mean square of their errors is 1 in wide rows and 3 in narrow ones.
MAX_ROUNDING: Final = 16.01
RMS_ROUNDING: Final = 4.0


def backend_of(device: torch.device) -> str | None:
    """On a GPU what is meant, which says why where it cannot run; on a CPU the definition."""
    return "torch" if device.type == "cpu" else None


def draw_product(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw a feed-forward block's first layer; even a tiny one is as wide as 8-bit products must be."""
    shape = shape.sized(device, shrunk)
    width = MIN_IN_FEATURES if shrunk else shape.hidden_size
    features = 64 if shrunk else 4 * width
    noise = Noise(device)
    x, bias = noise(shape.num_tokens, width, dtype=dtype), noise(features, dtype=dtype)
    weight = noise(features, width, scale=width**-0.5, dtype=dtype)
    layer = ScaledLinear(weight, bias, backend=backend_of(device))
    rows, scale = quantize_rows_reference(x)
    operands = (rows, scale, *quantize_rows_reference(weight))
    return Case(
        ours=OURS,
        variants={
            OURS: partial(layer, x),
            PRODUCT_ALONE: partial(layer.product, rows, scale),
            EAGER: partial(F.linear, x, weight, bias),
            COMPILED: partial(compiled(F.linear, NOT_AUTOTUNED), x, weight, bias),
        },
        expected=partial(scaled_product_reference, *operands, bias, torch.float32),
        max_error=MAX_ERROR,
        peer_max_error=PEER_MAX_ERROR,
        moved_bytes=scaled_linear_bytes(shape.num_tokens, width, features, dtype),
        flops=linear_flops(shape.num_tokens, width, features),
        own=frozenset({PRODUCT_ALONE}),
        describe={**shape.describe(), "features": features},
    )


def eager_rounding(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows_reference(x, gelu=True)


def separate(x: Tensor) -> tuple[Tensor, Tensor]:
    return quantize_rows(gelu(x))


def draw_rounding(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw what a feed-forward block's first layer gives, to be rounded behind GELU."""
    shape = shape.sized(device, shrunk)
    features = 4 * shape.hidden_size
    x = Noise(device)(shape.num_tokens, features, dtype=dtype)

    def expected() -> tuple[Tensor, Tensor]:
        exact = F.gelu(x.double())
        scale = exact.abs().amax(dim=1) / 448.0
        return exact / scale[:, None], scale

    return Case(
        ours=OURS,
        variants={
            OURS: partial(quantize_rows, x, gelu=True),
            SEPARATE: partial(separate, x),
            EAGER: partial(eager_rounding, x),
            COMPILED: partial(compiled(eager_rounding, AUTOTUNED), x),
        },
        expected=expected,
        max_error=MAX_ROUNDING,
        peer_max_error=2 * MAX_ROUNDING,
        moved_bytes=quantize_rows_bytes(shape.num_tokens, features, dtype),
        flops=0,
        rms_error=RMS_ROUNDING,
        describe={**shape.describe(), "features": features},
    )


def check_edges(device: torch.device) -> None:
    """Hold the layer against its definition at the sizes where implementations go wrong first."""
    for tokens, width, features in [(0, 768, 32), (1, 768, 16), (257, 1024, 48), (1021, 784, 3072)]:
        noise = Noise(device)
        x, bias = noise(tokens, width, dtype=torch.bfloat16), noise(features, dtype=torch.bfloat16)
        weight = noise(features, width, scale=width**-0.5, dtype=torch.bfloat16)
        layer = ScaledLinear(weight, bias, backend=backend_of(device))
        right = ScaledLinear(weight, bias, backend="torch")
        what = f"scaled_linear, {tokens} × {width} × {features}"
        require_close(what, layer(x), right(x), max_error=2 * MAX_ERROR)
        require_close(f"{what}, of_gelu", layer.of_gelu(x), right.of_gelu(x), max_error=2 * MAX_ERROR)


WORKLOADS: Final = (
    Workload("scaled_linear", "d768-64k", "compute", partial(draw_product, D768_64K)),
    Workload("scaled_linear", "d1024-64k", "compute", partial(draw_product, D1024_64K)),
    Workload("scaled_linear", "d768-rounding-64k", "memory", partial(draw_rounding, D768_64K)),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_scaled_linear(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
