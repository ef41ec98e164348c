"""The GPU benchmarks: `python benchmarks/gpu_suite.py [--only NAME ...] [--quick] [--out FOLDER]`.

It finds the workloads of all `bench_<op>.py`. Each is first held against fp64 and then timed on the GPU's
own clock, from a cold L2 cache, its variants taking turns with the ceiling: a copy within the memory for an
op that moves bytes, the best matrix product for one that multiplies. A workload that is wrong, raises or
cannot run here is a row that says so; the others are still measured, and at the end the run fails if ours
was wrong, or slower than asked (`Workload.asked_percent`). How and why: NOTES.md. It needs no network.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import (
    ROOT,
    Ceiling,
    Clock,
    ColdCache,
    Copy,
    CudaEvents,
    MatrixProduct,
    Run,
    Timing,
    WallClock,
    interleaved,
    provenance,
    repeated,
    wide_console,
    write_results,
)
from benchmarks.rows import Row, fidelity_table, measured_rows, new_table
from benchmarks.workloads import COMPILED, NOT_HERE, Fidelity, Finding, Workload, checked, why

RESULTS: Final = ROOT / "benchmarks" / "results"
DTYPE: Final = torch.bfloat16
FIRST: Final = "bench_pooled_cosine"  # what must be measured should the time run out

WORKLOAD_S: Final = 3.0
"""Seconds for the rounds of one workload and clock; ten rounds are timed whatever they take."""

COMPILE_UNTIL: Final = 0.6
"""After this share of the time nothing is compiled any more, so that ours is measured for every workload."""


@dataclass(frozen=True)
class Suite:
    """What the benchmark modules offer.

    Attributes:
        workloads: In the order in which they run.
        fidelity: Requirements on results, after the workloads.
        edges: By op, the module that checks its edges.
        broken: Ops whose module could not be imported, with the reason.
    """

    workloads: tuple[Workload, ...]
    fidelity: tuple[Fidelity, ...]
    edges: Mapping[str, ModuleType]
    broken: Mapping[str, str]


def found_suite(folder: Path = ROOT / "benchmarks") -> Suite:
    """Import every `bench_*.py` of a folder that is a package `benchmarks`."""
    names = sorted((path.stem for path in folder.glob("bench_*.py")), key=lambda name: (name != FIRST, name))
    modules, broken = [], {}
    for name in names:
        try:
            modules.append(importlib.import_module(f"benchmarks.{name}"))
        except Exception as error:  # one that is broken must not keep the others from being measured
            broken[name.removeprefix("bench_")] = why(error)
    return Suite(
        workloads=tuple(w for module in modules for w in getattr(module, "WORKLOADS", ())),
        fidelity=tuple(f for module in modules for f in getattr(module, "FIDELITY", ())),
        edges={
            workload.op: module
            for module in modules
            if hasattr(module, "check_edges")
            for workload in module.WORKLOADS
        },
        broken=broken,
    )


@dataclass(frozen=True)
class Plan:
    """How much is done, and on what."""

    device: torch.device
    rounds: int
    warmups: int
    copy_bytes: int
    product_size: int
    quick: bool
    dry_run: bool
    minutes: float
    started: float = field(default_factory=time.monotonic)

    def share_of_time(self) -> float:
        """How much of the minutes is used up."""
        spent = time.monotonic() - self.started
        return spent / (60.0 * self.minutes) if self.minutes > 0.0 else math.inf

    def leave_out(self, variant: str) -> str | None:
        """Why a variant is not run, or None."""
        if variant.startswith(COMPILED):
            if self.quick:
                return "a quick run compiles nothing"
            if self.share_of_time() > COMPILE_UNTIL:
                return f"{COMPILE_UNTIL:.0%} of {self.minutes:g} minutes were used up: compiled no more"
        return None

    def clocks(self, workload: Workload) -> dict[str, Clock]:
        """The GPU's own time, and for latency the caller's as well; on a CPU there is no other."""
        wall: dict[str, Clock] = {"wall": WallClock(self.device)}
        if self.device.type != "cuda":
            return wall
        gpu: dict[str, Clock] = {"gpu": self._events}
        return gpu | wall if workload.latency else gpu

    @functools.cached_property
    def _events(self) -> CudaEvents:
        return CudaEvents(ColdCache(self.device))

    @functools.cached_property
    def ceilings(self) -> dict[str, Ceiling]:
        """What workloads are held against, by `Workload.bound`."""
        return {
            "memory": Copy.of(self.copy_bytes, self.device),
            "compute": MatrixProduct.of(self.product_size, DTYPE, self.device),
        }

    def time(self, runs: Mapping[str, Run], clock: Clock) -> Mapping[str, Timing]:
        """Time variants in turns."""
        variants = {name: repeated(run) for name, run in runs.items()}
        return interleaved(variants, clock, rounds=self.rounds, warmups=self.warmups, budget_s=WORKLOAD_S)

    def settings(self) -> dict[str, Any]:
        """For the file."""
        names = ("rounds", "warmups", "copy_bytes", "product_size", "quick", "dry_run", "minutes")
        return {name: getattr(self, name) for name in names}


@dataclass
class Outcome:
    """What a run came to, as it goes."""

    rows: list[Row] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    described: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def fail(self, name: str, error: BaseException) -> None:
        """Keep why ours could not be measured. What cannot run here is listed and is no failure."""
        self.rows.append(Row(name, "", error=why(error)))
        if not isinstance(error, NOT_HERE):
            self.failures.append(f"{name}: {why(error)}")


def check_edges(ops: Sequence[str], suite: Suite, device: torch.device, outcome: Outcome) -> list[str]:
    """Check the edges of ops; return those that are wrong, which are not timed."""
    wrong = []
    for op in ops:
        try:
            if op in suite.edges:
                suite.edges[op].check_edges(device)
        except Exception as error:
            wrong.append(op)
            outcome.fail(op, error)
    return wrong


def time_workload(workload: Workload, plan: Plan, outcome: Outcome) -> None:
    """Draw, check and time all variants of one workload."""
    if plan.share_of_time() > 1.0:
        outcome.rows.append(Row(workload.name, "", error=f"{plan.minutes:g} minutes were used up"))
        return
    try:
        _measure(workload, plan, outcome)
    except Exception as error:
        outcome.fail(workload.name, error)
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()  # sizes differ from workload to workload


def _measure(workload: Workload, plan: Plan, outcome: Outcome) -> None:
    case = workload.draw(plan.device, DTYPE, plan.dry_run)
    outcome.described[workload.name] = dict(case.describe)
    found = checked(case, leave_out=plan.leave_out)
    ceiling = None if workload.latency else (workload.ceiling, plan.ceilings[workload.bound])
    asked = None if plan.dry_run else workload.asked_percent
    rows = measured_rows(workload.name, case, found, plan.clocks(workload), plan.time, ceiling, asked)
    outcome.rows += rows
    outcome.failures += [
        f"{row.workload}: {row.percent_of_ceiling:.1f} of {row.asked_percent:g} % of the {workload.ceiling}"
        for row in rows
        if row.met is False
    ]


def check_fidelity(wanted: Fidelity, plan: Plan, encoder: Path | None, outcome: Outcome) -> None:
    """Check a requirement on results."""
    try:
        found = list(wanted.check(plan.device, plan.dry_run, encoder))
    except Exception as error:
        outcome.fail(wanted.name, error)
        return
    outcome.findings += found
    outcome.failures += [": ".join(f.cells()[:-1]) for f in found if f.met is False]


def run(
    suite: Suite, names: Sequence[str] | None, plan: Plan, encoder: Path | None, out: Path | None
) -> Outcome:
    """Check, time, show, and write the results where `out` is given."""
    console = wide_console()
    source = provenance(plan.device)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    outcome = Outcome()
    for op, reason in suite.broken.items():
        if not names or op in names:
            outcome.rows.append(Row(op, "", error=reason))
            outcome.failures.append(f"{op}: {reason}")
    workloads = [w for w in suite.workloads if not names or w.name in names or w.op in names]
    wrong = check_edges(list(dict.fromkeys(w.op for w in workloads)), suite, plan.device, outcome)
    for workload in workloads:
        if workload.op not in wrong:
            console.print(f"{workload.name} …")
            time_workload(workload, plan, outcome)
    for wanted in (f for f in suite.fidelity if not names or f.name in names or SCORES in names):
        console.print(f"{wanted.name} …")
        check_fidelity(wanted, plan, encoder, outcome)
    show(outcome, plan, source["device"])
    if out is not None:
        results = {
            **source,
            "suite": "gpu_suite",
            "settings": plan.settings(),
            "workloads": outcome.described,
            "rows": [row.as_json() for row in outcome.rows],
            "scores": [finding.as_json() for finding in outcome.findings],
            "failures": outcome.failures,
        }
        console.print(f"wrote {write_results(out, 'gpu_suite', results)}", soft_wrap=True)
    return outcome


def show(outcome: Outcome, plan: Plan, device: str) -> None:
    """Print the tables, and the reasons below them."""
    console = wide_console()
    title = f"{device}: up to {plan.rounds} rounds in turns; L2 cold (clock gpu) or warm (clock wall)"
    if plan.dry_run:
        title = f"dry run on the CPU: these times mean nothing\n{title}"
    table = new_table(title)
    for row, following in zip(outcome.rows, [*outcome.rows[1:], None], strict=True):
        table.add_row(*row.cells(), end_section=following is None or following.workload != row.workload)
    console.print(table)
    if outcome.findings:
        console.print(fidelity_table(outcome.findings))
    for row in outcome.rows:
        if row.error:
            console.print(f"{row.workload} {row.variant}".strip() + f": {row.error}", markup=False)


SCORES: Final = "scores"


def known_names(suite: Suite) -> set[str]:
    """What `--only` takes."""
    names = {name for workload in suite.workloads for name in (workload.op, workload.name)}
    names |= set(suite.broken)
    return names | {wanted.name for wanted in suite.fidelity} | ({SCORES} if suite.fidelity else set())


def plan_of(options: argparse.Namespace) -> Plan:
    """Decide how much is done."""
    common = {"quick": options.quick, "dry_run": options.dry_run_cpu, "minutes": options.minutes}
    if options.dry_run_cpu:
        return Plan(torch.device("cpu"), 3, 1, copy_bytes=2**20, product_size=64, **common)
    device = torch.device("cuda", torch.cuda.current_device())
    rounds, warmups = (10, 2) if options.quick else (50, 5)
    return Plan(device, rounds, warmups, copy_bytes=2**30, product_size=8192, **common)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="gpu_suite.py", description="Benchmarks on one CUDA GPU.")
    made.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help=f"workloads, ops with all their workloads, or {SCORES!r}: how near scores are to the CPU's",
    )
    made.add_argument("--quick", action="store_true", help="ten rounds, and without torch.compile")
    made.add_argument("--minutes", type=float, default=8.0, help="what takes longer is left out (default: 8)")
    made.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2, for its scores")
    made.add_argument(
        "--out",
        type=Path,
        help=f"folder for the results (default: {RESULTS.relative_to(ROOT)}; a quick or dry run: none)",
    )
    made.add_argument(
        "--dry-run-cpu", action="store_true", help="run every step on the CPU, with tiny shapes"
    )
    return made


def main(arguments: Sequence[str] | None = None, suite: Suite | None = None) -> int:
    """Run the suite: 0 when all is right, 1 when ours is not, 2 when it cannot run as asked."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if not options.dry_run_cpu and not torch.cuda.is_available():
        print(
            f"This needs a CUDA GPU, and PyTorch {torch.__version__} sees none (--dry-run-cpu needs none).",
            file=sys.stderr,
        )
        return 2
    suite = suite or found_suite()
    known = known_names(suite)
    if unknown := sorted(set(options.only or ()) - known):
        command_line.error(f"no workload {', '.join(unknown)}. Choose among {', '.join(sorted(known))}.")
    evidence = not (options.dry_run_cpu or options.quick)
    out = options.out or (RESULTS if evidence else None)
    outcome = run(suite, options.only, plan_of(options), options.encoder, out)
    for failure in outcome.failures:
        print(failure, file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
