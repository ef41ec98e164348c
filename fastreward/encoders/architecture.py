"""config.json → what one family of encoders has that another has not. One encoder class serves them all."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from fastreward.errors import CheckpointError, InputError, UnsupportedArchitectureError


@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder, and how its family differs from BERT.

    Attributes:
        family: `model_type` of config.json.
        weight_layout: After which family's model in transformers the checkpoint's tensors are named and cut.
        prefix: What their names begin with where the checkpoint is of a model with a head on top.
        hidden_size: D.
        intermediate_size: F, the width of the feed-forward block's inside.
        num_heads: Attention heads; D is a multiple of them.
        vocab_size: Token ids are below this.
        max_positions: Tokens of a text at most.
        eps: Added to the variance in every LayerNorm.
        padding_id: Where positions count on from behind it, as in RoBERTa: the id of the padding token, which
            takes no position of its own. None where they count from 0.
        pre_norm: Whether a block's input is normalised and its residual is not (arXiv 2002.04745), as in
            ModernBERT; in BERT a block's output is normalised together with its residual.
        gated: Whether the feed-forward block is a GeGLU (arXiv 2002.05202).
        attention_bias: Whether the attention's products have biases.
        mlp_bias: Whether the feed-forward block's have.
        norm_bias: Whether the LayerNorms have.
        thetas: Base of the rotary embedding in each layer; None in families with learned positions.
        windows: For each layer how far a token sees to either side, or None for the whole text.
    """

    family: str
    weight_layout: Literal["bert", "modernbert"]
    prefix: str
    hidden_size: int
    intermediate_size: int
    num_heads: int
    vocab_size: int
    max_positions: int
    eps: float
    padding_id: int | None
    pre_norm: bool
    gated: bool
    attention_bias: bool
    mlp_bias: bool
    norm_bias: bool
    thetas: tuple[float, ...] | None
    windows: tuple[int | None, ...]

    @property
    def num_layers(self) -> int:
        """How many layers there are."""
        return len(self.windows)

    @property
    def head_dim(self) -> int:
        """Columns of one attention head."""
        return self.hidden_size // self.num_heads

    def first_layers(self, count: int) -> Architecture:
        """The same encoder with its first `count` layers alone.

        Raises:
            InputError: If there are not as many.
        """
        if not 1 <= count <= self.num_layers:
            raise InputError(
                f"num_layers from 1 to {self.num_layers}, which the encoder has",
                str(count),
                "Pass fewer, or None for all.",
            )
        thetas = None if self.thetas is None else self.thetas[:count]
        return replace(self, thetas=thetas, windows=self.windows[:count])


