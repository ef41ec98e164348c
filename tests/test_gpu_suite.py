"""The GPU benchmarks run here up to the clock: every step on the CPU, with tiny shapes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SCRIPT = ROOT / "benchmarks" / "gpu_suite.py"
VARIANTS = {
    "fastreward",
    "reference implementation",
    "PyTorch segment_reduce",
    "PyTorch index_add",
    "torch.compile segment_reduce",
    "torch.compile index_add",
}


@pytest.fixture(scope="module")
def gpu_suite() -> ModuleType:
    """The script as a module; it puts the repository on the path by itself."""
    spec = importlib.util.spec_from_file_location("gpu_suite", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_suite"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def measuring(gpu_suite: ModuleType) -> ModuleType:
    return sys.modules["benchmarks.measure"]


@pytest.fixture(scope="module")
def shapes(gpu_suite: ModuleType) -> ModuleType:
    return sys.modules["benchmarks.shapes"]


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
    rows = {(row["workload"], row["variant"]): row for row in results["rows"]}
    expected = {("pooled_cosine-d384-ln", name) for name in (*VARIANTS, "copy")}
    assert set(rows) == expected | {("pooled_cosine-short", name) for name in VARIANTS}
    for row in rows.values():
        assert row["error"] is None
        assert 0.0 < row["p20_s"] <= row["p50_s"] <= row["p80_s"]
        assert row["gb_per_s"] == pytest.approx(row["moved_bytes"] / row["p50_s"] / 1e9)
    assert rows["pooled_cosine-d384-ln", "copy"]["percent_of_copy"] == pytest.approx(100.0)
    assert rows["pooled_cosine-short", "fastreward"]["slower_than_ours"] == 1.0


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


def with_variant(
    monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Change what one variant returns."""
    peers = sys.modules["benchmarks.peers"]
    right = peers.pooled_cosine_variants

    def changed(*args: Any, **options: Any) -> dict[str, Callable[[], torch.Tensor]]:
        variants = right(*args, **options)
        run = variants[name]
        return {**variants, name: lambda: change(run())}

    monkeypatch.setattr(peers, "pooled_cosine_variants", changed)


def a_tenth_off(scores: torch.Tensor) -> torch.Tensor:
    return scores * 0.9


def no_compiler(scores: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no [C] compiler\nand a long trace")


@pytest.mark.parametrize("name", ["fastreward", "reference implementation"])
def test_nothing_is_timed_or_filed_when_our_result_is_wrong(
    name: str,
    gpu_suite: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_variant(monkeypatch, name, a_tenth_off)
    monkeypatch.setattr(gpu_suite, "interleaved", lambda *args, **options: pytest.fail("timed"))
    arguments = ["--dry-run-cpu", "--quick", "--out", str(tmp_path), "--only", "pooled_cosine-short"]
    assert gpu_suite.main(arguments) == 1
    assert f"{name}: largest error" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (a_tenth_off, "GateError: PyTorch index_add: largest error"),
        (no_compiler, "RuntimeError: no [C] compiler"),
    ],
)
def test_a_peer_that_is_wrong_or_does_not_run_is_shown_with_the_reason(
    change: Callable[[torch.Tensor], torch.Tensor],
    reason: str,
    gpu_suite: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with_variant(monkeypatch, "PyTorch index_add", change)
    arguments = ["--dry-run-cpu", "--quick", "--out", str(tmp_path), "--only", "pooled_cosine-short"]
    assert gpu_suite.main(arguments) == 0
    (file,) = tmp_path.rglob("*.json")
    rows = {row["variant"]: row for row in json.loads(file.read_text())["rows"]}
    failed = rows.pop("PyTorch index_add")
    assert failed["error"].startswith(reason)
    assert "p50_s" not in failed
    assert {row["error"] for row in rows.values()} == {None}
    assert failed["error"] in capsys.readouterr().out


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


def test_the_shapes_are_what_they_say(shapes: ModuleType) -> None:
    for shape in (*shapes.POOLED_COSINE_GPU, shapes.SHORT, *shapes.POOLED_COSINE_CPU):
        lengths = shape.lengths()
        assert sum(lengths) == shape.num_tokens
        assert max(lengths) <= shape.max_tokens
        assert min(lengths[:-1]) >= shape.min_tokens
        assert lengths == shape.lengths()
    for shape in shapes.POOLED_COSINE_GPU:
        assert shape.num_tokens / len(shape.lengths()) == pytest.approx(200, rel=0.05)


def test_the_scores_of_the_inputs_are_spread_out(shapes: ModuleType) -> None:
    peers = sys.modules["benchmarks.peers"]
    for layer_norm in (False, True):
        inputs = shapes.pooled_cosine_inputs(
            [64] * 40, 96, dtype=torch.bfloat16, device=torch.device("cpu"), layer_norm=layer_norm
        )
        scores = peers.pooled_cosine_fp64(inputs)
        assert scores.min() < -0.9
        assert scores.max() > 0.9
        assert scores.std() > 0.5


def test_a_step_of_explanations_repeats_nothing_but_references(shapes: ModuleType) -> None:
    batch = shapes.explanation_batch(64, 8)
    assert len(batch.completions) == len(set(batch.completions)) == 512
    assert len(batch.references) == 512
    assert len(set(batch.references)) == 64
    assert len(set(batch.references[:8])) == 1
    assert batch == shapes.explanation_batch(64, 8)
    with pytest.raises(ValueError, match="repeat"):
        shapes.explanation_batch(64, 100)
