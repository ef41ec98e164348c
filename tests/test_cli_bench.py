"""`fastreward bench`: texts from files, every back-end that runs here, and what it recommends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy.stats import spearmanr  # sentence-transformers brings it
from typer.testing import CliRunner, Result

from fastreward import Scorer, benchmarking, cli_bench
from fastreward.backends import ENCODER_BACKENDS
from fastreward.benchmark_results import Outcome, Variant, advice, recommended
from fastreward.benchmark_results import Result as Row
from fastreward.benchmark_texts import Texts, read_texts
from fastreward.benchmarking import Run, spearman_within
from fastreward.cli import app
from fastreward.errors import FastRewardError, InputError

CPU = torch.device("cpu")
WORDS = [f"the heart pumps blood {number} times" for number in range(24)]


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["bench", *map(str, arguments)])


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# --------------------------------------------------------------------------- a run


@pytest.fixture(scope="module")
def done(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Result, dict[str, Any]]:
    """A run on a small encoder with everything, and what it wrote."""
    file = tmp_path_factory.mktemp("bench") / "bench.json"
    result = invoke("--encoder", tiny_folder, "--device", "cpu", "--seconds", 5, "--int8", "--json", file)
    assert result.exit_code == 0, result.output
    return result, json.loads(file.read_text(encoding="utf-8"))


def test_every_back_end_is_timed_or_says_why_not(done: tuple[Result, dict[str, Any]]) -> None:
    report = done[1]
    backends = {row["variant"]["backend"] for row in report["results"]}
    reached = {name.removeprefix("sizes of batches of ").split()[0] for name in report["left_out"]}
    assert backends | reached == set(ENCODER_BACKENDS)
    assert report["settings"]["int8"] is True
    assert report["judged"] >= 8
    for row in report["results"]:
        if row["detail"]:
            assert row["step_s"] == []
            continue
        assert len(row["step_s"]) == len(row["single_s"]) == len(row["group_s"]) >= 3
        assert min(row["step_s"] + row["single_s"] + row["group_s"]) > 0
        median = sorted(row["step_s"])[len(row["step_s"]) // 2]
        assert row["texts_per_s"] == pytest.approx(report["step_texts"] / median, rel=0.5)
        assert 0 <= row["largest_1_minus_cosine"] < (0.1 if row["variant"]["dtype"] == "int8" else 1e-3)


def test_the_call_that_is_recommended_can_be_made_and_only_rounds(
    done: tuple[Result, dict[str, Any]], tiny_folder: Path
) -> None:
    result, report = done
    best = report["recommended"]
    (row,) = [
        r
        for r in report["results"]
        if (r["variant"]["backend"], r["variant"]["dtype"]) == (best["backend"], best["dtype"])
    ]
    assert row["rms_error"] <= 3e-3
    (sentence,) = [line for line in result.stdout.splitlines() if line.startswith("Take Scorer(")]
    call = sentence.removeprefix("Take ").split("): ")[0] + ")"
    made = eval(call, {"Scorer": Scorer})  # what a user would do with it
    assert (made.backend, str(made.dtype)) == (best["backend"], f"torch.{best['dtype']}")
    assert made.score(["a cat"], ["a cat"]).item() == pytest.approx(1.0, abs=0.01)


def test_int8_is_compared_on_texts_that_it_was_not_calibrated_on(
    done: tuple[Result, dict[str, Any]],
) -> None:
    pytest.importorskip("openvino")
    assert "not calibrated on" in done[1]["judged_on"]
    seen, unseen = Texts.own().halves()
    assert not set(seen.groups) & set(unseen.groups)
    assert sorted(seen.completions + unseen.completions) == sorted(Texts.own().completions)


def test_ctrl_c_shows_what_there_is(tiny_folder: Path) -> None:
    command = [sys.executable, "-m", "fastreward", "bench", "--encoder", str(tiny_folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "FORCE_COLOR": ""}
    primary, secondary = os.openpty()  # progress is told to a terminal alone
    process = subprocess.Popen(
        [*command, "--device", "cpu", "--seconds", "40"],
        stdout=subprocess.PIPE,
        stderr=secondary,
        text=True,
        env=environment,
        start_new_session=True,
    )
    os.close(secondary)
    told = b""
    while b"round 2" not in told:
        told += os.read(primary, 1024)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    os.close(primary)
    assert process.returncode == 130, told
    assert "Interrupted" in output
    assert "Take Scorer(" in output


def test_ctrl_c_before_anything_is_timed_recommends_nothing(
    tiny_folder: Path,
) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    outcome = Run(Texts.own(), encoder=str(tiny_folder), device="cpu", tell=interrupt).run()
    assert outcome.interrupted
    assert recommended(outcome) is None
    assert "nothing to recommend" in advice(outcome, None)[0]


def test_ctrl_c_before_anything_is_known_shows_no_figures_of_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    cli_bench._show(Outcome(CPU, interrupted=True), "mine", None)
    assert "Texts: mine. 0 s." in (shown := capsys.readouterr().out)
    assert "compared with" not in shown


def test_ctrl_c_within_the_first_round_recommends_nothing_but_ends_well(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = benchmarking._seconds
    calls: list[int] = []

    def interrupted(run: Callable[[], object]) -> float:
        # Steps are the only ones of as many texts; what comes after the first one is a single text.
        found = seconds(run)
        calls.append(len(run.args[1].completions))  # type: ignore[attr-defined]  # a partial
        if calls[-1] == 1:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(benchmarking, "_seconds", interrupted)
    file = tmp_path / "bench.json"
    result = invoke("--encoder", tiny_folder, "--device", "cpu", "--seconds", 1, "--json", file)
    assert calls[-1] == 1
    assert result.exit_code == 130, result.output
    assert "nothing to recommend" in result.stdout
    report = json.loads(file.read_text(encoding="utf-8"))
    assert report["interrupted"] is True
    assert [row["step_s"] for row in report["results"] if row["step_s"]] == []


def test_a_round_that_is_cut_off_while_it_is_kept_is_no_round() -> None:
    class CutOff(list[float]):
        def append(self, value: float) -> None:
            raise KeyboardInterrupt

    row = Row(Variant("packed", "float32"), group_s=CutOff())
    with pytest.raises(KeyboardInterrupt):
        row.add(1.0, 0.1, 0.2)
    assert row.step_s == []
    assert "nothing to recommend" in advice(outcome_of(row), None)[0]


def test_a_precision_and_a_size_that_fail_while_they_are_timed_cost_no_others(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    score = benchmarking._score
    told: list[str] = []

    def failing(scorer: Scorer, texts: Texts) -> object:
        if any("round 2" in line for line in told) and scorer.dtype == torch.bfloat16:
            raise RuntimeError("no memory is left")
        if any("sizes" in line for line in told) and "max_batch_tokens=2048" in repr(scorer):
            raise RuntimeError("too large")
        return score(scorer, texts)

    two = [Variant("packed", "float32"), Variant("packed", "bfloat16")]
    monkeypatch.setattr(benchmarking, "variants", lambda *_, **__: two)
    monkeypatch.setattr(benchmarking, "_score", failing)
    monkeypatch.setattr(benchmarking, "MOST_ROUNDS", 3)
    texts = Texts.own().first(8)  # more than 1,024 tokens: there are two sizes to try
    outcome = Run(texts, encoder=str(tiny_folder), device="cpu", seconds=1000, tell=told.append).run()
    whole, failed = outcome.results
    assert len(whole.step_s) == len(whole.group_s) == 3
    assert (failed.detail, failed.step_s, failed.group_s) == ("no memory is left", [], [])
    ((base, sizes),) = outcome.batches.items()
    assert base == whole.variant
    by_size = {row.variant.max_batch_tokens: row for row in sizes}
    assert (by_size[2048].detail, by_size[2048].step_s) == ("too large", [])
    assert len(by_size[None].step_s) == len(by_size[1024].step_s) == 3
    assert recommended(outcome) is not None
    # The default size too may fail among the sizes, after it was timed among the precisions.
    by_size[None].step_s.clear()
    assert advice(outcome, None)[0].startswith("Take ")
    by_size[1024].step_s.clear()
    (first, *_) = advice(outcome, None)
    assert ": 0 texts a second" not in first


def test_where_no_back_end_can_score_the_texts_every_reason_is_named(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("cannot be compared")

    monkeypatch.setattr(benchmarking, "_compare", broken)
    with pytest.raises(FastRewardError, match="packed float32: cannot be compared"):
        Run(Texts.own(), encoder=str(tiny_folder), device="cpu", seconds=1).run()


def test_help_loads_no_torch() -> None:
    check = "import sys, fastreward.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


# --------------------------------------------------------------------------- texts


def test_rows_with_one_reference_are_a_group_and_each_text_counts_once(tmp_path: Path) -> None:
    rows = [{"answer": word, "gold": f"gold {number % 6}"} for number, word in enumerate(WORDS)]
    rows += [{"answer": WORDS[0], "gold": "gold 0"}, {"answer": "of none", "gold": None}]
    found = read_texts(write_jsonl(tmp_path / "a.jsonl", rows), "answer", "gold")
    assert found is not None
    assert sorted(found.completions) == sorted(WORDS)
    assert found.groups == tuple(number // 4 for number in range(24))
    for text, reference in zip(found.completions, found.references, strict=True):
        assert reference == f"gold {WORDS.index(text) % 6}"


def test_texts_of_one_reference_are_halved_one_by_one(tmp_path: Path) -> None:
    rows = [{"answer": word, "gold": "gold"} for word in WORDS]
    found = read_texts(write_jsonl(tmp_path / "a.jsonl", rows), "answer", "gold")
    assert found is not None
    assert [half.completions for half in found.halves()] == [tuple(WORDS[::2]), tuple(WORDS[1::2])]
    assert set(found.groups) == {0}


def test_the_texts_of_an_object_are_a_group(tmp_path: Path) -> None:
    rows = [
        {"id": n, "of": {"all": dict(zip("abc", WORDS[3 * n : 3 * n + 3], strict=True))}} for n in range(8)
    ]
    found = read_texts(write_jsonl(tmp_path / "a.jsonl", rows), "of.all", None)
    assert found is not None
    assert found.completions == tuple(WORDS)
    assert found.groups == tuple(number // 3 for number in range(24))
    assert set(found.references) == {WORDS[0]}


def test_lines_of_text_and_columns_of_csv_have_no_groups(tmp_path: Path) -> None:
    lines, table = tmp_path / "a.txt", tmp_path / "a.csv"
    lines.write_text("\n\n".join(WORDS), encoding="utf-8")
    table.write_text("id,answer\n" + "".join(f"{n},{word}\n" for n, word in enumerate(WORDS)))
    for found in (read_texts(lines, None, None), read_texts(table, "answer", None)):
        assert found is not None
        assert found.completions == tuple(WORDS)
        assert found.groups == ()


@pytest.mark.parametrize(
    ("name", "content", "options", "parts"),
    [
        ("a.txt", "one\ntwo\n", (), ["16 different texts", "2 in"]),
        ("a.txt", "one\n", ("--field", "x"), ["columns", "--field"]),
        ("a.txt", b"\xff\xfe", (), ["UTF-8"]),
        ("a.jsonl", '{"x": "one"}\n', (), ["--field NAME"]),
        ("a.jsonl", '{"x": "one"}\n', ("--field", "y"), ["line 1", "'y'"]),
        ("a.jsonl", '{"x": 7}\n', ("--field", "x"), ["line 1", "'x'", "a number"]),
        ("a.jsonl", '{"x": "one"}\n', ("--field", "x", "--reference", "y"), ["line 1", "'y'"]),
    ],
)
def test_texts_that_cannot_be_used_are_one_message_and_exit_code_2(
    tmp_path: Path, name: str, content: str | bytes, options: tuple[str, ...], parts: list[str]
) -> None:
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    result = invoke("--texts", file, *options)
    assert result.exit_code == 2
    for part in parts:
        assert part in result.stderr


def test_columns_without_a_file_and_encoders_that_are_not_there_are_errors(tmp_path: Path) -> None:
    assert "Pass --texts FILE" in invoke("--field", "x").stderr
    result = invoke("--encoder", tmp_path / "none", "--device", "cpu")
    assert result.exit_code == 2
    assert "none" in result.stderr
    with pytest.raises(InputError, match="different texts"):
        read_texts(write_jsonl(tmp_path / "a.jsonl", [{"x": "same"}] * 40), "x", None)


# --------------------------------------------------------------------------- what follows


def test_rank_correlation_within_groups_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    scores, expected = (torch.rand(40, generator=generator).mul(8).round() for _ in range(2))
    groups = [number // 8 for number in range(40)]
    parts = [slice(8 * number, 8 * number + 8) for number in range(5)]
    right = sum(spearmanr(scores[part], expected[part]).statistic for part in parts) / 5
    assert spearman_within(scores, expected, groups) == pytest.approx(right, abs=1e-12)
    assert spearman_within(scores, expected, ()) is None
    assert spearman_within(torch.ones(3), torch.arange(3.0), [0, 0, 0]) is None


def outcome_of(*rows: Row, batches: dict[Variant, list[Row]] | None = None) -> Outcome:
    return Outcome(CPU, step_texts=100, results=list(rows), batches=batches or {})


def test_a_size_of_batches_is_named_only_where_it_is_clearly_faster() -> None:
    base, size = Variant("packed", "float32"), Variant("packed", "float32", 1024)
    row = Row(base, [1.0], [0.1], [0.1], rms_error=0.0)
    cases = (
        ([0.8] * 5, True),
        ([0.8] * 4, False),  # too few rounds
        ([0.99] * 5, False),  # too little
        ([0.5, 0.5, 1.1, 0.5, 0.5], False),  # not every time
    )
    for seconds, named in cases:
        found = outcome_of(row, batches={base: [Row(base, [1.0] * 5), Row(size, seconds)]})
        assert (recommended(found) == size) is named
        assert ("max_batch_tokens=1024" in advice(found, None)[0]) is named


def test_other_scores_are_named_with_their_price_and_never_recommended() -> None:
    exact = Row(Variant("packed", "float32"), [1.0], [0.2], [0.3], rms_error=0.0)
    rounded = Row(Variant("openvino", "bfloat16"), [0.5], [0.3], [0.6], rms_error=1e-3)
    int8 = Row(Variant("openvino", "int8"), [0.25], [0.1], [0.1], rms_error=1e-3, spearman=0.97)
    failed = Row(Variant("onnx", "float32"), detail="not installed")
    found = outcome_of(exact, rounded, int8, failed)
    first, few, other = advice(found, "an encoder")
    assert first.startswith('Take Scorer("an encoder", backend="openvino", dtype="bfloat16"): 200 texts')
    assert 'backend="packed", dtype="float32") is 2.00 times' in few
    assert "2.00 times as fast, but its scores are others: RMS error 1.0e-03" in other
    assert "0.9700" in other
    assert 'calibration="FILE.npz"' in other
    found.calibration = "mine.npz"
    assert 'calibration="mine.npz"' in advice(found, None)[2]
