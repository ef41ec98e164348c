"""The machinery under `Scorer`: an encoder and its tokenizer, and texts → batches → vectors or scores."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import accumulate
from typing import Final, Literal, cast
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from fastreward.backends import resolve_device, resolve_dtype, resolve_encoder
from fastreward.encoders.base import Encoder
from fastreward.encoders.checkpoint import Checkpoint, load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import CheckpointError, InputError
from fastreward.ops.pooled_cosine import POOLINGS, Pooling, pooled_embedding
from fastreward.packing import PackedBatch, pack, token_budget_batches, upload
from fastreward.prefetch import prefetched
from fastreward.progress import ScoringProgress
from fastreward.reference_cache import ReferenceCache
from fastreward.tokenization import Tokenizer
from fastreward.word_cache import TokenIds

LongTexts = Literal["truncate", "chunk"]

MAX_BATCH_TOKENS: Final[Mapping[str, int]] = {"cpu": 2048, "cuda": 65536}
"""Tokens of one batch: on a CPU the widest activations of a small encoder should stay in the last-level
cache; on a GPU a batch should be long enough to hide its launches."""

MIN_PART: Final[Mapping[str, int]] = {"cpu": 32_768, "cuda": 262_144}
"""Characters that are tokenised at a time, at least. About 8,000 tokens keep a CPU busy for long. On a GPU,
batches, which are made within a part, should be full: a small encoder's work must outlast its launches."""

MAX_PARTS: Final = 16
"""The first part is tokenised with nothing to overlap: a sixteenth of the work."""

CHARS_OF_A_TOKEN: Final = 4


@dataclass(frozen=True)
class ScorerConfig:
    """The arguments of a `Scorer`: what it pickles to, and the key by which a process shares engines."""

    encoder: str
    backend: str | None
    device: str | None
    dtype: str | None
    revision: str | None
    pooling: Pooling | None
    num_layers: int | None
    attention: str | None
    max_seq_length: int | None
    long_texts: LongTexts
    prompt: str | None
    prompt_name: str | None
    max_batch_tokens: int | None
    reference_cache_bytes: int
    word_cache_bytes: int
    batch_invariant: bool
    progress: bool | None


