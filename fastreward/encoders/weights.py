"""A checkpoint's tensors → the layers of the packed encoder, each tensor checked, moved and cast."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastreward.encoders.architecture import Architecture
from fastreward.encoders.checkpoint import Checkpoint, load_weights
from fastreward.errors import CheckpointError
from fastreward.ops.layer_norm import LayerNorm
from fastreward.ops.linear import Linear
from fastreward.ops.rotary import rotary_table
from fastreward.ops.scaled_linear import ScaledLinear


@dataclass(frozen=True)
class Embeddings:
    """What a token is before the first layer.

    Attributes:
        words: [V, D].
        positions: [P, D], the token type of every text added; None in families with rotary positions. Where
            the architecture has a `padding_id`, row 0 is the padding token's and row 1 the first position's.
        norm: Behind the sum.
    """

    words: Tensor
    positions: Tensor | None
    norm: LayerNorm


@dataclass(frozen=True)
class Layer:
    """One layer, written so that every norm stands behind a block.

    A norm before a block, as pre-norm families have it, is the norm behind the block before: there
    `output_norm` is the following layer's first norm, or the encoder's last.

    Attributes:
        query: D → D; the queries apart, in the last layer of a CLS-pooled encoder, else None.
        qkv: D → 3D, or with `query` D → 2D for keys and values.
        attention_output: D → D.
        attention_norm: Behind the attention and its residual.
        up: D → F, or 2F where the block is gated.
        down: F → D.
        output_norm: Behind the feed-forward block and its residual.
        window: How far a token sees to either side; None for the whole text.
        rotary: [P, head_dim], cosines and sines by position; None in families with learned positions.
    """

    query: Linear | None
    qkv: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    output_norm: LayerNorm
    window: int | None
    rotary: Tensor | None


def load_layers(
    checkpoint: Checkpoint,
    architecture: Architecture,
    device: torch.device,
    dtype: torch.dtype,
    *,
    splits_last_query: bool,
) -> tuple[Embeddings, list[Layer]]:
    """Read what the first layers of a checkpoint need.

    Args:
        checkpoint: Where from.
        architecture: Its own, or one with fewer layers.
        device: Where the tensors go.
        dtype: The precision of products; with float8_e4m3fn everything but products is in bfloat16.
        splits_last_query: Keep the last layer's queries apart from its keys and values.

    Raises:
        CheckpointError: If a tensor is missing, damaged or of the wrong shape.
    """
    reader = _Reader(checkpoint, architecture, device, dtype)
    readers = {"bert": reader.bert, "modernbert": reader.modernbert}
    return readers[architecture.weight_layout](splits_last_query)


class _Reader:
    def __init__(
        self, checkpoint: Checkpoint, architecture: Architecture, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._folder = checkpoint.folder
        self._architecture = architecture
        self._device = device
        self._scaled = dtype == torch.float8_e4m3fn
        self._dtype = torch.bfloat16 if self._scaled else dtype
        loaded = load_weights(checkpoint)
        self._tensors = {name.removeprefix(architecture.prefix): tensor for name, tensor in loaded.items()}

    def bert(self, splits_last_query: bool) -> tuple[Embeddings, list[Layer]]:
        shape = self._architecture
        d, f = shape.hidden_size, shape.intermediate_size
        words = self._cast(self._take("embeddings.word_embeddings.weight", shape.vocab_size, d))
        embeddings = Embeddings(words, self._positions(), self._norm("embeddings.LayerNorm"))
        layers = []
        for index in range(shape.num_layers):
            name = f"encoder.layer.{index}"
            parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
            weight = torch.cat([self._take(f"{part}.weight", d, d) for part in parts])
            bias = torch.cat([self._take(f"{part}.bias", d) for part in parts])
            query, qkv = self._queries(weight, bias, splits_last_query and index == shape.num_layers - 1)
            layers.append(
                Layer(
                    query=query,
                    qkv=qkv,
                    attention_output=self._linear(f"{name}.attention.output.dense", d, d),
                    attention_norm=self._norm(f"{name}.attention.output.LayerNorm"),
                    up=self._linear(f"{name}.intermediate.dense", f, d),
                    down=self._linear(f"{name}.output.dense", d, f),
                    output_norm=self._norm(f"{name}.output.LayerNorm"),
                    window=None,
                    rotary=None,
                )
            )
        return embeddings, layers

    def modernbert(self, splits_last_query: bool) -> tuple[Embeddings, list[Layer]]:
        shape = self._architecture
        d, f = shape.hidden_size, shape.intermediate_size
        words = self._cast(self._take("embeddings.tok_embeddings.weight", shape.vocab_size, d))
        embeddings = Embeddings(words, None, self._norm("embeddings.norm"))
        assert shape.thetas is not None
        tables = {
            theta: rotary_table(shape.max_positions, shape.head_dim, theta, self._device)
            for theta in shape.thetas
        }
        layers = []
        for index, (window, theta) in enumerate(zip(shape.windows, shape.thetas, strict=True)):
            name, last = f"layers.{index}", index == shape.num_layers - 1
            weight = self._take(f"{name}.attn.Wqkv.weight", 3 * d, d)
            bias = self._take(f"{name}.attn.Wqkv.bias", 3 * d) if shape.attention_bias else None
            query, qkv = self._queries(weight, bias, splits_last_query and last)
            layers.append(
                Layer(
                    query=query,
                    qkv=qkv,
                    attention_output=self._linear(f"{name}.attn.Wo", d, d, bias=shape.attention_bias),
                    attention_norm=self._norm(f"{name}.mlp_norm"),
                    up=self._linear(f"{name}.mlp.Wi", 2 * f, d, bias=shape.mlp_bias),
                    down=self._linear(f"{name}.mlp.Wo", d, f, bias=shape.mlp_bias),
                    output_norm=self._norm("final_norm" if last else f"layers.{index + 1}.attn_norm"),
                    window=window,
                    rotary=tables[theta],
                )
            )
        return embeddings, layers

    def _positions(self) -> Tensor:
        shape = self._architecture
        before = 0 if shape.padding_id is None else shape.padding_id + 1
        table = self._take(
            "embeddings.position_embeddings.weight", shape.max_positions + before, shape.hidden_size
        )
        types = self._take("embeddings.token_type_embeddings.weight", None, shape.hidden_size)
        # Every text is one segment: its type is added to the positions once, here, before rounding.
        return self._cast(table[max(0, before - 1) :] + types[0])

    def _queries(self, weight: Tensor, bias: Tensor | None, split: bool) -> tuple[Linear | None, Linear]:
        if not split:
            return None, self._product(weight, bias)
        d = self._architecture.hidden_size
        query_bias, other_bias = (None, None) if bias is None else (bias[:d], bias[d:])
        return self._product(weight[:d], query_bias), self._product(weight[d:], other_bias)

    def _linear(self, name: str, out_features: int, in_features: int, *, bias: bool = True) -> Linear:
        weight = self._take(f"{name}.weight", out_features, in_features)
        return self._product(weight, self._take(f"{name}.bias", out_features) if bias else None)

    def _product(self, weight: Tensor, bias: Tensor | None) -> Linear:
        kind = ScaledLinear if self._scaled else Linear
        return kind(self._cast(weight), None if bias is None else self._cast(bias))

    def _norm(self, name: str) -> LayerNorm:
        shape = self._architecture
        weight = self._cast(self._take(f"{name}.weight", shape.hidden_size))
        bias = self._cast(self._take(f"{name}.bias", shape.hidden_size)) if shape.norm_bias else None
        return LayerNorm(weight, bias, shape.eps)

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype).contiguous()

    def _take(self, name: str, *shape: int | None) -> Tensor:
        tensor = self._tensors.get(name)
        fits = tensor is not None and tensor.ndim == len(shape)
        if (
            tensor is None
            or not fits
            or any(w not in (None, s) for w, s in zip(shape, tensor.shape, strict=True))
        ):
            raise CheckpointError(
                f"a weight {name} of shape {[n or 'any' for n in shape]}",
                "none" if tensor is None else str(list(tensor.shape)),
                f"Check that config.json and the weights in {self._folder} belong together.",
            )
        return tensor
