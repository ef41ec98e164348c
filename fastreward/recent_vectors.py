"""Vectors of the texts of recent calls: rewards that share a scorer ask for the same ones in turn."""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastreward.cuda_streams import Written, used_here
from fastreward.errors import InputError
from fastreward.packing import upload
from fastreward.reference_cache import Lookup

_ENTRY_BYTES: Final = 200  # what a text takes beside its characters: entries of a dict and of a list, a tuple


@dataclass(eq=False)
class _Block:
    """What one call had encoded: B texts and their vectors [B, D]."""

    texts: list[str | bytes]
    vectors: Tensor

    @property
    def size_bytes(self) -> int:
        entries = sum(sys.getsizeof(text) + _ENTRY_BYTES for text in self.texts)
        return entries + self.vectors.numel() * self.vectors.element_size()


class _Rows(NamedTuple):
    """Where a call's vectors lie in one block: places in the call, rows in the block."""

    places: list[int]
    rows: list[int]


class RecentVectors:
    """The vectors of the latest calls, first in, first out; safe to use from several threads and streams.

    They are kept as they were made, a block for each call, and not copied row by row. A text that several
    threads ask for at once is encoded by one of them.

    Args:
        max_bytes: Bound on the vectors and texts that are kept; 0 keeps nothing. A call whose new texts are
            more than that keeps none of them.

    Raises:
        InputError: If `max_bytes` is negative.

    Example:
        >>> recent = RecentVectors(max_bytes=1 << 20)
        >>> recent.look_up(["a", "b"], lambda texts: torch.ones(len(texts), 2)).misses
        2
        >>> recent.look_up(["b", "c"], lambda texts: torch.ones(len(texts), 2)).hits
        1
    """

    def __init__(self, max_bytes: int) -> None:
        if max_bytes < 0:
            raise InputError("a cache size of 0 bytes or more", str(max_bytes), "Pass 0 to keep nothing.")
        self.max_bytes = max_bytes
        self._size_bytes = 0
        self._blocks: deque[_Block] = deque()
        self._rows: dict[str | bytes, tuple[_Block, int]] = {}
        self._written = Written()
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes of the vectors and texts that are kept now."""
        return self._size_bytes

    def __len__(self) -> int:
        return len(self._rows)

    def look_up(self, texts: Sequence[str | bytes], encode: Callable[[list[str | bytes]], Tensor]) -> Lookup:
        """Return the vectors of distinct texts, encoding those that are not known.

        Args:
            texts: N distinct texts, at least one.
            encode: Gives the vectors [M, D] of M texts.
        """
        with self._lock:
            missing = [text for text in texts if text not in self._rows]
            new = _Block(missing, encode(missing)) if missing else None
            vectors = self._gather(texts, new)
            if new is not None:
                self._keep(new)
                self._written.mark(new.vectors.device)
        return Lookup(vectors, hits=len(texts) - len(missing), misses=len(missing))

    def clear(self) -> None:
        """Forget all vectors."""
        with self._lock:
            self._blocks.clear()
            self._rows.clear()
            self._size_bytes = 0

    def move(self, device: torch.device) -> None:
        """Take all vectors to another device, as they are. No stream may be using them meanwhile."""
        with self._lock:
            moved = [block.vectors.to(device) for block in self._blocks]
            for block, vectors in zip(self._blocks, moved, strict=True):
                block.vectors = vectors
            self._written.mark(device)

    def _gather(self, texts: Sequence[str | bytes], new: _Block | None) -> Tensor:
        """Put the vectors of known and new texts in the order of the texts."""
        fresh = {} if new is None else {text: (new, row) for row, text in enumerate(new.texts)}
        by_block: dict[_Block, _Rows] = {}
        for place, text in enumerate(texts):
            block, row = fresh.get(text) or self._rows[text]
            rows = by_block.setdefault(block, _Rows([], []))
            rows.places.append(place)
            rows.rows.append(row)
        blocks = list(by_block)
        first = blocks[0].vectors
        self._written.wait(first.device)
        used_here(*(block.vectors for block in blocks))
        if len(blocks) == 1 and by_block[blocks[0]].rows == list(range(len(first))):
            return first
        numbers = [number for rows in by_block.values() for number in (rows.places, rows.rows)]
        index = iter(upload([np.array(each, dtype=np.int32) for each in numbers], first.device))
        gathered = torch.empty((len(texts), first.shape[1]), dtype=first.dtype, device=first.device)
        for block in blocks:
            places, rows_of_block = next(index), next(index)
            gathered[places] = block.vectors[rows_of_block]
        return gathered

    def _keep(self, block: _Block) -> None:
        size = block.size_bytes
        if size > self.max_bytes:
            return
        self._blocks.append(block)
        self._rows |= {text: (block, row) for row, text in enumerate(block.texts)}
        self._size_bytes += size
        while self._size_bytes > self.max_bytes:
            oldest = self._blocks.popleft()
            self._size_bytes -= oldest.size_bytes
            for text in oldest.texts:
                del self._rows[text]
