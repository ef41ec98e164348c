"""Rotary position embedding over packed queries and keys, in place.

A row is one head of one token: hd numbers, of which the first half and the second half are turned together.
Rows lie side by side within a token (heads, then slots), so that a token's rows are cut into tiles without
regard to where a slot ends, and no thread stands idle for a number of heads that is no power of two. One
program turns one tile: queries and keys are read and written once, cosines and sines come from the cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from fastreward.kernels.launch import Launch, run_all


@dataclass(frozen=True)
class RotaryConfig:
    """How the work is cut.

    Attributes:
        block_r: Rows of one tile.
        block_d: Columns of one half: hd / 2 rounded up to a power of two.
        num_warps: Warps of one program.
    """

    block_r: int
    block_d: int
    num_warps: int


def default_config(head_dim: int) -> RotaryConfig:
    """Choose the tile for a head's width.

    2,048 numbers of each half on 4 warps are two loads of 16 bytes a thread and half in 16 bit, and with
    cosines and sines in fp32 about 64 registers: enough programs fit on an SM to keep 64 KiB in flight.
    """
    block_d = max(1, triton.next_power_of_2(head_dim // 2))
    return RotaryConfig(block_r=2048 // block_d, block_d=block_d, num_warps=4)


@triton.jit(do_not_specialize=["num_tokens", "num_positions"])
def _rotary_kernel(
    position_ids_ptr,  # [T]
    table_ptr,  # [P, HEAD_DIM]
    x_ptr,  # [T, S, H, HEAD_DIM], of which ROWS heads a token are turned
    stride_x_t,
    num_tokens,
    num_positions,
    ROWS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Turn BLOCK_R rows by the positions of their tokens."""
    HALF: tl.constexpr = HEAD_DIM // 2
    first = tl.program_id(0).to(tl.int64) * BLOCK_R
    behind = (first % ROWS).to(tl.int32) + tl.arange(0, BLOCK_R)  # rows behind the first token's first
    token = first // ROWS + behind // ROWS  # [BLOCK_R], int64
    row = behind % ROWS
    exists = token < num_tokens
    columns = tl.arange(0, BLOCK_D)
    inside = columns < HALF
    position = tl.load(position_ids_ptr + token, mask=exists, other=0).to(tl.int64)  # [BLOCK_R]
    known = (position >= 0) & (position < num_positions)  # memory outside the table is never read
    readable = known[:, None] & inside[None, :]  # [BLOCK_R, BLOCK_D]
    table_ptrs = table_ptr + position[:, None] * HEAD_DIM + columns[None, :]
    # No identity is wanted here: what cannot be known shows as NaN.
    cos = tl.load(table_ptrs, mask=readable, other=float("nan"))  # [BLOCK_R, BLOCK_D]
    sin = tl.load(table_ptrs + HALF, mask=readable, other=float("nan"))  # [BLOCK_R, BLOCK_D]
    x_ptrs = x_ptr + (token * stride_x_t + row * HEAD_DIM)[:, None] + columns[None, :]
    mask = exists[:, None] & inside[None, :]
    x1 = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_R, BLOCK_D]
    x2 = tl.load(x_ptrs + HALF, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_R, BLOCK_D]
    tl.store(x_ptrs, x1 * cos - x2 * sin, mask=mask)
    tl.store(x_ptrs + HALF, x2 * cos + x1 * sin, mask=mask)


def plan_rotary(
    x: torch.Tensor, position_ids: torch.Tensor, table: torch.Tensor, *, rotated: int
) -> tuple[Launch, ...]:
    """Write down the launch that turns the first `rotated` slots of x [T, S, H, hd] in place.

    The arguments are those of `fastreward.ops.rotary.apply_rotary`, already checked.
    """
    num_tokens, _, heads, head_dim = x.shape
    config = default_config(head_dim)
    rows = rotated * heads
    arguments = {
        "position_ids_ptr": position_ids,
        "table_ptr": table,
        "x_ptr": x,
        "stride_x_t": x.stride(0),
        "num_tokens": num_tokens,
        "num_positions": table.shape[0],
        "ROWS": rows,
        "HEAD_DIM": head_dim,
        "BLOCK_R": config.block_r,
        "BLOCK_D": config.block_d,
    }
    grid = (triton.cdiv(num_tokens * rows, config.block_r),)
    return (Launch(_rotary_kernel, grid, arguments, config.num_warps, 1),)


def launch_rotary(x: torch.Tensor, position_ids: torch.Tensor, table: torch.Tensor, *, rotated: int) -> None:
    """Turn in place, on the tensors' own GPU."""
    with torch.cuda.device_of(x):  # does nothing for tensors on the CPU
        run_all(plan_rotary(x, position_ids, table, rotated=rotated))
