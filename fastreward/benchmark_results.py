"""What `fastreward bench` found, and what follows from it: the arguments of a `Scorer`."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from fastreward.backends import dtype_name, resolve_dtype, resolve_encoder
from fastreward.measurement import MAX_RMS_ERROR

JUDGED_ROUNDS: Final = 5
"""Rounds in which a size of batches must have been timed to be recommended."""

CLEAR: Final = 1.02
"""What it must gain in nine rounds of ten, of fewer in all: there are several sizes, and one may be lucky."""


@dataclass(frozen=True)
class Variant:
    """Arguments of a `Scorer`.

    Attributes:
        backend: By name.
        dtype: By name.
        max_batch_tokens: None leaves it to the scorer.
    """

    backend: str
    dtype: str
    max_batch_tokens: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """By name, without what is left to the scorer."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def __str__(self) -> str:
        size = "" if self.max_batch_tokens is None else f", {self.max_batch_tokens} tokens"
        return f"{self.backend} {self.dtype}{size}"


@dataclass
class Result:
    """What a variant took, or why it was not timed.

    Attributes:
        variant: The arguments.
        step_s: Seconds of a whole step, round by round.
        single_s: Seconds of one text.
        group_s: Seconds of `GROUP` texts.
        largest_1_minus_cosine: Of a text's vector with its fp32 vector; None where nothing was compared.
        rms_error: Of scores, from those in fp32.
        spearman: Rank correlation of scores with those in fp32, the mean over groups; None without groups.
        detail: Why it was not timed, or "".
    """

    variant: Variant
    step_s: list[float] = field(default_factory=list)
    single_s: list[float] = field(default_factory=list)
    group_s: list[float] = field(default_factory=list)
    largest_1_minus_cosine: float | None = None
    rms_error: float | None = None
    spearman: float | None = None
    detail: str = ""

    def add(self, step_s: float, *calls_s: float) -> None:
        """Add a round: a step and, where they were timed, one text and `GROUP` texts."""
        for known, seconds in zip((self.single_s, self.group_s), calls_s, strict=False):
            known.append(seconds)
        self.step_s.append(step_s)  # last: Ctrl-C may come in between, and what has steps has the others too

    def fail(self, error: Exception) -> None:
        """Say why it is not timed; what it took before is forgotten, for it is none to recommend."""
        self.detail = str(error)
        for known in (self.step_s, self.single_s, self.group_s):
            known.clear()

    def texts_per_s(self, texts: int, quantile: float = 0.5) -> float | None:
        """Texts a second of a whole step, at a quantile of its seconds; None if no step was timed."""
        return texts / float(np.quantile(self.step_s, quantile)) if self.step_s else None


@dataclass
class Outcome:
    """What a run came to, whole or interrupted.

    Attributes:
        device: Where it ran.
        step_texts: Texts of a step.
        mean_tokens: Of a text, special tokens included.
        judged: Texts that were held against fp32.
        judged_on: Which of the texts these are.
        results: One for each back-end and precision.
        batches: By back-end and precision, the sizes of batches that took turns, the default first.
        calibration: The user's file for int8 on OpenVINO, or None.
        left_out: What the time did not reach.
        interrupted: Whether it was.
        seconds: It took.
    """

    device: torch.device
    step_texts: int = 0
    mean_tokens: float = 0.0
    judged: int = 0
    judged_on: str = ""
    results: list[Result] = field(default_factory=list)
    batches: dict[Variant, list[Result]] = field(default_factory=dict)
    calibration: str | None = None
    left_out: list[str] = field(default_factory=list)
    interrupted: bool = False
    seconds: float = 0.0


def default_variant(device: torch.device) -> Variant:
    """What `Scorer()` chooses on a device."""
    backend = resolve_encoder(None, device)
    return Variant(backend, dtype_name(resolve_dtype(None, device, backend)))


def is_faithful(result: Result) -> bool:
    """Whether scores differ from fp32 by rounding alone; in 8 bits an embedding is another one."""
    small = result.rms_error is not None and result.rms_error <= MAX_RMS_ERROR
    return small and result.variant.dtype != "int8"


def recommended(outcome: Outcome) -> Variant | None:
    """Return what to pass to `Scorer`: the fastest whose scores differ from fp32 by rounding alone.

    A size of batches is named where it is faster than the back-end's own by 2 % in nine rounds of ten.

    Example:
        >>> fast = Result(Variant("openvino", "int8"), step_s=[0.5], rms_error=0.01)
        >>> true = Result(Variant("openvino", "bfloat16"), step_s=[1.0], rms_error=0.001)
        >>> print(recommended(Outcome(torch.device("cpu"), results=[fast, true])))
        openvino bfloat16
    """
    timed = [result for result in outcome.results if result.step_s and is_faithful(result)]
    if not timed:
        return None
    best = min(timed, key=lambda result: statistics.median(result.step_s)).variant
    own, *others = outcome.batches.get(best, [Result(best)])
    chosen, gained = best, CLEAR
    for other in others:
        # An interrupted round has one of the two alone.
        ratios = sorted(mine / theirs for mine, theirs in zip(own.step_s, other.step_s, strict=False))
        if len(ratios) >= JUDGED_ROUNDS and (gain := ratios[len(ratios) // 10]) > gained:
            chosen, gained = other.variant, gain
    return chosen


def advice(outcome: Outcome, encoder: str | None) -> list[str]:
    """Say in sentences what to pass to `Scorer`, and what is faster at which price."""
    best = recommended(outcome)
    if best is None:
        return ["Nothing was timed: there is nothing to recommend."]
    timed = {result.variant: result for result in outcome.results if result.step_s}
    texts = outcome.step_texts
    base = next(v for v in timed if (v.backend, v.dtype) == (best.backend, best.dtype))
    reached = next((r for r in outcome.batches.get(base, ()) if r.variant == best and r.step_s), timed[base])
    speed = reached.texts_per_s(texts) or 0.0
    is_default = best == default_variant(outcome.device)
    said = [
        f"Take {call(best, encoder)}: {speed:,.0f} texts a second, the fastest here whose scores differ from "
        f"fp32 by rounding alone{'; Scorer chooses the same by itself' if is_default else ''}."
    ]
    exact = {variant: result for variant, result in timed.items() if is_faithful(result)}
    quick = min(exact, key=lambda variant: statistics.median(exact[variant].group_s))
    if quick != base:
        ratio = statistics.median(timed[base].group_s) / statistics.median(timed[quick].group_s)
        if ratio > 1.1:
            said.append(f"For calls of a few texts, {call(quick, encoder)} is {ratio:.2f} times as fast.")
    for variant, result in timed.items():
        gain = (result.texts_per_s(texts) or 0.0) / speed
        if variant not in exact and gain > 1.0:
            ranks = "" if result.spearman is None else f", Spearman within groups {result.spearman:.4f}"
            made = call(variant, encoder, outcome.calibration)
            price = f"but its scores are others: RMS error {result.rms_error:.1e}{ranks}"
            said.append(f"{made} is {gain:.2f} times as fast, {price}.")
    return said


def call(variant: Variant, encoder: str | None, calibration: str | None = None) -> str:
    """The constructor's call, to copy; a calibration of one's own is what `fastreward calibrate` writes."""
    arguments = [] if encoder is None else [json.dumps(encoder)]
    arguments += [f"{name}={json.dumps(value)}" for name, value in variant.arguments.items()]
    if (variant.backend, variant.dtype) == ("openvino", "int8"):
        arguments.append(f"calibration={json.dumps(calibration or 'FILE.npz')}")
    return f"Scorer({', '.join(arguments)})"
