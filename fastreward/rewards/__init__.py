"""Reward callables: a trainer's batch goes in, one number (or ``None``) per completion comes out."""

from fastreward.rewards.semantic import RewardCounts, SemanticReward

__all__ = ["RewardCounts", "SemanticReward"]
