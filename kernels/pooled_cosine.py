"""Pooling, L2 norm and cosine with a reference in one pass over packed hidden states.

One program reads one text (or one chunk of a long one) tile by tile, sums in fp32, and, when it holds the
whole text, normalises and takes the dot product with the reference vector that the text points to. Hidden
states are read once and nothing of size [T, D] is written. Optionally the encoder's last residual add and
LayerNorm are applied to each tile on its way in.

A text longer than `CHUNK_TOKENS` is split at chunks counted from its own first token. Each chunk's sum goes
to a slot of its own, and a second kernel adds the slots of a text in a fixed order: no atomics, and nothing
depends on what else is in the batch. Chunk c of text n, whose first token is `start`, has the slot

    floor(start / CHUNK_TOKENS) + n + c,

which is distinct for all chunks (floor(a + b) ≥ floor(a) + floor(b), and ceil(b) ≤ floor(b) + 1), so that
neither the slots nor the grid need a look at the lengths on the host: there are at most
floor(T / CHUNK_TOKENS) + N of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import triton
import triton.language as tl

from fastreward.kernels.launch import Launch, run_all
from fastreward.kernels.layer_norm import standardise

CHUNK_TOKENS: Final = 256
"""Tokens of one chunk of a long text: few enough that one 32k-token text fills 128 programs, and enough that
a text of common length (most are shorter) is one program's work. Part of the result's bits: never tuned."""


@dataclass(frozen=True)
class PooledCosineConfig:
    """How the work is cut.

    Attributes:
        block_t: Tokens of one tile.
        block_d: Columns of one tile: D rounded up to a power of two.
        num_warps: Warps of one program.
    """

    block_t: int
    block_d: int
    num_warps: int


def default_config(hidden_size: int, *, layer_norm: bool) -> PooledCosineConfig:
    """Choose the tile for a hidden size; never by the number of texts, which must not change a bit.

    8,192 elements on 8 warps are 32 fp32 sums a thread: few enough to keep four programs on an SM, 16 KiB of
    bf16 in flight in each (an H100 covers its memory latency with about 17 KiB an SM), and enough rows that
    a short text takes few round trips. With LayerNorm a tile is read twice and lives longer: half of it keeps
    as many bytes in flight and, in fp32 on sm_80, spills no register. Rows stop at 64, where a narrow tile
    would hold more rows than most texts have tokens.
    """
    block_d = max(16, triton.next_power_of_2(hidden_size))
    elements = 4096 if layer_norm else 8192
    return PooledCosineConfig(block_t=min(64, max(1, elements // block_d)), block_d=block_d, num_warps=8)


@triton.jit
def _nan_max(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _affine(x, weight_ptr, bias_ptr, columns, inside, HAS_BIAS: tl.constexpr):
    """LayerNorm's weight and bias on the last axis of x."""
    x *= tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_D]
    if HAS_BIAS:
        x += tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)  # [BLOCK_D]
    return x


