"""A graph in the making: operators are appended one by one and named by what they compute."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    import onnx

GraphPrecision = Literal["fp32", "fp16", "bf16", "int8"]
"""What a graph multiplies in. In int8 everything but the layers' products is fp32."""

OPSET: Final = 20
"""Of the standard operators: the first with `Gelu`, which goes by erf unless it is asked for less."""

CONTRIB: Final = "com.microsoft"
"""The domain of ONNX Runtime's own operators."""

IR_VERSION: Final = 10
"""The version of the file format that goes with the opset."""

# As `onnx.TensorProto` numbers them.
FLOAT: Final = 1
INT32: Final = 6
TYPES: Final = {"fp32": FLOAT, "int8": FLOAT, "fp16": 10, "bf16": 16}

DTYPES: Final = {
    "fp32": torch.float32,
    "int8": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""The type of a graph's activations, by its precision."""


class Nodes:
    """Operators and weights of a graph that is being written.

    Args:
        precision: What weights are rounded to.
        emulated: Make a graph of fp32 operators whose weights and results are rounded to `precision`, for a
            machine that has no operators in it.
    """

    def __init__(self, precision: GraphPrecision, *, emulated: bool = False) -> None:
        self.type: int = FLOAT if emulated else TYPES[precision]
        self._dtype = DTYPES[precision]
        self._rounds_to = TYPES[precision] if emulated else None
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, onnx.TensorProto] = {}

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Append a standard operator with one output, and return that output's name."""
        return self.ops(kind, inputs, 1, **attributes)[0]

    def contrib(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """The same with an operator of ONNX Runtime's own."""
        return self.ops(kind, inputs, 1, CONTRIB, **attributes)[0]

    def ops(
        self, kind: str, inputs: tuple[str, ...], outputs: int, domain: str = "", **attributes: Any
    ) -> list[str]:
        """Append an operator with several outputs; an empty name is an optional input left out."""
        from onnx import helper

        name = f"{kind}.{len(self._nodes)}"
        results = [f"{name}:{index}" for index in range(outputs)]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self._nodes.append(helper.make_node(kind, inputs, results, name, domain=domain, **attributes))
        return results

    def rounded(self, value: str) -> str:
        """Round a value to the precision that is emulated; where none is, it has it already."""
        if self._rounds_to is None:
            return value
        return self.op("Cast", self.op("Cast", value, to=self._rounds_to), to=FLOAT)

    def rename(self, value: str, name: str) -> None:
        """Give the result of an operator another name, also where it is read."""
        for node in self._nodes:
            for names in (node.input, node.output):
                for index, old in enumerate(names):
                    if old == value:
                        names[index] = name

    def weight(self, name: str, tensor: Tensor) -> str:
        """Store a weight, once, rounded to the precision of the graph."""
        if name in self._weights:
            return name
        tensor = tensor.to(self._dtype)
        return self.store(name, _array(tensor.float() if self._rounds_to is not None else tensor))

    def integer(self, value: int, shape: tuple[int, ...] = (1,)) -> str:
        """An int64 constant, as axes, starts and ends are given: [1] unless a shape is named."""
        return self.constant(np.full(shape, value, dtype=np.int64))

    def number(self, value: float) -> str:
        """An fp32 constant without axes."""
        return self.constant(np.array(value, dtype=np.float32))

    def constant(self, array: NDArray[Any]) -> str:
        """A small constant; equal ones are stored once."""
        name = f"constant.{array.dtype}{list(array.shape)}.{array.flatten().tolist()}"
        return name if name in self._weights else self.store(name, array)

    def store(self, name: str, array: NDArray[Any]) -> str:
        """Store an array as it is."""
        from onnx import numpy_helper

        self._weights[name] = numpy_helper.from_array(np.ascontiguousarray(array), name)
        return name

    def model(self, inputs: list[onnx.ValueInfoProto], outputs: list[onnx.ValueInfoProto]) -> onnx.ModelProto:
        """Finish: everything that was appended, as a model with these inputs and outputs."""
        from onnx import helper

        weights = list(self._weights.values())
        graph = helper.make_graph(self._nodes, "encoder", inputs, outputs, initializer=weights)
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(
            graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fastreward"
        )


def _array(tensor: Tensor) -> NDArray[Any]:
    tensor = tensor.contiguous()
    if tensor.dtype != torch.bfloat16:
        return tensor.numpy()
    import ml_dtypes  # onnx needs it too: NumPy itself has no bf16

    return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
