"""A GRPO step on the same work: TRL with the usual reward, TRL with ours, and the bundled loop.

    python benchmarks/bench_grpo.py [--quick] [--rounds N] [--policy NAME] [--device NAME] [--threads N]
                                    [--tokens N] [--micro-batch N] [--encoder FOLDER] [--backend NAME]
                                    [--dtype NAME] [--out FOLDER]
    python -m pytest benchmarks/bench_grpo.py --benchmark-only [--quick] [--rounds N]

A step has 64 rows, 8 prompts × 8 completions; the policies are random and of one size. In a round seven steps
take turns, with the same prompts and the same completions: three of one TRL trainer, which is rewarded by
sentence-transformers at its defaults, by fastreward, and by a reward that costs nothing; and two each of the
bundled loop with its reward beside other work and with its reward by itself, once with fastreward and once
with the reward that costs nothing. Every round has new prompts: no reference is known.

**Exposed** is a step less the same step with the reward that costs nothing, round by round. It holds all that
a reward costs: the wait for it, and what other work loses while both share the cores. **Hidden** is the rest
of the time between the reward's call and its return. What the `Timeline` says stands beside it: it sees waits
alone.

The policies write for real, token by token, and each token is then replaced by the one that the script has:
the example explanations, cut to one length. So all arms do the same work, and the encoder reads prose.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import torch
from rich.table import Table
from torch import Tensor

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.bench_scorer import OURS as BOUNDS
from benchmarks.bench_trl import GENERATIONS, JUDGED_ROUNDS, Steps, new_tokenizer
from benchmarks.measure import (
    GateError,
    Ratio,
    Timing,
    device_name,
    provenance,
    require_close,
    wide_console,
    write_results,
)
from benchmarks.peers import SentenceTransformersPeer
from benchmarks.policies import shape_of
from fastreward import Scorer, SemanticReward
from fastreward.encoders.checkpoint import DEFAULT_ENCODER
from fastreward.integrations.grpo import GRPO, LoopConfig
from fastreward.integrations.trl_profiling import attach
from fastreward.profiling import StepReport, Timeline

USUAL: Final = "TRL, sentence-transformers"
OURS: Final = "TRL, fastreward"
LOOP: Final = "bundled loop, fastreward beside"
ALONE: Final = "bundled loop, fastreward alone"
FREE: Final = "a reward that costs nothing"
MOST_EXPOSED: Final = 0.05


@dataclass(frozen=True)
class Size:
    """Sizes of a policy."""

    layers: int
    hidden_size: int
    intermediate_size: int
    heads: int


POLICIES: Final = {
    "tiny": Size(2, 128, 512, 4),  # 1.6 million parameters
    "medium": Size(6, 256, 1024, 4),  # 8.4 million
    "large": Size(12, 768, 3072, 12),  # 120 million
}


@dataclass(frozen=True)
class Setting:
    """What is run.

    Attributes:
        steps: Prompts of a step, rounds with the one that warms up, options of the `Scorer`.
        policy: A name of `POLICIES`.
        tokens: Of every completion, its end token included.
        micro_batch: Completions of a training forward.
        device: Of the policy and of both rewards.
        encoder: Name or folder.
    """

    steps: Steps
    policy: str
    tokens: int
    micro_batch: int
    device: torch.device
    encoder: str = DEFAULT_ENCODER

    @property
    def rows(self) -> list[dict[str, str]]:
        """The prompts and references of all rounds."""
        return list({row["prompt"]: row for row in self.steps.rows()}.values())

    @property
    def can_hide(self) -> bool:
        """Whether a reward on a CPU finds a core that the policy does not use."""
        return self.device.type == "cpu" and torch.get_num_threads() < len(os.sched_getaffinity(0))


# --------------------------------------------------------------------------- the same work for all


class Script:
    """What each prompt is answered with: `GENERATIONS` completions of so many tokens, the last an end token.

    Raises:
        ValueError: If two completions of a prompt are the same.
    """

    def __init__(self, setting: Setting, tokenizer: Any) -> None:
        self._by_prompt: dict[tuple[int, ...], list[list[int]]] = {}
        for prompt, texts in setting.steps.completions().items():
            ids = tokenizer([f" {text}" for text in texts])["input_ids"]
            tails = [[*ids[i - 2], *ids[i - 1], *own][1 - setting.tokens :] for i, own in enumerate(ids)]
            if len({tuple(tail) for tail in tails}) < len(tails):
                raise ValueError(f"{setting.tokens} tokens do not tell the completions of {prompt!r} apart")
            key = tuple(tokenizer(prompt)["input_ids"])
            self._by_prompt[key] = [[*tail, tokenizer.eos_token_id] for tail in tails]

    def tokens(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """The completions of a batch of padded prompts, those of one prompt in their order: [N, tokens]."""
        met: dict[tuple[int, ...], int] = {}
        chosen = []
        for ids, real in zip(input_ids.tolist(), attention_mask.tolist(), strict=True):
            prompt = tuple(token for token, kept in zip(ids, real, strict=True) if kept)
            number = met[prompt] = met.get(prompt, -1) + 1
            chosen.append(self._by_prompt[prompt][number])
        return torch.tensor(chosen, device=input_ids.device)


def new_policy(setting: Setting, tokenizer: Any, script: Script) -> Any:
    """A policy with random weights that computes every token, and then writes the script's."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    class ScriptedPolicy(Qwen2ForCausalLM):
        def generate(
            self, input_ids: Tensor, attention_mask: Tensor, logits_processor: Any = None, **options: Any
        ) -> Any:
            forced = script.tokens(input_ids, attention_mask)
            width = input_ids.shape[1]

            def force(ids: Tensor, scores: Tensor) -> Tensor:
                place = ids.shape[1] - width
                return torch.full_like(scores, -torch.inf).scatter_(1, forced[:, place : place + 1], 0.0)

            processors = [*(logits_processor or ()), force]
            inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
            return super().generate(**inputs, logits_processor=processors, **options)

    torch.manual_seed(0)
    config = Qwen2Config(**shape_of(POLICIES[setting.policy], tokenizer))
    return ScriptedPolicy(config).to(setting.device)


