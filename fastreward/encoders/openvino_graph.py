"""An encoder as an OpenVINO graph over packed tokens: nothing is padded but the scores inside attention.

The products, which are nearly all of the work, run over the T tokens as they stand one behind another. Only
for attention are they gathered into R rows of L slots, and gathered back. A row holds a text, or several that
do not see each other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.encoders.architecture import Architecture
from fastreward.encoders.openvino_inputs import rounded_slots
from fastreward.encoders.weights import Embeddings, Layer
from fastreward.ops.layer_norm import LayerNorm
from fastreward.ops.linear import Linear
from fastreward.ops.pooled_cosine import Pooling
from fastreward.ops.rotary import rotary_table

if TYPE_CHECKING:
    from openvino import Model, Node

# Added to the score of what must not be seen. Finite, so that a text without tokens makes no NaN, and far
# below any score, so that its exponential is 0 in bf16 as in fp32.
UNSEEN: Final = -1e9

# A pooled vector shorter than this is no direction; as in `fastreward.ops.normalization`.
MIN_NORM: Final = 1e-12

Weights = NDArray[np.float32]


@dataclass(frozen=True)
class Input:
    """What a product is given: `base · scale + shift`, channel by channel.

    Attributes:
        node: [M, in].
        base: [M, in], a norm before its weight and bias; elsewhere the node itself.
        scale: [in], fp32.
        shift: [in], fp32.
    """

    node: Node
    base: Node
    scale: Weights
    shift: Weights

    @classmethod
    def plain(cls, node: Node) -> Input:
        """A node that is not known to be a function of another one."""
        width = node.get_output_partial_shape(0)[1].get_length()
        return cls(node, node, np.ones(width, dtype=np.float32), np.zeros(width, dtype=np.float32))


Product = Callable[[Input, Weights, Weights | None, str], "Node"]
"""How a product is written: (its input [M, in], weight [out, in], bias [out], its name) → [M, out]."""


def build_graph(
    architecture: Architecture,
    embeddings: Embeddings,
    layers: Sequence[Layer],
    *,
    pooling: Pooling | None,
    product: Product | None = None,
) -> Model:
    """Write the graph of an encoder.

    Its inputs, all int32, in this order:

    - `input_ids` [T];
    - `position_rows` [T]: each token's row of the position table. Not with rotary positions;
    - `slots` [N, L]: the tokens of each text, any one where it has none;
    - `row_slots` [R, L]: the token of each slot in a row of attention, any one where there is none;
    - `rows` [T]: the slot, r · L + l, of each token;
    - `query_texts` [R, L], or [R, 1] for a whole row: the text that a slot's query belongs to;
    - `row_texts` [R, L]: the text that a slot belongs to, -1 for none;
    - `lengths` [N]: tokens of each text.

    With the last layer's queries apart, row n is text n. Behind the tokens of the texts there may stand
    others, in no slot: what they come to is not used.

    Args:
        architecture: Of as many layers as there are in `layers`.
        embeddings: fp32.
        layers: fp32; with CLS pooling the last one has its queries apart.
        pooling: How the hidden states of a text become a vector; None leaves them as they are.
        product: Writes a matrix product and its bias; None does it in the precision of the graph.

    Returns:
        A graph with one output, fp32: unit vectors [N, D], zeros for a text without tokens; without pooling
        the hidden states [T, D].
    """
    return _Writer(architecture, product or plain_product).graph(embeddings, layers, pooling)


def plain_product(x: Input, weight: Weights, bias: Weights | None, name: str) -> Node:
    """Write x Wᵀ + b: [M, in] → [M, out]."""
    import openvino.opset13 as op

    y = op.matmul(x.node, constant(weight), transpose_a=False, transpose_b=True, name=name)
    return y if bias is None else op.add(y, constant(bias))


def constant(value: Tensor | NDArray[Any] | np.float32 | Sequence[int] | int) -> Node:
    """Write a constant: whole numbers as int64, all others as fp32."""
    import openvino.opset13 as op

    if isinstance(value, Tensor):
        return op.constant(value.detach().float().contiguous().numpy(), shared_memory=False)
    array = np.asarray(value)
    return op.constant(array.astype(np.float32 if array.dtype.kind == "f" else np.int64), shared_memory=False)


class _Writer:
    """Writes one graph; what its layers share is made once."""

    def __init__(self, architecture: Architecture, product: Product) -> None:
        import openvino.opset13 as op

        self._op: Any = op
        self._architecture = architecture
        self._product = product
        self._ids = op.parameter([-1], np.int32, name="input_ids")
        self._positions = op.parameter([-1], np.int32, name="position_rows")
        self._slots = op.parameter([-1, -1], np.int32, name="slots")
        self._row_slots = op.parameter([-1, -1], np.int32, name="row_slots")
        self._rows = op.parameter([-1], np.int32, name="rows")
        self._query_texts = op.parameter([-1, -1], np.int32, name="query_texts")
        self._row_texts = op.parameter([-1, -1], np.int32, name="row_texts")
        self._lengths = op.parameter([-1], np.int32, name="lengths")
        self._slot_numbers = self._range_of_slots()  # [L]
        self._filled = op.less(  # [N, L], whether a slot has a token
            op.unsqueeze(self._slot_numbers, constant([0])), op.unsqueeze(self._lengths, constant([1]))
        )
        self._masks: dict[tuple[int | None, bool], Node] = {}
        self._rotations: dict[float, tuple[Node, Node]] = {}

    def graph(self, embeddings: Embeddings, layers: Sequence[Layer], pooling: Pooling | None) -> Model:
        from openvino import Model

        normed = self._embed(embeddings)
        stream = normed.node
        one_row_a_text = False
        for index, layer in enumerate(layers):
            one_row_a_text = layer.query is not None and pooling is not None
            attended = self._attend(normed, layer, index, from_first=one_row_a_text)
            if one_row_a_text:
                stream = self._first_rows(stream)
            normed, stream = self._after_attention(attended, stream, layer, str(index))
        inputs = [self._ids, self._slots, self._row_slots, self._rows]
        inputs += [self._query_texts, self._row_texts, self._lengths]
        if embeddings.positions is not None:
            inputs.insert(1, self._positions)
        output = normed.node
        if pooling is not None:
            output = self._zero_if_empty(output) if one_row_a_text else self._pool(output, pooling)
            output = self._unit(output)
        return Model([self._op.result(output, name="output")], inputs, "fastreward")

    # ------------------------------------------------------------------ tokens

    def _embed(self, embeddings: Embeddings) -> Input:
        x = self._take(constant(embeddings.words), self._ids)
        if embeddings.positions is not None:
            x = self._op.add(x, self._take(constant(embeddings.positions), self._positions))
        return self._norm(x, embeddings.norm)

    def _after_attention(self, attended: Node, stream: Node, layer: Layer, name: str) -> tuple[Input, Node]:
        """Attention output, feed-forward block, their residuals and norms: (normed, stream)."""
        op = self._op
        delta = self._multiply(Input.plain(attended), layer.attention_output, f"{name}.attention_output")
        normed, stream = self._add_and_norm(delta, stream, layer.attention_norm)
        inside = self._multiply(normed, layer.up, f"{name}.up")
        if self._architecture.gated:
            active, gate = op.split(inside, constant(1), num_splits=2).outputs()
            inside = op.multiply(op.gelu(active, "erf"), gate)
        else:
            inside = op.gelu(inside, "erf")
        delta = self._multiply(Input.plain(inside), layer.down, f"{name}.down")
        return self._add_and_norm(delta, stream, layer.output_norm)

    def _add_and_norm(self, delta: Node, stream: Node, norm: LayerNorm) -> tuple[Input, Node]:
        total = self._op.add(delta, stream)
        normed = self._norm(total, norm)
        return normed, total if self._architecture.pre_norm else normed.node

    def _norm(self, x: Node, norm: LayerNorm) -> Input:
        op = self._op
        base = op.mvn(x, constant([-1]), normalize_variance=True, eps=norm.eps, eps_mode="inside_sqrt")
        y = op.multiply(base, constant(norm.weight))
        scale = norm.weight.float().numpy()
        if norm.bias is None:
            return Input(y, base, scale, np.zeros_like(scale))
        return Input(op.add(y, constant(norm.bias)), base, scale, norm.bias.float().numpy())

    # --------------------------------------------------------------- attention

    def _attend(self, normed: Input, layer: Layer, index: int, *, from_first: bool) -> Node:
        """Attention before its output product: of all tokens, [T, D], or of texts' first ones, [N, D]."""
        op, heads, head_dim = self._op, self._architecture.num_heads, self._architecture.head_dim
        width = heads * head_dim
        if layer.query is None:
            query, key, value = self._heads(self._multiply(normed, layer.qkv, f"{index}.qkv", width), 3)
        else:
            rows = Input.plain(self._first_rows(normed.node)) if from_first else normed
            queries = self._multiply(rows, layer.query, f"{index}.query", width)
            first = op.reshape(queries, constant([-1, heads, 1, head_dim]), special_zero=False)
            query = first if from_first else self._heads(queries, 1)[0]
            key, value = self._heads(self._multiply(normed, layer.qkv, f"{index}.qkv"), 2)
        if (thetas := self._architecture.thetas) is not None:
            key = self._rotated(key, thetas[index])
            if not from_first:  # a first token stands at position 0, where nothing rotates
                query = self._rotated(query, thetas[index])
        scores = op.add(
            op.matmul(query, key, transpose_a=False, transpose_b=True), self._mask(layer.window, from_first)
        )
        attended = op.matmul(op.softmax(scores, axis=3), value, transpose_a=False, transpose_b=False)
        side_by_side = op.transpose(attended, constant([0, 2, 1, 3]))
        rows = op.reshape(side_by_side, constant([-1, width]), special_zero=False)
        return rows if from_first else self._take(rows, self._rows)

    def _heads(self, x: Node, count: int) -> list[Node]:
        """[T, count · D] → `count` of [R, H, L, hd]."""
        op, shape = self._op, self._architecture
        padded = self._take(x, self._row_slots)
        apart = op.reshape(
            padded, constant([0, 0, count, shape.num_heads, shape.head_dim]), special_zero=True
        )
        turned = op.transpose(apart, constant([2, 0, 3, 1, 4]))
        return [op.gather(turned, constant(index), constant(0)) for index in range(count)]

    def _mask(self, window: int | None, from_first: bool) -> Node:
        """What is added to scores: [R, 1, 1 or L, L]; of first tokens [N, 1, 1, L]."""
        key = (window, from_first)
        if key not in self._masks:
            op = self._op
            seen = op.equal(
                op.unsqueeze(self._query_texts, constant([1, 3])),
                op.unsqueeze(self._row_texts, constant([1, 2])),
            )
            if window is not None:
                columns = op.unsqueeze(self._slot_numbers, constant([0]))
                lines = constant(0) if from_first else op.unsqueeze(self._slot_numbers, constant([1]))
                distance = op.abs(op.subtract(op.convert(columns, "i64"), op.convert(lines, "i64")))
                near = op.less_equal(distance, constant(window))
                seen = op.logical_and(seen, op.unsqueeze(near, constant([0, 1])))
            self._masks[key] = op.select(seen, constant(np.float32(0.0)), constant(np.float32(UNSEEN)))
        return self._masks[key]

    def _rotated(self, x: Node, theta: float) -> Node:
        """Turn [R, H, L, hd] by the slots' numbers, as `apply_rotary` does by positions.

        Scores depend on how far two tokens of a text are apart, which is the same.
        """
        op = self._op
        cosines, sines = self._rotation(theta)
        left, right = op.split(x, constant(3), num_splits=2).outputs()
        turned = (
            op.subtract(op.multiply(left, cosines), op.multiply(right, sines)),
            op.add(op.multiply(right, cosines), op.multiply(left, sines)),
        )
        return op.concat(list(turned), axis=3)

    def _rotation(self, theta: float) -> tuple[Node, Node]:
        """Cosines and sines by the slots' numbers, each [L, hd / 2].

        A row has as many slots as a longest text of P tokens is rounded up to, and where texts share it all
        of them may hold tokens: slots that no position has are in the table too.
        """
        if theta not in self._rotations:
            shape = self._architecture
            num_slots = rounded_slots(shape.max_positions)
            table = rotary_table(num_slots, shape.head_dim, theta, torch.device("cpu"))
            rows = self._take(constant(table), self._slot_numbers)
            cosines, sines = self._op.split(rows, constant(1), num_splits=2).outputs()
            self._rotations[theta] = cosines, sines
        return self._rotations[theta]

    # ----------------------------------------------------------------- pooling

    def _pool(self, x: Node, pooling: Pooling) -> Node:
        """[T, D] → [N, D], zeros for a text without tokens."""
        op = self._op
        if pooling == "cls":
            return self._zero_if_empty(self._first_rows(x))
        if pooling == "last":
            last = op.maximum(op.subtract(self._lengths, self._whole(1)), self._whole(0))
            slots = op.gather_elements(self._slots, op.unsqueeze(last, constant([1])), axis=1)
            return self._zero_if_empty(self._take(x, op.squeeze(slots, constant([1]))))
        filled = op.unsqueeze(self._filled, constant([2]))
        padded = self._take(x, self._slots)
        if pooling == "max":
            lowest = constant(np.float32(np.finfo(np.float32).min))
            return self._zero_if_empty(op.reduce_max(op.select(filled, padded, lowest), constant([1])))
        lengths = op.maximum(op.convert(self._lengths, "f32"), constant(np.float32(1.0)))
        shares = op.divide(op.convert(self._filled, "f32"), op.unsqueeze(lengths, constant([1])))
        return op.reduce_sum(op.multiply(padded, op.unsqueeze(shares, constant([2]))), constant([1]))

    def _zero_if_empty(self, pooled: Node) -> Node:
        full = self._op.greater(self._op.unsqueeze(self._lengths, constant([1])), self._whole(0))
        return self._op.select(full, pooled, constant(np.float32(0.0)))

    def _unit(self, pooled: Node) -> Node:
        op = self._op
        norm = op.sqrt(op.reduce_sum(op.multiply(pooled, pooled), constant([1]), keep_dims=True))
        return op.divide(pooled, op.maximum(norm, constant(np.float32(MIN_NORM))))

    # ------------------------------------------------------------------- parts

    def _multiply(self, x: Input, linear: Linear, name: str, queries: int = 0) -> Node:
        """Write a product. The scale of attention's scores is set into its first columns, the queries."""
        weight = np.array(linear.weight.numpy())
        bias = None if linear.bias is None else np.array(linear.bias.numpy())
        scale = np.float32(self._architecture.head_dim**-0.5)
        weight[:queries] *= scale
        if bias is not None:
            bias[:queries] *= scale
        return self._product(x, weight, bias, name)

    def _first_rows(self, x: Node) -> Node:
        """Rows of the texts' first tokens: [T, D] → [N, D]."""
        return self._take(x, self._op.gather(self._slots, constant(0), constant(1)))

    def _take(self, table: Node, rows: Node) -> Node:
        return self._op.gather(table, rows, constant(0))

    def _range_of_slots(self) -> Node:
        op = self._op
        length = op.gather(op.shape_of(self._slots, "i32"), constant(1), constant(0))
        return op.range(self._whole(0), length, self._whole(1), "i32")

    def _whole(self, value: int) -> Node:
        return self._op.constant(np.array(value, dtype=np.int32))
