"""The packed encoder from ids, against Hugging Face's own models: on a CPU here, on a GPU in gpu_suite.py.

    python benchmarks/bench_encoder.py [--only ROW ...] [--quick] [--rounds N] [--out FOLDER]
    python -m pytest benchmarks/bench_encoder.py --benchmark-only [--quick] [--rounds N]

On a CPU each row scores a GRPO step of explanations, given as token ids: 24 prompts × 8 completions with the
real all-MiniLM-L6-v2, 8 × 8 of the same lengths with random encoders of other families. Both sides encode
each distinct text once, on the same threads, in the same precision. Ours has the scorer's token budget;
Hugging Face's sorts by length, pads to the longest of a batch, and takes its turns with each of four budgets:
ours is compared with the fastest. Sizes, and three rounds in fp32 for five in bf16, keep a run of all rows
below eight minutes on two cores. Nothing is timed before the scores agree with Hugging Face's in fp32.
`WORKLOADS` and `FIDELITY` are for gpu_suite.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch
from rich.table import Table
from torch import Tensor

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.checkpoints import (
    BGE_BASE,
    BGE_LARGE,
    E5_SMALL,
    FIRST_WORD,
    MINILM_L6,
    MODERNBERT_BASE,
    XLM_R_BASE,
    EncoderShape,
    checkpoint_folder,
)
from benchmarks.comparison import Bounds, Measured, Pair, Row, new_table, why_not
from benchmarks.fidelity import FIDELITY, IdPairs, PackedScoring, explanation_ids
from benchmarks.measure import (
    CPU,
    GateError,
    Prepare,
    Timing,
    WallClock,
    encoder_flops,
    interleaved,
    matrix_product_rate,
    provenance,
    repeated,
    require_close,
    wide_console,
    write_results,
)
from benchmarks.peers import HuggingFacePeer
from benchmarks.shapes import PackedShape
from benchmarks.texts import log_normal
from benchmarks.workloads import NOT_HERE, OURS, Ask, Case, Variant, Workload, why
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.ops.scaled_linear import MIN_IN_FEATURES
from fastreward.packing import PackedBatch, pack

__all__ = ["FIDELITY", "WORKLOADS"]

HUGGING_FACE: Final = "Hugging Face"


# --------------------------------------------------------------------------- on a GPU

MAX_TOKENS: Final = 2048
"""Positions of the random encoders here. A real BERT has 512, which leaves a mean length of 512 no spread."""

# Texts of 65,536 tokens in all, the scorer's batch on a GPU, of log-normal lengths (`texts.SIGMA`).
LENGTHS: Final = {str(mean): log_normal(mean, 65_536, min(MAX_TOKENS, 8 * mean)) for mean in (64, 200, 512)}

ENCODERS: Final = tuple(
    replace(shape, max_tokens=MAX_TOKENS)
    for shape in (MINILM_L6, E5_SMALL, BGE_BASE, BGE_LARGE, MODERNBERT_BASE)
)

ASKED_M_TOKENS_PER_S: Final = {
    **{"minilm-l6": 12.0, "e5-small": 7.0, "bge-base": 2.5, "bge-large": 0.75, "modernbert-base": 1.8}
}
"""Of ours from ids at a mean length of 200."""
ASKED_LENGTH: Final = "200"

MAX_ERROR: Final = 2e-2
"""Of an element of a unit vector in bf16. An element of a wrong vector of 1,024 is off by 0.044 RMS, which is
what the bound of the RMS error, a tenth of that, is for."""
RMS_ERROR: Final = 4e-3
FP8_MAX_ERROR: Final = 5e-2

# Padding included. Smaller batches pad less, a quarter of the tokens instead of seven tenths, and larger ones
# have fewer launches: which is faster depends on the encoder.
PEER_BATCH_TOKENS: Final = (16_384, 65_536)

VARLEN: Final = f"{OURS}, varlen attention"
FUSED: Final = f"{OURS}, fused mlp"
FP8: Final = f"{OURS}, fp8"
FUSED_WIDTH: Final = 384


@functools.lru_cache(maxsize=4)
def packed_encoder(
    shape: EncoderShape, device: torch.device, dtype: torch.dtype, **options: Any
) -> PackedEncoder:
    """Our encoder with random weights. The last few stay, for the next lengths of texts."""
    checkpoint = load_checkpoint(checkpoint_folder(shape))
    return PackedEncoder(checkpoint, device, dtype, pooling=shape.pooling, **options)


@functools.lru_cache(maxsize=2)
def hugging_face(shape: EncoderShape, device: torch.device, dtype: torch.dtype) -> HuggingFacePeer:
    """Hugging Face's model with the same weights."""
    return HuggingFacePeer(checkpoint_folder(shape), device=device, dtype=dtype, pooling=shape.pooling)


