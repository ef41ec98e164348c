"""The door to `rotary`: rotary position embedding, written over queries and keys where they lie."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from fastreward.backends import resolve_op
from fastreward.errors import InputError
from fastreward.ops.checks import FLOAT_DTYPES, require

MAX_HEAD_DIM: Final = 256

TOKENS_AT_ONCE: Final = 128
"""Tokens that PyTorch turns at a time on a CPU: what it writes in between stays in the cache."""


def rotary_table(num_positions: int, head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Tabulate the cosines and sines by which `apply_rotary` turns.

    For position p and pair k of hd / 2 the angle is p · theta^(-2k / hd). Angles are fp64, for at position
    8,000 an fp32 one would be off by up to 5e-4, and each cosine and sine is rounded to fp32 once. They are
    computed on the CPU, so that all devices have the same bits.

    Args:
        num_positions: P, at least 1.
        head_dim: hd, even.
        theta: Base of the wave lengths; 10,000 in RoFormer, and the configuration's own elsewhere.
        device: Where the table is wanted.

    Returns:
        [P, hd], fp32: hd / 2 cosines, then hd / 2 sines.

    Raises:
        InputError: If a number is not what it should be.

    Example:
        >>> rotary_table(2, 4, 10000.0, torch.device("cpu"))
        tensor([[1.0000, 1.0000, 0.0000, 0.0000],
                [0.5403, 0.9999, 0.8415, 0.0100]])

    Source: RoFormer (arXiv 2104.09864), section 3.4.
    """
    if num_positions < 1:
        raise InputError("num_positions of 1 or more", str(num_positions), "Pass the model's positions.")
    _check_head_dim(head_dim)
    if not (math.isfinite(theta) and theta > 0):
        raise InputError("a theta above 0", str(theta), "Pass the configuration's rope_theta.")
    cpu = torch.device("cpu")
    pairs = torch.arange(0, head_dim, 2, dtype=torch.float64, device=cpu)
    positions = torch.arange(num_positions, dtype=torch.float64, device=cpu)
    angles = torch.outer(positions, theta ** (-pairs / head_dim))
    return torch.cat([angles.cos(), angles.sin()], dim=1).float().to(device)


def apply_rotary(
    x: Tensor, position_ids: Tensor, table: Tensor, *, rotated: int, backend: str | None = None
) -> None:
    """Turn the first `rotated` of S slots by their positions, in place: queries and keys, not values.

    Entry k of the first half of a head and entry k of its second half are a pair (half-split, as Hugging
    Face's models have it, not the interleaved pairs of the paper). With (cos, sin) = table[position_ids[t]]:

        x1' = x1 · cos - x2 · sin,  x2' = x2 · cos + x1 · sin

    in fp32 whatever x is, rounded once on the way back. What is turned is read and written once; the other
    slots are not touched.

    Args:
        x: [T, S, H, hd], fp32, fp16 or bf16, hd even and at most 256; one token's S · H · hd numbers lie
            side by side, tokens may be farther apart. S = 3 and rotated = 2 for queries, keys and values;
            S = 2 and rotated = 1 for keys and values; S = 1 and rotated = 1 for queries.
        position_ids: [T], int32, on the same device.
        table: [P, hd], fp32, from `rotary_table`.
        rotated: Slots that are turned, from 1 to S.
        backend: "triton", "torch", or None to choose by device.

    Raises:
        InputError: If a shape, dtype or device does not fit, or, on the CPU, a position is not in the table.
            On CUDA values are not looked at, for that would wait for the GPU: such a token's queries and
            keys become NaN.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> x = torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
        >>> table = rotary_table(2, 2, 10000.0, x.device)
        >>> apply_rotary(x, torch.tensor([1], dtype=torch.int32), table, rotated=1)
        >>> x.flatten()
        tensor([0.5403, 0.8415])

    Source: RoFormer (arXiv 2104.09864); ModernBERT (arXiv 2412.13663) for its use in an encoder.
    """
    _check(x, position_ids, table, rotated)
    if resolve_op("rotary", x.device, backend) == "torch":
        apply_rotary_reference(x, position_ids, table, rotated=rotated)
        return
    from fastreward.kernels.rotary import launch_rotary

    launch_rotary(x, position_ids, table, rotated=rotated)


