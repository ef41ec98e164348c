"""The profiler's page: steps by their parts, and the file itself in a browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import json
import math
import re
import shutil
import subprocess
import threading
import time
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastreward.errors import InputError
from fastreward.profiling import Report, Timeline, stage
from fastreward.profiling.page import script_json, write_page
from fastreward.profiling.page_charts import MOST_STEPS, chart_data
from fastreward.profiling.parts import EXPOSED, IDLE, PRIORITY, Claim, Part, divide, rank_times
from fastreward.profiling.replay import replay

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium")

HOSTILE = "</script><img src=x onerror=alert(1)>\u2028 & 'judge' \"x\""


# --------------------------------------------------------------------------- steps by their parts

CLAIM_PARTS: tuple[Part, ...] = (EXPOSED, ("phase", "generate"), ("phase", "update"), ("wait", "rewards"))
CLAIMS = st.lists(
    st.tuples(st.integers(-5, 25), st.integers(0, 12), st.sampled_from(CLAIM_PARTS), st.integers(0, 2)),
    max_size=8,
)


@given(CLAIMS, st.integers(0, 20))
def test_each_nanosecond_goes_to_the_claim_that_stands_highest(
    entries: list[tuple[int, int, Part, int]], end: int
) -> None:
    claims = [
        Claim(begin, begin + length, part, weight, begin, number)
        for number, (begin, length, part, weight) in enumerate(entries)
    ]
    expected: dict[Part, int] = {}
    for moment in range(end):
        on = [claim for claim in claims if claim.begin <= moment < claim.end]
        on.sort(key=lambda one: (PRIORITY[one.part[0]], one.weight, one.since, one.number))
        part = on[-1].part if on else IDLE
        expected[part] = expected.get(part, 0) + 1
    assert divide(0, end, claims) == expected


def recorded(folder: Path, rank: int, spans: list[dict[str, Any]], steps: list[tuple[int, int]]) -> None:
    """Write a recording whose times, in milliseconds, are known."""
    began = 1_700_000_000_000_000_000
    lines: list[dict[str, Any]] = [
        {"event": "process", "version": 1, "rank": rank, "pid": 7, "host": "node", "began_ns": began}
    ]
    for number, span in enumerate(spans):
        counts = {"texts": 4, "unique_texts": 4, "none": 0, "scorer": {}, "stages": {}}
        entry: dict[str, Any] = {"event": "span", "id": number, "parent_id": None, "kind": "phase"}
        entry |= {"thread": 1, "task": None}
        entry |= {"thread_name": "MainThread", "outcome": "done", "device_s": None, "drain_s": None}
        entry |= {"counts": counts} | span
        entry["begin_ns"] = began + entry.pop("begin") * 1_000_000
        entry["end_ns"] = began + entry.pop("end") * 1_000_000
        lines.append(entry)
    for number, (begin, end) in enumerate(steps, 1):
        times = {"begin_ns": began + begin * 1_000_000, "end_ns": began + end * 1_000_000}
        lines.append({"event": "step", "number": number} | times)
    until = began + max(end for _, end in steps) * 1_000_000
    state = {"event": "state", "running": [], "until_ns": until, "overhead_s": 0.001, "failures": 0}
    lines.append(state | {"recorded": len(spans)})
    folder.mkdir(exist_ok=True)
    path = folder / f"rank{rank}.timeline.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def two_ranks(folder: Path) -> Report:
    """Two ranks of two steps: a reward half behind log-probs, half waited for, and an update with a loss."""
    for rank in range(2):
        spans: list[dict[str, Any]] = []
        for at in (0, 100):
            spans += [
                {"name": "generate", "begin": at, "end": at + 40},
                {"name": "log-probs", "begin": at + 40, "end": at + 50},
                {"name": "judge", "kind": "reward", "thread": 2, "thread_name": "rewards"}
                | {"begin": at + 40, "end": at + 60 + 5 * rank},
                {"name": "reward wait", "kind": "wait", "begin": at + 50, "end": at + 67},
                {"name": "update", "begin": at + 67, "end": at + 90},
                {"name": "loss", "begin": at + 70, "end": at + 75, "parent_id": len(spans) + 4},
                {"name": "hook", "begin": at + 68, "end": at + 72, "thread": 3, "thread_name": "hooks"},
            ]
        recorded(folder, rank, spans, [(0, 95), (100, 200)])
    return Timeline.merge(folder)


def test_a_step_is_divided_without_gap_and_twice_counted_time(tmp_path: Path) -> None:
    (first, second), others = (rank.steps for rank in rank_times(two_ranks(tmp_path)))
    milliseconds = {name or kind: spent / 1e6 for (kind, name), spent in first.parts.items()}
    assert milliseconds == {
        "generate": 40, "log-probs": 10, "exposed": 10, "reward wait": 7, "update": 18, "loss": 5, "idle": 5,
    }  # fmt: skip
    assert second.parts[IDLE] == 10_000_000
    assert [step.parts[EXPOSED] for step in others] == [15_000_000, 15_000_000]
    assert [dict(step.rewards) for step in others] == [{"judge": 15_000_000}] * 2


def running(steps: int = 4, keep_spans: int = 20_000) -> Report:
    """A run with threads, tasks, a reward that raises, one that hangs, and names that are no good HTML."""
    timeline = Timeline(device_clock=None, keep_spans=keep_spans)
    free, stuck = threading.Event(), threading.Event()

    def judge(completions: list[str]) -> list[float | None]:
        with stage("encode"):
            time.sleep(0.004)
        return [1.0, None]

    async def remote(completions: list[str]) -> list[float]:
        await asyncio.sleep(0.003)
        raise ValueError(completions)

    def hangs(completions: list[str]) -> None:
        stuck.set()
        free.wait(30)

    watched, awaited = timeline.wrap(judge, name=HOSTILE), timeline.wrap(remote)

    async def rewards() -> None:
        with timeline.phase("rewards"):
            await asyncio.gather(*(awaited(["a"]) for _ in range(3)), return_exceptions=True)

    for _ in range(steps):
        with timeline.step():
            with timeline.phase("generate"):
                time.sleep(0.004)
            beside = threading.Thread(target=watched, args=(["a", "b"],))
            beside.start()
            with timeline.phase("log-probs"):
                time.sleep(0.002)
            with timeline.phase("reward wait", waits=True):
                beside.join()
            asyncio.run(rewards())
    thread = threading.Thread(target=timeline.wrap(hangs), args=(["a"],))
    thread.start()
    stuck.wait(30)
    report = timeline.report()
    free.set()
    thread.join()
    return report


def test_the_parts_are_the_reports_own_figures() -> None:
    report = running()
    (rank,) = rank_times(report)
    assert len(rank.steps) == 4
    for divided, step in zip(rank.steps, report.kept_steps, strict=True):
        assert sum(divided.parts.values()) / 1e9 == pytest.approx(step.wall_s, abs=1e-8)
        assert divided.parts[EXPOSED] / 1e9 == pytest.approx(step.reward_exposed_s, abs=1e-8)
        assert divided.parts.get(IDLE, 0) / 1e9 == pytest.approx(step.idle_s, abs=1e-8)


def test_the_charts_show_every_span_of_the_steps_once_and_no_row_crosses() -> None:
    report = running()
    data = json.loads(script_json(chart_data(report, rank_times(report))))
    assert len(data["spans"]) == len(report.spans) == report.recorded
    assert data["left_out"] == {"steps": 0, "spans": 0}
    for step in data["steps"]:
        assert sum(step["parts"]) == pytest.approx(step["wall"], abs=len(data["parts"]))
    lanes: dict[tuple[int, int], int] = {}
    for row, depth, _, begin, length, *_ in data["spans"]:
        assert begin >= lanes.get((row, depth), 0) - 1
        lanes[row, depth] = begin + length
    judged = [span for span in data["spans"] if data["keys"][span[2]][:2] == ["reward", HOSTILE]]
    assert len(judged) == 4
    for *_, length, outcome, exposed, facts in judged:
        assert outcome == "done"
        assert 0 < sum(long for _, long in exposed) < length
        assert facts[0] == "2 texts, 1 None"
        assert facts[1].startswith("encode ")


def test_of_a_long_run_the_last_is_drawn_and_the_rest_counted() -> None:
    timeline = Timeline(device_clock=None, keep_steps=1000)
    with timeline.phase("all of it"):
        for _ in range(MOST_STEPS + 5):
            with timeline.step(), timeline.phase("generate"):
                pass
        report = timeline.report()
    data = chart_data(report, rank_times(report), most_spans=50)
    assert [step["number"] for step in data["steps"]] == list(range(6, MOST_STEPS + 6))
    names = [data["keys"][span[2]][1] for span in data["spans"]]
    assert names == ["all of it"] + ["generate"] * 50
    assert data["left_out"] == {"steps": 5, "spans": MOST_STEPS + 5 - 50}


# --------------------------------------------------------------------------- the file


def test_json_in_a_script_element_cannot_end_it() -> None:
    text = script_json({"name": HOSTILE})
    assert "<" not in text
    assert text.isascii()
    assert json.loads(text) == {"name": HOSTILE}


class Elements(HTMLParser):
    """The elements of a page and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, list[tuple[str, str | None]]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, attrs))


