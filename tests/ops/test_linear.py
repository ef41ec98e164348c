"""One matrix for every way to compute a linear layer with its activation: oneDNN's packed weights and plain
PyTorch on a CPU, cuBLAS, and the Triton kernel in its interpreter (TRITON_INTERPRET=1) or on CUDA. The oracle
is a loop over W's rows in fp64 on the inputs cast up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops import linear
from fastreward.ops.linear import (
    Linear,
    linear_bytes,
    linear_flops,
    linear_reference,
    onednn_available,
    padded_rows,
)

# Largest relative error of one rounding.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
# Below its normal numbers fp16 rounds by a fixed step.
SMALLEST = {torch.float32: 0.0, torch.float16: 2.0**-25, torch.bfloat16: 0.0}
SLOPE = 1.13  # of GELU, at most


def targets() -> list[tuple[str, str]]:
    """Each (path, device) that runs here; "plain" is PyTorch on a CPU without oneDNN's packed weights."""
    found = [("onednn", "cpu"), ("plain", "cpu")]
    if triton_interpreted():
        found.append(("triton", "cpu"))
    if torch.cuda.is_available():
        found += [("torch", "cuda"), ("triton", "cuda")]
    return found


def dtypes(path: str, device: str) -> list[torch.dtype]:
    """fp16 products on a CPU are nobody's; the interpreter computes bf16 wrongly, CUDA does not do fp32."""
    if path in ("onednn", "plain"):
        return [torch.float32, torch.bfloat16]
    if path == "triton":
        return [torch.float32, torch.float16] if device == "cpu" else [torch.float16, torch.bfloat16]
    return [torch.float32, torch.float16, torch.bfloat16]


TARGETS = [pytest.param(*target, id="-".join(target)) for target in targets()]
TARGETS_AND_DTYPES = [
    pytest.param(path, device, dtype, id=f"{path}-{device}-{str(dtype).removeprefix('torch.')}")
    for path, device in targets()
    for dtype in dtypes(path, device)
]
TRITON = [target for target in TARGETS if "triton" in target.values]
ACTIVATIONS = ["none", "gelu", "geglu"]

# rows, in, columns of the result; a tile of the kernel is 128 × 128 (GeGLU: 64 columns), in steps of 64.
SHAPES = [
    (1, 1, 1),
    (0, 64, 16),
    (3, 37, 5),
    (1, 384, 96),
    (127, 64, 131),
    (128, 128, 128),
    (129, 200, 64),
    (257, 384, 40),
    (1153, 16, 260),  # more than one group of tiles, the last one short
]


MakeLayer = Callable[..., Linear]


@pytest.fixture
def make_layer(monkeypatch) -> MakeLayer:
    """Build a layer that takes the path asked for."""

    def make(path: str, weight: Tensor, bias: Tensor | None) -> Linear:
        if path == "onednn" and not onednn_available(weight.dtype):
            pytest.skip(f"this PyTorch or this CPU has no oneDNN product in {weight.dtype}")
        if path == "plain":
            monkeypatch.setattr(linear, "onednn_available", lambda dtype: False)
        return Linear(weight, bias, backend="triton" if path == "triton" else "torch")

    return make


@dataclass
class Product:
    """y = x Wᵀ + b in fp64, and S = |x| |W|ᵀ + |b|, from which the rounding of sums is bounded."""

    value: Tensor
    size: Tensor


