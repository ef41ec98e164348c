"""The reward in TRL's GRPO: SemanticReward against sentence-transformers, in one training run.

    python benchmarks/bench_trl.py [--quick] [--rounds N] [--backend NAME] [--dtype NAME] [--out FOLDER]
    python -m pytest benchmarks/bench_trl.py --benchmark-only [--quick] [--rounds N]

A step has 64 rows, 8 prompts × 8 completions. Steps take turns: one is rewarded by fastreward, the next, of
the same prompts and completions, in the usual way, by a function that has sentence-transformers encode both
sides at its defaults. Each is timed inside the trainer's own call, and the step around it. Every pair of
steps has new prompts, so no reference is known. All of it runs on the GPU if there is one.

The policy is small and random and would write nonsense. So TRL's `rollout_func` stands in for generating: it
hands over the example explanations, which takes no time. The rest of the step is real, but a step with
generation, or of a larger policy, is longer: the ratio of the rewards carries over, the shares of the step do
not.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from rich.table import Table

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # what it says of rollout_func is said above

from benchmarks.bench_scorer import OURS as BOUNDS
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
from benchmarks.shapes import EXPLANATIONS, explanation_batch
from fastreward import Scorer, SemanticReward
from fastreward.encoders.checkpoint import DEFAULT_ENCODER

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAST: Final = "SemanticReward"
SLOW: Final = "sentence-transformers, both sides"
ASKED: Final = 9.0
JUDGED_ROUNDS: Final = 5  # fewer judge nothing
GENERATIONS: Final = 8


@dataclass(frozen=True)
class Steps:
    """What a run trains on.

    Attributes:
        prompts: P prompts of a step.
        rounds: Pairs of steps, the first of which warms up and is not counted.
        scorer: Options of the `Scorer`.
    """

    prompts: int
    rounds: int
    scorer: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, str]]:
        """The data set: the prompts of each pair of steps twice."""
        items = [json.loads(line) for line in EXPLANATIONS.read_text(encoding="utf-8").splitlines()]
        references = explanation_batch(self.prompts * self.rounds, GENERATIONS).references[::GENERATIONS]
        rows = [
            {"prompt": f"{items[i % len(items)]['question']} ({i})", "explanation": reference}
            for i, reference in enumerate(references)
        ]
        pairs = [rows[first : first + self.prompts] for first in range(0, len(rows), self.prompts)]
        return [row for pair in pairs for row in (*pair, *pair)]

    def completions(self) -> dict[str, tuple[str, ...]]:
        """The completions of each prompt."""
        texts = explanation_batch(self.prompts * self.rounds, GENERATIONS).completions
        prompts = dict.fromkeys(row["prompt"] for row in self.rows())
        return {p: texts[i * GENERATIONS : (i + 1) * GENERATIONS] for i, p in enumerate(prompts)}


class Turns:
    """A reward function that is ours in even steps and the usual one in odd steps, and takes their time.

    Args:
        options: Of the `Scorer`.
    """

    __name__ = "turns"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.scorer = Scorer(DEFAULT_ENCODER, device=DEVICE, progress=False, **options)
        ours = SemanticReward(self.scorer, reference="explanation")
        peer = SentenceTransformersPeer(DEFAULT_ENCODER, device=DEVICE.type)

        def usual(completions: list[str], explanation: list[str], **columns: Any) -> list[float]:
            scores: list[float] = peer.score(completions, explanation).tolist()
            return scores

        self._variants: dict[str, Callable[..., Any]] = {FAST: ours, SLOW: usual}
        self.seconds: dict[str, list[float]] = {FAST: [], SLOW: []}
        self._rewards: list[float] = []

    def __call__(self, *, trainer_state: Any, **columns: Any) -> list[float]:
        name = SLOW if trainer_state.global_step % 2 else FAST
        if DEVICE.type == "cuda":  # what the trainer has queued before is no part of the reward
            torch.cuda.synchronize(DEVICE)
        start = time.perf_counter()
        rewards: list[float] = self._variants[name](**columns)
        self.seconds[name].append(time.perf_counter() - start)
        if name == SLOW:  # of the same texts
            bounds = BOUNDS[torch.float32 if self.scorer.dtype == torch.float32 else torch.bfloat16]
            require_close(FAST, torch.tensor(self._rewards), torch.tensor(rewards), **vars(bounds))
        self._rewards = rewards
        return rewards


@dataclass
class Measured:
    """Seconds of the reward and of the step around it, by variant.

    Attributes:
        backend: Of our encoder.
        dtype: What it computed in.
        rows: Completions of a step.
        reward: The warm-up left out.
        step: The same steps.
    """

    backend: str
    dtype: str
    rows: int
    reward: dict[str, Timing] = field(default_factory=dict)
    step: dict[str, Timing] = field(default_factory=dict)

    @property
    def ratio(self) -> Ratio:
        """Of the rewards' seconds."""
        return Ratio(slow=self.reward[SLOW], fast=self.reward[FAST])

    def share(self, name: str) -> float:
        """Of the step that is the reward, by the medians."""
        return self.reward[name].p50 / self.step[name].p50

    @property
    def verdict(self) -> str:
        """The bound, and whether it is met."""
        if len(self.reward[FAST].seconds) < JUDGED_ROUNDS:
            return ""
        return f"≥ {ASKED} {'met' if self.ratio.of_medians >= ASKED else 'MISSED'}"

    def as_json(self) -> dict[str, Any]:
        """The row as it is written."""

        def variant(name: str) -> dict[str, Any]:
            step = self.step[name].as_json()
            return {
                "variant": name,
                **self.reward[name].as_json(),
                "step": step,
                "share_of_step": self.share(name),
            }

        return {
            "name": "trl-grpo-step",
            "backend": self.backend,
            "dtype": self.dtype,
            "fast": variant(FAST),
            "slow": variant(SLOW),
            "ratio": self.ratio.as_json(),
            "asked": f"≥ {ASKED}",
            "texts_per_s": self.rows / self.reward[FAST].p50,
        }

    def table(self) -> Table:
        """The row as it is shown."""
        where = device_name(DEVICE)
        title = f"The reward of {self.rows} rows in a GRPO step of TRL, {where}; p50 (p20 – p80)"
        table = Table(title=title)
        for name in ("reward", "seconds", "step around it, s", "share of the step", "ratio", "asked"):
            table.add_column(name, justify="left" if name == "reward" else "right")
        ratio = self.ratio
        of_rounds = f"{ratio.of_medians:.2f} ({ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f})"
        for name, last in (
            (f"{FAST}, {self.backend}, {self.dtype}", (of_rounds, self.verdict)),
            (SLOW, ("", "")),
        ):
            key = SLOW if name == SLOW else FAST
            taken, step = self.reward[key], self.step[key]
            table.add_row(
                name,
                f"{taken.p50:.3f} ({taken.p20:.3f} – {taken.p80:.3f})",
                f"{step.p50:.2f} ({step.p20:.2f} – {step.p80:.2f})",
                f"{100 * self.share(key):.1f} %",
                *last,
            )
        return table


