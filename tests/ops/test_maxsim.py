"""One matrix for both back-ends: the PyTorch reference on the CPU, and the Triton kernel in its interpreter
(TRITON_INTERPRET=1) or on CUDA. The oracle is a loop over pairs and tokens in fp64 on the inputs cast up.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.maxsim import MaxSim, maxsim, maxsim_bytes, maxsim_flops

# Inputs are exact in fp64, so all of an error is rounding: of lengths, sums of products and the mean, a few
# ulp (6e-8) of a similarity that is at most 1. A maximum adds nothing. The bounds are the largest seen, times
# about four. F1 has twice the error: it moves by at most 2 where precision and recall move by 1.
LARGEST_ERROR = 3e-7
RMS_ERROR = 1e-7

# A matrix unit may cut off its sum instead of rounding it, each time it adds 16 more products: 2^-23 each.
MATRIX_UNIT_ERROR = 2**-23 / 16


RAGGED = ((7, 1, 0, 13, 2), (5, 0, 9), (0, 2, 0, 1, 2))
# tokens of the candidates, tokens of the references, the reference of each candidate
LENGTHS = [
    pytest.param(((1,), (1,), (0,)), id="one-token"),
    pytest.param(((), (), ()), id="no-text"),
    pytest.param(((), (3,), ()), id="no-candidate"),
    pytest.param(((0, 3, 0), (2, 0), (0, 1, 1)), id="empty-texts"),
    pytest.param(RAGGED, id="ragged"),
    pytest.param(((63, 64, 65, 1), (127, 128, 129, 1), (0, 1, 2, 3)), id="around-one-tile"),
    pytest.param(((3, 530, 11), (140, 2), (0, 0, 1)), id="long-among-short"),
]


class Case:
    """Random inputs of one shape, and what fp64 makes of them."""

    def __init__(
        self,
        lengths: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]],
        hidden_size: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        weighted: bool = True,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(hash((lengths, hidden_size)) % 2**31)
        self.lengths, index = lengths[:2], lengths[2]
        tokens, weights, offsets = [], [], []
        for side in self.lengths:
            vectors = torch.randn(sum(side), hidden_size, generator=generator) + 0.5
            tokens.append((scale * vectors).to(device, dtype))
            weights.append(torch.rand(sum(side), generator=generator).to(device) if weighted else None)
            offsets.append(torch.tensor([0, *side]).cumsum(0).to(device, torch.int32))
        self.candidates, self.references = tokens
        self.candidate_weights, self.reference_weights = weights
        self.candidate_offsets, self.reference_offsets = offsets
        self.reference_index = torch.tensor(index, dtype=torch.int64, device=device)

    def arguments(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name != "lengths"}

    def bounds(self) -> dict[str, int]:
        """The longest text of each side."""
        names = ("max_candidate", "max_reference")
        return {name: max(side, default=0) for name, side in zip(names, self.lengths, strict=True)}

    def run(self, backend: str, **changes: object) -> Tensor:
        """Precision, recall and F1: [3, N]."""
        result = maxsim(**{**self.arguments(), **self.bounds(), **changes}, backend=backend)
        assert isinstance(result, MaxSim)
        return torch.stack([result.precision, result.recall, result.f1])

    def oracle(self) -> Tensor:
        sides = (
            (self.candidates, self.lengths[0], self.candidate_weights),
            (self.references, self.lengths[1], self.reference_weights),
        )
        left, right = (
            list(zip(unit(tokens).split(side), weights_of(tokens, weights).split(side), strict=True))
            for tokens, side, weights in sides
        )
        pairs = enumerate(self.reference_index.tolist())
        scores = [score(*left[candidate], *right[reference]) for candidate, reference in pairs]
        return torch.tensor(scores, dtype=torch.float64).view(-1, 3).T

    def assert_right(self, scores: Tensor, backend: str) -> None:
        expected = self.oracle()
        assert scores.dtype == torch.float32
        assert scores.shape == expected.shape
        error = (scores.cpu().double() - expected).abs() / torch.tensor([[1.0], [1.0], [2.0]])
        on_matrix_unit = backend == "triton" and scores.is_cuda and self.candidates.dtype != torch.float32
        cut_off = MATRIX_UNIT_ERROR * self.candidates.shape[1] if on_matrix_unit else 0.0
        if error.numel():
            assert error.max() <= LARGEST_ERROR + cut_off
            assert error.square().mean().sqrt() <= RMS_ERROR + cut_off


def unit(tokens: Tensor) -> Tensor:
    x = tokens.cpu().double()
    length = x.norm(dim=1, keepdim=True)
    return x / torch.where(length == 0, 1.0, length)


def weights_of(tokens: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones(len(tokens), dtype=torch.float64) if weights is None else weights.cpu().double()


def score(c: Tensor, v: Tensor, r: Tensor, w: Tensor) -> list[float]:
    """Precision, recall and F1 of one pair, token by token."""
    if not v.sum() or not w.sum():
        return [0.0, 0.0, 0.0]
    precision = float(sum(v[i] * max(float(c[i] @ y) for y in r) for i in range(len(c))) / v.sum())
    recall = float(sum(w[j] * max(float(x @ r[j]) for x in c) for j in range(len(r))) / w.sum())
    differ = math.copysign(1, precision) != math.copysign(1, recall) or not precision or not recall
    return [precision, recall, 0.0 if differ else 2 * precision * recall / (precision + recall)]


def fast_score(c: Tensor, v: Tensor, r: Tensor, w: Tensor) -> list[float]:
    """The same through a matrix of all similarities, for shapes at which a loop takes long."""
    s = c @ r.T
    precision = float((s.amax(1) * v).sum() / v.sum())
    recall = float((s.amax(0) * w).sum() / w.sum())
    return [precision, recall, 2 * precision * recall / (precision + recall)]


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "weighted"])
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.every_target
def test_scores_equal_fp64_for_every_length(backend, device, lengths, weighted, monkeypatch):
    case = Case(lengths, 24, device=device, weighted=weighted)
    if sum(lengths[0]) > 300:
        monkeypatch.setitem(globals(), "score", fast_score)
    scores = case.run(backend)
    case.assert_right(scores, backend)
    assert torch.equal(case.run(backend, max_candidate=None, max_reference=None), scores)


def test_the_fast_oracle_is_the_slow_one():
    case = Case(((7, 5), (6, 9), (0, 1)), 24)
    pairs = [
        [*pair]
        for side, weights in (
            (case.candidates, case.candidate_weights),
            (case.references, case.reference_weights),
        )
        for pair in [(unit(side)[:5], weights[:5].double())]
    ]
    assert fast_score(*pairs[0], *pairs[1]) == pytest.approx(score(*pairs[0], *pairs[1]), abs=1e-15)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("hidden_size", [1, 5, 16, 37, 127, 384, 768, 1000])
@pytest.mark.every_target_and_dtype
def test_every_hidden_size_and_dtype(backend, device, dtype, hidden_size):
    case = Case(RAGGED, hidden_size, device=device, dtype=dtype)
    case.assert_right(case.run(backend), backend)


@pytest.mark.every_target
def test_the_widest_vectors(backend, device):
    case = Case(((5,), (2,), (0,)), 4096, device=device)
    case.assert_right(case.run(backend), backend)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.every_target
def test_extreme_values_neither_overflow_nor_vanish(backend, device, scale):
    case = Case(RAGGED, 48, device=device, scale=scale)
    case.assert_right(case.run(backend), backend)


@pytest.mark.parametrize("scale", [1e-5, 1e4])
@pytest.mark.every_target
def test_the_smallest_and_largest_fp16_values(backend, device, scale):
    case = Case(RAGGED, 48, device=device, dtype=torch.float16, scale=scale)
    case.assert_right(case.run(backend), backend)


@pytest.mark.parametrize("scale", [1e-20, 1e20])
@pytest.mark.every_target
def test_bf16_vectors_out_of_bounds_are_right_or_nan(backend, device, scale):
    case = Case(((4, 4), (3,), (0, 0)), 16, device=device, dtype=torch.bfloat16, scale=scale)
    scores = case.run(backend)
    if backend == "torch":
        case.assert_right(scores, backend)
    else:
        assert scores.isnan().all()


@pytest.mark.every_target_and_dtype
def test_similarities_that_are_all_negative_score_negative(backend, device, dtype):
    case = Case(((3, 70), (5, 130), (0, 1)), 48, device=device, dtype=dtype)
    case.candidates = case.candidates.abs() + 0.1
    case.references = -case.references.abs() - 0.1
    scores = case.run(backend)
    assert (scores < -0.1).all()
    case.assert_right(scores, backend)


@pytest.mark.every_target
def test_f1_is_zero_where_precision_and_recall_differ_in_sign(backend, device):
    case = Case(((1,), (2,), (0,)), 2, device=device)
    case.candidates = torch.tensor([[1.0, 0.0]], device=device)
    case.references = torch.tensor([[1.0, 0.0], [-1.0, 0.0]], device=device)
    case.reference_weights = torch.tensor([1.0, 3.0], device=device)
    assert case.run(backend).flatten().tolist() == [1.0, -0.5, 0.0]
    case.reference_weights = torch.tensor([1.0, 1.0], device=device)
    assert case.run(backend).flatten().tolist() == [1.0, 0.0, 0.0]


@pytest.mark.every_target
def test_zero_vectors_have_no_similarity(backend, device):
    case = Case(((3, 2), (4,), (0, 0)), 16, device=device)
    case.candidates[1] = 0.0
    case.references[2] = 0.0
    case.assert_right(case.run(backend), backend)
    case.candidates.zero_()
    assert case.run(backend).tolist() == [[0.0, 0.0]] * 3


@pytest.mark.parametrize("side", ["candidate_weights", "reference_weights"])
@pytest.mark.every_target
def test_a_side_without_weight_scores_zero(backend, device, side):
    case = Case(((3, 2), (4, 5), (0, 1)), 16, device=device)
    getattr(case, side)[:3] = 0.0
    if side == "reference_weights":
        case.reference_weights[3] = 0.0
    scores = case.run(backend)
    assert scores[:, 0].tolist() == [0.0, 0.0, 0.0]
    case.assert_right(scores, backend)


@pytest.mark.every_target
def test_a_token_of_weight_zero_is_found_but_does_not_count(backend, device):
    case = Case(((2,), (2,), (0,)), 2, device=device)
    case.candidates = torch.tensor([[1.0, 0.0], [0.0, 1.0]], device=device)
    case.references = torch.tensor([[1.0, 0.0], [1.0, 0.0]], device=device)
    case.candidate_weights = torch.tensor([0.0, 1.0], device=device)
    case.reference_weights = torch.tensor([1.0, 1.0], device=device)
    assert case.run(backend).flatten().tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["candidates", "references", "candidate_weights", "reference_weights"])
@pytest.mark.every_target_and_dtype
def test_nan_and_infinity_stay_in_their_own_pairs(backend, device, dtype, where, bad):
    case = Case(((2, 70, 3, 1), (1, 130, 2), (0, 1, 1, 2)), 16, device=device, dtype=dtype)
    tensor = getattr(case, where)
    tensor[(4, 3) if tensor.ndim == 2 else 4] = bad
    nan = [[False, True, where.startswith("reference"), False]] * 3
    if where.endswith("weights"):
        nan[0 if where.startswith("reference") else 1] = [False] * 4
    assert case.run(backend).isnan().tolist() == nan


@pytest.mark.every_target_and_dtype
def test_a_pair_s_bits_do_not_depend_on_its_batch(backend, device, dtype):
    case = Case(((9, 530, 0, 40, 64), (130, 1, 65), (0, 2, 1, 1, 0)), 33, device=device, dtype=dtype)
    together = case.run(backend)
    for pair, row in enumerate(case.reference_index.tolist()):
        alone = {"reference_index": torch.zeros(1, dtype=torch.int64, device=device)}
        for name, text in (("candidate", pair), ("reference", row)):
            start, end = getattr(case, f"{name}_offsets")[text : text + 2].tolist()
            alone[f"{name}s"] = getattr(case, f"{name}s")[start:end].clone()
            alone[f"{name}_weights"] = getattr(case, f"{name}_weights")[start:end].clone()
            alone[f"{name}_offsets"] = torch.tensor([0, end - start], dtype=torch.int32, device=device)
        lengths = len(alone["candidates"]), len(alone["references"])
        for bounds in (lengths, (None, 200)):
            scores = case.run(backend, **alone, max_candidate=bounds[0], max_reference=bounds[1])
            assert torch.equal(scores[:, 0], together[:, pair])


@pytest.mark.every_target
def test_precision_one_way_is_recall_the_other_way(backend, device):
    case = Case(((7, 70), (5, 130), (0, 1)), 48, device=device)
    swapped = Case(((5, 130), (7, 70), (0, 1)), 48, device=device)
    for name in ("s", "_offsets", "_weights"):
        setattr(swapped, f"candidate{name}", getattr(case, f"reference{name}"))
        setattr(swapped, f"reference{name}", getattr(case, f"candidate{name}"))
    precision, recall, f1 = case.run(backend)
    torch.testing.assert_close(swapped.run(backend), torch.stack([recall, precision, f1]), atol=1e-6, rtol=0)


@pytest.mark.every_target
def test_a_text_matches_itself_fully_whatever_its_weights(backend, device):
    case = Case(((5, 70), (5, 70), (0, 1)), 48, device=device)
    case.references = case.candidates
    scores = case.run(backend)
    assert (scores <= 1.0).all()
    torch.testing.assert_close(scores, torch.ones_like(scores), atol=1e-6, rtol=0)


@pytest.mark.every_target_and_dtype
def test_rows_may_be_strided_and_rows_behind_the_last_text_are_ignored(backend, device, dtype):
    case = Case(RAGGED, 48, device=device, dtype=dtype)
    expected = case.run(backend)

    def embedded(x: Tensor) -> Tensor:
        wide = torch.full((len(x) + 5, 80), float("nan"), device=device, dtype=dtype)
        wide[: len(x), 16:64] = x
        return wide[:, 16:64]

    def longer(x: Tensor) -> Tensor:
        return torch.cat([x, torch.full((5,), float("nan"), device=device)])

    case.candidates, case.references = embedded(case.candidates), embedded(case.references)
    case.candidate_weights, case.reference_weights = (
        longer(case.candidate_weights),
        longer(case.reference_weights),
    )
    assert torch.equal(case.run(backend), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.every_target
def test_a_group_shares_one_reference_whatever_the_index_s_width(backend, device, dtype):
    case = Case(((3, 4, 5), (6,), (0, 0, 0)), 16, device=device)
    case.reference_index = case.reference_index.to(dtype)
    case.assert_right(case.run(backend), backend)


@pytest.mark.parametrize("one_sided", ["candidate_weights", "reference_weights"])
@pytest.mark.every_target
def test_weights_may_be_given_for_one_side_alone(backend, device, one_sided):
    case = Case(RAGGED, 16, device=device)
    setattr(case, one_sided, None)
    case.assert_right(case.run(backend), backend)


@pytest.mark.skipif(not triton_interpreted(), reason="the kernel runs elsewhere")
def test_the_kernel_reads_no_memory_outside_the_references():
    from fastreward.kernels.maxsim import launch_maxsim

    case = Case(((2, 2, 2, 2), (3, 1), (0, 0, 0, 0)), 16)
    arguments = {**case.arguments(), "max_candidate": None, "max_reference": None}
    arguments["reference_index"] = torch.tensor([0, 2, -1, 2**40])
    scores = launch_maxsim(**arguments)
    assert scores.isnan().tolist() == [[False, True, True, True]] * 3


def test_the_counts_are_of_the_work_that_cannot_be_avoided():
    assert maxsim_flops([3, 5], [7, 2], 8) == 2 * 8 * (3 * 7 + 5 * 2)
    assert maxsim_bytes(10, 4, 3, 8, torch.bfloat16) == 14 * 8 * 2 + 3 * 12


def test_triton_on_cpu_tensors_is_refused_with_the_remedy():
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Case(RAGGED, 8).run("triton")


def int32(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD_INPUT = {
    "one axis": (lambda c: {"candidates": c.candidates[0]}, "candidates"),
    "integers": (lambda c: {"candidates": c.candidates.int()}, "candidates"),
    "fp64": (lambda c: {"candidates": c.candidates.double()}, "candidates"),
    "too wide": (lambda c: {n: torch.zeros(5, 4097) for n in ("candidates", "references")}, "4096"),
    "transposed": (lambda c: {"references": torch.zeros(8, 5).T}, "references .* contiguous"),
    "references' width": (lambda c: {"references": torch.zeros(5, 9)}, "references .* alike"),
    "references' dtype": (lambda c: {"references": c.references.half()}, "references .* alike"),
    "int64 offsets": (lambda c: {"candidate_offsets": c.candidate_offsets.long()}, "candidate_offsets"),
    "offsets without an axis": (lambda c: {"candidate_offsets": int32(0)[0]}, "candidate_offsets"),
    "no offset": (lambda c: {"reference_offsets": c.reference_offsets[:0]}, "reference_offsets"),
    "offsets behind T": (lambda c: {"candidate_offsets": int32(0, 2, 6)}, "candidate_offsets .* end at 5"),
    "offsets that fall": (lambda c: {"reference_offsets": int32(0, 4, 2)}, "never fall"),
    "offsets from 1": (lambda c: {"reference_offsets": int32(1, 2, 3)}, "begin at 0"),
    "short bound": (lambda c: {"max_candidate": 1}, "max_candidate of 3"),
    "negative bound": (lambda c: {"max_reference": -1}, "max_reference of 0"),
    "weights' length": (lambda c: {"candidate_weights": torch.ones(4)}, r"candidate_weights \[5\]"),
    "weights' dtype": (lambda c: {"reference_weights": torch.ones(5).double()}, "reference_weights"),
    "negative weight": (lambda c: {"reference_weights": -torch.ones(5)}, "reference_weights of 0 or more"),
    "index's length": (lambda c: {"reference_index": torch.zeros(3, dtype=torch.int64)}, r"\[2\]"),
    "index's dtype": (lambda c: {"reference_index": torch.zeros(2)}, "int32 or int64"),
    "index too large": (lambda c: {"reference_index": torch.tensor([0, 2])}, "from 0 to 1"),
    "index negative": (lambda c: {"reference_index": torch.tensor([0, -1])}, "from 0 to 1"),
    "back-end": (lambda c: {"backend": "cuda"}, "triton, torch"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_what_was_expected(name):
    case = Case(((2, 3), (4, 1), (0, 1)), 8)
    maxsim(**case.arguments())
    change, message = BAD_INPUT[name]
    with pytest.raises(InputError, match=message):
        maxsim(**{**case.arguments(), **change(case)})
