"""What the pytest-benchmark suites share: options, timing in turns, workloads, and the tables at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from rich.table import Table

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import (
    Ceiling,
    Clock,
    ColdCache,
    Copy,
    MatrixProduct,
    Prepare,
    Run,
    Timing,
    WallClock,
    device_name,
    interleaved,
)
from benchmarks.rows import measured_rows, new_table
from benchmarks.workloads import COMPILED, Case, TimeWorkload, Workload, checked

Interleave = Callable[[Mapping[str, Prepare], Clock, int], dict[str, Timing]]

TABLES = pytest.StashKey[list[Table]]()
OPS = pytest.StashKey[dict[str, Table]]()

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ON_GPU = DEVICE.type == "cuda"
DTYPES = (torch.bfloat16,) if ON_GPU else (torch.float32, torch.bfloat16)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="tiny sizes and two rounds: do the benchmarks run?")
    parser.addoption("--rounds", type=int, default=5, help="rounds of each comparison (default: 5)")


@pytest.fixture(scope="session")
def quick(pytestconfig: pytest.Config) -> bool:
    return bool(pytestconfig.getoption("--quick"))


@pytest.fixture(scope="session")
def rounds(pytestconfig: pytest.Config, quick: bool) -> int:
    return 2 if quick else int(pytestconfig.getoption("--rounds"))


@pytest.fixture
def interleave(benchmark: Any) -> Interleave:
    """Time variants in turns; pytest-benchmark times the first one and files it."""

    def timed(variants: Mapping[str, Prepare], clock: Clock, rounds: int) -> dict[str, Timing]:
        interleaved(variants, clock, rounds=1, warmups=0)  # thrown away: the warm-up
        first, *others = variants
        seconds: dict[str, list[float]] = {name: [] for name in others}

        def others_then_prepare() -> tuple[tuple[Run], dict[str, Any]]:
            for name in others:
                seconds[name].append(clock(variants[name]()))
            return (variants[first](),), {}

        benchmark.pedantic(clock, setup=others_then_prepare, rounds=rounds)
        if benchmark.stats is None:
            pytest.skip("ran once; --benchmark-disable times nothing")
        timings = {first: Timing(tuple(benchmark.stats.stats.data))}
        return timings | {name: Timing(tuple(taken)) for name, taken in seconds.items()}

    return timed


@pytest.fixture(scope="session")
def show(pytestconfig: pytest.Config) -> Callable[[Table], None]:
    """Keep a table for the end of the run; more rows may be added to it until then."""
    return pytestconfig.stash.setdefault(TABLES, []).append


@pytest.fixture(params=DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
def time_workload(
    request: pytest.FixtureRequest,
    interleave: Interleave,
    benchmark: Any,
    pytestconfig: pytest.Config,
    show: Callable[[Table], None],
    rounds: int,
    quick: bool,
) -> TimeWorkload:
    """Check a workload in one precision, time it by the caller's clock, and add it to its op's table."""
    dtype: torch.dtype = request.param

    def timed(workload: Workload) -> None:
        case = workload.draw(DEVICE, dtype, quick)
        # Inductor's code for a CPU is nobody's rival here: compiled peers are traced, or left to the GPU.
        leave = COMPILED if not ON_GPU and not quick else None
        case = replace(case, variants={n: run for n, run in case.variants.items() if not _is(n, leave)})
        found = checked(case)
        flush = ColdCache(DEVICE)
        label = f"{workload.name} {str(dtype).removeprefix('torch.')}"
        rows = measured_rows(
            label,
            case,
            found,
            {"wall": WallClock(DEVICE)},
            lambda runs, clock: interleave(_from_a_cold_cache(runs, flush), clock, 4 * rounds),
            None if workload.latency else (workload.ceiling, _ceiling(workload, case, dtype, quick)),
        )
        table = _table_of(workload.op, pytestconfig, show)
        for row in rows:
            table.add_row(*row.cells())
            benchmark.extra_info[row.variant] = row.as_json()
        table.add_section()

    return timed


def _is(name: str, prefix: str | None) -> bool:
    return prefix is not None and name.startswith(prefix)


def _from_a_cold_cache(runs: Mapping[str, Run], flush: ColdCache) -> dict[str, Prepare]:
    """Empty the GPU's cache before every run; on a CPU nothing is done."""

    def flushed(run: Run) -> Run:
        flush()
        return run

    return {name: partial(flushed, run) for name, run in runs.items()}


def _ceiling(workload: Workload, case: Case, dtype: torch.dtype, quick: bool) -> Ceiling:
    """What the op is held against; on a CPU as large as the op, so that both stay in the cache or neither."""
    if workload.bound == "compute":
        return MatrixProduct.of(8192 if ON_GPU and not quick else 1024, dtype, DEVICE)
    return Copy.of(2**30 if ON_GPU and not quick else max(4, case.moved_bytes // 2), DEVICE)


def _table_of(op: str, config: pytest.Config, show: Callable[[Table], None]) -> Table:
    """The op's table, made when it is first asked for."""
    tables = config.stash.setdefault(OPS, {})
    if op not in tables:
        tables[op] = new_table(f"{op}, {device_name(DEVICE)}, rounds in turns")
        show(tables[op])
    return tables[op]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for table in (table for table in config.stash.get(TABLES, []) if table.row_count):
        text = io.StringIO()
        Console(file=text, width=180).print(table)
        terminalreporter.write(f"\n{text.getvalue()}")
