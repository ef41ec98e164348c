"""Products in 8 bits for OpenVINO: what their inputs range over is measured once, on the user's texts.

Activations are rounded to 256 levels between two bounds that hold for all tokens, weights to 255 with a scale
for each output. Before that each channel of the input is divided by a factor, and the weight's column
multiplied by it, that evens out how far the channels spread (SmoothQuant, arXiv 2211.10438). What the
rounding takes from the outputs at the mean, the bias puts back. Attention, norms and residuals stay as they
are: they are little of the time and much of the precision.

A rounding is as cheap as what the plug-in makes it a part of. By itself, with bounds of its own for each
channel, it takes three times as long as a norm. So what a product writes is rounded by that product, and all
else by the pass that shifts and divides the channels, which leaves one pair of bounds to the rounding.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from fastreward.encoders.openvino_graph import Input, Product, Weights, constant
from fastreward.encoders.weights import Layer
from fastreward.errors import CheckpointError

if TYPE_CHECKING:
    from openvino import Node

MIGRATION: Final = 0.8
"""The share of a channel's spread that the weights take over, SmoothQuant's α. On MiniLM and explanations,
0.75 gave scores a fifth more error and 0.5 three times as much, most of it behind GELU, which leaves a few
channels a long tail. Weights have a scale for each output and can bear more."""

ACTIVATION_LEVELS: Final = 256
WEIGHT_LEVELS: Final = 127  # to either side of 0

SMALLEST_SPREAD: Final = 1e-3
"""A channel's or a column's spread at least, as a share of the largest one: a channel that calibration saw at
rest must not be multiplied up without bound."""

SMALLEST_RANGE: Final = 1e-20
"""Between the bounds of an input at least: what is less is nothing, and its steps would be denormal."""

FORMAT: Final = 2


@dataclass(frozen=True)
class InputRange:
    """What the input of one product was on the calibration texts.

    Attributes:
        low: [in], fp32, the smallest value in each channel.
        high: [in], fp32, the largest.
        mean: [in], fp32, over all tokens.
    """

    low: Weights
    high: Weights
    mean: Weights


@dataclass(frozen=True)
class Calibration:
    """What an encoder's matrix products are given on texts like those to be scored.

    Attributes:
        encoder: A digest of each layer that it belongs to, from `layer_digests`.
        ranges: By the product's name.
        num_tokens: How many tokens were seen.

    Example:
        >>> ones = np.ones(2, dtype=np.float32)
        >>> Calibration(("abc",), {"0.up": InputRange(-ones, ones, 0 * ones)}, 7).num_tokens
        7
    """

    encoder: tuple[str, ...]
    ranges: Mapping[str, InputRange]
    num_tokens: int

    def save(self, path: str | Path) -> Path:
        """Write it to a file, with the ending `.npz`.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        target = Path(path).with_suffix(".npz")
        digests = np.array(self.encoder, dtype=np.str_)
        arrays: dict[str, Any] = {"format": FORMAT, "encoder": digests, "num_tokens": self.num_tokens}
        for name, found in self.ranges.items():
            arrays[f"range/{name}"] = np.stack([found.low, found.high, found.mean])
        partial = target.with_suffix(".partial.npz")
        try:
            np.savez(partial, **arrays)
            partial.replace(target)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                "a place to write the calibration to", f"{target}: {error}", "Pass another path."
            ) from error
        return target

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Read what `save` wrote.

        Raises:
            CheckpointError: If there is no such file, or it is damaged or something else.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                if int(arrays["format"]) != FORMAT:
                    raise ValueError(f"format {int(arrays['format'])}")
                names = [name for name in arrays.files if name.startswith("range/")]
                ranges = {name.removeprefix("range/"): InputRange(*arrays[name]) for name in names}
                digests = tuple(str(digest) for digest in arrays["encoder"])
                return cls(digests, ranges, int(arrays["num_tokens"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise CheckpointError(
                f"a calibration that `Calibration.save` wrote, of format {FORMAT}",
                f"{path}: {error}",
                "Calibrate again, with calibrate_int8.",
            ) from error


def layer_digests(layers: Sequence[Layer]) -> tuple[str, ...]:
    """Digest each layer's products: 16 hexadecimal digits by which a calibration knows its encoder's layers.

    A layer's are the same however many of the layers are used, and whether queries stand apart or not.
    """
    return tuple(map(_layer_digest, layers))


def _layer_digest(layer: Layer) -> str:
    digest = hashlib.sha256()
    for linear in (layer.query, layer.qkv, layer.attention_output, layer.up, layer.down):
        if linear is not None:
            digest.update(linear.weight.reshape(-1).numpy().data)
    return digest.hexdigest()[:16]


def int8_product(calibration: Calibration) -> Product:
    """Return what writes a product in 8 bits, for `build_graph`.

    Args:
        calibration: Of the same encoder.
    """

    def product(x: Input, weight: Weights, bias: Weights | None, name: str) -> Node:
        # Where queries stand apart, in the last layer of CLS pooling, they get what keys and values get.
        found = calibration.ranges.get(name.replace(".query", ".qkv"))
        if found is None or found.low.shape != (weight.shape[1],):
            raise CheckpointError(
                f"a range of {weight.shape[1]} channels for the product {name} in the calibration",
                "none" if found is None else str(found.low.shape[0]),
                "Calibrate again, with calibrate_int8.",
            )
        # The feed-forward output alone has its input from a product, by way of GELU.
        rounded = _rounded_by_product if name.endswith(".down") else _rounded_in_a_pass
        return _multiplied(rounded(x, weight, found), weight, bias, found, name)

    return product


@dataclass(frozen=True)
class _Rounded:
    """A product's input in 8 bits: the input is `node · factors + shift`, near enough."""

    node: Node
    factors: Weights
    shift: Weights


def _rounded_by_product(x: Input, weight: Weights, found: InputRange) -> _Rounded:
    """Round as the last step of the product that writes x. It can have bounds for each channel."""
    factors = smoothing(np.maximum(np.abs(found.low), np.abs(found.high)), weight)
    low, high = bounds(found.low / factors, found.high / factors)
    node = _round(x.node, low * factors[None], high * factors[None], low, high)
    return _Rounded(node, factors, np.zeros_like(factors))


def _rounded_in_a_pass(x: Input, weight: Weights, found: InputRange) -> _Rounded:
    """Round in the pass that computes (x - shift) / factors, of x or of what x is computed from.

    OpenVINO would rather put shift and factors into bounds of the rounding, which is then a pass by itself.
    It does not if a factor is negative and the shift a row [1, in]; were it to, the result would be the same.
    """
    import openvino.opset13 as op

    shift = found.mean
    factors = smoothing(np.maximum(found.high - shift, shift - found.low), weight)
    if (x.scale > 0).all():
        factors[0] = -factors[0]
    ends = (found.low - shift) / factors, (found.high - shift) / factors
    low, high = bounds(np.minimum(*ends), np.maximum(*ends))
    scaled = op.multiply(x.base, constant((x.scale / factors)[None]))
    shifted = op.add(scaled, constant(((x.shift - shift) / factors)[None]))
    return _Rounded(_round(shifted, low, high, low, high), factors, shift)


def _round(
    x: Node,
    low: Weights | np.float32,
    high: Weights | np.float32,
    written_low: np.float32,
    written_high: np.float32,
) -> Node:
    import openvino.opset13 as op

    ends = [constant(end) for end in (low, high, written_low, written_high)]
    return op.fake_quantize(x, *ends, ACTIVATION_LEVELS)


def _multiplied(x: _Rounded, weight: Weights, bias: Weights | None, found: InputRange, name: str) -> Node:
    import openvino.opset13 as op

    smoothed = weight * x.factors
    whole, scales = round_weights(smoothed)
    stored = op.multiply(op.convert(op.constant(whole), "f32"), constant(scales))
    y = op.matmul(x.node, stored, transpose_a=False, transpose_b=True, name=name)
    drift = (smoothed - whole * scales) @ ((found.mean - x.shift) / x.factors)
    offset = weight @ x.shift + drift
    return op.add(y, constant(np.float32(offset if bias is None else bias + offset)))


def smoothing(spread: Weights, weight: Weights) -> Weights:
    """Factors by which the channels of a product's input are divided and its weight's columns multiplied.

        s_k = spread_k^α / max_o |W_ok|^(1 - α), over their geometric mean

    Args:
        spread: [in], the largest magnitude in each channel, 0 or more.
        weight: [out, in].

    Returns:
        [in], fp32, positive; ones where all channels or all weights are zero.

    Source: SmoothQuant (arXiv 2211.10438), equation 4.

    Example:
        >>> smoothing(np.float32([1, 16]), np.float32([[1, 1]])).round(3)  # 16 ** -0.4 and 16 ** 0.4
        array([0.33 , 3.031], dtype=float32)
    """
    columns = np.abs(weight).max(axis=0)
    if not spread.max() or not columns.max():
        return np.ones_like(spread)
    spread = np.maximum(spread, SMALLEST_SPREAD * spread.max())
    columns = np.maximum(columns, SMALLEST_SPREAD * columns.max())
    logarithms = MIGRATION * np.log(spread) - (1 - MIGRATION) * np.log(columns)
    factors: Weights = np.exp(logarithms - logarithms.mean()).astype(np.float32)
    return factors


def bounds(low: Weights, high: Weights) -> tuple[np.float32, np.float32]:
    """The least and the greatest value that rounding keeps, such that 0 is a level and stays what it is.

    Args:
        low: The smallest value in each channel.
        high: The largest.

    Example:
        >>> low, high = bounds(np.float32([-1.0]), np.float32([1.0]))
        >>> float(low), float(high)
        (-1.003921627998352, 0.9960784316062927)
    """
    least, greatest = min(0.0, float(low.min())), max(0.0, float(high.max()))
    if greatest - least < SMALLEST_RANGE:
        return np.float32(0.0), np.float32(1.0)  # nothing but zeros was seen
    steps = ACTIVATION_LEVELS - 1
    step = (greatest - least) / steps
    zero = round(-least / step)
    return np.float32(-zero * step), np.float32((steps - zero) * step)


def round_weights(weight: Weights) -> tuple[NDArray[np.int8], Weights]:
    """Round each row of [out, in] to whole numbers of a scale of its own: int8 [out, in], fp32 [out, 1].

    Example:
        >>> whole, scales = round_weights(np.float32([[1.0, -0.5], [0.0, 0.0]]))
        >>> whole.tolist(), scales.tolist()
        ([[127, -64], [0, 0]], [[0.007874015718698502], [1.0]])
    """
    largest = np.abs(weight).max(axis=1, keepdims=True)
    scales = np.where(largest == 0, np.float32(WEIGHT_LEVELS), largest) / np.float32(WEIGHT_LEVELS)
    return np.rint(weight / scales).astype(np.int8), scales.astype(np.float32)
