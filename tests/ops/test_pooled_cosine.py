"""One matrix for both back-ends: the PyTorch reference on the CPU, and the Triton kernel in its interpreter
(TRITON_INTERPRET=1) or on CUDA. The oracle is a loop over texts in fp64 on the inputs cast up.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.pooled_cosine import (
    CHUNK_TOKENS,
    POOLINGS,
    LastLayerNorm,
    pooled_cosine,
    pooled_cosine_bytes,
    pooled_embedding,
)

# Inputs are exact in fp64, so all of an error is fp32 rounding in the op. A mean over n tokens and sums over
# D columns round to a few ulp (6e-8) of a unit vector's dot product; LayerNorm adds the rounding of a mean, a
# variance and a reciprocal root for each token. The bounds are the largest seen, times about four.
LARGEST_ERROR = {False: 1e-6, True: 2e-6}
RMS_ERROR = {False: 3e-7, True: 5e-7}


RAGGED = (7, 1, 0, 13, 2)
LENGTHS = [
    pytest.param((1,), id="one-token"),
    pytest.param((0,), id="no-token"),
    pytest.param((), id="no-text"),
    pytest.param((0, 0, 5, 0), id="empty-texts"),
    pytest.param(RAGGED, id="ragged"),
    pytest.param((CHUNK_TOKENS, CHUNK_TOKENS + 1, CHUNK_TOKENS - 1, 1), id="around-one-chunk"),
    pytest.param((3, 2 * CHUNK_TOKENS + 5, 0, 11, 3 * CHUNK_TOKENS), id="long-among-short"),
]


class Case:
    """Random inputs of one shape, and what fp64 makes of them."""

    def __init__(
        self,
        lengths: tuple[int, ...],
        hidden_size: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        layer_norm: bool = False,
        bias: bool = True,
        references: int = 3,
        scale: float = 1.0,
        shift: float = 0.0,
    ) -> None:
        generator = torch.Generator().manual_seed(hash((lengths, hidden_size)) % 2**31)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        num_tokens = sum(lengths)
        self.lengths = lengths
        self.hidden_states = (random(num_tokens, hidden_size) * scale + shift).to(device, dtype)
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        self.references = random(references, hidden_size).to(device)
        self.reference_index = torch.randint(references, (len(lengths),), generator=generator).to(device)
        self.layer_norm = None
        if layer_norm:
            weight, shift_by = random(hidden_size).to(device), random(hidden_size).to(device)
            residual = random(num_tokens, hidden_size).to(device, dtype)
            self.layer_norm = LastLayerNorm(residual, weight, shift_by if bias else None, 1e-6)

    def run(self, backend: str, pooling: str, *, max_seqlen: int | None = None) -> tuple[Tensor, Tensor]:
        return pooled_cosine(
            self.hidden_states,
            self.cu_seqlens,
            self.references,
            self.reference_index,
            pooling=pooling,
            max_seqlen=max_seqlen,
            layer_norm=self.layer_norm,
            return_embeddings=True,
            backend=backend,
        )

    def oracle(self, pooling: str) -> tuple[Tensor, Tensor]:
        x = self.hidden_states.double()
        if self.layer_norm is not None:
            norm = self.layer_norm
            bias = None if norm.bias is None else norm.bias.double()
            x = F.layer_norm(x + norm.residual.double(), x.shape[1:], norm.weight.double(), bias, norm.eps)
        scores, vectors = [x.new_empty(0)], [x.new_empty(0, x.shape[1])]
        for text, hidden in enumerate(x.split(self.lengths)):
            reference = self.references[self.reference_index[text]].double()
            vector = x.new_zeros(x.shape[1])
            if len(hidden):
                pooled = {"mean": hidden.mean(0), "cls": hidden[0], "last": hidden[-1], "max": hidden.amax(0)}
                vector = pooled[pooling] / pooled[pooling].norm().clamp(min=1e-300)
            vectors.append(vector[None])
            scores.append((vector @ reference / reference.norm()).view(1))
        return torch.cat(scores), torch.cat(vectors)


def assert_close(got: Tensor, expected: Tensor, *, layer_norm: bool) -> None:
    assert got.dtype == torch.float32
    assert got.shape == expected.shape
    error = (got.double() - expected).abs().flatten()
    if len(error):
        assert error.max() <= LARGEST_ERROR[layer_norm]
        assert error.square().mean().sqrt() <= RMS_ERROR[layer_norm]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer-norm"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.every_target
def test_scores_and_vectors_equal_fp64_for_every_pooling_and_length(
    backend, device, lengths, pooling, layer_norm
):
    case = Case(lengths, 48, device=device, layer_norm=layer_norm)
    scores, vectors = case.run(backend, pooling, max_seqlen=max(lengths, default=0))
    expected_scores, expected_vectors = case.oracle(pooling)
    assert_close(scores, expected_scores, layer_norm=layer_norm)
    assert_close(vectors, expected_vectors, layer_norm=layer_norm)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("layer_norm", [False, True], ids=["plain", "layer-norm"])
@pytest.mark.parametrize("hidden_size", [1, 5, 16, 127, 384, 768, 1000, 1024])
@pytest.mark.every_target_and_dtype
def test_every_hidden_size_and_dtype(backend, device, dtype, hidden_size, layer_norm):
    case = Case(RAGGED, hidden_size, device=device, dtype=dtype, layer_norm=layer_norm)
    scores, vectors = case.run(backend, "mean", max_seqlen=max(RAGGED))
    expected_scores, expected_vectors = case.oracle("mean")
    assert_close(scores, expected_scores, layer_norm=layer_norm)
    assert_close(vectors, expected_vectors, layer_norm=layer_norm)


@pytest.mark.parametrize("hidden_size", [2049, 4096])
@pytest.mark.every_target
def test_wide_hidden_states(backend, device, hidden_size):
    case = Case((5, 0, 3), hidden_size, device=device)
    assert_close(case.run(backend, "mean")[0], case.oracle("mean")[0], layer_norm=False)


@pytest.mark.parametrize("pooling", ["mean", "max"])
@pytest.mark.every_target
def test_a_text_of_32k_tokens(backend, device, pooling):
    case = Case((5, 32768, 1), 16, device=device)
    scores, vectors = case.run(backend, pooling, max_seqlen=32768)
    expected_scores, expected_vectors = case.oracle(pooling)
    assert_close(scores, expected_scores, layer_norm=False)
    assert_close(vectors, expected_vectors, layer_norm=False)


@pytest.mark.every_target
def test_layer_norm_without_a_bias(backend, device):
    case = Case(RAGGED, 48, device=device, layer_norm=True, bias=False)
    assert_close(case.run(backend, "mean")[0], case.oracle("mean")[0], layer_norm=True)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1e30])
@pytest.mark.every_target
def test_extreme_values_neither_overflow_nor_vanish(backend, device, scale, pooling):
    case = Case(RAGGED, 48, device=device, scale=scale)
    case.references *= scale
    assert_close(case.run(backend, pooling)[0], case.oracle(pooling)[0], layer_norm=False)


@pytest.mark.every_target
def test_the_largest_fp16_values(backend, device):
    case = Case(RAGGED, 48, device=device, dtype=torch.float16)
    case.hidden_states = torch.where(case.hidden_states > 0, 65504.0, -65504.0).half()
    assert_close(case.run(backend, "mean")[0], case.oracle("mean")[0], layer_norm=False)


@pytest.mark.every_target
def test_the_maximum_of_negative_values_is_negative(backend, device):
    case = Case(RAGGED, 48, device=device, shift=-100.0)
    scores, vectors = case.run(backend, "max")
    assert (vectors[case.cu_seqlens.diff() > 0] < 0).all()
    assert_close(scores, case.oracle("max")[0], layer_norm=False)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.every_target
def test_empty_texts_zero_vectors_and_zero_references_score_zero(backend, device, pooling):
    case = Case((4, 0, 3), 48, device=device)
    case.hidden_states[:4] = 0.0
    assert case.run(backend, pooling)[0][:2].tolist() == [0.0, 0.0]
    case.references.zero_()
    assert case.run(backend, pooling)[0].tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.every_target
def test_nan_in_one_text_stays_in_that_text(backend, device, pooling):
    case = Case((1, 1, 2 * CHUNK_TOKENS), 48, device=device)
    case.hidden_states[1, 7] = float("nan")
    scores = case.run(backend, pooling)[0]
    assert scores.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.every_target
def test_a_text_s_bits_do_not_depend_on_its_batch(backend, device, pooling):
    lengths = (9, 2 * CHUNK_TOKENS + 3, 0, 40, CHUNK_TOKENS, 1)
    case = Case(lengths, 48, device=device, layer_norm=True)
    together = case.run(backend, pooling)
    alone = Case(lengths, 48, device=device, layer_norm=True)
    for text, (start, end) in enumerate(zip(case.cu_seqlens[:-1], case.cu_seqlens[1:], strict=True)):
        norm = case.layer_norm
        alone.hidden_states = case.hidden_states[start:end].clone()
        alone.cu_seqlens = torch.tensor([0, end - start], dtype=torch.int32, device=device)
        alone.reference_index = case.reference_index[text : text + 1]
        alone.layer_norm = LastLayerNorm(norm.residual[start:end].clone(), norm.weight, norm.bias, norm.eps)
        for bound in (None, int(end - start), 10 * CHUNK_TOKENS):
            scores, vectors = alone.run(backend, pooling, max_seqlen=bound)
            assert torch.equal(scores, together[0][text : text + 1])
            assert torch.equal(vectors, together[1][text : text + 1])


@pytest.mark.every_target
def test_rows_may_be_strided_and_rows_behind_the_last_text_are_ignored(backend, device):
    case = Case(RAGGED, 48, device=device, layer_norm=True)
    expected = case.run(backend, "mean")

    def embedded(x: Tensor) -> Tensor:
        wide = torch.full((len(x) + 5, 80), float("nan"), device=device)
        wide[: len(x), 16:64] = x
        return wide[:, 16:64]

    norm = case.layer_norm
    case.hidden_states = embedded(case.hidden_states)
    case.references = embedded(case.references)
    case.layer_norm = LastLayerNorm(embedded(norm.residual), norm.weight, norm.bias, norm.eps)
    for got, wanted in zip(case.run(backend, "mean"), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.every_target
def test_without_references_it_gives_the_same_vectors(backend, device, pooling):
    case = Case(RAGGED, 48, device=device, layer_norm=True)
    vectors = pooled_embedding(
        case.hidden_states, case.cu_seqlens, pooling=pooling, layer_norm=case.layer_norm, backend=backend
    )
    assert torch.equal(vectors, case.run(backend, pooling)[1])


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.every_target
def test_a_group_shares_one_reference_whatever_the_index_s_width(backend, device, dtype):
    case = Case(RAGGED, 48, device=device, references=1)
    case.reference_index = torch.zeros(len(RAGGED), dtype=dtype, device=device)
    assert_close(case.run(backend, "mean")[0], case.oracle("mean")[0], layer_norm=False)


@pytest.mark.skipif(not triton_interpreted(), reason="the kernel runs elsewhere")
def test_the_kernel_reads_no_memory_outside_the_references():
    from fastreward.kernels.pooled_cosine import launch_pooled_cosine

    case = Case((2, 2, 2), 48)
    index = torch.tensor([0, 3, -1])
    scores, _ = launch_pooled_cosine(
        case.hidden_states,
        case.cu_seqlens,
        score=True,
        embed=False,
        pooling="mean",
        max_seqlen=2,
        references=case.references,
        reference_index=index,
        residual=None,
        weight=None,
        bias=None,
        eps=0.0,
    )
    assert scores.isnan().tolist() == [False, True, True]


def test_both_definitions_of_a_chunk_agree():
    pytest.importorskip("triton")
    from fastreward.kernels import pooled_cosine as kernel

    assert kernel.CHUNK_TOKENS == CHUNK_TOKENS


def test_the_byte_count_is_hidden_states_and_scores():
    assert pooled_cosine_bytes(10, 2, 8, torch.bfloat16, layer_norm=False) == 10 * 8 * 2 + 2 * 4
    assert pooled_cosine_bytes(10, 2, 8, torch.float32, layer_norm=True) == 2 * 10 * 8 * 4 + 2 * 4


def test_triton_on_cpu_tensors_is_refused_with_the_remedy():
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Case((3,), 8).run("triton", "mean")


BAD_INPUT = {
    "one axis": (lambda c: {"hidden_states": c.hidden_states[0]}, "hidden_states"),
    "integers": (lambda c: {"hidden_states": c.hidden_states.int()}, "hidden_states"),
    "fp64": (lambda c: {"hidden_states": c.hidden_states.double()}, "hidden_states"),
    "too wide": (lambda c: {"hidden_states": torch.zeros(5, 4097)}, "4096"),
    "transposed": (lambda c: {"hidden_states": torch.zeros(8, 5).T}, "contiguous"),
    "int64 offsets": (lambda c: {"cu_seqlens": c.cu_seqlens.long()}, "int32"),
    "no offset": (lambda c: {"cu_seqlens": c.cu_seqlens[:0]}, "cu_seqlens"),
    "offsets behind T": (lambda c: {"cu_seqlens": c.cu_seqlens + c.cu_seqlens * 9}, "end at"),
    "offsets that fall": (lambda c: {"cu_seqlens": torch.tensor([0, 4, 2], dtype=torch.int32)}, "never fall"),
    "offsets from 1": (lambda c: {"cu_seqlens": torch.tensor([1, 2, 3], dtype=torch.int32)}, "begin at 0"),
    "short bound": (lambda c: {"max_seqlen": 1}, "max_seqlen of 3"),
    "negative bound": (lambda c: {"max_seqlen": -1}, "max_seqlen"),
    "pooling": (lambda c: {"pooling": "median"}, "mean, cls, last, max"),
    "back-end": (lambda c: {"backend": "cuda"}, "triton, torch"),
    "references' width": (lambda c: {"references": torch.zeros(3, 9)}, r"\[R, 8\]"),
    "index's length": (lambda c: {"reference_index": torch.zeros(3, dtype=torch.int64)}, r"\[2\]"),
    "index's dtype": (lambda c: {"reference_index": torch.zeros(2)}, "int32 or int64"),
    "index too large": (lambda c: {"reference_index": torch.tensor([0, 3])}, "from 0 to 2"),
    "index negative": (lambda c: {"reference_index": torch.tensor([0, -1])}, "from 0 to 2"),
    "residual's shape": (
        lambda c: {"layer_norm": LastLayerNorm(torch.zeros(4, 8), torch.ones(8), None, 1e-6)},
        "residual",
    ),
    "weight's shape": (
        lambda c: {"layer_norm": LastLayerNorm(c.hidden_states, torch.ones(7), None, 1e-6)},
        "weight",
    ),
    "bias's dtype": (
        lambda c: {"layer_norm": LastLayerNorm(c.hidden_states, torch.ones(8), torch.ones(8).int(), 1e-6)},
        "bias",
    ),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_what_was_expected(name):
    case = Case((2, 3), 8)
    arguments = {
        "hidden_states": case.hidden_states,
        "cu_seqlens": case.cu_seqlens,
        "references": case.references,
        "reference_index": torch.tensor([0, 1]),
    }
    pooled_cosine(**arguments)
    change, message = BAD_INPUT[name]
    with pytest.raises(InputError, match=message):
        pooled_cosine(**{**arguments, **change(case)})


def test_layer_norm_is_refused_where_a_row_does_not_fit():
    case = Case((2,), 1025, layer_norm=True)
    with pytest.raises(InputError, match="1024"):
        case.run("torch", "mean")
