"""What a training run can be told: a dataclass, read from YAML and from the command line."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from fastreward.errors import InputError
from fastreward.integrations.run_config import Ranges, check_options, read_options
from fastreward.ops.group_advantage import Scale

LossType = Literal["grpo", "bnpo", "dr_grpo", "dapo", "cispo"]
Level = Literal["token", "sequence"]
Schedule = Literal["constant", "linear", "cosine"]
Tracker = Literal["stdout", "tensorboard", "trackio", "wandb"]

RANGES: Final[Ranges] = {
    **dict.fromkeys(("top_k", "warmup_steps", "save_steps", "eval_steps", "lora_rank"), (0, math.inf)),
    **dict.fromkeys(("beta", "epsilon_high", "learning_rate", "weight_decay"), (0, math.inf)),
    **dict.fromkeys(("max_grad_norm", "lora_alpha", "temperature"), (1e-6, math.inf)),
    **dict.fromkeys(("epsilon", "adam_beta1", "adam_beta2", "lora_dropout"), (0, 0.99999)),
    **dict.fromkeys(("top_p", "vllm_gpu_memory_utilization"), (1e-6, 1)),
    "num_generations": (2, math.inf),  # a group of one has no advantages
    "off_policy_steps": (0, 1),
    "seed": (0, 2**31),
}


@dataclass(frozen=True, kw_only=True)
class Objective:
    """Which loss is minimised; what a token's loss is divided by is what most types differ in.

    ``"grpo"``: the tokens of its completion and the number of completions. ``"bnpo"``: the tokens of its
    micro-batch. ``"dr_grpo"``: the completions times `max_completion_length`. ``"dapo"``: the tokens of the
    update. ``"cispo"``: the same, and the log-probability is weighted with the clipped ratio.

    Raises:
        InputError: A value is not of its type or out of its range.

    Example:
        >>> Objective(loss_type="cispo", epsilon_high=5.0).largest_ratio
        5.0
    """

    loss_type: LossType = "dapo"
    epsilon: float = 0.2  # how far below 1 a ratio is followed
    epsilon_high: float | None = None  # how far above 1, None: as far; of cispo the largest ratio itself
    beta: float = 0.0  # weight of the KL divergence from the model at the start; at 0 that is not kept
    importance_sampling_level: Level = "token"  # or a geometric mean over a completion's tokens (GSPO)
    use_bias_correction_kl: bool = True  # weight the divergence with the ratio, against off-policy bias
    max_completion_length: int = 256  # tokens

    def __post_init__(self) -> None:
        check_options(self, RANGES)
        if self.loss_type == "cispo" and (self.epsilon_high is None or self.epsilon_high < 1):
            expected = "epsilon_high of 1 or more with 'cispo', the largest ratio that is followed"
            raise InputError(expected, repr(self.epsilon_high), "Pass for instance 5.0.")

    @property
    def largest_ratio(self) -> float:
        """Where a ratio is clipped from above."""
        above = self.epsilon if self.epsilon_high is None else self.epsilon_high
        return above if self.loss_type == "cispo" else 1 + above


@dataclass(frozen=True, kw_only=True)
class LoopConfig(Objective):
    """A training run: the options of `Objective` and these. Names are TRL's where TRL has them.

    Raises:
        InputError: A value is not of its type or out of its range.

    Example:
        >>> LoopConfig(output_dir="run", num_prompts=4, num_generations=8, learning_rate=1).learning_rate
        1.0
    """

    output_dir: str  # folder of the log and the checkpoints
    max_steps: int = 100  # a step is one rollout and `num_iterations` updates
    num_prompts: int = 8  # of a step, of all processes together
    num_generations: int = 8  # completions of a prompt, a group
    micro_batch_size: int = 8  # completions of a training forward; gradients add up to the step's
    num_iterations: int = 1  # updates by the same rollout
    temperature: float = 1.0  # of sampling, and of the log-probabilities
    top_p: float = 1.0  # share of the probability that is drawn from
    top_k: int = 0  # tokens that are drawn from; 0: all
    scale_rewards: Scale = "group"  # whose deviation divides the advantages: the group's, the batch's, none
    mask_truncated_completions: bool = False  # leave completions without an end token out of the loss
    # Compute nothing for groups whose advantages are all 0. Which these are is known with the rewards: no
    # forward can hide them then. With beta=0 the update stays the same, except for bnpo, which divides by
    # what a micro-batch holds, and except where no group is left: then there is none.
    skip_groups_without_spread: bool = False
    hide_reward: bool = True  # run the reward beside the work that needs no advantages, not before it
    # Score completions that have ended while others are generated: those of rewards that judge each text by
    # itself. It shortens the tail where the reward has a processor of its own; on a CPU both share the cores.
    score_while_generating: bool = False
    # 1: train on a rollout while a copy of the policy, as it was before this step, writes the next one. The
    # completions are one step old, which the ratios account for. On a CPU both share the cores.
    off_policy_steps: int = 0
    use_vllm: bool = False  # generate with vLLM on the policy's GPU
    vllm_gpu_memory_utilization: float = 0.3  # share of the GPU's memory that vLLM takes
    learning_rate: float = 1e-6  # of AdamW, at its highest
    adam_beta1: float = 0.9
    adam_beta2: float = 0.999
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0  # gradients above it are scaled down
    lr_scheduler_type: Schedule = "linear"  # how the rate goes on after warming up
    warmup_steps: int = 0  # updates in which the rate rises
    bf16: bool = False  # matrix products in bfloat16, by autocast, over weights in fp32
    gradient_checkpointing: bool = False  # compute activations again in the backward pass, keep none
    lora_rank: int = 0  # 0: all weights are trained
    lora_alpha: float = 16.0  # the adapter's scale is lora_alpha / lora_rank
    lora_dropout: float = 0.0
    lora_target_modules: str = "all-linear"  # or names of layers, with commas between
    shuffle: bool = True  # take the rows of each epoch in an order of its own
    seed: int = 0  # two runs with one seed on one machine are the same run, on a CPU at least
    report_to: list[Tracker] = field(default_factory=lambda: ["stdout"])  # beside log.jsonl, which has all
    logging_steps: int = 1  # steps between two that are reported
    save_steps: int = 100  # 0: the first and the last
    save_total_limit: int = 2  # checkpoints that are kept
    eval_steps: int = 0  # 0: none

    @property
    def batch_size(self) -> int:
        """Completions of a step."""
        return self.num_prompts * self.num_generations


def load_config(path: str | Path | None = None, overrides: Sequence[str] = ()) -> LoopConfig:
    """Read a configuration from a YAML file and from `name=value` pairs, which win; see `read_options`.

    Raises:
        InputError: The file is missing or something else, or a name or value is not known.

    Example:
        >>> load_config(None, ["output_dir=run", "learning_rate=1e-5", "loss_type=grpo"]).learning_rate
        1e-05
    """
    return read_options(LoopConfig, path, overrides)
