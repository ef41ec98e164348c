"""LayerNorm in one pass: over rows, over rows plus a residual, or over rows gathered from embedding tables.

One program takes a few whole rows, which stay in registers from the load to the store: statistics are those
of the fp32 sum, taken in two steps (mean, then the squares of what is left of it), and each row is read once
and written once. With GATHER the two terms of a row's sum are the rows of two tables that the token's ids
name, and the gathered embeddings themselves are never written. A row's bits depend on nothing but the row.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl

from fastreward.kernels.launch import Launch, run_all


@dataclass(frozen=True)
class LayerNormConfig:
    """How the work is cut.

    Attributes:
        block_t: Rows of one program.
        block_d: D rounded up to a power of two.
        num_warps: Warps of one program.
    """

    block_t: int
    block_d: int
    num_warps: int


def default_config(hidden_size: int) -> LayerNormConfig:
    """Choose the rows of a program for a hidden size; never by the number of tokens.

    4,096 elements on 8 warps are 16 fp32 values a thread, which leaves room for four programs and more on an
    SM. Each has 8 KiB of bf16 in flight, twice that with a residual: at least twice the 15 KiB an SM that
    cover an H100's memory latency, so that some programs reduce while others load. Up to D = 2,048 a thread
    holds the same columns of two rows or more and loads weight and bias once for them. Rows stop at 64,
    where narrow rows would leave few programs.
    """
    block_d = max(16, triton.next_power_of_2(hidden_size))
    return LayerNormConfig(block_t=min(64, max(1, 4096 // block_d)), block_d=block_d, num_warps=8)


@triton.jit
def standardise(x, inside, eps, D: tl.constexpr):
    """LayerNorm without weight and bias for the rows of x [BLOCK_T, BLOCK_D], 0 in the columns from D on.

    x is fp32 and 0 outside of `inside` [BLOCK_D], the columns that exist.
    """
    # Truly divided: times a rounded 1 / D, the mean of a constant row would not be its constant.
    mean = tl.div_rn(tl.sum(x, axis=1), D * 1.0)  # [BLOCK_T]
    centred = tl.where(inside[None, :], x - mean[:, None], 0.0)
    variance = tl.sum(centred * centred, axis=1) / D  # [BLOCK_T]
    return centred * tl.rsqrt(variance + eps)[:, None]


@triton.jit
def _row_of_table(id_ptr, tokens, exists, num_rows):
    """The table rows that tokens name, and which of them may be read: [BLOCK_T] each."""
    rows = tl.load(id_ptr + tokens, mask=exists, other=0).to(tl.int64)  # [BLOCK_T]
    return rows, exists & (rows >= 0) & (rows < num_rows)


@triton.jit(do_not_specialize=["num_tokens", "num_words", "num_positions"])
def _layer_norm_kernel(
    x_ptr,  # [T, D], or with GATHER the words [V, D]
    residual_ptr,  # [T, D], or with GATHER the positions [P, D]
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    input_id_ptr,  # [T]
    position_id_ptr,  # [T]
    out_ptr,  # [T, D]
    sum_ptr,  # [T, D]
    stride_x_t,
    stride_residual_t,
    num_tokens,
    num_words,
    num_positions,
    eps,
    D: tl.constexpr,
    GATHER: tl.constexpr,
    RESIDUAL: tl.constexpr,
    WRITE_SUM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Normalise BLOCK_T rows; with WRITE_SUM also write what was normalised."""
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    tokens = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = tokens < num_tokens
    x_rows, x_known = tokens, exists
    residual_rows, residual_known = tokens, exists
    if GATHER:  # memory outside of the tables is never read
        x_rows, x_known = _row_of_table(input_id_ptr, tokens, exists, num_words)
        if RESIDUAL:
            residual_rows, residual_known = _row_of_table(position_id_ptr, tokens, exists, num_positions)
    x_ptrs = x_ptr + x_rows[:, None] * stride_x_t + columns[None, :]
    x_mask = x_known[:, None] & inside[None, :]
    x = tl.load(x_ptrs, mask=x_mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_D]
    if RESIDUAL:
        residual_ptrs = residual_ptr + residual_rows[:, None] * stride_residual_t + columns[None, :]
        residual_mask = residual_known[:, None] & inside[None, :]
        x += tl.load(residual_ptrs, mask=residual_mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_D]
    # Asked for before the sums, so that they come while the sums wait for the rows.
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_D]
    if HAS_BIAS:
        bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_D]
    y = standardise(x, inside, eps, D) * weight[None, :]
    if HAS_BIAS:
        y += bias[None, :]
    if GATHER:
        y = tl.where((x_known & residual_known)[:, None], y, float("nan"))
    mask = exists[:, None] & inside[None, :]  # [BLOCK_T, BLOCK_D]
    offsets = tokens[:, None] * D + columns[None, :]
    tl.store(out_ptr + offsets, y, mask=mask)
    if WRITE_SUM:
        tl.store(sum_ptr + offsets, x, mask=mask)


