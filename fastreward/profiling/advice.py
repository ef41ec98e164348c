"""What holds a step back, in plain sentences: rules over a report, each with its bound."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from fastreward.profiling.parts import EXPOSED, IDLE, Part, RankTime, rank_times
from fastreward.profiling.report import Report, RewardReport
from fastreward.profiling.wording import counted, listed, percent, time_text

MOST_SENTENCES: Final = 8
"""More than these nobody reads; the rules stand in the order of what they are worth."""

GAIN: Final = 0.05
"""Part of a step from which time is worth a change."""

NOTHING: Final = 0.005
"""Part of a step below which time cannot be told from noise."""

STAGE: Final = 0.3
"""Part of a reward's time from which one stage decides what it costs."""

REPEATED: Final = 0.3
"""Part of a reward's texts that occurred in the same call before."""

UNEVEN: Final = 3.0
"""How many times the median the slow calls take, or one rank the others' time."""

UNRECORDED: Final = 0.1
"""Part of the steps of which it is not known what was done."""

OWN: Final = 0.01
"""What a profiler may cost."""

MANY: Final = 10
"""Calls from which one in ten means something."""

FEW_STEPS: Final = 3
"""Fewer say little: the first one warms up."""

_LOG_PROBS: Final = re.compile(r"log[-_ ]?p", re.IGNORECASE)  # log-probs, logps, per_token_logps

STAGES: Final[Mapping[str, tuple[str, str]]] = {
    "tokenise": (
        "tokenising",
        "rewards that share one Scorer tokenise a text once, and more CPU cores take their part of it",
    ),
    "copy": ("copying to the device", "it should be small; larger batches make fewer copies"),
    "encode": (
        "the encoder",
        "a smaller encoder, fewer of its layers (num_layers) or another back-end is what helps; "
        "`fastreward doctor --measure` times the back-ends",
    ),
    "score": ("comparing vectors and reading the scores", "fewer references a text make it less"),
    "wait": ("waiting for token ids", "tokenising is the narrow place, and more CPU cores help it"),
}
"""What a stage is called in a sentence, and what to do about it."""


@dataclass(frozen=True)
class Facts:
    """What the rules are about. Times are seconds, summed over steps.

    Where steps were marked, these are the ones that were kept one by one, the last of all ranks: what is
    outside of steps holds none up. Where none were, it is all of the time.

    Attributes:
        report: The report.
        steps: How many there are, or 0.
        wall_s: Their wall time.
        parts: That time by what it is given to.
        exposed_s: In which rewards held them up.
        hidden_s: In which rewards ran behind other work.
        rewards: In which each reward was exposed; calls that overlap count each.
    """

    report: Report
    steps: int
    wall_s: float
    parts: Mapping[Part, float]
    exposed_s: float
    hidden_s: float
    rewards: Mapping[str, float]

    @classmethod
    def of(cls, report: Report, times: Sequence[RankTime] | None = None) -> Facts:
        """Gather what the rules need; `times` are the report's own, if they are known."""
        parts: Counter[Part] = Counter()
        rewards: Counter[str] = Counter()
        divided = [step for rank in times or rank_times(report) for step in rank.steps]
        for step in divided:
            parts.update(step.parts)
            rewards.update(step.rewards)
        wall_s = sum(parts.values()) / 1e9
        hidden_s = sum(step.reward_hidden_s for step in report.kept_steps)
        return cls(
            report,
            steps=len(report.kept_steps),
            wall_s=wall_s,
            parts={part: spent / 1e9 for part, spent in parts.items()},
            exposed_s=parts[EXPOSED] / 1e9,
            hidden_s=hidden_s if report.kept_steps else report.reward_hidden_s,
            rewards={name: spent / 1e9 for name, spent in rewards.items()},
        )

    @property
    def exposed(self) -> float:
        """Part of the time in which rewards hold it up."""
        return self.share(self.exposed_s)

    @property
    def a_unit(self) -> str:
        """How the time is called that `each` says."""
        return "a step" if self.steps else "in all"

    @property
    def whole(self) -> str:
        """What a part is a part of."""
        return "the step" if self.steps else "the run"

    @property
    def costliest(self) -> RewardReport | None:
        """The reward that is exposed longest."""
        return max(self.report.rewards, key=lambda reward: self.rewards.get(reward.name, 0.0), default=None)

    def share(self, seconds: float) -> float:
        """A time as a part of all of it."""
        return seconds / self.wall_s if self.wall_s else 0.0

    def each(self, seconds: float) -> str:
        """A sum over the steps as a time of one step."""
        return time_text(seconds / max(self.steps, 1))

    def matters(self, reward: RewardReport) -> bool:
        """Whether a reward is exposed long enough to be worth a change."""
        return self.share(self.rewards.get(reward.name, 0.0)) >= GAIN


Rule: TypeAlias = Callable[[Facts], Iterable[str]]


