"""The machinery under `Scorer`: an encoder and its tokenizer, and texts → batches → vectors or scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fastreward.backends import resolve_device, resolve_dtype, resolve_encoder
from fastreward.batching import MAX_BATCH_TOKENS, Batcher, TextBatch
from fastreward.configuration import (
    ScorerConfig,
    ScorerStats,
    check_config,
    check_vocabulary,
    max_seq_length,
    prompt_text,
)
from fastreward.encoders.base import Encoder
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.ops.pooled_cosine import pooled_embedding
from fastreward.packing import PackedBatch, upload
from fastreward.reference_cache import ReferenceCache
from fastreward.tokenization import Tokenizer
from fastreward.word_cache import TokenIds


class Engine:
    """One encoder ready to work; what changes is its caches, of references and of words, which are safe.

    Args:
        config: What was asked for; names, device and precision are resolved here.

    Raises:
        InputError: If an argument is not what it should be.
        BackendUnavailableError: If the back-end or device that is asked for cannot be had.
        CheckpointError: If the encoder's files are missing, damaged, or of an unsupported architecture.
    """

    def __init__(self, config: ScorerConfig) -> None:
        check_config(config)
        device = resolve_device(config.device)
        self.backend = resolve_encoder(config.backend, device)
        self.dtype = resolve_dtype(config.dtype, device)
        checkpoint = load_checkpoint(config.encoder, revision=config.revision)
        self.tokenizer = Tokenizer.from_file(
            checkpoint.tokenizer_file,
            max_length=max_seq_length(config, checkpoint),
            prompt=prompt_text(config, checkpoint),
            lowercase=checkpoint.lowercase,
            word_cache_bytes=config.word_cache_bytes,
        )
        self.vocab_size = check_vocabulary(self.tokenizer, checkpoint)
        self.encoder: Encoder = PackedEncoder(
            checkpoint,
            device,
            self.dtype,
            pooling=config.pooling,
            num_layers=config.num_layers,
            attention=config.attention,
            batch_invariant=config.batch_invariant,
        )
        self.references = ReferenceCache(config.reference_cache_bytes)
        self._config = config
        self.batcher = Batcher(
            self.tokenizer,
            device,
            config.max_batch_tokens or MAX_BATCH_TOKENS[device.type],
            config.progress,
        )

    @property
    def fuses_cosine(self) -> bool:
        """Whether a text's score can come out of its own batch.

        Windows of a long text must be joined first. And a score that must not change a bit may not come from
        one of two paths, chosen by what else is in the call.
        """
        return self._config.long_texts == "truncate" and not self._config.batch_invariant

    def embed(self, texts: Sequence[str]) -> tuple[Tensor, ScorerStats]:
        """Encode N texts, one at least: unit vectors [N, D], fp32, on the encoder's device."""
        if self._config.long_texts == "truncate":
            return self._encode(texts, lambda batch, _: self.encoder.embed(batch))
        flat, windows = self._windows(texts)
        vectors, stats = self._encode(flat, lambda batch, _: self.encoder.embed(batch))
        joined = _join_windows(vectors, [max(1, len(w)) for w in flat], windows)
        return joined, replace(stats, encoded_texts=len(texts))

    def cosine(
        self, texts: Sequence[str], references: Tensor, reference_index: Tensor
    ) -> tuple[Tensor, ScorerStats]:
        """Score text n of N, one at least, against references[reference_index[n]]: [N], fp32."""

        def compute(batch: PackedBatch, rows: list[int]) -> Tensor:
            return self.encoder.cosine(batch, references, reference_index[self._on_device(rows)])

        return self._encode(texts, compute)

    def token_states(self, texts: Sequence[str]) -> tuple[list[tuple[Tensor, Tensor]], ScorerStats]:
        """Encode N texts, one at least: hidden states [L, D] and token ids [L] of each, special tokens too.

        A long text that is not truncated is all of its windows, one after another.
        """
        flat: Sequence[str] | Sequence[TokenIds] = texts
        windows = [1] * len(texts)
        if self._config.long_texts == "chunk":
            flat, windows = self._windows(texts)
        by_row: dict[int, tuple[Tensor, Tensor]] = {}
        stats = ScorerStats()
        with closing(self.batcher.batches(flat)) as batches:
            for batch in batches:
                lengths = list(batch.packed.lengths)
                hidden = self.encoder.hidden(batch.packed).split_with_sizes(lengths)
                ids = batch.packed.input_ids.split_with_sizes(lengths)
                by_row |= dict(zip(batch.rows, zip(hidden, ids, strict=True), strict=True))
                stats += _spent(batch)
        rows_in_order = iter(range(len(flat)))
        parts = [[by_row[next(rows_in_order)] for _ in range(count)] for count in windows]
        joined = [text[0] if len(text) == 1 else _join_tokens(text) for text in parts]
        return joined, replace(stats, encoded_texts=len(texts))

    def _windows(self, texts: Sequence[str]) -> tuple[list[TokenIds], list[int]]:
        """Cut texts into windows of token ids; return all windows, and how many each text has."""
        room = self.tokenizer.max_content
        content = self.tokenizer.content(texts)
        windows = [[ids[i : i + room] for i in range(0, max(1, len(ids)), room)] for ids in content]
        return [window for text in windows for window in text], [len(text) for text in windows]

    def _encode(
        self, texts: Sequence[str] | Sequence[TokenIds], compute: Callable[[PackedBatch, list[int]], Tensor]
    ) -> tuple[Tensor, ScorerStats]:
        """Compute all texts batch by batch, each with the rows of its texts, and put the results in order."""
        results: list[Tensor] = []
        order: list[int] = []
        stats = ScorerStats()
        with closing(self.batcher.batches(texts)) as batches:
            for batch in batches:
                results.append(compute(batch.packed, batch.rows))
                order += batch.rows
                stats += _spent(batch)
        computed = torch.cat(results)
        ordered = torch.empty_like(computed)
        ordered[self._on_device(order)] = computed
        return ordered, stats

    def _on_device(self, rows: list[int]) -> Tensor:
        return upload([np.array(rows, dtype=np.int32)], self.encoder.device)[0]


