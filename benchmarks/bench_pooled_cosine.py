"""pooled_cosine against PyTorch: the torch back-end on a CPU, the Triton kernel where there is CUDA.

    python -m pytest benchmarks/bench_pooled_cosine.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch
from rich.markup import escape
from rich.table import Table

from benchmarks.measure import (
    ColdCache,
    Copy,
    Prepare,
    Ratio,
    Run,
    Timing,
    WallClock,
    device_name,
)
from benchmarks.peers import OURS, checked_variants
from benchmarks.shapes import (
    POOLED_COSINE_CPU,
    POOLED_COSINE_GPU,
    SHORT,
    PackedShape,
    pooled_cosine_inputs,
    shrunk,
)
from fastreward.ops.pooled_cosine import pooled_cosine_bytes

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
SHAPES = (*POOLED_COSINE_GPU, SHORT) if ON_GPU else POOLED_COSINE_CPU
DTYPES = (torch.bfloat16,) if ON_GPU else (torch.float32, torch.bfloat16)
COMPILE_OPTIONS = {"mode": "max-autotune-no-cudagraphs"} if ON_GPU else None


@pytest.fixture(scope="module")
def table(show: Callable[[Table], None]) -> Table:
    table = Table(title=f"pooled_cosine, {device_name(DEVICE)}, p50 (p20 – p80) of rounds in turns")
    for name in ("shape", "variant"):
        table.add_column(name)
    for name in ("µs", "GB/s", "of copy", "× ours", "(p20 – p80)"):
        table.add_column(name, justify="right")
    show(table)
    return table


@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer_norm"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_pooled_cosine(
    shape: PackedShape,
    dtype: torch.dtype,
    layer_norm: bool,
    interleave: Callable[..., dict[str, Timing]],
    benchmark: Any,
    table: Table,
    rounds: int,
    quick: bool,
) -> None:
    shape = shrunk(shape) if quick else shape
    lengths = shape.lengths()
    inputs = pooled_cosine_inputs(
        lengths, shape.hidden_size, dtype=dtype, device=DEVICE, layer_norm=layer_norm
    )
    # On a CPU the scorer's batches stay in the cache, and so does a copy that is as large.
    copy = Copy.of(2**30 if ON_GPU and not quick else inputs.hidden_states.nbytes, DEVICE)
    usable, failed = checked_variants(inputs, compile_options=COMPILE_OPTIONS)
    benchmark.extra_info["failed"] = failed
    runs: dict[str, Run] = {**usable, "copy": copy}
    timings = interleave(from_a_cold_cache(runs), WallClock(DEVICE), 4 * rounds)

    moved = pooled_cosine_bytes(
        shape.num_tokens, len(lengths), shape.hidden_size, dtype, layer_norm=layer_norm
    )
    sizes = {name: copy.moved_bytes if name == "copy" else moved for name in timings}
    ceiling = copy.moved_bytes / timings["copy"].p50
    label = f"{shape.name} {str(dtype).removeprefix('torch.')}{' + LayerNorm' if layer_norm else ''}"
    for name, why in failed.items():
        table.add_row(label, name, escape(why))
    for name, timing in timings.items():
        rate = sizes[name] / timing.p50
        ratio = Ratio(slow=timing, fast=timings[OURS])
        micro = f"{timing.p50 * 1e6:,.0f} ({timing.p20 * 1e6:,.0f} – {timing.p80 * 1e6:,.0f})"
        spread = f"{ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f}"
        percent = f"{100 * rate / ceiling:.0f} %"
        table.add_row(label, name, micro, f"{rate / 1e9:,.1f}", percent, f"{ratio.of_medians:.2f}", spread)
        benchmark.extra_info[name] = {**timing.as_json(), "gb_per_s": rate / 1e9, "vs_ours": ratio.as_json()}
    table.add_section()


def from_a_cold_cache(runs: Mapping[str, Run]) -> dict[str, Prepare]:
    """Empty the GPU's cache before every run."""
    flush = ColdCache(DEVICE)

    def flushed(run: Run) -> Run:
        flush()
        return run

    return {name: partial(flushed, run) for name, run in runs.items()}
