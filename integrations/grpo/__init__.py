"""A GRPO loop in a few short files: `loop` is where to begin to read."""

from fastreward.integrations.grpo.config import LoopConfig, load_config
from fastreward.integrations.grpo.loop import GRPO

__all__ = ["GRPO", "LoopConfig", "load_config"]