@dataclass(frozen=True)
class ScorerStats:
    """What a scorer has done since it was made; subtract two snapshots to see one stretch of work.

    Attributes:
        texts: Texts handed to `score` and `embed`, references included.
        unique_texts: Distinct completions and distinct references of each call, summed over the calls.
        encoded_texts: Texts that went through the encoder.
        tokens: Tokens encoded, special tokens included.
        truncated_texts: Encoded texts that were longer than the encoder's limit and were cut.
        reference_hits: Distinct references of a call whose vectors were known.
        reference_misses: Those that had to be encoded.
    """

    texts: int = 0
    unique_texts: int = 0
    encoded_texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    reference_hits: int = 0
    reference_misses: int = 0

    def __add__(self, other: ScorerStats) -> ScorerStats:
        return ScorerStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: ScorerStats) -> ScorerStats:
        return ScorerStats(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


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
        _check(config)
        device = resolve_device(config.device)
        self.backend = resolve_encoder(config.backend, device)
        self.dtype = resolve_dtype(config.dtype, device)
        checkpoint = load_checkpoint(config.encoder, revision=config.revision)
        self.tokenizer = Tokenizer.from_file(
            checkpoint.tokenizer_file,
            max_length=_max_seq_length(config, checkpoint),
            prompt=_prompt(config, checkpoint),
            lowercase=checkpoint.lowercase,
            word_cache_bytes=config.word_cache_bytes,
        )
        self.vocab_size = _check_vocabulary(self.tokenizer, checkpoint)
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
        self._max_batch_tokens = config.max_batch_tokens or MAX_BATCH_TOKENS[device.type]

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
        with closing(self._batches(flat)) as batches:
            for batch, rows, spent in batches:
                lengths = list(batch.lengths)
                hidden = self.encoder.hidden(batch).split_with_sizes(lengths)
                ids = batch.input_ids.split_with_sizes(lengths)
                by_row |= dict(zip(rows, zip(hidden, ids, strict=True), strict=True))
                stats += spent
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
        with closing(self._batches(texts)) as batches:
            for batch, rows, spent in batches:
                results.append(compute(batch, rows))
                order += rows
                stats += spent
        computed = torch.cat(results)
        ordered = torch.empty_like(computed)
        ordered[self._on_device(order)] = computed
        return ordered, stats

    def _batches(
        self, texts: Sequence[str] | Sequence[TokenIds]
    ) -> Generator[tuple[PackedBatch, list[int], ScorerStats]]:
        """Yield the batches of a call, the rows of their texts, and what they come to.

        Texts are given as they are or as token ids. While one part of them is used, a thread tokenises the
        next.
        """
        device = self.encoder.device
        sizes = [_size(text) for text in texts]
        parts = prefetched(_parts(sizes, MIN_PART[device.type]), partial(self._prepare, texts))
        with ScoringProgress(sum(sizes), self._config.progress) as progress, closing(parts):
            for part in parts:
                for chosen in part.batches:
                    batch = pack([part.sequences[index] for index in chosen], device)
                    rows = [part.rows[index] for index in chosen]
                    truncated = sum(part.truncated[index] for index in chosen)
                    yield batch, rows, ScorerStats(0, 0, len(rows), batch.num_tokens, truncated)
                    progress.advance(sum(sizes[row] for row in rows))

    def _prepare(self, texts: Sequence[str] | Sequence[TokenIds], rows: list[int]) -> _Part:
        """Tokenise some of the texts, cut and frame them, and batch them by their true lengths."""
        room = self.tokenizer.max_content
        chosen = [texts[row] for row in rows]
        content = cast(list[TokenIds], chosen)
        if isinstance(chosen[0], str):
            content = self.tokenizer.content(cast(list[str], chosen))
        sequences = [self.tokenizer.frame(ids[:room]) for ids in content]
        batches = token_budget_batches([len(sequence) for sequence in sequences], self._max_batch_tokens)
        return _Part(rows, sequences, [len(ids) > room for ids in content], batches)

    def _on_device(self, rows: list[int]) -> Tensor:
        return upload([np.array(rows, dtype=np.int32)], self.encoder.device)[0]


@dataclass(frozen=True)
class _Part:
    """Some texts of a call, ready to be computed.

    Attributes:
        rows: Which texts of the call they are.
        sequences: The token ids of each, special tokens set.
        truncated: Whether each was cut.
        batches: Batches of indices into all three.
    """

    rows: list[int]
    sequences: list[TokenIds]
    truncated: list[bool]
    batches: list[list[int]]


def _size(text: str | TokenIds) -> int:
    """How much work a text is, in characters; an empty one is some too."""
    return 1 + (len(text) if isinstance(text, str) else CHARS_OF_A_TOKEN * len(text))


def _parts(sizes: Sequence[int], min_size: int) -> list[list[int]]:
    """Split texts into parts of like length, longest first, for tokenising and computing to overlap.

    `MAX_PARTS` of them, and fewer where one would have less than `min_size` characters.
    """
    part_size = max(min_size, -(-sum(sizes) // MAX_PARTS))
    parts: list[list[int]] = []
    room = 0
    for row in sorted(range(len(sizes)), key=lambda row: -sizes[row]):
        if not parts or room <= 0:
            parts.append([])
            room = part_size
        parts[-1].append(row)
        room -= sizes[row]
    return parts


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


def _check(config: ScorerConfig) -> None:
    if config.long_texts not in ("truncate", "chunk"):
        raise InputError("long_texts of 'truncate' or 'chunk'", repr(config.long_texts), "Correct the name.")
    if config.pooling is not None and config.pooling not in POOLINGS:
        raise InputError(f"pooling among {', '.join(POOLINGS)}", repr(config.pooling), "Correct the name.")
    for name in ("num_layers", "max_seq_length", "max_batch_tokens"):
        value = getattr(config, name)
        if value is not None and (not _is_whole(value) or value < 1):
            raise InputError(f"{name} of 1 or more", repr(value), "Pass a whole number, or None.")
    for name in ("reference_cache_bytes", "word_cache_bytes"):
        value = getattr(config, name)
        if not _is_whole(value) or value < 0:
            raise InputError(f"{name} of 0 or more", repr(value), "Pass a whole number of bytes.")
    if config.prompt is not None and config.prompt_name is not None:
        raise InputError("prompt or prompt_name", "both", "Pass one of them.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _check_vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint) -> int:
    vocab_size = tokenizer.vocab_size
    if vocab_size > checkpoint.architecture.vocab_size:
        raise CheckpointError(
            f"a tokenizer of at most {checkpoint.architecture.vocab_size} tokens, the model's vocab_size",
            f"{vocab_size} in {checkpoint.tokenizer_file}",
            "Check that tokenizer.json and the weights belong together.",
        )
    return vocab_size


def _max_seq_length(config: ScorerConfig, checkpoint: Checkpoint) -> int:
    if config.max_seq_length is None:
        return checkpoint.max_seq_length
    if config.max_seq_length > checkpoint.architecture.max_positions:
        raise InputError(
            f"max_seq_length of {checkpoint.architecture.max_positions} at most, the model's positions",
            str(config.max_seq_length),
            "Pass less, or long_texts='chunk' to read a longer text in windows.",
        )
    return config.max_seq_length


def _prompt(config: ScorerConfig, checkpoint: Checkpoint) -> str:
    prompt = checkpoint.default_prompt if config.prompt is None else config.prompt
    if config.prompt_name is not None:
        if config.prompt_name not in checkpoint.prompts:
            known = ", ".join(checkpoint.prompts) or "none, for the checkpoint names no prompts"
            raise InputError(
                f"a prompt_name among {known}",
                repr(config.prompt_name),
                "Correct the name, or pass prompt='...'.",
            )
        prompt = checkpoint.prompts[config.prompt_name]
    if prompt and not checkpoint.pools_prompt:
        raise InputError(
            "no prompt with an encoder that leaves the prompt's tokens out of its pooling",
            repr(prompt),
            "Pass prompt='', or choose another encoder.",
        )
    return prompt
