"""Two-sided, weighted MaxSim against PyTorch with padding, eager and compiled.

    python -m pytest benchmarks/bench_maxsim.py --benchmark-only [--quick] [--rounds N]

The caller's clock, from a cold L2 on a GPU. The times on the GPU itself are gpu_suite.py's.

Operations count every similarity once. The kernel computes each of them twice, so that half of the ceiling is
the most that it can reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import require_close
from benchmarks.shapes import D384_64K, D768_64K, D1024_64K, Noise, PackedShape
from benchmarks.workloads import COMPILED, EAGER, NOT_AUTOTUNED, OURS, Case, TimeWorkload, Workload, compiled
from fastreward.ops.maxsim import MaxSim, maxsim, maxsim_bytes, maxsim_flops

MAX_ERROR: Final = 1e-5
"""All sums are fp32 whatever the inputs are; a matrix unit may cut off 2⁻²³ for each 16 columns."""

PEER_MAX_ERROR: Final = 2e-2
"""A peer rounds unit vectors and similarities to bf16."""

GENERATIONS: Final = 8


@dataclass(frozen=True)
class Side:
    """Tokens of texts [T, D], their weights [T], the offsets and the lengths on the host."""

    tokens: Tensor
    weights: Tensor
    offsets: Tensor
    lengths: tuple[int, ...]

    def in_fp64(self) -> list[tuple[Tensor, Tensor]]:
        """Unit vectors and weights of each text."""
        unit = F.normalize(self.tokens.double(), dim=1).split(self.lengths)
        return list(zip(unit, self.weights.double().split(self.lengths), strict=True))

    def padded(self, texts: Tensor) -> tuple[Tensor, Tensor]:
        """For texts by number [N]: the rows of their tokens [N, L] and which exist [N, L]."""
        lengths = torch.tensor(self.lengths, device=texts.device)[texts][:, None]
        column = torch.arange(max(self.lengths), device=texts.device)
        exists = column < lengths
        return torch.where(exists, self.offsets[texts][:, None] + column, 0), exists


class Inputs:
    """Candidates, `GENERATIONS` to a reference, with tokens that lie more or less near the reference's."""

    def __init__(
        self,
        lengths: Sequence[int],
        reference_lengths: Sequence[int],
        hidden_size: int,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        noise = Noise(device)
        candidates = noise(sum(lengths), hidden_size)
        references = noise(sum(reference_lengths), hidden_size)
        if len(references):
            near = torch.linspace(0.0, 2.0, len(candidates), device=device)[:, None]
            candidates += near * references[torch.arange(len(candidates), device=device) % len(references)]
        self.candidates = self._side(candidates.to(dtype), lengths, noise)
        self.references = self._side(references.to(dtype), reference_lengths, noise)
        self.index = (
            torch.arange(len(lengths), device=device) * len(reference_lengths) // max(1, len(lengths))
        )

    @staticmethod
    def _side(tokens: Tensor, lengths: Sequence[int], noise: Noise) -> Side:
        offsets = torch.tensor([0, *lengths], device=tokens.device).cumsum(0).int()
        return Side(tokens, noise(len(tokens)).abs(), offsets, tuple(lengths))

    def run(self) -> tuple[Tensor, ...]:
        """Call the op."""
        result: MaxSim = maxsim(
            self.candidates.tokens,
            self.candidates.offsets,
            self.references.tokens,
            self.references.offsets,
            self.index,
            candidate_weights=self.candidates.weights,
            reference_weights=self.references.weights,
            max_candidate=max(self.candidates.lengths, default=0),
            max_reference=max(self.references.lengths, default=0),
        )
        return result.precision, result.recall, result.f1

    def in_fp64(self) -> tuple[Tensor, ...]:
        """The definition, pair by pair."""
        candidates, references = self.candidates.in_fp64(), self.references.in_fp64()
        scores = torch.zeros((3, len(candidates)), dtype=torch.float64, device=self.index.device)
        for pair, row in enumerate(self.index.tolist()):
            (c, v), (r, w) = candidates[pair], references[row]
            if len(c) and len(r):
                similarities = c @ r.T
                precision = (similarities.amax(1) * v).sum() / v.sum()
                recall = (similarities.amax(0) * w).sum() / w.sum()
                same_sign = precision * recall > 0
                f1 = torch.where(same_sign, 2 * precision * recall / (precision + recall), 0.0)
                scores[:, pair] = torch.stack([precision, recall, f1])
        return scores.unbind(0)

    def eager_arguments(self) -> tuple[Tensor, ...]:
        """What a peer is given for nothing: where the tokens of the padded texts are."""
        pairs = torch.arange(len(self.index), device=self.index.device)
        left, right = self.candidates.padded(pairs), self.references.padded(self.index)
        return (
            self.candidates.tokens,
            self.references.tokens,
            *left,
            *right,
            torch.where(left[1], self.candidates.weights[left[0]], 0.0),
            torch.where(right[1], self.references.weights[right[0]], 0.0),
        )


def eager(
    candidates: Tensor,
    references: Tensor,
    rows: Tensor,
    row_exists: Tensor,
    columns: Tensor,
    column_exists: Tensor,
    v: Tensor,
    w: Tensor,
) -> tuple[Tensor, ...]:
    """Pad, normalise, multiply, mask, and take maxima and means: as a good user of PyTorch would."""
    left = F.normalize(candidates, dim=-1)[rows]
    right = F.normalize(references, dim=-1)[columns]
    similarities = left @ right.transpose(1, 2)
    similarities = similarities.masked_fill(~(row_exists[:, :, None] & column_exists[:, None]), -2.0)
    precision = (similarities.amax(2).float() * v).sum(1) / v.sum(1)
    recall = (similarities.amax(1).float() * w).sum(1) / w.sum(1)
    return precision, recall, 2 * precision * recall / (precision + recall)


def draw(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
    """Draw a GRPO step's texts."""
    shape = shape.sized(device, shrunk)
    lengths = shape.lengths()
    reference_lengths = shape.lengths(seed=1)[: -(-len(lengths) // GENERATIONS)]
    inputs = Inputs(lengths, reference_lengths, shape.hidden_size, device, dtype)
    arguments = inputs.eager_arguments()
    pairs = [reference_lengths[row] for row in inputs.index.tolist()]
    described: dict[str, Any] = {**shape.describe(), "num_references": len(reference_lengths)}
    return Case(
        ours=OURS,
        variants={
            OURS: inputs.run,
            EAGER: partial(eager, *arguments),
            COMPILED: partial(compiled(eager, NOT_AUTOTUNED), *arguments),
        },
        expected=inputs.in_fp64,
        max_error=MAX_ERROR,
        peer_max_error=PEER_MAX_ERROR,
        moved_bytes=maxsim_bytes(
            sum(lengths), sum(reference_lengths), len(lengths), shape.hidden_size, dtype
        ),
        flops=maxsim_flops(lengths, pairs, shape.hidden_size),
        describe=described,
    )


EDGES: Final = {
    "one token": ((1,), (1,), 384),
    "empty texts among others": ((0, 3, 0, 1, 0), (2, 0, 5), 384),
    "around the edges of a tile": ((63, 64, 65, 511, 513), (127, 128, 129), 768),
    "a hidden size that is no power of two": ((31, 300, 1, 64), (33, 7), 1000),
    "a hidden size that is odd": ((31, 30, 1, 64), (33, 7), 37),
    "one long text": ((1, 8191, 2), (700,), 48),
}


def check_edges(device: torch.device) -> None:
    """Hold the op against fp64 where implementations go wrong first, in every precision of the device."""
    dtypes = [torch.float32, torch.bfloat16, *([torch.float16] if device.type == "cuda" else [])]
    for name, sizes in EDGES.items():
        for dtype in dtypes:
            inputs = Inputs(*sizes, device, dtype)
            for got, right in zip(inputs.run(), inputs.in_fp64(), strict=True):
                require_close(f"maxsim, {name}, {dtype}", got, right, max_error=MAX_ERROR)


WORKLOADS: Final = (
    Workload("maxsim", "d384-64k", "compute", partial(draw, D384_64K)),
    Workload("maxsim", "d768-64k", "compute", partial(draw, D768_64K)),
    Workload("maxsim", "d1024-64k", "compute", partial(draw, D1024_64K)),
)


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda workload: workload.name)
def test_maxsim(workload: Workload, time_workload: TimeWorkload) -> None:
    time_workload(workload)
