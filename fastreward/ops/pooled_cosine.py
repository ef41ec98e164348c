"""The door to `pooled_cosine`: packed hidden states → one cosine with a reference for each text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, get_args, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import resolve_op
from fastreward.errors import InputError
from fastreward.ops.checks import FLOAT_DTYPES, check_offsets, describe, require
from fastreward.ops.normalization import unit_vectors

Pooling = Literal["mean", "cls", "last", "max"]
"""How the hidden states of a text become one vector: their mean, the first, the last, or the maximum."""

POOLINGS: Final[tuple[str, ...]] = get_args(Pooling)

CHUNK_TOKENS: Final = 256
"""A text's sum is the sum of its chunks' sums, chunks counted from its own first token. This fixes the order
of additions whatever else is in the batch and keeps the rounding of long sums small."""

MAX_HIDDEN_SIZE: Final = 4096
MAX_LAYER_NORM_SIZE: Final = 1024


@dataclass(frozen=True)
class LastLayerNorm:
    """The encoder's last residual add and LayerNorm, applied on the way into the pooling.

    Attributes:
        residual: [T, D], added to the hidden states.
        weight: [D].
        bias: [D] or None.
        eps: Added to the variance.
    """

    residual: Tensor
    weight: Tensor
    bias: Tensor | None
    eps: float


@overload
def pooled_cosine(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    references: Tensor,
    reference_index: Tensor,
    *,
    pooling: Pooling = ...,
    max_seqlen: int | None = ...,
    layer_norm: LastLayerNorm | None = ...,
    return_embeddings: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def pooled_cosine(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    references: Tensor,
    reference_index: Tensor,
    *,
    pooling: Pooling = ...,
    max_seqlen: int | None = ...,
    layer_norm: LastLayerNorm | None = ...,
    return_embeddings: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def pooled_cosine(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    references: Tensor,
    reference_index: Tensor,
    *,
    pooling: Pooling = "mean",
    max_seqlen: int | None = None,
    layer_norm: LastLayerNorm | None = None,
    return_embeddings: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Pool each text, L2-normalise, and take the cosine with the reference the text points to.

    For text n with tokens h_s … h_{e-1}, (s, e) = cu_seqlens[n : n + 2]:

        p = mean, first, last or elementwise maximum of h        (h ← LayerNorm(h + residual) if asked)
        u = p / |p|,  score = u · r / |r|,  r = references[reference_index[n]]

    All sums are fp32 whatever the inputs are. A text without tokens, a zero vector and a zero reference score
    0.0. A group of completions shares one row of `references`.

    Args:
        hidden_states: [T, D], fp32, fp16 or bf16, the texts one after another. D ≤ 4096 (1024 with
            `layer_norm`); the last axis is contiguous.
        cu_seqlens: [N + 1], int32, on the same device: starts of the texts, cu_seqlens[0] = 0, growing,
            at most T. Rows behind cu_seqlens[N] are ignored.
        references: [R, D], fp32, fp16 or bf16; they need not have unit length.
        reference_index: [N], int32 or int64, values in [0, R).
        pooling: How a text's hidden states become one vector.
        max_seqlen: The longest text in tokens, or a bound on it; None reckons with T. A bound of 256 or less
            lets CUDA do it in one launch.
        layer_norm: The residual add and LayerNorm to apply first.
        return_embeddings: Also return the unit vectors.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        Scores [N], fp32, in [-1, 1]; with `return_embeddings` also the unit vectors [N, D], fp32.

    Raises:
        InputError: If a shape, dtype or device does not fit; on the CPU also if a value does not. On CUDA
            values are not looked at, for that would wait for the GPU: offsets must be right, and a
            `reference_index` out of range gives NaN in the Triton back-end.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> hidden_states = torch.tensor([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0]])
        >>> cu_seqlens = torch.tensor([0, 2, 3], dtype=torch.int32)
        >>> references = torch.tensor([[1.0, 0.0]])
        >>> pooled_cosine(hidden_states, cu_seqlens, references, torch.tensor([0, 0]))
        tensor([0.7071, 1.0000])

    Source: mean pooling and cosine as in Sentence-BERT (arXiv 1908.10084); as a reward, arXiv 2509.13081.
    """
    _check(hidden_states, cu_seqlens, pooling, max_seqlen, layer_norm)
    _check_references(hidden_states, cu_seqlens, references, reference_index)
    if resolve_op("pooled_cosine", hidden_states.device, backend) == "torch":
        scores, embeddings = pooled_cosine_reference(
            hidden_states, cu_seqlens, references, reference_index, pooling=pooling, layer_norm=layer_norm
        )
        return (scores, embeddings) if return_embeddings else scores
    launched_scores, launched_embeddings = _launch(
        hidden_states,
        cu_seqlens,
        pooling,
        max_seqlen,
        layer_norm,
        references=references,
        reference_index=reference_index,
        embed=return_embeddings,
    )
    assert launched_scores is not None
    if launched_embeddings is None:
        return launched_scores
    return launched_scores, launched_embeddings


