"""Where a run's figures go."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fastreward.errors import InputError
from fastreward.integrations import trackers
from fastreward.integrations.pipeline.tuning import _cut_log
from fastreward.integrations.trackers import JsonLines, RunReports, open_trackers, require_trackers

STEP = {"step": 3.0, "loss": 0.125, "step_time": 1.5, "time/generate": 1.0, "time/reward_exposed": 0.25}


def installed(name: str) -> bool:
    try:
        __import__(name)
    except ImportError:
        return False
    return True


def test_a_step_is_printed_with_its_times_first(capsys: pytest.CaptureFixture[str]) -> None:
    [tracker] = open_trackers(["stdout"], "run")
    tracker.log(STEP | {"reward": 0.5, "time/update": 0.25, "time/generate_wait": 0.5})
    first, second = capsys.readouterr().out.splitlines()
    assert first == "step 3: 1.500 s (generate 1.000, reward exposed 0.250, update 0.250)"
    assert second == "  loss 0.125  reward 0.5  time/generate_wait 0.5"


def test_the_log_has_all_steps_trackers_those_that_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunReports(tmp_path, ["stdout"], 3) as reports:
        for step in (1.0, 2.0, 3.0):
            reports.log({"step": step}, shown=step == 2)
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1.0}, {"step": 2.0}, {"step": 3.0}]
    assert capsys.readouterr().out.startswith("step 2: ")


def test_a_report_of_ones_own_takes_the_place_of_the_trackers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []
    with RunReports(tmp_path, ["stdout"], 1, report=seen.append) as reports:
        reports.log(STEP)
    assert seen == [STEP]
    assert capsys.readouterr().out == ""


def test_a_process_that_is_silent_reports_nothing(tmp_path: Path) -> None:
    with RunReports(tmp_path, ["stdout"], 1, report=pytest.fail, silent=True) as reports:
        reports.log(STEP)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_log_keeps_the_steps_that_are_done_and_half_a_line_goes(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"st', encoding="utf-8")
    JsonLines(path, 2).log({"step": 3, "again": 1})
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [{"step": 1}, {"step": 2}, {"step": 3, "again": 1}]


@pytest.mark.parametrize("cut", [JsonLines, _cut_log], ids=["loop", "fine-tuning"])
def test_a_log_that_cannot_be_cut_is_left_as_it_was(
    cut: Callable[[Path, int], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n', encoding="utf-8")

    def killed(*paths: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(trackers.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cut(path, 1)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n{"step": 2}\n'
    cut(path, 1)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n'


def test_the_bar_shows_on_a_terminal_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setenv("TERM", "xterm")
    for stream, shown in ((Terminal(), True), (io.StringIO(), False)):
        monkeypatch.setattr(sys, "stderr", stream)
        with RunReports(tmp_path, [], 7, 2) as reports:
            reports.log(STEP)
        assert ("3/7" in stream.getvalue()) == shown
        assert shown or not stream.getvalue()


@pytest.mark.parametrize("name", ["trackio", "wandb"])
def test_services_get_the_run_and_its_steps(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module in the package's place: the package itself would open an account or a server."""
    calls: list[Any] = []
    service = ModuleType(name)
    service.__spec__ = type(sys.__spec__)(name, None)  # type: ignore[arg-type]
    for function in ("init", "log", "finish"):
        setattr(
            service,
            function,
            lambda *values, function=function, **options: calls.append((function, values, options)),
        )
    monkeypatch.setitem(sys.modules, name, service)
    monkeypatch.setenv(f"{name.upper()}_PROJECT", "explanations")
    [tracker] = open_trackers([name], "runs/first", {"seed": 3})
    tracker.log({"step": 4.0, "loss": 0.5})
    tracker.close()
    assert calls == [
        ("init", (), {"project": "explanations", "name": "first", "config": {"seed": 3}}),
        ("log", ({"loss": 0.5},), {"step": 4}),
        ("finish", (), {}),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_that_is_not_installed_is_refused_with_what_to_install(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda asked: None)
    for refuse in (lambda: require_trackers([name]), lambda: open_trackers([name], tmp_path)):
        with pytest.raises(InputError, match=f"the package {name}, got none. pip install {name}"):
            refuse()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not installed("tensorboard"), reason="needs tensorboard")
def test_tensorboard_gets_scalars(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [tracker] = open_trackers(["tensorboard"], tmp_path)
    tracker.log(STEP)
    tracker.close()
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(3, 0.125)]


@pytest.mark.skipif(not installed("tensorboard"), reason="needs tensorboard")
def test_a_resumed_run_has_each_step_once_in_tensorboard(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for done, steps in ((0, (1, 2, 3)), (2, (3, 4))):
        with RunReports(tmp_path, ["tensorboard"], 4, done) as reports:
            for step in steps:
                reports.log({"step": float(step), "loss": step + 0.5 * done})
    events = EventAccumulator(str(tmp_path / "runs")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    assert found == [(1, 1.0), (2, 2.0), (3, 4.0), (4, 5.0)]


def test_a_tracker_that_is_not_known_is_named() -> None:
    with pytest.raises(InputError, match="trackers among stdout, tensorboard, trackio, wandb, got 'mlflow'"):
        open_trackers(["stdout", "mlflow"], "run")
