"""The cut of a batch into the attention's tiles, against one that adds up text after text."""

from importlib.util import find_spec
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fastreward.ops.attention_tiles import LONG_TEXT, attention_tables, cut, way_of_cutting

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="without Triton there are no tiles")

EDGES = [0, 1, 2, 31, 32, 33, 63, 64, 65, 66, 127, 128, 129, 300]
LENGTHS = st.lists(st.sampled_from(EDGES) | st.integers(0, 700), max_size=60)


def starts_of(lengths):
    return np.array([0, *accumulate(lengths)], dtype=np.int32)


def tiles_of(lengths, block_m, shared):
    groups, filled = [], None  # texts that share a tile, and its rows so far; a longer text leaves no room
    for text, length in enumerate(lengths):
        if shared and filled is not None and filled + length <= block_m:
            groups[-1].append(text)
            filled += length
        else:
            groups.append([text])
            filled = length if length <= block_m else None
    tiles = []
    for group in groups:
        start, end = sum(lengths[: group[0]]), sum(lengths[: group[-1] + 1])
        for first in range(start, end, block_m):
            tiles.append([first, min(first + block_m, end), group[0], group[-1] + 1])
    return tiles


@settings(max_examples=200, deadline=None)
@given(LENGTHS, st.sampled_from([64, 128]), st.booleans())
@example([65, 0, 0, 3], 64, True)
@example([600, 0, 600], 64, True)
@example([32, 32, 0, 64, 0, 1], 64, True)
@example([], 64, True)
def test_tiles_are_those_that_adding_up_gives(lengths, block_m, shared):
    tiles = cut(starts_of(lengths), block_m, shared=shared)
    assert (tiles.dtype, tiles.shape[1]) == (np.int32, 4)
    assert tiles.tolist() == tiles_of(lengths, block_m, shared)


@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.sampled_from([64, 128]), st.booleans())
def test_tiles_hold_each_row_once_and_texts_that_share_one_are_whole(lengths, block_m, shared):
    offsets = starts_of(lengths)
    tiles = cut(offsets, block_m, shared=shared).tolist()
    assert [row for first, last, _, _ in tiles for row in range(first, last)] == list(range(sum(lengths)))
    assert len(tiles) <= sum(lengths) // block_m + len(lengths)
    for first, last, text_first, text_last in tiles:
        assert last - first <= block_m
        assert offsets[text_first] <= first < last <= offsets[text_last]
        if sum(length > 0 for length in lengths[text_first:text_last]) > 1:
            assert shared
            assert [first, last] == [offsets[text_first], offsets[text_last]]
        else:
            assert (first - offsets[text_first]) % block_m == 0


def test_texts_that_just_fit_share_a_tile_and_longer_ones_share_none():
    offsets = np.array([0, 32, 64, 64, 129, 129, 130, 130], dtype=np.int32)
    shared = [[0, 64, 0, 3], [64, 128, 3, 4], [128, 129, 3, 4], [129, 130, 4, 7]]
    alone = [[0, 32, 0, 1], [32, 64, 1, 2], [64, 128, 3, 4], [128, 129, 3, 4], [129, 130, 5, 6]]
    assert cut(offsets, 64, shared=True).tolist() == shared
    assert cut(offsets, 64, shared=False).tolist() == alone


@needs_triton
@settings(max_examples=100, deadline=None)
@given(LENGTHS, st.booleans())
@example([LONG_TEXT], False)
@example([LONG_TEXT - 1], False)
@example([], False)
def test_the_text_that_a_token_stands_in_on_average_decides_how_a_batch_is_cut(lengths, invariant):
    per_token = [length for length in lengths for _ in range(length)]
    long = bool(per_token) and sum(per_token) / len(per_token) >= LONG_TEXT
    tables = attention_tables(lengths, batch_invariant=invariant)
    assert (tables.block_m, tables.shared) == (
        128 if long and not invariant else 64,
        not long and not invariant,
    )
    assert (tables.block_m, tables.shared) == way_of_cutting(lengths, batch_invariant=invariant)
    assert tables.offsets.tolist() == starts_of(lengths).tolist()
    assert tables.tiles.tolist() == tiles_of(lengths, tables.block_m, tables.shared)


@needs_triton
def test_neighbours_share_a_tile_only_where_bits_may_depend_on_them():
    assert len(attention_tables([20, 20, 20], batch_invariant=False).tiles) == 1
    assert len(attention_tables([20, 20, 20], batch_invariant=True).tiles) == 3
    for lengths in ([20], [700], [700, 20]):  # neither do the tiles' rows
        assert attention_tables(lengths, batch_invariant=True).block_m == 64
