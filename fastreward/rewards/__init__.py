"""Reward callables: a trainer's batch goes in, one number (or ``None``) per completion comes out."""

from fastreward.rewards.bertscore import BERTScoreReward
from fastreward.rewards.semantic import RewardCounts, SemanticReward

__all__ = ["BERTScoreReward", "RewardCounts", "SemanticReward"]
