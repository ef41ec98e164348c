"""Generation with vLLM in the policy's own process and on its GPU.

Written by vLLM's documentation and by how TRL 1.16 uses it; it has not been run. vLLM's own log-probabilities
are left alone: the first ratios are 1, as if the policy had drawn, so what vLLM rounds otherwise stays.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

from fastreward.errors import BackendUnavailableError, InputError
from fastreward.integrations.generation import Sampling

Ids: TypeAlias = Sequence[Sequence[int]]


class VLLM:
    """An engine of vLLM with a policy's weights, one for each process and GPU.

    Raises:
        BackendUnavailableError: vLLM is not installed, or the policy is not on a GPU.
        InputError: The policy was not loaded from anywhere, and vLLM reads its configuration there.
    """

    def __init__(self, model: Any, gpu_memory_utilization: float) -> None:
        try:
            from vllm import LLM  # type: ignore[import-not-found]
        except ImportError as error:
            raise BackendUnavailableError("vLLM, for use_vllm", "none", "pip install vllm") from error
        if model.device.type != "cuda":
            raise BackendUnavailableError("a policy on a GPU, for use_vllm", str(model.device), "Move it.")
        if not (name := getattr(model.config, "_name_or_path", "")):
            raise InputError("a policy that was loaded from a folder", "another", "Save it and load it.")
        with socket.socket() as free:  # the launcher's variables, where there was no launcher
            free.bind(("127.0.0.1", 0))
            alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
            for variable, value in (alone | {"MASTER_PORT": str(free.getsockname()[1])}).items():
                os.environ.setdefault(variable, value)
        options: dict[str, Any] = {"distributed_executor_backend": "external_launcher"}
        self._llm: Any = LLM(model=name, gpu_memory_utilization=gpu_memory_utilization, **options)

    @torch.no_grad()
    def load(self, model: Any) -> None:
        """Take over the policy's weights."""
        engine = self._llm.llm_engine.model_executor.driver_worker.model_runner.model
        engine.load_weights(_plain_weights(model))
        self._llm.reset_prefix_cache()

    def generate(
        self, prompts: Ids, sampling: Sampling, *, count: int, seeds: Sequence[int], ends: Sequence[int]
    ) -> list[list[int]]:
        """Draw completions as `generation.generate` does, with vLLM's own random numbers."""
        from vllm import SamplingParams

        limits = {name: getattr(sampling, name) for name in ("temperature", "top_p", "top_k")}
        limits["max_tokens"] = sampling.max_completion_length
        drawn = [SamplingParams(n=count, seed=seed, stop_token_ids=list(ends), **limits) for seed in seeds]
        tokens = [{"prompt_token_ids": list(ids)} for ids in prompts]
        outputs = self._llm.generate(tokens, sampling_params=drawn, use_tqdm=False)
        return [list(completion.token_ids) for output in outputs for completion in output.outputs]


def _plain_weights(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """List the weights by the checkpoint's names, LoRA's adapters added to those of their layers."""
    if not hasattr(model, "merge_adapter"):
        yield from model.named_parameters()
        return
    model.merge_adapter()
    try:
        for name, weight in model.named_parameters():
            if "lora_" not in name:
                yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight
    finally:
        model.unmerge_adapter()
