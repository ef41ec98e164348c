"""Texts → packed batches: tokenised in parts, one part ahead of the one in use, and cut by a token budget."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple, cast

import torch

from fastreward.packing import PackedBatch, pack, token_budget_batches
from fastreward.prefetch import prefetched
from fastreward.progress import ScoringProgress
from fastreward.tokenization import Tokenizer
from fastreward.word_cache import TokenIds

MAX_BATCH_TOKENS: Final[Mapping[str, int]] = {"cpu": 2048, "cuda": 65536}
"""Tokens of one batch: on a CPU the widest activations of a small encoder should stay in the last-level
cache; on a GPU a batch should be long enough to hide its launches."""

MIN_PART: Final[Mapping[str, int]] = {"cpu": 32_768, "cuda": 262_144}
"""Characters that are tokenised at a time, at least. About 8,000 tokens keep a CPU busy for long. On a GPU,
batches, which are made within a part, should be full: a small encoder's work must outlast its launches."""

MAX_PARTS: Final = 16
"""The first part is tokenised with nothing to overlap: a sixteenth of the work."""

CHARS_OF_A_TOKEN: Final = 4


class TextBatch(NamedTuple):
    """A batch and whose it is.

    Attributes:
        packed: N texts.
        rows: Which texts of the call they are.
        truncated: How many of them were cut.
    """

    packed: PackedBatch
    rows: list[int]
    truncated: int


class Batcher:
    """Makes the batches of a call.

    Args:
        tokenizer: Texts → token ids.
        device: Where the batches are wanted.
        max_batch_tokens: Tokens of one batch at most.
        progress: Show a progress bar: True always, False never, None when it takes seconds on a terminal.
    """

    def __init__(
        self, tokenizer: Tokenizer, device: torch.device, max_batch_tokens: int, progress: bool | None
    ) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._tokenizer = tokenizer
        self._device = device
        self._progress = progress

    def batches(self, texts: Sequence[str] | Sequence[TokenIds]) -> Generator[TextBatch]:
        """Yield the batches of N texts, one at least, given as they are or as token ids.

        While one part of the texts is used, a thread tokenises the next.
        """
        sizes = [_size(text) for text in texts]
        parts = prefetched(_parts(sizes, MIN_PART[self._device.type]), partial(self.prepare, texts))
        with ScoringProgress(sum(sizes), self._progress) as progress, closing(parts):
            for part in parts:
                for chosen in part.batches:
                    batch = pack([part.sequences[index] for index in chosen], self._device)
                    rows = [part.rows[index] for index in chosen]
                    yield TextBatch(batch, rows, sum(part.truncated[index] for index in chosen))
                    progress.advance(sum(sizes[row] for row in rows))

    def prepare(self, texts: Sequence[str] | Sequence[TokenIds], rows: list[int]) -> Part:
        """Tokenise some of the texts, cut and frame them, and batch them by their true lengths."""
        room = self._tokenizer.max_content
        chosen = [texts[row] for row in rows]
        content = cast(list[TokenIds], chosen)
        if isinstance(chosen[0], str):
            content = self._tokenizer.content(cast(list[str], chosen))
        sequences = [self._tokenizer.frame(ids[:room]) for ids in content]
        batches = token_budget_batches([len(sequence) for sequence in sequences], self.max_batch_tokens)
        return Part(rows, sequences, [len(ids) > room for ids in content], batches)


@dataclass(frozen=True)
class Part:
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
