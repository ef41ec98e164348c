"""The training scripts in miniature: all stages, an interruption, and what the tables say of the results."""

from __future__ import annotations

import importlib
import json
import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from fastreward.errors import InputError
from fastreward.scorer import Scorer

ROOT = Path(__file__).resolve().parents[1]
ARMS = ("semantic", "answer")


@pytest.fixture(scope="module")
def arms_script(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The script as a module; it puts the repository on the path by itself."""
    return load_script(ROOT / "benchmarks" / "train_arms.py")


@pytest.fixture(scope="module")
def training(arms_script: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.training")


@pytest.fixture(scope="module")
def demo(arms_script: ModuleType) -> ModuleType:
    return importlib.import_module("benchmarks.train_demo")


@pytest.fixture(scope="module")
def tiny(training: ModuleType) -> Any:
    return replace(
        training.QUICK,
        vocabulary=448,
        hidden_size=48,
        intermediate_size=96,
        layers=1,
        heads=2,
        families=("syllogisms",),
        corpus_texts=40,
        questions=64,
        sft_batch=8,
        sft_epochs=16.0,  # enough to write the tags, without which nothing is rewarded
        sft_rate=1e-2,
        warmup_steps=5,
        grpo_steps=3,
        grpo_saved=1,
        grpo_prompts=2,
        grpo_rate=1e-3,
        completion=72,
        evaluated=6,
    )


@pytest.fixture(scope="module")
def finished(training: ModuleType, tiny: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run of which all stages and two arms are done, and what each returned."""
    run = training.Run(tmp_path_factory.mktemp("run"), tiny, 3, tell=lambda line: None)
    return run, {name: run.stage(name) for name in (*training.STAGES, *ARMS)}


def weights_of(run: Any, stage: str) -> dict[str, torch.Tensor]:
    return load_file(run.model(stage) / "model.safetensors")


def test_every_stage_trains_the_weights_of_the_one_before_and_is_measured(
    training: ModuleType, finished: Any
) -> None:
    run, results = finished
    # AdamW moves a weight by about the learning rate in a step, so that a few steps do not lead far.
    rates = {"cpt": run.recipe.cpt_rate, "sft": run.recipe.sft_rate}
    for before, after in [("start", "cpt"), ("cpt", "sft"), ("sft", "semantic"), ("sft", "answer")]:
        bound = 3 * rates.get(after, run.recipe.grpo_rate) * run.log(after)[-1]["step"]
        old, new = weights_of(run, before), weights_of(run, after)
        assert old.keys() == new.keys()
        moved = max(float((new[name] - old[name]).abs().max()) for name in old)
        assert 0 < moved < bound, (before, after)
    for name, result in results.items():
        assert result["stage"] == name
        for split in training.SPLITS:
            found = result[split]
            assert all(0 <= found[measure] <= 1 for measure in ("accuracy", "rouge_l", "format"))
            assert -1 <= found["semantic"] <= 1
            assert 0 < found["length"] <= run.recipe.completion
    parameters = sum(weight.numel() for weight in weights_of(run, "start").values())
    assert results["start"]["parameters"] == parameters


def test_arms_measure_the_same_and_are_rewarded_otherwise(finished: Any) -> None:
    run, _ = finished
    logs = {arm: run.log(arm) for arm in ARMS}
    for steps in logs.values():
        assert [step["step"] for step in steps] == [1, 2, 3]
        for name in ("semantic_reward", "rouge_l_reward", "answer_reward", "format_reward"):
            assert all(f"rewards/{name}/mean" in step for step in steps)
    # The first rollout is that of the same weights, questions and random numbers.
    first = [logs[arm][0] for arm in ARMS]
    assert first[0]["rewards/semantic_reward/mean"] == first[1]["rewards/semantic_reward/mean"]
    semantic, answer = (weights_of(run, arm) for arm in ARMS)
    assert any(not torch.equal(semantic[name], answer[name]) for name in semantic)


def test_the_seconds_of_an_arm_are_those_around_it_and_not_of_its_steps_alone(finished: Any) -> None:
    run, results = finished
    for arm in ARMS:
        assert results[arm]["seconds"] > sum(step["step_time"] for step in run.log(arm))


def test_an_interrupted_arm_goes_on_and_ends_in_the_same_weights(
    training: ModuleType, tiny: Any, finished: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, results = finished
    folder = tmp_path / "run"
    for stage in training.STAGES:
        (folder / stage).parent.mkdir(parents=True, exist_ok=True)
        (folder / stage).symlink_to(whole.folder / stage)
    run = training.Run(folder, tiny, 3, tell=lambda line: None)

    def interrupt(step: Any) -> None:
        if step["step"] == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(run, "_report", interrupt)
        with pytest.raises(KeyboardInterrupt):
            run.stage("semantic")
    assert not (folder / "semantic" / "result.json").exists()
    again = training.Run(folder, tiny, 3, tell=lambda line: None).stage("semantic")
    for split in training.SPLITS:
        assert again[split] == results["semantic"][split]
    expected, found = weights_of(whole, "semantic"), weights_of(run, "semantic")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    # Of what was done before it was interrupted, the steps alone say how long it took.
    assert again["seconds"] == sum(step["step_time"] for step in run.log("semantic"))


def test_what_is_done_is_not_done_again(training: ModuleType, tiny: Any, finished: Any) -> None:
    run, results = finished
    told: list[str] = []
    again = training.Run(run.folder, tiny, 3, tell=told.append)
    assert again.stage("semantic") == results["semantic"]
    assert told == []


@pytest.mark.parametrize(("change", "seed"), [({"hidden_size": 64}, 3), ({}, 4)])
def test_a_folder_of_another_recipe_or_seed_is_refused(
    training: ModuleType, tiny: Any, finished: Any, change: dict[str, int], seed: int
) -> None:
    name = next(iter(change), "seed")
    with pytest.raises(InputError, match=f"{name}.*Name another folder"):
        training.Run(finished[0].folder, replace(tiny, **change), seed)


def test_fine_tuning_draws_among_all_wordings_and_never_sees_what_is_held_out(
    training: ModuleType, tiny: Any
) -> None:
    world = training.World.of(replace(tiny, questions=300, evaluated=100), 5)
    rows = world.fine_tuning(5)
    used = [
        next(n for n in range(len(q.explanations)) if training.in_words(q, n) == row["completion"])
        for q, row in zip(world.questions, rows, strict=True)
    ]
    counts = [used.count(n) for n in range(3)]
    assert sum(counts) == 300
    assert min(counts) > 60  # 100 each; a deviation is 8
    assert rows == world.fine_tuning(5) != world.fine_tuning(6)
    seen = {question.prompt for question in world.questions}
    for split in training.SPLITS:
        assert not seen & {question.prompt for question in world.held_out[split]}


def test_the_text_of_the_right_option_is_the_only_one_that_is_right(training: ModuleType) -> None:
    parts = {reward.__name__: reward for reward in training.arm_reward("answer", Scorer(), 5).rewards}
    for question in training.World.of(replace(training.FULL, questions=200, corpus_texts=0), 1).questions:
        row, right = training.row_of(question), question.options["ABCDE".index(question.answer)]
        answers = [f"<answer>{option}<" for option in question.options]
        completions = [row["completion"].replace(f"<answer>{right}<", answer) for answer in answers]
        columns = {name: [row[name]] * 5 for name in ("answer", "options")}
        given = parts["answer_reward"](completions, **columns)
        assert given == [float(option == right) for option in question.options], question
        assert parts["format_reward"](completions) == [1.0] * 5


def test_the_tokenizer_takes_digits_one_by_one_and_gives_back_what_it_got(
    training: ModuleType, tiny: Any
) -> None:
    texts = training.World.of(tiny, 0).texts
    tokenizer = training.new_tokenizer(texts, 512)
    for text in (*texts[:50], "<explanation>12 × 345 = 4.140 m²</explanation>\n<answer>C</answer>"):
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text
        tokens = tokenizer.convert_ids_to_tokens(ids)
        digits = [token for token in tokens if any(digit in token for digit in "0123456789")]
        assert [token[-1] for token in digits] == [letter for letter in text if letter in "0123456789"]
        assert {token[:-1] for token in digits} <= {"", "Ġ"}  # Ġ is a space
        for tag in training.TAGS:
            assert tokens.count(tag) == text.count(tag)
    assert len(tokenizer) <= 512


def test_an_arm_prefers_what_it_is_named_after(training: ModuleType) -> None:
    reference = "The heart pumps blood through the body, and the blood carries oxygen."
    texts = (
        "The blood that carries oxygen is driven through our body by the heart.",  # near in meaning
        "The heart through the body and the blood, and pumps the moon.",  # near in words
    )
    completions = [f"<explanation>{text}</explanation>\n<answer>oxygen</answer>" for text in texts]
    columns: dict[str, Any] = {"explanation": [reference] * 2, "answer": ["B"] * 2, "prompts": ["?"] * 2}
    columns["options"] = [["iron", "oxygen", "salt", "bile", "air"]] * 2
    scorer = Scorer()
    found = {arm: training.arm_reward(arm, scorer, 2)(completions, **columns) for arm in training.ARMS}
    assert found["semantic"][0] > found["semantic"][1]
    assert found["rouge"][0] < found["rouge"][1]
    assert found["answer"][0] == found["answer"][1]
    half = [(a + b) / 2 for a, b in zip(found["semantic"], found["rouge"], strict=True)]
    assert found["semantic+rouge"] == pytest.approx(half, abs=1e-9)


def result_rows(gain: float, seeds: int = 3) -> list[dict[str, Any]]:
    rows = []
    for seed in range(seeds):
        for stage, more in (("sft", 0.0), ("semantic", gain)):
            found = {"accuracy": 0.5 + 0.1 * seed + more, "semantic": 0.8 + more, "rouge_l": 0.4}
            found |= {"format": 1.0, "length": 50.0}
            both = {split: dict(found) for split in ("held_out_numbers", "held_out_templates")}
            rows.append({"seed": seed, "stage": stage, "seconds": 60.0, "asking_s": 1.0, **both})
    return rows


@pytest.mark.parametrize(
    ("gain", "semantic", "accuracy"), [(0.02, True, True), (0.0, False, True), (-0.02, False, False)]
)
def test_gains_are_over_the_same_seed_and_no_gain_is_enough_of_accuracy_alone(
    arms_script: ModuleType, gain: float, semantic: bool, accuracy: bool
) -> None:
    found = arms_script.asked(result_rows(gain))
    assert [one["met"] for one in found] == [True, True, semantic, accuracy]
    assert found[3]["values"] == pytest.approx([gain] * 3)
    assert found[3]["spread"] == pytest.approx(0.0, abs=1e-12)  # seeds differ by 0.1, their gains do not
    assert found[0]["spread"] == pytest.approx(statistics.stdev([0.5, 0.6, 0.7]))


def test_fewer_than_three_seeds_are_not_judged(arms_script: ModuleType) -> None:
    assert {one["met"] for one in arms_script.asked(result_rows(0.02, seeds=2))} == {None}


def test_results_are_drawn_from_their_file_alone(
    arms_script: ModuleType, demo: ModuleType, training: ModuleType, finished: Any, tmp_path: Path
) -> None:
    run, results = finished
    shared = {"device": "CPU", "commit": "0" * 12, "settings": run.settings}
    rows = [{"seed": 3, **row} for row in results.values()]
    for script, steps in (
        (demo, run.curves("semantic")),
        (arms_script, {arm: [run.curves(arm)] for arm in ARMS}),
    ):
        path = tmp_path / f"{script.__name__}.json"
        path.write_text(json.dumps({**shared, "rows": rows, "steps": steps}), encoding="utf-8")
        assert script.main(["--draw", str(path)]) == 0
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_demo_is_held_against_what_is_asked_of_it(demo: ModuleType) -> None:
    rows = result_rows(0.01, seeds=1)
    assert all(one["met"] for one in demo.asked(rows))
    assert [one["met"] for one in demo.asked(result_rows(0.0, seeds=1))] == [True, True, False, True, True]
    rows[0]["held_out_numbers"] |= {"accuracy": 0.39, "semantic": 0.86}
    rows[1]["seconds"] = 840.0  # 902 with the rest
    assert [one["met"] for one in demo.asked(rows)] == [False, False, False, True, False]
