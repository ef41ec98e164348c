"""A policy of a few million parameters, from nothing to GRPO: what `train_demo.py` and `train_arms.py` share.

A `Run` is one seed in one folder. Its stages come one after another, each from the weights of the one before:

    start     a tokenizer of its own, and random weights
    cpt       continued pre-training on the corpus of the exam questions' subjects
    sft       supervised fine-tuning on questions, each with one of its explanations, drawn at random
    <arm>     GRPO from the weights of sft, with one of the rewards of `ARMS`

The policy answers in words: in ``<answer>`` it writes the text of an option, not its letter, and AnswerReward
reads that by the options' wordings. A guess among the five is right once in five times. (Policies of this
size had not learned after 12,000 questions to find the letter: with the right explanation before it, 18 %
were right.)

After a stage the policy answers questions that training never has, with numbers that are new, and with
templates that are new. A stage that is done is not done again: what came out stands in `<stage>/result.json`.
GRPO that was interrupted goes on from its newest checkpoint.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from benchmarks.policies import shape_of
from fastreward import AnswerReward, CombinedReward, FormatReward, RougeLReward, Scorer, SemanticReward
from fastreward.errors import InputError
from fastreward.integrations.exams import Question, corpus, questions
from fastreward.integrations.grpo import LoopConfig
from fastreward.integrations.pipeline import (
    TuningConfig,
    continue_pretraining,
    evaluate,
    finetune,
    load_policy,
    train_grpo,
)

SPLITS: Final = ("held_out_numbers", "held_out_templates")
ARMS: Final = {
    "semantic": (1.0, 0.0),
    "rouge": (0.0, 1.0),
    "semantic+rouge": (0.5, 0.5),
    "answer": (0.0, 0.0),
}
"""Weights of the semantic score and of ROUGE-L."""
SHARED: Final = {"answer_reward": 1.0, "format_reward": 0.5}
"""Weights of what all arms have."""
STAGES: Final = ("start", "cpt", "sft")
TAGS: Final = ("<explanation>", "</explanation>", "<answer>", "</answer>")
LETTERS: Final = "ABCDE"
TRACED: Final = (
    *(f"rewards/{name}_reward/mean" for name in ("semantic", "rouge_l", "answer", "format")),
    *(f"time/{name}" for name in ("generate", "update", "reward_exposed", "reward_hidden")),
    "step_time",
)
"""What a result keeps of each step; the rest stands in the log of the run."""
CHANCE: Final = 0.2  # of picking the right one of five options


@dataclass(frozen=True)
class Recipe:
    """Sizes of everything. Two runs with the same recipe and seed on one machine are the same run."""

    languages: tuple[str, ...] = ("en",)  # the encoder reads English
    # Those that follow from rules on symbols and from small numbers, which a small policy learns in minutes.
    families: tuple[str, ...] = (
        "crosses",
        "base_pairing",
        "blood_groups",
        "syllogisms",
        "sequences",
    )
    vocabulary: int = 1536  # tokens at most
    hidden_size: int = 192
    intermediate_size: int = 512
    layers: int = 4
    heads: int = 6
    context: int = 512  # tokens
    corpus_texts: int = 1600
    cpt_epochs: float = 1.0
    cpt_rate: float = 2e-3
    questions: int = 16000
    sft_epochs: float = 1.0
    sft_rate: float = 2e-3
    cpt_batch: int = 2  # rows of `context` tokens
    sft_batch: int = 4  # many small steps: of as many tokens, they teach more than fewer large ones
    warmup_steps: int = 30
    grpo_steps: int = 60
    grpo_prompts: int = 16
    grpo_generations: int = 8
    grpo_micro_batch: int = 64
    grpo_rate: float = 2e-4
    grpo_saved: int = 10  # steps between two checkpoints
    completion: int = 96  # tokens
    evaluated: int = 400  # questions of each split
    bf16: bool = False


FULL: Final = Recipe()
QUICK: Final = replace(
    FULL,
    hidden_size=64,
    intermediate_size=128,
    layers=2,
    corpus_texts=200,
    questions=200,
    sft_epochs=1.0,
    grpo_steps=4,
    grpo_prompts=4,
    grpo_generations=4,
    evaluated=16,
)
"""Does it run? Nothing is learned."""


def new_tokenizer(texts: Sequence[str], vocabulary: int) -> Any:
    """Train byte-level BPE in which every digit is a token, with or without a space before, and every tag."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(" ?[0-9]"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(TAGS),
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(tag, normalized=False) for tag in TAGS])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def new_policy(tokenizer: Any, recipe: Recipe, seed: int) -> Any:
    """Make a small Qwen3 with random weights and tied embeddings.

    Its queries and keys are normalised, and its weights begin 1 / √hidden_size large, not 0.02. After 2,400
    questions of two families in steps of 8 the loss of a token was 0.32 with weights of 0.08 and 0.70 with
    weights of 0.02; of a Llama with 0.02 it was 1.15.
    """
    from transformers import Qwen3Config, Qwen3ForCausalLM, set_seed

    set_seed(seed)
    config = Qwen3Config(
        **shape_of(recipe, tokenizer),
        head_dim=recipe.hidden_size // recipe.heads,
        max_position_embeddings=recipe.context,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},  # texts are short
        initializer_range=recipe.hidden_size**-0.5,
        tie_word_embeddings=True,
    )
    return Qwen3ForCausalLM(config)