class Case:
    """Random inputs of one shape, and what fp64 makes of them."""

    def __init__(
        self,
        rows: int,
        in_features: int,
        columns: int,
        *,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        activation: str = "none",
        bias: bool = True,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(hash((rows, in_features, columns)) % 2**31)
        out_features = 2 * columns if activation == "geglu" else columns

        def random(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator)

        self.activation = activation
        self.x = (random(rows, in_features) * scale).to(device, dtype)
        self.weight = (random(out_features, in_features) / in_features**0.5).to(device, dtype)
        self.bias = random(out_features).to(device, dtype) if bias else None

    def run(self, layer: Linear) -> Tensor:
        return {"none": layer, "gelu": layer.gelu, "geglu": layer.geglu}[self.activation](self.x)

    def product(self) -> Product:
        x = self.x.double()
        value = x.new_empty(len(x), len(self.weight))
        size = torch.empty_like(value)
        for row, weight in enumerate(self.weight.double()):
            bias = 0.0 if self.bias is None else float(self.bias[row])
            value[:, row] = (x * weight).sum(dim=1) + bias
            size[:, row] = (x * weight).abs().sum(dim=1) + abs(bias)
        return Product(value, size)


def gelu(z: Tensor) -> Tensor:
    return 0.5 * z * torch.special.erfc(-z / 2**0.5)


def expected_and_bound(case: Case, *, rounds_product: bool) -> tuple[Tensor, Tensor]:
    """The result in fp64, and how far from it an element may be.

    A sum of K products in fp32, in whatever order, is off by a few u √K S when its roundings are independent
    (u = 2⁻²⁴; K u S at the very most). GELU passes that on with its slope, and its own roundings are within
    10 u |z|. A path that stores the product before the activation rounds it once more, and every path rounds
    the result.
    """
    product, u = case.product(), ROUNDING[case.x.dtype]
    error = 2.0**-24 * (2 + case.x.shape[1] ** 0.5) * product.size
    if rounds_product:
        error = error + u * product.value.abs() + SMALLEST[case.x.dtype]
    value = product.value
    if case.activation != "none":
        error = SLOPE * error + 10 * 2.0**-24 * value.abs()
        value = gelu(value)
    if case.activation == "geglu":
        value, gate = value.chunk(2, dim=1)[0], product.value.chunk(2, dim=1)[1]
        gate_error = error.chunk(2, dim=1)[1]  # with GELU's slope: a little more than it need be
        error = error.chunk(2, dim=1)[0] * gate.abs() + value.abs() * gate_error
        value = value * gate
    return value, error + 1.01 * u * value.abs() + SMALLEST[case.x.dtype]


def assert_close(got: Tensor, expected: Tensor, bound: Tensor) -> None:
    assert got.shape == expected.shape
    error = (got.double() - expected).abs()
    assert (error <= bound).all()
    if error.numel() >= 64:
        # Roundings are spread evenly up to their bounds: u/√3 as root mean square, and less where a number
        # stands high in its binade.
        assert error.square().mean().sqrt() <= 0.6 * bound.square().mean().sqrt()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
@pytest.mark.parametrize(("path", "device", "dtype"), TARGETS_AND_DTYPES)
def test_every_shape_equals_fp64(make_layer, path, device, dtype, shape, activation):
    case = Case(*shape, device=device, dtype=dtype, activation=activation)
    got = case.run(make_layer(path, case.weight, case.bias))
    assert got.dtype == dtype
    # oneDNN fuses GELU, but in bf16 it is its own affair when it rounds.
    rounds_product = path != "triton" and activation != "none"
    assert_close(got, *expected_and_bound(case, rounds_product=rounds_product))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("path", "device", "dtype"), TARGETS_AND_DTYPES)
def test_a_layer_without_a_bias(make_layer, path, device, dtype, activation):
    case = Case(5, 72, 48, device=device, dtype=dtype, activation=activation, bias=False)
    got = case.run(make_layer(path, case.weight, None))
    assert_close(got, *expected_and_bound(case, rounds_product=path != "triton" and activation != "none"))


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_definition_rounds_once(dtype, activation):
    case = Case(9, 72, 48, dtype=dtype, activation=activation)
    got = linear_reference(case.x, case.weight, case.bias, activation=activation)
    assert got.dtype == dtype
    assert_close(got, *expected_and_bound(case, rounds_product=False))


