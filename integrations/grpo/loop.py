"""The bundled GRPO loop: `GRPO.step` is one step, from top to bottom.

1. **Roll out:** prompts → completions. Then the reward starts, in a thread of its own and on a CUDA stream of
   its own, and meanwhile goes on what needs no advantages: the reference model's log-probabilities and the
   first micro-batch's training forward. The old log-probabilities cost nothing: they are those of the first
   pass over the rollout, but for a rollout of the step before, which brings them along.
2. **Normalise:** rewards → advantages (`ops.group_advantage`).
3. **Update:** losses (`losses.policy_loss`) → gradients, added up over micro-batches and processes → weights.

Several processes each take whole groups of a step, an equal share. Completions are drawn by seeds of their
prompts, so that a run does not depend on how many processes share it, but for rounding and dropout.

Left out: weights that are split over processes, losses other than five, tools, environments, images, entropy
bonuses, a reference model that follows, replay, and resampling of groups without spread. TRL has them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

import torch
from torch import Tensor

from fastreward.errors import InputError, NonFiniteError
from fastreward.integrations.background import Case, Judge, Scored
from fastreward.integrations.checkpoints import Checkpoints
from fastreward.integrations.generation import Sampling, Writer, seed_of
from fastreward.integrations.grpo import metrics as figures
from fastreward.integrations.grpo.config import LoopConfig
from fastreward.integrations.grpo.losses import RowSums, UpdateSize, policy_loss, row_sums
from fastreward.integrations.grpo.metrics import Metrics
from fastreward.integrations.grpo.policy import engine, prepared
from fastreward.integrations.processes import Processes
from fastreward.integrations.prompts import Prompts, context_length, reference_columns
from fastreward.integrations.rollouts import Rollout, completion_logprobs
from fastreward.integrations.trackers import RunReports, require_trackers
from fastreward.ops.group_advantage import normalize_then_sum, sum_then_normalize, weighted_total
from fastreward.profiling import Timeline
from fastreward.rewards.combine import CombinedReward, CombinedScores

NO_SPREAD: Final = 1e-6  # an advantage below it is rounding: equal rewards leave 1e-11 in fp64
# What a resumed run may be told otherwise, for it changes nothing of what is computed.
SHOWN: Final = ("output_dir", "report_to", "logging_steps", "save_steps", "save_total_limit", "eval_steps")
Written: TypeAlias = tuple[Rollout, Scored]


class GRPO:
    """Trains a causal language model with group-relative advantages.

    Args:
        model: A causal language model of transformers, on its device.
        tokenizer: Its tokenizer, with an end token and a padding token.
        reward: A reward, a list of them, or a `CombinedReward`, which has weights, gates and aggregation.
        dataset: Rows with a `prompt`, a text or a conversation, and the columns that the reward reads.
        config: The run.
        eval_dataset: Rows to evaluate with.
        report: Called with the metrics of every `logging_steps`-th step; ``None`` hands them to the trackers
            that `report_to` names.
        timeline: Where the phases of each step are recorded; ``None`` makes one.

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
        report: Callable[[Mapping[str, float]], None] | None = None,
        timeline: Timeline | None = None,
    ) -> None:
        from transformers import get_scheduler, set_seed

        self.config, self.tokenizer, self.device, self._report = config, tokenizer, model.device, report
        self.timeline = Timeline(keep_steps=1) if timeline is None else timeline
        self.processes = Processes(self.device)
        if config.num_prompts % self.processes.count:
            expected = f"num_prompts that {self.processes.count} processes share evenly, as whole groups"
            raise InputError(expected, str(config.num_prompts), "Change one of them.")
        rewards = list(reward) if isinstance(reward, list | tuple) else [reward]
        self.reward = reward if isinstance(reward, CombinedReward) else CombinedReward(rewards)
        longest = context_length(model) or math.inf
        read = (tokenizer, longest - config.max_completion_length, reference_columns(self.reward))
        self._data = Prompts.of(dataset, *read)
        self._eval_data = Prompts.of(eval_dataset, *read) if eval_dataset else None
        if report is None:
            require_trackers(config.report_to)
        set_seed(config.seed)
        self.processes.copy_first([weight.detach() for weight in model.parameters()])
        has_copy = config.beta and not config.lora_rank  # LoRA's base weights are the reference as they are
        self.reference: Any = copy.deepcopy(model).eval().requires_grad_(False) if has_copy else None
        self.model: Any = prepared(model, config)
        self.trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        options: dict[str, Any] = {"lr": config.learning_rate, "weight_decay": config.weight_decay}
        betas = (config.adam_beta1, config.adam_beta2)
        self.optimizer = torch.optim.AdamW(self.trained, betas=betas, **options)
        updates = config.max_steps * config.num_iterations
        self.scheduler = get_scheduler(config.lr_scheduler_type, self.optimizer, config.warmup_steps, updates)
        self.num_tokens = 0
        self._here = self.processes.share(config.batch_size)  # rows of this process among those of a step
        self._judge = Judge(self.reward, tokenizer, self.timeline, self.device)
        own: dict[str, Any] = {"has_copy": config.off_policy_steps > 0, "engine": engine(self.model, config)}
        self._writer = Writer(self.model, tokenizer, Sampling.of(config), **own)
        self._ahead: dict[int, Future[Written]] = {}  # by step
        self._beside = ThreadPoolExecutor(1, thread_name_prefix="writer")
        on_cuda = self.device.type == "cuda" and config.off_policy_steps
        self._stream: Any = torch.cuda.Stream(self.device) if on_cuda else None  # type: ignore[no-untyped-call]

    def train(self, *, resume: bool = False) -> Path:
        """Run all steps, or those after the newest checkpoint of the folder.

        A run that was killed and resumed ends in the weights of one that was not, where machine and rewards
        give the same twice: on a CPU, with `Scorer(batch_invariant=True)`. Returns the last checkpoint.

        Raises:
            InputError: The folder cannot be written, lacks room, or has checkpoints, or has none to resume,
                or a tracker is not installed.
            NonFiniteError: The gradient is NaN or infinite.
        """
        config = self.config
        settings = {name: value for name, value in asdict(config).items() if name not in SHOWN}
        settings["processes"] = self.processes.count
        checkpoints = Checkpoints(config.output_dir, config.save_total_limit, settings)
        begin = self._restored(checkpoints.load(self.model)) if resume else 0
        if not resume:
            self.processes.first(partial(checkpoints.begin, self.model))
            self._save(checkpoints, 0)
        how: dict[str, Any] = {"options": settings, "report": self._report, "silent": self.processes.rank > 0}
        with RunReports(config.output_dir, config.report_to, config.max_steps, begin, **how) as reports:
            for number in range(begin, config.max_steps):
                metrics, done, last = self.step(number), number + 1, number + 1 == config.max_steps
                if self._eval_data and config.eval_steps and (last or done % config.eval_steps == 0):
                    metrics |= self.evaluate()
                reports.log(metrics, shown=last or done % config.logging_steps == 0)
                if last or (config.save_steps and done % config.save_steps == 0):
                    self._save(checkpoints, done)
        return checkpoints.all()[-1]

    def step(self, number: int) -> Metrics:
        """Roll out, score, normalise and update.

        Args:
            number: Of the step, from 0; it decides which rows are taken, and seeds everything random, so that
                a step is the same whatever ran before it, but for what `off_policy_steps` takes over.

        Returns:
            Metrics by TRL's names, and the timeline's seconds as ``time/…``. For ``time/reward_exposed`` no
            work ran beside the reward; ``time/reward_hidden`` is the rest of the reward's time. On CUDA a
            phase ends when its work on the device has. What a hidden reward costs by taking cores from other
            work shows only beside a run with a constant reward.
        """
        from transformers import set_seed

        config, phase = self.config, self.timeline.phase
        set_seed(seed_of("step", config.seed, number, self.processes.rank))
        with self.timeline.step(number + 1):
            batch, scoring = self._rolled_out(number)
            # The reward is at work. Beside it, what needs no advantages, unless these are needed first.
            waits = config.skip_groups_without_spread or not config.hide_reward
            scored = self._normalised(scoring) if waits else None
            with phase("logprobs"):
                skipping = scored if config.skip_groups_without_spread else None
                parts = self._split(batch, skipping and skipping[0][self._here])
                references = self._reference_logprobs(parts)
                self._settle()
            with phase("update"):
                self.model.train()
                first = self._forward(self.model, parts[0][1]) if parts else None
                self._settle()
            advantages, scores, logged = scored or self._normalised(scoring)
            with phase("update"):
                tokens = int(batch.mask.sum())
                metrics, found = self._update(parts, references, first, advantages[self._here], tokens)
                metrics |= logged | self._figures(batch, scores, advantages, found)
        epoch = (number + 1) * config.num_prompts / len(self._data.rows)
        progress = {"step": number + 1, "epoch": epoch, "num_tokens": self.num_tokens}
        return progress | metrics | figures.time_metrics(self.timeline)

    def evaluate(self) -> Metrics:
        """Draw one completion for each row of the evaluation data; return what training logs, as ``eval_…``.

        A row has no group then: the reward is the weighted sum of its components, whatever the aggregation.

        Raises:
            InputError: There are no rows to evaluate with.
        """
        if self._eval_data is None:
            raise InputError("eval_dataset", "none", "Pass one to GRPO.")
        writer, count = self._writer.at(self.model), len(self._eval_data.rows)
        rows, size = range(count)[self.processes.share(count)], self.config.batch_size // self.processes.count
        done = []
        for piece in (rows[begin : begin + size] for begin in range(0, len(rows), size)):
            seeds = [seed_of("evaluate", self.config.seed, row) for row in piece]
            batch, scoring = self._write(writer, self._eval_data.chosen(piece), seeds, 1)
            scores = scoring.result()[0]
            done.append((scores.components, scores.total, batch.lengths, batch.truncated.cpu()))
        parts = [part for one in self.processes.gather(done) for part in one]
        components, total, lengths, truncated = (torch.cat(column) for column in zip(*parts, strict=True))
        metrics = figures.reward_metrics(self.reward.names, components, total)
        metrics |= figures.completion_metrics(lengths, truncated)
        return {f"eval_{name}": value for name, value in metrics.items()}

    # ------------------------------------------------------------------ roll out

    def _rolled_out(self, number: int) -> Written:
        """Return a step's completions, the reward at work; begin to write the next step's, if asked to."""
        if number in self._ahead:
            with self.timeline.phase("generate wait", waits=True):
                written = self._ahead.pop(number).result()
            if self._stream is not None:
                torch.cuda.current_stream(self.device).wait_stream(self._stream)
        else:
            self._writer.follow(self.model)
            written = self._write_step(number)
        if self.config.off_policy_steps and number + 1 < self.config.max_steps:
            self._writer.follow(self.model)
            if self._stream is not None:
                self._stream.wait_stream(torch.cuda.current_stream(self.device))
            self._ahead[number + 1] = self._beside.submit(self._write_step, number + 1, self._stream)
        return written

    def _write_step(self, number: int, stream: Any = None) -> Written:
        with torch.cuda.stream(stream):  # None changes nothing
            return self._write(self._writer, *self._prompts_of(number), self.config.num_generations)

    def _prompts_of(self, number: int) -> tuple[Prompts, list[int]]:
        """Return the prompts of a step that this process has, with their seeds."""
        config = self.config
        rows = self._data.rows_of(number, config.num_prompts, config.seed if config.shuffle else None)
        seeds = [seed_of("draw", config.seed, number, place) for place in range(config.num_prompts)]
        mine = self.processes.share(config.num_prompts)
        return self._data.chosen(rows[mine]), seeds[mine]

    def _write(self, writer: Writer, prompts: Prompts, seeds: list[int], count: int) -> Written:
        """Draw completions and hand them to the rewards, whose thread has them from here on."""
        case = Case(self._judge, prompts, count)
        ended = case.ended if self.config.score_while_generating else None
        with self.timeline.phase("generate"), self._autocast():
            ids = writer.write(prompts.ids, count, seeds, ended)
            batch = Rollout.of(prompts, ids, self.tokenizer, writer.ends, self.device)
        scoring = case.close(batch.texts, ids)
        if self.config.mask_truncated_completions:
            batch = batch.without_truncated()
        if self.config.off_policy_steps and writer is self._writer:
            with self.timeline.phase("logprobs"), torch.no_grad():
                forward, size = partial(self._forward, writer.model), self.config.micro_batch_size
                batch = batch.with_logprobs(forward, size)
        return batch, scoring

    # ------------------------------------------------------------------ normalise

    def _normalised(self, scoring: Scored) -> tuple[Tensor, CombinedScores, Metrics]:
        """Rewards → advantages, [N] of fp32 on the model's device; these and the scores of all processes."""
        with self.timeline.phase("reward wait", waits=True):
            scores, logged = scoring.result()
            everyone = self.processes.gather((scores.components, logged))
        with self.timeline.phase("update"):
            rewards = torch.cat([components for components, _ in everyone])
            weights = torch.tensor(self.reward.weights, dtype=torch.float64)
            count, scale = self.config.num_generations, self.config.scale_rewards
            if self.reward.aggregation == "normalize_then_sum":
                advantages = normalize_then_sum(rewards, weights, count)
            else:
                advantages = sum_then_normalize(rewards, weights, count, scale=scale)
        gathered = CombinedScores(scores.names, rewards, weighted_total(rewards, weights))  # as TRL logs it
        means = figures.mean_by_name([logged for _, logged in everyone])
        return advantages.to(self.device, torch.float32), gathered, means

    def _have_spread(self, advantages: Tensor) -> Tensor:
        """[N], bool: whether any advantage of a row's group is more than rounding."""
        largest = advantages.view(-1, self.config.num_generations).abs().amax(dim=1)
        return (largest > NO_SPREAD).repeat_interleave(self.config.num_generations)

    # ------------------------------------------------------------------ update

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
    ) -> tuple[Metrics, list[RowSums]]:
        """Losses → gradients → weights, `num_iterations` times; the `first` forward was made before."""
        sizes = self.processes.gather((tokens, len(parts)))
        size = UpdateSize(self.config.batch_size, sum(t for t, _ in sizes), sum(count for _, count in sizes))
        old = [part.old_logprobs for _, part in parts]
        found: list[RowSums] = []
        total, norm = torch.zeros((), device=self.device), 0.0
        for _ in range(self.config.num_iterations if size.micro_batches else 0):
            for i, (places, part) in enumerate(parts):
                logprobs, entropies = first or self._forward(self.model, part)
                first, before = None, old[i]
                before = old[i] = logprobs.detach() if before is None else before
                here = advantages[places]
                loss, sums = policy_loss(logprobs, before, here, part.mask, size, self.config, references[i])
                loss.backward()  # type: ignore[no-untyped-call]
                total += loss.detach() / self.config.num_iterations
                found.append(sums | {"entropy": row_sums(entropies, part.mask)})
            self.processes.add_up_gradients(self.trained)
            norm = float(torch.nn.utils.clip_grad_norm_(self.trained, self.config.max_grad_norm))
            if not math.isfinite(norm):
                raise NonFiniteError("a finite gradient", str(norm), "Resume with a lower learning_rate.")
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.scheduler.step()
        rate = self.scheduler.get_last_lr()[0]
        loss_of_all = sum(self.processes.gather(float(total)))
        return {"loss": loss_of_all, "grad_norm": norm, "learning_rate": rate}, found

    def _figures(
        self, batch: Rollout, scores: CombinedScores, advantages: Tensor, found: list[RowSums]
    ) -> Metrics:
        """What a step tells of all processes' completions, rewards and losses."""
        sums = [{name: (a.cpu(), b.cpu()) for name, (a, b) in part.items()} for part in found]
        own = (batch.lengths, batch.truncated.cpu(), int(batch.attention_mask.sum()), sums)
        lengths, truncated, tokens, parts = zip(*self.processes.gather(own), strict=True)
        self.num_tokens += sum(tokens)
        metrics = {"frac_reward_zero_std": 1 - float(self._have_spread(advantages).float().mean())}
        metrics |= figures.reward_metrics(scores.names, scores.components, scores.total)
        metrics |= figures.loss_metrics([one for part in parts for one in part])
        return metrics | figures.completion_metrics(torch.cat(lengths), torch.cat(truncated))

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.bf16)

    def _settle(self) -> None:
        """End a phase on the device too, so that its work is not taken for a wait; it costs a launch."""
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()

    # ------------------------------------------------------------------ checkpoints

    def _save(self, checkpoints: Checkpoints, done: int) -> None:
        """Write a checkpoint; the rollout that is being written for the next step goes with it."""
        ahead = self._ahead[done].result()[0].state() if done in self._ahead else None
        parts = {"optimizer": self.optimizer.state_dict(), "scheduler": self.scheduler.state_dict()}
        state = parts | {"num_tokens": self.num_tokens, "ahead": self.processes.gather(ahead)}
        self.processes.first(partial(checkpoints.save, done, self.model, self.tokenizer, state))

    def _restored(self, state: dict[str, Any]) -> int:
        """Take over the state that `_save` wrote; return how many steps were done."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.num_tokens, step, ahead = state["num_tokens"], state["step"], state["ahead"][self.processes.rank]
        if ahead is not None:
            batch = Rollout.from_state(ahead, self.device)
            case = Case(self._judge, self._prompts_of(step)[0], self.config.num_generations)
            self._ahead[step] = Future()
            self._ahead[step].set_result((batch, case.close(batch.texts, batch.completion_ids)))
        return int(step)
