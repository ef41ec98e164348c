"""One encoder or several copies of it, on one device or several, that share the batches of a call."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from dataclasses import dataclass, field
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.batching import Batcher, TextBatch
from fastreward.configuration import ScorerStats
from fastreward.cuda_streams import new_stream, used_here
from fastreward.encoders.base import Encoder
from fastreward.out_of_memory import Computed, Function, Recovery
from fastreward.packing import HostBatch, PackedBatch
from fastreward.profiling.stages import stage


@dataclass
class Replica:
    """A copy of the encoder.

    Attributes:
        device: Where it is.
        encoder: The copy; None while the engine is asleep.
    """

    device: torch.device
    encoder: Encoder | None = field(default=None, repr=False)


Compute: TypeAlias = Callable[[int, PackedBatch, NDArray[np.int32]], tuple[Tensor, ...]]
"""From a replica's number, N texts on its device, and which texts of the call they are, to results there."""


class Replicas:
    """Computes the batches of a call, each on whichever replica is free.

    A single replica works in the calling thread, on its current stream. Several have a thread each as long as
    the call lasts, and on CUDA streams of their own: a replica takes the next batch once all but one of its
    earlier ones are done. It copies them to its device itself; results come back to the first one's.

    Args:
        devices: One or more, of one type; one that is named twice has two replicas.
        batcher: Makes the batches.
    """

    def __init__(self, devices: Sequence[torch.device], batcher: Batcher) -> None:
        self.members = [Replica(device) for device in devices]
        self._batcher = batcher
        self._recovery = Recovery(batcher)
        self._streams = [_streams(device, self.home) for device in devices] if len(devices) > 1 else []

    @property
    def home(self) -> torch.device:
        """Where results come back."""
        return self.members[0].device

    def compute(self, batches: Generator[TextBatch], function: Compute) -> tuple[list[Computed], ScorerStats]:
        """Compute all batches of a call.

        Returns:
            What was computed, in any order, with batches that did not fit in parts; and what they were.
        """
        shared = _Shared(batches)
        if len(self.members) == 1:
            return list(self._taken(shared, partial(_encoded, function, 0, self.home))), shared.stats
        ready = [stream.record_event() for stream in _current_streams(self.home)]
        with ThreadPoolExecutor(len(self.members), thread_name_prefix="fastreward-replica") as threads:
            numbers = range(len(self.members))
            work = [
                threads.submit(copy_context().run, self._work, number, shared, function, ready)
                for number in numbers
            ]
            try:
                finished = [each.result() for each in work]  # the first that failed raises here
            except BaseException:
                shared.stop()
                raise
        done: list[Computed] = []
        for computed, written in finished:
            for event in written:
                torch.cuda.current_stream(self.home).wait_event(event)
            used_here(*(result for part in computed for result in part.results))
            done += computed
        return done, shared.stats

    def _work(
        self, number: int, shared: _Shared, function: Compute, ready: list[torch.cuda.Event]
    ) -> tuple[list[Computed], list[torch.cuda.Event]]:
        """Take batches until there are none; also return the event behind the last result."""
        device = self.members[number].device
        streams = self._streams[number]
        busy: list[torch.cuda.Event] = []

        def there_and_back(texts: HostBatch, rows: NDArray[np.int32]) -> tuple[Tensor, ...]:
            if len(busy) > 1:
                with stage("wait"):
                    busy.pop(0).synchronize()
            results = _encoded(function, number, device, texts, rows)
            busy.extend(stream.record_event() for stream in streams[-1:])
            return tuple(result.to(self.home) for result in results)

        with ExitStack() as contexts:
            for stream in streams:
                contexts.enter_context(torch.cuda.stream(stream))
                for event in ready:
                    stream.wait_event(event)
            try:
                done = list(self._taken(shared, there_and_back))
            except BaseException:
                shared.stop()
                raise
            return done, [stream.record_event() for stream in streams[:1]]

    def _taken(self, shared: _Shared, function: Function) -> Iterator[Computed]:
        while (batch := shared.next()) is not None:
            yield from self._recovery.compute(batch.texts, batch.rows, function)


class _Shared:
    """The batches of a call, which several threads take in turn, and what was in them."""

    def __init__(self, batches: Generator[TextBatch]) -> None:
        self._texts = self._tokens = self._truncated = 0
        self._batches: Iterator[TextBatch] | None = batches
        self._lock = threading.Lock()

    def next(self) -> TextBatch | None:
        """The next batch; None when there is none left, or another thread has failed."""
        with self._lock:
            batches = self._batches  # read once: another thread may stop it now
            batch = None if batches is None else next(batches, None)
            if batch is not None:
                self._texts += len(batch.rows)
                self._tokens += batch.texts.num_tokens
                self._truncated += batch.truncated
            return batch

    @property
    def stats(self) -> ScorerStats:
        """What was in the batches that were given out."""
        return ScorerStats(encoded_texts=self._texts, tokens=self._tokens, truncated_texts=self._truncated)

    def stop(self) -> None:
        """Give out no more batches."""
        self._batches = None


def _encoded(
    function: Compute,
    number: int,
    device: torch.device,
    texts: HostBatch,
    rows: NDArray[np.int32],
) -> tuple[Tensor, ...]:
    """Copy a batch to a replica's device and compute it."""
    with stage("copy"):
        batch = texts.to(device)
    with stage("encode"):
        return function(number, batch, rows)


def _streams(device: torch.device, home: torch.device) -> list[torch.cuda.Stream]:
    """Streams of a replica's own: at home, where batches and results are, and on its own device."""
    if device.type != "cuda":
        return []
    return [new_stream(place) for place in dict.fromkeys((home, device))]


def _current_streams(device: torch.device) -> list[torch.cuda.Stream]:
    return [torch.cuda.current_stream(device)] if device.type == "cuda" else []
