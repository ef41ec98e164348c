"""Draws a result of gpu_suite.py: `python benchmarks/plot.py FILE.json [--out FILE.png|.svg]`.

Tokens a second by encoder, MFU by mean length, a GRPO step's reward, latency, and what the ops reach of their
ceilings: as many of these as the file has rows for. Needs matplotlib.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# The repository, which is not on the path of a script in a folder below it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.workloads import OURS, SENTENCE_TRANSFORMERS

HUGGING_FACE: Final = "Hugging Face"
QUOTED_LENGTH: Final = 200

# Ours in blues, peers in greys and browns: told apart in print and by colour-blind eyes.
OUR_COLOURS: Final = ("#08519c", "#4292c6", "#9ecae1", "#c6dbef")
PEER_COLOURS: Final = ("#7f7f7f", "#b07d48", "#bdbdbd", "#d9c3a3", "#e3e3e3")


class NothingToDrawError(Exception):
    """A file holds no row that was timed."""


@dataclass(frozen=True)
class Results:
    """The rows of a file that were timed."""

    content: Mapping[str, Any]

    @property
    def timed(self) -> list[dict[str, Any]]:
        """Rows with times."""
        return [row for row in self.content["rows"] if row.get("p50_s")]

    def of(self, pattern: str) -> list[tuple[re.Match[str], dict[str, Any]]]:
        """Rows whose workload matches, each with the match."""
        matches = ((re.fullmatch(pattern, row["workload"]), row) for row in self.timed)
        return [(match, row) for match, row in matches if match is not None]

    def encoders(self, group: str) -> dict[tuple[str, int], list[dict[str, Any]]]:
        """Rows of "encoder" or "strings" by the encoder's name and the mean length."""
        found: dict[tuple[str, int], list[dict[str, Any]]] = {}
        for match, row in self.of(rf"{group}-(.+)-(\d+)"):
            found.setdefault((match[1], int(match[2])), []).append(row)
        return found

    def asked(self, workload: str, quantity: str) -> float | None:
        """What is asked of a workload."""
        for target in self.content.get("targets", ()):
            if target["what"].startswith(f"{workload}, ") and target["asked"] == quantity:
                return float(target["bound"])
        return None


def fastest(rows: Sequence[Mapping[str, Any]], prefix: str) -> Mapping[str, Any] | None:
    """The fastest row of the variants that begin so."""
    chosen = [row for row in rows if row["variant"].startswith(prefix)]
    return min(chosen, key=lambda row: float(row["p50_s"]), default=None)


def exactly(rows: Sequence[Mapping[str, Any]], variant: str) -> Mapping[str, Any] | None:
    """The row of one variant."""
    return next((row for row in rows if row["variant"] == variant), None)


Panel = Callable[[Any, Results], bool]
"""Draws on axes; False where there is nothing to draw."""


def tokens_per_second(axes: Any, results: Results) -> bool:
    """Bars by encoder at the mean length that is quoted."""
    by_ids, by_strings = results.encoders("encoder"), results.encoders("strings")
    names = list(dict.fromkeys(n for n, mean in (*by_ids, *by_strings) if mean == QUOTED_LENGTH))
    bars = (
        (f"{OURS}, from ids", by_ids, lambda rows: exactly(rows, OURS), OUR_COLOURS[0]),
        (f"{OURS}, from strings", by_strings, lambda rows: exactly(rows, OURS), OUR_COLOURS[1]),
        (f"{HUGGING_FACE}, from ids", by_ids, lambda rows: fastest(rows, HUGGING_FACE), PEER_COLOURS[0]),
        (
            *(f"{SENTENCE_TRANSFORMERS}, from strings", by_strings),
            *(lambda rows: fastest(rows, SENTENCE_TRANSFORMERS), PEER_COLOURS[1]),
        ),
    )
    width = 0.8 / len(bars)
    for number, (label, source, choose, colour) in enumerate(bars):
        found = {i: choose(source.get((name, QUOTED_LENGTH), ())) for i, name in enumerate(names)}
        places = [i for i, row in found.items() if row]
        heights = [row["tokens_per_s"] / 1e6 for row in found.values() if row]
        drawn = axes.bar(
            [i + (number - 1.5) * width for i in places], heights, width, label=label, color=colour
        )
        axes.bar_label(drawn, fmt="%.2g", fontsize=7, padding=1)
    for i, name in enumerate(names):
        bound = results.asked(f"encoder-{name}-{QUOTED_LENGTH}", "M tokens/s")
        if bound is not None:
            axes.hlines(bound, i - 2 * width, i - width, colors="#d62728", linewidth=2, zorder=3)
            if name == names[0]:
                axes.plot([], [], color="#d62728", linewidth=2, label="asked, from ids")
    axes.set_yscale("log")
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("M tokens a second")
    axes.set_title(f"Mean length {QUOTED_LENGTH}")
    axes.margins(y=0.2)
    if names:
        axes.legend(fontsize=8)
    return bool(names)


