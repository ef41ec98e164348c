"""The order of work on CUDA streams: here of ones that write down what they were told, on a GPU for real.

The rule is one of happening before: what a stream was told to wait for, and what that one had waited for.
"""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastreward.cuda_streams import Written, after_caller, on_stream, used_here
from fastreward.reference_cache import ReferenceCache
from fastreward.scorer import Scorer

CPU = torch.device("cpu")
TEXTS = [f"{'heart ' * (n % 17)}{n}" for n in range(60)]
REFERENCES = [TEXTS[n * 7 % 13] for n in range(60)]

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


# Streams that write down what they were told


class Event:
    """What had been done on a stream, and before it, when the event was recorded."""

    def __init__(self, before):
        self.before = frozenset(before)


class Stream:
    """Work in its order: `before` is all work that is done once this stream is done with what it has."""

    device = torch.device("cuda", 0)

    def __init__(self):
        self.before = set()

    def work(self, name):
        """Queue work, and say what is done before it begins."""
        known = frozenset(self.before)
        self.before.add(name)
        return known

    def record_event(self):
        return Event(self.before)

    def wait_event(self, event):
        self.before |= event.before

    def wait_stream(self, other):
        self.wait_event(other.record_event())


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and writes down which streams use it."""

    is_cuda = True
    device = Stream.device

    def record_stream(self, stream):
        self.users = [*getattr(self, "users", []), stream]


@pytest.fixture
def current(monkeypatch):
    """The stream that each thread works on: a dict from thread to stream."""
    streams = {}

    class Context:
        def __init__(self, stream):
            self._stream = stream

        def __enter__(self):
            self._outer = streams.get(threading.get_ident())
            streams[threading.get_ident()] = self._stream

        def __exit__(self, *error):
            streams[threading.get_ident()] = self._outer

    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: streams[threading.get_ident()])
    monkeypatch.setattr(torch.cuda, "stream", Context)
    return streams


def test_the_caller_goes_on_behind_work_on_another_stream_which_does_not_wait_for_the_caller(current):
    caller, own = Stream(), Stream()
    current[threading.get_ident()] = caller
    caller.work("a generation")
    with on_stream(own):
        assert current[threading.get_ident()] is own
        assert own.work("scores") == set()
    assert current[threading.get_ident()] is caller
    assert caller.work("an update") == {"a generation", "scores"}


def test_the_caller_goes_on_behind_work_that_failed_too(current):
    caller, own = Stream(), Stream()
    current[threading.get_ident()] = caller

    def failing():
        with on_stream(own):
            own.work("half of the scores")
            raise RuntimeError("a broken card")

    with pytest.raises(RuntimeError, match="a broken card"):
        failing()
    assert current[threading.get_ident()] is caller
    assert caller.work("an update") == {"half of the scores"}


def test_without_a_stream_the_work_is_on_the_callers(current):
    current[threading.get_ident()] = caller = Stream()
    with on_stream(None):
        assert current[threading.get_ident()] is caller


def test_a_tensor_of_the_caller_is_read_once_it_is_written_and_its_memory_is_kept_until_then(current):
    caller, own = Stream(), Stream()
    current[threading.get_ident()] = caller
    weights = torch.ones(3).as_subclass(OnGpu)
    caller.work("weights")
    after_caller(weights, own)
    assert own.work("scores") == {"weights"}
    assert weights.users == [own]


@pytest.mark.parametrize("tensor", [None, torch.ones(3)], ids=["none", "on the host"])
def test_what_is_not_on_a_gpu_is_not_waited_for(current, tensor):
    caller, own = Stream(), Stream()
    current[threading.get_ident()] = caller
    caller.work("a generation")
    after_caller(tensor, own)
    after_caller(torch.ones(3).as_subclass(OnGpu), None)
    assert own.work("scores") == set()


def test_the_memory_of_what_another_stream_made_is_kept_for_the_current_one(current):
    current[threading.get_ident()] = caller = Stream()
    vectors = torch.ones(3).as_subclass(OnGpu)
    used_here(vectors, torch.ones(3))
    assert vectors.users == [caller]


def test_a_reader_waits_for_all_that_was_written_on_whichever_streams(current):
    written, first, second, reader = Written(), Stream(), Stream(), Stream()
    current[threading.get_ident()] = reader
    written.wait(Stream.device)
    assert reader.work("nothing written") == set()
    for stream, name in ((first, "first"), (second, "second")):
        current[threading.get_ident()] = stream
        written.wait(Stream.device)  # whoever writes has waited before
        stream.work(name)
        written.mark(Stream.device)
    current[threading.get_ident()] = reader
    written.wait(Stream.device)
    assert reader.work("scores") == {"nothing written", "first", "second"}


def test_a_vector_that_one_stream_put_into_the_cache_is_written_before_another_reads_it(current):
    """Also where the device had no room for all of them."""
    cache, copies = ReferenceCache(1 << 20), []

    class Vector(OnGpu):
        def clone(self):
            copies.append(self)
            if len(copies) == 2:
                raise torch.OutOfMemoryError("full")
            return super().clone()

    def encode(texts):
        current[threading.get_ident()].work(" ".join(texts))
        return torch.ones(len(texts), 2).as_subclass(Vector)

    writer, reader = Stream(), Stream()
    current[threading.get_ident()] = writer
    cache.look_up(["a", "b"], encode)
    assert len(cache) == 1
    current[threading.get_ident()] = reader
    assert cache.look_up(["a"], encode).hits == 1
    assert reader.work("scores") == {"a b"}


# On CUDA


def close(actual, expected, atol=2e-6):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


@pytest.fixture(
    params=[{}, {"cuda_graphs": True}, {"own_stream": True}, {"device": ["cuda", "cuda"]}], ids=str
)
def on_gpu(request, minilm_folder):
    """A scorer on a GPU, and one without options to compare it with."""
    options = {"device": "cuda", "dtype": "float32", "max_batch_tokens": 64}
    return Scorer(minilm_folder, **{**options, **request.param}), Scorer(minilm_folder, **options)


@on_cuda
def test_callers_on_streams_of_their_own_get_what_one_caller_gets(on_gpu):
    """Four threads, each behind work of its own on its stream; references are new to whoever comes first."""
    scorer, plain = on_gpu
    tasks = [(TEXTS[n:] + TEXTS[:n], REFERENCES[n:] + REFERENCES[:n]) for n in range(0, 60, 5)]
    expected = [(plain.score(*task), plain.embed(task[0])) for task in tasks]

    def call(task):
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            torch.cuda._sleep(5_000_000)
            scores = scorer.score(*task)
            vectors = scorer.embed(task[0], device="cuda")
            after = vectors * 1.0  # queued behind the scorer's work without the host waiting
            del vectors  # its memory must not be used anew before that
            scorer.embed(task[1], device="cuda").zero_()
            return scores, after.cpu()

    with ThreadPoolExecutor(4) as threads:
        for (scores, vectors), (right, right_vectors) in zip(
            threads.map(call, tasks * 2), expected * 2, strict=True
        ):
            close(scores, right)
            close(vectors, right_vectors)


@on_cuda
def test_what_a_caller_writes_late_on_its_stream_is_read_once_it_is_written(on_gpu):
    scorer, plain = on_gpu
    weights = torch.rand(scorer.tokenizer.vocab_size, generator=torch.Generator().manual_seed(0))
    f1 = plain.maxsim(TEXTS, REFERENCES, token_weights=weights).f1
    ids = [torch.tensor(row[1:-1], dtype=torch.int32) for row in plain.tokenizer(TEXTS)]
    vectors = plain.embed(TEXTS)
    source, given = weights.cuda(), [row.cuda() for row in ids]
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            late, late_ids = torch.zeros_like(source), [torch.zeros_like(row) for row in given]
            torch.cuda._sleep(50_000_000)
            late.copy_(source)
            for row, right in zip(late_ids, given, strict=True):
                row.copy_(right)
            close(scorer.maxsim(TEXTS, REFERENCES, token_weights=late).f1, f1, atol=1e-5)
            close(scorer.embed(late_ids), vectors)


@on_cuda
def test_work_that_a_caller_has_queued_is_not_disturbed(on_gpu):
    """A tensor that is dropped while its stream still reads it: the scorer's memory must not be the same."""
    scorer, _ = on_gpu
    scorer.score(TEXTS, REFERENCES)
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(5):
            mine = torch.arange(2**20, device="cuda")
            torch.cuda._sleep(20_000_000)
            total = mine.sum()
            del mine
            scorer.embed(TEXTS, device="cuda")
            assert total.item() == 2**19 * (2**20 - 1)
