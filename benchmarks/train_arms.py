"""Four rewards for the same policies: semantic, ROUGE-L, both, and the answer alone, three seeds each.

    python benchmarks/train_arms.py [--seeds N ...] [--arms NAME ...] [--quick] [--runs FOLDER] [--out FOLDER]
    python benchmarks/train_arms.py --draw FILE.json

Every arm has the right answer and the form among its components; the arms differ in what judges the
explanation. The arms of a seed begin with the same weights, those that `train_demo.py` has after SFT, and see
the same questions in the same order. What is done is not done again, and an arm that was interrupted goes on
from its newest checkpoint: so run it again until all is there.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

# The repository, which is not on the path of a script in a folder below it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.table import Table

from benchmarks.measure import provenance, wide_console, write_results
from benchmarks.train_demo import MEASURES, smoothed
from benchmarks.training import ARMS, CHANCE, SPLITS, STAGES
from benchmarks.training_results import asked_table, drawn, parser_of, run_of

LABELS: Final = {
    "sft": "SFT alone",
    "semantic": "semantic",
    "rouge": "ROUGE-L",
    "semantic+rouge": "semantic + ROUGE-L",
    "answer": "answer alone",
}
COLOURS: Final = {
    "sft": "#bdbdbd",
    "semantic": "#08519c",
    "rouge": "#b07d48",
    "semantic+rouge": "#4292c6",
    "answer": "#7f7f7f",
}
JUDGED_SEEDS: Final = 3  # fewer judge nothing


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation, which is 0 of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def by_arm(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of SFT and of each arm, in the order of seeds."""
    return {arm: found for arm in LABELS if (found := [row for row in rows if row["stage"] == arm])}


def gains(rows: Sequence[Mapping[str, Any]], arm: str, split: str, measure: str) -> list[float]:
    """What an arm has more than the SFT of its seed, by seed."""
    before = {row["seed"]: row[split][measure] for row in rows if row["stage"] == "sft"}
    return [row[split][measure] - before[row["seed"]] for row in rows if row["stage"] == arm]


def asked(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hold what came out against what is asked; of less than three seeds nothing is judged."""
    found: list[dict[str, Any]] = []
    split = "held_out_numbers"
    for measure, bound, at_most in (("accuracy", 0.4, False), ("semantic", 0.85, True)):
        values = [row[split][measure] for row in rows if row["stage"] == "sft"]
        found.append(judged(f"{measure} after SFT, new numbers", values, bound, at_most))
    for measure in ("semantic", "accuracy"):
        values = gains(rows, "semantic", split, measure)
        if values:
            what = f"{measure}, semantic arm less SFT, new numbers"
            found.append(judged(what, values, 0.0, False, strict=measure == "semantic"))
    return found


def judged(
    what: str, values: Sequence[float], bound: float, at_most: bool, *, strict: bool = False
) -> dict[str, Any]:
    """A mean against its bound, which it may be itself unless that is strict, with its spread."""
    mean, deviation = spread(values)
    met: bool | None = (mean <= bound if at_most else mean >= bound) and not (strict and mean == bound)
    if len(values) < JUDGED_SEEDS:
        met = None
    found = {"what": what, "value": mean, "spread": deviation, "values": list(values)}
    return found | {"bound": bound, "at_most": at_most, "strict": strict, "met": met}


def arm_table(rows: Sequence[Mapping[str, Any]], split: str) -> Table:
    """A line for each arm: mean ± standard deviation over seeds, and the gain over the seed's SFT."""
    seeds = len({row["seed"] for row in rows})
    table = Table(title=f"{split.replace('_', ' ')}: mean ± std over {seeds} seeds (gain over SFT)")
    table.add_column("reward")
    for label in (*MEASURES.values(), "tokens"):
        table.add_column(label, justify="right")
    for arm, found in by_arm(rows).items():
        cells = []
        for measure in (*MEASURES, "length"):
            mean, deviation = spread([row[split][measure] for row in found])
            cell = f"{mean:.1f} ± {deviation:.1f}" if measure == "length" else f"{mean:.3f} ± {deviation:.3f}"
            if arm != "sft" and measure != "length":
                more, of_gain = spread(gains(rows, arm, split, measure))
                cell += f" ({more:+.3f} ± {of_gain:.3f})"
            cells.append(cell)
        table.add_row(LABELS[arm], *cells)
    return table


def draw(content: Mapping[str, Any], out: Path) -> None:
    """Draw a result: training by step above, held-out questions by arm below, a dot for each seed."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    measures = {"semantic": "semantic_reward", "rouge_l": "rouge_l_reward", "accuracy": "answer_reward"}
    figure, grid = pyplot.subplots(3, 3, figsize=(15, 12), layout="constrained")
    for axes, (measure, component) in zip(grid[0], measures.items(), strict=True):
        for arm, runs in content["steps"].items():
            curves = [smoothed(steps[f"rewards/{component}/mean"]) for steps in runs]
            mean = [statistics.fmean(values) for values in zip(*curves, strict=True)]
            for curve in curves:
                axes.plot(curve, color=COLOURS[arm], alpha=0.25, linewidth=0.8)
            axes.plot(mean, color=COLOURS[arm], label=LABELS[arm])
        axes.set_title(f"{MEASURES[measure]}, in training")
        axes.set_xlabel("step")
    grid[0][0].legend(fontsize=8)
    for split, line in zip(SPLITS, grid[1:], strict=True):
        for axes, measure in zip(line, measures, strict=True):
            bars(axes, content["rows"], split, measure)
    seeds = len({row["seed"] for row in content["rows"]})
    figure.suptitle(f"{seeds} seeds; {content['device']}, commit {content['commit']}", fontsize=9)
    figure.savefig(out, dpi=100)
    pyplot.close(figure)


def bars(axes: Any, rows: Sequence[Mapping[str, Any]], split: str, measure: str) -> None:
    """A bar for each arm's mean, and the seeds as dots."""
    for place, (arm, found) in enumerate(by_arm(rows).items()):
        values = [row[split][measure] for row in found]
        axes.bar(place, statistics.fmean(values), color=COLOURS[arm], width=0.7)
        axes.plot([place] * len(values), values, "o", color="black", markersize=3)
    if measure == "accuracy":
        axes.axhline(CHANCE, color="black", linestyle=":", linewidth=1)
    axes.set_xticks(range(len(by_arm(rows))), [LABELS[arm] for arm in by_arm(rows)], rotation=20, fontsize=8)
    axes.set_title(f"{MEASURES[measure]}, {split.replace('_', ' ')}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train all that is missing, print what came out, and keep it: 0 when all arms are done."""
    parser = parser_of("train_arms.py", "One policy, four rewards.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args(arguments)
    console = wide_console()
    if options.draw is None:
        runs = [
            run_of(options, seed, tell=lambda line: console.print(line, soft_wrap=True))
            for seed in options.seeds
        ]
        rows = [{"seed": run.seed, **run.stage(name)} for run in runs for name in (*STAGES, *options.arms)]
        content = {
            **provenance(torch.device("cpu")),
            "suite": "train_arms",
            "settings": runs[0].settings | {"seeds": options.seeds, "quick": options.quick},
            "rows": rows,
            "steps": {arm: [run.curves(arm) for run in runs] for arm in options.arms},
            "asked": asked(rows),
        }
        for split in SPLITS:
            console.print(arm_table(rows, split))
        console.print(asked_table(content["asked"]))
        options.draw = write_results(options.out or options.runs, "train_arms", content)
        console.print(f"wrote {options.draw}", soft_wrap=True)
    console.print(f"drew {drawn(options.draw, draw)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
