"""One matrix for both back-ends of `gelu` and `geglu`: PyTorch, and the Triton kernel in its interpreter
(TRITON_INTERPRET=1) or on CUDA. The oracle is a loop over elements in Python's own floats, which are fp64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.activation import (
    geglu,
    geglu_bytes,
    geglu_reference,
    gelu,
    gelu_bytes,
    gelu_reference,
)
from fastreward.ops.checks import FLOAT_DTYPES

# The interpreter computes bf16 wrongly in places.
VECTOR_DTYPES = [torch.float32, torch.float16] if triton_interpreted() else FLOAT_DTYPES

# Inputs are exact in fp64. z = x + bias is rounded once (by u |z|, u = 2⁻²⁴; the slope of GELU is 1.13 at
# most), erf comes out within a few u of 1 and is multiplied by z/2, and every product is rounded once: the
# error is bounded by some u of |z|, eight at most (PyTorch's own GELU on a CPU has been seen at 5.6), two as
# root mean square. GeGLU multiplies this by the second half, whose own rounding and the product's add two.
LARGEST_ERROR = 10 * 2.0**-24
RMS_ERROR = 2.5 * 2.0**-24
# Rounding the result to 16 bits adds at most this share of it, and in fp16 below 2⁻¹⁴ at most 2⁻²⁵. An error
# that is even over [-a, a] has the root mean square a/√3. What is below fp32's normal numbers may vanish.
ROUNDING = {torch.float32: 0.0, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
SMALLEST = {torch.float32: 2.0**-126, torch.float16: 2.0**-25, torch.bfloat16: 2.0**-126}


BOTH = [pytest.param(False, id="gelu"), pytest.param(True, id="geglu")]


class Case:
    """Random input and bias of one shape, F output columns; and what fp64 makes of them."""

    def __init__(
        self,
        tokens: int,
        num_features: int,
        *,
        gated: bool,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        bias: bool = True,
        scale: float = 2.0,
    ) -> None:
        generator = torch.Generator().manual_seed(tokens * 5000 + num_features)
        columns = 2 * num_features if gated else num_features
        self.gated = gated
        self.x = (torch.randn(tokens, columns, generator=generator) * scale).to(device, dtype)
        self.bias = torch.randn(columns, generator=generator).to(device, dtype) if bias else None

    def run(self, backend: str | None) -> Tensor:
        return self.function()(self.x, self.bias, backend=backend)

    def function(self) -> Callable[..., Tensor]:
        return geglu if self.gated else gelu

    def oracle(self) -> tuple[Tensor, Tensor]:
        """The results in fp64, and the sizes that the computing's error is measured by."""
        z = self.x.double() if self.bias is None else self.x.double() + self.bias.double()
        num_features = z.shape[1] // 2 if self.gated else z.shape[1]
        results, sizes = [], []
        for row in z.tolist():
            factors = row[num_features:] if self.gated else [1.0] * num_features
            for value, factor in zip(row[:num_features], factors, strict=True):
                results.append(value / 2 * (1 + math.erf(value / math.sqrt(2))) * factor)
                sizes.append(abs(value * factor))
        shape = (len(z), num_features)
        return (
            torch.tensor(results, dtype=torch.float64, device=z.device).view(shape),
            torch.tensor(sizes, dtype=torch.float64, device=z.device).view(shape),
        )


def assert_close(got: Tensor, case: Case) -> None:
    expected, sizes = case.oracle()
    assert got.dtype == case.x.dtype
    assert got.shape == expected.shape
    rounding = ROUNDING[got.dtype] * expected.abs() + SMALLEST[got.dtype]
    error = (got.double() - expected).abs()
    assert (error <= LARGEST_ERROR * sizes + rounding).all()
    if got.numel():
        # The mean of n squares of even errors spreads by 0.9/√n of itself; 3/√n is beyond three such steps.
        allowed = ((RMS_ERROR * sizes).square() + rounding.square() / 3).mean()
        assert error.square().mean() <= allowed * (1 + 3 / math.sqrt(got.numel()))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("num_features", [1, 2, 5, 16, 127, 384, 1000, 1152, 1536])
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_every_width_and_dtype_equals_fp64(backend, device, dtype, gated, num_features, bias):
    case = Case(3, num_features, gated=gated, device=device, dtype=dtype, bias=bias)
    assert_close(case.run(backend), case)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("tokens", [0, 1, 2, 31, 32, 33, 131])
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target
def test_any_number_of_tokens(backend, device, gated, tokens):
    case = Case(tokens, 130, gated=gated, device=device)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("num_features", [2624, 4096])
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target
def test_wide_layers(backend, device, gated, num_features):
    case = Case(2, num_features, gated=gated, device=device)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("scale", [1e-30, 1e-3, 10.0, 1e4, 1e18])
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target
def test_tiny_and_huge_values(backend, device, gated, scale):
    case = Case(7, 64, gated=gated, device=device, bias=False, scale=scale)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_input_and_bias_that_cancel_are_added_in_fp32(backend, device, dtype, gated):
    case = Case(7, 64, gated=gated, device=device, dtype=dtype)
    case.bias = 1e-3 - case.x[0].float()
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("bias_dtype", VECTOR_DTYPES)
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_the_bias_may_have_another_dtype(backend, device, dtype, gated, bias_dtype):
    case = Case(7, 48, gated=gated, device=device, dtype=dtype)
    case.bias = case.bias.to(bias_dtype)
    assert_close(case.run(backend), case)


