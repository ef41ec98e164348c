"""`fastreward bench`: the back-ends, precisions and sizes of batches on the user's own texts."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from fastreward.benchmark_texts import Texts, read_texts

# torch takes seconds to import: `--help` does without.
if TYPE_CHECKING:
    from fastreward.benchmark_results import Outcome, Result, Variant

WIDTH: Final = 140
"""Characters of a line of the tables where there is no terminal."""


def bench(
    texts: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="FILE.jsonl, FILE.csv, or a file with a text on each line.",
            show_default="this library's own texts",
        ),
    ] = None,
    field: Annotated[
        str | None,
        typer.Option(
            help="Column of the texts; in JSONL also a dotted path, and its values may be lists of texts, or "
            "objects of texts, which are a group."
        ),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Column of the references; rows with the same one are a group.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Name or folder of the encoder.", show_default="all-MiniLM-L6-v2")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="the GPU, else the CPU")
    ] = None,
    seconds: Annotated[float, typer.Option(min=1.0, help="Time to take, loading included.")] = 20.0,
    int8: Annotated[
        bool,
        typer.Option(
            "--int8",
            help="Time 8 bits as well. OpenVINO is calibrated on half of the texts unless a calibration is "
            "given, and scores are compared on the other half.",
        ),
    ] = False,
    calibration: Annotated[
        Path | None, typer.Option(help="What `fastreward calibrate` wrote, for int8 on OpenVINO.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Also write all figures to a file.")
    ] = None,
) -> None:
    """Time each back-end, precision and size of batches here, on your texts, and say what to pass to Scorer.

    They take turns. Scores are compared with fp32. Ctrl-C shows what there is.
    """
    chosen = read_texts(texts, field, reference) or Texts.own()

    from fastreward.benchmarking import Run
    from fastreward.encoders.checkpoint import DEFAULT_ENCODER

    options: dict[str, Any] = {
        "encoder": DEFAULT_ENCODER if encoder is None else encoder,
        "device": device,
        "seconds": seconds,
        "int8": int8 or calibration is not None,
        "calibration": None if calibration is None else str(calibration),
    }
    with tempfile.TemporaryDirectory() as scratch:
        run = Run(chosen, scratch=scratch, tell=_tell, **options)
        outcome = run.run()
    _show(outcome, chosen.source, encoder)
    if json_file is not None:
        report = as_json(outcome, options | {"texts": chosen.source})
        json_file.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        typer.echo(f"wrote {json_file}", err=True)
    if outcome.interrupted:
        raise typer.Exit(130)


def _tell(line: str) -> None:
    if sys.stderr.isatty():
        typer.echo(line, err=True)


# ---------------------------------------------------------------------- what is shown


def _show(outcome: Outcome, source: str, encoder: str | None) -> None:
    from rich.console import Console

    from fastreward.benchmark_results import advice

    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else WIDTH)
    console.print(_back_ends(outcome))
    for base in outcome.batches:
        console.print(_sizes(outcome, base))
    texts, tokens = outcome.step_texts, round(outcome.mean_tokens)
    # Ctrl-C may have come before either was known.
    step = f"; a step has {texts}, of {tokens} tokens on average" if texts else ""
    console.print(f"Texts: {source}{step}. {outcome.seconds:.0f} s.")
    if outcome.judged:
        console.print(f"Scores compared with fp32: {outcome.judged} of {outcome.judged_on}.")
    if outcome.left_out:
        console.print(f"Not reached, raise --seconds: {', '.join(outcome.left_out)}.")
    if outcome.interrupted:
        console.print("Interrupted: these are the rounds until then.")
    for sentence in advice(outcome, encoder):
        console.print(sentence, soft_wrap=True)


def _back_ends(outcome: Outcome) -> Any:
    from rich.table import Table as RichTable

    table = RichTable(
        title=f"Back-ends and precisions on {outcome.device}: p50 (p20 – p80) of rounds in turns"
    )
    table.add_column("back-end")
    for name in ("texts/s", "tokens/s", "1 text, ms", "8 texts, ms", "1 – cosine", "Spearman"):
        table.add_column(name, justify="right")
    order = {True: 0, False: 1}
    for result in sorted(
        outcome.results, key=lambda r: (order[bool(r.step_s)], -(r.texts_per_s(outcome.step_texts) or 0))
    ):
        if not result.step_s:
            table.add_row(str(result.variant), result.detail or "not timed")
            continue
        speed = result.texts_per_s(outcome.step_texts) or 0.0
        table.add_row(
            str(result.variant),
            _spread(outcome, result),
            f"{speed * outcome.mean_tokens:,.0f}",
            _milliseconds(result.single_s),
            _milliseconds(result.group_s),
            "" if result.largest_1_minus_cosine is None else f"{result.largest_1_minus_cosine:.1e}",
            "" if result.spearman is None else f"{result.spearman:.4f}",
        )
    return table


def _sizes(outcome: Outcome, base: Variant) -> Any:
    from rich.table import Table as RichTable

    table = RichTable("max_batch_tokens", title=f"{base}: sizes of batches")
    table.add_column("texts/s", justify="right")
    for result in outcome.batches[base]:
        size = str(result.variant.max_batch_tokens or "its own")
        if result.step_s or result.detail:
            table.add_row(size, _spread(outcome, result) if result.step_s else result.detail)
    return table


def _spread(outcome: Outcome, result: Result) -> str:
    middle, low, high = (result.texts_per_s(outcome.step_texts, q) or 0.0 for q in (0.5, 0.8, 0.2))
    return f"{middle:,.1f} ({low:,.1f} – {high:,.1f})"


def _milliseconds(seconds: list[float]) -> str:
    import statistics

    return f"{1e3 * statistics.median(seconds):,.1f}" if seconds else ""


def as_json(outcome: Outcome, settings: dict[str, Any]) -> dict[str, Any]:
    """All figures, seconds round by round, and the machine."""
    from datetime import UTC, datetime

    from fastreward.benchmark_results import recommended
    from fastreward.diagnosis import diagnosis

    def row(result: Result) -> dict[str, Any]:
        return vars(result) | {
            "variant": result.variant.arguments,
            "texts_per_s": result.texts_per_s(outcome.step_texts),
        }

    best = recommended(outcome)
    plain = ("step_texts", "mean_tokens", "judged", "judged_on", "left_out", "interrupted", "seconds")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": diagnosis(),
        "device": str(outcome.device),
        "settings": settings,
        **{name: getattr(outcome, name) for name in plain},
        "results": [row(result) for result in outcome.results],
        "batches": {str(base): [row(r) for r in results] for base, results in outcome.batches.items()},
        "recommended": None if best is None else best.arguments,
    }
