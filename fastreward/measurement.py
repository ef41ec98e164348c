"""Which of the installed back-ends is fastest on this machine: what `fastreward doctor --measure` does."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch

from fastreward.backends import (
    CPU_DTYPES,
    CUDA_DTYPES,
    ENCODER_BACKENDS,
    availability,
    native_bf16,
    resolve_device,
)
from fastreward.encoders.checkpoint import DEFAULT_ENCODER
from fastreward.errors import FastRewardError
from fastreward.scorer import Scorer

# Sentences such as explanations are made of; the texts that are timed are some of them in any order.
SENTENCES: Final = (
    "The heart pumps blood through the lungs before it reaches the rest of the body.",
    "Half of the offspring carry the recessive allele, so a quarter of them show the trait.",
    "We dilute the solution ten times, and its concentration falls to 0.05 mol/L.",
    "Since both lines have the same slope, they never meet.",
    "The car brakes at a constant rate, so the distance is the mean speed times the time.",
    "Divide both sides by three and take the square root.",
    "An enzyme lowers the activation energy but does not shift the equilibrium.",
    "Each term is twice the one before, less one: the next is 33.",
    "No reptile is a mammal, and every whale is a mammal; hence no whale is a reptile.",
    "Il pH scende perché l'acido libera ioni idrogeno.",
    "La resistenza totale è minore di ciascuna delle due resistenze in parallelo.",
    "Option B is wrong because it confuses mass with weight.",
)
TEXTS: Final = 96
MAX_SENTENCES: Final = 8
TURNS: Final = 5
# Rounding alone, as in bf16; beyond it an embedding is another one, as in 8 bits, and that is not chosen
# unasked.
MAX_RMS_ERROR: Final = 3e-3


@dataclass(frozen=True)
class Measurement:
    """One back-end in one precision.

    Attributes:
        backend: Its name.
        dtype: The precision's name.
        texts_per_second: The median of turns that all back-ends took in rotation; None if it cannot run.
        max_error: Largest difference of a score from the packed back-end's in fp32.
        rms_error: Root of the mean of its square.
        detail: Why it cannot run, or "".
    """

    backend: str
    dtype: str
    texts_per_second: float | None
    max_error: float | None
    rms_error: float | None
    detail: str


def measure(encoder: str = DEFAULT_ENCODER, device: str | None = None) -> list[Measurement]:
    """Time every usable back-end in every precision it has here, some seconds in all.

    Args:
        encoder: Name or folder of the encoder that will be used.
        device: As in `Scorer`.

    Returns:
        One measurement for each, fastest first; those that cannot run at the end.

    Raises:
        FastRewardError: If the packed back-end, which all are compared with, cannot load the encoder.
    """
    texts, references = _texts()
    exact = Scorer(encoder, backend="packed", device=device, dtype="float32", progress=False)
    expected = exact.score(texts, references)
    scorers: dict[tuple[str, str], Scorer] = {}
    failures: list[Measurement] = []
    for backend, dtype in _candidates(resolve_device(device)):
        state = availability(backend)
        try:
            if not state.usable:
                failures.append(Measurement(backend, dtype, None, None, None, state.detail))
                continue
            scorer = Scorer(
                encoder, backend=backend, device=device, dtype=dtype, reference_cache_bytes=0, progress=False
            )
            scorer.score(texts, references)  # compiles, and warms what is lazy
            scorers[backend, dtype] = scorer
        except (FastRewardError, RuntimeError) as error:  # the latter from a library below: a row too
            failures.append(Measurement(backend, dtype, None, None, None, str(error)))
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in scorers}
    for _ in range(TURNS):
        for key, scorer in scorers.items():
            start = time.perf_counter()
            scorer.embed(texts)
            seconds[key].append(time.perf_counter() - start)
    measured = []
    for (backend, dtype), scorer in scorers.items():
        difference = scorer.score(texts, references) - expected
        measured.append(
            Measurement(
                backend,
                dtype,
                len(texts) / statistics.median(seconds[backend, dtype]),
                float(difference.abs().max()),
                float(difference.square().mean().sqrt()),
                "",
            )
        )
    return sorted(measured, key=lambda m: -(m.texts_per_second or 0.0)) + failures


def recommended(measurements: list[Measurement]) -> Measurement:
    """Return the fastest whose scores differ from fp32 by rounding alone.

    Example:
        >>> fast = Measurement("openvino", "int8", 900.0, 0.05, 0.01, "")
        >>> true = Measurement("openvino", "bfloat16", 480.0, 0.004, 0.001, "")
        >>> recommended([fast, true]).dtype
        'bfloat16'
    """
    return max(
        (m for m in measurements if m.rms_error is not None and m.rms_error <= MAX_RMS_ERROR),
        key=lambda m: m.texts_per_second or 0.0,
    )


def precisions(backend: str, device: torch.device, *, int8: bool) -> list[str]:
    """Name the precisions in which a back-end is worth timing on a device: all that it multiplies natively.

    8-bit floats are left out: they are for few GPUs, and `Scorer` refuses them on all others.

    Args:
        backend: One of `ENCODER_BACKENDS`.
        device: CPU or CUDA.
        int8: Whether 8-bit whole numbers are wanted too.

    Example:
        >>> precisions("onnx", torch.device("cpu"), int8=True)
        ['float32', 'int8']
        >>> precisions("openvino", torch.device("cuda"), int8=True)
        []
    """
    known = (CUDA_DTYPES if device.type == "cuda" else CPU_DTYPES).get(backend, ())
    wanted = {"bfloat16": native_bf16(device), "int8": int8, "float8_e4m3fn": False} if known else {}
    return [name for name in known if wanted.get(name, True)]


def _candidates(device: torch.device) -> Iterator[tuple[str, str]]:
    for backend in ENCODER_BACKENDS:
        for dtype in precisions(backend, device, int8=backend != "openvino"):  # whose wants a calibration
            yield backend, dtype


def _texts() -> tuple[list[str], list[str]]:
    """Texts of one to some sentences, all different, and as many references."""
    shuffled = random.Random(0)
    texts = [
        " ".join([*shuffled.sample(SENTENCES, 1 + number % MAX_SENTENCES), f"({number})"])
        for number in range(2 * TEXTS)
    ]
    return texts[:TEXTS], texts[TEXTS:]
