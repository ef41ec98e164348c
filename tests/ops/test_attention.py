"""One matrix for all back-ends of attention: SDPA on the CPU, the Triton kernel in its interpreter
(TRITON_INTERPRET=1) or on CUDA, PyTorch's varlen and flash-attn on CUDA. The oracle is a loop over texts and
tokens in fp64 on the inputs cast up.
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from itertools import accumulate

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fastreward.backends import triton_interpreted
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops import attention_backends
from fastreward.ops.attention import (
    ATTENTION_BACKENDS,
    attention_availability,
    attention_bytes,
    attention_flops,
    attention_layout,
    attention_reference,
    first_token_attention,
    packed_attention,
    resolve_attention,
)
from fastreward.ops.attention_backends import (
    WINDOW_ROWS,
    Offsets,
    first_token_by_offsets,
    flash_attention,
    flash_functions,
)

CPU = torch.device("cpu")

# In 16 bits two things are rounded: the weights, before they meet the values, and the result, each by at most
# the dtype's unit u of itself, and what a row adds up is at most the largest value: 2 u max |v|. A rounding
# error that is even over [-a, a] has the root mean square a/√3, so that of the two together is at most 2/√3 u
# of the values'. In fp32 scores are sums of up to 128 products, whose rounding moves a weight by a few 1e-7
# of itself; the bounds are the largest seen, times about four.
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}
FP32_LARGEST_ERROR = 4e-6
FP32_RMS_ERROR = 4e-7


def targets() -> list[tuple[str, str]]:
    """Each (back-end, device) that runs here."""
    found = [("sdpa", "cpu")]
    if triton_interpreted():
        found.append(("triton", "cpu"))
    if torch.cuda.is_available():
        found += [(name, "cuda") for name in ATTENTION_BACKENDS if attention_availability(name).usable]
    return found


def dtypes(backend: str, device: str) -> list[torch.dtype]:
    """The interpreter computes bf16 wrongly in places; two back-ends have 16 bits alone."""
    if backend in ("flash", "varlen"):
        return [torch.float16, torch.bfloat16]
    if triton_interpreted() and device == "cpu":
        return [torch.float32, torch.float16]
    return [torch.float32, torch.float16, torch.bfloat16]


TARGETS = [pytest.param(*target, id="-".join(target)) for target in targets()]
TARGETS_AND_DTYPES = [
    pytest.param(backend, device, dtype, id=f"{backend}-{device}-{str(dtype).removeprefix('torch.')}")
    for backend, device in targets()
    for dtype in dtypes(backend, device)
]

# The kernel's blocks for fp32 are small, and each takes the interpreter as long as a large one.
EDGES = [case for case in TARGETS_AND_DTYPES if case.id != "triton-cpu-float32"]

RAGGED = (70, 1, 0, 13, 2)
LENGTHS = [
    pytest.param((1,), id="one-token"),
    pytest.param((), id="no-text"),
    pytest.param((0, 0), id="no-token"),
    pytest.param((0, 0, 5, 0), id="empty-texts"),
    pytest.param((64, 64, 17, 17, 3, 1, 1), id="runs-of-equal-length"),
    pytest.param((3, 50, 3, 0, 0, 7, 7), id="unsorted-and-empty"),
    pytest.param((63, 64, 65), id="around-one-block"),
    pytest.param((127, 128, 129), id="around-two-blocks"),
    pytest.param((2 * WINDOW_ROWS + 1, 4 * WINDOW_ROWS + 44), id="several-blocks"),
    pytest.param((387, 0, 2), id="long-and-short"),
]
WINDOWS = [None, 1, 3, 64]


class Case:
    """Random queries, keys and values of one shape, and what fp64 makes of them."""

    def __init__(
        self,
        lengths: tuple[int, ...],
        heads: int = 2,
        head_dim: int = 32,
        *,
        backend: str = "sdpa",
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        scale: float = 1.0,
        batch_invariant: bool = False,
    ) -> None:
        generator = torch.Generator().manual_seed(hash((lengths, heads, head_dim)) % 2**31)
        if dtype is None:  # the most exact one that the back-end has
            dtype = dtypes(backend, device)[0]
        qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator)
        qkv[:, 0] *= scale
        self.lengths = lengths
        self.qkv = qkv.to(device, dtype)
        self.clean_values = self.qkv[:, 2].double()  # as they are before a test spoils them
        self.cu_seqlens = torch.tensor([0, *lengths]).cumsum(0).to(device, torch.int32)
        self.layout = attention_layout(
            self.cu_seqlens, lengths, backend=backend, batch_invariant=batch_invariant
        )

    def run(self, window: int | None = None) -> Tensor:
        return packed_attention(self.qkv, self.layout, window=window)

    def first_queries(self) -> Tensor:
        """[N, H, head_dim]; NaN for a text without tokens, whose query nobody has computed."""
        queries = self.qkv.new_full((len(self.lengths), *self.qkv.shape[2:]), torch.nan)
        for text, length in enumerate(self.lengths):
            if length:
                queries[text] = self.qkv[self.cu_seqlens[text], 0]
        return queries

    def run_first(self, window: int | None = None) -> Tensor:
        return first_token_attention(self.first_queries(), self.qkv[:, 1:], self.layout, window=window)

    def oracle(self, window: int | None = None, *, first_token: bool = False) -> Tensor:
        """[T, H · head_dim], or with `first_token` [N, H · head_dim]."""
        heads, head_dim = self.qkv.shape[2:]
        rows = []
        for text in self.qkv.double().cpu().split(self.lengths):
            query, key, value = text.unbind(1)  # [length, H, head_dim]
            for i in range(min(1, len(text)) if first_token else len(text)):
                low, high = (0, len(text)) if window is None else (max(0, i - window), i + window + 1)
                scores = torch.einsum("hd,khd->hk", query[i], key[low:high]) * head_dim**-0.5
                rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), value[low:high]).flatten())
            if first_token and not len(text):
                rows.append(torch.zeros(heads * head_dim, dtype=torch.float64))
        return torch.stack(rows) if rows else torch.zeros(0, heads * head_dim, dtype=torch.float64)

    def assert_close(self, got: Tensor, expected: Tensor) -> None:
        assert got.dtype == self.qkv.dtype
        assert got.shape == expected.shape
        if not got.numel():
            return
        error = (got.cpu().double() - expected).abs()
        largest, rms = FP32_LARGEST_ERROR, FP32_RMS_ERROR
        if got.dtype != torch.float32:
            value, unit = self.clean_values, UNIT[got.dtype]
            largest = 2 * unit * value.abs().max().item() if len(value) else 0.0
            rms = 2 / 3**0.5 * unit * value.square().mean().sqrt().item() if len(value) else 0.0
        assert error.max() <= largest
        assert error.square().mean().sqrt() <= rms


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("backend", "device", "dtype"), EDGES)
def test_each_token_sees_its_own_text_within_the_window(backend, device, dtype, lengths, window):
    case = Case(lengths, 1, 32, backend=backend, device=device, dtype=dtype)
    case.assert_close(case.run(window), case.oracle(window))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("lengths", LENGTHS)
@pytest.mark.parametrize(("backend", "device", "dtype"), EDGES)
def test_the_first_token_s_row_alone(backend, device, dtype, lengths, window):
    case = Case(lengths, 1, 32, backend=backend, device=device, dtype=dtype)
    case.assert_close(case.run_first(window), case.oracle(window, first_token=True))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("heads", "head_dim"), [(3, 32), (2, 64), (1, 128), (1, 16)])
@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_every_head_size_and_dtype(backend, device, dtype, heads, head_dim, window):
    case = Case(RAGGED, heads, head_dim, backend=backend, device=device, dtype=dtype)
    case.assert_close(case.run(window), case.oracle(window))
    case.assert_close(case.run_first(window), case.oracle(window, first_token=True))


@pytest.mark.parametrize(("backend", "device", "dtype"), EDGES)
def test_texts_that_are_long_on_average(backend, device, dtype):
    case = Case((10, 400), 1, 64, backend=backend, device=device, dtype=dtype)
    case.assert_close(case.run(), case.oracle())


@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_texts_that_are_long_on_average_under_a_window(backend, device, dtype):
    case = Case((10, 400), 1, 64, backend=backend, device=device, dtype=dtype)
    case.assert_close(case.run(20), case.oracle(20))


@pytest.mark.parametrize("window", [None, 3])
def test_the_definition_equals_the_oracle(window):
    case = Case((70, 1, 0, 13))
    case.assert_close(attention_reference(case.qkv, case.lengths, window=window), case.oracle(window))
    empty = Case(())
    empty.assert_close(attention_reference(empty.qkv, (), window=window), empty.oracle(window))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_a_text_s_bits_do_not_depend_on_its_batch(backend, device, dtype, window):
    lengths = (140, 40, 40, 9, 0, 9, 1)
    case = Case(lengths, 1, 32, backend=backend, device=device, dtype=dtype, batch_invariant=True)
    together = case.run(window)
    case.assert_close(together, case.oracle(window))
    first_together = case.run_first(window)
    for text, rows in enumerate(together.split(lengths)):
        alone = Case(
            (lengths[text],), 1, 32, backend=backend, device=device, dtype=dtype, batch_invariant=True
        )
        alone.qkv = case.qkv.split(lengths)[text].contiguous()
        assert torch.equal(alone.run(window), rows)
        assert torch.equal(alone.run_first(window), first_together[text : text + 1])


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_rows_and_heads_may_be_strided(backend, device, window):
    case = Case(RAGGED, backend=backend, device=device)
    expected, expected_first = case.run(window), case.run_first(window)
    wide = torch.full((len(case.qkv), 4, 3, 48), torch.nan, dtype=case.qkv.dtype, device=device)
    wide[:, 1:, :2, 16:48] = case.qkv
    case.qkv = wide[:, 1:, :2, 16:48]
    assert torch.equal(case.run(window), expected)
    queries = torch.full((len(RAGGED), 3, 48), torch.nan, dtype=case.qkv.dtype, device=device)
    queries[:, :2, 16:48] = case.first_queries()
    got = first_token_attention(queries[:, :2, 16:48], case.qkv[:, 1:], case.layout, window=window)
    assert torch.equal(got, expected_first)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize(("backend", "device"), TARGETS)
def test_a_softmax_that_saturates_gives_the_value_of_the_largest_score(backend, device, scale):
    case = Case((150, 20, 7), backend=backend, device=device, dtype=torch.float16, scale=scale)
    got = case.run()
    assert got.isfinite().all()
    # Scores of 1e5 are exact to 2^-7 in fp32, so a weight is to a hundredth; all but a few are 0 or 1.
    assert (got.cpu().double() - case.oracle()).abs().max() <= 0.05


@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_equal_scores_give_the_mean_of_the_values(backend, device, dtype):
    case = Case(RAGGED, backend=backend, device=device, dtype=dtype, scale=0.0)
    case.assert_close(case.run(), case.oracle())


@pytest.mark.filterwarnings("ignore:.*NaN|invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize(
    ("part", "poison"),
    [
        pytest.param(0, torch.nan, id="query-nan"),
        pytest.param(1, torch.nan, id="key-nan"),
        pytest.param(2, torch.nan, id="value-nan"),
        pytest.param(2, torch.inf, id="value-inf"),
    ],
)
@pytest.mark.parametrize(("backend", "device", "dtype"), TARGETS_AND_DTYPES)
def test_what_is_not_finite_stays_in_its_own_text_and_is_seen_there(
    backend, device, dtype, part, poison, window
):
    lengths = (66, 20, 30, 10)  # the last three share the kernel's tile
    case = Case(lengths, 1, 32, backend=backend, device=device, dtype=dtype)
    expected, expected_first = case.run(window).split(lengths), case.run_first(window)
    case.qkv[91, part, 0, 5] = poison  # the sixth token of the third text
    got, got_first = case.run(window).split(lengths), case.run_first(window)
    for text in (0, 1, 3):
        case.assert_close(got[text], expected[text].cpu().double())
        case.assert_close(got_first[text], expected_first[text].cpu().double())
    assert not got[2][5].isfinite().all()


@pytest.mark.skipif(len(TARGETS) == 1, reason="the kernel runs elsewhere")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_tiles_without_rows_do_nothing(dtype):
    from fastreward.kernels.attention import AttentionTables, launch_attention

    case = Case(RAGGED, backend="triton", device=TARGETS[-1].values[1], dtype=dtype)
    tables = case.layout.tables
    padded = torch.cat([tables.tiles, tables.tiles.new_zeros(3, 4)])
    got = launch_attention(
        *case.qkv.unbind(1),
        AttentionTables(tables.block_m, tables.shared, padded, tables.offsets),
        window=None,
        first_token=False,
    )
    assert torch.equal(got, case.run())


# --------------------------------------------------------------------------- the choice


def test_on_a_cpu_it_is_sdpa_unless_another_is_named():
    assert resolve_attention(None, CPU, torch.bfloat16, 32) == "sdpa"
    assert resolve_attention("sdpa", CPU, torch.float32, 20) == "sdpa"
    if triton_interpreted():
        assert resolve_attention("triton", CPU, torch.float32, 32) == "triton"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_cuda_it_is_triton_then_varlen_then_sdpa():
    cuda = torch.device("cuda", 0)
    assert resolve_attention(None, cuda, torch.bfloat16, 64) == "triton"
    assert resolve_attention(None, cuda, torch.float32, 64) == "triton"
    assert resolve_attention(None, cuda, torch.bfloat16, 24) == "varlen"
    assert resolve_attention(None, cuda, torch.float32, 24) == "sdpa"
    assert resolve_attention(None, cuda, torch.bfloat16, 20) == "sdpa"


@pytest.mark.parametrize("backend", ["triton", "flash", "varlen"])
def test_one_that_cannot_run_is_refused_with_reason_and_remedy(backend):
    if backend == "triton" and triton_interpreted():
        with pytest.raises(BackendUnavailableError, match=r"16, 32, 64, 128.*got 48\. Pass attention=None"):
            resolve_attention(backend, CPU, torch.float32, 48)
        return
    with pytest.raises(BackendUnavailableError, match=rf"attention='{backend}'.*Pass attention=None"):
        resolve_attention(backend, CPU, torch.bfloat16, 32)
    with pytest.raises(BackendUnavailableError, match=rf"CUDA device.*attention='{backend}', got cpu"):
        attention_layout(torch.zeros(1, dtype=torch.int32), [], backend=backend)


def test_a_name_that_is_none_is_an_input_error():
    with pytest.raises(InputError, match="triton, flash, varlen, sdpa"):
        resolve_attention("cudnn", CPU, torch.float32, 32)
    with pytest.raises(InputError, match="triton, flash, varlen, sdpa"):
        attention_availability("cudnn")
    with pytest.raises(InputError, match="triton, flash, varlen, sdpa"):
        attention_layout(torch.zeros(1, dtype=torch.int32), [], backend="cudnn")


@pytest.mark.parametrize("backend", ATTENTION_BACKENDS)
def test_availability_gives_a_version_or_a_reason(backend):
    state = attention_availability(backend)
    assert state.detail
    assert state.usable or "no GPU" in state.detail or "install" in state.detail
    if backend == "sdpa":
        assert state.usable
        assert torch.__version__ in state.detail


# --------------------------------------------------------------------------- flash-attn's two packages

# What both compute, with their rule that a window counts from the end of the keys where queries are fewer.
FLASH_BODY = """
import torch

