"""The GPU benchmarks: `python benchmarks/gpu_suite.py [--only NAME ...] [--quick] [--out FOLDER]`.

It finds the workloads of all `bench_<op>.py`. Each is first held against fp64 and then timed on the GPU's
own clock, from a cold L2 cache, its variants taking turns with the ceiling: a copy within the memory for an
op that moves bytes, the best matrix product for one that multiplies. The scenarios are timed by the caller's
clock, from texts or ids to results on the host. What is wrong, raises or cannot run here is a row that says
so; the others are still measured, and at the end the run fails if ours was wrong, or slower than asked
(`Workload.asked_percent`, `Ask`). How and why: NOTES.md. It needs no network.

The minutes are shared out among stages (`STAGES`). What a stage has no time for comes again at the end, as
long as minutes are left; what they do not reach is a row that says so.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
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
    device_name,
    interleaved,
    provenance,
    repeated,
    wide_console,
    write_results,
)
from benchmarks.plot import NothingToDrawError, draw_beside
from benchmarks.rows import Row, end_to_end_table, fidelity_table, measured_rows, new_table, target
from benchmarks.scenarios import Bench, Scenario
from benchmarks.workloads import COMPILED, NOT_HERE, Fidelity, Finding, Workload, checked, why

RESULTS: Final = ROOT / "benchmarks" / "results"
DTYPE: Final = torch.bfloat16
FIRST: Final = "bench_pooled_cosine"  # what must be measured should the time run out

WORKLOAD_S: Final = 3.0
"""Seconds for the rounds of one workload and clock; ten rounds are timed whatever they take."""

SCENARIO_S: Final = 4.0
"""Seconds for the turns of one scenario; five are timed whatever they take."""

COMPILE_UNTIL: Final = 0.75
"""After this share of a stage's time nothing is compiled any more, so that ours is measured for all of it."""

STAGES: Final[Mapping[str, float]] = {"first": 0.2, "asked": 0.65, "ops": 0.85, "the rest": 1.0}
"""The share of the minutes at which a stage ends: what must be measured first, then what more is asked of
(encoders and strings at a mean length of 200, step, latency), the other ops, and the other lengths."""

EXPECTED_S: Final[Mapping[str, float]] = {"encoder": 10.0, "strings": 15.0, "step": 15.0, "latency": 10.0}
OTHERS_EXPECTED_S: Final = 5.0
"""Seconds that a workload or scenario is expected to take without compiling: what would end behind the
minutes is not begun. By our reckoning; no GPU has measured it yet."""

END_TO_END: Final = frozenset({"encoder", "strings", "step", "latency"})

PEAK_FLOPS: Final = {
    **{"H100 80GB HBM3": 989.4e12, "H200": 989.4e12, "H100 PCIe": 756e12, "A100": 312e12, "L4": 121e12}
}
"""Operations a second in bf16 without sparsity, by the data sheet, for devices that hold this in their names.
The MFU of another device is against the matrix product that is measured in the same run."""

JUDGED: Final = ("H100", "H200")
"""Devices of which the numbers of `Ask` are asked."""

EXTRA_VERSIONS: Final = ("flash-attn", "flash-attn-4", "matplotlib", "numpy")


@dataclass(frozen=True)
class Suite:
    """What the benchmark modules offer.

    Attributes:
        workloads: In the order in which they run.
        fidelity: Requirements on results, after the workloads.
        edges: By op, the module that checks its edges.
        broken: Ops whose module could not be imported, with the reason.
        scenarios: What is timed from end to end.
    """

    workloads: tuple[Workload, ...]
    fidelity: tuple[Fidelity, ...]
    edges: Mapping[str, ModuleType]
    broken: Mapping[str, str]
    scenarios: tuple[Scenario, ...] = ()

    def staged(self, names: Sequence[str] | None) -> dict[str, list[Item]]:
        """What is asked for by name, all without names, in the order in which it runs."""
        stages: dict[str, list[Item]] = {stage: [] for stage in STAGES}
        for item in (*self.workloads, *self.scenarios):
            if not names or item.name in names or kind_of(item) in names:
                stages[_stage_of(item)].append(item)
        return stages


