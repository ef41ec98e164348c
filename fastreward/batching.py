"""Texts → packed batches: tokenised in parts, ahead of the batch in use, and cut by a token budget."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from typing import Final, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from fastreward.packing import HostBatch, lay_out, token_budget_cuts
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
"""A call should have several batches, that they overlap, unless they would be of less than
`MIN_BATCH_TOKENS`."""

MIN_BATCH_TOKENS: Final = 16_384
"""Also what the first batch has at most, for it is made with nothing to overlap."""

CHARS_OF_A_TOKEN: Final = 4
"""What is supposed of the first chunk; later ones go by what a token has had in the call so far."""

SPARE: Final = 1.05
"""What a chunk is above what the next batch lacks, so that no batch has to wait for two chunks."""


class TextBatch(NamedTuple):
    """A batch and whose it is.

    Attributes:
        texts: N texts. Who uses them copies them to a device, where a copy that finds no room can be mended.
        rows: [N], int32, which texts of the call they are.
        truncated: How many of them were cut.
    """

    texts: HostBatch
    rows: NDArray[np.int32]
    truncated: int


class Batcher:
    """Makes the batches of a call.

    Args:
        tokenizer: Texts → token ids.
        max_batch_tokens: Tokens of one batch at most.
        progress: Show a progress bar: True always, False never, None when it takes seconds on a terminal.
    """

    def __init__(self, tokenizer: Tokenizer, max_batch_tokens: int, progress: bool | None) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._tokenizer = tokenizer
        self._progress = progress

    def batches(self, texts: Sequence[str] | Sequence[TokenIds]) -> Generator[TextBatch]:
        """Yield the batches of N texts, one at least, given as they are or as token ids; longest texts first.

        While a batch is used, a thread makes the next two. The largest is the first or the second.
        """
        sizes = _sizes(texts)
        total = int(sizes.sum())
        laid = self.laid_out(texts, sizes)
        ahead = prefetched(laid) if total > self._first_chunk(total) else laid
        with ScoringProgress(total, self._progress) as progress, closing(ahead):
            for batch in ahead:
                yield batch
                progress.advance(int(sizes[batch.rows].sum()))

    def laid_out(
        self, texts: Sequence[str] | Sequence[TokenIds], sizes: NDArray[np.int64]
    ) -> Generator[TextBatch]:
        """Tokenise a chunk of texts after the other, each of what the next batch lacks, and yield batches.

        Args:
            texts: N texts.
            sizes: [N], their characters.
        """
        room = self._tokenizer.max_content
        specials = self._tokenizer.max_length - room
        order = np.argsort(-sizes, kind="stable").astype(np.int32)
        ends = np.cumsum(sizes[order])  # characters up to each text, and with it
        full, budget = self._batch_tokens(int(ends[-1])), self._first_batch_tokens(int(ends[-1]))
        chunk_size, done, tokens = self._first_chunk(int(ends[-1])), 0, 0
        rows = order[:0]
        content: list[TokenIds] = []
        lengths = np.zeros(0, dtype=np.int64)
        while done < len(order):
            chunk = order[done : _chunk_end(ends, done, chunk_size)]
            done += len(chunk)
            found = self._content([texts[row] for row in chunk.tolist()])
            found_lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
            rows, content = np.concatenate([rows, chunk]), content + found
            lengths = np.concatenate([lengths, np.minimum(found_lengths, room) + specials])
            tokens += int(lengths[-len(chunk) :].sum())
            by_length, cuts = token_budget_cuts(lengths, budget)
            # The last batch has room left, which the next chunk fills.
            rest = by_length[cuts.pop()] if done < len(order) else by_length[:0]
            for cut in cuts:
                batch = by_length[cut]
                yield self._lay_out(rows[batch], [content[index] for index in batch.tolist()])
                budget = full
            rows, content = rows[rest], [content[index] for index in rest.tolist()]
            lengths = lengths[rest]
            lacking = SPARE * budget - int(lengths.sum())
            chunk_size = max(MIN_CHUNK_CHARS, round(lacking * int(ends[done - 1]) / max(1, tokens)))

    def _lay_out(self, rows: NDArray[np.int32], content: list[TokenIds]) -> TextBatch:
        """Cut texts to the length there is, and lay them out between their special tokens."""
        room = self._tokenizer.max_content
        truncated = sum(len(ids) > room for ids in content)
        cut = [ids[:room] for ids in content] if truncated else content
        with stage("copy"):
            laid = lay_out(cut, prefix=self._tokenizer.prefix, suffix=self._tokenizer.suffix)
        return TextBatch(laid, rows, truncated)

    def _content(self, texts: Sequence[str | TokenIds]) -> list[TokenIds]:
        """Token ids of texts, or those that were given."""
        if not isinstance(texts[0], str):
            return cast(list[TokenIds], texts)
        with stage("tokenise"):
            return self._tokenizer.content(cast(list[str], texts))

    def _first_chunk(self, size: int) -> int:
        """Characters of the first chunk in a call of so many."""
        return max(MIN_CHUNK_CHARS, CHARS_OF_A_TOKEN * self._first_batch_tokens(size))

    def _first_batch_tokens(self, size: int) -> int:
        """Tokens of the first batch in a call of so many characters."""
        return min(MIN_BATCH_TOKENS, self._batch_tokens(size))

    def _batch_tokens(self, size: int) -> int:
        """Tokens of a batch in a call of so many characters."""
        share = size // (CHARS_OF_A_TOKEN * BATCHES_OF_A_CALL)
        return min(self.max_batch_tokens, max(MIN_BATCH_TOKENS, share))


def _sizes(texts: Sequence[str] | Sequence[TokenIds]) -> NDArray[np.int64]:
    """How much work each text is, in characters; an empty one is some too: [N]."""
    lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
    return 1 + (1 if isinstance(texts[0], str) else CHARS_OF_A_TOKEN) * lengths


def _chunk_end(ends: NDArray[np.int64], begin: int, chunk_size: int) -> int:
    """Where a chunk ends that begins with text `begin` and has `chunk_size` characters, or a little more.

    `ends`, [N], has the characters up to each text, and with it.
    """
    before = int(ends[begin - 1]) if begin else 0
    return min(len(ends), int(np.searchsorted(ends, before + chunk_size)) + 1)
