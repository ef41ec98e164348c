"""Packed bidirectional attention, softmax(q kᵀ / √head_dim) v within each text, in one pass.

One program takes a tile of rows (queries) and one head, walks over the keys that the tile sees in blocks, and
keeps a running maximum, a running sum and the weighted values in fp32 (the online softmax of arXiv
2205.14135). Scores are never in memory. A tile's heads stand side by side, for they read the same rows, and
the tiles in the order of the texts: where the longest come first, the longest work begins first.

What a row sees is one range of keys: its text, cut by the window. The tiles are cut on the host (by
`fastreward.ops.attention_tiles`), each from

- one text, from the text's own first token on. All its rows see all keys of the text, and only those behind
  its end are masked; under a window each row has its own range;
- or several short texts, whole, as many as fit, for a text of ten tokens would leave most of a tile unused.
  Their keys are the tile's own rows, and each row masks the other texts.

In a shared tile another text's value has the weight 0, but 0 · NaN is NaN. So a result that holds NaN is
computed again: values that are not finite are left out, and the rows that see them become NaN by their
weights. NaN and infinity stay in their own text.

With one query a text (`FIRST_TOKEN`) keys and values are read once, and that reading is the limit: a tile is
one row, and products are sums without tensor cores.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fastreward.kernels.launch import Launch, Target, run_all, target

SHORT_ROWS: Final = 64
LONG_ROWS: Final = 128
"""Rows of a tile at most, where texts are short and where they are long."""


@dataclass(frozen=True)
class AttentionTables:
    """How a batch is cut: the rows of each program and the texts that they belong to.

    Attributes:
        block_m: Rows of a tile at most: `SHORT_ROWS` or `LONG_ROWS`.
        shared: Whether several texts may share a tile.
        tiles: [P, 4], int32: a tile's rows are first … last - 1, and their keys those of the texts
            text_first … text_last - 1. A tile without rows (first ≥ last) does nothing. P is at most
            T // block_m + N, and where tiles are shared 3 T // block_m + 1, which depends on no length.
        offsets: [N + 1], int32: the texts' starts.
    """

    block_m: int
    shared: bool
    tiles: torch.Tensor
    offsets: torch.Tensor


@dataclass(frozen=True)
class AttentionConfig:
    """How a program works.

    Attributes:
        block_m: Rows of one program: queries. A tile of more is several programs'.
        block_n: Keys of one block.
        depth: Columns of queries and keys that are multiplied at once: all, or a part in fp32.
        num_warps: Warps of one program.
        num_stages: Blocks of keys that are on their way at once.
    """

    block_m: int
    block_n: int
    depth: int
    num_warps: int
    num_stages: int


def default_config(tile_rows: int, head_dim: int, dtype: torch.dtype, target: Target) -> AttentionConfig:
    """Choose blocks and warps for tiles of `tile_rows` rows; 1 for one query a text.

    A warp has 16 rows, the least that tensor cores take. 64 keys at a time are 32 scores a thread beside as
    many sums, which lets four programs of 64 rows, or two of 128, run on an SM (128 registers a thread).
    Where that is too much, as for 128 columns a head, or for 128 rows on sm_80, whose tensor cores take their
    operands from registers, it is 32. With 32 columns or less there is little to read again, and tiles of 128
    rows are cut in two. Three stages: the keys after the next are on their way while a block is worked on.

    - AMD: 32 keys and no stages, for LDS is scarce, and more waves on a SIMD hide each other's loads.
    - fp32 has no tensor cores of its precision, and registers hold the operands: this is what does not spill.
    - One query a text: 4,096 elements of keys and as many of values in flight in each of ten programs on
      an SM, many times what covers the latency of memory; two warps, for their sums have to meet.
    """
    if tile_rows == 1:
        return AttentionConfig(1, min(128, 4096 // head_dim), head_dim, num_warps=2, num_stages=1)
    if dtype == torch.float32:
        return AttentionConfig(32, 16, 16, num_warps=4, num_stages=1)
    before_hopper = target.backend == "cuda" and target.capability < 90
    rows = SHORT_ROWS if head_dim <= 32 and not before_hopper else tile_rows
    if target.backend == "hip":
        return AttentionConfig(rows, 32, head_dim, rows // 16, num_stages=1)
    few = head_dim == 128 or (before_hopper and rows == LONG_ROWS)
    return AttentionConfig(rows, 32 if few else 64, head_dim, rows // 16, num_stages=3)


@triton.jit
def _scores(
    query,  # [BLOCK_M, D], or where DEPTH < D the rows' addresses [BLOCK_M, 1]
    key_ptrs,  # [BLOCK_N, 1]
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """The products q · k in fp32, [BLOCK_M, BLOCK_N]."""
    columns = tl.arange(0, DEPTH)[None, :]
    if DEPTH < D:
        scores = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
        for column in tl.static_range(0, D, DEPTH):
            query_part = tl.load(query + column + columns)  # [BLOCK_M, DEPTH]
            key_part = tl.load(key_ptrs + column + columns)  # [BLOCK_N, DEPTH]
            scores = tl.dot(query_part, key_part.T, scores, input_precision="ieee")
    else:
        key = tl.load(key_ptrs + columns)  # [BLOCK_N, D]
        if BLOCK_M == 1:
            scores = tl.sum(query.to(tl.float32) * key.to(tl.float32), axis=1)[None, :]
        else:
            scores = tl.dot(query, key.T, input_precision="ieee")
    return scores


@triton.jit
def _visit(
    accumulator,  # [BLOCK_M, D], the weighted sum of values so far
    maximum,  # [BLOCK_M], the largest score so far, as a power of 2
    total,  # [BLOCK_M], the sum of weights so far
    query,  # as `_scores` takes it
    key_ptr,  # [T, D], of this head
    value_ptr,  # [T, D], of this head
    low,  # [BLOCK_M], the first key that a row sees
    high,  # [BLOCK_M], the key behind the last one
    stride_key_t,
    first,
    last,
    scale,
    D: tl.constexpr,
    MASK: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Go over the keys first … last - 1 and return the first three arguments as they are then.

    MASK says what a row sees: "all" of these keys, "range" low … high - 1 of them, and "finite" the same,
    where values that are not finite must not reach the rows that do not see them.
    """
    columns = tl.arange(0, D)[None, :]
    # The rare second pass ("finite") is not pipelined, which would raise the registers of all.
    for start in tl.range(first, last, BLOCK_N, num_stages=1 if MASK == "finite" else None):
        keys = start + tl.arange(0, BLOCK_N)
        # Behind the end the last key is read again. Addresses that are carried along take more registers.
        offsets = tl.minimum(keys, last - 1).to(tl.int64)[:, None] * stride_key_t
        scores = _scores(query, key_ptr + offsets, D, DEPTH, BLOCK_M, BLOCK_N)  # [BLOCK_M, BLOCK_N]
        value_ptrs = value_ptr + offsets + columns  # [BLOCK_N, D]
        value = tl.load(value_ptrs)  # [BLOCK_N, D]
        if MASK == "finite":
            spoilt = tl.sum(value.to(tl.float32) * 0.0, axis=1)  # [BLOCK_N], 0 or NaN
            value = tl.load(value_ptrs, mask=(spoilt == 0.0)[:, None], other=0.0)  # [BLOCK_N, D]
        if MASK == "all":
            scores = tl.where((keys < last)[None, :], scores, float("-inf"))
        else:
            inside = (keys[None, :] >= low[:, None]) & (keys[None, :] < high[:, None])
            scores = tl.where(inside, scores, float("-inf"))
        new_maximum = tl.maximum(maximum, tl.max(scores, axis=1) * scale)
        base = new_maximum
        if MASK != "all":  # a row may have seen nothing yet: -inf - -inf would be NaN
            base = tl.where(new_maximum == float("-inf"), 0.0, new_maximum)
        weights = tl.exp2(scores * scale - base[:, None])
        if MASK == "finite":
            weights = tl.where(inside, weights + spoilt[None, :], 0.0)
        correction = tl.exp2(maximum - base)
        total = total * correction + tl.sum(weights, axis=1)
        accumulator = accumulator * correction[:, None]
        if BLOCK_M == 1:
            accumulator += tl.sum(tl.trans(weights) * value.to(tl.float32), axis=0)[None, :]
        else:
            accumulator = tl.dot(weights.to(value.dtype), value, accumulator, input_precision="ieee")
        maximum = new_maximum
    return accumulator, maximum, total


