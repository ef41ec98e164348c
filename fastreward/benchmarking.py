"""Every back-end, precision and size of batches on the user's own texts: what `fastreward bench` does.

First every back-end in every precision that runs here is loaded, held against fp32, and timed in turns:
single texts, groups of 8, and a step of up to 64 × 8 texts. Then the sizes of batches take turns, the fastest
back-end's first. The time is bounded: what it does not reach is left out and named.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import groupby
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.backends import ENCODER_BACKENDS, availability, resolve_device
from fastreward.benchmark_results import JUDGED_ROUNDS, Outcome, Result, Variant, default_variant
from fastreward.benchmark_texts import GROUP, STEP, Texts
from fastreward.encoders.checkpoint import DEFAULT_ENCODER
from fastreward.errors import FastRewardError
from fastreward.measurement import precisions
from fastreward.scorer import Scorer

BATCH_TOKENS: Final[Mapping[str, Sequence[int]]] = {
    "cpu": (1024, 2048, 4096, 8192),
    "cuda": (4096, 8192, 16384, 32768, 65536),
}
"""Sizes of batches that take turns, by device."""

LEAST_ROUNDS: Final = 3
"""Of back-ends; sizes of batches take as many as they need to be judged."""

MOST_ROUNDS: Final = 30
LOADED_BY: Final = 0.45
"""Share of the time in which back-ends are loaded; the first two always are."""

TURNS_BY: Final = 0.75
"""Share of the time after which sizes of batches take over."""

SIZES_BEGUN_BY: Final = 0.92
"""Share of the time after which no other back-end's sizes of batches are begun."""

ROUND_SHARE: Final = 0.08
"""Share of the time that a round of every back-end may take."""

SAMPLE: Final = 64
"""Texts at most that are held against fp32."""