def advice(report: Report) -> list[str]:
    """Say what holds a step back, with numbers, the most important first.

    Where there is nothing to gain from a faster reward, that is what it says.

    Args:
        report: Of a run.

    Returns:
        One sentence at least, eight at most.

    Example:
        >>> from fastreward.profiling import Timeline
        >>> timeline = Timeline(device_clock=None)
        >>> with timeline.step(), timeline.phase("generate"):
        ...     completions = ["a text"]
        >>> advice(timeline.report())[0]
        'No reward was recorded; Timeline.wrap records one in a loop of your own.'
    """
    return sentences(Facts.of(report))


def sentences(facts: Facts) -> list[str]:
    """What the rules say of the facts; see `advice`."""
    return [sentence for rule in RULES for sentence in rule(facts)][:MOST_SENTENCES]


def _verdict(facts: Facts) -> Iterable[str]:
    """What the rewards cost, and so what a faster one gains at most."""
    if not facts.wall_s:
        yield "Nothing was recorded: mark steps and phases and wrap the rewards."
        return
    if not facts.report.rewards:
        yield "No reward was recorded; Timeline.wrap records one in a loop of your own."
        return
    hidden, exposed = facts.each(facts.hidden_s), facts.each(facts.exposed_s)
    also = f"; another {hidden} of theirs is hidden behind other work" if facts.hidden_s else ""
    share = percent(facts.exposed, 1)
    if facts.exposed >= 1 - NOTHING:
        yield f"Rewards are on all the time ({exposed} {facts.a_unit}), and nothing runs beside them."
    elif facts.exposed >= GAIN:
        yield (
            f"Rewards hold up {facts.whole} for {share} of it: {exposed} {facts.a_unit}{also}. "
            f"If they took no time, {facts.whole} would be {1 / (1 - facts.exposed):.2f} times as fast, "
            "and no reward can gain more."
        )
    elif facts.exposed >= NOTHING:
        yield f"A faster reward gains at most {share}: {exposed} {facts.a_unit} is exposed{also}."
    else:
        behind = f"{hidden} {facts.a_unit} runs behind other work and " if facts.hidden_s else ""
        yield f"Nothing to gain from a faster reward: {behind}{exposed} ({share}) is exposed."


def _largest(facts: Facts) -> Iterable[str]:
    """The phase that has most of the step, by its own work: what is within it is not counted."""
    phases = {part: spent for part, spent in facts.parts.items() if part[0] == "phase"}
    if not phases:
        return
    part, spent = max(phases.items(), key=lambda phase: phase[1])
    if facts.share(spent) < GAIN:
        return
    share = percent(spent, facts.wall_s)
    sentence = f'"{part[1]}" takes {share} of {facts.whole} ({facts.each(spent)} {facts.a_unit})'
    if facts.report.rewards and spent > facts.exposed_s:
        sentence += f", the rewards {percent(facts.exposed, 1)}: it is the larger one to work on"
    yield sentence + "."


def _which(facts: Facts) -> Iterable[str]:
    """Which of several rewards it is."""
    reward = facts.costliest
    if reward is None or len(facts.report.rewards) < 2 or facts.exposed < NOTHING:
        return
    longest = facts.rewards.get(reward.name, 0.0)
    yield (
        f'Of the rewards, "{reward.name}" is exposed longest: {facts.each(longest)} {facts.a_unit}, '
        f"{percent(longest, sum(facts.rewards.values()))} of what all of them are."
    )


def _stage(facts: Facts) -> Iterable[str]:
    """Within the costliest reward, the stage that decides."""
    reward = facts.costliest
    if reward is None or not reward.stages or not reward.total_s or facts.exposed < NOTHING:
        return
    name, seconds = max(reward.stages.items(), key=lambda stage: stage[1])
    if seconds < STAGE * reward.total_s:
        return
    called, remedy = STAGES.get(name, (f'"{name}"', ""))
    # Stages of several threads add up to more than the call.
    share = percent(min(seconds, reward.total_s), reward.total_s)
    yield f'Of the time of "{reward.name}", {share} is {called}{": " if remedy else ""}{remedy}.'


def _beside_log_probs(facts: Facts) -> Iterable[str]:
    """Log-probs need no rewards: what of the rewards could run beside them, where none does so far."""
    spent = sum(
        spent for (kind, name), spent in facts.parts.items() if kind == "phase" and _LOG_PROBS.search(name)
    )
    could = min(max(0.0, spent - facts.hidden_s), facts.exposed_s)
    if facts.share(could) >= GAIN:
        yield (
            "Log-probs need no rewards: rewards that run beside them, as in fastreward.integrations.grpo, "
            f"hide up to {facts.each(could)} {facts.a_unit} ({percent(could, facts.wall_s)})."
        )


def _one_after_the_other(facts: Facts) -> Iterable[str]:
    """Rewards that never overlap, though they need nothing of each other."""
    if len(facts.rewards) < 2 or facts.report.most_in_flight > 1:
        return
    saved = facts.exposed_s - max(facts.rewards.values())
    if facts.share(saved) >= GAIN:
        yield (
            "The rewards run one after the other: all at once they would hold up "
            f"{facts.whole} {facts.each(saved)} less at most."
        )


