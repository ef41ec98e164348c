"""Packed attention against a loop over texts in fp64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastreward.ops.attention import packed_attention

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# fp32: rounding of two products and a softmax. bf16 and fp16: one rounding of the probabilities and one of
# the result, each at most 2^-8 (bf16) or 2^-11 (fp16) of values of about 1.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}

LENGTHS = [
    pytest.param([1], id="one-token"),
    pytest.param([64, 64, 64, 17, 17, 3, 1, 1], id="runs-of-equal-length"),
    pytest.param([3, 50, 3, 0, 0, 7, 7], id="unsorted-and-empty"),
    pytest.param([300, 130], id="longer-than-a-block"),
]


def case(
    lengths: list[int], heads: int, head_dim: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(sum(lengths))
    qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator).to(device, dtype)
    return qkv, torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)


def oracle(qkv: Tensor, lengths: list[int]) -> Tensor:
    attended = []
    for rows in qkv.double().split(lengths):
        query, key, value = rows.permute(1, 2, 0, 3)  # each [H, length, head_dim]
        weights = (query @ key.transpose(1, 2) * qkv.shape[-1] ** -0.5).softmax(-1)
        attended.append((weights @ value).transpose(0, 1).flatten(1))
    return torch.cat(attended)


@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize(("heads", "head_dim"), [(12, 32), (2, 64), (1, 16)])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize("device", DEVICES)
def test_each_token_sees_its_own_text_alone(device, lengths, dtype, heads, head_dim, batch_invariant):
    if device == "cpu" and dtype is torch.float16:
        dtype = torch.bfloat16  # an encoder never computes in fp16 on a CPU
    qkv, cu_seqlens = case(lengths, heads, head_dim, device, dtype)
    got = packed_attention(qkv, cu_seqlens, lengths, batch_invariant=batch_invariant)
    assert got.dtype == dtype
    assert (got.double() - oracle(qkv, lengths)).abs().max() <= TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device", DEVICES)
def test_a_text_s_bits_do_not_depend_on_its_batch(device, dtype):
    lengths = [40, 40, 40, 9, 9, 1]
    qkv, cu_seqlens = case(lengths, 12, 32, device, dtype)
    together = packed_attention(qkv, cu_seqlens, lengths, batch_invariant=True).split(lengths)
    for text, rows in enumerate(qkv.split(lengths)):
        offsets = torch.tensor([0, len(rows)], dtype=torch.int32, device=device)
        alone = packed_attention(rows.contiguous(), offsets, [len(rows)], batch_invariant=True)
        assert torch.equal(alone, together[text])