def test_the_page_names_no_other_file_and_escapes_every_name(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_page(running(), path, title=f"A run {HOSTILE}")
    text = path.read_text(encoding="utf-8")
    assert "<img" not in text
    assert html.escape(HOSTILE) in text
    addresses = set(re.findall(r"https?://[^\s\"'<]*", text))
    assert addresses == {"http://www.w3.org/2000/svg"}  # the name of a vocabulary, which nothing fetches
    elements = Elements()
    elements.feed(text)
    assert {"link", "img", "iframe", "object", "base", "form"}.isdisjoint(tag for tag, _ in elements.found)
    named = {name for _, attributes in elements.found for name, _ in attributes}
    assert not {name for name in named if name in ("src", "href", "style") or name.startswith("on")}
    assert [tag for tag, _ in elements.found].count("script") == text.count("</script>") == 2
    assert not re.search(r"@import|url\((?!#)", text)


def test_half_a_surrogate_pair_in_a_name_does_not_stop_the_page(tmp_path: Path) -> None:
    timeline = Timeline(device_clock=None)
    with timeline.phase("half \ud800 a pair"):
        pass
    write_page(timeline.report(), tmp_path / "report.html")
    assert "half ? a pair" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"mkdir -p .*nowhere"):
        write_page(Timeline().report(), tmp_path / "nowhere" / "report.html")