def measure(steps: Steps) -> Measured:
    """Train and take times.

    Raises:
        GateError: If the rewards of the two variants differ by more than precision explains.
    """
    turns = Turns(steps.scorer)
    step_seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        new_trainer(steps, turns, folder, step_seconds).train()
    kept = {name: Timing(tuple(seconds[1:])) for name, seconds in turns.seconds.items()}
    around = {FAST: Timing(tuple(step_seconds[2::2])), SLOW: Timing(tuple(step_seconds[3::2]))}
    dtype = str(turns.scorer.dtype).removeprefix("torch.")
    return Measured(turns.scorer.backend, dtype, steps.prompts * GENERATIONS, kept, around)


def new_trainer(steps: Steps, turns: Turns, folder: str, step_seconds: list[float]) -> Any:
    """TRL's GRPO with a small random policy; it appends the seconds of each step."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    class StepClock(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            step_seconds.append(time.perf_counter() - self.start)

    completions = steps.completions()
    tokenizer = new_tokenizer([*completions, *(text for texts in completions.values() for text in texts)])

    def rollout(prompts: list[str], trainer: Any) -> dict[str, Any]:
        texts = [completions[prompt][i % GENERATIONS] for i, prompt in enumerate(prompts)]
        ids = [[*row, tokenizer.eos_token_id] for row in tokenizer(texts)["input_ids"]]
        logprobs = [[0.0] * len(row) for row in ids]
        return {"prompt_ids": tokenizer(prompts)["input_ids"], "completion_ids": ids, "logprobs": logprobs}

    config = GRPOConfig(
        folder,
        per_device_train_batch_size=GENERATIONS,
        gradient_accumulation_steps=steps.prompts,  # a step is one batch of completions
        num_generations=GENERATIONS,
        max_completion_length=1024,
        max_steps=2 * steps.rounds,
        shuffle_dataset=False,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=DEVICE.type == "cpu",
        bf16=False,
    )
    trainer = GRPOTrainer(
        new_policy(len(tokenizer)),
        turns,
        config,
        Dataset.from_list(steps.rows()),
        processing_class=tokenizer,
        callbacks=[StepClock()],
        rollout_func=rollout,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def new_policy(vocab_size: int) -> Any:
    """A random policy of two layers."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4}
    sizes = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 2}
    return Qwen2ForCausalLM(Qwen2Config(vocab_size=vocab_size, **heads, **sizes))


