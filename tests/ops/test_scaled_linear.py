"""Rounding to 8 bits, in PyTorch and by the Triton kernel (in its interpreter with TRITON_INTERPRET=1, or on
CUDA), and the product of what was rounded. The oracle rounds number by number in Python's floats, which are
fp64, and multiplies row by row in fp64.

In the interpreter the kernel does everything but the rounding itself, which is PyTorch's there.
"""

from __future__ import annotations

import itertools
import math
import re

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops import scaled_linear as module
from fastreward.ops.scaled_linear import (
    LARGEST_E4M3,
    SMALLEST_SCALE,
    ScaledLinear,
    quantize_rows,
    quantize_rows_bytes,
    quantize_rows_reference,
    scaled_linear_available,
    scaled_linear_bytes,
    scaled_product,
    scaled_product_reference,
)

CUDA = torch.device("cuda", 0)


def targets() -> list[tuple[str, str]]:
    """Each (back-end, device) that rounds here; Triton's needs a GPU that has e4m3."""
    found = [("torch", "cpu")]
    if triton_interpreted():
        found.append(("triton", "cpu"))
    if torch.cuda.is_available():
        found.append(("torch", "cuda"))
        if scaled_linear_available(CUDA, 768) is None:
            found.append(("triton", "cuda"))
    return found


def dtypes(device: str) -> list[torch.dtype]:
    """The interpreter computes bf16 wrongly in places; the kernel's bf16 is checked on CUDA."""
    if triton_interpreted() and device == "cpu":
        return [torch.float32, torch.float16]
    return [torch.float32, torch.float16, torch.bfloat16]


TARGETS = [pytest.param(*target, id="-".join(target)) for target in targets()]
TARGETS_AND_DTYPES = [
    pytest.param(backend, device, dtype, id=f"{backend}-{device}-{str(dtype).removeprefix('torch.')}")
    for backend, device in targets()
    for dtype in dtypes(device)
]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def nearest_e4m3(value: float) -> float:
    """Round to 3 bits behind the leading one, or to a multiple of 2⁻⁹; ties to even, 448 at most."""
    exponent = max(math.frexp(value)[1] - 1, -6) if value else -6
    step = 2.0 ** (exponent - 3)
    return math.copysign(min(abs(round(value / step) * step), LARGEST_E4M3), value)


def exact_gelu(value: float) -> float:
    return 0.5 * value * math.erfc(-value / math.sqrt(2.0))


def test_the_oracle_s_rounding_gives_e4m3_and_its_neighbours():
    every = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    numbers = sorted(set(every[every.isfinite()].tolist()))
    assert [nearest_e4m3(number) for number in numbers] == numbers
    for low, high in itertools.pairwise(numbers):
        assert nearest_e4m3(0.51 * low + 0.49 * high) == low
        assert nearest_e4m3(0.49 * low + 0.51 * high) == high


def assert_rounded(rows: Tensor, scales: Tensor, x: Tensor, *, gelu: bool) -> None:
    """Hold rows and scales to the oracle.

    In fp32 GELU is off by 10 u |z| (u = 2⁻²⁴), a row's scale by that of its largest element and by two
    roundings, and what is rounded by as much and by two more. An element must be what the oracle makes of a
    number that is as near: it differs from the oracle's own only beside a tie.
    """
    assert rows.dtype == torch.float8_e4m3fn
    assert scales.dtype == torch.float32
    assert rows.shape == x.shape
    assert scales.shape == x.shape[:1]
    u, errors, exacts = 2.0**-24, [], []
    for got_row, got_scale, values in zip(rows.float().tolist(), scales.tolist(), x.tolist(), strict=True):
        exact = [exact_gelu(value) for value in values] if gelu else values
        off = [10 * u * abs(value) if gelu else 0.0 for value in values]
        largest = max(map(abs, exact))
        scale = max(largest / LARGEST_E4M3, SMALLEST_SCALE)
        scale_off = 3 * u + (max(off) / largest if largest else 0.0)
        assert math.isclose(got_scale, scale, rel_tol=scale_off)
        for got, value, value_off in zip(got_row, exact, off, strict=True):
            slack = value_off / scale + (scale_off + 3 * u) * abs(value / scale)
            assert nearest_e4m3(value / scale - slack) <= got <= nearest_e4m3(value / scale + slack)
            errors.append(got * got_scale - value)
            exacts.append(value)
    if len(errors) >= 64:
        # Even over [-2⁻⁴, 2⁻⁴] at the low end of a binade: 0.036 as root mean square, 0.018 at its high end.
        assert sum(e * e for e in errors) <= 0.036**2 * sum(v * v for v in exacts)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("gelu", [False, True], ids=["plain", "gelu"])
