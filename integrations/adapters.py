"""Low-rank adapters: the configuration that peft takes, from the options of a run."""

from __future__ import annotations

from typing import Any

from fastreward.errors import InputError


def adapter_config(rank: int, alpha: float, dropout: float, target_modules: str) -> Any:
    """Make peft's configuration of a LoRA adapter.

    Args:
        rank: Of the two matrices of an adapter.
        alpha: What they add is scaled by alpha / rank.
        dropout: Share of an adapter's input that is dropped in training.
        target_modules: Names of layers, with commas between them, or "all-linear".

    Raises:
        InputError: peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError("peft with lora_rank", "none", 'pip install "fastreward[trl]"') from error
    names: Any = target_modules
    if names != "all-linear":
        names = [name.strip() for name in names.split(",")]
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "target_modules": names}
    return LoraConfig(lora_dropout=dropout, task_type="CAUSAL_LM", **options)
