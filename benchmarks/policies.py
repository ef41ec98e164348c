"""What the configurations of small random policies have in common."""

from __future__ import annotations

from typing import Any, Protocol


class Size(Protocol):
    """Sizes of a policy."""

    @property
    def layers(self) -> int:
        """Blocks."""

    @property
    def hidden_size(self) -> int:
        """Of a token's state."""

    @property
    def intermediate_size(self) -> int:
        """Of the layer within a block."""

    @property
    def heads(self) -> int:
        """Of queries, and as many of keys and values."""


def shape_of(size: Size, tokenizer: Any) -> dict[str, Any]:
    """Say it in the words of transformers' configurations, with the tokens of a tokenizer."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": size.hidden_size,
        "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.heads,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