class TimedReward:
    """A reward that is another one in each turn, and keeps what the last call took, got and gave.

    Args:
        variants: By name; `FREE` is added.
    """

    __name__ = "reward"

    def __init__(self, variants: Mapping[str, Callable[..., Any]]) -> None:
        self._variants = {**variants, FREE: _free}
        self.turn = FREE
        self.seconds = 0.0
        self.texts: list[str] = []
        self.values: list[float] = []

    def __call__(self, completions: list[str], **columns: Any) -> list[float]:
        start = time.perf_counter()
        values: list[float] = self._variants[self.turn](completions=completions, **columns)
        self.seconds = time.perf_counter() - start
        self.texts, self.values = list(completions), values
        return values


def _free(completions: list[str], **columns: Any) -> list[float]:
    """Not one value for all: without advantages there would be nothing to learn."""
    return [float(number % 2) for number in range(len(completions))]


def new_scorer(setting: Setting) -> Scorer:
    """Each arm has its own, which knows nothing of what the others have scored."""
    return Scorer(setting.encoder, device=setting.device, progress=False, **setting.steps.scorer)


# --------------------------------------------------------------------------- steps


@dataclass(frozen=True)
class Step:
    """What one step took, in seconds.

    Attributes:
        step_s: The caller's time.
        reward_s: From the reward's call to its return.
        exposed_s: Of the reward, by the `Timeline`.
        hidden_s: Likewise.
        phases: By name, by the `Timeline`.
    """

    step_s: float
    reward_s: float
    exposed_s: float
    hidden_s: float
    phases: Mapping[str, float]


