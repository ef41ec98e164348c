"""Continued pre-training and supervised fine-tuning, by TRL's SFTTrainer."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from fastreward.caller import warn_caller
from fastreward.errors import InputError
from fastreward.integrations.adapters import adapter_config
from fastreward.integrations.checkpoints import load_weights
from fastreward.integrations.pipeline.config import TuningConfig
from fastreward.integrations.pipeline.data import Rows, check_rows
from fastreward.integrations.pipeline.folders import (
    begin_folder,
    checkpoints,
    keep_options,
    newest_checkpoint,
    publish,
)
from fastreward.integrations.pipeline.policy import (
    merged,
    require_trainable,
    weight_bytes,
)
from fastreward.integrations.pipeline.prompts import as_chat
from fastreward.integrations.processes import Processes
from fastreward.integrations.prompts import context_length, prompt_ids
from fastreward.integrations.run_config import require_room
from fastreward.integrations.trackers import rewrite

LOG: Final = "log.jsonl"
MAY_CHANGE: Final = ("output_dir", "logging_steps", "save_steps", "save_total_limit", "report_to")
"""Options that a resumed run may have otherwise, for they change nothing of what is computed."""


def continue_pretraining(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str | Mapping[str, Any]],
    config: TuningConfig,
    *,
    resume: bool = False,
) -> Path:
    """Train a model further on documents of a domain, each token of them.

    Args:
        model: A causal language model of transformers, on its device. It is trained in place.
        tokenizer: Its tokenizer, with an end token, which is set behind each document.
        texts: The documents: texts, or rows with a column `text`.
        config: The run.
        resume: Go on from the newest checkpoint of the folder.

    Returns:
        ``config.output_dir``, with the trained model for ``from_pretrained``, and the log, a line of JSON for
        each time that TRL logs.

    Raises:
        InputError: A document is empty, or too long for a row of its own; the folder cannot be written, lacks
            room, or has a run already, or has none to resume.

    Example:
        ::

            model, tokenizer = load_policy("Qwen/Qwen2.5-0.5B")
            folder = continue_pretraining(model, tokenizer, corpus, TuningConfig(output_dir="runs/cpt"))
    """
    if isinstance(texts, str):
        raise InputError("documents", "a single text", "Pass a list of texts.")
    documents = Rows.of(texts if isinstance(texts, Rows) else map(_document, texts))
    rows = check_rows(documents, {"text": "text"})
    _require_end(tokenizer)
    if config.packing == "none":
        ids = tokenizer([row["text"] for row in rows])["input_ids"]
        rows = _fitting(rows, [len(tokens) + 1 for tokens in ids], _longest(model, config), config)
    data = [{"text": row["text"]} for row in rows]
    return _tune(model, tokenizer, data, config, None if config.packing == "none" else config.packing, resume)


def finetune(
    model: Any,
    tokenizer: Any,
    rows: Sequence[Mapping[str, Any]],
    config: TuningConfig,
    *,
    resume: bool = False,
) -> Path:
    """Train a model on completions, of which alone the loss is taken.

    Args:
        model: A causal language model of transformers, on its device. It is trained in place.
        tokenizer: Its tokenizer, with an end token, which is set behind each completion that is a text.
        rows: With a `prompt` (a text or a conversation) and its `completion` (a text, or messages). Other
            columns do not matter.
        config: The run; `packing` has no effect.
        resume: Go on from the newest checkpoint of the folder.

    Returns:
        ``config.output_dir``, as of `continue_pretraining`.

    Raises:
        InputError: A row lacks something or is longer than `max_length` or the model's context; the folder
            cannot be written, lacks room, or has a run already, or has none to resume.

    Example:
        ::

            rows = [question.row() for question in questions(2000)]
            folder = finetune(model, tokenizer, rows, TuningConfig(output_dir="runs/sft"))
    """
    checked = check_rows(rows, {"prompt": "prompt", "completion": "prompt"})
    _require_end(tokenizer)
    # TRL wants both sides to be of one kind.
    chats = as_chat([{"completion": row["completion"]} for row in checked])
    data = [
        {"prompt": row["prompt"], "completion": chat["completion"]}
        if not isinstance(row["prompt"], str)
        else {"prompt": row["prompt"], "completion": row["completion"]}
        for row, chat in zip(checked, chats, strict=True)
    ]
    places = checked.places
    for place, row in zip(places, data, strict=True):
        if isinstance(row["prompt"], str) != isinstance(row["completion"], str):
            expected = f"a completion that is a text in {place}, as its prompt is"
            raise InputError(expected, "messages", "Write both as a conversation, or both as texts.")
    lengths = _lengths(tokenizer, data)
    kept = _fitting(Rows(data, places), lengths, _longest(model, config), config)
    return _tune(model, tokenizer, list(kept), config, None, resume)


def _document(text: str | Mapping[str, Any]) -> Mapping[str, Any]:
    return text if isinstance(text, Mapping) else {"text": text}


def _tune(
    model: Any,
    tokenizer: Any,
    data: list[dict[str, Any]],
    config: TuningConfig,
    packing: str | None,
    resume: bool,
) -> Path:
    """Run TRL's trainer, and leave the model in the folder and as it was handed over, but for its weights."""
    trl, datasets = _libraries()
    folder, uses_cache = Path(config.output_dir), getattr(model.config, "use_cache", None)
    require_trainable(model, config.lora_rank)
    _require_trackers(config.report_to)
    processes = Processes(model.device)
    checkpoint = processes.first(partial(_begin, model, config, resume))
    adapter = None
    if config.lora_rank:
        options = (config.lora_alpha, config.lora_dropout, config.lora_target_modules)
        adapter = adapter_config(config.lora_rank, *options)
    try:
        trainer = trl.SFTTrainer(
            model=model,
            args=trl.SFTConfig(**_arguments(model, config, packing)),
            train_dataset=datasets.Dataset.from_list(data),
            processing_class=tokenizer,
            peft_config=adapter,
            callbacks=[_log_to(folder / LOG)],
        )
    except ValueError as error:  # such as names of layers that the model has not
        raise InputError("options that TRL and peft take", str(error), "Correct them.") from error
    try:
        if checkpoint is not None and _is_last(checkpoint):
            load_weights(trainer.model, checkpoint)  # the Trainer would go one step too far
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        finished = merged(trainer.accelerator.unwrap_model(trainer.model))
    finally:
        _restore(model, config, uses_cache)
    processes.first(partial(publish, finished, tokenizer, folder))
    return folder


