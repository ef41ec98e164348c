"""One matrix for both back-ends: the PyTorch reference on the CPU, and the Triton kernel in its interpreter
(TRITON_INTERPRET=1) or on CUDA. The oracle turns pair by pair in fp64, from positions and theta.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.rotary import apply_rotary, rotary_bytes, rotary_table

# An entry is x1 · cos ± x2 · sin. Relative to |x1| + |x2|, rounding a cosine costs 2^-25, and rounding a
# product and the sum 2^-24 each, together 1.5e-7; rounding the result to x's dtype costs its unit roundoff.
# Each happens once, whatever the shape, and spreads evenly: the RMS is less than half of the largest.
LARGEST_ERROR = {
    torch.float32: 1.5e-7 + 2**-24,
    torch.float16: 1.5e-7 + 2**-11,
    torch.bfloat16: 1.5e-7 + 2**-8,
}
RMS_ERROR = {dtype: error / 2 for dtype, error in LARGEST_ERROR.items()}


# (slots, slots that are turned): queries, keys and values; keys and values; queries; and what nobody asks for
SLOTS = [(3, 2), (2, 1), (1, 1), (3, 3), (3, 1)]
POSITIONS = 300


class Case:
    """Random queries, keys and values of ragged texts, and what fp64 makes of them."""

    def __init__(
        self,
        num_tokens: int,
        heads: int,
        head_dim: int,
        *,
        slots: int = 3,
        rotated: int = 2,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        theta: float = 10000.0,
        scale: float = 1.0,
    ) -> None:
        generator = torch.Generator().manual_seed(hash((num_tokens, heads, head_dim, slots)) % 2**31)
        x = scale * torch.randn(num_tokens, slots, heads, head_dim, generator=generator)
        self.x = x.to(device, dtype)
        positions = torch.randint(POSITIONS, (num_tokens,), generator=generator, dtype=torch.int32)
        self.position_ids = positions.to(device)
        self.table = rotary_table(POSITIONS, head_dim, theta, torch.device(device))
        self.rotated, self.theta = rotated, theta

    def run(self, backend: str, x: Tensor | None = None) -> Tensor:
        turned = self.x.clone() if x is None else x
        done = apply_rotary(turned, self.position_ids, self.table, rotated=self.rotated, backend=backend)
        assert done is None
        return turned

    def oracle(self) -> Tensor:
        turned = self.x.double().cpu()
        half = turned.shape[3] // 2
        for token, position in enumerate(self.position_ids.tolist()):
            for k in range(half):
                angle = position * self.theta ** (-2 * k / (2 * half))
                pairs = turned[token, : self.rotated, :, [k, k + half]]  # [rotated, H, 2]
                x1, x2 = pairs.unbind(-1)
                turned[token, : self.rotated, :, k] = x1 * math.cos(angle) - x2 * math.sin(angle)
                turned[token, : self.rotated, :, k + half] = x2 * math.cos(angle) + x1 * math.sin(angle)
        return turned

    def assert_right(self, got: Tensor) -> None:
        assert got.dtype == self.x.dtype
        assert got.shape == self.x.shape
        assert torch.equal(got[:, self.rotated :], self.x[:, self.rotated :])
        if not got.numel():
            return
        x1, x2 = self.x.double().cpu().abs().chunk(2, dim=-1)
        beside = (x1 + x2).repeat(1, 1, 1, 2)[:, : self.rotated]
        error = (got.double().cpu() - self.oracle())[:, : self.rotated].abs() / beside
        assert error.max() <= LARGEST_ERROR[self.x.dtype]
        assert error.square().mean().sqrt() <= RMS_ERROR[self.x.dtype]


@pytest.mark.parametrize(("slots", "rotated"), SLOTS)
@pytest.mark.parametrize("num_tokens", [0, 1, 7, 131])
@pytest.mark.every_target
def test_what_is_turned_equals_fp64_and_the_other_slots_keep_their_bits(
    backend, device, num_tokens, slots, rotated
):
    case = Case(num_tokens, 3, 8, slots=slots, rotated=rotated, device=device)
    case.assert_right(case.run(backend))


@pytest.mark.parametrize(("heads", "head_dim"), [(1, 2), (5, 6), (12, 64), (2, 80), (3, 256), (16, 32)])
@pytest.mark.every_target_and_dtype
def test_every_number_and_width_of_heads_and_dtype(backend, device, dtype, heads, head_dim):
    case = Case(11, heads, head_dim, device=device, dtype=dtype)
    case.assert_right(case.run(backend))


@pytest.mark.parametrize("theta", [1.0, 160000.0, 1e9])
@pytest.mark.every_target
def test_every_theta(backend, device, theta):
    case = Case(7, 2, 64, device=device, theta=theta)
    case.assert_right(case.run(backend))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.every_target
def test_extreme_values_neither_overflow_nor_vanish(backend, device, scale):
    case = Case(7, 2, 16, device=device, scale=scale)
    case.assert_right(case.run(backend))


@pytest.mark.every_target
def test_position_zero_turns_nothing(backend, device):
    case = Case(5, 2, 16, device=device)
    case.position_ids.zero_()
    assert torch.equal(case.run(backend), case.x)


@pytest.mark.every_target
def test_dot_products_depend_on_the_distance_alone(backend, device):
    case = Case(1, 4, 32, device=device, slots=2, rotated=2)
    together = case.x.expand(POSITIONS, -1, -1, -1).clone()
    case.position_ids = torch.arange(POSITIONS, dtype=torch.int32, device=device)
    query, key = case.run(backend, together).double().unbind(1)  # [POSITIONS, H, hd]
    for distance in (0, 1, 17):
        dots = (query[distance:] * key[: POSITIONS - distance]).sum(-1)  # [POSITIONS - distance, H]
        length = case.x[0, 0].double().norm(dim=-1) * case.x[0, 1].double().norm(dim=-1)
        assert ((dots - dots[0]).abs() / length).max() < 1e-6


@pytest.mark.every_target
def test_tokens_may_lie_apart_and_nothing_between_them_is_touched(backend, device):
    case = Case(9, 2, 8, device=device)
    wide = torch.full((12, 100), float("nan"), device=device)
    inner = wide[:9, 20 : 20 + 48].unflatten(1, (3, 2, 8))
    inner.copy_(case.x)
    case.assert_right(case.run(backend, inner))
    outside = torch.ones_like(wide, dtype=torch.bool)
    outside[:9, 20 : 20 + 48] = False
    assert wide[outside].isnan().all()


@pytest.mark.every_target
def test_a_token_s_bits_do_not_depend_on_its_batch(backend, device):
    case = Case(200, 3, 32, device=device)
    together = case.run(backend)
    for token in (0, 1, 63, 199):
        alone = Case(1, 3, 32, device=device)
        alone.x = case.x[token : token + 1]
        alone.position_ids = case.position_ids[token : token + 1]
        assert torch.equal(alone.run(backend)[0], together[token])


@pytest.mark.every_target
def test_nan_stays_in_its_own_pair(backend, device):
    case = Case(3, 2, 8, device=device)
    case.x[1, 0, 1, 2] = float("nan")
    expected = torch.zeros_like(case.x, dtype=torch.bool)
    expected[1, 0, 1, [2, 6]] = True
    assert torch.equal(case.run(backend).isnan(), expected)


@pytest.mark.skipif(not triton_interpreted(), reason="the kernel runs elsewhere")
def test_the_kernel_reads_no_memory_outside_the_table_and_shows_nan():
    from fastreward.kernels.rotary import launch_rotary

    case = Case(4, 2, 8)
    case.position_ids = torch.tensor([0, POSITIONS, -1, 2**31 - 1], dtype=torch.int32)
    turned = case.x.clone()
    launch_rotary(turned, case.position_ids, case.table, rotated=2)
    assert turned[:, :2].isnan().flatten(1).all(dim=1).tolist() == [False, True, True, True]
    assert torch.equal(turned[:, 2], case.x[:, 2])
    assert torch.equal(turned[0], case.x[0])


def test_hugging_face_turns_the_same_way():
    modernbert = pytest.importorskip("transformers.models.modernbert.modeling_modernbert")
    case = Case(50, 3, 16)
    positions = case.position_ids.long()
    pairs = torch.arange(0, 16, 2, dtype=torch.float64)
    angles = torch.outer(positions.double(), 10000.0 ** (-pairs / 16)).repeat(1, 2)  # [T, hd]
    query, key = (case.x[:, slot].transpose(0, 1)[None].double() for slot in (0, 1))  # [1, H, T, hd]
    expected = modernbert.apply_rotary_pos_emb(query, key, angles.cos()[None], angles.sin()[None])
    got = case.run("torch")
    for slot in (0, 1):
        torch.testing.assert_close(
            got[:, slot].double(), expected[slot][0].transpose(0, 1), atol=1e-6, rtol=0
        )


def test_the_table_is_rounded_once():
    table = rotary_table(8192, 64, 160000.0, torch.device("cpu"))
    assert table.shape == (8192, 64)
    assert table.dtype == torch.float32
    for position in (0, 1, 4099, 8191):
        for k in (0, 1, 13, 31):
            angle = position * 160000.0 ** (-2 * k / 64)
            assert abs(table[position, k].item() - math.cos(angle)) <= 2**-25 + 1e-11
            assert abs(table[position, 32 + k].item() - math.sin(angle)) <= 2**-25 + 1e-11


def test_the_table_ignores_the_default_device_and_dtype():
    expected = rotary_table(5, 8, 100.0, torch.device("cpu"))
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"):
            assert torch.equal(rotary_table(5, 8, 100.0, torch.device("cpu")), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_byte_count_is_what_is_turned_there_and_back_and_the_positions():
    assert rotary_bytes(10, 2, 3, 8, torch.bfloat16) == 10 * (2 * (2 * 3 * 8 * 2) + 4)


def test_triton_on_cpu_tensors_is_refused_with_the_remedy():
    if triton_interpreted():
        pytest.skip("the interpreter runs on CPU tensors")
    with pytest.raises(BackendUnavailableError, match="backend='torch'"):
        Case(3, 2, 8).run("triton")


BAD_INPUT = {
    "three axes": (lambda c: {"x": c.x[0]}, r"x \[T, S, H, hd\]"),
    "fp64": (lambda c: {"x": c.x.double()}, "float32, float16 or bfloat16"),
    "odd head dim": (lambda c: {"x": torch.zeros(4, 3, 2, 7)}, "even head_dim"),
    "wide head dim": (lambda c: {"x": torch.zeros(4, 3, 2, 258)}, "256"),
    "transposed": (lambda c: {"x": c.x.transpose(1, 2)}, "side by side"),
    "tokens that overlap": (lambda c: {"x": c.x[:1].expand(4, -1, -1, -1)}, "tokens apart"),
    "no slot": (lambda c: {"rotated": 0}, "rotated from 1 to 3"),
    "too many slots": (lambda c: {"rotated": 4}, "rotated from 1 to 3"),
    "int64 positions": (lambda c: {"position_ids": c.position_ids.long()}, "int32"),
    "too few positions": (lambda c: {"position_ids": c.position_ids[1:]}, r"\[4\]"),
    "table's width": (lambda c: {"table": c.table[:, :6].contiguous()}, r"\[P, 8\]"),
    "table's dtype": (lambda c: {"table": c.table.double()}, "float32"),
    "position too large": (lambda c: {"table": c.table[:2]}, "from 0 to 1"),
    "position negative": (lambda c: {"position_ids": -c.position_ids - 1}, "from 0 to 299"),
    "back-end": (lambda c: {"backend": "cuda"}, "triton, torch"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_input_is_named_with_what_was_expected(name):
    case = Case(4, 2, 8)
    arguments = {"x": case.x.clone(), "position_ids": case.position_ids, "table": case.table, "rotated": 2}
    apply_rotary(**arguments)
    change, message = BAD_INPUT[name]
    with pytest.raises(InputError, match=message):
        apply_rotary(**{**arguments, **change(case)})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 8, 10000.0), "num_positions"),
        ((5, 7, 10000.0), "even head_dim"),
        ((5, 0, 10000.0), "even head_dim"),
        ((5, 8, 0.0), "theta above 0"),
        ((5, 8, float("inf")), "theta above 0"),
        ((5, 8, float("nan")), "theta above 0"),
    ],
)
def test_a_table_that_cannot_be_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        rotary_table(*arguments, torch.device("cpu"))