@triton.jit
def _pool_rows(
    hidden_ptr,  # [T, D]
    residual_ptr,  # [T, D]
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    stride_hidden_t,
    stride_residual_t,
    first,
    last,
    eps,
    D: tl.constexpr,
    MAX: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum (or maximum) of the rows first … last - 1, as fp32 [BLOCK_D]."""
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    identity = float("-inf") if MAX else 0.0
    # Rows stay apart until the end: one reduction across warps for a text instead of one for a tile.
    total = tl.full([BLOCK_T, BLOCK_D], identity, tl.float32)
    for tile in range(first, last, BLOCK_T):
        rows = (tile + tl.arange(0, BLOCK_T)).to(tl.int64)
        mask = (rows < last)[:, None] & inside[None, :]  # [BLOCK_T, BLOCK_D]
        hidden_ptrs = hidden_ptr + rows[:, None] * stride_hidden_t + columns[None, :]
        x = tl.load(hidden_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_D]
        if LAYER_NORM:
            residual_ptrs = residual_ptr + rows[:, None] * stride_residual_t + columns[None, :]
            x += tl.load(residual_ptrs, mask=mask, other=0.0).to(tl.float32)  # [BLOCK_T, BLOCK_D]
            x = standardise(x, inside, eps, D)
            if MAX:  # a mean commutes with weight and bias, and takes them once a text
                x = _affine(x, weight_ptr, bias_ptr, columns, inside, HAS_BIAS)
        x = tl.where(mask, x, identity)
        total = _nan_max(total, x) if MAX else total + x
    return tl.reduce(total, 0, _nan_max) if MAX else tl.sum(total, axis=0)


@triton.jit
def _unit_vector(x):
    """Normalise x [BLOCK_D], zeros staying zeros; scaled first, so that no square overflows or vanishes."""
    largest = tl.max(tl.abs(x), axis=0)
    x = x / tl.where(largest == 0.0, 1.0, largest)
    norm = tl.sqrt(tl.sum(x * x, axis=0))
    return x / tl.where(norm == 0.0, 1.0, norm)


@triton.jit
def _finish(
    pooled,  # [BLOCK_D]
    text,
    reference_ptr,  # [R, D]
    reference_index_ptr,  # [N]
    score_ptr,  # [N]
    embedding_ptr,  # [N, D]
    stride_reference_r,
    num_references,
    D: tl.constexpr,
    SCORE: tl.constexpr,
    EMBEDDING: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Normalise one text's pooled vector and write its unit vector, its score, or both."""
    columns = tl.arange(0, BLOCK_D)
    inside = columns < D
    unit = _unit_vector(tl.where(inside, pooled, 0.0))
    if EMBEDDING:
        tl.store(embedding_ptr + text * D + columns, unit, mask=inside)
    if SCORE:
        row = tl.load(reference_index_ptr + text).to(tl.int64)
        known = (row >= 0) & (row < num_references)  # memory outside the references is never read
        reference_ptrs = reference_ptr + row * stride_reference_r + columns
        readable = columns < tl.where(known, D, 0)
        reference = tl.load(reference_ptrs, mask=readable, other=0.0).to(tl.float32)  # [BLOCK_D]
        cosine = tl.sum(unit * _unit_vector(reference), axis=0)
        cosine = tl.clamp(cosine, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL)
        tl.store(score_ptr + text, tl.where(known, cosine, float("nan")))


@triton.jit
def _text_of_slot(slot, cu_seqlens_ptr, num_texts, CHUNK: tl.constexpr):
    """The last text whose first slot is not behind `slot`, by bisection: first slots only grow."""
    low = 0
    high = num_texts - 1
    while low < high:
        middle = (low + high + 1) // 2
        if tl.load(cu_seqlens_ptr + middle) // CHUNK + middle <= slot:
            low = middle
        else:
            high = middle - 1
    return low


@triton.jit(do_not_specialize=["num_tokens", "num_texts"])
def _chunk_kernel(
    hidden_ptr,  # [T, D]
    residual_ptr,  # [T, D]
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    cu_seqlens_ptr,  # [N + 1]
    partial_ptr,  # [slots, D]
    stride_hidden_t,
    stride_residual_t,
    num_tokens,
    num_texts,
    eps,
    D: tl.constexpr,
    MAX: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Sum (or maximum) of one chunk of one text into its slot; slots that no chunk owns are left alone."""
    slot = tl.program_id(0)
    text = _text_of_slot(slot, cu_seqlens_ptr, num_texts, CHUNK)
    start = tl.load(cu_seqlens_ptr + text)
    end = tl.minimum(tl.load(cu_seqlens_ptr + text + 1), num_tokens)
    first = start + (slot - (start // CHUNK + text)) * CHUNK
    if first < end:
        last = tl.minimum(first + CHUNK, end)
        pooled = _pool_rows(
            hidden_ptr, residual_ptr, weight_ptr, bias_ptr, stride_hidden_t, stride_residual_t, first, last,
            eps, D, MAX, LAYER_NORM, HAS_BIAS, BLOCK_T, BLOCK_D,
        )  # fmt: skip
        columns = tl.arange(0, BLOCK_D)
        tl.store(partial_ptr + slot.to(tl.int64) * D + columns, pooled, mask=columns < D)


@triton.jit(do_not_specialize=["num_tokens", "num_references"])
def _pooled_cosine_kernel(
    hidden_ptr,  # [T, D], or with SPLIT the chunks' sums [slots, D]
    residual_ptr,  # [T, D]
    weight_ptr,  # [D]
    bias_ptr,  # [D]
    cu_seqlens_ptr,  # [N + 1]
    reference_ptr,  # [R, D]
    reference_index_ptr,  # [N]
    score_ptr,  # [N]
    embedding_ptr,  # [N, D]
    stride_hidden_t,
    stride_residual_t,
    stride_reference_r,
    num_tokens,
    num_references,
    eps,
    D: tl.constexpr,
    POOLING: tl.constexpr,
    LAYER_NORM: tl.constexpr,
    AFFINE: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    SCORE: tl.constexpr,
    EMBEDDING: tl.constexpr,
    SPLIT: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Pool one text from its rows (or from its chunks' sums), normalise, score."""
    text = tl.program_id(0).to(tl.int64)
    start = tl.load(cu_seqlens_ptr + text)
    end = tl.minimum(tl.load(cu_seqlens_ptr + text + 1), num_tokens)
    length = tl.maximum(end - start, 0)
    first = start
    last = start + length
    if SPLIT:
        first = start // CHUNK + text
        last = first + tl.cdiv(length, CHUNK)
    if POOLING == "cls":
        last = tl.minimum(first + 1, last)
    if POOLING == "last":
        first = tl.maximum(first, last - 1)
    pooled = _pool_rows(
        hidden_ptr, residual_ptr, weight_ptr, bias_ptr, stride_hidden_t, stride_residual_t, first, last,
        eps, D, POOLING == "max", LAYER_NORM, HAS_BIAS, BLOCK_T, BLOCK_D,
    )  # fmt: skip
    columns = tl.arange(0, BLOCK_D)
    if POOLING == "mean":
        pooled = pooled / tl.maximum(length, 1).to(tl.float32)
    if AFFINE and POOLING != "max":
        pooled = _affine(pooled, weight_ptr, bias_ptr, columns, columns < D, HAS_BIAS)
    pooled = tl.where(length > 0, pooled, 0.0)  # a text without tokens scores 0
    _finish(
        pooled, text, reference_ptr, reference_index_ptr, score_ptr, embedding_ptr, stride_reference_r,
        num_references, D, SCORE, EMBEDDING, BLOCK_D,
    )  # fmt: skip


def plan_pooled_cosine(
    hidden_states: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    pooling: str,
    max_seqlen: int,
    references: torch.Tensor | None,
    reference_index: torch.Tensor | None,
    residual: torch.Tensor | None,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    eps: float,
    scores: torch.Tensor | None,
    embeddings: torch.Tensor | None,
) -> tuple[Launch, ...]:
    """Write down the launches that fill `scores` [N] and `embeddings` [N, D] (fp32, each may be None).

    The arguments are those of `fastreward.ops.pooled_cosine`, already checked. One launch, or two where a
    text may be longer than `CHUNK_TOKENS` and its whole length counts.
    """
    num_tokens, hidden_size = hidden_states.shape
    num_texts = cu_seqlens.shape[0] - 1
    config = default_config(hidden_size, layer_norm=residual is not None)
    split = max_seqlen > CHUNK_TOKENS and pooling in ("mean", "max")
    # A pointer that no branch reads still needs an address: the hidden states lend theirs.
    unused = hidden_states
    source: dict[str, Any] = {
        "hidden_ptr": hidden_states,
        "residual_ptr": unused if residual is None else residual,
        "weight_ptr": unused if weight is None else weight,
        "bias_ptr": unused if bias is None else bias,
        "stride_hidden_t": hidden_states.stride(0),
        "stride_residual_t": 0 if residual is None else residual.stride(0),
        "eps": float(eps),  # an int of 1 would be compiled in
        "LAYER_NORM": residual is not None,
        "HAS_BIAS": bias is not None,
    }
    common: dict[str, Any] = {
        "cu_seqlens_ptr": cu_seqlens,
        "num_tokens": num_tokens,
        "D": hidden_size,
        "CHUNK": CHUNK_TOKENS,
        "BLOCK_T": config.block_t,
        "BLOCK_D": config.block_d,
    }
    launches = []
    if split:
        slots = num_tokens // CHUNK_TOKENS + num_texts
        partial = hidden_states.new_empty((slots, hidden_size), dtype=torch.float32)
        arguments = {**source, **common, "partial_ptr": partial, "num_texts": num_texts}
        arguments["MAX"] = pooling == "max"
        launches.append(Launch(_chunk_kernel, (slots if num_texts else 0,), arguments, config.num_warps, 1))
        source |= {"hidden_ptr": partial, "stride_hidden_t": hidden_size, "LAYER_NORM": False}
    arguments = {
        **source,
        **common,
        "reference_ptr": unused if references is None else references,
        "reference_index_ptr": unused if reference_index is None else reference_index,
        "score_ptr": unused if scores is None else scores,
        "embedding_ptr": unused if embeddings is None else embeddings,
        "stride_reference_r": 0 if references is None else references.stride(0),
        "num_references": 0 if references is None else references.shape[0],
        "POOLING": pooling,
        "AFFINE": residual is not None,
        "SCORE": scores is not None,
        "EMBEDDING": embeddings is not None,
        "SPLIT": split,
    }
    launches.append(Launch(_pooled_cosine_kernel, (num_texts,), arguments, config.num_warps, 1))
    return tuple(launches)


def launch_pooled_cosine(
    hidden_states: torch.Tensor, cu_seqlens: torch.Tensor, *, score: bool, embed: bool, **arguments: Any
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Allocate the outputs that are asked for, launch, and return them as (scores [N], embeddings [N, D]).

    Triton launches on the calling thread's GPU, and a new thread's is the first one: the tensors' is made it.
    """
    num_texts, hidden_size = cu_seqlens.shape[0] - 1, hidden_states.shape[1]
    scores = hidden_states.new_empty(num_texts, dtype=torch.float32) if score else None
    embeddings = hidden_states.new_empty((num_texts, hidden_size), dtype=torch.float32) if embed else None
    with torch.cuda.device_of(hidden_states):  # does nothing for tensors on the CPU
        run_all(
            plan_pooled_cosine(hidden_states, cu_seqlens, scores=scores, embeddings=embeddings, **arguments)
        )
    return scores, embeddings