def attend(q, k, v, cu_q, cu_k, max_q, max_k, window):
    left, right = (None, None) if window in ((-1, -1), (None, None)) else window
    out = torch.zeros_like(q)
    for n in range(len(cu_q) - 1):
        queries, keys = q[cu_q[n]:cu_q[n + 1]], k[cu_k[n]:cu_k[n + 1]]
        assert len(queries) <= max_q and len(keys) <= max_k
        if not len(keys):
            continue
        i = torch.arange(len(queries))[:, None] + len(keys) - len(queries)
        j = torch.arange(len(keys))[None]
        seen = torch.ones(len(queries), len(keys), dtype=torch.bool)
        if left is not None:
            seen = (j >= i - left) & (j <= i + right)
        scores = torch.einsum("qhd,khd->hqk", queries, keys) * q.shape[-1] ** -0.5
        weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
        out[cu_q[n]:cu_q[n + 1]] = torch.einsum("hqk,khd->qhd", weights, v[cu_k[n]:cu_k[n + 1]])
    return out
"""
FLASH_2 = (
    FLASH_BODY
    + """
def flash_attn_varlen_func(
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, dropout_p=0.0, softmax_scale=None,
    causal=False, window_size=(-1, -1), softcap=0.0, alibi_slopes=None, deterministic=False,
    return_attn_probs=False, block_table=None,
):
    assert dropout_p == 0.0 and softmax_scale is None and not causal and not return_attn_probs
    return attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size)
