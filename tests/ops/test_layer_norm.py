"""One matrix for both back-ends of `layer_norm` and `embed_layer_norm`: PyTorch, and the Triton kernel in its
interpreter (TRITON_INTERPRET=1) or on CUDA. The oracle is a loop over rows in fp64 on the inputs cast up.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.checks import FLOAT_DTYPES
from fastreward.ops.layer_norm import (
    LayerNorm,
    embed_layer_norm,
    embed_layer_norm_bytes,
    embed_layer_norm_reference,
    layer_norm,
    layer_norm_bytes,
    layer_norm_reference,
)

# The interpreter computes bf16 wrongly in places.
VECTOR_DTYPES = [torch.float32, torch.float16] if triton_interpreted() else FLOAT_DTYPES

# Inputs are exact in fp64. With n = (z - mean) / root, a result n w + b is computed in fp32: z and mean with
# an error of a few units in the last place (u = 2⁻²⁴) of the row's largest |z|, root within a few u of
# itself, each product and sum within one. So the error is bounded by some u of |n w| + |b| + max |z| / root
# |w|: eight at most, two as root mean square.
LARGEST_ERROR = 8 * 2.0**-24
RMS_ERROR = 2 * 2.0**-24
# Rounding the result to 16 bits adds at most this share of it, and in fp16 below 2⁻¹⁴ at most 2⁻²⁵. An error
# that is even over [-a, a] has the root mean square a/√3.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float32: 0.0, torch.float16: 2.0**-25, torch.bfloat16: 0.0}


class Case:
    """Random rows, a residual and a norm of one shape; and what fp64 makes of them."""

    def __init__(
        self,
        tokens: int,
        hidden_size: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        residual: bool = True,
        bias: bool = True,
        scale: float = 1.0,
        shift: float = 0.0,
        eps: float = 1e-12,
    ) -> None:
        generator = torch.Generator().manual_seed(tokens * 5000 + hidden_size)

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.x = (random(tokens, hidden_size) * scale + shift).to(device, dtype)
        self.residual = (random(tokens, hidden_size) * scale).to(device, dtype) if residual else None
        weight = (1.0 + 0.3 * random(hidden_size)).to(device)
        self.norm = LayerNorm(weight, random(hidden_size).to(device) if bias else None, eps)

    def run(self, backend: str) -> tuple[Tensor, Tensor]:
        return layer_norm(self.x, self.norm, residual=self.residual, return_sum=True, backend=backend)

    def sums(self) -> Tensor:
        return self.x.double() if self.residual is None else self.x.double() + self.residual.double()


def assert_normed(got: Tensor, z: Tensor, norm: LayerNorm, *, sum_rounded: bool = False) -> None:
    """Compare with the LayerNorm of z [T, D] in fp64, row by row.

    With `sum_rounded` z was rounded to bf16 before: z + d, |d| ≤ r |z|. To first order that moves n by
    (d - mean(d) - n mean(n d)) / root, where |mean(d)| ≤ r mean |z| and |mean(n d)| ≤ r √mean(z²). In the
    root mean square the two means count for a D-th, with the fourth moment of n, 3, in the last one.
    """
    assert got.shape == z.shape
    weight = norm.weight.double()
    bias = torch.zeros_like(weight) if norm.bias is None else norm.bias.double()
    squares, allowed = [], []
    for row, wanted in zip(got.double(), z, strict=True):
        centred = wanted - wanted.sum() / len(wanted)
        root = math.sqrt((centred * centred).sum() / len(wanted) + norm.eps)
        n = centred / root
        expected = n * weight + bias
        computing = (n * weight).abs() + bias.abs() + wanted.abs().max() / root * weight.abs()
        rounding = ROUNDING[got.dtype] * expected.abs() + SMALLEST[got.dtype]
        largest = LARGEST_ERROR * computing + rounding
        square = (RMS_ERROR * computing).square() + rounding.square() / 3
        if sum_rounded:
            moved = ROUNDING[torch.bfloat16] * weight.abs() / root
            typical = wanted.square().mean().sqrt()
            largest += moved * (wanted.abs() + wanted.abs().mean() + n.abs() * typical)
            through_means = typical.square() * (1 + 3 * n.square()) / len(wanted)
            square += moved.square() * (wanted.square() + through_means) / 3
        error = (row - expected).abs()
        assert (error <= largest).all()
        squares.append(error.square())
        allowed.append(square)
    if squares:
        # The mean of n squares of even errors spreads by 0.9/√n of itself; 3/√n is beyond three such steps.
        spread = 1 + 3 / math.sqrt(got.numel())
        assert torch.stack(squares).mean() <= torch.stack(allowed).mean() * spread


def rounds_the_sum(backend: str, device: str, dtype: torch.dtype) -> bool:
    """Where the definition is not followed to the letter: PyTorch on a CPU in bf16."""
    return (backend, device, dtype) == ("torch", "cpu", torch.bfloat16)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("hidden_size", [1, 2, 5, 16, 127, 384, 768, 1000, 1024])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.every_target_and_dtype
def test_every_hidden_size_and_dtype_equals_fp64(backend, device, dtype, residual, hidden_size):
    case = Case(11, hidden_size, device=device, dtype=dtype, residual=residual)
    normed, sums = case.run(backend)
    assert normed.dtype == sums.dtype == dtype
    rounded = residual and rounds_the_sum(backend, device, dtype)
    assert_normed(normed, case.sums(), case.norm, sum_rounded=rounded)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("hidden_size", [2049, 4096])
@pytest.mark.every_target_and_dtype
def test_wide_rows(backend, device, dtype, hidden_size):
    case = Case(3, hidden_size, device=device, dtype=dtype)
    rounded = rounds_the_sum(backend, device, dtype)
    assert_normed(case.run(backend)[0], case.sums(), case.norm, sum_rounded=rounded)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("tokens", [0, 1, 2, 63, 64, 65, 131])
@pytest.mark.every_target
def test_any_number_of_tokens(backend, device, tokens):
    case = Case(tokens, 48, device=device)
    normed, sums = case.run(backend)
    assert_normed(normed, case.sums(), case.norm)
    assert torch.equal(sums, case.x + case.residual)


@pytest.mark.every_target
def test_without_a_bias(backend, device):
    case = Case(11, 48, device=device, bias=False)
    assert_normed(case.run(backend)[0], case.sums(), case.norm)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.every_target_and_dtype
def test_the_sum_is_rounded_once_and_comes_only_when_asked_for(backend, device, dtype):
    case = Case(11, 48, device=device, dtype=dtype)
    normed, sums = case.run(backend)
    assert torch.equal(sums, (case.x.float() + case.residual.float()).to(dtype))
    alone = layer_norm(case.x, case.norm, residual=case.residual, backend=backend)
    assert torch.equal(alone, normed)


@pytest.mark.every_target_and_dtype
def test_the_sum_without_a_residual_is_the_input_itself(backend, device, dtype):
    case = Case(11, 48, device=device, dtype=dtype, residual=False)
    assert case.run(backend)[1] is case.x


@pytest.mark.every_target_and_dtype
def test_inputs_are_left_as_they_are(backend, device, dtype):
    case = Case(11, 48, device=device, dtype=dtype)
    x, residual = case.x.clone(), case.residual.clone()
    case.run(backend)
    assert torch.equal(case.x, x)
    assert torch.equal(case.residual, residual)


@pytest.mark.parametrize("norm_dtype", VECTOR_DTYPES)
@pytest.mark.every_target_and_dtype
def test_weight_and_bias_may_have_another_dtype(backend, device, dtype, norm_dtype):
    case = Case(11, 48, device=device, dtype=dtype, residual=False)
    case.norm = LayerNorm(case.norm.weight.to(norm_dtype), case.norm.bias.to(norm_dtype), 1e-5)
    assert_normed(case.run(backend)[0], case.sums(), case.norm)


@pytest.mark.parametrize(("scale", "shift"), [(1e-15, 0.0), (1e15, 0.0), (1.0, 1000.0), (0.0, 0.3)])
@pytest.mark.every_target
def test_tiny_and_huge_values_and_a_mean_far_from_zero(backend, device, scale, shift):
    case = Case(11, 384, device=device, scale=scale, shift=shift)
    assert_normed(case.run(backend)[0], case.sums(), case.norm)


@pytest.mark.parametrize("eps", [1e-12, 1e-5, 1.0])
@pytest.mark.every_target
def test_epsilon_stands_inside_the_root(backend, device, eps):
    case = Case(11, 48, device=device, scale=0.01, eps=eps)
    assert_normed(case.run(backend)[0], case.sums(), case.norm)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.every_target
def test_a_sum_beyond_fp16_is_normalised_in_fp32(backend, device):
    case = Case(11, 48, device=device, dtype=torch.float16)
    case.x = torch.where(case.x > 0, 65504.0, -65504.0).half()
    case.residual = case.x.clone()
    assert_normed(case.run(backend)[0], case.sums(), case.norm)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.every_target_and_dtype
def test_what_is_not_finite_stays_in_its_row(backend, device, dtype, value):
    case = Case(11, 48, device=device, dtype=dtype)
    case.x[4, 7] = value
    normed = case.run(backend)[0]
    assert normed.isnan().all(dim=1).tolist() == [row == 4 for row in range(11)]
    assert normed[[0, 1, 2, 3, 5, 6, 7, 8, 9, 10]].isfinite().all()


@pytest.mark.every_target_and_dtype
def test_a_row_s_bits_do_not_depend_on_its_batch(backend, device, dtype):
    case = Case(70, 48, device=device, dtype=dtype)
    together = case.run(backend)[0]
    for first, last in [(0, 1), (3, 4), (5, 69), (64, 70)]:
        x, residual = case.x[first:last].clone(), case.residual[first:last].clone()
        alone = layer_norm(x, case.norm, residual=residual, backend=backend)
        assert torch.equal(alone, together[first:last])


def embedded(x: Tensor) -> Tensor:
    """The same values as a part of a wider matrix of NaN."""
    wide = torch.full((len(x) + 5, x.shape[1] + 32), float("nan"), dtype=x.dtype, device=x.device)
    wide[: len(x), 16 : 16 + x.shape[1]] = x
    return wide[: len(x), 16 : 16 + x.shape[1]]


@pytest.mark.every_target_and_dtype
def test_rows_may_be_strided(backend, device, dtype):
    case = Case(11, 48, device=device, dtype=dtype)
    expected = case.run(backend)
    case.x, case.residual = embedded(case.x), embedded(case.residual)
    for got, wanted in zip(case.run(backend), expected, strict=True):
        assert torch.equal(got, wanted)


@pytest.mark.every_target_and_dtype
def test_one_column_may_have_any_stride(backend, device, dtype):
    case = Case(11, 1, device=device, dtype=dtype)
    expected = case.run(backend)[0]
    case.x = torch.stack([case.x, case.x], dim=2)[..., 0]
    assert case.x.stride(1) == 2
    assert torch.equal(case.run(backend)[0], expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_definition_holds_to_fp64_in_every_dtype(dtype):
    case = Case(11, 384, dtype=dtype)
    normed, sums = layer_norm_reference(case.x, case.norm, residual=case.residual)
    assert_normed(normed, case.sums(), case.norm)
    assert torch.equal(sums, (case.x.float() + case.residual.float()).to(dtype))


class Tables:
    """Random embedding tables, a norm, and ids of tokens and positions."""

    def __init__(
        self,
        tokens: int,
        hidden_size: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        id_dtype: torch.dtype = torch.int64,
        positions: bool = True,
        rows: int = 17,
    ) -> None:
        case = Case(rows, hidden_size, device=device, dtype=dtype)
        generator = torch.Generator().manual_seed(tokens)
        ids = torch.randint(rows, (2, tokens), generator=generator).to(device, id_dtype)
        self.words, self.positions = case.x, case.residual if positions else None
        self.input_ids, self.position_ids = ids[0], ids[1] if positions else None
        self.norm = case.norm

    def run(self, backend: str | None) -> Tensor:
        return embed_layer_norm(
            self.input_ids,
            self.words,
            self.norm,
            position_ids=self.position_ids,
            positions=self.positions,
            backend=backend,
        )

    def sums(self) -> Tensor:
        rows = [self.words[token].double() for token in self.input_ids.tolist()]
        if self.positions is not None:
            added = [self.positions[position].double() for position in self.position_ids.tolist()]
            rows = [row + other for row, other in zip(rows, added, strict=True)]
        return torch.stack(rows) if rows else self.words[:0].double()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("positions", [False, True], ids=["words", "words-and-positions"])
@pytest.mark.parametrize("id_dtype", [torch.int32, torch.int64])
@pytest.mark.every_target_and_dtype
def test_embeddings_of_tokens_equal_fp64(backend, device, dtype, id_dtype, positions):
    for tokens, hidden_size in [(11, 384), (131, 48), (5, 127), (1, 1024), (0, 48)]:
        tables = Tables(
            tokens, hidden_size, device=device, dtype=dtype, id_dtype=id_dtype, positions=positions
        )
        rounded = positions and rounds_the_sum(backend, device, dtype)
        normed = tables.run(backend)
        assert normed.dtype == dtype
        assert_normed(normed, tables.sums(), tables.norm, sum_rounded=rounded)


@pytest.mark.every_target
def test_tables_of_one_row(backend, device):
    tables = Tables(7, 48, device=device, rows=1)
    assert_normed(tables.run(backend), tables.sums(), tables.norm)


@pytest.mark.every_target
def test_tables_may_be_strided(backend, device):
    tables = Tables(11, 48, device=device)
    expected = tables.run(backend)
    tables.words, tables.positions = embedded(tables.words), embedded(tables.positions)
    assert torch.equal(tables.run(backend), expected)


@pytest.mark.skipif(not (triton_interpreted() or torch.cuda.is_available()), reason="no Triton here")
@pytest.mark.parametrize("table", ["input_ids", "position_ids"])
def test_the_kernel_reads_nothing_outside_of_the_tables_and_gives_nan(table):
    from fastreward.kernels.layer_norm import launch_embed_layer_norm

    tables = Tables(6, 48, device="cuda" if torch.cuda.is_available() else "cpu")
    expected = tables.run("triton")
    getattr(tables, table)[[1, 3, 4]] = torch.tensor([17, -1, 2**40], device=expected.device)
    got = launch_embed_layer_norm(
        tables.input_ids,
        tables.words,
        tables.norm.weight,
        tables.norm.bias,
        tables.norm.eps,
        position_ids=tables.position_ids,
        positions=tables.positions,
    )
    assert got[[1, 3, 4]].isnan().all()
    assert torch.equal(got[[0, 2, 5]], expected[[0, 2, 5]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_definition_of_embeddings_is_the_norm_of_looked_up_rows(dtype):
    tables = Tables(11, 48, dtype=dtype)
    normed = embed_layer_norm_reference(
        tables.input_ids,
        tables.words,
        tables.norm,
        position_ids=tables.position_ids,
        positions=tables.positions,
    )
    assert_normed(normed, tables.sums(), tables.norm)


def test_the_byte_counts_are_rows_in_and_rows_out():
    rows = 10 * 8 * 2
    assert layer_norm_bytes(10, 8, torch.bfloat16, residual=False) == 2 * rows
    assert layer_norm_bytes(10, 8, torch.bfloat16, residual=True) == 3 * rows
    assert layer_norm_bytes(10, 8, torch.bfloat16, residual=True, return_sum=True) == 4 * rows
    assert layer_norm_bytes(10, 8, torch.bfloat16, residual=False, return_sum=True) == 2 * rows
    words = embed_layer_norm_bytes(10, 8, torch.bfloat16, torch.int32, positions=False)
    assert words == 2 * rows + 10 * 4
    both = embed_layer_norm_bytes(10, 8, torch.bfloat16, torch.int64, positions=True)
    assert both == 2 * rows + 2 * 10 * 8


def test_triton_on_cpu_tensors_is_refused_with_the_remedy():
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Case(3, 8).run("triton")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Tables(3, 8).run("triton")


BAD_ROWS = {
    "one axis": ({"x": torch.zeros(8)}, r"x \[T, D\]"),
    "integers": ({"x": torch.zeros(3, 8, dtype=torch.int32)}, "bfloat16"),
    "fp64": ({"x": torch.zeros(3, 8, dtype=torch.float64)}, "bfloat16"),
    "no column": ({"x": torch.zeros(3, 0)}, "from 1 to 4096"),
    "too wide": ({"x": torch.zeros(3, 4097)}, "from 1 to 4096"),
    "transposed": ({"x": torch.zeros(8, 3).T}, "contiguous"),
    "residual's shape": ({"residual": torch.zeros(2, 8)}, "residual like x"),
    "residual's dtype": ({"residual": torch.zeros(3, 8).half()}, "residual like x"),
    "residual transposed": ({"residual": torch.zeros(8, 3).T}, "residual like x"),
    "weight's shape": ({"norm": LayerNorm(torch.ones(7), None, 1e-5)}, r"norm.weight \[8\]"),
    "weight's dtype": ({"norm": LayerNorm(torch.ones(8).int(), None, 1e-5)}, "norm.weight"),
    "weight strided": ({"norm": LayerNorm(torch.ones(16)[::2], None, 1e-5)}, "norm.weight .* contiguous"),
    "bias's shape": ({"norm": LayerNorm(torch.ones(8), torch.ones(1), 1e-5)}, r"norm.bias \[8\]"),
    "negative epsilon": ({"norm": LayerNorm(torch.ones(8), None, -1.0)}, "eps of 0 or more"),
    "epsilon NaN": ({"norm": LayerNorm(torch.ones(8), None, float("nan"))}, "eps of 0 or more"),
    "unknown back-end": ({"backend": "cuda"}, "triton, torch"),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_bad_rows_are_named_with_what_was_expected(name):
    case = Case(3, 8)
    arguments = {"x": case.x, "norm": case.norm, "residual": case.residual, "backend": "torch"}
    layer_norm(**arguments)
    change, message = BAD_ROWS[name]
    with pytest.raises(InputError, match=message):
        layer_norm(**{**arguments, **change})


BAD_TABLES = {
    "words of one axis": ({"words": torch.zeros(17)}, r"words \[V, D\]"),
    "words too wide": ({"words": torch.zeros(17, 4097)}, "from 1 to 4096"),
    "words transposed": ({"words": torch.zeros(8, 17).T}, "words .* contiguous"),
    "weight's shape": ({"norm": LayerNorm(torch.ones(7), None, 1e-5)}, r"norm.weight \[8\]"),
    "ids of two axes": ({"input_ids": torch.zeros(1, 3, dtype=torch.int64)}, r"input_ids \[T\]"),
    "ids of fractions": ({"input_ids": torch.zeros(3)}, "input_ids .* int32 or int64"),
    "ids strided": ({"input_ids": torch.zeros(6, dtype=torch.int64)[::2]}, "input_ids .* contiguous"),
    "id too large": ({"input_ids": torch.tensor([0, 17, 1])}, "input_ids from 0 to 16"),
    "id negative": ({"input_ids": torch.tensor([0, -1, 1])}, "input_ids from 0 to 16"),
    "position too large": ({"position_ids": torch.tensor([0, 17, 1])}, "position_ids from 0 to 16"),
    "position negative": ({"position_ids": torch.tensor([0, -1, 1])}, "position_ids from 0 to 16"),
    "positions of fewer tokens": ({"position_ids": torch.tensor([0, 1])}, r"position_ids \[3\]"),
    "positions' width": ({"positions": torch.zeros(17, 7)}, r"positions \[P, 8\]"),
    "positions' dtype": ({"positions": torch.zeros(17, 8).half()}, "positions .* float32"),
    "positions transposed": ({"positions": torch.zeros(8, 17).T}, "positions .* contiguous"),
    "positions alone": ({"position_ids": None}, "position_ids, or neither"),
    "position ids alone": ({"positions": None}, "position_ids, or neither"),
}


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables_and_ids_are_named_with_what_was_expected(name):
    tables = Tables(3, 8)
    arguments = {
        "input_ids": tables.input_ids,
        "words": tables.words,
        "norm": tables.norm,
        "position_ids": tables.position_ids,
        "positions": tables.positions,
    }
    embed_layer_norm(**arguments)
    change, message = BAD_TABLES[name]
    with pytest.raises(InputError, match=message):
        embed_layer_norm(**{**arguments, **change})
