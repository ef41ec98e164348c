"""The linear layer with an optional activation behind it: oneDNN on a CPU, cuBLAS and Triton on CUDA.

PyTorch's own fp32 path is slow on some CPUs; oneDNN with prepacked weights reaches the machine's rate, and
with GELU fused it saves two passes over the widest activations. On CUDA in 16 bit the activation is the
epilogue of a Triton product, for the same reason; products without one stay with cuBLAS.
"""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import dtype_name, resolve_op, triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops import activation as activations
from fastreward.ops.checks import FLOAT_DTYPES, require

Activation = Literal["none", "gelu", "geglu"]
"""What is applied to the product: nothing, GELU, or GELU of its first half of columns times the second."""

# The row count that oneDNN is told when it packs a weight: a typical batch. Other counts are as right.
PACKED_FOR_ROWS = 2048

# oneDNN builds a program for each number of rows and keeps 1,024 of them, which comes to 2 MB a forward. So
# that there are few, rows are rounded up, to a multiple of 16 where there are at most 256, else of 64.
FEW_ROWS: Final = 256
FEW_ROWS_MULTIPLE: Final = 16
ROWS_MULTIPLE: Final = 64

# Widths that the Triton kernel reads and writes 16 bytes at a time.
TRITON_MULTIPLE: Final = 16


