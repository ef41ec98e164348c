"""What a back-end must offer to be an encoder."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from fastreward.packing import PackedBatch


class Encoder(Protocol):
    """Turns packed token ids into hidden states, unit vectors or scores.

    All methods may be called from several threads at once.
    """

    @property
    def device(self) -> torch.device:
        """Where batches and references must be, and where results come back."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the hidden states."""
        ...

    @property
    def hidden_size(self) -> int:
        """D, the width of hidden states and vectors."""
        ...

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last hidden states, [T, D] in `dtype`."""
        ...

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return one unit vector for each text, [N, D], fp32; zeros for a text without tokens."""
        ...

    def cosine(self, batch: PackedBatch, references: Tensor, reference_index: Tensor) -> Tensor:
        """Score each text by its cosine with a row of `references`.

        Args:
            batch: N texts.
            references: [R, D], fp32.
            reference_index: [N], int32 or int64, a row of `references` for each text.

        Returns:
            [N], fp32, in [-1, 1].
        """
        ...
