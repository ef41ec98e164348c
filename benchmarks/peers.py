"""The usual way, done well: what `Scorer`, `PackedEncoder` and `pooled_cosine` are compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.shapes import PooledCosineInputs
from benchmarks.workloads import COMPILED, EAGER, OURS, compiled
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged, load_checkpoint
from fastreward.ops.pooled_cosine import pooled_cosine, pooled_cosine_reference

REFERENCE: Final = "reference implementation"


class SentenceTransformersPeer:
    """sentence-transformers at its defaults: what a reward function written by hand does.

    Batches of 32, sorted by characters and padded; a completion and its reference are encoded for every row.

    Args:
        encoder: A folder, or a name on the hub.
        device: As sentence-transformers takes it.
        dtype: The precision of the model; None is the checkpoint's own.
    """

    def __init__(
        self, encoder: str = DEFAULT_ENCODER, *, device: str = "cpu", dtype: torch.dtype | None = None
    ) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # one for every load of the weights
        source = str(load_checkpoint(encoder).folder) if is_packaged(encoder) else encoder
        model_kwargs = {} if dtype is None else {"dtype": dtype}
        self.model = SentenceTransformer(source, device=device, model_kwargs=model_kwargs)

    def embed(self, texts: Sequence[str]) -> Tensor:
        """Embed N texts: [N, D]."""
        embeddings = self.model.encode(list(texts), convert_to_tensor=True, show_progress_bar=False)
        assert isinstance(embeddings, Tensor)
        return embeddings

    def score(self, completions: Sequence[str], references: Sequence[str]) -> Tensor:
        """Score N completions by their cosines with N references: [N]."""
        return F.cosine_similarity(self.embed(completions), self.embed(references))


@dataclass(frozen=True)
class PaddedBatch:
    """Texts side by side, padded to the longest: ids and mask [n, S], and which texts they are."""

    rows: Tensor
    input_ids: Tensor
    attention_mask: Tensor


class HuggingFacePeer:
    """Hugging Face's own model from ids: sorted by length, batched by tokens, padded, attention by SDPA.

    Pooling, norm and cosines are fp32 in plain PyTorch. The head that some of these models have on top, and
    that embeddings do not need, is left out.

    Args:
        folder: The checkpoint.
        device: Where it runs.
        dtype: In which precision.
        pooling: "mean" or "cls".
    """

    def __init__(
        self, folder: Path, *, device: torch.device, dtype: torch.dtype, pooling: str = "mean"
    ) -> None:
        from transformers import AutoConfig, AutoModel
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # that the weights of the head are not used
        config = AutoConfig.from_pretrained(folder)
        headless = {} if config.model_type == "modernbert" else {"add_pooling_layer": False}
        options = {"dtype": dtype, "attn_implementation": "sdpa"}
        model = AutoModel.from_pretrained(folder, config=config, **options, **headless)
        self.model = model.to(device).eval()
        self._padding = int(config.pad_token_id or 0)  # RoBERTa counts positions by it
        self._device, self._pooling = device, pooling

    def pad(self, token_ids: Sequence[Sequence[int]], max_batch_tokens: int) -> list[PaddedBatch]:
        """Make batches on the device, longest texts first, of so many tokens at most, padding included."""
        order = sorted(range(len(token_ids)), key=lambda row: -len(token_ids[row]))
        batches, first = [], 0
        while first < len(order):
            longest = len(token_ids[order[first]])
            rows = order[first : first + max(1, max_batch_tokens // max(1, longest))]
            ids = torch.full((len(rows), longest), self._padding, dtype=torch.int64)
            mask = torch.zeros((len(rows), longest), dtype=torch.int64)
            for line, row in enumerate(rows):
                ids[line, : len(token_ids[row])] = torch.tensor(token_ids[row])
                mask[line, : len(token_ids[row])] = 1
            batches.append(PaddedBatch(*(x.to(self._device) for x in (torch.tensor(rows), ids, mask))))
            first += len(rows)
        return batches

    @torch.inference_mode()
    def embed_padded(self, batches: Sequence[PaddedBatch]) -> Tensor:
        """Embed what `pad` made: unit vectors [N, D], fp32, in the order of the texts."""
        vectors = torch.cat([self._pooled(batch) for batch in batches])
        ordered = torch.empty_like(vectors)
        ordered[torch.cat([batch.rows for batch in batches])] = F.normalize(vectors, dim=-1)
        return ordered

    def _pooled(self, batch: PaddedBatch) -> Tensor:
        mask = batch.attention_mask
        hidden = self.model(input_ids=batch.input_ids, attention_mask=mask).last_hidden_state
        if self._pooling == "cls":
            return hidden[:, 0].float()
        return (hidden.float() * mask[:, :, None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)

    def score(
        self,
        completions: Sequence[Sequence[int]],
        references: Sequence[Sequence[int]],
        reference_index: Sequence[int],
        max_batch_tokens: int,
    ) -> Tensor:
        """Score completion n against references[reference_index[n]], all given as ids: [N]."""
        vectors = self.embed_padded(self.pad([*completions, *references], max_batch_tokens))
        chosen = torch.tensor(reference_index, device=self._device) + len(completions)
        return (vectors[: len(completions)] * vectors[chosen]).sum(dim=-1)


def pooled_cosine_fp64(inputs: PooledCosineInputs) -> Tensor:
    """Define the mean-pooled cosine again, text by text, in fp64: [N]."""
    references = inputs.references.double()[inputs.reference_index]
    norm = inputs.layer_norm
    scores = references.new_zeros(len(inputs.lengths))
    start = 0
    for text, length in enumerate(inputs.lengths):
        rows = slice(start, start + length)
        x = inputs.hidden_states[rows].double()
        if norm is not None:
            bias = None if norm.bias is None else norm.bias.double()
            x = x + norm.residual[rows].double()
            x = F.layer_norm(x, x.shape[1:], norm.weight.double(), bias, norm.eps)
        if length:
            pooled = x.mean(dim=0)
            scores[text] = pooled @ references[text] / (pooled.norm() * references[text].norm())
        start += length
    return scores


def _segment_reduce(x: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
    return torch.segment_reduce(x.float(), "mean", lengths=lengths, axis=0, unsafe=True)


def _index_add(x: Tensor, text: Tensor, lengths: Tensor) -> Tensor:
    # What sentence-transformers does with packed hidden states.
    sums = x.new_zeros((lengths.shape[0], x.shape[1]), dtype=torch.float32)
    return sums.index_add_(0, text, x.float()) / lengths[:, None]


def _scores(
    mean: Callable[[Tensor, Tensor, Tensor], Tensor],
    hidden_states: Tensor,
    text: Tensor,
    lengths: Tensor,
    references: Tensor,
    reference_index: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """Write the op as a good user of PyTorch would: the LayerNorm in the model's dtype, the mean in fp32."""
    x = hidden_states
    if residual is not None:
        x = F.layer_norm(x + residual, x.shape[1:], weight, bias, eps)
    pooled = F.normalize(mean(x, text, lengths), dim=-1)
    return (pooled * F.normalize(references, dim=-1)[reference_index]).sum(dim=-1)