def architecture_of(config: Mapping[str, Any], path: Path) -> Architecture:
    """Read an architecture from the contents of config.json.

    Args:
        config: The contents.
        path: Where they come from, for messages.

    Raises:
        CheckpointError: If a setting is missing, of another type or out of range, or sizes do not fit
            together.
        UnsupportedArchitectureError: If the family is not supported, or something it may ask for is not.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise UnsupportedArchitectureError(
            f"an encoder of an architecture that is supported ({', '.join(ARCHITECTURES)})",
            f"{family!r} in {path}",
            "Choose an encoder such as all-MiniLM, bge, e5, multilingual-e5, bge-m3 or gte-modernbert.",
        )
    read, prefix = _FAMILIES[family]
    architecture = read(_Settings(config, path), family, prefix)
    if architecture.hidden_size % architecture.num_heads:
        raise CheckpointError(
            "a hidden_size that num_attention_heads divides",
            f"{architecture.hidden_size} and {architecture.num_heads}",
            f"Check config.json in {path.parent}.",
        )
    return architecture


class _Settings:
    """Entries of config.json, each checked as it is read."""

    def __init__(self, entries: Mapping[str, Any], path: Path) -> None:
        self.entries = entries
        self._path = path

    def size(self, key: str, default: int | None = None, *, minimum: int = 1) -> int:
        """A whole number of `minimum` or more."""
        value = self.entries.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
            raise self._wrong(f"{key} as a whole number of {minimum} or more", value)
        return value

    def number(self, key: str, default: float) -> float:
        """A positive number; the default where the entry is missing or null."""
        value = self.entries.get(key)
        if value is None:
            return default
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self._wrong(f"{key} as a positive number", value)
        return float(value)

    def flag(self, key: str) -> bool:
        """True or false; false where the entry is missing or null."""
        value = self.entries.get(key)
        if not isinstance(value, bool | None):
            raise self._wrong(f"{key} as true or false", value)
        return bool(value)

    def part(self, key: str) -> _Settings:
        """The entries of an object; none where it is missing or null."""
        value = self.entries.get(key)
        if not isinstance(value, dict | None):
            raise self._wrong(f"{key} as an object", value)
        return _Settings(value or {}, self._path)

    def names(self, key: str) -> list[str] | None:
        """A list of strings; None where it is missing or null."""
        value = self.entries.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self._wrong(f"{key} as a list of strings", value)
        return value

    def require(self, **supported: object) -> None:
        """Refuse what a configuration may ask for and the encoder does not do."""
        for key, expected in supported.items():
            self.refuse_unless(self.entries.get(key, expected) == expected, key, expected)

    def refuse_unless(self, holds: bool, key: str, expected: object) -> None:
        if not holds:
            raise UnsupportedArchitectureError(
                f"{key} of {expected!r} in {self._path}",
                repr(self.entries.get(key)),
                "Choose another encoder.",
            )

    def _wrong(self, expected: str, received: object) -> CheckpointError:
        return CheckpointError(
            f"{expected} in {self._path}", repr(received), "Download or save the file again."
        )


def _bert(settings: _Settings, family: str, prefix: str) -> Architecture:
    """BERT (arXiv 1810.04805): learned positions from 0, full attention, norm behind the residual."""
    settings.require(
        hidden_act="gelu", position_embedding_type="absolute", is_decoder=False, add_cross_attention=False
    )
    return Architecture(
        family=family,
        weight_layout="bert",
        prefix=prefix,
        hidden_size=settings.size("hidden_size"),
        intermediate_size=settings.size("intermediate_size"),
        num_heads=settings.size("num_attention_heads"),
        vocab_size=settings.size("vocab_size"),
        max_positions=settings.size("max_position_embeddings"),
        eps=settings.number("layer_norm_eps", 1e-12),
        padding_id=None,
        pre_norm=False,
        gated=False,
        attention_bias=True,
        mlp_bias=True,
        norm_bias=True,
        thetas=None,
        windows=(None,) * settings.size("num_hidden_layers", minimum=0),
    )


def _roberta(settings: _Settings, family: str, prefix: str) -> Architecture:
    """RoBERTa (arXiv 1907.11692) and XLM-R (arXiv 1911.02116): BERT, its positions behind the padding id."""
    padding_id = settings.size("pad_token_id", 1, minimum=0)
    before = padding_id + 1  # rows of the position table that no text's position takes
    positions = settings.size("max_position_embeddings", minimum=before + 1) - before
    bert = _bert(settings, family, prefix)
    return replace(bert, padding_id=padding_id, max_positions=positions)


def _modernbert(settings: _Settings, family: str, prefix: str) -> Architecture:
    """ModernBERT (arXiv 2412.13663): rotary positions, GeGLU, norm before the block, most layers local."""
    settings.require(hidden_activation="gelu", rope_scaling=None)
    num_layers = settings.size("num_hidden_layers")
    every = settings.size("global_attn_every_n_layers", 3)
    kinds = settings.names("layer_types")
    if kinds is None:
        kinds = [LOCAL if index % every else GLOBAL for index in range(num_layers)]
    settings.refuse_unless(
        len(kinds) == num_layers and set(kinds) <= {LOCAL, GLOBAL}, "layer_types", [GLOBAL, LOCAL, "…"]
    )
    thetas = _thetas(settings)
    # The entry counts both sides: 128 is 64 tokens to the left and 64 to the right.
    window = settings.size("local_attention", 128) // 2
    return Architecture(
        family=family,
        weight_layout="modernbert",
        prefix=prefix,
        hidden_size=settings.size("hidden_size"),
        intermediate_size=settings.size("intermediate_size"),
        num_heads=settings.size("num_attention_heads"),
        vocab_size=settings.size("vocab_size"),
        max_positions=settings.size("max_position_embeddings"),
        eps=settings.number("norm_eps", 1e-5),
        padding_id=None,
        pre_norm=True,
        gated=True,
        attention_bias=settings.flag("attention_bias"),
        mlp_bias=settings.flag("mlp_bias"),
        norm_bias=settings.flag("norm_bias"),
        thetas=tuple(thetas[kind] for kind in kinds),
        windows=tuple(window if kind == LOCAL else None for kind in kinds),
    )


def _thetas(settings: _Settings) -> dict[str, float]:
    """Base of the rotary embedding in each kind of layer, from newer entries or older ones."""
    thetas = {
        GLOBAL: settings.number("global_rope_theta", 160_000.0),
        LOCAL: settings.number("local_rope_theta", 10_000.0),
    }
    rotary = settings.part("rope_parameters")
    # Entries for all layers may stand beside the two kinds as long as they ask for nothing.
    empty = {"rope_type": "default", "rope_theta": None}
    plain = all(
        key in thetas or (key in empty and value == empty[key]) for key, value in rotary.entries.items()
    )
    for kind, older in thetas.items():
        chosen = rotary.part(kind)
        plain &= chosen.entries.get("rope_type", "default") == "default" and chosen.entries.keys() <= {*empty}
        thetas[kind] = chosen.number("rope_theta", older)
    settings.refuse_unless(
        plain, "rope_parameters", {kind: {"rope_type": "default", "rope_theta": "…"} for kind in thetas}
    )
    return thetas


GLOBAL: Final = "full_attention"
LOCAL: Final = "sliding_attention"

# How a family's config.json is read, and the prefix of its weights where there is a head on top.
_FAMILIES: Final[Mapping[str, tuple[Callable[[_Settings, str, str], Architecture], str]]] = {
    "bert": (_bert, "bert."),
    "roberta": (_roberta, "roberta."),
    "xlm-roberta": (_roberta, "roberta."),
    "camembert": (_roberta, "roberta."),
    "modernbert": (_modernbert, "model."),
}

ARCHITECTURES: Final = tuple(_FAMILIES)
"""The values of `model_type` in config.json that the packed encoder serves."""
