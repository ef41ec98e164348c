"""The door to LayerNorm: of rows, of rows plus a residual, and of embeddings straight from their tables."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import dtype_name, resolve_op
from fastreward.errors import InputError
from fastreward.ops.checks import FLOAT_DTYPES, describe, require

MAX_HIDDEN_SIZE: Final = 4096

ID_DTYPES: Final = (torch.int32, torch.int64)


@dataclass(frozen=True)
class LayerNorm:
    """The parameters of a LayerNorm.

    Attributes:
        weight: [D], fp32, fp16 or bf16.
        bias: [D] or None, in any of these dtypes.
        eps: Added to the variance.
    """

    weight: Tensor
    bias: Tensor | None
    eps: float


@overload
def layer_norm(
    x: Tensor,
    norm: LayerNorm,
    *,
    residual: Tensor | None = ...,
    return_sum: Literal[False] = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def layer_norm(
    x: Tensor,
    norm: LayerNorm,
    *,
    residual: Tensor | None = ...,
    return_sum: Literal[True],
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def layer_norm(
    x: Tensor,
    norm: LayerNorm,
    *,
    residual: Tensor | None = None,
    return_sum: bool = False,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Normalise the rows of z = x + residual.

        (z - mean(z)) / √(var(z) + eps) · weight + bias,   var(z) = mean((z - mean(z))²)

    Sum, statistics and result are fp32 whatever x is, and the result is rounded once. There is one exception:
    PyTorch on a CPU, in bf16 and with a residual, rounds z to bf16 first, for fp32 takes half as long again.
    That moves an element by up to about 2⁻⁸ |z| / √var(z) · |weight|: as much as the result's own rounding
    does, where the mean of z is small.

    Args:
        x: [T, D], fp32, fp16 or bf16, D ≤ 4096; the last axis is contiguous.
        norm: Weight, bias and epsilon.
        residual: [T, D] in x's dtype, or None.
        return_sum: Also return z, for encoders that carry it on.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        [T, D] in x's dtype; with `return_sum` also z, [T, D] in x's dtype, and x itself where there is no
        residual. x and residual are left as they are.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> norm = LayerNorm(torch.ones(2), torch.tensor([0.0, 1.0]), eps=1e-12)
        >>> layer_norm(torch.tensor([[1.0, 3.0]]), norm, residual=torch.tensor([[4.0, 0.0]]))
        tensor([[1., 0.]])

    Source: arXiv 1607.06450.
    """
    _check_rows(x, residual)
    _check_norm(norm, x.shape[1], x.device)
    if resolve_op("layer_norm", x.device, backend) == "torch":
        normed, total = _normed_and_sum(x, norm, residual)
        return (normed, x if residual is None else total) if return_sum else normed
    from fastreward.kernels.layer_norm import launch_layer_norm

    write_sum = return_sum and residual is not None
    launched, written = launch_layer_norm(
        x, norm.weight, norm.bias, norm.eps, residual=residual, return_sum=write_sum
    )
    return (launched, x if written is None else written) if return_sum else launched


