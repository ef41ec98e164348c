"""The linear layer in 8 bits: e4m3 operands with one scale for each token and one for each row of W.

For encoders from 768 wide on Ada, Hopper and Blackwell, whose tensor cores multiply e4m3 at twice the rate of
bf16. It is asked for, never chosen: operands of 4 significant bits move a score.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import dtype_name, resolve_op
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.checks import FLOAT_DTYPES, require
from fastreward.ops.linear import Linear

LARGEST_E4M3: Final = 448.0
"""The largest number of float8_e4m3fn."""

SMALLEST_SCALE: Final = 2.0**-126
"""fp32's smallest normal number. No scale is smaller, so that zeros are not divided by zero and no reciprocal
of a scale overflows."""

MIN_IN_FEATURES: Final = 768
"""Narrower products are bound by memory traffic, to which quantising adds what 8 bits save."""

MAX_IN_FEATURES: Final = 4096
"""The kernel holds a whole row in registers."""

SIZE_MULTIPLE: Final = 16
"""What `torch._scaled_mm` asks of both sizes of W."""


REMEDY: Final = "Use bfloat16, or backend='torch' for the slow definition."


def scaled_linear_available(device: torch.device, in_features: int) -> str | None:
    """Say why layers of this width cannot run in 8 bits on a device.

    Args:
        device: Where the layer would be.
        in_features: Width of its input. An encoder asks with its hidden size, the narrowest that it has.

    Returns:
        None if they can; else the reason, the end of a sentence that begins with what was asked for.

    Example:
        >>> scaled_linear_available(torch.device("cpu"), 768)
        'a device of type cpu; 8-bit products need an NVIDIA GPU of compute capability 8.9 or more'
    """
    needed = "8-bit products need an NVIDIA GPU of compute capability 8.9 or more"
    if device.type != "cuda":
        return f"a device of type {device.type}; {needed}"
    if torch.version.hip is not None:
        return f"an AMD GPU; {needed}"
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 9):
        return f"compute capability {capability[0]}.{capability[1]}; {needed}"
    # https://github.com/pytorch/pytorch/issues/177651; torch.__version__ compares as a version.
    if capability == (8, 9) and torch.__version__ < "2.12":
        return f"PyTorch {torch.__version__}, which starts them outside the current stream on this GPU"
    if in_features < MIN_IN_FEATURES:
        return f"a width of {in_features}; below {MIN_IN_FEATURES} 8 bits are no faster than 16"
    return None


class ScaledLinear(Linear):
    """y = x Wᵀ + b of operands that are rounded to 8 bits.

        y[t, n] = s[t] · r[n] · Σ_k x̂[t, k] Ŵ[n, k] + b[n]
        x̂[t, k] = e4m3(x[t, k] / s[t]),  s[t] = max_k |x[t, k]| / 448,  and so r and Ŵ from W's rows

    e4m3 rounds to the nearest number of 4 significant bits, which are fewer below 2⁻⁶. Sums are fp32. W is
    rounded once, here, and x in every call. The activations of `gelu` and `geglu` follow the result, in its
    dtype. A row of zeros gives b; a row with a NaN or an infinity gives NaN.

    Args:
        weight: [out, in], fp32, fp16 or bf16, both sizes multiples of 16, `in` at most 4096.
        bias: [out], like `weight`, or None.
        backend: "torch" for this definition in fp32, slow, on any device; "triton" or None for the tensor
            cores, in bf16 and from 768 wide: a Triton kernel rounds x and `torch._scaled_mm` multiplies.

    Raises:
        InputError: If a shape, dtype or device does not fit.
        BackendUnavailableError: If the tensor cores cannot do it here, with the reason.

    Example:
        >>> layer = ScaledLinear(3 * torch.eye(16), torch.ones(16), backend="torch")
        >>> layer(torch.full((1, 16), 5.0)).unique()
        tensor([16.])

    Source: e4m3 is defined in arXiv 2209.05433.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, *, backend: str | None = None) -> None:
        _check_sizes(weight)
        super().__init__(weight, bias, backend=backend)

    @property
    def weight(self) -> Tensor:
        """W as it is multiplied, [out, in], in the dtype that it came in."""
        return (self._weight.float() * self._weight_scale[:, None]).to(self._dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b: [T, in] → [T, out]. The last axis of x is contiguous, here and below."""
        self._check(x)
        return self.product(*quantize_rows(x, backend=self._backend))

    def of_gelu(self, x: Tensor) -> Tensor:
        """Return GELU(x) Wᵀ + b: [T, in] → [T, out]. GELU(x), by erf, is rounded to 8 bits, never to 16."""
        self._check(x)
        return self.product(*quantize_rows(x, gelu=True, backend=self._backend))

    def product(self, rows: Tensor, scale: Tensor) -> Tensor:
        """Multiply what `quantize_rows` gave, rows [T, in] and scales [T]; nothing is checked. [T, out]."""
        operands = (rows, scale, self._weight, self._weight_scale, self.bias)
        if self._backend == "torch" or rows.device.type == "cpu":  # the interpreter has no tensor cores
            return scaled_product_reference(*operands, self._dtype)
        return scaled_product(*operands)

    def _prepare(self, weight: Tensor) -> None:
        self._packed = False
        self._backend = "torch"
        if self._requested != "torch":
            self._backend = _resolve(weight, self._requested)
        self._weight, self._weight_scale = quantize_rows_reference(weight)

    def _fused(self, columns: int) -> bool:
        return False


def quantize_rows(x: Tensor, *, gelu: bool = False, backend: str | None = None) -> tuple[Tensor, Tensor]:
    """Round each row to e4m3 with a scale of its own, its largest magnitude / 448 (2⁻¹²⁶ at least).

    The scale and everything before the rounding are fp32.

    Args:
        x: [T, K], fp32, fp16 or bf16, K ≤ 4096; the last axis is contiguous.
        gelu: Round GELU(x), by erf, instead of x.
        backend: "triton", "torch", or None to choose by device.

    Returns:
        [T, K], float8_e4m3fn, and the scales [T], fp32; scales[:, None] times the first is about x. A row
        with a NaN or an infinity has one in its scale or among its elements.

    Raises:
        InputError: If a shape or dtype does not fit.
        BackendUnavailableError: If the back-end cannot run on these tensors: Triton's has e4m3 only on GPUs
            that multiply it.

    Example:
        >>> rows, scales = quantize_rows(torch.tensor([[224.0, -1.0], [0.0, 0.0]]))
        >>> rows.float(), scales[0]
        (tensor([[448.,  -2.],
                [  0.,   0.]]), tensor(0.5000))
    """
    require(
        x.ndim == 2
        and x.dtype in FLOAT_DTYPES
        and 1 <= x.shape[1] <= MAX_IN_FEATURES
        and (x.stride(1) == 1 or x.shape[1] == 1),
        "x",
        f"[T, K] in float32, float16 or bfloat16, K from 1 to {MAX_IN_FEATURES}, last axis contiguous",
        x,
    )
    if resolve_op("scaled_linear", x.device, backend) == "torch":
        return quantize_rows_reference(x, gelu=gelu)
    if x.device.type != "cpu":
        _require_tensor_cores(x.device, MIN_IN_FEATURES)  # no e4m3 without them; any width can be rounded
    from fastreward.kernels.scaled_linear import launch_quantize_rows

    return launch_quantize_rows(x, gelu=gelu)


def quantize_rows_reference(x: Tensor, *, gelu: bool = False) -> tuple[Tensor, Tensor]:
    """Define `quantize_rows` in PyTorch: the CPU path and what the kernel is held against.

    Arguments, results and edge cases are those of `quantize_rows`; nothing is checked here.
    """
    y = F.gelu(x.float()) if gelu else x.float()
    # Multiplied by 1/448, and below by one reciprocal for a row: the kernel does the same to the last bit.
    scale = (y.abs().amax(dim=1) * (1.0 / LARGEST_E4M3)).clamp(min=SMALLEST_SCALE)
    return (y * scale.reciprocal()[:, None]).to(torch.float8_e4m3fn), scale


def scaled_product(
    rows: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None
) -> Tensor:
    """Multiply what `quantize_rows` made of x and W, on the tensor cores: [T, out], bf16.

    Args:
        rows: [T, in], float8_e4m3fn.
        scale: [T], fp32.
        weight: [out, in], float8_e4m3fn.
        weight_scale: [out], fp32.
        bias: [out], bf16, or None.
    """
    if not len(rows):
        return rows.new_empty((0, len(weight)), dtype=torch.bfloat16)
    # Fast accumulation keeps about 14 bits of a partial sum, 2¹⁰ times as exact as its e4m3 operands.
    return torch._scaled_mm(
        rows,
        weight.t(),
        scale_a=scale[:, None],
        scale_b=weight_scale[None, :],
        bias=bias,
        out_dtype=torch.bfloat16,
        use_fast_accum=True,
    )


def scaled_product_reference(
    rows: Tensor,
    scale: Tensor,
    weight: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Define `scaled_product` in PyTorch, in fp32, rounded once, to `dtype`."""
    product = (rows.float() @ weight.float().t()) * scale[:, None] * weight_scale[None, :]
    return (product if bias is None else product + bias.float()).to(dtype)


def quantize_rows_bytes(num_tokens: int, in_features: int, dtype: torch.dtype) -> int:
    """Count the bytes that `quantize_rows` must move: x in, 8 bits an element and a scale a row out."""
    return num_tokens * (in_features * (dtype.itemsize + 1) + 4)


def scaled_linear_bytes(num_tokens: int, in_features: int, out_features: int, dtype: torch.dtype) -> int:
    """Count the bytes that the layer must move: x in, its 8 bits out and in, W in, the result out."""
    quantized = quantize_rows_bytes(num_tokens, in_features, dtype)
    product = num_tokens * (in_features + 4) + out_features * (in_features + 4)
    return quantized + product + num_tokens * out_features * dtype.itemsize


def _resolve(weight: Tensor, requested: str | None) -> str:
    """Choose the tensor cores, or raise with the reason."""
    if weight.device.type != "cpu" or requested is None:
        _require_tensor_cores(weight.device, weight.shape[1])
        if weight.dtype != torch.bfloat16:
            raise BackendUnavailableError(
                "bfloat16, in which 8-bit products give their result", dtype_name(weight.dtype), REMEDY
            )
    return resolve_op("scaled_linear", weight.device, "triton")


def _require_tensor_cores(device: torch.device, in_features: int) -> None:
    reason = scaled_linear_available(device, in_features)
    if reason is not None:
        raise BackendUnavailableError("8-bit products where they can run", reason, REMEDY)


def _check_sizes(weight: Tensor) -> None:
    if weight.ndim == 2 and (
        any(size % SIZE_MULTIPLE for size in weight.shape) or weight.shape[1] > MAX_IN_FEATURES
    ):
        raise InputError(
            f"weight with sizes that are multiples of {SIZE_MULTIPLE}, {MAX_IN_FEATURES} inputs at most",
            str(list(weight.shape)),
            "Keep this layer in 16 bits.",
        )
