"""One matrix for both back-ends of the fused blocks: PyTorch, and the Triton kernels in their interpreter
(TRITON_INTERPRET=1) or on CUDA. The oracle is a loop over rows in fp64 on the inputs cast up.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops import mlp
from fastreward.ops.layer_norm import LayerNorm
from fastreward.ops.mlp import (
    fused_mlp,
    fused_mlp_bytes,
    fused_mlp_flops,
    mlp_available,
    project_layer_norm,
    project_layer_norm_bytes,
    project_layer_norm_flops,
)

# Largest relative error of one rounding.
ROUNDING = {torch.float32: 2.0**-24, torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
HIDDEN_SIZE = 384  # the kernels' only one


def targets() -> list[tuple[str, str]]:
    """Each (back-end, device) that runs here."""
    found = [("torch", "cpu")]
    if triton_interpreted():
        found.append(("triton", "cpu"))
    if torch.cuda.is_available():
        found += [("torch", "cuda"), ("triton", "cuda")]
    return found


def dtypes(backend: str, device: str) -> list[torch.dtype]:
    """The interpreter computes bf16 wrongly in places; on CUDA the kernels multiply in 16 bit."""
    if triton_interpreted() and device == "cpu":
        return [torch.float32, torch.float16]
    if backend == "triton":
        return [torch.float16, torch.bfloat16]
    return [torch.float32, torch.float16, torch.bfloat16]


TARGETS = [pytest.param(*target, id="-".join(target)) for target in targets()]
TARGETS_AND_DTYPES = [
    pytest.param(backend, device, dtype, id=f"{backend}-{device}-{str(dtype).removeprefix('torch.')}")
    for backend, device in targets()
    for dtype in dtypes(backend, device)
]
TRITON = [target for target in TARGETS if "triton" in target.values]
OPS = ["fused_mlp", "project_layer_norm"]
ROWS = [0, 1, 3, 64, 67, 131]  # a program has 64


class Case:
    """Random inputs of either op at one shape, and what fp64 makes of them."""

    def __init__(
        self,
        op: str,
        rows: int,
        inner_size: int,
        *,
        hidden_size: int = HIDDEN_SIZE,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        norm_bias: bool = True,
    ) -> None:
        generator = torch.Generator().manual_seed(rows + 1000 * inner_size + hidden_size)

        def random(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(shape, generator=generator) * scale).to(device, dtype)

        self.op = op
        self.x = random(rows, hidden_size)
        self.attended = random(rows, inner_size)
        self.up_weight = random(inner_size, hidden_size, scale=hidden_size**-0.5)
        self.up_bias = random(inner_size)
        self.weight = random(hidden_size, inner_size, scale=inner_size**-0.5)
        self.bias = random(hidden_size)
        self.norm = LayerNorm(random(hidden_size), random(hidden_size) if norm_bias else None, 1e-6)

    def run(self, backend: str | None) -> Tensor:
        if self.op == "fused_mlp":
            return fused_mlp(
                self.x, self.up_weight, self.up_bias, self.weight, self.bias, self.norm, backend=backend
            )
        return project_layer_norm(self.attended, self.weight, self.bias, self.x, self.norm, backend=backend)

    def expected_and_bound(self) -> tuple[Tensor, Tensor]:
        """The result in fp64, and how far from it an element may be."""
        results = [self._row(row) for row in range(len(self.x))]
        empty = self.x.new_empty(0, self.x.shape[1], dtype=torch.float64)
        values, bounds = zip(*results, strict=True) if results else ((), ())
        return torch.stack(values) if values else empty, torch.stack(bounds) if bounds else empty

    def _row(self, row: int) -> tuple[Tensor, Tensor]:
        """One row and its bound.

        Sums of n products in fp32 are off by a few u √n S, S the sum of their magnitudes and u = 2⁻²⁴, and
        GELU by 10 u of its argument. Rounding h costs each of its elements v |h|, v the dtype's rounding.
        LayerNorm multiplies the error e of z, the largest of the row, by |weight| / σ, twice for the mean's
        own error, and once more by |ẑ| for that of σ; it is as exact as e is, and the result is rounded.
        """
        u, v = 2.0**-24, ROUNDING[self.x.dtype]
        x, weight, bias = self.x[row].double(), self.weight.double(), self.bias.double()
        inner, inner_error = self.attended[row].double(), torch.zeros(1, dtype=torch.float64, device=x.device)
        if self.op == "fused_mlp":
            terms = self.up_weight.double() * x
            z = terms.sum(dim=1) + self.up_bias.double()
            size = terms.abs().sum(dim=1) + self.up_bias.double().abs()
            inner = 0.5 * z * torch.special.erfc(-z / 2**0.5)
            inner_error = 1.13 * u * (2 + len(x) ** 0.5) * size + 10 * u * z.abs() + 1.01 * v * inner.abs()
            inner_error += 2.0**-25 * (self.x.dtype == torch.float16)  # below fp16's normal numbers
        terms = weight * inner
        total = x + bias + terms.sum(dim=1)
        size = x.abs() + bias.abs() + terms.abs().sum(dim=1)
        error = u * (2 + len(inner) ** 0.5) * size + (weight.abs() * inner_error).sum(dim=1)
        centred = total - total.mean()
        factor = (centred.square().mean() + self.norm.eps).rsqrt()
        norm_weight = self.norm.weight.double()
        value = centred * factor * norm_weight
        relative = (2 * error.max() * factor + 8 * u) * (1 + centred.abs() * factor)
        if self.norm.bias is not None:
            value = value + self.norm.bias.double()
        bound = norm_weight.abs() * relative + (1.01 * v + 4 * u) * value.abs() + 2 * u
        return value, bound


def assert_close(got: Tensor, case: Case) -> None:
    expected, bound = case.expected_and_bound()
    assert got.shape == expected.shape
    assert got.dtype == case.x.dtype
    error = (got.double() - expected).abs()
    assert (error <= bound).all()
    # Independent roundings add up to far less than the sum of their bounds. Where there is but one that
    # counts, the result's, it is spread evenly: 1/√3 of its bound, less high in a binade.
    one_rounding = case.op == "project_layer_norm" and got.dtype != torch.float32
    if error.numel() >= 64:
        assert error.square().mean().sqrt() <= (0.6 if one_rounding else 0.15) * bound.square().mean().sqrt()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("inner_size", [32, 96, 128])
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_every_shape_equals_fp64(backend, device, dtype, rows, inner_size, op):
    case = Case(op, rows, inner_size, device=device, dtype=dtype)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("hidden_size", "inner_size"), [(1, 1), (5, 3), (48, 37), (1000, 60)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorch_takes_every_hidden_size(dtype, hidden_size, inner_size, op):
    case = Case(op, 7, inner_size, hidden_size=hidden_size, dtype=dtype)
    assert_close(case.run(None), case)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_a_norm_without_a_bias(backend, device, dtype, op):
    case = Case(op, 5, 64, device=device, dtype=dtype, norm_bias=False)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_a_norm_in_fp32_keeps_its_precision(backend, device, op):
    case = Case(op, 5, 64, device=device, dtype=torch.float16)
    case.norm = LayerNorm(torch.full((HIDDEN_SIZE,), 1.0 + 2.0**-20, device=device), None, 1e-6)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_rows_without_a_spread_become_the_bias(backend, device, op):
    case = Case(op, 3, 32, device=device, dtype=torch.float16)
    case.x[:] = 0.25
    case.weight[:] = 0.0
    case.bias[:] = 0.5
    assert torch.equal(case.run(backend), case.norm.bias.expand(3, -1))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_epsilon_stands_inside_the_root(backend, device, op):
    case = Case(op, 5, 64, device=device, dtype=torch.float16)
    case.norm = replace(case.norm, eps=3.0)
    assert_close(case.run(backend), case)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_nan_in_one_row_stays_in_that_row(backend, device, op):
    case = Case(op, 70, 32, device=device, dtype=torch.float16)
    case.x[66, 383] = float("nan")
    case.attended[66, 31] = float("nan")
    is_nan = case.run(backend).isnan()
    assert is_nan[66].all()
    assert is_nan.sum() == HIDDEN_SIZE


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_rows_may_be_strided_nothing_beside_them_is_read_and_inputs_stay(backend, device, op):
    case = Case(op, 67, 32, device=device, dtype=torch.float16)
    expected = case.run(backend)

    def embedded(x: Tensor) -> Tensor:
        wide = x.new_full((len(x) + 5, x.shape[1] + 48), float("nan"))
        wide[: len(x), 16 : 16 + x.shape[1]] = x
        return wide[: len(x), 16 : 16 + x.shape[1]]

    before = case.x.clone(), case.attended.clone()
    case.x, case.attended = embedded(case.x), embedded(case.attended)
    assert torch.equal(case.run(backend), expected)
    assert torch.equal(case.x, before[0])
    assert torch.equal(case.attended, before[1])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(("backend", "device"), TRITON)
def test_a_row_s_bits_do_not_depend_on_the_other_rows(backend, device, op):
    case = Case(op, 150, 64, device=device, dtype=torch.float16)
    together, x, attended = case.run(backend), case.x, case.attended
    for rows in (slice(0, 1), slice(63, 65), slice(66, 150)):
        case.x, case.attended = x[rows].clone(), attended[rows].clone()
        assert torch.equal(case.run(backend), together[rows])


@pytest.mark.parametrize("op", OPS)
def test_where_the_kernel_cannot_it_is_refused_and_nothing_stands_in(monkeypatch, op):
    monkeypatch.setattr(mlp, "resolve_op", lambda op, device, requested: "triton")
    monkeypatch.setattr(mlp, "triton_interpreted", lambda: False)
    refused = {
        "a hidden size of 48": Case(op, 2, 32, hidden_size=48, dtype=torch.bfloat16),
        "an inner size of 40": Case(op, 2, 40, dtype=torch.bfloat16),
        "float32": Case(op, 2, 32),
    }
    for reason, case in refused.items():
        for backend in ("triton", None):
            with pytest.raises(BackendUnavailableError, match=f"{reason}.*backend='torch'"):
                case.run(backend)


def test_the_kernel_s_reasons(monkeypatch):
    monkeypatch.setattr(mlp, "triton_interpreted", lambda: False)
    assert mlp_available(torch.bfloat16, 384, 1536) is None
    assert mlp_available(torch.float16, 384, 384) is None
    assert "768" in mlp_available(torch.bfloat16, 768, 3072)
    assert "1530" in mlp_available(torch.bfloat16, 384, 1530)
    assert "float32" in mlp_available(torch.float32, 384, 1536)


def test_triton_on_cpu_tensors_is_refused_with_the_remedy():
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Case("fused_mlp", 2, 32).run("triton")


def test_operations_and_bytes_are_the_products_and_the_tensors():
    assert fused_mlp_flops(10, 4, 6) == 2 * (10 * 4 * 6) + 2 * (10 * 6 * 4)
    assert fused_mlp_bytes(10, 4, 6, torch.bfloat16) == 2 * (10 * 4 + 6 * 4 + 4 * 6 + 10 * 4)
    assert project_layer_norm_flops(10, 6, 4) == 2 * 10 * 6 * 4
    assert project_layer_norm_bytes(10, 6, 4, torch.float32) == 4 * (10 * 6 + 10 * 4 + 4 * 6 + 10 * 4)


BAD_MLP = {
    "x's axes": ({"x": torch.ones(4)}, r"x \[T, D\]"),
    "x's dtype": ({"x": torch.ones(2, 4).double()}, r"x \[T, D\] in float32"),
    "x transposed": ({"x": torch.ones(4, 2).T}, "contiguous"),
    "up_weight's width": ({"up_weight": torch.ones(6, 5)}, r"up_weight \[6, 4\]"),
    "up_weight's order": ({"up_weight": torch.ones(4, 6).T}, r"up_weight \[6, 4\].*contiguous"),
    "up_bias": ({"up_bias": torch.ones(5)}, r"up_bias \[6\]"),
    "down_weight": ({"down_weight": torch.ones(6, 4)}, r"down_weight \[4, 6\]"),
    "down_weight's dtype": ({"down_weight": torch.ones(4, 6).half()}, "down_weight .* float32"),
    "down_bias": ({"down_bias": torch.ones(6)}, r"down_bias \[4\]"),
    "norm's weight": ({"norm": LayerNorm(torch.ones(5), None, 1e-6)}, r"norm.weight \[4\]"),
    "norm's bias": ({"norm": LayerNorm(torch.ones(4), torch.ones(4).int(), 1e-6)}, "norm.bias"),
    "back-end": ({"backend": "cuda"}, "triton, torch"),
}


@pytest.mark.parametrize("name", BAD_MLP)
def test_bad_input_of_fused_mlp_is_named_with_what_was_expected(name):
    arguments = {
        "x": torch.ones(2, 4),
        "up_weight": torch.ones(6, 4),
        "up_bias": torch.ones(6),
        "down_weight": torch.ones(4, 6),
        "down_bias": torch.ones(4),
        "norm": LayerNorm(torch.ones(4), None, 1e-6),
    }
    fused_mlp(**arguments)
    change, message = BAD_MLP[name]
    with pytest.raises(InputError, match=message):
        fused_mlp(**{**arguments, **change})


BAD_PROJECTION = {
    "attended's axes": ({"attended": torch.ones(6)}, r"attended \[T, K\]"),
    "residual's rows": ({"residual": torch.ones(3, 4)}, r"residual \[2, D\]"),
    "residual's dtype": ({"residual": torch.ones(2, 4).half()}, r"residual \[2, D\] in float32"),
    "residual transposed": ({"residual": torch.ones(4, 2).T}, "residual .*contiguous"),
    "weight": ({"weight": torch.ones(6, 4)}, r"weight \[4, 6\]"),
    "bias": ({"bias": torch.ones(6)}, r"bias \[4\]"),
    "norm's weight": ({"norm": LayerNorm(torch.ones(6), None, 1e-6)}, r"norm.weight \[4\]"),
}


@pytest.mark.parametrize("name", BAD_PROJECTION)
def test_bad_input_of_project_layer_norm_is_named_with_what_was_expected(name):
    arguments = {
        "attended": torch.ones(2, 6),
        "weight": torch.ones(4, 6),
        "bias": torch.ones(4),
        "residual": torch.ones(2, 4),
        "norm": LayerNorm(torch.ones(4), None, 1e-6),
    }
    project_layer_norm(**arguments)
    change, message = BAD_PROJECTION[name]
    with pytest.raises(InputError, match=message):
        project_layer_norm(**{**arguments, **change})
