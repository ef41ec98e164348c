"""Work that is prepared in a thread while the work before it is being used."""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")


def prefetched(items: Generator[Item]) -> Generator[Item]:
    """Yield what a generator yields; the next one is made in a thread meanwhile.

    One is made ahead, never more, so that memory stays bounded. Where the generator raises, the exception
    comes out in its turn. Who stops early closes the generator, once what it is making is made.

    Example:
        >>> list(prefetched(number * number for number in (1, 2, 3)))
        [1, 4, 9]
    """
    end = object()
    with ThreadPoolExecutor(1, thread_name_prefix="fastreward-prefetch") as thread:
        ahead = thread.submit(next, items, end)
        try:
            while (item := ahead.result()) is not end:
                ahead = thread.submit(next, items, end)
                yield item  # type: ignore[misc]  # it is not the end
        finally:
            thread.submit(items.close)
