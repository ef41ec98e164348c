"""The encoder with graphs gives what it gives without: on a CPU a recorder runs the recorded work anew."""

import random
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import accumulate

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fastreward.encoders.buckets import Bucket, fill_up, most_tiles, token_bucket
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.graphs import GraphedEncoder
from fastreward.encoders.packed import PackedEncoder
from fastreward.encoders.recording import CudaGraphRecorder
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.attention_tiles import attention_tables, cut
from fastreward.ops.pooled_cosine import POOLINGS
from fastreward.packing import pack

CPU = torch.device("cpu")
META = torch.device("meta")
LENGTHS = [0, 40, 3, 1, 17, 0, 64, 65, 130, 2, 0]  # 322 tokens

# Vectors and scores; hidden states are of order 1. Products of a bucket's rows may be computed by another
# kernel than those of the call's rows: fp32 sums in another order, 16-bit results rounded to a neighbour.
LARGEST = {torch.float32: 2e-6, torch.bfloat16: 2e-3, torch.float16: 2e-3}
LARGEST_HIDDEN = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}


class Rerun:
    """Records a function by keeping it. A recording is said to hold `bytes_each` bytes."""

    attention = ("sdpa",)

    def __init__(self, bytes_each=0):
        self.bytes_each, self.living, self.released = bytes_each, 0, 0
        self.failures = []  # what the next recordings raise

    @property
    def num_bytes(self):
        return self.bytes_each * self.living

    def capture(self, compute):
        if self.failures:
            raise self.failures.pop()
        compute()
        self.living += 1
        return Kept(compute)

    def release(self):
        self.living = 0
        self.released += 1


class Kept:
    def __init__(self, compute):
        self.replay = compute


def encoder_of(folder, device=CPU, dtype=torch.float32, **options):
    return PackedEncoder(load_checkpoint(folder), device, dtype, **options)


def graphed_of(encoder, recorder=None, **limits):
    return GraphedEncoder(encoder, recorder=recorder or Rerun(), **limits)


def batch_of(lengths, device=CPU, seed=0):
    rng = random.Random(seed)
    return pack([[rng.randrange(100) for _ in range(length)] for length in lengths], device)


def seen(graphed, *batches):
    """Let the batches' buckets occur once, so that their next calls are recorded."""
    for batch in batches:
        for every_token in (False, True):
            graphed._filled(batch, every_token=every_token)


def scored(encoder, batch, seed=0):
    generator = torch.Generator().manual_seed(seed)
    references = torch.randn(5, encoder.hidden_size, generator=generator).to(encoder.device)
    index = torch.randint(5, (len(batch.lengths),), generator=generator).to(encoder.device)
    return encoder.cosine(batch, references, index)


def assert_same(graphed, encoder, batch):
    dtype = encoder.dtype
    for got, expected, largest in (
        (graphed.embed(batch), encoder.embed(batch), LARGEST[dtype]),
        (scored(graphed, batch), scored(encoder, batch), LARGEST[dtype]),
        (graphed.hidden(batch), encoder.hidden(batch), LARGEST_HIDDEN[dtype]),
    ):
        assert (got.shape, got.dtype) == (expected.shape, expected.dtype)
        error = (got.double() - expected.double()).abs()
        assert error.max() <= largest
        assert error.square().mean().sqrt() <= largest / 4


# --------------------------------------------------------------------------- results


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_results_are_those_without_graphs(tiny_checkpoint, family, pooling, dtype):
    encoder = encoder_of(tiny_checkpoint(family=family), dtype=dtype, pooling=pooling)
    graphed = graphed_of(encoder)
    for seed, lengths in enumerate([LENGTHS, [300], [5] * 30, LENGTHS[::-1]]):
        batch = batch_of(lengths, seed=seed)
        seen(graphed, batch)
        assert_same(graphed, encoder, batch)
    assert graphed.stats.plain == {}
    assert graphed.stats.replays == 12


