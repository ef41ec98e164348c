"""Sets of times as sorted intervals that neither touch nor overlap, in whole nanoseconds."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, pairwise
from typing import TypeAlias

Interval: TypeAlias = tuple[int, int]
"""Begin and end, in nanoseconds; the end is not part of it."""


def union(intervals: Iterable[Interval]) -> list[Interval]:
    """Join intervals, given in any order, into sorted ones that neither touch nor overlap.

    Example:
        >>> union([(5, 8), (0, 2), (2, 3), (6, 7), (9, 9)])
        [(0, 3), (5, 8)]
    """
    joined: list[Interval] = []
    for begin, end in sorted(intervals):
        if end <= begin:
            continue
        if joined and begin <= joined[-1][1]:
            if end > joined[-1][1]:
                joined[-1] = (joined[-1][0], end)
        else:
            joined.append((begin, end))
    return joined


def difference(intervals: Sequence[Interval], taken: Sequence[Interval]) -> list[Interval]:
    """Take times away; both are sets as `union` returns them.

    Example:
        >>> difference([(0, 10)], [(2, 3), (8, 12)])
        [(0, 2), (3, 8)]
    """
    left: list[Interval] = []
    position = 0
    for begin, end in intervals:
        while position < len(taken) and taken[position][1] <= begin:
            position += 1
        at = position
        while at < len(taken) and taken[at][0] < end:
            if taken[at][0] > begin:
                left.append((begin, taken[at][0]))
            begin = taken[at][1]
            at += 1
        if begin < end:
            left.append((begin, end))
    return left


def measure(intervals: Iterable[Interval]) -> int:
    """Nanoseconds of a set as `union` returns it.

    Example:
        >>> measure([(0, 2), (5, 8)])
        5
    """
    return sum(end - begin for begin, end in intervals)


def levels(intervals: Iterable[Interval]) -> list[tuple[int, int]]:
    """How many of the intervals hold at a time: (time from which, how many), sorted, the last one 0.

    Example:
        >>> levels([(0, 4), (2, 6)])
        [(0, 1), (2, 2), (4, 1), (6, 0)]
    """
    changes: dict[int, int] = {}
    for begin, end in intervals:
        if begin < end:
            changes[begin] = changes.get(begin, 0) + 1
            changes[end] = changes.get(end, 0) - 1
    times = sorted(changes)
    return list(zip(times, accumulate(changes[time] for time in times), strict=True))


def where_level(heights: Sequence[tuple[int, int]], least: int) -> list[Interval]:
    """Where at least as many intervals hold; `heights` as `levels` returns them.

    Example:
        >>> where_level([(0, 1), (2, 2), (4, 1), (6, 0)], 2)
        [(2, 4)]
    """
    pairs = pairwise(heights)
    return union((begin, end) for (begin, height), (end, _) in pairs if height >= least)


class Coverage:
    """Finds what of an interval lies in a set, in logarithmic time.

    Args:
        intervals: The set, as `union` returns it.

    Example:
        >>> list(Coverage([(0, 2), (5, 8)]).parts(1, 6))
        [(1, 2), (5, 6)]
    """

    def __init__(self, intervals: Sequence[Interval]) -> None:
        self.intervals = intervals
        self._begins = [begin for begin, _ in intervals]

    def parts(self, begin: int, end: int) -> Iterator[Interval]:
        """The parts of the set between `begin` and `end`."""
        for at in range(max(0, bisect_right(self._begins, begin) - 1), len(self.intervals)):
            first, last = self.intervals[at]
            if first >= end:
                return
            if last > begin:
                yield max(first, begin), min(last, end)


class Lanes:
    """Places intervals side by side, so that one overlaps in its lane only what it is within, or has in it.

    They come in the order of their begins, and of two with one begin the longer one first.

    Example:
        >>> lanes = Lanes()
        >>> [lanes.place(*interval) for interval in ((0, 9), (1, 5), (2, 7), (6, 8))]
        [(0, 0), (0, 1), (1, 0), (0, 1)]
    """

    def __init__(self) -> None:
        self._open: list[list[int]] = []  # by lane: the ends of what is open, the innermost last

    def place(self, begin: int, end: int) -> tuple[int, int]:
        """The lane, and in how many others of it the interval is."""
        for lane, ends in enumerate(self._open):
            while ends and ends[-1] <= begin:
                ends.pop()
            if not ends or ends[-1] >= end:
                ends.append(end)
                return lane, len(ends) - 1
        self._open.append([end])
        return len(self._open) - 1, 0