def pooled_cosine_variants(
    inputs: PooledCosineInputs, *, compile_options: Mapping[str, Any]
) -> dict[str, Callable[[], Tensor]]:
    """Ours first, then the peers, each as a call without arguments that returns the scores [N].

    The peers are given for nothing what they need besides the inputs: for each token its text, the lengths,
    and no check of them. Ours and the reference implementation are called as they are, checks included.

    Args:
        inputs: Must not hold empty texts: the peers have no value for them.
        compile_options: For `workloads.compiled`.
    """
    device, norm = inputs.hidden_states.device, inputs.layer_norm
    lengths = torch.tensor(inputs.lengths, device=device)
    text = torch.repeat_interleave(torch.arange(len(inputs.lengths), device=device), lengths)
    layer_norm: tuple[Tensor | None, Tensor | None, Tensor | None, float] = (None, None, None, 0.0)
    if norm is not None:
        layer_norm = (norm.residual, norm.weight, norm.bias, norm.eps)
    arguments = (inputs.hidden_states, text, lengths, inputs.references, inputs.reference_index, *layer_norm)
    ours = inputs.arguments()
    reference = {name: value for name, value in ours.items() if name != "max_seqlen"}
    variants: dict[str, Callable[[], Tensor]] = {OURS: partial(pooled_cosine, **ours)}
    variants[REFERENCE] = lambda: pooled_cosine_reference(**reference)[0]
    for name, mean in (("segment_reduce", _segment_reduce), ("index_add", _index_add)):
        scores = partial(_scores, mean)
        variants[f"{EAGER} {name}"] = partial(scores, *arguments)
        variants[f"{COMPILED} {name}"] = partial(compiled(scores, compile_options), *arguments)
    return variants
