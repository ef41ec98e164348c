"""Tokenising on one core: the word cache against the tokenizer that stands behind it.

    python benchmarks/bench_tokenization.py [--data FILE ...] [--quick] [--rounds N] [--out FOLDER]
    python benchmarks/bench_tokenization.py --fuzz 200000 --words 1000000        # exactness, memory
    python -m pytest benchmarks/bench_tokenization.py --benchmark-only [--quick] [--rounds N]

The tokenizer is that of all-MiniLM-L6-v2. Of each corpus (the example explanations, or files of JSON lines
with `--data`) every fourth record is held out, and the others warm the cache. With `--warm-on FILE` that file
warms it, and all records of the others are held out. Nothing is timed before the ids of all texts are the
tokenizer's own. What it takes to get them out of Rust counts on both sides: lists of ints, and int32 arrays
from the cache.

Both sides work in the calling thread. As a script, its CPU seconds are taken, which other work on the machine
disturbs least; pytest-benchmark takes the wall's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Final

import pytest
import tokenizers
from rich.table import Table
from tokenizers import normalizers

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.measure import (
    CPU,
    GateError,
    Prepare,
    Ratio,
    Run,
    Timing,
    WallClock,
    interleaved,
    provenance,
    repeated,
    wide_console,
    write_results,
)
from benchmarks.shapes import EXPLANATIONS
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint
from fastreward.separation import WHITESPACE
from fastreward.word_cache import WordCache, encode_batch

OURS: Final = "word cache"
PEER: Final = "tokenizers"


# --------------------------------------------------------------------------- texts


@dataclass(frozen=True)
class Corpus:
    """Texts of one domain in two parts that share no record."""

    name: str
    warming: tuple[str, ...]
    held_out: tuple[str, ...]


def corpus(path: Path, *, warm_on: Path | None = None, records: int | None = None) -> Corpus:
    """Read one or two files of JSON lines; the text of a record is all its strings, one to a line."""
    texts = texts_of(path, records)
    if warm_on is not None:
        name = f"{path.parent.name}/{path.name} after {warm_on.parent.name}/{warm_on.name}"
        return Corpus(name, texts_of(warm_on, records), texts)
    warming = tuple(text for number, text in enumerate(texts) if number % 4 != 3)
    return Corpus(f"{path.parent.name}/{path.name}", warming, texts[3::4])


def texts_of(path: Path, records: int | None) -> tuple[str, ...]:
    with path.open(encoding="utf-8") as lines:
        return tuple("\n".join(strings(json.loads(line))) for line in islice(lines, records))


def strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from strings(item)


# Where tokenizers trip: marks, whatever could share a grapheme with a space, controls and invisibles, letters
# whose case is special, Chinese and its neighbours, words with added tokens or what looks like them.
MARKS: Final = (
    "\u0301\u0327\u0338\u0345\u0483\u05b0\u064b\u093e\u094d\u0e31\u0e33\u0eb3\u1ab0\u20dd\ufe0f\uff9e"
)
JOINERS: Final = "\u0600\u06dd\u070f\u08e2\u0d4e\u200c\u200d\u2060\U000110bd\U000111c2\U0001f3fb\U000e0061"
CONTROLS: Final = "".join(map(chr, range(0x20)))
INVISIBLE: Final = f"{CONTROLS}\x7f\x80\x85\x9f\xad\u061c\u200b\u202e\ufeff\ufffd\uffff\ue000"
SURROGATES: Final = "\ud800\udbff\udc00\udfff"
SPECIAL_CASE: Final = "İıßẞΣσςΰŉﬁﬀǅȺK"
CHINESE: Final = "心脏将血㐀鿿豈丽𠀀𪜀に한ー々〇"
PRINTABLE: Final = (range(0x21, 0x7F), range(0xA1, 0x3000))
ANY: Final = (SURROGATES, range(0x10000), range(0x110000))
WORDS_OF_NOTE: Final = """
    the heart's pumps, blood; glucose (e.g. x_1=2.5) [SEP] [MASK] [UNK][CLS] [sep] a[SEP]b <x> <s> </s>
    <mask> ▁ ▁x x▁y perché l'ossigeno né η καρδιά ΟΔΟΣ ΟΔΟΣ. 10⁻⁷ ½H₂O E=mc² ａｂ １２ a=\u0338b
    <\u0338 #tag @me ##ing ~
