"""What the pytest-benchmark suites share: options, timing in turns, and the tables at the end."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import Clock, Prepare, Run, Timing, interleaved

Interleave = Callable[[Mapping[str, Prepare], Clock, int], dict[str, Timing]]

TABLES = pytest.StashKey[list[Table]]()


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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for table in (table for table in config.stash.get(TABLES, []) if table.row_count):
        text = io.StringIO()
        Console(file=text, width=180).print(table)
        terminalreporter.write(f"\n{text.getvalue()}")
