"""Encoders of known shapes with random weights, in a temporary folder: speed does not need real ones."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from fastreward.ops.pooled_cosine import Pooling


@dataclass(frozen=True)
class EncoderShape:
    """The shape of an encoder.

    Attributes:
        name: Of the checkpoint that has this shape.
        family: `model_type` of config.json.
        hidden_size: D.
        num_layers: L.
        num_heads: H.
        intermediate_size: F.
        vocab_size: Token ids are below this.
        pooling: "mean" or "cls", as the checkpoint asks for.
    """

    name: str
    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    pooling: Pooling = "mean"

    def shrunk(self) -> EncoderShape:
        """The same family with two layers, in which every step runs in a moment; its name says so."""
        return replace(
            self,
            name=f"{self.name}-shrunk",
            hidden_size=48,
            num_layers=2,
            num_heads=3,
            intermediate_size=96,
            vocab_size=500,
        )

    def config(self) -> dict[str, Any]:
        """The entries of config.json in which it differs from its family's defaults."""
        sizes: dict[str, Any] = {
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
        }
        return {**sizes, **_FAMILY_ENTRIES[self.family]}


# RoBERTa counts positions from behind the padding token's id: its table has two rows more. ModernBERT's own
# special tokens lie beyond a small vocabulary.
_ENDS: Final = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_FAMILY_ENTRIES: Final[Mapping[str, Mapping[str, int]]] = {
    "bert": {"max_position_embeddings": 512, "pad_token_id": 0},
    "xlm-roberta": {"max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1},
    "modernbert": {"max_position_embeddings": 8192, "pad_token_id": 0, **_ENDS},
}

COMMON_SCALE: Final = 0.02
"""Of what all texts have in common: biases, positions, the type of a token."""

FIRST_WORD: Final = 4
"""Token ids from here on are no padding, in all families."""

MINILM_L6: Final = EncoderShape("minilm-l6", "bert", 384, 6, 12, 1536, 30_522)
E5_SMALL: Final = EncoderShape("e5-small", "bert", 384, 12, 12, 1536, 30_522)
BGE_BASE: Final = EncoderShape("bge-base", "bert", 768, 12, 12, 3072, 30_522, pooling="cls")
BGE_LARGE: Final = EncoderShape("bge-large", "bert", 1024, 24, 16, 4096, 30_522, pooling="cls")
# multilingual-e5-base with a smaller vocabulary than its 250,002: a token costs the same.
XLM_R_BASE: Final = EncoderShape("xlm-r-base", "xlm-roberta", 768, 12, 12, 3072, 30_522)
MODERNBERT_BASE: Final = EncoderShape("modernbert-base", "modernbert", 768, 22, 12, 1152, 50_368)


@functools.cache
def checkpoint_folder(shape: EncoderShape) -> Path:
    """Write config.json and the weights in fp32, once in a process; the folder goes when the process ends.

    Weights are normal with a variance of 1 / in_features, so that activations keep their size; words are
    normal. Biases and positions are small: they are the same in all texts, and would bring every score of a
    random encoder near 1, where precisions can no longer be told apart by the order of the scores.
    """
    from transformers import AutoConfig, AutoModel

    folder = Path(_temporary().name) / f"{len(list(Path(_temporary().name).iterdir()))}-{shape.name}"
    config = AutoConfig.for_model(shape.family, **shape.config())
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    config.save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    weights = {name: _drawn(name, tensor, generator) for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fastreward-benchmarks-")


def _drawn(name: str, like: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(like.shape, generator=generator)
    if like.ndim == 1:
        return noise.mul_(COMMON_SCALE).add_(1.0 if "norm.weight" in name.lower() else 0.0)
    if "position" in name or "token_type" in name:
        return noise.mul_(COMMON_SCALE)
    return noise if "embeddings" in name else noise.mul_(like.shape[1] ** -0.5)
