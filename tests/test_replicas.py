"""Several copies of the encoder that share the batches of a call."""

import pickle
import threading
import time
import weakref

import pytest
import torch

from fastreward import batching
from fastreward.errors import InputError
from fastreward.scorer import Scorer

FP32 = {"backend": "packed", "device": "cpu", "dtype": "float32"}
TWO = {"backend": "packed", "device": ["cpu", "cpu"], "dtype": "float32", "max_batch_tokens": 64}
TEXTS = [f"{'heart ' * (n % 17)}{n}" for n in range(60)]
REFERENCES = [TEXTS[n * 7 % 13] for n in range(60)]

on_two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@pytest.fixture
def one(tiny_folder):
    return Scorer(tiny_folder, max_batch_tokens=64, **FP32)


@pytest.fixture
def two(tiny_folder):
    return Scorer(tiny_folder, **TWO)


def close(actual, expected, atol=2e-6):
    torch.testing.assert_close(actual, expected, atol=atol, rtol=0)


def watched(scorer, around=lambda number, compute, batch: compute(batch)):
    """Let calls of each replica's `embed` pass through a function."""
    for number, replica in enumerate(scorer._engine.replicas.members):
        embed = replica.encoder.embed
        replica.encoder.embed = lambda batch, number=number, embed=embed: around(number, embed, batch)


def test_scores_of_replicas_are_those_of_one_encoder_in_the_order_of_the_texts(one, two):
    close(two.score(TEXTS, REFERENCES), one.score(TEXTS, REFERENCES))
    close(two.embed(TEXTS), one.embed(TEXTS))
    close(two.similarity(TEXTS, REFERENCES), one.similarity(TEXTS, REFERENCES))
    ours, theirs = two.maxsim(TEXTS, REFERENCES), one.maxsim(TEXTS, REFERENCES)
    close(ours.f1, theirs.f1, atol=1e-5)
    assert two.stats == one.stats


def test_the_same_batches_are_made_and_give_the_same_bits(tiny_folder, two):
    invariant = [Scorer(tiny_folder, batch_invariant=True, **options) for options in (TWO, FP32)]
    assert torch.equal(*(scorer.score(TEXTS, REFERENCES) for scorer in invariant))


def test_every_batch_is_computed_once_and_both_replicas_at_the_same_time(two):
    computing, texts = threading.Barrier(2), []

    def around(number, compute, batch):
        texts.extend(batch.lengths)
        if len(texts) <= 8:  # goes on only when the other replica computes too
            computing.wait(20)
        return compute(batch)

    watched(two, around)
    two.embed(TEXTS)
    assert sorted(texts) == sorted(len(ids) for ids in two.tokenizer(TEXTS))


def test_a_replica_that_is_busy_leaves_the_batches_to_the_other(two):
    taken, go_on = {0: 0, 1: 0}, threading.Event()
    meanwhile = {}

    def around(number, compute, batch):
        taken[number] += 1
        if number == 0:
            assert go_on.wait(20)
        elif taken[1] == 6:
            meanwhile.update(taken)
            go_on.set()
        return compute(batch)

    watched(two, around)
    vectors = two.embed(TEXTS)
    assert meanwhile[1] == 6
    assert meanwhile[0] <= 1
    close(vectors, Scorer(two.encoder_name, **FP32).embed(TEXTS))


def test_an_error_in_a_replica_is_raised_and_ends_the_threads(two):
    expected, before = two.embed(TEXTS), threading.active_count()
    computed = []

    def around(number, compute, batch):
        computed.append(number)
        if len(computed) == 3:
            raise RuntimeError("a broken card")
        time.sleep(0.01)
        return compute(batch)

    encoders = [replica.encoder for replica in two._engine.replicas.members]
    watched(two, around)
    with pytest.raises(RuntimeError, match="a broken card"):
        two.embed(TEXTS)
    assert len(computed) <= 4  # what the other one was at work on, and no more
    assert threading.active_count() == before
    for encoder in encoders:
        del encoder.embed
    close(two.embed(TEXTS), expected)


def test_an_error_in_the_tokenizer_is_raised_and_ends_the_threads(two, monkeypatch):
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    monkeypatch.setattr(batching, "MIN_BATCH_TOKENS", 16)
    expected, before = two.embed(TEXTS), threading.active_count()
    content = type(two.tokenizer).content

    def failing(tokenizer, part):
        if "0" in part:
            raise RuntimeError("no tokens today")
        return content(tokenizer, part)

    with monkeypatch.context() as patched:
        patched.setattr(type(two.tokenizer), "content", failing)
        with pytest.raises(RuntimeError, match="no tokens today"):
            two.embed(TEXTS)
    assert threading.active_count() == before
    close(two.embed(TEXTS), expected)