def new_tokenizer(texts: Sequence[str]) -> Any:
    """Bytes and what is frequent in these texts, so that a text comes back from its tokens as it was."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        texts, vocab_size=4096, special_tokens=["[PAD]", "[EOS]"], show_progress=False
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=trained._tokenizer,
        pad_token="[PAD]",
        eos_token="[EOS]",
        clean_up_tokenization_spaces=False,
    )


def sized(*, quick: bool, rounds: int, **scorer: Any) -> Steps:
    """The steps of a run, with the one that warms up."""
    return Steps(2, 3, scorer) if quick else Steps(8, rounds + 1, scorer)


# --------------------------------------------------------------------------- under pytest-benchmark


def test_trl(benchmark: Any, show: Callable[[Table], None], quick: bool, rounds: int) -> None:
    """One run is one round of pytest-benchmark; what counts is in the table."""
    pytest.importorskip("trl", reason="needs the extra trl")
    measured = benchmark.pedantic(measure, args=(sized(quick=quick, rounds=rounds),), rounds=1)
    show(measured.table())
    benchmark.extra_info.update(measured.as_json())


# --------------------------------------------------------------------------- as a script


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when all is measured, 1 when a reward is wrong."""
    parser = argparse.ArgumentParser(prog="bench_trl.py", description="The reward in TRL's GRPO.")
    parser.add_argument("--quick", action="store_true", help="16 rows and two rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=10, help="pairs of steps (default: 10)")
    parser.add_argument("--backend", help="of the Scorer (default: its own choice)")
    parser.add_argument("--dtype", help="of the Scorer (default: its own choice)")
    parser.add_argument("--out", type=Path, help="also write the result below this folder")
    options = parser.parse_args(arguments)
    steps = sized(quick=options.quick, rounds=options.rounds, backend=options.backend, dtype=options.dtype)
    console = wide_console()
    source = provenance(DEVICE)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    try:
        measured = measure(steps)
    except GateError as error:
        print(error, file=sys.stderr)
        return 1
    console.print(measured.table())
    if options.out is not None:
        import trl

        source["versions"]["trl"] = trl.__version__
        settings = {"completions": measured.rows, "rounds": steps.rounds - 1, "quick": options.quick}
        content = {**source, "suite": "bench_trl", "settings": settings, "rows": [measured.as_json()]}
        console.print(f"wrote {write_results(options.out, 'bench_trl', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