@pytest.mark.parametrize("config", [{"num_hidden_layers": 0}, {"hidden_size": 1056, "num_hidden_layers": 1}])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_encoders_that_leave_no_norm_to_the_pooling(tiny_checkpoint, config, pooling):
    encoder = encoder_of(tiny_checkpoint(**config), pooling=pooling)
    graphed = graphed_of(encoder)
    seen(graphed, batch_of([3, 4]), batch_of(LENGTHS))
    first = graphed.hidden(batch_of([3, 4]))
    kept = first.clone()
    assert_same(graphed, encoder, batch_of(LENGTHS))
    assert_same(graphed, encoder, batch_of([4, 3], seed=1))
    assert torch.equal(first, kept)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_with_batch_invariant_not_a_bit_differs(tiny_folder, pooling):
    encoder = encoder_of(tiny_folder, pooling=pooling, batch_invariant=True)
    graphed = graphed_of(encoder)
    for seed, lengths in enumerate([LENGTHS, [1], [300, 1]]):
        batch = batch_of(lengths, seed=seed)
        seen(graphed, batch)
        assert torch.equal(graphed.embed(batch), encoder.embed(batch))
        assert torch.equal(scored(graphed, batch), scored(encoder, batch))
        assert torch.equal(graphed.hidden(batch), encoder.hidden(batch))


def test_what_a_call_returned_is_left_alone_by_later_calls(tiny_folder):
    graphed = graphed_of(encoder_of(tiny_folder))
    batch = batch_of(LENGTHS)
    seen(graphed, batch)
    results = [graphed.hidden(batch), graphed.embed(batch), scored(graphed, batch)]
    kept = [result.clone() for result in results]
    for seed in range(3):
        other = batch_of(LENGTHS, seed=seed + 1)
        graphed.hidden(other), graphed.embed(other), scored(graphed, other)
    assert all(torch.equal(result, before) for result, before in zip(results, kept, strict=True))


def test_what_the_buffers_held_before_matters_to_no_bit(tiny_folder):
    graphed = graphed_of(encoder_of(tiny_folder))
    small, large = batch_of([3, 5]), batch_of([30, 31])
    seen(graphed, small, large)
    before = graphed.embed(small)
    graphed.embed(large)
    assert torch.equal(graphed.embed(small), before)
    with torch.inference_mode():
        for buffer in graphed._buffers:
            buffer.fill_(10**6 if buffer.dtype == torch.int32 else torch.nan)
    assert torch.equal(graphed.embed(small), before)


# --------------------------------------------------------------------------- buckets


def test_a_recording_serves_all_batches_of_its_bucket(tiny_folder):
    graphed = graphed_of(encoder_of(tiny_folder))
    seen(graphed, batch_of([65]), batch_of([1] * 65))
    for seed, lengths in enumerate([[65], [128], [1] * 65, [0, 100, 0], [60, 60]]):
        for compute in (graphed.hidden, graphed.embed):
            compute(batch_of(lengths, seed=seed))
    assert graphed.stats.captures == 2  # a text in 16 tokens, and more texts
    assert graphed.stats.replays == 10


def test_with_cls_pooling_hidden_states_have_a_recording_of_their_own(tiny_folder):
    graphed = graphed_of(encoder_of(tiny_folder, pooling="cls"))
    seen(graphed, batch_of([20]))
    for _ in range(2):
        graphed.embed(batch_of([20]))
        scored(graphed, batch_of([21]))
        graphed.hidden(batch_of([22]))
    assert graphed.stats.captures == 2


@given(st.integers(1, 10**6))
def test_a_bucket_of_tokens_is_near_and_holds_itself(num_tokens):
    bucket = token_bucket(num_tokens)
    assert bucket % 64 == 0
    assert token_bucket(bucket) == bucket
    assert num_tokens <= bucket <= (1.25 * num_tokens if num_tokens > 1024 else max(64, 2 * num_tokens))


LENGTH_LISTS = st.lists(st.integers(0, 300), min_size=1, max_size=60).filter(any)


