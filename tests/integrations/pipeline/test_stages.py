"""Rewards by name, the GRPO stage, and the files of the recipes."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from fastreward import rewards as library
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged
from fastreward.errors import InputError
from fastreward.integrations import run_config
from fastreward.integrations.grpo import LoopConfig
from fastreward.integrations.pipeline import load_policy, make_reward, make_scorer, train_grpo
from fastreward.integrations.pipeline.rewards import REWARDS
from fastreward.integrations.pipeline.stages import (
    FILES,
    GRPOFile,
    TuningFile,
    output_folder,
    read_stage,
    run_stage,
)
from fastreward.rewards import Gate, Power, Rescale
from fastreward.scorer import Scorer

needs_encoder = pytest.mark.skipif(
    not is_packaged(DEFAULT_ENCODER), reason="the default encoder is not installed (fastreward[minilm])"
)
RECIPES = Path(__file__).resolve().parents[3] / "examples" / "recipes"
FILES_OF_RECIPES = sorted(RECIPES.glob("*/*.yaml"))

# --------------------------------------------------------------------------- rewards


@needs_encoder
def test_rewards_by_name_score_as_the_same_rewards_made_by_hand() -> None:
    scorer = Scorer(device="cpu", dtype="float32")
    said = {
        "semantic": {"weight": 2, "shaping": [{"rescale": 0.2}, {"power": 2}]},
        "answer": 0.5,
        "format": None,
        "rouge": {"tokenize": "words", "weight": 0.25},
        "length": {"reference": "brief"},
    }
    plan = make_reward(said, scorer, gates={"semantic": "answer"})
    shaping = library.Chain(Rescale(0.2), Power(2))
    by_hand = [
        library.SemanticReward(scorer, reference="explanation", extract="explanation", shaping=shaping),
        library.AnswerReward(),
        library.FormatReward(),
        library.RougeLReward("explanation", extract="explanation", tokenize=library.surface.words),
        library.LengthReward("brief", extract="explanation"),
    ]
    combined = library.CombinedReward(
        by_hand, weights=[2, 0.5, 1, 0.25, 1], gates={"semantic_reward": "answer_reward"}
    )
    columns = {"answer": ["B"] * 2, "explanation": ["È perché sì."] * 2, "brief": ["È così"] * 2}
    texts = [
        "<explanation>Perché è così.</explanation><answer>B</answer>",
        "<explanation>Perché è così.</explanation><answer>A</answer>",
    ]
    found = plan.reward.evaluate(texts, **columns)
    wanted = combined.evaluate(texts, **columns)
    assert torch.equal(found.components, wanted.components)
    assert torch.equal(found.total, wanted.total)
    assert found.components[1, 0] == 0 < found.components[0, 0]  # the gate
    assert plan.columns == {"explanation": "reference", "answer": "answer", "brief": "reference"}


def test_every_reward_has_a_name_and_can_be_made() -> None:
    classes = {name for name in vars(library) if name.endswith("Reward")}
    assert classes - set(REWARDS.values()) == {"Reward", "CombinedReward", "JudgeReward"}
    plan = make_reward(dict.fromkeys(REWARDS))
    assert len(plan.reward.names) == len(REWARDS)


@pytest.mark.parametrize(
    ("rewards", "columns"),
    [
        ({"answer": {"options": "choices"}}, {"answer": "answer", "choices": "options"}),
        ({"prompt_copy": {"prompt": "question"}}, {"question": "prompt"}),
        ({"prompt_copy": 1}, {}),
        ({"prompt_copy": {"allowed": "reference"}}, {"explanation": "reference"}),
        ({"answer": {"answer": "why"}, "length": {"reference": "why"}}, {"why": "answer"}),
    ],
)
def test_the_columns_of_rewards_are_those_that_they_read(
    rewards: dict[str, Any], columns: dict[str, str]
) -> None:
    assert make_reward(rewards).columns == columns


def test_a_gate_may_have_a_threshold() -> None:
    rule = {"component": "format", "at_least": 0.5, "undecided": "open"}
    plan = make_reward({"answer": 1, "format": 1}, gates={"answer": rule})
    assert plan.reward.gates == {"answer_reward": Gate("format_reward", at_least=0.5, undecided="open")}


@pytest.mark.parametrize(
    ("rewards", "options", "message"),
    [
        ({}, {}, "a reward at least"),
        ({"meaning": 1}, {}, "rewards among semantic, .*got 'meaning'"),
        ({"semantic": "high"}, {}, "a weight or options of semantic"),
        ({"semantic": {"scorer": 1}}, {}, "semantic among reference, .*got 'scorer'"),
        ({"semantic": {"reference": ["a"]}}, {}, "a column's name as reference of semantic, got list"),
        ({"answer": {"answer": 3}}, {}, "a column's name as answer of answer, got int 3"),
        ({"answer": 1}, {"gates": {"answer": {"component": ["a"]}}}, "what a gate is decided by"),
        ({"semantic": {"shaping": {"cube": 3}}}, {}, "shaping of semantic among clip, .*got 'cube'"),
        ({"semantic": {"shaping": "clip"}}, {}, "a shaping of semantic"),
        ({"semantic": {"shaping": {"sigmoid": 3}}}, {}, "arguments of sigmoid"),
        ({"answer": {"weight": "heavy"}}, {}, "finite numbers as weights"),
        ({"answer": {"kind": "guess"}}, {}, "kind"),
        ({"answer": 1}, {"gates": {"answer": 3}}, "what a gate is decided by"),
        ({"answer": 1}, {"gates": {"answer": "form"}}, "form"),
        ({"answer": 1}, {"aggregation": "max"}, "'sum_then_normalize' or 'normalize_then_sum'"),
    ],
)
def test_bad_rewards_are_named(rewards: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_reward(rewards, **options)


def test_arguments_of_the_encoder_are_checked() -> None:
    with pytest.raises(InputError, match=r"encoder among encoder, backend, .*got 'prefix'"):
        make_scorer({"prefix": "query: "})


# --------------------------------------------------------------------------- GRPO


@pytest.fixture
def rows(run: ModuleType) -> list[dict[str, Any]]:
    questions = [item["question"] for item in run.ITEMS[:4]]
    return [{"prompt": question, "answer": "B"} for question in questions]


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_the_grpo_stage_leaves_a_model_for_the_next(
    tmp_path: Path, run: ModuleType, tokenizer: Any, rows: list[dict[str, Any]], lora_rank: int
) -> None:
    def brief(completions: list[str], **columns: Any) -> list[float]:
        return [-float(len(text)) for text in completions]

    settings: dict[str, Any] = {"num_prompts": 2, "num_generations": 2, "max_completion_length": 8}
    config = LoopConfig(
        output_dir=str(tmp_path), max_steps=2, learning_rate=1e-2, lora_rank=lora_rank, **settings
    )
    model = run.make_model(tokenizer)
    before = model.state_dict()["lm_head.weight"].clone()
    attention = model.model.layers[0].self_attn.q_proj.weight.detach().clone()
    folder = train_grpo(model, tokenizer, rows, brief, config, report=lambda metrics: None)
    loaded, loaded_tokenizer = load_policy(str(folder), device="cpu")
    assert folder == tmp_path
    assert not torch.equal(loaded.model.layers[0].self_attn.q_proj.weight, attention)
    assert torch.equal(loaded.lm_head.weight, before) == bool(lora_rank)
    assert loaded_tokenizer(rows[0]["prompt"]) == tokenizer(rows[0]["prompt"])
    for resume, message in ((False, "with a finished model"), (True, "one that is finished")):
        with pytest.raises(InputError, match=message):
            train_grpo(model, tokenizer, rows, brief, config, resume=resume)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": ""}, "in row 1, column 'answer'"),
        ({"prompt": ""}, "in row 1, column 'prompt'"),
        ({"prompt": "the " * 60}, "1 to 56 tokens as the prompt of row 1"),
    ],
)
def test_a_row_that_grpo_cannot_use_is_named(
    tmp_path: Path,
    run: ModuleType,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    change: dict[str, Any],
    message: str,
) -> None:
    model = run.make_model(tokenizer)
    model.config.max_position_embeddings = 64
    short = [row | {"prompt": "the cell"} for row in rows[:2]]
    config = LoopConfig(output_dir=str(tmp_path / "run"), max_completion_length=8)
    plan = make_reward({"answer": 1})
    for given in ({"rows": [short[0], short[1] | change]}, {"rows": short, "eval_rows": [short[0], change]}):
        with pytest.raises(InputError, match=message if len(given) == 1 else "row 1"):
            train_grpo(model, tokenizer, reward=plan, config=config, **given)
    assert not (tmp_path / "run").exists()


@needs_encoder
@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_stage_goes_on_with_the_data_and_rewards_with_which_it_began(
    tmp_path: Path, run: ModuleType, tokenizer: Any, stage: Any
) -> None:
    for part in (run.make_model(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    run_options = {"output_dir": str(tmp_path / "run"), "max_steps": 2, "save_steps": 1}
    common: dict[str, Any] = {"model": str(tmp_path / "tiny"), "device": "cpu"}
    common["data"] = "exams:train?count=4&languages=en"
    if stage == "sft":
        file: Any = TuningFile(**common, training=run_options | {"batch_size": 2})
    else:
        small = {"num_prompts": 1, "num_generations": 2, "max_completion_length": 4, "report_to": []}
        rewards = {"format": 1.0, "length": {"weight": 0.1}}
        file = GRPOFile(**common, rewards=rewards, loop=run_options | small)
    folder = run_stage(stage, file)
    (folder / "config.json").unlink()  # as if it had been killed
    with pytest.raises(InputError, match=r"the options of the run, data='exams:train\?count=4.*Restore them"):
        run_stage(stage, replace(file, data="exams:train?count=5&languages=en"), resume=True)
    if stage == "grpo":
        with pytest.raises(InputError, match=r"the options of the run, rewards=\{'format': 1\.0"):
            run_stage(stage, replace(file, rewards={"format": 0.5}), resume=True)
    with pytest.raises(InputError, match=r"a folder without a run, got .* with checkpoints"):
        run_stage(stage, replace(file, model="no-such/model"))  # which is not even looked for
    assert run_stage(stage, replace(file, device=None), resume=True) == folder


def test_room_for_the_model_and_room_for_its_checkpoints_are_not_the_same_room(
    tmp_path: Path,
    run: ModuleType,
    tokenizer: Any,
    rows: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("peft", reason="needs the extra trl")
    model = run.make_model(tokenizer)
    free = sum(weight.nbytes for weight in model.parameters()) + 1  # checkpoints of an adapter are small
    monkeypatch.setattr(run_config.shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))
    small: dict[str, Any] = {"num_prompts": 2, "num_generations": 2, "max_completion_length": 8}
    config = LoopConfig(output_dir=str(tmp_path), max_steps=1, lora_rank=2, **small)

    def never(completions: list[str], **columns: Any) -> list[float]:
        pytest.fail("it was run")

    with pytest.raises(InputError, match="GB free in"):
        train_grpo(model, tokenizer, rows, never, config, report=lambda metrics: None)
    assert list(tmp_path.iterdir()) == []


@needs_encoder
def test_with_gdpo_a_stage_evaluates_by_the_weighted_sum(
    tmp_path: Path, run: ModuleType, tokenizer: Any
) -> None:
    for part in (run.make_model(tokenizer), tokenizer):
        part.save_pretrained(tmp_path / "tiny")
    small = {"num_prompts": 1, "num_generations": 2, "max_completion_length": 4, "report_to": []}
    file = GRPOFile(
        model=str(tmp_path / "tiny"),
        device="cpu",
        data="exams:train?count=4&languages=en",
        eval_data="exams:held_out_numbers?count=3&languages=en",
        rewards={"format": 1.0, "length": {"weight": 0.5, "unit": "characters", "extract": None}},
        aggregation="normalize_then_sum",
        loop=small | {"output_dir": str(tmp_path / "run"), "max_steps": 1, "eval_steps": 1},
    )
    folder = run_stage("grpo", file)
    logged = json.loads((folder / "log.jsonl").read_text(encoding="utf-8"))
    for prefix in ("", "eval_"):
        form, length = (logged[f"{prefix}rewards/{name}_reward/mean"] for name in ("format", "length"))
        assert logged[f"{prefix}reward"] == pytest.approx(form + 0.5 * length)
        assert length > 0.01


# --------------------------------------------------------------------------- recipes


@pytest.mark.parametrize("path", FILES_OF_RECIPES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_a_recipe_is_valid_and_its_stages_follow_each_other(path: Path) -> None:
    stage: Any = path.stem
    file = read_stage(stage, path)
    assert type(file) is FILES[stage]
    before = {"cpt": None, "sft": "cpt", "grpo": "sft"}[stage]
    if before is not None:
        former = read_stage(before, path.with_name(f"{before}.yaml"))  # type: ignore[arg-type]
        assert Path(file.model) == output_folder(former)
        assert (file.dtype, file.tokenizer) == (former.dtype, None)
    if isinstance(file, GRPOFile):
        plan = make_reward(file.rewards, gates=file.gates, aggregation=file.aggregation)
        assert plan.reward.names == ("semantic_reward", "answer_reward", "format_reward")
        tuned = read_stage("sft", path.with_name("sft.yaml"))
        assert (file.chat, file.system) == (tuned.chat, tuned.system)
        assert file.loop.batch_size % file.loop.micro_batch_size == 0
    if path.parent.name == "paper-shape":
        text = path.read_text(encoding="utf-8")
        assert re.search(r"are\s+(# )?ours", text) or stage == "sft"  # the paper's values are not known
        if isinstance(file, GRPOFile):
            assert file.encoder == {"encoder": "intfloat/multilingual-e5-base", "prompt": "query: "}


def test_there_are_two_recipes_of_three_stages() -> None:
    assert [f"{path.parent.name}/{path.stem}" for path in FILES_OF_RECIPES] == [
        f"{name}/{stage}" for name in ("paper-shape", "small-cpu") for stage in ("cpt", "grpo", "sft")
    ]


def test_what_follows_the_file_wins_and_unknown_names_are_refused(tmp_path: Path) -> None:
    path = RECIPES / "small-cpu" / "grpo.yaml"
    file = read_stage("grpo", path, ["loop.seed=7", "rewards.answer=2", "model=other"])
    assert isinstance(file, GRPOFile)
    assert (file.loop.seed, file.rewards["answer"], file.model) == (7, 2, "other")
    for override, message in (
        ("loop.sed=7", r"options among loop\."),
        ("modle=other", "options among model"),
        ("loop.seed=-1", "seed"),
        ("dtype=float64", "dtype as"),
    ):
        with pytest.raises(InputError, match=message):
            read_stage("grpo", path, [override])
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values["rewards"]
    other = tmp_path / "grpo.yaml"
    other.write_text(json.dumps(values), encoding="utf-8")
    with pytest.raises(InputError, match="rewards, got none"):
        read_stage("grpo", other)
    assert isinstance(read_stage("sft", RECIPES / "small-cpu" / "sft.yaml"), TuningFile)
