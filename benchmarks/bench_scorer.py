"""The scorer on a CPU, a GRPO step of explanations, against sentence-transformers at its defaults.

    python benchmarks/bench_scorer.py [--only ROW ...] [--quick] [--rounds N] [--out FOLDER]
    python -m pytest benchmarks/bench_scorer.py --benchmark-only [--quick] [--rounds N]

64 prompts × 8 completions, the 8 of a prompt with one reference. Each row is two variants on the same threads
that take turns; one round of all rows takes a minute or two on two cores. Nothing is timed before the scores
agree with sentence-transformers in fp32.
"""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor

# The repository, which is not on the path of a script in a folder below it, nor of pytest run by its name.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.comparison import Bounds, Measured, Pair, Row, new_table, why_not
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
from benchmarks.peers import SentenceTransformersPeer
from benchmarks.shapes import explanation_batch
from fastreward import Scorer, SemanticReward
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, load_checkpoint

OURS: Final = {torch.float32: Bounds(1e-5, 1e-5), torch.bfloat16: Bounds(2e-2, 3e-3)}
PEER_IN_BF16: Final = Bounds(5e-2, 1e-2)  # it rounds the pooled vector to bf16 too; beyond this it is broken


@functools.cache
def scorer(dtype: torch.dtype, *, batch_invariant: bool = False) -> Scorer:
    """A scorer that stays."""
    return new_scorer(dtype, batch_invariant=batch_invariant)


def new_scorer(dtype: torch.dtype, *, batch_invariant: bool = False) -> Scorer:
    """A scorer that knows no reference yet."""
    options = {"device": "cpu", "dtype": dtype, "batch_invariant": batch_invariant, "progress": False}
    return Scorer(DEFAULT_ENCODER, backend="packed", **options)


@functools.cache
def peer(dtype: torch.dtype) -> SentenceTransformersPeer:
    """sentence-transformers, in this precision."""
    return SentenceTransformersPeer(DEFAULT_ENCODER, dtype=dtype)