"""
)
FLASH_4 = (
    FLASH_BODY
    + """
def flash_attn_varlen_func(
    q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None, max_seqlen_k=None,
    min_seqlen_k=None, seqused_q=None, seqused_k=None, gather_kv_indices=None, page_table=None,
    softmax_scale=None, causal=False, window_size=(None, None), learnable_sink=None, softcap=0.0,
    num_splits=1, pack_gqa=None, deterministic=False, return_lse=False,
):
    assert qv is None and min_seqlen_k is None and softmax_scale is None and not causal
    return attend(q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, window_size), None
"""
)


@pytest.fixture(params=["flash-attn", "flash-attn-4"])
def flash_stand_in(request, tmp_path, monkeypatch):
    """A package with the signature, the return value and the window rule of the real one, for CPU tensors."""
    folder = tmp_path / "flash_attn"
    if request.param == "flash-attn-4":
        folder = folder / "cute"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text(FLASH_2 if request.param == "flash-attn" else FLASH_4)
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    importlib.invalidate_caches()
    flash_functions.cache_clear()
    yield request.param
    flash_functions.cache_clear()
    for name in [name for name in sys.modules if name.split(".")[0] == "flash_attn"]:
        monkeypatch.delitem(sys.modules, name)


@pytest.mark.parametrize("window", [None, 0, 3, 64])
def test_flash_attn_is_called_with_what_it_takes(flash_stand_in, window):
    assert list(flash_functions()) == [flash_stand_in]
    case = Case((5, 0, 130, 1))
    offsets = Offsets(case.cu_seqlens, case.cu_seqlens, 130, 130)
    got = flash_attention(*case.qkv.unbind(1), offsets, window, batch_invariant=False)
    case.assert_close(got.flatten(1), case.oracle(window))


@pytest.mark.parametrize("window", [None, 0, 3, 64])
def test_flash_attn_gets_one_query_a_text_and_the_keys_that_it_sees(flash_stand_in, window):
    case = Case((5, 0, 130, 1))
    got = first_token_by_offsets(
        partial(flash_attention, batch_invariant=False),
        case.first_queries(),
        case.qkv[:, 1:],
        case.cu_seqlens,
        case.lengths,
        window,
    )
    case.assert_close(got, case.oracle(window, first_token=True))


@pytest.mark.parametrize("window", [None, 3])
def test_the_keys_that_one_query_a_text_sees_are_found_without_copies_from_the_host(window):
    """Meta tensors stand for a GPU's: their values cannot be read, and none of the host's may meet them."""
    lengths, seen = (5, 0, 130, 1), []

    class DeviceOnly(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            tensors = [x for x in tree_flatten((args, kwargs, result))[0] if isinstance(x, Tensor)]
            assert {x.device.type for x in tensors} <= {"meta"}
            return result

    def attend(query, key, value, offsets, window):
        seen.append(len(key))
        return torch.empty_like(query)

    query, key_value = torch.empty(4, 2, 16, device="meta"), torch.empty(136, 2, 2, 16, device="meta")
    cu_seqlens = torch.empty(5, dtype=torch.int32, device="meta")
    with DeviceOnly():
        got = first_token_by_offsets(attend, query, key_value, cu_seqlens, lengths, window)
    assert got.shape == (4, 32)
    assert seen == [136 if window is None else 4 + 0 + 4 + 1]


@pytest.mark.usefixtures("flash_stand_in")
def test_flash_attn_without_a_gpu_is_named_with_its_reason():
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    state = attention_availability("flash")
    assert not state.usable
    assert "no GPU" in state.detail
    with pytest.raises(BackendUnavailableError, match="no GPU"):
        resolve_attention("flash", CPU, torch.bfloat16, 32)


# --------------------------------------------------------------------------- costs and bad input


@pytest.mark.parametrize("window", [None, 0, 2, 9])
def test_operations_are_counted_over_the_pairs_that_see_each_other(window):
    lengths = (5, 1, 0, 11)
    pairs = [sum(window is None or abs(i - j) <= window for i in range(n) for j in range(n)) for n in lengths]
    first = [sum(window is None or j <= window for j in range(n)) for n in lengths]
    assert attention_flops(lengths, 3, 32, window=window) == 4 * 3 * 32 * sum(pairs)
    assert attention_flops(lengths, 3, 32, window=window, first_token=True) == 4 * 3 * 32 * sum(first)


def test_bytes_are_queries_keys_values_and_the_result():
    assert attention_bytes((5, 0, 2), 3, 32, torch.bfloat16) == 4 * 7 * 96 * 2
    assert attention_bytes((5, 0, 2), 3, 32, torch.float32, first_token=True) == (2 * 7 + 2 * 3) * 96 * 4


BAD_QKV = {
    "three axes": (lambda c: {"qkv": c.qkv[0]}, "qkv"),
    "two parts": (lambda c: {"qkv": c.qkv[:, 1:]}, r"\[5, 3, H"),
    "other tokens": (lambda c: {"qkv": c.qkv[:-1]}, r"\[5, 3, H"),
    "no head": (lambda c: {"qkv": c.qkv[:, :, :0]}, "qkv"),
    "fp64": (lambda c: {"qkv": c.qkv.double()}, "float32, float16 or bfloat16"),
    "transposed": (lambda c: {"qkv": c.qkv.transpose(2, 3)}, "contiguous"),
    "negative window": (lambda c: {"window": -1}, "window of 0 or more"),
}


@pytest.mark.parametrize("name", BAD_QKV)
def test_bad_queries_keys_and_values_are_named_with_what_was_expected(name):
    case = Case((2, 3), 2, 8)
    arguments = {"qkv": case.qkv, "layout": case.layout}
    packed_attention(**arguments)
    change, message = BAD_QKV[name]
    with pytest.raises(InputError, match=message):
        packed_attention(**{**arguments, **change(case)})


BAD_FIRST = {
    "query's texts": (lambda c: {"query": c.first_queries()[:1]}, r"query \[2, 2, 8\]"),
    "query's heads": (lambda c: {"query": c.first_queries()[:, :1]}, r"query \[2, 2, 8\]"),
    "query's dtype": (lambda c: {"query": c.first_queries().half()}, "like key_value"),
    "query transposed": (lambda c: {"query": torch.zeros(2, 8, 2).transpose(1, 2)}, "contiguous"),
    "three parts": (lambda c: {"key_value": c.qkv}, r"key_value \[5, 2, H"),
    "negative window": (lambda c: {"window": -1}, "window of 0 or more"),
}


@pytest.mark.parametrize("name", BAD_FIRST)
def test_bad_first_queries_are_named_with_what_was_expected(name):
    case = Case((2, 3), 2, 8)
    arguments = {"query": case.first_queries(), "key_value": case.qkv[:, 1:], "layout": case.layout}
    first_token_attention(**arguments)
    change, message = BAD_FIRST[name]
    with pytest.raises(InputError, match=message):
        first_token_attention(**{**arguments, **change(case)})


BAD_LAYOUT = {
    "int64 offsets": ({"cu_seqlens": torch.tensor([0, 2, 5])}, "int32"),
    "an offset too few": ({"cu_seqlens": torch.tensor([0, 5], dtype=torch.int32)}, r"cu_seqlens \[3\]"),
    "offsets from 1": ({"cu_seqlens": torch.tensor([1, 3, 6], dtype=torch.int32)}, "begin at 0"),
    "other lengths": (
        {"lengths": [3, 2]},
        r"differences of cu_seqlens, from text 0 on \[2, 3\], got \[3, 2\]",
    ),
    "negative length": ({"lengths": [7, -2]}, "0 or more"),
}


@pytest.mark.parametrize("name", BAD_LAYOUT)
def test_a_layout_that_does_not_fit_is_named_with_what_was_expected(name):
    arguments = {
        "cu_seqlens": torch.tensor([0, 2, 5], dtype=torch.int32),
        "lengths": [2, 3],
        "backend": "sdpa",
    }
    attention_layout(**arguments)
    change, message = BAD_LAYOUT[name]
    with pytest.raises(InputError, match=message):
        attention_layout(**{**arguments, **change})


def test_of_many_lengths_16_are_shown_from_the_first_wrong_one_on():
    lengths = [*range(40)]
    cu_seqlens = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)
    attention_layout(cu_seqlens, lengths, backend="sdpa")
    lengths[20], lengths[21] = lengths[21], lengths[20]
    with pytest.raises(InputError) as error:
        attention_layout(cu_seqlens, lengths, backend="sdpa")
    assert str([*range(20, 36)]) in error.value.expected
    assert "from text 20 on" in error.value.expected
    assert error.value.received == str(lengths[20:36])


def test_varlen_without_windows_names_back_ends_that_have_them(monkeypatch):
    monkeypatch.setattr(attention_backends, "_varlen_parameters", frozenset)
    offsets = attention_backends.Offsets(torch.tensor([0, 2]), torch.tensor([0, 2]), 2, 2)
    qkv = [torch.ones(2, 1, 16)] * 3
    with pytest.raises(BackendUnavailableError, match="Pass attention='sdpa' or 'triton'"):
        attention_backends.varlen_attention(*qkv, offsets, 1, batch_invariant=False)


@pytest.mark.skipif(("triton", "cpu") not in targets(), reason="only in the interpreter")
def test_a_head_size_that_the_kernel_does_not_have_is_refused_at_the_door():
    case = Case((2, 3), 2, 24, backend="triton")
    with pytest.raises(BackendUnavailableError, match=r"16, 32, 64, 128.*got 24"):
        case.run()