def arm_reward(arm: str, scorer: Scorer, generations: int) -> CombinedReward:
    """The reward of an arm. Arms differ in the weights of what judges the explanation; all have the rest.

    Components are scaled within their group before they are added (GDPO), so that each has the say that its
    weight gives it, however narrow the range of its values. One of weight 0 is measured and steers nothing.
    """
    return CombinedReward(
        [
            SemanticReward(scorer, reference="explanation", extract="explanation"),
            RougeLReward("explanation", extract="explanation"),
            AnswerReward("answer", kind="option", options="options"),
            FormatReward(),
        ],
        weights=dict(zip(("semantic_reward", "rouge_l_reward"), ARMS[arm], strict=True)) | SHARED,
        aggregation="normalize_then_sum",
        num_generations=generations,
    )


def in_words(question: Question, wording: int = 0) -> str:
    """A completion whose answer is the text of the right option."""
    text = question.options[LETTERS.index(question.answer)]
    return f"<explanation>{question.explanations[wording]}</explanation>\n<answer>{text}</answer>"


def row_of(question: Question) -> dict[str, Any]:
    """The columns that GRPO and the evaluation read."""
    return question.row() | {"options": list(question.options), "completion": in_words(question)}


@dataclass(frozen=True)
class World:
    """What one seed trains on and is asked."""

    corpus: list[str]
    questions: list[Question]
    held_out: Mapping[str, list[Question]]

    @property
    def texts(self) -> list[str]:
        """What a tokenizer is trained on."""
        return [*self.corpus, *(row["prompt"] + row["completion"] for row in map(row_of, self.questions))]

    @classmethod
    def of(cls, recipe: Recipe, seed: int) -> World:
        options: dict[str, Any] = {"seed": seed, "languages": recipe.languages, "families": recipe.families}
        return cls(
            corpus(recipe.corpus_texts, **options),
            questions(recipe.questions, split="train", **options),
            {split: questions(recipe.evaluated, split=split, **options) for split in SPLITS},
        )

    def fine_tuning(self, seed: int) -> list[dict[str, str]]:
        """Prompts, each with one of its explanations, drawn at random: all wordings are learned alike."""
        draw = random.Random(f"wordings {seed}")
        return [
            {"prompt": q.prompt, "completion": in_words(q, draw.randrange(len(q.explanations)))}
            for q in self.questions
        ]


