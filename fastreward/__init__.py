"""fastreward: a GPU-optimised, high-throughput semantic reward library for GRPO.

Score explanations by the cosine similarity of their embeddings to a reference's (arXiv 2509.13081), fast
enough that the trainer never waits for it.

Example:
    >>> from fastreward import Scorer, SemanticReward
    >>> scorer = Scorer("sentence-transformers/all-MiniLM-L6-v2")
    >>> reward = SemanticReward(scorer, reference="explanation")
    >>> rewards = reward(completions=["Blood is pumped."], explanation=["The heart pumps blood."])
"""

from fastreward.errors import (
    BackendUnavailableError,
    CheckpointError,
    FastRewardError,
    InputError,
    NonFiniteError,
    UnsupportedArchitectureError,
)
from fastreward.rewards.semantic import SemanticReward
from fastreward.scorer import Scorer, ScorerStats

__version__ = "0.1.0"

__all__ = [
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
