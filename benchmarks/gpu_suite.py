"""The GPU benchmarks: `python benchmarks/gpu_suite.py [--only NAME ...] [--quick] [--out FOLDER]`.

First every implementation is held against fp64 on the CPU, and nothing is timed if one is wrong. Then each
workload is timed with all its variants taking turns, beside a copy within the GPU's memory, which is the
ceiling for an op that only moves bytes. How and why: NOTES.md. It needs no network.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from rich.table import Table

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import (
    ROOT,
    Clock,
    ColdCache,
    Copy,
    CudaEvents,
    GateError,
    Timing,
    WallClock,
    interleaved,
    provenance,
    repeated,
    require_close,
    wide_console,
    write_results,
)
from benchmarks.peers import OUR_MAX_ERROR, OURS, checked_variants, pooled_cosine_fp64
from benchmarks.shapes import (
    EDGE_CASES,
    POOLED_COSINE_GPU,
    SHORT,
    PackedShape,
    PooledCosineInputs,
    pooled_cosine_inputs,
    shrunk,
)
from fastreward.ops.pooled_cosine import pooled_cosine, pooled_cosine_bytes

RESULTS: Final = ROOT / "benchmarks" / "results"
COPY: Final = "copy"
DTYPE: Final = torch.bfloat16


@dataclass(frozen=True)
class Workload:
    """One shape of one op.

    Attributes:
        op: The op's stem.
        shape: The texts.
        layer_norm: With the last residual add and LayerNorm fused.
        latency: So little work that what counts is how soon it is done: timed on the GPU and by the caller's
            clock. Otherwise it is held against the copy.
    """

    op: str
    shape: PackedShape
    layer_norm: bool
    latency: bool = False

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return f"{self.op}-{self.shape.name}" + ("-ln" if self.layer_norm else "")


WORKLOADS: Final = (
    *(Workload("pooled_cosine", shape, norm) for shape in POOLED_COSINE_GPU for norm in (False, True)),
    *(Workload("pooled_cosine", SHORT, norm, latency=True) for norm in (False, True)),
)


@dataclass(frozen=True)
class Plan:
    """How much is done, and on what."""

    device: torch.device
    rounds: int
    warmups: int
    copy_bytes: int
    quick: bool
    dry_run: bool

    def shape(self, workload: Workload) -> PackedShape:
        """The workload's shape; a dry run takes a small relative of it."""
        return shrunk(workload.shape) if self.dry_run else workload.shape

    def inputs(self, workload: Workload) -> PooledCosineInputs:
        """Draw the inputs."""
        shape = self.shape(workload)
        return pooled_cosine_inputs(
            shape.lengths(),
            shape.hidden_size,
            dtype=DTYPE,
            device=self.device,
            layer_norm=workload.layer_norm,
        )

    def compile_options(self, workload: Workload) -> dict[str, Any] | None:
        """What PyTorch's documentation advises: autotuning for much work, CUDA graphs for little."""
        if self.quick:
            return None
        if self.dry_run:
            return {"backend": "eager"}  # traced, so that a graph break shows, but not compiled
        return {"mode": "reduce-overhead" if workload.latency else "max-autotune-no-cudagraphs"}

    def clocks(self, workload: Workload) -> dict[str, Clock]:
        """The GPU's own time, and for latency the caller's as well."""
        wall = WallClock(self.device)
        if self.device.type != "cuda":
            return {"wall": wall}
        events = CudaEvents(ColdCache(self.device))
        return {"gpu": events, "wall": wall} if workload.latency else {"gpu": events}


@dataclass(frozen=True)
class Row:
    """One variant of one workload by one clock."""

    workload: str
    variant: str
    clock: str
    timing: Timing | None
    moved_bytes: int
    percent_of_copy: float | None = None
    slower_than_ours: float | None = None
    error: str | None = None

    @property
    def gb_per_s(self) -> float | None:
        """10⁹ bytes a second, of the bytes that the op must move, at the median."""
        return None if self.timing is None else self.moved_bytes / self.timing.p50 / 1e9

    def as_json(self) -> dict[str, Any]:
        """The row as it is written."""
        return {
            "workload": self.workload,
            "variant": self.variant,
            "clock": self.clock,
            **({} if self.timing is None else self.timing.as_json()),
            "moved_bytes": self.moved_bytes,
            "gb_per_s": self.gb_per_s,
            "percent_of_copy": self.percent_of_copy,
            "slower_than_ours": self.slower_than_ours,
            "error": self.error,
        }

    def cells(self) -> list[str]:
        """The row as it is shown."""
        if self.timing is None:
            return [self.workload, self.variant, self.clock, "failed", *[""] * 5]
        microseconds = [f"{s * 1e6:,.1f}" for s in (self.timing.p20, self.timing.p50, self.timing.p80)]
        percent = "" if self.percent_of_copy is None else f"{self.percent_of_copy:.0f} %"
        slower = "" if self.slower_than_ours is None else f"{self.slower_than_ours:.2f}"
        return [
            self.workload,
            self.variant,
            self.clock,
            *microseconds,
            f"{self.gb_per_s:,.0f}",
            percent,
            slower,
        ]


