"""How a batch is cut into the tiles of the attention's kernel: on the host, from the texts' lengths."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from fastreward.kernels.attention import AttentionTables

LONG_TEXT: Final = 384
"""Length of the text that a token stands in, on average, from which tiles have 128 rows and none is shared.
They read keys and values from the L2 cache half as often, but compute for each text 32 more rows that are
thrown away, on average: a twelfth of the work at this length."""


def attention_tables(lengths: Sequence[int], *, batch_invariant: bool) -> AttentionTables:
    """Cut a batch, on the host.

    Args:
        lengths: The N lengths in tokens.
        batch_invariant: Whether a text's bits must not depend on its neighbours: then tiles have a fixed
            size, and no tile holds two texts.

    Returns:
        What the kernel reads, in the host's memory.

    Raises:
        ImportError: If Triton is not installed.
    """
    from fastreward.kernels.attention import AttentionTables

    block_m, shared = way_of_cutting(lengths, batch_invariant=batch_invariant)
    offsets = np.fromiter(accumulate(lengths, initial=0), dtype=np.int32, count=len(lengths) + 1)
    tiles = cut(offsets, block_m, shared=shared)
    return AttentionTables(block_m, shared, torch.from_numpy(tiles), torch.from_numpy(offsets))


def way_of_cutting(lengths: Sequence[int], *, batch_invariant: bool) -> tuple[int, bool]:
    """Decide how many rows a tile has at most, and whether several texts may share one.

    Args:
        lengths: The N lengths in tokens.
        batch_invariant: As in `attention_tables`.

    Returns:
        `block_m` and `shared`.

    Raises:
        ImportError: If Triton is not installed.
    """
    from fastreward.kernels.attention import LONG_ROWS, SHORT_ROWS

    each = np.array(lengths, dtype=np.int64)
    long = int(each @ each) >= LONG_TEXT * max(1, int(each.sum()))
    block_m = LONG_ROWS if long and not batch_invariant else SHORT_ROWS
    return block_m, not long and not batch_invariant


def cut(offsets: NDArray[np.int32], block_m: int, *, shared: bool) -> NDArray[np.int32]:
    """Cut texts that lie one after another into tiles.

    A text longer than `block_m` is cut from its own first token and shares none of its tiles. Neighbours that
    fit into one tile share it if `shared` is set. The work is by groups of texts that share a tile, for most
    of a batch's texts may have no tokens.

    Args:
        offsets: [N + 1], the texts' starts, from 0 to T.
        block_m: Rows of a tile at most.
        shared: Whether neighbours that fit into one tile share it.

    Returns:
        [P, 4], int32: first row, row behind the last, first text and text behind the last.

    Example:
        >>> cut(np.array([0, 70, 100, 130, 160], dtype=np.int32), 64, shared=True).tolist()
        [[0, 64, 0, 1], [64, 70, 0, 1], [70, 130, 1, 3], [130, 160, 3, 4]]
    """
    bounds = _groups(offsets.tolist(), block_m) if shared else np.arange(len(offsets), dtype=np.int32)
    rows = offsets[bounds]
    tiles = -(-np.diff(rows) // block_m)  # of each group
    group = np.repeat(np.arange(len(tiles)), tiles)  # [P]
    done = np.arange(len(group), dtype=np.int32) - (np.cumsum(tiles) - tiles)[group]
    table = np.empty((len(group), 4), dtype=np.int32)
    table[:, 0] = rows[group] + done * block_m
    table[:, 1] = np.minimum(table[:, 0] + block_m, rows[group + 1])
    table[:, 2] = bounds[group]
    table[:, 3] = bounds[group + 1]
    return table


def _groups(offsets: list[int], block_m: int) -> NDArray[np.int32]:
    """Put neighbours together as far as a tile reaches: the groups' first texts, and N at the end."""
    text, bounds = 0, [0]
    while text < len(offsets) - 1:
        reached = bisect_right(offsets, offsets[text] + block_m, text) - 1  # where a tile's rows end at most
        text = reached if reached > text else text + 1  # a longer text is a group of its own
        bounds.append(text)
    return np.array(bounds, dtype=np.int32)