@pytest.mark.parametrize(("path", "device"), TARGETS)
def test_gelu_is_by_erf_and_not_by_tanh(make_layer, path, device):
    dtype = dtypes(path, device)[0]
    x = torch.linspace(-4, 4, 257, device=device)[:, None].to(dtype)
    layer = make_layer(path, x.new_ones(1, 1), x.new_zeros(1))
    erf = gelu(x.double())
    tanh = torch.nn.functional.gelu(x.double(), approximate="tanh")
    worst = 2e-6 + 2 * ROUNDING[dtype] * erf.abs()
    assert ((layer.gelu(x) - erf).abs() < worst).all()
    assert ((tanh - erf).abs() > worst).any()


@pytest.mark.parametrize(("path", "device"), TARGETS)
def test_gelu_of_large_values_is_the_value_or_zero(make_layer, path, device):
    dtype = dtypes(path, device)[-1]
    x = torch.tensor([[1e4], [-1e4], [0.0]], device=device).to(dtype)
    layer = make_layer(path, x.new_ones(2, 1), x.new_zeros(2))
    assert layer.gelu(x).tolist() == [[float(x[0, 0])] * 2, [0.0] * 2, [0.0] * 2]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("path", "device"), TARGETS)
def test_nan_in_one_row_stays_in_that_row(make_layer, path, device, activation):
    case = Case(130, 70, 20, device=device, dtype=dtypes(path, device)[-1], activation=activation)
    case.x[128, 69] = float("nan")
    is_nan = case.run(make_layer(path, case.weight, case.bias)).isnan()
    assert is_nan[128].all()
    assert not is_nan[:128].any()
    assert not is_nan[129:].any()


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("path", "device"), TARGETS)
def test_rows_may_be_strided_and_nothing_beside_them_is_read(make_layer, path, device, activation):
    case = Case(131, 70, 20, device=device, dtype=dtypes(path, device)[-1], activation=activation)
    layer = make_layer(path, case.weight, case.bias)
    expected = case.run(layer)
    wide = case.x.new_full((140, 100), float("nan"))
    wide[:131, 10:80] = case.x
    case.x = wide[:131, 10:80]
    assert torch.equal(case.run(layer), expected)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("path", "device"), TRITON)
def test_a_row_s_bits_do_not_depend_on_the_other_rows(make_layer, path, device, activation):
    case = Case(300, 200, 150, device=device, dtype=dtypes(path, device)[-1], activation=activation)
    layer = make_layer(path, case.weight, case.bias)
    together, x = case.run(layer), case.x
    for rows in (slice(0, 1), slice(127, 129), slice(131, 300)):
        case.x = x[rows].clone()
        assert torch.equal(case.run(layer), together[rows])
    case.x = x.flip(0).contiguous()
    assert torch.equal(case.run(layer).flip(0), together)


@pytest.mark.parametrize("shape", [(1, 1), (37, 13), (96, 384)])
@pytest.mark.parametrize(("path", "device", "dtype"), TARGETS_AND_DTYPES)
def test_the_weight_can_be_read_back(make_layer, path, device, dtype, shape):
    weight = torch.randn(shape).to(device, dtype)
    kept = make_layer(path, weight, None).weight
    assert kept.layout == torch.strided
    assert torch.equal(kept, weight)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_on_cuda_the_back_end_is_chosen_by_dtype_and_widths():
    for dtype, shape in ((torch.float32, (64, 64)), (torch.bfloat16, (64, 64)), (torch.bfloat16, (63, 65))):
        case = Case(9, *shape, device="cuda", dtype=dtype, activation="gelu")
        got = Linear(case.weight, case.bias).gelu(case.x)
        fused = Linear(case.weight, case.bias, backend="triton" if dtype != torch.float32 else "torch")
        assert_close(got, *expected_and_bound(case, rounds_product=True))
        if shape == (64, 64):
            assert torch.equal(got, fused.gelu(case.x))


