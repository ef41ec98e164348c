"""The benchmark on a CPU: ours as `Scorer` runs them, peers that are not there, and what peers convert."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastreward.backends import availability
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.scorer import Scorer

CPU = torch.device("cpu")
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
GROUPS = (
    ("the heart pumps blood", "insulin lowers glucose", "energy"),
    (
        ("heart pumps", "blood", "glucose lowers"),
        ("insulin", "glucose", "the body boom"),
        ("the energy", "body", "query blood"),
    ),
)


@pytest.fixture
def bench_cpu(
    load_script: Callable[[Path], ModuleType], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> ModuleType:
    """The benchmark, with a small encoder."""
    module = load_script(BENCHMARKS / "bench_cpu.py")
    monkeypatch.setattr(module, "DEFAULT_ENCODER", str(tiny_folder))
    return module


@pytest.mark.parametrize("backend", ["packed", "openvino", "onnx"])
def test_ours_are_timed_with_the_batches_that_a_scorer_makes(
    bench_cpu: ModuleType, tiny_folder: Path, backend: str
) -> None:
    if not availability(backend).usable:
        pytest.skip(f"{backend} is not installed")
    own = Scorer(tiny_folder, backend=backend, device="cpu", dtype="float32", progress=False)
    timed = bench_cpu.new_scorer(own._engine.encoder)
    assert timed._engine.batcher.max_batch_tokens == own._engine.batcher.max_batch_tokens
    assert timed._engine.encoder is own._engine.encoder


def test_without_the_peers_ours_are_timed_and_it_is_said_who_is_missing(
    bench_cpu: ModuleType, tiny_folder: Path, tmp_path: Path
) -> None:
    checkpoint = load_checkpoint(tiny_folder)
    encoders = {
        f"packed {name}": PackedEncoder(checkpoint, CPU, dtype)
        for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16))
    }
    said: list[str] = []
    with bench_cpu.peers(["fastembed", "ctranslate2 int8"], tmp_path / "none", [], said.append) as running:
        bench = bench_cpu.Bench(bench_cpu.Groups(*GROUPS), encoders, running)
        clock = bench_cpu.Clock()
        ways = bench_cpu.measured_ways(
            bench, lambda variants: bench_cpu.interleaved(variants, clock, rounds=1)
        )
        assert running == {}
    (line,) = said
    for part in ("fastembed", "ctranslate2 int8", "make peers", str(tmp_path / "none")):
        assert part in line
    assert {way.name for way in ways} == set(encoders)
    for way in ways:
        assert way.own
        assert way.timing.p50 > 0
        assert way.fidelity.largest_cosine_error <= (1e-9 if way.name == "packed fp32" else 1e-2)
    assert bench_cpu.ways_table(bench, ways, "ours").row_count == len(encoders)
    assert bench_cpu.step_variants(bench, ways) == {}
    assert bench_cpu.comparisons(bench, ways, {}) == []


def test_what_a_peer_converts_is_made_anew_for_another_model_version_or_calibration(
    load_script: Callable[[Path], ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = load_script(BENCHMARKS / "peers_cpu" / "worker.py")
    model, work = tmp_path / "model", tmp_path / "work"
    model.mkdir()
    work.mkdir()
    (model / "weights").write_text("1")
    made: list[Path] = []

    def convert(folder: Path) -> None:
        folder.mkdir()
        (folder / "done").touch()
        made.append(folder)

    def converted(texts: list[str], version: str = "1.0") -> Path:
        monkeypatch.setattr(worker, "versions", lambda: {"library": version})
        folder = worker.Setting(model, work, 1, texts).converted("int8", convert, texts)
        assert (folder / "done").exists()
        return folder

    first = converted(["a", "b"])
    assert converted(["a", "b"]) == first
    others = [converted(["a"]), converted(["ab"]), converted(["a", "b"], "1.1")]
    (model / "weights").write_text("2")
    others.append(converted(["a", "b"]))
    assert len({first, *others}) == len(made) == 5
