"""How time is taken, and where a number comes from.

Variants take turns (ours, theirs, ours, theirs …), so that whatever the machine does meanwhile hits all of
them. Results are p20, p50 and p80 over the rounds, and every file names device, versions and commit.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

import fastreward
from fastreward.benchmarking import average_ranks
from fastreward.ops.linear import Linear

CPU: Final = torch.device("cpu")
ROOT: Final = Path(__file__).resolve().parents[1]

Run = Callable[[], object]
"""What is timed."""

Prepare = Callable[[], Run]
"""What happens before, untimed: it returns what is timed in this round."""

Clock = Callable[[Run], float]
"""Runs once and returns seconds."""

PIECE_ELEMENTS: Final = 2**26
"""Elements that are compared in fp64 at a time: half a gigabyte for each of the copies."""

LEAST_ROUNDS: Final = 10
"""Rounds that are timed whatever they take: quantiles of fewer say little."""


class GateError(RuntimeError):
    """A result is wrong, so there is nothing to time."""


def require_close(
    what: str, values: Tensor, expected: Tensor, *, max_error: float, rms_error: float | None = None
) -> None:
    """Check results before they are timed; NaN never passes.

    Raises:
        GateError: If the largest or the RMS error is over its bound.
    """
    if values.shape != expected.shape:
        raise GateError(f"{what}: shape {list(values.shape)}, expected {list(expected.shape)}; not timed")
    largest, rms = errors(values, expected)
    for name, value, bound in (("largest", largest, max_error), ("RMS", rms, rms_error)):
        if bound is not None and not value <= bound:
            raise GateError(f"{what}: {name} error {value:.2e}, at most {bound:.0e} allowed; not timed")


def errors(values: Tensor, expected: Tensor) -> tuple[float, float]:
    """The largest and the RMS difference of two tensors of one shape, in fp64; NaN where one holds NaN.

    They are compared where `expected` is, in pieces: the copies in fp64 of a large result would not fit.
    """
    if not values.numel():
        return 0.0, 0.0
    largest, squares = [], []
    with torch.inference_mode():
        pieces = zip(
            values.flatten().split(PIECE_ELEMENTS), expected.flatten().split(PIECE_ELEMENTS), strict=True
        )
        for piece, right in pieces:
            error = piece.to(right.device).double() - right.double()
            largest.append(error.abs().max())
            squares.append(error.square().sum())
        # A maximum of tensors passes NaN on; Python's own does not.
        return float(torch.stack(largest).max()), float((sum(squares) / values.numel()).sqrt())


@dataclass(frozen=True)
class Timing:
    """Seconds of each round of one variant."""

    seconds: tuple[float, ...]

    def quantile(self, q: float) -> float:
        """The q-quantile over the rounds, in seconds."""
        return float(np.quantile(self.seconds, q))

    @property
    def p20(self) -> float:
        """A fifth of the rounds took less."""
        return self.quantile(0.2)

    @property
    def p50(self) -> float:
        """The median."""
        return self.quantile(0.5)

    @property
    def p80(self) -> float:
        """A fifth of the rounds took more."""
        return self.quantile(0.8)

    def as_json(self) -> dict[str, float | int]:
        """The quantiles in seconds, and how many rounds they come from."""
        return {"p20_s": self.p20, "p50_s": self.p50, "p80_s": self.p80, "rounds": len(self.seconds)}


@dataclass(frozen=True)
class Ratio:
    """How many times as long `slow` takes as `fast`: of their medians, and over the rounds one by one."""

    slow: Timing
    fast: Timing

    @property
    def of_medians(self) -> float:
        """The number that is quoted."""
        return self.slow.p50 / self.fast.p50

    def quantile(self, q: float) -> float:
        """The q-quantile of the rounds' own ratios: how far the machine's unrest reaches."""
        pairs = zip(self.slow.seconds, self.fast.seconds, strict=True)
        return float(np.quantile([slow / fast for slow, fast in pairs], q))

    def as_json(self) -> dict[str, float]:
        """The ratio of medians, and p20 and p80 over the rounds."""
        return {
            "of_medians": self.of_medians,
            "p20_of_rounds": self.quantile(0.2),
            "p80_of_rounds": self.quantile(0.8),
        }


def interleaved(
    variants: Mapping[str, Prepare],
    clock: Clock,
    *,
    rounds: int,
    warmups: int = 1,
    budget_s: float | None = None,
) -> dict[str, Timing]:
    """Time variants in turns: the first `warmups` rounds are thrown away, the next `rounds` are kept.

    Args:
        variants: By name, what prepares each run.
        clock: Takes the time of one run.
        rounds: Rounds that are kept.
        warmups: Rounds that are not.
        budget_s: Stop after so many seconds, warm-ups included, but not before `LEAST_ROUNDS` are kept.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    start = time.perf_counter()
    for done in range(-warmups, rounds):
        spent = time.perf_counter() - start
        if budget_s is not None and done >= LEAST_ROUNDS and spent > budget_s:
            break
        for name, prepare in variants.items():
            seconds[name].append(clock(prepare()))
    return {name: Timing(tuple(taken[warmups:])) for name, taken in seconds.items()}