@pytest.mark.every_target_and_dtype
def test_it_is_the_gelu_by_erf_and_the_first_half_is_activated(backend, device, dtype):
    x = torch.tensor([[2.0, -1.0, -10.0, 4.0]], dtype=dtype, device=device)
    share = 1e-6 + ROUNDING[dtype]
    by_erf = pytest.approx([1.9544997, -0.1586553], rel=share)  # by tanh: 1.9545977, -0.1588080
    assert gelu(x[:, :2], backend=backend).tolist()[0] == by_erf
    assert geglu(x, backend=backend).tolist()[0] == pytest.approx([-19.544997, -0.6346210], rel=share)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_what_is_not_finite_stays_in_its_element_as_in_pytorch(backend, device, dtype, gated):
    case = Case(3, 40, gated=gated, device=device, dtype=dtype)
    expected = case.run(backend)
    case.x[1, 5:8] = torch.tensor([float("nan"), float("-inf"), float("inf")])
    got = case.run(backend)
    assert got[1, 5:7].isnan().all()
    assert not got[1, 7].isfinite()
    assert torch.nn.functional.gelu(case.x[1, 5:7]).isnan().all()
    others = torch.ones_like(got, dtype=torch.bool)
    others[1, 5:8] = False
    assert torch.equal(got[others], expected[others])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.every_target
def test_a_product_beyond_fp16_becomes_an_infinity(backend, device):
    x = torch.tensor([[300.0, 300.0, 300.0, -300.0]], dtype=torch.float16, device=device)
    assert geglu(x, backend=backend).tolist() == [[float("inf"), float("-inf")]]


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_inputs_are_left_as_they_are(backend, device, dtype, gated):
    case = Case(7, 48, gated=gated, device=device, dtype=dtype)
    x, bias = case.x.clone(), case.bias.clone()
    case.run(backend)
    assert torch.equal(case.x, x)
    assert torch.equal(case.bias, bias)


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_a_row_s_bits_do_not_depend_on_its_batch(backend, device, dtype, gated, bias):
    case = Case(70, 51, gated=gated, device=device, dtype=dtype, bias=bias)
    together = case.run(backend)
    for first, last in [(0, 1), (3, 4), (5, 69), (64, 70)]:
        alone = case.function()(case.x[first:last].clone(), case.bias, backend=backend)
        assert torch.equal(alone, together[first:last])


@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.every_target_and_dtype
def test_rows_may_be_strided(backend, device, dtype, gated, bias):
    case = Case(7, 48, gated=gated, device=device, dtype=dtype, bias=bias)
    expected = case.run(backend)
    wide = torch.full((12, case.x.shape[1] + 32), float("nan"), dtype=dtype, device=device)
    wide[:7, 16:-16] = case.x
    case.x = wide[:7, 16:-16]
    assert torch.equal(case.run(backend), expected)


@pytest.mark.every_target
def test_one_column_may_have_any_stride(backend, device):
    case = Case(7, 1, gated=False, device=device)
    expected = case.run(backend)
    case.x = torch.stack([case.x, case.x], dim=2)[..., 0]
    assert case.x.stride(1) == 2
    assert torch.equal(case.run(backend), expected)


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_definition_holds_to_fp64_in_every_dtype(dtype, gated):
    case = Case(7, 130, gated=gated, dtype=dtype)
    assert_close((geglu_reference if gated else gelu_reference)(case.x, case.bias), case)


def test_tiles_leave_few_lanes_without_a_column():
    pytest.importorskip("triton")
    from fastreward.kernels.activation import default_config

    for num_features in [1, 2, 5, 16, 127, *range(128, 4097, 32), 16384]:
        config = default_config(num_features)
        lanes = -(-num_features // config.block_f) * config.block_f
        assert lanes - num_features <= num_features / 8 or config.block_f <= 128
        assert config.block_t * config.block_f <= 4096
        assert config.block_t >= 1


def test_the_byte_counts_are_every_element_in_and_out():
    assert gelu_bytes(10, 8, torch.bfloat16) == 2 * 10 * 8 * 2
    assert geglu_bytes(10, 8, torch.float32) == (2 + 1) * 10 * 8 * 4


@pytest.mark.parametrize("gated", BOTH)
def test_triton_on_cpu_tensors_is_refused_with_the_remedy(gated):
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Case(3, 8, gated=gated).run("triton")


BAD_INPUT = {
    "one axis": ({"x": torch.zeros(8)}, r"x \[T, F\]"),
    "integers": ({"x": torch.zeros(3, 8, dtype=torch.int32)}, "bfloat16"),
    "fp64": ({"x": torch.zeros(3, 8, dtype=torch.float64)}, "bfloat16"),
    "no column": ({"x": torch.zeros(3, 0)}, "F of 1 or more"),
    "transposed": ({"x": torch.zeros(8, 3).T}, "contiguous"),
    "bias's shape": ({"bias": torch.zeros(4)}, r"bias \[8\]"),
    "bias's axes": ({"bias": torch.zeros(1, 8)}, r"bias \[8\]"),
    "bias's dtype": ({"bias": torch.zeros(8).int()}, "bias .* bfloat16"),
    "bias strided": ({"bias": torch.zeros(16)[::2]}, r"bias \[8\] .* contiguous"),
    "unknown back-end": ({"backend": "cuda"}, "triton, torch"),
}


@pytest.mark.parametrize("gated", BOTH)
@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_what_was_expected(name, gated):
    function = geglu if gated else gelu
    arguments = {"x": torch.zeros(3, 8), "bias": torch.zeros(8), "backend": "torch"}
    function(**arguments)
    change, message = BAD_INPUT[name]
    with pytest.raises(InputError, match=message):
        function(**{**arguments, **change})


def test_geglu_of_an_odd_number_of_columns_is_refused():
    with pytest.raises(InputError, match="even number"):
        geglu(torch.zeros(3, 7))