@settings(max_examples=60, deadline=None)
@given(LENGTH_LISTS, st.booleans(), st.booleans())
def test_a_filled_batch_has_its_bucket_s_shape_and_begins_as_the_batch_does(lengths, tiled, invariant):
    if tiled:
        pytest.importorskip("triton")
    filled = fill_up(batch_of(lengths), tiled=tiled, batch_invariant=invariant, every_token=True)
    if filled is None:
        assert len(lengths) > sum(lengths) / 2
        return
    bucket = filled.bucket
    assert sum(filled.lengths) == bucket.num_tokens
    assert len(filled.lengths) == bucket.num_texts
    assert list(filled.lengths[: len(lengths)]) == lengths
    assert max(filled.lengths[len(lengths) :], default=0) <= 64
    assert len(filled.numbers) == bucket.num_numbers
    offsets = [0, *accumulate(filled.lengths)]
    assert filled.numbers[: len(offsets)].tolist() == offsets
    if tiled:
        tiles = filled.numbers[bucket.first_tile :].reshape(-1, 4).tolist()
        assert [row for first, last, _, _ in tiles for row in range(first, last)] == [*range(offsets[-1])]


@settings(max_examples=200, deadline=None)
@given(LENGTH_LISTS, st.booleans())
@example([65, 0, 0, 3], False)
@example([600, 0, 600], False)
@example([32, 32, 0, 64, 0, 1], False)
def test_a_filled_batch_is_cut_as_the_attention_cuts_it(lengths, invariant):
    pytest.importorskip("triton")
    filled = fill_up(batch_of(lengths), tiled=True, batch_invariant=invariant, every_token=True)
    if filled is None:
        return
    bucket = filled.bucket
    tables = attention_tables(lengths, batch_invariant=invariant)
    assert (bucket.block_m, bucket.shared) == (tables.block_m, tables.shared)
    tiles = filled.numbers[bucket.first_tile :].reshape(-1, 4)
    own = tables.tiles.numpy()[:-1]  # with the last one filler may share rows
    assert np.array_equal(tiles[: len(own)], own)
    used = tiles[: int((tiles[:, 0] < tiles[:, 1]).sum())]
    assert used[-1, 1] == bucket.num_tokens
    assert not tiles[len(used) :].any()


@pytest.mark.parametrize("lengths", [[1], [57] * 9, [41] * 25, [41] * 50 + [1] * 3])
def test_the_batches_that_need_the_most_filler_in_the_largest_bucket(tiny_folder, lengths):
    encoder = encoder_of(tiny_folder)
    batch = batch_of(lengths)
    graphed = graphed_of(encoder, max_tokens=batch.num_tokens)
    seen(graphed, batch)
    assert_same(graphed, encoder, batch)
    assert graphed.stats.plain == {}


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 31, 32, 33, 63, 64, 65, 66, 127, 129, 200]), max_size=80),
    st.sampled_from([64, 128]),
    st.booleans(),
)
@example([65, 1] * 20, 64, True)
@example([33] * 20, 64, True)
@example([1] * 20, 128, False)
def test_no_batch_needs_more_tiles_than_its_bucket_has(lengths, block_m, shared):
    offsets = np.array([0, *accumulate(lengths)], dtype=np.int32)
    num_tiles = len(cut(offsets, block_m, shared=shared))
    assert num_tiles <= most_tiles(sum(lengths), len(lengths), block_m, shared=shared)