Item = Workload | Scenario


def kind_of(item: Item) -> str:
    """The op, or the group of scenarios."""
    return item.op if isinstance(item, Workload) else item.group


def _stage_of(item: Item) -> str:
    if f"bench_{kind_of(item)}" == FIRST:
        return "first"
    if item.asks:
        return "asked"
    # Latency and steps are few and short; they belong together.
    if kind_of(item) in ("step", "latency"):
        return "asked"
    return "the rest" if kind_of(item) in END_TO_END else "ops"


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
        scenarios=tuple(s for module in modules for s in getattr(module, "SCENARIOS", ())),
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

    def has_time_for(self, kind: str) -> bool:
        """Whether one of these is likely to end within the minutes; in a dry run it takes next to nothing."""
        expected_s = 0.0 if self.dry_run else EXPECTED_S.get(kind, OTHERS_EXPECTED_S)
        return self.share_of_time() <= 1.0 - (expected_s / (60.0 * self.minutes) if self.minutes else 0.0)

    def leave_out(self, variant: str, compile_until: float = COMPILE_UNTIL) -> str | None:
        """Why a variant is not run, or None; nothing is compiled after that share of the minutes."""
        if variant.startswith(COMPILED):
            if self.quick:
                return "a quick run compiles nothing"
            if self.share_of_time() > compile_until:
                return f"{compile_until:.0%} of {self.minutes:g} minutes were used up: compiled no more"
        return None

    def bench(self, encoder: Path | None, compile_until: float) -> Bench:
        """Where scenarios run."""
        return Bench(
            device=self.device,
            dtype=DTYPE,
            shrunk=self.dry_run,
            turns=self.rounds,
            budget_s=SCENARIO_S,
            encoder=encoder,
            leave_out=functools.partial(self.leave_out, compile_until=compile_until),
            peak_flops=lambda: self.peak_flops,
        )

    @functools.cached_property
    def peak_flops(self) -> float:
        """Operations a second of which an MFU is a share."""
        name = device_name(self.device)
        for part, flops in PEAK_FLOPS.items():
            if self.device.type == "cuda" and part in name:
                return flops
        product = self.ceilings["compute"]
        assert isinstance(product, MatrixProduct)
        (clock, *_) = self.clocks_of(latency=False).values()
        return product.flops / self.time({"": product}, clock)[""].p50

    @property
    def not_judged(self) -> str | None:
        """Why what is asked of an H100 is not asked here, or None."""
        if self.dry_run:
            return "a dry run judges nothing"
        name = device_name(self.device)
        return None if any(part in name for part in JUDGED) else f"asked of an H100; this is {name}"

    def clocks(self, workload: Workload) -> dict[str, Clock]:
        """Clocks for a workload, by name."""
        return self.clocks_of(latency=workload.latency)

    def clocks_of(self, *, latency: bool) -> dict[str, Clock]:
        """The GPU's own time, and for latency the caller's as well; on a CPU there is no other."""
        wall: dict[str, Clock] = {"wall": WallClock(self.device)}
        if self.device.type != "cuda":
            return wall
        gpu: dict[str, Clock] = {"gpu": self._events}
        return gpu | wall if latency else gpu

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
    end_to_end: list[Row] = field(default_factory=list)
    targets: list[Finding] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    described: dict[str, Any] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def rows_for(self, kind: str) -> list[Row]:
        """The rows among which those of an op, or of a group of scenarios, belong."""
        return self.end_to_end if kind in END_TO_END else self.rows

    def fail(self, name: str, error: BaseException, kind: str = "") -> None:
        """Keep why ours could not be measured. What cannot run here is listed and is no failure."""
        self.rows_for(kind).append(Row(name, "", error=why(error)))
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