def test_the_tables_hold_the_reports_figures(tmp_path: Path) -> None:
    log = tmp_path / "calls.jsonl"
    call = {
        "reward": "judge",
        "step": 1,
        "rank": 0,
        "seconds": 2.5,
        "completions": ["a"],
        "references": ["b"],
    }
    log.write_text(json.dumps(call))
    replayed = replay(log, lambda completions, reference: [0.5])
    write_page(two_ranks(tmp_path / "run"), tmp_path / "report.html", replayed=replayed)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    rows = [re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", text)]
    shown = {row[0]: row for row in rows if row and row[0]}
    # name, kind, count, median, p90, total, share of the steps' 390 ms, exposed, hidden
    expected = ["generate", "phase", "4", "40.0 ms", "40.0 ms", "160.0 ms", "41 %", "160.0 ms", "0.0 ms"]
    assert shown["generate"][:9] == expected
    assert ["judge", "reward", "4", "22.5 ms", "25.0 ms", "90.0 ms", "23 %", "50.0 ms", "40.0 ms"] in [
        row[:9] for row in rows
    ]
    assert ["judge", "1", "1", "2.50 s"] in [row[:4] for row in rows]
    assert "the same texts take" in text


# --------------------------------------------------------------------------- in a browser


@dataclass
class Browsed:
    """What a browser made of a page: its elements as text, what a driver found, and what the console said."""

    dom: str
    found: Any
    console: list[str]


def browse(page: Path, driver: str = "return null;", width: int = 1280, scheme: int = 1) -> Browsed:
    """Open a page in headless Chromium and run a function in it, whose result becomes `found`.

    The driver is a script of its own, for which the page's policy is extended by its digest.
    """
    assert CHROMIUM is not None
    script = (
        "addEventListener('load', () => setTimeout(async () => {"
        f"const found = await (async () => {{{driver}}})();"
        "const place = document.createElement('pre'); place.id = 'found';"
        "place.textContent = JSON.stringify(found); document.body.append(place);}, 50));"
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    text = page.read_text(encoding="utf-8")
    text = text.replace("script-src '", f"script-src 'sha256-{digest}' '", 1)
    driven = page.with_name("driven.html")
    driven.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={page.parent / 'profile'}", f"--window-size={width},1400"]
    command += [f"--blink-settings=preferredColorScheme={scheme}", "--enable-logging=stderr", "--v=0"]
    command += ["--virtual-time-budget=4000", "--dump-dom", driven.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = re.search(r'<pre id="found">(.*?)</pre>', done.stdout, re.DOTALL)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return Browsed(done.stdout, json.loads(html.unescape(found[1])) if found else None, console)


HELPERS = """
const wait = () => new Promise((done) => setTimeout(done, 20));
const text = (id) => byId(id).textContent;
const press = async (id, key) => {
  byId(id).dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  await wait();
};
const drawn = (css) => document.querySelectorAll(css).length;
"""


@needs_chromium
def test_an_error_in_a_page_would_be_seen_and_a_fetch_is_forbidden(tmp_path: Path) -> None:
    write_page(Timeline().report(), tmp_path / "report.html")
    seen = browse(
        tmp_path / "report.html",
        """
        const blocked = [];
        const note = (event) => blocked.push(event.effectiveDirective);
        document.addEventListener("securitypolicyviolation", note);
        setTimeout(() => { throw new Error("a mistake"); });
        new Image().src = "https://127.0.0.1:9/image.png";
        await fetch("https://127.0.0.1:9/").catch(() => {});
        await new Promise((done) => setTimeout(done, 20));
        return blocked.sort();
        """,
    )
    assert seen.found == ["connect-src", "img-src"]
    assert sum("a mistake" in line for line in seen.console) == 1
    assert len(seen.console) >= 2


@needs_chromium
def test_a_step_is_chosen_by_keyboard_mouse_and_button(tmp_path: Path) -> None:
    write_page(two_ranks(tmp_path / "run"), tmp_path / "report.html")
    seen = browse(
        tmp_path / "report.html",
        HELPERS
        + """
        const said = [text("chosen")];
        await press("bars", "ArrowLeft"); said.push(text("chosen"));
        await press("bars", "ArrowLeft"); said.push(text("chosen"));
        document.querySelectorAll(".column")[1].dispatchEvent(new MouseEvent("click", { bubbles: true }));
        said.push(text("chosen"));
        byId("rank").value = "1"; byId("rank").dispatchEvent(new Event("change")); said.push(text("chosen"));
        byId("worst").click(); said.push(text("chosen"));
        const value = byId("bars").getAttribute("aria-valuetext");
        const cells = (row) => [...row.cells].map((cell) => cell.textContent);
        const rows = [...byId("parts").tBodies[0].rows].map(cells);
        const heights = [...document.querySelectorAll(".bar")].map((bar) =>
          [...bar.querySelectorAll(".part, .exposed, .wait, .idle")].map((one) => one.height.baseVal.value));
        document.querySelector(".column").dispatchEvent(new PointerEvent("pointermove", { bubbles: true }));
        const tip = [...byId("tip").children].map((line) => line.textContent);
        return { said, value, rows, heights, tip, fetched: performance.getEntriesByType("resource").length };
        """,
    )
    assert seen.console == []
    found = seen.found
    second = "Step 2 of rank 0: 100.0 ms; rewards 10.0 ms exposed, 10.0 ms hidden, tail 20.0 ms."
    first = "Step 1 of rank 0: 95.0 ms; rewards 10.0 ms exposed, 10.0 ms hidden, tail 20.0 ms."
    assert found["said"][:4] == [second, first, first, second]
    other = "of rank 1: {} ms; rewards 15.0 ms exposed, 10.0 ms hidden, tail 25.0 ms."
    assert found["said"][4:] == ["Step 2 " + other.format("100.0"), "Step 1 " + other.format("95.0")]
    assert found["value"] == "Step 1: 95.0 ms"
    assert found["rows"] == [
        ["reward, exposed", "15.0 ms", "16 %", "15.0 ms", "15 %"],
        ["generate", "40.0 ms", "42 %", "40.0 ms", "41 %"],
        ["update", "18.0 ms", "19 %", "18.0 ms", "18 %"],
        ["log-probs", "10.0 ms", "11 %", "10.0 ms", "10 %"],
        ["loss", "5.0 ms", "5.3 %", "5.0 ms", "5.1 %"],
        ["reward wait (waits)", "2.0 ms", "2.1 %", "2.0 ms", "2.1 %"],
        ["nothing recorded", "5.0 ms", "5.3 %", "7.5 ms", "7.7 %"],
    ]
    assert [len(bar) for bar in found["heights"]] == [7, 7]
    low, high = (sum(bar) for bar in found["heights"])
    assert low / high == pytest.approx(0.95, abs=1e-3)
    assert found["heights"][0][0] / low == pytest.approx(
        15 / 95, abs=1e-3
    )  # the exposed reward, at the bottom
    assert found["tip"][:2] == ["Step 1, 95.0 ms", "generate: 40.0 ms, 42 %"]
    assert found["fetched"] == 0


@needs_chromium
def test_the_timeline_zooms_moves_and_lists_what_it_shows(tmp_path: Path) -> None:
    write_page(two_ranks(tmp_path / "run"), tmp_path / "report.html")
    seen = browse(
        tmp_path / "report.html",
        HELPERS
        + """
        const root = byId("timeline"), said = [text("seen")];
        const at = (part) => {
          const box = root.getBoundingClientRect();
          return { clientX: box.left + part * box.width, clientY: box.top + 50, bubbles: true };
        };
        const names = () => [...root.querySelectorAll(".row-name")].map((one) => one.textContent);
        const wheel = async () => {
          root.dispatchEvent(new WheelEvent("wheel", { deltaY: -100, cancelable: true, ...at(0.5) }));
          await wait();
        };
        await wheel(); said.push(text("seen"));
        root.focus(); await wheel(); said.push(text("seen"));
        await press("timeline", "ArrowRight"); said.push(text("seen"));
        await press("timeline", "Escape"); said.push(text("seen"));
        root.setPointerCapture = () => {}; // a made-up pointer cannot be captured
        root.dispatchEvent(new PointerEvent("pointerdown", { button: 0, ...at(0.4) }));
        root.dispatchEvent(new PointerEvent("pointermove", at(0.6)));
        const selections = drawn(".selection");
        root.dispatchEvent(new PointerEvent("pointerup", at(0.6)));
        await wait(); said.push(text("seen"));
        byId("whole").click(); await wait();
        const rows = names(), hatched = drawn("#timeline .exposed"), shown = drawn("#timeline .span");
        root.dispatchEvent(new PointerEvent("pointermove", at(0.1)));
        const tip = [...byId("tip").children].map((line) => line.textContent);
        byId("all-ranks").click(); await wait();
        byId("listing").open = true; await wait();
        const listed = [...byId("listing").querySelector("tbody").rows].map((row) => row.innerText);
        return { said, selections, rows, hatched, shown, tip, all: names(), listed };
        """,
    )
    assert seen.console == []
    found = seen.found
    everything = "Step 2, rank 0, all of it: 7 spans."
    assert found["said"][:2] == [everything, everything]  # without the focus, the wheel is the page's
    zoomed, moved, whole, dragged = (re.findall(r"([\d.]+) ms", said) for said in found["said"][2:])
    assert found["said"][4] == everything
    length = 100 * math.exp(-0.22)  # of a turn of the wheel
    assert whole == []
    assert [float(one) for one in zoomed] == pytest.approx([50 - length / 2, 50 + length / 2], abs=0.06)
    assert [float(one) for one in moved] == pytest.approx([100 - length, 100], abs=0.06)  # not beyond the end
    assert [float(one) for one in dragged] == pytest.approx([40, 60], abs=0.3)
    assert found["selections"] == 1
    assert found["rows"] == ["rank 0 · MainThread", "rank 0 · rewards", "rank 0 · hooks"]
    assert (found["shown"], found["hatched"]) == (7, 1)
    assert found["tip"] == ["generate: 40.0 ms", "from 0.0 ms"]
    assert len(found["all"]) == 6
    assert len(found["listed"]) == 14
    assert any("judge\trank 1, rewards\t40.0 ms\t25.0 ms\t15.0 ms\t4 texts" in row for row in found["listed"])


@needs_chromium
@pytest.mark.parametrize("scheme", [0, 1], ids=["dark", "light"])
def test_a_phone_shows_any_report_without_scrolling_sideways(tmp_path: Path, scheme: int) -> None:
    title = f"{HOSTILE} {'/a/long/path' * 30}"
    write_page(running(), tmp_path / "report.html", title=title)
    seen = browse(
        tmp_path / "report.html",
        HELPERS
        + """
        const ground = getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number);
        const { scrollWidth } = document.documentElement;
        const { title } = document;
        return { ground, scrollWidth, innerWidth, bars: drawn(".bar"), images: drawn("img"), title };
        """,
        width=390,
        scheme=scheme,
    )
    assert seen.console == []
    assert seen.found["innerWidth"] < 520
    assert seen.found["scrollWidth"] <= seen.found["innerWidth"]
    assert (max(seen.found["ground"]) < 60) == (scheme == 0)
    assert (seen.found["bars"], seen.found["images"]) == (4, 0)
    assert " ".join(seen.found["title"].split()) == " ".join(title.split())


@needs_chromium
def test_thousands_of_spans_are_drawn_as_few_marks(tmp_path: Path) -> None:
    spans = [{"name": f"decode {number % 2}", "begin": number, "end": number + 1} for number in range(21_000)]
    recorded(tmp_path / "run", 0, spans, [(0, 21_000)])
    write_page(Timeline.merge(tmp_path / "run"), tmp_path / "report.html")
    seen = browse(
        tmp_path / "report.html",
        HELPERS
        + """
        const before = drawn("#timeline rect"), said = text("seen"), left = text("spans-left-out");
        byId("listing").open = true; await wait();
        const rows = byId("listing").querySelector("tbody").rows.length;
        const box = byId("timeline").getBoundingClientRect();
        const place = { clientX: box.left + box.width - 30, clientY: box.top + 50, bubbles: true };
        byId("timeline").dispatchEvent(new PointerEvent("pointermove", place));
        const tip = text("tip");
        for (let turn = 0; turn < 12; turn++) timeline.zoom(0.5, 0.9);
        await wait();
        return { before, said, left, rows, tip, after: drawn("#timeline .span") };
        """,
    )
    assert seen.console == []
    assert seen.found["before"] <= 1300
    assert seen.found["said"] == "Step 1, rank 0, all of it: 20,000 spans."
    assert seen.found["left"].startswith("1,000 earlier spans are not drawn")
    assert seen.found["rows"] == 200
    assert "spans: zoom in to see them" in seen.found["tip"]
    assert 2 <= seen.found["after"] <= 30
