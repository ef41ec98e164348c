"""The command line: `fastreward score`, `export`, `calibrate`, `doctor`; the rest is in modules beside it."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Literal, TypeAlias

import typer
from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

import fastreward
from fastreward import cli_bench, cli_profile, cli_train
from fastreward.cli_errors import errors_on_stderr
from fastreward.errors import InputError
from fastreward.table_io import TABLES, Columns, Row, Table, json_type, replacement

# torch takes seconds to import: only a command that needs it does so.
if TYPE_CHECKING:
    from fastreward.rewards import RewardCounts, SemanticReward
    from fastreward.scorer import Scorer

Sample: TypeAlias = tuple[Row, str, list[str]]
"""A row with the text of its completion and its references, of which there may be none."""

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)


def main() -> None:
    """Run the command line and exit: with 0, 2 (malformed input), 130 (Ctrl-C) or 143 (SIGTERM)."""
    # As an exception, so that a job which its cluster ends leaves no temporary file behind.
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    app(prog_name="fastreward")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"fastreward {fastreward.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Score generated explanations against reference explanations by their meaning."""


@app.command(no_args_is_help=True)
@errors_on_stderr()
def score(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="FILE.jsonl, FILE.csv, or - for standard input.")
    ],
    completion: Annotated[
        str, typer.Option(help="Column of the texts to score; in JSONL also a dotted path (candidates.good).")
    ],
    reference: Annotated[
        str,
        typer.Option(
            help="Column of the references; in JSONL also a dotted path, and its values may be lists of "
            "strings, of which the best counts. A missing one leaves the score empty."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="File to write, which may be INPUT itself.", show_default="standard output"
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Name or folder of the encoder.", show_default="all-MiniLM-L6-v2")
    ] = None,
    backend: Annotated[
        str | None, typer.Option(help="Back-end of the encoder.", show_default="see fastreward doctor")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="the GPU, else the CPU")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, bfloat16 or float16.", show_default="bfloat16 where native, else float32"
        ),
    ] = None,
    extract: Annotated[
        str | None,
        typer.Option(
            metavar="TAG",
            help="Score what stands between <TAG> and </TAG>; a completion without it scores 0.",
            show_default="all but the thinking",
        ),
    ] = None,
    max_seq_length: Annotated[
        int | None, typer.Option(min=1, help="Tokens of a text that are read.", show_default="the encoder's")
    ] = None,
    long_texts: Annotated[
        Literal["truncate", "chunk"], typer.Option(help="What becomes of longer texts.")
    ] = "truncate",
    score_column: Annotated[str, typer.Option(help="Column to add.")] = "score",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a score column that is already there.")
    ] = False,
    chunk_rows: Annotated[int, typer.Option(min=1, help="Rows that are scored together.")] = 4096,
    table_format: Annotated[
        Literal["jsonl", "csv"] | None,
        typer.Option("--format", help="Format of INPUT and output.", show_default="by the name, - is jsonl"),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Neither progress nor summary.")] = False,
) -> None:
    """Add to each row of a JSONL or CSV file how near its completion is in meaning to its reference.

    The score is the cosine of the two texts' embeddings, in [-1, 1]. All else in a row stays as it is.

    Progress and a one-line summary go to standard error.

    Malformed input ends the run with exit code 2 and a message that names the file, the line and the column.

    A file given by --output then stays as it was; on standard output the chunks before the error stay.
    """
    columns = Columns(completion, reference, score_column, overwrite)
    table_type = TABLES[table_format or _format_of(source)]
    with _opened(source) as stream, _written(output) as target:
        table = table_type(stream, "standard input" if source == "-" else source, columns)
        chunks = _chunks(table, chunk_rows)
        first = next(chunks, [])  # a column that is not there is told before an encoder is loaded

        from fastreward.rewards import SemanticReward
        from fastreward.scorer import DEFAULT_ENCODER, Scorer

        scorer = Scorer(
            DEFAULT_ENCODER if encoder is None else encoder,
            backend=backend,
            device=device,
            dtype=dtype,
            max_seq_length=max_seq_length,
            long_texts=long_texts,
            progress=False,
        )
        reward = SemanticReward(scorer, extract=extract)
        start = time.perf_counter()  # the encoder is loaded
        rows_on_terminal = target is sys.stdout.buffer and sys.stdout.isatty()
        with _progress(not quiet and sys.stderr.isatty() and not rows_on_terminal) as progress:
            task = progress.add_task("score", total=_size_bytes(source), rows=0)
            target.write(table.header)
            for chunk in chain([first], chunks):
                target.writelines(_scored(table, chunk, reward))
                target.flush()
                progress.update(task, completed=table.bytes_read, rows=reward.counts.samples)
        seconds = time.perf_counter() - start
    if not quiet:
        typer.echo(_summary(reward.counts, scorer, seconds), err=True)


