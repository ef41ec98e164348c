"""Vectors of the texts of recent calls: rewards that share a scorer ask for the same ones in turn."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastreward.cuda_streams import used_here
from fastreward.packing import upload
from fastreward.reference_cache import BoundedVectors

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


class RecentVectors(BoundedVectors):
    """The vectors of the latest calls, first in, first out.

    They are kept as they were made, a block for each call, and not copied row by row. Args and errors are
    those of `BoundedVectors`; a call whose new texts are more than `max_bytes` keeps none of them.

    Example:
        >>> recent = RecentVectors(max_bytes=1 << 20)
        >>> recent.look_up(["a", "b"], lambda texts: torch.ones(len(texts), 2)).misses
        2
        >>> recent.look_up(["b", "c"], lambda texts: torch.ones(len(texts), 2)).hits
        1
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes)
        self._blocks: deque[_Block] = deque()
        self._rows: dict[str | bytes, tuple[_Block, int]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def clear(self) -> None:
        """Forget all vectors."""
        with self._lock:
            self._blocks.clear()
            self._rows.clear()
            self._size_bytes = 0

    def _knows(self, text: str | bytes) -> bool:
        return text in self._rows

    def _gather(self, texts: Sequence[str | bytes], missing: list[str | bytes], new: Tensor | None) -> Tensor:
        fresh = {} if new is None else _rows_of(_Block(missing, new))
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

    def _keep(self, texts: list[str | bytes], vectors: Tensor) -> None:
        block = _Block(texts, vectors)
        size = block.size_bytes
        if size > self.max_bytes:
            return
        self._blocks.append(block)
        self._rows |= _rows_of(block)
        self._size_bytes += size
        while self._size_bytes > self.max_bytes:
            oldest = self._blocks.popleft()
            self._size_bytes -= oldest.size_bytes
            for text in oldest.texts:
                del self._rows[text]

    def _move(self, device: torch.device) -> None:
        moved = [block.vectors.to(device) for block in self._blocks]
        for block, vectors in zip(self._blocks, moved, strict=True):
            block.vectors = vectors


def _rows_of(block: _Block) -> dict[str | bytes, tuple[_Block, int]]:
    return {text: (block, row) for row, text in enumerate(block.texts)}