def test_the_largest_bucket_has_the_most_numbers():
    sizes = {token_bucket(n) for n in range(1, 16385, 7)}
    numbers = [
        Bucket(size, size // fewer, every_token=True, block_m=block_m, shared=shared).num_numbers
        for size in sizes
        for fewer in (1, 16)
        for block_m, shared in ((64, True), (64, False), (128, False))
    ]
    assert max(numbers) == Bucket(16384, 16384, every_token=True, block_m=64, shared=False).num_numbers


# --------------------------------------------------------------------------- calls without graphs


def test_calls_without_graphs_are_right_and_counted_by_their_reason(tiny_folder):
    encoder = encoder_of(tiny_folder)
    graphed = graphed_of(encoder, max_tokens=100)
    for lengths in ([101], [0, 0], [1] + [0] * 100, []):
        batch = batch_of(lengths)
        assert torch.equal(graphed.embed(batch), encoder.embed(batch))
    assert graphed.stats.plain == {"tokens": 1, "empty": 2, "texts": 1}
    assert graphed.stats.captures == 0
    for _ in range(2):
        graphed.embed(batch_of([100]))
    assert graphed.stats.captures == 1


def test_a_bucket_is_recorded_when_it_occurs_again_and_not_before(tiny_folder):
    encoder = encoder_of(tiny_folder)
    graphed = graphed_of(encoder)
    for length in (60, 120, 250):
        assert torch.equal(graphed.embed(batch_of([length])), encoder.embed(batch_of([length])))
    assert (graphed.stats.captures, graphed.stats.plain, graphed.graph_bytes) == (0, {"first": 3}, 0)
    for length in (59, 121):
        assert_same(graphed, encoder, batch_of([length]))
    assert (graphed.stats.captures, graphed.stats.replays, graphed.stats.plain) == (2, 6, {"first": 3})
    graphed.release()
    graphed.embed(batch_of([60]))
    assert (graphed.stats.captures, graphed.stats.plain) == (3, {"first": 3})


def test_the_bucket_that_occurred_longest_ago_is_forgotten(tiny_folder, monkeypatch):
    monkeypatch.setattr("fastreward.encoders.graphs.MAX_SEEN", 2)
    graphed = graphed_of(encoder_of(tiny_folder))
    for length in (60, 120, 60, 250):  # 250 has 120 forgotten
        graphed.embed(batch_of([length]))
    assert (graphed.stats.captures, graphed.stats.plain) == (1, {"first": 3})
    graphed.embed(batch_of([120]))
    assert (graphed.stats.captures, graphed.stats.plain) == (1, {"first": 4})
    assert len(graphed._seen) == 2


def test_whether_the_caller_records_is_asked_about_the_encoder_s_device(tiny_folder, monkeypatch):
    devices = []

    @contextmanager
    def on(device):
        devices.append(device)
        yield
        devices.pop()

    monkeypatch.setattr(torch.cuda, "device", on)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: devices == [second])
    graphed, second = graphed_of(encoder_of(tiny_folder)), torch.device("cuda", 1)
    graphed.device = second
    assert graphed._filled(batch_of([3]), every_token=True) == ("capturing", None)
    graphed.device = torch.device("cuda", 0)
    assert graphed._filled(batch_of([3]), every_token=True) == ("first", None)


def test_an_attention_that_the_recorder_does_not_repeat_rightly_is_not_recorded(tiny_folder):
    encoder, recorder = encoder_of(tiny_folder), Rerun()
    recorder.attention = ("triton",)
    graphed = graphed_of(encoder, recorder)
    batch = batch_of([3, 4])
    assert torch.equal(graphed.embed(batch), encoder.embed(batch))
    assert graphed.stats.plain == {"attention": 1}


# --------------------------------------------------------------------------- memory


def test_the_recording_that_was_used_longest_ago_is_dropped(tiny_folder):
    graphed = graphed_of(encoder_of(tiny_folder), max_graphs=2)
    seen(graphed, *(batch_of([length]) for length in (60, 120, 250)))
    for length in (60, 120, 60, 250):  # 250 drops 120
        graphed.embed(batch_of([length]))
    assert (graphed.stats.captures, graphed.stats.evictions) == (3, 1)
    graphed.embed(batch_of([60]))
    assert graphed.stats.captures == 3
    graphed.embed(batch_of([120]))
    assert graphed.stats.captures == 4


def test_a_recording_that_exceeds_the_memory_beside_others_drops_them(tiny_folder):
    encoder = encoder_of(tiny_folder)
    graphed = graphed_of(encoder, Rerun(bytes_each=400_000), max_tokens=256, max_bytes=1_000_000)
    seen(graphed, *(batch_of([length]) for length in (60, 120, 250)))
    for length in (60, 120, 250, 250):
        assert_same(graphed, encoder, batch_of([length]))
        assert graphed.graph_bytes <= 1_000_000
    assert graphed.stats.evictions == 2
    assert graphed.stats.plain == {}