def _begin(model: Any, config: TuningConfig, resume: bool) -> Path | None:
    """Prepare the folder; return the checkpoint to go on from, if there is one."""
    folder = Path(config.output_dir)
    checkpoint = newest_checkpoint(folder) if resume else None
    needed = _needed_bytes(model, config, len(checkpoints(folder)))
    if checkpoint is None:
        begin_folder(folder, needed)
    else:
        require_room(folder, needed)
    keep_options(folder, asdict(config), MAY_CHANGE, resume)
    if checkpoint is None:
        (folder / LOG).unlink(missing_ok=True)  # of a run that was killed before its first checkpoint
    else:
        _cut_log(folder / LOG, int(checkpoint.name.rpartition("-")[2]))
    return checkpoint


def _is_last(checkpoint: Path) -> bool:
    """Whether all steps were done when a checkpoint was written."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    return bool(state["global_step"] >= state["max_steps"])


def _arguments(model: Any, config: TuningConfig, packing: str | None) -> dict[str, Any]:
    """Say it in the words of TRL's SFTConfig."""
    from transformers import TrainingArguments

    on_cpu = model.device.type == "cpu"
    renamed = hasattr(TrainingArguments, "activation_checkpointing")
    return {
        "output_dir": config.output_dir,
        "num_train_epochs": config.num_train_epochs,
        "max_steps": config.max_steps or -1,
        "per_device_train_batch_size": config.batch_size,
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "max_length": _longest(model, config),
        "packing": packing is not None,
        "packing_strategy": packing or "bfd",
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler_type,
        "warmup_steps": config.warmup_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "bf16": config.bf16,
        "fp16": False,
        f"{'activation' if renamed else 'gradient'}_checkpointing": config.gradient_checkpointing,
        "seed": config.seed,
        "logging_steps": config.logging_steps,
        "save_strategy": "steps" if config.save_steps else "no",
        "save_steps": config.save_steps or 1,
        "save_total_limit": config.save_total_limit,
        "report_to": config.report_to or "none",
        "use_cpu": on_cpu,
        "dataloader_pin_memory": not on_cpu,
        "disable_tqdm": not sys.stderr.isatty(),
    }


def _longest(model: Any, config: TuningConfig) -> int:
    context = context_length(model)
    return config.max_length if context is None else min(config.max_length, context)


