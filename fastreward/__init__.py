"""fastreward: a GPU-optimised, high-throughput semantic reward library for GRPO.

Score explanations by the cosine similarity of their embeddings to a reference's (arXiv 2509.13081), fast
enough that the trainer never waits for it.

Example:
    >>> from fastreward import Scorer, SemanticReward
    >>> scorer = Scorer("sentence-transformers/all-MiniLM-L6-v2")
    >>> reward = SemanticReward(scorer, reference="explanation")
    >>> rewards = reward(completions=["Blood is pumped."], explanation=["The heart pumps blood."])
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Final

from fastreward.errors import (
    BackendUnavailableError,
    CheckpointError,
    FastRewardError,
    InputError,
    NonFiniteError,
    UnsupportedArchitectureError,
)

if TYPE_CHECKING:
    from fastreward.rewards.bertscore import BERTScoreReward
    from fastreward.rewards.semantic import SemanticReward
    from fastreward.scorer import Scorer, ScorerStats

__version__ = "0.1.0"

# Loaded when they are first named: torch takes seconds, and `fastreward --help` needs none of it.
_LAZY: Final = {
    "BERTScoreReward": "fastreward.rewards.bertscore",
    "Scorer": "fastreward.scorer",
    "ScorerStats": "fastreward.scorer",
    "SemanticReward": "fastreward.rewards.semantic",
}

__all__ = [
    "BERTScoreReward",
    "BackendUnavailableError",
    "CheckpointError",
    "FastRewardError",
    "InputError",
    "NonFiniteError",
    "Scorer",
    "ScorerStats",
    "SemanticReward",
    "UnsupportedArchitectureError",
    "__version__",
]


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_LAZY[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
