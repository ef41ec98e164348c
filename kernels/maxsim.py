"""Two-sided MaxSim over packed texts without a matrix of similarities in memory.

One program takes BLOCK_M tokens (rows) of one text of a pair, multiplies them tile by tile with all tokens
(columns) of the other text, keeps each row's largest similarity in registers, and adds up rows times weights.
The same kernel runs once for each direction, the texts' parts exchanged: every similarity is computed twice,
which costs matrix rate, and in return no column's maximum has to be carried through memory from program to
program. Rows of a pair are dealt to `LANES` programs, tile by tile, and each lane's sum has a slot of its
own; a last kernel adds a pair's slots in a fixed order. So neither the grid nor the memory needs a look at
the lengths on the host, there are no atomics, and nothing depends on what else is in the batch.

Tokens need not have unit length: their inverse lengths are computed first. In fp32 the vectors are made unit
vectors on their way into the product; in 16 bit, where that would round them again and take the shortest way
to the matrix units from them, they go in as they are, and the products are scaled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fastreward.kernels.launch import Launch, Target, run_all, target

LANES: Final = 8
"""Programs that share the rows of one text of a pair: a text of 512 tokens gives each of them one tile. They
decide the order of additions and are never tuned."""

PAIRS: Final = 64
"""Pairs that one program of the last kernel finishes."""


@dataclass(frozen=True)
class MaxSimConfig:
    """How the work is cut.

    Attributes:
        block_m: Rows of one tile.
        block_n: Columns of one tile.
        block_d: Entries of a vector that are multiplied at a time.
        num_warps: Warps of one program.
        num_stages: Stages in which the tiles are fetched.
    """

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


def default_config(hidden_size: int, dtype: torch.dtype, target: Target) -> MaxSimConfig:
    """Choose the tile by what may decide: never by lengths, for a text's bits depend on its rows' tile.

    In 16 bit 64 × 128: 64 rows are one wgmma and few enough that a text of 200 tokens wastes little; 128
    columns give 43 operations for a byte from L2. On sm_90 168 registers a thread and three stages of 24 KiB
    leave room for three programs on an SM, so that one multiplies while another looks for maxima. On AMD two
    stages are one of them in its 64 KiB and one in registers. A row that is no multiple of 16 numbers is
    loaded number by number, and in fp32 no matrix unit keeps the precision: smaller tiles, for registers.
    """
    if dtype == torch.float32:
        return MaxSimConfig(block_m=64, block_n=64, block_d=32, num_warps=8, num_stages=2)
    if hidden_size % 16:
        return MaxSimConfig(block_m=64, block_n=64, block_d=16, num_warps=4, num_stages=2)
    stages = 3 if target.backend == "cuda" else 2
    return MaxSimConfig(block_m=64, block_n=128, block_d=64, num_warps=4, num_stages=stages)


@triton.jit(do_not_specialize=["num_tokens"])
def _inverse_length_kernel(
    x_ptr,  # [T, D]
    inverse_ptr,  # [T]
    stride_x_t,
    num_tokens,
    D: tl.constexpr,
    BOUNDED: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """1 / |x| of BLOCK_T tokens, 0 for a zero vector."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_T + tl.arange(0, BLOCK_T)
    exists = rows < num_tokens
    columns = tl.arange(0, BLOCK_D)
    mask = exists[:, None] & (columns < D)[None, :]  # [BLOCK_T, BLOCK_D]
    x_ptrs = x_ptr + rows[:, None] * stride_x_t + columns[None, :]
    x = tl.load(x_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_D]
    # Scaled first, so that no square overflows or vanishes. The maximum may pass NaN by, the sum does not.
    largest = tl.max(tl.abs(x), axis=1)  # [BLOCK_T]
    scale = tl.where(largest == 0.0, 1.0, largest)
    x = x / scale[:, None]
    squares = tl.sum(x * x, axis=1)
    # Once a token the exactly rounded root and quotients cost nothing.
    length = tl.sqrt_rn(tl.where(squares == 0.0, 1.0, squares))
    inverse = tl.div_rn(tl.div_rn(1.0, length), scale)
    if BOUNDED:  # beyond, a product of two vectors as they are might leave the range of fp32
        inverse = tl.where((inverse > 1e15) | (inverse < 1e-15), float("nan"), inverse)
    tl.store(inverse_ptr + rows, tl.where(squares == 0.0, 0.0, inverse), mask=exists)


