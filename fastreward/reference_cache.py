"""Vectors of texts, kept within a bound of bytes; those of references, encoded once a run."""

from __future__ import annotations

import sys
import threading
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import torch
from torch import Tensor

from fastreward.cuda_streams import Written, used_here
from fastreward.errors import InputError

_MOVED_AT_ONCE: Final = 1024  # vectors that one copy takes from device to device; bounds the memory it needs


@dataclass(frozen=True)
class Lookup:
    """Vectors of the texts that were asked for.

    Attributes:
        vectors: [R, D], fp32, in the order of the texts; not to be written to.
        hits: Distinct texts that were known.
        misses: Distinct texts that were encoded.
    """

    vectors: Tensor
    hits: int
    misses: int


class BoundedVectors(ABC):
    """Vectors of texts within a bound of bytes; safe to use from several threads and CUDA streams.

    A text is anything hashable whose size `sys.getsizeof` knows: a string, or the bytes of token ids. One
    that several threads ask for at once is encoded by one of them. A subclass says how vectors are kept, and
    which of them go when there is no room.

    Args:
        max_bytes: Bound on the vectors and texts that are kept; 0 keeps nothing.

    Raises:
        InputError: If `max_bytes` is negative.
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InputError("a cache size of 0 bytes or more", str(max_bytes), "Pass 0 to keep nothing.")
        self.max_bytes = max_bytes
        self._size_bytes = 0
        self._written = Written()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of the vectors and texts that are kept now."""
        return self._size_bytes

    @abstractmethod
    def __len__(self) -> int:
        """How many texts are kept."""

    def look_up(self, texts: Sequence[str | bytes], encode: Callable[[list[str | bytes]], Tensor]) -> Lookup:
        """Return the vectors of distinct texts, encoding those that are not known.

        Args:
            texts: R distinct texts, at least one.
            encode: Gives the vectors [M, D] of M texts.
        """
        with self._lock:
            missing = [text for text in texts if not self._knows(text)]
            new = encode(missing) if missing else None
            vectors = self._gather(texts, missing, new)
            if new is not None:
                try:
                    self._keep(missing, new)
                except torch.OutOfMemoryError:
                    pass  # what has no room is encoded anew when it is asked for again
                finally:
                    self._written.mark(new.device)
        return Lookup(vectors, hits=len(texts) - len(missing), misses=len(missing))

    def move(self, device: torch.device) -> None:
        """Take all vectors to another device, as they are. No stream may be using them meanwhile."""
        with self._lock:
            self._move(device)
            self._written.mark(device)

    # What follows is called under the lock.

    @abstractmethod
    def _knows(self, text: str | bytes) -> bool:
        """Whether the vector of a text is kept."""

    @abstractmethod
    def _gather(self, texts: Sequence[str | bytes], missing: list[str | bytes], new: Tensor | None) -> Tensor:
        """Put known vectors and new ones, those of `missing`, in the order of the texts: [R, D]."""

    @abstractmethod
    def _keep(self, texts: list[str | bytes], vectors: Tensor) -> None:
        """Take in new vectors [M, D], within the bound."""

    @abstractmethod
    def _move(self, device: torch.device) -> None:
        """Take all vectors to another device."""


class ReferenceCache(BoundedVectors):
    """Least-recently-used cache from text to vector, each vector a copy of its own.

    Args and errors are those of `BoundedVectors`.

    Example:
        >>> cache = ReferenceCache(max_bytes=1 << 20)
        >>> cache.look_up(["a"], lambda texts: torch.ones(len(texts), 2)).misses
        1
        >>> cache.look_up(["a", "b"], lambda texts: torch.ones(len(texts), 2)).hits
        1
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._vectors: OrderedDict[str | bytes, Tensor] = OrderedDict()

    def __len__(self) -> int:
        return len(self._vectors)

    def forget(self, texts: Iterable[str | bytes]) -> None:
        """Drop the vectors of texts, known or not: they will be encoded when they are asked for again."""
        with self._lock:
            for text in texts:
                if (vector := self._vectors.pop(text, None)) is not None:
                    self._size_bytes -= _size_bytes(text, vector)

    def _knows(self, text: str | bytes) -> bool:
        return text in self._vectors

    def _gather(self, texts: Sequence[str | bytes], missing: list[str | bytes], new: Tensor | None) -> Tensor:
        found = {} if new is None else dict(zip(missing, new, strict=True))
        for text in texts:
            if text not in found:
                self._vectors.move_to_end(text)
                found[text] = self._vectors[text]
        self._written.wait(found[texts[0]].device)
        # Memory that is dropped now or later is not used anew before this stream has read it.
        used_here(*found.values())
        return torch.stack([found[text] for text in texts])

    def _keep(self, texts: list[str | bytes], vectors: Tensor) -> None:
        for text, vector in zip(texts, vectors, strict=True):
            size = _size_bytes(text, vector)
            if size > self.max_bytes:
                continue
            # A copy of its own: a row of a larger tensor would keep all of it alive.
            self._vectors[text] = vector.clone()
            self._size_bytes += size
            while self._size_bytes > self.max_bytes:
                self._size_bytes -= _size_bytes(*self._vectors.popitem(last=False))

    def _move(self, device: torch.device) -> None:
        texts = iter(self._vectors)
        moved: OrderedDict[str | bytes, Tensor] = OrderedDict()
        while part := list(islice(texts, _MOVED_AT_ONCE)):
            vectors = torch.stack([self._vectors[text] for text in part]).to(device)
            moved |= {text: vector.clone() for text, vector in zip(part, vectors, strict=True)}
        self._vectors = moved


def _size_bytes(text: str | bytes, vector: Tensor) -> int:
    return sys.getsizeof(text) + vector.numel() * vector.element_size()
