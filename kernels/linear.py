"""A linear layer with its activation in the epilogue: x Wᵀ + b, then GELU or GeGLU, in one launch.

One program makes one tile of the output. It walks along K in steps of `BLOCK_K`, multiplies in the tensor
cores, adds in fp32, and, while the sums are still in registers, adds the bias, applies the activation and
writes the tile once: the product before the activation is never in memory. For GeGLU a program keeps two
sums, for the columns n of the first half of W's rows and for the columns F + n of the second, which share
every tile of x.

K is never split between programs, and nothing in the cut depends on T: a row's bits are its own, whatever
stands in the other rows. K is short here (384 to 4,096), so that a program's life is a short main loop and a
long epilogue; two programs on an SM let one write while the other multiplies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fastreward.kernels.activation import erf_gelu
from fastreward.kernels.launch import Launch, Target, run_all, target

GROUP_T: Final = 8
"""Tiles of rows that are taken together. Programs run in the order of their ids, so that those which run at
the same time read 8 tiles of x and a few dozen tiles of W instead of one of x and all of W: what they share
comes from the L2 cache. It has no part in the bits."""


@dataclass(frozen=True)
class LinearConfig:
    """How the work is cut.

    Attributes:
        block_t: Rows of one tile of the output.
        block_n: Columns of one tile of the output.
        block_k: Steps along K.
        num_warps: Warps of one program.
        num_stages: Tiles of x and W that are on their way at once.
    """

    block_t: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int


def default_config(activation: str, target: Target) -> LinearConfig:
    """Choose the tiles; never by T, which must not change a bit.

    128 × 128 outputs cost 128 multiplications for each 2 elements that are read from the L2 cache, and two
    programs with them fit on an SM, so that one writes while the other multiplies. GeGLU's two sums are half
    as wide each.

    That is 64 operations for a byte from L2: at 5.5 TB/s at most 352 TFLOP/s on an H100, so that from 768
    columns on cuBLAS with GELU in a pass of its own may be as fast or faster. To be measured first, for they
    compile for sm_90 without spills: 128 × 256 or 256 × 128 outputs in steps of 64 with 8 warps and 3 stages
    (85 operations a byte, 194 and 191 registers, 144 KiB), and 128 × 128 for GeGLU (185 registers).

    - sm_90 and sm_100: 8 warps, 64 sums a thread, at most 128 registers with all else. A step of 64 is a row
      of 128 bytes, the widest that the tensor cores read in one pass; 3 stages of it are 96 KiB.
    - Before sm_90, and on sm_120, each warp reads its operands itself: 4 warps of 64 × 64 outputs read half
      as much as 8 of 32 × 64. 128 sums a thread take up to 255 registers, and 128 threads leave room for two
      programs; 4 stages of 32 are on their way in 48 KiB.
    - AMD: 64 KiB for a compute unit. Tiles go there through registers, which hold one of the 2 stages.
    """
    block_n = 64 if activation == "geglu" else 128
    if target.backend == "hip":
        return LinearConfig(block_t=128, block_n=block_n, block_k=64, num_warps=8, num_stages=2)
    if target.backend == "cuda" and not 90 <= target.capability < 120:
        return LinearConfig(block_t=128, block_n=block_n, block_k=32, num_warps=4, num_stages=4)
    return LinearConfig(block_t=128, block_n=block_n, block_k=64, num_warps=8, num_stages=3)


@triton.jit
def _tile_of_program(program, num_tiles_t, num_tiles_n, GROUP: tl.constexpr):
    """The tile (row, column) of a program: down GROUP rows of tiles, then on to the next column of tiles."""
    programs_of_group = GROUP * num_tiles_n
    first_t = program // programs_of_group * GROUP
    rows_of_group = tl.minimum(num_tiles_t - first_t, GROUP)
    inside = program % programs_of_group
    return first_t + inside % rows_of_group, inside // rows_of_group


@triton.jit
def _load(ptrs, steps, left, EVEN: tl.constexpr):
    """A tile of which `left` steps along K exist, 0 behind them; without a mask where all do."""
    if EVEN:
        return tl.load(ptrs)
    return tl.load(ptrs, mask=steps < left, other=0.0)


@triton.jit
def _halves(total, BLOCK_T: tl.constexpr, BLOCK_N: tl.constexpr):
    """The left and the right half of [BLOCK_T, BLOCK_N]; in registers, nothing moves."""
    return tl.split(tl.permute(tl.reshape(total, [BLOCK_T, 2, BLOCK_N // 2]), [0, 2, 1]))


@triton.jit
def _biased(total, bias_ptr, columns, N: tl.constexpr, HAS_BIAS: tl.constexpr):
    """Add the bias of these columns to their sums."""
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=columns < N, other=0.0)  # [columns]
        total += bias.to(tl.float32)[None, :]
    return total


@triton.jit
def _write(
    total,  # [BLOCK_T, columns]
    gate,  # [BLOCK_T, columns], for GeGLU
    bias_ptr,  # [N], or for GeGLU [2N]
    out_ptr,  # [T, N]
    rows,
    columns,
    num_tokens,
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):
    """Bias, activation and store for some columns of a tile."""
    total = _biased(total, bias_ptr, columns, N, HAS_BIAS)
    if ACTIVATION != "none":
        total = erf_gelu(total)
    if ACTIVATION == "geglu":
        total *= _biased(gate, bias_ptr + N, columns, N, HAS_BIAS)
    mask = (rows < num_tokens)[:, None] & (columns < N)[None, :]  # [BLOCK_T, columns]
    out_ptrs = out_ptr + rows[:, None] * N + columns[None, :]
    tl.store(out_ptrs, total.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def _linear_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K], or for GeGLU [2N, K]
    bias_ptr,  # [N], or for GeGLU [2N]
    out_ptr,  # [T, N]
    stride_x_t,
    stride_weight_n,
    num_tokens,
    in_features,  # K: as a constant it would have the main loop unrolled, at the cost of registers
    N: tl.constexpr,
    ACTIVATION: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of activation(x Wᵀ + b)."""
    num_tiles_t = tl.cdiv(num_tokens, BLOCK_T)
    num_tiles_n = tl.cdiv(N, BLOCK_N)
    tile_t, tile_n = _tile_of_program(tl.program_id(0), num_tiles_t, num_tiles_n, GROUP)
    rows = tile_t.to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    first = tile_n.to(tl.int64) * BLOCK_N
    steps = tl.arange(0, BLOCK_K)
    # Behind the end the last row is read again, which costs no mask in the main loop; the store has one.
    read_rows = tl.minimum(rows, num_tokens - 1)
    read_columns = tl.minimum(first + tl.arange(0, BLOCK_N), N - 1)
    x_ptrs = x_ptr + read_rows[:, None] * stride_x_t + steps[None, :]
    weight_ptrs = weight_ptr + read_columns[None, :] * stride_weight_n + steps[:, None]
    gate_offset = tl.full([], N, tl.int64) * stride_weight_n
    total = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    gate = tl.zeros([BLOCK_T, BLOCK_N], tl.float32)
    for start in range(0, in_features, BLOCK_K):
        left = in_features - start
        x = _load(x_ptrs, steps[None, :], left, EVEN_K)  # [BLOCK_T, BLOCK_K]
        weight = _load(weight_ptrs, steps[:, None], left, EVEN_K)  # [BLOCK_K, BLOCK_N]
        total = tl.dot(x, weight, total)
        if ACTIVATION == "geglu":
            weight = _load(weight_ptrs + gate_offset, steps[:, None], left, EVEN_K)  # [BLOCK_K, BLOCK_N]
            gate = tl.dot(x, weight, gate)
        x_ptrs += BLOCK_K
        weight_ptrs += BLOCK_K
    # Half a tile at a time: the activation of a whole one takes too many registers for two programs an SM.
    columns = first + tl.arange(0, BLOCK_N // 2)
    total_left, total_right = _halves(total, BLOCK_T, BLOCK_N)
    gate_left, gate_right = _halves(gate, BLOCK_T, BLOCK_N)
    _write(total_left, gate_left, bias_ptr, out_ptr, rows, columns, num_tokens, N, ACTIVATION, HAS_BIAS)
    columns += BLOCK_N // 2
    _write(total_right, gate_right, bias_ptr, out_ptr, rows, columns, num_tokens, N, ACTIVATION, HAS_BIAS)


def plan_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    out: torch.Tensor,
    *,
    activation: str,
) -> tuple[Launch, ...]:
    """Write down the launch that fills `out` [T, N] with activation(x Wᵀ + b).

    The arguments are those of `fastreward.ops.linear`, already checked; `activation` is "none", "gelu" or
    "geglu".
    """
    num_tokens, in_features = x.shape
    out_features = out.shape[1]
    config = default_config(activation, target())
    arguments: dict[str, Any] = {
        "x_ptr": x,
        "weight_ptr": weight,
        "bias_ptr": weight if bias is None else bias,  # nobody reads it, but a pointer needs an address
        "out_ptr": out,
        "stride_x_t": x.stride(0),
        "stride_weight_n": weight.stride(0),
        "num_tokens": num_tokens,
        "in_features": in_features,
        "N": out_features,
        "ACTIVATION": activation,
        "HAS_BIAS": bias is not None,
        "EVEN_K": in_features % config.block_k == 0,
        "GROUP": GROUP_T,
        "BLOCK_T": config.block_t,
        "BLOCK_N": config.block_n,
        "BLOCK_K": config.block_k,
    }
    tiles = triton.cdiv(num_tokens, config.block_t) * triton.cdiv(out_features, config.block_n)
    return (Launch(_linear_kernel, (tiles,), arguments, config.num_warps, config.num_stages),)


def launch_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *, activation: str
) -> torch.Tensor:
    """Allocate the output in x's dtype, launch on the tensors' GPU, and return it."""
    rows = weight.shape[0]
    out = x.new_empty((x.shape[0], rows // 2 if activation == "geglu" else rows))
    with torch.cuda.device_of(x):  # does nothing for tensors on the CPU
        run_all(plan_linear(x, weight, bias, out, activation=activation))
    return out
