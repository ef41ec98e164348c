"""What an OpenVINO graph takes for a batch: the tokens, and where in the rows of attention they stand.

Attention wants texts of one length. So it works on rows of as many slots as the longest text needs, and
shorter texts share a row if there is room: what is nobody's costs as much as a token there.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from fastreward.encoders.architecture import Architecture
from fastreward.packing import PackedBatch

TOKEN_MULTIPLE: Final = 32
"""Tokens of an inference are made up to a multiple of so many. For every number of rows that oneDNN meets
first it writes code, in a tenth of the time that 1,000 tokens take; rows of nobody take a hundredth."""

SLOT_MULTIPLE: Final = 16
"""Slots of a row in attention, likewise. It is the plug-in's vector in fp32: rows of 120 slots take it longer
than rows of 128, of 56 longer than of 64, by a quarter."""


def graph_inputs(
    batch: PackedBatch,
    architecture: Architecture,
    *,
    token_multiple: int = TOKEN_MULTIPLE,
    share_rows: bool = True,
) -> list[NDArray[np.int32]]:
    """What a graph of `build_graph` takes for a batch, in its order.

    Args:
        batch: At least one token.
        architecture: Whose position table there is, if any.
        token_multiple: Tokens are made up to a multiple of so many.
        share_rows: Let texts share a row of attention where there is room. A graph with CLS pooling needs a
            row for each text, in their order.

    Example:
        >>> import torch
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> from fastreward.packing import pack
        >>> bert = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2").architecture
        >>> batch = pack([[101, 7592, 102], [101, 102]], torch.device("cpu"))
        >>> names = (
        ...     "ids",
        ...     "position rows",
        ...     "slots",
        ...     "row slots",
        ...     "rows",
        ...     "query texts",
        ...     "row texts",
        ...     "lengths",
        ... )
        >>> for name, array in zip(names, graph_inputs(batch, bert, token_multiple=1)):
        ...     print(f"{name}:", *array[..., :6].tolist())  # six of sixteen slots
        ids: 101 7592 102 101 102
        position rows: 0 1 2 0 1
        slots: [0, 1, 2, 0, 0, 0] [3, 4, 0, 0, 0, 0]
        row slots: [0, 1, 2, 3, 4, 0]
        rows: 0 1 2 3 4
        query texts: [0, 0, 0, 1, 1, -1]
        row texts: [0, 0, 0, 1, 1, -1]
        lengths: 3 2
    """
    lengths = np.array(batch.lengths, dtype=np.int32)
    num_texts, num_slots = len(lengths), rounded_slots(batch.max_seqlen)
    ids, positions = batch.input_ids.numpy(), batch.position_ids.numpy()
    tokens = np.arange(len(ids), dtype=np.int32)
    own = np.arange(num_texts, dtype=np.int32) * np.int32(num_slots)
    starts = np.array(shared_rows(batch.lengths, num_slots), dtype=np.int32) if share_rows else own
    rows = np.repeat(starts, lengths) + positions
    num_rows = 1 + int(starts.max()) // num_slots
    slots = _placed(tokens, np.repeat(own, lengths) + positions, (num_texts, num_slots), 0)
    row_slots = _placed(tokens, rows, (num_rows, num_slots), 0)
    texts = np.repeat(np.arange(num_texts, dtype=np.int32), lengths)
    row_texts = _placed(texts, rows, (num_rows, num_slots), -1)
    # Where no row is shared, all its queries are of its first slot's text.
    query_texts = row_texts if num_rows < np.count_nonzero(lengths) else row_texts[:, :1]
    room = (0, -len(ids) % token_multiple)
    inputs = [np.pad(ids, room), slots, row_slots, np.pad(rows, room), query_texts, row_texts, lengths]
    if architecture.thetas is None:
        inputs.insert(1, np.pad(_position_rows(ids, positions, architecture.padding_id), room))
    return [np.ascontiguousarray(array) for array in inputs]


def rounded_slots(longest: int) -> int:
    """Slots of a row of attention for texts of so many tokens at most.

    Example:
        >>> rounded_slots(50), rounded_slots(64)
        (64, 64)
    """
    return -(-longest // SLOT_MULTIPLE) * SLOT_MULTIPLE


def shared_rows(lengths: Sequence[int], num_slots: int) -> list[int]:
    """Place texts in as few rows as may be: the longest first, each in the fullest row that has room for it.

    Args:
        lengths: Tokens of each text, `num_slots` at most; an empty one takes no room.
        num_slots: Of a row.

    Returns:
        Where each text begins: row · num_slots + slot.

    Source: best-fit decreasing (Johnson, Near-optimal bin packing algorithms, 1973), which needs no more than
    11/9 of the fewest rows, and four.

    Example:
        >>> shared_rows([3, 10, 6, 12], 16)
        [12, 16, 26, 0]
    """
    starts = [0] * len(lengths)
    rooms: list[tuple[int, int]] = []  # of rows, ascending: free slots, row
    num_rows = 0
    for text in sorted((text for text, length in enumerate(lengths) if length), key=lambda t: -lengths[t]):
        place = bisect_left(rooms, (lengths[text], 0))
        if place < len(rooms):
            room, row = rooms.pop(place)
        else:
            room, row = num_slots, num_rows
            num_rows += 1
        starts[text] = (row + 1) * num_slots - room
        if room > lengths[text]:
            insort(rooms, (room - lengths[text], row))
    return starts


def _placed(
    values: NDArray[np.int32], places: NDArray[np.int32], shape: tuple[int, int], rest: int
) -> NDArray[np.int32]:
    """An array of this shape with the values at these places, and the same value everywhere else."""
    array = np.full(shape, rest, dtype=np.int32)
    array.reshape(-1)[places] = values
    return array


def _position_rows(
    ids: NDArray[np.int32], positions: NDArray[np.int32], padding_id: int | None
) -> NDArray[np.int32]:
    """The row of the position table for each token, [T]; see `Embeddings`."""
    if padding_id is None:
        return positions
    # A text may hold the padding token (someone writes "<pad>"): it has row 0, and those behind it count as
    # if it were not there.
    counts = (ids != padding_id).astype(np.int32)
    seen = np.concatenate((np.zeros(1, dtype=np.int32), counts.cumsum(dtype=np.int32)))
    first = np.arange(len(ids), dtype=np.int32) - positions
    rows: NDArray[np.int32] = (seen[1:] - seen[first]) * counts
    return rows