@dataclass
class Record:
    """The steps of a run by arm and by whether the reward was free, and what its rewards were.

    Attributes:
        steps: Steps with the arm's reward, by arm.
        free: The same steps with the reward that costs nothing.
    """

    bounds: Mapping[str, float]
    steps: dict[str, list[Step]] = field(default_factory=dict)
    free: dict[str, list[Step]] = field(default_factory=dict)
    _texts: list[str] = field(default_factory=list)
    _values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, arm: str, reward: TimedReward, step: Step) -> None:
        """Keep a step of an arm; its reward is asked what it did.

        Raises:
            GateError: If the step's texts are not those of the round.
        """
        if self._texts and reward.texts != self._texts:
            raise GateError(f"{arm}: other completions than in the steps before; not the same work")
        self._texts = reward.texts
        (self.free if reward.turn == FREE else self.steps).setdefault(arm, []).append(step)
        if reward.turn != FREE:
            self._values[arm] = reward.values

    def end_round(self) -> None:
        """Hold the rewards of all arms against the usual one's.

        Raises:
            GateError: If they differ by more than precision explains.
        """
        usual = torch.tensor(self._values.pop(USUAL))
        for arm, values in self._values.items():
            require_close(arm, torch.tensor(values), usual, **self.bounds)
        self._texts, self._values = [], {}


class LoopSteps:
    """Single steps of the bundled loop, with its reward and without.

    Args:
        arm: `LOOP` or `ALONE`.
        setting: What is run.
        tokenizer: Of the policy.
        script: What it writes.
        folder: The loop wants one; nothing is written there.
    """

    def __init__(self, arm: str, setting: Setting, tokenizer: Any, script: Script, folder: str) -> None:
        self.scorer = new_scorer(setting)
        self._arm, self._device = arm, setting.device
        self._reward = TimedReward({arm: SemanticReward(self.scorer, reference="explanation")})
        self._timeline = Timeline(keep_steps=1)
        config = LoopConfig(
            output_dir=folder,
            max_steps=2 * setting.steps.rounds,
            num_prompts=setting.steps.prompts,
            num_generations=GENERATIONS,
            micro_batch_size=setting.micro_batch,
            max_completion_length=setting.tokens,
            hide_reward=arm == LOOP,
            bf16=setting.device.type == "cuda",
            shuffle=False,
        )
        options: dict[str, Any] = {"report": lambda metrics: None, "timeline": self._timeline}
        policy = new_policy(setting, tokenizer, script)
        self._loop = GRPO(policy, tokenizer, self._reward, setting.rows, config, **options)

    def take(self, number: int, turn: str, record: Record) -> None:
        """Do step `number`; `turn` is the arm's name, or `FREE`."""
        self._reward.turn = turn
        start = now(self._device)
        self._loop.step(number)
        seconds = now(self._device) - start
        step = self._timeline.latest_step()
        assert step is not None
        record.add(self._arm, self._reward, as_step(seconds, self._reward, step))


