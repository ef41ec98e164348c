"""Work that is prepared in a thread while the work before it is being used."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")


def prefetched(items: Sequence[Item], prepare: Callable[[Item], Prepared]) -> Generator[Prepared]:
    """Yield prepare(item) for each item in turn; the next one is made in a thread meanwhile.

    One is made ahead, never more, so that memory stays bounded. For a single item there is no thread. Where
    `prepare` raises, the exception comes out when its item's turn has come.

    Example:
        >>> list(prefetched([1, 2, 3], lambda n: n * n))
        [1, 4, 9]
    """
    if len(items) < 2:
        yield from map(prepare, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="fastreward-prefetch") as thread:
        ahead = thread.submit(prepare, items[0])
        for item in items[1:]:
            current, ahead = ahead.result(), thread.submit(prepare, item)
            yield current
        yield ahead.result()