def pooled_embedding(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    *,
    pooling: Pooling = "mean",
    max_seqlen: int | None = None,
    layer_norm: LastLayerNorm | None = None,
    backend: str | None = None,
) -> Tensor:
    """Pool each text and L2-normalise: `pooled_cosine` without references.

    Args:
        hidden_states: [T, D], as in `pooled_cosine`.
        cu_seqlens: [N + 1], int32.
        pooling: How a text's hidden states become one vector.
        max_seqlen: The longest text in tokens, or a bound on it.
        layer_norm: The residual add and LayerNorm to apply first.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        Unit vectors [N, D], fp32; zeros for a text without tokens.

    Raises:
        InputError: As in `pooled_cosine`.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> cu_seqlens = torch.tensor([0, 2], dtype=torch.int32)
        >>> pooled_embedding(torch.tensor([[3.0, 0.0], [0.0, 4.0]]), cu_seqlens)
        tensor([[0.6000, 0.8000]])
    """
    _check(hidden_states, cu_seqlens, pooling, max_seqlen, layer_norm)
    if resolve_op("pooled_cosine", hidden_states.device, backend) == "torch":
        return unit_vectors(_pool(hidden_states, cu_seqlens, pooling, layer_norm))
    _, embeddings = _launch(hidden_states, cu_seqlens, pooling, max_seqlen, layer_norm, embed=True)
    assert embeddings is not None
    return embeddings


def pooled_cosine_reference(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    references: Tensor,
    reference_index: Tensor,
    *,
    pooling: Pooling = "mean",
    layer_norm: LastLayerNorm | None = None,
) -> tuple[Tensor, Tensor]:
    """Define `pooled_cosine` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Formula, arguments, edge cases and source are those of `pooled_cosine`; nothing is checked here.

    Returns:
        Scores [N] and unit vectors [N, D], fp32.
    """
    embeddings = unit_vectors(_pool(hidden_states, cu_seqlens, pooling, layer_norm))
    chosen = unit_vectors(references.float())[reference_index]
    return (embeddings * chosen).sum(dim=-1).clamp(-1.0, 1.0), embeddings


def pooled_cosine_bytes(
    num_tokens: int, num_texts: int, hidden_size: int, hidden_dtype: torch.dtype, *, layer_norm: bool
) -> int:
    """Count the bytes that `pooled_cosine` must move: hidden states (and residual) once, scores once.

    References are shared by a group and stay in the cache; they are not counted.
    """
    rows = num_tokens * hidden_size * hidden_dtype.itemsize
    return rows * (2 if layer_norm else 1) + 4 * num_texts


def _pool(
    hidden_states: Tensor, cu_seqlens: Tensor, pooling: Pooling, layer_norm: LastLayerNorm | None
) -> Tensor:
    """Pool to [N, D] in fp32; zeros for a text without tokens."""
    starts, ends = cu_seqlens[:-1].long(), cu_seqlens[1:].long()
    lengths = ends - starts
    if not int(lengths.sum()):
        shape = (lengths.shape[0], hidden_states.shape[1])
        return torch.zeros(shape, dtype=torch.float32, device=hidden_states.device)
    if pooling in ("cls", "last"):
        rows = starts if pooling == "cls" else ends - 1
        rows = rows.clamp(0, hidden_states.shape[0] - 1)
        pooled = _normed(hidden_states, layer_norm, rows)
    else:
        num_tokens = int(cu_seqlens[-1])
        x = _normed(hidden_states[:num_tokens], layer_norm, slice(0, num_tokens))
        chunks = (lengths + CHUNK_TOKENS - 1) // CHUNK_TOKENS  # [N]
        text = torch.repeat_interleave(torch.arange(len(chunks), device=x.device), chunks)  # [chunks]
        done = torch.arange(len(text), device=x.device) - (chunks.cumsum(0) - chunks)[text]
        chunk_lengths = (lengths[text] - done * CHUNK_TOKENS).clamp(max=CHUNK_TOKENS)
        reduce = "max" if pooling == "max" else "sum"
        pooled = torch.segment_reduce(x, reduce, lengths=chunk_lengths, axis=0)
        pooled = torch.segment_reduce(pooled, reduce, lengths=chunks, axis=0)
        if pooling == "mean":
            pooled = pooled / lengths.clamp(min=1)[:, None].float()
    return torch.where(lengths[:, None] > 0, pooled, 0.0)


def _normed(hidden_states: Tensor, layer_norm: LastLayerNorm | None, rows: Tensor | slice) -> Tensor:
    x = hidden_states[rows].float()
    if layer_norm is None:
        return x
    bias = None if layer_norm.bias is None else layer_norm.bias.float()
    x = x + layer_norm.residual[rows].float()
    return F.layer_norm(x, x.shape[-1:], layer_norm.weight.float(), bias, layer_norm.eps)


