"""The bundled GRPO loop: `GRPO.step` is one step, from top to bottom.

1. **Roll out:** prompts → completions (`rollout.rollout`). Then the reward starts, in a thread of its own and
   on a CUDA stream of its own, and meanwhile goes on what needs no advantages: the reference model's
   log-probabilities and the first micro-batch's training forward. The old log-probabilities cost nothing:
   they are those of the first pass over the rollout.
2. **Normalise:** rewards → advantages (`ops.group_advantage`).
3. **Update:** losses (`losses.policy_loss`) → gradients, added up over micro-batches → weights.

Left out: several processes, vLLM, losses other than five, tools, environments, images, entropy bonuses, a
reference model that follows, replay, and resampling of groups without spread. TRL has them.
"""

from __future__ import annotations

import copy
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from fastreward.errors import InputError, NonFiniteError
from fastreward.integrations.grpo.checkpoint import Checkpoints
from fastreward.integrations.grpo.config import LoopConfig
from fastreward.integrations.grpo.losses import RowSums, UpdateSize, policy_loss, row_sums
from fastreward.integrations.grpo.metrics import (
    Clock,
    Metrics,
    completion_metrics,
    loss_metrics,
    print_metrics,
    reward_metrics,
)
from fastreward.integrations.grpo.rollout import Prompts, Rollout, completion_logprobs, rollout
from fastreward.ops.group_advantage import normalize_then_sum, sum_then_normalize
from fastreward.rewards.combine import CombinedReward, CombinedScores

NO_SPREAD: Final = 1e-6  # an advantage below it is rounding: equal rewards leave 1e-11 in fp64


