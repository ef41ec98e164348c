"""What the GPU suite times from end to end by the caller's clock: texts or ids in, results on the host.

A `bench_<name>.py` lists its `SCENARIOS` beside or instead of `WORKLOADS`. A scenario draws its texts, checks
ours and every peer, chooses the peers' batch sizes, times all in turns, and returns rows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from benchmarks.measure import (
    Clock,
    GateError,
    Prepare,
    Ratio,
    Run,
    Timing,
    WallClock,
    interleaved,
    require_close,
)
from benchmarks.rows import Row
from benchmarks.tuned import BATCH_SIZES, SentenceTransformers, attentions, best_of, sentence_transformers
from benchmarks.workloads import COMPILED, OURS, SENTENCE_TRANSFORMERS, Ask, why
from fastreward import Scorer

LEAST_TURNS: Final = 5
"""Turns that are timed whatever they take."""

COMPILE_S: Final = 25.0
"""Seconds in which a peer must be compiled."""

CHECKED_TEXTS: Final = 64
"""Texts whose vectors are held against fp32 before anything is timed."""

# Of an element of a unit vector in bf16, as for the encoder from ids; beyond the peers' bounds one is broken.
MAX_ERROR, RMS_ERROR = 2e-2, 4e-3
PEER_MAX_ERROR, PEER_RMS_ERROR = 5e-2, 1e-2


@dataclass(frozen=True)
class Bench:
    """Where a scenario runs, and how much of it.

    Attributes:
        device: The GPU; a CPU in a dry run.
        dtype: The precision of ours and of the peers.
        shrunk: Tiny encoders and a few texts, to run every step in a moment.
        turns: Turns at most.
        budget_s: Seconds for the turns of one scenario; `LEAST_TURNS` are timed whatever they take.
        encoder: The folder of all-MiniLM-L6-v2, or None.
        leave_out: For a variant's name the reason why it is not run, or None.
        peak_flops: Operations a second of which the MFU is a share.
    """

    device: torch.device
    dtype: torch.dtype
    shrunk: bool
    turns: int
    budget_s: float
    encoder: Path | None
    leave_out: Callable[[str], str | None]
    peak_flops: Callable[[], float]

    @property
    def clock(self) -> Clock:
        """The caller's: from the call until the device is done."""
        return WallClock(self.device)

    def time(self, variants: Mapping[str, Prepare], *, turns: int | None = None) -> dict[str, Timing]:
        """Time variants in turns, after two that do not count; what is prepared takes of the budget too."""
        interleaved(variants, self.clock, rounds=1, warmups=0)
        start = time.perf_counter()
        interleaved(variants, self.clock, rounds=1, warmups=0)
        fitting = int(self.budget_s / (time.perf_counter() - start))
        most = self.turns if turns is None or self.shrunk else turns
        return interleaved(variants, self.clock, rounds=min(most, max(LEAST_TURNS, fitting)), warmups=0)


@dataclass(frozen=True)
class Scenario:
    """One thing that is timed from end to end.

    Attributes:
        group: What `--only` takes for all of its kind: "strings", "step", "latency".
        shape: Its name in the group.
        measure: Checks and times; returns rows, ours among them.
        asks: What is asked of an H100.
    """

    group: str
    shape: str
    measure: Callable[[Bench, str], list[Row]]
    asks: tuple[Ask, ...] = ()

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return f"{self.group}-{self.shape}"


@dataclass(frozen=True)
class Work:
    """What one turn of a variant comes to: tokens, operations, and what else the row should say."""

    tokens: int = 0
    flops: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)


def rows_of(
    name: str,
    timings: Mapping[str, Timing],
    work: Mapping[str, Work],
    *,
    against: Mapping[str, str],
    peak_flops: float | None,
    tail: bool = False,
) -> list[Row]:
    """Make the rows of a scenario.

    Args:
        name: The scenario's.
        timings: By variant.
        work: By variant; a variant without an entry has none.
        against: By variant, which one of ours its ratio is to.
        peak_flops: Of which the MFU is a share; None leaves it out.
        tail: Whether the 99th percentile says something.
    """
    rows = []
    for variant, timing in timings.items():
        done = work.get(variant, Work())
        ours = timings.get(against.get(variant, OURS))
        rows.append(
            Row(
                *(name, variant, "wall", timing),
                flops=done.flops,
                tokens=done.tokens,
                slower_than_ours=None if ours is None else Ratio(slow=timing, fast=ours),
                peak_flops=peak_flops if done.flops else None,
                tail=tail,
                facts=done.facts,
            )
        )
    return rows