def _chunks(table: Table, chunk_rows: int) -> Iterator[list[Sample]]:
    """Read the table, `chunk_rows` at a time; a chunk of which one row is malformed is not yielded."""
    samples = _samples(table)
    while chunk := list(islice(samples, chunk_rows)):
        yield chunk


def _scored(table: Table, chunk: list[Sample], reward: SemanticReward) -> Iterator[bytes]:
    rows, completions, references = zip(*chunk, strict=True) if chunk else ((), (), ())
    return map(table.scored, rows, reward(completions=completions, reference=references))


def _samples(table: Table) -> Iterator[Sample]:
    """Yield each row with its completion and its references, both checked."""
    from fastreward.rewards.completion import completion_text

    for row in table.rows():
        try:
            text = completion_text(row.completion)
        except InputError as error:
            column = table.columns.completion
            raise table.error(row.line, column, error.expected, error.received, error.remedy) from error
        references = row.reference if isinstance(row.reference, list) else [row.reference]
        for entry in references:
            if not (isinstance(entry, str) or entry is None or entry != entry):  # the last: NaN
                expected, remedy = "a string, a list of strings or null", "Convert it to text."
                raise table.error(row.line, table.columns.reference, expected, json_type(entry), remedy)
        yield row, text, [entry for entry in references if isinstance(entry, str)]


def _summary(counts: RewardCounts, scorer: Scorer, seconds: float) -> str:
    from fastreward.backends import dtype_name

    stats = scorer.stats
    parts = [
        f"{counts.samples:,} rows",
        f"{stats.texts:,} texts",
        f"{stats.unique_texts:,} unique",
        f"{stats.tokens:,} tokens",
        f"{stats.truncated_texts:,} truncated" if stats.truncated_texts else "",
        f"{counts.missing_reference:,} rows without a reference" if counts.missing_reference else "",
        f"{counts.no_text:,} rows without a text to score" if counts.no_text else "",
        f"{seconds:.2f} s",
        f"{stats.texts / max(seconds, 1e-9):,.0f} texts/s",
        f"encoder {scorer.encoder_name}",
        f"back-end {scorer.backend}",
        f"device {scorer.device}",
        f"dtype {dtype_name(scorer.dtype)}",
    ]
    return ", ".join(filter(None, parts))


def _format_of(source: str) -> str:
    suffix = Path(source).suffix.removeprefix(".").lower()
    if source == "-":
        return "jsonl"
    if suffix not in TABLES:
        raise InputError(
            "a file that ends in .jsonl or .csv",
            source,
            "Name its format with --format jsonl or --format csv.",
        )
    return suffix


def _opened(source: str) -> AbstractContextManager[BinaryIO]:
    if source == "-":
        return nullcontext(sys.stdin.buffer)
    try:
        return Path(source).open("rb")
    except OSError as error:
        found, remedy = f"{source} ({error.strerror})", "Correct the path, or pass - for standard input."
        raise InputError("an input file that can be read", found, remedy) from error


def _written(output: Path | None) -> AbstractContextManager[BinaryIO]:
    if output is None or str(output) == "-":
        return nullcontext(sys.stdout.buffer)
    return replacement(output)


def _size_bytes(source: str) -> int | None:
    """Return the size of a regular file, and None for what has none: a pipe, standard input."""
    return Path(source).stat().st_size if source != "-" and Path(source).is_file() else None


def _progress(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.fields[rows]:,} rows"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        disable=not shown,
    )


