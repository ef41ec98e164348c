"""`fastreward train` and `fastreward evaluate`, run for real on a recipe in miniature."""

from __future__ import annotations

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer
from typer.testing import CliRunner, Result

from fastreward.cli_train import app_train, evaluate
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged

pytest.importorskip("trl", reason="needs the extra trl")
pytestmark = pytest.mark.skipif(
    not is_packaged(DEFAULT_ENCODER), reason="the default encoder is not installed (fastreward[minilm])"
)

TESTS = Path(__file__).resolve().parent
RECIPE = TESTS.parent / "examples" / "recipes" / "small-cpu"
TIMEOUT_S = 120

app_evaluate = typer.Typer()
app_evaluate.command()(evaluate)


def train(*arguments: object) -> Result:
    return CliRunner().invoke(app_train, [str(argument) for argument in arguments])


def judge_brief(prompt: str, a: str, b: str, reference: str) -> int:
    """A judge for --judge: the shorter, at equal length the first in the alphabet."""
    return (len(a), a) < (len(b), b) or -((len(a), a) > (len(b), b))


@pytest.fixture(scope="module")
def folder(load_script: Callable[[Path], ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random model, `tiny`, whose tokenizer knows the words of the example data."""
    folder = tmp_path_factory.mktemp("train")
    run = load_script(TESTS / "integrations" / "trl_run.py")
    tokenizer = run.make_tokenizer()
    run.make_model(tokenizer).save_pretrained(folder / "tiny")
    tokenizer.save_pretrained(folder / "tiny")
    return folder


def stage(folder: Path, name: str, model: str, *more: str) -> list[object]:
    """Arguments that make a stage of the recipe small."""
    if name == "grpo":
        part = ["loop.num_prompts=2", "loop.num_generations=2", "loop.max_completion_length=6"]
        part += ["data=exams:train?count=8&languages=en", "eval_data=exams:held_out_numbers?count=2"]
        # Without a reward that differs from text to text, two steps may find nothing to learn.
        part += ["rewards.length={weight: 1.0, unit: characters, extract: null}"]
        block = "loop"
    else:
        count = "corpus?count=8" if name == "cpt" else "train?count=8"
        part, block = [f"data=exams:{count}&languages=en", "training.batch_size=2"], "training"
    common = [f"{block}.output_dir={folder / name}", f"{block}.max_steps=2", f"model={folder / model}"]
    return [name, "--config", RECIPE / f"{name}.yaml", *common, "device=cpu", *part, *more]


@pytest.fixture(scope="module")
def trained(folder: Path) -> Path:
    """The same folder, with the three stages of the recipe done one after the other."""
    for name, model in (("cpt", "tiny"), ("sft", "cpt"), ("grpo", "sft")):
        result = train(*stage(folder, name, model))
        assert result.exit_code == 0, result.output
        assert f"{folder / name}: done" in result.stderr
        assert f"{folder / model}: 0.3 million parameters, float32, on cpu" in result.stderr
        assert "8 rows of exams:" in result.stderr
    return folder


def test_each_stage_begins_with_the_model_of_the_one_before(trained: Path) -> None:
    from fastreward.integrations.pipeline import load_policy

    weights = [
        load_policy(str(trained / name), device="cpu")[0].state_dict()["model.embed_tokens.weight"]
        for name in ("tiny", "cpt", "sft", "grpo")
    ]
    pairs = itertools.pairwise(weights)
    changes = [float((after - before).abs().max()) for before, after in pairs]
    assert min(changes) > 0
    for name in ("cpt", "sft", "grpo"):
        lines = (trained / name / "log.jsonl").read_text(encoding="utf-8").splitlines()
        assert any(json.loads(line)["step"] == 2 for line in lines)


def test_models_are_compared_in_a_table_that_names_the_judge(trained: Path) -> None:
    models = [str(trained / name) for name in ("cpt", "sft")]
    data = ["--data", "exams:held_out_numbers?count=3&languages=en", "--max-completion-length", "8"]
    shown = CliRunner().invoke(app_evaluate, [*models, *data, "--device", "cpu", "--bootstrap", "20"])
    assert shown.exit_code == 0, shown.output
    lines = [line.split() for line in shown.stdout.splitlines()]
    assert lines[0] == ["model", "accuracy", "semantic", "format", "tokens", "cut", "off", "Elo", "95", "%"]
    assert [line[0] for line in lines[1:3]] == models
    assert "judge: encoder all-MiniLM-L6-v2" in shown.stdout
    assert "3 questions of exams:held_out_numbers?count=3&languages=en, the likeliest token" in shown.stdout
    out = trained / "completions"
    asked = [*models, *data, "--device", "cpu", "--bootstrap", "0", "--json", "--completions", str(out)]
    asked += ["--judge", "judge_of_tests:judge_brief", "--temperature", "1", "--anchor", models[1]]
    (trained / "judge_of_tests.py").write_text(
        f"import sys\nsys.path.insert(0, {str(TESTS)!r})\nfrom test_cli_train import judge_brief\n",
        encoding="utf-8",
    )
    here = Path.cwd()
    os.chdir(trained)
    try:
        result = CliRunner().invoke(app_evaluate, asked)
    finally:
        os.chdir(here)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["ratings"]["judge"] == "judge_brief"
    assert report["ratings"]["models"][models[1]]["elo"] == 1500
    assert sum(map(sum, report["ratings"]["wins"])) == 3
    assert set(report["models"]) == set(models)
    assert report["models"][models[0]]["temperature"] == 1.0
    files = sorted(out.iterdir())
    assert [path.name for path in files] == ["00-cpt.jsonl", "01-sft.jsonl"]
    rows = [json.loads(line) for line in files[0].read_text(encoding="utf-8").splitlines()]
    lengths = [row["tokens"] for row in rows]
    assert report["models"][models[0]]["mean_length"] == sum(lengths) / 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sft", "--config", "none.yaml"], "YAML that can be read"),
        (["sft", "--config", RECIPE / "sft.yaml", "training.rate=1"], "options among"),
        (["sft", "--config", RECIPE / "sft.yaml", "training"], "name=value"),
        (
            ["sft", "--config", RECIPE / "sft.yaml", "training.output_dir=/dev/null/run"],
            "a folder that can be",
        ),
        (
            ["sft", "--config", RECIPE / "sft.yaml", "data=exams:corpus?count=2"],
            "a column 'prompt' in exams:",
        ),
        (["sft", "--config", RECIPE / "sft.yaml", "data=rows.txt"], "a file that ends in"),
        (["cpt", "--config", RECIPE / "cpt.yaml", "model=no-such/model"], "a model that can be loaded"),
        (["grpo", "--config", RECIPE / "grpo.yaml", "rewards.meaning=1"], "rewards among semantic"),
        (["grpo", "--config", RECIPE / "grpo.yaml", "--resume"], "a checkpoint, got none"),
    ],
)
def test_what_the_user_can_mend_is_told_on_standard_error_with_exit_code_2(
    tmp_path: Path, arguments: list[object], message: str
) -> None:
    here = Path.cwd()
    os.chdir(tmp_path)  # where runs/ would be made
    try:
        result = train(*arguments)
    finally:
        os.chdir(here)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("fastreward: Expected ")
    assert message in result.stderr


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--judge", "json:nothing"], "a judge that can be imported"),
        (["--judge", "json:__name__"], "a function as judge"),
        (["--data", "none.jsonl"], "a file of UTF-8 that can be read"),
        (["tiny"], "models that differ"),
        (["--anchor", "tiny"], "an anchor among several models, tiny, got 'tiny'"),
        (["other", "--anchor", "tyni"], "an anchor among several models, tiny, other, got 'tyni'"),
        (["--options", "choices"], "a column 'choices' in exams:train?count=1"),
        ([], "a model that can be loaded as 'tiny'"),
    ],
)
def test_evaluate_tells_what_is_wrong(more: list[str], message: str) -> None:
    result = CliRunner().invoke(app_evaluate, ["tiny", "--data", "exams:train?count=1", *more])
    assert (result.exit_code, result.stdout) == (2, "")
    assert message in result.stderr


def test_answers_in_words_are_judged_by_the_column_of_options(folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    row = {"prompt": "the cell", "explanation": "It lives.", "choices": ["the heart", "the lung"]}
    asked = [str(folder / "tiny"), "--data", str(data), "--options", "choices", "--device", "cpu"]
    for answer, code in (("the lung", 0), ("the liver", 2)):
        data.write_text(json.dumps(row | {"answer": answer}), encoding="utf-8")
        result = CliRunner().invoke(app_evaluate, [*asked, "--max-completion-length", "4", "--json"])
        assert result.exit_code == code, result.output
    assert "'the liver' in answer[0]" in result.stderr


def test_a_single_model_is_judged_against_the_references(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(TESTS))
    asked = [str(folder / "tiny"), "--data", "exams:train?count=2&languages=en", "--device", "cpu"]
    asked += ["--max-completion-length", "4", "--judge", "test_cli_train:judge_brief"]
    shown = CliRunner().invoke(app_evaluate, asked)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines()[0].split()[-1] == "wins"
    assert shown.stdout.splitlines()[1].split()[-1] == "1.000"  # nothing is shorter than no explanation
    assert "judge: test_cli_train:judge_brief" in shown.stdout
    report = json.loads(CliRunner().invoke(app_evaluate, [*asked, "--json"]).stdout)
    assert (report["judge"], report["models"][asked[0]]["win_rate"]) == (asked[-1], 1.0)


def test_a_mistake_is_told_before_a_model_is_loaded_and_leaves_no_folder(folder: Path) -> None:
    models = [str(folder / "tiny"), str(folder / "tyni")]
    data = ["--data", "exams:train?count=1", "--completions", str(folder / "answers")]
    result = CliRunner().invoke(app_evaluate, [*models, *data])
    assert (result.exit_code, result.stdout) == (2, "")
    assert "a model that can be loaded as" in result.stderr
    assert "tyni" in result.stderr
    assert not (folder / "answers").exists()


def test_ctrl_c_leaves_the_last_checkpoint_and_says_how_to_go_on(folder: Path) -> None:
    steps = ["training.max_steps=40", "training.batch_size=1", "training.save_steps=5"]
    arguments = [str(one) for one in stage(folder, "sft", "tiny", *steps)]
    arguments = [f"training.output_dir={folder / 'stopped'}" if "output_dir" in a else a for a in arguments]
    command = [sys.executable, "-c", "from fastreward.cli_train import app_train; app_train()", *arguments]
    environment: dict[str, Any] = {**os.environ, "HF_HUB_OFFLINE": "1"}
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, env=environment, text=True
    )
    try:
        deadline = time.monotonic() + TIMEOUT_S
        while not list((folder / "stopped").glob("checkpoint-*/trainer_state.json")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=TIMEOUT_S)
    finally:
        process.kill()
    assert process.returncode == 130, told
    last = told.splitlines()[-1]
    assert "checkpoint-" in last
    assert " --resume" in last
    assert not (folder / "stopped" / "config.json").exists()
    result = train(*arguments, "--resume")
    assert result.exit_code == 0, result.output
    state = json.loads(
        (folder / "stopped" / "checkpoint-40" / "trainer_state.json").read_text(encoding="utf-8")
    )
    assert state["global_step"] == 40
    logged = [
        json.loads(line)["step"] for line in (folder / "stopped" / "log.jsonl").read_text().splitlines()
    ]
    assert logged == sorted(logged)
