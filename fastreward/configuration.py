"""The arguments of a `Scorer`, what they may be, and what a scorer counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

import torch

from fastreward.backends import resolve_encoder
from fastreward.encoders.checkpoint import Checkpoint
from fastreward.errors import CheckpointError, InputError
from fastreward.ops.pooled_cosine import POOLINGS, Pooling
from fastreward.tokenization import Tokenizer
from fastreward.word_cache import WORD_CACHE_BYTES

LongTexts = Literal["truncate", "chunk"]


@dataclass(frozen=True)
class ScorerConfig:
    """The arguments of a `Scorer`: what it pickles to, and the key by which a process shares engines."""

    encoder: str
    backend: str | None
    device: str | tuple[str, ...] | None
    dtype: str | None
    revision: str | None
    pooling: Pooling | None
    num_layers: int | None
    attention: str | None
    calibration: str | None
    max_seq_length: int | None
    long_texts: LongTexts
    prompt: str | None
    prompt_name: str | None
    max_batch_tokens: int | None
    max_bytes: int | None
    reference_cache_bytes: int
    recent_bytes: int
    word_cache_bytes: int
    batch_invariant: bool
    cuda_graphs: bool
    own_stream: bool
    progress: bool | None

    @property
    def devices(self) -> tuple[str | None, ...]:
        """Where replicas of the encoder are wanted, one or more."""
        return self.device if isinstance(self.device, tuple) else (self.device,)


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
        recent_hits: Distinct texts of a call whose vectors were known from another call, of this scorer or of
            one that shares its engine.
        wakes: Calls that found the encoder asleep and woke it.
    """

    texts: int = 0
    unique_texts: int = 0
    encoded_texts: int = 0
    tokens: int = 0
    truncated_texts: int = 0
    reference_hits: int = 0
    reference_misses: int = 0
    recent_hits: int = 0
    wakes: int = 0

    def __add__(self, other: ScorerStats) -> ScorerStats:
        return ScorerStats(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __sub__(self, other: ScorerStats) -> ScorerStats:
        return ScorerStats(*(getattr(self, f.name) - getattr(other, f.name) for f in fields(self)))


def check_config(config: ScorerConfig) -> None:
    """Check the arguments that need no checkpoint to be judged.

    Raises:
        InputError: For the first that is not what it should be.
    """
    if not config.encoder.strip():
        raise InputError(
            "an encoder's folder or its name on the hub", repr(config.encoder), "Pass '.' for this folder."
        )
    if not config.devices:
        raise InputError("one device at least", "an empty list", "Pass device=None to choose.")
    if config.long_texts not in ("truncate", "chunk"):
        raise InputError("long_texts of 'truncate' or 'chunk'", repr(config.long_texts), "Correct the name.")
    if config.pooling is not None and config.pooling not in POOLINGS:
        raise InputError(f"pooling among {', '.join(POOLINGS)}", repr(config.pooling), "Correct the name.")
    for name in ("num_layers", "max_seq_length", "max_batch_tokens", "max_bytes"):
        value = getattr(config, name)
        if value is not None and (not _is_whole(value) or value < 1):
            raise InputError(f"{name} of 1 or more", repr(value), "Pass a whole number, or None.")
    for name in ("reference_cache_bytes", "recent_bytes", "word_cache_bytes"):
        value = getattr(config, name)
        if not _is_whole(value) or value < 0:
            raise InputError(f"{name} of 0 or more", repr(value), "Pass a whole number of bytes.")
    if config.prompt is not None and config.prompt_name is not None:
        raise InputError("prompt or prompt_name", "both", "Pass one of them.")


def check_devices(config: ScorerConfig, devices: Sequence[torch.device], backend: str) -> None:
    """Check the arguments that depend on where the encoder runs, and on what.

    Raises:
        InputError: For the first that cannot be had there.
    """
    kinds = sorted({device.type for device in devices})
    if len(kinds) > 1:
        raise InputError(
            "replicas on devices of one type", " and ".join(kinds), "Make a Scorer for each type."
        )
    on_cuda = kinds == ["cuda"]
    if config.own_stream and not on_cuda:
        raise InputError("a CUDA device with own_stream", kinds[0], "Pass own_stream=False.")
    if config.cuda_graphs and not (on_cuda and backend == "packed"):
        raise InputError(
            "a CUDA device and the packed encoder with cuda_graphs",
            f"{kinds[0]} and {backend}",
            "Pass cuda_graphs=False.",
        )
    if config.max_bytes is not None and backend != "packed":
        raise InputError(
            "the packed encoder with max_bytes, the one whose memory is known",
            backend,
            "Pass backend='packed', or max_bytes=None.",
        )


def encoder_backend(config: ScorerConfig, device: torch.device) -> str:
    """Choose the encoder's back-end by what is asked for; see `resolve_encoder`.

    Raises:
        InputError: If what is asked for excludes each other.
        BackendUnavailableError: If it cannot run on `device`.
    """
    return resolve_encoder(
        config.backend,
        device,
        config.dtype,
        packed_because=packed_option(config),
        calibrated=config.calibration is not None,
    )


def packed_option(config: ScorerConfig) -> str | None:
    """Name an option that is asked for and that the packed encoder alone has; None where there is none."""
    asked = {
        "attention": config.attention is not None,
        "batch_invariant": config.batch_invariant,
        "cuda_graphs": config.cuda_graphs,
        "max_bytes": config.max_bytes is not None,
    }
    return next((name for name, is_asked in asked.items() if is_asked), None)


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


def tokenizer_of(
    checkpoint: Checkpoint,
    *,
    max_length: int | None = None,
    prompt: str | None = None,
    word_cache_bytes: int = WORD_CACHE_BYTES,
) -> Tokenizer:
    """Load the tokenizer of a checkpoint so that it gives the ids that a scorer's encoder gets.

    Args:
        checkpoint: Whose; texts are lower-cased where it says so.
        max_length: Tokens of a text at most; None for the checkpoint's own number.
        prompt: What is set before every text; None for the checkpoint's default, or for nothing where its
            encoder leaves a prompt out of its pooling, for then `Scorer` takes none.
        word_cache_bytes: As in `Scorer`.

    Raises:
        CheckpointError: If the file is missing or damaged.
        InputError: If the special tokens leave no room for a text, or `word_cache_bytes` is negative.

    Example:
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> tokenizer_of(load_checkpoint("sentence-transformers/all-MiniLM-L6-v2"))(["A cat"])
        [[101, 1037, 4937, 102]]
    """
    default = checkpoint.default_prompt if checkpoint.pools_prompt else ""
    return Tokenizer.from_file(
        checkpoint.tokenizer_file,
        max_length=checkpoint.max_seq_length if max_length is None else max_length,
        prompt=default if prompt is None else prompt,
        lowercase=checkpoint.lowercase,
        word_cache_bytes=word_cache_bytes,
    )
