"""The policy as the configuration asks for it: with an adapter, with gradient checkpointing, in fp32."""

from __future__ import annotations

from typing import Any

from fastreward.errors import InputError
from fastreward.integrations.adapters import adapter_config
from fastreward.integrations.grpo.config import LoopConfig


def prepared(model: Any, config: LoopConfig) -> Any:
    """Add to the model what the configuration asks for.

    Raises:
        InputError: The weights to train are in half precision, or peft is missing.
    """
    if config.gradient_checkpointing:
        # The newer name, where transformers has it.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    if config.lora_rank:
        options = (config.lora_alpha, config.lora_dropout, config.lora_target_modules)
        adapter = adapter_config(config.lora_rank, *options)
        from peft import get_peft_model

        model = get_peft_model(model, adapter)
    halves = [w.dtype for w in model.parameters() if w.requires_grad and w.dtype.itemsize < 4]
    if halves:
        remedy = "Load it with dtype=torch.float32, and pass bf16=True: in half, small updates are lost."
        raise InputError("a model in fp32", str(halves[0]), remedy)
    return model


def engine(model: Any, config: LoopConfig) -> Any:
    """Return what generates instead of transformers, or ``None``."""
    if not config.use_vllm:
        return None
    from fastreward.integrations.grpo.vllm import VLLM

    return VLLM(model, config.vllm_gpu_memory_utilization)
