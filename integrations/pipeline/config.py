"""What continued pre-training and fine-tuning can be told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final, Literal

from fastreward.integrations.run_config import check_options

Packing = Literal["wrapped", "bfd_split", "none"]
Schedule = Literal["constant", "linear", "cosine"]
TooLong = Literal["refuse", "drop"]

RANGES: Final[dict[str, tuple[float, float]]] = {
    **dict.fromkeys(("max_steps", "warmup_steps", "save_steps", "lora_rank"), (0, math.inf)),
    **dict.fromkeys(("learning_rate", "weight_decay"), (0, math.inf)),
    **dict.fromkeys(("num_train_epochs", "max_grad_norm", "lora_alpha"), (1e-6, math.inf)),
    "lora_dropout": (0, 0.99999),
    "max_length": (2, math.inf),  # of a single token nothing is predicted
    "seed": (0, 2**31),
}
"""Least and largest value of numbers; others are 1 or more."""


@dataclass(frozen=True, kw_only=True)
class TuningConfig:
    """A run of continued pre-training or of supervised fine-tuning. Names are TRL's where TRL has them.

    Raises:
        InputError: A value is not of its type or out of its range.

    Example:
        >>> TuningConfig(output_dir="runs/sft", learning_rate="1e-4", max_steps=50).learning_rate
        0.0001
    """

    output_dir: str  # folder of the checkpoints, the log, and in the end of the model
    num_train_epochs: float = 1.0  # times that each row is seen, where max_steps is 0
    max_steps: int = 0  # updates; 0: as many as num_train_epochs makes
    batch_size: int = 8  # rows of a training forward, on each device
    gradient_accumulation_steps: int = 1  # forwards of an update
    max_length: int = 1024  # tokens of a row
    # What continued pre-training does with documents. "wrapped": one runs on into the next, in rows that are
    # full. "bfd_split": several stand in a row without seeing each other, and long ones are cut into several.
    # "none": a row each, and a longer one is refused. Fine-tuning never packs: an answer would be cut.
    packing: Packing = "wrapped"
    too_long: TooLong = "refuse"  # what becomes of rows above max_length where they are not packed
    learning_rate: float = 2e-5  # of AdamW, at its highest
    lr_scheduler_type: Schedule = "cosine"  # how the rate goes on after warming up
    warmup_steps: int = 0  # updates in which the rate rises
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # gradients above it are scaled down
    bf16: bool = False  # matrix products in bfloat16, by autocast
    gradient_checkpointing: bool = False  # compute activations again in the backward pass, keep none
    lora_rank: int = 0  # 0: all weights are trained; else the adapter is merged when the run is done
    lora_alpha: float = 16.0  # the adapter's scale is lora_alpha / lora_rank
    lora_dropout: float = 0.0
    lora_target_modules: str = "all-linear"  # or names of layers, with commas between
    seed: int = 0
    logging_steps: int = 10
    save_steps: int = 500  # 0: no checkpoints, and a run that is killed begins again
    save_total_limit: int = 1  # checkpoints that are kept
    report_to: list[str] = field(default_factory=list)  # trackers that transformers knows: "tensorboard" …

    def __post_init__(self) -> None:
        check_options(self, RANGES)