def repeated(run: Run) -> Prepare:
    """A variant that has nothing to prepare."""
    return lambda: run


class WallClock:
    """Seconds that the caller waits, until the device has finished."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __call__(self, run: Run) -> float:
        self._synchronize()
        start = time.perf_counter()
        run()
        self._synchronize()
        return time.perf_counter() - start

    def _synchronize(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


class ColdCache:
    """Empties the L2 cache of a GPU, and leaves it clean; on a CPU it does nothing.

    A buffer larger than the cache is written. What that leaves in the cache has yet to go back to memory,
    and would do so while the next kernel is timed: so another buffer is read, which pushes it out. Both take
    a few hundred microseconds together, a head start in which the CPU enqueues what comes next.
    """

    MIN_BYTES: Final = 512 * 2**20

    def __init__(self, device: torch.device) -> None:
        self._buffers: tuple[Tensor, Tensor] | None = None
        if device.type == "cuda":
            size_bytes = max(self.MIN_BYTES, 4 * torch.cuda.get_device_properties(device).L2_cache_size)
            written = torch.empty(size_bytes // 4, dtype=torch.float32, device=device)
            self._buffers = written, torch.zeros_like(written)

    def __call__(self) -> None:
        if self._buffers is not None:
            written, read = self._buffers
            written.zero_()
            read.sum()


class CudaEvents:
    """Seconds on the GPU between an event before the op and one behind it, from a cold L2 cache."""

    def __init__(self, flush: ColdCache) -> None:
        self._flush = flush
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def __call__(self, run: Run) -> float:
        self._flush()
        self._start.record()
        run()
        self._end.record()
        self._end.synchronize()
        return float(self._start.elapsed_time(self._end)) / 1e3


@dataclass(frozen=True)
class Copy:
    """A copy within the memory of a device: the ceiling for ops that only move bytes."""

    source: Tensor
    target: Tensor

    @classmethod
    def of(cls, size_bytes: int, device: torch.device) -> Copy:
        """Make a copy of `size_bytes`, its memory touched."""
        source = torch.ones(size_bytes // 4, dtype=torch.float32, device=device)
        return cls(source, torch.zeros_like(source))

    def __call__(self) -> None:
        self.target.copy_(self.source)

    @property
    def moved_bytes(self) -> int:
        """Bytes read and bytes written."""
        return 2 * self.source.nbytes


@dataclass(frozen=True)
class MatrixProduct:
    """A large square matrix product by the fastest route of a device: the ceiling for ops that multiply."""

    multiply: Callable[[], object]
    size: int

    @classmethod
    def of(cls, size: int, dtype: torch.dtype, device: torch.device) -> MatrixProduct:
        """Make a product of two `size` × `size` matrices of normal numbers.

        Not of zeros or ones: a GPU draws less power for those and clocks higher.
        """
        left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        if device.type == "cpu":  # oneDNN's prepacked product, as the encoder's
            linear = Linear(right, torch.zeros(size, dtype=dtype))
            return cls(partial(linear, left), size)
        return cls(partial(torch.matmul, left, right, out=torch.empty_like(left)), size)

    def __call__(self) -> None:
        self.multiply()

    @property
    def flops(self) -> int:
        """A multiplication and an addition for each of size³."""
        return 2 * self.size**3


Ceiling = Copy | MatrixProduct


def encoder_flops(lengths: Sequence[int], config: Mapping[str, Any], *, pooling: str = "mean") -> int:
    """Count the operations of an encoder's matrix products for texts of these lengths.

    Each layer and token: 8D² for query, key, value and output; 4DF for the feed-forward block, 6DF where it
    is gated; and in attention 4D for each token that the token sees: all S of its text, or those within its
    window. With CLS pooling the last layer needs no more than keys and values of all tokens, 4D² each, and
    the rest for the first token of each text.

    Args:
        lengths: Tokens of each text.
        config: The contents of the encoder's config.json.
        pooling: "cls" is the one that makes a difference.
    """
    d, f, layers = (int(config[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    gated = config.get("model_type") == "modernbert"
    rows = 8 * d * d + (6 if gated else 4) * d * f
    kinds = config.get("layer_types") or ["full_attention"] * layers
    window = int(config.get("local_attention", 0)) // 2
    count = 0
    for index, kind in enumerate(kinds):
        reach = window if kind == "sliding_attention" else None
        if pooling == "cls" and index == layers - 1:
            seen = sum(min(s, s if reach is None else reach + 1) for s in lengths)
            texts = sum(s > 0 for s in lengths)
            count += 4 * d * d * sum(lengths) + (rows - 4 * d * d) * texts + 4 * d * seen
        else:
            count += rows * sum(lengths) + 4 * d * sum(_pairs(s, reach) for s in lengths)
    return count


def _pairs(length: int, window: int | None) -> int:
    """Pairs of tokens of one text that see each other."""
    if window is None or length <= window + 1:
        return length * length
    return length * (2 * window + 1) - window * (window + 1)


def matrix_product_rate(dtype: torch.dtype, hidden_size: int = 384, intermediate_size: int = 1536) -> float:
    """Measure a CPU's ceiling in operations a second: an encoder's widest product by the fastest route."""
    tokens, d, f = 2048, hidden_size, intermediate_size
    with torch.inference_mode():
        linear = Linear(torch.randn(f, d).to(dtype), torch.zeros(f, dtype=dtype))
        x = torch.randn(tokens, d).to(dtype)
        timing = interleaved({"": repeated(partial(linear, x))}, WallClock(CPU), rounds=40, warmups=5)[""]
    return 2.0 * tokens * d * f / timing.p50


def spearman(values: Tensor, others: Tensor) -> float:
    """Spearman's rank correlation of two [N], ties sharing their mean rank; NaN where a value is NaN."""
    if not bool(torch.isfinite(values).all()) or not bool(torch.isfinite(others).all()):
        return float("nan")
    ranks = np.stack([average_ranks(values), average_ranks(others)])
    return float(torch.from_numpy(ranks).corrcoef()[0, 1])


