"""A soak: thousands of calls of random shapes, after which neither memory nor a score may have moved.

    python -m benchmarks.soak [--calls 10000] [--threads 4] [--backend packed] [--device cuda] [--own-stream]
                              [--graphs]

It prints memory at ten points: resident, once the C library has given back what is free; Python objects; what
the caches hold, whose bounds are so low that they turn over; on CUDA what PyTorch has allocated and what
graphs hold. It ends with 1 if one grows in the second half by more than `GROWTH`, caches or graphs are beyond
their bounds, or a score, in a call of whatever shape, is further than `ERROR` from the cosine of the vectors
that its texts had at the beginning.
"""

from __future__ import annotations

import argparse
import ctypes
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

GROWTH: Final = {"resident_bytes": 1.05, "objects": 1.01, "allocated_bytes": 1.05}
ERROR: Final = {torch.float32: 2e-6}
ERROR_OF_FEWER_BITS: Final = 2e-2
CACHE_BYTES: Final = 2**18
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
    cached_bytes: int
    allocated_bytes: int
    graph_bytes: int


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


def memory(scorer: Scorer) -> Memory:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: what is free is no leak
    if trim is not None:
        trim(0)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    device, engine = scorer.device, scorer._engine
    caches = (engine.references, engine.recent)
    graphs = [getattr(replica.encoder, "graph_bytes", 0) for replica in engine.replicas.members]
    assert all(cache.size_bytes <= CACHE_BYTES for cache in caches), "a cache is beyond its bound"
    assert max(graphs) <= engine.budget.graph_bytes, "graphs are beyond their bound"
    return Memory(
        pages * os.sysconf("SC_PAGE_SIZE"),
        len(gc.get_objects()),
        sum(cache.size_bytes for cache in caches),
        torch.cuda.memory_allocated(device) if device.type == "cuda" else 0,
        sum(graphs),
    )


def error_of(call: tuple[str, tuple[Any, ...]], result: Tensor, known: dict[str, Tensor]) -> float:
    """How far scores are from the cosines of their texts' vectors, where these are known."""
    name, arguments = call
    if name != "score":
        return 0.0
    errors = [
        abs(float(known[text] @ known[reference]) - score)
        for text, reference, score in zip(*arguments, result.tolist(), strict=True)
        if text in known
    ]
    return max(errors, default=0.0)


def soak(scorer: Scorer, calls: int, threads: int) -> tuple[list[Memory], float]:
    """Make the calls; return the memory at each point, and how far scores moved at most."""
    rng = random.Random(0)
    pool = texts_of(rng, 400)
    users = [User(), User()]
    known = dict(zip(pool, scorer.embed(pool).double(), strict=True))
    points, moved = [], 0.0

    def checked(number: int) -> float:
        call = call_of(number, pool)
        return error_of(call, run(scorer, call), known)

    with ThreadPoolExecutor(threads) as executor:
        for point in range(POINTS):
            # From alone to shared and back: both ways of scoring are walked.
            for user in users[: 2 * (point % 2)]:
                scorer.attach(user)
            begin, end = (point + step for step in (0, 1))
            numbers = range(begin * calls // POINTS, end * calls // POINTS)
            start = time.perf_counter()
            moved = max([moved, *executor.map(checked, numbers)])
            seconds = time.perf_counter() - start
            points.append(memory(scorer))
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
        reference_cache_bytes=CACHE_BYTES,
        recent_bytes=CACHE_BYTES,
        progress=False,
    )
    points, moved = soak(scorer, options.calls, options.threads)
    # Resident memory goes up and down with what was last computed: the most of three points is compared.
    middle, end = points[POINTS // 2 - 2 : POINTS // 2 + 1], points[-3:]
    most = {name: [max(getattr(at, name) for at in part) for part in (middle, end)] for name in GROWTH}
    grown = [name for name, (early, late) in most.items() if late > early * GROWTH[name]]
    print(f"{scorer}: grown: {', '.join(grown) or 'nothing'}; scores moved by {moved:.1e} at most")
    return int(bool(grown) or moved > ERROR.get(scorer.dtype, ERROR_OF_FEWER_BITS))


if __name__ == "__main__":
    sys.exit(main())