class Run:
    """One seed in one folder: every stage is done once, and what came out of it is kept.

    Args:
        folder: Of this seed; it is made.
        recipe: Sizes. A folder that was begun with another recipe is refused.
        seed: Of the questions, the weights, the wordings and the sampling.
        tell: Takes a line about what happens.

    Raises:
        InputError: The folder holds a run with another recipe or seed.
    """

    def __init__(self, folder: Path, recipe: Recipe, seed: int, tell: Callable[[str], None] = print) -> None:
        self.folder, self.recipe, self.seed, self._tell = folder, recipe, seed, tell
        mine, known = json.loads(json.dumps(self.settings)), folder / "run.json"
        if known.exists() and read_json(known) != mine:
            begun = {name: value for name, value in read_json(known).items() if mine.get(name) != value}
            raise InputError(
                f"the settings of the run in {folder}, {begun}", "others", "Name another folder."
            )
        write_json(known, mine)

    @cached_property
    def world(self) -> World:
        """The texts and questions of this seed."""
        return World.of(self.recipe, self.seed)

    @cached_property
    def scorer(self) -> Scorer:
        """The encoder, shared by rewards and evaluations."""
        return Scorer()

    @property
    def settings(self) -> dict[str, Any]:
        """Recipe and seed."""
        return {"seed": self.seed, **asdict(self.recipe)}

    def stage(self, name: str) -> dict[str, Any]:
        """Do a stage, and those before it, unless it is done; return what came out.

        Args:
            name: "start", "cpt", "sft" or an arm.

        Returns:
            `seconds` of training, `asking_s` of the questions after it, facts about the stage, and for each
            split `accuracy`, `semantic`, `rouge_l`, `format` and `length`.
        """
        result, trained = self.folder / name / "result.json", self.folder / name / "trained.json"
        if result.exists():
            return dict(read_json(result))
        if name != "start":
            self.stage("sft" if name in ARMS else STAGES[STAGES.index(name) - 1])
        if not trained.exists():
            self._tell(f"seed {self.seed}: {name}")
            begin = time.perf_counter()
            facts = self._train(name, self.model(name))
            write_json(trained, {"stage": name, "seconds": time.perf_counter() - begin} | facts)
        begin = time.perf_counter()
        found = dict(read_json(trained)) | {split: self._ask(name, split) for split in SPLITS}
        found["asking_s"] = time.perf_counter() - begin
        write_json(result, found)
        self._tell(f"  {described(found)}")
        return found

    def model(self, name: str) -> Path:
        """The folder of a stage: its weights, its tokenizer and its log."""
        return self.folder / name / "model"

    def log(self, arm: str) -> list[dict[str, float]]:
        """The steps of an arm, each with its metrics."""
        text = (self.model(arm) / "log.jsonl").read_text(encoding="utf-8")
        return [json.loads(line) for line in text.splitlines()]

    def curves(self, arm: str) -> dict[str, list[float]]:
        """What is traced of an arm, a value a step; rewards have no unit, times are seconds."""
        steps = self.log(arm)
        return {name: [round(step[name], 6) for step in steps] for name in TRACED}

    def _train(self, name: str, folder: Path) -> dict[str, Any]:
        if name in ARMS:
            return self._reinforce(name, folder)
        shutil.rmtree(folder, ignore_errors=True)  # short stages: one that was interrupted begins again
        if name == "start":
            tokenizer = new_tokenizer(self.world.texts, self.recipe.vocabulary)
            model = new_policy(tokenizer, self.recipe, self.seed)
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            return {"parameters": sum(weight.numel() for weight in model.parameters())}
        model, tokenizer = self._loaded(STAGES[STAGES.index(name) - 1])
        recipe, rows = self.recipe, self.world.fine_tuning(self.seed)
        options = {"output_dir": str(folder), "max_length": recipe.context, "bf16": recipe.bf16}
        options |= {"seed": self.seed, "save_steps": 0, "warmup_steps": recipe.warmup_steps}
        if name == "cpt":
            options |= {"learning_rate": recipe.cpt_rate, "num_train_epochs": recipe.cpt_epochs}
            config = TuningConfig(batch_size=recipe.cpt_batch, **options)
            continue_pretraining(model, tokenizer, self.world.corpus, config)
            texts, epochs = self.world.corpus, recipe.cpt_epochs
        else:
            options |= {"learning_rate": recipe.sft_rate, "num_train_epochs": recipe.sft_epochs}
            config = TuningConfig(batch_size=recipe.sft_batch, **options)
            finetune(model, tokenizer, rows, config)
            texts, epochs = [row["prompt"] + row["completion"] for row in rows], recipe.sft_epochs
        tokens = sum(len(ids) + 1 for ids in tokenizer(texts)["input_ids"])
        return {"texts": len(texts), "epochs": epochs, "tokens": round(tokens * epochs)}

    def _reinforce(self, arm: str, folder: Path) -> dict[str, Any]:
        recipe = self.recipe
        model, tokenizer = self._loaded("sft")
        config = LoopConfig(
            output_dir=str(folder),
            max_steps=recipe.grpo_steps,
            num_prompts=recipe.grpo_prompts,
            num_generations=recipe.grpo_generations,
            micro_batch_size=recipe.grpo_micro_batch,
            max_completion_length=recipe.completion,
            learning_rate=recipe.grpo_rate,
            lr_scheduler_type="constant",
            bf16=recipe.bf16,
            seed=self.seed,
            save_steps=recipe.grpo_saved,
            logging_steps=recipe.grpo_saved,
        )
        rows = [row_of(question) for question in self.world.questions]
        reward = arm_reward(arm, self.scorer, recipe.grpo_generations)
        resume = any(folder.glob("checkpoint-*"))
        finished = (folder / "config.json").exists()  # it is written last
        if not finished:
            train_grpo(model, tokenizer, rows, reward, config, resume=resume, report=self._report)
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        steps = self.log(arm)
        medians = {n: statistics.median(s[n] for s in steps) for n in steps[0] if "time" in n}
        facts: dict[str, Any] = {"steps": len(steps), "median_s": medians}
        if finished or resume:  # the time of its steps is all that is known of what came before
            facts["seconds"] = sum(step["step_time"] for step in steps)
        return facts

    def _loaded(self, name: str) -> tuple[Any, Any]:
        """Read the policy of a stage and its tokenizer; they stay on the CPU."""
        return load_policy(str(self.model(name)), device="cpu")

    def _report(self, step: Mapping[str, float]) -> None:
        parts = [
            f"{n.split('/')[1]} {v:.3f}" for n, v in step.items() if n.startswith("rewards/") and "mean" in n
        ]
        self._tell(f"  step {step['step']:.0f}, {step['step_time']:.1f} s: {', '.join(parts)}")

    def _ask(self, name: str, split: str) -> dict[str, Any]:
        """Sample an answer to each held-out question, at GRPO's temperature, and judge it."""
        model, tokenizer = self._loaded(name)
        rows = [row_of(question) for question in self.world.held_out[split]]
        found = evaluate(
            model,
            tokenizer,
            rows,
            options="options",
            scorer=self.scorer,
            temperature=1.0,
            max_completion_length=self.recipe.completion,
            batch_size=100,
            seed=self.seed,
        )
        references = [row["explanation"] for row in rows]
        shared = RougeLReward("explanation", extract="explanation")(found.completions, explanation=references)
        return {
            "accuracy": found.accuracy,
            "semantic": found.semantic,
            "rouge_l": statistics.fmean(value or 0.0 for value in shared),
            "format": found.format_rate,
            "length": found.mean_length,
        }


def described(result: Mapping[str, Any]) -> str:
    """One line about a stage."""
    splits = (
        f"{split.replace('_', ' ')}: accuracy {found['accuracy']:.1%}, semantic {found['semantic']:.3f}, "
        f"ROUGE-L {found['rouge_l']:.3f}, form {found['format']:.1%}"
        for split, found in ((split, result[split]) for split in SPLITS)
    )
    return f"{result['seconds']:.0f} s; " + "; ".join(splits)


def read_json(path: Path) -> Any:
    """Read a file."""
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, content: Any) -> None:
    """Write a file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(partial, path)
