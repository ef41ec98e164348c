"""One GRPO step's reward, for gpu_suite.py: 32 prompts × 16 completions of 200 tokens, strings to floats.

Ours is `SemanticReward`; the usual way has sentence-transformers encode every completion and, for every row,
its reference, once with its defaults (batches of 32) and once with the attention and the batch size that suit
it best. Each turn is another step: its completions and references are drawn anew, the same for all variants.
References are new to the cache ("cold": a prompt that comes for the first time), or have been encoded before
("warm": it comes again). The words are known as they are after some steps; the row says what share is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.bench_encoder import configuration
from benchmarks.checkpoints import BGE_BASE, MINILM_L6, EncoderShape, known_tokenizer, text_folder
from benchmarks.measure import GateError, Prepare, Run, encoder_flops, require_close
from benchmarks.rows import Row
from benchmarks.scenarios import Bench, Peers, Scenario, Work, rows_of, tuned_peers, vectors_in_fp32
from benchmarks.texts import Prose, log_normal, read_tokenizer
from benchmarks.tuned import sentence_transformers
from benchmarks.workloads import OURS, SENTENCE_TRANSFORMERS, Ask, why
from fastreward import Scorer, SemanticReward
from fastreward.encoders.checkpoint import load_checkpoint

COLD: Final = f"{OURS}, references cold"
WARM: Final = f"{OURS}, references warm"
DEFAULTS: Final = f"{SENTENCE_TRANSFORMERS} at its defaults"

PROMPTS, GENERATIONS, MEAN_TOKENS, MAX_TOKENS = 32, 16, 200, 512

ASKED_TIMES: Final = 3.0
"""Of ours with cold references, against the best of sentence-transformers."""

NOT_COMPILED: Final = "compiled in `strings` alone, for time"

MAX_SCORE_ERROR, RMS_SCORE_ERROR = 2e-2, 3e-3


@dataclass(frozen=True)
class Step:
    """A step's texts: N = P × G completions, and for each the reference of its prompt."""

    completions: list[str]
    references: list[str]

    @property
    def distinct_references(self) -> list[str]:
        """One for each prompt."""
        return list(dict.fromkeys(self.references))


class Steps:
    """Steps by number, drawn when they are first asked for.

    Args:
        prose: Where the texts come from.
        shrunk: A few short texts.
    """

    def __init__(self, prose: Prose, *, shrunk: bool) -> None:
        self._prose, self._shrunk = prose, shrunk
        self._drawn: dict[int, Step] = {}

    def __getitem__(self, number: int) -> Step:
        if number not in self._drawn:
            self._drawn = {number: self._draw(number)}  # turns go forward: the one before is done with
        return self._drawn[number]

    def _draw(self, number: int) -> Step:
        prompts, generations, mean = (3, 2, 12) if self._shrunk else (PROMPTS, GENERATIONS, MEAN_TOKENS)
        shape = log_normal(mean, 1, MAX_TOKENS)
        lengths = shape.drawn(prompts * (generations + 1), np.random.default_rng(number))
        texts = self._prose.texts(lengths, seed=number)
        references = [text for text in texts[:prompts] for _ in range(generations)]
        return Step(texts[prompts:], references)


@dataclass(frozen=True)
class Subject:
    """An encoder that takes texts, and where it comes from."""

    folder: Path
    config: dict[str, Any]
    pooling: str
    weights: str


def subject(shape: EncoderShape, bench: Bench) -> Subject:
    """The real all-MiniLM-L6-v2 where its folder is given, else random weights of the same shape."""
    if bench.encoder is not None and shape.name == MINILM_L6.name and not bench.shrunk:
        checkpoint = load_checkpoint(bench.encoder)
        return Subject(bench.encoder, dict(checkpoint.config), checkpoint.pooling, "all-MiniLM-L6-v2")
    chosen = shape.shrunk() if bench.shrunk else shape
    folder = text_folder(chosen, None if bench.shrunk else known_tokenizer(bench.encoder))
    return Subject(folder, configuration(chosen), chosen.pooling, "random")


