"""Score the example explanations, and do the same work the usual way beside it.

    make demo

360 explanations of 60 exam questions, each labelled by what it is (good, paraphrase, partial, negated,
off_topic, stuffed), are scored against the expert's explanation by the cosine of their embeddings.
"""

from __future__ import annotations

import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the default encoder comes from a package
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

import torch
from rich.console import Console
from rich.table import Table

from fastreward import Scorer

DATA = Path(__file__).parent / "data" / "explanations.jsonl"
LABELS = ("good", "paraphrase", "partial", "negated", "off_topic", "stuffed")
LANGUAGES = {"en": "English", "it": "Italian"}
WARM_UP_ROWS = 32

WHAT_TO_SEE = (
    "What to see in these numbers: the encoder knows what an explanation is about. Everything on the topic "
    "stands far above off_topic, less far in Italian, which this English encoder reads poorly: there, two "
    "unrelated texts already look alike. It does not know what an explanation claims: a negated one keeps "
    "the reference's words and scores highest, and key words without sense score above a good explanation in "
    "words of its own. A multilingual encoder mends the first; the second is why such a reward is combined "
    "with one for the answer.\n"
)

console = Console(width=None if sys.stdout.isatty() else 100)


def load_rows() -> list[dict[str, str]]:
    """Read the items as one row per candidate explanation."""
    items = [json.loads(line) for line in DATA.read_text(encoding="utf-8").splitlines()]
    return [
        {"id": item["id"], "language": item["language"], "label": label, "completion": text}
        | {"reference": item["explanation"]}
        for item in items
        for label, text in item["candidates"].items()
    ]


def the_usual_way(path: Path) -> Callable[[list[str], list[str]], torch.Tensor]:
    """Return what rewards commonly do: encode completion and reference of every row, then the cosine."""
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(path))

    def score(completions: list[str], references: list[str]) -> torch.Tensor:
        generated = model.encode(completions, convert_to_tensor=True, show_progress_bar=False)
        expected = model.encode(references, convert_to_tensor=True, show_progress_bar=False)
        return torch.nn.functional.cosine_similarity(generated, expected).cpu()

    return score


def score_table(rows: list[dict[str, str]], scores: list[float]) -> Table:
    """Mean and spread of the scores for each label and language."""
    table = Table(title="Score: mean ± standard deviation", min_width=48)
    table.add_column("candidate")
    for name in LANGUAGES.values():
        table.add_column(name, justify="right")
    for label in LABELS:
        cells = []
        for language in LANGUAGES:
            chosen = [
                score
                for row, score in zip(rows, scores, strict=True)
                if (row["label"], row["language"]) == (label, language)
            ]
            cells.append(f"{statistics.mean(chosen):.3f} ± {statistics.stdev(chosen):.3f}")
        table.add_row(label, *cells)
    return table


def preference_table(rows: list[dict[str, str]], scores: list[float]) -> Table:
    """How often the good explanation of an item outscores each other one."""
    by_item: dict[str, dict[str, float]] = {}
    for row, score in zip(rows, scores, strict=True):
        by_item.setdefault(row["id"], {})[row["label"]] = score
    table = Table(title="How often `good` scores higher", min_width=48)
    table.add_column("than")
    for name in LANGUAGES.values():
        table.add_column(name, justify="right")
    for label in LABELS[1:]:
        cells = []
        for language in LANGUAGES:
            items = [found for key, found in by_item.items() if key.startswith(language)]
            wins = sum(found["good"] > found[label] for found in items)
            cells.append(f"{wins} of {len(items)}")
        table.add_row(label, *cells)
    return table


