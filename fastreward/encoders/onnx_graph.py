"""An encoder as an ONNX graph, in the fused operators of ONNX Runtime; pooling and unit length included.

The graph is written from the same layers that the packed encoder computes with, operator by operator, and not
recorded from a model: every fusion is there by construction, for every family, and none depends on a pattern
that an optimiser has to recognise.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from fastreward.encoders.architecture import Architecture
from fastreward.encoders.checkpoint import Checkpoint
from fastreward.encoders.onnx_int8 import Ranges, int8_product
from fastreward.encoders.onnx_nodes import CONTRIB, FLOAT, INT32, GraphPrecision, Nodes
from fastreward.encoders.weights import Layer, load_layers
from fastreward.ops.layer_norm import LayerNorm
from fastreward.ops.linear import Linear
from fastreward.ops.pooled_cosine import Pooling

if TYPE_CHECKING:
    import onnx

MASKED: Final = -30000.0
"""Added to the logits of tokens that are not seen: e to that is 0, and in fp16 it is still a number."""


def build_graph(
    checkpoint: Checkpoint,
    architecture: Architecture,
    pooling: Pooling,
    precision: GraphPrecision = "fp32",
    *,
    ranges: Ranges | None = None,
    observed: bool = False,
    emulated: bool = False,
) -> onnx.ModelProto:
    """Write an encoder as a graph.

    Inputs are `input_ids` [N, L] and `lengths` [N], both int32: N texts of 1 to L tokens each, filled up on
    the right with any token; in families that count positions behind their padding token, with that one.
    Outputs are `embedding` [N, D], unit vectors in fp32, and but for CLS pooling `hidden` [N, L, D] in the
    type of the activations. A CLS encoder computes its last layer for the first tokens alone: no `hidden`.

    Memory for the attention's weights grows with N · L² in every layer.

    Args:
        checkpoint: Where the weights come from.
        architecture: Its own, or one with fewer layers.
        pooling: How a text's hidden states become one vector.
        precision: What weights and activations are rounded to.
        ranges: Of the inputs of all products, which int8 needs.
        observed: Add outputs `range:NAME` [in], the largest magnitudes in the input of product NAME over all
            tokens, the padding's too.
        emulated: Write fp32 operators whose weights and results are rounded to `precision`.

    Returns:
        The model with its weights.

    Raises:
        CheckpointError: If a weight is missing, damaged or of the wrong shape.
    """
    writer = _Writer(checkpoint, architecture, pooling, Nodes(precision, emulated=emulated))
    if precision == "int8":
        assert ranges is not None
        writer.ranges = ranges
    return writer.model(observed=observed)


class _Writer:
    def __init__(
        self, checkpoint: Checkpoint, architecture: Architecture, pooling: Pooling, nodes: Nodes
    ) -> None:
        self.ranges: Ranges | None = None
        self._architecture = architecture
        self._pooling = pooling
        self._nodes = nodes
        self._embeddings, self._layers = load_layers(
            checkpoint, architecture, torch.device("cpu"), torch.float32, splits_last_query=pooling == "cls"
        )
        self._product_inputs: dict[str, str] = {}
        self._window_biases: dict[int, str] = {}
        self._tables: dict[int, int] = {}  # rotary tables, which layers share, numbered

    def model(self, *, observed: bool) -> onnx.ModelProto:
        from onnx import helper

        nodes, width = self._nodes, self._architecture.hidden_size
        self._measure()
        normed = stream = self._embed()
        for index, layer in enumerate(self._layers):
            normed, stream = self._layer(index, layer, normed, stream)
        nodes.rename(self._unit(self._pool(normed)), "embedding")
        outputs = [helper.make_tensor_value_info("embedding", FLOAT, ["N", width])]
        if self._pooling != "cls":
            nodes.rename(normed, "hidden")
            outputs.append(helper.make_tensor_value_info("hidden", nodes.type, ["N", "L", width]))
        for name, states in self._product_inputs.items() if observed else ():
            magnitudes = nodes.op("Abs", states)
            largest = nodes.op("ReduceMax", magnitudes, nodes.constant(np.array([0, 1])), keepdims=0)
            nodes.rename(largest, f"range:{name}")
            outputs.append(helper.make_tensor_value_info(f"range:{name}", FLOAT, [None]))
        inputs = [
            helper.make_tensor_value_info("input_ids", INT32, ["N", "L"]),
            helper.make_tensor_value_info("lengths", INT32, ["N"]),
        ]
        return nodes.model(inputs, outputs)

    # ------------------------------------------------------------------ the encoder

    def _measure(self) -> None:
        """Name what several operators need: the longest text, its positions, and which tokens are real."""
        nodes = self._nodes
        self._longest = nodes.op("Shape", "input_ids", start=1)  # [1]
        end = nodes.op("Squeeze", self._longest)
        columns = nodes.op("Range", nodes.integer(0, ()), end, nodes.integer(1, ()))
        self._columns = nodes.op("Cast", columns, to=INT32)  # [L]
        self._lengths = nodes.op("Unsqueeze", "lengths", nodes.integer(1))  # [N, 1]
        self._real = nodes.op("Less", self._columns, self._lengths)  # [N, L]
        self._mask = nodes.op("Cast", self._real, to=INT32)

    def _embed(self) -> str:
        nodes, embeddings, shape = self._nodes, self._embeddings, self._architecture
        words = nodes.op("Gather", nodes.weight("embeddings.words", embeddings.words), "input_ids")
        if embeddings.positions is None:
            weights = self._norm_weights("embeddings.norm", embeddings.norm)
            return self._op("LayerNormalization", words, *weights, epsilon=embeddings.norm.eps)
        table = nodes.weight("embeddings.positions", embeddings.positions)
        if shape.padding_id is None:
            positions = nodes.op("Slice", table, nodes.integer(0), self._longest, nodes.integer(0))
        else:  # a padding token has row 0, and those behind it count as if it were not there
            padding = nodes.constant(np.array(shape.padding_id, dtype=np.int32))
            counts = nodes.op("Cast", nodes.op("Not", nodes.op("Equal", "input_ids", padding)), to=INT32)
            seen = nodes.op("CumSum", counts, nodes.integer(1, ()))
            positions = nodes.op("Gather", table, nodes.op("Mul", seen, counts))
        return self._norm("embeddings.norm", embeddings.norm, words, positions, "")[0]

    def _layer(self, index: int, layer: Layer, normed: str, stream: str) -> tuple[str, str]:
        name = f"layers.{index}"
        attended = self._attention(name, layer, normed)
        if layer.query is not None:
            stream = self._first(stream)
        delta, bias = self._product(f"{name}.attention_output", layer.attention_output, attended)
        normed, stream = self._norm(f"{name}.attention_norm", layer.attention_norm, delta, stream, bias)
        inside = self._activated(f"{name}.up", layer.up, normed)
        delta, bias = self._product(f"{name}.down", layer.down, inside)
        return self._norm(f"{name}.output_norm", layer.output_norm, delta, stream, bias)

    def _attention(self, name: str, layer: Layer, normed: str) -> str:
        """Attention before its output product: [N, L, D], or [N, 1, D] where the queries stand apart."""
        product, bias = self._product(f"{name}.qkv", layer.qkv, normed)
        if layer.query is not None:
            query = self._add(*self._product(f"{name}.query", layer.query, self._first(normed)))
            key, value = self._split(self._add(product, bias), 2)
            bias = ""
        elif layer.rotary is None:
            query, key, value = self._split(product, 3)
        else:
            query, key, value = self._split(self._add(product, bias), 3)
            bias = ""
        if layer.rotary is not None:
            key = self._rotated(key, layer)
            # A first token that stands alone is at position 0, where nothing rotates.
            query = self._rotated(query, layer) if layer.query is None else query
        window = "" if layer.window is None else self._window(layer.window, first=layer.query is not None)
        return self._contrib(
            "MultiHeadAttention",
            query,
            key,
            value,
            bias,
            self._mask,
            window,
            num_heads=self._architecture.num_heads,
            mask_filter_value=MASKED,
        )

    def _rotated(self, states: str, layer: Layer) -> str:
        nodes = self._nodes
        assert layer.rotary is not None
        name = f"rotary.{self._tables.setdefault(id(layer.rotary), len(self._tables))}"
        cosines, sines = layer.rotary.chunk(2, dim=1)
        tables = nodes.weight(f"{name}.cos", cosines), nodes.weight(f"{name}.sin", sines)
        return self._contrib("RotaryEmbedding", states, nodes.integer(0), *tables)

    def _window(self, window: int, *, first: bool) -> str:
        """What lowers the logits of tokens too far away: [1, 1, L, L], or the first's alone [1, 1, 1, L]."""
        nodes = self._nodes
        if window not in self._window_biases:
            rows = nodes.op("Unsqueeze", self._columns, nodes.integer(1))
            distance = nodes.op("Abs", nodes.op("Sub", rows, self._columns))
            far = nodes.op("Greater", distance, nodes.constant(np.array(window, dtype=np.int32)))
            biases = nodes.op("Where", far, nodes.number(MASKED), nodes.number(0.0))
            biases = nodes.op("Cast", biases, to=nodes.type)
            both = nodes.constant(np.array([0, 1], dtype=np.int64))
            self._window_biases[window] = nodes.op("Unsqueeze", biases, both)
        biases = self._window_biases[window]
        if first:
            return nodes.op("Slice", biases, nodes.integer(0), nodes.integer(1), nodes.integer(2))
        return biases

    def _activated(self, name: str, up: Linear, normed: str) -> str:
        product, bias = self._product(name, up, normed)
        if self._architecture.gated:
            activated, factor = self._split(self._add(product, bias), 2)
            return self._op("Mul", self._op("Gelu", activated), factor)
        return self._contrib("BiasGelu", product, bias) if bias else self._op("Gelu", product)

    # ------------------------------------------------------------------ pooling, in fp32

    def _pool(self, hidden: str) -> str:
        """One row for each text: [N, L, D] → [N, D], with CLS pooling perhaps from [N, 1, D]."""
        nodes = self._nodes
        states = nodes.op("Cast", hidden, to=FLOAT)
        if self._pooling == "cls":
            return nodes.op("Squeeze", self._first(states), nodes.integer(1))
        if self._pooling == "max":
            real = nodes.op("Unsqueeze", self._real, nodes.integer(2))
            seen = nodes.op("Where", real, states, nodes.number(-np.inf))
            return nodes.op("ReduceMax", seen, nodes.integer(1), keepdims=0)
        if self._pooling == "mean":
            real = nodes.op("Cast", self._real, to=FLOAT)
            weights = nodes.op("Div", real, nodes.op("Cast", self._lengths, to=FLOAT))
        else:
            last = nodes.op("Sub", self._lengths, nodes.constant(np.array(1, dtype=np.int32)))
            weights = nodes.op("Cast", nodes.op("Equal", self._columns, last), to=FLOAT)
        rows = nodes.op("Unsqueeze", weights, nodes.integer(1))  # [N, 1, L]
        return nodes.op("Squeeze", nodes.op("MatMul", rows, states), nodes.integer(1))

    def _unit(self, pooled: str) -> str:
        """Unit length, zeros staying zeros; by the largest element first, so that no square overflows."""
        nodes = self._nodes
        for norm in ("ReduceMax", "ReduceL2"):
            size = nodes.op(norm, nodes.op("Abs", pooled), nodes.integer(1))
            empty = nodes.op("Equal", size, nodes.number(0.0))
            pooled = nodes.op("Div", pooled, nodes.op("Where", empty, nodes.number(1.0), size))
        return pooled

    # ------------------------------------------------------------------ steps that several places take

    def _norm(self, name: str, norm: LayerNorm, delta: str, stream: str, bias: str) -> tuple[str, str]:
        """LayerNorm of delta + stream + bias: (normed, what the next block's result is added to)."""
        inputs = (delta, stream, *self._norm_weights(name, norm), bias)
        outputs = 4 if self._architecture.pre_norm else 1  # the fourth is the sum
        results = self._nodes.ops("SkipLayerNormalization", inputs, outputs, CONTRIB, epsilon=norm.eps)
        normed = self._nodes.rounded(results[0])
        return normed, self._nodes.rounded(results[3]) if self._architecture.pre_norm else normed

    def _norm_weights(self, name: str, norm: LayerNorm) -> tuple[str, str]:
        bias = "" if norm.bias is None else self._nodes.weight(f"{name}.bias", norm.bias)
        return self._nodes.weight(f"{name}.weight", norm.weight), bias

    def _product(self, name: str, linear: Linear, states: str) -> tuple[str, str]:
        """The product with a weight, and the name of the bias ("" for none), which the next step adds."""
        bias = "" if linear.bias is None else self._nodes.weight(f"{name}.bias", linear.bias)
        self._product_inputs[name] = states
        if self.ranges is not None:
            return int8_product(self._nodes, name, linear.weight, self.ranges, states), bias
        return self._op("MatMul", states, self._nodes.weight(f"{name}.weight", linear.weight.T)), bias

    def _add(self, states: str, bias: str) -> str:
        return self._op("Add", states, bias) if bias else states

    def _first(self, states: str) -> str:
        """The first token of each text: [N, L, D] → [N, 1, D]."""
        nodes = self._nodes
        return nodes.op("Slice", states, nodes.integer(0), nodes.integer(1), nodes.integer(1))

    def _split(self, states: str, parts: int) -> list[str]:
        return self._nodes.ops("Split", (states,), parts, axis=-1, num_outputs=parts)

    def _op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self._nodes.rounded(self._nodes.op(kind, *inputs, **attributes))

    def _contrib(self, kind: str, *inputs: str, **attributes: Any) -> str:
        return self._nodes.rounded(self._nodes.contrib(kind, *inputs, **attributes))
