"""Texts → packed batches: tokenised in parts, ahead of the batch in use, and cut by a token budget."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Final, NamedTuple, cast

import torch

from fastreward.packing import HostBatch, PackedBatch, lay_out, token_budget_batches
from fastreward.prefetch import prefetched
from fastreward.profiling.stages import stage
from fastreward.progress import ScoringProgress
from fastreward.tokenization import Tokenizer
from fastreward.word_cache import TokenIds

MAX_BATCH_TOKENS: Final[Mapping[str, int]] = {"cpu": 2048, "cuda": 65536}
"""Tokens of one batch: on a CPU the widest activations of a small encoder should stay in the last-level
cache; on a GPU a batch should be long enough to hide its launches."""

MIN_CHUNK_CHARS: Final = 32_768
"""Characters that are tokenised at a time, at least: fewer would not keep the tokenizer's threads busy, nor
gather the words that its cache lacks."""

BATCHES_OF_A_CALL: Final = 4
"""The first batch is made with nothing to overlap, so that a call should have several, unless they would be
of less than `MIN_BATCH_TOKENS`."""

MIN_BATCH_TOKENS: Final = 16_384

CHARS_OF_A_TOKEN: Final = 4
"""What is supposed of the first chunk; later ones go by what a token has had in the call so far."""

SPARE: Final = 1.05
"""What a chunk is above what the next batch lacks, so that no batch has to wait for two chunks."""


class TextBatch(NamedTuple):
    """A batch and whose it is.

    Attributes:
        texts: N texts. A GPU's batch is on the host: who uses it copies it, and mends it if there is no room.
        rows: Which texts of the call they are.
        truncated: How many of them were cut.
    """

    texts: HostBatch | PackedBatch
    rows: list[int]
    truncated: int


class Batcher:
    """Makes the batches of a call.

    Args:
        tokenizer: Texts → token ids.
        device: Where the batches are used: those of a CPU come ready, those of a GPU on the host.
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
        """Yield the batches of N texts, one at least, given as they are or as token ids; longest texts first.

        While a batch is used, a thread makes the next two.
        """
        sizes = [_size(text) for text in texts]
        laid = self.laid_out(texts, sizes)
        ahead = prefetched(laid) if sum(sizes) > self._first_chunk(sum(sizes)) else laid
        with ScoringProgress(sum(sizes), self._progress) as progress, closing(ahead):
            for batch in ahead:
                yield batch
                progress.advance(sum(sizes[row] for row in batch.rows))

    def laid_out(
        self, texts: Sequence[str] | Sequence[TokenIds], sizes: Sequence[int]
    ) -> Generator[TextBatch]:
        """Tokenise a chunk of texts after the other, each of what the next batch lacks, and yield batches.

        Args:
            texts: N texts.
            sizes: N, their characters.
        """
        room = self._tokenizer.max_content
        specials = self._tokenizer.max_length - room
        order = sorted(range(len(texts)), key=lambda row: -sizes[row])
        budget = self._batch_tokens(sum(sizes))
        chunk_size, done, chars, tokens = self._first_chunk(sum(sizes)), 0, 0, 0
        rows: list[int] = []
        content: list[TokenIds] = []
        lengths: list[int] = []
        while done < len(order):
            chunk = _chunk(order, done, sizes, chunk_size)
            done += len(chunk)
            rows += chunk
            content += self._content([texts[row] for row in chunk])
            lengths += [min(len(ids), room) + specials for ids in content[len(lengths) :]]
            chars += sum(sizes[row] for row in chunk)
            tokens += sum(lengths[-len(chunk) :])
            batches = token_budget_batches(lengths, budget)
            # The last batch has room left, which the next chunk fills.
            rest = batches.pop() if done < len(order) else []
            for batch in batches:
                yield self._lay_out([rows[index] for index in batch], [content[index] for index in batch])
            rows, content = [rows[index] for index in rest], [content[index] for index in rest]
            lengths = [lengths[index] for index in rest]
            lacking = SPARE * budget - sum(lengths)
            chunk_size = max(MIN_CHUNK_CHARS, round(lacking * chars / max(1, tokens)))

    def _lay_out(self, rows: list[int], content: list[TokenIds]) -> TextBatch:
        """Cut texts to the length there is, and lay them out between their special tokens."""
        room = self._tokenizer.max_content
        truncated = sum(len(ids) > room for ids in content)
        cut = [ids[:room] for ids in content] if truncated else content
        with stage("copy"):
            laid = lay_out(cut, prefix=self._tokenizer.prefix, suffix=self._tokenizer.suffix)
            # A CPU's takes no copy; a GPU's is copied where a copy that finds no room can be mended.
            done = laid.to(self._device) if self._device.type == "cpu" else laid
        return TextBatch(done, rows, truncated)

    def _content(self, texts: Sequence[str | TokenIds]) -> list[TokenIds]:
        """Token ids of texts, or those that were given."""
        if not isinstance(texts[0], str):
            return cast(list[TokenIds], texts)
        with stage("tokenise"):
            return self._tokenizer.content(cast(list[str], texts))

    def _first_chunk(self, size: int) -> int:
        """Characters of the first chunk in a call of so many."""
        return max(MIN_CHUNK_CHARS, CHARS_OF_A_TOKEN * self._batch_tokens(size))

    def _batch_tokens(self, size: int) -> int:
        """Tokens of a batch in a call of so many characters."""
        share = size // (CHARS_OF_A_TOKEN * BATCHES_OF_A_CALL)
        return min(self.max_batch_tokens, max(MIN_BATCH_TOKENS, share))


def _size(text: str | TokenIds) -> int:
    """How much work a text is, in characters; an empty one is some too."""
    return 1 + (len(text) if isinstance(text, str) else CHARS_OF_A_TOKEN * len(text))


def _chunk(order: Sequence[int], begin: int, sizes: Sequence[int], chunk_size: int) -> list[int]:
    """The rows of `order` from `begin` on that have `chunk_size` characters together, or a little more."""
    end, room = begin, chunk_size
    while end < len(order) and room > 0:
        room -= sizes[order[end]]
        end += 1
    return list(order[begin:end])
