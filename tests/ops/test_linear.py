"""The linear layer and its epilogues against fp64, with oneDNN's packed weights and without."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastreward.ops import linear
from fastreward.ops.linear import Linear, onednn_available

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])

# Relative to the values that are rounded (product, result), 1 at least: the rounding of a sum of 384
# products, and in bf16 of the product and of the result (2^-9 each).
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 1e-2}


@pytest.fixture(params=["onednn", "plain"])
def path(request, monkeypatch):
    if request.param == "onednn" and not onednn_available(torch.float32):
        pytest.skip("this PyTorch has no oneDNN")
    monkeypatch.setattr(
        linear, "onednn_available", lambda dtype: request.param == "onednn" and onednn_available(dtype)
    )
    return request.param


@pytest.mark.parametrize("rows", [1, 3, 64, 257])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("device", DEVICES)
def test_product_bias_gelu_and_residual_equal_fp64(path, device, dtype, rows):
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, residual = (
        torch.randn(shape, generator=generator).mul(scale).to(device, dtype)
        for shape, scale in (((rows, 384), 1.0), ((96, 384), 0.05), ((96,), 1.0), ((rows, 96), 1.0))
    )
    layer = Linear(weight, bias)
    exact = F.linear(x.double(), weight.double(), bias.double())
    for got, expected in (
        (layer(x), exact),
        (layer.gelu(x), F.gelu(exact)),
        (layer.add(x, residual), exact + residual.double()),
    ):
        assert got.dtype == dtype
        rounded = torch.maximum(exact.abs(), expected.abs()).clamp(min=1.0)
        assert ((got.double() - expected).abs() / rounded).max() <= TOLERANCE[dtype]


def test_gelu_is_by_erf_and_not_by_tanh(path):
    x = torch.linspace(-4, 4, 257)[:, None]
    layer = Linear(torch.ones(1, 1), torch.zeros(1))
    erf, tanh = F.gelu(x.double()), F.gelu(x.double(), approximate="tanh")
    assert (layer.gelu(x) - erf).abs().max() < 2e-6
    assert (tanh - erf).abs().max() > 1e-4