"""
WORDS: Final = tuple(WORDS_OF_NOTE.split())


def fuzzed_texts(seed: int) -> Iterator[str]:
    """Draw texts without end: up to 30 words, of all planes of Unicode, and every kind of whitespace."""
    rng = random.Random(seed)
    while True:
        words = [fuzzed_word(rng) for _ in range(int(30 ** rng.random()) - rng.randint(0, 1))]
        text = "".join(part for word in words for part in (word, fuzzed_whitespace(rng)))
        yield rng.choice((str, str, str.strip, partial(add, rng.choice(WHITESPACE))))(text)


def add(before: str, after: str) -> str:
    return before + after


def fuzzed_word(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(WORDS)
    if kind < 0.55:
        return "".join(rng.choices("abcdeABCDE0123.,'-[]é", k=rng.randint(1, 12)))
    if kind < 0.57:
        return rng.choice(("a", "ab", "心", "é", "x.")) * rng.randint(45, 110)  # around the limit of 100
    return "".join(fuzzed_character(rng) for _ in range(rng.randint(1, 6)))


def fuzzed_character(rng: random.Random) -> str:
    chosen = (MARKS, JOINERS, INVISIBLE, SPECIAL_CASE, CHINESE, *PRINTABLE)
    drawn = rng.choice(rng.choice(ANY if rng.random() < 0.2 else chosen))
    return drawn if isinstance(drawn, str) else chr(drawn)


def fuzzed_whitespace(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return " "
    if kind < 0.9:
        return rng.choice("\t\n\r\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000")
    return rng.choice((rng.choice(WHITESPACE), "\r\n", "".join(rng.choices(WHITESPACE, k=2))))


# --------------------------------------------------------------------------- what is checked before


def minilm_tokenizer() -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(load_checkpoint(DEFAULT_ENCODER).tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def require_exact(cache: WordCache, tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> None:
    """Hold ids against the tokenizer's own.

    Raises:
        GateError: If those of one text are others.
    """
    for text, ours, theirs in zip(texts, cache.encode(texts), encode_batch(tokenizer, texts), strict=True):
        if ours.tolist() != theirs:
            raise GateError(f"{text!a}: {ours.tolist()}, expected {theirs}; not timed")


def fuzz(count: int, seed: int = 0) -> Iterator[str]:
    """Compare `count` texts over variants of the tokenizer, through caches that overflow now and then.

    Raises:
        GateError: At the first difference.
    """
    bert = normalizers.BertNormalizer
    variants: dict[str, Any] = {
        "as it is": bert(),
        "cased": bert(lowercase=False),
        "cased, no accents": bert(lowercase=False, strip_accents=True),
        "lower case, accents": bert(strip_accents=False),
        "no clean-up": bert(clean_text=False),
        "Chinese as it is": bert(handle_chinese_chars=False),
        "NFKC": normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        "none": None,
    }
    texts = fuzzed_texts(seed)
    for number, (name, normalizer) in enumerate(variants.items()):
        tokenizer = minilm_tokenizer()
        tokenizer.normalizer = normalizer
        cache = WordCache(tokenizer, max_bytes=1 << 20)
        share = count * (number + 1) // len(variants) - count * number // len(variants)
        for start in range(0, share, 500):
            require_exact(cache, tokenizer, list(islice(texts, min(500, share - start))))
        yield f"{share:,} fuzzed texts, normalizer {name}: no difference"


def many_words(count: int) -> str:
    """Let distinct words through a cache of 16 MiB, and say what its memory came to."""
    cache = WordCache(minilm_tokenizer(), max_bytes=16 << 20)
    before, largest, start = peak_bytes(), 0, time.perf_counter()
    for first in range(0, count, 50_000):
        words = [f"w{number:x}" for number in range(first, min(count, first + 50_000))]
        cache.encode([" ".join(words[i : i + 100]) for i in range(0, len(words), 100)])
        largest = max(largest, cache.size_bytes)
    seconds, grown = time.perf_counter() - start, peak_bytes() - before
    return (
        f"{count:,} distinct words in {seconds:.0f} s: {len(cache):,} kept, at most {largest / 2**20:.1f} of "
        f"16 MiB; the process's peak grew by {grown / 2**20:.0f} MiB, batches of 50,000 words included"
    )


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


# --------------------------------------------------------------------------- what is timed


@dataclass(frozen=True)
class Row:
    """One comparison: what the cache has seen before, and what is asked of it."""

    name: str
    seen: Callable[[Corpus], tuple[str, ...]]
    tokens_per_s: float | None = None  # at least
    ratio: float | None = None  # at least


ROWS: Final = {
    row.name: row
    for row in (
        Row("known", lambda texts: texts.held_out, tokens_per_s=5e6),
        Row("held-out", lambda texts: texts.warming, ratio=2.0),
        Row("cold", lambda texts: ()),
    )
}


@dataclass(frozen=True)
class Measured:
    """What one row came to."""

    row: Row
    corpus: Corpus
    hit_rate: float
    tokens: int
    ours: Timing
    peer: Timing

    @property
    def ratio(self) -> Ratio:
        return Ratio(slow=self.peer, fast=self.ours)

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.ours.p50

    def verdict(self) -> str:
        """What was asked, and whether it is met; fewer than five rounds judge nothing."""
        pairs = ((self.tokens_per_s, self.row.tokens_per_s), (self.ratio.of_medians, self.row.ratio))
        asked = [(value, bound) for value, bound in pairs if bound is not None]
        if not asked or len(self.ours.seconds) < 5:
            return ""
        return ", ".join(f"≥ {bound:,.0f} {'met' if value >= bound else 'MISSED'}" for value, bound in asked)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.row.name,
            "corpus": self.corpus.name,
            "texts": len(self.corpus.held_out),
            "tokens": self.tokens,
            "hit_rate": self.hit_rate,
            OURS: self.ours.as_json(),
            PEER: self.peer.as_json(),
            "ratio": self.ratio.as_json(),
            "tokens_per_s": self.tokens_per_s,
            "peer_tokens_per_s": self.tokens / self.peer.p50,
            "asked": self.verdict(),
        }

    def cells(self) -> list[str]:
        rates = (f"{self.tokens / t.p50 / 1e6:.2f}" for t in (self.ours, self.peer))
        ratio = self.ratio
        return [
            self.corpus.name,
            self.row.name,
            f"{self.tokens:,}",
            f"{100 * self.hit_rate:.1f} %",
            *rates,
            f"{ratio.of_medians:.2f} ({ratio.quantile(0.2):.2f} – {ratio.quantile(0.8):.2f})",
            self.verdict(),
        ]


def compare(
    row: Row, texts: Corpus, time: Callable[[Mapping[str, Prepare]], Mapping[str, Timing]]
) -> Measured:
    """Check, then time both.

    Raises:
        GateError: If ids are not the tokenizer's.
    """
    tokenizer = minilm_tokenizer()
    seen, held_out = row.seen(texts), texts.held_out

    def warmed() -> WordCache:
        cache = WordCache(tokenizer)
        cache.encode(seen)
        return cache

    cache = warmed()
    hit_rate = cache.hit_rate(held_out)
    require_exact(cache, tokenizer, (*texts.warming, *held_out))
    known = warmed()

    def ours() -> Run:  # a word is unknown once: a new cache for each run
        return partial((known if hit_rate == 1.0 else warmed()).encode, held_out)

    with one_thread():
        timings = time({OURS: ours, PEER: repeated(partial(encode_batch, tokenizer, held_out))})
    tokens = sum(map(len, encode_batch(tokenizer, held_out)))
    return Measured(row, texts, hit_rate, tokens, timings[OURS], timings[PEER])


@contextmanager
def one_thread() -> Iterator[None]:
    """Have tokenizers work in the calling thread: it reads this variable at each call."""
    name = "TOKENIZERS_PARALLELISM"
    before = os.environ.get(name)
    os.environ[name] = "false"
    try:
        yield
    finally:
        del os.environ[name]
        if before is not None:
            os.environ[name] = before


def thread_clock(run: Run) -> float:
    """CPU seconds of this thread."""
    start = time.thread_time()
    run()
    return time.thread_time() - start


def new_table() -> Table:
    table = Table(title="Tokenising on one core, all-MiniLM-L6-v2; p50 (p20 – p80) of rounds in turns")
    table.add_column("corpus")
    table.add_column("row")
    for name in (
        "tokens",
        "hits",
        f"{OURS}, M tokens/s",
        f"{PEER}, M tokens/s",
        "ratio (p20 – p80)",
        "asked",
    ):
        table.add_column(name, justify="right")
    return table


# --------------------------------------------------------------------------- under pytest-benchmark


@pytest.fixture(scope="module")
def table(show: Callable[[Table], None]) -> Table:
    table = new_table()
    show(table)
    return table


@pytest.mark.parametrize("name", ROWS)
def test_tokenization(
    name: str,
    interleave: Callable[..., dict[str, Timing]],
    benchmark: Any,
    table: Table,
    quick: bool,
    rounds: int,
) -> None:
    texts = corpus(EXPLANATIONS, records=8 if quick else None)
    measured = compare(ROWS[name], texts, lambda variants: interleave(variants, WallClock(CPU), 4 * rounds))
    table.add_row(*measured.cells())
    benchmark.extra_info.update(measured.as_json())


# --------------------------------------------------------------------------- as a script


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when all is measured, 1 when an id is wrong."""
    parser = argparse.ArgumentParser(prog="bench_tokenization.py", description="Tokenising on one core.")
    parser.add_argument(
        "--data", nargs="+", type=Path, default=[], metavar="FILE", help="other texts: JSON lines"
    )
    parser.add_argument("--warm-on", type=Path, metavar="FILE", help="warm on this file, hold all others out")
    parser.add_argument("--fuzz", type=int, metavar="N", help="only compare the ids of N random texts")
    parser.add_argument("--words", type=int, metavar="N", help="only let N distinct words through a cache")
    parser.add_argument("--quick", action="store_true", help="a few texts and two rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=20, help="rounds of each row (default: 20)")
    parser.add_argument("--out", type=Path, help="also write the results below this folder")
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    console = wide_console()
    source = provenance(CPU)
    console.print(f"{source['device']}, tokenizers {tokenizers.__version__}, commit {source['commit']}")
    checks: list[str] = []
    results = []
    table = new_table()
    try:
        for line in fuzz(options.fuzz) if options.fuzz is not None else ():
            console.print(line)
            checks.append(line)
        if options.words is not None:
            checks.append(many_words(options.words))
            console.print(checks[-1])
        for path in (options.data or [EXPLANATIONS]) if not checks else ():
            texts = corpus(path, warm_on=options.warm_on, records=8 if options.quick else None)
            for row in ROWS.values():
                measured = compare(row, texts, partial(interleaved, clock=thread_clock, rounds=rounds))
                results.append(measured.as_json())
                table.add_row(*measured.cells())
    except GateError as error:
        print(error, file=sys.stderr)
        return 1
    if results:
        console.print(table)
    if options.out is not None:
        settings = {"rounds": rounds, "quick": options.quick, "clock": "CPU seconds of one thread"}
        said = {"settings": settings, "checks": checks, "rows": results}
        content = {**source, "suite": "bench_tokenization", **said}
        console.print(f"wrote {write_results(options.out, 'bench_tokenization', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
