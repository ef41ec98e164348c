"""What one sample's references may be handed over in, below the scorer."""

import numpy as np
import pytest
import torch

from fastreward.errors import InputError
from fastreward.text_arguments import checked_references

CHOICES = [["the heart", "a pump"], ["blood"]]


@pytest.mark.parametrize(
    "several",
    [
        ["the heart", "a pump"],
        ("the heart", "a pump"),
        np.array(["the heart", "a pump"]),
        np.array(["the heart", "a pump"], dtype=object),
        np.array(["the heart", "a pump"], dtype=np.dtypes.StringDType()),
    ],
    ids=["list", "tuple", "text", "objects", "strings"],
)
@pytest.mark.parametrize("one", ["blood", ["blood"], np.array(["blood"]), np.array("blood")], ids=str)
def test_references_of_a_sample_may_stand_in_a_list_a_tuple_or_an_array(several, one):
    assert checked_references([several, one], 2, 100) == CHOICES


def test_an_array_of_integers_is_one_reference_of_token_ids_and_one_of_arrays_is_several():
    ids = [np.array([5, 6], dtype=np.int32).tobytes(), np.array([7], dtype=np.int32).tobytes()]
    arrays = np.empty(2, dtype=object)
    arrays[:] = [np.array([5, 6]), torch.tensor([7])]
    assert checked_references([np.array([5, 6]), [7]], 2, 100) == [ids[:1], ids[1:]]
    assert checked_references([arrays], 1, 100) == [ids]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (np.array([], dtype=str), r"at least one reference in references\[0\], got an empty list"),
        (np.array([["a"], ["b"]]), r"a string in references\[0\]\[0\]|whole numbers .* references\[0\]\[0\]"),
        (np.array(["a", None], dtype=object), r"a string in references\[0\]\[1\] .*, got None"),
        (np.array([0.5]), r"whole numbers as token ids in references\[0\], got float64"),
    ],
    ids=["empty", "nested", "missing", "floats"],
)
def test_what_is_no_reference_is_named(reference, message):
    with pytest.raises(InputError, match=message):
        checked_references([reference], 1, 100)
