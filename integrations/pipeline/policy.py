"""The model that a stage trains: loaded from the hub or from an earlier stage, with or without an adapter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch

from fastreward.backends import resolve_device
from fastreward.errors import InputError
from fastreward.integrations.pipeline.folders import checkpoints, is_finished

ADAPTER: Final = "adapter_config.json"
DTYPES: Final = ("float32", "bfloat16")
GENERIC: Final = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes that do what tokenizer.json says and nothing else."""


def load_policy(
    name: str,
    *,
    tokenizer: str | None = None,
    dtype: str = "float32",
    device: str | torch.device | None = None,
) -> tuple[Any, Any]:
    """Load a causal language model and its tokenizer.

    A tokenizer without a padding token pads with its end token; what is padding is masked in any case.

    Args:
        name: A folder, as a finished stage leaves one, or a name on the hub.
        tokenizer: The tokenizer's, if it is not the model's own.
        dtype: "float32" or "bfloat16".
        device: "cpu", "cuda" …; ``None`` for this process's GPU, and the CPU without one.

    Returns:
        The model, on its device, and the tokenizer.

    Raises:
        InputError: The folder has no model, or the name cannot be loaded; a stage that is not finished says
            so.
        BackendUnavailableError: The device is not there.
    """
    from transformers import AutoModelForCausalLM

    if dtype not in DTYPES:
        raise InputError(f"a dtype among {', '.join(DTYPES)}", repr(dtype), "Correct the name.")
    placed = resolve_device(device)
    require_policy(name)
    with _named(name):
        loaded_tokenizer = _load_tokenizer(tokenizer or name)
        model = AutoModelForCausalLM.from_pretrained(name, dtype=getattr(torch, dtype))
    if loaded_tokenizer.pad_token is None:
        loaded_tokenizer.pad_token = loaded_tokenizer.eos_token
    model.to(placed)  # type: ignore[arg-type]  # as its annotation has it, this takes a model
    return model, loaded_tokenizer


def require_policy(name: str) -> None:
    """See that a name is that of a model, by its configuration alone.

    Raises:
        InputError: As `load_policy` does.
    """
    from transformers import AutoConfig

    folder = Path(name)
    if folder.is_dir() and not is_finished(folder):
        if (folder / ADAPTER).exists():
            remedy = "Merge the adapter first (peft: merge_and_unload), and save the model."
            raise InputError("a model", f"an adapter alone in {name}", remedy)
        state = "checkpoints of a stage that is not finished" if checkpoints(folder) else "none"
        raise InputError(f"a model in {name}", state, "Finish the stage before, or name another folder.")
    with _named(name):
        AutoConfig.from_pretrained(name)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Say which model it was that transformers could not load."""
    try:
        yield
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        remedy = "Correct the name, or download the model first where there is no network."
        raise InputError(f"a model that can be loaded as {name!r}", first, remedy) from error


def _load_tokenizer(name: str) -> Any:
    """Load a tokenizer as it was saved.

    Of some architectures transformers knows that files on the hub name a wrong class, and takes one of its
    own, with its own rules of cutting texts. A tokenizer that was made from scratch and saved with such a
    model would come back as another one.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    settings = Path(name) / "tokenizer_config.json"
    if settings.is_file():
        said = json.loads(settings.read_text(encoding="utf-8")).get("tokenizer_class")
        if said in GENERIC:
            return PreTrainedTokenizerFast.from_pretrained(name)
    return AutoTokenizer.from_pretrained(name)


def merged(model: Any) -> Any:
    """Return the model itself, an adapter merged into its weights and removed."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def weight_bytes(model: Any) -> int:
    """Return the size of a model's weights; what several layers share counts once."""
    return sum(weight.nbytes for weight in model.parameters())


def require_trainable(model: Any, lora_rank: int) -> None:
    """See that what is trained is fp32: in half precision small updates are lost.

    Raises:
        InputError: All weights would be trained, and some are in half precision.
    """
    halves = {str(w.dtype) for w in model.parameters() if w.dtype in (torch.bfloat16, torch.float16)}
    if halves and not lora_rank:
        remedy = "Load it with dtype=float32 and pass bf16=true, or train an adapter (lora_rank)."
        raise InputError("a model in float32", ", ".join(sorted(halves)), remedy)
