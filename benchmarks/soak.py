"""A soak: thousands of calls of random shapes, after which neither memory nor a score may have moved.

    python -m benchmarks.soak [--calls 10000] [--threads 4] [--backend packed] [--device cuda] [--own-stream]
                              [--graphs]

It prints memory at ten points (resident, Python objects, on CUDA what PyTorch has allocated) and ends with 1
if one grows in the second half by more than `GROWTH`, or a score moved by more than `ERROR`.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from fastreward.encoders.checkpoint import DEFAULT_ENCODER
from fastreward.scorer import Scorer

GROWTH: Final = 1.1
ERROR: Final = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-2}
POINTS: Final = 10
WORDS: Final = (
    "the",
    "heart",
    "pumps",
    "blood",
    "through",
    "vessels",
    "because",
    "enzymes",
    "lower",
    "energy",
)


class User:
    """A reward, as far as the scorer can see."""


class Memory(NamedTuple):
    """What is taken at one point."""

    resident_bytes: int
    objects: int
    allocated_bytes: int


def texts_of(rng: random.Random, count: int) -> list[str]:
    return [" ".join(rng.choices(WORDS, k=rng.randint(0, 200))) for _ in range(count)]


def call_of(number: int, pool: list[str]) -> tuple[str, tuple[Any, ...]]:
    """A call of a random kind and size, the same for the same number."""
    rng = random.Random(number)
    count = rng.randint(1, 64)
    texts = rng.choices([*pool, *texts_of(rng, rng.randint(0, 3))], k=count)
    references = rng.choices(pool, k=count)
    kinds: list[tuple[str, tuple[Any, ...]]] = [
        ("score", (texts, references)),
        ("embed", (texts,)),
        ("similarity", (texts, references[:16])),
        ("maxsim", (texts[:8], references[:8])),
    ]
    return rng.choices(kinds, weights=[4, 2, 2, 1])[0]


def run(scorer: Scorer, call: tuple[str, tuple[Any, ...]]) -> Tensor:
    name, arguments = call
    result = getattr(scorer, name)(*arguments)
    values: Tensor = result if isinstance(result, Tensor) else result.f1
    assert bool(values.isfinite().all())
    return values


def memory(device: torch.device) -> Memory:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    allocated = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
    return Memory(pages * os.sysconf("SC_PAGE_SIZE"), len(gc.get_objects()), allocated)


def soak(scorer: Scorer, calls: int, threads: int) -> tuple[list[Memory], float]:
    """Make the calls; return the memory at each point, and how far scores moved at most."""
    rng = random.Random(0)
    pool = texts_of(rng, 400)
    users = [User(), User()]
    probe = ("score", (pool[:64], pool[64:128]))
    first = run(scorer, probe)
    points, moved = [], 0.0
    with ThreadPoolExecutor(threads) as executor:
        for point in range(POINTS):
            # From alone to shared and back: both ways of scoring are walked.
            for user in users[: 2 * (point % 2)]:
                scorer.attach(user)
            begin, end = (point + step for step in (0, 1))
            numbers = range(begin * calls // POINTS, end * calls // POINTS)
            start = time.perf_counter()
            for _ in executor.map(lambda number: run(scorer, call_of(number, pool)), numbers):
                pass
            seconds = time.perf_counter() - start
            moved = max(moved, float((run(scorer, probe) - first).abs().max()))
            points.append(memory(scorer.device))
            print(
                f"{numbers.stop:>7} calls  {points[-1]}  {len(numbers) / seconds:.1f} calls/s  "
                f"scores moved by {moved:.1e}"
            )
            if point % 2:
                users = [User(), User()]
    return points, moved


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=4)
    parser.add_argument("--device", default=None)
    parser.add_argument("--dtype", default=None)
    parser.add_argument("--backend", default=None)
    parser.add_argument("--encoder", default=DEFAULT_ENCODER)
    parser.add_argument(
        "--layers", type=int, default=None, help="the encoder's first layers alone, to be quick"
    )
    parser.add_argument("--own-stream", action="store_true")
    parser.add_argument("--graphs", action="store_true")
    options = parser.parse_args()
    scorer = Scorer(
        options.encoder,
        backend=options.backend,
        device=options.device,
        dtype=options.dtype,
        num_layers=options.layers,
        own_stream=options.own_stream,
        cuda_graphs=options.graphs,
        progress=False,
    )
    points, moved = soak(scorer, options.calls, options.threads)
    grown = [
        name
        for name, early, late in zip(Memory._fields, points[POINTS // 2], points[-1], strict=True)
        if late > early * GROWTH
    ]
    print(f"{scorer}: grown: {', '.join(grown) or 'nothing'}; scores moved by {moved:.1e} at most")
    return int(bool(grown) or moved > ERROR[scorer.dtype])


if __name__ == "__main__":
    sys.exit(main())
