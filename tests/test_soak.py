"""A hundred calls of all shapes: nothing grows, and the same texts score the same to the end."""

import gc
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from fastreward.scorer import Scorer

pytestmark = pytest.mark.filterwarnings("ignore:Texts longer than")

WORDS = ["the", "heart", "pumps", "blood", "body", "insulin", "lowers", "glucose", "energy", "query"]
CALLS = 120
WARM_UP = 60


class User:
    """A reward, as far as a scorer can see."""


def some_call(number, pool):
    """A call of a random kind and size, the same for the same number: its name and arguments."""
    rng = random.Random(number)
    fresh = [" ".join(rng.choices(WORDS, k=rng.randint(0, 200))) for _ in range(rng.randint(0, 3))]
    texts = rng.choices([*pool, *fresh], k=rng.randint(1, 64))  # duplicates among them
    references = rng.choices(pool, k=len(texts))
    return rng.choice(
        [
            ("score", (texts, references)),
            ("score", (texts[:16], [rng.sample(pool, 3) for _ in texts[:16]])),
            ("embed", (texts,)),
            ("similarity", (texts, references[:8])),
            ("maxsim", (texts[:6], references[:6])),
        ]
    )


def run(scorer, call):
    name, arguments = call
    result = getattr(scorer, name)(*arguments)
    return result if isinstance(result, torch.Tensor) else result.f1


def used():
    gc.collect()
    return tracemalloc.get_traced_memory()[0], len(gc.get_objects())


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("users", [1, 2])
def test_calls_of_all_shapes_grow_neither_memory_nor_error(tiny_folder, threads, users):
    rng = random.Random(0)
    pool = [" ".join(rng.choices(WORDS, k=rng.randint(0, 30))) for _ in range(60)]
    small = {"reference_cache_bytes": 20_000, "recent_bytes": 20_000, "word_cache_bytes": 2**20}
    scorer = Scorer(tiny_folder, backend="packed", device="cpu", dtype="float32", max_seq_length=64, **small)
    attached = [User() for _ in range(users)]
    for user in attached:
        scorer.attach(user)
    probe = some_call(0, pool)
    first = run(scorer, probe)
    calls = [some_call(number, pool) for number in range(CALLS)]  # drawn before, for they stay in memory
    tracemalloc.start()
    try:
        with ThreadPoolExecutor(threads) as executor:
            for result in executor.map(lambda call: run(scorer, call), calls[:WARM_UP]):
                assert result.isfinite().all()
            before, objects_before = used()
            for result in executor.map(lambda call: run(scorer, call), calls[WARM_UP:]):
                assert result.isfinite().all()
            after, objects_after = used()
    finally:
        tracemalloc.stop()
    assert after - before < 20_000, "Python memory grows with the number of calls"
    assert objects_after - objects_before < 20, "objects grow with the number of calls"
    torch.testing.assert_close(run(scorer, probe), first, atol=1e-5, rtol=0)
    engine = scorer._engine
    assert max(engine.references.size_bytes, engine.recent.size_bytes) <= 20_000
