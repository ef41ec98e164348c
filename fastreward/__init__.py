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
    from fastreward.configuration import ScorerStats
    from fastreward.out_of_memory import DeviceMemoryError
    from fastreward.profiling import Timeline
    from fastreward.rewards.answer import AnswerReward
    from fastreward.rewards.base import Reward
    from fastreward.rewards.bertscore import BERTScoreReward
    from fastreward.rewards.combine import CombinedReward
    from fastreward.rewards.format import FormatReward
    from fastreward.rewards.guards import ContrastReward, EndingReward, LanguageReward, PromptCopyReward
    from fastreward.rewards.judge import JudgeReward
    from fastreward.rewards.rouge import RougeLReward
    from fastreward.rewards.semantic import SemanticReward
    from fastreward.rewards.surface import LengthReward, RepetitionReward
    from fastreward.scorer import Scorer

__version__ = "0.1.0"

# Loaded when they are first named: torch takes seconds, and `fastreward --help` needs none of it.
_LAZY: Final = {
    "DeviceMemoryError": "fastreward.out_of_memory",
    "AnswerReward": "fastreward.rewards.answer",
    "BERTScoreReward": "fastreward.rewards.bertscore",
    "CombinedReward": "fastreward.rewards.combine",
    "ContrastReward": "fastreward.rewards.guards",
    "EndingReward": "fastreward.rewards.guards",
    "FormatReward": "fastreward.rewards.format",
    "JudgeReward": "fastreward.rewards.judge",
    "LanguageReward": "fastreward.rewards.guards",
    "LengthReward": "fastreward.rewards.surface",
    "PromptCopyReward": "fastreward.rewards.guards",
    "RepetitionReward": "fastreward.rewards.surface",
    "Reward": "fastreward.rewards.base",
    "RougeLReward": "fastreward.rewards.rouge",
    "Scorer": "fastreward.scorer",
    "ScorerStats": "fastreward.configuration",
    "SemanticReward": "fastreward.rewards.semantic",
    "Timeline": "fastreward.profiling",
}

__all__ = [
    "AnswerReward",
    "BERTScoreReward",
    "BackendUnavailableError",
    "CheckpointError",
    "CombinedReward",
    "ContrastReward",
    "DeviceMemoryError",
    "EndingReward",
    "FastRewardError",
    "FormatReward",
    "InputError",
    "JudgeReward",
    "LanguageReward",
    "LengthReward",
    "NonFiniteError",
    "PromptCopyReward",
    "RepetitionReward",
    "Reward",
    "RougeLReward",
    "Scorer",
    "ScorerStats",
    "SemanticReward",
    "Timeline",
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
