"""sentence-transformers at its best here: attention, batch size and `torch.compile` chosen for the device."""

from __future__ import annotations

import functools
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

import torch
from torch import Tensor

from benchmarks.measure import Clock, Run

T = TypeVar("T")

BATCH_SIZES: Final = (32, 128, 512)
"""Its default, and what suits a large GPU: a few thousand tokens keep one waiting for launches."""

# transformers' names of attention, and the package without which it would be fetched or fail.
ATTENTIONS: Final[Mapping[str, str | None]] = {
    "sdpa": None,
    "flash_attention_2": "flash-attn",
    "flash_attention_4": "flash-attn-4",
}


class TookTooLongError(Exception):
    """Something did not end within its time."""


def attentions(device: torch.device) -> dict[str, str | None]:
    """Attention implementations by name, each with the reason why it cannot be tried here, or None."""
    return {name: _why_not(package, device) for name, package in ATTENTIONS.items()}


def _why_not(package: str | None, device: torch.device) -> str | None:
    if package is None:
        return None
    if device.type != "cuda":
        return f"{package} needs a GPU"
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return f"{package} is not installed"
    return None


class SentenceTransformers:
    """sentence-transformers from a folder, with one attention implementation.

    Args:
        folder: The encoder.
        device: Where it runs.
        dtype: The model's precision.
        attention: One of `ATTENTIONS`.
        max_tokens: Tokens of a text at most; None leaves what the folder says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        device: torch.device,
        dtype: torch.dtype,
        attention: str = "sdpa",
        max_tokens: int | None = None,
    ) -> None:
        from sentence_transformers import SentenceTransformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        logging.set_verbosity_error()  # that a random checkpoint holds no pooler
        kwargs = {"dtype": dtype, "attn_implementation": attention}
        self.model = SentenceTransformer(str(folder), device=str(device), model_kwargs=kwargs)
        self._encoder: Any = self.model[0].auto_model
        self._eager = self._compiled = self._encoder.forward
        if max_tokens is not None:
            self.model.max_seq_length = max_tokens

    def embed(self, texts: Sequence[str], batch_size: int, *, compiled: bool = False) -> Tensor:
        """Embed N texts as unit vectors [N, D], fp32, where the model is.

        One tensor, so that nothing is copied to the host batch by batch.

        Args:
            texts: N texts.
            batch_size: Texts that are encoded together.
            compiled: By what `compile` has made.
        """
        self._encoder.forward = self._compiled if compiled else self._eager
        vectors = self.model.encode(
            list(texts), batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        assert isinstance(vectors, Tensor)
        return torch.nn.functional.normalize(vectors.float(), dim=-1)

    def compile(self, texts: Sequence[str], batch_size: int, limit_s: float) -> None:
        """Compile the encoder's forward for any number of texts and tokens, and encode the texts with it.

        Not by `SentenceTransformer.compile`, which has no effect on `encode` in releases before July 2026.
        On a CPU, where only the suite's own steps are tried, the forward is traced and runs as it is.

        Raises:
            TookTooLongError: If it takes longer than `limit_s` seconds.
            RuntimeError: If nothing was compiled.
        """
        torch.compiler.reset()
        backend = "inductor" if next(self._encoder.parameters()).is_cuda else "eager"
        self._compiled = torch.compile(self._eager, dynamic=True, backend=backend)
        before, start = graphs_compiled(), time.monotonic()
        try:
            with time_limit(limit_s, "compiling"):
                self.embed(texts, batch_size, compiled=True)
        except Exception as error:
            if time.monotonic() - start >= limit_s:  # the compiler has an exception of its own around ours
                raise TookTooLongError(f"compiling took longer than {limit_s:.0f} s") from error
            raise
        if graphs_compiled() == before:
            raise RuntimeError("torch.compile made no graph of the encoder's forward")


def graphs_compiled() -> int:
    """How many graphs `torch.compile` has made in this process."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


def best_of(candidates: Mapping[T, Run], clock: Clock) -> tuple[T, dict[T, float]]:
    """Run each candidate twice, the first time for warmth; return the fastest and the seconds of all."""
    seconds: dict[T, float] = {}
    for name, run in candidates.items():
        clock(run)
        seconds[name] = clock(run)
    return min(seconds, key=lambda name: seconds[name]), seconds


@contextmanager
def time_limit(seconds: float, what: str) -> Iterator[None]:
    """Interrupt the body after so many seconds, at the next step of Python.

    Raises:
        TookTooLongError: If it did not end by itself.
        RuntimeError: If this is not the main thread, which alone can be interrupted.
    """
    if threading.current_thread() is not threading.main_thread():
        raise RuntimeError(f"{what} can be given a limit of time in the main thread alone")

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise TookTooLongError(f"{what} took longer than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@functools.lru_cache(maxsize=4)
def sentence_transformers(
    folder: Path, device: torch.device, dtype: torch.dtype, attention: str, max_tokens: int | None = None
) -> SentenceTransformers:
    """The last ones that were asked for stay: the next lengths of texts take them again."""
    return SentenceTransformers(
        folder, device=device, dtype=dtype, attention=attention, max_tokens=max_tokens
    )
