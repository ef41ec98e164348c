"""Text → token ids, exactly as the checkpoint's tokenizer gives them, without padding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers

from fastreward.errors import CheckpointError, InputError

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

    Raises:
        CheckpointError: If the special tokens are not a fixed prefix and suffix of a text.
        InputError: If they leave no room for a text.

    Example:
        >>> tokenizer = Tokenizer.from_file(folder / "tokenizer.json", max_length=256)  # doctest: +SKIP
        >>> tokenizer(["a cat"])  # doctest: +SKIP
        [[101, 1037, 4937, 102]]
    """

    def __init__(
        self, tokenizer: tokenizers.Tokenizer, *, max_length: int, prompt: str = "", lowercase: bool = False
    ) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        if lowercase:
            _lower_case_first(tokenizer)
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._prefix, self._suffix = _special_tokens(tokenizer)
        self.max_length = max_length
        self.max_content = max_length - len(self._prefix) - len(self._suffix)
        if self.max_content < 1:
            raise InputError(
                f"room for text beside {len(self._prefix) + len(self._suffix)} special tokens",
                f"a maximum length of {max_length} tokens",
                "Pass a larger max_seq_length.",
            )

    @property
    def vocab_size(self) -> int:
        """Token ids are below this."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1

    @classmethod
    def from_file(
        cls, path: Path, *, max_length: int, prompt: str = "", lowercase: bool = False
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
        return cls(tokenizer, max_length=max_length, prompt=prompt, lowercase=lowercase)

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise as the encoder gets it: special tokens set, cut at `max_length`."""
        return [self.frame(ids[: self.max_content]) for ids in self.content(texts)]

    def content(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokenise without special tokens, however long. A lone surrogate counts as U+FFFD."""
        prepared = [self._prompt + text for text in texts] if self._prompt else list(texts)
        try:
            encodings = self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)
        except (TypeError, UnicodeEncodeError):  # a str that is no valid Unicode cannot cross into Rust
            prepared = [_valid_unicode(text) for text in prepared]
            encodings = self._tokenizer.encode_batch_fast(prepared, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def frame(self, content: Sequence[int]) -> list[int]:
        """Set the special tokens around content ids."""
        return [*self._prefix, *content, *self._suffix]


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


def _valid_unicode(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
