"""Graphs over the Triton attention, in the interpreter: what is recorded reads nothing but buffers."""

import random

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from fastreward.backends import triton_interpreted
from fastreward.encoders.buckets import fill_up
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.graphs import GraphedEncoder
from fastreward.encoders.packed import PackedEncoder
from fastreward.ops.attention import (
    AttentionLayout,
    attention_layout,
    first_token_attention,
    packed_attention,
)
from fastreward.packing import pack

pytestmark = pytest.mark.skipif(not triton_interpreted(), reason="only in the interpreter")

CPU = torch.device("cpu")
META = torch.device("meta")
LENGTHS = [0, 67, 3, 1, 0, 8, 2, 0]  # 81 tokens; a text of two tiles, and a tile shared with filler
FAMILIES = {"Bert": {}, "ModernBert": {"local_attention": 16}}
ONE_HEAD = {"hidden_size": 16, "num_attention_heads": 1}  # of 16 columns, the fewest that the kernel has


class Rerun:
    """Records a function by keeping it; its host values are those of the recording, as in a CUDA graph."""

    attention = ("triton",)
    num_bytes = 0

    def capture(self, compute):
        compute()
        return Kept(compute)

    def release(self):
        pass


class Kept:
    def __init__(self, compute):
        self.replay = compute


def encoder_of(tiny_checkpoint, family="Bert", device=CPU, **options):
    folder = tiny_checkpoint(family=family, **ONE_HEAD, **FAMILIES[family])
    return PackedEncoder(load_checkpoint(folder), device, torch.float32, attention="triton", **options)


def batch_of(lengths, device=CPU, seed=0):
    rng = random.Random(seed)
    return pack([[rng.randrange(100) for _ in range(length)] for length in lengths], device)


def fill_up_once(graphed, lengths):
    """Let a bucket occur once, so that its next call is recorded."""
    assert graphed._filled(batch_of(lengths), every_token=False) == ("first", None)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_results_are_those_without_graphs(tiny_checkpoint, family, pooling):
    encoder = encoder_of(tiny_checkpoint, family, pooling=pooling)
    graphed = GraphedEncoder(encoder, recorder=Rerun())
    fill_up_once(graphed, LENGTHS)
    for seed, lengths in enumerate([LENGTHS, [9] * 11]):
        batch = batch_of(lengths, seed=seed)
        vectors = encoder.embed(batch)
        error = (graphed.embed(batch) - vectors).abs()
        assert error.max() <= 2e-6
        assert error.square().mean().sqrt() <= 5e-7
    index = torch.arange(len(lengths)).flip(0)
    expected = (vectors * vectors[index]).sum(dim=1)
    assert (graphed.cosine(batch, vectors, index) - expected).abs().max() <= 2e-6
    assert graphed.stats.captures == 1
    assert graphed.stats.plain == {}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_with_batch_invariant_not_a_bit_differs(tiny_checkpoint, pooling):
    encoder = encoder_of(tiny_checkpoint, pooling=pooling, batch_invariant=True)
    graphed = GraphedEncoder(encoder, recorder=Rerun())
    for seed, lengths in enumerate([LENGTHS, [10, 60]]):
        batch = batch_of(lengths, seed=seed)
        fill_up_once(graphed, lengths)
        assert torch.equal(graphed.embed(batch), encoder.embed(batch))
    assert (graphed.stats.replays, graphed.stats.plain) == (2, {})


def test_batches_whose_attention_is_cut_in_another_way_have_another_bucket():
    buckets = [
        fill_up(batch_of(lengths), tiled=True, batch_invariant=invariant, every_token=True).bucket
        for lengths in ([420, 20], [100] * 4)  # 512 tokens when filled
        for invariant in (False, True)
    ]
    assert {bucket[:2] for bucket in buckets} == {(512, 32)}
    cuts = [(bucket.block_m, bucket.shared) for bucket in buckets]
    assert cuts == [(128, False), (64, False), (64, True), (64, False)]


def layout_of_bucket(batch, *, batch_invariant):
    """The attention's layout of a batch that is filled up, on the CPU."""
    from fastreward.kernels.attention import AttentionTables

    filled = fill_up(batch, tiled=True, batch_invariant=batch_invariant, every_token=True)
    bucket, numbers = filled.bucket, torch.from_numpy(filled.numbers)
    cu_seqlens = numbers[: bucket.num_texts + 1]
    tiles = numbers[bucket.first_tile :].view(-1, 4)
    tables = AttentionTables(bucket.block_m, bucket.shared, tiles, cu_seqlens)
    return AttentionLayout("triton", cu_seqlens, filled.lengths, batch_invariant, tables)


@pytest.mark.filterwarnings("ignore:.*NaN|invalid value:RuntimeWarning")  # NumPy's, in the interpreter
@pytest.mark.parametrize("filler", [1.0, torch.nan])
@pytest.mark.parametrize(
    ("lengths", "batch_invariant", "window"),
    [(LENGTHS, False, None), (LENGTHS, False, 5), (LENGTHS, True, None), ([420, 20], False, 5)],
)
def test_filler_changes_no_bit_of_the_attention(lengths, batch_invariant, window, filler):
    batch = batch_of(lengths)
    plain = attention_layout(
        batch.cu_seqlens, batch.lengths, backend="triton", batch_invariant=batch_invariant
    )
    layout = layout_of_bucket(batch, batch_invariant=batch_invariant)
    assert layout.num_tokens > batch.num_tokens
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(layout.num_tokens, 3, 1, 16, generator=generator)
    qkv[batch.num_tokens :] = filler
    own = qkv[: batch.num_tokens]
    expected = packed_attention(own, plain, window=window)
    got = packed_attention(qkv, layout, window=window)
    assert torch.equal(got[: batch.num_tokens], expected)
    queries = qkv[layout.cu_seqlens[:-1].clamp(max=layout.num_tokens - 1), 0]
    first = first_token_attention(queries, qkv[:, 1:], layout, window=window)
    expected = first_token_attention(queries[: len(lengths)], own[:, 1:], plain, window=window)
    assert torch.equal(first[: len(lengths)], expected)


class DeviceOnly(TorchDispatchMode):
    """Refuses operations on the host's memory. Meta tensors stand for a GPU's: they hold no values."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_flatten((args, kwargs, result))[0]:
            if isinstance(x, torch.Tensor) and x.device != META:
                raise AssertionError(f"{function} works on the host's memory")
        return result


@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("family", FAMILIES)
def test_the_device_part_launches_and_copies_nothing(tiny_checkpoint, monkeypatch, family, pooling):
    launched = []
    monkeypatch.setattr("fastreward.kernels.launch.Launch.run", lambda launch: launched.append(launch))
    encoder = encoder_of(tiny_checkpoint, family, META, pooling=pooling)
    prepared = encoder.prepare(batch_of(LENGTHS, META))
    with torch.inference_mode(), DeviceOnly():
        last = encoder.forward(prepared)
    assert last.states.shape == (len(LENGTHS) if pooling == "cls" else sum(LENGTHS), encoder.hidden_size)
    assert len(launched) == 2  # the attention of two layers
    for launch in launched:
        tensors = [x for x in launch.arguments.values() if isinstance(x, torch.Tensor)]
        assert {x.device for x in tensors} == {META}
    with torch.inference_mode(), pytest.raises(AssertionError, match="host's memory"), DeviceOnly():
        encoder.prepare(batch_of(LENGTHS, META))  # the watch sees the copy of the tables
