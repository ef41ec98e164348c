"""The reward in TRL's GRPO: SemanticReward against sentence-transformers, in one training run.

    python benchmarks/bench_trl.py [--quick] [--rounds N] [--backend B] [--dtype D] [--int8] [--out FOLDER]
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
from benchmarks.comparison import Bounds
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
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint
from fastreward.encoders.openvino import calibrate_int8
from fastreward.errors import InputError
from fastreward.tokenization import Tokenizer

DEVICE: Final = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAST: Final = "SemanticReward"
INT8: Final = "SemanticReward in int8"
SLOW: Final = "sentence-transformers, both sides"
ASKED: Final = 9.0
JUDGED_ROUNDS: Final = 5  # fewer judge nothing
GENERATIONS: Final = 8
CALIBRATING: Final = 12
"""Questions whose explanations calibrate int8."""
IN_INT8: Final = Bounds(5e-2, 1e-2)


@dataclass(frozen=True)
class Steps:
    """What a run trains on.

    Attributes:
        prompts: P prompts of a step.
        rounds: Turns of all variants, the first of which warms up and is not counted.
        scorer: Options of the `Scorer`.
        int8: Whether a scorer in 8 bits takes its turn as well.
    """

    prompts: int
    rounds: int
    scorer: Mapping[str, Any] = field(default_factory=dict)
    int8: bool = False

    @property
    def variants(self) -> tuple[str, ...]:
        """In the order of their turns, the usual way last."""
        return (FAST, INT8, SLOW) if self.int8 else (FAST, SLOW)

    def rows(self) -> list[dict[str, str]]:
        """The data set: the prompts of each turn, once for each variant."""
        texts = items()
        references = explanation_batch(self.prompts * self.rounds, GENERATIONS).references[::GENERATIONS]
        rows = [
            {"prompt": f"{texts[i % len(texts)]['question']} ({i})", "explanation": reference}
            for i, reference in enumerate(references)
        ]
        turns = [rows[first : first + self.prompts] for first in range(0, len(rows), self.prompts)]
        return [row for turn in turns for row in turn * len(self.variants)]

    def completions(self) -> dict[str, tuple[str, ...]]:
        """The completions of each prompt."""
        texts = explanation_batch(self.prompts * self.rounds, GENERATIONS).completions
        prompts = dict.fromkeys(row["prompt"] for row in self.rows())
        return {p: texts[i * GENERATIONS : (i + 1) * GENERATIONS] for i, p in enumerate(prompts)}

    def scorers(self, folder: Path) -> dict[str, Scorer]:
        """Ours, by variant; a calibration is kept in the folder.

        Raises:
            InputError: If the steps leave no questions to calibrate on.
        """
        options = {"device": DEVICE, "progress": False}
        made = {FAST: Scorer(DEFAULT_ENCODER, **options, **self.scorer)}
        if self.int8:
            calibrating = items()[self.prompts * self.rounds :][-CALIBRATING:]
            if len(calibrating) < CALIBRATING:
                most = (len(items()) - CALIBRATING) // self.prompts - 1
                raise InputError(
                    f"{most} rounds at most with int8", str(self.rounds - 1), f"Pass --rounds {most}."
                )
            texts = [
                text for item in calibrating for text in (item["explanation"], *item["candidates"].values())
            ]
            checkpoint = load_checkpoint(DEFAULT_ENCODER)
            tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, max_length=checkpoint.max_seq_length)
            file = calibrate_int8(checkpoint, tokenizer(texts)).save(folder / "ranges.npz")
            made[INT8] = Scorer(
                DEFAULT_ENCODER, backend="openvino", dtype="int8", calibration=file, **options
            )
        return made


def items() -> list[dict[str, Any]]:
    """The example explanations, by question."""
    return [json.loads(line) for line in EXPLANATIONS.read_text(encoding="utf-8").splitlines()]


class Turns:
    """A reward function that is each of the variants in turn, and takes their time.

    Args:
        scorers: Ours, by variant, in the order of their turns, behind which the usual way has its own.
    """

    __name__ = "turns"

    def __init__(self, scorers: Mapping[str, Scorer]) -> None:
        self.scorers = scorers
        peer = SentenceTransformersPeer(DEFAULT_ENCODER, device=DEVICE.type)

        def usual(completions: list[str], explanation: list[str], **columns: Any) -> list[float]:
            scores: list[float] = peer.score(completions, explanation).tolist()
            return scores

        self._variants: dict[str, Callable[..., Any]] = {
            name: SemanticReward(scorer, reference="explanation") for name, scorer in scorers.items()
        } | {SLOW: usual}
        self.seconds: dict[str, list[float]] = {name: [] for name in self._variants}
        self._rewards: dict[str, list[float]] = {}

    def __call__(self, *, trainer_state: Any, **columns: Any) -> list[float]:
        names = list(self._variants)
        name = names[trainer_state.global_step % len(names)]
        if DEVICE.type == "cuda":  # what the trainer has queued before is no part of the reward
            torch.cuda.synchronize(DEVICE)
        start = time.perf_counter()
        rewards: list[float] = self._variants[name](**columns)
        self.seconds[name].append(time.perf_counter() - start)
        if name == SLOW:  # of the same texts
            for ours, scorer in self.scorers.items():
                bounds = (
                    IN_INT8
                    if ours == INT8
                    else BOUNDS[torch.float32 if scorer.dtype == torch.float32 else torch.bfloat16]
                )
                require_close(ours, torch.tensor(self._rewards[ours]), torch.tensor(rewards), **vars(bounds))
        self._rewards[name] = rewards
        return rewards


@dataclass
class Measured:
    """Seconds of the reward and of the step around it, by variant.

    Attributes:
        scorers: Back-end and precision of ours, by variant.
        rows: Completions of a step.
        reward: The warm-up left out.
        step: The same steps.
    """

    scorers: Mapping[str, tuple[str, str]]
    rows: int
    reward: dict[str, Timing] = field(default_factory=dict)
    step: dict[str, Timing] = field(default_factory=dict)

    def ratio(self, name: str) -> Ratio:
        """Of the rewards' seconds, the usual way's to a variant's."""
        return Ratio(slow=self.reward[SLOW], fast=self.reward[name])

    def share(self, name: str) -> float:
        """Of the step that is the reward, by the medians."""
        return self.reward[name].p50 / self.step[name].p50

    def verdict(self, name: str) -> str:
        """The bound, and whether it is met."""
        if len(self.reward[name].seconds) < JUDGED_ROUNDS:
            return ""
        return f"≥ {ASKED} {'met' if self.ratio(name).of_medians >= ASKED else 'MISSED'}"

    def as_json(self) -> list[dict[str, Any]]:
        """A row for each of ours, as it is written."""

        def variant(name: str) -> dict[str, Any]:
            step = self.step[name].as_json()
            return {
                "variant": name,
                **self.reward[name].as_json(),
                "step": step,
                "share_of_step": self.share(name),
            }

        return [
            {
                "name": "trl-grpo-step",
                "backend": backend,
                "dtype": dtype,
                "fast": variant(name),
                "slow": variant(SLOW),
                "ratio": self.ratio(name).as_json(),
                "asked": f"≥ {ASKED}",
                "texts_per_s": self.rows / self.reward[name].p50,
            }
            for name, (backend, dtype) in self.scorers.items()
        ]

    def table(self) -> Table:
        """The rows as they are shown."""
        where = device_name(DEVICE)
        title = f"The reward of {self.rows} rows in a GRPO step of TRL, {where}; p50 (p20 – p80)"
        table = Table(title=title)
        for name in ("reward", "seconds", "step around it, s", "share of the step", "ratio", "asked"):
            table.add_column(name, justify="left" if name == "reward" else "right")
        for name in (*self.scorers, SLOW):
            label, last = name, ("", "")
            if name != SLOW:
                ratio = self.ratio(name)
                label = ", ".join((FAST, *self.scorers[name]))
                last = (
                    f"{ratio.of_medians:.2f} ({ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f})",
                    self.verdict(name),
                )
            taken, step = self.reward[name], self.step[name]
            table.add_row(
                label,
                f"{taken.p50:.3f} ({taken.p20:.3f} – {taken.p80:.3f})",
                f"{step.p50:.2f} ({step.p20:.2f} – {step.p80:.2f})",
                f"{100 * self.share(name):.1f} %",
                *last,
            )
        return table