def provenance(device: torch.device) -> dict[str, Any]:
    """Say where and from what a result comes: date, commit, device, versions, threads."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit or "unknown",
        # Unknown too where git does not answer, as in a copied tree.
        "uncommitted_changes": bool(_git("status", "--porcelain", "--untracked-files=no"))
        if commit
        else None,
        "device": device_name(device),
        "cpu": _cpu_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "torch_threads": torch.get_num_threads(),
        "versions": {
            "python": platform.python_version(),
            "fastreward": fastreward.__version__,
            "torch": torch.__version__,
            "cuda": torch.version.cuda,
            **{
                name: _version(name)
                for name in ("triton", "transformers", "tokenizers", "sentence-transformers")
            },
        },
    }


def device_name(device: torch.device) -> str:
    """The GPU's name, or the CPU's with the number of threads in use."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"CPU {_cpu_name()}, {torch.get_num_threads()} threads"


def write_results(folder: Path, suite: str, results: Mapping[str, Any]) -> Path:
    """Write `folder/<device>/<suite>-<date>-<commit>.json`, and never over another file.

    Args:
        folder: Usually `benchmarks/results`.
        suite: The first part of the file's name.
        results: What `provenance` says, and the measurements.
    """
    slug = re.sub(r"[^a-z0-9]+", "-", str(results["device"]).lower()).strip("-")
    date = datetime.fromisoformat(results["date"]).strftime("%Y%m%dT%H%M%SZ")
    path = folder / slug / f"{suite}-{date}-{results['commit']}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("x", encoding="utf-8") as file:
        json.dump(results, file, indent=2, ensure_ascii=False)
        file.write("\n")
    return path


def wide_console() -> Console:
    """A console for tables: as wide as the terminal, or wide enough where there is none."""
    return Console() if sys.stdout.isatty() else Console(width=180)


def _cpu_name() -> str:
    try:
        described = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        described = ""
    found = re.search(r"^model name\s*:\s*(.+)$", described, re.MULTILINE)
    return found[1].strip() if found else platform.processor() or platform.machine()


def _git(*arguments: str) -> str:
    """What git says about this tree, "" where there is no git or no repository."""
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