def time_item(item: Item, plan: Plan, encoder: Path | None, compile_until: float, outcome: Outcome) -> None:
    """Draw, check and time all variants of a workload or a scenario."""
    rows = outcome.rows_for(kind_of(item))
    before = len(rows)
    try:
        if isinstance(item, Workload):
            _measure(item, plan, compile_until, outcome)
        else:
            rows += item.measure(plan.bench(encoder, compile_until), item.name)
    except Exception as error:
        outcome.fail(item.name, error, kind_of(item))
    judge(item, rows[before:], plan, outcome)
    if plan.device.type == "cuda":
        torch.cuda.empty_cache()  # sizes differ from workload to workload


def _measure(workload: Workload, plan: Plan, compile_until: float, outcome: Outcome) -> None:
    case = workload.draw(plan.device, DTYPE, plan.dry_run)
    outcome.described[workload.name] = dict(case.describe)
    found = checked(case, leave_out=functools.partial(plan.leave_out, compile_until=compile_until))
    ceiling = None if workload.latency else (workload.ceiling, plan.ceilings[workload.bound])
    asked = None if plan.dry_run else workload.asked_percent
    rows = measured_rows(workload.name, case, found, plan.clocks(workload), plan.time, ceiling, asked)
    outcome.rows_for(workload.op).extend(
        replace(row, peak_flops=plan.peak_flops) if row.tokens else row for row in rows
    )
    outcome.failures += [
        f"{row.workload}: {row.percent_of_ceiling:.1f} of {row.asked_percent:g} % of the {workload.ceiling}"
        for row in rows
        if row.met is False
    ]


def judge(item: Item, rows: Sequence[Row], plan: Plan, outcome: Outcome) -> None:
    """Hold the rows of a workload or a scenario against what is asked of it."""
    found = [target(item.name, ask, rows, plan.not_judged) for ask in item.asks]
    outcome.targets += found
    outcome.failures += [": ".join(f.cells()[:-1]) for f in found if f.met is False]


