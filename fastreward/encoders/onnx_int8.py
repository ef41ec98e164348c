"""Products in 8 bits for ONNX Runtime on a CPU: a scale for every token, outliers shared with the weights.

ONNX Runtime's own dynamic quantisation takes one scale for all tokens of a batch. Then a text's score depends
on the texts beside it, and a single large activation costs all tokens their precision. Here every token has
its own scale, as every column of a weight has. And before rounding each channel is divided by a factor, and
the weight's row multiplied by it, that evens out how far the two spread (SmoothQuant, arXiv 2211.10438).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastreward.encoders.onnx_nodes import Nodes

Ranges = Mapping[str, NDArray[np.float32]]
"""For each product, the largest magnitude in each channel of its input, [in]."""

MIGRATION: Final = 0.5
"""The share of a channel's outliers that the weights take over: SmoothQuant's α, and its authors' choice. On
MiniLM 0.3 was worse and 0.7 no better."""

LEVELS: Final = 127
"""Steps to either side of 0. Activations are unsigned around 128, for which CPUs have the instruction."""

SMALLEST: Final = 1e-20
"""A token's largest magnitude at least: a token of zeros stays zeros."""


def smoothing(ranges: NDArray[np.float32], weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Factors by which the channels of a product's input are to be divided and its weight's rows multiplied.

        s_k = range_k^α / max_o |W_ko|^(1 - α), over their geometric mean

    Args:
        ranges: [in], the largest magnitude in each channel.
        weight: [in, out].

    Returns:
        [in], above 0.

    Example:
        >>> smoothing(np.float32([16.0, 1.0]), np.float32([[1.0], [1.0]])).round(3).tolist()
        [2.0, 0.5]

    Source: SmoothQuant (arXiv 2211.10438), equation 4.
    """
    floor = np.float32(1e-5)  # a channel that no text stirred, or that no output reads
    spread = np.maximum(ranges, floor) ** MIGRATION
    factors = spread / np.maximum(np.abs(weight).max(axis=1), floor) ** (1 - MIGRATION)
    evened: NDArray[np.float32] = (factors / np.exp(np.log(factors).mean())).astype(np.float32)
    return evened


def rounded_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Round the columns of a weight to 8 bits, each by its own scale: (int8 [in, out], scales [out]).

    Example:
        >>> levels, scales = rounded_columns(np.float32([[1.0, 0.0], [-0.5, 0.0]]))
        >>> levels.tolist()
        [[127, 0], [-64, 0]]
    """
    largest = np.abs(weight).max(axis=0)
    scales = (np.where(largest > 0, largest, 1.0) / LEVELS).astype(np.float32)
    return np.rint(weight / scales).clip(-LEVELS, LEVELS).astype(np.int8), scales


def int8_product(nodes: Nodes, name: str, weight: Tensor, ranges: Ranges, states: str) -> str:
    """Append states · W, both rounded to 8 bits, the sum exact in int32: [N, L, in] → [N, L, out], fp32.

    Args:
        nodes: The graph.
        name: The product's, by which its weights are stored and `ranges` is read.
        weight: [out, in], fp32.
        ranges: From texts that went through the same encoder in fp32.
        states: The value to multiply.
    """
    transposed = weight.T.numpy()
    factors = smoothing(ranges[name], transposed)
    levels, scales = rounded_columns(transposed * factors[:, None])
    evened = nodes.op("Mul", states, nodes.store(f"{name}.smoothing", 1 / factors))
    largest = nodes.op("ReduceMax", nodes.op("Abs", evened), nodes.integer(2))  # [N, L, 1]
    steps = nodes.op("Div", nodes.op("Max", largest, nodes.number(SMALLEST)), nodes.number(LEVELS))
    # One axis of tokens, for that is how a rounding takes a scale for each.
    flat_steps = nodes.op("Reshape", steps, nodes.integer(-1))  # [N · L]
    rows = nodes.op("Reshape", evened, nodes.constant(np.array([-1, len(factors)], dtype=np.int64)))
    zero = nodes.constant(np.array(LEVELS + 1, dtype=np.uint8))
    zeros = nodes.op("Expand", zero, nodes.op("Shape", flat_steps))
    rounded = nodes.op("QuantizeLinear", rows, flat_steps, zeros, axis=0)
    product = nodes.contrib(
        "MatMulIntegerToFloat",
        rounded,
        nodes.store(f"{name}.levels", levels),
        nodes.number(1.0),
        nodes.store(f"{name}.scales", scales),
        zero,
    )
    outputs = nodes.constant(np.array([levels.shape[1]], dtype=np.int64))
    shape = nodes.op("Concat", nodes.op("Shape", states, end=2), outputs, axis=0)
    return nodes.op("Mul", nodes.op("Reshape", product, shape), steps)
