"""The feed-forward block of a 384-wide encoder in one launch, and its attention output in another.

Both end in a residual and a LayerNorm, so that a program holds whole rows of sums, 64 rows at a time: 96
registers a thread. Tiles are powers of two, and 384 is none: a row is a wide part of 256 columns and a rest
of 128, each with its own sums, products and loads.

`_fused_mlp_kernel` walks along the intermediate in steps of 32 features: it makes 32 columns of it, applies
GELU, rounds them to 16 bits, and multiplies them into the rows' sums at once. The intermediate, four times as
wide as the rows, is never in memory. The price: every 64 rows read both weights from the L2 cache, 36 KiB a
token in place of 6 KiB of memory traffic for the intermediate. 128 rows would halve it, but do not fit in
the registers. Computed for an H100 (5.5 TB/s from L2, 3.35 TB/s from memory) that is 6.7 ns a token in place
of 1.8 ns. The multiplications, 2.4 ns at their peak, take about 7 ns: on sm_90 the first product's layout is
warpsPerCTA = [8, 1] on 64 rows, so that both warpgroups compute the same 64, in instructions of 16 columns
that read the rows from shared memory again each time. It is expected to lose there, and it is not a default.
`_project_layer_norm_kernel` has no intermediate, and spares one pass over the rows.

Sums begin as residual + bias, which then need no registers of their own at the end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fastreward.kernels.activation import erf_gelu
from fastreward.kernels.launch import Launch, Target, run_all, target

WIDE: Final = 256
REST: Final = 128
"""The two parts of a row of D = 384 columns."""

SMALL_SHARED_MEMORY: Final = (86, 89, 120, 121)
"""Compute capabilities (times ten) that give a program 99 KiB instead of 163 KiB and more."""


@dataclass(frozen=True)
class MlpConfig:
    """How the work is cut.

    Attributes:
        block_t: Rows of one program.
        block_inner: Steps along what is summed over: features of the intermediate, or columns of the input.
        num_warps: Warps of one program.
        num_stages: Tiles of the weights that are on their way at once.
    """

    block_t: int
    block_inner: int
    num_warps: int
    num_stages: int


def default_config(inner_size: int, target: Target, *, fused_mlp: bool) -> MlpConfig:
    """Choose the tiles; never by T, which must not change a bit.

    64 rows are what the tensor cores of sm_90 take at least, and at 8 warps all that the registers hold. In
    shared memory `fused_mlp` keeps its rows, 48 KiB, and for each stage 32 features of both weights, another
    48 KiB: 3 stages fit from sm_80 on. The other kernel keeps 64 columns of its weight for each stage, 48 KiB
    too, whose 128 bytes a row are the widest that tensor cores read in one pass. Where a program gets 99 KiB,
    `fused_mlp` makes do with 32 rows and 2 stages, the other with 32 columns. An AMD compute unit has 64 KiB:
    the rows stay in registers, and steps are 32 in two stages, or with GELU between, which needs registers of
    its own, 16 in one.
    """
    if target.backend == "hip":
        block_inner, num_stages = (16, 1) if fused_mlp else (32, 2)
        return MlpConfig(block_t=64, block_inner=block_inner, num_warps=8, num_stages=num_stages)
    small = target.backend == "cuda" and target.capability in SMALL_SHARED_MEMORY
    if small and fused_mlp:
        return MlpConfig(block_t=32, block_inner=32, num_warps=4, num_stages=2)
    block_inner = 32 if small or fused_mlp or inner_size % 64 else 64
    return MlpConfig(block_t=64, block_inner=block_inner, num_warps=8, num_stages=3)


@triton.jit
def _vector(vector_ptr, columns):
    """Some elements of a bias or of LayerNorm's weight, for all rows."""
    return tl.load(vector_ptr + columns).to(tl.float32)[None, :]  # [1, columns]


