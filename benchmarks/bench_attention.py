"""Packed attention against padded SDPA, eager and compiled, and our back-ends against each other.

    python -m pytest benchmarks/bench_attention.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's. Texts stand
longest first, as in the scorer's batches. The padded peers get their inputs padded and pay for the choice of
the rows that are no padding, without which their result could not be compared.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import require_close
from benchmarks.shapes import D384_64K, D768_64K, SHORT, Noise, PackedShape
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
from fastreward.ops.attention import (
    ATTENTION_BACKENDS,
    attention_bytes,
    attention_flops,
    attention_layout,
    attention_reference,
    first_token_attention,
    packed_attention,
    resolve_attention,
)

# Weights and result are rounded once each, by 2⁻⁸ of themselves in bf16 and 2⁻¹¹ in fp16, and no value is
# over 6; evenly spread, such errors are 2/√3 of that times the values' root mean square, which is 1.
MAX_ERROR: Final = {torch.float32: 1e-5, torch.float16: 12 * 2.0**-11, torch.bfloat16: 12 * 2.0**-8}
RMS_ERROR: Final = {torch.float32: 1e-6, torch.float16: 1.2 * 2.0**-11, torch.bfloat16: 1.2 * 2.0**-8}


def padded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
    """SDPA over [N, H, length, head_dim], and of its result the rows asked for: [R, H · head_dim]."""
    attended = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    return attended.transpose(1, 2).flatten(2).flatten(0, 1)[rows]


def padded_inputs(
    qkv: Tensor, lengths: tuple[int, ...], window: int | None, first_token: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The arguments of `padded`."""
    longest, device = max(lengths), qkv.device
    texts = torch.nn.utils.rnn.pad_sequence(
        qkv.split(lengths), batch_first=True
    )  # [N, length, 3, H, head_dim]
    query, key, value = (part.transpose(1, 2).contiguous() for part in texts.unbind(2))
    positions = torch.arange(longest, device=device)
    real = positions < torch.tensor(lengths, device=device)[:, None]  # [N, length]
    mask = real[:, None, None, :]
    if window is not None:
        mask = mask & ((positions[:, None] - positions).abs() <= window)
    if first_token:
        return query[:, :, :1], key, value, mask[:, :, :1], torch.arange(len(lengths), device=device)
    return query, key, value, mask, real.flatten().nonzero().flatten()


def draw(
    shape: PackedShape,
    head_dim: int,
    window: int | None,
    first_token: bool,
    device: torch.device,
    dtype: torch.dtype,
    shrunk: bool,
) -> Case:
    """Draw queries, keys and values for texts of ragged lengths."""
    shape, head_dim = shape.sized(device, shrunk), 16 if shrunk else head_dim
    lengths = tuple(sorted(shape.lengths(), reverse=True))
    heads = shape.hidden_size // head_dim
    qkv = Noise(device)(shape.num_tokens, 3, heads, head_dim, dtype=dtype)
    cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
    first_rows = cu_seqlens[:-1].long()
    first_queries = qkv[first_rows, 0]

    def ours(backend: str | None) -> Variant:
        """Our op by a back-end, which is looked for when the variant runs for the first time."""
        prepared: list[Callable[[], Tensor]] = []

        def run() -> Tensor:
            if not prepared:
                chosen = resolve_attention(backend, device, dtype, head_dim)
                layout = attention_layout(cu_seqlens, lengths, backend=chosen)
                attend = partial(packed_attention, qkv, layout, window=window)
                if first_token:
                    attend = partial(first_token_attention, first_queries, qkv[:, 1:], layout, window=window)
                prepared.append(attend)
            return prepared[0]()

        return run

    def expected() -> Tensor:
        attended = attention_reference(qkv, lengths, window=window)
        return attended[first_rows] if first_token else attended

    default = resolve_attention(None, device, dtype, head_dim)
    others = {f"{OURS}, {name}": ours(name) for name in ATTENTION_BACKENDS if name != default}
    inputs = padded_inputs(qkv, lengths, window, first_token)
    return Case(
        ours=OURS,
        variants={
            OURS: ours(None),
            **others,
            EAGER: partial(padded, *inputs),
            COMPILED: partial(compiled(padded, NOT_AUTOTUNED), *inputs),
        },
        expected=expected,
        max_error=MAX_ERROR[dtype],
        peer_max_error=MAX_ERROR[dtype],
        moved_bytes=attention_bytes(lengths, heads, head_dim, dtype, first_token=first_token),
        flops=attention_flops(lengths, heads, head_dim, window=window, first_token=first_token),
        own=frozenset(others),
        rms_error=RMS_ERROR[dtype],
        describe={**shape.describe(), "num_heads": heads, "head_dim": head_dim, "window": window},
    )


def check_edges(device: torch.device) -> None:
    """Hold the op against its definition where implementations go wrong first, in every precision."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    sizes = [(1,), (0, 3, 0, 1, 0), (31, 33, 63, 64, 65), (127, 128, 129), (513, 2), (700, 800, 1)]
    for lengths in sizes:
        for dtype in dtypes:
            for head_dim, window in ((32, None), (64, None), (64, 64), (128, 3)):
                qkv = Noise(device)(sum(lengths), 3, 2, head_dim, dtype=dtype)
                cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
                backend = resolve_attention(None, device, dtype, head_dim)
                layout = attention_layout(cu_seqlens, lengths, backend=backend)
                right = attention_reference(qkv, lengths, window=window)
                what = f"attention of {lengths}, {head_dim} wide, window {window}, {dtype}"
                got = packed_attention(qkv, layout, window=window)
                require_close(what, got, right, max_error=MAX_ERROR[dtype])


WORKLOADS: Final = (
    Workload("attention", "h12-d32", "compute", partial(draw, D384_64K, 32, None, False)),
    Workload("attention", "h12-d64", "compute", partial(draw, D768_64K, 64, None, False)),
    Workload("attention", "h12-d64-window", "memory", partial(draw, D768_64K, 64, 64, False)),
    Workload("attention", "h12-d64-first", "memory", partial(draw, D768_64K, 64, None, True)),
    Workload("attention", "short", "compute", partial(draw, SHORT, 32, None, False), latency=True),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_attention(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
