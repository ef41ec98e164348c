import itertools

import numpy as np
import pytest
import torch

from fastreward import batching
from fastreward.batching import Batcher
from fastreward.encoders.checkpoint import load_checkpoint
from fastreward.tokenization import Tokenizer

CPU = torch.device("cpu")


@pytest.fixture
def tokenizer(tiny_folder):
    return Tokenizer.from_file(load_checkpoint(str(tiny_folder)).tokenizer_file, max_length=24)


@pytest.fixture
def in_small_chunks(monkeypatch):
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    monkeypatch.setattr(batching, "MIN_BATCH_TOKENS", 1)


@pytest.mark.parametrize("sizes", [[1], [1] * 1000, [2], [6, 1, 901, 4, 4, 1, 42]])
@pytest.mark.parametrize("chunk_size", [1, 40, 10**6])
def test_chunks_hold_every_text_once_and_only_the_last_is_too_small(sizes, chunk_size):
    ends = [0]
    while ends[-1] < len(sizes):
        ends.append(batching._chunk_end(np.cumsum(sizes), ends[-1], chunk_size))
    chunks = [sizes[begin:end] for begin, end in itertools.pairwise(ends)]
    assert all(chunks)
    assert all(sum(chunk) >= chunk_size for chunk in chunks[:-1])
    assert all(sum(chunk[:-1]) < chunk_size for chunk in chunks)


@pytest.mark.parametrize("word", ["heart ", "x ", "electroencephalography "])
def test_after_the_first_batch_none_waits_for_two_chunks_nor_comes_out_of_one_with_another(
    tokenizer, monkeypatch, word
):
    """Whatever a token has in characters: then a batch is tokenised in the time in which one is computed."""
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    monkeypatch.setattr(batching, "MIN_BATCH_TOKENS", 1)
    chunks = []
    content = Tokenizer.content
    monkeypatch.setattr(Tokenizer, "content", lambda self, texts: chunks.append(1) or content(self, texts))
    texts = [word * (3 + number % 5) for number in range(2000)]
    so_far = []
    for batch in Batcher(tokenizer, 200, progress=False).laid_out(
        texts, np.array([len(text) for text in texts])
    ):
        assert len(batch.texts.input_ids) <= 200
        so_far.append(len(chunks))
    assert so_far[0] <= 3
    assert len(so_far) > 20
    steps = [after - before for before, after in itertools.pairwise(so_far[:-1])]
    # A twentieth is spare, so that now and then a chunk gives two.
    assert max(steps) == 1
    assert steps.count(1) >= 0.9 * len(steps)


@pytest.mark.usefixtures("in_small_chunks")
@pytest.mark.parametrize("budget", [1, 30, 100, 10**6])
def test_batches_hold_every_text_once_framed_cut_and_within_the_budget(tokenizer, budget):
    texts = ["heart " * (n * 7 % 40) + f"{n}" for n in range(200)]
    expected = tokenizer(texts)
    seen, truncated = [], 0
    for batch in Batcher(tokenizer, budget, progress=False).batches(texts):
        packed = batch.texts.to(CPU)
        assert packed.num_tokens <= budget or len(batch.rows) == 1
        ids = packed.input_ids.split(list(packed.lengths))
        assert [row.tolist() for row in ids] == [expected[row] for row in batch.rows]
        positions = [list(range(length)) for length in packed.lengths]
        assert packed.position_ids.tolist() == list(itertools.chain(*positions))
        assert packed.cu_seqlens.tolist() == [0, *itertools.accumulate(packed.lengths)]
        seen += batch.rows.tolist()
        truncated += batch.truncated
    assert sorted(seen) == list(range(200))
    assert truncated == sum(len(ids) > tokenizer.max_content for ids in tokenizer.content(texts)) > 0


def test_batches_are_filled_across_chunks(tokenizer, monkeypatch):
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    texts = ["heart lung"] * 500
    lengths = [batch.texts.num_tokens for batch in Batcher(tokenizer, 100, progress=False).batches(texts)]
    of_one = len(tokenizer(texts[:1])[0])
    assert all(100 - of_one < length <= 100 for length in lengths[:-1])


def test_token_ids_are_framed_and_cut_like_texts(tokenizer):
    ids = [np.arange(5, dtype=np.int32), np.arange(40, dtype=np.int32), np.zeros(0, dtype=np.int32)]
    (batch,) = Batcher(tokenizer, 10**6, progress=False).batches(ids)
    rows = [row.tolist() for row in batch.texts.to(CPU).input_ids.split(list(batch.texts.lengths))]
    assert rows == [tokenizer.frame(ids[row][: tokenizer.max_content]).tolist() for row in batch.rows]
    assert batch.truncated == 1


def test_a_call_on_a_gpu_comes_in_several_batches_unless_they_would_be_small(tokenizer):
    batcher = Batcher(tokenizer, 65_536, progress=False)
    assert batcher._batch_tokens(4 * 10_000) == batching.MIN_BATCH_TOKENS
    assert batcher._batch_tokens(4 * 100_000) == 25_000
    assert batcher._batch_tokens(4 * 10**7) == 65_536
    assert Batcher(tokenizer, 2_048, progress=False)._batch_tokens(4 * 10**7) == 2_048


def test_the_first_batch_is_small_for_nothing_is_computed_while_it_is_made(tokenizer, monkeypatch):
    monkeypatch.setattr(batching, "MIN_CHUNK_CHARS", 40)
    monkeypatch.setattr(batching, "MIN_BATCH_TOKENS", 100)
    texts = ["heart lung " * 4] * 2000
    first, *others = (
        batch.texts.num_tokens for batch in Batcher(tokenizer, 1000, progress=False).batches(texts)
    )
    assert 50 < first <= 100
    assert all(length <= 100 or 900 < length <= 1000 for length in others[:-1])
    assert sum(length <= 100 for length in others[:-1]) <= 3  # what the first chunk has beyond its batch
