"""Text → token ids, exactly as the checkpoint's tokenizer gives them, without padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import normalizers

from fastreward.errors import CheckpointError, InputError
from fastreward.word_cache import WORD_CACHE_BYTES, TokenIds, WordCache, encode_batch

PROBE = "probe"


class Tokenizer:
    """A fast tokenizer that neither pads nor truncates on its own.

    Special tokens are set around the content here, so that a long text can be cut or windowed knowing what
    was left out. `__call__` gives what the encoder gets.

    Args:
        tokenizer: The tokenizer of the checkpoint; its padding and truncation are switched off.
        max_length: Tokens of one sequence at most, special tokens included.
        prompt: Text set before every text ("query: ").
        lowercase: Lower-case texts first, as some sentence-transformers checkpoints ask for.
        word_cache_bytes: Bound on the memory for words whose ids are remembered; 0 for no cache.

    Attributes:
        max_length: Tokens of one sequence at most, special tokens included.
        max_content: Tokens of a text at most, special tokens left out.
        word_cache: The ids of the words seen so far; None if there is no cache.
        uncached_because: Why there is none; None if there is one.

    Raises:
        CheckpointError: If the special tokens are not a fixed prefix and suffix of a text.
        InputError: If they leave no room for a text, or `word_cache_bytes` is negative.

    Example:
        >>> tokenizer = Tokenizer.from_file(folder / "tokenizer.json", max_length=256)  # doctest: +SKIP
        >>> tokenizer(["a cat"])  # doctest: +SKIP
        [[101, 1037, 4937, 102]]
    """

    def __init__(
        self,
        tokenizer: tokenizers.Tokenizer,
        *,
        max_length: int,
        prompt: str = "",
        lowercase: bool = False,
        word_cache_bytes: int = WORD_CACHE_BYTES,
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if lowercase:
            _lower_case_first(tokenizer)
        self._tokenizer = tokenizer
        self._prompt = prompt
        prefix, suffix = _special_tokens(tokenizer)
        self.prefix, self.suffix = (np.array(ids, dtype=np.int32).tobytes() for ids in (prefix, suffix))
        self.max_length = max_length
        self.max_content = max_length - len(prefix) - len(suffix)
        if self.max_content < 1:
            raise InputError(
                f"room for text beside {len(prefix) + len(suffix)} special tokens",
                f"a maximum length of {max_length} tokens",
                "Pass a larger max_seq_length.",
            )
        self.word_cache, self.uncached_because = _word_cache(tokenizer, word_cache_bytes)

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_file(
        cls,
        path: Path,
        *,
        max_length: int,
        prompt: str = "",
        lowercase: bool = False,
        word_cache_bytes: int = WORD_CACHE_BYTES,
    ) -> Tokenizer:
        """Load a `tokenizer.json`.

        Raises:
            CheckpointError: If the file is missing or damaged.
        """
        if not path.is_file():
            raise CheckpointError(
                "a fast tokenizer (tokenizer.json)",
                f"none in {path.parent}",
                "Save one there: transformers.AutoTokenizer.from_pretrained(...).save_pretrained(folder).",
            )
        try:
            tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises plain Exception
            raise CheckpointError(
                "a readable tokenizer.json", f"{path}: {error}", "Download or save the file again."
            ) from error
        return cls(
            tokenizer,
            max_length=max_length,
            prompt=prompt,
            lowercase=lowercase,
            word_cache_bytes=word_cache_bytes,
        )

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise as the encoder gets it: special tokens set, cut at `max_length`."""
        return [self.frame(ids[: self.max_content]).tolist() for ids in self.content(texts)]

    def content(self, texts: Sequence[str]) -> list[TokenIds]:
        """Tokenise N texts without special tokens, however long. A lone surrogate counts as U+FFFD.

        Returns:
            N arrays [T], int32, not to be written to.
        """
        prepared = [self._prompt + text for text in texts] if self._prompt else texts
        if self.word_cache is not None:
            return self.word_cache.encode(prepared)
        return [np.array(ids, dtype=np.int32) for ids in encode_batch(self._tokenizer, prepared)]

    def frame(self, content: TokenIds | Sequence[int]) -> TokenIds:
        """Set the special tokens around content ids: [T], int32, not to be written to."""
        ids = np.ascontiguousarray(content, dtype=np.int32)
        return np.frombuffer(b"".join((self.prefix, ids.data, self.suffix)), dtype=np.int32)


def _special_tokens(tokenizer: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    """Find which special tokens the post-processor sets before and after a text."""
    content = tokenizer.encode(PROBE, add_special_tokens=False).ids
    framed = tokenizer.encode(PROBE).ids
    for start in range(len(framed) - len(content) + 1):
        if framed[start : start + len(content)] == content:
            return framed[:start], framed[start + len(content) :]
    raise CheckpointError(
        "a tokenizer that sets its special tokens before and after a text",
        f"{framed} for {content}",
        "Choose an encoder of the BERT family.",
    )


def _lower_case_first(tokenizer: tokenizers.Tokenizer) -> None:
    """Set a lower-casing step before the tokenizer's own normalizer, unless that lower-cases already."""
    own = tokenizer.normalizer
    described = json.loads(tokenizer.to_str())["normalizer"] or {}
    steps = described.get("normalizers", [described])
    if any(step.get("type") == "Lowercase" or step.get("lowercase") for step in steps):
        return
    lower: list[Any] = [normalizers.Lowercase()]
    tokenizer.normalizer = normalizers.Sequence(lower if own is None else [*lower, own])


def _word_cache(tokenizer: tokenizers.Tokenizer, max_bytes: int) -> tuple[WordCache | None, str | None]:
    """Set up the cache of words, or say why there is none."""
    if max_bytes == 0:
        return None, "word_cache_bytes is 0"
    if max_bytes < 0:
        raise InputError("word_cache_bytes of 0 or more", str(max_bytes), "Pass 0 for no cache.")
    try:
        return WordCache(tokenizer, max_bytes=max_bytes), None
    except InputError as error:  # nothing is lost but time: the tokenizer does all by itself
        return None, error.received