def measure(shape: EncoderShape, bench: Bench, name: str) -> list[Row]:
    """Check and time one encoder's step."""
    chosen = subject(shape, bench)
    prose = Prose(read_tokenizer(load_checkpoint(chosen.folder).tokenizer_file))
    steps = Steps(prose, shrunk=bench.shrunk)
    scorer = Scorer(
        chosen.folder, device=bench.device, dtype=bench.dtype, max_seq_length=MAX_TOKENS, progress=False
    )
    reward = SemanticReward(scorer)
    step = steps[0]
    check(reward, chosen.folder, step, bench)
    expected = vectors_in_fp32(chosen.folder, step.completions[:64], bench.device, MAX_TOKENS)
    peers = tuned_peers(
        *(bench, chosen.folder, step.completions, expected), max_tokens=MAX_TOKENS, compiled=NOT_COMPILED
    )
    add_defaults(peers, chosen.folder, bench)
    counters: dict[str, int] = {}

    def step_of(variant: str) -> Step:
        counters[variant] = counters.get(variant, 0) + 1
        return steps[counters[variant]]

    hit_rates: list[float] = []
    encoded: dict[str, list[int]] = {COLD: [], WARM: []}

    def ours(variant: str) -> Run:
        drawn = step_of(variant)
        if variant == WARM:
            scorer.score(drawn.distinct_references, drawn.distinct_references)
        else:
            cache = scorer.tokenizer.word_cache
            hit_rates.append(0.0 if cache is None else cache.hit_rate(drawn.completions))

        def run() -> object:
            before = scorer.stats.reference_misses
            rewards = reward(drawn.completions, reference=drawn.references)
            encoded[variant].append(scorer.stats.reference_misses - before)
            return rewards

        return run

    def theirs(variant: str) -> Run:
        drawn = step_of(variant)
        return partial(both_sides, peers.encoders[variant], drawn.completions, drawn.references)

    scorer.tokenizer(prose.warming())
    variants: dict[str, Prepare] = {variant: partial(ours, variant) for variant in (COLD, WARM)}
    variants |= {variant: partial(theirs, variant) for variant in peers.encoders}
    timings = bench.time(variants)
    return [
        *rows_of(
            *(name, timings, work_of(scorer, chosen, step, peers, hit_rates, encoded)),
            against=dict.fromkeys(variants, COLD),
            peak_flops=bench.peak_flops(),
        ),
        *peers.failures(name),
    ]


def work_of(
    scorer: Scorer,
    chosen: Subject,
    step: Step,
    peers: Peers,
    hit_rates: Sequence[float],
    encoded: Mapping[str, Sequence[int]],
) -> dict[str, Work]:
    """What a turn comes to: tokens and operations of ours with cold references, and the facts of all."""
    texts = [*step.completions, *step.distinct_references]
    lengths = list(map(len, scorer.tokenizer(texts)))
    flops = encoder_flops(lengths, chosen.config, pooling=chosen.pooling)
    work = {name: Work(facts=found) for name, found in peers.facts.items()}
    facts = {"completions": len(step.completions), "weights": chosen.weights}
    references = {
        variant: {"references_encoded": round(float(np.median(n)))} for variant, n in encoded.items()
    }
    work[WARM] = Work(facts=references[WARM])
    work[COLD] = Work(
        sum(lengths), flops, {**facts, **references[COLD], "hit_rate": float(np.median(hit_rates))}
    )
    return work


def both_sides(
    embed: Callable[[Sequence[str]], Tensor], completions: list[str], references: list[str]
) -> list[float]:
    """The usual way: encode every row's completion and reference, and hand floats to the trainer."""
    return F.cosine_similarity(embed(completions), embed(references)).tolist()


def add_defaults(peers: Peers, folder: Path, bench: Bench) -> None:
    """Have sentence-transformers take part as it is without any choice."""
    try:
        model = sentence_transformers(folder, bench.device, bench.dtype, "sdpa", MAX_TOKENS)
    except Exception as error:  # a peer that does not run here is a row that says so
        peers.failed[DEFAULTS] = why(error)
    else:
        peers.encoders[DEFAULTS] = partial(model.embed, batch_size=32)
        peers.facts[DEFAULTS] = {"batch_size": 32}


def check(reward: SemanticReward, folder: Path, step: Step, bench: Bench) -> None:
    """Hold the rewards of some rows against sentence-transformers in fp32.

    Raises:
        GateError: If they are wrong, or one is missing.
    """
    rows = slice(0, 64)
    completions, references = step.completions[rows], step.references[rows]
    rewards = reward(completions, reference=references)
    if any(value is None for value in rewards):
        raise GateError("a reward is None; not timed")
    embed = partial(vectors_in_fp32, folder, device=bench.device, max_tokens=MAX_TOKENS)
    right = F.cosine_similarity(embed(completions), embed(references))
    bounds = {"max_error": MAX_SCORE_ERROR, "rms_error": RMS_SCORE_ERROR}
    require_close("SemanticReward", torch.tensor(rewards), right.cpu(), **bounds)


SCENARIOS: Final = tuple(
    Scenario(
        *("step", shape.name, partial(measure, shape)),
        asks=(Ask("times the best peer", ASKED_TIMES, COLD),) if shape is MINILM_L6 else (),
    )
    for shape in (MINILM_L6, BGE_BASE)
)
