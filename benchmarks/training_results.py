"""What `train_demo.py` and `train_arms.py` share: options, a table, pictures."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from benchmarks.training import FULL, QUICK, Run, read_json

RUNS: Final = Path("build/training")


def parser_of(name: str, description: str) -> argparse.ArgumentParser:
    """The options that both scripts have."""
    parser = argparse.ArgumentParser(prog=name, description=description)
    parser.add_argument("--quick", action="store_true", help="tiny: does it run?")
    parser.add_argument("--runs", type=Path, default=RUNS, help=f"checkpoints (default: {RUNS})")
    parser.add_argument("--out", type=Path, help="write the result below this folder, not beside the runs")
    parser.add_argument("--draw", type=Path, help="draw a result again, and do nothing else")
    return parser


def run_of(options: argparse.Namespace, seed: int, tell: Callable[[str], None]) -> Run:
    """The run of a seed, in its folder among those of the options."""
    name = f"{'quick-' if options.quick else ''}seed-{seed}"
    return Run(options.runs / name, QUICK if options.quick else FULL, seed, tell)


def drawn(path: Path, draw: Callable[[Mapping[str, Any], Path], None]) -> Path:
    """Draw a result from its file alone, beside it."""
    picture = path.with_suffix(".png")
    draw(read_json(path), picture)
    return picture


def asked_table(found: Sequence[Mapping[str, Any]]) -> Table:
    """What is asked, and whether it is so."""
    table = Table(title="asked")
    for column in ("what", "found", "asked", ""):
        table.add_column(column)
    for one in found:
        verdict = {True: "met", False: "MISSED", None: "not judged"}[one["met"]]
        value = f"{one['value']:.3f}" + (f" ± {one['spread']:.3f}" if "spread" in one else "")
        sign = ">" if one.get("strict") else "≤" if one["at_most"] else "≥"
        table.add_row(one["what"], value, f"{sign} {one['bound']:g}", verdict)
    return table
