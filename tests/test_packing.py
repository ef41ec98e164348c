import itertools

import numpy as np
import pytest
import torch

from fastreward.errors import InputError
from fastreward.packing import pack, token_budget_batches, upload, upload_into


def test_texts_lie_one_after_another_without_padding(device):
    batch = pack([[5, 6, 7], [], [8, 9]], device)
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9]
    assert batch.position_ids.tolist() == [0, 1, 2, 0, 1]
    assert batch.cu_seqlens.tolist() == [0, 3, 3, 5]
    assert batch.lengths == (3, 0, 2)
    assert (batch.num_tokens, batch.max_seqlen) == (5, 3)


def test_all_tensors_are_int32_on_the_device_that_was_asked_for(device):
    batch = pack([[1], [2, 3]], device)
    for tensor in (batch.input_ids, batch.position_ids, batch.cu_seqlens):
        assert (tensor.dtype, tensor.device) == (torch.int32, device)


@pytest.mark.parametrize("texts", [[], [[]]])
def test_a_batch_may_be_empty(texts):
    batch = pack(texts, torch.device("cpu"))
    assert batch.cu_seqlens.tolist() == [0] * (len(texts) + 1)
    assert (batch.num_tokens, batch.max_seqlen) == (0, 0)


@pytest.mark.parametrize("lengths", [(1, 3, 5, 4, 2), (0, 1, 0, 7), (4, 8), (0,), ()])
def test_arrays_that_travel_together_arrive_as_they_were_each_at_a_multiple_of_16_bytes(device, lengths):
    arrays = [np.arange(length, dtype=np.int32) + 100 * length for length in lengths]
    tensors = upload(arrays, device)
    assert len(tensors) == len(arrays)
    for tensor, array in zip(tensors, arrays, strict=True):
        assert (tensor.dtype, tensor.device) == (torch.int32, device)
        assert tensor.tolist() == array.tolist()
        assert tensor.data_ptr() % 16 == 0


def test_an_array_is_copied_into_a_part_of_a_tensor_and_no_further(device):
    target, array = torch.full((6,), -1, dtype=torch.int32, device=device), np.array([7, 8], dtype=np.int32)
    upload_into(target[3:5], array)
    array[:] = 9  # the copy is the host's own before the call returns
    assert target.tolist() == [-1, -1, -1, 7, 8, -1]


def test_batches_hold_every_text_once_within_the_budget_and_longest_first():
    hypothesis = pytest.importorskip("hypothesis")

    @hypothesis.settings(deadline=None, database=None)
    @hypothesis.given(
        lengths=hypothesis.strategies.lists(hypothesis.strategies.integers(0, 40)),
        max_tokens=hypothesis.strategies.integers(1, 60),
    )
    def check(lengths, max_tokens):
        batches = token_budget_batches(lengths, max_tokens)
        order = [index for batch in batches for index in batch]
        assert order == sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
        for batch in batches:
            assert sum(lengths[index] for index in batch) <= max_tokens or len(batch) == 1
        for batch, following in itertools.pairwise(batches):
            assert sum(lengths[index] for index in [*batch, following[0]]) > max_tokens  # batches are full

    check()


def test_a_text_beyond_the_budget_is_a_batch_of_its_own():
    assert token_budget_batches([1, 9, 1], max_tokens=4) == [[1], [0, 2]]


@pytest.mark.parametrize("max_tokens", [0, -1])
def test_a_budget_without_room_is_refused(max_tokens):
    with pytest.raises(InputError, match=rf"a token budget of 1 or more, got {max_tokens}\. Pass a larger"):
        token_budget_batches([1], max_tokens)
