"""Scores in each precision held against the CPU's in fp32: what a faster precision may cost.

    python benchmarks/fidelity.py [--quick] [--out FOLDER]         # bf16 and fp8 by its definition, on a CPU
    python benchmarks/gpu_suite.py --only scores                   # fp32, bf16 and fp8 on a GPU

Random encoders in which every parameter matters, and texts that share from none to all of their tokens with
their reference, so that scores spread; with the real all-MiniLM-L6-v2, the example explanations.
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest import mock

import torch
from rich.table import Table
from torch import Tensor

# The repository, which is not on the path of a script in a folder below it.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.checkpoints import (
    BGE_BASE,
    BGE_LARGE,
    FIRST_WORD,
    MINILM_L6,
    MODERNBERT_BASE,
    XLM_R_BASE,
    EncoderShape,
    checkpoint_folder,
)
from benchmarks.measure import CPU, errors, provenance, spearman, wide_console, write_results
from benchmarks.shapes import PackedShape, explanation_batch
from benchmarks.workloads import NOT_HERE, Fidelity, Finding, why
from fastreward import Scorer
from fastreward.batching import MAX_BATCH_TOKENS
from fastreward.encoders import packed, weights
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged, load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.ops.pooled_cosine import Pooling
from fastreward.ops.scaled_linear import MIN_IN_FEATURES, ScaledLinear
from fastreward.packing import PackedBatch, pack, token_budget_batches
from fastreward.tokenization import Tokenizer

SHAPES: Final = (MINILM_L6, XLM_R_BASE, BGE_BASE, MODERNBERT_BASE)

FP32_MAX_ERROR: Final = 1e-4
BF16_SPEARMAN: Final = 0.999
FP8_SPEARMAN: Final = 0.995


@dataclass(frozen=True)
class IdPairs:
    """Completions and references as token ids, and for each completion the row of its reference."""

    completions: Sequence[Sequence[int]]
    references: Sequence[Sequence[int]]
    reference_index: Sequence[int]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of every text that is encoded: the completions', then the references'."""
        return tuple(map(len, (*self.completions, *self.references)))