def _launch(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    pooling: Pooling,
    max_seqlen: int | None,
    layer_norm: LastLayerNorm | None,
    *,
    embed: bool,
    references: Tensor | None = None,
    reference_index: Tensor | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    from fastreward.kernels.pooled_cosine import launch_pooled_cosine

    return launch_pooled_cosine(
        hidden_states,
        cu_seqlens,
        score=references is not None,
        embed=embed,
        pooling=pooling,
        max_seqlen=hidden_states.shape[0] if max_seqlen is None else max_seqlen,
        references=references,
        reference_index=reference_index,
        residual=None if layer_norm is None else layer_norm.residual,
        weight=None if layer_norm is None else layer_norm.weight,
        bias=None if layer_norm is None else layer_norm.bias,
        eps=0.0 if layer_norm is None else layer_norm.eps,
    )


def _check(
    hidden_states: Tensor,
    cu_seqlens: Tensor,
    pooling: str,
    max_seqlen: int | None,
    layer_norm: LastLayerNorm | None,
) -> None:
    require(
        hidden_states.ndim == 2
        and hidden_states.dtype in FLOAT_DTYPES
        and 1 <= hidden_states.shape[1] <= MAX_HIDDEN_SIZE
        and (hidden_states.stride(1) == 1 or hidden_states.shape[1] == 1),
        "hidden_states",
        f"[T, D] in float32, float16 or bfloat16, D from 1 to {MAX_HIDDEN_SIZE}, last axis contiguous",
        hidden_states,
    )
    device = hidden_states.device
    require(
        cu_seqlens.ndim == 1
        and cu_seqlens.shape[0] >= 1
        and cu_seqlens.dtype == torch.int32
        and cu_seqlens.is_contiguous()
        and cu_seqlens.device == device,
        "cu_seqlens",
        f"[N + 1] in int32 on {device}",
        cu_seqlens,
    )
    if pooling not in POOLINGS:
        raise InputError(f"pooling among {', '.join(POOLINGS)}", repr(pooling), "Correct the name.")
    if max_seqlen is not None and max_seqlen < 0:
        raise InputError("max_seqlen of 0 or more", str(max_seqlen), "Pass the longest text in tokens.")
    if layer_norm is not None:
        _check_layer_norm(hidden_states, layer_norm)
    if device.type == "cpu":
        check_offsets(hidden_states.shape[0], cu_seqlens, max_seqlen)


def _check_layer_norm(hidden_states: Tensor, layer_norm: LastLayerNorm) -> None:
    hidden_size = hidden_states.shape[1]
    if hidden_size > MAX_LAYER_NORM_SIZE:
        raise InputError(
            f"D of {MAX_LAYER_NORM_SIZE} at most with layer_norm",
            str(hidden_size),
            "Apply the LayerNorm before the call.",
        )
    residual = layer_norm.residual
    require(
        residual.shape == hidden_states.shape
        and residual.dtype in FLOAT_DTYPES
        and residual.device == hidden_states.device
        and (residual.stride(1) == 1 or hidden_size == 1),
        "layer_norm.residual",
        f"like hidden_states, {describe(hidden_states)}",
        residual,
    )
    for name, vector in (("weight", layer_norm.weight), ("bias", layer_norm.bias)):
        if vector is not None:
            require(
                vector.shape == (hidden_size,)
                and vector.is_floating_point()
                and vector.device == hidden_states.device
                and vector.is_contiguous(),
                f"layer_norm.{name}",
                f"[{hidden_size}], floating point, on {hidden_states.device}",
                vector,
            )


def _check_references(
    hidden_states: Tensor, cu_seqlens: Tensor, references: Tensor, reference_index: Tensor
) -> None:
    num_texts, device = cu_seqlens.shape[0] - 1, hidden_states.device
    require(
        references.ndim == 2
        and references.shape[1] == hidden_states.shape[1]
        and references.dtype in FLOAT_DTYPES
        and references.device == device
        and (references.stride(1) == 1 or references.shape[1] == 1),
        "references",
        f"[R, {hidden_states.shape[1]}] in float32, float16 or bfloat16 on {device}",
        references,
    )
    require(
        reference_index.shape == (num_texts,)
        and reference_index.dtype in (torch.int32, torch.int64)
        and reference_index.is_contiguous()
        and reference_index.device == device,
        "reference_index",
        f"[{num_texts}] in int32 or int64 on {device}",
        reference_index,
    )
    if device.type == "cpu" and num_texts:
        low, high = int(reference_index.min()), int(reference_index.max())
        if low < 0 or high >= references.shape[0]:
            raise InputError(
                f"reference_index from 0 to {references.shape[0] - 1}",
                f"values from {low} to {high}",
                "Pass the row of `references` for each text.",
            )
