"""int8 is calibrated on the ids that are scored: lower-cased, with the prompt, of the revision asked for."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from fastreward.benchmark_texts import Texts
from fastreward.benchmarking import Run
from fastreward.cli import app
from fastreward.configuration import tokenizer_of
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.scorer import Scorer

pytest.importorskip("openvino", reason="needs the extra openvino")

from fastreward.encoders.openvino import calibrate_int8
from fastreward.encoders.openvino_int8 import Calibration

LINES = ["The HEART Pumps", "blood", "Insulin lowers GLUCOSE"]
PROMPTED = {"cased": True, "do_lower_case": True, "prompts": {"q": "query: "}, "default_prompt_name": "q"}


def scored_ids(folder: Path, texts: list[str]) -> list[list[int]]:
    """What the encoder of a scorer is given."""
    return Scorer(folder, backend="packed", device="cpu", dtype="float32", progress=False).tokenizer(texts)


def assert_of_ids(calibration: Calibration, folder: Path, ids: list[list[int]]) -> None:
    """Assert that a calibration is the one that these ids give."""
    expected = calibrate_int8(load_checkpoint(folder), ids)
    assert calibration.num_tokens == expected.num_tokens == sum(map(len, ids))
    assert calibration.ranges.keys() == expected.ranges.keys()
    for name, found in calibration.ranges.items():
        right = expected.ranges[name]
        for ours, theirs in zip(
            (found.low, found.high, found.mean), (right.low, right.high, right.mean), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)


def calibrated(folder: str | Path, tmp_path: Path, *options: str) -> Calibration:
    texts, ranges = tmp_path / "texts.txt", tmp_path / "ranges.npz"
    texts.write_text("\n".join(LINES), encoding="utf-8")
    result = CliRunner().invoke(app, ["calibrate", str(folder), str(texts), "--to", str(ranges), *options])
    assert result.exit_code == 0, result.output
    return Calibration.load(ranges)


def test_the_command_calibrates_on_the_ids_that_are_scored(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(**PROMPTED)
    assert_of_ids(calibrated(folder, tmp_path), folder, scored_ids(folder, LINES))


def test_the_bench_calibrates_on_the_ids_that_are_scored(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path
) -> None:
    folder = tiny_checkpoint(**PROMPTED, max_seq_length=20)
    texts = Texts.own().first(32)
    run = Run(texts, encoder=str(folder), device="cpu", int8=True, scratch=str(tmp_path))
    unseen = run._judged_texts()
    seen = list(texts.halves()[0].completions)
    assert not set(seen) & set(unseen.completions)
    assert_of_ids(Calibration.load(tmp_path / "calibration.npz"), folder, scored_ids(folder, seen))


def test_the_command_reads_the_revision_that_is_asked_for(
    tiny_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    folders = [tiny_checkpoint(), tiny_checkpoint(**PROMPTED)]
    stored = tmp_path / "hub" / "models--someone--encoder"
    (stored / "refs").mkdir(parents=True)
    for number, (branch, folder) in enumerate(zip(("main", "old"), folders, strict=True)):
        shutil.copytree(folder, stored / "snapshots" / (str(number) * 40))
        (stored / "refs" / branch).write_text(str(number) * 40)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for options, folder in (((), folders[0]), (("--revision", "old"), folders[1])):
        found = calibrated("someone/encoder", tmp_path, *options)
        assert_of_ids(found, folder, scored_ids(folder, LINES))


def test_a_prompt_that_a_scorer_refuses_is_left_out(tiny_checkpoint: Callable[..., Path]) -> None:
    pooling = {"pooling_mode": "mean", "include_prompt": False}
    checkpoint = load_checkpoint(tiny_checkpoint(**PROMPTED, pooling=pooling))
    assert tokenizer_of(checkpoint)(LINES) == tokenizer_of(checkpoint, prompt="")(LINES)
    assert tokenizer_of(checkpoint, prompt="query: ")(LINES) != tokenizer_of(checkpoint)(LINES)