def overlapping_pairs(num_texts: int, vocab_size: int, *, longest: int, generations: int = 8) -> IdPairs:
    """Draw completions that share with their reference a part of its tokens, from none to all of them."""
    rng = random.Random(0)
    shape = PackedShape("", longest * num_texts // 4, 0, longest // 3, longest // 16, longest)
    lengths = shape.lengths()[:num_texts]
    words = range(FIRST_WORD, vocab_size)
    references = [rng.choices(words, k=rng.choice(lengths)) for _ in range(-(-num_texts // generations))]
    completions = []
    for text, length in enumerate(lengths):
        reference, share = references[text // generations], rng.random()
        drawn = rng.choices(words, k=length)
        completions.append([rng.choice(reference) if rng.random() < share else word for word in drawn])
    return IdPairs(completions, references, [text // generations for text in range(len(completions))])


def explanation_ids(prompts: int, generations: int) -> IdPairs:
    """Tokenise a GRPO step of explanations as all-MiniLM-L6-v2 does, each distinct reference once."""
    batch = explanation_batch(prompts, generations)
    checkpoint = load_checkpoint(DEFAULT_ENCODER)
    tokenizer = Tokenizer.from_file(checkpoint.tokenizer_file, max_length=checkpoint.max_seq_length)
    rows = {text: row for row, text in enumerate(dict.fromkeys(batch.references))}
    return IdPairs(
        completions=tokenizer(batch.completions),
        references=tokenizer(list(rows)),
        reference_index=[rows[text] for text in batch.references],
    )


class PackedScoring:
    """A packed encoder from ids to scores, batched as the scorer does.

    Args:
        encoder: Computes.
        max_batch_tokens: Tokens of a batch at most; None is the scorer's own choice.
    """

    def __init__(self, encoder: PackedEncoder, max_batch_tokens: int | None = None) -> None:
        self._encoder = encoder
        self._max_batch_tokens = max_batch_tokens or MAX_BATCH_TOKENS[encoder.device.type]

    def score(self, pairs: IdPairs) -> Tensor:
        """Score each completion against its reference: [N], fp32."""
        encoder = self._encoder
        references = self._encode(pairs.references, lambda batch, rows: encoder.embed(batch))
        index = torch.tensor(pairs.reference_index, device=encoder.device)
        return self._encode(
            pairs.completions, lambda batch, rows: encoder.cosine(batch, references, index[rows])
        )

    def _encode(
        self, texts: Sequence[Sequence[int]], compute: Callable[[PackedBatch, Tensor], Tensor]
    ) -> Tensor:
        device = self._encoder.device
        batches = token_budget_batches([len(ids) for ids in texts], self._max_batch_tokens)
        computed = [
            compute(pack([texts[row] for row in rows], device), torch.tensor(rows, device=device))
            for rows in batches
        ]
        order = torch.tensor([row for rows in batches for row in rows], device=device)
        results = torch.cat(computed)
        return torch.empty_like(results).index_copy_(0, order, results)


def random_scores(
    shape: EncoderShape, device: torch.device, shrunk: bool, encoder: Path | None
) -> Iterator[Finding]:
    """Hold a random encoder's scores against its own on the CPU in fp32."""
    shape = shape.shrunk() if shrunk else shape
    pairs = overlapping_pairs(64 if shrunk else 160, shape.vocab_size, longest=256)
    checkpoint = load_checkpoint(checkpoint_folder(shape))

    def scores(device: torch.device, dtype: torch.dtype) -> Tensor:
        return PackedScoring(PackedEncoder(checkpoint, device, dtype, pooling=shape.pooling)).score(pairs)

    yield from _findings(shape.name, scores, device, shape.hidden_size)


def minilm_scores(device: torch.device, shrunk: bool, encoder: Path | None) -> Iterator[Finding]:
    """Hold the real encoder's scores of the example explanations against the CPU's in fp32."""
    name = "all-MiniLM-L6-v2"
    source = str(encoder) if encoder is not None else DEFAULT_ENCODER
    if encoder is None and not is_packaged(source):
        reason = "not installed here; name its folder with --encoder"
        yield Finding(name, "largest error", None, FP32_MAX_ERROR, at_most=True, reason=reason)
        return
    batch = explanation_batch(2 if shrunk else 32, 6)

    def scores(device: torch.device, dtype: torch.dtype) -> Tensor:
        made = Scorer(source, backend="packed", device=str(device), dtype=dtype, progress=False)
        return made.score(batch.completions, batch.references)

    yield from _findings(name, scores, device, 384)


def _findings(
    name: str, scores: Callable[[torch.device, torch.dtype], Tensor], device: torch.device, width: int
) -> Iterator[Finding]:
    """fp32 by its largest error; bf16, and 8 bits where they pay, by the order of the scores."""
    expected = scores(CPU, torch.float32).cpu()
    exact, _ = errors(scores(device, torch.float32), expected)
    yield Finding(f"{name}, fp32", "largest error", exact, FP32_MAX_ERROR, at_most=True)
    rounded = [("bf16", torch.bfloat16, BF16_SPEARMAN)]
    if width >= MIN_IN_FEATURES:
        rounded.append(("fp8", torch.float8_e4m3fn, FP8_SPEARMAN))
    for precision, dtype, bound in rounded:
        try:
            value: float | None = spearman(scores(device, dtype), expected)
            reason = ""
        except NOT_HERE as error:
            value, reason = None, why(error)
        yield Finding(f"{name}, {precision}", "Spearman", value, bound, reason=reason)


FIDELITY: Final = (
    *(Fidelity(f"scores-{shape.name}", partial(random_scores, shape)) for shape in SHAPES),
    Fidelity("scores-all-minilm-l6-v2", minilm_scores),
)


# --------------------------------------------------------------------------- by definition, on a CPU

# Three layers: more would only take longer. The first token of bge-large, the mean of the others.
CPU_SHAPES: Final = (
    replace(XLM_R_BASE, name="xlm-r-3-layers-of-768", num_layers=3),
    replace(BGE_LARGE, name="bge-large-3-layers-of-1024", num_layers=3),
)
CPU_PRECISIONS: Final = (
    ("bf16", torch.bfloat16, BF16_SPEARMAN),
    ("fp8", torch.float8_e4m3fn, FP8_SPEARMAN),
)


@contextmanager
def eight_bits_by_definition() -> Iterator[None]:
    """Let encoders that are built meanwhile have `ScaledLinear` by its definition: any device and width."""
    by_definition = partial(ScaledLinear, backend="torch")
    with (
        mock.patch.object(packed, "scaled_linear_available", return_value=None),
        mock.patch.object(weights, "ScaledLinear", by_definition),
    ):
        yield


def cpu_subjects(quick: bool) -> Iterator[tuple[str, Path, IdPairs]]:
    """An encoder's name, its folder and the texts: the real one first, random ones after it."""
    if is_packaged(DEFAULT_ENCODER):
        pairs = explanation_ids(2 if quick else 32, 6)
        yield "all-MiniLM-L6-v2", load_checkpoint(DEFAULT_ENCODER).folder, pairs
    for wanted in CPU_SHAPES:
        shape = wanted.shrunk() if quick else wanted
        pairs = overlapping_pairs(64 if quick else 160, shape.vocab_size, longest=64 if quick else 256)
        yield shape.name, checkpoint_folder(shape), pairs


def cpu_rows(quick: bool) -> Iterator[dict[str, Any]]:
    """Hold each precision's scores against those in fp32: a row of results for each."""
    for name, folder, pairs in cpu_subjects(quick):
        checkpoint = load_checkpoint(folder)
        pooling: Pooling = "cls" if "bge" in name else "mean"

        def scores(dtype: torch.dtype) -> Tensor:
            with eight_bits_by_definition():
                encoder = PackedEncoder(checkpoint, CPU, dtype, pooling=pooling)  # noqa: B023  # called here
            return PackedScoring(encoder).score(pairs)  # noqa: B023

        expected = scores(torch.float32)
        for precision, dtype, bound in CPU_PRECISIONS:
            found = scores(dtype)
            largest, rms = errors(found, expected)
            correlation = spearman(found, expected)
            yield {
                "encoder": name,
                "precision": precision,
                "scores": len(expected),
                "std_of_scores": float(expected.std()),
                "spearman": correlation,
                "asked_spearman": bound,
                "met": correlation >= bound,
                "largest_error": largest,
                "rms_error": rms,
            }


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when all correlations are as asked, 1 when one is not; a quick run judges none."""
    parser = argparse.ArgumentParser(prog="fidelity.py", description="bf16 and fp8 by definition, on a CPU.")
    parser.add_argument("--quick", action="store_true", help="tiny encoders and a few texts: does it run?")
    parser.add_argument("--out", type=Path, help="also write the results below this folder")
    options = parser.parse_args(arguments)
    console, source = wide_console(), provenance(CPU)
    table = Table(title=f"scores against fp32\n{source['device']}, commit {source['commit']}")
    for column in ("encoder", "precision", "scores", "their std", "Spearman", "asked", "largest", "RMS"):
        table.add_column(column, justify="left" if column in ("encoder", "precision") else "right")
    rows = []
    for row in cpu_rows(options.quick):
        rows.append(row)
        verdict = "" if options.quick else " met" if row["met"] else " MISSED"
        numbers = (f"{row[key]:.2e}" for key in ("largest_error", "rms_error"))
        first = (row["encoder"], row["precision"], str(row["scores"]), f"{row['std_of_scores']:.4f}")
        table.add_row(*first, f"{row['spearman']:.5f}", f"≥ {row['asked_spearman']}{verdict}", *numbers)
    console.print(table)
    if options.out is not None:
        content = {**source, "suite": "fidelity", "settings": {"quick": options.quick}, "rows": rows}
        console.print(f"wrote {write_results(options.out, 'fidelity', content)}", soft_wrap=True)
    return 0 if options.quick or all(row["met"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
