"""Vectors of unit length, as several ops define them."""

from __future__ import annotations

import torch
from torch import Tensor


def unit_vectors(x: Tensor) -> Tensor:
    """Normalise the rows of x [N, D], zeros staying zeros.

    They are scaled by their largest element first, so that no square overflows or vanishes.

    Example:
        >>> unit_vectors(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [0.0000, 0.0000]])
    """
    largest = x.abs().amax(dim=-1, keepdim=True)
    x = x / torch.where(largest == 0.0, 1.0, largest)
    norm = x.square().sum(dim=-1, keepdim=True).sqrt()
    return x / torch.where(norm == 0.0, 1.0, norm)