def mfu(axes: Any, results: Results) -> bool:
    """Lines of MFU by mean length, ours and Hugging Face's from ids."""
    from matplotlib.lines import Line2D

    rows = results.encoders("encoder")
    means = sorted({mean for _, mean in rows})
    colours = {name: f"C{i}" for i, name in enumerate(dict.fromkeys(name for name, _ in rows))}
    for name, colour in colours.items():
        for style, choose in (
            ("o-", lambda found: exactly(found, OURS)),
            ("x:", lambda found: fastest(found, HUGGING_FACE)),
        ):
            found = [(mean, choose(rows.get((name, mean), ()))) for mean in means]
            points = [(means.index(mean), row["mfu_percent"]) for mean, row in found if row]
            axes.plot(*zip(*points, strict=True), style, color=colour) if points else None
    handles = [Line2D([], [], color=colour, label=name) for name, colour in colours.items()]
    handles += [
        Line2D([], [], color="k", marker="o", label=OURS),
        Line2D([], [], color="k", marker="x", linestyle=":", label=HUGGING_FACE),
    ]
    axes.set_xticks(range(len(means)), means)
    axes.set_xlabel("mean tokens of a text")
    axes.set_ylabel("% of the peak in bf16")
    axes.set_ylim(bottom=0)
    axes.margins(x=0.1)
    axes.set_title("MFU from ids")
    axes.legend(handles=handles, fontsize=8, ncols=2)
    return bool(rows)


