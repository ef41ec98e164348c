"""A faster variant compared with slower ones on a CPU: what `bench_scorer` and `bench_encoder` share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from rich.table import Table

from benchmarks.measure import CPU, Prepare, Ratio, Timing
from fastreward.backends import native_bf16


@dataclass(frozen=True)
class Bounds:
    """How far scores or vectors may be from a peer's in fp32."""

    max_error: float
    rms_error: float


@dataclass(frozen=True)
class Pair:
    """What is compared.

    Attributes:
        fast: The variant that should be faster.
        slow: What it is compared with: the fastest of these, by the medians.
        encoded: The texts that the faster one has to encode; empty where the row's module knows them.
    """

    fast: tuple[str, Prepare]
    slow: Mapping[str, Prepare]
    encoded: tuple[str, ...] = ()

    @property
    def variants(self) -> dict[str, Prepare]:
        """All that take turns."""
        return {self.fast[0]: self.fast[1], **self.slow}


@dataclass(frozen=True)
class Row:
    """One comparison; `asked` is what the ratio slow / fast has to be, as (sign, bound)."""

    name: str
    dtype: torch.dtype
    pair: Callable[..., Pair]
    asked: tuple[str, float] | None = None

    def verdict(self, ratio: float, rounds: int) -> str:
        """The bound, and whether it is met; fewer than five rounds judge nothing."""
        if self.asked is None or rounds < 5:
            return ""
        sign, bound = self.asked
        met = ratio >= bound if sign == "≥" else ratio <= bound
        return f"{sign} {bound} {'met' if met else 'MISSED'}"


@dataclass(frozen=True)
class Measured:
    """What one row came to.

    Attributes:
        row: The comparison.
        fast: The faster variant's name, which is one of those in `timings`.
        timings: Of all variants.
        texts: Completions that are scored.
        tokens: What the faster variant encodes.
        flops: Operations of its matrix products.
        ceiling: Operations a second of one large product, measured beside it.
    """

    row: Row
    fast: str
    timings: Mapping[str, Timing]
    texts: int
    tokens: int
    flops: float
    ceiling: float

    @property
    def slow(self) -> str:
        """The fastest of the others."""
        others = (name for name in self.timings if name != self.fast)
        return min(others, key=lambda name: self.timings[name].p50)

    @property
    def ratio(self) -> Ratio:
        """slow / fast."""
        return Ratio(slow=self.timings[self.slow], fast=self.timings[self.fast])

    @property
    def percent_of_ceiling(self) -> float:
        """The faster variant's matrix products, against the rate measured beside it."""
        return 100.0 * self.flops / self.timings[self.fast].p50 / self.ceiling

    def as_json(self) -> dict[str, Any]:
        """The row as it is written."""
        fast_s = self.timings[self.fast].p50
        variants = {name: {"variant": name, **timing.as_json()} for name, timing in self.timings.items()}
        return {
            "name": self.row.name,
            "dtype": str(self.row.dtype).removeprefix("torch."),
            "fast": variants.pop(self.fast),
            "slow": variants.pop(self.slow),
            "slower_still": list(variants.values()),
            "ratio": self.ratio.as_json(),
            "asked": None if self.row.asked is None else " ".join(map(str, self.row.asked)),
            "texts_per_s": self.texts / fast_s,
            "tokens_per_s": self.tokens / fast_s,
            "tokens_encoded": self.tokens,
            "gflop_per_s": self.flops / fast_s / 1e9,
            "ceiling_gflop_per_s": self.ceiling / 1e9,
            "percent_of_ceiling": self.percent_of_ceiling,
        }

    def cells(self) -> list[str]:
        """The row as it is shown; of peers that were slower still, the medians."""
        ratio, fast = self.ratio, self.timings[self.fast]
        others = [name for name in self.timings if name not in (self.fast, self.slow)]
        return [
            self.row.name,
            self._seconds(self.fast),
            "\n".join([self._seconds(self.slow), *(f"{n}: {self.timings[n].p50:.2f}" for n in others)]),
            f"{ratio.of_medians:.2f} ({ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f})",
            self.row.verdict(ratio.of_medians, len(fast.seconds)),
            f"{self.texts / fast.p50:,.0f}",
            f"{self.percent_of_ceiling:.0f} %",
        ]

    def _seconds(self, name: str) -> str:
        t = self.timings[name]
        return f"{name}: {t.p50:.2f} ({t.p20:.2f} – {t.p80:.2f})"


def why_not(row: Row) -> str | None:
    """Why a row means nothing on this machine, or None."""
    if row.dtype == torch.bfloat16 and not native_bf16(CPU):
        return "this CPU does not multiply bf16 in hardware"
    return None


def new_table(title: str) -> Table:
    """A table for the rows of `Measured.cells`."""
    table = Table(title=title)
    for name in ("row", "variant: seconds", "compared with: seconds"):
        table.add_column(name)
    for name in ("ratio (p20 – p80)", "asked", "texts/s", "of product rate"):
        table.add_column(name, justify="right")
    return table