def speed_table(completions: list[str], references: list[str], fp32_scores: torch.Tensor) -> Table:
    """Time each way on the same texts, with no reference known before."""
    from fastreward.backends import dtype_name, resolve_device, resolve_dtype
    from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint

    usual = the_usual_way(load_checkpoint(DEFAULT_ENCODER).folder)
    device = resolve_device(None)
    dtypes = dict.fromkeys(("float32", dtype_name(resolve_dtype(None, device))))  # bf16 where it is native

    def ours(dtype: str) -> Callable[[slice], torch.Tensor]:
        scorer = Scorer(dtype=dtype, reference_cache_bytes=0)  # every call pays for its references
        return lambda rows: scorer.score(completions[rows], references[rows])

    ways: dict[str, Callable[[slice], torch.Tensor]] = {
        "sentence-transformers": lambda rows: usual(completions[rows], references[rows])
    }
    ways |= {f"fastreward, {dtype}": ours(dtype) for dtype in dtypes}
    seconds: dict[str, float] = {}
    results: dict[str, torch.Tensor] = {}
    for name, work in ways.items():
        work(slice(WARM_UP_ROWS))
        begin = time.perf_counter()
        results[name] = work(slice(None))
        seconds[name] = time.perf_counter() - begin
    table = Table(title=f"{len(completions)} rows on {device}, one run each")
    for column in ("way", "seconds", "rows/s", "times as fast", "largest error"):
        table.add_column(column, justify="left" if column == "way" else "right")
    usual_s = next(iter(seconds.values()))
    for name, took in seconds.items():
        difference = (results[name] - fp32_scores).abs().max().item()
        table.add_row(
            name,
            f"{took:.2f}",
            f"{len(completions) / took:,.0f}",
            f"{usual_s / took:.1f}",
            f"{difference:.0e}",
        )
    return table


def check_kernel() -> None:
    """Score a few rows with the PyTorch op and with the Triton kernel, and print the largest difference."""
    from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint
    from fastreward.encoders.packed import PackedEncoder
    from fastreward.ops.pooled_cosine import pooled_cosine
    from fastreward.packing import pack

    rows = load_rows()[:24]
    scorer = Scorer(dtype="float32", device="cpu")
    references = scorer.embed([row["reference"] for row in rows])
    encoder = PackedEncoder(load_checkpoint(DEFAULT_ENCODER), torch.device("cpu"), torch.float32)
    batch = pack(scorer.tokenizer([row["completion"] for row in rows]), torch.device("cpu"))
    hidden_states = encoder.hidden(batch)
    index = torch.arange(len(rows))
    scores = [
        pooled_cosine(hidden_states, batch.cu_seqlens, references, index, backend=backend)
        for backend in ("torch", "triton")
    ]
    print(f"{(scores[0] - scores[1]).abs().max().item():.0e}")


def kernel_line() -> str:
    """Say which op back-end scored; without a GPU, run the Triton kernel in its interpreter beside it."""
    if torch.cuda.is_available():
        return "pooled_cosine ran as the Triton kernel on the GPU."
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, __file__, "--check-kernel"]
    if importlib.util.find_spec("triton") is None:
        return (
            "No GPU here: pooled_cosine ran as PyTorch. Triton is not installed, so its kernel was not run."
        )
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return (
        "No GPU here: pooled_cosine ran as PyTorch. The Triton kernel, in its interpreter on 24 rows, "
        f"differs by {done.stdout.strip()} at most."
    )


def main() -> None:
    """Print what is scored, how, and how fast."""
    rows = load_rows()
    completions = [row["completion"] for row in rows]
    references = [row["reference"] for row in rows]
    scorer = Scorer(dtype="float32")
    scores = scorer.score(completions, references)
    stats = scorer.stats
    console.print(f"[bold]{scorer.encoder_name}[/bold], {scorer.backend} back-end, {scorer.device}")
    console.print(
        f"{stats.texts} texts ({len(rows)} explanations, each with its reference), {stats.encoded_texts} of "
        f"them encoded, {stats.tokens:,} tokens, {stats.truncated_texts} truncated\n"
    )
    console.print(score_table(rows, scores.tolist()))
    console.print(preference_table(rows, scores.tolist()))
    console.print(f"\n{WHAT_TO_SEE}")
    console.print(speed_table(completions, references, scores))
    console.print(
        "sentence-transformers encodes completion and reference of every row, as rewards commonly do; "
        "fastreward encodes each distinct text once. Errors are differences from fastreward in fp32."
    )
    console.print(kernel_line())


if __name__ == "__main__":
    check_kernel() if sys.argv[1:] == ["--check-kernel"] else main()
