"""The linear layer: plain PyTorch, and on a CPU oneDNN with weights packed once and GELU fused.

PyTorch's own fp32 path is slow on some CPUs; oneDNN with prepacked weights reaches the machine's rate, and
with GELU fused it saves two passes over the widest activations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# The row count that oneDNN is told when it packs a weight: a typical batch. Other counts are as right.
PACKED_FOR_ROWS = 2048


def onednn_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN's prepacked linear layer can be had here in `dtype`; bf16 needs instructions for it."""
    if not (torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Linear:
    """y = x Wᵀ + b with an optional epilogue.

    Args:
        weight: [out, in], on the device and in the dtype that it will be used in.
        bias: [out], like `weight`.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        self.bias = bias
        self._packed = weight.device.type == "cpu" and onednn_available(weight.dtype)
        if self._packed:
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), PACKED_FOR_ROWS)
        self._weight = weight

    def __call__(self, x: Tensor) -> Tensor:
        """Return x Wᵀ + b: [T, in] → [T, out]."""
        if self._packed:
            return _tensor(torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], ""))
        return F.linear(x, self._weight, self.bias)

    def gelu(self, x: Tensor) -> Tensor:
        """Return GELU(x Wᵀ + b), by erf and not by its tanh approximation (arXiv 1606.08415)."""
        if self._packed:
            return _tensor(torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "gelu", [], "none"))
        return F.gelu(F.linear(x, self._weight, self.bias))

    def add(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return x Wᵀ + b + residual; residual is [T, out]."""
        # Not by oneDNN's fused add: it is compiled anew in every call, which takes milliseconds.
        return self(x).add_(residual)


def _tensor(result: object) -> Tensor:
    assert isinstance(result, Tensor)
    return result
