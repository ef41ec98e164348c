"""The command line of the pipeline: `fastreward train cpt | sft | grpo` and `fastreward evaluate`."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich import box
from rich.console import Console
from rich.table import Table

from fastreward.cli_errors import errors_on_stderr
from fastreward.errors import InputError

# torch takes seconds to import: only a command that needs it does so.
if TYPE_CHECKING:
    from fastreward.integrations.pipeline import Evaluation, Ratings

Stage = Literal["cpt", "sft", "grpo"]

INTERRUPTED = 130
"""The exit code of what Ctrl-C ended, by the shell's convention."""

app_train = typer.Typer(
    no_args_is_help=True,
    help="Train a model: continued pre-training, fine-tuning, GRPO. A stage's folder is the next's model.",
)

Config = Annotated[Path, typer.Option(metavar="FILE", help="A YAML file; examples/recipes has some.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[NAME=VALUE]...", help="Options that win over the file's: loop.seed=1."),
]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest checkpoint of the folder.")]


@app_train.command(no_args_is_help=True)
def cpt(config: Config, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train on documents of a domain: a column `text`, or exams:corpus?count=1000."""
    _train("cpt", config, overrides or [], resume)


@app_train.command(no_args_is_help=True)
def sft(config: Config, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train on completions: columns `prompt` and `completion`, or exams:train?count=1000."""
    _train("sft", config, overrides or [], resume)


@app_train.command(no_args_is_help=True)
def grpo(config: Config, overrides: Overrides = None, resume: Resume = False) -> None:
    """Train on rewards: a column `prompt` and what the rewards read, or exams:train?count=1000."""
    _train("grpo", config, overrides or [], resume)


def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Folders of stages, or names on the hub.")
    ],
    data: Annotated[
        str,
        typer.Option(
            help="Columns prompt, answer and explanation: FILE.jsonl, .csv or .parquet, or "
            "exams:held_out_numbers?count=200."
        ),
    ],
    options: Annotated[
        str | None,
        typer.Option(
            metavar="COLUMN",
            help="Column of the options, a list or a mapping from letter to text: answers may be in words.",
        ),
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(help="Name or folder of the encoder.", show_default="all-MiniLM-L6-v2")
    ] = None,
    prefix: Annotated[
        str | None, typer.Option(help="What the encoder wants before a text, such as 'query: '.")
    ] = None,
    judge: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:FUNCTION",
            help="judge(prompt, a, b, reference) from -1 to 1, above 0 where a is better. One model alone is "
            "compared with the references.",
            show_default="the encoder",
        ),
    ] = None,
    anchor: Annotated[
        str | None, typer.Option(help="The model whose Elo is 1500.", show_default="the mean")
    ] = None,
    bootstrap: Annotated[int, typer.Option(min=0, help="Samples for intervals; 0 for none.")] = 1000,
    temperature: Annotated[
        float, typer.Option(min=0, help="Of sampling; 0 takes the likeliest token.")
    ] = 0.0,
    max_completion_length: Annotated[int, typer.Option(min=1, help="Tokens of a completion.")] = 256,
    batch_size: Annotated[int, typer.Option(min=1, help="Prompts completed together.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of sampling and of the intervals.")] = 0,
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda or cuda:N.", show_default="the GPU, else the CPU")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the models' weights.")
    ] = "float32",
    chat: Annotated[bool, typer.Option("--chat", help="Prompts are a user's messages.")] = False,
    system: Annotated[str, typer.Option(help="With --chat, the message before them.")] = "",
    completions: Annotated[
        Path | None, typer.Option(help="A new folder for a JSONL file of each model's completions.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, no table.")] = False,
) -> None:
    """Let models answer questions: accuracy, semantic score, format rate and, of several, Elo ratings.

    The ratings are Bradley–Terry's, from pairwise preferences. Without --judge the encoder prefers the
    explanation that is nearer to the reference: that says how far training reached what it aims at, and is no
    opinion from outside. The output names the judge.
    """
    with errors_on_stderr():
        _quiet_libraries()
        from fastreward.integrations.pipeline import bradley_terry, load_rows, make_scorer
        from fastreward.integrations.pipeline import evaluate as evaluate_model
        from fastreward.integrations.pipeline.data import Rows, check_rows
        from fastreward.integrations.pipeline.evaluation import columns_of
        from fastreward.integrations.pipeline.policy import load_policy, require_policy
        from fastreward.integrations.pipeline.prompts import as_chat

        _check_models(models, anchor)
        chosen = None if judge is None else _function(judge)
        rows = check_rows(load_rows(data), columns_of(options))
        for name in models:
            require_policy(name)  # before an hour is spent on the others
        asked = Rows(as_chat(rows, system), rows.places) if chat else rows
        arguments = {"encoder": encoder, "prompt": prefix, "device": device}
        scorer = make_scorer({name: value for name, value in arguments.items() if value is not None})
        if completions is not None:
            completions.mkdir(parents=True)
        results: dict[str, Evaluation] = {}
        for number, name in enumerate(models):
            model, tokenizer = load_policy(name, dtype=dtype, device=device)
            results[name] = evaluate_model(
                model,
                tokenizer,
                asked,
                options=options,
                scorer=scorer,
                judge=None if len(models) > 1 else chosen,
                temperature=temperature,
                max_completion_length=max_completion_length,
                batch_size=batch_size,
                seed=seed,
            )
            del model
            if completions is not None:
                _write_rows(completions / f"{number:02d}-{Path(name).name}.jsonl", results[name])
        ratings = None
        if len(models) > 1:
            ratings = bradley_terry(
                results, judge=chosen, scorer=scorer, anchor=anchor, bootstrap=bootstrap, seed=seed
            )
        if as_json:
            report = {"data": data, "models": {name: one.summary() for name, one in results.items()}}
            report |= {} if judge is None else {"judge": judge}
            rated = {} if ratings is None else {"ratings": ratings.as_dict()}
            typer.echo(json.dumps(report | rated, indent=2, ensure_ascii=False))
        else:
            _show(data, results, ratings, judge)


