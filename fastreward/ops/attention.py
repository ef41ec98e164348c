"""The door to packed bidirectional attention: every token sees its own text and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor

from fastreward.backends import Availability, availability
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.attention_backends import (
    Offsets,
    band,
    first_token_by_offsets,
    flash_absence,
    flash_attention,
    flash_versions,
    objection,
    sdpa_attention,
    sdpa_first_token,
    varlen_attention,
)
from fastreward.ops.attention_tiles import attention_tables
from fastreward.ops.checks import FLOAT_DTYPES, check_lengths, check_offsets, describe, require
from fastreward.packing import upload

if TYPE_CHECKING:
    from fastreward.kernels.attention import AttentionTables

ATTENTION_BACKENDS: Final = ("triton", "flash", "varlen", "sdpa")
"""Our kernel; the package flash-attn (FlashAttention-2) or flash-attn-4; the FlashAttention-2 inside PyTorch;
PyTorch's scaled dot product attention over texts of equal length. `None` never means "flash": that a package
is installed is no wish to use it."""


@dataclass(frozen=True)
class AttentionLayout:
    """Where the texts of a batch lie and who attends over them; the same for all layers of an encoder.

    Built by `attention_layout`.

    Attributes:
        backend: One of `ATTENTION_BACKENDS`.
        cu_seqlens: [N + 1], int32, starts of the texts.
        lengths: The N lengths on the host.
        batch_invariant: Whether a text's bits must not depend on its neighbours.
        tables: What the kernel reads; None for the other back-ends.
    """

    backend: str
    cu_seqlens: Tensor
    lengths: tuple[int, ...]
    batch_invariant: bool
    tables: AttentionTables | None

    @cached_property
    def num_tokens(self) -> int:
        """T, the sum of the lengths."""
        return sum(self.lengths)

    @cached_property
    def max_seqlen(self) -> int:
        """The longest text in tokens; 0 in an empty batch."""
        return max(self.lengths, default=0)


def attention_layout(
    cu_seqlens: Tensor, lengths: Sequence[int], *, backend: str, batch_invariant: bool = False
) -> AttentionLayout:
    """Prepare the attention of one batch, once for all layers; what computes copies nothing from the host.

    Args:
        cu_seqlens: [N + 1], int32, contiguous, on the device of the tokens: the running sum of the lengths
            with a 0 before it. Its values are compared with `lengths` on a CPU alone, for on a GPU that would
            mean to wait.
        lengths: The N lengths in tokens, on the host. Sort them to make the runs of equal length long (SDPA)
            and let the longest work begin first (Triton): longest first.
        backend: What `resolve_attention` returned.
        batch_invariant: Compute each text by work whose shape depends on that text alone, so that its bits do
            not depend on its neighbours.

    Returns:
        The layout for `packed_attention` and `first_token_attention`.

    Raises:
        InputError: If `cu_seqlens` and `lengths` do not fit, or there is no back-end of that name.
        BackendUnavailableError: If the back-end does not run on that device.

    Example:
        >>> layout = attention_layout(torch.tensor([0, 2, 5], dtype=torch.int32), [2, 3], backend="sdpa")
        >>> layout.num_tokens, layout.max_seqlen
        (5, 3)
    """
    lengths = tuple(lengths)
    require(
        cu_seqlens.shape == (len(lengths) + 1,)
        and cu_seqlens.dtype == torch.int32
        and cu_seqlens.is_contiguous(),
        "cu_seqlens",
        f"[{len(lengths) + 1}] (one more than there are lengths) in int32",
        cu_seqlens,
    )
    if min(lengths, default=0) < 0:
        raise InputError("lengths of 0 or more", str(min(lengths)), "Pass the tokens of each text.")
    _require_known(backend)
    _require_fit(backend, cu_seqlens.device)
    if cu_seqlens.device.type == "cpu":
        check_offsets(sum(lengths), cu_seqlens, None)
        check_lengths(lengths, cu_seqlens)
    tables = None
    if backend == "triton":
        cut = attention_tables(lengths, batch_invariant=batch_invariant)
        (tiles,) = upload([cut.tiles.flatten().numpy()], cu_seqlens.device)
        tables = replace(cut, tiles=tiles.view(-1, 4), offsets=cu_seqlens)
    return AttentionLayout(backend, cu_seqlens, lengths, batch_invariant, tables)


def packed_attention(qkv: Tensor, layout: AttentionLayout, *, window: int | None = None) -> Tensor:
    """Attend within each text: softmax(q kᵀ / √head_dim) v over packed tokens.

    For token i of a text, and j over the tokens of the same text (with a window: those with |i - j| ≤ w):

        o_i = Σ_j p_ij v_j,   p_ij = exp(s_ij) / Σ_j exp(s_ij),   s_ij = q_i · k_j / √head_dim

    Sums and softmax are fp32; in 16 bits the weights p are rounded to the inputs' dtype before they meet v.
    NaN and infinity stay in their own text.

    Args:
        qkv: [T, 3, H, head_dim]: queries, keys and values of the layout's texts, fp32, fp16 or bf16; the last
            axis is contiguous.
        layout: Where the texts lie, and the back-end.
        window: How far a token sees to each side, 0 or more; None for the whole text. (ModernBERT's
            `local_attention=128` is a window of 64.)

    Returns:
        [T, H · head_dim], in the dtype of `qkv`.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the layout's back-end cannot run on such tensors.

    Example:
        >>> qkv = torch.randn(5, 3, 2, 16)
        >>> layout = attention_layout(torch.tensor([0, 2, 5], dtype=torch.int32), [2, 3], backend="sdpa")
        >>> packed_attention(qkv, layout).shape
        torch.Size([5, 32])

    Source: attention as in arXiv 1706.03762; in one pass with a running maximum, arXiv 2205.14135; windows as
    in ModernBERT, arXiv 2412.13663.
    """
    _check(qkv, "qkv", 3, layout, window)
    num_tokens, _, heads, head_dim = qkv.shape
    if not num_tokens:
        return qkv.new_empty((0, heads * head_dim))
    if layout.tables is not None:
        from fastreward.kernels.attention import launch_attention

        query, key, value = qkv.unbind(1)
        return launch_attention(query, key, value, layout.tables, window=window, first_token=False)
    if layout.backend == "sdpa":
        return sdpa_attention(qkv, layout.lengths, window, batch_invariant=layout.batch_invariant)
    offsets = Offsets(layout.cu_seqlens, layout.cu_seqlens, layout.max_seqlen, layout.max_seqlen)
    attend = flash_attention if layout.backend == "flash" else varlen_attention
    query, key, value = qkv.unbind(1)
    return attend(query, key, value, offsets, window, batch_invariant=layout.batch_invariant).flatten(1)


def first_token_attention(
    query: Tensor, key_value: Tensor, layout: AttentionLayout, *, window: int | None = None
) -> Tensor:
    """Attend from the first token of each text alone: the rows cu_seqlens[:-1] of `packed_attention`.

    That is all an encoder needs of its last layer when it is pooled by its first token.

    Args:
        query: [N, H, head_dim], the first tokens' queries; the row of a text without tokens is not used.
        key_value: [T, 2, H, head_dim], keys and values of all tokens; last axis contiguous, as for `query`.
        layout: Where the texts lie, and the back-end.
        window: How far a token sees, as in `packed_attention`.

    Returns:
        [N, H · head_dim], in the dtype of `query`; zeros for a text without tokens.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the layout's back-end cannot run on such tensors.

    Example:
        >>> query, key_value = torch.randn(2, 2, 16), torch.randn(5, 2, 2, 16)
        >>> layout = attention_layout(torch.tensor([0, 2, 5], dtype=torch.int32), [2, 3], backend="sdpa")
        >>> first_token_attention(query, key_value, layout).shape
        torch.Size([2, 32])
    """
    _check(key_value, "key_value", 2, layout, window)
    _, _, heads, head_dim = key_value.shape
    require(
        query.shape == (len(layout.lengths), heads, head_dim)
        and query.dtype == key_value.dtype
        and query.device == key_value.device
        and query.stride(-1) == 1,
        "query",
        f"[{len(layout.lengths)}, {heads}, {head_dim}] with its last axis contiguous, and otherwise like"
        f" key_value, {describe(key_value)}",
        query,
    )
    if not layout.num_tokens:
        return query.new_zeros((len(layout.lengths), heads * head_dim))
    if layout.tables is not None:
        from fastreward.kernels.attention import launch_attention

        key, value = key_value.unbind(1)
        return launch_attention(query, key, value, layout.tables, window=window, first_token=True)
    if layout.backend == "sdpa":
        return sdpa_first_token(
            query, key_value, layout.lengths, window, batch_invariant=layout.batch_invariant
        )
    attend = flash_attention if layout.backend == "flash" else varlen_attention
    return first_token_by_offsets(
        partial(attend, batch_invariant=layout.batch_invariant),
        query,
        key_value,
        layout.cu_seqlens,
        layout.lengths,
        window,
    )


def attention_reference(qkv: Tensor, lengths: Sequence[int], *, window: int | None = None) -> Tensor:
    """Define `packed_attention` in PyTorch, in fp32, text by text.

    Formula, edge cases and source are those of `packed_attention`; nothing is checked here.

    Args:
        qkv: [T, 3, H, head_dim].
        lengths: The N lengths, T in all.
        window: How far a token sees to each side; None for the whole text.

    Returns:
        [T, H · head_dim], fp32.

    Example:
        >>> qkv = torch.tensor([[[[0.0]], [[0.0]], [[1.0]]], [[[0.0]], [[0.0]], [[3.0]]]])  # [2, 3, 1, 1]
        >>> attention_reference(qkv, [2]), attention_reference(qkv, [1, 1])
        (tensor([[2.],
                [2.]]), tensor([[1.],
                [3.]]))
    """
    attended = []
    for text in torch.split(qkv.float(), list(lengths)):
        query, key, value = text.permute(1, 2, 0, 3)  # each [H, length, head_dim]
        scores = query @ key.transpose(1, 2) * qkv.shape[-1] ** -0.5  # [H, length, length]
        if window is not None:
            scores = scores.masked_fill(~band(0, len(text), 0, len(text), window, qkv.device), -torch.inf)
        attended.append((scores.softmax(-1) @ value).transpose(0, 1).flatten(1))
    return torch.cat(attended) if attended else qkv.new_empty((0, qkv.shape[2] * qkv.shape[3])).float()


def resolve_attention(requested: str | None, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """Choose the back-end of an encoder's attention.

    Args:
        requested: One of `ATTENTION_BACKENDS`, or None: on CUDA Triton where it is installed and has the head
            dimension, else PyTorch's varlen in 16 bits, else SDPA; on a CPU always SDPA.
        device: Where the encoder runs.
        dtype: What it computes in.
        head_dim: Columns of one attention head.

    Returns:
        One of `ATTENTION_BACKENDS`.

    Raises:
        InputError: If there is no back-end of that name.
        BackendUnavailableError: If the one that is named cannot run there.

    Example:
        >>> resolve_attention(None, torch.device("cpu"), torch.float32, head_dim=32)
        'sdpa'
    """
    if requested is None:
        if device.type == "cuda":
            for backend in ("triton", "varlen"):
                fits = objection(backend, device, dtype, head_dim) is None
                if fits and attention_availability(backend).usable:
                    return backend
        return "sdpa"
    _require_known(requested)
    state = attention_availability(requested)
    if not state.usable:
        raise BackendUnavailableError(
            f"a machine on which attention={requested!r} runs",
            f"this one: {state.detail}",
            "Pass attention=None to choose.",
        )
    _require_fit(requested, device, dtype, head_dim)
    return requested


def attention_availability(backend: str) -> Availability:
    """Say whether one of `ATTENTION_BACKENDS` can run on this machine.

    Raises:
        InputError: If there is no back-end of that name.

    Example:
        >>> attention_availability("sdpa").usable
        True
    """
    _require_known(backend)
    if backend == "triton":
        return availability("triton")
    if backend == "sdpa":
        return Availability(True, f"PyTorch {torch.__version__}; CPU and CUDA")
    versions = [f"PyTorch {torch.__version__}"] if backend == "varlen" else flash_versions()
    if not versions:
        return Availability(False, flash_absence())
    if not torch.cuda.is_available():
        return Availability(False, f"{', '.join(versions)}, but PyTorch sees no GPU")
    return Availability(True, f"{', '.join(versions)}; CUDA from sm_80 on, in 16 bits")


def attention_flops(
    lengths: Sequence[int],
    num_heads: int,
    head_dim: int,
    *,
    window: int | None = None,
    first_token: bool = False,
) -> int:
    """Count the operations of the two matrix products over the pairs of tokens that see each other.

    Example:
        >>> attention_flops([3], 1, 16), attention_flops([3], 1, 16, window=1)
        (576, 448)
    """
    pairs = 0
    for length in lengths:
        reach = length - 1 if window is None else min(window, length - 1)
        if length:
            pairs += reach + 1 if first_token else length * (2 * reach + 1) - reach * (reach + 1)
    return 4 * num_heads * head_dim * pairs


def attention_bytes(
    lengths: Sequence[int], num_heads: int, head_dim: int, dtype: torch.dtype, *, first_token: bool = False
) -> int:
    """Count the bytes that attention must move: queries, keys and values once in, the result once out.

    Example:
        >>> attention_bytes([3, 2], 1, 16, torch.bfloat16)
        640
    """
    queries = len(lengths) if first_token else sum(lengths)
    return 2 * (queries + sum(lengths)) * num_heads * head_dim * dtype.itemsize


def _require_known(backend: str) -> None:
    if backend not in ATTENTION_BACKENDS:
        raise InputError(
            f"an attention back-end among {', '.join(ATTENTION_BACKENDS)}", repr(backend), "Correct the name."
        )


def _require_fit(
    backend: str, device: torch.device, dtype: torch.dtype | None = None, head_dim: int | None = None
) -> None:
    if lacking := objection(backend, device, dtype, head_dim):
        needed, got = lacking
        raise BackendUnavailableError(
            f"{needed} for attention={backend!r}", got, "Pass attention=None, or another back-end."
        )


def _check(packed: Tensor, name: str, parts: int, layout: AttentionLayout, window: int | None) -> None:
    """Check `qkv` or `key_value` [T, parts, H, head_dim] against the layout, and the window."""
    device = layout.cu_seqlens.device
    require(
        packed.ndim == 4
        and packed.shape[:2] == (layout.num_tokens, parts)
        and min(packed.shape[2:]) >= 1
        and packed.dtype in FLOAT_DTYPES
        and packed.device == device
        and packed.stride(3) == 1,
        name,
        f"[{layout.num_tokens}, {parts}, H, head_dim] in float32, float16 or bfloat16 on {device}, last axis"
        " contiguous",
        packed,
    )
    _require_fit(layout.backend, device, packed.dtype, packed.shape[3])
    if window is not None and window < 0:
        raise InputError("a window of 0 or more, or None", str(window), "Pass the tokens seen to each side.")
