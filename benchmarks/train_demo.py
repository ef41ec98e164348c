"""CPT → SFT → GRPO on a CPU: a policy of a few million parameters learns to answer exam questions and why.

    python benchmarks/train_demo.py [--seed N] [--quick] [--runs FOLDER] [--out FOLDER]
    python benchmarks/train_demo.py --draw FILE.json

The policy begins with random weights. It is asked held-out questions before the first stage and after each,
with numbers that training never had and with templates that it never had: one answer for each, sampled at
temperature 1, as GRPO samples. It answers in words, with the text of an option in place of its letter: a
guess among the options is right once in five times, and a text that is none of them never. What is done is
kept in the folder of the run, and is not done again.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

# The repository, which is not on the path of a script in a folder below it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from rich.table import Table

from benchmarks.measure import provenance, wide_console, write_results
from benchmarks.training import CHANCE, SPLITS, STAGES
from benchmarks.training_results import asked_table, drawn, parser_of, run_of

ARM: Final = "semantic"
MEASURES: Final = {
    "accuracy": "accuracy",
    "semantic": "semantic score",
    "rouge_l": "ROUGE-L",
    "format": "form",
}
COMPONENTS: Final = {
    "semantic_reward": "semantic score",
    "answer_reward": "answer",
    "format_reward": "form",
    "rouge_l_reward": "ROUGE-L (not rewarded)",
}
COLOURS: Final = ("#08519c", "#b07d48", "#7f7f7f", "#9ecae1")


def asked(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Hold what came out against what is asked of the demonstration."""
    by_stage = {row["stage"]: row for row in rows}
    sft, grpo = by_stage["sft"]["held_out_numbers"], by_stage[ARM]["held_out_numbers"]
    gains = {name: grpo[name] - sft[name] for name in ("semantic", "accuracy")}
    seconds = sum(row["seconds"] + row["asking_s"] for row in rows)
    return [
        judged("accuracy after SFT, new numbers", sft["accuracy"], 0.4),
        judged("semantic score after SFT, new numbers", sft["semantic"], 0.85, at_most=True),
        judged("semantic after GRPO less that after SFT, new numbers", gains["semantic"], 0.0, strict=True),
        judged("accuracy after GRPO less that after SFT, new numbers", gains["accuracy"], 0.0),
        judged("seconds of all stages and questions", seconds, 900.0, at_most=True),
    ]


def judged(
    what: str, value: float, bound: float, *, at_most: bool = False, strict: bool = False
) -> dict[str, Any]:
    """A value against its bound, which it may be itself unless that is strict."""
    met = (value <= bound if at_most else value >= bound) and not (strict and value == bound)
    return {"what": what, "value": value, "bound": bound, "at_most": at_most, "strict": strict, "met": met}


def stage_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """A line for each stage, and both splits beside each other."""
    table = Table(title="held-out questions, one sampled answer each")
    table.add_column("after")
    table.add_column("seconds", justify="right")
    for split in SPLITS:
        for label in MEASURES.values():
            table.add_column(f"{split.removeprefix('held_out_')}: {label}", justify="right")
    for row in rows:
        values = [f"{row[split][name]:.3f}" for split in SPLITS for name in MEASURES]
        table.add_row(row["stage"] if row["stage"] != ARM else "GRPO", f"{row['seconds']:.0f}", *values)
    return table


def draw(content: Mapping[str, Any], out: Path) -> None:
    """Draw a result: the reward and its components by step, and what held-out questions say by stage."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (steps, *stages) = pyplot.subplots(1, 4, figsize=(19, 4.6), layout="constrained")
    for (name, label), colour in zip(COMPONENTS.items(), COLOURS, strict=True):
        values = content["steps"][f"rewards/{name}/mean"]
        style = ":" if name == "rouge_l_reward" else "-"
        steps.plot(range(1, len(values) + 1), values, color=colour, alpha=0.25, linewidth=0.8)
        steps.plot(range(1, len(values) + 1), smoothed(values), style, color=colour, label=label)
    steps.set_xlabel("step of GRPO")
    steps.set_title("the reward's components, of what is trained on")
    steps.legend(fontsize=8)
    shown = [(name, label) for name, label in MEASURES.items() if name != "rouge_l"]
    names = ["GRPO" if row["stage"] == ARM else row["stage"] for row in content["rows"]]
    for axes, (measure, label) in zip(stages, shown, strict=True):
        for split, colour in zip(SPLITS, COLOURS, strict=False):
            values = [row[split][measure] for row in content["rows"]]
            axes.plot(names, values, "o-", color=colour, label=split.replace("_", " "))
        if measure == "accuracy":
            axes.axhline(CHANCE, color="#7f7f7f", linestyle=":", linewidth=1, label="chance")
        axes.set_ylim(0, 1)
        axes.set_title(f"{label}, by stage")
        axes.legend(fontsize=8)
    parameters = next(row["parameters"] for row in content["rows"] if "parameters" in row)
    title = f"{parameters / 1e6:.1f} M parameters from random weights, seed {content['settings']['seed']}"
    figure.suptitle(f"{title}; {content['device']}, commit {content['commit']}", fontsize=9)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)


def smoothed(values: Sequence[float], width: int = 7) -> list[float]:
    """The mean of each value and those around it."""
    half = width // 2
    windows = [values[max(0, i - half) : i + half + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def main(arguments: Sequence[str] | None = None) -> int:
    """Train, print what came out, and keep it: 0 when all stages are done."""
    parser = parser_of("train_demo.py", "CPT, SFT and GRPO of a small policy.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    console = wide_console()
    if options.draw is None:
        run = run_of(options, options.seed, tell=lambda line: console.print(line, soft_wrap=True))
        rows = [run.stage(name) for name in (*STAGES, ARM)]
        content = {
            **provenance(torch.device("cpu")),
            "suite": "train_demo",
            "settings": run.settings | {"quick": options.quick},
            "rows": rows,
            "steps": run.curves(ARM),
            "asked": asked(rows),
        }
        console.print(stage_table(rows), asked_table(content["asked"]))
        options.draw = write_results(options.out or run.folder, "train_demo", content)
        console.print(f"wrote {options.draw}", soft_wrap=True)
    console.print(f"drew {drawn(options.draw, draw)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