def embedding_variants(
    shape: EncoderShape, width: int, device: torch.device, dtype: torch.dtype, batch: PackedBatch
) -> dict[str, Variant]:
    """Ours as calls: ids on the device → unit vectors. What cannot be had here says so when it is called.

    Args:
        shape: The encoder.
        width: Its columns before it was shrunk, which decide what it is tried with.
        device: Where it runs.
        dtype: In which precision, where a variant has none of its own.
        batch: The ids.
    """

    def embed(dtype: torch.dtype, **options: Any) -> Tensor:
        return packed_encoder(shape, device, dtype, **options).embed(batch)

    variants: dict[str, Variant] = {
        OURS: partial(embed, dtype),
        VARLEN: partial(embed, dtype, attention="varlen"),
    }
    if width == FUSED_WIDTH:
        variants[FUSED] = partial(embed, dtype, fused_mlp=True)
    if width >= MIN_IN_FEATURES:
        variants[FP8] = partial(embed, torch.float8_e4m3fn)
    return variants


def draw(
    shape: EncoderShape, texts: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool
) -> Case:
    """Draw ids; each variant embeds all texts, ours in one packed batch, Hugging Face's in padded ones.

    Ids and padded batches lie on the device, lengths on the host, before the clock starts.
    """
    width = shape.hidden_size
    if shrunk:
        shape, texts = shape.shrunk(), quarter(texts)
    lengths = sorted(texts.lengths(), reverse=True)  # as the scorer's batches come
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(FIRST_WORD, shape.vocab_size, (n,), generator=generator).tolist() for n in lengths]
    ours = embedding_variants(shape, width, device, dtype, pack(ids, device))
    theirs = hugging_face(shape, device, dtype)
    padded = {budget: theirs.pad(ids, budget) for budget in PEER_BATCH_TOKENS}
    peers = {
        f"{HUGGING_FACE}, {budget:,} tokens": partial(theirs.embed_padded, batches)
        for budget, batches in padded.items()
    }
    exact = padded[min(PEER_BATCH_TOKENS)]
    return Case(
        ours=OURS,
        variants={**ours, **peers},
        expected=lambda: hugging_face(shape, device, torch.float32).embed_padded(exact),
        max_error=MAX_ERROR,
        rms_error=RMS_ERROR,
        peer_max_error=FP8_MAX_ERROR,
        moved_bytes=0,
        flops=encoder_flops(lengths, configuration(shape), pooling=shape.pooling),
        own=frozenset(ours) - {FP8},  # which has a bound of its own, in FIDELITY
        tokens=sum(lengths),
        describe={
            **{"num_tokens": sum(lengths), "num_texts": len(lengths), "longest_text": lengths[0]},
            **vars(shape),
        },
    )


