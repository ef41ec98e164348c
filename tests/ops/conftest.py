"""Fixtures that the tests of several ops share."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture
def poisoned_memory():
    """Uninitialised memory holds NaN, so that what an op forgets to write is seen."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
