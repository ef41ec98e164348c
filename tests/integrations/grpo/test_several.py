"""Two processes that share a run end where one process ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastreward.errors import InputError
from fastreward.integrations.processes import Processes

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folders(
    run: ModuleType, load_script: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The folders of the same runs: of two processes that talk by gloo, and of one."""
    together, alone = tmp_path_factory.mktemp("together"), tmp_path_factory.mktemp("alone")
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(HERE / "several_run.py"), str(together)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    load_script(HERE / "several_run.py").main(alone, run)
    return together, alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dapo", "grpo", "skipping", "ahead", "resumed"])
def test_both_processes_end_in_the_weights_of_one_process(folders: tuple[Path, Path], name: str) -> None:
    together, alone = folders
    first, second = (torch.load(together / f"{name}-{rank}.pt") for rank in (0, 1))
    expected = torch.load(alone / f"{name}-0.pt")
    for one, two, wanted in zip(first, second, expected, strict=True):
        assert one.equal(two)
        # In fp64 but for the advantages, which are rounded to fp32: 6e-8 of an update of 1e-2.
        assert (one - wanted).abs().max() < 1e-7
    start = torch.load(together / "dapo-0.pt")
    assert name == "dapo" or any((a - b).abs().max() > 1e-3 for a, b in zip(first, start, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dapo", "grpo", "skipping", "ahead"])
def test_the_first_process_logs_the_metrics_of_both(folders: tuple[Path, Path], name: str) -> None:
    logs = [
        [json.loads(line) for line in (folder / name / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        for folder in folders
    ]
    assert len(logs[0]) == len(logs[1]) >= 2
    for ours, wanted in zip(*logs, strict=True):
        assert ours.keys() == wanted.keys()
        # What rewards log is the mean of what each process logs of its rows.
        names = [n for n in ours if "time" not in n and n != "words" and not n.startswith("combined_reward/")]
        assert [ours[n] for n in names] == pytest.approx([wanted[n] for n in names], rel=1e-5, abs=1e-6)
        assert ours["words"] == pytest.approx(wanted["words"] / 2)
    assert any("eval_reward" in line for line in logs[0]) == (name == "dapo")
    assert (
        name != "skipping" or logs[0][0]["frac_reward_zero_std"] == 0.75
    )  # one process had nothing to learn


@pytest.mark.slow
def test_one_process_writes_and_the_checkpoint_is_whole(folders: tuple[Path, Path]) -> None:
    written = [sorted(path.name for path in (folder / "resumed").iterdir()) for folder in folders]
    assert written[0] == written[1] == ["checkpoint-000002", "checkpoint-000003", "log.jsonl"]
    state = torch.load(folders[0] / "resumed" / "checkpoint-000002" / "state.pt", weights_only=True)
    assert [len(part["texts"]) for part in state["ahead"]] == [8, 8]


@pytest.mark.slow
def test_groups_that_cannot_stay_whole_are_refused(folders: tuple[Path, Path]) -> None:
    said = json.loads((folders[0] / "refused.json").read_text(encoding="utf-8"))
    assert "num_prompts that 2 processes share evenly, as whole groups, got 3" in said
    assert not (folders[1] / "refused.json").exists()


def test_several_processes_without_accelerate_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(InputError, match=r"accelerate, for several processes, got none.*fastreward\[trl\]"):
        Processes(torch.device("cpu"))


def test_parts_of_processes_are_all_rows_once() -> None:
    for count in (1, 2, 3, 7):
        for rows in (0, 1, 5, 14):
            parts = []
            for rank in range(count):
                processes = Processes(torch.device("cpu"))
                processes.rank, processes.count = rank, count
                parts += list(range(rows)[processes.share(rows)])
            assert parts == list(range(rows))
