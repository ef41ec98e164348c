"""Several rewards called at the same time: those that wait, and beside them those that work."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from fastreward.rewards.completion import Completion
from fastreward.rewards.components import awaits, call, call_async

__all__ = ["call_together"]


async def call_together(
    rewards: Sequence[Any], completions: Sequence[Completion], columns: Mapping[str, Any]
) -> list[list[float | None]]:
    """Call rewards without holding an event loop up.

    Asynchronous ones are awaited all at once. The others run meanwhile in one worker thread, one after
    another, since those that share a scorer then find each other's texts encoded.

    The first exception ends it all: what is awaited is cancelled, and of what works in the thread no other is
    begun. The one that is at work cannot be interrupted and is waited for, as it is on cancellation, so that
    nothing goes on behind the caller's back.

    Args:
        rewards: K rewards.
        completions: N completions.
        columns: The other keywords.

    Returns:
        K lists of N finite floats or ``None``, in the order of the rewards.

    Raises:
        InputError: A reward returned anything else.
        Exception: What a reward raised first, with a note that names it.

    Example:
        >>> async def judge(completions, **columns):
        ...     return [1.0]
        >>> asyncio.run(call_together([judge, lambda completions, **columns: [2]], ["a"], {}))
        [[1.0], [2.0]]
    """
    waiting = {k: reward for k, reward in enumerate(rewards) if awaits(reward)}
    working = {k: reward for k, reward in enumerate(rewards) if k not in waiting}
    values: dict[int, list[float | None]] = {}
    stop = threading.Event()

    def work() -> None:
        for k, reward in working.items():
            if stop.is_set():
                return
            values[k] = call(reward, completions, columns)

    async def wait(k: int, reward: Any) -> None:
        values[k] = await call_async(reward, completions, columns)

    tasks = [asyncio.ensure_future(wait(k, reward)) for k, reward in waiting.items()]
    worker = [asyncio.ensure_future(asyncio.to_thread(work))] if working else []
    try:
        # A cancelled thread would run on unseen: the shield takes the cancellation for it.
        await asyncio.gather(*map(asyncio.shield, worker), *tasks)
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*worker, *tasks, return_exceptions=True)
    return [values[k] for k in range(len(rewards))]
