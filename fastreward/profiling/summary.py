"""From ledgers to a report."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from fastreward.profiling.accounting import Key, account
from fastreward.profiling.files import Recording
from fastreward.profiling.ledger import Ledger, Tally, Totals
from fastreward.profiling.report import PhaseReport, Report, RewardReport, StepReport, quantile
from fastreward.profiling.spans import Process, Span, Step


@dataclass(frozen=True)
class Rank:
    """One rank at the end of what is reported.

    Attributes:
        rank: Its number.
        ledger: What is not settled; it will be.
        until_ns: Until when there is something to report.
    """

    rank: int
    ledger: Ledger
    until_ns: int


@dataclass(frozen=True)
class Own:
    """What timelines say of themselves.

    Attributes:
        overhead_s: Time they took.
        recorded: Spans that began.
        failures: Their errors.
    """

    overhead_s: float
    recorded: int
    failures: int


def summarise(ranks: Sequence[Rank], totals: Totals, processes: tuple[Process, ...], own: Own) -> Report:
    """Settle what is left and report everything.

    Args:
        ranks: The ranks, whose ledgers add to `totals`.
        totals: What is settled so far.
        processes: Those that recorded.
        own: Of the timelines.
    """
    origin = min(process.began_ns for process in processes)
    spans: list[Span] = []
    kept: list[StepReport] = []
    began_s: dict[int, float] = {}
    running_steps = 0
    for rank in ranks:
        spans += rank.ledger.spans
        stretches = rank.ledger.settle(rank.until_ns)
        kept += [StepReport.of(one, rank.rank, origin) for one in stretches if one.step is not None]
        running_steps += len(rank.ledger.steps)
        if rank.ledger.first_step_ns is not None:
            began_s[rank.rank] = (rank.ledger.first_step_ns - origin) / 1e9
    steps = totals.steps + running_steps
    wall_ns = totals.in_steps_ns if steps else totals.outside_ns
    rows = [_row(key, tally, wall_ns, bool(steps)) for key, tally in totals.tallies.items()]
    rows.sort(key=lambda row: -row.total_s)
    return Report(
        steps=steps,
        wall_s=wall_ns / 1e9,
        phases=tuple(row for row in rows if not isinstance(row, RewardReport)),
        rewards=tuple(row for row in rows if isinstance(row, RewardReport)),
        reward_exposed_s=totals.reward_exposed_ns / 1e9,
        reward_hidden_s=totals.reward_hidden_ns / 1e9,
        tail_median_s=quantile(totals.tails_s, 0.5),
        tail_p90_s=quantile(totals.tails_s, 0.9),
        tail_total_s=totals.tail_ns / 1e9,
        tail_ratio=totals.tail_ns / totals.tail_steps_ns if totals.tail_steps_ns else None,
        most_in_flight=totals.in_flight,
        idle_s=(totals.idle_in_steps_ns if steps else totals.idle_outside_ns) / 1e9,
        overhead_s=own.overhead_s,
        recorded=own.recorded,
        failures=own.failures,
        processes=processes,
        kept_steps=tuple(kept),
        began_s=began_s,
        spans=tuple(spans),
        until_ns=max((rank.until_ns for rank in ranks), default=origin),
    )


def latest_step(
    steps: Sequence[Step],
    spans: Iterable[Span],
    process: Process,
    generation: Collection[str],
    now_ns: int,
) -> StepReport | None:
    """Report on the last of some steps, up to now if it runs; ``None`` of none.

    Args:
        steps: In the order in which they began.
        spans: Of the same process.
        process: The process.
        generation: Names of the phases that generate.
        now_ns: The time.
    """
    if not steps:
        return None
    step = steps[-1]
    end_ns = now_ns if step.end_ns is None else step.end_ns
    within = [span for span in spans if span.end_ns is None or span.end_ns > step.begin_ns]
    stretch = account(step.begin_ns, end_ns, within, generation, step)
    return StepReport.of(stretch, process.rank, process.began_ns)


def merge_recordings(
    recordings: Sequence[Recording], generation: Collection[str], keep_steps: int | None
) -> Report:
    """Report on the processes of a run.

    Args:
        recordings: One at least, by rank; a process that works for a rank, such as one that computes rewards,
            has its number.
        generation: Names of the phases that generate.
        keep_steps: Steps of each rank that are kept one by one; ``None`` for all.
    """
    totals = Totals()
    ranks = []
    for index, recording in enumerate(recordings):
        for span in recording.spans:
            span.process = index
    for number in sorted({one.process.rank for one in recordings}):
        group = [one for one in recordings if one.process.rank == number]
        ledger = Ledger(generation, totals)
        until = max(one.until_ns for one in group)
        for one in group:
            if one.until_ns < until:
                _end_with(one)
        for step in _steps(group):
            ledger.add_step(step)
        for span in sorted(_spans(group), key=lambda span: span.begin_ns):
            ledger.add_span(span)
        if keep_steps is not None and (settled := ledger.when_few(keep_steps, len(ledger))) is not None:
            ledger.settle(settled)
        ranks.append(Rank(number, ledger, ledger.last_ns(until)))
    own = Own(
        sum(one.overhead_s for one in recordings),
        sum(one.recorded for one in recordings),
        sum(one.failures + one.broken_lines for one in recordings),
    )
    return summarise(ranks, totals, tuple(one.process for one in recordings), own)


def _end_with(recording: Recording) -> None:
    """End what a process was at when it last wrote: it hides nothing of what came later."""
    both: list[Span | Step] = [*recording.spans, *recording.steps]
    for one in both:
        if one.end_ns is None:
            one.end_ns = max(one.begin_ns, recording.until_ns)


def _steps(group: Iterable[Recording]) -> list[Step]:
    """The steps of a rank, from one process at a time.

    Of processes that mark steps at once, the one with the most is the trainer; one that runs before or after
    it trains as well, as another stage or a further attempt.
    """
    chosen: list[Sequence[Step]] = []
    for steps in sorted((one.steps for one in group if one.steps), key=len, reverse=True):
        if all(_is_before(steps, others) or _is_before(others, steps) for others in chosen):
            chosen.append(steps)
    return [step for steps in sorted(chosen, key=lambda steps: steps[0].begin_ns) for step in steps]


def _is_before(steps: Sequence[Step], others: Sequence[Step]) -> bool:
    end_ns = steps[-1].end_ns
    return end_ns is not None and end_ns <= others[0].begin_ns


def _spans(recordings: Iterable[Recording]) -> list[Span]:
    return [span for recording in recordings for span in recording.spans]


def _row(key: Key, tally: Tally, wall_ns: int, in_steps: bool) -> PhaseReport:
    kind, name = key
    counted_ns = tally.wall_in_steps_ns if in_steps else tally.wall_ns
    row: dict[str, Any] = {
        "name": name,
        "kind": kind,
        "count": tally.begun,
        "running": tally.begun - tally.ended,
        "median_s": quantile(tally.durations_s, 0.5),
        "p90_s": quantile(tally.durations_s, 0.9),
        "total_s": tally.wall_ns / 1e9,
        "share": counted_ns / wall_ns if wall_ns else 0.0,
        "exposed_s": (tally.wall_ns - tally.hidden_ns) / 1e9,
        "hidden_s": tally.hidden_ns / 1e9,
        "device_s": tally.device_s if tally.device_calls else None,
        "drain_s": tally.drain_s if tally.drain_calls else None,
    }
    return _reward_row(row, tally) if kind == "reward" else PhaseReport(**row)


def _reward_row(row: dict[str, Any], tally: Tally) -> RewardReport:
    counts = tally.counts
    scorer = counts.scorer
    return RewardReport(
        **row,
        raised=tally.raised,
        cancelled=tally.cancelled,
        hung=row["running"],
        texts=counts.texts,
        unique_texts=counts.unique_texts,
        none=counts.none,
        most_in_flight=tally.in_flight,
        tokens=scorer.get("tokens"),
        encoded_texts=scorer.get("encoded_texts"),
        cache_hits=scorer.get("reference_hits", 0) + scorer.get("recent_hits", 0) if scorer else None,
        cache_misses=scorer.get("reference_misses"),
        stages=dict(counts.stages),
    )
