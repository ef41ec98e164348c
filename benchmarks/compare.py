"""The working tree against an older commit: the same pytest-benchmark suites, in processes that take turns.

    python benchmarks/compare.py BASE [--suites FILE ...] [--turns N] [--rounds N] [--quick]
                                      [--fail-above RATIO]
    make bench-compare BASE=main [SUITES="benchmarks/bench_scorer.py"]

The commit's files are written to a temporary folder, and nothing of the repository is touched. Both trees run
in the same environment: base, tree, base, tree … What is compared is what pytest-benchmark times, which in
these suites is ours.

A ratio is the tree's median over the base's, above 1 slower; its spread is p20 to p80 of all pairs of a round
of the one and a round of the other. It counts as beyond noise if four pairs of five agree on the direction,
and if it is further from 1 than the medians of one tree's own processes are from each other.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

ROOT: Final = Path(__file__).resolve().parents[1]
SUITES: Final = ("benchmarks/bench_encoder.py", "benchmarks/bench_scorer.py")
"""What a user waits for; the ops come by name."""

NO_TESTS: Final = 5  # what pytest exits with where nothing was collected

Rounds = dict[str, list[float]]
"""Seconds of each round, by benchmark."""


class CompareError(RuntimeError):
    """The two trees cannot be compared."""


# --------------------------------------------------------------------------- arithmetic


@dataclass(frozen=True)
class Compared:
    """One benchmark in both trees.

    Attributes:
        name: Of the benchmark.
        base: Seconds of each round, one list for each process.
        tree: Likewise.
    """

    name: str
    base: Sequence[Sequence[float]]
    tree: Sequence[Sequence[float]]

    @property
    def ratio(self) -> float:
        """The tree's median over the base's."""
        return float(np.median(np.concatenate(self.tree)) / np.median(np.concatenate(self.base)))

    def quantile(self, q: float) -> float:
        """The q-quantile of the ratios of all pairs of rounds."""
        return float(np.quantile(np.divide.outer(np.concatenate(self.tree), np.concatenate(self.base)), q))

    @property
    def noise(self) -> float:
        """How many times the median of one process is that of another one of the same tree, at most."""
        medians = [[float(np.median(seconds)) for seconds in side] for side in (self.base, self.tree)]
        return max(max(side) / min(side) for side in medians)

    @property
    def verdict(self) -> str:
        """ "slower", "faster", or "" within noise."""
        if self.quantile(0.2) > 1.0 and self.ratio > self.noise:
            return "slower"
        return "faster" if self.quantile(0.8) < 1.0 and self.ratio < 1.0 / self.noise else ""

    def cells(self) -> list[str]:
        """The row as it is shown."""
        return [
            escape(self.name),  # parameters stand in brackets
            *(_milliseconds(side) for side in (self.base, self.tree)),
            f"{self.ratio:.3f} ({self.quantile(0.2):.3f} – {self.quantile(0.8):.3f})",
            f"{self.noise:.3f}",
            self.verdict,
        ]


def _milliseconds(processes: Sequence[Sequence[float]]) -> str:
    p20, p50, p80 = (1e3 * float(np.quantile(np.concatenate(processes), q)) for q in (0.2, 0.5, 0.8))
    return f"{p50:,.3f} ({p20:,.3f} – {p80:,.3f})"


def compared(base: Sequence[Rounds], tree: Sequence[Rounds]) -> list[Compared]:
    """Put together what every process of both trees has timed; `left_out` names the rest.

    Raises:
        CompareError: If there is no such benchmark.
    """
    shared = [name for name in tree[0] if all(name in process for process in (*base, *tree))]
    if not shared:
        reasons = "; ".join(f"{name}: {why}" for name, why in left_out(base, tree).items())
        raise CompareError(f"the trees share no benchmark: {reasons}")
    return [Compared(name, [p[name] for p in base], [p[name] for p in tree]) for name in shared]


def left_out(base: Sequence[Rounds], tree: Sequence[Rounds]) -> dict[str, str]:
    """The benchmarks that not every process of both trees has timed, each with the reason."""
    in_base, in_tree = (set[str]().union(*processes) for processes in (base, tree))
    everywhere = set.intersection(*(set(process) for process in (*base, *tree)))
    return {
        name: "not in the base"
        if name not in in_base
        else "only in the base"
        if name not in in_tree
        else "not timed by every process"
        for name in sorted((in_base | in_tree) - everywhere)
    }


# --------------------------------------------------------------------------- processes


def write_base(repository: Path, commit: str, folder: Path) -> str:
    """Write the files of a commit to a folder, and return its short name.

    Raises:
        CompareError: If there is no such commit.
    """
    name = _git(repository, "rev-parse", "--verify", "--short=12", f"{commit}^{{commit}}").decode().strip()
    archive = folder.with_suffix(".tar")
    archive.write_bytes(_git(repository, "archive", name))
    with tarfile.open(archive) as files:
        files.extractall(folder, filter="tar")
    archive.unlink()
    return name


def _git(repository: Path, *arguments: str) -> bytes:
    done = subprocess.run(["git", *arguments], cwd=repository, capture_output=True)
    if done.returncode:
        raise CompareError(f"git {' '.join(arguments)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def timed(tree: Path, suites: Sequence[str], options: Sequence[str], results: Path) -> Rounds:
    """Run suites of a tree in a process of its own.

    Raises:
        CompareError: If the process fails, or imports the library from elsewhere.
    """
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    found = _python(tree, environment, "-c", "import fastreward; print(fastreward.__file__)").stdout.strip()
    if not Path(found).resolve().is_relative_to(tree.resolve()):
        raise CompareError(f"{tree} imports the library from {found or 'nowhere'}")
    command = ["-m", "pytest", "-q", *suites, "--benchmark-only", f"--benchmark-json={results}", *options]
    done = _python(tree, environment, *command)
    if done.returncode:
        reason = "nothing to time" if done.returncode == NO_TESTS else f"exit code {done.returncode}"
        raise CompareError(
            f"{' '.join(suites)} in {tree}: {reason}\n{done.stdout[-4000:]}{done.stderr[-2000:]}"
        )
    content = json.loads(results.read_text(encoding="utf-8"))
    return {row["fullname"]: row["stats"]["data"] for row in content["benchmarks"]}


def _python(tree: Path, environment: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True
    )


def shared_suites(wanted: Sequence[str], base: Path, console: Console) -> list[str]:
    """The suites that the base has too; of the others it is said."""
    for suite in wanted:
        if not (base / suite).exists():
            console.print(f"{suite}: not in the base, left out", soft_wrap=True)
    return [suite for suite in wanted if (base / suite).exists()]


# --------------------------------------------------------------------------- the command


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="compare.py", description="The working tree against a commit.")
    made.add_argument("base", help="a commit, a branch or a tag")
    made.add_argument(
        "--suites", nargs="+", default=list(SUITES), help=f"files (default: {' '.join(SUITES)})"
    )
    made.add_argument("--turns", type=int, default=2, help="processes of each tree (default: 2)")
    made.add_argument("--fail-above", type=float, metavar="RATIO", help="exit with 1 where slower than this")
    made.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    made.add_argument("--rounds", type=int, help="rounds of each process (default: the suites' own)")
    made.add_argument("--repository", type=Path, default=ROOT, help="(default: this one)")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0, 1 when something is slower than asked, 2 when the trees cannot be compared."""
    command_line = parser()
    options = command_line.parse_args(arguments)
    if options.turns < 2:
        command_line.error("--turns: 2 at least, for one process says nothing about noise")
    console = Console() if sys.stdout.isatty() else Console(width=180)
    passed_on = ["--quick"] if options.quick else []
    passed_on += [] if options.rounds is None else ["--rounds", str(options.rounds)]
    tree = options.repository.resolve()
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        try:
            name = write_base(tree, options.base, base)
            suites = shared_suites(options.suites, base, console)
            if not suites:
                raise CompareError("the base has none of the suites")
            rounds: dict[Path, list[Rounds]] = {base: [], tree: []}
            for turn in range(options.turns):
                for side, done in rounds.items():
                    who = name if side == base else "the working tree"
                    console.print(f"{turn + 1} of {options.turns}: {who} …")
                    done.append(timed(side, suites, passed_on, Path(folder) / "results.json"))
            found = compared(rounds[base], rounds[tree])
        except CompareError as error:
            print(error, file=sys.stderr)
            return 2
    console.print(as_table(found, name, options.turns))
    for benchmark, why in left_out(rounds[base], rounds[tree]).items():
        console.print(f"{escape(benchmark)}: {why}", soft_wrap=True)
    return fails(found, options.fail_above)


def fails(found: Sequence[Compared], above: float | None) -> int:
    """1 if anything is slower than `above` times the base, beyond noise; else 0."""
    slow = [row for row in found if above is not None and row.verdict == "slower" and row.ratio > above]
    for row in slow:
        print(f"{row.name}: {row.ratio:.3f} times the base, {above:g} allowed", file=sys.stderr)
    return 1 if slow else 0


def as_table(found: Sequence[Compared], base: str, turns: int) -> Table:
    """All benchmarks of both trees."""
    table = Table(title=f"The working tree over {base}: {turns} processes each, in turns; p50 (p20 – p80)")
    table.add_column("benchmark", overflow="fold")
    for column in ("base, ms", "tree, ms", "ratio", "same tree", "beyond noise"):
        table.add_column(column, justify="right")
    for row in found:
        table.add_row(*row.cells())
    return table


if __name__ == "__main__":
    sys.exit(main())
