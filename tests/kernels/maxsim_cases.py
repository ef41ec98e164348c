"""What `maxsim` launches, to be compiled ahead of time: see test_resources.py."""

from __future__ import annotations

from functools import partial

import torch

from fastreward.kernels.launch import Launch
from fastreward.kernels.maxsim import plan_maxsim


def launches(
    kernel: str, hidden_size: int, dtype: torch.dtype, weighted: bool, longest: int | None
) -> tuple[Launch, ...]:
    """What the launcher would launch of one kernel for pairs that share half as many references."""
    pairs, references = 8, 4
    tokens = torch.empty(1000, hidden_size, dtype=dtype)
    plan = plan_maxsim(
        tokens,
        torch.empty(pairs + 1, dtype=torch.int32),
        torch.empty_like(tokens),
        torch.empty(references + 1, dtype=torch.int32),
        torch.empty(pairs, dtype=torch.int64),
        candidate_weights=torch.empty(1000) if weighted else None,
        reference_weights=torch.empty(1000) if weighted else None,
        max_candidate=longest,
        max_reference=longest,
        scores=torch.empty(3, pairs),
    )
    return tuple(launch for launch in plan if launch.kernel.__name__ == kernel)


MATCH, LENGTHS, FINISH = "_maxsim_kernel", "_inverse_length_kernel", "_finish_kernel"
BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
# kernel, hidden size, dtype, weighted, longest text
SHAPES = {
    "384-bf16": (MATCH, 384, BF16, True, 512),
    "768-bf16": (MATCH, 768, BF16, True, 512),
    "768-bf16-unweighted": (MATCH, 768, BF16, False, None),
    "768-fp16": (MATCH, 768, FP16, True, 512),
    "1008-bf16": (MATCH, 1008, BF16, True, 512),  # no multiple of a tile
    "1024-bf16": (MATCH, 1024, BF16, True, 512),
    "4096-bf16": (MATCH, 4096, BF16, True, None),
    "384-fp32": (MATCH, 384, FP32, True, 512),
    "1024-fp32": (MATCH, 1024, FP32, True, None),
    "lengths-384-bf16": (LENGTHS, 384, BF16, True, 512),
    "lengths-1024-fp32": (LENGTHS, 1024, FP32, True, 512),
    "lengths-4096-fp16": (LENGTHS, 4096, FP16, True, 512),
    "finish": (FINISH, 384, BF16, True, 512),
}

CASES = {name: partial(launches, *shape) for name, shape in SHAPES.items()}
WGMMA = {name for name, (kernel, _, dtype, *_) in SHAPES.items() if kernel == MATCH and dtype != FP32}
SCALAR = {FINISH}  # eight sums a pair