@app.command(no_args_is_help=True)
@errors_on_stderr()
def export(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="Name or folder of the encoder.")],
    to: Annotated[Path, typer.Option(help="A new or empty folder.")],
    precision: Annotated[
        Literal["fp32", "fp16", "bf16", "int8"],
        typer.Option(help="fp32 and int8 are for CPUs, fp16 and bf16 for GPUs."),
    ] = "fp32",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default="main")
    ] = None,
) -> None:
    """Write an encoder as an ONNX graph, pooling and norm included, for `backend="onnx"`.

    The graph is held against the packed encoder first; one that drifts is not written.
    """
    from fastreward.encoders.checkpoint import load_checkpoint
    from fastreward.encoders.onnx_export import export_onnx
    from fastreward.encoders.onnx_manifest import read_manifest

    folder = export_onnx(load_checkpoint(encoder, revision=revision), to, precision)
    drift = read_manifest(folder).largest_drift
    typer.echo(f"{folder}: {precision}, at most {drift:.1e} from the packed encoder's vectors")


@app.command(no_args_is_help=True)
@errors_on_stderr()
def calibrate(
    encoder: Annotated[str, typer.Argument(metavar="ENCODER", help="Name or folder of the encoder.")],
    texts: Annotated[
        Path, typer.Argument(metavar="TEXTS", help="A file with a text like those to be scored on each line.")
    ],
    to: Annotated[Path, typer.Option(help="The file to write, NAME.npz.")],
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit on the hub.", show_default="main")
    ] = None,
) -> None:
    """Measure what int8 on OpenVINO needs to know: `Scorer(backend="openvino", dtype="int8", calibration=…)`.

    A hundred texts that vary do.
    """
    try:
        lines = [line for line in texts.read_text(encoding="utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise InputError("texts in UTF-8", f"{texts}: {error}", "Convert the file.") from error
    if not lines:
        raise InputError("a text on a line at least", f"none in {texts}", "Write some into it.")

    from fastreward.configuration import tokenizer_of
    from fastreward.encoders.checkpoint import load_checkpoint
    from fastreward.encoders.openvino import calibrate_int8

    checkpoint = load_checkpoint(encoder, revision=revision)
    calibration = calibrate_int8(checkpoint, tokenizer_of(checkpoint)(lines))
    typer.echo(f"{calibration.save(to)}: {len(lines):,} texts, {calibration.num_tokens:,} tokens")


@app.command()
@errors_on_stderr()
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the installed back-ends here, some seconds in all.")
    ] = False,
    encoder: Annotated[
        str | None, typer.Option(help="The encoder to measure.", show_default="all-MiniLM-L6-v2")
    ] = None,
) -> None:
    """Show versions, devices, the back-ends that can be used here or why not, and the defaults."""
    from fastreward.diagnosis import diagnosis, measured

    report = diagnosis()
    if measure:
        report |= measured(encoder)
    if as_json:
        typer.echo(json.dumps(report, indent=2, ensure_ascii=False))
        return
    piped = not sys.stdout.isatty()
    # Whatever is piped keeps one line a row. No markup: a remedy may hold brackets, as in fastreward[minilm].
    console = Console(markup=False, highlight=False, emoji=False, width=10_000 if piped else None)
    for title, entries in report.items():
        console.print(_as_table(title, entries, None if piped else box.ROUNDED))
        console.print()


def _as_table(title: str, entries: dict[str, Any], lines: box.Box | None) -> RichTable:
    rows = {name: entry if isinstance(entry, dict) else {"": entry} for name, entry in entries.items()}
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    table = RichTable(title, *columns, box=lines)
    for name, row in rows.items():
        table.add_row(name, *(_as_cell(row.get(column)) for column in columns))
    return table


def _as_cell(value: object) -> str:
    if value is None:
        return "–"
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


app.command()(errors_on_stderr()(cli_bench.bench))
app.command(no_args_is_help=True, context_settings=cli_profile.CONTEXT_SETTINGS)(
    errors_on_stderr()(cli_profile.profile)
)
app.add_typer(cli_train.app_train, name="train")
app.command(no_args_is_help=True)(cli_train.evaluate)