def test_a_recording_that_alone_exceeds_the_memory_is_not_made_again(tiny_folder):
    encoder = encoder_of(tiny_folder)
    graphed = graphed_of(encoder, Rerun(bytes_each=2000), max_bytes=1000)
    seen(graphed, batch_of([60]))
    for _ in range(3):
        assert torch.equal(graphed.embed(batch_of([60])), encoder.embed(batch_of([60])))
    assert (graphed.stats.captures, graphed.stats.plain) == (1, {"memory": 3})
    assert graphed.graph_bytes == 0


NO_MEMORY = [torch.OutOfMemoryError("as the allocator says it")]
if hasattr(torch, "AcceleratorError"):
    NO_MEMORY.append(torch.AcceleratorError("CUDA error: out of memory"))


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
def test_where_memory_runs_out_the_others_go_and_then_the_call_is_a_plain_one(tiny_folder, error):
    encoder, recorder = encoder_of(tiny_folder), Rerun()
    graphed = graphed_of(encoder, recorder)
    seen(graphed, *(batch_of([length]) for length in (60, 120, 250)))
    graphed.embed(batch_of([60]))
    recorder.failures = [error]
    assert_same(graphed, encoder, batch_of([120]))
    assert (graphed.stats.captures, graphed.stats.evictions, graphed.stats.plain) == (2, 1, {})
    recorder.failures = [error, error]
    assert torch.equal(graphed.embed(batch_of([250])), encoder.embed(batch_of([250])))
    assert graphed.stats.plain == {"memory": 1}


OTHER_FAILURES = [RuntimeError("operation not permitted when stream is capturing"), KeyboardInterrupt()]
if hasattr(torch, "AcceleratorError"):
    OTHER_FAILURES.append(torch.AcceleratorError("CUDA error: an illegal memory access was encountered"))


@pytest.mark.parametrize("error", OTHER_FAILURES, ids=lambda error: type(error).__name__)
def test_a_failed_recording_is_raised_and_the_pool_goes_where_no_other_graph_holds_it(tiny_folder, error):
    encoder, recorder = encoder_of(tiny_folder), Rerun()
    graphed = graphed_of(encoder, recorder)
    seen(graphed, batch_of([60]), batch_of([120]))
    recorder.failures = [error]
    with pytest.raises(type(error)):
        graphed.embed(batch_of([60]))
    assert (recorder.released, graphed.graph_bytes, graphed.stats.captures) == (1, 0, 0)
    assert_same(graphed, encoder, batch_of([60]))
    recorder.failures = [error]
    with pytest.raises(type(error)):
        graphed.embed(batch_of([120]))
    assert (recorder.released, graphed.stats.captures) == (1, 1)
    assert_same(graphed, encoder, batch_of([60]))
    assert_same(graphed, encoder, batch_of([120]))
    assert (graphed.stats.captures, graphed.stats.evictions, graphed.stats.plain) == (2, 0, {})


def test_released_memory_is_made_anew_when_it_is_needed(tiny_folder):
    encoder = encoder_of(tiny_folder)
    graphed = graphed_of(encoder, Rerun(bytes_each=1000))
    seen(graphed, batch_of([60]))
    assert graphed.graph_bytes == 0
    assert_same(graphed, encoder, batch_of([60]))
    assert graphed.graph_bytes >= 1000 + 2 * 16384 * encoder.hidden_size * 4
    graphed.release()
    assert graphed.graph_bytes == 0
    assert_same(graphed, encoder, batch_of([60]))
    assert graphed.stats.captures == 2


# --------------------------------------------------------------------------- threads, bad input


@pytest.mark.parametrize("max_graphs", [1, 32])
def test_calls_of_many_threads_do_not_disturb_each_other(tiny_folder, max_graphs):
    encoder = encoder_of(tiny_folder, batch_invariant=True)
    graphed = graphed_of(encoder, max_graphs=max_graphs)
    batches = [batch_of([length, 7], seed=length) for length in range(20, 200, 5)]
    expected = [encoder.embed(batch) for batch in batches]
    seen(graphed, *batches)
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(graphed.embed, batches * 4))
    assert all(torch.equal(a, b) for a, b in zip(got, expected * 4, strict=True))
    assert graphed.stats.replays == len(batches) * 4


