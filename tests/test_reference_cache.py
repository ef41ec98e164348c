import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastreward.errors import InputError
from fastreward.reference_cache import ReferenceCache

DIMENSIONS = 8
ROOMY = 1 << 20


class Encoder:
    """Gives each text a vector of its own, and writes down what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return vectors_of(texts)


@pytest.fixture
def encode():
    return Encoder()


def vectors_of(texts):
    return torch.tensor([[float(sum(map(ord, text)))] * DIMENSIONS for text in texts])


def size_of_one(text):
    cache = ReferenceCache(ROOMY)
    cache.look_up([text], vectors_of)
    return cache.size_bytes


def test_a_text_is_encoded_once_over_calls(encode):
    cache = ReferenceCache(ROOMY)
    first = cache.look_up(["a", "bb"], encode)
    second = cache.look_up(["ccc", "bb", "a"], encode)
    assert encode.asked == ["a", "bb", "ccc"]
    assert (first.hits, first.misses, second.hits, second.misses) == (0, 2, 2, 1)


def test_vectors_come_in_the_order_of_the_texts_known_or_not(encode):
    cache = ReferenceCache(ROOMY)
    cache.look_up(["bb"], encode)
    texts = ["ccc", "bb", "a"]
    assert torch.equal(cache.look_up(texts, encode).vectors, vectors_of(texts))


def test_what_was_used_longest_ago_goes_first(encode):
    cache = ReferenceCache(2 * size_of_one("a"))
    for text in ("a", "b", "a", "c"):  # c drives out b, for a was used since
        cache.look_up([text], encode)
    encode.asked.clear()
    cache.look_up(["a"], encode)
    cache.look_up(["c"], encode)
    assert encode.asked == []
    cache.look_up(["b"], encode)
    assert encode.asked == ["b"]


def test_results_are_right_and_bytes_bounded_while_texts_are_driven_out(encode):
    rng = random.Random(0)
    texts = list("abcdefghijkl")
    room = 4
    cache = ReferenceCache(room * size_of_one("a"))
    for _ in range(300):
        asked = rng.sample(texts, rng.randint(1, 8))
        lookup = cache.look_up(asked, encode)
        assert torch.equal(lookup.vectors, vectors_of(asked))
        assert lookup.hits + lookup.misses == len(asked)
        assert len(cache) <= room
        assert cache.size_bytes == len(cache) * size_of_one("a")
    assert len(cache) == room


def test_its_size_counts_what_it_keeps(encode):
    cache = ReferenceCache(ROOMY)
    for texts in (["a"], ["a", "b"], ["b"]):
        cache.look_up(texts, encode)
    assert len(cache) == 2
    assert cache.size_bytes == 2 * size_of_one("a") > 2 * 4 * DIMENSIONS


def test_a_text_beyond_the_bound_is_given_but_drives_nothing_out(encode):
    cache = ReferenceCache(size_of_one("a"))
    cache.look_up(["a"], encode)
    big = "b" * 100
    assert torch.equal(cache.look_up([big], encode).vectors, vectors_of([big]))
    assert cache.look_up(["a"], encode).hits == 1
    assert cache.look_up([big], encode).misses == 1


def test_without_bytes_nothing_is_kept(encode):
    cache = ReferenceCache(0)
    assert [cache.look_up(["a"], encode).misses for _ in range(2)] == [1, 1]
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_a_negative_size_is_refused():
    with pytest.raises(InputError, match=r"a cache size of 0 bytes or more, got -1\. Pass 0"):
        ReferenceCache(-1)


def test_a_kept_vector_is_a_copy_of_its_own(encode):
    cache = ReferenceCache(ROOMY)
    given = vectors_of(["a"])
    cache.look_up(["a"], lambda _: given).vectors.zero_()
    given.zero_()
    assert torch.equal(cache.look_up(["a"], encode).vectors, vectors_of(["a"]))


def test_what_failed_to_encode_is_asked_for_again(encode):
    cache = ReferenceCache(ROOMY)

    def fail(texts):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        cache.look_up(["a"], fail)
    assert cache.look_up(["a"], encode).misses == 1


@pytest.mark.parametrize("kept", [0, 1, 3])
def test_a_device_without_room_keeps_fewer_and_gives_all(encode, kept):
    cache = ReferenceCache(ROOMY)
    texts = ["a", "bb", "ccc", "dddd"]
    cache.look_up(["z"], encode)
    with RoomForCopies(kept):
        assert torch.equal(cache.look_up(texts, encode).vectors, vectors_of(texts))
    assert len(cache) == 1 + kept
    assert cache.size_bytes == sum(map(size_of_one, ["z", *texts[:kept]]))
    lookup = cache.look_up([*texts, "z"], encode)
    assert torch.equal(lookup.vectors, vectors_of([*texts, "z"]))
    assert (lookup.hits, lookup.misses) == (1 + kept, 4 - kept)


class RoomForCopies(TorchDispatchMode):
    """A device that has room for so many copies of tensors."""

    def __init__(self, copies):
        super().__init__()
        self.copies = copies

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.clone.default:
            if not self.copies:
                raise torch.OutOfMemoryError("full")
            self.copies -= 1
        return function(*args, **(kwargs or {}))


def test_threads_that_ask_at_once_have_a_text_encoded_once(encode):
    cache = ReferenceCache(ROOMY)
    texts = ["x" * length for length in range(50)]
    together = threading.Barrier(8)

    def look_up(seed):
        together.wait()
        mine = random.Random(seed).sample(texts, len(texts))
        return all(torch.equal(cache.look_up([text], encode).vectors, vectors_of([text])) for text in mine)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(look_up, range(8)))
    assert sorted(encode.asked) == texts
