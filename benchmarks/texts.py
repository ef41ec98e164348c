"""English texts of real words, in the lengths that are asked for, without a file to fetch.

The words are those of the documentation in Python's standard library, 160,000 of them and 20,000 different
ones, and of the example explanations. A text is so many of them in a row as hold its tokens, from a random
place on: words come as often as they do in prose, and so a cache of words misses as often as it does in life.
Half of the paragraphs are for warming such a cache, the other half for texts that it has not seen.
"""

from __future__ import annotations

import functools
import json
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, NamedTuple

import numpy as np
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers

from benchmarks.shapes import EXPLANATIONS, PackedShape

Half = Literal["warming", "held out"]

SIGMA: Final = 0.5
"""Standard deviation of the logarithm of a length. That of the example explanations is 0.42; a policy's
completions differ more among themselves than what was written to one length."""

SPECIAL_TOKENS: Final = 2
LEAST_TOKENS: Final = 4


@dataclass(frozen=True)
class LogNormalShape(PackedShape):
    """A packed batch whose texts have log-normal lengths, as texts written without a limit have.

    The logarithm of a length has the standard deviation `SIGMA`, and a mean with which the lengths have the
    mean `mean_tokens`; then they are clipped.
    """

    def lengths(self, seed: int = 0) -> tuple[int, ...]:
        """Draw lengths that sum to T."""
        generator = np.random.default_rng(seed)
        lengths: list[int] = []
        left = self.num_tokens
        while left:
            for length in self.drawn(1 + left // self.mean_tokens, generator):
                lengths.append(min(left, length))
                left -= lengths[-1]
                if not left:
                    break
        return tuple(lengths)

    def drawn(self, count: int, generator: np.random.Generator) -> tuple[int, ...]:
        """Draw so many lengths, whatever they sum to."""
        drawn = generator.lognormal(np.log(self.mean_tokens) - SIGMA**2 / 2, SIGMA, count)
        return tuple(np.clip(np.rint(drawn), self.min_tokens, self.max_tokens).astype(int).tolist())


def log_normal(mean_tokens: int, num_tokens: int, max_tokens: int) -> LogNormalShape:
    """Make a shape of this mean length, named after it."""
    least = min(8, mean_tokens)
    return LogNormalShape(str(mean_tokens), num_tokens, 0, mean_tokens, least, max_tokens)


class _Words(NamedTuple):
    """Words in the order of the prose, and how many tokens stand before each, and behind the last."""

    words: tuple[str, ...]
    tokens_before: np.ndarray


class Prose:
    """Texts of chosen lengths in tokens of one tokenizer.

    Args:
        tokenizer: Must cut at whitespace, as WordPiece's does: the tokens of a text are those of its words.
    """

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._halves = {half: _counted(tokenizer, words) for half, words in _halves().items()}

    def warming(self) -> list[str]:
        """All words that a cache is warmed with, in texts of 500."""
        words = self._halves["warming"].words
        return [" ".join(words[first : first + 500]) for first in range(0, len(words), 500)]

    def texts(self, lengths: Sequence[int], seed: int = 0, half: Half = "held out") -> list[str]:
        """Draw distinct texts of so many tokens each, the two special ones included.

        A word is never cut: a text may lack a few tokens of its length where the next word is long.

        Raises:
            ValueError: If the prose does not hold so many distinct texts.
        """
        chosen = self._halves[half]
        generator = np.random.default_rng(seed)
        texts: dict[str, None] = {}
        for length in lengths:
            for _ in range(100):
                text = _window(chosen, max(1, length - SPECIAL_TOKENS), generator)
                if text not in texts:
                    break
            else:
                raise ValueError(f"no more than {len(texts)} distinct texts with one of {length} tokens")
            texts[text] = None
        return list(texts)


def _window(chosen: _Words, tokens: int, generator: np.random.Generator) -> str:
    before = chosen.tokens_before
    last_start = int(np.searchsorted(before, before[-1] - tokens, side="right"))
    start = int(generator.integers(0, max(1, last_start)))
    end = int(np.searchsorted(before, before[start] + tokens, side="right")) - 1
    return " ".join(chosen.words[start : max(end, start + 1)])


def _counted(tokenizer: tokenizers.Tokenizer, words: tuple[str, ...]) -> _Words:
    distinct = list(dict.fromkeys(words))
    counts = {
        word: len(encoding.ids)
        for word, encoding in zip(
            distinct, tokenizer.encode_batch_fast(distinct, add_special_tokens=False), strict=True
        )
    }
    return _Words(words, np.cumsum([0, *(counts[word] for word in words)]))


@functools.cache
def _halves() -> dict[Half, tuple[str, ...]]:
    paragraphs = (*_documentation(), *_explanations())
    halves: tuple[Half, Half] = ("warming", "held out")
    return {
        half: tuple(word for paragraph in paragraphs[number::2] for word in paragraph.split())
        for number, half in enumerate(halves)
    }


def _explanations() -> list[str]:
    items = [json.loads(line) for line in EXPLANATIONS.read_text(encoding="utf-8").splitlines()]
    english = [item for item in items if item["language"] == "en"]
    return [text for item in english for text in (item["explanation"], *item["candidates"].values())]


@functools.cache
def _documentation() -> tuple[str, ...]:
    """Paragraphs of prose from the standard library's docstrings."""
    library = Path(sysconfig.get_path("stdlib"))
    left_out = {"test", "idlelib", "lib2to3", "encodings", "site-packages", "pydoc_data"}
    files = [f for f in sorted([*library.glob("*.py"), *library.glob("*/*.py")]) if not left_out & {*f.parts}]
    sources = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    docstrings = (text for source in sources for text in re.findall(r'"""(.*?)"""', source, re.DOTALL))
    paragraphs = (" ".join(p.split()) for text in docstrings for p in re.split(r"\n\s*\n", text))
    return tuple(dict.fromkeys(filter(_is_prose, paragraphs)))


def _is_prose(paragraph: str) -> bool:
    letters = sum(character.isalpha() or character.isspace() for character in paragraph)
    return len(paragraph) > 80 and letters > 0.85 * len(paragraph)


def read_tokenizer(file: Path) -> tokenizers.Tokenizer:
    """Read a tokenizer, and have it neither pad nor truncate."""
    read = tokenizers.Tokenizer.from_file(str(file))
    read.no_padding()
    read.no_truncation()
    return read


def trained_tokenizer(vocab_size: int) -> tokenizers.Tokenizer:
    """Train a WordPiece tokenizer like BERT's on the warming half: where no real one is at hand.

    Its texts take as long to tokenise; its vocabulary is smaller, for 80,000 words hold no more.
    """
    made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    made.train_from_iterator([" ".join(_halves()["warming"])], trainer)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, made.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    return made
