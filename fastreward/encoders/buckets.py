"""Filling a batch up to a bucket, a number of tokens and of texts: batches of like size get one shape.

- **Filler tokens** form texts of `PLACEHOLDER_TOKENS` behind the batch's own, the last one shorter: each is
  one tile of the attention, so that they cost little there. Filler texts have no tokens.
- **Tiles.** The attention's tables have room for the most tiles that the bucket's texts could need; those
  that a batch does not need have no rows and end at once. Whether tiles are long, or shared, the batch's own
  texts decide, and it is part of the bucket: the launches are those that the batch would have had, on more
  rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastreward.ops.attention_tiles import cut, way_of_cutting
from fastreward.packing import PackedBatch

PLACEHOLDER_TOKENS: Final = 64
"""Rows of the attention's smaller tile: longer filler texts would have more pairs of tokens for nothing."""

FINE_FROM: Final = 1024
"""Tokens from which buckets lie a quarter of a power of two apart, so that a fifth of the work at most is
filler. Below, where launches cost more than the work, they are powers of two."""

TOKENS_OF_A_TEXT: Final = 16
"""A bucket has room for a text in every 16 tokens at least: an empty one costs next to nothing, and another
bucket costs a recording."""


class Bucket(NamedTuple):
    """What batches have in common that can share a recording.

    Attributes:
        num_tokens: T, filler included.
        num_texts: N, filler included.
        every_token: Whether the last layer is computed for all tokens.
        block_m: Rows of a tile of the attention at most; 0 where it has no tiles.
        shared: Whether several texts may share a tile.
    """

    num_tokens: int
    num_texts: int
    every_token: bool
    block_m: int
    shared: bool

    @property
    def num_tiles(self) -> int:
        """P, the room for tiles: any N texts of T tokens can be cut into as many."""
        if not self.block_m:
            return 0
        return most_tiles(self.num_tokens, self.num_texts, self.block_m, shared=self.shared)

    @property
    def first_tile(self) -> int:
        """Where tiles begin behind N + 1 offsets: at 16 bytes or a multiple, as kernels are compiled for."""
        return -(-(self.num_texts + 1) // 4) * 4

    @property
    def num_numbers(self) -> int:
        """Offsets and tiles, in numbers of 4 bytes."""
        return self.first_tile + 4 * self.num_tiles


@dataclass(frozen=True)
class FilledBatch:
    """A batch filled up to its bucket, on the host.

    Attributes:
        bucket: The bucket.
        lengths: The N lengths in tokens, filler included.
        numbers: [`bucket.num_numbers`]: N + 1 offsets, and from `bucket.first_tile` on P tiles of 4.
    """

    bucket: Bucket
    lengths: tuple[int, ...]
    numbers: NDArray[np.int32]


def fill_up(
    batch: PackedBatch, *, tiled: bool, batch_invariant: bool, every_token: bool
) -> FilledBatch | None:
    """Fill a batch up to its bucket.

    Args:
        batch: N texts, at least one token.
        tiled: Whether the attention has tiles: Triton's.
        batch_invariant: Whether a tile must not hold two texts, nor its size depend on them.
        every_token: Whether the last layer is computed for all tokens.

    Returns:
        The filled batch, or None if it has more texts than its bucket has tokens: nearly all without tokens.

    Example:
        >>> import torch
        >>> from fastreward.packing import pack
        >>> batch = pack([[5] * 60, [6] * 30], torch.device("cpu"))
        >>> filled = fill_up(batch, tiled=False, batch_invariant=False, every_token=True)
        >>> filled.bucket.num_tokens, filled.lengths
        (128, (60, 30, 38, 0, 0, 0, 0, 0))
    """
    num_tokens = token_bucket(batch.num_tokens)
    full, rest = divmod(num_tokens - batch.num_tokens, PLACEHOLDER_TOKENS)
    filler = (PLACEHOLDER_TOKENS,) * full + (rest,) * (rest > 0)
    num_texts = text_bucket(len(batch.lengths) + len(filler), num_tokens)
    if num_texts > num_tokens:
        return None
    lengths = batch.lengths + filler
    offsets = np.full(num_texts + 1, num_tokens, dtype=np.int32)
    offsets[0] = 0
    np.cumsum(np.array(lengths, dtype=np.int32), out=offsets[1 : len(lengths) + 1])
    lengths += (0,) * (num_texts - len(lengths))
    bucket = Bucket(num_tokens, num_texts, every_token, block_m=0, shared=False)
    tiles = np.empty((0, 4), dtype=np.int32)
    if tiled:
        block_m, shared = way_of_cutting(batch.lengths, batch_invariant=batch_invariant)
        bucket = bucket._replace(block_m=block_m, shared=shared)
        tiles = cut(offsets, block_m, shared=shared)
        assert len(tiles) <= bucket.num_tiles
    numbers = np.zeros(bucket.num_numbers, dtype=np.int32)  # from the last tile on, tiles without rows
    numbers[: num_texts + 1] = offsets
    numbers[bucket.first_tile :][: tiles.size] = tiles.ravel()
    return FilledBatch(bucket, lengths, numbers)


def token_bucket(num_tokens: int) -> int:
    """Round up to a bucket's tokens: 64, 128 … 1,024, then in quarters of a power of two.

    Example:
        >>> [token_bucket(n) for n in (1, 65, 1024, 1025, 1700, 16384)]
        [64, 128, 1024, 1280, 1792, 16384]
    """
    if num_tokens <= FINE_FROM:
        return max(PLACEHOLDER_TOKENS, 1 << (num_tokens - 1).bit_length())
    step = 1 << ((num_tokens - 1).bit_length() - 3)
    return -(-num_tokens // step) * step


def text_bucket(num_texts: int, num_tokens: int) -> int:
    """Round up to a bucket's texts: a power of two, but room for one in every `TOKENS_OF_A_TEXT` tokens.

    Example:
        >>> text_bucket(3, 1280), text_bucket(81, 1280)
        (80, 128)
    """
    return max(num_tokens // TOKENS_OF_A_TEXT, 1 << (num_texts - 1).bit_length())


def most_tiles(num_tokens: int, num_texts: int, block_m: int, *, shared: bool) -> int:
    """Bound the attention's tiles for any N texts of T tokens in all.

    A text leaves at most one tile unfilled: T // block_m + N. Where short texts share tiles, two neighbouring
    tiles of theirs hold more than block_m rows, so that S rows of theirs have 2 S / block_m tiles at most,
    and one more for each run of such texts. A longer text of L rows has less than L / block_m + 1 tiles and
    may end a run; since it is longer than block_m, that is 3 L / block_m at most.

    Example:
        >>> most_tiles(1024, 512, 64, shared=True), most_tiles(1024, 512, 64, shared=False)
        (49, 528)
    """
    bound = num_tokens // block_m + num_texts
    return min(bound, 3 * num_tokens // block_m + 1) if shared else bound