@pytest.mark.parametrize(
    "shape", [(0, 16), (1, 1), (3, 5), (67, 16), (5, 127), (7, 768), (2, 1000), (3, 4096)]
)
@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_rows_and_scales_are_the_oracle_s_for_every_shape(backend, device, dtype, shape, gelu):
    x = (3 * random(*shape)).to(device, dtype)
    assert_rounded(*quantize_rows(x, gelu=gelu, backend=backend), x, gelu=gelu)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_both_back_ends_give_the_same_bits(backend, device, dtype):
    x = random(33, 1000).to(device, dtype)
    rows, scales = quantize_rows(x, backend=backend)
    expected_rows, expected_scales = quantize_rows_reference(x.cpu())
    assert torch.equal(rows.cpu().view(torch.uint8), expected_rows.view(torch.uint8))
    assert torch.equal(scales.cpu(), expected_scales)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_the_largest_magnitude_of_a_row_becomes_448(backend, device, dtype):
    x = random(200, 48).to(device, dtype)
    rows, _ = quantize_rows(x, backend=backend)
    largest = x.abs().argmax(dim=1, keepdim=True)
    assert torch.equal(rows.float().gather(1, largest), 448 * x.float().gather(1, largest).sign())
    assert rows.float().isfinite().all()


@pytest.mark.parametrize("gelu", [False, True], ids=["plain", "gelu"])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_zeros_have_the_smallest_scale_and_stay_zeros(backend, device, gelu):
    rows, scales = quantize_rows(torch.zeros(3, 40, device=device), gelu=gelu, backend=backend)
    assert scales.tolist() == [SMALLEST_SCALE] * 3
    assert (rows.float() == 0).all()


@pytest.mark.parametrize("largest", [1e-38, 1e-30, 1e30, 3.4e38])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_extreme_rows_neither_overflow_nor_vanish(backend, device, largest):
    x = largest * torch.linspace(-1, 1, 41, device=device)[None]
    rows, scales = quantize_rows(x, backend=backend)
    back = rows.double() * scales.double()[:, None]
    # 2⁻⁴ is e4m3's rounding; below its normal numbers it has steps of 2⁻⁹.
    bound = 1.0001 * (2.0**-4 * x.double().abs() + 2.0**-10 * scales.double()[:, None])
    assert ((back - x.double()).abs() <= bound).all()


