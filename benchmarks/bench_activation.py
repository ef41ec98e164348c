"""gelu with a bias and geglu against PyTorch, eager and compiled.

    python -m pytest benchmarks/bench_activation.py --benchmark-only [--quick] [--rounds N]

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
from benchmarks.workloads import AUTOTUNED, COMPILED, EAGER, OURS, Case, TimeWorkload, Workload, compiled
from fastreward.ops.activation import geglu, geglu_bytes, gelu, gelu_bytes

# For normal inputs GELU stays under 8 and its product with another under 32, whose rounding in bf16 is 2⁻⁶
# and 2⁻⁴ at most. A peer rounds before the product too.
MAX_ERROR: Final = {
    False: {torch.float32: 1e-5, torch.float16: 2.0**-8, torch.bfloat16: 2.0**-5},
    True: {torch.float32: 5e-5, torch.float16: 2.0**-6, torch.bfloat16: 2.0**-3},
}
PEERS_SHARE: Final = 2.0


def eager_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


def eager_geglu(x: Tensor) -> Tensor:
    activated, factor = x.chunk(2, dim=-1)
    return F.gelu(activated) * factor


def draw_gelu(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw what BERT's first linear layer gives before its bias: four times as wide as the encoder."""
    shape = shape.sized(device, shrunk)
    num_features = 4 * shape.hidden_size
    noise = Noise(device)
    x, bias = noise(shape.num_tokens, num_features, dtype=dtype), noise(num_features, dtype=dtype)
    return Case(
        ours=OURS,
        variants={
            OURS: partial(gelu, x, bias),
            EAGER: partial(eager_gelu, x, bias),
            COMPILED: partial(compiled(eager_gelu, AUTOTUNED), x, bias),
        },
        expected=lambda: F.gelu(x.double() + bias.double()),
        max_error=MAX_ERROR[False][dtype],
        peer_max_error=PEERS_SHARE * MAX_ERROR[False][dtype],
        moved_bytes=gelu_bytes(shape.num_tokens, num_features, dtype),
        flops=0,
        describe={**shape.describe(), "num_features": num_features},
    )


def draw_geglu(
    shape: PackedShape, num_features: int, device: torch.device, dtype: torch.dtype, shrunk: bool
) -> Case:
    """Draw what ModernBERT's first linear layer gives: both halves, no bias."""
    shape = shape.sized(device, shrunk)
    num_features = 72 if shrunk else num_features
    x = Noise(device)(shape.num_tokens, 2 * num_features, dtype=dtype)
    return Case(
        ours=OURS,
        variants={
            OURS: partial(geglu, x),
            EAGER: partial(eager_geglu, x),
            COMPILED: partial(compiled(eager_geglu, AUTOTUNED), x),
        },
        expected=lambda: eager_geglu(x.double()),
        max_error=MAX_ERROR[True][dtype],
        peer_max_error=PEERS_SHARE * MAX_ERROR[True][dtype],
        moved_bytes=geglu_bytes(shape.num_tokens, num_features, dtype),
        flops=0,
        describe={**shape.describe(), "num_features": num_features},
    )


def check_edges(device: torch.device) -> None:
    """Hold the ops against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for num_tokens, num_features in [(0, 1536), (1, 1536), (257, 1536), (1021, 2), (31, 1000), (13, 2624)]:
        for dtype in dtypes:
            noise = Noise(device)
            x, bias = noise(num_tokens, num_features, dtype=dtype), noise(num_features, dtype=dtype)
            z = x.double() + bias.double()
            what = f"{num_tokens} × {num_features}, {dtype}"
            require_close(f"gelu, {what}", gelu(x, bias), F.gelu(z), max_error=MAX_ERROR[False][dtype])
            right = eager_geglu(z)
            require_close(f"geglu, {what}", geglu(x, bias), right, max_error=MAX_ERROR[True][dtype])


WORKLOADS: Final = (
    Workload("activation", "d384-gelu", "memory", partial(draw_gelu, D384)),
    Workload("activation", "d768-geglu-64k", "memory", partial(draw_geglu, D768_64K, 1152)),
    Workload("activation", "d1024-geglu-64k", "memory", partial(draw_geglu, D1024_64K, 2624)),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_activation(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
