"""pooled_cosine against PyTorch: the torch back-end on a CPU, the Triton kernel where there is CUDA.

    python -m pytest benchmarks/bench_pooled_cosine.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's.
"""

from __future__ import annotations

from functools import partial
from typing import Final

import pytest
import torch

from benchmarks.measure import require_close
from benchmarks.peers import REFERENCE, pooled_cosine_fp64, pooled_cosine_variants
from benchmarks.shapes import D384, D768, EDGE_CASES, SHORT, PackedShape, pooled_cosine_inputs
from benchmarks.workloads import AUTOTUNED, CUDA_GRAPHS, OURS, Case, TimeWorkload, Workload
from fastreward.ops.pooled_cosine import pooled_cosine, pooled_cosine_bytes

ASKED_PERCENT: Final = 85.0
"""Of the bandwidth of a copy within the GPU's memory."""

MAX_ERROR: Final = 1e-5
"""All sums are fp32 whatever the inputs are, and fp64 starts from the same inputs."""

PEER_MAX_ERROR: Final = 2e-2
"""A peer rounds the LayerNorm's output to bf16; beyond this it computes something else."""


def draw(
    shape: PackedShape,
    layer_norm: bool,
    latency: bool,
    device: torch.device,
    dtype: torch.dtype,
    shrunk: bool,
) -> Case:
    """Draw packed hidden states and references; with `layer_norm` a residual and the LayerNorm too."""
    shape = shape.sized(device, shrunk)
    lengths = shape.lengths()
    inputs = pooled_cosine_inputs(
        lengths, shape.hidden_size, dtype=dtype, device=device, layer_norm=layer_norm
    )
    options = CUDA_GRAPHS if latency else AUTOTUNED
    return Case(
        ours=OURS,
        variants=pooled_cosine_variants(inputs, compile_options=options),
        expected=partial(pooled_cosine_fp64, inputs),
        max_error=MAX_ERROR,
        peer_max_error=PEER_MAX_ERROR,
        moved_bytes=pooled_cosine_bytes(
            shape.num_tokens, len(lengths), shape.hidden_size, dtype, layer_norm=layer_norm
        ),
        flops=0,
        own=frozenset({REFERENCE}),
        describe={**shape.describe(), "layer_norm": layer_norm},
    )


def check_edges(device: torch.device) -> None:
    """Hold the op against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for name, (lengths, hidden_size) in EDGE_CASES.items():
        for dtype in dtypes:
            for layer_norm in (False, True):
                inputs = pooled_cosine_inputs(
                    lengths, hidden_size, dtype=dtype, device=device, layer_norm=layer_norm
                )
                what = f"pooled_cosine, {name}, {dtype}, layer_norm={layer_norm}"
                scores = pooled_cosine(**inputs.arguments())
                require_close(what, scores, pooled_cosine_fp64(inputs), max_error=MAX_ERROR)


WORKLOADS: Final = tuple(
    Workload(
        op="pooled_cosine",
        shape=shape.name + ("-ln" if layer_norm else ""),
        bound="memory",
        draw=partial(draw, shape, layer_norm, shape is SHORT),
        latency=shape is SHORT,
        asked_percent=None if shape is SHORT else ASKED_PERCENT,
    )
    for shape in (D384, D768, SHORT)
    for layer_norm in (False, True)
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_pooled_cosine(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
