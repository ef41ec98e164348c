"""The README's numbers, from the committed results: `python benchmarks/readme_numbers.py [--check]`.

It writes what stands between two lines of README.md, `<!-- numbers:begin -->` and `<!-- numbers:end -->`,
from the latest files below `results/` of each suite in `QUOTED` that hold all the rows that are quoted. A
quick run, a dry run and one of a tree with uncommitted changes are no evidence, and passed over. With
`--check` it writes nothing, and fails where the README is not what it would write.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

# The repository, which is not on the path of a script in a folder below it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.plot import HUGGING_FACE, exactly, fastest
from benchmarks.workloads import OURS, SENTENCE_TRANSFORMERS

ROOT: Final = Path(__file__).resolve().parents[1]
BEGIN: Final = "<!-- numbers:begin -->"
END: Final = "<!-- numbers:end -->"
WIDTH: Final = 118

Content = Mapping[str, Any]
Row = Mapping[str, Any]

ENCODERS: Final = ("minilm-l6", "e5-small", "bge-base", "bge-large", "modernbert-base")
SCORER_ROWS: Final = {
    "reward-fp32": "reward of the rows, no reference known, fp32",
    "reward-bf16": "the same, both in bf16",
    "completions-fp32": "the completions alone, fp32",
    "completions-bf16": "the completions alone, both in bf16",
}
INVARIANT_ROWS: Final = {"batch-invariant-fp32": "fp32", "batch-invariant-bf16": "bf16"}
ENCODER_ROWS: Final = {
    "minilm": "all-MiniLM",
    "xlm-r": "an XLM-R of three layers of 768 columns",
    "modernbert": "a ModernBERT of four",
}
PRECISIONS: Final = ("bf16", "fp32")

QUOTED: Final[Mapping[str, tuple[str, ...]]] = {
    "gpu_suite": (
        *(f"encoder-{name}-200" for name in ENCODERS),
        *(f"strings-{name}-200" for name in ENCODERS),
        *("step-minilm-l6", "latency-1", "latency-8", "latency-64"),
    ),
    "bench_scorer": (*SCORER_ROWS, *INVARIANT_ROWS),
    "bench_cpu": ("embed, equal fidelity", "embed, the usual way", "embed, int8", "step, cold", "step, warm"),
    "bench_trl": ("trl-grpo-step",),
    "bench_encoder": tuple(f"{name}-{precision}" for name in ENCODER_ROWS for precision in PRECISIONS),
    "bench_grpo": ("TRL, sentence-transformers", "TRL, fastreward", "bundled loop, fastreward beside"),
    "train_arms": ("sft", "semantic"),
}
"""What a file must hold to be quoted: names of workloads, of rows, of arms or of stages."""

TRAINED: Final = {"accuracy": "right answers", "semantic": "semantic score", "rouge_l": "ROUGE-L"}
TRAINED_ARMS: Final = {
    "sft": "fine-tuned",
    "semantic": "then GRPO by the semantic score",
    "rouge": "then GRPO by ROUGE-L",
    "semantic+rouge": "then GRPO by both",
    "answer": "then GRPO by the answer alone",
}


class NumbersError(Exception):
    """The README has no place for the numbers."""


def latest(results: Path, suite: str) -> list[tuple[Path, Content]]:
    """Find a suite's latest evidence on each device, and of each policy there, by the folders' names."""
    found: dict[tuple[str, str], tuple[Path, Content]] = {}
    for path in sorted(results.glob(f"*/{suite}-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not is_evidence(content, QUOTED[suite]):
            continue
        key = path.parent.name, content["settings"].get("policy", "")
        before = found.get(key)
        if before is None or content["date"] > before[1]["date"]:
            found[key] = (path, content)
    return [found[key] for key in sorted(found)]


def is_evidence(content: Content, quoted: Sequence[str]) -> bool:
    """Whether a file may be quoted, and holds all that is."""
    settings = content["settings"]
    names = {row.get(kind) for row in content["rows"] for kind in ("workload", "name", "arm", "stage")}
    whole = not settings.get("quick") and not settings.get("dry_run")
    return whole and content.get("uncommitted_changes") is not True and names >= set(quoted)


def block(results: Path) -> str:
    """Write all that stands between the two lines."""
    parts = [on_a_gpu(path, content) for path, content in latest(results, "gpu_suite")]
    if not parts:
        parts = [_wrapped("No GPU has measured this version yet; on one, `make gpu` does.")]
    parts += [back_ends_on_a_cpu(path, content) for path, content in latest(results, "bench_cpu")]
    parts += [trl_on_a_cpu(path, content) for path, content in latest(results, "bench_trl")]
    parts += [scorer_on_a_cpu(path, content) for path, content in latest(results, "bench_scorer")]
    parts += [encoder_on_a_cpu(path, content) for path, content in latest(results, "bench_encoder")]
    parts += [grpo_on_a_cpu(path, content) for path, content in latest(results, "bench_grpo")]
    parts += [trained_on_a_cpu(path, content) for path, content in latest(results, "train_arms")]
    return "\n\n".join(parts)


# --------------------------------------------------------------------------- on a GPU


def on_a_gpu(path: Path, content: Content) -> str:
    """Encoders, a step and latency, with what is asked of them."""
    rows: dict[str, list[Row]] = {}
    for row in content["rows"]:
        if row.get("p50_s"):
            rows.setdefault(row["workload"], []).append(row)
    return "\n\n".join(
        (
            _wrapped(
                f"On one {content['device']} in bf16, texts of log-normal lengths with a mean of 200 tokens, "
                f"medians of rounds in which the variants take turns{_source(path, content)}, by `make gpu`:"
            ),
            _encoders(rows),
            _steps_and_latency(rows),
            _verdict(content),
        )
    )


def _encoders(rows: Mapping[str, Sequence[Row]]) -> str:
    lines = [
        "| encoder | from ids, M tokens/s | MFU | Hugging Face's model | from strings, M tokens/s "
        "| words known | sentence-transformers, tuned | times as fast |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in ENCODERS:
        ids, strings = rows.get(f"encoder-{name}-200", ()), rows.get(f"strings-{name}-200", ())
        ours, texts = exactly(ids, OURS), exactly(strings, OURS)
        peer, usual = fastest(ids, HUGGING_FACE), fastest(strings, SENTENCE_TRANSFORMERS)
        known = texts and texts["facts"].get("hit_rate")
        cells = (
            name,
            *(_million(ours), "" if ours is None else f"{ours['mfu_percent']:.0f} %", _million(peer)),
            *(_million(texts), "" if known is None else f"{100 * known:.0f} %", _million(usual)),
            _times(texts, usual),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _steps_and_latency(rows: Mapping[str, Sequence[Row]]) -> str:
    lines = ["| what, MiniLM-L6 | variant | p50 | p99 |", "|---|---|---|---|"]
    labels = {
        "step-minilm-l6": "reward of a step, 32 prompts × 16 completions",
        **{f"latency-{n}": f"scores of {n} text{'s' if n > 1 else ''} of 16 tokens" for n in (1, 8, 64)},
    }
    for workload, label in labels.items():
        for row in rows.get(workload, ()):
            tail = row.get("p99_s")
            cells = (label, row["variant"], _ms(row["p50_s"]), "" if tail is None else _ms(tail))
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(content: Content) -> str:
    missed = [t for t in content["targets"] if t["met"] is False]
    met = sum(t["met"] is True for t in content["targets"])
    text = f"Of what is asked, {met} of {len(content['targets'])} are met."
    for target in missed:
        sign = "≤" if target["at_most"] else "≥"
        found = f"{target['value']:.3g} {target['asked']}, {sign} {target['bound']:g} asked"
        text += f" Missed: {target['what']}, {found}."
    untried = [target["what"] for target in content["targets"] if target["met"] is None]
    return _wrapped(text + (f" Not tried: {'; '.join(untried)}." if untried else ""))


# --------------------------------------------------------------------------- on a CPU


def back_ends_on_a_cpu(path: Path, content: Content) -> str:
    """Every way to embed, with what it costs in fidelity, and what is asked of ours."""
    settings = content["settings"]
    head = (
        f"Embedding on {_cpu(content)}, all-MiniLM-L6-v2, {8 * settings['groups']} candidates of "
        f"{settings['groups']} groups ({settings['texts']}), each peer shown with the batch size that suits "
        f"it best but for the usual way, medians of {settings['rounds']} rounds in which all take turns"
        f"{_source(path, content)}, by `python benchmarks/bench_cpu.py --out benchmarks/results`:"
    )
    lines = ["| way | texts/s | largest cosine error | Spearman within groups |", "|---|---|---|---|"]
    for way in content["ways"]:
        fidelity, name = (
            way["fidelity"],
            f"**fastreward, {way['variant']}**" if way["own"] else way["variant"],
        )
        cells = f"{way['texts_per_s']:.0f} | {fidelity['largest_cosine_error']:.0e}"
        lines.append(f"| {name} | {cells} | {fidelity['spearman_within']:.4f} |")
    asked = ["| what | ours | beside | times as fast | asked |", "|---|---|---|---|---|"]
    for row in content["rows"]:
        cells = (row["name"], row["fast"]["variant"], row["slow"]["variant"])
        ratio = f"{row['ratio']['of_medians']:.2f}"
        asked.append(f"| {' | '.join(cells)} | {ratio} | {row['asked'] or ''} |")
    return "\n\n".join((_wrapped(head), "\n".join(lines), "\n".join(asked)))


def trl_on_a_cpu(path: Path, content: Content) -> str:
    """The reward's seconds in a step of TRL's GRPO."""
    settings, slow = content["settings"], content["rows"][0]["slow"]
    ours = " and ".join(
        f"{row['fast']['p50_s']:.2f} s ({row['backend']}, {row['dtype']}; "
        f"{row['ratio']['of_medians']:.1f} times as fast)"
        for row in content["rows"]
    )
    int8 = " --int8" if any(row["dtype"] == "int8" for row in content["rows"]) else ""
    return _wrapped(
        f"In TRL {content['versions']['trl']}'s GRPO on {_cpu(content)}, {settings['completions']} "
        f"completions a step, the reward takes {slow['p50_s']:.2f} s with sentence-transformers encoding "
        f"both sides; with fastreward {ours} ({content['rows'][0]['asked']} asked){_source(path, content)}, "
        f"by `python benchmarks/bench_trl.py{int8} --out benchmarks/results`."
    )


def grpo_on_a_cpu(path: Path, content: Content) -> str:
    """A step of GRPO in TRL with either reward, and in the bundled loop."""
    settings = content["settings"]
    own_core = ", which leaves the reward a core" if content["reward_has_a_core_of_its_own"] else ""
    head = (
        f"A GRPO step of {settings['completions']} completions of {settings['tokens']} tokens each, a policy "
        f"of {content['policy_parameters'] / 1e6:.1f} M parameters on {_cpu(content)}{own_core}, generation "
        f"left out, medians of {settings['rounds']} rounds in turns{_source(path, content)}, by "
        f"`python benchmarks/bench_grpo.py --policy {settings['policy']} --micro-batch "
        f"{settings['micro_batch']} --threads {content['torch_threads']} --out benchmarks/results`. Exposed "
        "is what the step is longer by than with a reward that costs nothing:"
    )
    lines = ["| arm | step | reward | of the step | exposed | of the step |", "|---|---|---|---|---|---|"]
    for row in content["rows"]:
        cells = (
            row["arm"],
            *(f"{row['step']['p50_s']:.2f} s", f"{row['reward']['p50_s']:.2f} s"),
            f"{100 * row['reward_share_of_step']:.0f} %",
            f"{row['exposed']['p50_s']:.2f} s",
            f"{100 * row['exposed_share_of_step']:.1f} %",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n\n".join((_wrapped(head), "\n".join(lines)))


def trained_on_a_cpu(path: Path, content: Content) -> str:
    """What came of the small policy, over the seeds."""
    arms: dict[str, list[Row]] = {}
    for row in content["rows"]:
        arms.setdefault(row["stage"], []).append(row["held_out_numbers"])
    arms_run = [arm for arm in TRAINED_ARMS if arm in arms and arm != "sft"]
    every = len(arms_run) == len(TRAINED_ARMS) - 1
    chosen = f"python benchmarks/train_arms.py --arms {' '.join(arms_run)}"
    command = "make train-arms" if every else chosen
    parameters = next(row["parameters"] for row in content["rows"] if "parameters" in row)
    head = (
        f"A policy of {parameters / 1e6:.1f} M parameters from random weights through continued "
        f"pre-training, fine-tuning and {content['settings']['grpo_steps']} steps of GRPO, asked exam "
        f"questions with numbers that are new to it, mean ± standard deviation over {len(arms['sft'])} seeds "
        f"(chance is 0.2 of right answers){_source(path, content)}, by `{command}`:"
    )
    lines = [f"| after | {' | '.join(TRAINED.values())} |", "|---|---|---|---|"]
    for arm, label in TRAINED_ARMS.items():
        if arm in arms:
            cells = (_mean_and_deviation([one[measure] for one in arms[arm]]) for measure in TRAINED)
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n\n".join((_wrapped(head), "\n".join(lines)))


def _mean_and_deviation(values: Sequence[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):.3f} ± {deviation:.3f}"


def scorer_on_a_cpu(path: Path, content: Content) -> str:
    """The scorer beside sentence-transformers."""
    rows = {row["name"]: row for row in content["rows"]}
    version = ".".join(content["versions"]["sentence-transformers"].split(".")[:2])
    lines = [
        f"| what | fastreward | sentence-transformers {version} at its defaults | times as fast |",
        "|---|---|---|---|",
    ]
    for name, label in SCORER_ROWS.items():
        row = rows[name]
        fast, slow, ratio = row["fast"]["p50_s"], row["slow"]["p50_s"], row["ratio"]["of_medians"]
        lines.append(f"| {label} | {fast:.2f} s | {slow:.2f} s | {ratio:.1f} |")
    cost = " and ".join(
        f"{rows[name]['ratio']['of_medians']:.2f} times the time in {precision}"
        for name, precision in INVARIANT_ROWS.items()
    )
    settings = content["settings"]
    head = (
        f"On {_cpu(content)}, all-MiniLM-L6-v2, {settings['completions']} completions, 8 of a prompt with "
        f"one reference, medians of {settings['rounds']} rounds in which the variants take turns"
        f"{_source(path, content)}, by `python benchmarks/bench_scorer.py --out benchmarks/results`:"
    )
    tail = f"`batch_invariant=True` takes {cost}."
    return "\n\n".join((_wrapped(head), "\n".join(lines), _wrapped(tail)))


def encoder_on_a_cpu(path: Path, content: Content) -> str:
    """The packed encoder beside Hugging Face's model."""
    rows = {row["name"]: row["ratio"]["of_medians"] for row in content["rows"]}
    bf16 = ", ".join(
        f"{label} {rows[f'{name}-bf16']:.2f} times as fast" for name, label in ENCODER_ROWS.items()
    )
    fp32 = [rows[f"{name}-fp32"] for name in ENCODER_ROWS]
    return _wrapped(
        f"From token ids, on {_cpu(content)}, against Hugging Face's own model in bf16 on the same threads, "
        f"sorted by length, in batches of the number of tokens that suits it best: {bf16}; in fp32 "
        f"{min(fp32):.2f} to {max(fp32):.2f} times{_source(path, content)}, by `python "
        "benchmarks/bench_encoder.py --out benchmarks/results`."
    )


