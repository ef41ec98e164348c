"""The page's words and tables as HTML, which is there without any script."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from fastreward.profiling.advice import Facts, sentences
from fastreward.profiling.replay import REPLAY_HEADINGS, ReplayResult, replay_cells
from fastreward.profiling.report import PhaseReport, Report, RewardReport
from fastreward.profiling.wording import counted, listed, percent, time_text

MOST_HOSTS: Final = 3
"""More machines than these are counted, and not named."""


@dataclass(frozen=True)
class Table:
    """A table of text, whose first column names the rows.

    Attributes:
        caption: What it shows.
        headings: Of the columns.
        rows: Cells by row.
        prose: Columns of words; the others hold numbers and stand to the right.
    """

    caption: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    prose: frozenset[int] = frozenset()

    def html(self) -> str:
        """The table, in a frame that scrolls where it is too wide."""
        head = "".join(
            f'<th scope="col"{self._class(column)}>{escape(heading)}</th>'
            for column, heading in enumerate(self.headings)
        )
        body = "".join(f"<tr>{''.join(self._cells(row))}</tr>\n" for row in self.rows)
        caption = escape(self.caption)
        return (
            f'<div class="wide" tabindex="0" role="region" aria-label="{caption}"><table>'
            f"<caption>{caption}</caption><thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody></table></div>"
        )

    def _cells(self, row: Iterable[str]) -> Iterable[str]:
        for column, text in enumerate(row):
            if column == 0:
                yield f'<th scope="row">{escape(text)}</th>'
            else:
                yield f"<td{self._class(column)}>{escape(text)}</td>"

    def _class(self, column: int) -> str:
        return "" if column == 0 or column in self.prose else ' class="number"'


def where(report: Report) -> str:
    """When, where and how much was recorded, in a sentence."""
    ranks = len({process.rank for process in report.processes})
    hosts = list(dict.fromkeys(process.host for process in report.processes))
    began = min((process.began_ns for process in report.processes), default=0) / 1e9
    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(began))
    steps = counted(report.steps, "step") if report.steps else "no steps marked"
    summed = f"{steps}, {time_text(report.wall_s)}" + (f", summed over {ranks} ranks" if ranks > 1 else "")
    shown = listed(hosts) if len(hosts) <= MOST_HOSTS else counted(len(hosts), "machine")
    return f"{summed}; {counted(len(report.processes), 'process')} on {shown}, from {when}"


def headline(facts: Facts) -> str:
    """The numbers that matter, as a list of terms."""
    report = facts.report
    each = "of a step" if facts.steps else "in all"
    mean = f"mean of the last {facts.steps:,} steps" if facts.steps < report.steps else "mean"
    cards = [
        ("Step" if facts.steps else "Time", facts.each(facts.wall_s), mean if facts.steps else "recorded"),
        (
            "Reward, exposed",
            facts.each(facts.exposed_s),
            f"{percent(facts.exposed_s, facts.wall_s)} {each}: it is waited for",
        ),
        (
            "Reward, hidden",
            facts.each(facts.hidden_s),
            f"{percent(facts.hidden_s, facts.wall_s)} {each}: other work goes on",
        ),
        ("Without rewards", facts.each(facts.wall_s - facts.exposed_s), "what no reward can beat"),
    ]
    if report.tail_median_s is not None:
        cards.append(("Tail", time_text(report.tail_median_s), f"median; p90 {time_text(report.tail_p90_s)}"))
    if report.recorded:
        own = time_text(report.overhead_s / report.recorded)
        cards.append(("Profiler", percent(report.overhead_s, report.wall_s), f"of the time; {own} a call"))
    return f"<dl>\n{''.join(_card(*map(escape, card)) for card in cards)}</dl>"


def _card(term: str, value: str, note: str) -> str:
    return f"<div><dt>{term}</dt><dd><strong>{value}</strong> <span>{note}</span></dd></div>\n"


def advice_list(facts: Facts, replayed: ReplayResult | None) -> str:
    """What holds the step back, as a list."""
    said = sentences(facts) + (replayed.sentences() if replayed else [])
    return "<ul>\n" + "".join(f"<li>{_with_code(sentence)}</li>\n" for sentence in said) + "</ul>"


def _with_code(sentence: str) -> str:
    """A sentence, with what stands between backquotes as code."""
    return re.sub("`([^`]*)`", r"<code>\1</code>", escape(sentence))


def tables(report: Report, replayed: ReplayResult | None) -> str:
    """All tables, each with what it needs to be understood."""
    found = []
    if report.phases or report.rewards:
        found.append(phase_table(report).html())
    if report.rewards:
        found.append(reward_table(report).html())
    if any(reward.stages for reward in report.rewards):
        found.append(stage_table(report).html())
    if replayed:
        notes = "".join(f"<p>{escape(note)}</p>" for note in replayed.notes())
        found.append(replay_table(replayed).html() + notes)
    return "\n".join(found)


def phase_table(report: Report) -> Table:
    """Times of phases and rewards."""
    return Table(
        "Phases and rewards",
        (
            "",
            "kind",
            "count",
            "median",
            "p90",
            "total",
            "share",
            "exposed",
            "hidden",
            "on the device",
            "drain",
        ),
        [_times(row) for row in (*report.phases, *report.rewards)],
        prose=frozenset({1}),
    )


def reward_table(report: Report) -> Table:
    """What each reward did."""
    return Table(
        "What each reward did",
        (
            "",
            "calls",
            "texts",
            "distinct",
            "tokens",
            "encoded",
            "known",
            "at once",
            "raised",
            "None",
            "cancelled",
            "hung",
        ),
        [_counts(row) for row in report.rewards],
    )


def stage_table(report: Report) -> Table:
    """Where the host's time goes within rewards that say so."""
    rewards = [reward for reward in report.rewards if reward.stages]
    names = list(dict.fromkeys(name for reward in rewards for name in reward.stages))
    rows = []
    for reward in rewards:
        cells = [
            f"{time_text(reward.stages[name])} ({percent(reward.stages[name], reward.total_s)})"
            if name in reward.stages
            else "–"
            for name in names
        ]
        rows.append([reward.name, time_text(reward.total_s), *cells])
    return Table(
        "Stages of rewards, of the host's time; those of several threads add up", ("", "total", *names), rows
    )


def replay_table(replayed: ReplayResult) -> Table:
    """Rewards as they were, and with this library."""
    return Table(
        "The same texts, replayed", REPLAY_HEADINGS, [replay_cells(reward) for reward in replayed.rewards]
    )


def _times(row: PhaseReport) -> list[str]:
    kinds = {"phase": "phase", "wait": "waits", "reward": "reward"}
    seconds = (row.exposed_s, row.hidden_s, row.device_s, row.drain_s)
    count = f"{row.count:,}" + (f" ({row.running:,} running)" if row.running else "")
    return [
        row.name,
        kinds[row.kind],
        count,
        time_text(row.median_s),
        time_text(row.p90_s),
        time_text(row.total_s),
        percent(row.share, 1),
        *map(time_text, seconds),
    ]


def _counts(row: RewardReport) -> list[str]:
    counts = (
        row.count,
        row.texts,
        row.unique_texts,
        row.tokens,
        row.encoded_texts,
        row.cache_hits,
        row.most_in_flight,
        row.raised,
        row.none,
        row.cancelled,
        row.hung,
    )
    return [row.name, *("–" if count is None else f"{count:,}" for count in counts)]
