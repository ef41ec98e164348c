"""CUDA graphs for calls that are launch-bound: the packed encoder's layers, recorded once for each bucket.

A small batch keeps a GPU busy for less time than Python needs to launch its kernels. A CUDA graph launches
them all at once, but repeats what was recorded: the same shapes at the same addresses. So a batch is filled
up to its bucket (see `fastreward.encoders.buckets`) and copied into buffers that all graphs read and write.

The pooling stays outside. It costs one or two launches more, but it writes to memory of its own and knows the
call's own longest text and references; and vectors, scores and hidden states share a bucket's graph.

Graphs share their buffers and one pool of memory: no two may run at a time. A lock keeps the launches of
different threads apart, and an event makes the next caller's stream wait for the last one's.
"""

from __future__ import annotations

import threading
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor

from fastreward.encoders.buckets import FINE_FROM, Bucket, FilledBatch, fill_up, token_bucket
from fastreward.encoders.numerics import own_numerics
from fastreward.encoders.packed import LastStates, PackedEncoder, PreparedBatch
from fastreward.encoders.recording import CudaGraphRecorder, Recorder, Recording
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.attention import AttentionLayout
from fastreward.out_of_memory import ran_out
from fastreward.packing import PackedBatch, upload_into

MAX_SEEN: Final = 1024
"""Buckets that are remembered to have occurred, far more than are recorded; the one that occurred longest ago
is forgotten first, and its next call counts as its first."""


@dataclass(frozen=True)
class GraphStats:
    """What a `GraphedEncoder` has done so far.

    Attributes:
        captures: Recordings that were made.
        replays: Calls that one of them served.
        evictions: Recordings that were dropped to make room.
        plain: Calls without graphs, by reason: "first" (of its bucket), "tokens" (more than `max_tokens`),
            "texts" (more than the bucket has tokens), "empty" (no tokens), "attention" (a back-end that
            cannot be recorded), "memory" (the recording alone exceeds `max_bytes` or what the GPU has),
            "capturing" (the caller records).
    """

    captures: int
    replays: int
    evictions: int
    plain: Mapping[str, int]


@dataclass
class _Slot:
    """A bucket's part of the buffers, what is computed there, and its recording.

    Attributes:
        tokens: [2, T], int32: ids and positions.
        numbers: Offsets and tiles, int32, as `FilledBatch` has them.
        prepared: All of this as the encoder takes it.
        last: What was computed, in buffers; None before it was.
        recording: None before it is made.
    """

    tokens: Tensor
    numbers: Tensor
    prepared: PreparedBatch
    last: LastStates | None = None
    recording: Recording | None = None