def test_fp32_is_refused_by_the_triton_back_end_and_left_to_pytorch_when_nothing_is_named(monkeypatch):
    monkeypatch.setattr(linear, "resolve_op", lambda op, device, requested: "triton")
    monkeypatch.setattr(linear, "triton_interpreted", lambda: False)
    weight = torch.ones(2, 2)
    with pytest.raises(BackendUnavailableError, match="float16 or bfloat16"):
        Linear(weight, None, backend="triton")
    assert torch.equal(Linear(weight, None)(weight), 2 * weight)


def test_triton_on_cpu_tensors_is_refused_with_the_remedy():
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Linear(torch.ones(2, 2), None, backend="triton")


def test_operations_and_bytes_are_the_product_s_and_the_tensors():
    assert linear_flops(10, 3, 4) == 10 * 4 * (3 + 3)
    assert linear_bytes(10, 3, 4, torch.bfloat16) == 2 * (10 * 3 + 4 * 3 + 10 * 4)
    assert linear_bytes(10, 3, 4, torch.float32, activation="geglu") == 4 * (10 * 3 + 4 * 3 + 10 * 2)


BAD_LAYERS = {
    "one axis": ((torch.ones(4), None), r"\[out, in\]"),
    "fp64": ((torch.ones(4, 4).double(), None), "float32, float16 or bfloat16"),
    "no rows": ((torch.ones(0, 4), None), "weight"),
    "bias's length": ((torch.ones(4, 3), torch.ones(3)), r"bias \[4\]"),
    "bias's stride": ((torch.ones(4, 3), torch.ones(8)[::2]), r"bias \[4\] .* contiguous"),
    "bias's dtype": ((torch.ones(4, 3), torch.ones(4).bfloat16()), "bias .* float32"),
}


@pytest.mark.parametrize("name", BAD_LAYERS)
def test_a_bad_layer_is_named_with_what_was_expected(name):
    arguments, message = BAD_LAYERS[name]
    with pytest.raises(InputError, match=message):
        Linear(*arguments)


BAD_INPUT = {
    "one axis": (lambda layer: layer(torch.ones(4)), r"x \[T, 4\]"),
    "width": (lambda layer: layer.gelu(torch.ones(2, 5)), r"x \[T, 4\]"),
    "dtype": (lambda layer: layer.gelu(torch.ones(2, 4).bfloat16()), "x .* float32"),
    "transposed": (lambda layer: layer(torch.ones(4, 2).T), "contiguous"),
    "odd geglu": (lambda layer: layer.geglu(torch.ones(2, 4)), "even number of rows"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_what_was_expected(name):
    layer = Linear(torch.ones(3, 4), None)
    call, message = BAD_INPUT[name]
    with pytest.raises(InputError, match=message):
        call(layer)


def test_an_unknown_back_end_is_refused():
    with pytest.raises(InputError, match="triton, torch"):
        Linear(torch.ones(3, 4), None, backend="onednn")


def test_onednn_meets_few_numbers_of_rows_and_never_many_more_rows_than_there_are():
    rows = range(1, 4097)
    assert len({padded_rows(count) for count in rows}) <= 80  # of 1,024 programs that it keeps
    assert all(count <= padded_rows(count) < count + 64 for count in rows)
    assert all(padded_rows(count) < count + 16 for count in range(1, 257))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_that_are_added_leave_nothing_in_the_result(dtype):
    torch.manual_seed(0)
    layer = Linear(torch.randn(24, 16).to(dtype), torch.randn(24).to(dtype))
    x = torch.randn(40, 16).to(dtype)
    whole = layer.gelu(x)
    for rows in (1, 15, 16, 17, 39):
        part = layer.gelu(x[:rows])
        assert part.shape == (rows, 24)
        assert part.is_contiguous()
        torch.testing.assert_close(
            part, whole[:rows], atol=2e-6 if dtype == torch.float32 else 1e-2, rtol=1e-2
        )
