"""The machinery under `Scorer`: an encoder and its tokenizer, and texts → batches → vectors or scores."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Final
from weakref import WeakSet, WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.backends import resolve_device, resolve_dtype
from fastreward.batching import MAX_BATCH_TOKENS, Batcher
from fastreward.configuration import (
    ScorerConfig,
    ScorerStats,
    check_config,
    check_devices,
    check_vocabulary,
    encoder_backend,
    max_seq_length,
    prompt_text,
    tokenizer_of,
)
from fastreward.cuda_streams import new_stream, on_stream
from fastreward.encoders.base import Encoder
from fastreward.encoders.build import build_encoder
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.gate import Gate
from fastreward.memory import Budget, activation_bytes, budget_within, held_bytes, rows_taken, warn_if_taken
from fastreward.ops.pooled_cosine import pooled_embedding
from fastreward.out_of_memory import Computed, in_order, named_shortage, with_room
from fastreward.packing import PackedBatch, upload
from fastreward.recent_vectors import RecentVectors
from fastreward.reference_cache import ReferenceCache
from fastreward.replicas import Compute, Replicas
from fastreward.text_arguments import Text, ids_of
from fastreward.word_cache import TokenIds

CPU: Final = torch.device("cpu")


class Engine:
    """An encoder ready to work, or asleep; what else changes is its caches, which are safe to share.

    A call on its methods that compute is made within `call`, which keeps it awake; many may be at once.

    Args:
        config: What was asked for; names, device and precision are resolved here.

    Raises:
        InputError: If an argument is not what it should be.
        BackendUnavailableError: If the back-end or device that is asked for cannot be had.
        CheckpointError: If the encoder's files are missing, damaged, or of an unsupported architecture.
        DeviceMemoryError: If there is no room for the weights.
    """

    def __init__(self, config: ScorerConfig) -> None:
        check_config(config)
        devices = [resolve_device(device) for device in config.devices]
        self.device = devices[0]
        self.backend = encoder_backend(config, self.device)
        check_devices(config, devices, self.backend)
        self.dtype = resolve_dtype(config.dtype, self.device, self.backend)
        self._checkpoint = load_checkpoint(config.encoder, revision=config.revision)
        self.tokenizer = tokenizer_of(
            self._checkpoint,
            max_length=max_seq_length(config, self._checkpoint),
            prompt=prompt_text(config, self._checkpoint),
            word_cache_bytes=config.word_cache_bytes,
        )
        self.vocab_size = check_vocabulary(self.tokenizer, self._checkpoint)
        self.references = ReferenceCache(config.reference_cache_bytes)
        self.recent = RecentVectors(config.recent_bytes)
        self.users: WeakSet[object] = WeakSet()
        self.stream = new_stream(self.device) if config.own_stream else None
        self._config = config
        self._gate = Gate()
        tokens = config.max_batch_tokens or MAX_BATCH_TOKENS[self.device.type]
        self.batcher = Batcher(self.tokenizer, tokens, config.progress)
        self.replicas = Replicas(devices, self.batcher)
        encoders = with_room("the weights", self._build)
        self.hidden_size = encoders[0].hidden_size
        if config.max_batch_tokens is None:  # some back-ends have a size of their own
            tokens = getattr(encoders[0], "batch_tokens", tokens)
        self.budget = self._budget(encoders, tokens)
        self.batcher.max_batch_tokens = self.budget.batch_tokens
        self._start(encoders)

    @property
    def encoder(self) -> Encoder:
        """The first replica."""
        return self._replica(0)

    @encoder.setter
    def encoder(self, encoder: Encoder) -> None:
        self.replicas.members[0].encoder = encoder

    @property
    def asleep(self) -> bool:
        """Whether the weights are given back."""
        return self.replicas.members[0].encoder is None

    @property
    def shares(self) -> bool:
        """Whether vectors of texts are kept, for there are several users that may ask for them."""
        return self.recent.max_bytes > 0 and len(self.users) > 1

    @property
    def fuses_cosine(self) -> bool:
        """Whether a text's score can come out of its own batch.

        Not where its vector is to be kept. Windows of a long text must be joined first. And a score that must
        not change a bit may not come from one of two paths, chosen by what else is in the call.
        """
        return self._config.long_texts == "truncate" and not self._config.batch_invariant and not self.shares

    @property
    def batch_invariant(self) -> bool:
        """Whether a score must not change a bit, whatever else is in the call."""
        return self._config.batch_invariant

    @contextmanager
    def call(self) -> Iterator[bool]:
        """Be at work: awake until the end, and on the engine's stream. Yields whether it had to be woken.

        Raises:
            DeviceMemoryError: If memory runs out beside the batches, which smaller ones would not mend.
        """
        woke = False
        while True:
            with self._gate.passing():
                if not self.asleep:
                    with on_stream(self.stream), named_shortage("what is computed of all texts"):
                        yield woke
                    return
            woke = self.wake() or woke

    def sleep(self) -> None:
        """Give back the weights, and take the caches of vectors to the host, once no call is at work."""
        with self._gate.closed():
            if not self.asleep:
                self._give_back()

    def wake(self) -> bool:
        """Read the weights again; return False where they were there already.

        Raises:
            DeviceMemoryError: If there is no room for them and for the caches of vectors; it stays asleep.
        """
        with self._gate.closed():
            if not self.asleep:
                return False
            try:
                with_room("the weights and the caches of vectors", self._load)
            except BaseException:  # half of it is not left on the device
                self._give_back()
                raise
            return True

    def vectors(self, texts: Sequence[Text]) -> tuple[Tensor, ScorerStats]:
        """Unit vectors [N, D] of N distinct texts, one at least; known ones where recent ones are kept."""
        if not self.shares:
            return self.embed(texts)
        spent = ScorerStats()

        def encode(missing: list[Text]) -> Tensor:
            nonlocal spent
            encoded, spent = self.embed(missing)
            return encoded

        lookup = self.recent.look_up(texts, encode)
        return lookup.vectors, spent + ScorerStats(recent_hits=lookup.hits)

    def reference_vectors(self, texts: Sequence[Text]) -> tuple[Tensor, ScorerStats]:
        """The same of references, of which each is encoded once a run."""
        spent = ScorerStats()

        def encode(missing: list[Text]) -> Tensor:
            nonlocal spent
            encoded, spent = self.vectors(missing)
            return encoded

        lookup = self.references.look_up(texts, encode)
        found = ScorerStats(reference_hits=lookup.hits, reference_misses=lookup.misses)
        return lookup.vectors, spent + found

    def embed(self, texts: Sequence[Text]) -> tuple[Tensor, ScorerStats]:
        """Encode N texts, one at least: unit vectors [N, D], fp32, on `device`."""
        flat, windows = self._windows(texts)
        vectors, stats = self._encode(flat, lambda number, batch, _: (self._replica(number).embed(batch),))
        if windows is None:
            return vectors, stats
        joined = _join_windows(vectors, [max(1, len(ids)) for ids in flat], windows)
        return joined, replace(stats, encoded_texts=len(texts))

    def cosine(
        self, texts: Sequence[Text], references: Tensor, reference_rows: Sequence[int]
    ) -> tuple[Tensor, ScorerStats]:
        """Score text n of N, one at least, against references[reference_rows[n]]: [N], fp32."""
        pointed_at = np.array(reference_rows, dtype=np.int32)
        at: dict[int, Tensor] = {}  # the references where each replica is

        def compute(number: int, batch: PackedBatch, rows: NDArray[np.int32]) -> tuple[Tensor, ...]:
            encoder = self._replica(number)
            if number not in at:
                at[number] = references.to(encoder.device)
            (index,) = upload([pointed_at[rows]], encoder.device)
            return (encoder.cosine(batch, at[number], index),)

        return self._encode(self._given(texts), compute)

    def token_states(self, texts: Sequence[Text]) -> tuple[list[tuple[Tensor, Tensor]], ScorerStats]:
        """Encode N texts, one at least: hidden states [L, D] and token ids [L] of each, special tokens too.

        A long text that is not truncated is all of its windows, one after another.
        """
        flat, windows = self._windows(texts)
        computed, stats = self._compute(
            flat, lambda number, batch, _: (self._replica(number).hidden(batch), batch.input_ids)
        )
        by_row: dict[int, tuple[Tensor, Tensor]] = {}
        for part in computed:
            hidden, ids = (tensor.split_with_sizes(list(part.lengths)) for tensor in part.results)
            by_row |= dict(zip(part.rows.tolist(), zip(hidden, ids, strict=True), strict=True))
        rows_in_order = iter(range(len(flat)))
        counts = [1] * len(texts) if windows is None else windows
        parts = [[by_row[next(rows_in_order)] for _ in range(count)] for count in counts]
        joined = [text[0] if len(text) == 1 else _join_tokens(text) for text in parts]
        return joined, replace(stats, encoded_texts=len(texts))

    def _given(self, texts: Sequence[Text]) -> Sequence[str] | Sequence[TokenIds]:
        """Texts as the batcher takes them: strings alone, or the token ids of all."""
        strings = [text for text in texts if isinstance(text, str)]
        if len(strings) == len(texts):
            return strings
        tokenized = iter(self.tokenizer.content(strings)) if strings else iter(())
        return [next(tokenized) if isinstance(text, str) else ids_of(text) for text in texts]

    def _windows(self, texts: Sequence[Text]) -> tuple[Sequence[str] | Sequence[TokenIds], list[int] | None]:
        """Cut texts that are not truncated into windows, one after another, and say how many each has.

        Where they are truncated, return the texts as they are, and None.
        """
        given = self._given(texts)
        if self._config.long_texts == "truncate":
            return given, None
        room = self.tokenizer.max_content
        content = [ids for ids in given if not isinstance(ids, str)]
        content = content or self.tokenizer.content([text for text in given if isinstance(text, str)])
        windows = [[ids[i : i + room] for i in range(0, max(1, len(ids)), room)] for ids in content]
        return [window for text in windows for window in text], [len(text) for text in windows]

    def _encode(
        self, texts: Sequence[str] | Sequence[TokenIds], function: Compute
    ) -> tuple[Tensor, ScorerStats]:
        """Compute one result for all texts, batch by batch, and put it in their order."""
        done, stats = self._compute(texts, function)
        return in_order(done, self.device), stats

    def _compute(
        self, texts: Sequence[str] | Sequence[TokenIds], function: Compute
    ) -> tuple[list[Computed], ScorerStats]:
        with closing(self.batcher.batches(texts)) as batches:
            return self.replicas.compute(batches, function)

    def _replica(self, number: int) -> Encoder:
        encoder = self.replicas.members[number].encoder
        assert encoder is not None  # a call is at work only while it is awake
        return encoder

    def _build(self) -> list[Encoder]:
        devices = [replica.device for replica in self.replicas.members]
        config = self._config
        return [
            build_encoder(
                self.backend,
                self._checkpoint,
                device,
                # An export to ONNX has a precision of its own, unless another one is asked for.
                self.dtype if config.dtype is not None or self.backend != "onnx" else None,
                pooling=config.pooling,
                num_layers=config.num_layers,
                attention=config.attention,
                calibration=None if config.calibration is None else Path(config.calibration),
                batch_invariant=config.batch_invariant,
            )
            for device in devices
        ]

    def _load(self) -> None:
        encoders = self._build()
        self.references.move(self.device)
        self.recent.move(self.device)
        self._start(encoders)

    def _give_back(self) -> None:
        for replica in self.replicas.members:
            if replica.device.type == "cuda":  # memory may be used anew as soon as it is dropped
                torch.cuda.synchronize(replica.device)
        self.references.move(CPU)
        self.recent.move(CPU)
        for replica in self.replicas.members:
            release = getattr(replica.encoder, "release", None)
            replica.encoder = None
            if release is not None:  # memory beside the weights, such as that of CUDA graphs
                release()

    def _start(self, encoders: list[Encoder]) -> None:
        for replica, encoder in zip(self.replicas.members, encoders, strict=True):
            if replica.device.type == "cuda":  # streams that know nothing of this one will read the weights
                torch.cuda.current_stream(replica.device).synchronize()
            replica.encoder = encoder
            if self._config.cuda_graphs:
                replica.encoder = _with_graphs(encoder, self.budget)

    def _budget(self, encoders: list[Encoder], batch_tokens: int) -> Budget:
        config = self._config
        if config.max_bytes is None:
            return Budget(batch_tokens)
        devices = [replica.device for replica in self.replicas.members]
        copies = max(map(devices.count, devices))  # as many as one device holds
        weights = copies * held_bytes(encoders[0])
        token_bytes = activation_bytes(self._checkpoint.architecture, self.device, self.dtype)
        budget = budget_within(
            config.max_bytes,
            weights=weights,
            caches=config.reference_cache_bytes + config.recent_bytes,
            token_bytes=copies * token_bytes,
            batch_tokens=batch_tokens,
            text_tokens=self.tokenizer.max_length,
            rows=rows_taken(self.device, self.dtype),
            graphs=config.cuda_graphs,
        )
        for device in dict.fromkeys(devices):
            warn_if_taken(device, config.max_bytes - weights)
        return replace(budget, graph_bytes=budget.graph_bytes // copies)


def _with_graphs(encoder: Encoder, budget: Budget) -> Encoder:
    from fastreward.encoders.graphs import GraphedEncoder

    assert isinstance(encoder, PackedEncoder)
    return GraphedEncoder(encoder, max_tokens=budget.graph_tokens, max_bytes=budget.graph_bytes)


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


def living_engine(config: ScorerConfig) -> Engine | None:
    """Return this process's engine for `config` if there is one."""
    with _lock:
        return _alive.get(config)


def shared_engine(config: ScorerConfig) -> Engine:
    """Return this process's engine for `config`: one that is alive, or one built now and kept."""
    with _lock:
        engine = _alive.get(config)
        if engine is None:
            engine = _alive[config] = _kept[config] = Engine(config)
        return engine


def _join_windows(vectors: Tensor, weights: list[int], windows: list[int]) -> Tensor:
    """Average the windows' vectors of each text, weighted by tokens: [W, D], overwritten → [N, D], unit."""
    arrays = [np.array(values, dtype=np.int32) for values in (weights, [0, *accumulate(windows)])]
    weight, cu_seqlens = upload(arrays, vectors.device)
    # Unit length forgets the sum of the weights: the plain mean of weighted vectors will do.
    vectors.mul_(weight[:, None])  # in place: there may be no room for them once more
    return pooled_embedding(vectors, cu_seqlens, max_seqlen=max(windows))


def _join_tokens(windows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    hidden, ids = zip(*windows, strict=True)
    return torch.cat(hidden), torch.cat(ids)
