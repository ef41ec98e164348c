"""The doors to two fused blocks of BERT-type encoders: the feed-forward block, and the attention's output.

They are asked for and never chosen. The Triton back-end keeps the feed-forward block's wide intermediate on
the chip, but reads both weights anew for every 64 tokens; `Linear.gelu` and `layer_norm` are the other way.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import availability, dtype_name, resolve_op, triton_interpreted
from fastreward.errors import BackendUnavailableError
from fastreward.ops.activation import gelu_reference
from fastreward.ops.checks import FLOAT_DTYPES, require
from fastreward.ops.layer_norm import LayerNorm

TRITON_HIDDEN_SIZE: Final = 384
"""A program holds whole rows; wider ones do not fit in its registers."""

TRITON_MULTIPLE: Final = 32
"""The kernels' steps along the intermediate, and along the attention's output."""


def mlp_available(dtype: torch.dtype, hidden_size: int, inner_size: int) -> str | None:
    """Say why the Triton back-end cannot compute these ops; PyTorch, on a CPU or where named, always can.

    Args:
        dtype: The tensors'.
        hidden_size: D.
        inner_size: F of `fused_mlp`, K of `project_layer_norm`.

    Returns:
        None if it can; else the reason.

    Example:
        >>> mlp_available(torch.bfloat16, 768, 3072)
        'a hidden size of 768: the kernel holds rows of 384'
    """
    if hidden_size != TRITON_HIDDEN_SIZE:
        return f"a hidden size of {hidden_size}: the kernel holds rows of {TRITON_HIDDEN_SIZE}"
    if inner_size % TRITON_MULTIPLE:
        return f"an inner size of {inner_size}: the kernel's steps are {TRITON_MULTIPLE}"
    if dtype == torch.float32 and not triton_interpreted():
        return "float32: the kernel multiplies in 16 bit"
    return None


def fused_mlp(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    norm: LayerNorm,
    *,
    backend: str | None = None,
) -> Tensor:
    """Compute a feed-forward block with its residual and LayerNorm.

        LayerNorm(x + W₂ h + b₂),  h = GELU(W₁ x + b₁)

    GELU is by erf. h is rounded to x's dtype; everything else is fp32, and the result is rounded once. In the
    Triton back-end a row's bits do not depend on the other rows, nor on their number.

    Args:
        x: [T, D], fp32, fp16 or bf16; the last axis is contiguous.
        up_weight: W₁, [F, D], in x's dtype and contiguous, like the three that follow.
        up_bias: b₁, [F].
        down_weight: W₂, [D, F].
        down_bias: b₂, [D].
        norm: Weight, bias and epsilon.
        backend: "triton", "torch", or None to choose by device. The Triton back-end needs fp16 or bf16, D of
            384 and F in multiples of 32; PyTorch does not stand in for it on CUDA unless it is named.

    Returns:
        [T, D] in x's dtype.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the back-end cannot run on these tensors, with the reason.

    Example:
        >>> norm = LayerNorm(torch.ones(2), None, eps=1e-12)
        >>> up, down = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0], [1.0]])
        >>> fused_mlp(torch.tensor([[9.0, 1.0]]), up, torch.zeros(1), down, torch.zeros(2), norm)
        tensor([[-1.,  1.]])

    Source: the feed-forward block of BERT (arXiv 1810.04805).
    """
    _check_rows("x", x)
    hidden_size, features = x.shape[1], up_weight.shape[0]
    _check_like(x, "up_weight", up_weight, (features, hidden_size))
    _check_like(x, "up_bias", up_bias, (features,))
    _check_like(x, "down_weight", down_weight, (hidden_size, features))
    _check_like(x, "down_bias", down_bias, (hidden_size,))
    _check_norm(x, norm)
    if _resolve("fused_mlp", x, features, backend) == "torch":
        return fused_mlp_reference(x, up_weight, up_bias, down_weight, down_bias, norm)
    from fastreward.kernels.mlp import launch_fused_mlp

    return launch_fused_mlp(x, up_weight, up_bias, down_weight, down_bias, norm.weight, norm.bias, norm.eps)


def project_layer_norm(
    attended: Tensor,
    weight: Tensor,
    bias: Tensor,
    residual: Tensor,
    norm: LayerNorm,
    *,
    backend: str | None = None,
) -> Tensor:
    """Compute a linear layer with its residual and LayerNorm: LayerNorm(residual + W a + b).

    All of it is fp32, and the result is rounded once. In the Triton back-end a row's bits do not depend on
    the other rows, nor on their number.

    Args:
        attended: a, [T, K], fp32, fp16 or bf16; the last axis is contiguous.
        weight: W, [D, K], in the dtype of `attended` and contiguous.
        bias: b, [D], in the same dtype.
        residual: [T, D], in the same dtype; the last axis is contiguous.
        norm: Weight, bias and epsilon.
        backend: "triton", "torch", or None to choose by device, as in `fused_mlp`, with K for F.

    Returns:
        [T, D] in the dtype of `attended`.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the back-end cannot run on these tensors, with the reason.

    Example:
        >>> norm = LayerNorm(torch.ones(2), torch.tensor([0.0, 5.0]), eps=1e-12)
        >>> attended, residual = torch.tensor([[1.0]]), torch.tensor([[2.0, 2.0]])
        >>> project_layer_norm(attended, torch.tensor([[3.0], [1.0]]), torch.zeros(2), residual, norm)
        tensor([[1., 4.]])

    Source: the attention's output in BERT (arXiv 1810.04805).
    """
    _check_rows("attended", attended)
    _check_rows("residual", residual)
    hidden_size = residual.shape[1]
    if residual.shape[0] != attended.shape[0] or not _alike(residual, attended):
        _refuse(attended, "residual", residual, f"[{attended.shape[0]}, D]")
    _check_like(attended, "weight", weight, (hidden_size, attended.shape[1]))
    _check_like(attended, "bias", bias, (hidden_size,))
    _check_norm(residual, norm)
    if _resolve("project_layer_norm", residual, attended.shape[1], backend) == "torch":
        return project_layer_norm_reference(attended, weight, bias, residual, norm)
    from fastreward.kernels.mlp import launch_project_layer_norm

    return launch_project_layer_norm(attended, weight, bias, residual, norm.weight, norm.bias, norm.eps)


def fused_mlp_reference(
    x: Tensor, up_weight: Tensor, up_bias: Tensor, down_weight: Tensor, down_bias: Tensor, norm: LayerNorm
) -> Tensor:
    """Define `fused_mlp` in PyTorch: the CPU path and what the kernel is held against.

    Formula, arguments and source are those of `fused_mlp`; nothing is checked here.
    """
    inner = gelu_reference(F.linear(x.float(), up_weight.float(), up_bias.float())).to(x.dtype)
    return project_layer_norm_reference(inner, down_weight, down_bias, x, norm)


def project_layer_norm_reference(
    attended: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, norm: LayerNorm
) -> Tensor:
    """Define `project_layer_norm` in PyTorch, in fp32: the CPU path and what the kernel is held against.

    Arguments and source are those of `project_layer_norm`; nothing is checked here.
    """
    total = residual.float() + F.linear(attended.float(), weight.float(), bias.float())
    norm_bias = None if norm.bias is None else norm.bias.float()
    return F.layer_norm(total, total.shape[1:], norm.weight.float(), norm_bias, norm.eps).to(residual.dtype)


def fused_mlp_flops(num_tokens: int, hidden_size: int, features: int) -> int:
    """Count the operations of both products."""
    return 4 * num_tokens * hidden_size * features


def fused_mlp_bytes(num_tokens: int, hidden_size: int, features: int, dtype: torch.dtype) -> int:
    """Count the bytes that `fused_mlp` must move: x in, both weights in once, the result out."""
    return 2 * hidden_size * (num_tokens + features) * dtype.itemsize


def project_layer_norm_flops(num_tokens: int, in_features: int, hidden_size: int) -> int:
    """Count the operations of the product."""
    return 2 * num_tokens * in_features * hidden_size


def project_layer_norm_bytes(num_tokens: int, in_features: int, hidden_size: int, dtype: torch.dtype) -> int:
    """Count the bytes that `project_layer_norm` must move: input, residual and weight in, the result out."""
    elements = num_tokens * (in_features + 2 * hidden_size) + hidden_size * in_features
    return elements * dtype.itemsize


def _resolve(op: str, x: Tensor, inner_size: int, requested: str | None) -> str:
    backend = resolve_op(op, x.device, requested)
    if backend == "torch" and requested is None and x.is_cuda:
        raise BackendUnavailableError(
            f"Triton for {op} on CUDA",
            availability("triton").detail,
            "Use Linear and layer_norm, or backend='torch' for the slow definition.",
        )
    if backend == "triton":
        reason = mlp_available(x.dtype, x.shape[1], inner_size)
        if reason is not None:
            raise BackendUnavailableError(
                f"what the Triton back-end of {op} computes",
                reason,
                "Use Linear and layer_norm, or backend='torch' for the slow definition.",
            )
    return backend


# An encoder calls these ops in every layer: what a refusal would say is put together only when there is one.


def _check_rows(name: str, x: Tensor) -> None:
    if not (
        x.ndim == 2 and x.dtype in FLOAT_DTYPES and x.shape[1] >= 1 and (x.stride(1) == 1 or x.shape[1] == 1)
    ):
        axes = "[T, K]" if name == "attended" else "[T, D]"
        expected = f"{axes} in float32, float16 or bfloat16, at least one column, last axis contiguous"
        require(False, name, expected, x)


def _alike(tensor: Tensor, x: Tensor) -> bool:
    return tensor.dtype == x.dtype and tensor.device == x.device


def _check_like(x: Tensor, name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if not (tensor.shape == shape and _alike(tensor, x) and tensor.is_contiguous()):
        _refuse(x, name, tensor, f"{list(shape)}")


def _refuse(x: Tensor, name: str, tensor: Tensor, shape: str) -> None:
    require(False, name, f"{shape} in {dtype_name(x.dtype)} on {x.device}, contiguous", tensor)


def _check_norm(x: Tensor, norm: LayerNorm) -> None:
    for name, vector in (("norm.weight", norm.weight), ("norm.bias", norm.bias)):
        if vector is not None and not (
            vector.shape == (x.shape[1],)
            and vector.dtype in FLOAT_DTYPES
            and vector.device == x.device
            and vector.is_contiguous()
        ):
            expected = f"[{x.shape[1]}] in float32, float16 or bfloat16 on {x.device}, contiguous"
            require(False, name, expected, vector)