def check_edges(device: torch.device) -> None:
    """Hold the op against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for name, (lengths, hidden_size) in EDGE_CASES.items():
        for dtype in dtypes:
            for layer_norm in (False, True):
                inputs = pooled_cosine_inputs(
                    lengths, hidden_size, dtype=dtype, device=device, layer_norm=layer_norm
                )
                what = f"pooled_cosine, {name}, {dtype}, layer_norm={layer_norm}"
                scores = pooled_cosine(**inputs.arguments())
                require_close(what, scores, pooled_cosine_fp64(inputs), max_error=OUR_MAX_ERROR)


def time_workload(workload: Workload, plan: Plan) -> list[Row]:
    """Check and time all variants of one workload."""
    inputs = plan.inputs(workload)
    usable, failed = checked_variants(inputs, compile_options=plan.compile_options(workload))
    moved_bytes = pooled_cosine_bytes(
        inputs.hidden_states.shape[0],
        len(inputs.lengths),
        inputs.hidden_states.shape[1],
        inputs.hidden_states.dtype,
        layer_norm=workload.layer_norm,
    )
    copy = Copy.of(plan.copy_bytes, plan.device)
    runs: dict[str, Callable[[], object]] = dict(usable) if workload.latency else {**usable, COPY: copy}
    rows = []
    for clock_name, clock in plan.clocks(workload).items():
        variants = {name: repeated(run) for name, run in runs.items()}
        timings = interleaved(variants, clock, rounds=plan.rounds, warmups=plan.warmups)
        for name, timing in timings.items():
            size = copy.moved_bytes if name == COPY else moved_bytes
            percent = None
            if COPY in timings:
                percent = 100.0 * (size / timing.p50) / (copy.moved_bytes / timings[COPY].p50)
            slower = None if name == COPY else timing.p50 / timings[OURS].p50
            rows.append(Row(workload.name, name, clock_name, timing, size, percent, slower))
    rows += [Row(workload.name, name, "", None, moved_bytes, error=why) for name, why in failed.items()]
    return rows


def table_of(rows: Sequence[Row], title: str) -> Table:
    """Show the rows, one section for each workload."""
    table = Table(title=title)
    for name in ("workload", "variant", "clock"):
        table.add_column(name)
    for name in ("p20 µs", "p50 µs", "p80 µs", "GB/s", "of copy", "× ours"):
        table.add_column(name, justify="right")
    for row, following in zip(rows, [*rows[1:], None], strict=True):
        last = following is None or following.workload != row.workload
        table.add_row(*row.cells(), end_section=last)
    return table


def chosen_workloads(names: Sequence[str] | None, parser: argparse.ArgumentParser) -> list[Workload]:
    """The workloads that are named, by their own names or by their op's; all without names."""
    known = {name for workload in WORKLOADS for name in (workload.op, workload.name)}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        parser.error(f"no workload {', '.join(unknown)}. Choose among {', '.join(sorted(known))}.")
    return [w for w in WORKLOADS if not names or w.name in names or w.op in names]


def plan_of(options: argparse.Namespace) -> Plan:
    """Decide how much is done."""
    if options.dry_run_cpu:
        device = torch.device("cpu")
        return Plan(device, rounds=3, warmups=1, copy_bytes=2**20, quick=options.quick, dry_run=True)
    device = torch.device("cuda", torch.cuda.current_device())
    rounds, warmups = (10, 3) if options.quick else (50, 10)
    return Plan(device, rounds, warmups, copy_bytes=2**30, quick=options.quick, dry_run=False)


def run(workloads: Sequence[Workload], plan: Plan, out: Path | None) -> None:
    """Check, time, show, and write the results where `out` is given."""
    console = wide_console()
    source = provenance(plan.device)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    check_edges(plan.device)
    console.print(f"correct: {len(EDGE_CASES)} edge cases against fp64")
    rows: list[Row] = []
    for workload in workloads:
        console.print(f"{workload.name} …")
        rows += time_workload(workload, plan)
    title = f"{source['device']}: {plan.rounds} rounds in turns; L2 cold (clock gpu) or warm (clock wall)"
    if plan.dry_run:
        title = f"dry run on the CPU: these times mean nothing\n{title}"
    console.print(table_of(rows, title))
    for row in rows:
        if row.error:
            console.print(f"{row.workload}, {row.variant} was not timed: {row.error}", markup=False)
    if out is not None:
        results = {
            **source,
            "suite": "gpu_suite",
            "settings": {name: value for name, value in vars(plan).items() if name != "device"},
            "workloads": {workload.name: describe(workload, plan) for workload in workloads},
            "rows": [row.as_json() for row in rows],
        }
        console.print(f"wrote {write_results(out, 'gpu_suite', results)}", soft_wrap=True)


def describe(workload: Workload, plan: Plan) -> dict[str, Any]:
    """What a workload was, for the file."""
    shape = plan.shape(workload)
    lengths = shape.lengths()
    return {
        "num_tokens": shape.num_tokens,
        "num_texts": len(lengths),
        "longest_text": max(lengths),
        "hidden_size": shape.hidden_size,
        "dtype": str(DTYPE).removeprefix("torch."),
        "layer_norm": workload.layer_norm,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the suite: 0 when all is measured, 1 when a result is wrong, 2 when it cannot run as asked."""
    parser = argparse.ArgumentParser(prog="gpu_suite.py", description="Benchmarks on one CUDA GPU.")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="workloads, or ops with all their workloads"
    )
    parser.add_argument("--quick", action="store_true", help="ten rounds, and without torch.compile")
    parser.add_argument(
        "--out",
        type=Path,
        help=f"folder for the results (default: {RESULTS.relative_to(ROOT)}; a quick or dry run: none)",
    )
    parser.add_argument(
        "--dry-run-cpu",
        action="store_true",
        help="run every step on the CPU, with tiny shapes",
    )
    options = parser.parse_args(arguments)
    workloads = chosen_workloads(options.only, parser)
    if not options.dry_run_cpu and not torch.cuda.is_available():
        print(
            f"This needs a CUDA GPU, and PyTorch {torch.__version__} sees none (--dry-run-cpu needs none).",
            file=sys.stderr,
        )
        return 2
    try:
        evidence = not (options.dry_run_cpu or options.quick)
        run(workloads, plan_of(options), options.out or (RESULTS if evidence else None))
    except GateError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
