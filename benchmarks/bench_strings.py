"""From strings to unit vectors on the host, for gpu_suite.py: `Scorer.embed` against sentence-transformers.

The encoders of `bench_encoder` again, at the same mean lengths, and all that stands around them: tokenising,
packing, copies. The texts are real words in real order (`texts.py`), none of them twice. Ours is timed with a
cache of words that knows nothing, and with one that has read other texts, not these: its row says what share
of these texts' words it knew. sentence-transformers gets the attention, the batch size and the compiler that
suit it best, in the same turns. All encoders have the tokenizer of all-MiniLM-L6-v2, the real one where it is
at hand (`--encoder`, or the packaged encoder), else one trained on the spot: ModernBERT's own would have to
be fetched.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import torch

from benchmarks.bench_encoder import ASKED_LENGTH, ENCODERS, configuration
from benchmarks.checkpoints import EncoderShape, known_tokenizer, text_folder
from benchmarks.measure import Prepare, encoder_flops, repeated
from benchmarks.rows import Row
from benchmarks.scenarios import (
    Bench,
    Scenario,
    Work,
    check_encodes,
    check_ours,
    first,
    rows_of,
    tuned_peers,
    vectors_in_fp32,
)
from benchmarks.texts import LogNormalShape, Prose, log_normal, read_tokenizer
from benchmarks.workloads import OURS, Ask
from fastreward import Scorer
from fastreward.word_cache import WordCache

COLD: Final = f"{OURS}, no word known"

# Tokens of a call: of small encoders more, so that a turn is long against the clock and has several batches.
TOKENS: Final = {"minilm-l6": 262_144, "e5-small": 262_144, "bge-base": 131_072}
OTHERS_TOKENS: Final = 65_536

ASKED_TIMES: Final = {"minilm-l6": 3.0, "e5-small": 3.0, "bge-base": 2.0, "bge-large": 1.3}
"""Of ours against the best of sentence-transformers, at a mean length of 200."""


def texts_shape(shape: EncoderShape, mean_tokens: int, *, shrunk: bool) -> LogNormalShape:
    """How many texts, and how long."""
    if shrunk:
        return log_normal(mean_tokens // 8, 16 * (mean_tokens // 8), shape.max_tokens)
    return log_normal(
        mean_tokens, TOKENS.get(shape.name, OTHERS_TOKENS), min(shape.max_tokens, 8 * mean_tokens)
    )


class Words:
    """Puts a scorer's cache of words into a known state, for nothing that is timed.

    Args:
        scorer: Its tokenizer's cache is replaced.
        folder: Of its encoder.
        prose: What warms the cache.
    """

    def __init__(self, scorer: Scorer, folder: Path, prose: Prose) -> None:
        self._scorer = scorer
        self._tokenizer = read_tokenizer(folder / "tokenizer.json")
        self._warming = prose.warming()

    @property
    def cached(self) -> bool:
        """Whether there is a cache to speak of."""
        return self._scorer.tokenizer.word_cache is not None

    def forget(self) -> None:
        """Leave a cache that knows no word."""
        if self.cached:
            self._scorer.tokenizer.word_cache = WordCache(self._tokenizer)

    def warm(self) -> None:
        """Leave a cache that has read other texts."""
        self.forget()
        self._scorer.tokenizer(self._warming)

    def hit_rate(self, texts: Sequence[str]) -> float:
        """Share of the words of the texts that are known now; 0 without a cache."""
        cache = self._scorer.tokenizer.word_cache
        return 0.0 if cache is None else cache.hit_rate(texts)


@functools.lru_cache(maxsize=1)
def scorer_of(folder: Path, device: torch.device, dtype: torch.dtype) -> Scorer:
    """The last scorer that was asked for stays."""
    return Scorer(folder, backend="packed", device=device, dtype=dtype, progress=False)


def after(prepare: Callable[[], object], run: Callable[[], object]) -> Prepare:
    """A variant that has something to prepare."""

    def prepared() -> Callable[[], object]:
        prepare()
        return run

    return prepared


def measure(shape: EncoderShape, mean_tokens: int, bench: Bench, name: str) -> list[Row]:
    """Check and time one encoder at one mean length."""
    drawn = texts_shape(shape, mean_tokens, shrunk=bench.shrunk)
    small = shape.shrunk() if bench.shrunk else shape
    tokenizer_file = None if bench.shrunk else known_tokenizer(bench.encoder)
    folder = text_folder(small, tokenizer_file)
    prose = Prose(read_tokenizer(folder / "tokenizer.json"))
    texts = prose.texts(drawn.lengths())
    scorer = scorer_of(folder, bench.device, bench.dtype)
    words = Words(scorer, folder, prose)
    expected = vectors_in_fp32(folder, first(texts), bench.device)
    check_ours(OURS, scorer.embed(first(texts)), expected.cpu())
    check_encodes(OURS, scorer, partial(scorer.embed, texts), len(texts))
    not_at_200 = (
        None if str(mean_tokens) == ASKED_LENGTH else "compiled at a mean length of 200 alone, for time"
    )
    peers = tuned_peers(bench, folder, texts, expected, compiled=not_at_200)
    lengths = list(map(len, scorer.tokenizer(texts)))
    facts = {}
    for variant, prepare in ((OURS, words.warm), (COLD, words.forget)):
        prepare()
        facts[variant] = {"hit_rate": words.hit_rate(texts)}
    variants: dict[str, Prepare] = {
        OURS: after(words.warm, partial(scorer.embed, texts)),
        COLD: after(words.forget, partial(scorer.embed, texts)),
        **{peer: repeated(partial(_on_the_host, embed, texts)) for peer, embed in peers.encoders.items()},
    }
    timings = bench.time(variants)
    tokens, flops = sum(lengths), encoder_flops(lengths, configuration(small), pooling=small.pooling)
    sizes = {
        "texts": len(texts),
        "tokenizer": "trained here" if tokenizer_file is None else "all-MiniLM-L6-v2",
    }
    work = {
        v: Work(tokens, flops, {**facts.get(v, peers.facts.get(v, {})), **(sizes if v == OURS else {})})
        for v in variants
    }
    return [
        *rows_of(name, timings, work, against={}, peak_flops=bench.peak_flops()),
        *peers.failures(name),
    ]


def _on_the_host(embed: Callable[[Sequence[str]], torch.Tensor], texts: Sequence[str]) -> torch.Tensor:
    return embed(texts).cpu()


SCENARIOS: Final = tuple(
    Scenario(
        *("strings", f"{shape.name}-{mean_tokens}", partial(measure, shape, mean_tokens)),
        asks=(Ask("times the best peer", ASKED_TIMES[shape.name]),)
        if str(mean_tokens) == ASKED_LENGTH and shape.name in ASKED_TIMES
        else (),
    )
    for shape in ENCODERS
    for mean_tokens in (64, 200, 512)
)
