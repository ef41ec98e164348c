"""A run step by step: what a step spends on each phase and reward, and when the steps were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from fastreward.profiling.report import PhaseReport, Report, RewardReport, quantile
from fastreward.profiling.wording import counted, percent, time_text

if TYPE_CHECKING:
    from rich.table import Table

HEADINGS: Final = ("median a step", "p90 a step", "total", "share", "exposed", "calls")


@dataclass(frozen=True)
class Extent:
    """When the steps were, of all ranks. Times are seconds.

    Attributes:
        begin_ns: Where the first one begins, in nanoseconds since 1970.
        end_ns: Where the last one ends.
        wall_s: From the first begin to the last end, summed over ranks.
        in_steps_s: What of it is in steps; the rest is between them, as an evaluation is.
        recorded_s: What of the steps is in a phase or a reward.
    """

    begin_ns: int
    end_ns: int
    wall_s: float
    in_steps_s: float
    recorded_s: float

    @classmethod
    def of(cls, report: Report) -> Extent | None:
        """Read it from a report; ``None`` if there was no step."""
        if not report.kept_steps:
            return None
        origin = min(process.began_ns for process in report.processes)
        begins = report.began_s  # long before the kept ones, perhaps
        ends: dict[int, float] = {}
        for step in report.kept_steps:
            end = step.begin_s + step.wall_s
            ends[step.rank] = max(end, ends.get(step.rank, end))
        return cls(
            begin_ns=origin + round(min(begins.values()) * 1e9),
            end_ns=origin + round(max(ends.values()) * 1e9),
            wall_s=sum(ends[rank] - begins[rank] for rank in ends),
            in_steps_s=report.wall_s,
            recorded_s=report.wall_s - report.idle_s,
        )

    @property
    def recorded_share(self) -> float:
        """What part of the time from the first step's begin to the last one's end was recorded in steps."""
        return self.recorded_s / self.wall_s if self.wall_s else 0.0


def times_around(report: Report, began_ns: int, ended_ns: int) -> dict[str, float | None]:
    """Seconds before, in and after the steps of a command, and what part of the steps was recorded.

    Args:
        report: On all ranks.
        began_ns: When the command began, in nanoseconds since 1970.
        ended_ns: When it ended.

    Returns:
        ``start_s``: from the command's begin to the first step's, imports and all; ``steps_s``: from there to
        the last step's end; ``end_s``: from there to the command's end; ``recorded_share``: what part of the
        time from a rank's first step's begin to its last one's end is in phases and rewards of steps.
        ``None`` where there was no step.
    """
    extent = Extent.of(report)
    if extent is None:
        return dict.fromkeys(("start_s", "steps_s", "end_s", "recorded_share"))
    return {
        "start_s": (extent.begin_ns - began_ns) / 1e9,
        "steps_s": (extent.end_ns - extent.begin_ns) / 1e9,
        "end_s": (ended_ns - extent.end_ns) / 1e9,
        "recorded_share": extent.recorded_share,
    }


def step_seconds(report: Report, row: PhaseReport) -> list[float]:
    """Seconds of a phase or reward in each kept step of each rank; 0 in a step that has none of it.

    Example:
        >>> from fastreward.profiling import Timeline
        >>> timeline = Timeline()
        >>> for _ in range(2):
        ...     with timeline.step(), timeline.phase("generate"):
        ...         pass
        >>> report = timeline.report()
        >>> len(step_seconds(report, report.phases[0]))
        2
    """
    if isinstance(row, RewardReport):
        return [step.rewards.get(row.name, 0.0) for step in report.kept_steps]
    return [step.phases.get(row.name, 0.0) for step in report.kept_steps]


def step_table(report: Report) -> Table:
    """A table of what a step spends, for a terminal: phases first, then rewards, the longest first."""
    from rich.table import Table

    ranks = len({process.rank for process in report.processes})
    where = f" on each of {ranks} ranks" if ranks > 1 else ""
    each = counted(report.steps // ranks, "step")
    table = Table(title=f"{each}{where}, {time_text(report.wall_s / ranks)}")
    table.add_column("", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right")
    table.add_column("")
    for group in (report.phases, report.rewards):
        for row in group:
            seconds = step_seconds(report, row)
            table.add_row(
                row.label,
                time_text(quantile(seconds, 0.5)),
                time_text(quantile(seconds, 0.9)),
                time_text(row.total_s),
                percent(row.share, 1),
                time_text(row.exposed_s),
                f"{row.count:,}",
                row.note,
            )
        table.add_section()
    idle = [step.idle_s for step in report.kept_steps]
    if idle:
        shown = (time_text(quantile(idle, 0.5)), time_text(quantile(idle, 0.9)), time_text(report.idle_s))
        table.add_row("nothing recorded", *shown, percent(report.idle_s, report.wall_s), "", "", "")
    return table
