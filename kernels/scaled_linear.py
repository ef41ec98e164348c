"""Rounding the rows of a matrix to e4m3, each with a scale of its own, in one read.

One program holds whole rows in registers: it reads them once, applies GELU if asked, finds each row's largest
magnitude, and writes 8 bits for each element and the scale. With GELU the widest activation of an encoder
goes from the first product to the second in one read of 16 bits and one write of 8.

The product itself is `torch._scaled_mm`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from fastreward.kernels.activation import erf_gelu
from fastreward.kernels.launch import Launch, run_all, target


@dataclass(frozen=True)
class QuantizeRowsConfig:
    """How the work is cut.

    Attributes:
        block_t: Rows of one program.
        block_k: Columns of one program: K rounded up to a power of two.
        num_warps: Warps of one program.
    """

    block_t: int
    block_k: int
    num_warps: int


def default_config(in_features: int) -> QuantizeRowsConfig:
    """Choose the tile for a width; never by the number of rows.

    4,096 elements on 8 warps are two loads of 16 bytes a thread: 8 KiB of bf16 in flight in a program, and
    with four of them on an SM twice the 15 KiB that cover an H100's memory latency. The widest rows fill a
    program alone; narrow ones stop at 64 a program, where an SM's programs are many as it is.
    """
    block_k = max(16, triton.next_power_of_2(in_features))
    return QuantizeRowsConfig(block_t=min(64, max(1, 4096 // block_k)), block_k=block_k, num_warps=8)


@triton.jit
def _nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit(do_not_specialize=["num_tokens"])
def _quantize_rows_kernel(
    x_ptr,  # [T, K]
    rows_ptr,  # [T, K]
    scale_ptr,  # [T]
    stride_x_t,
    num_tokens,
    K: tl.constexpr,
    GELU: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Scale and round BLOCK_T rows."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, BLOCK_K)
    exists = rows < num_tokens
    mask = exists[:, None] & (columns < K)[None, :]  # [BLOCK_T, BLOCK_K]
    x_ptrs = x_ptr + rows[:, None] * stride_x_t + columns[None, :]
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_K]
    if GELU:
        x = erf_gelu(x)  # of 0 is 0
    largest = tl.reduce(tl.abs(x), 1, _nan_max)  # [BLOCK_T]
    # 448 is the largest e4m3; the scale is a normal number, so that its reciprocal is finite.
    scale = _nan_max(largest * (1.0 / 448.0), 1.1754943508222875e-38)
    x *= tl.div_rn(1.0, scale)[:, None]
    tl.store(rows_ptr + rows[:, None] * K + columns[None, :], x.to(rows_ptr.dtype.element_ty), mask=mask)
    tl.store(scale_ptr + rows, scale, mask=exists)


def plan_quantize_rows(
    x: torch.Tensor, rows: torch.Tensor, scale: torch.Tensor, *, gelu: bool
) -> tuple[Launch, ...]:
    """Write down the launch that fills `rows` [T, K] and `scale` [T].

    The arguments are those of `fastreward.ops.scaled_linear`, already checked. `rows` is float8_e4m3fn; in
    fp32 it takes what would be rounded.
    """
    num_tokens, in_features = x.shape
    config = default_config(in_features)
    arguments: dict[str, Any] = {
        "x_ptr": x,
        "rows_ptr": rows,
        "scale_ptr": scale,
        "stride_x_t": x.stride(0),
        "num_tokens": num_tokens,
        "K": in_features,
        "GELU": gelu,
        "BLOCK_T": config.block_t,
        "BLOCK_K": config.block_k,
    }
    grid = (triton.cdiv(num_tokens, config.block_t),)
    return (Launch(_quantize_rows_kernel, grid, arguments, config.num_warps, 1),)


def launch_quantize_rows(x: torch.Tensor, *, gelu: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Allocate rows [T, K] and scales [T], launch on x's GPU, and return them."""
    # Triton's interpreter rounds to 8 bits wrongly: there PyTorch does it.
    dtype = torch.float32 if target().backend == "interpreter" else torch.float8_e4m3fn
    rows = torch.empty(x.shape, dtype=dtype, device=x.device)
    # Some builds of PyTorch multiply by CUTLASS, which reads scales up to the next multiple of 256.
    padded = -(-x.shape[0] // 256) * 256
    scale = torch.empty(padded, dtype=torch.float32, device=x.device)[: x.shape[0]]
    with torch.cuda.device_of(x):  # does nothing for tensors on the CPU
        run_all(plan_quantize_rows(x, rows, scale, gelu=gelu))
    return rows.to(torch.float8_e4m3fn), scale
