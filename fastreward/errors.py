"""Exceptions, each with a message of three parts: what was expected, what came, how to mend it."""

from __future__ import annotations


class FastRewardError(Exception):
    """Base of every exception that fastreward raises on purpose.

    Args:
        expected: What was expected, as a noun phrase ("one reference per completion").
        received: What came instead ("3 completions and 2 references").
        remedy: One sentence that says how to mend it.

    Example:
        >>> str(InputError("a positive batch size", "0", "Pass max_batch_tokens=1 or more."))
        'Expected a positive batch size, got 0. Pass max_batch_tokens=1 or more.'
    """

    def __init__(self, expected: str, received: str, remedy: str) -> None:
        super().__init__(expected, received, remedy)
        self.expected = expected
        self.received = received
        self.remedy = remedy

    def __str__(self) -> str:
        return f"Expected {self.expected}, got {self.received}. {self.remedy}"


class InputError(FastRewardError, ValueError):
    """An argument or a piece of data is not what the call can work with."""


class BackendUnavailableError(FastRewardError, RuntimeError):
    """A back-end or device was asked for by name and cannot run here."""


class CheckpointError(FastRewardError, RuntimeError):
    """An encoder's files are missing, damaged or contradict each other."""


class UnsupportedArchitectureError(CheckpointError):
    """The checkpoint is sound, but this version has no encoder for its architecture."""


class NonFiniteError(FastRewardError, ArithmeticError):
    """An encoder produced NaN or infinity where a score must be a finite number."""