@pytest.mark.filterwarnings("ignore:The device ran out")
def test_replicas_that_run_out_of_memory_lose_nothing(one, tiny_folder):
    two = Scorer(tiny_folder, **{**TWO, "max_batch_tokens": 300})

    def around(number, compute, batch):
        if batch.num_tokens > 70:
            raise torch.OutOfMemoryError("full")
        return compute(batch)

    watched(two, around)
    close(two.embed(TEXTS), one.embed(TEXTS))
    assert two._engine.batcher.max_batch_tokens <= 75


def test_all_replicas_sleep_and_wake(two):
    before = two.score(TEXTS, REFERENCES)
    weights = [weakref.ref(replica.encoder._embeddings.words) for replica in two._engine.replicas.members]
    assert weights[0]() is not weights[1]()
    two.sleep()
    assert [weight() for weight in weights] == [None, None]
    close(two.score(TEXTS, REFERENCES), before)


def test_a_scorer_with_replicas_pickles_to_its_arguments(two):
    copy = pickle.loads(pickle.dumps(two))
    assert repr(copy) == repr(two)
    assert "device=('cpu', 'cpu')" in repr(two)
    assert two.device == torch.device("cpu")
    close(copy.score(TEXTS, REFERENCES), two.score(TEXTS, REFERENCES))


def test_a_list_of_one_device_is_that_device(tiny_folder, one):
    scorer = Scorer(tiny_folder, **{**TWO, "device": ["cpu"]})
    assert torch.equal(scorer.embed(TEXTS), one.embed(TEXTS))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": []}, "one device at least, got an empty list"),
        ({"device": ["cpu", "tpu"]}, "a device such as 'cpu' or 'cuda:0', got 'tpu'"),
        ({"device": "cpu", "own_stream": True}, "a CUDA device with own_stream, got cpu"),
        (
            {"device": "cpu", "cuda_graphs": True},
            "a CUDA device and the packed encoder with cuda_graphs, got cpu",
        ),
    ],
)
def test_what_cannot_be_had_there_is_refused(tiny_folder, options, message):
    with pytest.raises(InputError, match=message):
        Scorer(tiny_folder, backend="packed", **options)


# On GPUs


@on_two_gpus
def test_scores_of_two_gpus_are_those_of_one(minilm_folder):
    alone = Scorer(minilm_folder, device="cuda:0", dtype="float32", max_batch_tokens=64)
    both = Scorer(minilm_folder, device=["cuda:0", "cuda:1"], dtype="float32", max_batch_tokens=64)
    for _ in range(20):
        close(both.score(TEXTS, REFERENCES), alone.score(TEXTS, REFERENCES))
    assert both.embed(TEXTS, device="cuda:0").device == torch.device("cuda:0")


@on_cuda
def test_two_replicas_on_one_gpu_score_as_one(minilm_folder):
    alone = Scorer(minilm_folder, device="cuda", dtype="float32", max_batch_tokens=64)
    both = Scorer(minilm_folder, device=["cuda", "cuda"], dtype="float32", max_batch_tokens=64)
    for _ in range(20):
        close(both.score(TEXTS, REFERENCES), alone.score(TEXTS, REFERENCES))
        close(both.embed(TEXTS, device="cuda").cpu(), alone.embed(TEXTS))


@on_cuda
def test_a_stream_of_its_own_gives_the_same_while_the_callers_is_busy(minilm_folder):
    plain = Scorer(minilm_folder, device="cuda", dtype="float32")
    aside = Scorer(minilm_folder, device="cuda", dtype="float32", own_stream=True)
    scores, vectors = plain.score(TEXTS, REFERENCES), plain.embed(TEXTS)
    weights = torch.rand(aside.tokenizer.vocab_size)
    f1 = plain.maxsim(TEXTS, REFERENCES, token_weights=weights).f1
    for _ in range(5):
        torch.cuda._sleep(50_000_000)
        close(aside.score(TEXTS, REFERENCES), scores)
        close(aside.embed(TEXTS, device="cuda").mul(1.0).cpu(), vectors)
        late = torch.zeros_like(weights, device="cuda")
        torch.cuda._sleep(50_000_000)
        late.copy_(weights)
        close(aside.maxsim(TEXTS, REFERENCES, token_weights=late).f1, f1, atol=1e-5)


@on_cuda
def test_a_call_on_a_stream_of_its_own_does_not_wait_for_the_callers(minilm_folder):
    aside = Scorer(minilm_folder, device="cuda", own_stream=True)
    aside.score(TEXTS, REFERENCES)
    torch.cuda._sleep(2_000_000_000)  # about a second
    still_busy = torch.cuda.current_stream().record_event()
    aside.score(TEXTS, REFERENCES)
    assert not still_busy.query()