def test_a_call_that_fails_leaves_the_way_free_for_the_next(tiny_folder):
    encoder = encoder_of(tiny_folder)
    graphed, batch = graphed_of(encoder), batch_of([3, 4])
    seen(graphed, batch)
    references = torch.randn(2, encoder.hidden_size)
    for _ in range(2):
        with pytest.raises(InputError, match=r"reference_index from 0 to 1, got values from 0 to 2"):
            graphed.cosine(batch, references, torch.tensor([0, 2]))
    done = threading.Thread(target=graphed.embed, args=(batch,), daemon=True)
    done.start()
    done.join(timeout=20)
    assert not done.is_alive()


@pytest.mark.parametrize("limit", ["max_tokens", "max_graphs", "max_bytes"])
def test_a_limit_below_one_is_named(tiny_folder, limit):
    with pytest.raises(InputError, match=rf"{limit} of 1 or more, got 0\. Use the encoder itself"):
        graphed_of(encoder_of(tiny_folder), **{limit: 0})


def test_cuda_graphs_are_refused_where_there_is_no_cuda(tiny_folder):
    with pytest.raises(BackendUnavailableError, match="CUDA for graphs, got cpu"):
        GraphedEncoder(encoder_of(tiny_folder))


@pytest.mark.parametrize("allocator", ["cudaMallocAsync", "pluggable"])
def test_an_allocator_that_cannot_tell_what_a_pool_holds_is_refused(monkeypatch, allocator):
    monkeypatch.setattr(torch._C, "_cuda_getAllocatorBackend", lambda: allocator, raising=False)
    with pytest.raises(
        BackendUnavailableError, match=rf"native allocator .*, got {allocator}\. Pass cuda_gr"
    ):
        CudaGraphRecorder(torch.device("cuda"))