def _lengths(tokenizer: Any, data: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return how many tokens each row has, with what TRL sets behind it."""
    chats = [[*row["prompt"], *row["completion"]] for row in data if not isinstance(row["prompt"], str)]
    texts = [row["prompt"] + row["completion"] for row in data if isinstance(row["prompt"], str)]
    of_texts = iter(prompt_ids(tokenizer, texts))
    of_chats = iter(prompt_ids(tokenizer, chats))  # with what begins an answer: a few tokens too many
    return [
        len(next(of_texts)) + 1 if isinstance(row["prompt"], str) else len(next(of_chats)) for row in data
    ]


def _fitting(rows: Rows, lengths: Sequence[int], longest: int, config: TuningConfig) -> Rows:
    """Return the rows that are not too long; `too_long` says what becomes of others."""
    fits = [i for i, length in enumerate(lengths) if length <= longest]
    if len(fits) == len(rows):
        return rows
    worst = max(range(len(rows)), key=lambda i: lengths[i])
    if config.too_long == "refuse" or not fits:
        first = next(i for i, length in enumerate(lengths) if length > longest)
        expected = f"{longest} tokens at most in {rows.places[first]}, with the end token"
        remedy = "Raise max_length if the model has room, shorten the row, or pass too_long='drop'."
        raise InputError(expected, str(lengths[first]), remedy)
    warn_caller(
        f"{len(rows) - len(fits):,} of {len(rows):,} rows are left out, for they have more than {longest} "
        f"tokens; the longest is {rows.places[worst]} with {lengths[worst]:,}."
    )
    return rows.picked(fits)


def _needed_bytes(model: Any, config: TuningConfig, there: int) -> int:
    """Bound what the run writes: checkpoints, of which one more exists while it is written, and the model.

    So many checkpoints are `there` already.
    """
    weights = weight_bytes(model)
    # An adapter of rank r has r (rows + columns) numbers for each matrix; AdamW has two more for each number
    # that is trained.
    trained = weights
    if config.lora_rank:
        matrices = [weight for weight in model.parameters() if weight.dim() == 2]
        trained = sum(4 * config.lora_rank * sum(weight.shape) for weight in matrices)
    to_come = max(config.save_total_limit + 1 - there, 1) if config.save_steps else 0
    return weights + to_come * 3 * trained


def _require_end(tokenizer: Any) -> None:
    if tokenizer.eos_token is None:
        remedy = "Set tokenizer.eos_token: without it a model does not learn where to stop."
        raise InputError("a tokenizer with an end token", "none", remedy)


def _require_trackers(names: Sequence[str]) -> None:
    from transformers.integrations.integration_utils import get_available_reporting_integrations

    installed = get_available_reporting_integrations()  # type: ignore[no-untyped-call]
    known = [*installed, "all", "none"]
    unknown = [name for name in names if name not in known]
    if unknown:
        expected = f"trackers that are installed and that transformers knows: {', '.join(known)}"
        raise InputError(expected, ", ".join(map(repr, unknown)), "Correct the name, or install it.")


def _restore(model: Any, config: TuningConfig, uses_cache: bool | None) -> None:
    """Take back what TRL and the Trainer have done to the model beside training it."""
    # TRL sets a forward of its own on the instance. A copy of the model would go on calling the original's.
    vars(model).pop("forward", None)
    if uses_cache is not None:  # else the configuration has no such setting
        model.config.use_cache = uses_cache
    if config.gradient_checkpointing:
        # The newer name, where transformers has it.
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
        if config.lora_rank:
            model.disable_input_require_grads()
    model.eval()


def _cut_log(path: Path, step: int) -> None:
    """Take out what was logged behind a step, for it is done again; the last line may be half a line."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else ():
        if line.endswith("\n") and json.loads(line)["step"] <= step:
            kept.append(line)
    rewrite(path, "".join(kept))


def _log_to(path: Path) -> Any:
    """Make a callback of transformers' Trainer that appends what is logged to a file."""
    from transformers import TrainerCallback

    class Log(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if state.is_world_process_zero and logs:
                with path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": state.global_step, **logs}) + "\n")

    return Log()


def _libraries() -> tuple[Any, Any]:
    try:
        import datasets  # type: ignore[import-untyped]  # it ships no type information
        import trl
    except ImportError as error:
        raise InputError("TRL and datasets", "none", 'pip install "fastreward[trl]"') from error
    return trl, datasets
