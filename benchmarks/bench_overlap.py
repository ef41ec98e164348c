"""Tokenising while the encoder computes: the whole against either of its parts.

    python -m pytest benchmarks/bench_overlap.py --benchmark-only [--quick] [--rounds N]

The encoder is a stand-in that waits, without holding the interpreter's lock, for as long as tokenising takes
alone in the same round: the hardest case, for with any other ratio one of the two hides more easily. Perfect
overlap would be a ratio of 1; no overlap 2. What is judged is the median of the rounds' ratios. Batches are
those of a GPU, 65,536 tokens, and less in the first, which has nothing to overlap.

`time.sleep` comes back late even on an idle machine, by `lateness()`, which is taken off each wait. What it
is late by because the thread that tokenises has the interpreter's lock counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

import pytest
import torch
from rich.table import Table
from torch import Tensor

from benchmarks.bench_tokenization import texts_of
from benchmarks.measure import CPU, Ratio, Timing
from benchmarks.shapes import EXPLANATIONS
from fastreward.batching import MAX_BATCH_TOKENS
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint
from fastreward.engine import Engine
from fastreward.packing import PackedBatch
from fastreward.scorer import Scorer
from fastreward.tokenization import Tokenizer

ASKED: Final = 1.1
MAX_LENGTH: Final = 8192  # nothing is cut: what is tokenised is waited for


def lateness(seconds: float = 4e-3, count: int = 50) -> float:
    """By how many seconds a sleep comes back late, the median, while nothing else runs in this process."""
    late = []
    for _ in range(count):
        start = time.perf_counter()
        time.sleep(seconds)
        late.append(time.perf_counter() - start - seconds)
    return statistics.median(late)


class WaitingEncoder:
    """Takes the place of an encoder and waits in its stead.

    Args:
        seconds_per_token: How long.
    """

    device = CPU
    dtype = torch.float32
    hidden_size = 1

    def __init__(self, seconds_per_token: float) -> None:
        self.seconds_per_token = seconds_per_token
        self.waits: list[float] = []
        self.late = lateness()

    def embed(self, batch: PackedBatch) -> Tensor:
        start = time.perf_counter()
        # Part of the wait, as an encoder launches its work, which then takes its time.
        vectors = torch.zeros(len(batch.lengths), 1)
        self.waits.append(batch.num_tokens * self.seconds_per_token)
        self.wait(self.waits[-1] - (time.perf_counter() - start))
        return vectors

    def wait(self, seconds: float) -> None:
        """Wait for so long."""
        time.sleep(max(0.0, seconds - self.late))


def engine_that_waits(tokenizer: Tokenizer) -> tuple[Engine, WaitingEncoder]:
    """An engine with that tokenizer, and the encoder in it, which does not wait yet."""
    scorer = Scorer(
        DEFAULT_ENCODER, backend="packed", device="cpu", max_batch_tokens=MAX_BATCH_TOKENS["cuda"]
    )
    engine = scorer._engine
    engine.batcher._tokenizer = tokenizer
    engine.encoder = encoder = WaitingEncoder(0.0)  # type: ignore[assignment]  # all that is called
    return engine, encoder


def seconds_of(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def table(show: Callable[[Table], None]) -> Table:
    table = Table(title="Tokenising and an encoder that waits as long; p50 (p20 – p80) of rounds in turns")
    for name in ("tokenizer", "tokenising", "waiting", "both", "of tokenising", "of waiting", "asked"):
        table.add_column(name, justify="right")
    show(table)
    return table


@pytest.mark.parametrize("cached", [False, True], ids=["tokenizer", "word-cache"])
def test_overlap(
    cached: bool,
    benchmark: Any,
    table: Table,
    quick: bool,
    rounds: int,
) -> None:
    """The overlap of tokenising (with the word cache warm, or without one) and computing."""
    options = {} if cached else {"word_cache_bytes": 0}
    file = load_checkpoint(DEFAULT_ENCODER).tokenizer_file
    tokenizer = Tokenizer.from_file(file, max_length=MAX_LENGTH, **options)
    repeats = 10 if quick else 60
    texts = [f"{number} {text}" for number in range(repeats) for text in texts_of(EXPLANATIONS, None)]
    engine, encoder = engine_that_waits(tokenizer)
    tokenize = partial(tokenizer.content, texts)
    tokens = sum(map(len, tokenize()))  # and the word cache is warm

    def wait() -> None:
        for seconds in encoder.waits:
            encoder.wait(seconds)

    def all_three() -> None:
        """A round: tokenising; both, the encoder waiting for as long as that took; and the waits alone."""
        encoder.late = lateness()
        taken["tokenising"].append(seconds_of(tokenize))
        encoder.seconds_per_token = taken["tokenising"][-1] / tokens
        encoder.waits.clear()
        taken["both"].append(seconds_of(partial(engine.embed, texts)))
        taken["waiting"].append(seconds_of(wait))

    taken: dict[str, list[float]] = {name: [] for name in ("tokenising", "waiting", "both")}
    all_three()  # warms up
    for values in taken.values():
        values.clear()
    benchmark.pedantic(all_three, rounds=2 * rounds)
    timings = {name: Timing(tuple(values)) for name, values in taken.items()}
    ratios = {name: Ratio(slow=timings["both"], fast=timings[name]) for name in ("tokenising", "waiting")}
    verdict = "met" if max(ratio.quantile(0.5) for ratio in ratios.values()) <= ASKED else "MISSED"
    table.add_row(
        "word cache, warm" if cached else "tokenizers",
        *(f"{timings[name].p50:.3f} s" for name in taken),
        *(f"{r.quantile(0.5):.2f} ({r.quantile(0.2):.2f} – {r.quantile(0.8):.2f})" for r in ratios.values()),
        f"≤ {ASKED} {verdict}",
    )
    kept = {name: ratio.as_json() | {"p50_of_rounds": ratio.quantile(0.5)} for name, ratio in ratios.items()}
    benchmark.extra_info.update(kept | {"asked": ASKED})