@pytest.mark.parametrize("gelu", [False, True], ids=["plain", "gelu"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_nan_and_infinity_show_in_their_own_row_alone(backend, device, value, gelu):
    x = random(6, 48).to(device)
    expected = quantize_rows(x, gelu=gelu, backend=backend)
    x[2, 40] = value
    rows, scales = quantize_rows(x, gelu=gelu, backend=backend)
    others = [0, 1, 3, 4, 5]
    assert not scales[2].isfinite()
    assert rows[2, 40].float().isnan()
    assert torch.equal(rows.float()[others], expected[0].float()[others])
    assert torch.equal(scales[others], expected[1][others])


@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_rows_may_be_strided_and_nothing_beside_them_is_read(backend, device):
    x = random(9, 48).to(device)
    wide = torch.full((12, 80), float("nan"), device=device)
    wide[:9, 16:64] = x
    for got, expected in zip(
        quantize_rows(wide[:9, 16:64], backend=backend), quantize_rows(x, backend=backend), strict=True
    ):
        assert torch.equal(got.float(), expected.float())


class Layer:
    """Random weights, bias and input, and what fp64 makes of the rounded operands and of the exact ones."""

    def __init__(self, rows: int, in_features: int, out_features: int, dtype: torch.dtype) -> None:
        self.x = random(rows, in_features, seed=1).to(dtype)
        self.weight = (random(out_features, in_features, seed=2) / in_features**0.5).to(dtype)
        self.bias = random(out_features, seed=3).to(dtype)

    def product(self, *, rounded: bool, gelu: bool = False) -> tuple[Tensor, Tensor]:
        """The product, and the sum of its terms' magnitudes, which bounds the rounding of sums."""
        x, weight = self.x.double(), self.weight.double()
        if gelu:
            x = 0.5 * x * torch.special.erfc(-x / 2**0.5)
        if rounded:
            x, weight = (
                q.double() * scale.double()[:, None]
                for q, scale in (
                    quantize_rows_reference(self.x, gelu=gelu),
                    quantize_rows_reference(self.weight),
                )
            )
        value = x.new_empty(len(x), len(weight))
        size = torch.empty_like(value)
        for row, (weights, bias) in enumerate(zip(weight, self.bias.double(), strict=True)):
            value[:, row] = (x * weights).sum(dim=1) + bias
            size[:, row] = (x * weights).abs().sum(dim=1) + bias.abs()
        return value, size


def assert_close(got: Tensor, value: Tensor, size: Tensor, in_features: int) -> None:
    """Sums of K products in fp32, three more roundings there, and one of the result."""
    rounding = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}[got.dtype]
    bound = 2.0**-24 * (4 + in_features**0.5) * size + 1.01 * rounding * value.abs()
    error = (got.double() - value).abs()
    assert (error <= bound).all()
    assert error.square().mean().sqrt() <= 0.6 * bound.square().mean().sqrt()


LAYER_BACKENDS = [backend for backend, device in targets() if device == "cpu"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("backend", LAYER_BACKENDS)
def test_a_layer_multiplies_what_was_rounded_in_fp32(backend, dtype):
    case = Layer(13, 128, 48, dtype)
    layer = ScaledLinear(case.weight, case.bias, backend=backend)
    assert_close(layer(case.x), *case.product(rounded=True), 128)
    assert layer(case.x[:0]).shape == (0, 48)
    value, size = case.product(rounded=True)
    without = ScaledLinear(case.weight, None, backend=backend)(case.x)
    assert_close(without, value - case.bias.double(), size, 128)


@pytest.mark.parametrize("backend", LAYER_BACKENDS)
def test_of_gelu_rounds_gelu_of_the_input(backend):
    case = Layer(13, 128, 48, torch.float32)
    layer = ScaledLinear(case.weight, case.bias, backend=backend)
    # The interpreter's GELU may put a number on the other side of a tie: one step of 2⁻³ in one of 128 terms.
    value, size = case.product(rounded=True, gelu=True)
    error = (layer.of_gelu(case.x).double() - value).abs()
    assert (error <= 2.0**-3 * size / 4).all()
    assert error.square().mean().sqrt() <= 1e-4 * size.square().mean().sqrt()


@pytest.mark.parametrize("backend", LAYER_BACKENDS)
def test_the_activations_follow_the_product(backend):
    case = Layer(5, 64, 32, torch.float32)
    layer = ScaledLinear(case.weight, case.bias, backend=backend)
    product, _ = case.product(rounded=True)
    exact = 0.5 * product * torch.special.erfc(-product / 2**0.5)
    assert (layer.gelu(case.x) - exact).abs().max() < 1e-5
    assert (layer.geglu(case.x) - exact[:, :16] * product[:, 16:]).abs().max() < 1e-5


def test_rounding_to_8_bits_costs_a_few_per_cent_of_a_product():
    case = Layer(64, 768, 96, torch.bfloat16)
    exact, _ = case.product(rounded=False)
    got = ScaledLinear(case.weight, case.bias, backend="torch")(case.x).double()
    without_bias = exact - case.bias.double()
    # The relative error of e4m3 is spread over [-2⁻⁴, 2⁻⁴] at the low end of a binade and over half of that
    # at its high end, 0.026 as root mean square; two operands make 0.037.
    relative = (got - exact).square().mean().sqrt() / without_bias.square().mean().sqrt()
    assert 0.03 < relative < 0.045


def test_the_weight_can_be_read_back_as_it_is_multiplied():
    weight = random(32, 64)
    back = ScaledLinear(weight, None, backend="torch").weight
    assert back.dtype == weight.dtype
    assert ((back - weight).abs() <= 2.0**-4 * weight.abs() + 2.0**-10 * weight.abs().amax() / 448).all()
    assert not torch.equal(back, weight)


def cpu_scales_rows() -> bool:
    """Whether this PyTorch multiplies e4m3 on the CPU with a scale for each row; older ones do not."""
    ones, scale = torch.ones(16, 16).to(torch.float8_e4m3fn), torch.ones(16, 1)
    try:
        torch._scaled_mm(ones, ones.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
    except RuntimeError:
        return False
    return True


without_rows = pytest.mark.skipif(not cpu_scales_rows(), reason="this PyTorch has no such product for CPUs")
PRODUCT_DEVICES = [
    pytest.param("cpu", marks=without_rows),
    *(["cuda"] if ("triton", "cuda") in targets() else []),
]


@pytest.mark.parametrize("rows", [1, 7, 257])
@pytest.mark.parametrize("with_bias", [False, True], ids=["no-bias", "bias"])
@pytest.mark.parametrize("device", PRODUCT_DEVICES)
def test_pytorch_s_own_product_takes_these_operands_and_gives_the_definition_s_result(
    device, with_bias, rows
):
    x, scale = quantize_rows_reference(random(rows, 768).to(device))
    weight, weight_scale = quantize_rows_reference(random(48, 768).to(device))
    bias = random(48).to(device, torch.bfloat16) if with_bias else None
    got = scaled_product(x, scale, weight, weight_scale, bias)
    expected = scaled_product_reference(x, scale, weight, weight_scale, bias, torch.float32)
    assert got.dtype == torch.bfloat16
    # 2⁻⁸ rounds the result; tensor cores keep about 14 bits of a partial sum.
    size = scaled_product_reference(
        x.float().abs(), scale, weight.float().abs(), weight_scale, None, torch.float32
    )
    assert ((got - expected).abs() <= 1.01 * 2.0**-8 * expected.abs() + 2.0**-13 * size).all()


def test_a_product_of_no_rows_is_empty():
    x, scale = quantize_rows_reference(torch.empty(0, 16))
    weight, weight_scale = quantize_rows_reference(torch.ones(32, 16))
    assert scaled_product(x, scale, weight, weight_scale, None).shape == (0, 32)


@pytest.mark.skipif(("triton", "cuda") not in targets(), reason="there is no GPU with 8-bit products")
@pytest.mark.parametrize("method", ["__call__", "gelu", "geglu", "of_gelu"])
def test_on_a_gpu_the_layer_is_close_to_its_definition(method):
    case = Layer(300, 768, 96, torch.bfloat16)
    weight, bias, x = (tensor.cuda() for tensor in (case.weight, case.bias, case.x))
    got = getattr(ScaledLinear(weight, bias), method)(x)
    expected = getattr(ScaledLinear(weight, bias, backend="torch"), method)(x)
    assert got.dtype == torch.bfloat16
    error = (got.float() - expected.float()).abs()
    assert error.max() <= 0.05
    assert error.square().mean().sqrt() <= 0.005


REASONS = {
    "a CPU": (torch.device("cpu"), (9, 0), None, "2.13.0", 768, "type cpu"),
    "an AMD GPU": (CUDA, (9, 4), "6.4", "2.13.0", 768, "AMD"),
    "Ampere": (CUDA, (8, 0), None, "2.13.0", 768, r"capability 8\.0; .* 8\.9 or more"),
    "Ada under an old PyTorch": (CUDA, (8, 9), None, "2.11.0", 768, r"PyTorch 2\.11\.0"),
    "a narrow encoder": (CUDA, (9, 0), None, "2.13.0", 384, "width of 384"),
    "Ada": (CUDA, (8, 9), None, "2.12.0", 768, None),
    "Hopper": (CUDA, (9, 0), None, "2.11.0", 768, None),
    "Blackwell": (CUDA, (10, 0), None, "2.13.0", 4096, None),
}


@pytest.mark.parametrize("name", REASONS)
def test_where_it_cannot_run_there_is_a_reason(monkeypatch, name):
    device, capability, hip, version, width, message = REASONS[name]
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch, "__version__", torch.torch_version.TorchVersion(version))
    reason = scaled_linear_available(device, width)
    assert (reason is None) == (message is None)
    assert message is None or re.search(message, reason)


def test_a_layer_on_a_cpu_is_refused_with_the_reason_and_the_remedy():
    with pytest.raises(BackendUnavailableError, match=r"type cpu.*backend='torch'"):
        ScaledLinear(torch.ones(768, 768).bfloat16(), None)


def test_on_the_tensor_cores_only_bf16_is_taken(monkeypatch):
    monkeypatch.setattr(module, "scaled_linear_available", lambda device, width: None)
    with pytest.raises(BackendUnavailableError, match=r"bfloat16, .* got float16"):
        ScaledLinear(torch.ones(768, 768).half(), None)


BAD_LAYERS = {
    "in": ((torch.ones(32, 40), None), "multiples of 16"),
    "out": ((torch.ones(40, 32), None), "multiples of 16"),
    "too wide": ((torch.ones(16, 4112), None), "4096"),
    "one axis": ((torch.ones(16), None), r"\[out, in\]"),
    "bias": ((torch.ones(32, 16), torch.ones(16)), r"bias \[32\]"),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_a_bad_layer_is_named_with_what_was_expected(name):
    arguments, message = BAD_LAYERS[name]
    with pytest.raises(InputError, match=message):
        ScaledLinear(*arguments, backend="torch")


BAD_INPUT = {
    "one axis": torch.ones(16),
    "integers": torch.ones(2, 16).int(),
    "fp64": torch.ones(2, 16).double(),
    "no column": torch.ones(2, 0),
    "too wide": torch.ones(2, 4097),
    "transposed": torch.ones(16, 2).T,
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_what_was_expected(name):
    with pytest.raises(InputError, match=r"x \[T, K\].*4096, last axis contiguous"):
        quantize_rows(BAD_INPUT[name])


def test_a_layer_checks_its_input():
    layer = ScaledLinear(torch.ones(32, 16), None, backend="torch")
    with pytest.raises(InputError, match=r"x \[T, 16\]"):
        layer(torch.ones(2, 32))
    with pytest.raises(InputError, match=r"x .* float32"):
        layer.of_gelu(torch.ones(2, 16).bfloat16())


def test_the_byte_counts_are_those_of_the_tensors():
    assert quantize_rows_bytes(10, 8, torch.bfloat16) == 10 * (8 * 2 + 8 + 4)
    moved = 10 * (8 * 2 + 8 + 4) + 10 * (8 + 4) + 6 * (8 + 4) + 10 * 6 * 2
    assert scaled_linear_bytes(10, 8, 6, torch.bfloat16) == moved