class GRPO:
    """Trains a causal language model with group-relative advantages.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer, with an end token and a padding token.
        reward: A reward, a list of them, or a `CombinedReward`, which has weights, gates and aggregation.
        dataset: Rows with a `prompt`, a text or a conversation, and the columns that the reward reads.
        config: The run.
        eval_dataset: Rows to evaluate with.
        report: Called with the metrics of every `logging_steps`-th step; ``None`` prints them.

    Raises:
        InputError: A row, the tokenizer or an option is not what is needed.

    Example:
        A run; after a crash ``trainer.train(resume=True)`` does the rest of it::

            reward = CombinedReward([SemanticReward(reference="explanation"), FormatReward()])
            trainer = GRPO(model, tokenizer, reward, rows, LoopConfig(output_dir="run"))
            trainer.train()

    Source: GRPO (arXiv 2402.03300).
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        reward: Any,
        dataset: Sequence[Mapping[str, Any]],
        config: LoopConfig,
        *,
        eval_dataset: Sequence[Mapping[str, Any]] = (),
        report: Callable[[Mapping[str, float]], None] = print_metrics,
    ) -> None:
        from transformers import get_scheduler, set_seed

        self.config, self.tokenizer, self.device, self._report = config, tokenizer, model.device, report
        rewards = list(reward) if isinstance(reward, list | tuple) else [reward]
        self.reward = reward if isinstance(reward, CombinedReward) else CombinedReward(rewards)
        context = getattr(model.config, "max_position_embeddings", None) or math.inf
        context -= config.max_completion_length
        self._data = Prompts.of(dataset, tokenizer, context)
        self._eval_data = Prompts.of(eval_dataset, tokenizer, context) if eval_dataset else None
        set_seed(config.seed)
        with_copy = (
            config.beta and not config.lora_rank
        )  # LoRA's base weights are the reference as they stand
        self.reference: Any = copy.deepcopy(model).eval().requires_grad_(False) if with_copy else None
        self.model: Any = _prepared(model, config)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        if any(weight.dtype in (torch.bfloat16, torch.float16) for weight in self.trained):
            remedy = "Load it with dtype=torch.float32, and pass bf16=True: in half, small updates are lost."
            raise InputError("a model in fp32", str(self.trained[0].dtype), remedy)
        options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        betas = (config.adam_beta1, config.adam_beta2)
        self.optimizer = torch.optim.AdamW(self.trained, betas=betas, **options)
        updates = config.max_steps * config.num_iterations
        self.scheduler = get_scheduler(config.lr_scheduler_type, self.optimizer, config.warmup_steps, updates)
        self.num_tokens = 0
        self._stream: Any = torch.cuda.Stream(self.device) if self.device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="reward")

    def train(self, *, resume: bool = False) -> Path:
        """Run all steps, or those after the newest checkpoint of the folder.

        A run that was killed and resumed ends in the weights of one that was not, where the machine computes
        the same twice, as a CPU does. Returns the folder of the last checkpoint, for ``from_pretrained``.

        Raises:
            InputError: The folder cannot be written, lacks room, or has checkpoints, or has none to resume.
            NonFiniteError: The gradient is NaN or infinite.
        """
        config, checkpoints = self.config, Checkpoints(self)
        for number in range(checkpoints.resume() if resume else checkpoints.begin(), config.max_steps):
            metrics, done, last = self.step(number), number + 1, number + 1 == config.max_steps
            if self._eval_data and config.eval_steps and (last or done % config.eval_steps == 0):
                metrics |= self.evaluate()
            checkpoints.log(metrics)
            if last or done % config.logging_steps == 0:
                self._report(metrics)
            if last or (config.save_steps and done % config.save_steps == 0):
                checkpoints.save(done)
        return checkpoints.all()[-1]

    def step(self, number: int) -> Metrics:
        """Roll out, score, normalise and update.

        Args:
            number: Of the step, from 0; it decides which rows are taken, and seeds everything random, so that
                a step is the same whatever ran before it.

        Returns:
            Metrics by TRL's names, and seconds as ``time/…``. For ``time/reward_exposed`` the loop could only
            wait for the reward; ``time/reward_hidden`` is the rest of the reward's time. The others and the
            exposed add up to ``step_time``. What a hidden reward costs by taking cores from other work shows
            only beside a run with a constant reward.
        """
        from transformers import set_seed

        config, clock = self.config, Clock(self.device)
        set_seed((config.seed * 1_000_003 + number) % 2**32)
        clock.mark()
        rows = self._data.rows_of(number, config)
        batch = self._rollout(self._data, rows)
        if config.mask_truncated_completions:
            batch = replace(batch, mask=batch.mask & ~batch.truncated[:, None])
        clock.mark()
        scoring = self._worker.submit(self._score, self._data, rows, batch)
        early = config.skip_groups_without_spread or not config.hide_reward
        advantages = self._normalise(scoring.result()[0]) if early else None
        clock.mark()
        parts = self._split(batch, advantages if config.skip_groups_without_spread else None)
        references = self._reference_logprobs(parts)
        clock.mark()
        self.model.train()
        first = self._forward(self.model, parts[0][1]) if parts else None
        clock.mark()
        scores, logged, reward_s = scoring.result()
        advantages = self._normalise(scores) if advantages is None else advantages
        clock.mark()
        metrics = self._update(parts, references, first, advantages, int(batch.mask.sum()))
        clock.mark()
        self.num_tokens += int(batch.attention_mask.sum())
        metrics["frac_reward_zero_std"] = 1 - float(self._have_spread(advantages).float().mean())
        metrics |= reward_metrics(scores.names, scores.components, scores.total) | logged
        epoch = (number + 1) * config.num_prompts / len(self._data.rows)
        progress = {"step": number + 1, "epoch": epoch, "num_tokens": self.num_tokens}
        return progress | metrics | completion_metrics([batch]) | clock.phases(reward_s)

    def evaluate(self) -> Metrics:
        """Draw one completion for each row of the evaluation data; return what training logs, as ``eval_…``.

        Raises:
            InputError: There are no rows to evaluate with.
        """
        from transformers import set_seed

        if self._eval_data is None:
            raise InputError("eval_dataset", "none", "Pass one to GRPO.")
        set_seed(self.config.seed)
        batches, components, totals = [], [], []
        for rows in torch.arange(len(self._eval_data.rows)).split(self.config.batch_size):  # type: ignore[no-untyped-call]
            batches.append(self._rollout(self._eval_data, rows.tolist(), num_generations=1))
            scoring = self._worker.submit(self._score, self._eval_data, rows.tolist(), batches[-1])
            components.append(scoring.result()[0].components)
            totals.append(scoring.result()[0].total)
        metrics = reward_metrics(self.reward.names, torch.cat(components), torch.cat(totals))
        return {f"eval_{name}": value for name, value in (metrics | completion_metrics(batches)).items()}

    def _rollout(self, data: Prompts, rows: list[int], num_generations: int | None = None) -> Rollout:
        with self._autocast():
            return rollout(self.model, self.tokenizer, data.chosen(rows), self.config, num_generations)

    def _score(self, data: Prompts, rows: list[int], batch: Rollout) -> tuple[CombinedScores, Metrics, float]:
        """Call the reward, in the worker's thread: scores, what it logged, and its seconds."""
        begin, count = time.perf_counter(), len(batch.texts) // len(rows)
        columns = {n: [data.rows[row][n] for row in rows for _ in range(count)] for n in data.rows[0]}
        columns |= {"prompts": columns.pop("prompt"), "completion_ids": batch.completion_ids}
        logged: defaultdict[str, list[float]] = defaultdict(list)
        with torch.cuda.stream(self._stream):  # None changes nothing
            scores = self.reward.evaluate(
                batch.texts, log_metric=lambda name, value: logged[name].append(float(value)), **columns
            )
        means = {name: sum(values) / len(values) for name, values in logged.items()}
        return scores, means, time.perf_counter() - begin

    def _normalise(self, scores: CombinedScores) -> Tensor:
        """Rewards → advantages, [N] of fp32 on the model's device."""
        rewards, weights = scores.components, torch.tensor(self.reward.weights, dtype=torch.float64)
        count, scale = self.config.num_generations, self.config.scale_rewards
        if self.reward.aggregation == "normalize_then_sum":
            advantages = normalize_then_sum(rewards, weights, count)
        else:
            advantages = sum_then_normalize(rewards, weights, count, scale=scale)
        return advantages.to(self.device, torch.float32)

    def _have_spread(self, advantages: Tensor) -> Tensor:
        """[N], bool: whether any advantage of a row's group is more than rounding."""
        largest = advantages.view(-1, self.config.num_generations).abs().amax(dim=1)
        return (largest > NO_SPREAD).repeat_interleave(self.config.num_generations)

    def _split(self, batch: Rollout, advantages: Tensor | None) -> list[tuple[Tensor, Rollout]]:
        """Make micro-batches, with their rows' places; of groups with spread only, if advantages come.

        Rows of like length go together, the longest first: that hides most, and fails at once if it does.
        """
        order = batch.attention_mask.sum(dim=1).argsort(descending=True, stable=True)
        if advantages is not None:
            order = order[self._have_spread(advantages)[order]]
        pieces = torch.split(order, self.config.micro_batch_size)
        return [(places, batch.rows(places)) for places in pieces if len(places)]

    def _forward(self, model: Any, part: Rollout) -> tuple[Tensor, Tensor]:
        ids, length = part.input_ids, part.mask.shape[1]
        with self._autocast():
            return completion_logprobs(model, ids, part.attention_mask, length, self.config.temperature)

    @torch.no_grad()
    def _reference_logprobs(self, parts: list[tuple[Tensor, Rollout]]) -> list[Tensor | None]:
        if not self.config.beta:
            return [None] * len(parts)
        if self.reference is not None:
            return [self._forward(self.reference, part)[0] for _, part in parts]
        with self.model.eval().disable_adapter():
            return [self._forward(self.model, part)[0] for _, part in parts]

    def _update(
        self,
        parts: list[tuple[Tensor, Rollout]],
        references: list[Tensor | None],
        first: tuple[Tensor, Tensor] | None,
        advantages: Tensor,
        tokens: int,
    ) -> Metrics:
        """Losses → gradients → weights, `num_iterations` times; the `first` forward was made before."""
        size = UpdateSize(self.config.batch_size, tokens, len(parts))
        old: list[Tensor] = []
        found: list[RowSums] = []
        total, norm = torch.zeros((), device=self.device), 0.0
        for _ in range(self.config.num_iterations if parts else 0):
            for i, (places, part) in enumerate(parts):
                logprobs, entropies = first or self._forward(self.model, part)
                first = None
                if len(old) == i:
                    old.append(logprobs.detach())
                here = advantages[places]
                loss, sums = policy_loss(logprobs, old[i], here, part.mask, size, self.config, references[i])
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / self.config.num_iterations
                found.append(sums | {"entropy": row_sums(entropies, part.mask)})
            norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm))
            if not math.isfinite(norm):
                raise NonFiniteError("a finite gradient", str(norm), "Resume with a lower learning_rate.")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        rate = self.scheduler.get_last_lr()[0]
        return {"loss": float(total), "grad_norm": norm, "learning_rate": rate} | loss_metrics(found)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)


def _prepared(model: Any, config: LoopConfig) -> Any:
    """Add to the model what the configuration asks for."""
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if not config.lora_rank:
        return model
    try:
        from peft import LoraConfig, get_peft_model
    except ImportError as error:
        raise InputError("peft with lora_rank", "none", 'pip install "fastreward[trl]"') from error
    names: Any = config.lora_target_modules
    names = names if names == "all-linear" else [name.strip() for name in names.split(",")]
    options: Any = {"r": config.lora_rank, "lora_alpha": config.lora_alpha, "target_modules": names}
    return get_peft_model(
        model, LoraConfig(lora_dropout=config.lora_dropout, task_type="CAUSAL_LM", **options)
    )
