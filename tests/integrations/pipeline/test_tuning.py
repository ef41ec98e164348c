"""Continued pre-training and fine-tuning: the loss by hand, the folder, resuming, and what is refused."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from fastreward.errors import InputError
from fastreward.integrations.pipeline import TuningConfig, continue_pretraining, finetune, load_policy
from fastreward.integrations.pipeline.folders import newest_checkpoint
from fastreward.integrations.pipeline.prompts import as_chat

pytest.importorskip("trl", reason="needs the extra trl")


@pytest.fixture
def model(run: ModuleType, tokenizer: Any) -> Any:
    """A random model with large weights, so that what a token attends to shows in its loss."""
    model = run.make_model(tokenizer)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() == 2:
                weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def texts(run: ModuleType) -> list[str]:
    return [item["explanation"] for item in run.ITEMS[:6]]


@pytest.fixture(scope="module")
def rows(run: ModuleType) -> list[dict[str, Any]]:
    return [
        {"prompt": item["question"], "completion": f"<explanation>{item['explanation']}</explanation>"}
        for item in run.ITEMS[:6]
    ]


def config(folder: Path, **more: Any) -> TuningConfig:
    settings = {"max_steps": 1, "batch_size": 6, "logging_steps": 1, "save_steps": 0, "learning_rate": 1e-2}
    return TuningConfig(output_dir=str(folder), **(settings | more))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


@torch.no_grad()
def token_losses(model: Any, ids: list[int]) -> Tensor:
    """What each token but the first costs: [len - 1]."""
    logits = model(torch.tensor([ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


def parameters(model: Any) -> Tensor:
    return torch.cat([weight.detach().flatten() for weight in model.parameters()])


# --------------------------------------------------------------------------- the loss


def test_fine_tuning_takes_the_loss_of_completions_and_their_end_alone(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    wanted = []
    for row in rows:
        before = tokenizer(row["prompt"])["input_ids"]
        behind = [*tokenizer(row["completion"])["input_ids"], tokenizer.eos_token_id]
        wanted.append(token_losses(model, before + behind)[len(before) - 1 :])
    expected = float(torch.cat(wanted).mean())
    folder = finetune(model, tokenizer, rows, config(tmp_path / "sft"))
    assert logged(folder)[0]["loss"] == pytest.approx(expected, abs=1e-4)


def test_conversations_are_tuned_on_the_assistants_turn(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    wanted = []
    for row in rows:
        before = tokenizer(f"user : {row['prompt']} ")["input_ids"]
        behind = tokenizer(f"assistant : {row['completion']} ")["input_ids"]
        wanted.append(token_losses(model, before + behind)[len(before) - 1 :])
    expected = float(torch.cat(wanted).mean())
    chats = [chat | {"completion": row["completion"]} for chat, row in zip(as_chat(rows), rows, strict=True)]
    folder = finetune(model, tokenizer, chats, config(tmp_path / "sft"))
    assert logged(folder)[0]["loss"] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("packing", ["wrapped", "bfd_split", "none"])
def test_continued_pretraining_takes_the_loss_of_every_token_that_has_one_before_it(
    tmp_path: Path, model: Any, tokenizer: Any, texts: list[str], packing: str
) -> None:
    documents = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
    assert max(map(len, documents)) <= 128  # so that none is cut
    stream = [token for document in documents for token in document]
    wrapped = [stream[i : i + 128] for i in range(0, len(stream), 128)]
    apart, together = (
        float(torch.cat([token_losses(model, row) for row in rows]).mean()) for rows in (documents, wrapped)
    )
    assert abs(apart - together) > 0.01
    folder = continue_pretraining(
        model, tokenizer, texts, config(tmp_path / "cpt", max_length=128, packing=packing, batch_size=8)
    )
    assert logged(folder)[0]["loss"] == pytest.approx(together if packing == "wrapped" else apart, abs=1e-3)


def test_texts_may_come_as_rows_and_train_the_same(
    tmp_path: Path, model: Any, tokenizer: Any, texts: list[str]
) -> None:
    twin = copy.deepcopy(model)
    continue_pretraining(model, tokenizer, texts, config(tmp_path / "a"))
    continue_pretraining(twin, tokenizer, [{"text": text} for text in texts], config(tmp_path / "b"))
    assert torch.equal(parameters(model), parameters(twin))


# --------------------------------------------------------------------------- the folder


@pytest.mark.filterwarnings("error:.gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"lora_rank": 2, "gradient_checkpointing": True}])
def test_the_folder_has_the_model_in_hand_which_is_trained_and_otherwise_as_it_was(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]], options: dict[str, Any]
) -> None:
    before, names = parameters(model), [name for name, _ in model.named_parameters()]
    folder = finetune(model, tokenizer, rows, config(tmp_path / "sft", max_steps=2, **options))
    loaded, loaded_tokenizer = load_policy(str(folder), device="cpu")
    assert not torch.equal(parameters(model), before)
    assert torch.equal(parameters(loaded), parameters(model))
    assert [name for name, _ in model.named_parameters()] == names
    assert loaded_tokenizer(rows[0]["prompt"]) == tokenizer(rows[0]["prompt"])
    assert loaded_tokenizer.pad_token == tokenizer.pad_token
    assert "forward" not in vars(model)
    assert not model.is_gradient_checkpointing
    assert model.config.use_cache
    assert loaded.config.use_cache
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    ids = torch.tensor([[5, 6, 7]])
    assert twin(ids).logits.abs().max() == 0 < model(ids).logits.abs().max()  # the copy calls itself


def test_lora_trains_over_weights_in_half_precision_which_are_refused_without(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    model = model.to(torch.bfloat16)
    with pytest.raises(InputError, match=r"a model in float32, got torch\.bfloat16.*lora_rank"):
        finetune(model, tokenizer, rows, config(tmp_path / "a"))
    before = parameters(model)
    finetune(model, tokenizer, rows, config(tmp_path / "b", lora_rank=2, max_steps=3))
    assert model.dtype == torch.bfloat16
    assert not torch.equal(parameters(model), before)


def test_a_run_that_stopped_goes_on_to_the_same_weights(
    tmp_path: Path, run: ModuleType, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    whole = tmp_path / "whole"
    settings: dict[str, Any] = {"max_steps": 4, "batch_size": 2, "save_steps": 2, "save_total_limit": 2}
    model = run.make_model(tokenizer)
    finetune(model, tokenizer, rows, config(whole, **settings))
    stopped = tmp_path / "stopped"
    shutil.copytree(whole, stopped)
    for name in ("config.json", "model.safetensors"):
        (stopped / name).unlink()
    (stopped / "checkpoint-4" / "trainer_state.json").unlink()  # it was being written
    with (stopped / "log.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"step": 4, "lo')
    assert newest_checkpoint(stopped).name == "checkpoint-2"
    with pytest.raises(InputError, match="stage that is not finished"):
        load_policy(str(stopped))
    other = run.make_model(tokenizer)
    with pytest.raises(InputError, match=r"learning_rate=0\.01, got learning_rate=0\.1"):
        finetune(other, tokenizer, rows, config(stopped, **settings, learning_rate=0.1), resume=True)
    finetune(other, tokenizer, rows, config(stopped, **settings), resume=True)
    assert torch.equal(parameters(other), parameters(model))
    losses = [[line["loss"] for line in logged(folder) if "loss" in line] for folder in (whole, stopped)]
    assert losses[0] == losses[1]
    assert len(losses[0]) == 4


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_a_run_that_was_killed_with_all_steps_done_makes_no_further_one(
    tmp_path: Path, run: ModuleType, tokenizer: Any, rows: list[dict[str, Any]], lora_rank: int
) -> None:
    settings = {"max_steps": 2, "batch_size": 2, "save_steps": 1, "lr_scheduler_type": "constant"}
    models = [run.make_model(tokenizer) for _ in range(2)]
    whole = config(tmp_path / "sft", **settings, lora_rank=lora_rank)
    folder = finetune(models[0], tokenizer, rows, whole)
    for name in ("config.json", "model.safetensors"):
        (folder / name).unlink()
    finetune(models[1], tokenizer, rows, whole, resume=True)
    assert torch.equal(parameters(models[0]), parameters(models[1]))
    assert [line["step"] for line in logged(folder) if "loss" in line] == [1, 2]


def test_a_new_run_does_not_go_on_with_the_log_of_one_that_was_killed_early(
    tmp_path: Path, model: Any, tokenizer: Any, texts: list[str]
) -> None:
    folder = tmp_path / "cpt"
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"step": 1, "loss": 9.0}\n{"st', encoding="utf-8")
    continue_pretraining(model, tokenizer, texts, config(folder))
    assert [line["step"] for line in logged(folder) if "loss" in line] == [1]


def test_a_folder_with_a_run_is_neither_overwritten_nor_resumed_for_nothing(
    tmp_path: Path, model: Any, tokenizer: Any, texts: list[str]
) -> None:
    folder = tmp_path / "cpt"
    with pytest.raises(InputError, match="a checkpoint, got none in"):
        continue_pretraining(model, tokenizer, texts, config(folder), resume=True)
    continue_pretraining(model, tokenizer, texts, config(folder))
    with pytest.raises(InputError, match=r"a folder without a run, got .* with a finished model"):
        continue_pretraining(model, tokenizer, texts, config(folder))
    with pytest.raises(InputError, match=r"a run to resume in .*, got one that is finished"):
        continue_pretraining(model, tokenizer, texts, config(folder), resume=True)


def test_a_folder_that_cannot_be_written_or_lacks_room_is_refused_before_training(
    tmp_path: Path, model: Any, tokenizer: Any, texts: list[str]
) -> None:
    (tmp_path / "file").touch()
    before = parameters(model)
    with pytest.raises(InputError, match=r"a folder that can be written, got .*Not a directory"):
        continue_pretraining(model, tokenizer, texts, config(tmp_path / "file" / "run"))
    with pytest.raises(InputError, match=r"GB free in .*, got"):  # more than any disk has
        continue_pretraining(
            model, tokenizer, texts, config(tmp_path / "run", save_steps=1, save_total_limit=10**15)
        )
    assert torch.equal(parameters(model), before)
    folder = continue_pretraining(model, tokenizer, texts, config(tmp_path / "run", save_steps=1))
    (folder / "config.json").unlink()  # as if it had been killed
    full = config(folder, save_steps=1, save_total_limit=10**15)
    with pytest.raises(InputError, match=r"GB free in .*, got"):
        continue_pretraining(model, tokenizer, texts, full, resume=True)


# --------------------------------------------------------------------------- what is refused


def test_a_row_that_is_too_long_is_named_and_left_out_only_if_asked(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]]
) -> None:
    long = [*rows[:2], rows[2] | {"completion": rows[2]["completion"] * 30}, *rows[3:]]
    count = len(tokenizer(long[2]["prompt"] + long[2]["completion"])["input_ids"]) + 1
    with pytest.raises(InputError, match=f"512 tokens at most in row 2, with the end token, got {count}"):
        finetune(model, tokenizer, long, config(tmp_path / "a", max_length=512))
    twin = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"1 of 6 rows are left out.*row 2 with") as told:
        finetune(model, tokenizer, long, config(tmp_path / "b", max_length=512, too_long="drop"))
    assert told[0].filename == __file__
    finetune(twin, tokenizer, rows[:2] + rows[3:], config(tmp_path / "c", max_length=512))
    assert torch.equal(parameters(model), parameters(twin))


def test_a_row_above_the_models_context_is_refused_whatever_max_length_says(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str]
) -> None:
    model.config.max_position_embeddings = 16
    with pytest.raises(InputError, match="16 tokens at most in row 0"):
        finetune(model, tokenizer, rows, config(tmp_path / "a", max_length=512))
    with pytest.raises(InputError, match="16 tokens at most in row 0"):
        continue_pretraining(model, tokenizer, texts, config(tmp_path / "b", max_length=512, packing="none"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"completion": " "}, "in row 1, column 'completion', got str ' '"),
        ({"prompt": None}, "in row 1, column 'prompt', got NoneType"),
        ({"completion": [{"role": "assistant", "content": "a"}]}, "a completion that is a text in row 1"),
        ({"completion": [{"role": "assistant", "content": " "}]}, "in row 1, column 'completion', got list"),
    ],
)
def test_a_bad_row_is_named(
    tmp_path: Path, model: Any, tokenizer: Any, rows: list[dict[str, Any]], change: Any, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        finetune(model, tokenizer, [rows[0], rows[1] | change], config(tmp_path / "a"))


def test_documents_are_checked(tmp_path: Path, model: Any, tokenizer: Any) -> None:
    for texts, message in (
        (["a", ""], "in row 1, column 'text', got str ''"),
        ([{"body": "a"}], "a column 'text' in row 0"),
        ([], "a row at least"),
        ("a text", "documents, got a single text"),
    ):
        with pytest.raises(InputError, match=message):
            continue_pretraining(model, tokenizer, texts, config(tmp_path / "a"))


def test_a_tokenizer_without_an_end_token_is_refused(
    tmp_path: Path, run: ModuleType, model: Any, texts: list[str]
) -> None:
    tokenizer = run.make_tokenizer()
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="a tokenizer with an end token"):
        continue_pretraining(model, tokenizer, texts, config(tmp_path / "a"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": -1}, "learning_rate of 0 or more"),
        ({"packing": "all"}, "packing as 'wrapped' or 'bfd_split' or 'none'"),
        ({"batch_size": 0}, "batch_size of 1 or more"),
        ({"max_length": 1}, "max_length of 2 or more"),
        ({"output_dir": ""}, "output_dir as str"),
        ({"report_to": "wandb"}, "report_to as"),
    ],
)
def test_a_configuration_is_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TuningConfig(**({"output_dir": "run"} | options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"report_to": ["notebook"]}, "trackers that are installed .*got 'notebook'"),
        ({"lora_rank": 2, "lora_target_modules": "nose"}, "options that TRL and peft take, got .*nose"),
    ],
)
def test_what_only_the_libraries_can_check_is_refused_as_all_else(
    tmp_path: Path, model: Any, tokenizer: Any, texts: list[str], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        continue_pretraining(model, tokenizer, texts, config(tmp_path / "run", **options))


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"a model in .*empty, got none"):
        load_policy(str(tmp_path / "empty"))
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="an adapter alone"):
        load_policy(str(tmp_path / "adapter"))
    with pytest.raises(InputError, match="a model that can be loaded as 'no-such/model'"):
        load_policy("no-such/model", device="cpu")
    with pytest.raises(InputError, match="a dtype among float32, bfloat16, got 'float8'"):
        load_policy("no-such/model", dtype="float8")
