"""Which precisions `doctor --measure` and `bench` time: one rule, by what each back-end has on a device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastreward import measurement
from fastreward.backends import CPU_DTYPES, CUDA_DTYPES, ENCODER_BACKENDS
from fastreward.benchmarking import variants
from fastreward.measurement import precisions
from fastreward.scorer import Scorer

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("int8", [True, False])
def test_every_precision_that_a_back_end_multiplies_natively_is_timed(
    monkeypatch: pytest.MonkeyPatch, native: bool, int8: bool
) -> None:
    monkeypatch.setattr(measurement, "native_bf16", lambda device: native)
    left_out = {"float8_e4m3fn"} | (set() if native else {"bfloat16"}) | (set() if int8 else {"int8"})
    for backend in ENCODER_BACKENDS:
        for device, known in ((CPU, CPU_DTYPES), (CUDA, CUDA_DTYPES)):
            found = precisions(backend, device, int8=int8)
            assert set(found) == set(known.get(backend, ())) - left_out
            assert len(found) == len(set(found))


def test_onnx_is_timed_in_bf16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measurement, "native_bf16", lambda device: True)
    assert ("onnx", "bfloat16") in measurement._candidates(CUDA)
    assert ("onnx", "bfloat16") not in measurement._candidates(CPU)


def test_both_commands_time_the_same_but_for_what_wants_a_calibration() -> None:
    bench = {(variant.backend, variant.dtype) for variant in variants(CPU, int8=True)}
    assert bench - set(measurement._candidates(CPU)) == {("openvino", "int8")}
    assert set(measurement._candidates(CPU)) < bench


@pytest.mark.parametrize("dtype", precisions("packed", CPU, int8=True))
def test_what_is_named_can_be_asked_for(tiny_folder: Path, dtype: str) -> None:
    scorer = Scorer(tiny_folder, backend="packed", device="cpu", dtype=dtype, progress=False)
    assert float(scorer.score(["heart"], ["heart"])) == pytest.approx(1.0, abs=1e-2)