def new_trainer(
    setting: Setting,
    tokenizer: Any,
    script: Script,
    folder: str,
    scorer: Scorer,
    record: Record,
    end_round: Callable[[int], None],
) -> Any:
    """TRL's GRPO with three turns in each round, after which `end_round` is called with its number."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    turns = (USUAL, OURS, FREE)
    peer = SentenceTransformersPeer(setting.encoder, device=str(setting.device))

    def usual(completions: list[str], explanation: list[str], **columns: Any) -> list[float]:
        scores: list[float] = peer.score(completions, explanation).tolist()
        return scores

    reward = TimedReward({USUAL: usual, OURS: SemanticReward(scorer, reference="explanation")})
    timeline = Timeline(keep_steps=1)

    class Turns(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            number, turn = divmod(state.global_step, len(turns))
            reward.turn = turns[(number + turn) % len(turns)]  # another one is first in each round
            self.start = now(setting.device)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            seconds = now(setting.device) - self.start
            step = timeline.latest_step()
            assert step is not None
            taken = as_step(seconds, reward, step)
            for arm in (USUAL, OURS) if reward.turn == FREE else (reward.turn,):
                record.add(arm, reward, taken)
            if state.global_step % len(turns) == 0:
                end_round(state.global_step // len(turns) - 1)

    prompts, rows = setting.steps.prompts, setting.rows
    rounds = [rows[first : first + prompts] for first in range(0, len(rows), prompts)]
    config = GRPOConfig(
        folder,
        per_device_train_batch_size=setting.micro_batch,
        gradient_accumulation_steps=prompts * GENERATIONS // setting.micro_batch,  # a step is one rollout
        num_generations=GENERATIONS,
        max_completion_length=setting.tokens,
        max_steps=len(turns) * len(rounds),
        gradient_checkpointing=False,  # as the loop
        shuffle_dataset=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=setting.device.type == "cpu",
        bf16=setting.device.type == "cuda",
    )
    trainer = GRPOTrainer(
        new_policy(setting, tokenizer, script),
        reward,
        config,
        Dataset.from_list([row for round_ in rounds for row in round_ * len(turns)]),
        processing_class=tokenizer,
        callbacks=[Turns()],
    )
    trainer.remove_callback(PrinterCallback)
    attach(trainer, timeline, log=False)
    return trainer


def as_step(seconds: float, reward: TimedReward, step: StepReport) -> Step:
    """Put together what a step took."""
    exposed, hidden = step.reward_exposed_s, step.reward_hidden_s
    return Step(seconds, reward.seconds, exposed, hidden, dict(step.phases))


def now(device: torch.device) -> float:
    """Seconds, once the device has done all that was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Arm:
    """The steps of one arm, and the same steps with the reward that costs nothing; no warm-up."""

    name: str
    steps: tuple[Step, ...]
    free: tuple[Step, ...]

    @property
    def step(self) -> Timing:
        """Of the whole step."""
        return Timing(tuple(step.step_s for step in self.steps))

    @property
    def without(self) -> Timing:
        """Of the whole step with the reward that costs nothing."""
        return Timing(tuple(step.step_s for step in self.free))

    @property
    def reward(self) -> Timing:
        """Of the reward, from its call to its return."""
        return Timing(tuple(step.reward_s for step in self.steps))

    @property
    def exposed(self) -> Timing:
        """What the step is longer by, round by round; noise can make it negative."""
        pairs = zip(self.step.seconds, self.without.seconds, strict=True)
        return Timing(tuple(with_it - without for with_it, without in pairs))

    @property
    def hidden(self) -> Timing:
        """The reward's time less what is exposed, round by round."""
        pairs = zip(self.reward.seconds, self.exposed.seconds, strict=True)
        return Timing(tuple(reward - exposed for reward, exposed in pairs))

    def timeline(self, name: str) -> float:
        """The median of "exposed_s" or "hidden_s", by the `Timeline`."""
        return float(np.median([getattr(step, name) for step in self.steps]))

    def phases(self) -> dict[str, float]:
        """Medians by phase."""
        names = dict.fromkeys(name for step in self.steps for name in step.phases)
        return {name: float(np.median([step.phases.get(name, 0.0) for step in self.steps])) for name in names}

    def share(self, timing: Timing) -> float:
        """Of the step, by the medians."""
        return timing.p50 / self.step.p50

    def as_json(self) -> dict[str, Any]:
        """The arm as it is written."""
        return {
            "arm": self.name,
            "step": self.step.as_json(),
            "step_without_reward": self.without.as_json(),
            "reward": self.reward.as_json(),
            "reward_share_of_step": self.share(self.reward),
            "exposed": self.exposed.as_json(),
            "exposed_share_of_step": self.share(self.exposed),
            "hidden": self.hidden.as_json(),
            "timeline_exposed_s": self.timeline("exposed_s"),
            "timeline_hidden_s": self.timeline("hidden_s"),
            "phases_s": self.phases(),
        }

    def cells(self) -> list[str]:
        """The arm as it is shown."""
        return [
            self.name,
            _spread(self.step),
            _spread(self.reward),
            f"{100 * self.share(self.reward):.1f} %",
            _spread(self.exposed),
            f"{100 * self.share(self.exposed):.1f} %",
            f"{self.hidden.p50:.3f}",
            f"{self.timeline('exposed_s'):.3f}",
            f"{self.timeline('hidden_s'):.3f}",
        ]


