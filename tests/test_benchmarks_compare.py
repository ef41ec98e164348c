"""`benchmarks/compare.py`: its arithmetic, and two commits of a small repository compared for real."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "compare.py"

SUITE = """
import pytest
from fastreward import work

@pytest.mark.parametrize("size", ["small"])
def test_work(benchmark, size):
    benchmark.pedantic(work, rounds=5)
"""
LIBRARY = "import time\n\ndef work():\n    time.sleep({seconds})\n"


@pytest.fixture(scope="module")
def compare(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    return load_script(SCRIPT)


def in_repository(folder: Path, *arguments: str) -> None:
    who = ("-c", "user.name=tests", "-c", "user.email=tests@example.org", "-c", "commit.gpgsign=false")
    subprocess.run(["git", *who, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """One commit, in which the work takes 5 ms, and a working tree in which it takes 20, of one size less."""
    folder = tmp_path / "repository"
    (folder / "fastreward").mkdir(parents=True)
    (folder / "benchmarks").mkdir()
    (folder / "fastreward" / "__init__.py").write_text(LIBRARY.format(seconds=0.005))
    (folder / "benchmarks" / "bench_work.py").write_text(SUITE.replace('["small"]', '["small", "gone"]'))
    (folder / "benchmarks" / "pytest.ini").write_text("[pytest]\npython_files = bench_*.py\n")
    in_repository(folder, "init", "--quiet")
    in_repository(folder, "add", "--all")
    in_repository(folder, "commit", "--quiet", "--message", "five milliseconds")
    (folder / "benchmarks" / "bench_work.py").write_text(SUITE)
    (folder / "fastreward" / "__init__.py").write_text(LIBRARY.format(seconds=0.02))
    return folder


def run(compare: ModuleType, repository: Path, *arguments: str) -> int:
    status: int = compare.main(["HEAD", "--repository", str(repository), *arguments])
    return status


def test_what_takes_four_times_as_long_fails_and_the_repository_stays_as_it_was(
    compare: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites = ("--suites", "benchmarks/bench_work.py", "benchmarks/bench_new.py")
    assert run(compare, repository, "--fail-above", "1.5", *suites) == 1
    output = capsys.readouterr()
    assert "slower" in output.out
    assert "benchmarks/bench_new.py: not in the base" in output.out
    assert "test_work[gone]: only in the base" in output.out
    assert "1.5 allowed" in output.err
    (line,) = [line for line in output.out.splitlines() if "test_work[small]" in line]
    base, tree, ratio = (float(cell.split()[0]) for cell in line.split("│")[2:5])
    assert base == pytest.approx(5.0, abs=4.0)
    assert base < 10.0 < tree
    assert ratio == pytest.approx(tree / base, rel=0.01)
    left = subprocess.run(["git", "worktree", "list"], cwd=repository, capture_output=True, text=True)
    assert len(left.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("--suites", "benchmarks/bench_none.py"), "none of the suites"),
        (("--suites", "fastreward/__init__.py"), "nothing to time"),
    ],
)
def test_trees_that_cannot_be_compared_are_exit_code_2(
    compare: ModuleType,
    repository: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    part: str,
) -> None:
    assert run(compare, repository, *arguments) == 2
    assert part in capsys.readouterr().err


def test_a_commit_that_is_not_there_is_named(
    compare: ModuleType, repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(["no-such-branch", "--repository", str(repository)]) == 2
    assert "no-such-branch" in capsys.readouterr().err


def test_one_process_says_nothing_about_noise(
    compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        compare.main(["HEAD", "--turns", "1"])
    assert exit_info.value.code == 2
    assert "--turns" in capsys.readouterr().err


# --------------------------------------------------------------------------- arithmetic


def of(compare: ModuleType, base: list[list[float]], tree: list[list[float]]) -> Any:
    return compare.Compared("work", base, tree)


def test_the_ratio_is_of_medians_and_its_spread_of_all_pairs(compare: ModuleType) -> None:
    found = of(compare, [[1.0, 1.0], [1.0, 4.0]], [[2.0, 2.0], [2.0, 2.0]])
    assert found.ratio == 2.0
    # Of sixteen pairs twelve are 2 and four are 0.5.
    assert found.quantile(0.2) == 0.5
    assert found.quantile(0.8) == 2.0
    assert found.noise == 2.5  # the base's medians are 1 and 2.5


def test_what_all_processes_agree_on_is_beyond_noise(compare: ModuleType) -> None:
    slow = of(compare, [[1.0, 1.01], [1.02, 1.0]], [[1.2, 1.21], [1.22, 1.2]])
    assert slow.verdict == "slower"
    fast = of(compare, slow.tree, slow.base)
    assert fast.verdict == "faster"
    assert fast.ratio == pytest.approx(1 / slow.ratio)


def test_what_two_processes_of_one_tree_differ_by_is_noise(compare: ModuleType) -> None:
    # Four pairs of five are slower, but the base's own processes are as far apart.
    within = of(compare, [[1.0, 1.0], [1.3, 1.3]], [[1.31, 1.31], [1.32, 1.32]])
    assert within.quantile(0.2) > 1.0
    assert within.verdict == ""
    # The processes agree, but their rounds do not.
    assert of(compare, [[1.0, 2.0, 3.0]] * 2, [[1.1, 2.1, 3.1]] * 2).verdict == ""


def test_only_what_is_slower_beyond_noise_and_above_the_bound_fails(
    compare: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    slow = of(compare, [[1.0, 1.0]] * 2, [[1.2, 1.2]] * 2)
    fast = of(compare, slow.tree, slow.base)
    assert compare.fails([slow, fast], None) == 0
    assert compare.fails([slow, fast], 1.3) == 0
    assert compare.fails([fast], 0.5) == 0
    assert capsys.readouterr().err == ""
    assert compare.fails([slow, fast], 1.1) == 1
    assert "1.200 times the base" in capsys.readouterr().err


def test_only_what_every_process_timed_is_compared(compare: ModuleType) -> None:
    base = [{"a": [1.0], "gone": [1.0]}, {"a": [1.0], "gone": [1.0]}]
    tree = [{"a": [2.0], "new": [1.0], "flaky": [1.0]}, {"a": [2.0], "new": [1.0]}]
    (found,) = compare.compared(base, tree)
    assert (found.name, found.ratio) == ("a", 2.0)
    assert compare.left_out(base, tree) == {
        "flaky": "not in the base",
        "gone": "only in the base",
        "new": "not in the base",
    }
    assert compare.left_out([base[0], {"a": [1.0]}], base) == {"gone": "not timed by every process"}


def test_trees_that_share_no_benchmark_are_no_success(
    compare: ModuleType,
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def timed(tree: Path, *_: object) -> dict[str, list[float]]:
        return {"new" if tree == repository else "gone": [1.0]}

    monkeypatch.setattr(compare, "timed", timed)  # what takes the time, and is run above
    assert run(compare, repository, "--suites", "benchmarks/bench_work.py") == 2
    assert "share no benchmark: gone: only in the base; new: not in the base" in capsys.readouterr().err