def measure(steps: Steps) -> Measured:
    """Train and take times.

    Raises:
        GateError: If the rewards of two variants differ by more than precision explains.
        InputError: If the steps leave no questions to calibrate on.
    """
    step_seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        turns = Turns(steps.scorers(Path(folder)))
        new_trainer(steps, turns, folder, step_seconds).train()
    count = len(steps.variants)
    kept = {name: Timing(tuple(seconds[1:])) for name, seconds in turns.seconds.items()}
    around = {
        name: Timing(tuple(step_seconds[count + turn :: count])) for turn, name in enumerate(steps.variants)
    }
    scorers = {
        name: (scorer.backend, "int8" if name == INT8 else str(scorer.dtype).removeprefix("torch."))
        for name, scorer in turns.scorers.items()
    }
    return Measured(scorers, steps.prompts * GENERATIONS, kept, around)


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
        max_steps=len(steps.variants) * steps.rounds,
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


def sized(*, quick: bool, rounds: int, int8: bool = False, **scorer: Any) -> Steps:
    """The steps of a run, with the turn that warms up."""
    return Steps(2, 3, scorer, int8) if quick else Steps(8, rounds + 1, scorer, int8)


# --------------------------------------------------------------------------- under pytest-benchmark


def test_trl(benchmark: Any, show: Callable[[Table], None], quick: bool, rounds: int) -> None:
    """One run is one round of pytest-benchmark; what counts is in the table."""
    pytest.importorskip("trl", reason="needs the extra trl")
    measured = benchmark.pedantic(measure, args=(sized(quick=quick, rounds=rounds),), rounds=1)
    show(measured.table())
    benchmark.extra_info.update(measured.as_json()[0])