def _spread(timing: Timing) -> str:
    return f"{timing.p50:.3f} ({timing.p20:.3f} – {timing.p80:.3f})"


@dataclass(frozen=True)
class Measured:
    """A run: its arms, and what is asked of them.

    Attributes:
        arms: By name.
        backend: Of our encoder.
        dtype: What it computed in.
        parameters: Of the policy.
        can_hide: Whether the reward has a core of its own.
    """

    arms: Mapping[str, Arm]
    backend: str
    dtype: str
    parameters: int
    can_hide: bool

    def asked(self) -> list[dict[str, Any]]:
        """What is asked, what came out, and whether it is met; too few rounds judge nothing."""
        judged = len(self.arms[LOOP].steps) >= JUDGED_ROUNDS
        ratio = Ratio(slow=self.arms[OURS].step, fast=self.arms[LOOP].step)
        exposed = self.arms[LOOP].share(self.arms[LOOP].exposed)
        return [
            {
                "what": "a step of TRL with ours, in steps of the bundled loop",
                "found": ratio.of_medians,
                "asked": "≥ 1",
                "met": ratio.of_medians >= 1.0 if judged else None,
                "ratio": ratio.as_json(),
            },
            {
                "what": "exposed reward of the bundled loop, share of the step",
                "found": exposed,
                "asked": f"< {MOST_EXPOSED:g} where the reward has a core of its own",
                "met": exposed < MOST_EXPOSED if judged and self.can_hide else None,
            },
        ]

    def as_json(self) -> dict[str, Any]:
        """The rows as they are written."""
        return {
            "backend": self.backend,
            "dtype": self.dtype,
            "policy_parameters": self.parameters,
            "reward_has_a_core_of_its_own": self.can_hide,
            "rows": [arm.as_json() for arm in self.arms.values()],
            "asked": self.asked(),
        }

    def tables(self, setting: Setting) -> list[Table]:
        """The arms, and what is asked of them."""
        rows, millions = setting.steps.prompts * GENERATIONS, self.parameters / 1e6
        title = (
            f"A GRPO step of {rows} completions of {setting.tokens} tokens, policy of {millions:.1f} M, "
            f"{device_name(setting.device)}\nours: {self.backend}, {self.dtype}; seconds, p50 (p20 – p80)"
        )
        arms = Table(title=title)
        names = ("arm", "step", "reward", "of the step", "exposed", "of the step", "hidden")
        for name in (*names, "exposed by the timeline", "hidden"):
            arms.add_column(name, justify="left" if name == "arm" else "right")
        for arm in self.arms.values():
            arms.add_row(*arm.cells())
        asked = Table(title="asked")
        for name in ("what", "found", "asked", ""):
            asked.add_column(name)
        for one in self.asked():
            verdict = {True: "met", False: "MISSED", None: "not judged"}[one["met"]]
            asked.add_row(one["what"], f"{one['found']:.3f}", one["asked"], verdict)
        return [arms, asked]


def measure(setting: Setting) -> Measured:
    """Train and take times.

    Raises:
        GateError: If arms do other work, or their rewards differ by more than precision explains.
    """
    texts = [text for group in setting.steps.completions().values() for text in group]
    tokenizer = new_tokenizer([*texts, *(row["prompt"] for row in setting.rows)])
    script, scorer = Script(setting, tokenizer), new_scorer(setting)
    precision = torch.float32 if scorer.dtype == torch.float32 else torch.bfloat16
    record = Record(vars(BOUNDS[precision]))
    with tempfile.TemporaryDirectory() as folder:
        loops = [LoopSteps(arm, setting, tokenizer, script, folder) for arm in (LOOP, ALONE)]

        def end_round(number: int) -> None:
            for loop, arm in zip(loops, (LOOP, ALONE), strict=True):
                turns = (FREE, arm) if number % 2 else (arm, FREE)
                for turn in turns:
                    loop.take(number, turn, record)
            record.end_round()

        trainer = new_trainer(setting, tokenizer, script, folder, scorer, record, end_round)
        trainer.train()
    arms = {
        name: Arm(name, tuple(record.steps[name][1:]), tuple(record.free[name][1:]))
        for name in (USUAL, OURS, LOOP, ALONE)
    }
    parameters = sum(weight.numel() for weight in trainer.model.parameters())
    dtype = str(scorer.dtype).removeprefix("torch.")
    return Measured(arms, scorer.backend, dtype, parameters, setting.can_hide)


