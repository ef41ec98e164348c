"""The usual way, done well: what `Scorer` and `pooled_cosine` are compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import require_close
from benchmarks.shapes import PooledCosineInputs
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged, load_checkpoint
from fastreward.ops.pooled_cosine import pooled_cosine, pooled_cosine_reference

OURS: Final = "fastreward"
REFERENCE: Final = "reference implementation"

OUR_MAX_ERROR: Final = 1e-5
"""All sums are fp32 whatever the inputs are, and fp64 starts from the same inputs."""

PEER_MAX_ERROR: Final = 2e-2
"""A peer rounds the LayerNorm's output to bf16; beyond this it computes something else."""


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


def pooled_cosine_fp64(inputs: PooledCosineInputs) -> Tensor:
    """Define the mean-pooled cosine again, text by text, in fp64 on the CPU: [N]."""
    hidden_states = inputs.hidden_states.cpu()
    references = inputs.references.double().cpu()[inputs.reference_index.cpu()]
    norm = inputs.layer_norm
    if norm is not None:
        residual, weight = norm.residual.cpu(), norm.weight.double().cpu()
        bias = None if norm.bias is None else norm.bias.double().cpu()
    scores = torch.zeros(len(inputs.lengths), dtype=torch.float64)
    start = 0
    for text, length in enumerate(inputs.lengths):
        x = hidden_states[start : start + length].double()
        if norm is not None:
            x = x + residual[start : start + length].double()
            x = F.layer_norm(x, x.shape[1:], weight, bias, norm.eps)
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
    inputs: PooledCosineInputs, *, compile_options: dict[str, Any] | None
) -> dict[str, Callable[[], Tensor]]:
    """Ours first, then the peers, each as a call without arguments that returns the scores [N].

    The peers are given for nothing what they need besides the inputs: for each token its text, the lengths,
    and no check of them. Ours and the reference implementation are called as they are, checks included.

    Args:
        inputs: Must not hold empty texts: the peers have no value for them.
        compile_options: Arguments of `torch.compile` for the compiled peers; None leaves them out.
    """
    device, norm = inputs.hidden_states.device, inputs.layer_norm
    lengths = torch.tensor(inputs.lengths, device=device)
    text = torch.repeat_interleave(torch.arange(len(inputs.lengths), device=device), lengths)
    arguments = (inputs.hidden_states, text, lengths, inputs.references, inputs.reference_index)
    layer_norm: tuple[Tensor | None, Tensor | None, Tensor | None, float] = (None, None, None, 0.0)
    if norm is not None:
        layer_norm = (norm.residual, norm.weight, norm.bias, norm.eps)
    ours = inputs.arguments()
    reference = {name: value for name, value in ours.items() if name != "max_seqlen"}
    variants: dict[str, Callable[[], Tensor]] = {OURS: partial(pooled_cosine, **ours)}
    variants[REFERENCE] = lambda: pooled_cosine_reference(**reference)[0]
    for name, mean in (("segment_reduce", _segment_reduce), ("index_add", _index_add)):
        variants[f"PyTorch {name}"] = partial(_scores, mean, *arguments, *layer_norm)
        if compile_options is not None:
            compiled = torch.compile(partial(_scores, mean), fullgraph=True, dynamic=False, **compile_options)
            variants[f"torch.compile {name}"] = partial(compiled, *arguments, *layer_norm)
    return variants


def checked_variants(
    inputs: PooledCosineInputs, *, compile_options: dict[str, Any] | None
) -> tuple[dict[str, Callable[[], Tensor]], dict[str, str]]:
    """Run each of `pooled_cosine_variants` once.

    Returns:
        Those that are right, and for the other peers why they are not timed.

    Raises:
        GateError: If ours is wrong; then nothing may be timed.
    """
    torch.compiler.reset()  # a function that is compiled for ever more shapes falls back to eager in the end
    expected = pooled_cosine_fp64(inputs)
    usable: dict[str, Callable[[], Tensor]] = {}
    failed: dict[str, str] = {}
    for name, run in pooled_cosine_variants(inputs, compile_options=compile_options).items():
        ours = name in (OURS, REFERENCE)
        try:
            scores = run().clone()
            require_close(name, scores, expected, max_error=OUR_MAX_ERROR if ours else PEER_MAX_ERROR)
        except RuntimeError as error:  # GateError is one
            if ours:
                raise
            failed[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        else:
            usable[name] = run
    return usable, failed