def test_the_native_allocator_and_a_pytorch_that_names_none_are_taken(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getAllocatorBackend", lambda: "native", raising=False)
    assert CudaGraphRecorder(torch.device("cuda")).num_bytes == 0
    monkeypatch.delattr(torch._C, "_cuda_getAllocatorBackend")
    assert CudaGraphRecorder(torch.device("cuda")).num_bytes == 0


# --------------------------------------------------------------------------- what can be recorded


class HostMemory(TorchDispatchMode):
    """Refuses operations on the host's memory. Meta tensors stand for a GPU's: they hold no values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_flatten((args, kwargs, result))[0]:
            if isinstance(x, torch.Tensor) and x.device != META:
                raise AssertionError(f"{function} works on the host's memory")
        return result


class HostValues(TorchFunctionMode):
    """Refuses tensors made of Python's values, as data or as an index: a copy that the other does not see."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        index = args[1] if function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) else ()
        listed = any(isinstance(part, list) for part in (index if isinstance(index, tuple) else [index]))
        if listed or function in (torch.tensor, torch.as_tensor, torch.from_numpy, torch.Tensor.new_tensor):
            raise AssertionError(f"{function} copies values from the host")
        return function(*args, **(kwargs or {}))


@contextmanager
def device_only():
    with HostMemory(), HostValues():
        yield


COPIES = {
    "a new tensor": lambda x: torch.tensor([1.0, 2.0, 3.0]),
    "a copy to the device": lambda x: torch.tensor([0, 2]).to(META),
    "a tensor made there from a list": lambda x: torch.tensor([0, 2], device=META),
    "another such": lambda x: x.new_tensor([0, 2]),
    "a list as an index": lambda x: x[[0, 2]],
}
VALUES = {
    "a read value": lambda x: x[0].item(),
    "a condition": lambda x: x if x.sum() > 0 else -x,
    "a copy to the host": lambda x: x.cpu(),
    "values as a list": lambda x: x.tolist(),
    "a mask as an index": lambda x: x[x > 0],
    "positions of a mask": lambda x: x.nonzero(),
    "lengths that decide a shape": lambda x: x.repeat_interleave(x.int()),
}


@pytest.mark.parametrize("name", COPIES)
def test_the_watch_over_the_device_part_sees_what_is_copied_to_it(name):
    x = torch.zeros(3, device=META)
    with pytest.raises(AssertionError, match="copies values from the host"), device_only():
        COPIES[name](x)


@pytest.mark.parametrize("name", VALUES)
def test_a_tensor_that_holds_no_values_refuses_to_be_read(name):
    x = torch.zeros(3, device=META)
    with pytest.raises(RuntimeError, match="meta"), device_only():
        VALUES[name](x)


@pytest.mark.parametrize("every_token", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("batch_invariant", [False, True])
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_the_device_part_neither_copies_from_the_host_nor_waits_for_values(
    tiny_checkpoint, monkeypatch, family, batch_invariant, pooling, every_token
):
    monkeypatch.setattr("fastreward.encoders.packed.INVARIANT_ROWS", {"meta": 256})
    options = {"pooling": pooling, "batch_invariant": batch_invariant}
    encoder = encoder_of(tiny_checkpoint(family=family), META, **options)
    batch = batch_of(LENGTHS, META)
    prepared = encoder.prepare(batch)
    with torch.inference_mode(), device_only():
        last = encoder.forward(prepared, every_token=every_token)
    rows = len(LENGTHS) if pooling == "cls" and not every_token else sum(LENGTHS)
    assert last.states.shape == (rows, encoder.hidden_size)


# --------------------------------------------------------------------------- on a GPU

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def cuda_encoder(tiny_checkpoint):
    """Make an encoder whose heads have 16 columns, the fewest that the Triton kernel has."""

    def make(family="Bert", dtype=torch.float32, **options):
        folder = tiny_checkpoint(family=family, num_attention_heads=2)
        return encoder_of(folder, torch.device("cuda", torch.cuda.current_device()), dtype, **options)

    return make


def stream_beside(graphed):
    """Make a stream that is not the one that is recorded: PyTorch has 32 and then gives them out again."""
    seen(graphed, batch_of([1], graphed.device))
    graphed.embed(batch_of([1], graphed.device))
    streams = [torch.cuda.Stream(graphed.device) for _ in range(2)]
    return next(stream for stream in streams if stream != graphed._recorder._stream)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("family", ["Bert", "XLMRoberta", "ModernBert"])
def test_cuda_graphs_give_what_the_encoder_gives(cuda_encoder, family, pooling, dtype):
    encoder = cuda_encoder(family, dtype, pooling=pooling)
    graphed = GraphedEncoder(encoder)
    for seed, lengths in enumerate([LENGTHS, [300], [5] * 30, LENGTHS[::-1], [512, 512], LENGTHS]):
        batch = batch_of(lengths, encoder.device, seed)
        seen(graphed, batch)
        assert_same(graphed, encoder, batch)
    assert graphed.stats.plain == {}


@needs_gpu
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_cuda_graphs_with_batch_invariant_differ_in_no_bit(cuda_encoder, pooling):
    encoder = cuda_encoder(dtype=torch.bfloat16, pooling=pooling, batch_invariant=True)
    graphed = GraphedEncoder(encoder)
    for seed, lengths in enumerate([LENGTHS, [1], [300, 1], LENGTHS]):
        batch = batch_of(lengths, encoder.device, seed)
        seen(graphed, batch)
        assert torch.equal(graphed.embed(batch), encoder.embed(batch))
        assert torch.equal(graphed.hidden(batch), encoder.hidden(batch))


@needs_gpu
def test_cuda_graphs_are_right_on_many_streams_in_many_threads(cuda_encoder):
    encoder = cuda_encoder(batch_invariant=True)
    graphed = GraphedEncoder(encoder, max_graphs=3)
    batches = [batch_of([length, 7], encoder.device, length) for length in range(20, 400, 9)]
    expected = [encoder.embed(batch) for batch in batches]
    torch.cuda.synchronize()

    seen(graphed, *batches)
    streams = {stream_beside(graphed) for _ in range(8)}
    assert len(streams) == 8

    def compute(batch):
        stream = streams.pop()  # one of its own for each thread
        with torch.cuda.stream(stream):
            vectors = graphed.embed(batch)
            stream.synchronize()
        streams.add(stream)
        return vectors

    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(compute, batches * 5))
    assert all(torch.equal(a, b) for a, b in zip(got, expected * 5, strict=True))


@needs_gpu
def test_a_graph_is_recorded_while_another_thread_allocates_copies_and_waits(cuda_encoder):
    encoder = cuda_encoder()
    graphed, stop, failures = GraphedEncoder(encoder), threading.Event(), []
    stream = stream_beside(graphed)

    def work():
        try:
            with torch.cuda.stream(stream):
                while not stop.is_set():
                    x = torch.ones(1 << 20).pin_memory().to(encoder.device, non_blocking=True)
                    failures.extend([] if (x @ x).item() == 1 << 20 else ["wrong"])
        except Exception as error:
            failures.append(error)

    other = threading.Thread(target=work)
    other.start()
    try:
        for length in (50, 100, 200, 400, 800):
            batch = batch_of([length], encoder.device)
            assert_same(graphed, encoder, batch)
    finally:
        stop.set()
        other.join()
    assert failures == []


@needs_gpu
def test_memory_of_cuda_graphs_is_counted_and_given_back(cuda_encoder):
    encoder = cuda_encoder()
    buffers = 2 * (1 << 20) * encoder.hidden_size * 4
    assert buffers >= 128 << 20
    graphed = GraphedEncoder(encoder, max_tokens=1 << 20)
    batch = batch_of([300], encoder.device)
    encoder.embed(batch)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before, after = torch.cuda.memory_reserved(), []
    for _ in range(3):
        assert_same(graphed, encoder, batch)
        assert graphed.graph_bytes > buffers
        graphed.release()
        assert graphed.graph_bytes == 0
        torch.cuda.empty_cache()
        after.append(torch.cuda.memory_reserved())
    assert after[0] <= before + (64 << 20)  # cuBLAS may keep a workspace, of up to 32 MiB
    assert after[2] <= after[0]


@needs_gpu
def test_graphs_of_the_caller_s_own_outlive_those_of_the_encoder(cuda_encoder):
    encoder = cuda_encoder()
    x = torch.randn(16, 1 << 17, device=encoder.device, dtype=torch.bfloat16)  # cuBLAS splits so long a sum
    graphed, graph = GraphedEncoder(encoder, max_graphs=1), torch.cuda.CUDAGraph()
    stream = stream_beside(graphed)
    stream.wait_stream(torch.cuda.current_stream(encoder.device))
    with torch.cuda.stream(stream):
        expected = x @ x.T  # its workspace is the stream's, and no pool's
    with torch.cuda.graph(graph, stream=stream):
        product = x @ x.T
    for length in (50, 100, 200):
        assert_same(graphed, encoder, batch_of([length], encoder.device))
    graphed.release()
    torch.cuda.empty_cache()
    others = torch.full((64 << 20,), torch.nan, device=encoder.device)  # where the workspace must not be
    graph.replay()
    torch.testing.assert_close(product, expected)
    assert others.isnan().all()


@needs_gpu
def test_a_caller_that_records_itself_gets_the_plain_launches(cuda_encoder):
    encoder = cuda_encoder()
    graphed, batch = GraphedEncoder(encoder), batch_of([64], encoder.device)
    seen(graphed, batch)
    expected = graphed.embed(batch)
    graph = torch.cuda.CUDAGraph()
    prepared = encoder.prepare(batch)  # the attention's tables are copied before
    with torch.cuda.graph(graph):
        encoder.forward(prepared)
        reason, filled = graphed._filled(batch, every_token=True)
    assert (reason, filled) == ("capturing", None)
    assert torch.equal(graphed.embed(batch), expected)
