"""The pipeline: continued pre-training → fine-tuning → GRPO, evaluation and ratings, with the same rewards.

A stage's folder is the model of the next. ``fastreward train`` and ``fastreward evaluate`` do the same from
files.
"""

from fastreward.integrations.pipeline.config import TuningConfig
from fastreward.integrations.pipeline.data import Rows, load_rows
from fastreward.integrations.pipeline.evaluation import Evaluation, evaluate
from fastreward.integrations.pipeline.policy import load_policy
from fastreward.integrations.pipeline.ratings import Ratings, bradley_terry
from fastreward.integrations.pipeline.reinforcement import train_grpo
from fastreward.integrations.pipeline.rewards import RewardPlan, make_reward, make_scorer
from fastreward.integrations.pipeline.tuning import continue_pretraining, finetune

__all__ = [
    "Evaluation",
    "Ratings",
    "RewardPlan",
    "Rows",
    "TuningConfig",
    "bradley_terry",
    "continue_pretraining",
    "evaluate",
    "finetune",
    "load_policy",
    "load_rows",
    "make_reward",
    "make_scorer",
    "train_grpo",
]