class GraphedEncoder:
    """A packed encoder whose small calls are CUDA graphs, each recorded when its bucket occurs again.

    Results are those of the encoder: bit by bit where the matrix products of the bucket's tokens are computed
    as those of the call's, which `batch_invariant` makes sure of, and else within rounding. What cannot be
    recorded is computed without graphs, and counted in `stats`. It is an option, and no default before it has
    been measured on a GPU.

    A recording takes a few runs' time, waits for the GPU and has PyTorch empty its cache of memory, which is
    too much for a bucket that occurs once: the first call of each is a plain one. `release` does not undo
    that. While a recording is made, no other thread should draw random numbers on that GPU: PyTorch before
    2.13 raises an error in that thread then. Graphs know the addresses of the weights: call `release` before
    these move.

    Args:
        encoder: On CUDA, with Triton's attention; with another one, all calls are plain ones.
        max_tokens: Tokens of a call up to which graphs are used; beyond, the work outlasts the launches.
        max_graphs: Recordings that are kept; the one that was used longest ago goes first.
        max_bytes: Memory for recordings and buffers. If a new recording exceeds it, all others go; if it does
            alone, it goes, and its bucket's calls are plain ones until `release`.
        recorder: Who records; None makes a `CudaGraphRecorder`.

    Raises:
        InputError: If a limit is less than 1.
        BackendUnavailableError: If no recorder is given, and the encoder is not on CUDA or PyTorch allocates
            by another allocator than its own.

    Example:
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> checkpoint = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2")
        >>> GraphedEncoder(PackedEncoder(checkpoint, torch.device("cpu"), torch.float32))
        Traceback (most recent call last):
        fastreward.errors.BackendUnavailableError: Expected CUDA for graphs, got cpu. Use the encoder itself.

    Source: https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
    """

    def __init__(
        self,
        encoder: PackedEncoder,
        *,
        max_tokens: int = 16384,
        max_graphs: int = 32,
        max_bytes: int = 1 << 30,
        recorder: Recorder | None = None,
    ) -> None:
        limits = {"max_tokens": max_tokens, "max_graphs": max_graphs, "max_bytes": max_bytes}
        for name, limit in limits.items():
            if limit < 1:
                raise InputError(f"{name} of 1 or more", str(limit), "Use the encoder itself for no graphs.")
        if recorder is None:
            if encoder.device.type != "cuda":
                raise BackendUnavailableError(
                    "CUDA for graphs", str(encoder.device), "Use the encoder itself."
                )
            recorder = CudaGraphRecorder(encoder.device)
        self.encoder = encoder
        self.device = encoder.device
        self.dtype = encoder.dtype
        self.hidden_size = encoder.hidden_size
        self._max_tokens, self._max_graphs, self._max_bytes = max_tokens, max_graphs, max_bytes
        self._recorder = recorder
        self._lock = threading.Lock()  # held while launches that touch the buffers are enqueued
        self._slots: OrderedDict[Bucket, _Slot] = OrderedDict()  # the one that was used last stands last
        self._buffers: tuple[Tensor, Tensor] | None = None  # numbers of 4 bytes; states [2, largest T, D]
        self._zeros: Tensor | None = None  # what filler tokens are, as many as a bucket may have
        self._too_large: set[Bucket] = set()
        self._last_use: Any = None  # torch.cuda.Event, of which the constructor is untyped
        self._counting = threading.Lock()
        self._seen: OrderedDict[Bucket, None] = OrderedDict()  # the one that occurred last stands last
        self._counts: Counter[str] = Counter()
        self._plain: Counter[str] = Counter()

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last hidden states, [T, D] in `dtype`."""
        with self._last_states(batch, every_token=True) as last:
            hidden = self.encoder.normed(last)
            return hidden.clone() if last.residual is None else hidden  # never a buffer

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return one unit vector for each text, [N, D], fp32; zeros for a text without tokens."""
        with self._last_states(batch, every_token=False) as last:
            return self.encoder.pooled(last, batch)

    def cosine(self, batch: PackedBatch, references: Tensor, reference_index: Tensor) -> Tensor:
        """Score each text by its cosine with a row of `references`: [N], fp32."""
        with self._last_states(batch, every_token=False) as last:
            return self.encoder.scored(last, batch, references, reference_index)

    @property
    def stats(self) -> GraphStats:
        """What has been recorded, replayed, dropped and left to the encoder so far."""
        with self._counting:
            done = self._counts
            return GraphStats(done["captures"], done["replays"], done["evictions"], dict(self._plain))

    @property
    def graph_bytes(self) -> int:
        """Bytes on the device that `release` gives back: the recordings' pool and the buffers."""
        kept = [*(self._buffers or ()), *([] if self._zeros is None else [self._zeros])]
        num_bytes: int = sum(buffer.nbytes for buffer in kept)
        return self._recorder.num_bytes + num_bytes

    def release(self) -> None:
        """Drop all recordings and buffers, once the GPU is done with them; the next call makes new ones."""
        with self._lock:
            self._drop()
            self._too_large.clear()

    @contextmanager
    def _last_states(self, batch: PackedBatch, *, every_token: bool) -> Iterator[LastStates]:
        """Compute the layers. What comes may lie in the buffers: it is for launches inside the context."""
        with own_numerics(self.device, self.dtype):
            reason, filled = self._filled(batch, every_token=every_token)
            if filled is not None:
                with self._lock, self._turn():
                    last = self._replayed(filled, batch)
                    if last is not None:
                        yield last
                        return
            with self._counting:
                self._plain[reason] += 1
            yield self.encoder.forward(self.encoder.prepare(batch), every_token=every_token)

    def _filled(self, batch: PackedBatch, *, every_token: bool) -> tuple[str, FilledBatch | None]:
        """Fill a batch up to its bucket; before it, why the call is a plain one if there is no graph."""
        if self.encoder.attention not in self._recorder.attention:
            return "attention", None
        if not batch.num_tokens:
            return "empty", None
        if batch.num_tokens > self._max_tokens:
            return "tokens", None
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):  # PyTorch asks about the current device's stream
                if torch.cuda.is_current_stream_capturing():
                    return "capturing", None
        filled = fill_up(
            batch,
            tiled=self.encoder.attention == "triton",
            batch_invariant=self.encoder.batch_invariant,
            every_token=every_token or not self.encoder.first_tokens_suffice,
        )
        if filled is None:
            return "texts", None
        return ("memory", filled) if self._occurred(filled.bucket) else ("first", None)

    def _occurred(self, bucket: Bucket) -> bool:
        """Whether a bucket has occurred before; from now on it has."""
        with self._counting:
            before = bucket in self._seen
            self._seen[bucket] = None
            self._seen.move_to_end(bucket)
            if len(self._seen) > MAX_SEEN:
                self._seen.popitem(last=False)
        return before

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Have this thread's stream wait for the last use of the buffers, and note where its own ends."""
        if self.device.type != "cuda":
            yield
            return
        stream = torch.cuda.current_stream(self.device)
        if self._last_use is not None:
            stream.wait_event(self._last_use)
        try:
            yield
        finally:
            self._last_use = self._last_use or torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last_use.record(stream)

    def _replayed(self, filled: FilledBatch, batch: PackedBatch) -> LastStates | None:
        """Compute a batch in its bucket's buffers; None where its recording does not fit into memory."""
        if filled.bucket in self._too_large:
            return None
        slot = self._slots.get(filled.bucket)
        if slot is None:
            slot = self._recorded(filled, batch)
            if slot is None:
                return None
        else:
            self._slots.move_to_end(filled.bucket)
            self._write(slot, filled, batch)
        assert slot.recording is not None
        slot.recording.replay()
        self._count("replays")
        assert slot.last is not None
        return slot.last.head(len(batch.lengths) if slot.last.first_tokens else batch.num_tokens)

    def _recorded(self, filled: FilledBatch, batch: PackedBatch) -> _Slot | None:
        """Record a bucket with a batch, and keep it; None where it alone does not fit into memory."""
        slot = self._fitting(filled, batch)
        if slot is None and self._slots:
            # All others go, for graphs that share a pool give nothing back one by one.
            self._count("evictions", len(self._slots))
            self._drop()
            slot = self._fitting(filled, batch)
        if slot is None:
            self._drop()
            self._too_large.add(filled.bucket)
            return None
        self._slots[filled.bucket] = slot
        while len(self._slots) > self._max_graphs:
            self._slots.popitem(last=False)
            self._count("evictions")
        return slot

    def _fitting(self, filled: FilledBatch, batch: PackedBatch) -> _Slot | None:
        """Record a bucket with a batch; None where memory runs out, or there is more than allowed."""
        try:
            slot = self._new_slot(filled)
            self._write(slot, filled, batch)
            compute = partial(self._compute, slot, filled.bucket.every_token)
            slot.recording = self._recorder.capture(compute)
        except BaseException as error:
            if ran_out(error):
                return None
            if not self._slots:  # no graph holds the pool, and PyTorch takes a pool like that for a bug
                self._drop()
            raise
        self._count("captures")
        return slot if self.graph_bytes <= self._max_bytes else None

    def _new_slot(self, filled: FilledBatch) -> _Slot:
        """Give a bucket its part of the buffers, which are made for the largest one and shared by all."""
        bucket, largest = filled.bucket, token_bucket(self._max_tokens)
        if self._buffers is None:
            most = Bucket(largest, largest, every_token=True, block_m=64, shared=False).num_numbers
            states = torch.empty(2, largest, self.hidden_size, dtype=self.dtype, device=self.device)
            self._buffers = torch.empty(2 * largest + most, dtype=torch.int32, device=self.device), states
            filler = max(FINE_FROM, largest) // 2  # more than any bucket has
            self._zeros = torch.zeros(filler, dtype=torch.int32, device=self.device)
        tokens = self._buffers[0][: 2 * bucket.num_tokens].view(2, -1)
        numbers = self._buffers[0][2 * largest :][: bucket.num_numbers]
        cu_seqlens, tables = numbers[: bucket.num_texts + 1], None
        if bucket.block_m:
            from fastreward.kernels.attention import AttentionTables

            tiles = numbers[bucket.first_tile :].view(-1, 4)
            tables = AttentionTables(bucket.block_m, bucket.shared, tiles, cu_seqlens)
        attention, invariant = self.encoder.attention, self.encoder.batch_invariant
        layout = AttentionLayout(attention, cu_seqlens, filled.lengths, invariant, tables)
        return _Slot(tokens, numbers, PreparedBatch(tokens[0], tokens[1], layout))

    def _write(self, slot: _Slot, filled: FilledBatch, batch: PackedBatch) -> None:
        """Write a batch into its bucket's buffers, on the current stream."""
        assert self._zeros is not None
        # A filler token is 0, a token of any vocabulary, at position 0, which any table has. One launch, and
        # one copy from the host.
        filler = self._zeros[: filled.bucket.num_tokens - batch.num_tokens]
        torch.cat((batch.input_ids, filler, batch.position_ids, filler), out=slot.tokens.view(-1))
        upload_into(slot.numbers, filled.numbers)
        layout = slot.prepared.layout
        if layout.tables is None:  # the recorder says that it runs anew what reads lengths on the host
            slot.prepared = replace(slot.prepared, layout=replace(layout, lengths=filled.lengths))

    def _compute(self, slot: _Slot, every_token: bool) -> None:
        """Run the layers on a bucket's buffers: what is recorded."""
        assert self._buffers is not None
        result = self.encoder.forward(slot.prepared, every_token=every_token)
        states, residual = self._buffers[1][:, : len(result.states)]
        states.copy_(result.states)
        if result.residual is not None:
            residual.copy_(result.residual)
        slot.last = replace(result, states=states, residual=None if result.residual is None else residual)

    def _drop(self) -> None:
        """Forget recordings and buffers, once the GPU is done with them."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        if self._last_use is not None:
            self._last_use.synchronize()
        self._slots.clear()
        self._buffers = self._zeros = None
        self._recorder.release()

    def _count(self, name: str, times: int = 1) -> None:
        with self._counting:
            self._counts[name] += times