def plan_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    out: torch.Tensor,
    residual: torch.Tensor | None = None,
    sums: torch.Tensor | None = None,
    input_ids: torch.Tensor | None = None,
    position_ids: torch.Tensor | None = None,
) -> tuple[Launch, ...]:
    """Write down the launch that fills `out` and, where it is given, `sums`: [T, D], in x's dtype.

    The arguments are those of `fastreward.ops.layer_norm`, already checked. With `input_ids` [T], x is the
    table of words [V, D] and the residual, if there is one, the table of positions [P, D].
    """
    num_tokens, hidden_size = out.shape
    config = default_config(hidden_size)
    unused = x  # a pointer that no branch reads still needs an address
    arguments: dict[str, Any] = {
        "x_ptr": x,
        "residual_ptr": unused if residual is None else residual,
        "weight_ptr": weight,
        "bias_ptr": unused if bias is None else bias,
        "input_id_ptr": unused if input_ids is None else input_ids,
        "position_id_ptr": unused if position_ids is None else position_ids,
        "out_ptr": out,
        "sum_ptr": unused if sums is None else sums,
        "stride_x_t": x.stride(0),
        "stride_residual_t": 0 if residual is None else residual.stride(0),
        "num_tokens": num_tokens,
        "num_words": x.shape[0],
        "num_positions": 0 if residual is None else residual.shape[0],
        "eps": float(eps),
        "D": hidden_size,
        "GATHER": input_ids is not None,
        "RESIDUAL": residual is not None,
        "WRITE_SUM": sums is not None,
        "HAS_BIAS": bias is not None,
        "BLOCK_T": config.block_t,
        "BLOCK_D": config.block_d,
    }
    grid = (triton.cdiv(num_tokens, config.block_t),)
    return (Launch(_layer_norm_kernel, grid, arguments, config.num_warps, 1),)


def launch_layer_norm(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    residual: torch.Tensor | None = None,
    return_sum: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Allocate, launch on the tensors' GPU, and return the normalised rows and, if asked for, the sum."""
    out = x.new_empty(x.shape)
    sums = x.new_empty(x.shape) if return_sum else None
    with torch.cuda.device_of(x):  # does nothing for tensors on the CPU
        run_all(plan_layer_norm(x, weight, bias, eps, out=out, residual=residual, sums=sums))
    return out, sums


def launch_embed_layer_norm(
    input_ids: torch.Tensor,
    words: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    eps: float,
    *,
    position_ids: torch.Tensor | None,
    positions: torch.Tensor | None,
) -> torch.Tensor:
    """Allocate the normalised embeddings [T, D] in the dtype of `words`, launch, and return them."""
    out = words.new_empty((input_ids.shape[0], words.shape[1]))
    with torch.cuda.device_of(words):  # does nothing for tensors on the CPU
        run_all(
            plan_layer_norm(
                words,
                weight,
                bias,
                eps,
                out=out,
                residual=positions,
                input_ids=input_ids,
                position_ids=position_ids,
            )
        )
    return out