def step(axes: Any, results: Results) -> bool:
    """Bars of a GRPO step's reward."""
    rows = results.of(r"step-(.+)")
    labels = [f"{match[1]}: {row['variant']}" for match, row in rows]
    colours = [OUR_COLOURS[1] if row["variant"].startswith(OURS) else PEER_COLOURS[2] for _, row in rows]
    places = range(len(rows))
    drawn = axes.barh(places, [1e3 * row["p50_s"] for _, row in rows], color=colours)
    axes.bar_label(drawn, fmt="%.3g ms", fontsize=8, padding=2)
    axes.set_yticks(places, labels, fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.set_xlabel("ms, median")
    axes.set_title("Reward of one GRPO step (32 × 16 × 200 tokens)")
    return bool(rows)


def latency(axes: Any, results: Results) -> bool:
    """Bars of the medians by number of texts, with the 99th percentile above."""
    rows = results.of(r"latency-(\d+)")
    counts = sorted({int(match[1]) for match, _ in rows})
    variants = list(dict.fromkeys(row["variant"] for _, row in rows))
    width = 0.8 / max(1, len(variants))
    ours, peers = iter(OUR_COLOURS), iter(PEER_COLOURS)
    for number, variant in enumerate(variants):
        found = [(counts.index(int(m[1])), row) for m, row in rows if row["variant"] == variant]
        places = [place + (number - (len(variants) - 1) / 2) * width for place, _ in found]
        p50 = [1e3 * row["p50_s"] for _, row in found]
        above = [max(0.0, 1e3 * row["p99_s"] - p) for (_, row), p in zip(found, p50, strict=True)]
        colour = next(ours if variant.startswith(OURS) else peers)
        axes.bar(places, p50, width, yerr=[[0.0] * len(p50), above], capsize=2, color=colour, label=variant)
    bound = results.asked("latency-64", "ms")
    if bound is not None and 64 in counts:
        place = counts.index(64)
        axes.hlines(
            bound, place - 0.45, place + 0.45, colors="#d62728", linewidth=2, label="asked, CUDA graphs"
        )
    axes.set_xticks(range(len(counts)), counts)
    axes.set_xlabel("texts of 16 tokens")
    axes.set_ylabel("ms, median; whisker: p99")
    axes.set_title("Latency, MiniLM-L6")
    axes.margins(y=0.15)
    if rows:
        axes.legend(fontsize=8)
    return bool(rows)


def ops(axes: Any, results: Results) -> bool:
    """Bars of what our ops reach of their ceilings."""
    rows = [
        row
        for row in results.timed
        if row["variant"] == OURS and row["percent_of_ceiling"] and not row["tokens_per_s"]
    ]
    places = range(len(rows))
    drawn = axes.barh(places, [row["percent_of_ceiling"] for row in rows], color=OUR_COLOURS[1])
    axes.bar_label(drawn, fmt="%.0f", fontsize=7, padding=2)
    axes.set_yticks(places, [row["workload"] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.12, y=0.01)
    axes.set_xlabel("% of a copy, or of a matrix product, in the same run")
    axes.set_title("Ops")
    return bool(rows)


PANELS: Final[tuple[Panel, ...]] = (tokens_per_second, mfu, step, latency)


def draw(content: Mapping[str, Any], out: Path) -> Path:
    """Draw a result into a file of the kind that its ending says.

    Raises:
        ImportError: If matplotlib is not installed.
        NothingToDrawError: If nothing in it was timed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise ImportError('matplotlib is not installed: pip install "fastreward[plot]"') from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    results = Results(content)
    figure, grid = pyplot.subplots(2, 3, figsize=(21, 11), width_ratios=(1.2, 1, 0.9), layout="constrained")
    tall = figure.add_subplot(grid[0, 2].get_gridspec()[:, 2])
    for axes in grid[:, 2]:
        axes.remove()
    places = (*grid[:, :2].flat, tall)
    drawn = [panel(axes, results) for panel, axes in zip((*PANELS, ops), places, strict=True)]
    for axes, anything in zip(places, drawn, strict=True):
        if not anything:
            axes.clear()
            axes.set_axis_off()
            axes.text(0.5, 0.5, "not measured in this run", ha="center", transform=axes.transAxes)
        else:
            axes.spines[["top", "right"]].set_visible(False)
    if not any(drawn):
        pyplot.close(figure)
        raise NothingToDrawError("the file holds nothing that was timed")
    figure.suptitle(_title(content))
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
    return out


def _title(content: Mapping[str, Any]) -> str:
    versions = content["versions"]
    title = (
        f"{content['device']}, torch {versions['torch']}, {content['date'][:10]}, commit {content['commit']}"
    )
    return f"DRY RUN ON A CPU, no measurement: {title}" if content["settings"].get("dry_run") else title


def draw_beside(path: Path) -> Path:
    """Draw a result file into a PNG of the same name.

    Raises:
        ImportError: If matplotlib is not installed.
        NothingToDrawError: If nothing in it was timed.
    """
    return draw(json.loads(path.read_text(encoding="utf-8")), path.with_suffix(".png"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw a file: 0 when it is drawn, 1 when it holds nothing to draw or matplotlib is missing."""
    parser = argparse.ArgumentParser(prog="plot.py", description="Draws a result of gpu_suite.py.")
    parser.add_argument("file", type=Path, help="the JSON file")
    parser.add_argument("--out", type=Path, help="a .png or .svg file (default: a PNG beside the JSON)")
    options = parser.parse_args(arguments)
    try:
        content = json.loads(options.file.read_text(encoding="utf-8"))
        print(draw(content, options.out or options.file.with_suffix(".png")))
    except (ImportError, NothingToDrawError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