# --------------------------------------------------------------------------- words


def _cpu(content: Content) -> str:
    threads = content["torch_threads"]
    return f"{threads} thread{'s' if threads > 1 else ''} of an {content['cpu']}"


def _source(path: Path, content: Content) -> str:
    return f" (`{path.name}`, commit {content['commit']}, {content['date'][:10]})"


def _million(row: Row | None) -> str:
    return "" if row is None else f"{row['tokens_per_s'] / 1e6:.3g}"


def _times(ours: Row | None, peer: Row | None) -> str:
    return "" if ours is None or peer is None else f"{peer['p50_s'] / ours['p50_s']:.1f}"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, WIDTH, break_long_words=False, break_on_hyphens=False)


def with_numbers(readme: str, numbers: str) -> str:
    """Put the numbers between the two lines of a README.

    Raises:
        NumbersError: If the lines are not there once each, in their order.
    """
    lines = readme.splitlines()
    if lines.count(BEGIN) != 1 or lines.count(END) != 1 or lines.index(BEGIN) > lines.index(END):
        raise NumbersError(
            f"expected one line {BEGIN} and behind it one line {END}; set them where the numbers belong"
        )
    before, after = lines[: lines.index(BEGIN) + 1], lines[lines.index(END) :]
    return "\n".join([*before, "", numbers, "", *after]) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the numbers, or check them: 0 when they stand, 1 when they are stale or have no place."""
    parser = argparse.ArgumentParser(
        prog="readme_numbers.py", description="The README's numbers, from results."
    )
    parser.add_argument("--check", action="store_true", help="write nothing; fail where the README is stale")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md", help="default: README.md")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results"
    )
    options = parser.parse_args(arguments)
    readme = options.readme.read_text(encoding="utf-8")
    try:
        wanted = with_numbers(readme, block(options.results))
    except NumbersError as error:
        print(f"{options.readme}: {error}", file=sys.stderr)
        return 1
    if options.check:
        if readme != wanted:
            print(f"{options.readme} is stale: run `python benchmarks/readme_numbers.py`", file=sys.stderr)
        return int(readme != wanted)
    if readme != wanted:
        options.readme.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
