"""A report as one HTML page that needs nothing else: no network, no server, no library."""

from __future__ import annotations

import base64
import hashlib
import json
from html import escape
from importlib import resources
from os import PathLike
from pathlib import Path
from string import Template
from typing import Any, Final

from fastreward.errors import InputError
from fastreward.profiling.advice import Facts
from fastreward.profiling.page_charts import chart_data
from fastreward.profiling.page_tables import advice_list, headline, tables, where
from fastreward.profiling.parts import rank_times
from fastreward.profiling.replay import ReplayResult
from fastreward.profiling.report import Report

SCRIPTS: Final = ("common.js", "bars.js", "timeline.js", "start.js")
"""In the order in which they stand on the page, as one script."""


def write_page(
    report: Report,
    path: str | PathLike[str],
    *,
    title: str = "Where the step's time goes",
    replayed: ReplayResult | None = None,
) -> None:
    """Write a report as one HTML file for a browser.

    It shows the numbers that matter, what holds the step back, a bar for each step, a timeline of the step
    that is chosen, and the tables. It fetches nothing: a policy in the page forbids it. Of long runs the last
    300 steps of each rank and the last 20,000 spans are drawn, and the page says what is not.

    Args:
        report: Of a process or of all ranks.
        path: The file; one that is there is replaced.
        title: What stands above.
        replayed: What `replay` found, if the run's texts were replayed.

    Raises:
        InputError: If the folder is not there.
        OSError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> from fastreward.profiling import Timeline
        >>> timeline = Timeline()
        >>> with timeline.step(), timeline.phase("generate"):
        ...     completions = ["a text"]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_page(timeline.report(), Path(folder) / "report.html")
        ...     "generate" in (Path(folder) / "report.html").read_text()
        True
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError("a folder that exists", str(path.parent), f"Make it first: mkdir -p {path.parent}")
    # A name may hold half a surrogate pair, which UTF-8 does not have.
    path.write_bytes(page(report, title, replayed).encode("utf-8", "replace"))


def page(report: Report, title: str, replayed: ReplayResult | None = None) -> str:
    """The page's text; see `write_page`."""
    times = rank_times(report)
    facts = Facts.of(report, times)
    style = _asset("page.css")
    script = '"use strict";\n' + "\n".join(map(_asset, SCRIPTS))
    return Template(_asset("page.html")).substitute(
        title=escape(title),
        policy=f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'",
        style=style,
        script=script,
        where=escape(where(report)),
        headline=headline(facts),
        advice=advice_list(facts, replayed),
        tables=tables(report, replayed),
        data=script_json(chart_data(report, times)),
    )


def script_json(value: Any) -> str:
    r"""JSON that can stand in a script element: in ASCII, and without a "<", so that nothing ends it.

    Example:
        >>> script_json({"name": "</script>\u2028"})
        '{"name":"\\u003c/script>\\u2028"}'
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c")


def _asset(name: str) -> str:
    return resources.files("fastreward.profiling").joinpath("assets", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    """What a content security policy calls a script or a style that it lets run."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
