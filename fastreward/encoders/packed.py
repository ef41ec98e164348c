"""The packed encoder: our own forward over packed tokens, no padding anywhere, on the CPU and on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import dtype_name
from fastreward.encoders.architecture import Architecture
from fastreward.encoders.checkpoint import Checkpoint
from fastreward.encoders.numerics import own_numerics
from fastreward.encoders.weights import Layer, load_layers
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.attention import (
    AttentionLayout,
    attention_layout,
    first_token_attention,
    packed_attention,
    resolve_attention,
)
from fastreward.ops.layer_norm import embed_layer_norm, layer_norm
from fastreward.ops.mlp import fused_mlp, mlp_available, project_layer_norm
from fastreward.ops.pooled_cosine import (
    MAX_LAYER_NORM_SIZE,
    LastLayerNorm,
    Pooling,
    pooled_cosine,
    pooled_embedding,
)
from fastreward.ops.rotary import apply_rotary
from fastreward.ops.scaled_linear import (
    MAX_IN_FEATURES,
    SIZE_MULTIPLE,
    ScaledLinear,
    scaled_linear_available,
)
from fastreward.packing import PackedBatch

# Rows of one matrix product with batch_invariant=True. A product of a fixed shape gives a row the same bits
# whatever stands in the other rows; small enough on a CPU that one short text is not made to wait, and that a
# tile's feed-forward activations stay in the cache; large enough on a GPU to fill it.
INVARIANT_ROWS: Final = {"cpu": 256, "cuda": 2048}


@dataclass(frozen=True)
class PreparedBatch:
    """A batch with all that the device needs to compute it, already there.

    Attributes:
        input_ids: [T], int32.
        position_ids: [T], int32.
        layout: Where the N texts lie, and their attention's tables.
    """

    input_ids: Tensor
    position_ids: Tensor
    layout: AttentionLayout

    @property
    def num_tokens(self) -> int:
        """T."""
        return self.input_ids.shape[0]


@dataclass(frozen=True)
class LastStates:
    """What the layers leave to the pooling.

    Attributes:
        states: [T, D], or with `first_tokens` [N, D], one row for each text.
        residual: Of the same shape; where it is given, it is still to be added and the sum to be normalised.
        first_tokens: Whether these are the texts' first tokens alone; a text without tokens has a row too,
            which means nothing.
    """

    states: Tensor
    residual: Tensor | None
    first_tokens: bool

    def head(self, num_rows: int) -> LastStates:
        """Return the first rows alone."""
        residual = None if self.residual is None else self.residual[:num_rows]
        return LastStates(self.states[:num_rows], residual, self.first_tokens)


class PackedEncoder:
    """BERT, RoBERTa, XLM-R and ModernBERT over packed tokens, on the ops of `fastreward.ops`.

    The forward is one chain for all of them: a block, then its residual and a LayerNorm in one pass. `normed`
    is what the next block reads and `stream` what its result is added to. Where the norm stands behind the
    residual (BERT) they are the same; where it stands before the block (ModernBERT) the stream stays a sum.

    It has three steps: `prepare` does what the host does and all copying; `forward` is work of the device
    alone, which neither waits nor copies, so that it can be recorded; `normed`, `pooled` and `scored` end it.

    Args:
        checkpoint: Files and settings.
        device: CPU or CUDA.
        dtype: float32 or bfloat16; on CUDA float16 too, and float8_e4m3fn, in which the products' operands
            are rounded to 8 bits with a scale for each row and everything else is bfloat16.
        pooling: Instead of the checkpoint's own.
        num_layers: Use the first ones alone; None uses all.
        attention: The attention's back-end, one of `ATTENTION_BACKENDS`; None chooses by device and dtype.
        fused_mlp: Compute attention output and feed-forward block by the ops of `fastreward.ops.mlp`: for
            384-wide encoders on CUDA, where it has yet to be shown faster. Slow on a CPU.
        batch_invariant: Make a text's bits independent of everything else in its batch, at some cost.

    Raises:
        CheckpointError: If weights are missing, damaged or of the wrong shape.
        BackendUnavailableError: If the attention or the precision asked for cannot run here.
        InputError: If there are fewer layers than `num_layers`, or options exclude each other.

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
        num_layers: int | None = None,
        attention: str | None = None,
        fused_mlp: bool = False,
        batch_invariant: bool = False,
    ) -> None:
        architecture = checkpoint.architecture
        if num_layers is not None:
            architecture = architecture.first_layers(num_layers)
        if dtype == torch.float8_e4m3fn:
            _check_8_bit(device, architecture)
        if fused_mlp:
            _check_fused_mlp(architecture, device, dtype)
        self.device = device
        self.dtype = torch.bfloat16 if dtype == torch.float8_e4m3fn else dtype
        self.hidden_size = architecture.hidden_size
        self.pooling: Pooling = pooling or checkpoint.pooling
        self.attention = resolve_attention(attention, device, self.dtype, architecture.head_dim)
        self.batch_invariant = batch_invariant
        self._architecture = architecture
        self._fused_mlp = fused_mlp
        self._embeddings, self._layers = load_layers(
            checkpoint, architecture, device, dtype, splits_last_query=self.pooling == "cls"
        )
        if device.type == "cuda":  # the weights are there, whichever stream computes first
            torch.cuda.current_stream(device).synchronize()

    @property
    def first_tokens_suffice(self) -> bool:
        """Whether `forward` computes the last layer for the first tokens alone, as for CLS pooling."""
        return bool(self._layers) and self._layers[-1].query is not None

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last hidden states, [T, D] in `dtype`."""
        with own_numerics(self.device, self.dtype):
            return self.normed(self.forward(self.prepare(batch), every_token=True))

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return one unit vector for each text, [N, D], fp32; zeros for a text without tokens."""
        with own_numerics(self.device, self.dtype):
            return self.pooled(self.forward(self.prepare(batch)), batch)

    def cosine(self, batch: PackedBatch, references: Tensor, reference_index: Tensor) -> Tensor:
        """Score each text by its cosine with a row of `references`: [N], fp32."""
        with own_numerics(self.device, self.dtype):
            last = self.forward(self.prepare(batch))
            return self.scored(last, batch, references, reference_index)

    def prepare(self, batch: PackedBatch) -> PreparedBatch:
        """Cut the batch for the attention and copy the cut to the device, without waiting."""
        layout = attention_layout(
            batch.cu_seqlens, batch.lengths, backend=self.attention, batch_invariant=self.batch_invariant
        )
        return PreparedBatch(batch.input_ids, batch.position_ids, layout)

    def forward(self, prepared: PreparedBatch, *, every_token: bool = False) -> LastStates:
        """Run all layers; call it inside `own_numerics`.

        Nothing is copied from the host or read back, and the launches depend on nothing but shapes and, in
        some attention back-ends, on `prepared.layout.lengths`. On a CPU, values are looked at to check them.

        Args:
            prepared: N texts of T tokens.
            every_token: Compute the last layer for all tokens also where the pooling takes the first.

        Returns:
            The states without the last residual add and LayerNorm, where the pooling takes these along.
        """
        normed, stream = self._inner_layers(prepared)
        if not prepared.num_tokens or not self._layers:
            return LastStates(normed, None, first_tokens=False)
        last = self._layers[-1]
        first_tokens = self.first_tokens_suffice and not every_token
        if first_tokens:
            attended = self._attend_from_first(last, normed, prepared)
            stream = stream[_first_rows(prepared)]
        else:
            attended = self._attend(last, normed, prepared)
        if self.hidden_size > MAX_LAYER_NORM_SIZE or self._fused_mlp:
            states = self._by_rows(partial(self._after_attention, last), attended, stream)[0]
            return LastStates(states, None, first_tokens)
        states, residual = self._by_rows(partial(self._before_output_norm, last), attended, stream)
        return LastStates(states, residual, first_tokens)

    def normed(self, last: LastStates) -> Tensor:
        """Finish hidden states: the last residual and LayerNorm, where `forward` has left them, [T, D]."""
        if last.residual is None:
            return last.states
        finish = partial(self._add_and_norm, layer=self._layers[-1], last=True)
        return self._by_rows(finish, last.states, last.residual)[0]

    def pooled(self, last: LastStates, batch: PackedBatch) -> Tensor:
        """Finish vectors: [N, D], fp32, of unit length, or zeros for a text without tokens."""
        cu_seqlens, max_seqlen, norm = self._rows_of_texts(last, batch)
        vectors = pooled_embedding(
            last.states, cu_seqlens, pooling=self.pooling, max_seqlen=max_seqlen, layer_norm=norm
        )
        if last.first_tokens and 0 in batch.lengths:
            vectors = vectors.masked_fill(batch.cu_seqlens.diff()[:, None] == 0, 0.0)
        return vectors

    def scored(
        self, last: LastStates, batch: PackedBatch, references: Tensor, reference_index: Tensor
    ) -> Tensor:
        """Finish scores: [N], fp32, against references[reference_index]."""
        cu_seqlens, max_seqlen, norm = self._rows_of_texts(last, batch)
        scores = pooled_cosine(
            last.states,
            cu_seqlens,
            references,
            reference_index,
            pooling=self.pooling,
            max_seqlen=max_seqlen,
            layer_norm=norm,
        )
        if last.first_tokens and 0 in batch.lengths:
            scores = scores.masked_fill(batch.cu_seqlens.diff() == 0, 0.0)
        return scores

    def _rows_of_texts(
        self, last: LastStates, batch: PackedBatch
    ) -> tuple[Tensor, int, LastLayerNorm | None]:
        """`cu_seqlens` and longest text in rows of `last`, of which a text may be one; the norm to do."""
        norm = None
        if last.residual is not None:
            output = self._layers[-1].output_norm
            norm = LastLayerNorm(last.residual, output.weight, output.bias, output.eps)
        if not last.first_tokens:
            return batch.cu_seqlens, batch.max_seqlen, norm
        return torch.arange(len(batch.lengths) + 1, dtype=torch.int32, device=self.device), 1, norm

    def _inner_layers(self, prepared: PreparedBatch) -> tuple[Tensor, Tensor]:
        """Embed, and run all layers but the last: (normed [T, D], stream [T, D])."""
        embeddings = self._embeddings
        normed = stream = embed_layer_norm(
            prepared.input_ids,
            embeddings.words,
            embeddings.norm,
            position_ids=None if embeddings.positions is None else self._position_rows(prepared),
            positions=embeddings.positions,
        )
        if prepared.num_tokens:
            for layer in self._layers[:-1]:
                attended = self._attend(layer, normed, prepared)
                states = self._by_rows(partial(self._after_attention, layer), attended, stream)
                normed, stream = states[0], states[-1]
        return normed, stream

    def _position_rows(self, prepared: PreparedBatch) -> Tensor:
        """The row of the position table for each token, [T]."""
        padding_id, positions = self._architecture.padding_id, prepared.position_ids
        if padding_id is None:
            return positions
        # A text may hold the padding token (someone writes "<pad>"): it has row 0, and those behind it count
        # as if it were not there. Nothing is fetched from a GPU to see whether one is.
        counts = (prepared.input_ids != padding_id).int()
        seen = F.pad(counts.cumsum(0, dtype=torch.int32), (1, 0))  # [T + 1], before each token
        first = torch.arange(prepared.num_tokens, dtype=torch.int32, device=self.device) - positions
        return (seen[1:] - seen[first]) * counts

    def _attend(self, layer: Layer, normed: Tensor, prepared: PreparedBatch) -> Tensor:
        """Attention of every token: [T, D] → [T, D], before its output product."""
        (qkv,) = self._by_rows(lambda rows: (_queries_keys_values(layer, rows),), normed)
        qkv = qkv.view(normed.shape[0], 3, self._architecture.num_heads, self._architecture.head_dim)
        if layer.rotary is not None:
            apply_rotary(qkv, prepared.position_ids, layer.rotary, rotated=2)
        return packed_attention(qkv, prepared.layout, window=layer.window)

    def _attend_from_first(self, layer: Layer, normed: Tensor, prepared: PreparedBatch) -> Tensor:
        """Attention of each text's first token alone: [T, D] → [N, D], before its output product."""
        assert layer.query is not None
        heads, head_dim = self._architecture.num_heads, self._architecture.head_dim
        (query,) = self._by_rows(_one_output(layer.query), normed[_first_rows(prepared)])
        (key_value,) = self._by_rows(_one_output(layer.qkv), normed)
        key_value = key_value.view(normed.shape[0], 2, heads, head_dim)
        if layer.rotary is not None:  # the first token stands at position 0, where nothing rotates
            apply_rotary(key_value, prepared.position_ids, layer.rotary, rotated=1)
        query = query.view(query.shape[0], heads, head_dim)
        return first_token_attention(query, key_value, prepared.layout, window=layer.window)

    def _after_attention(self, layer: Layer, attended: Tensor, stream: Tensor) -> tuple[Tensor, ...]:
        """Attention output, feed-forward block, their residuals and norms: (normed,) or (normed, stream)."""
        if self._fused_mlp:
            output, up, down = layer.attention_output, layer.up, layer.down
            assert output.bias is not None and up.bias is not None and down.bias is not None  # noqa: PT018
            inside = project_layer_norm(attended, output.weight, output.bias, stream, layer.attention_norm)
            return (fused_mlp(inside, up.weight, up.bias, down.weight, down.bias, layer.output_norm),)
        delta, stream = self._before_output_norm(layer, attended, stream)
        return self._add_and_norm(delta, stream, layer, last=True)

    def _before_output_norm(self, layer: Layer, attended: Tensor, stream: Tensor) -> tuple[Tensor, Tensor]:
        """The same up to the last residual add: (feed-forward output, stream), each [T, D]."""
        states = self._add_and_norm(layer.attention_output(attended), stream, layer, last=False)
        normed, stream = states[0], states[-1]
        if self._architecture.gated:
            return layer.down(layer.up.geglu(normed)), stream
        if isinstance(layer.down, ScaledLinear):  # its input's rounding takes GELU along
            return layer.down.of_gelu(layer.up(normed)), stream
        return layer.down(layer.up.gelu(normed)), stream

    def _add_and_norm(self, delta: Tensor, stream: Tensor, layer: Layer, *, last: bool) -> tuple[Tensor, ...]:
        norm = layer.output_norm if last else layer.attention_norm
        if self._architecture.pre_norm:
            return layer_norm(delta, norm, residual=stream, return_sum=True)
        return (layer_norm(delta, norm, residual=stream),)

    def _by_rows(self, function: Callable[..., tuple[Tensor, ...]], *inputs: Tensor) -> tuple[Tensor, ...]:
        """Apply a function of rows: at once, or with `batch_invariant` in tiles of a fixed number of rows."""
        if not self.batch_invariant:
            return function(*inputs)
        tile = INVARIANT_ROWS[self.device.type]
        num_rows = inputs[0].shape[0]
        outputs: tuple[Tensor, ...] = ()
        for start in range(0, num_rows, tile):
            rows = min(tile, num_rows - start)
            cut = [x[start : start + tile] for x in inputs]
            if rows < tile:
                cut = [F.pad(x, (0, 0, 0, tile - rows)) for x in cut]
            results = function(*cut)
            outputs = outputs or tuple(r.new_empty((num_rows, r.shape[1])) for r in results)
            for output, result in zip(outputs, results, strict=True):
                output[start : start + rows] = result[:rows]
        return outputs