@dataclass
class Peers:
    """sentence-transformers at its best: what can be timed, and for the others why not.

    Attributes:
        encoders: By name, what embeds texts: [N, D], on the device.
        facts: By name, what was chosen.
        failed: By name, why it is not timed.
    """

    encoders: dict[str, Callable[[Sequence[str]], Tensor]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def failures(self, name: str) -> list[Row]:
        """Rows that say why."""
        return [Row(name, variant, error=reason) for variant, reason in self.failed.items()]


def tuned_peers(
    bench: Bench,
    folder: Path,
    texts: Sequence[str],
    expected: Tensor,
    *,
    max_tokens: int | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    compiled: str | None = None,
) -> Peers:
    """Load sentence-transformers with every attention there is, tune its batch size, and compile it.

    Args:
        bench: Where.
        folder: The encoder.
        texts: What the batch size is chosen for.
        expected: The vectors of the first texts, in fp32.
        max_tokens: Of a text; None leaves what the folder says.
        batch_sizes: What is tried.
        compiled: Why nothing is compiled, or None.
    """
    peers = Peers()
    for attention, reason in attentions(bench.device).items():
        name = f"{SENTENCE_TRANSFORMERS}, {attention}"
        try:
            if reason is not None:
                peers.failed[name] = reason
                continue
            model = sentence_transformers(folder, bench.device, bench.dtype, attention, max_tokens)
            _tune(bench, peers, name, model, texts, expected, batch_sizes)
            if attention == "sdpa":
                _compile(
                    bench,
                    peers,
                    f"{SENTENCE_TRANSFORMERS}, {COMPILED}",
                    model,
                    name,
                    texts,
                    expected,
                    compiled,
                )
        except Exception as error:  # a peer that does not run here is a row that says so
            peers.failed[name] = why(error)
    return peers


def _tune(
    bench: Bench,
    peers: Peers,
    name: str,
    model: SentenceTransformers,
    texts: Sequence[str],
    expected: Tensor,
    batch_sizes: Sequence[int],
) -> None:
    check_peer(name, model.embed(texts[: len(expected)], batch_sizes[0]), expected)
    runs = {size: partial(model.embed, texts, size) for size in batch_sizes if size < 2 * len(texts)}
    size, seconds = best_of(
        runs or {batch_sizes[0]: partial(model.embed, texts, batch_sizes[0])}, bench.clock
    )
    peers.encoders[name] = partial(model.embed, batch_size=size)
    peers.facts[name] = {"batch_size": size, "tried": {str(n): round(s, 4) for n, s in seconds.items()}}


def _compile(
    bench: Bench,
    peers: Peers,
    name: str,
    model: SentenceTransformers,
    eager: str,
    texts: Sequence[str],
    expected: Tensor,
    not_compiled: str | None,
) -> None:
    """Compile at the batch size that is best without: no time is left to compile for each of them."""
    reason = not_compiled or bench.leave_out(COMPILED)
    if reason is not None:
        peers.failed[name] = reason
        return
    size = peers.facts[eager]["batch_size"]
    try:
        model.compile(texts, size, COMPILE_S)
        embed = partial(model.embed, batch_size=size, compiled=True)
        check_peer(name, embed(texts[: len(expected)]), expected)
    except Exception as error:
        peers.failed[name] = why(error)
        return
    peers.encoders[name] = embed
    peers.facts[name] = {"batch_size": size}


def check_ours(name: str, vectors: Tensor, expected: Tensor) -> None:
    """Hold vectors of ours against fp32.

    Raises:
        GateError: If they are wrong.
    """
    require_close(name, vectors, expected, max_error=MAX_ERROR, rms_error=RMS_ERROR)


def check_peer(name: str, vectors: Tensor, expected: Tensor) -> None:
    """Hold a peer's vectors against fp32.

    Raises:
        GateError: If they are those of another encoder.
    """
    require_close(name, vectors, expected, max_error=PEER_MAX_ERROR, rms_error=PEER_RMS_ERROR)


def check_encodes(name: str, scorer: Scorer, run: Run, count: int) -> None:
    """Make sure that a turn encodes its texts, also when it is not the first with them.

    Raises:
        GateError: If the second run remembers what the first one did.
    """
    run()
    before = scorer.stats.encoded_texts
    run()
    encoded = scorer.stats.encoded_texts - before
    if encoded != count:
        raise GateError(f"{name}: {encoded} of {count} texts encoded; not timed")


def vectors_in_fp32(
    folder: Path, texts: Sequence[str], device: torch.device, max_tokens: int | None = None
) -> Tensor:
    """Embed some texts by sentence-transformers in fp32: what is right."""
    model = sentence_transformers(folder, device, torch.float32, "sdpa", max_tokens)
    return model.embed(texts, 16)


def first(texts: Iterable[str]) -> list[str]:
    """The texts that are checked."""
    return list(texts)[:CHECKED_TEXTS]