def quarter(texts: PackedShape) -> PackedShape:
    """A few texts, each a quarter as long."""
    limits = {name: getattr(texts, name) // 4 for name in ("mean_tokens", "min_tokens", "max_tokens")}
    return replace(texts, num_tokens=texts.max_tokens, **limits)


def configuration(shape: EncoderShape) -> dict[str, Any]:
    """The contents of config.json."""
    content = json.loads((checkpoint_folder(shape) / "config.json").read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


WORKLOADS: Final = tuple(
    Workload(
        *("encoder", f"{shape.name}-{name}", "compute", partial(draw, shape, texts)),
        asks=(Ask("M tokens/s", ASKED_M_TOKENS_PER_S[shape.name]),) if name == ASKED_LENGTH else (),
    )
    for shape in ENCODERS
    for name, texts in LENGTHS.items()
)


# --------------------------------------------------------------------------- on a CPU


@dataclass(frozen=True)
class Subject:
    """What a row scores: an encoder's folder and the ids of the texts.

    Attributes:
        folder: The checkpoint.
        pairs: Completions and references as ids.
        config: The contents of config.json.
    """

    folder: Path
    pairs: IdPairs
    config: Mapping[str, Any]

    def ours(self, dtype: torch.dtype) -> PackedScoring:
        """The packed encoder."""
        return PackedScoring(PackedEncoder(load_checkpoint(self.folder), CPU, dtype, pooling="mean"))

    def theirs(self, dtype: torch.dtype) -> HuggingFacePeer:
        """Hugging Face's model."""
        return HuggingFacePeer(self.folder, device=CPU, dtype=dtype)


def minilm(quick: bool) -> Subject:
    """The real encoder."""
    checkpoint = load_checkpoint(DEFAULT_ENCODER)
    pairs = explanation_ids(*((4, 2) if quick else (24, 8)))
    return Subject(checkpoint.folder, pairs, checkpoint.config)


def random_encoder(shape: EncoderShape, quick: bool) -> Subject:
    """A random encoder, on texts of the same lengths: each token of the explanations has another name."""
    shape = shape.shrunk() if quick else shape
    pairs = explanation_ids(*((4, 2) if quick else (8, 8)))
    words = shape.vocab_size - FIRST_WORD

    def renamed(texts: Sequence[Sequence[int]]) -> list[list[int]]:
        return [[FIRST_WORD + id_ % words for id_ in ids] for ids in texts]

    renamed_pairs = replace(
        pairs, completions=renamed(pairs.completions), references=renamed(pairs.references)
    )
    return Subject(checkpoint_folder(shape), renamed_pairs, configuration(shape))


# A few layers say what all would: a layer costs what the next one does. ModernBERT's fourth is global again.
SUBJECTS: Final[Mapping[str, Callable[[bool], Subject]]] = {
    "minilm": minilm,
    "xlm-r": partial(random_encoder, replace(XLM_R_BASE, name="xlm-r-3-layers", num_layers=3)),
    "modernbert": partial(random_encoder, replace(MODERNBERT_BASE, name="modernbert-4-layers", num_layers=4)),
}

CPU_BATCH_TOKENS: Final = (1_024, 2_048, 4_096, 8_192)
"""Budgets that the peer is tried with, padding included. Each row is compared with its best."""

OUR_BOUNDS: Final = {torch.float32: Bounds(1e-5, 1e-5), torch.bfloat16: Bounds(2e-2, 3e-3)}
PEER_IN_BF16: Final = Bounds(5e-2, 1e-2)  # beyond this it is broken


@functools.lru_cache(maxsize=1)
def subject(name: str, quick: bool) -> Subject:
    """What the row's encoder and texts are; the next row with the same ones takes them again."""
    return SUBJECTS[name](quick)


def pair_of(name: str, quick: bool, dtype: torch.dtype) -> Pair:
    """Both sides, checked: from ids to scores.

    Raises:
        GateError: If the scores are wrong.
    """
    chosen = subject(name, quick)
    pairs = chosen.pairs
    ours, theirs = chosen.ours(dtype), chosen.theirs(dtype)
    arguments = (pairs.completions, pairs.references, pairs.reference_index)
    expected = chosen.theirs(torch.float32).score(*arguments, min(CPU_BATCH_TOKENS))
    precision = str(dtype).removeprefix("torch.")
    require_close(f"{name}, {precision}", ours.score(pairs), expected, **vars(OUR_BOUNDS[dtype]))
    slow = {
        f"{HUGGING_FACE}, {budget:,} tokens": partial(theirs.score, *arguments, budget)
        for budget in CPU_BATCH_TOKENS
    }
    bounds = OUR_BOUNDS[dtype] if dtype == torch.float32 else PEER_IN_BF16
    for peer, run in slow.items():
        require_close(f"{peer}, {name}, {precision}", run(), expected, **vars(bounds))
    return Pair(
        fast=("packed", repeated(partial(ours.score, pairs))),
        slow={peer: repeated(run) for peer, run in slow.items()},
    )


def rounds_of(row: Row, rounds: int) -> int:
    """In fp32, where nothing is asked, three rounds for five in bf16: the script's time is bounded."""
    return rounds if row.dtype == torch.bfloat16 else -(-3 * rounds // 5)


def row(name: str, dtype: torch.dtype, asked: tuple[str, float] | None = None) -> Row:
    """A row of this encoder in this precision."""
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    return Row(f"{name}-{precision}", dtype, partial(pair_of, name), asked)


ROWS: Final = {
    made.name: (name, made)
    for name in SUBJECTS
    for made in (row(name, torch.bfloat16, ("≥", 1.0)), row(name, torch.float32))
}


def compare(
    name: str, quick: bool, time: Callable[[Mapping[str, Prepare]], Mapping[str, Timing]]
) -> Measured:
    """Check, then time a row's two sides by `time`.

    Raises:
        GateError: If the scores are wrong.
    """
    encoder, made = ROWS[name]
    pair = made.pair(quick, made.dtype)
    chosen = subject(encoder, quick)
    widths = [int(chosen.config[key]) for key in ("hidden_size", "intermediate_size")]
    ceiling = matrix_product_rate(made.dtype, *widths)
    return Measured(
        row=made,
        fast=pair.fast[0],
        timings=time(pair.variants),
        texts=len(chosen.pairs.completions),
        tokens=sum(chosen.pairs.lengths),
        flops=encoder_flops(chosen.pairs.lengths, chosen.config),
        ceiling=ceiling,
    )


def table_of_rows() -> Table:
    """A table for the rows."""
    threads = torch.get_num_threads()
    return new_table(f"From ids to scores, packed and padded\n{threads} threads; seconds, p50 (p20 – p80)")


@pytest.fixture(scope="module")
def table(show: Callable[[Table], None]) -> Table:
    table = table_of_rows()
    show(table)
    return table


@pytest.mark.parametrize("name", ROWS)
def test_encoder(
    name: str,
    quick: bool,
    interleave: Callable[..., dict[str, Timing]],
    benchmark: Any,
    table: Table,
    rounds: int,
) -> None:
    if reason := why_not(ROWS[name][1]):
        pytest.skip(reason)
    turns = rounds_of(ROWS[name][1], rounds)
    measured = compare(name, quick, lambda variants: interleave(variants, WallClock(CPU), turns))
    table.add_row(*measured.cells())
    benchmark.extra_info.update(measured.as_json())


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when all is measured, 1 when a score is wrong or an encoder cannot be built."""
    parser = argparse.ArgumentParser(prog="bench_encoder.py", description="The packed encoder on a CPU.")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="eight texts and two rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of a row in bf16 (default: 5)")
    parser.add_argument("--out", type=Path, help="also write the results below this folder")
    options = parser.parse_args(arguments)
    rounds = 2 if options.quick else options.rounds
    console = wide_console()
    source = provenance(CPU)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    results, table = [], table_of_rows()
    for name in options.only or ROWS:
        if reason := why_not(ROWS[name][1]):
            console.print(f"{name}: left out, {reason}")
            continue
        console.print(f"{name} …")
        # The check before has run each variant once: that was the warm-up.
        turns = {"rounds": rounds_of(ROWS[name][1], rounds), "warmups": 0}
        try:
            measured = compare(name, options.quick, partial(interleaved, clock=WallClock(CPU), **turns))
        except (GateError, *NOT_HERE) as error:
            print(why(error), file=sys.stderr)
            return 1
        results.append(measured.as_json())
        table.add_row(*measured.cells())
    console.print(table)
    if options.out is not None:
        settings = {"rounds": rounds, "quick": options.quick}
        content = {**source, "suite": "bench_encoder", "settings": settings, "rows": results}
        console.print(f"wrote {write_results(options.out, 'bench_encoder', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