@triton.jit
def _products(
    row_ptr,  # [Tm, D]
    column_ptr,  # [Tn, D]
    row_inverse_ptr,  # [Tm]
    column_inverse_ptr,  # [Tn]
    row,  # [BLOCK_M]
    column,  # [BLOCK_N]
    stride_row_t,
    stride_column_t,
    D: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Dot products of rows and columns, fp32 [BLOCK_M, BLOCK_N]; with UNIT of their unit vectors."""
    row_ptrs = row_ptr + row[:, None] * stride_row_t
    column_ptrs = column_ptr + column[:, None] * stride_column_t
    if UNIT:
        row_inverse = tl.load(row_inverse_ptr + row)  # [BLOCK_M]
        column_inverse = tl.load(column_inverse_ptr + column)  # [BLOCK_N]
    products = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, D, BLOCK_D):
        entries = (start + tl.arange(0, BLOCK_D))[None, :]
        if D % BLOCK_D == 0:
            x = tl.load(row_ptrs + entries)  # [BLOCK_M, BLOCK_D]
            y = tl.load(column_ptrs + entries)  # [BLOCK_N, BLOCK_D]
        else:
            x = tl.load(row_ptrs + entries, mask=entries < D, other=0.0)  # [BLOCK_M, BLOCK_D]
            y = tl.load(column_ptrs + entries, mask=entries < D, other=0.0)  # [BLOCK_N, BLOCK_D]
        if UNIT:
            x *= row_inverse[:, None]
            y *= column_inverse[:, None]
        products = tl.dot(x, tl.trans(y), products, input_precision="ieee")
    return products


@triton.jit
def _text_bounds(offsets_ptr, text, known, num_tokens):
    """First token of a text and the one behind its last; none for a text that is not known."""
    start = tl.load(offsets_ptr + text, mask=known, other=0)
    end = tl.load(offsets_ptr + text + 1, mask=known, other=0)
    return start, tl.minimum(end, num_tokens)


@triton.jit(do_not_specialize=["num_pairs", "num_references", "candidate_lanes", "reference_lanes"])
def _finish_kernel(
    precision_ptr,  # [2, N, candidate_lanes]: sums, then the sums of their weights
    recall_ptr,  # [2, N, reference_lanes]
    reference_index_ptr,  # [N]
    score_ptr,  # [3, N]
    num_pairs,
    num_references,
    candidate_lanes,
    reference_lanes,
    LANES: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """Add the lanes of PAIRS pairs and write precision, recall and F1."""
    pairs = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    exists = pairs < num_pairs
    reference = tl.load(reference_index_ptr + pairs, mask=exists, other=0)  # [PAIRS]
    known = (reference >= 0) & (reference < num_references)
    precision, left = _mean_of_lanes(precision_ptr, pairs, exists, num_pairs, candidate_lanes, LANES)
    recall, right = _mean_of_lanes(recall_ptr, pairs, exists, num_pairs, reference_lanes, LANES)
    weightless = (left == 0.0) | (right == 0.0)
    precision = tl.where(weightless, 0.0, precision)
    recall = tl.where(weightless, 0.0, recall)
    product = precision * recall
    f1 = 2.0 * product / tl.where(product > 0.0, precision + recall, 1.0)
    f1 = tl.where(product > 0.0, f1, 0.0)
    unknown = (precision != precision) | (recall != recall) | (known == 0)
    tl.store(score_ptr + pairs, tl.where(known, precision, float("nan")), mask=exists)
    tl.store(score_ptr + num_pairs + pairs, tl.where(known, recall, float("nan")), mask=exists)
    tl.store(score_ptr + 2 * num_pairs + pairs, tl.where(unknown, float("nan"), f1), mask=exists)


@triton.jit
def _mean_of_lanes(partial_ptr, pairs, exists, num_pairs, lanes, LANES: tl.constexpr):
    """Weighted mean of a pair's rows, in [-1, 1], and the sum of its weights: [PAIRS] each."""
    lane = tl.arange(0, LANES)
    mask = exists[:, None] & (lane < lanes)[None, :]  # [PAIRS, LANES]
    partial_ptrs = partial_ptr + pairs[:, None] * lanes + lane[None, :]
    total = tl.sum(tl.load(partial_ptrs, mask=mask, other=0.0), axis=1)
    weight = tl.sum(tl.load(partial_ptrs + num_pairs * lanes, mask=mask, other=0.0), axis=1)
    mean = total / tl.where(weight == 0.0, 1.0, weight)
    return tl.clamp(mean, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL), weight


@triton.jit(do_not_specialize=["num_row_tokens", "num_column_tokens", "num_references", "num_slots", "lanes"])
def _maxsim_kernel(
    row_ptr,  # [Tm, D]
    column_ptr,  # [Tn, D]
    row_inverse_ptr,  # [Tm]
    column_inverse_ptr,  # [Tn]
    row_weight_ptr,  # [Tm]
    row_offsets_ptr,  # [texts + 1]
    column_offsets_ptr,  # [texts + 1]
    reference_index_ptr,  # [N]
    partial_ptr,  # [2, N, lanes]
    stride_row_t,
    stride_column_t,
    num_row_tokens,
    num_column_tokens,
    num_references,
    num_slots,
    lanes,
    D: tl.constexpr,
    ROWS_ARE_CANDIDATES: tl.constexpr,
    WEIGHTED: tl.constexpr,
    UNIT: tl.constexpr,
    LANES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum of weight · largest similarity over one lane of one pair's rows, and the sum of the weights."""
    slot = tl.program_id(0).to(tl.int64)
    pair = slot // lanes
    lane = (slot % lanes).to(tl.int32)
    reference = tl.load(reference_index_ptr + pair).to(tl.int64)
    known = (reference >= 0) & (reference < num_references)  # memory outside the references is never read
    row_text = pair if ROWS_ARE_CANDIDATES else reference
    column_text = reference if ROWS_ARE_CANDIDATES else pair
    row_start, row_end = _text_bounds(row_offsets_ptr, row_text, known, num_row_tokens)
    column_start, column_end = _text_bounds(column_offsets_ptr, column_text, known, num_column_tokens)
    # Without columns there is no best one; the pair scores 0 whatever its rows are.
    row_end = tl.where(column_start < column_end, row_end, row_start)
    total = tl.zeros([BLOCK_M], tl.float32)
    weights = tl.zeros([BLOCK_M], tl.float32)
    for first_row in range(row_start + lane * BLOCK_M, row_end, LANES * BLOCK_M):
        row = first_row + tl.arange(0, BLOCK_M)
        row_exists = row < row_end
        # A tile's rows and columns behind the last one repeat it: that changes no maximum and needs no mask.
        row = tl.minimum(row, row_end - 1).to(tl.int64)
        best = tl.full([BLOCK_M], float("-inf"), tl.float32)
        nan = 0.0  # a maximum may pass NaN by; 0 · x of the inverse lengths, added up, does not
        for first_column in range(column_start, column_end, BLOCK_N):
            column = first_column + tl.arange(0, BLOCK_N)
            column = tl.minimum(column, column_end - 1).to(tl.int64)
            similarity = _products(
                row_ptr, column_ptr, row_inverse_ptr, column_inverse_ptr, row, column,
                stride_row_t, stride_column_t, D, UNIT, BLOCK_M, BLOCK_N, BLOCK_D,
            )  # fmt: skip
            column_inverse = tl.load(column_inverse_ptr + column)  # [BLOCK_N]
            nan += tl.sum(0.0 * column_inverse, axis=0)
            if not UNIT:
                similarity *= column_inverse[None, :]
            best = tl.maximum(best, tl.max(similarity, axis=1))
        row_inverse = tl.load(row_inverse_ptr + row)  # [BLOCK_M]
        # A factor of a whole row changes nothing in which column is best.
        best = best + 0.0 * row_inverse + nan if UNIT else best * row_inverse + nan
        weight = tl.where(row_exists, 1.0, 0.0)
        if WEIGHTED:
            weight = tl.load(row_weight_ptr + row, mask=row_exists, other=0.0)  # [BLOCK_M]
        total += tl.where(row_exists, best * weight, 0.0)
        weights += weight
    tl.store(partial_ptr + slot, tl.sum(total, axis=0))
    tl.store(partial_ptr + num_slots + slot, tl.sum(weights, axis=0))


def _inverse_lengths(x: torch.Tensor) -> tuple[Launch, torch.Tensor]:
    """Write down the launch that gives the inverse lengths of x [T, D], and what it fills: [T]."""
    num_tokens, hidden_size = x.shape
    block_d = max(16, triton.next_power_of_2(hidden_size))
    block_t = min(64, max(1, 8192 // block_d))  # 32 numbers a thread, as in pooled_cosine
    inverse = x.new_empty(num_tokens, dtype=torch.float32)
    arguments = {
        "x_ptr": x,
        "inverse_ptr": inverse,
        "stride_x_t": x.stride(0),
        "num_tokens": num_tokens,
        "D": hidden_size,
        "BOUNDED": x.dtype == torch.bfloat16,
        "BLOCK_T": block_t,
        "BLOCK_D": block_d,
    }
    return Launch(_inverse_length_kernel, (triton.cdiv(num_tokens, block_t),), arguments, 8, 1), inverse


def _lanes(longest: int | None, block_m: int) -> int:
    """Lanes that can have a tile; what the others would give is 0 and changes no bit."""
    return LANES if longest is None else min(LANES, max(1, triton.cdiv(longest, block_m)))


def plan_maxsim(
    candidates: torch.Tensor,
    candidate_offsets: torch.Tensor,
    references: torch.Tensor,
    reference_offsets: torch.Tensor,
    reference_index: torch.Tensor,
    *,
    candidate_weights: torch.Tensor | None,
    reference_weights: torch.Tensor | None,
    max_candidate: int | None,
    max_reference: int | None,
    scores: torch.Tensor,
) -> tuple[Launch, ...]:
    """Write down the launches that fill `scores` [3, N] (fp32): precision, recall, F1.

    The arguments are those of `fastreward.ops.maxsim`, already checked.
    """
    num_pairs, hidden_size = candidate_offsets.shape[0] - 1, candidates.shape[1]
    config = default_config(hidden_size, candidates.dtype, target())
    sides = [
        (candidates, candidate_offsets, candidate_weights, max_candidate),
        (references, reference_offsets, reference_weights, max_reference),
    ]
    launches, inverses = zip(*(_inverse_lengths(tokens) for tokens, *_ in sides), strict=True)
    common: dict[str, Any] = {
        "reference_index_ptr": reference_index,
        "num_references": reference_offsets.shape[0] - 1,
        "LANES": LANES,
    }
    finish: dict[str, Any] = {"score_ptr": scores, "num_pairs": num_pairs, "PAIRS": PAIRS}
    matches = []
    for direction, name in enumerate(("candidate", "reference")):
        rows, row_offsets, weights, longest = sides[direction]
        columns, column_offsets, *_ = sides[1 - direction]
        lanes = _lanes(longest, config.block_m)
        partial = scores.new_empty((2, num_pairs, lanes))
        arguments = {
            **common,
            "row_ptr": rows,
            "column_ptr": columns,
            "row_inverse_ptr": inverses[direction],
            "column_inverse_ptr": inverses[1 - direction],
            # A pointer that no branch reads still needs an address.
            "row_weight_ptr": inverses[direction] if weights is None else weights,
            "row_offsets_ptr": row_offsets,
            "column_offsets_ptr": column_offsets,
            "partial_ptr": partial,
            "stride_row_t": rows.stride(0),
            "stride_column_t": columns.stride(0),
            "num_row_tokens": rows.shape[0],
            "num_column_tokens": columns.shape[0],
            "num_slots": num_pairs * lanes,
            "lanes": lanes,
            "D": hidden_size,
            "ROWS_ARE_CANDIDATES": name == "candidate",
            "WEIGHTED": weights is not None,
            "UNIT": rows.dtype == torch.float32,
            "BLOCK_M": config.block_m,
            "BLOCK_N": config.block_n,
            "BLOCK_D": config.block_d,
        }
        grid = (num_pairs * lanes,)
        matches.append(Launch(_maxsim_kernel, grid, arguments, config.num_warps, config.num_stages))
        finish |= {"precision_ptr" if name == "candidate" else "recall_ptr": partial, f"{name}_lanes": lanes}
    last = Launch(_finish_kernel, (triton.cdiv(num_pairs, PAIRS),), {**common, **finish}, 4, 1)
    return (*launches, *matches, last)


def launch_maxsim(
    candidates: torch.Tensor, candidate_offsets: torch.Tensor, *args: Any, **kwargs: Any
) -> torch.Tensor:
    """Allocate the scores, launch on the tensors' own GPU, and return them: [3, N], fp32."""
    scores = candidates.new_empty((3, candidate_offsets.shape[0] - 1), dtype=torch.float32)
    with torch.cuda.device_of(candidates):  # does nothing for tensors on the CPU
        run_all(plan_maxsim(candidates, candidate_offsets, *args, **kwargs, scores=scores))
    return scores
