"""Reward callables: a trainer's batch goes in, one number (or ``None``) per completion comes out."""

from fastreward.rewards.answer import AnswerCounts, AnswerReward
from fastreward.rewards.base import Reward, RewardCounts
from fastreward.rewards.bertscore import BERTScoreReward
from fastreward.rewards.combine import CombinedReward, CombinedScores
from fastreward.rewards.format import FormatReward
from fastreward.rewards.gates import Gate
from fastreward.rewards.guards import ContrastReward, EndingReward, LanguageReward, PromptCopyReward
from fastreward.rewards.judge import JudgeCounts, JudgeReward
from fastreward.rewards.rouge import RougeLReward
from fastreward.rewards.semantic import SemanticReward
from fastreward.rewards.shaping import Chain, Clip, Power, Rescale, Shaped, Sigmoid
from fastreward.rewards.surface import LengthReward, RepetitionReward

__all__ = [
    "AnswerCounts",
    "AnswerReward",
    "BERTScoreReward",
    "Chain",
    "Clip",
    "CombinedReward",
    "CombinedScores",
    "ContrastReward",
    "EndingReward",
    "FormatReward",
    "Gate",
    "JudgeCounts",
    "JudgeReward",
    "LanguageReward",
    "LengthReward",
    "Power",
    "PromptCopyReward",
    "RepetitionReward",
    "Rescale",
    "Reward",
    "RewardCounts",
    "RougeLReward",
    "SemanticReward",
    "Shaped",
    "Sigmoid",
]