def embed_layer_norm(
    input_ids: Tensor,
    words: Tensor,
    norm: LayerNorm,
    *,
    position_ids: Tensor | None = None,
    positions: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Look up each token's embedding and normalise it: LayerNorm(words[id] + positions[position id]).

    The norm is that of `layer_norm`, its one exception included. A table of token types has its one row added
    to `positions` beforehand.

    Args:
        input_ids: [T], int32 or int64, values in [0, V).
        words: [V, D], fp32, fp16 or bf16, D ≤ 4096; the last axis is contiguous.
        norm: Weight, bias and epsilon.
        position_ids: [T], int32 or int64, values in [0, P); None where positions are not embedded.
        positions: [P, D] in the dtype of `words`; given with `position_ids` or not at all.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        [T, D] in the dtype of `words`.

    Raises:
        InputError: If a shape, dtype or device does not fit; on the CPU also if an id is out of range. On
            CUDA ids are not looked at, for that would wait for the GPU: the Triton back-end reads nothing
            outside of the tables and gives such a token a row of NaN.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> words = torch.tensor([[1.0, 3.0], [5.0, 2.0]])
        >>> norm = LayerNorm(torch.ones(2), None, eps=1e-12)
        >>> embed_layer_norm(torch.tensor([1, 0, 1]), words, norm)
        tensor([[ 1., -1.],
                [-1.,  1.],
                [ 1., -1.]])

    Source: the embeddings of BERT (arXiv 1810.04805).
    """
    _check_tables(input_ids, words, position_ids, positions)
    _check_norm(norm, words.shape[1], words.device)
    if resolve_op("embed_layer_norm", words.device, backend) == "torch":
        return _normed_and_sum(*_looked_up(input_ids, words, norm, position_ids, positions))[0]
    from fastreward.kernels.layer_norm import launch_embed_layer_norm

    return launch_embed_layer_norm(
        input_ids, words, norm.weight, norm.bias, norm.eps, position_ids=position_ids, positions=positions
    )


def layer_norm_reference(
    x: Tensor, norm: LayerNorm, *, residual: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Define `layer_norm` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Formula, arguments and source are those of `layer_norm`; nothing is checked here.

    Returns:
        The normalised rows and the sum, [T, D] each, in x's dtype.
    """
    total = x.float() if residual is None else x.float() + residual
    bias = None if norm.bias is None else norm.bias.float()
    normed = F.layer_norm(total, total.shape[1:], norm.weight.float(), bias, norm.eps)
    return normed.to(x.dtype), total.to(x.dtype)


def embed_layer_norm_reference(
    input_ids: Tensor,
    words: Tensor,
    norm: LayerNorm,
    *,
    position_ids: Tensor | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """Define `embed_layer_norm` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Arguments and source are those of `embed_layer_norm`; nothing is checked here.
    """
    x, norm, residual = _looked_up(input_ids, words, norm, position_ids, positions)
    return layer_norm_reference(x, norm, residual=residual)[0]


def layer_norm_bytes(
    num_tokens: int, hidden_size: int, dtype: torch.dtype, *, residual: bool, return_sum: bool = False
) -> int:
    """Count the bytes that `layer_norm` must move: rows (and residual) in, rows (and the sum) out.

    Weight and bias stay in the cache; they are not counted.
    """
    return num_tokens * hidden_size * dtype.itemsize * (2 + residual + (residual and return_sum))


def embed_layer_norm_bytes(
    num_tokens: int, hidden_size: int, dtype: torch.dtype, id_dtype: torch.dtype, *, positions: bool
) -> int:
    """Count the bytes that `embed_layer_norm` must move: ids and a word's row in, the normalised row out.

    A word's row is counted for each of its tokens, as if no cache kept it; the rows of positions, few and
    shared by all texts, stay there and are not counted.
    """
    rows = 2 * num_tokens * hidden_size * dtype.itemsize
    return rows + num_tokens * id_dtype.itemsize * (1 + positions)


def _normed_and_sum(x: Tensor, norm: LayerNorm, residual: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The PyTorch back-end: the definition, except where that would cost too much on a CPU."""
    if x.dtype != torch.bfloat16 or x.device.type != "cpu":
        return layer_norm_reference(x, norm, residual=residual)
    total = x if residual is None else x + residual
    bias = None if norm.bias is None else norm.bias.float()
    # bf16 in and out, and fp32 between: without a residual this is the definition, sooner.
    return F.layer_norm(total, total.shape[1:], norm.weight.float(), bias, norm.eps), total


def _looked_up(
    input_ids: Tensor,
    words: Tensor,
    norm: LayerNorm,
    position_ids: Tensor | None,
    positions: Tensor | None,
) -> tuple[Tensor, LayerNorm, Tensor | None]:
    """The arguments of `layer_norm` for tokens: rows of words, the norm, rows of positions."""
    if position_ids is None or positions is None:
        return F.embedding(input_ids, words), norm, None
    return F.embedding(input_ids, words), norm, F.embedding(position_ids, positions)


# An encoder calls this op twice a layer: what a refusal would say is put together only when there is one.


def _check_rows(x: Tensor, residual: Tensor | None) -> None:
    _check_matrix("x", "T", x)
    if residual is not None and not (
        residual.shape == x.shape
        and residual.dtype == x.dtype
        and residual.device == x.device
        and _rows_are_contiguous(residual)
    ):
        require(False, "residual", f"like x, {describe(x)}, last axis contiguous", residual)


def _check_tables(
    input_ids: Tensor, words: Tensor, position_ids: Tensor | None, positions: Tensor | None
) -> None:
    _check_matrix("words", "V", words)
    _check_ids("input_ids", input_ids, "words", words, None)
    if position_ids is None and positions is None:
        return
    if position_ids is None or positions is None:
        given = "positions" if position_ids is None else "position_ids"
        raise InputError("both positions and position_ids, or neither", f"{given} alone", "Pass both.")
    require(
        positions.ndim == 2
        and positions.shape[1] == words.shape[1]
        and positions.dtype == words.dtype
        and positions.device == words.device
        and _rows_are_contiguous(positions),
        "positions",
        f"[P, {words.shape[1]}] in {dtype_name(words.dtype)} on {words.device}, last axis contiguous",
        positions,
    )
    _check_ids("position_ids", position_ids, "positions", positions, input_ids.shape[0])


def _check_matrix(name: str, rows: str, x: Tensor) -> None:
    if not (
        x.ndim == 2
        and x.dtype in FLOAT_DTYPES
        and 1 <= x.shape[1] <= MAX_HIDDEN_SIZE
        and _rows_are_contiguous(x)
    ):
        sizes = f"D from 1 to {MAX_HIDDEN_SIZE}, last axis contiguous"
        require(False, name, f"[{rows}, D] in float32, float16 or bfloat16, {sizes}", x)


def _check_ids(name: str, ids: Tensor, table_name: str, table: Tensor, num_tokens: int | None) -> None:
    """Check one id for each token and, on the CPU, that the table has all of them."""
    require(
        ids.ndim == 1
        and num_tokens in (None, ids.shape[0])
        and ids.dtype in ID_DTYPES
        and ids.is_contiguous()
        and ids.device == table.device,
        name,
        f"[{'T' if num_tokens is None else num_tokens}] in int32 or int64 on {table.device}, contiguous",
        ids,
    )
    if ids.device.type == "cpu" and len(ids):
        low, high = (int(bound) for bound in torch.aminmax(ids))
        if low < 0 or high >= table.shape[0]:
            raise InputError(
                f"{name} from 0 to {table.shape[0] - 1}, the rows of {table_name}",
                f"values from {low} to {high}",
                "Tokenise for this model.",
            )


def _check_norm(norm: LayerNorm, hidden_size: int, device: torch.device) -> None:
    for name, vector in (("weight", norm.weight), ("bias", norm.bias)):
        if vector is not None and not (
            vector.shape == (hidden_size,)
            and vector.dtype in FLOAT_DTYPES
            and vector.device == device
            and vector.is_contiguous()
        ):
            expected = f"[{hidden_size}] in float32, float16 or bfloat16 on {device}, contiguous"
            require(False, f"norm.{name}", expected, vector)
    if not norm.eps >= 0.0:
        raise InputError("norm.eps of 0 or more", str(norm.eps), "Pass the model's own epsilon.")


def _rows_are_contiguous(x: Tensor) -> bool:
    return x.stride(1) == 1 or x.shape[1] == 1