class Workbench:
    """The texts, and what is right for them.

    Args:
        prompts: P, each with a reference of its own.
        generations: G completions of a prompt.
    """

    def __init__(self, prompts: int = 64, generations: int = 8) -> None:
        batch = explanation_batch(prompts, generations)
        self.completions = list(batch.completions)
        self.references = list(batch.references)
        self._checked: set[torch.dtype] = set()

    @functools.cached_property
    def expected(self) -> tuple[Tensor, Tensor]:
        """Scores [N] and the completions' vectors [N, D] as sentence-transformers has them in fp32."""
        completions = peer(torch.float32).embed(self.completions)
        references = peer(torch.float32).embed(self.references)
        return F.cosine_similarity(completions, references), completions

    def check(self, dtype: torch.dtype) -> None:
        """Hold everything that is timed in `dtype` against sentence-transformers in fp32, once.

        Raises:
            GateError: If something is wrong.
        """
        if dtype in self._checked:
            return
        scores, vectors = self.expected
        bounds = vars(OURS[dtype])
        name = str(dtype).removeprefix("torch.")
        rewards = SemanticReward(scorer(dtype))(self.completions, reference=self.references)
        require_close(f"SemanticReward, {name}", torch.tensor(rewards), scores, **bounds)
        require_close(f"embed, {name}", scorer(dtype).embed(self.completions), vectors, **bounds)
        invariant = scorer(dtype, batch_invariant=True)
        together = invariant.score(self.completions, self.references)
        require_close(f"batch_invariant, {name}", together, scores, **bounds)
        for row in range(0, len(self.completions), max(1, len(self.completions) // 4)):
            alone = invariant.score(self.completions[row : row + 1], self.references[row : row + 1])
            if not torch.equal(alone, together[row : row + 1]):
                raise GateError(f"batch_invariant, {name}: text {row} alone has other bits; not timed")
        if dtype != torch.float32:
            theirs = peer(dtype).embed(self.completions)
            require_close(f"sentence-transformers, {name}", theirs.float(), vectors, **vars(PEER_IN_BF16))
        self._checked.add(dtype)


def token_counts(texts: Sequence[str]) -> list[int]:
    """Tokens of each text as the encoder gets it."""
    return [len(ids) for ids in scorer(torch.float32).tokenizer(texts)]


def both_sides(bench: Workbench, dtype: torch.dtype) -> Pair:
    """Rewards, the references not known yet: a new scorer each round, built before the clock starts."""

    def from_a_cold_cache() -> Callable[[], object]:
        reward = SemanticReward(new_scorer(dtype))
        return partial(reward, bench.completions, reference=bench.references)

    theirs = partial(peer(dtype).score, bench.completions, bench.references)
    return Pair(
        fast=("SemanticReward", from_a_cold_cache),
        slow={"sentence-transformers, both sides": repeated(theirs)},
        encoded=tuple(dict.fromkeys((*bench.completions, *bench.references))),
    )


def completions_alone(bench: Workbench, dtype: torch.dtype) -> Pair:
    """Vectors of the completions: no reference, nothing that occurs twice, the encoder alone."""
    return Pair(
        fast=("Scorer.embed", repeated(partial(scorer(dtype).embed, bench.completions))),
        slow={"sentence-transformers": repeated(partial(peer(dtype).embed, bench.completions))},
        encoded=tuple(bench.completions),
    )


def batch_invariance(bench: Workbench, dtype: torch.dtype) -> Pair:
    """Scores, the references known: the ratio is what `batch_invariant=True` costs."""
    fixed = scorer(dtype, batch_invariant=True)
    plain = scorer(dtype)
    return Pair(
        fast=("Scorer.score", repeated(partial(plain.score, bench.completions, bench.references))),
        slow={"batch_invariant=True": repeated(partial(fixed.score, bench.completions, bench.references))},
        encoded=tuple(bench.completions),
    )


ROWS: Final = {
    row.name: row
    for row in (
        Row("reward-fp32", torch.float32, both_sides, ("≥", 3.0)),
        Row("completions-fp32", torch.float32, completions_alone, ("≥", 1.5)),
        Row("reward-bf16", torch.bfloat16, both_sides),
        Row("completions-bf16", torch.bfloat16, completions_alone),
        Row("batch-invariant-fp32", torch.float32, batch_invariance, ("≤", 1.5)),
        Row("batch-invariant-bf16", torch.bfloat16, batch_invariance, ("≤", 1.5)),
    )
}


def compare(
    row: Row, bench: Workbench, time: Callable[[Mapping[str, Prepare]], Mapping[str, Timing]]
) -> Measured:
    """Check, then time the row's two variants by `time`.

    Raises:
        GateError: If the scores are wrong.
    """
    bench.check(row.dtype)
    pair = row.pair(bench, row.dtype)
    lengths = token_counts(pair.encoded)
    ceiling = matrix_product_rate(row.dtype)
    config = load_checkpoint(DEFAULT_ENCODER).config
    return Measured(
        row=row,
        fast=pair.fast[0],
        timings=time(pair.variants),
        texts=len(bench.completions),
        tokens=sum(lengths),
        flops=encoder_flops(lengths, config),
        ceiling=ceiling,
    )


def work_saved(bench: Workbench) -> str:
    """How much of the usual way's work is left when each text is encoded once."""
    completions, references = token_counts(bench.completions), token_counts(bench.references)
    distinct = token_counts(list(dict.fromkeys(bench.references)))
    ratio = (sum(completions) + sum(references)) / (sum(completions) + sum(distinct))
    return (
        f"{len(completions)} completions of {sum(completions):,} tokens, {len(distinct)} distinct references "
        f"of {sum(distinct):,}: encoding both sides of every row is {ratio:.2f} times the tokens"
    )


def table_of(bench: Workbench) -> Table:
    """A table that says how much work is left."""
    threads = torch.get_num_threads()
    return new_table(f"{work_saved(bench)}\n{threads} threads; seconds, p50 (p20 – p80) of rounds in turns")


# --------------------------------------------------------------------------- under pytest-benchmark


@pytest.fixture(scope="module")
def bench(quick: bool) -> Workbench:
    return Workbench(4, 2) if quick else Workbench()


@pytest.fixture(scope="module")
def table(bench: Workbench, show: Callable[[Table], None]) -> Table:
    table = table_of(bench)
    show(table)
    return table


@pytest.mark.parametrize("name", ROWS)
def test_scorer(
    name: str,
    bench: Workbench,
    interleave: Callable[..., dict[str, Timing]],
    benchmark: Any,
    table: Table,
    rounds: int,
) -> None:
    row = ROWS[name]
    if reason := why_not(row):
        pytest.skip(reason)
    measured = compare(row, bench, lambda variants: interleave(variants, WallClock(CPU), rounds))
    table.add_row(*measured.cells())
    benchmark.extra_info.update(measured.as_json())


# --------------------------------------------------------------------------- as a script


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table: 0 when all is measured, 1 when a score is wrong."""
    parser = argparse.ArgumentParser(prog="bench_scorer.py", description="The scorer on a CPU.")
    parser.add_argument("--only", nargs="+", choices=ROWS, metavar="ROW", help=", ".join(ROWS))
    parser.add_argument("--quick", action="store_true", help="eight texts and two rounds: does it run?")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each row (default: 5)")
    parser.add_argument("--out", type=Path, help="also write the results below this folder")
    options = parser.parse_args(arguments)
    bench = Workbench(4, 2) if options.quick else Workbench()
    rounds = 2 if options.quick else options.rounds
    console = wide_console()
    source = provenance(CPU)
    console.print(f"{source['device']}, torch {torch.__version__}, commit {source['commit']}")
    results = []
    table = table_of(bench)
    for row in (ROWS[name] for name in options.only or ROWS):
        if reason := why_not(row):
            console.print(f"{row.name}: left out, {reason}")
            continue
        console.print(f"{row.name} …")
        try:
            measured = compare(row, bench, partial(interleaved, clock=WallClock(CPU), rounds=rounds))
        except GateError as error:
            print(error, file=sys.stderr)
            return 1
        results.append(measured.as_json())
        table.add_row(*measured.cells())
    console.print(table)
    if options.out is not None:
        settings = {"completions": len(bench.completions), "rounds": rounds, "quick": options.quick}
        content = {**source, "suite": "bench_scorer", "settings": settings, "rows": results}
        console.print(f"wrote {write_results(options.out, 'bench_scorer', content)}", soft_wrap=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
