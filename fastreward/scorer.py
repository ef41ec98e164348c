"""Scorer: texts → scores. Dedupe → known vectors → tokenise → pack → encode → score → scatter back."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import fields
from itertools import chain
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from fastreward.backends import dtype_name, resolve_device
from fastreward.configuration import LongTexts, ScorerConfig, ScorerStats
from fastreward.cosines import all_cosines, best_of, pair_cosines, require_finite
from fastreward.cuda_streams import after_caller, used_here
from fastreward.encoders.checkpoint import DEFAULT_ENCODER
from fastreward.engine import Engine, new_engine
from fastreward.errors import NonFiniteError
from fastreward.matching import match
from fastreward.ops.maxsim import MaxSim
from fastreward.ops.pooled_cosine import Pooling
from fastreward.packing import upload
from fastreward.profiling.stages import stage
from fastreward.shared_encoder import SharedEncoder
from fastreward.text_arguments import Text, TextLike, checked_references, checked_texts
from fastreward.word_cache import WORD_CACHE_BYTES

__all__ = ["DEFAULT_ENCODER", "Scorer", "ScorerStats"]

Devices: TypeAlias = str | torch.device | Sequence[str | torch.device] | None
"""Where an encoder runs: a device, several, or None to choose."""


class Scorer(SharedEncoder):
    """Scores texts against references by the cosine of their embeddings.

    A text that occurs twice in a call is encoded once, a reference once as long as it stays in the cache,
    and nothing is padded. Where a device runs out of memory, batches become smaller. Thread-safe. Pickles to
    its arguments; a copy rebuilds its encoder on first use, one for each process and set of arguments. While
    a call of several batches runs, the process's threads take turns of 0.1 ms (`sys.setswitchinterval`), for
    the batches are made in a thread.

    Args:
        encoder: A folder, or a name on the hub; the default comes from the extra `fastreward[minilm]` where
            that is installed.
        backend: "packed", on a CPU also "openvino", or "onnx"; None for the fastest that is installed for the
            device and has the options that are asked for. `fastreward doctor --measure` times them.
        device: "cpu", "cuda", "cuda:1" …, or None for this process's GPU, and the CPU without one. A list has
            a copy of the encoder on each of its devices, and they share the batches of a call.
        dtype: "float32", "bfloat16" or (on CUDA) "float16"; None is bf16 where hardware and back-end have it
            natively and fp32 elsewhere. "float8_e4m3fn" rounds the operands of matrix products to 8 bits, for
            packed encoders of 768 columns or more on GPUs that multiply them; "int8" does on a CPU, with
            "onnx", or with "openvino" and a calibration. Pooling, norm and cosine are fp32 in any case.
        revision: Branch, tag or commit of a hub name.
        pooling: "mean", "cls", "last" or "max" instead of the checkpoint's own.
        num_layers: Use the encoder's first layers alone; None uses all.
        attention: "triton", "flash", "varlen" or "sdpa" for the packed encoder; None chooses by device and
            precision.
        calibration: A file that `encoders.openvino.Calibration.save` wrote, for int8 on OpenVINO.
        max_seq_length: Tokens of a text at most, special tokens included; None honours the checkpoint. It may
            be raised to what the model has positions for.
        long_texts: What is done with a longer text: "truncate" keeps its beginning (counted, and said once);
            "chunk" encodes it in windows and takes the mean of their vectors, weighted by tokens. A prompt
            stands in the first window alone.
        prompt: Set before every text ("query: "); None takes the checkpoint's default prompt, "" none.
        prompt_name: Name of one of the checkpoint's prompts, instead of `prompt`.
        max_batch_tokens: Tokens of one batch; None chooses by device.
        max_bytes: Bound on what the scorer holds on a device: weights, cached vectors, and the activations of
            a batch, which is made smaller to fit. A call's results come on top, and so do the hidden states
            of `maxsim`, as much as the activations again, the batches of other calls at the same time, and
            the workspaces of CUDA's libraries.
        reference_cache_bytes: Bound on the cache of reference vectors.
        recent_bytes: Bound on the vectors that are kept for others who use this scorer; see `attach`.
        word_cache_bytes: Bound on the cache of words' token ids, where one is exact; 0 for none.
        batch_invariant: Make a score bitwise independent of everything else in the call, at some cost.
        cuda_graphs: Replay short batches from CUDA graphs, which saves their launches (packed encoder alone).
            A shape of batch is recorded when it occurs for the second time. While one is recorded, a thread
            that draws random numbers on the same GPU can get an error from PyTorch before 2.13.
        own_stream: Compute on a CUDA stream of its own, beside what the caller has queued on the current one.
        progress: Show a progress bar: True always, False never, None when it takes seconds on a terminal.

    Raises:
        InputError: If an argument is not what it should be.
        BackendUnavailableError: If the back-end or device that is asked for cannot be had.
        CheckpointError: If the encoder's files are missing, damaged, or of an unsupported architecture.
        DeviceMemoryError: If there is no room for the weights.

    Example:
        >>> scorer = Scorer("sentence-transformers/all-MiniLM-L6-v2", dtype="float32")
        >>> scorer.score(["The heart pumps blood."], ["Blood is pumped by the heart."])
        tensor([0.9251])
    """

    def __init__(
        self,
        encoder: str | Path = DEFAULT_ENCODER,
        *,
        backend: str | None = None,
        device: Devices = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        pooling: Pooling | None = None,
        num_layers: int | None = None,
        attention: str | None = None,
        calibration: str | Path | None = None,
        max_seq_length: int | None = None,
        long_texts: LongTexts = "truncate",
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_batch_tokens: int | None = None,
        max_bytes: int | None = None,
        reference_cache_bytes: int = 64 * 2**20,
        recent_bytes: int = 64 * 2**20,
        word_cache_bytes: int = WORD_CACHE_BYTES,
        batch_invariant: bool = False,
        cuda_graphs: bool = False,
        own_stream: bool = False,
        progress: bool | None = None,
    ) -> None:
        config = ScorerConfig(
            encoder=str(encoder),
            backend=backend,
            device=_device_name(device),
            dtype=None if dtype is None else dtype if isinstance(dtype, str) else dtype_name(dtype),
            revision=revision,
            pooling=pooling,
            num_layers=num_layers,
            attention=attention,
            calibration=None if calibration is None else str(calibration),
            max_seq_length=max_seq_length,
            long_texts=long_texts,
            prompt=prompt,
            prompt_name=prompt_name,
            max_batch_tokens=max_batch_tokens,
            max_bytes=max_bytes,
            reference_cache_bytes=reference_cache_bytes,
            recent_bytes=recent_bytes,
            word_cache_bytes=word_cache_bytes,
            batch_invariant=batch_invariant,
            cuda_graphs=cuda_graphs,
            own_stream=own_stream,
            progress=progress,
        )
        super().__init__(config, new_engine(config))

    def score(
        self, completions: Sequence[TextLike], references: Sequence[TextLike | Sequence[TextLike]]
    ) -> Tensor:
        """Score each completion by its cosine with its reference.

        A text is a string or, for a policy that shares the encoder's tokenizer, its token ids: a list, or a
        1-D array or tensor, best on the host. Ids are all of a text's content: special tokens are set around
        them, a prompt is not set before them. Completions are all strings or all ids, and so are references.

        Args:
            completions: N texts; an empty one is what the tokenizer makes of it.
            references: N texts, or lists of texts of which the best counts. A list of integers is one text.

        Returns:
            [N], fp32, on the CPU, each in [-1, 1].

        Raises:
            InputError: If the lengths differ, or a text is missing or none, or an id is out of range.
            NonFiniteError: If the encoder overflows in the precision it was given.
            DeviceMemoryError: If a text by itself, or what comes of all, does not fit into memory.

        Example:
            >>> Scorer(dtype="float32").score(["a cat"], [["a dog", "a cat"]]).round(decimals=4)
            tensor([1.])
        """
        vocab_size = self._engine.vocab_size
        checked = checked_texts(completions, "completions", vocab_size)
        choices = checked_references(references, len(checked), vocab_size)
        if not checked:
            return torch.empty(0, dtype=torch.float32, device="cpu")
        texts, known = _rows(checked), _rows(chain.from_iterable(choices))
        pairs: dict[tuple[int, int], int] = {}
        chosen = [
            [pairs.setdefault((texts[text], known[r]), len(pairs)) for r in options]
            for text, options in zip(checked, choices, strict=True)
        ]
        with self._call() as engine:
            handed_over = len(checked) + sum(map(len, choices))
            self._count(ScorerStats(texts=handed_over, unique_texts=len(texts) + len(known)))
            vectors = self._counted(engine.reference_vectors(list(known)))
            if len(pairs) == len(texts) and engine.fuses_cosine:
                # Every text has one pair, and pairs were numbered as texts were: row n is text n.
                fused = self._counted(
                    engine.cosine(list(texts), vectors, [reference for _, reference in pairs])
                )
                with stage("wait"):
                    scores = fused.cpu()
            else:
                ours = self._counted(engine.vectors(list(texts)))
                with stage("score"):
                    scores = pair_cosines(engine, ours, vectors, list(pairs)).cpu()
            self._require_finite(engine, scores, known)
        with stage("score"):
            return best_of(scores, chosen)

    def similarity(self, completions: Sequence[TextLike], references: Sequence[TextLike]) -> Tensor:
        """Score every completion by its cosine with every reference.

        Args:
            completions: N texts, as in `score`.
            references: R texts; each is encoded once a run, as in `score`.

        Returns:
            [N, R], fp32, on the CPU, each in [-1, 1].

        Raises:
            InputError: If a text is missing or none, or an id is out of range.
            NonFiniteError: If the encoder overflows in the precision it was given.
            DeviceMemoryError: If a text by itself, or what comes of all, does not fit into memory.

        Example:
            >>> Scorer(dtype="float32").similarity(["a cat"], ["a dog", "a cat"]).round(decimals=4)
            tensor([[0.5185, 1.0000]])
        """
        vocab_size = self._engine.vocab_size
        rows = checked_texts(completions, "completions", vocab_size)
        columns = checked_texts(references, "references", vocab_size)
        if not rows or not columns:
            return torch.empty((len(rows), len(columns)), dtype=torch.float32, device="cpu")
        texts, known = _rows(rows), _rows(columns)
        with self._call() as engine:
            self._count(ScorerStats(texts=len(rows) + len(columns), unique_texts=len(texts) + len(known)))
            vectors = self._counted(engine.reference_vectors(list(known)))
            ours = self._counted(engine.vectors(list(texts)))
            with stage("score"):
                scores = all_cosines(engine, ours, vectors)
            self._require_finite(engine, scores, known)
        if len(texts) < len(rows):
            scores = scores[[texts[text] for text in rows]]
        return scores if len(known) == len(columns) else scores[:, [known[text] for text in columns]]

    def embed(self, texts: Sequence[TextLike], *, device: str | torch.device = "cpu") -> Tensor:
        """Embed texts as unit vectors.

        Args:
            texts: N texts, as in `score`.
            device: Where the result is wanted.

        Returns:
            [N, D], fp32, unit length.

        Raises:
            InputError: If a text is missing or none, an id is out of range, or `device` is no device.
            BackendUnavailableError: If this process does not have the device.
            NonFiniteError: If the encoder overflows in the precision it was given.
            DeviceMemoryError: If a text by itself, or what comes of all, does not fit into memory.

        Example:
            >>> Scorer().embed(["a cat", "a dog"]).shape
            torch.Size([2, 384])
        """
        wanted = resolve_device(device)
        checked = checked_texts(texts, "texts", self._engine.vocab_size)
        if not checked:
            return torch.empty((0, self.embedding_dim), dtype=torch.float32, device=wanted)
        rows = _rows(checked)
        with self._call() as engine:
            self._count(ScorerStats(texts=len(checked), unique_texts=len(rows)))
            vectors = self._counted(engine.vectors(list(rows))).to(wanted)
            self._require_finite(engine, vectors)
            (order,) = upload([np.array([rows[text] for text in checked], dtype=np.int32)], wanted)
            vectors = vectors[order]  # a copy: what is kept for other calls is not handed out
        used_here(vectors)
        return vectors

    def maxsim(
        self,
        completions: Sequence[TextLike],
        references: Sequence[TextLike | Sequence[TextLike]],
        *,
        token_weights: Tensor | None = None,
    ) -> MaxSim:
        """Score each completion by how well its tokens and its reference's match (BERTScore).

        Special tokens weigh nothing, but can be matched. A text without any token that weighs scores 0.0.

        Args:
            completions: N texts, as in `score`.
            references: N texts, or lists of texts of which the one with the best F1 counts.
            token_weights: [V], floating, a finite weight of 0 or more by token id (idf); None is 1 for all.

        Returns:
            Precision, recall and F1, each [N], fp32, on the CPU, in [-1, 1].

        Raises:
            InputError: As in `score`, or if `token_weights` does not fit the tokenizer.
            NonFiniteError: If the encoder overflows in the precision it was given.
            DeviceMemoryError: If a text by itself, or what comes of all, does not fit into memory.

        Example:
            >>> Scorer(dtype="float32").maxsim(["a cat"], [["a dog", "a cat"]]).f1.round(decimals=4)
            tensor([1.])
        """
        vocab_size = self._engine.vocab_size
        checked = checked_texts(completions, "completions", vocab_size)
        choices = checked_references(references, len(checked), vocab_size)
        after_caller(token_weights, self._engine.stream)
        with self._call() as engine:
            scores, stats = match(engine, checked, choices, token_weights)
            self._count(stats)
            require_finite(scores, engine.dtype)
        return MaxSim(*scores)

    def __repr__(self) -> str:
        always = ("encoder", "backend", "device", "dtype")
        options = inspect.signature(Scorer).parameters
        values = {field.name: getattr(self._config, field.name) for field in fields(self._config)}
        shown = [name for name, value in values.items() if name in always or value != options[name].default]
        return f"Scorer({', '.join(f'{name}={values[name]!r}' for name in shown)})"

    def _require_finite(self, engine: Engine, values: Tensor, references: Iterable[Text] = ()) -> None:
        """Refuse values that are not finite, and forget the known vectors that may have made them so."""
        try:
            require_finite(values, engine.dtype)
        except NonFiniteError:
            engine.references.forget(references)
            engine.recent.clear()
            raise


def _rows(texts: Iterable[Text]) -> dict[Text, int]:
    """Number distinct texts in the order in which they come."""
    return {text: row for row, text in enumerate(dict.fromkeys(texts))}


def _device_name(
    device: str | torch.device | Sequence[str | torch.device] | None,
) -> str | tuple[str, ...] | None:
    """A device, or several, as a configuration holds them."""
    if device is None or isinstance(device, str | torch.device):
        return None if device is None else str(device)
    return tuple(map(str, device))
