"""Vectors of recent calls, alone and under the rewards that share a scorer."""

import gc
import pickle
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastreward.errors import InputError, NonFiniteError
from fastreward.recent_vectors import RecentVectors
from fastreward.scorer import Scorer

FP32 = {"backend": "packed", "device": "cpu", "dtype": "float32"}
DIMENSIONS = 8
ROOMY = 1 << 20
TEXTS = ["the heart", "pumps blood", "insulin lowers glucose", "energy", "", "body " * 30]


class Encoder:
    """Gives each text a vector of its own, and writes down what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return vectors_of(texts)


class User:
    """A reward, as far as a scorer can see."""


@pytest.fixture
def encode():
    return Encoder()


def vectors_of(texts):
    return torch.tensor([[float(sum(map(ord, text)) + 1000 * len(text))] * DIMENSIONS for text in texts])


def size_of(texts):
    recent = RecentVectors(ROOMY)
    recent.look_up(texts, vectors_of)
    return recent.size_bytes


def test_a_text_of_a_recent_call_is_not_encoded_again(encode):
    recent = RecentVectors(ROOMY)
    first, second = recent.look_up(["a", "bb"], encode), recent.look_up(["ccc", "bb", "a"], encode)
    assert encode.asked == ["a", "bb", "ccc"]
    assert (first.hits, first.misses, second.hits, second.misses) == (0, 2, 2, 1)
    assert torch.equal(second.vectors, vectors_of(["ccc", "bb", "a"]))


def test_a_whole_call_that_comes_again_is_found_without_a_copy(encode):
    recent = RecentVectors(ROOMY)
    made = recent.look_up(["a", "bb"], encode).vectors
    assert recent.look_up(["a", "bb"], encode).vectors.data_ptr() == made.data_ptr()
    assert torch.equal(recent.look_up(["bb", "a"], encode).vectors, made.flip(0))


def test_the_oldest_call_goes_first_whenever_it_was_used(encode):
    recent = RecentVectors(size_of(["a", "b"]) + size_of(["c"]))
    recent.look_up(["a", "b"], encode)
    for text in ("a", "c", "a", "d"):  # d drives out a and b together, though a was used since
        recent.look_up([text], encode)
    encode.asked.clear()
    recent.look_up(["c", "d"], encode)
    assert encode.asked == []
    recent.look_up(["a", "b"], encode)
    assert encode.asked == ["a", "b"]


def test_results_are_right_and_bytes_bounded_while_calls_are_driven_out(encode):
    rng = random.Random(0)
    texts = [letter * length for letter in "abcdefgh" for length in range(1, 5)]
    recent = RecentVectors(20 * size_of(["a"]))
    for _ in range(300):
        asked = rng.sample(texts, rng.randint(1, 12))
        lookup = recent.look_up(asked, encode)
        assert torch.equal(lookup.vectors, vectors_of(asked))
        assert lookup.hits + lookup.misses == len(asked)
        assert 0 < recent.size_bytes <= recent.max_bytes
        assert recent.size_bytes == sum(block.size_bytes for block in recent._blocks)
        assert len(recent) == sum(len(block.texts) for block in recent._blocks)
    assert len(encode.asked) < 300 * 6.5


def test_a_call_beyond_the_bound_is_given_but_drives_nothing_out(encode):
    recent = RecentVectors(size_of(["a"]))
    recent.look_up(["a"], encode)
    assert torch.equal(recent.look_up(["bb", "ccc"], encode).vectors, vectors_of(["bb", "ccc"]))
    assert recent.look_up(["a"], encode).hits == 1
    assert RecentVectors(0).look_up(["a"], encode).misses == 1


def test_a_negative_size_is_refused():
    with pytest.raises(InputError, match=r"a cache size of 0 bytes or more, got -1\. Pass 0"):
        RecentVectors(-1)


def test_what_failed_to_encode_is_asked_for_again(encode):
    recent = RecentVectors(ROOMY)

    def fail(texts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        recent.look_up(["a"], fail)
    assert recent.look_up(["a"], encode).misses == 1


def test_threads_that_ask_at_once_have_a_text_encoded_once(encode):
    recent = RecentVectors(ROOMY)
    texts = ["x" * length for length in range(50)]
    together = threading.Barrier(8)

    def look_up(seed):
        together.wait()
        mine = random.Random(seed).sample(texts, len(texts))
        parts = [mine[start : start + 7] for start in range(0, 50, 7)]
        return all(torch.equal(recent.look_up(part, encode).vectors, vectors_of(part)) for part in parts)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look_up, range(8)))
    assert sorted(encode.asked) == texts


# Under a scorer


@pytest.fixture
def scorer(tiny_folder):
    return Scorer(tiny_folder, **FP32)


def encoded(scorer, *calls):
    """How many texts went through the encoder."""
    before = scorer.stats
    for call in calls:
        call()
    return (scorer.stats - before).encoded_texts


def test_users_that_share_a_scorer_have_each_text_encoded_once_a_step(scorer):
    users = [User(), User()]
    for user in users:
        scorer.attach(user)
    references = ["blood", "energy"] * 3
    calls = [
        lambda: scorer.score(TEXTS, references),
        lambda: scorer.similarity(TEXTS, references),
        lambda: scorer.embed(TEXTS[::-1]),
        lambda: scorer.score(TEXTS, TEXTS[::-1]),
    ]
    assert encoded(scorer, *calls) == len({*TEXTS, *references})
    # The second to fourth call found all completions; the fourth's references but "energy" were found too.
    assert scorer.stats.recent_hits == 1 + 3 * len(TEXTS) + 5
    alone = Scorer(scorer.encoder_name, **FP32)
    torch.testing.assert_close(
        scorer.score(TEXTS, references), alone.score(TEXTS, references), atol=2e-6, rtol=0
    )


def test_a_text_that_is_completion_and_reference_is_encoded_once_by_users_that_share(scorer):
    users = [User(), User()]
    for user in users:
        scorer.attach(user)
    assert encoded(scorer, lambda: scorer.score(TEXTS, TEXTS[::-1])) == len(TEXTS)


def test_what_was_not_finite_once_is_encoded_anew(scorer, monkeypatch):
    users = [User(), User()]
    for user in users:
        scorer.attach(user)
    expected = Scorer(scorer.encoder_name, **FP32).score(TEXTS, TEXTS[::-1])
    embed = scorer._engine.encoder.embed
    with monkeypatch.context() as patched:
        patched.setattr(scorer._engine.encoder, "embed", lambda batch: embed(batch) * float("nan"))
        with pytest.raises(NonFiniteError):
            scorer.score(TEXTS, TEXTS[::-1])
    assert (len(scorer._engine.recent), scorer._engine.recent.size_bytes) == (0, 0)
    torch.testing.assert_close(scorer.score(TEXTS, TEXTS[::-1]), expected, atol=2e-6, rtol=0)


def test_with_one_user_nothing_is_kept(scorer):
    user = User()
    scorer.attach(user)
    scorer.attach(user)
    assert encoded(scorer, lambda: scorer.embed(TEXTS), lambda: scorer.embed(TEXTS)) == 2 * len(TEXTS)
    assert (len(scorer._engine.recent), scorer.stats.recent_hits) == (0, 0)


def test_a_user_that_is_gone_no_longer_counts(scorer):
    users = [User(), User()]
    for user in users:
        scorer.attach(user)
    scorer.embed(TEXTS)
    del users[0], user
    gc.collect()
    assert encoded(scorer, lambda: scorer.embed(TEXTS)) == len(TEXTS)


def test_users_of_scorers_that_share_an_encoder_count_together(tiny_folder):
    scorer = Scorer(tiny_folder, max_seq_length=76, **FP32)
    copy = pickle.loads(pickle.dumps(scorer))
    users = [User(), User()]
    copy.attach(users[0])  # before the copy has found its engine
    scorer.attach(users[1])
    copy.embed(TEXTS)
    assert encoded(scorer, lambda: scorer.embed(TEXTS)) == 0
    assert (scorer.stats.recent_hits, copy.stats.recent_hits) == (len(TEXTS), 0)


def test_recent_bytes_of_none_keep_nothing(tiny_folder):
    scorer = Scorer(tiny_folder, recent_bytes=0, **FP32)
    users = [User(), User()]
    for user in users:
        scorer.attach(user)
    assert encoded(scorer, lambda: scorer.embed(TEXTS), lambda: scorer.embed(TEXTS)) == 2 * len(TEXTS)


def test_what_is_handed_out_may_be_written_to(scorer):
    users = [User(), User()]
    for user in users:
        scorer.attach(user)
    vectors = scorer.embed(TEXTS)
    expected = vectors.clone()
    vectors.zero_()
    assert torch.equal(scorer.embed(TEXTS), expected)


@pytest.mark.parametrize("user", [[], None, 3])
def test_a_user_that_cannot_be_forgotten_is_refused(scorer, user):
    with pytest.raises(InputError, match="a user that can be hashed and weakly referred to, got"):
        scorer.attach(user)