# --------------------------------------------------------------------------- as a script


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when all is measured, 1 when a reward is wrong."""
    parser = argparse.ArgumentParser(prog="bench_trl.py", description="The reward in TRL's GRPO.")
    parser.add_argument("--quick", action="store_true", help="16 rows and two rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=5, help="turns of all variants (default: 5)")
    parser.add_argument("--backend", help="of the Scorer (default: its own choice)")
    parser.add_argument("--dtype", help="of the Scorer (default: its own choice)")
    parser.add_argument("--int8", action="store_true", help="OpenVINO in 8 bits takes its turn as well")
    parser.add_argument("--out", type=Path, help="also write the result below this folder")
    options = parser.parse_args(arguments)
    steps = sized(
        quick=options.quick,
        rounds=options.rounds,
        int8=options.int8,
        backend=options.backend,
        dtype=options.dtype,
    )
    console = wide_console()
    source = provenance(DEVICE)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    try:
        measured = measure(steps)
    except (GateError, InputError) as error:
        print(error, file=sys.stderr)
        return 1
    console.print(measured.table())
    if options.out is not None:
        import trl

        source["versions"]["trl"] = trl.__version__
        settings = {"completions": measured.rows, "rounds": steps.rounds - 1, "quick": options.quick}
        content = {**source, "suite": "bench_trl", "settings": settings, "rows": measured.as_json()}
        console.print(f"wrote {write_results(options.out, 'bench_trl', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
