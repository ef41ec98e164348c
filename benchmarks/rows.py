"""Rows of results: what a variant of a workload took, beside the ceiling, as a table and as JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from rich.markup import escape
from rich.table import Table

from benchmarks.measure import Ceiling, Clock, Copy, MatrixProduct, Ratio, Run, Timing
from benchmarks.workloads import SENTENCE_TRANSFORMERS, Ask, Case, Checked, Finding


@dataclass(frozen=True)
class Row:
    """One variant of one workload by one clock, or why it was not timed.

    Attributes:
        workload: Its name.
        variant: Its name, or the ceiling's.
        clock: "gpu" or "wall"; "" where nothing was timed.
        timing: None where nothing was timed.
        moved_bytes: What the op must move, or what the copy moves.
        flops: Operations of the matrix products.
        tokens: Of an encoder's batch; 0 for an op.
        percent_of_ceiling: Bytes a second of those of the copy, or operations a second of those of the best
            matrix product.
        slower_than_ours: How many times as long as ours, of the medians.
        asked_percent: What `percent_of_ceiling` must be at least; None asks nothing.
        error: Why it was not timed.
        peak_flops: Operations a second of which the MFU is a share; None where there is no MFU.
        tail: Whether rounds are many enough, and alike enough, for their 99th percentile to say something.
        facts: What else the row should say, by name: a batch size, the share of known words.
    """

    workload: str
    variant: str
    clock: str = ""
    timing: Timing | None = None
    moved_bytes: int = 0
    flops: int = 0
    tokens: int = 0
    percent_of_ceiling: float | None = None
    slower_than_ours: Ratio | None = None
    asked_percent: float | None = None
    error: str | None = None
    peak_flops: float | None = None
    tail: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def p99_s(self) -> float | None:
        """One round in a hundred took more; None where that says nothing."""
        return self.timing.quantile(0.99) if self.timing is not None and self.tail else None

    @property
    def mfu_percent(self) -> float | None:
        """Operations of the matrix products a second, as a share of the peak."""
        reached = self.per_second(self.flops)
        return None if reached is None or not self.peak_flops else 100.0 * reached / self.peak_flops

    def per_second(self, amount: int) -> float | None:
        """An amount a second, at the median."""
        return None if self.timing is None or not amount else amount / self.timing.p50

    @property
    def met(self) -> bool | None:
        """Whether it reaches what is asked, NaN never; None where nothing is asked or nothing was timed."""
        if self.asked_percent is None or self.percent_of_ceiling is None:
            return None
        return self.percent_of_ceiling >= self.asked_percent

    def as_json(self) -> dict[str, Any]:
        """The row as it is written."""
        gb_per_s, tflop_per_s = (
            None if rate is None else rate / unit
            for rate, unit in ((self.per_second(self.moved_bytes), 1e9), (self.per_second(self.flops), 1e12))
        )
        ratio = self.slower_than_ours
        return {
            "workload": self.workload,
            "variant": self.variant,
            "clock": self.clock,
            **({} if self.timing is None else self.timing.as_json()),
            "moved_bytes": self.moved_bytes,
            "gb_per_s": gb_per_s,
            "flops": self.flops,
            "tflop_per_s": tflop_per_s,
            "tokens_per_s": self.per_second(self.tokens),
            "mfu_percent": self.mfu_percent,
            "p99_s": self.p99_s,
            "percent_of_ceiling": self.percent_of_ceiling,
            "asked_percent": self.asked_percent,
            "met": self.met,
            "slower_than_ours": None if ratio is None else ratio.as_json(),
            "facts": dict(self.facts),
            "error": self.error,
        }

    def cells(self) -> list[str]:
        """The row as it is shown."""
        if self.timing is None:
            return [self.workload, self.variant, self.clock, "not timed", *[""] * (len(COLUMNS) - 4)]
        t, ratio = self.timing, self.slower_than_ours
        return [
            self.workload,
            self.variant,
            self.clock,
            *(f"{seconds * 1e6:,.1f}" for seconds in (t.p50, t.p20, t.p80)),
            _shown(self.per_second(self.moved_bytes), 1e-9),
            _shown(self.per_second(self.flops), 1e-12),
            _shown(self.per_second(self.tokens), 1e-6),
            "" if self.percent_of_ceiling is None else f"{self.percent_of_ceiling:.0f} %",
            "" if self.met is None else f"≥ {self.asked_percent:g} % {'met' if self.met else 'MISSED'}",
            "" if ratio is None else f"{ratio.of_medians:.2f}",
            "" if ratio is None else f"{ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f}",
        ]


COLUMNS: Final = (
    *("workload", "variant", "clock", "p50 µs", "p20", "p80", "GB/s", "TFLOP/s", "M tokens/s"),
    *("of ceiling", "asked", "× ours", "(p20 – p80)"),
)


def _shown(value: float | None, factor: float) -> str:
    """A number of three digits at least."""
    if value is None:
        return ""
    value *= factor
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}"


def new_table(title: str) -> Table:
    """A table for `Row.cells`."""
    table = Table(title=title)
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("workload", "variant", "clock") else "right")
    return table


def measured_rows(
    name: str,
    case: Case,
    found: Checked,
    clocks: Mapping[str, Clock],
    time: Callable[[Mapping[str, Run], Clock], Mapping[str, Timing]],
    ceiling: tuple[str, Ceiling] | None,
    asked_percent: float | None = None,
) -> list[Row]:
    """Time the variants that are right, with the ceiling among them, and list the others.

    Args:
        name: The workload's.
        case: Bytes, operations and tokens.
        found: The variants, checked.
        clocks: By name; all variants are timed by each.
        time: Times all in turns by one clock. Ours is the first.
        ceiling: Its name, and what runs; None for latency, where nothing is a ceiling.
        asked_percent: What ours must reach of it; None asks nothing.
    """
    runs: dict[str, Run] = {case.ours: found.usable[case.ours], **found.usable}
    if ceiling is not None:
        runs[ceiling[0]] = ceiling[1]
    rows = []
    for clock_name, clock in clocks.items():
        timings = time(runs, clock)
        ours = timings[case.ours]
        for variant, timing in timings.items():
            row = Row(name, variant, clock_name, timing, case.moved_bytes, case.flops, case.tokens)
            if ceiling is not None:
                row = _against(row, *ceiling, timings[ceiling[0]])
            if variant == case.ours:
                row = replace(row, asked_percent=asked_percent)
            if ceiling is None or variant != ceiling[0]:
                row = replace(row, slower_than_ours=Ratio(slow=timing, fast=ours))
            rows.append(row)
    return rows + [Row(name, variant, error=reason) for variant, reason in found.failed.items()]


def _against(row: Row, name: str, ceiling: Ceiling, timing: Timing) -> Row:
    """Set what the row reaches of the ceiling; the ceiling's own row gets its own bytes or operations."""
    if row.variant == name:
        moved_bytes = ceiling.moved_bytes if isinstance(ceiling, Copy) else 0
        flops = ceiling.flops if isinstance(ceiling, MatrixProduct) else 0
        row = replace(row, moved_bytes=moved_bytes, flops=flops, tokens=0)
    if isinstance(ceiling, Copy):
        best, reached = ceiling.moved_bytes / timing.p50, row.per_second(row.moved_bytes)
    else:
        best, reached = ceiling.flops / timing.p50, row.per_second(row.flops)
    return replace(row, percent_of_ceiling=None if reached is None else 100.0 * reached / best)


