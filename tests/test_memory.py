"""Bounds on memory, running out of it, and giving it back."""

import gc
import pickle
import random
import re
import shutil
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import CheckpointError, FastRewardError, InputError
from fastreward.memory import GRAPH_TOKENS, activation_bytes, budget_within, held_bytes, rows_taken
from fastreward.ops.linear import onednn_available, padded_rows
from fastreward.out_of_memory import Computed, DeviceMemoryError, in_order
from fastreward.packing import HostBatch, pack
from fastreward.scorer import Scorer

CPU = torch.device("cpu")
FP32 = {"backend": "packed", "device": "cpu", "dtype": "float32"}
FP32_ROUNDING = 2e-6  # what a score may move by in fp32 when other texts stand beside it
TEXTS = ["the heart", "pumps blood", "insulin lowers glucose", "energy", "", "body " * 30]
MANY = [f"{'heart ' * (n % 23)}{n}" for n in range(40)]

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def plain_products(monkeypatch):
    """Products by PyTorch: oneDNN prepares itself for each number of rows anew, and here are many."""
    for module in ("ops.linear", "memory"):
        monkeypatch.setattr(f"fastreward.{module}.onednn_available", lambda dtype: False)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=FP32_ROUNDING, rtol=0)


def numbers(result):
    """A tensor, or the three of a `MaxSim`, as one tensor."""
    return result if isinstance(result, Tensor) else torch.stack([result.precision, result.recall, result.f1])