def onednn_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN's prepacked linear layer can be had here: in fp32, and in bf16 where the CPU has it.

    Example:
        >>> onednn_available(torch.float64)
        False
    """
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype == torch.float32


def padded_rows(rows: int) -> int:
    """How many rows oneDNN is given for so many.

    Example:
        >>> [padded_rows(rows) for rows in (0, 1, 32, 250, 257, 2048)]
        [0, 16, 32, 256, 320, 2048]
    """
    return rows + -rows % (FEW_ROWS_MULTIPLE if rows <= FEW_ROWS else ROWS_MULTIPLE)


class Linear:
    """y = x Wᵀ + b with an optional epilogue, for the inference of one layer.

    Sums are fp32 whatever the dtype is. Where the activation is an epilogue (Triton, oneDNN) the product is
    rounded once, behind it; elsewhere the product is rounded to its dtype before the activation too.

    In the Triton back-end a row's bits do not depend on the other rows, nor on their number.

    Args:
        weight: [out, in], on the device and in the dtype that it will be used in: fp32, fp16 or bf16.
        bias: [out], like `weight`, or None.
        backend: "triton" for all products, "torch" for none, or None: on CUDA in fp16 and bf16 Triton for
            `gelu` and `geglu` where `in` and the number of columns of the result are multiples of 16, and
            PyTorch for all else.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the named back-end cannot run on these tensors; Triton's multiplies in
            16 bit.

    Example:
        >>> layer = Linear(torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([0.0, 1.0]))
        >>> x = torch.tensor([[1.0, 1.0]])
        >>> layer(x)
        tensor([[3., 0.]])
        >>> layer.gelu(x)
        tensor([[2.9959, 0.0000]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> None:
        _check_weights(weight, bias)
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self._device, self._dtype = weight.device, weight.dtype
        self._requested = backend
        self._prepare(weight.contiguous())

    @property
    def weight(self) -> Tensor:
        """W, [out, in]. Where oneDNN has packed it, it is unpacked into new memory.

        Example:
            >>> Linear(torch.tensor([[1.0, 2.0]])).weight
            tensor([[1., 2.]])
        """
        return self._weight.to_dense() if self._packed else self._weight

    def _prepare(self, weight: Tensor) -> None:
        """Choose the back-end and keep the weight as it wants it."""
        self._backend = _resolve(weight, self._requested)
        on_cpu = weight.device.type == "cpu"
        self._packed = on_cpu and self._backend == "torch" and onednn_available(weight.dtype)
        if self._packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACKED_FOR_ROWS)
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b: [T, in] → [T, out]. The last axis of x is contiguous, here and below."""
        self._check(x)
        if self._packed:
            return self._onednn(x, "none", "")
        if self._requested == "triton":
            return self._launch(x, "none")
        return F.linear(x, self._weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU(x Wᵀ + b), by erf and not by its tanh approximation (arXiv 1606.08415): [T, out].

        Example:
            >>> Linear(torch.tensor([[2.0]])).gelu(torch.tensor([[1.0], [0.0]]))
            tensor([[1.9545],
                    [0.0000]])
        """
        self._check(x)
        if self._packed:
            return self._onednn(x, "gelu", "none")
        if self._fused(self.out_features):
            return self._launch(x, "gelu")
        return activations.gelu(self(x), backend=self._requested)

    def geglu(self, x: Tensor) -> Tensor:
        """Return GELU(y[:, :F]) · y[:, F:] of y = x Wᵀ + b (arXiv 2002.05202): [T, in] → [T, F], out = 2F.

        Example:
            >>> Linear(torch.tensor([[2.0], [3.0]])).geglu(torch.tensor([[1.0]]))
            tensor([[5.8635]])
        """
        self._check(x)
        if self.out_features % 2:
            raise InputError(
                "a weight with an even number of rows for geglu, two halves",
                str(self.out_features),
                "Stack the rows of the activated half on those of the other.",
            )
        if self._fused(self.out_features // 2):
            return self._launch(x, "geglu")
        return activations.geglu(self(x), backend=self._requested)

    def _onednn(self, x: Tensor, activation: str, algorithm: str) -> Tensor:
        rows = x.shape[0]
        if missing := padded_rows(rows) - rows:
            x = F.pad(x, (0, 0, 0, missing))
        y = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, activation, [], algorithm)
        return _tensor(y)[:rows]

    def _fused(self, columns: int) -> bool:
        """Whether a Triton product with these columns has the activation as its epilogue."""
        if self._backend != "triton":
            return False
        fits = self.in_features % TRITON_MULTIPLE == 0 and columns % TRITON_MULTIPLE == 0
        return fits or self._requested == "triton"

    def _launch(self, x: Tensor, activation: Activation) -> Tensor:
        from fastreward.kernels.linear import launch_linear

        return launch_linear(x, self._weight, self.bias, activation=activation)

    def _check(self, x: Tensor) -> None:
        if not (
            x.ndim == 2
            and x.shape[1] == self.in_features
            and x.dtype == self._dtype
            and x.device == self._device
            and (x.stride(1) == 1 or self.in_features == 1)
        ):
            expected = f"[T, {self.in_features}] in {dtype_name(self._dtype)} on {self._device}"
            require(False, "x", f"{expected}, last axis contiguous", x)


def linear_reference(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, activation: Activation = "none"
) -> Tensor:
    """Define the layer in PyTorch: all of it in fp32, rounded once, to x's dtype.

    Args:
        x: [T, in].
        weight: [out, in].
        bias: [out] or None.
        activation: What follows the product.

    Returns:
        [T, out], with "geglu" [T, out / 2]; nothing is checked.

    Example:
        >>> linear_reference(torch.ones(1, 2), torch.eye(2), activation="geglu")
        tensor([[0.8413]])
    """
    product = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
    if activation == "gelu":
        product = activations.gelu_reference(product)
    elif activation == "geglu":
        product = activations.geglu_reference(product)
    return product.to(x.dtype)


def linear_flops(num_tokens: int, in_features: int, out_features: int) -> int:
    """Count the operations of the product: a multiplication and an addition for each triple.

    Example:
        >>> linear_flops(num_tokens=10, in_features=4, out_features=3)
        240
    """
    return 2 * num_tokens * in_features * out_features


def linear_bytes(
    num_tokens: int,
    in_features: int,
    out_features: int,
    dtype: torch.dtype,
    *,
    activation: Activation = "none",
) -> int:
    """Count the bytes that the layer must move: x and W in once, the result out once.

    Example:
        >>> linear_bytes(10, 4, 3, torch.bfloat16)
        164
    """
    columns = out_features // 2 if activation == "geglu" else out_features
    elements = num_tokens * (in_features + columns) + out_features * in_features
    return elements * dtype.itemsize


def _resolve(weight: Tensor, requested: str | None) -> str:
    backend = resolve_op("linear", weight.device, requested)
    if backend == "triton" and weight.dtype == torch.float32 and not triton_interpreted():
        if requested is not None:
            raise BackendUnavailableError(
                "float16 or bfloat16 for the Triton back-end of linear",
                "float32",
                "Pass backend=None or 'torch'.",
            )
        return "torch"
    return backend


def _check_weights(weight: Tensor, bias: Tensor | None) -> None:
    require(
        weight.ndim == 2 and weight.dtype in FLOAT_DTYPES and min(weight.shape) >= 1,
        "weight",
        "[out, in] in float32, float16 or bfloat16",
        weight,
    )
    if bias is not None:
        require(
            bias.shape == (weight.shape[0],)
            and bias.dtype == weight.dtype
            and bias.device == weight.device
            and bias.is_contiguous(),
            "bias",
            f"[{weight.shape[0]}] in {dtype_name(weight.dtype)} on {weight.device}, contiguous",
            bias,
        )


def _tensor(result: object) -> Tensor:
    assert isinstance(result, Tensor)
    return result