@triton.jit
def _own_texts(rows, offsets_ptr, text_first, text_last):
    """The keys of each row's text, (first, behind the last), each [BLOCK_M]."""
    low = tl.zeros_like(rows)
    high = tl.zeros_like(rows)
    for text in range(text_first, text_last):  # few, and one where the tile is not shared
        start = tl.load(offsets_ptr + text)
        low = tl.where(rows >= start, start, low)
        high = tl.where(rows >= start, tl.load(offsets_ptr + text + 1), high)
    return low, high


@triton.jit
def _attention_kernel(
    query_ptr,  # [R, H, D]
    key_ptr,  # [T, H, D]
    value_ptr,  # [T, H, D], with the strides of the keys
    tile_ptr,  # [P, 4]
    offsets_ptr,  # [N + 1]
    output_ptr,  # [R, H, D]
    stride_query_r,
    stride_query_h,
    stride_key_t,
    stride_key_h,
    num_heads,
    window,
    scale,  # log2(e) / √head_dim, so that weights are powers of 2
    D: tl.constexpr,
    WINDOW: tl.constexpr,
    FIRST_TOKEN: tl.constexpr,
    SHARED: tl.constexpr,
    FP32: tl.constexpr,
    PARTS: tl.constexpr,
    DEPTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Attention of one tile of rows, or one of its PARTS, in one head."""
    part = tl.program_id(0) // num_heads
    tile = part // PARTS
    head = (tl.program_id(0) % num_heads).to(tl.int64)
    if FIRST_TOKEN:
        first, last, text_first, text_last = tile, tile + 1, tile, tile + 1
    else:
        first = tl.load(tile_ptr + 4 * tile) + part % PARTS * BLOCK_M
        last = tl.minimum(tl.load(tile_ptr + 4 * tile + 1), first + BLOCK_M)
        if first >= last:
            return
        text_first = tl.load(tile_ptr + 4 * tile + 2)
        text_last = tl.load(tile_ptr + 4 * tile + 3)
    key_first = tl.load(offsets_ptr + text_first)
    key_last = tl.load(offsets_ptr + text_last)
    shared = text_last - text_first > 1
    rows = first + tl.arange(0, BLOCK_M)
    low, high = rows, rows
    if not FIRST_TOKEN and (WINDOW or FP32 or SHARED):
        low, high = _own_texts(rows, offsets_ptr, text_first, text_last)
    if WINDOW:
        if FIRST_TOKEN:
            key_last = tl.minimum(key_last, key_first + window + 1)
        else:
            low, high = tl.maximum(low, rows - window), tl.minimum(high, rows + window + 1)
            key_first = tl.maximum(key_first, first - window)
            key_last = tl.minimum(key_last, last + window)
    columns = tl.arange(0, D)[None, :]
    # Behind the tile's end its last row is read again, and not written.
    query = tl.minimum(rows, last - 1).to(tl.int64)[:, None] * stride_query_r + head * stride_query_h
    query += query_ptr  # [BLOCK_M, 1]
    if DEPTH == D:
        query = tl.load(query + columns)  # [BLOCK_M, D]
    key_ptr += head * stride_key_h
    value_ptr += head * stride_key_h
    accumulator = tl.zeros([BLOCK_M, D], tl.float32)
    maximum = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    if not FIRST_TOKEN and (WINDOW or FP32 or (SHARED and shared)):
        # In fp32, where values pass through registers anyway, one loop for all takes fewest of them.
        accumulator, maximum, total = _visit(
            accumulator, maximum, total, query, key_ptr, value_ptr, low, high, stride_key_t, key_first,
            key_last, scale, D, "finite" if SHARED and FP32 else "range", DEPTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip
        if SHARED and not FP32:
            spoilt = tl.max((accumulator != accumulator).to(tl.int32)) > 0  # of all elements
            if shared & spoilt:
                accumulator, maximum, total = _visit(
                    tl.zeros_like(accumulator), tl.full([BLOCK_M], float("-inf"), tl.float32),
                    tl.zeros_like(total), query, key_ptr, value_ptr, low, high, stride_key_t, key_first,
                    key_last, scale, D, "finite", DEPTH, BLOCK_M, 16,
                )  # fmt: skip
    else:
        accumulator, maximum, total = _visit(
            accumulator, maximum, total, query, key_ptr, value_ptr, rows, rows, stride_key_t, key_first,
            key_last, scale, D, "all", DEPTH, BLOCK_M, BLOCK_N,
        )  # fmt: skip
    # A row without keys (a text without tokens) has summed nothing and gets zeros.
    accumulator = accumulator / tl.where(total == 0.0, 1.0, total)[:, None]
    output_ptrs = output_ptr + (rows.to(tl.int64)[:, None] * num_heads + head) * D + columns
    tl.store(output_ptrs, accumulator.to(output_ptr.dtype.element_ty), mask=(rows < last)[:, None])


def plan_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    tables: AttentionTables,
    output: torch.Tensor,
    *,
    window: int | None,
    first_token: bool,
) -> tuple[Launch, ...]:
    """Write down the launch that fills `output` [R, H · head_dim], R = T, or N with `first_token`.

    Queries [R, H, head_dim], keys and values [T, H, head_dim] have a contiguous last axis, and the last two
    the same strides. With `first_token` the queries are those of the texts' first tokens alone. A token sees
    `window` tokens to each side, or its whole text where that is None.
    """
    num_rows, num_heads, head_dim = query.shape
    config = default_config(1 if first_token else tables.block_m, head_dim, query.dtype, target())
    parts = 1 if first_token else tables.block_m // config.block_m
    num_tiles = num_rows if first_token else tables.tiles.shape[0]
    arguments: dict[str, Any] = {
        "query_ptr": query,
        "key_ptr": key,
        "value_ptr": value,
        "tile_ptr": tables.tiles,
        "offsets_ptr": tables.offsets,
        "output_ptr": output,
        "stride_query_r": query.stride(0),
        "stride_query_h": query.stride(1),
        "stride_key_t": key.stride(0),
        "stride_key_h": key.stride(1),
        "num_heads": num_heads,
        "window": window or 0,
        "scale": math.log2(math.e) / math.sqrt(head_dim),
        "D": head_dim,
        "WINDOW": window is not None,
        "FIRST_TOKEN": first_token,
        "SHARED": tables.shared,
        "FP32": query.dtype == torch.float32,
        "PARTS": parts,
        "DEPTH": config.depth,
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
    }
    grid = (num_tiles * parts * num_heads,)
    return (Launch(_attention_kernel, grid, arguments, config.num_warps, config.num_stages),)


def launch_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, tables: AttentionTables, **options: Any
) -> torch.Tensor:
    """Allocate the output [R, H · head_dim], launch, and return it; arguments as in `plan_attention`.

    Triton launches on the calling thread's GPU, and a new thread's is the first one: the tensors' is made it.
    """
    output = query.new_empty((query.shape[0], query.shape[1] * query.shape[2]))
    with torch.cuda.device_of(query):  # does nothing for tensors on the CPU
        run_all(plan_attention(query, key, value, tables, output, **options))
    return output
