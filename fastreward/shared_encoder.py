"""What a scorer has of an encoder that others may share: its arguments, its counts, and when it sleeps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakSet

import torch
from torch import Tensor

from fastreward.caller import warn_caller
from fastreward.configuration import ScorerConfig, ScorerStats
from fastreward.engine import Engine, living_engine, shared_engine
from fastreward.errors import InputError
from fastreward.tokenization import Tokenizer


class SharedEncoder:
    """The side of a `Scorer` that computes nothing.

    It pickles to its arguments. A copy takes the engine that the process has for them, or has one built, when
    it is first needed.

    Args:
        config: The arguments.
        engine: Made for them; None for the process's own.
    """

    def __init__(self, config: ScorerConfig, engine: Engine | None) -> None:
        self._config = config
        self._start(engine)

    def attach(self, user: object) -> None:
        """Say that `user`, a reward or a guard, will score with this scorer from now on, as long as it lives.

        With two users or more, of this scorer or of others that share its encoder, vectors of the texts of
        recent calls are kept within `recent_bytes`, so that each text is encoded once a step and not once for
        every user. With one user nothing is kept, and scores come out of the encoder's own pass. `maxsim`
        needs hidden states, which are not kept: it encodes its texts itself.

        Raises:
            InputError: If `user` cannot be hashed and referred to weakly.
        """
        try:
            with self._lock:
                self._users.add(user)
                engine = self._built
        except TypeError as error:
            raise InputError(
                "a user that can be hashed and weakly referred to",
                type(user).__name__,
                "Pass the reward itself.",
            ) from error
        if engine is not None:
            engine.users.add(user)

    def sleep(self) -> None:
        """Give the weights back, for instance while a policy generates beside this scorer.

        Calls in flight are waited for. The weights are dropped and cached vectors wait on the host; what lay
        on a GPU is free for other tensors of this process at once, and for other processes after
        `torch.cuda.empty_cache()`. All scorers that share the encoder sleep. The next call wakes it, which
        `stats` counts; `wake` does so ahead of time.
        """
        engine = living_engine(self._config) if self._built is None else self._built
        if engine is not None:
            engine.sleep()

    def wake(self) -> None:
        """Read the weights from the checkpoint again, if they were given back. Scores are bitwise as before.

        Raises:
            CheckpointError: If the files are no longer there; it stays asleep.
            DeviceMemoryError: If there is no room for the weights and the cached vectors; it stays asleep.
        """
        self._engine.wake()

    @property
    def tokenizer(self) -> Tokenizer:
        """Call it with texts for their token ids as the encoder gets them, special tokens included."""
        return self._engine.tokenizer

    @property
    def stats(self) -> ScorerStats:
        """A snapshot of what was done so far."""
        with self._lock:
            return self._stats

    @property
    def backend(self) -> str:
        """The encoder back-end that runs."""
        return self._engine.backend

    @property
    def device(self) -> torch.device:
        """The device that it runs on; with several, the first, which results come from."""
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        """What matrix products are computed in."""
        return self._engine.dtype

    @property
    def encoder_name(self) -> str:
        """The encoder's name or path as it was given."""
        return self._config.encoder

    @property
    def embedding_dim(self) -> int:
        """D, the width of a vector."""
        return self._engine.hidden_size

    @property
    def max_seq_length(self) -> int:
        """Tokens of a text at most, special tokens included."""
        return self._engine.tokenizer.max_length

    def __getstate__(self) -> ScorerConfig:
        return self._config

    def __setstate__(self, state: ScorerConfig) -> None:
        self._config = state
        self._start(None)

    def _start(self, engine: Engine | None) -> None:
        self._lock = threading.Lock()
        self._stats = ScorerStats()
        self._users: WeakSet[object] = WeakSet()
        self._built = engine

    @property
    def _engine(self) -> Engine:
        if self._built is None:
            engine = shared_engine(self._config)
            with self._lock:  # no user comes in between and is lost
                engine.users.update(self._users)
                self._built = engine
        return self._built

    @contextmanager
    def _call(self) -> Iterator[Engine]:
        engine = self._engine
        with engine.call() as woke:
            if woke:
                self._count(ScorerStats(wakes=1))
            yield engine

    def _counted(self, outcome: tuple[Tensor, ScorerStats]) -> Tensor:
        result, stats = outcome
        self._count(stats)
        return result

    def _count(self, stats: ScorerStats) -> None:
        with self._lock:
            first = not self._stats.truncated_texts and stats.truncated_texts
            self._stats += stats
        if first:
            warn_caller(
                f"Texts longer than {self.max_seq_length} tokens are truncated, {first} of them in this "
                "call. Raise max_seq_length, or pass long_texts='chunk' to read them in windows. This is "
                "said once; `stats.truncated_texts` goes on counting."
            )