def _repeated(facts: Facts) -> Iterable[str]:
    """Texts that were scored more than once in a call, by rewards that do not see to it themselves."""
    for reward in facts.report.rewards:
        again = reward.texts - reward.unique_texts
        if reward.tokens is None and again >= REPEATED * reward.texts > 0 and facts.matters(reward):
            yield (
                f'{percent(again, reward.texts)} of the texts that "{reward.name}" got were in the same call '
                "already: scored once each, they would cost that much less."
            )


def _slow_calls(facts: Facts) -> Iterable[str]:
    """A few calls that are much slower than the others."""
    for reward in facts.report.rewards:
        if not reward.median_s or not reward.p90_s or reward.count < MANY or not facts.matters(reward):
            continue
        if reward.p90_s >= UNEVEN * reward.median_s:
            yield (
                f'One call in ten of "{reward.name}" takes {time_text(reward.p90_s)} or more, the median '
                f"{time_text(reward.median_s)}: the slow ones decide when the step goes on."
            )


def _drain(facts: Facts) -> Iterable[str]:
    """Time of a reward in which the device finished what others had queued."""
    for reward in facts.report.rewards:
        if reward.drain_s and reward.drain_s >= STAGE * reward.total_s and facts.matters(reward):
            yield (
                f'{percent(reward.drain_s, reward.total_s)} of the time of "{reward.name}" the device works '
                "off what was queued before: that is not its own cost, and a faster reward does not win it."
            )


def _ranks(facts: Facts) -> Iterable[str]:
    """One rank whose rewards take much longer than the others', which wait for it where they meet."""
    exposed: dict[int, list[float]] = {}
    for step in facts.report.kept_steps:
        exposed.setdefault(step.rank, []).append(step.reward_exposed_s)
    if len(exposed) < 2:
        return
    means = {rank: statistics.fmean(seconds) for rank, seconds in exposed.items()}
    rank = max(means, key=lambda one: means[one])
    others = statistics.median(mean for one, mean in means.items() if one != rank)
    more = means[rank] - others
    if means[rank] >= UNEVEN * others and facts.share(more * facts.steps) >= GAIN:
        yield (
            f"Rank {rank}'s rewards hold it up {time_text(means[rank])} a step, those of the others "
            f"{time_text(others)}: where ranks meet, the others wait for it."
        )


def _failed(facts: Facts) -> Iterable[str]:
    """Calls that raised, hung or were cancelled, and texts without a reward."""
    for reward in facts.report.rewards:
        said = [
            f"{counted(count, 'call')} {what}"
            for count, what in (
                (reward.raised, "raised"),
                (reward.hung, "had not returned at the end"),
                (reward.cancelled, "ended before being done"),
            )
            if count
        ]
        if reward.none:
            said.append(f"{reward.none:,} of {counted(reward.texts, 'text')} got None")
        if said:
            yield f'"{reward.name}": {listed(said)}.'


def _unrecorded(facts: Facts) -> Iterable[str]:
    """Time of which it is not known what was done."""
    idle_s = facts.parts.get(IDLE, 0.0)
    if facts.share(idle_s) >= UNRECORDED:
        yield (
            f"In {percent(idle_s, facts.wall_s)} of {facts.whole} ({facts.each(idle_s)} {facts.a_unit}) "
            "nothing was recorded; Timeline.phase marks what is done there."
        )


def _warm_up(facts: Facts) -> Iterable[str]:
    """Too few steps, or a first one that is not like the others."""
    report = facts.report
    if 0 < report.steps < FEW_STEPS:
        yield f"Only {counted(report.steps, 'step')} ran, and the first warms up: profile some more."
        return
    steps = report.kept_steps
    if len(steps) != report.steps or len({step.rank for step in steps}) != 1 or not steps:
        return
    usual = statistics.median(step.wall_s for step in steps[1:])
    if steps[0].wall_s >= UNEVEN * usual and steps[0].wall_s >= GAIN * report.wall_s:
        yield (
            f"The first step took {time_text(steps[0].wall_s)}, the others {time_text(usual)} (median): it "
            "warms up, and it is in the sums."
        )


def _own(facts: Facts) -> Iterable[str]:
    """What the profiler itself cost or missed."""
    report = facts.report
    if report.overhead_s >= OWN * report.wall_s > 0:
        yield f"The profiler itself took {percent(report.overhead_s, report.wall_s)} of the time."
    if report.failures:
        yield f"The profiler had {counted(report.failures, 'error')} of its own: figures may lack something."


RULES: Final[tuple[Rule, ...]] = (
    _verdict,
    _largest,
    _which,
    _failed,
    _stage,
    _beside_log_probs,
    _one_after_the_other,
    _drain,
    _slow_calls,
    _repeated,
    _ranks,
    _unrecorded,
    _warm_up,
    _own,
)
"""The rules, in the order in which they speak."""
