"""The packed encoder: our own forward over packed tokens, no padding anywhere, on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.encoders.checkpoint import Checkpoint, load_weights
from fastreward.encoders.numerics import own_numerics
from fastreward.errors import CheckpointError, UnsupportedArchitectureError
from fastreward.ops.attention import packed_attention
from fastreward.ops.linear import Linear
from fastreward.ops.pooled_cosine import (
    MAX_LAYER_NORM_SIZE,
    LastLayerNorm,
    Pooling,
    pooled_cosine,
    pooled_embedding,
)
from fastreward.packing import PackedBatch

# Rows of one matrix product with batch_invariant=True. A product of a fixed shape gives a row the same bits
# whatever stands in the other rows; small enough on a CPU that one short text is not made to wait, and that a
# tile's feed-forward activations stay in the cache; large enough on a GPU to fill it.
INVARIANT_ROWS: Final = {"cpu": 256, "cuda": 2048}


@dataclass(frozen=True)
class LayerNorm:
    """Weight [D], bias [D] and epsilon of a LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """Normalise the rows of x [T, D]."""
        return F.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True)
class BertLayer:
    """One layer, post-norm as in BERT (arXiv 1810.04805), with query, key and value as one product."""

    qkv: Linear
    attention_output: Linear
    attention_norm: LayerNorm
    up: Linear
    down: Linear
    output_norm: LayerNorm

    def after_attention(self, attended: Tensor, x: Tensor) -> tuple[Tensor]:
        """Attention output, feed-forward block and their residuals and norms: [T, D] → [T, D]."""
        residual = self.attention_norm(self.attention_output.add(attended, x))
        return (self.output_norm(self.down.add(self.up.gelu(residual), residual)),)

    def before_last_norm(self, attended: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same up to the last residual add: (feed-forward output, residual), each [T, D]."""
        residual = self.attention_norm(self.attention_output.add(attended, x))
        return self.down(self.up.gelu(residual)), residual


class PackedEncoder:
    """BERT-type encoder over packed tokens, on the ops of `fastreward.ops`.

    Args:
        checkpoint: Files and settings.
        device: CPU or CUDA.
        dtype: float32 or bfloat16; on CUDA float16 too.
        pooling: Instead of the checkpoint's own.
        batch_invariant: Make a text's bits independent of everything else in its batch, at some cost.

    Raises:
        CheckpointError: If weights are missing, damaged or of the wrong shape.
        UnsupportedArchitectureError: If the configuration asks for something this encoder does not do.

    Example:
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> from fastreward.packing import pack
        >>> cpu = torch.device("cpu")
        >>> encoder = PackedEncoder(
        ...     load_checkpoint("sentence-transformers/all-MiniLM-L6-v2"), cpu, torch.float32
        ... )
        >>> encoder.embed(pack([[101, 7592, 102], [101, 102]], cpu)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        pooling: Pooling | None = None,
        batch_invariant: bool = False,
    ) -> None:
        _check_config(checkpoint)
        self.device = device
        self.dtype = dtype
        self.hidden_size = checkpoint.size("hidden_size")
        self.pooling: Pooling = pooling or checkpoint.pooling
        self.batch_invariant = batch_invariant
        self._heads = checkpoint.size("num_attention_heads")
        weights = _Weights(checkpoint, device, dtype)
        self._words = weights.matrix("embeddings.word_embeddings.weight", checkpoint.size("vocab_size"))
        # Every text is one segment: its type is added to the positions once, here, before rounding.
        self._positions = weights.positions_with_type(checkpoint.size("max_position_embeddings"))
        self._embedding_norm = weights.layer_norm("embeddings.LayerNorm")
        self._layers = [weights.layer(index) for index in range(checkpoint.size("num_hidden_layers"))]

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last hidden states, [T, D] in `dtype`."""
        with own_numerics(self.device, self.dtype):
            output, norm = self._before_last_norm(batch)
            if norm is None:
                return output
            return F.layer_norm(output + norm.residual, norm.weight.shape, norm.weight, norm.bias, norm.eps)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return one unit vector for each text, [N, D], fp32; zeros for a text without tokens."""
        with own_numerics(self.device, self.dtype):
            output, norm = self._before_last_norm(batch)
            return pooled_embedding(
                output, batch.cu_seqlens, pooling=self.pooling, max_seqlen=batch.max_seqlen, layer_norm=norm
            )

    def cosine(self, batch: PackedBatch, references: Tensor, reference_index: Tensor) -> Tensor:
        """Score each text by its cosine with a row of `references`: [N], fp32."""
        with own_numerics(self.device, self.dtype):
            output, norm = self._before_last_norm(batch)
            return pooled_cosine(
                output,
                batch.cu_seqlens,
                references,
                reference_index,
                pooling=self.pooling,
                max_seqlen=batch.max_seqlen,
                layer_norm=norm,
            )

    def _before_last_norm(self, batch: PackedBatch) -> tuple[Tensor, LastLayerNorm | None]:
        """Run all layers; the last residual add and LayerNorm are left to the pooling where it takes them."""
        x = F.embedding(batch.input_ids, self._words) + F.embedding(batch.position_ids, self._positions)
        x = self._embedding_norm(x)
        if not batch.num_tokens or not self._layers:
            return x, None
        for layer in self._layers[:-1]:
            (x,) = self._by_rows(layer.after_attention, self._attend(layer, x, batch), x)
        last = self._layers[-1]
        attended = self._attend(last, x, batch)
        if self.hidden_size > MAX_LAYER_NORM_SIZE:
            return self._by_rows(last.after_attention, attended, x)[0], None
        output, residual = self._by_rows(last.before_last_norm, attended, x)
        norm = last.output_norm
        return output, LastLayerNorm(residual, norm.weight, norm.bias, norm.eps)

    def _attend(self, layer: BertLayer, x: Tensor, batch: PackedBatch) -> Tensor:
        (qkv,) = self._by_rows(lambda rows: (layer.qkv(rows),), x)
        qkv = qkv.view(x.shape[0], 3, self._heads, self.hidden_size // self._heads)
        return packed_attention(qkv, batch.cu_seqlens, batch.lengths, batch_invariant=self.batch_invariant)

    def _by_rows(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Apply a function of rows: at once, or with `batch_invariant` in tiles of a fixed number of rows."""
        if not self.batch_invariant:
            return function(*inputs)
        tile = INVARIANT_ROWS[self.device.type]
        num_tokens = inputs[0].shape[0]
        outputs: tuple[Tensor, ...] = ()
        for start in range(0, num_tokens, tile):
            rows = min(tile, num_tokens - start)
            cut = [x[start : start + tile] for x in inputs]
            if rows < tile:
                cut = [F.pad(x, (0, 0, 0, tile - rows)) for x in cut]
            results = function(*cut)
            outputs = outputs or tuple(r.new_empty((num_tokens, r.shape[1])) for r in results)
            for output, result in zip(outputs, results, strict=True):
                output[start : start + rows] = result[:rows]
        return outputs


class _Weights:
    """A BERT checkpoint's tensors by their names, each checked for its shape, moved and cast."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self._folder = checkpoint.folder
        self._device = device
        self._dtype = dtype
        self._hidden_size = checkpoint.size("hidden_size")
        self._intermediate_size = checkpoint.size("intermediate_size")
        self._eps = float(checkpoint.config.get("layer_norm_eps", 1e-12))
        loaded = load_weights(checkpoint)
        # A model with a head on top stores its encoder under a prefix.
        self._tensors: Mapping[str, Tensor] = {name.removeprefix("bert."): t for name, t in loaded.items()}

    def layer(self, index: int) -> BertLayer:
        name, d, f = f"encoder.layer.{index}", self._hidden_size, self._intermediate_size
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        qkv_weight = torch.cat([self._take(f"{part}.weight", d, d) for part in parts])
        qkv_bias = torch.cat([self._take(f"{part}.bias", d) for part in parts])
        return BertLayer(
            qkv=Linear(self._cast(qkv_weight), self._cast(qkv_bias)),
            attention_output=self._linear(f"{name}.attention.output.dense", d, d),
            attention_norm=self.layer_norm(f"{name}.attention.output.LayerNorm"),
            up=self._linear(f"{name}.intermediate.dense", f, d),
            down=self._linear(f"{name}.output.dense", d, f),
            output_norm=self.layer_norm(f"{name}.output.LayerNorm"),
        )

    def layer_norm(self, name: str) -> LayerNorm:
        weight = self._take(f"{name}.weight", self._hidden_size)
        bias = self._take(f"{name}.bias", self._hidden_size)
        return LayerNorm(self._cast(weight), self._cast(bias), self._eps)

    def matrix(self, name: str, rows: int) -> Tensor:
        return self._cast(self._take(name, rows, self._hidden_size))

    def positions_with_type(self, positions: int) -> Tensor:
        table = self._take("embeddings.position_embeddings.weight", positions, self._hidden_size)
        types = self._take("embeddings.token_type_embeddings.weight", None, self._hidden_size)
        return self._cast(table + types[0])

    def _linear(self, name: str, out_features: int, in_features: int) -> Linear:
        weight = self._take(f"{name}.weight", out_features, in_features)
        return Linear(self._cast(weight), self._cast(self._take(f"{name}.bias", out_features)))

    def _cast(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._device, self._dtype)

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


def _check_config(checkpoint: Checkpoint) -> None:
    """Refuse what a BERT configuration may ask for and this forward does not do."""
    config = checkpoint.config
    for key, supported in (
        ("hidden_act", "gelu"),
        ("position_embedding_type", "absolute"),
        ("is_decoder", False),
        ("add_cross_attention", False),
    ):
        if config.get(key, supported) != supported:
            raise UnsupportedArchitectureError(
                f"{key} of {supported!r} in {checkpoint.folder / 'config.json'}",
                repr(config[key]),
                "Choose another encoder.",
            )
    if checkpoint.size("hidden_size") % checkpoint.size("num_attention_heads"):
        raise CheckpointError(
            "a hidden_size that num_attention_heads divides",
            f"{checkpoint.size('hidden_size')} and {checkpoint.size('num_attention_heads')}",
            f"Check config.json in {checkpoint.folder}.",
        )
