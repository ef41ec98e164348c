"""The door to GELU and GeGLU, with the bias of the linear layer before them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import resolve_op
from fastreward.errors import InputError
from fastreward.ops.checks import FLOAT_DTYPES, require


def gelu(x: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Apply GELU(x + bias), by erf and not by its tanh approximation.

        GELU(z) = z/2 · (1 + erf(z/√2))

    Sum and function are fp32 whatever x is, and rounded once. An element that is not finite gives NaN, but
    +∞ may give +∞ (PyTorch's own GELU does either, by device and dtype); no other element is touched by it.

    Args:
        x: [T, F], fp32, fp16 or bf16; the last axis is contiguous.
        bias: [F] or None, in any of these dtypes.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        [T, F] in x's dtype; x is left as it is.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> gelu(torch.tensor([[-1.0, 0.0, 2.0]]), torch.tensor([0.0, 1.0, -1.0]))
        tensor([[-0.1587,  0.8413,  0.8413]])

    Source: arXiv 1606.08415.
    """
    _check(x, bias)
    if resolve_op("gelu", x.device, backend) == "torch":
        return gelu_reference(x, bias)
    from fastreward.kernels.activation import launch_activation

    return launch_activation(x, bias, gated=False)


def geglu(x: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> Tensor:
    """Apply GELU to the first half of the columns of z = x + bias, times the second half.

        GELU(z[:, :F]) · z[:, F:]

    GELU is by erf, as in `gelu`. All of it is fp32 whatever x is, and rounded once; in fp16 a product beyond
    65,504 becomes an infinity. The order of the halves is ModernBERT's.

    Args:
        x: [T, 2F], fp32, fp16 or bf16; the last axis is contiguous.
        bias: [2F] or None, in any of these dtypes.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        [T, F] in x's dtype; x is left as it is.

    Raises:
        InputError: If a shape, dtype or device does not fit, or if the number of columns is odd.
        BackendUnavailableError: If the named back-end cannot run on these tensors.

    Example:
        >>> geglu(torch.tensor([[1.0, 2.0, 10.0, -1.0]]))
        tensor([[ 8.4134, -1.9545]])

    Source: arXiv 2002.05202.
    """
    _check(x, bias)
    if x.shape[1] % 2:
        raise InputError(
            "x with an even number of columns, two halves", str(x.shape[1]), "Pass both halves side by side."
        )
    if resolve_op("geglu", x.device, backend) == "torch":
        return geglu_reference(x, bias)
    from fastreward.kernels.activation import launch_activation

    return launch_activation(x, bias, gated=True)


def gelu_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Define `gelu` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Arguments, edge cases and source are those of `gelu`; nothing is checked here.
    """
    z = x.float() if bias is None else x + bias.float()
    return _gelu(z).to(x.dtype)


def geglu_reference(x: Tensor, bias: Tensor | None = None) -> Tensor:
    """Define `geglu` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Arguments, edge cases and source are those of `geglu`; nothing is checked here.
    """
    activated, factor = (x if bias is None else x + bias.float()).chunk(2, dim=-1)
    return _gelu(activated.float()).mul_(factor).to(x.dtype)


def _gelu(z: Tensor) -> Tensor:
    """PyTorch's GELU of fp32 values, as a new tensor, with the same bits for a row wherever it stands.

    On a CPU there is one for contiguous tensors in fp32, which treats all elements alike, and another for the
    rest, which takes the last few of a tensor in another way.
    """
    return F.gelu(z.contiguous())


def gelu_bytes(num_tokens: int, num_features: int, dtype: torch.dtype) -> int:
    """Count the bytes that `gelu` must move for [T, F] in and out; a bias stays in the cache."""
    return 2 * num_tokens * num_features * dtype.itemsize


def geglu_bytes(num_tokens: int, num_features: int, dtype: torch.dtype) -> int:
    """Count the bytes that `geglu` must move for [T, 2F] in and [T, F] out; a bias stays in the cache."""
    return 3 * num_tokens * num_features * dtype.itemsize


def _check(x: Tensor, bias: Tensor | None) -> None:
    require(
        x.ndim == 2 and x.dtype in FLOAT_DTYPES and x.shape[1] >= 1 and (x.stride(1) == 1 or x.shape[1] == 1),
        "x",
        "[T, F] in float32, float16 or bfloat16, F of 1 or more, last axis contiguous",
        x,
    )
    if bias is not None:
        require(
            bias.shape == (x.shape[1],)
            and bias.dtype in FLOAT_DTYPES
            and bias.device == x.device
            and bias.is_contiguous(),
            "bias",
            f"[{x.shape[1]}] in float32, float16 or bfloat16 on {x.device}, contiguous",
            bias,
        )