def _spent(batch: TextBatch) -> ScorerStats:
    return ScorerStats(
        encoded_texts=len(batch.rows), tokens=batch.packed.num_tokens, truncated_texts=batch.truncated
    )


_lock = threading.Lock()
_alive: WeakValueDictionary[ScorerConfig, Engine] = WeakValueDictionary()
# Engines that were built for a pickled scorer stay: some trainers unpickle a reward anew for every call.
_kept: dict[ScorerConfig, Engine] = {}


def new_engine(config: ScorerConfig) -> Engine:
    """Build an engine, which lives as long as someone holds it; unpickled scorers share it meanwhile."""
    engine = Engine(config)
    with _lock:
        _alive[config] = engine
    return engine


def shared_engine(config: ScorerConfig) -> Engine:
    """Return this process's engine for `config`: one that is alive, or one built now and kept."""
    with _lock:
        engine = _alive.get(config)
        if engine is None:
            engine = _alive[config] = _kept[config] = Engine(config)
        return engine


def _join_windows(vectors: Tensor, weights: list[int], windows: list[int]) -> Tensor:
    """Average the windows' vectors of each text, weighted by tokens: [W, D] → [N, D], unit length."""
    arrays = [np.array(values, dtype=np.int32) for values in (weights, [0, *accumulate(windows)])]
    weight, cu_seqlens = upload(arrays, vectors.device)
    # Unit length forgets the sum of the weights: the plain mean of weighted vectors will do.
    return pooled_embedding(vectors * weight[:, None].float(), cu_seqlens, max_seqlen=max(windows))


def _join_tokens(windows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    hidden, ids = zip(*windows, strict=True)
    return torch.cat(hidden), torch.cat(ids)
