"""A stage from its file: read it, load what it names, check all of it, train."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from fastreward.integrations.grpo.config import LoopConfig
from fastreward.integrations.pipeline.config import TuningConfig
from fastreward.integrations.pipeline.data import Kind, Rows, check_rows, load_rows
from fastreward.integrations.pipeline.folders import STAGE, begin_folder, keep_options, newest_checkpoint
from fastreward.integrations.pipeline.policy import load_policy
from fastreward.integrations.pipeline.prompts import as_chat
from fastreward.integrations.pipeline.reinforcement import train_grpo
from fastreward.integrations.pipeline.rewards import make_reward, make_scorer
from fastreward.integrations.pipeline.tuning import continue_pretraining, finetune
from fastreward.integrations.run_config import check_options, read_options

Stage = Literal["cpt", "sft", "grpo"]

Dtype = Literal["float32", "bfloat16"]

MAY_CHANGE: Final = ("device", "eval_data")
"""What a stage that goes on may be told otherwise, beside what `training` and `loop` leave open."""

ANY_NUMBER: Final = (-math.inf, math.inf)
"""Bounds of numbers within rewards and the like, which check what they are given themselves."""


@dataclass(frozen=True, kw_only=True)
class PolicyFile:
    """What the files of all stages say: which model, and what its prompts are like.

    Raises:
        InputError: A value is not of its type.
    """

    model: str  # a folder, as a finished stage leaves one, or a name on the hub
    tokenizer: str | None = None  # None: the model's own
    dtype: Dtype = "float32"  # of the weights; bfloat16 for what LoRA leaves as it is
    device: str | None = None  # "cpu", "cuda" …; None: this process's GPU, and the CPU without one
    chat: bool = False  # hand prompts that are texts to the model as a user's message
    system: str = ""  # with chat, the message before it

    def __post_init__(self) -> None:
        check_options(self, dict.fromkeys(("encoder", "rewards", "gates"), ANY_NUMBER))


@dataclass(frozen=True, kw_only=True)
class TuningFile(PolicyFile):
    """A file for ``fastreward train cpt`` or ``sft``.

    Raises:
        InputError: A value is not of its type.
    """

    data: str  # FILE.jsonl, FILE.csv, FILE.parquet, or exams:SPLIT?count=…
    text: str = "text"  # column of the documents of continued pre-training
    training: TuningConfig


@dataclass(frozen=True, kw_only=True)
class GRPOFile(PolicyFile):
    """A file for ``fastreward train grpo``.

    Raises:
        InputError: A value is not of its type.
    """

    data: str  # FILE.jsonl, FILE.csv, FILE.parquet, or exams:SPLIT?count=…
    eval_data: str | None = None
    encoder: str | dict[str, Any] = field(default_factory=dict)  # its name, or arguments of Scorer
    rewards: dict[str, Any]  # by name, such as semantic; a weight and options
    gates: dict[str, Any] = field(default_factory=dict)  # by name: which reward decides
    aggregation: Literal["sum_then_normalize", "normalize_then_sum"] = "sum_then_normalize"
    loop: LoopConfig


FILES: Final[dict[str, type[TuningFile] | type[GRPOFile]]] = {
    "cpt": TuningFile,
    "sft": TuningFile,
    "grpo": GRPOFile,
}
"""What each stage's file is read into."""


def read_stage(stage: Stage, path: str | Path, overrides: Sequence[str] = ()) -> TuningFile | GRPOFile:
    """Read a stage's file.

    Args:
        stage: Which stage it is for.
        path: A YAML file.
        overrides: Such as ``"training.learning_rate=1e-4"``.

    Raises:
        InputError: The file cannot be read, or a name or value in it is not known.
    """
    return read_options(FILES[stage], path, overrides)


def output_folder(file: TuningFile | GRPOFile) -> Path:
    """Return the folder that a stage writes."""
    return Path(file.training.output_dir if isinstance(file, TuningFile) else file.loop.output_dir)


def run_stage(
    stage: Stage,
    file: TuningFile | GRPOFile,
    *,
    resume: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Path:
    """Do a stage. What can be refused is, before a model is loaded where that is possible.

    Args:
        stage: Which.
        file: What `read_stage` returned for it.
        resume: Go on from the newest checkpoint of the folder.
        say: Is told what is being done.

    Returns:
        The stage's folder, the next one's ``model``.

    Raises:
        InputError: The data, the folder, the model or an option is not what is needed; or a run that goes on
            was told something else when it began.
    """
    folder = output_folder(file)
    if resume:
        newest_checkpoint(folder)
    else:
        begin_folder(folder, 0)
    options = {name: value for name, value in asdict(file).items() if name not in ("training", "loop")}
    keep_options(folder, options, MAY_CHANGE, resume, name=STAGE)
    if isinstance(file, GRPOFile):
        return _grpo(file, resume, say)
    columns: dict[str, Kind] = {"prompt": "prompt", "completion": "prompt"}
    rows = _checked(file.data, {file.text: "text"} if stage == "cpt" else columns, say)
    model, tokenizer = _policy(file, say)
    if stage == "cpt":
        texts = Rows([{"text": row[file.text]} for row in rows], rows.places)
        return continue_pretraining(model, tokenizer, texts, file.training, resume=resume)
    return finetune(model, tokenizer, _prompted(file, rows), file.training, resume=resume)


def _grpo(file: GRPOFile, resume: bool, say: Callable[[str], None]) -> Path:
    scorer = make_scorer(file.encoder)
    plan = make_reward(file.rewards, scorer, gates=file.gates, aggregation=file.aggregation)
    columns: dict[str, Kind] = {"prompt": "prompt", **plan.columns}
    rows = _checked(file.data, columns, say)
    held_out = _checked(file.eval_data, columns, say) if file.eval_data else Rows()
    model, tokenizer = _policy(file, say)
    return train_grpo(
        model,
        tokenizer,
        _prompted(file, rows),
        plan,
        file.loop,
        eval_rows=_prompted(file, held_out),
        resume=resume,
    )


def _checked(source: str, columns: dict[str, Kind], say: Callable[[str], None]) -> Rows:
    rows = check_rows(load_rows(source), columns)
    say(f"{len(rows):,} rows of {source}")
    return rows


def _prompted(file: PolicyFile, rows: Rows) -> Rows:
    return Rows(as_chat(rows, file.system), rows.places) if file.chat else rows


def _policy(file: PolicyFile, say: Callable[[str], None]) -> tuple[Any, Any]:
    model, tokenizer = load_policy(file.model, tokenizer=file.tokenizer, dtype=file.dtype, device=file.device)
    millions = sum(weight.numel() for weight in model.parameters()) / 1e6
    say(f"{file.model}: {millions:,.1f} million parameters, {file.dtype}, on {model.device}")
    return model, tokenizer
