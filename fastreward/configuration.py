"""The arguments of a `Scorer`, what they may be, and what a scorer counts."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from fastreward.encoders.checkpoint import Checkpoint
from fastreward.errors import CheckpointError, InputError
from fastreward.ops.pooled_cosine import POOLINGS, Pooling
from fastreward.tokenization import Tokenizer

LongTexts = Literal["truncate", "chunk"]


@dataclass(frozen=True)
class ScorerConfig:
    """The arguments of a `Scorer`: what it pickles to, and the key by which a process shares engines."""

    encoder: str
    backend: str | None
    device: str | None
    dtype: str | None
    revision: str | None
    pooling: Pooling | None
    num_layers: int | None
    attention: str | None
    max_seq_length: int | None
    long_texts: LongTexts
    prompt: str | None
    prompt_name: str | None
    max_batch_tokens: int | None
    reference_cache_bytes: int
    word_cache_bytes: int
    batch_invariant: bool
    progress: bool | None


@dataclass(frozen=True)
class ScorerStats:
    """What a scorer has done since it was made; subtract two snapshots to see one stretch of work.

    Attributes:
        texts: Texts handed to `score` and `embed`, references included.
        unique_texts: Distinct completions and distinct references of each call, summed over the calls.
        encoded_texts: Texts that went through the encoder.
        tokens: Tokens encoded, special tokens included.
        truncated_texts: Encoded texts that were longer than the encoder's limit and were cut.
        reference_hits: Distinct references of a call whose vectors were known.
        reference_misses: Those that had to be encoded.
    """

    texts: int = 0
    unique_texts: int = 0
    encoded_texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    reference_hits: int = 0
    reference_misses: int = 0

    def __add__(self, other: ScorerStats) -> ScorerStats:
        return ScorerStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: ScorerStats) -> ScorerStats:
        return ScorerStats(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


def check_config(config: ScorerConfig) -> None:
    """Check the arguments that need no checkpoint to be judged.

    Raises:
        InputError: For the first that is not what it should be.
    """
    if config.long_texts not in ("truncate", "chunk"):
        raise InputError("long_texts of 'truncate' or 'chunk'", repr(config.long_texts), "Correct the name.")
    if config.pooling is not None and config.pooling not in POOLINGS:
        raise InputError(f"pooling among {', '.join(POOLINGS)}", repr(config.pooling), "Correct the name.")
    for name in ("num_layers", "max_seq_length", "max_batch_tokens"):
        value = getattr(config, name)
        if value is not None and (not _is_whole(value) or value < 1):
            raise InputError(f"{name} of 1 or more", repr(value), "Pass a whole number, or None.")
    for name in ("reference_cache_bytes", "word_cache_bytes"):
        value = getattr(config, name)
        if not _is_whole(value) or value < 0:
            raise InputError(f"{name} of 0 or more", repr(value), "Pass a whole number of bytes.")
    if config.prompt is not None and config.prompt_name is not None:
        raise InputError("prompt or prompt_name", "both", "Pass one of them.")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def check_vocabulary(tokenizer: Tokenizer, checkpoint: Checkpoint) -> int:
    """Return the tokenizer's number of tokens.

    Raises:
        CheckpointError: If the model has embeddings for fewer.
    """
    vocab_size = tokenizer.vocab_size
    if vocab_size > checkpoint.architecture.vocab_size:
        raise CheckpointError(
            f"a tokenizer of at most {checkpoint.architecture.vocab_size} tokens, the model's vocab_size",
            f"{vocab_size} in {checkpoint.tokenizer_file}",
            "Check that tokenizer.json and the weights belong together.",
        )
    return vocab_size


def max_seq_length(config: ScorerConfig, checkpoint: Checkpoint) -> int:
    """Tokens of a text at most: what was asked for, or the checkpoint's own.

    Raises:
        InputError: If the model has no positions for as many.
    """
    if config.max_seq_length is None:
        return checkpoint.max_seq_length
    if config.max_seq_length > checkpoint.architecture.max_positions:
        raise InputError(
            f"max_seq_length of {checkpoint.architecture.max_positions} at most, the model's positions",
            str(config.max_seq_length),
            "Pass less, or long_texts='chunk' to read a longer text in windows.",
        )
    return config.max_seq_length


def prompt_text(config: ScorerConfig, checkpoint: Checkpoint) -> str:
    """What is set before every text: as asked for, or the checkpoint's default.

    Raises:
        InputError: If the checkpoint knows no prompt of that name, or cannot leave one out of its pooling.
    """
    prompt = checkpoint.default_prompt if config.prompt is None else config.prompt
    if config.prompt_name is not None:
        if config.prompt_name not in checkpoint.prompts:
            known = ", ".join(checkpoint.prompts) or "none, for the checkpoint names no prompts"
            raise InputError(
                f"a prompt_name among {known}",
                repr(config.prompt_name),
                "Correct the name, or pass prompt='...'.",
            )
        prompt = checkpoint.prompts[config.prompt_name]
    if prompt and not checkpoint.pools_prompt:
        raise InputError(
            "no prompt with an encoder that leaves the prompt's tokens out of its pooling",
            repr(prompt),
            "Pass prompt='', or choose another encoder.",
        )
    return prompt
