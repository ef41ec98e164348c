"""A linear layer with GELU or GeGLU behind it against PyTorch, eager and compiled.

    python -m pytest benchmarks/bench_linear.py --benchmark-only [--quick] [--rounds N]

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
from benchmarks.shapes import D384, D768_64K, D1024_64K, Noise, PackedShape
from benchmarks.workloads import (
    COMPILED,
    EAGER,
    NOT_AUTOTUNED,
    OURS,
    Case,
    TimeWorkload,
    Variant,
    Workload,
    compiled,
)
from fastreward.ops.linear import Linear, linear_bytes, linear_flops

SEPARATE: Final = "separate"
"""Our activation behind the library's product: what the epilogue has to beat."""

TANH_EPILOGUE: Final = "tanh epilogue"
"""cuBLASLt's own epilogue, which is the tanh approximation: another function, as fast as a vendor has it."""

# Products of normal numbers are normal: GELU stays under 8 and its product with another under 32, whose
# rounding in bf16 is 2⁻⁶ and 2⁻⁴ at most. A peer rounds the product too, or has another GELU.
MAX_ERROR: Final = {
    "gelu": {torch.float32: 2e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5},
    "geglu": {torch.float32: 1e-4, torch.float16: 2.0**-6, torch.bfloat16: 2.0**-3},
}
PEERS_SHARE: Final = 2.0


def eager_gelu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


def eager_geglu(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    activated, factor = F.linear(x, weight, bias).chunk(2, dim=-1)
    return F.gelu(activated) * factor


EAGER_FUNCTION: Final = {"gelu": eager_gelu, "geglu": eager_geglu}


def drawn(
    tokens: int, width: int, rows: int, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw x [T, width], W [rows, width] and b [rows]."""
    noise = Noise(device)
    x, bias = noise(tokens, width, dtype=dtype), noise(rows, dtype=dtype)
    return x, noise(rows, width, scale=width**-0.5, dtype=dtype), bias


def draw(
    shape: PackedShape,
    features: int,
    activation: str,
    device: torch.device,
    dtype: torch.dtype,
    shrunk: bool,
) -> Case:
    """Draw a feed-forward block's first layer: with GELU and a bias as in BERT, or gated and without one."""
    shape = shape.sized(device, shrunk)
    features = 72 if shrunk else features
    rows = 2 * features if activation == "geglu" else features
    x, weight, drawn_bias = drawn(shape.num_tokens, shape.hidden_size, rows, device, dtype)
    bias = drawn_bias if activation == "gelu" else None
    eager = EAGER_FUNCTION[activation]
    variants: dict[str, Variant] = {
        OURS: partial(getattr(Linear(weight, bias), activation), x),
        SEPARATE: partial(getattr(Linear(weight, bias, backend="torch"), activation), x),
        EAGER: partial(eager, x, weight, bias),
        COMPILED: partial(compiled(eager, NOT_AUTOTUNED), x, weight, bias),
    }
    if activation == "gelu" and device.type == "cuda":
        variants[TANH_EPILOGUE] = partial(torch._addmm_activation, bias, x, weight.t(), use_gelu=True)
    return Case(
        ours=OURS,
        variants=variants,
        expected=lambda: eager(x.double(), weight.double(), None if bias is None else bias.double()),
        max_error=MAX_ERROR[activation][dtype],
        peer_max_error=PEERS_SHARE * MAX_ERROR[activation][dtype],
        moved_bytes=linear_bytes(
            shape.num_tokens, shape.hidden_size, rows, dtype, activation="geglu" if bias is None else "gelu"
        ),
        flops=linear_flops(shape.num_tokens, shape.hidden_size, rows),
        describe={**shape.describe(), "features": features, "activation": activation},
    )


def check_edges(device: torch.device) -> None:
    """Hold the layer against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for tokens, width, features in [(0, 64, 32), (1, 384, 16), (129, 400, 144), (2053, 48, 272), (5, 37, 7)]:
        for dtype in dtypes:
            for activation, eager in EAGER_FUNCTION.items():
                rows = 2 * features if activation == "geglu" else features
                x, weight, bias = drawn(tokens, width, rows, device, dtype)
                got = getattr(Linear(weight, bias), activation)(x)
                right = eager(x.double(), weight.double(), bias.double())
                what = f"linear, {activation}, {tokens} × {width} × {rows}, {dtype}"
                require_close(what, got, right, max_error=PEERS_SHARE * MAX_ERROR[activation][dtype])


WORKLOADS: Final = (
    Workload("linear", "d384-gelu", "compute", partial(draw, D384, 1536, "gelu")),
    Workload("linear", "d768-gelu-64k", "compute", partial(draw, D768_64K, 3072, "gelu")),
    Workload("linear", "d1024-gelu-64k", "compute", partial(draw, D1024_64K, 4096, "gelu")),
    Workload("linear", "d768-geglu-64k", "compute", partial(draw, D768_64K, 1152, "geglu")),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_linear(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
