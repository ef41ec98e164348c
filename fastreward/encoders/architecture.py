"""config.json → what one family of encoders has that another has not. One encoder class serves them all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from fastreward.errors import CheckpointError, InputError, UnsupportedArchitectureError


@dataclass(frozen=True)
class Architecture:
    """The shape of an encoder, and how its family differs from BERT.

    Attributes:
        family: `model_type` of config.json.
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
        CheckpointError: If a setting is missing or no number, or sizes do not fit together.
        UnsupportedArchitectureError: If the family is not supported, or something it may ask for is not.
    """
    family = config.get("model_type")
    if not isinstance(family, str) or family not in _FAMILIES:
        raise UnsupportedArchitectureError(
            f"an encoder of an architecture that is supported ({', '.join(ARCHITECTURES)})",
            f"{family!r} in {path}",
            "Choose an encoder such as all-MiniLM, bge, e5, multilingual-e5, bge-m3 or gte-modernbert.",
        )
    architecture = _FAMILIES[family](_Settings(config, path), family)
    if architecture.hidden_size % architecture.num_heads:
        raise CheckpointError(
            "a hidden_size that num_attention_heads divides",
            f"{architecture.hidden_size} and {architecture.num_heads}",
            f"Check config.json in {path.parent}.",
        )
    return architecture


class _Settings:
    """Entries of config.json, each checked as it is read."""

    def __init__(self, config: Mapping[str, Any], path: Path) -> None:
        self._config = config
        self._path = path

    def size(self, key: str, default: int | None = None) -> int:
        """A whole number."""
        return int(self._checked(key, self._config.get(key, default), int))

    def number(self, key: str, default: float) -> float:
        """Any number; the default where the entry is missing or null."""
        value = self._config.get(key)
        return default if value is None else float(self._checked(key, value, (int, float)))

    def value(self, key: str, default: Any) -> Any:
        """The entry as it is; the default where it is missing or null."""
        value = self._config.get(key)
        return default if value is None else value

    def require(self, **supported: object) -> None:
        """Refuse what a configuration may ask for and the encoder does not do."""
        for key, expected in supported.items():
            self.refuse_unless(self._config.get(key, expected) == expected, key, expected)

    def refuse_unless(self, holds: bool, key: str, expected: object) -> None:
        if not holds:
            raise UnsupportedArchitectureError(
                f"{key} of {expected!r} in {self._path}",
                repr(self._config.get(key)),
                "Choose another encoder.",
            )

    def _checked(self, key: str, value: object, kind: Any) -> Any:
        if not isinstance(value, kind) or isinstance(value, bool):
            raise CheckpointError(
                f"{key} as a number in {self._path}", repr(value), "Download or save the file again."
            )
        return value


def _bert(settings: _Settings, family: str) -> Architecture:
    """BERT (arXiv 1810.04805): learned positions from 0, full attention, norm behind the residual."""
    settings.require(
        hidden_act="gelu", position_embedding_type="absolute", is_decoder=False, add_cross_attention=False
    )
    return Architecture(
        family=family,
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
        windows=(None,) * settings.size("num_hidden_layers"),
    )


def _roberta(settings: _Settings, family: str) -> Architecture:
    """RoBERTa (arXiv 1907.11692) and XLM-R (arXiv 1911.02116): BERT, its positions behind the padding id."""
    bert = _bert(settings, family)
    padding_id = settings.size("pad_token_id", 1)
    return replace(bert, padding_id=padding_id, max_positions=bert.max_positions - padding_id - 1)


def _modernbert(settings: _Settings, family: str) -> Architecture:
    """ModernBERT (arXiv 2412.13663): rotary positions, GeGLU, norm before the block, most layers local."""
    settings.require(hidden_activation="gelu")
    num_layers = settings.size("num_hidden_layers")
    settings.refuse_unless(num_layers > 0, "num_hidden_layers", "1 or more")
    every = settings.size("global_attn_every_n_layers", 3)
    kinds = settings.value("layer_types", None) or [
        LOCAL if index % every else GLOBAL for index in range(num_layers)
    ]
    settings.refuse_unless(
        len(kinds) == num_layers and set(kinds) <= {LOCAL, GLOBAL}, "layer_types", [GLOBAL, LOCAL, "…"]
    )
    rotary = settings.value("rope_parameters", {})
    thetas = {
        GLOBAL: settings.number("global_rope_theta", 160_000.0),
        LOCAL: settings.number("local_rope_theta", 10_000.0),
    }
    for kind in thetas:
        chosen = rotary.get(kind) or {}
        plain = chosen.get("rope_type", "default") == "default"
        settings.refuse_unless(plain, "rope_parameters", {kind: {"rope_type": "default"}})
        thetas[kind] = float(chosen.get("rope_theta", thetas[kind]))
    # The entry counts both sides: 128 is 64 tokens to the left and 64 to the right.
    window = settings.size("local_attention", 128) // 2
    return Architecture(
        family=family,
        hidden_size=settings.size("hidden_size"),
        intermediate_size=settings.size("intermediate_size"),
        num_heads=settings.size("num_attention_heads"),
        vocab_size=settings.size("vocab_size"),
        max_positions=settings.size("max_position_embeddings"),
        eps=settings.number("norm_eps", 1e-5),
        padding_id=None,
        pre_norm=True,
        gated=True,
        attention_bias=bool(settings.value("attention_bias", False)),
        mlp_bias=bool(settings.value("mlp_bias", False)),
        norm_bias=bool(settings.value("norm_bias", False)),
        thetas=tuple(thetas[kind] for kind in kinds),
        windows=tuple(window if kind == LOCAL else None for kind in kinds),
    )


GLOBAL: Final = "full_attention"
LOCAL: Final = "sliding_attention"

_FAMILIES: Final[Mapping[str, Callable[[_Settings, str], Architecture]]] = {
    "bert": _bert,
    "roberta": _roberta,
    "xlm-roberta": _roberta,
    "camembert": _roberta,
    "modernbert": _modernbert,
}

ARCHITECTURES: Final = tuple(_FAMILIES)
"""The values of `model_type` in config.json that the packed encoder serves."""