def _check_models(models: list[str], anchor: str | None) -> None:
    if len(set(models)) < len(models):
        raise InputError("models that differ", ", ".join(models), "Name each once.")
    if anchor is not None and (anchor not in models or len(models) < 2):
        expected = f"an anchor among several models, {', '.join(models)}"
        raise InputError(expected, repr(anchor), "Correct the name, or leave it out.")


def _train(stage: Stage, config: Path, overrides: list[str], resume: bool) -> None:
    again = ["fastreward", "train", stage, "--config", str(config), *overrides, "--resume"]
    with errors_on_stderr():
        _quiet_libraries()
        from fastreward.integrations.pipeline.folders import checkpoints
        from fastreward.integrations.pipeline.stages import output_folder, read_stage, run_stage

        file = read_stage(stage, config, overrides)
        folder = output_folder(file)
        try:
            run_stage(stage, file, resume=resume, say=_say)
        except KeyboardInterrupt:
            found = checkpoints(folder)
            if found:
                left = f"{found[-1]} is the last checkpoint. Go on with: {shlex.join(again)}"
            else:
                left = "there is no checkpoint yet, so that the run begins again (see save_steps)"
            typer.echo(f"fastreward: interrupted; {left}", err=True)
            raise typer.Exit(INTERRUPTED) from None
    _say(f"{folder}: done; the model of the next stage, or of fastreward evaluate")


def _say(text: str) -> None:
    """Tell on standard error, once where several processes do the same."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(text, err=True)


def _quiet_libraries() -> None:
    """Keep progress bars of other libraries out of logs; on a terminal they stay."""
    if sys.stderr.isatty():
        return
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]


def _function(named: str) -> Callable[..., Any]:
    """Import a function that is named as module:function."""
    module, _, name = named.partition(":")
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as python -m does
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = "Write module:function, of a module that can be imported from here."
        raise InputError("a judge that can be imported", f"{named!r} ({error})", remedy) from error
    finally:
        sys.path.remove(here)  # the module may have put something before it
    if not callable(found):
        raise InputError("a function as judge", f"{named!r}, {type(found).__name__}", "Name a function.")
    return found  # type: ignore[no-any-return]  # callable() says no more


def _write_rows(path: Path, result: Evaluation) -> None:
    with path.open("w", encoding="utf-8") as file:
        for row in result.rows():
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _show(data: str, results: Mapping[str, Evaluation], ratings: Ratings | None, judge: str | None) -> None:
    piped = not sys.stdout.isatty()
    # Whatever is piped keeps one line a row. No markup: a name may hold brackets.
    console = Console(markup=False, highlight=False, emoji=False, width=10_000 if piped else None)
    columns = ["model", "accuracy", "semantic", "format", "tokens", "cut off"]
    first = next(iter(results.values()))
    columns += ["Elo", "95 %"] if ratings else ["wins"] if first.win_rate is not None else []
    table = Table(*columns, box=None if piped else box.ROUNDED)
    for i, (name, one) in enumerate(results.items()):
        shares = (one.accuracy, one.semantic, one.format_rate)
        cells = [f"{share:.3f}" for share in shares]
        cells += [f"{one.mean_length:.1f}", f"{one.truncated:.3f}"]
        if ratings is not None:
            cells += [f"{ratings.elo[i]:.0f}", f"{ratings.low[i]:.0f} to {ratings.high[i]:.0f}"]
        elif one.win_rate is not None:
            cells.append(f"{one.win_rate:.3f}")
        table.add_row(name, *cells)
    console.print(table)
    how = "the likeliest token" if first.temperature == 0 else f"temperature {first.temperature:g}"
    console.print(f"{len(first.questions):,} questions of {data}, {how}; semantic: encoder {first.encoder}")
    if ratings is not None:
        console.print(f"Elo by Bradley–Terry; judge: {ratings.judge}")
    elif judge is not None:
        console.print(f"wins: share of the explanations preferred to the reference; judge: {judge}")
