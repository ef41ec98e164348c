"""Checks that the doors of several ops share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor

from fastreward.backends import dtype_name
from fastreward.errors import InputError

FLOAT_DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)
"""What the ops read and write; their sums are fp32."""

SHOWN_VALUES: Final = 16
"""Values of a list that a message shows."""


def describe(tensor: Tensor) -> str:
    """Say dtype, shape and device of a tensor, for a message."""
    return f"{dtype_name(tensor.dtype)} {list(tensor.shape)} on {tensor.device}"


def require(fits: bool, name: str, expected: str, tensor: Tensor) -> None:
    """Raise an `InputError` that names the tensor unless it fits."""
    if not fits:
        raise InputError(f"{name} {expected}", describe(tensor), f"Convert or reshape {name}.")


def check_offsets(
    num_tokens: int,
    cu_seqlens: Tensor,
    max_seqlen: int | None,
    names: tuple[str, str] = ("cu_seqlens", "max_seqlen"),
) -> None:
    """Check the values of `cu_seqlens` [N + 1] on the CPU: from 0, never falling, up to T at most.

    Args:
        num_tokens: T.
        cu_seqlens: The offsets.
        max_seqlen: The caller's bound on the longest text, or None.
        names: What the caller calls these two.
    """
    lengths = cu_seqlens.diff()
    grows = bool((lengths >= 0).all())
    if int(cu_seqlens[0]) != 0 or not grows or int(cu_seqlens[-1]) > num_tokens:
        raise InputError(
            f"{names[0]} that begin at 0, never fall and end at {num_tokens} (T) at most",
            str(cu_seqlens.tolist() if len(cu_seqlens) <= SHOWN_VALUES else cu_seqlens),
            "Pass the running sum of the lengths, with a 0 before it.",
        )
    longest = int(lengths.max()) if len(lengths) else 0
    if max_seqlen is not None and max_seqlen < longest:
        raise InputError(
            f"{names[1]} of {longest} or more, the longest text",
            str(max_seqlen),
            "Pass the longest length, or None.",
        )


def check_lengths(lengths: Sequence[int], cu_seqlens: Tensor) -> None:
    """Check that N lengths are those of the texts that `cu_seqlens` [N + 1] bounds, on the CPU."""
    differences = cu_seqlens.diff().tolist()
    wrong = next((n for n, length in enumerate(lengths) if length != differences[n]), None)
    if wrong is None:
        return
    # A long list is shown from the first text on that is wrong.
    first = 0 if len(lengths) <= SHOWN_VALUES else wrong
    shown = slice(first, first + SHOWN_VALUES)
    raise InputError(
        f"lengths that are the differences of cu_seqlens, from text {first} on {differences[shown]}",
        str(list(lengths[shown])),
        "Pass the lengths of the same texts in the same order.",
    )
