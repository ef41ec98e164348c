"""Bias and GELU, and GeGLU, in one pass over the output of a linear layer.

One program takes a tile of rows and columns: it reads what the tile needs of x once (with GeGLU from both
halves), adds the bias, computes in fp32 and writes the tile once. The bias is read once for all rows of a
tile. Nothing is shared between elements, so that the cut has no part in the result.

`erf_gelu` is also the epilogue of the kernels that multiply.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fastreward.kernels.launch import Launch, run_all


@dataclass(frozen=True)
class ActivationConfig:
    """How the work is cut.

    Attributes:
        block_t: Tokens of one tile.
        block_f: Columns of one tile, a power of two.
        num_warps: Warps of one program.
    """

    block_t: int
    block_f: int
    num_warps: int


def default_config(num_features: int) -> ActivationConfig:
    """Choose the tile for a number F of output columns.

    A tile's width is the largest power of two up to 1,024 that leaves at most an eighth of all lanes without
    a column (1,152 columns of ModernBERT: five times 256), but 128 at least, where a row of the tile is
    256 bytes of bf16 and still moves in whole sectors, and no wider than F rounded up.

    4,096 elements on 8 warps are two loads of 16 bytes a thread in bf16, and one where a warp has 64 lanes
    (with fewer elements a load there would be narrower): 8 KiB in flight in a program, twice that for GeGLU,
    and with four programs on an SM more than twice the 15 KiB that cover an H100's memory latency.
    """
    widest = max(16, min(1024, triton.next_power_of_2(num_features)))
    block_f = widest
    while block_f > 128 and 8 * (triton.cdiv(num_features, block_f) * block_f - num_features) > num_features:
        block_f //= 2
    return ActivationConfig(block_t=min(64, 4096 // block_f), block_f=block_f, num_warps=8)


@triton.jit
def erf_gelu(x):
    """GELU of fp32 values, x/2 · (1 + erf(x/√2)), to fp32's own rounding: within 2.5 · 2⁻²⁴ |x|.

    As max(x, 0) - |x| · ½ erfc(|x|/√2), the last factor as 2 to the power of a polynomial that was fitted to
    its logarithm and is -1 at 0. `tl.erf` takes 32 instructions an element on sm_90 and loses more to
    cancellation; this takes 11, and in the epilogue of a product with a short K that decides.
    """
    a = tl.abs(x)
    p = a * -1.9020662875846028e-06 + 2.8056951123289764e-05
    p = p * a - 0.00013147327990736812
    p = p * a - 0.00027207558741793036
    p = p * a + 0.007245420943945646
    p = p * a - 0.05262761190533638
    p = p * a - 0.4591621458530426
    p = p * a - 1.1511110067367554
    p = p * a - 1.0
    return tl.maximum(x, 0.0) - a * tl.exp2(p)


@triton.jit
def _load_biased(
    x_ptr,  # [T, F] or [T, 2F]
    bias_ptr,  # [F] or [2F]
    rows,
    columns,
    stride_x_t,
    mask,
    inside,
    HAS_BIAS: tl.constexpr,
):
    """A tile of x in fp32 with its bias, 0 outside the mask but for the bias."""
    x_ptrs = x_ptr + rows[:, None] * stride_x_t + columns[None, :]
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_F]
    if HAS_BIAS:
        x += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)[None, :]  # [BLOCK_F]
    return x


@triton.jit(do_not_specialize=["num_tokens"])
def _activation_kernel(
    x_ptr,  # [T, F], or with GATED [T, 2F]
    bias_ptr,  # [F], or with GATED [2F]
    out_ptr,  # [T, F]
    stride_x_t,
    num_tokens,
    F: tl.constexpr,
    GATED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """GELU(x + bias), or with GATED the GELU of the first half times the second."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.program_id(1) * BLOCK_F + tl.arange(0, BLOCK_F)
    inside = columns < F
    mask = (rows < num_tokens)[:, None] & inside[None, :]  # [BLOCK_T, BLOCK_F]
    x = _load_biased(x_ptr, bias_ptr, rows, columns, stride_x_t, mask, inside, HAS_BIAS)
    y = erf_gelu(x)
    if GATED:
        y *= _load_biased(x_ptr, bias_ptr, rows, columns + F, stride_x_t, mask, inside, HAS_BIAS)
    tl.store(out_ptr + rows[:, None] * F + columns[None, :], y, mask=mask)


def plan_activation(
    x: torch.Tensor, bias: torch.Tensor | None, out: torch.Tensor, *, gated: bool
) -> tuple[Launch, ...]:
    """Write down the launch that fills `out` [T, F] with GELU(x + bias), or with `gated` with GeGLU.

    The arguments are those of `fastreward.ops.activation`, already checked.
    """
    num_tokens, num_features = out.shape
    config = default_config(num_features)
    arguments = {
        "x_ptr": x,
        "bias_ptr": x if bias is None else bias,  # nobody reads it, but a pointer needs an address
        "out_ptr": out,
        "stride_x_t": x.stride(0),
        "num_tokens": num_tokens,
        "F": num_features,
        "GATED": gated,
        "HAS_BIAS": bias is not None,
        "BLOCK_T": config.block_t,
        "BLOCK_F": config.block_f,
    }
    grid = (triton.cdiv(num_tokens, config.block_t), triton.cdiv(num_features, config.block_f))
    return (Launch(_activation_kernel, grid, arguments, config.num_warps, 1),)


def launch_activation(x: torch.Tensor, bias: torch.Tensor | None, *, gated: bool) -> torch.Tensor:
    """Allocate the output [T, F] in x's dtype, launch on the tensors' GPU, and return it."""
    out = x.new_empty((x.shape[0], x.shape[1] // 2 if gated else x.shape[1]))
    with torch.cuda.device_of(x):  # does nothing for tensors on the CPU
        run_all(plan_activation(x, bias, out, gated=gated))
    return out