def apply_rotary_reference(x: Tensor, position_ids: Tensor, table: Tensor, *, rotated: int) -> None:
    """Define `apply_rotary` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Formula, arguments and source are those of `apply_rotary`. Nothing is checked here, but a position that
    is not in the table makes its token NaN, as the kernel does.
    """
    halves = x.view(*x.shape[:3], 2, x.shape[3] // 2)[:, :rotated]  # [T, rotated, H, 2, hd / 2]
    step = TOKENS_AT_ONCE if x.device.type == "cpu" else max(1, x.shape[0])
    for start in range(0, x.shape[0], step):
        positions = position_ids[start : start + step]
        known = (positions >= 0) & (positions < table.shape[0])
        turns = torch.where(known[:, None], table[torch.where(known, positions, 0)], float("nan"))  # [T, hd]
        cos, sin = turns[:, None, None, :].chunk(2, dim=-1)  # [T, 1, 1, hd / 2]
        old = halves[start : start + step].float()
        x1, x2 = old[..., 0, :], old[..., 1, :]
        turned1, turned2 = x1 * cos, x2 * cos
        turned1 -= x2 * sin
        turned2 += x1 * sin
        halves[start : start + step, ..., 0, :] = turned1
        halves[start : start + step, ..., 1, :] = turned2


def rotary_bytes(num_tokens: int, rotated: int, num_heads: int, head_dim: int, dtype: torch.dtype) -> int:
    """Count the bytes that `apply_rotary` must move: what is turned, read and written, and the positions.

    The table is shared by all texts and stays in the cache; it is not counted.
    """
    return num_tokens * (2 * rotated * num_heads * head_dim * dtype.itemsize + 4)


def _check_head_dim(head_dim: int) -> None:
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise InputError(
            f"an even head_dim from 2 to {MAX_HEAD_DIM}", str(head_dim), "Pass hidden_size / num_heads."
        )


def _check(x: Tensor, position_ids: Tensor, table: Tensor, rotated: int) -> None:
    require(x.ndim == 4 and x.dtype in FLOAT_DTYPES, "x", "[T, S, H, hd] in float32, float16 or bfloat16", x)
    num_tokens, slots, heads, head_dim = x.shape
    _check_head_dim(head_dim)
    beside = not num_tokens or x[0].is_contiguous()
    apart = num_tokens < 2 or x.stride(0) >= slots * heads * head_dim
    require(beside and apart, "x", "with the numbers of one token side by side, tokens apart", x)
    if not 1 <= rotated <= slots:
        raise InputError(f"rotated from 1 to {slots}, the slots of x", str(rotated), "Correct the number.")
    require(
        position_ids.shape == (num_tokens,)
        and position_ids.dtype == torch.int32
        and position_ids.is_contiguous()
        and position_ids.device == x.device,
        "position_ids",
        f"[{num_tokens}] in int32 on {x.device}",
        position_ids,
    )
    require(
        table.ndim == 2
        and table.shape[1] == head_dim
        and table.dtype == torch.float32
        and table.is_contiguous()
        and table.device == x.device,
        "table",
        f"[P, {head_dim}] in float32 on {x.device}",
        table,
    )
    if x.device.type == "cpu" and num_tokens:
        low, high = int(position_ids.min()), int(position_ids.max())
        if low < 0 or high >= table.shape[0]:
            raise InputError(
                f"position_ids from 0 to {table.shape[0] - 1}, the table's positions",
                f"values from {low} to {high}",
                "Cut the texts, or make a table of more positions.",
            )