def fidelity_table(findings: Sequence[Finding], title: str = "results", what: str = "scores") -> Table:
    """Show what was found, and whether it is as asked."""
    table = Table(title=title)
    for column in (what, "asked", "found", ""):
        table.add_column(column)
    for finding in findings:
        table.add_row(*map(escape, finding.cells()))
    return table


# --------------------------------------------------------------------------- from texts or ids to results


END_TO_END_COLUMNS: Final = (
    *("workload", "variant", "clock", "p50 ms", "p20", "p80", "p99", "M tokens/s", "MFU"),
    *("× ours", "(p20 – p80)", ""),
)


def end_to_end_table(title: str, rows: Sequence[Row]) -> Table:
    """Show rows of encoders, a line between workloads; where a row has facts they stand at its end."""
    table = Table(title=title)
    for column in END_TO_END_COLUMNS:
        table.add_column(
            column, justify="left" if column in ("workload", "variant", "clock", "") else "right"
        )
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        table.add_row(
            *_end_to_end_cells(row), end_section=following is None or following.workload != row.workload
        )
    return table


def _end_to_end_cells(row: Row) -> list[str]:
    if row.timing is None:
        return [row.workload, row.variant, row.clock, "not timed", *[""] * (len(END_TO_END_COLUMNS) - 4)]
    t, ratio = row.timing, row.slower_than_ours
    return [
        row.workload,
        row.variant,
        row.clock,
        *(_shown(seconds, 1e3) for seconds in (t.p50, t.p20, t.p80, row.p99_s)),
        _shown(row.per_second(row.tokens), 1e-6),
        "" if row.mfu_percent is None else f"{row.mfu_percent:.1f} %",
        "" if ratio is None else f"{ratio.of_medians:.2f}",
        "" if ratio is None else f"{ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f}",
        ", ".join(f"{name} {_fact(v)}" for name, v in row.facts.items() if not isinstance(v, Mapping)),
    ]


def _fact(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def target(name: str, ask: Ask, rows: Sequence[Row], not_judged: str | None) -> Finding:
    """Hold a workload's rows against what is asked.

    Args:
        name: The workload's.
        ask: What is asked.
        rows: The workload's rows.
        not_judged: Why nothing is judged in this run, or None.
    """
    value, reason = _reached(ask, rows)
    if not_judged is not None:
        value, reason = None, not_judged
    at_most = ask.quantity == "ms"
    return Finding(f"{name}, {ask.variant}", ask.quantity, value, ask.bound, at_most, reason)


def _reached(ask: Ask, rows: Sequence[Row]) -> tuple[float | None, str]:
    timed = [row for row in rows if row.timing is not None]
    # Latency of a kernel is taken by two clocks; what is asked is what the caller waits for, the later one.
    ours = next((row for row in reversed(timed) if row.variant == ask.variant), None)
    if ours is None or ours.timing is None:
        return None, next((row.error for row in rows if row.error), None) or "not timed"
    if ask.quantity == "ms":
        return 1e3 * ours.timing.p50, ""
    if ask.quantity == "M tokens/s":
        rate = ours.per_second(ours.tokens)
        return (None, "no tokens") if rate is None else (rate / 1e6, "")
    peers = [row.timing.p50 for row in timed if row.timing and row.variant.startswith(SENTENCE_TRANSFORMERS)]
    return (min(peers) / ours.timing.p50, "") if peers else (None, "no peer was timed")