class Run:
    """One run on one device.

    Args:
        texts: What is timed; two at least.
        encoder: Name or folder.
        device: As in `Scorer`; one device.
        seconds: It should take, loading included. A slow encoder's first rounds may take longer.
        int8: Whether to time 8 bits as well. Without a calibration OpenVINO's is made from half of the texts,
            and everything is held against fp32 on the other half.
        calibration: A file, for int8 on OpenVINO.
        scratch: Folder for a calibration that is made here.
        tell: Takes a line about what happens.
    """

    def __init__(
        self,
        texts: Texts,
        *,
        encoder: str = DEFAULT_ENCODER,
        device: str | None = None,
        seconds: float = 20.0,
        int8: bool = False,
        calibration: str | None = None,
        scratch: str | None = None,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._texts, self._encoder, self._device = texts, encoder, resolve_device(device)
        self._seconds, self._int8, self._calibration = seconds, int8, calibration
        self._scratch, self._tell = scratch, tell
        self._begin = time.perf_counter()
        self.outcome = Outcome(self._device, calibration=calibration)
        self._scorers: dict[Variant, Scorer] = {}

    def run(self) -> Outcome:
        """Do all of it; Ctrl-C ends it early, with what there is.

        Raises:
            FastRewardError: If the packed back-end, which all are compared with, cannot load the encoder, or
                no back-end can score the texts.
        """
        try:
            self._load_all()
            self._take_turns()
            for result in sorted(self._timed(), key=lambda r: statistics.median(r.step_s)):
                self._vary_batches(result)
        except KeyboardInterrupt:
            self.outcome.interrupted = True
        self.outcome.seconds = time.perf_counter() - self._begin
        return self.outcome

    def _spent(self) -> float:
        """Of the time, as a share."""
        return (time.perf_counter() - self._begin) / self._seconds

    def _timed(self) -> list[Result]:
        return [result for result in self.outcome.results if result.step_s]

    # ------------------------------------------------------------------ back-ends

    def _load_all(self) -> None:
        """Load and judge all; choose how many texts a step has by how long they take."""
        exact = self._new_scorer(Variant("packed", "float32"))
        speed = self._speed(exact)
        judged = self._judged_texts().first(max(GROUP, min(SAMPLE, int(0.03 * self._seconds * speed))))
        self.outcome.judged = len(judged.completions)
        expected = _vectors(exact, judged)
        speeds = []
        for variant in variants(self._device, int8=self._int8):
            if self._spent() > LOADED_BY and len(self._scorers) > 1:
                self.outcome.left_out.append(str(variant))
                continue
            self._tell(f"{variant}: loading")
            result = Result(variant)
            self.outcome.results.append(result)
            state = availability(variant.backend)
            try:
                if not state.usable:
                    result.detail = state.detail
                    continue
                scorer = exact if variant == Variant("packed", "float32") else self._new_scorer(variant)
                _compare(result, _vectors(scorer, judged), expected, judged.groups)
                speeds.append(self._speed(scorer))
            except (FastRewardError, RuntimeError) as error:  # the latter from a library below: a row too
                result.detail = str(error)
            else:
                self._scorers[variant] = scorer
        if not speeds:
            reasons = "; ".join(f"{result.variant}: {result.detail}" for result in self.outcome.results)
            raise FastRewardError(
                "a back-end that scores the texts", reasons, "`fastreward doctor` says what is missing."
            )
        affordable = ROUND_SHARE * self._seconds / sum(1 / speed for speed in speeds) - GROUP
        count = max(GROUP, min(STEP, int(affordable) // GROUP * GROUP))
        self._step = self._texts.first(count)
        ids = exact.tokenizer(list(self._step.completions))
        self.outcome.step_texts = len(ids)
        self.outcome.mean_tokens = statistics.fmean(map(len, ids))

    def _judged_texts(self) -> Texts:
        """The texts that are compared; where OpenVINO is calibrated here, only those that it did not see."""
        self.outcome.judged_on = "the texts"
        wanted = self._int8 and self._calibration is None and self._scratch is not None
        if not wanted or self._device.type != "cpu" or not availability("openvino").usable:
            return self._texts
        from fastreward.configuration import tokenizer_of
        from fastreward.encoders.checkpoint import load_checkpoint
        from fastreward.encoders.openvino import calibrate_int8

        self._tell("openvino int8: calibrating on half of the texts")
        seen, unseen = self._texts.halves()
        checkpoint = load_checkpoint(self._encoder)
        texts_seen = list(seen.first(128).completions)
        found = calibrate_int8(checkpoint, tokenizer_of(checkpoint)(texts_seen))
        self._calibration = str(found.save(f"{self._scratch}/calibration.npz"))
        self.outcome.judged_on = "the half of the texts that int8 was not calibrated on"
        return unseen

    def _new_scorer(self, variant: Variant) -> Scorer:
        """Load it and have it score some texts, which compiles, and warms what is lazy."""
        options: dict[str, Any] = dict(variant.arguments)
        if (variant.backend, variant.dtype) == ("openvino", "int8"):
            options["calibration"] = self._calibration
        scorer = Scorer(self._encoder, device=self._device, progress=False, **options)
        _score(scorer, self._texts.first(GROUP))
        return scorer

    def _speed(self, scorer: Scorer) -> float:
        """Texts a second, by two dozen of them."""
        texts = self._texts.first(3 * GROUP)
        return len(texts.completions) / _seconds(partial(_score, scorer, texts))

    # ------------------------------------------------------------------ turns

    def _take_turns(self) -> None:
        results = {r.variant: r for r in self.outcome.results if r.variant in self._scorers}
        for round_ in self._rounds(TURNS_BY, LEAST_ROUNDS):
            self._tell(f"round {round_ + 1}: {len(self._scorers)} back-ends and precisions")
            wanted = self._step, self._some(1, round_), self._some(GROUP, round_)
            for variant, result in _rotated(results.items(), round_):
                self._take_turn(self._scorers, variant, result, wanted)

    @staticmethod
    def _take_turn(
        scorers: dict[Variant, Scorer], variant: Variant, result: Result, wanted: Sequence[Texts]
    ) -> None:
        """Time a variant on each of some texts; one that fails takes no further turn."""
        if variant not in scorers:
            return
        try:
            seconds = [_seconds(partial(_score, scorers[variant], texts)) for texts in wanted]
        except (FastRewardError, RuntimeError) as error:  # as in `_load_all`: out of memory, for one
            del scorers[variant]
            result.fail(error)
        else:
            result.add(*seconds)

    def _some(self, count: int, place: int) -> Texts:
        """So many texts that stand beside each other, others in each round."""
        begin = place * count % max(1, len(self._texts.completions) - count + 1)
        return self._texts.rows(range(begin, min(begin + count, len(self._texts.completions))))

    def _rounds(self, until: float, least: int) -> Iterator[int]:
        for round_ in range(MOST_ROUNDS):
            if round_ >= least and self._spent() > until:
                return
            yield round_

    def _vary_batches(self, base: Result) -> None:
        """Time a back-end with other sizes of batches, beside its own choice."""
        tokens = self.outcome.step_texts * self.outcome.mean_tokens
        known = BATCH_TOKENS[self._device.type]
        sizes = [size for i, size in enumerate(known) if not i or known[i - 1] < tokens]  # beyond: all alike
        if tokens <= known[0] or self._spent() > SIZES_BEGUN_BY:
            self.outcome.left_out.append(f"sizes of batches of {base.variant}")
            return
        tried = [Variant(base.variant.backend, base.variant.dtype, size) for size in sizes]
        self._tell(f"{base.variant}: sizes of batches")
        results = {base.variant: Result(base.variant)} | {variant: Result(variant) for variant in tried}
        scorers = {base.variant: self._scorers[base.variant]}
        for variant in tried:
            try:
                scorers[variant] = self._new_scorer(variant)
            except (FastRewardError, RuntimeError) as error:
                results[variant].fail(error)
        self.outcome.batches[base.variant] = list(results.values())
        for round_ in self._rounds(1.0, JUDGED_ROUNDS):
            for variant, result in _rotated(results.items(), round_):
                self._take_turn(scorers, variant, result, (self._step,))


def variants(device: torch.device, *, int8: bool) -> list[Variant]:
    """What may run on a device, what `Scorer()` chooses first.

    Example:
        >>> [str(variant) for variant in variants(torch.device("cpu"), int8=True)][-1]
        'onnx int8'
    """
    found = [
        Variant(backend, dtype)
        for backend in ENCODER_BACKENDS
        for dtype in precisions(backend, device, int8=int8)
    ]
    own = default_variant(device)
    return sorted(found, key=lambda variant: variant != own)


# ---------------------------------------------------------------------- scores


def spearman_within(scores: Tensor, expected: Tensor, groups: Sequence[int]) -> float | None:
    """Rank correlation of two sets of scores within groups of 3 or more, its mean over groups.

    Ties share their mean rank; a group in which one side has a single value says nothing and is left out.

    Args:
        scores: [N].
        expected: [N].
        groups: N numbers, those of a group beside each other; none for no groups.

    Example:
        >>> scores = torch.tensor([0.1, 0.2, 0.3, 0.9, 0.8, 0.7])
        >>> spearman_within(scores, torch.tensor([1.0, 2, 3, 1, 2, 3]), [0, 0, 0, 1, 1, 1])
        0.0
    """
    found = []
    for _, members in groupby(range(len(groups)), key=lambda row: groups[row]):
        rows = list(members)
        ours, theirs = average_ranks(scores[rows]), average_ranks(expected[rows])
        if len(rows) > 2 and ours.std() and theirs.std():
            found.append(float(np.corrcoef(ours, theirs)[0, 1]))
    return statistics.fmean(found) if found else None


def average_ranks(values: Tensor) -> NDArray[np.float64]:
    """Ranks of [N] values, [N], from 1; equal ones share the mean of theirs.

    Example:
        >>> average_ranks(torch.tensor([0.3, 0.1, 0.3])).tolist()
        [2.5, 1.0, 2.5]
    """
    _, place, counts = np.unique(values.double().cpu().numpy(), return_inverse=True, return_counts=True)
    last = counts.cumsum().astype(np.float64)
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[place]
    return ranks


def _vectors(scorer: Scorer, texts: Texts) -> tuple[Tensor, Tensor]:
    """Unit vectors of the texts and of their references, [N, D] each."""
    known = list(dict.fromkeys(texts.references))
    vectors = scorer.embed([*texts.completions, *known])
    ours, references = vectors[: len(texts.completions)], vectors[len(texts.completions) :]
    return ours, references[[known.index(text) for text in texts.references]]


def _compare(
    result: Result, found: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor], groups: Sequence[int]
) -> None:
    scores, right = ((ours.double() * theirs.double()).sum(dim=1) for ours, theirs in (found, expected))
    cosines = (torch.cat(found).double() * torch.cat(expected).double()).sum(dim=1)
    result.largest_1_minus_cosine = max(0.0, float(1.0 - cosines.min()))
    result.rms_error = float((scores - right).square().mean().sqrt())
    result.spearman = spearman_within(scores, right, groups)


def _score(scorer: Scorer, texts: Texts) -> object:
    return scorer.score(list(texts.completions), list(texts.references))


def _seconds(run: Callable[[], object]) -> float:
    """Of a call whose result is on the host when it returns."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _rotated(items: Any, by: int) -> list[Any]:
    """Another one is first in each round."""
    listed = list(items)
    return listed[by % len(listed) :] + listed[: by % len(listed)] if listed else []