def _first_rows(prepared: PreparedBatch) -> Tensor:
    """The row of each text's first token, [N]; of one without tokens some other row."""
    return prepared.layout.cu_seqlens[:-1].clamp(max=prepared.num_tokens - 1)


def _one_output(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], tuple[Tensor]]:
    return lambda rows: (function(rows),)


def _queries_keys_values(layer: Layer, normed: Tensor) -> Tensor:
    """[T, D] → [T, 3D], also where the layer keeps its queries apart."""
    if layer.query is None:
        return layer.qkv(normed)
    return torch.cat((layer.query(normed), layer.qkv(normed)), dim=1)


def _check_fused_mlp(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> None:
    if architecture.pre_norm or dtype == torch.float8_e4m3fn:
        raise InputError(
            "fused_mlp with a BERT-type encoder in float32, bfloat16 or float16",
            f"{architecture.family} in {dtype_name(dtype)}",
            "Pass fused_mlp=False.",
        )
    reason = mlp_available(dtype, architecture.hidden_size, architecture.intermediate_size)
    if device.type == "cuda" and reason is not None:
        raise BackendUnavailableError("fused_mlp", reason, "Pass fused_mlp=False.")


def _check_8_bit(device: torch.device, architecture: Architecture) -> None:
    sizes = architecture.hidden_size, architecture.intermediate_size
    reason = scaled_linear_available(device, min(sizes))
    if reason is None and (any(size % SIZE_MULTIPLE for size in sizes) or max(sizes) > MAX_IN_FEATURES):
        reason = (
            f"widths of {sizes[0]} and {sizes[1]}: multiples of {SIZE_MULTIPLE}, {MAX_IN_FEATURES} at most"
        )
    if reason is not None:
        raise BackendUnavailableError("products in float8_e4m3fn", reason, "Pass dtype='bfloat16', or None.")
