"""Encoders of known shapes with random weights, in a temporary folder: speed does not need real ones."""

from __future__ import annotations

import functools
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor

from benchmarks.texts import read_tokenizer, trained_tokenizer
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged, load_checkpoint
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
        max_tokens: Positions that it has, where its family does not say.
    """

    name: str
    family: str
    hidden_size: int
    num_layers: int
    num_heads: int
    intermediate_size: int
    vocab_size: int
    pooling: Pooling = "mean"
    max_tokens: int = 512

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
        positions = {"max_position_embeddings": self.max_tokens + _FIRST_POSITION.get(self.family, 0)}
        return {**sizes, **positions, **_FAMILY_ENTRIES[self.family]}


# RoBERTa counts positions from behind the padding token's id: its table has two rows more. ModernBERT's own
# special tokens lie beyond a small vocabulary.
_FIRST_POSITION: Final = {"xlm-roberta": 2}
_ENDS: Final = {"bos_token_id": 2, "eos_token_id": 3, "cls_token_id": 2, "sep_token_id": 3}
_FAMILY_ENTRIES: Final[Mapping[str, Mapping[str, int]]] = {
    "bert": {"pad_token_id": 0},
    "xlm-roberta": {"pad_token_id": 1, "type_vocab_size": 1},
    "modernbert": {"max_position_embeddings": 8192, "pad_token_id": 0, **_ENDS},
}

COMMON_SCALE: Final = 0.02
"""Of what all texts have in common: biases, positions, the type of a token."""

FIRST_WORD: Final = 4
"""Token ids from here on are no padding, in all families."""

MINILM_L6: Final = EncoderShape("minilm-l6", "bert", 384, 6, 12, 1536, 30_522)
# e5-small-v2, the English one. multilingual-e5-small is the same but for a table of 250,002 words, of which a
# token reads one row.
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


def known_tokenizer(encoder: Path | None) -> Path | None:
    """Find the file of a real tokenizer: that of an encoder's folder, of the packaged encoder, or none."""
    if encoder is not None:
        return load_checkpoint(encoder).tokenizer_file
    return load_checkpoint(DEFAULT_ENCODER).tokenizer_file if is_packaged(DEFAULT_ENCODER) else None


@functools.cache
def text_folder(shape: EncoderShape, tokenizer_file: Path | None) -> Path:
    """Make a random encoder that takes texts: a folder as sentence-transformers saves it.

    Args:
        shape: The encoder.
        tokenizer_file: Its tokenizer, whose ids must be below the shape's `vocab_size`; None trains one.
    """
    from transformers import PreTrainedTokenizerFast

    weights = checkpoint_folder(shape)
    folder = weights.with_name(f"{weights.name}-texts")
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).symlink_to(weights / name)
    tokenizer = (
        trained_tokenizer(shape.vocab_size) if tokenizer_file is None else read_tokenizer(tokenizer_file)
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=shape.max_tokens,
        model_input_names=["input_ids", "attention_mask"],
        **{f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep")},
    ).save_pretrained(folder)
    modules = "sentence_transformers.models"
    pooling = {"word_embedding_dimension": shape.hidden_size, "pooling_mode_mean_tokens": False}
    contents: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{modules}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{modules}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{modules}.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": shape.max_tokens, "do_lower_case": False},
        "1_Pooling/config.json": {**pooling, _POOLING_FLAGS[shape.pooling]: True},
    }
    (folder / "1_Pooling").mkdir()
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


_POOLING_FLAGS: Final = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token"}


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