@triton.jit
def _normalise_and_store(
    wide,  # [BLOCK_T, WIDE]
    rest,  # [BLOCK_T, REST]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    out_ptr,  # [T, D]
    rows,
    num_tokens,
    eps,
    HAS_NORM_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
):
    """LayerNorm of rows in two parts, written once."""
    D: tl.constexpr = WIDE + REST
    columns = tl.arange(0, WIDE)
    others = WIDE + tl.arange(0, REST)
    # Truly divided: times a rounded 1 / D, the mean of a constant row would not be its constant.
    mean = tl.div_rn(tl.sum(wide, axis=1) + tl.sum(rest, axis=1), D * 1.0)  # [BLOCK_T]
    wide -= mean[:, None]
    rest -= mean[:, None]
    variance = (tl.sum(wide * wide, axis=1) + tl.sum(rest * rest, axis=1)) / D  # [BLOCK_T]
    factor = tl.rsqrt(variance + eps)[:, None]
    wide *= factor * _vector(norm_weight_ptr, columns)
    rest *= factor * _vector(norm_weight_ptr, others)
    if HAS_NORM_BIAS:
        wide += _vector(norm_bias_ptr, columns)
        rest += _vector(norm_bias_ptr, others)
    mask = (rows < num_tokens)[:, None]
    out_ptrs = out_ptr + rows[:, None] * D
    tl.store(out_ptrs + columns[None, :], wide.to(out_ptr.dtype.element_ty), mask=mask)
    tl.store(out_ptrs + others[None, :], rest.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_tokens"])
def _fused_mlp_kernel(
    x_ptr,  # [T, D]
    up_weight_ptr,  # [F, D]
    up_bias_ptr,  # [F]
    down_weight_ptr,  # [D, F]
    down_bias_ptr,  # [D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    out_ptr,  # [T, D]
    stride_x_t,
    num_tokens,
    eps,
    F: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """LayerNorm(x + W₂ GELU(W₁ x + b₁) + b₂) of BLOCK_T rows; the weights are contiguous."""
    D: tl.constexpr = WIDE + REST
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, WIDE)
    others = WIDE + tl.arange(0, REST)
    features = tl.arange(0, BLOCK_F)
    # Behind the end the last row is read again; nothing of it is stored.
    x_ptrs = x_ptr + tl.minimum(rows, num_tokens - 1)[:, None] * stride_x_t
    x_wide = tl.load(x_ptrs + columns[None, :])  # [BLOCK_T, WIDE]
    x_rest = tl.load(x_ptrs + others[None, :])  # [BLOCK_T, REST]
    wide = x_wide.to(tl.float32) + _vector(down_bias_ptr, columns)
    rest = x_rest.to(tl.float32) + _vector(down_bias_ptr, others)
    for first in range(0, F, BLOCK_F):
        up_ptrs = up_weight_ptr + (first + features)[None, :] * D  # both weights have less than 2³¹ elements
        inner = tl.dot(x_wide, tl.load(up_ptrs + columns[:, None]))  # [WIDE, BLOCK_F]
        inner = tl.dot(x_rest, tl.load(up_ptrs + others[:, None]), inner)  # [REST, BLOCK_F]
        inner = erf_gelu(inner + _vector(up_bias_ptr, first + features)).to(x_wide.dtype)
        down_ptrs = down_weight_ptr + (first + features)[:, None]
        wide = tl.dot(inner, tl.load(down_ptrs + columns[None, :] * F), wide)  # [BLOCK_F, WIDE]
        rest = tl.dot(inner, tl.load(down_ptrs + others[None, :] * F), rest)  # [BLOCK_F, REST]
    _normalise_and_store(
        wide, rest, norm_weight_ptr, norm_bias_ptr, out_ptr, rows, num_tokens, eps, HAS_NORM_BIAS, WIDE, REST
    )


@triton.jit(do_not_specialize=["num_tokens"])
def _project_layer_norm_kernel(
    attended_ptr,  # [T, K]
    weight_ptr,  # [D, K]
    bias_ptr,  # [D]
    residual_ptr,  # [T, D]
    norm_weight_ptr,  # [D]
    norm_bias_ptr,  # [D]
    out_ptr,  # [T, D]
    stride_attended_t,
    stride_residual_t,
    num_tokens,
    eps,
    K: tl.constexpr,
    HAS_NORM_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    REST: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """LayerNorm(residual + W a + b) of BLOCK_T rows; the weight is contiguous."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    columns = tl.arange(0, WIDE)
    others = WIDE + tl.arange(0, REST)
    steps = tl.arange(0, BLOCK_K)
    # Behind the end the last row is read again; nothing of it is stored.
    read_rows = tl.minimum(rows, num_tokens - 1)[:, None]
    attended_ptrs = attended_ptr + read_rows * stride_attended_t + steps[None, :]
    residual_ptrs = residual_ptr + read_rows * stride_residual_t
    wide = tl.load(residual_ptrs + columns[None, :]).to(tl.float32)  # [BLOCK_T, WIDE]
    rest = tl.load(residual_ptrs + others[None, :]).to(tl.float32)  # [BLOCK_T, REST]
    wide += _vector(bias_ptr, columns)
    rest += _vector(bias_ptr, others)
    for first in range(0, K, BLOCK_K):
        attended = tl.load(attended_ptrs + first)  # [BLOCK_T, BLOCK_K]
        weight_ptrs = weight_ptr + (first + steps)[:, None]  # the weight has less than 2³¹ elements
        wide = tl.dot(attended, tl.load(weight_ptrs + columns[None, :] * K), wide)  # [BLOCK_K, WIDE]
        rest = tl.dot(attended, tl.load(weight_ptrs + others[None, :] * K), rest)  # [BLOCK_K, REST]
    _normalise_and_store(
        wide, rest, norm_weight_ptr, norm_bias_ptr, out_ptr, rows, num_tokens, eps, HAS_NORM_BIAS, WIDE, REST
    )


def plan_fused_mlp(
    x: torch.Tensor,
    up_weight: torch.Tensor,
    up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
) -> tuple[Launch, ...]:
    """Write down the launch that fills `out` [T, 384] with LayerNorm(x + W₂ GELU(W₁ x + b₁) + b₂).

    The arguments are those of `fastreward.ops.mlp.fused_mlp`, already checked.
    """
    config = default_config(up_weight.shape[0], target(), fused_mlp=True)
    arguments = {
        "x_ptr": x,
        "up_weight_ptr": up_weight,
        "up_bias_ptr": up_bias,
        "down_weight_ptr": down_weight,
        "down_bias_ptr": down_bias,
        "stride_x_t": x.stride(0),
        "F": up_weight.shape[0],
        "BLOCK_F": config.block_inner,
        **_shared_arguments(norm_weight, norm_bias, eps, out, config),
    }
    grid = (triton.cdiv(x.shape[0], config.block_t),)
    return (Launch(_fused_mlp_kernel, grid, arguments, config.num_warps, config.num_stages),)


def plan_project_layer_norm(
    attended: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
) -> tuple[Launch, ...]:
    """Write down the launch that fills `out` [T, 384] with LayerNorm(residual + W a + b).

    The arguments are those of `fastreward.ops.mlp.project_layer_norm`, already checked.
    """
    config = default_config(weight.shape[1], target(), fused_mlp=False)
    arguments = {
        "attended_ptr": attended,
        "weight_ptr": weight,
        "bias_ptr": bias,
        "residual_ptr": residual,
        "stride_attended_t": attended.stride(0),
        "stride_residual_t": residual.stride(0),
        "K": weight.shape[1],
        "BLOCK_K": config.block_inner,
        **_shared_arguments(norm_weight, norm_bias, eps, out, config),
    }
    grid = (triton.cdiv(attended.shape[0], config.block_t),)
    return (Launch(_project_layer_norm_kernel, grid, arguments, config.num_warps, config.num_stages),)


def _shared_arguments(
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor | None,
    eps: float,
    out: torch.Tensor,
    config: MlpConfig,
) -> dict[str, Any]:
    return {
        "norm_weight_ptr": norm_weight,
        "norm_bias_ptr": norm_weight if norm_bias is None else norm_bias,  # unread, but an address is needed
        "out_ptr": out,
        "num_tokens": out.shape[0],
        "eps": float(eps),  # an int of 1 would be compiled in
        "HAS_NORM_BIAS": norm_bias is not None,
        "WIDE": WIDE,
        "REST": REST,
        "BLOCK_T": config.block_t,
    }


def launch_fused_mlp(
    x: torch.Tensor,
    up_weight: torch.Tensor,
    up_bias: torch.Tensor,
    down_weight: torch.Tensor,
    down_bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Allocate the output [T, 384] in x's dtype, launch on x's GPU, and return it."""
    out = x.new_empty(x.shape)
    with torch.cuda.device_of(x):  # does nothing for tensors on the CPU
        run_all(
            plan_fused_mlp(x, up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias, eps, out)
        )
    return out


def launch_project_layer_norm(
    attended: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    residual: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor | None,
    eps: float,
) -> torch.Tensor:
    """Allocate the output [T, 384] in the residual's dtype, launch on its GPU, and return it."""
    out = residual.new_empty(residual.shape)
    with torch.cuda.device_of(residual):  # does nothing for tensors on the CPU
        run_all(plan_project_layer_norm(attended, weight, bias, residual, norm_weight, norm_bias, eps, out))
    return out