def time_stages(
    stages: Mapping[str, Sequence[Item]],
    plan: Plan,
    encoder: Path | None,
    outcome: Outcome,
    before_the_rest: Callable[[], None] = lambda: None,
) -> None:
    """Time stage by stage; what a stage had no time for comes again at the end, without compiled peers."""
    console = wide_console()
    late: list[Item] = []
    for stage, items in stages.items():
        if stage == "the rest":
            before_the_rest()
        start, end = plan.share_of_time(), STAGES[stage]
        for item in items:
            if plan.share_of_time() > end or not plan.has_time_for(kind_of(item)):
                late.append(item)
                continue
            console.print(f"{item.name} …")
            time_item(item, plan, encoder, start + COMPILE_UNTIL * max(0.0, end - start), outcome)
    for item in late:
        if not plan.has_time_for(kind_of(item)):
            row = Row(item.name, "", error=f"{plan.minutes:g} minutes were used up")
            outcome.rows_for(kind_of(item)).append(row)
            judge(item, [row], plan, outcome)
        else:
            console.print(f"{item.name} …")
            time_item(item, plan, encoder, 0.0, outcome)


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
    suite: Suite,
    names: Sequence[str] | None,
    plan: Plan,
    encoder: Path | None,
    out: Path | None,
    *,
    plot: bool = True,
) -> Outcome:
    """Check, time, show, and write the results where `out` is given, with their plot."""
    console = wide_console()
    source = provenance(plan.device)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    outcome = Outcome()
    for op, reason in suite.broken.items():
        if not names or op in names:
            outcome.rows.append(Row(op, "", error=reason))
            outcome.failures.append(f"{op}: {reason}")
    stages = suite.staged(names)
    ops = list(dict.fromkeys(kind_of(item) for items in stages.values() for item in items))
    wrong = check_edges(ops, suite, plan.device, outcome)
    right = {stage: [item for item in items if kind_of(item) not in wrong] for stage, items in stages.items()}

    def check_all_fidelity() -> None:
        for wanted in (f for f in suite.fidelity if not names or f.name in names or SCORES in names):
            console.print(f"{wanted.name} …")
            check_fidelity(wanted, plan, encoder, outcome)

    time_stages(right, plan, encoder, outcome, check_all_fidelity)
    show(outcome, plan, source["device"])
    if out is not None:
        results = {
            **source,
            "versions": source["versions"] | {name: _version(name) for name in EXTRA_VERSIONS},
            "suite": "gpu_suite",
            "settings": plan.settings(),
            "workloads": outcome.described,
            "rows": [row.as_json() for row in (*outcome.rows, *outcome.end_to_end)],
            "targets": [finding.as_json() for finding in outcome.targets],
            "scores": [finding.as_json() for finding in outcome.findings],
            "failures": outcome.failures,
        }
        path = write_results(out, "gpu_suite", results)
        console.print(f"wrote {path}", soft_wrap=True)
        if not plot:
            return outcome
        try:
            console.print(f"drew {draw_beside(path)}", soft_wrap=True)
        except (ImportError, NothingToDrawError) as error:  # the numbers are there without it
            console.print(f"drew no plot: {error}", soft_wrap=True)
    return outcome


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def show(outcome: Outcome, plan: Plan, device: str) -> None:
    """Print the tables, and the reasons below them."""
    console = wide_console()
    title = f"{device}: up to {plan.rounds} rounds in turns; L2 cold (clock gpu) or warm (clock wall)"
    if plan.dry_run:
        title = f"dry run on the CPU: these times mean nothing\n{title}"
    if outcome.rows:
        table = new_table(title)
        for row, following in zip(outcome.rows, [*outcome.rows[1:], None], strict=True):
            table.add_row(*row.cells(), end_section=following is None or following.workload != row.workload)
        console.print(table)
    if outcome.end_to_end:
        peak = f"MFU against {plan.peak_flops / 1e12:,.3g} TFLOP/s"
        console.print(end_to_end_table(f"{title}\n{peak}", outcome.end_to_end))
    if outcome.findings:
        console.print(fidelity_table(outcome.findings))
    if outcome.targets:
        console.print(fidelity_table(outcome.targets, "asked of an H100", "row"))
    for row in (*outcome.rows, *outcome.end_to_end):
        if row.error:
            console.print(f"{row.workload} {row.variant}".strip() + f": {row.error}", markup=False)


SCORES: Final = "scores"


def known_names(suite: Suite) -> set[str]:
    """What `--only` takes."""
    names = {name for workload in suite.workloads for name in (workload.op, workload.name)}
    names |= {name for scenario in suite.scenarios for name in (scenario.group, scenario.name)}
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
        help="workloads, ops with all their workloads, scenarios, their groups (strings, step, latency), or "
        f"{SCORES!r}: how near scores are to the CPU's",
    )
    made.add_argument("--quick", action="store_true", help="ten rounds, and without torch.compile")
    made.add_argument("--minutes", type=float, default=8.0, help="what takes longer is left out (default: 8)")
    made.add_argument("--encoder", type=Path, help="folder of all-MiniLM-L6-v2: its scores, its tokenizer")
    made.add_argument(
        "--out",
        type=Path,
        help=f"folder for the results (default: {RESULTS.relative_to(ROOT)}; a quick or dry run: none)",
    )
    made.add_argument("--no-plot", action="store_true", help="draw nothing beside the results")
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
    outcome = run(suite, options.only, plan_of(options), options.encoder, out, plot=not options.no_plot)
    for failure in outcome.failures:
        print(failure, file=sys.stderr)
    return 1 if outcome.failures else 0


if __name__ == "__main__":
    sys.exit(main())