class LiveStorage(TorchDispatchMode):
    """Counts the bytes of tensors that operations of this thread made and that are still there."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self._sizes = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, Tensor) and not tensor.is_mkldnn:
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage):
        if storage._cdata not in self._sizes:
            self._sizes[storage._cdata] = storage.nbytes()
            self.now += storage.nbytes()
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, storage):
        self.now -= self._sizes.pop(storage)


def test_live_storage_counts_what_is_there_and_what_was_at_most():
    with LiveStorage() as live:
        kept = torch.zeros(10)
        (torch.zeros(100) + 1).sum().item()
        assert live.now == 40
        assert 840 <= live.peak <= 860
        del kept
        assert live.now == 0


# What an encoder takes


@pytest.mark.parametrize(
    ("family", "dtype", "intermediate_size"),
    [
        ("Bert", torch.float32, 256),
        ("XLMRoberta", torch.float32, 64),
        ("Bert", torch.bfloat16, 64),
        ("ModernBert", torch.float32, 64),
        ("ModernBert", torch.bfloat16, 256),
    ],
)
def test_the_estimate_of_activations_bounds_what_a_batch_takes_and_is_within_twice_of_it(
    tiny_checkpoint, family, dtype, intermediate_size
):
    sizes = {"hidden_size": 64, "intermediate_size": intermediate_size, "num_hidden_layers": 2}
    checkpoint = load_checkpoint(tiny_checkpoint(family=family, **sizes))
    estimate, rows = activation_bytes(checkpoint.architecture, CPU, dtype), rows_taken(CPU, dtype)
    rng = random.Random(0)
    shapes = [[rng.randint(1, 60) for _ in range(16)], [400] * 2, [2] * 200, [257], [33, 8]]
    for pooling in ("mean", "cls"):
        encoder = PackedEncoder(checkpoint, CPU, dtype, pooling=pooling)
        for lengths in shapes:
            batch = pack([[5] * length for length in lengths], CPU)
            for compute in (encoder.embed, encoder.hidden):
                with LiveStorage() as live:
                    compute(batch)
                assert estimate / 2 <= live.peak / rows(batch.num_tokens) <= estimate


def test_the_weights_of_an_encoder_are_counted_from_its_tensors(tiny_checkpoint):
    folder = tiny_checkpoint()
    stored = load_file(folder / "model.safetensors")
    used = {
        name: t.numel() for name, t in stored.items() if "pooler" not in name and "token_type" not in name
    }
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        encoder = PackedEncoder(load_checkpoint(folder), CPU, dtype)
        assert held_bytes(encoder) == size * sum(used.values())
    assert held_bytes(encoder, encoder, [encoder]) == held_bytes(encoder)


def test_tensors_that_share_memory_and_cycles_count_once():
    weight = torch.zeros(4, 5)
    parts = {"rows": [weight[0], weight[1:]], "other": torch.zeros(3, dtype=torch.int8)}
    parts["itself"] = parts
    assert held_bytes(parts, weight) == 83


# A bound


@given(
    room=st.integers(0, 10**6),
    weights=st.integers(0, 10**5),
    caches=st.integers(0, 10**5),
    token_bytes=st.integers(1, 5000),
    batch_tokens=st.integers(1, 10**5),
    text_tokens=st.integers(1, 512),
    graphs=st.booleans(),
)
def test_a_budget_fits_into_the_bound_and_wastes_no_room(
    room, weights, caches, token_bytes, batch_tokens, text_tokens, graphs
):
    arguments = {
        "weights": weights,
        "caches": caches,
        "token_bytes": token_bytes,
        "batch_tokens": batch_tokens,
        "text_tokens": text_tokens,
        "graphs": graphs,
    }
    try:
        budget = budget_within(room, **arguments)
    except InputError as error:
        least = int(re.match(r"max_bytes of ([\d,]+) at least", error.expected)[1].replace(",", ""))
        assert least > room
        budget, room = budget_within(least, **arguments), least
    captured = budget.graph_tokens if graphs else 0
    held = weights + caches + (budget.batch_tokens + captured) * token_bytes
    assert held <= room
    assert captured <= GRAPH_TOKENS
    assert budget.batch_tokens == batch_tokens or held + (2 if graphs else 1) * token_bytes > room
    assert budget.batch_tokens >= min(text_tokens, batch_tokens)


@given(room=st.integers(0, 10**6), token_bytes=st.integers(1, 5000), batch_tokens=st.integers(1, 4096))
def test_a_budget_of_rows_that_are_rounded_up_fits_into_the_bound(room, token_bytes, batch_tokens):
    arguments = {"weights": 7, "caches": 11, "token_bytes": token_bytes, "batch_tokens": batch_tokens}
    least = 18 + padded_rows(250) * token_bytes
    if room < least:
        with pytest.raises(InputError, match=rf"max_bytes of {least:,} at least"):
            budget_within(room, **arguments, text_tokens=250, rows=padded_rows)
        room = least
    budget = budget_within(room, **arguments, text_tokens=250, rows=padded_rows)
    assert 18 + padded_rows(budget.batch_tokens) * token_bytes == 18 + budget.scratch_bytes <= room
    more = budget.batch_tokens + 1
    assert more > batch_tokens or 18 + padded_rows(more) * token_bytes > room


def bounded(folder, **options):
    """A scorer of 1,000 bytes of caches and of as little memory as it can do with."""
    options = {"reference_cache_bytes": 500, "recent_bytes": 500, "max_seq_length": 40, **FP32, **options}
    with pytest.raises(
        InputError, match=r"max_bytes of [\d,]+ at least.* got 10\. Raise it, or lower"
    ) as caught:
        Scorer(folder, max_bytes=10, **options)
    least = int(re.search(r"max_bytes of ([\d,]+)", str(caught.value))[1].replace(",", ""))
    with pytest.raises(InputError, match=rf"{least:,} at least"):
        Scorer(folder, max_bytes=least - 1, **options)
    return Scorer(folder, max_bytes=least, **options), least


@pytest.mark.filterwarnings("ignore:Texts longer than")
@pytest.mark.parametrize("products", ["plain", "onednn"])
def test_scores_within_a_bound_are_the_same_and_memory_stays_below_it(tiny_folder, request, products):
    if products == "plain":
        request.getfixturevalue("plain_products")
    elif not onednn_available(torch.float32):
        pytest.skip("no oneDNN here")
    scorer, least = bounded(tiny_folder)
    assert scorer._engine.batcher.max_batch_tokens == (40 if products == "plain" else 48)
    free = Scorer(tiny_folder, max_seq_length=40, **FP32)
    references = MANY[::-1]
    choices = [[reference, "heart"] for reference in references]
    results = 4 * 4 * 32 * len(MANY)  # [N, D] of completions and of references, and once more to order them
    for work in (
        lambda scorer: scorer.score(MANY, references),
        lambda scorer: scorer.score(MANY, choices),
        lambda scorer: scorer.similarity(MANY, references[:7]),
    ):
        with LiveStorage() as live:
            scores = work(scorer)
        assert live.peak + held_bytes(scorer._engine.encoder) <= least + 2 * results
        close(scores, work(free))


def test_the_bound_is_for_all_replicas_on_a_device(tiny_folder):
    one, least = bounded(tiny_folder)
    two, of_two = bounded(tiny_folder, device=["cpu", "cpu"])
    assert of_two == 2 * least - 1000  # the caches are shared
    assert two._engine.batcher.max_batch_tokens == one._engine.batcher.max_batch_tokens
    close(two.score(MANY[:9], MANY[:9]), one.score(MANY[:9], MANY[:9]))


def test_maxsim_within_a_bound_is_the_same(tiny_folder):
    scorer, _ = bounded(tiny_folder, max_seq_length=60)
    free = Scorer(tiny_folder, max_seq_length=60, **FP32)
    ours, expected = (numbers(each.maxsim(MANY, MANY[::-1])) for each in (scorer, free))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_a_generous_bound_changes_no_batch(tiny_folder):
    scorer = Scorer(tiny_folder, max_bytes=2**40, max_batch_tokens=777, **FP32)
    assert scorer._engine.batcher.max_batch_tokens == 777


# Running out


class Crowded:
    """An encoder on a device that has memory for `limit` tokens at a time."""

    def __init__(self, encoder, limit):
        self.limit = limit
        self.failures = []
        self.texts = []
        self.left_over = None
        self._encoder = encoder

    def __getattr__(self, name):
        return getattr(self._encoder, name)

    def embed(self, batch):
        return self._when_there_is_room(self._encoder.embed, batch)

    def hidden(self, batch):
        return self._when_there_is_room(self._encoder.hidden, batch)

    def cosine(self, batch, *references):
        return self._when_there_is_room(lambda batch: self._encoder.cosine(batch, *references), batch)

    def _when_there_is_room(self, compute, batch):
        assert self.left_over is None or self.left_over() is None, "the failed attempt still holds memory"
        if batch.num_tokens > self.limit:
            activations = torch.zeros(batch.num_tokens)
            self.left_over = weakref.ref(activations)
            self.failures.append(batch.num_tokens)
            raise torch.OutOfMemoryError(f"tried to allocate {batch.num_tokens} tokens\nand a long report")
        self.texts += [tuple(text.tolist()) for text in batch.input_ids.split_with_sizes(list(batch.lengths))]
        return compute(batch)


def crowded(folder, limit, **options):
    scorer = Scorer(folder, **FP32, **options)
    scorer._engine.encoder = encoder = Crowded(scorer._engine.encoder, limit)
    return scorer, encoder


@pytest.mark.usefixtures("plain_products")
@pytest.mark.filterwarnings("ignore:The device ran out")
@pytest.mark.parametrize("limit", [32, 100, 333])
@pytest.mark.parametrize("call", ["score", "embed", "maxsim", "similarity"])
def test_what_does_not_fit_is_split_and_nothing_is_lost_or_done_twice(tiny_folder, call, limit):
    scorer, encoder = crowded(tiny_folder, limit)
    free = Scorer(tiny_folder, **FP32)
    arguments = {
        "score": (MANY, MANY[::-1]),
        "embed": (MANY,),
        "maxsim": (MANY, MANY[::-1]),
        "similarity": (MANY, MANY[::-1]),
    }[call]
    ours, expected = numbers(getattr(scorer, call)(*arguments)), numbers(getattr(free, call)(*arguments))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    times = 2 if call in ("score", "similarity") else 1  # as completions and as references
    assert sorted(encoder.texts) == sorted(tuple(ids) for ids in scorer.tokenizer(MANY) for _ in range(times))
    budget = scorer._engine.batcher.max_batch_tokens
    assert len(encoder.failures) <= (2048).bit_length()
    if encoder.failures:
        assert budget < 2048
    encoder.failures.clear()
    getattr(scorer, call)(*arguments)
    assert scorer._engine.batcher.max_batch_tokens in (budget, budget // 2)
    assert len(encoder.failures) <= 1


def test_running_out_is_said_once_with_the_numbers_and_points_to_the_caller(tiny_folder):
    scorer, encoder = crowded(tiny_folder, 300)
    with pytest.warns(UserWarning, match="ran out of memory") as caught:
        scorer.embed(MANY)
    assert len(caught) == 1
    said = str(caught[0].message)
    assert f"with a batch of {encoder.failures[0]} tokens (tried to allocate" in said
    assert "a long report" not in said
    assert "at most 1024 tokens instead of 2048" in said
    assert caught[0].filename == __file__
    encoder.limit = 100
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scorer.embed(MANY)
    assert len(encoder.failures) > 1


@pytest.mark.filterwarnings("ignore:The device ran out")
def test_a_text_that_does_not_fit_by_itself_raises_with_the_remedy_and_holds_no_memory(tiny_folder):
    scorer, encoder = crowded(tiny_folder, 20)
    with pytest.raises(
        DeviceMemoryError, match=r"a text of 32 tokens by itself.* smaller max_seq_length"
    ) as caught:
        scorer.embed(TEXTS)
    assert isinstance(caught.value, torch.OutOfMemoryError)
    assert isinstance(caught.value, FastRewardError)
    assert encoder.left_over() is None
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    close(scorer.embed(TEXTS[:5]), Scorer(tiny_folder, **FP32).embed(TEXTS[:5]))


@pytest.mark.filterwarnings("ignore:The device ran out")
def test_threads_that_run_out_together_lower_the_budget_as_one_does(tiny_folder):
    scorer, encoder = crowded(tiny_folder, 300)
    expected = Scorer(tiny_folder, **FP32).embed(MANY)
    together = threading.Barrier(4)
    plain = encoder._when_there_is_room

    def at_once(compute, batch):
        if batch.num_tokens > encoder.limit:
            together.wait(timeout=20)
            raise torch.OutOfMemoryError("all at once")
        return plain(compute, batch)

    encoder._when_there_is_room = at_once
    with ThreadPoolExecutor(4) as threads:
        for vectors in threads.map(lambda _: scorer.embed(MANY), range(4)):
            close(vectors, expected)
    assert scorer._engine.batcher.max_batch_tokens == 1024


def test_another_error_is_not_taken_for_memory(tiny_folder, monkeypatch):
    scorer = Scorer(tiny_folder, **FP32)

    def failing(batch):
        raise RuntimeError("out of memory, says a driver")

    monkeypatch.setattr(scorer._engine.encoder, "embed", failing)
    with pytest.raises(RuntimeError, match="says a driver"):
        scorer.embed(TEXTS)
    assert scorer._engine.batcher.max_batch_tokens == 2048


# Running out beside the encoder


NO_MEMORY = [torch.OutOfMemoryError("as the allocator says it")]
if hasattr(torch, "AcceleratorError"):
    NO_MEMORY.append(torch.AcceleratorError("CUDA error: out of memory"))


class Full(TorchDispatchMode):
    """A device without room for the results of some operations: `fails` says of which, by name and sizes."""

    def __init__(self, fails):
        super().__init__()
        self.failures = 0
        self._fails = fails

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        shapes = [tuple(tensor.shape) for tensor in tree_iter(args) if isinstance(tensor, Tensor)]
        if self._fails(function.overloadpacket.__name__, shapes):
            self.failures += 1
            raise torch.OutOfMemoryError("no room for a result\nand a long report")
        return function(*args, **(kwargs or {}))


def copying_to_a_full_device(monkeypatch, limit, error=NO_MEMORY[0]):
    """Have copies of over `limit` tokens to the device fail.

    Returns:
        The tokens of the copies that failed, which grows.
    """
    failures, copy = [], HostBatch.to

    def to(batch, device):
        if batch.num_tokens > limit:
            failures.append(batch.num_tokens)
            raise error
        return copy(batch, device)

    monkeypatch.setattr(HostBatch, "to", to)
    return failures


@pytest.mark.usefixtures("plain_products")
@pytest.mark.filterwarnings("ignore:The device ran out")
@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("score", NO_MEMORY[0]),
        ("embed", NO_MEMORY[-1]),
        ("maxsim", NO_MEMORY[0]),
        ("similarity", NO_MEMORY[0]),
    ],
    ids=["score", "embed", "maxsim", "similarity"],
)
def test_a_batch_that_cannot_be_copied_to_the_device_is_split_and_nothing_is_lost_or_done_twice(
    tiny_folder, monkeypatch, call, error
):
    scorer, encoder = crowded(tiny_folder, 10**6)
    arguments = (MANY,) if call == "embed" else (MANY, MANY[::-1])
    expected = numbers(getattr(Scorer(tiny_folder, **FP32), call)(*arguments))
    failures = copying_to_a_full_device(monkeypatch, 100, error)
    ours = numbers(getattr(scorer, call)(*arguments))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)
    times = 2 if call in ("score", "similarity") else 1
    assert sorted(encoder.texts) == sorted(tuple(ids) for ids in scorer.tokenizer(MANY) for _ in range(times))
    assert failures
    assert scorer._engine.batcher.max_batch_tokens == 2048 >> len(failures)


@pytest.mark.usefixtures("plain_products")
def test_running_out_while_copying_is_said_once_and_a_text_that_cannot_be_copied_raises(
    tiny_folder, monkeypatch
):
    scorer = Scorer(tiny_folder, **FP32)
    copying_to_a_full_device(monkeypatch, 30)
    with (
        pytest.warns(UserWarning, match="ran out of memory") as caught,
        pytest.raises(DeviceMemoryError, match=r"a text of 32 tokens by itself.* as the allocator says it"),
    ):
        scorer.embed(TEXTS)
    assert len(caught) == 1
    assert "at most 1024 tokens instead of 2048" in str(caught[0].message)
    close(scorer.embed(TEXTS[:5]), Scorer(tiny_folder, **FP32).embed(TEXTS[:5]))


@pytest.mark.usefixtures("plain_products")
@pytest.mark.filterwarnings("ignore:The device ran out")
def test_replicas_that_cannot_copy_a_batch_lose_nothing(tiny_folder, monkeypatch):
    expected = Scorer(tiny_folder, **FP32).embed(MANY)
    two = Scorer(tiny_folder, **{**FP32, "device": ["cpu", "cpu"]}, max_batch_tokens=300)
    failures = copying_to_a_full_device(monkeypatch, 70)
    close(two.embed(MANY), expected)
    assert failures
    assert two._engine.batcher.max_batch_tokens <= 150


@pytest.mark.usefixtures("plain_products")
@pytest.mark.parametrize("operation", ["cat", "empty_like", "index_copy_"])
def test_results_for_which_there_is_no_room_twice_are_put_in_order_on_the_host_to_the_same_bits(
    tiny_folder, operation
):
    scorer = Scorer(tiny_folder, max_batch_tokens=64, **FP32)
    expected = scorer.embed(MANY)
    once = iter([True])
    with Full(
        lambda name, shapes: name == operation and (40, 32) in _joined(shapes) and next(once, False)
    ) as full:
        vectors = scorer.embed(MANY)
    assert full.failures == 1
    assert torch.equal(vectors, expected)


def _joined(shapes):
    """Shapes of tensors, and of what the matrices among them are together."""
    matrices = [shape for shape in shapes if len(shape) == 2]
    return [*shapes, *([(sum(rows for rows, _ in matrices), matrices[0][1])] if matrices else [])]


def test_results_without_room_are_held_once_on_the_device_and_named_where_even_that_is_too_much():
    parts = [Computed(np.int32([n]), [1], (torch.full((1, 1000), float(n)),)) for n in range(40)]
    alive = [weakref.ref(part.results[0]) for part in parts]
    fails = iter([True])
    with Full(lambda name, shapes: name == "cat" and next(fails, False)):
        ordered = in_order(parts, CPU)
    assert ordered[:, 0].tolist() == list(range(40))
    assert parts == []
    assert all(part() is None for part in alive)
    parts = [Computed(np.int32([n]), [1], (torch.full((1, 1000), float(n)),)) for n in range(40)]
    fails = iter([True])
    with (
        Full(
            lambda name, shapes: (
                (name, shapes) == ("_to_copy", [(40, 1000)]) or (name == "cat" and next(fails, False))
            )
        ),
        pytest.raises(
            DeviceMemoryError, match=r"the results of 40 texts.* no room for a result\. Free"
        ) as caught,
    ):
        in_order(parts, torch.device("meta"))
    assert caught.value.__context__ is None


@pytest.mark.usefixtures("plain_products")
def test_running_out_over_all_texts_has_a_name_and_the_scorer_goes_on(tiny_folder):
    scorer = Scorer(tiny_folder, **FP32)
    expected = scorer.similarity(MANY, MANY[:7])
    with (
        Full(lambda name, shapes: name in ("mm", "matmul") and shapes == [(40, 32), (32, 7)]),
        pytest.raises(
            DeviceMemoryError, match=r"what is computed of all texts.* no room for a result\. .*fewer texts"
        ),
    ):
        scorer.similarity(MANY, MANY[:7])
    assert torch.equal(scorer.similarity(MANY, MANY[:7]), expected)


@pytest.mark.usefixtures("plain_products")
def test_windows_are_joined_without_room_for_their_vectors_once_more(tiny_folder):
    texts = ["heart " * n for n in range(1, 90)]
    scorer = Scorer(tiny_folder, long_texts="chunk", max_seq_length=12, **FP32)
    expected = scorer.embed(texts)
    windows = sum(max(1, -(-len(ids) // 10)) for ids in scorer.tokenizer.content(texts))
    with Full(lambda name, shapes: name == "mul" and shapes[0] == (windows, 32)) as full:
        assert torch.equal(scorer.embed(texts), expected)
    assert full.failures == 0


# Sleep


def a_weight(scorer):
    return weakref.ref(scorer._engine.encoder._embeddings.words)


def test_sleep_gives_every_weight_back_and_scores_are_the_same_to_the_bit_after_it(tiny_folder):
    scorer = Scorer(tiny_folder, **FP32)
    references = ["energy", *TEXTS[:-1]]
    before, vectors = scorer.score(TEXTS, references), scorer.embed(TEXTS)
    weight = a_weight(scorer)
    gc.disable()
    try:
        scorer.sleep()
        assert weight() is None
        assert scorer._engine.asleep
        assert held_bytes(scorer._engine.replicas) == 0
    finally:
        gc.enable()
    scorer.sleep()
    scorer.wake()
    scorer.wake()
    assert not scorer._engine.asleep
    assert torch.equal(scorer.score(TEXTS, references), before)
    assert torch.equal(scorer.embed(TEXTS), vectors)
    assert (scorer.stats.wakes, scorer.stats.reference_misses) == (0, len(set(references)))


@pytest.mark.parametrize(
    "call",
    [
        lambda scorer: scorer.score(TEXTS, TEXTS[::-1]),
        lambda scorer: scorer.embed(TEXTS),
        lambda scorer: scorer.similarity(TEXTS, TEXTS[:2]),
        lambda scorer: numbers(scorer.maxsim(TEXTS, TEXTS[::-1])),
    ],
    ids=["score", "embed", "similarity", "maxsim"],
)
def test_a_call_wakes_the_encoder_and_is_counted(tiny_folder, call):
    scorer = Scorer(tiny_folder, **FP32)
    before = call(scorer)
    scorer.sleep()
    assert torch.equal(call(scorer), before)
    assert scorer.stats.wakes == 1
    assert torch.equal(call(scorer), before)
    assert scorer.stats.wakes == 1


def test_what_needs_no_encoder_does_not_wake_it(tiny_folder):
    scorer = Scorer(tiny_folder, **FP32)
    expected = (
        scorer.device,
        scorer.dtype,
        scorer.embedding_dim,
        scorer.max_seq_length,
        scorer.tokenizer(TEXTS),
    )
    scorer.sleep()
    assert scorer.score([], []).shape == (0,)
    assert scorer.embed([]).shape == (0, 32)
    assert scorer.similarity([], ["heart"]).shape == (0, 1)
    ours = (scorer.device, scorer.dtype, scorer.embedding_dim, scorer.max_seq_length, scorer.tokenizer(TEXTS))
    assert ours == expected
    assert scorer._engine.asleep


def test_cached_vectors_survive_the_sleep(tiny_folder):
    scorer = Scorer(tiny_folder, **FP32)
    users = [lambda: None, lambda: None]
    for user in users:
        scorer.attach(user)
    scorer.score(TEXTS, MANY[:6])
    scorer.sleep()
    before = scorer.stats
    scorer.score(TEXTS, MANY[:6])
    cost = scorer.stats - before
    assert (cost.encoded_texts, cost.reference_hits, cost.recent_hits) == (0, 6, len(TEXTS))


def test_sleep_waits_for_calls_in_flight(tiny_folder, monkeypatch):
    scorer = Scorer(tiny_folder, **FP32)
    expected = scorer.embed(TEXTS)
    entered, go_on = threading.Event(), threading.Event()
    embed = scorer._engine.encoder.embed

    def slow(batch):
        entered.set()
        assert go_on.wait(20)
        return embed(batch)

    monkeypatch.setattr(scorer._engine.encoder, "embed", slow)
    with ThreadPoolExecutor(2) as threads:
        call = threads.submit(scorer.embed, TEXTS)
        assert entered.wait(20)
        sleep = threads.submit(scorer.sleep)
        time.sleep(0.1)
        assert not sleep.done()
        go_on.set()
        sleep.result(20)
        assert torch.equal(call.result(20), expected)
    assert scorer._engine.asleep


def test_threads_score_right_while_others_put_it_to_sleep(tiny_folder):
    scorer = Scorer(tiny_folder, **FP32)
    tasks = [(MANY[start : start + 6], MANY[:6]) for start in range(0, 36, 6)]
    expected = [scorer.score(*task) for task in tasks]
    done = threading.Event()

    def disturb(action):
        while not done.is_set():
            action()
            time.sleep(0.002)

    with ThreadPoolExecutor(6) as threads:
        disturbing = [threads.submit(disturb, action) for action in (scorer.sleep, scorer.wake)]
        scores = list(threads.map(lambda task: scorer.score(*task), tasks * 3))
        done.set()
        for each in disturbing:
            each.result(20)
    for ours, theirs in zip(scores, expected * 3, strict=True):
        close(ours, theirs)


def test_scorers_that_share_an_encoder_sleep_together(tiny_folder):
    scorer = Scorer(tiny_folder, max_seq_length=79, **FP32)
    copy, unused = (pickle.loads(pickle.dumps(scorer)) for _ in range(2))
    before = copy.embed(TEXTS)
    unused.sleep()
    assert scorer._engine.asleep
    assert torch.equal(copy.embed(TEXTS), before)
    assert (scorer.stats.wakes, copy.stats.wakes) == (0, 1)


def test_an_encoder_that_cannot_be_read_again_stays_asleep_and_wakes_when_it_can(tiny_checkpoint, tmp_path):
    folder, elsewhere = tiny_checkpoint(), tmp_path / "elsewhere"
    scorer = Scorer(folder, **FP32)
    before = scorer.score(TEXTS, TEXTS[::-1])
    scorer.sleep()
    shutil.move(folder / "model.safetensors", elsewhere)
    for call in (scorer.wake, lambda: scorer.score(TEXTS, TEXTS)):
        with pytest.raises(CheckpointError):
            call()
        assert scorer._engine.asleep
    shutil.move(elsewhere, folder / "model.safetensors")
    assert torch.equal(scorer.score(TEXTS, TEXTS[::-1]), before)


@pytest.mark.parametrize("error", NO_MEMORY, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("without_room", ["weights", "references", "recent", "start"])
def test_waking_without_room_has_a_name_and_leaves_nothing_on_the_device(
    tiny_folder, monkeypatch, without_room, error
):
    scorer = Scorer(tiny_folder, **FP32)
    users = [lambda: None, lambda: None]
    for user in users:
        scorer.attach(user)
    before = scorer.score(TEXTS, MANY[:6])
    engine, moves = scorer._engine, []
    scorer.sleep()

    def fail(*_, **__):
        raise error

    def moved(name, device, move):
        moves.append(name)
        if name == without_room and moves.count(name) == 1:
            fail()
        move(device)

    with monkeypatch.context() as patch:
        for name in ("references", "recent"):
            cache = getattr(engine, name)
            patch.setattr(cache, "move", lambda to, name=name, move=cache.move: moved(name, to, move))
        if without_room == "weights":
            patch.setattr("fastreward.engine.build_encoder", fail)
        if without_room == "start":
            patch.setattr(engine, "_start", fail)
        with pytest.raises(
            DeviceMemoryError, match=r"memory for the weights and the caches.*pass dtype='bfloat16'"
        ) as caught:
            scorer.wake()
    assert isinstance(caught.value, torch.OutOfMemoryError)
    assert caught.value.__context__ is None  # whose traceback would hold what was there already
    both = ["references", "recent"]  # there, and back
    assert moves == {"weights": [], "references": both[:1]}.get(without_room, both) + both
    assert engine.asleep
    assert held_bytes(engine.replicas) == 0
    known = scorer.stats
    close(scorer.score(TEXTS, MANY[:6]), before)
    cost = scorer.stats - known
    assert (cost.encoded_texts, cost.wakes) == (0, 1)


def test_a_scorer_for_whose_weights_there_is_no_room_says_so(tiny_folder, monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("as the allocator says it\nand a long report")

    monkeypatch.setattr("fastreward.engine.build_encoder", fail)
    with pytest.raises(
        DeviceMemoryError, match=r"for the weights, got .*says it\. Free memory on the device"
    ) as caught:
        Scorer(tiny_folder, **FP32)
    assert caught.value.__context__ is None


# On a GPU


@on_cuda
def test_sleep_frees_the_memory_of_a_gpu(minilm_folder):
    scorer = Scorer(minilm_folder, device="cuda", cuda_graphs=True)
    for _ in range(2):  # a graph is recorded when its shape comes again
        expected = scorer.score(TEXTS, TEXTS[::-1])
    taken = torch.cuda.memory_allocated(scorer.device)
    weights = held_bytes(scorer._engine.encoder)
    scorer.sleep()
    assert torch.cuda.memory_allocated(scorer.device) <= taken - weights
    assert torch.equal(scorer.score(TEXTS, TEXTS[::-1]), expected)


@on_cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_bound_holds_on_a_gpu(minilm_folder, dtype):
    torch.ones(64, 64, device="cuda", dtype=getattr(torch, dtype)).mm(
        torch.ones(64, 64, device="cuda", dtype=getattr(torch, dtype))
    )  # from now on cuBLAS has its workspace, which the bound leaves out
    before = torch.cuda.memory_allocated()
    scorer = Scorer(
        minilm_folder,
        device="cuda",
        dtype=dtype,
        max_bytes=150 * 2**20,
        reference_cache_bytes=2**20,
        recent_bytes=2**20,
    )
    torch.cuda.reset_peak_memory_stats()
    scorer.score([f"{n} {'heart ' * 200}" for n in range(1000)], ["blood"] * 1000)
    results = 4 * 4 * 1000 * 384
    assert torch.cuda.max_memory_allocated() - before <= 150 * 2**20 + results
