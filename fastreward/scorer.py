"""Scorer: texts → scores. Dedupe → reference cache → tokenise → pack → encode → score → scatter back."""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Final

import numpy as np
import torch
from torch import Tensor

from fastreward.backends import dtype_name
from fastreward.configuration import LongTexts, ScorerConfig, ScorerStats
from fastreward.encoders.checkpoint import DEFAULT_ENCODER
from fastreward.engine import Engine, new_engine, shared_engine
from fastreward.errors import NonFiniteError
from fastreward.matching import match
from fastreward.ops.maxsim import MaxSim
from fastreward.ops.pooled_cosine import Pooling, pooled_cosine
from fastreward.packing import upload
from fastreward.text_arguments import checked_references, checked_texts
from fastreward.tokenization import Tokenizer
from fastreward.word_cache import WORD_CACHE_BYTES

__all__ = ["DEFAULT_ENCODER", "Scorer", "ScorerStats"]

# Pairs that are scored at once from unit vectors: bounds the memory of what is gathered for them.
PAIRS_AT_ONCE: Final = 16384


class Scorer:
    """Scores texts against references by the cosine of their embeddings.

    A text that occurs twice in a call is encoded once, a reference once as long as it stays in the cache,
    and nothing is padded. Thread-safe. Pickles to its arguments; a copy rebuilds its encoder on first use,
    one for each process and set of arguments.

    Args:
        encoder: A folder, or a name on the hub; the default comes from the extra `fastreward[minilm]` where
            that is installed.
        backend: "packed", or None for the fastest that is installed for the device.
        device: "cpu", "cuda", "cuda:1" …, or None for this process's GPU, and the CPU without one.
        dtype: "float32", "bfloat16" or (on CUDA) "float16"; None is bf16 where the hardware has it natively
            and fp32 elsewhere. "float8_e4m3fn" rounds the operands of matrix products to 8 bits, for encoders
            of 768 columns or more on GPUs that multiply them. Pooling, norm and cosine are fp32 in any case.
        revision: Branch, tag or commit of a hub name.
        pooling: "mean", "cls", "last" or "max" instead of the checkpoint's own.
        num_layers: Use the encoder's first layers alone; None uses all.
        attention: "triton", "flash", "varlen" or "sdpa"; None chooses by device and precision.
        max_seq_length: Tokens of a text at most, special tokens included; None honours the checkpoint. It may
            be raised to what the model has positions for.
        long_texts: What is done with a longer text: "truncate" keeps its beginning (counted, and said once);
            "chunk" encodes it in windows and takes the mean of their vectors, weighted by tokens. A prompt
            stands in the first window alone.
        prompt: Set before every text ("query: "); None takes the checkpoint's default prompt, "" none.
        prompt_name: Name of one of the checkpoint's prompts, instead of `prompt`.
        max_batch_tokens: Tokens of one batch; None chooses by device.
        reference_cache_bytes: Bound on the cache of reference vectors.
        word_cache_bytes: Bound on the cache of words' token ids, where one is exact; 0 for none.
        batch_invariant: Make a score bitwise independent of everything else in the call, at some cost.
        progress: Show a progress bar: True always, False never, None when it takes seconds on a terminal.

    Raises:
        InputError: If an argument is not what it should be.
        BackendUnavailableError: If the back-end or device that is asked for cannot be had.
        CheckpointError: If the encoder's files are missing, damaged, or of an unsupported architecture.

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
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        revision: str | None = None,
        pooling: Pooling | None = None,
        num_layers: int | None = None,
        attention: str | None = None,
        max_seq_length: int | None = None,
        long_texts: LongTexts = "truncate",
        prompt: str | None = None,
        prompt_name: str | None = None,
        max_batch_tokens: int | None = None,
        reference_cache_bytes: int = 64 * 2**20,
        word_cache_bytes: int = WORD_CACHE_BYTES,
        batch_invariant: bool = False,
        progress: bool | None = None,
    ) -> None:
        self._config = ScorerConfig(
            encoder=str(encoder),
            backend=backend,
            device=None if device is None else str(device),
            dtype=None if dtype is None else dtype if isinstance(dtype, str) else dtype_name(dtype),
            revision=revision,
            pooling=pooling,
            num_layers=num_layers,
            attention=attention,
            max_seq_length=max_seq_length,
            long_texts=long_texts,
            prompt=prompt,
            prompt_name=prompt_name,
            max_batch_tokens=max_batch_tokens,
            reference_cache_bytes=reference_cache_bytes,
            word_cache_bytes=word_cache_bytes,
            batch_invariant=batch_invariant,
            progress=progress,
        )
        self._start(new_engine(self._config))

    def score(self, completions: Sequence[str], references: Sequence[str | Sequence[str]]) -> Tensor:
        """Score each completion by its cosine with its reference.

        Args:
            completions: N texts; an empty one is what the tokenizer makes of it.
            references: N texts, or lists of texts of which the best counts.

        Returns:
            [N], fp32, on the CPU, each in [-1, 1].

        Raises:
            InputError: If the lengths differ, or a text is missing or no string.
            NonFiniteError: If the encoder overflows in the precision it was given.

        Example:
            >>> Scorer(dtype="float32").score(["a cat"], [["a dog", "a cat"]]).round(decimals=4)
            tensor([1.])
        """
        completions = checked_texts(completions, "completions")
        choices = checked_references(references, len(completions))
        if not completions:
            return torch.empty(0, dtype=torch.float32, device="cpu")
        texts = {text: row for row, text in enumerate(dict.fromkeys(completions))}
        known = {text: row for row, text in enumerate(dict.fromkeys(r for c in choices for r in c))}
        pairs: dict[tuple[int, int], int] = {}
        chosen = [
            [pairs.setdefault((texts[text], known[r]), len(pairs)) for r in options]
            for text, options in zip(completions, choices, strict=True)
        ]
        engine = self._engine
        lookup = engine.references.look_up(list(known), lambda missing: self._embed(engine, missing))
        self._count(
            texts=len(completions) + sum(map(len, choices)),
            unique_texts=len(texts) + len(known),
            reference_hits=lookup.hits,
            reference_misses=lookup.misses,
        )
        scores = self._score_pairs(engine, list(texts), lookup.vectors, list(pairs)).cpu()
        _require_finite(scores, engine)
        return _best_of(scores, chosen)

    def embed(self, texts: Sequence[str], *, device: str | torch.device = "cpu") -> Tensor:
        """Embed texts as unit vectors.

        Args:
            texts: N texts.
            device: Where the result is wanted.

        Returns:
            [N, D], fp32, unit length.

        Raises:
            InputError: If a text is missing or no string.
            NonFiniteError: If the encoder overflows in the precision it was given.

        Example:
            >>> Scorer().embed(["a cat", "a dog"]).shape
            torch.Size([2, 384])
        """
        texts = checked_texts(texts, "texts")
        if not texts:
            return torch.empty((0, self.embedding_dim), dtype=torch.float32, device=device)
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        engine = self._engine
        self._count(texts=len(texts), unique_texts=len(rows))
        vectors = self._embed(engine, list(rows))
        order = torch.tensor([rows[text] for text in texts], dtype=torch.int64, device=vectors.device)
        return vectors[order].to(device)

    def maxsim(
        self,
        completions: Sequence[str],
        references: Sequence[str | Sequence[str]],
        *,
        token_weights: Tensor | None = None,
    ) -> MaxSim:
        """Score each completion by how well its tokens and its reference's match (BERTScore).

        Special tokens weigh nothing, but can be matched. A text without any token that weighs scores 0.0.

        Args:
            completions: N texts.
            references: N texts, or lists of texts of which the one with the best F1 counts.
            token_weights: [V], floating, a finite weight of 0 or more by token id (idf); None is 1 for all.

        Returns:
            Precision, recall and F1, each [N], fp32, on the CPU, in [-1, 1].

        Raises:
            InputError: As in `score`, or if `token_weights` does not fit the tokenizer.
            NonFiniteError: If the encoder overflows in the precision it was given.

        Example:
            >>> Scorer(dtype="float32").maxsim(["a cat"], [["a dog", "a cat"]]).f1.round(decimals=4)
            tensor([1.])
        """
        completions = checked_texts(completions, "completions")
        choices = checked_references(references, len(completions))
        scores, stats = match(self._engine, completions, choices, token_weights)
        self._count(**vars(stats))
        _require_finite(scores, self._engine)
        return MaxSim(*scores)

    @property
    def tokenizer(self) -> Tokenizer:
        """Call it with texts for their token ids as the encoder gets them, special tokens included."""
        return self._engine.tokenizer

    @property
    def stats(self) -> ScorerStats:
        """A snapshot of what was done so far."""
        with self._lock:
            return self._stats

    @property
    def backend(self) -> str:
        """The encoder back-end that runs."""
        return self._engine.backend

    @property
    def device(self) -> torch.device:
        """The device that it runs on."""
        return self._engine.encoder.device

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return self._engine.dtype

    @property
    def encoder_name(self) -> str:
        """The encoder's name or path as it was given."""
        return self._config.encoder

    @property
    def embedding_dim(self) -> int:
        """D, the width of a vector."""
        return self._engine.encoder.hidden_size

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text at most, special tokens included."""
        return self._engine.tokenizer.max_length

    def __repr__(self) -> str:
        always = ("encoder", "backend", "device", "dtype")
        options = inspect.signature(Scorer).parameters
        values = {field.name: getattr(self._config, field.name) for field in fields(self._config)}
        shown = [name for name, value in values.items() if name in always or value != options[name].default]
        return f"Scorer({', '.join(f'{name}={values[name]!r}' for name in shown)})"

    def __getstate__(self) -> ScorerConfig:
        return self._config

    def __setstate__(self, state: ScorerConfig) -> None:
        self._config = state
        self._start(None)

    def _start(self, engine: Engine | None) -> None:
        self._lock = threading.Lock()
        self._stats = ScorerStats()
        self._built = engine

    @property
    def _engine(self) -> Engine:
        if self._built is None:
            self._built = shared_engine(self._config)
        return self._built

    def _count(self, **counts: int) -> None:
        with self._lock:
            first = not self._stats.truncated_texts and counts.get("truncated_texts", 0)
            self._stats += ScorerStats(**counts)
        if first:
            warnings.warn(
                f"Texts longer than {self.max_seq_length} tokens are truncated, {first} of them in this "
                "call. Raise max_seq_length, or pass long_texts='chunk' to read them in windows. This is "
                "said once; `stats.truncated_texts` goes on counting.",
                stacklevel=2,
            )

    def _embed(self, engine: Engine, texts: list[str]) -> Tensor:
        vectors, stats = engine.embed(texts)
        self._count(**vars(stats))
        _require_finite(vectors, engine)
        return vectors

    def _score_pairs(
        self, engine: Engine, texts: list[str], references: Tensor, pairs: list[tuple[int, int]]
    ) -> Tensor:
        """Score pairs (text, reference) of rows: [pairs]. Each text is encoded once."""
        columns = np.array(pairs, dtype=np.int32).T
        text_rows, reference_rows = upload(list(columns), engine.encoder.device)
        one_each = len(pairs) == len(texts)
        if one_each and engine.fuses_cosine:
            # Every text has one pair, and pairs were numbered as texts were: row n is text n.
            scores, stats = engine.cosine(texts, references, reference_rows)
            self._count(**vars(stats))
            return scores
        vectors = self._embed(engine, texts)
        parts = (slice(first, first + PAIRS_AT_ONCE) for first in range(0, len(pairs), PAIRS_AT_ONCE))
        return torch.cat(
            [_cosines(vectors[text_rows[part]], references, reference_rows[part]) for part in parts]
        )


def _cosines(vectors: Tensor, references: Tensor, reference_index: Tensor) -> Tensor:
    """Score unit vectors [N, D] against the references they point to: each a text of one token to the op."""
    cu_seqlens = torch.arange(len(vectors) + 1, dtype=torch.int32, device=vectors.device)
    return pooled_cosine(vectors, cu_seqlens, references, reference_index, max_seqlen=1)


def _best_of(scores: Tensor, chosen: list[list[int]]) -> Tensor:
    """Take each completion's best pair: [pairs] → [N]."""
    flat = scores[torch.tensor([pair for pairs in chosen for pair in pairs], dtype=torch.int64, device="cpu")]
    lengths = torch.tensor([len(pairs) for pairs in chosen], dtype=torch.int64, device="cpu")
    return torch.segment_reduce(flat, "max", lengths=lengths, axis=0)


def _require_finite(values: Tensor, engine: Engine) -> None:
    if not bool(torch.isfinite(values).all()):
        raise NonFiniteError(
            "finite values from the encoder",
            f"NaN or infinity in {dtype_name(engine.dtype)}",
            "Check the checkpoint: fp32 has all the range there is."
            if engine.dtype == torch.float32
            else "Pass dtype='float32', which has the most range and precision.",
        )