def sized(
    *,
    quick: bool,
    rounds: int,
    device: str,
    policy: str | None = None,
    tokens: int = 96,
    micro_batch: int = GENERATIONS,
    **scorer: Any,
) -> Setting:
    """What a run does, with the round that warms up."""
    where = torch.device(device)
    encoder = scorer.pop("encoder", None) or DEFAULT_ENCODER
    steps = Steps(2, 3, scorer) if quick else Steps(8, rounds + 1, scorer)
    chosen = policy or ("tiny" if quick or where.type == "cpu" else "large")
    return Setting(steps, chosen, min(tokens, 48) if quick else tokens, micro_batch, where, encoder)


# --------------------------------------------------------------------------- under pytest-benchmark


def test_grpo(benchmark: Any, show: Callable[[Table], None], quick: bool, rounds: int) -> None:
    """One run is one round of pytest-benchmark; what counts is in the tables."""
    pytest.importorskip("trl", reason="needs the extra trl")
    setting = sized(quick=quick, rounds=rounds, device="cuda" if torch.cuda.is_available() else "cpu")
    measured = benchmark.pedantic(measure, args=(setting,), rounds=1)
    for table in measured.tables(setting):
        show(table)
    benchmark.extra_info.update(measured.as_json())


# --------------------------------------------------------------------------- as a script


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(prog="bench_grpo.py", description="A GRPO step, three ways.")
    made.add_argument("--quick", action="store_true", help="16 rows, a tiny policy, two rounds: does it run?")
    made.add_argument("--rounds", type=int, default=10, help="rounds of seven steps (default: 10)")
    made.add_argument("--policy", choices=list(POLICIES), help="(default: tiny on a CPU, large on a GPU)")
    made.add_argument("--tokens", type=int, default=96, help="of a completion (default: 96)")
    made.add_argument(
        "--micro-batch", type=int, default=GENERATIONS, help="completions of a training forward (default: 8)"
    )
    made.add_argument(
        "--device",
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="of the policy and the rewards (default: the GPU if there is one)",
    )
    made.add_argument("--threads", type=int, help="of PyTorch; with fewer than cores the reward has its own")
    made.add_argument("--encoder", help="its folder (default: all-MiniLM-L6-v2)")
    made.add_argument("--backend", help="of the Scorer (default: its own choice)")
    made.add_argument("--dtype", help="of the Scorer (default: its own choice)")
    made.add_argument("--out", type=Path, help="also write the result below this folder")
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables: 0 when all is measured, 1 when an arm does other work."""
    options = parser().parse_args(arguments)
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    names = ("quick", "rounds", "device", "policy", "tokens", "micro_batch")
    chosen = {name: getattr(options, name) for name in names}
    scorer = {name: getattr(options, name) for name in ("encoder", "backend", "dtype")}
    setting = sized(**chosen, **scorer)
    console, source = wide_console(), provenance(setting.device)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    try:
        measured = measure(setting)
    except GateError as error:
        print(error, file=sys.stderr)
        return 1
    for table in measured.tables(setting):
        console.print(table)
    if options.out is not None:
        import trl

        source["versions"]["trl"] = trl.__version__
        settings = {
            "completions": setting.steps.prompts * GENERATIONS,
            "tokens": setting.tokens,
            "micro_batch": setting.micro_batch,
            "policy": setting.policy,
            "rounds": setting.steps.rounds - 1,
            "quick": options.quick,
        }
        content = {**source, "suite": "bench_grpo", "settings": settings, **measured.as_json()}
        console.print(f"wrote {write_results(options.out, 'bench_grpo', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
