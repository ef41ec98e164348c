"""How much memory an encoder takes: its weights, the activations of a batch, and what a bound leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, is_dataclass
from typing import Final

import torch
from torch import Tensor

from fastreward.backends import resolve_op
from fastreward.caller import warn_caller
from fastreward.encoders.architecture import Architecture
from fastreward.errors import InputError
from fastreward.ops.linear import TRITON_MULTIPLE, onednn_available, padded_rows

GRAPH_TOKENS: Final = 16_384
"""Tokens of the longest batch that a CUDA graph is captured for, unless a bound on memory allows fewer."""

GRAPH_BYTES: Final = 2**30
"""Memory of all CUDA graphs, unless a bound allows less."""

_TOKEN_BYTES: Final = 64
"""Ids, positions and offsets of a token, as they come and widened to 64 bits."""


@dataclass(frozen=True)
class Budget:
    """What one device may hold.

    Attributes:
        batch_tokens: Tokens of one batch at most.
        graph_tokens: Tokens of the longest batch that is captured in a CUDA graph.
        graph_bytes: What all graphs may take together.
        scratch_bytes: What the activations of a batch may take, and other work while there are none; None
            for no bound.
    """

    batch_tokens: int
    graph_tokens: int = GRAPH_TOKENS
    graph_bytes: int = GRAPH_BYTES
    scratch_bytes: int | None = None

    def at_once(self, item_bytes: int, default: int) -> int:
        """How many items of some work are done at once: `default`, or as many as there is room for."""
        return (
            default if self.scratch_bytes is None else max(1, min(default, self.scratch_bytes // item_bytes))
        )


def budget_within(
    max_bytes: int,
    *,
    weights: int,
    caches: int,
    token_bytes: int,
    batch_tokens: int,
    text_tokens: int,
    rows: Callable[[int], int] = int,
    graphs: bool = False,
) -> Budget:
    """Lower the tokens of a batch until all that a device holds fits into `max_bytes`.

    CUDA graphs share memory of their own for the activations of the longest batch that is captured.

    Args:
        max_bytes: The bound.
        weights: Bytes of the weights.
        caches: Bytes that the caches of vectors may grow to.
        token_bytes: Bytes of activations for a token that is computed, from `activation_bytes`.
        batch_tokens: Tokens of a batch where there is room for them.
        text_tokens: Tokens of the longest text, which is never split.
        rows: As how many tokens so many are computed, from `rows_taken`; as so many by default.
        graphs: Whether CUDA graphs are captured.

    Raises:
        InputError: If the longest text does not fit; the message says what would be enough.

    Example:
        >>> budget = budget_within(
        ...     10**6, weights=6 * 10**5, caches=0, token_bytes=1000, batch_tokens=2048, text_tokens=256
        ... )
        >>> budget.batch_tokens
        400
    """
    held = weights + caches
    least = held + rows(text_tokens) * token_bytes * (2 if graphs else 1)
    if max_bytes < least:
        raise InputError(
            f"max_bytes of {least:,} at least ({weights:,} for weights, {caches:,} for caches of vectors, "
            f"{least - held:,} for a text of {text_tokens} tokens)",
            f"{max_bytes:,}",
            "Raise it, or lower reference_cache_bytes, recent_bytes or max_seq_length, or take 16 bits.",
        )
    room = (max_bytes - held) // token_bytes
    if not graphs:
        tokens = min(batch_tokens, room)
        while rows(tokens) > room:  # by fewer steps than rows are rounded up by
            tokens -= 1
        return Budget(tokens, scratch_bytes=rows(tokens) * token_bytes)
    graph_tokens = min(GRAPH_TOKENS, room // 2)
    tokens = min(batch_tokens, room - graph_tokens)
    return Budget(tokens, graph_tokens, graph_tokens * token_bytes, tokens * token_bytes)


def rows_taken(device: torch.device, dtype: torch.dtype) -> Callable[[int], int]:
    """Return a function from the tokens of a batch to those as which it is computed.

    They are as many, but where oneDNN computes the products: there they are rounded up, see `padded_rows`.

    Example:
        >>> rows_taken(torch.device("cuda"), torch.float16)(257)
        257
    """
    return padded_rows if device.type == "cpu" and onednn_available(dtype) else int


def warn_if_taken(device: torch.device, room: int) -> None:
    """Warn if a GPU has less than `room` bytes left; on a CPU nothing is asked."""
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if free < room:
        warn_caller(
            f"max_bytes allows the scorer {room:,} bytes more on {device}, which has {free:,} left. It "
            "goes on, with smaller batches where memory runs out. Lower max_bytes, or leave it more room."
        )


def activation_bytes(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> int:
    """Bound the memory of the packed encoder's activations, in bytes for a row of a batch that is computed.

    The most is held in one of three places, each beside the stream of hidden states: in the attention
    (queries, keys, values, what was attended to, and its copies), inside the feed-forward block, or in the
    pooling, which is in fp32. What libraries take for themselves, as cuBLAS does, is not counted.

    Args:
        architecture: The encoder's shape.
        device: Where it computes.
        dtype: What its products are in; with float8_e4m3fn everything else is in bfloat16.

    Example:
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> minilm = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2").architecture
        >>> 10_000 < activation_bytes(minilm, torch.device("cpu"), torch.float32) < 25_000
        True
    """
    d, f = architecture.hidden_size, architecture.intermediate_size
    scaled = dtype == torch.float8_e4m3fn
    size = 2 if scaled else dtype.itemsize
    windowed = any(window is not None for window in architecture.windows)
    attention = (7 + architecture.pre_norm + windowed) * d * size
    inside = f * size if _activation_is_fused(architecture, device, dtype) else _unfused(architecture, size)
    block = (4 + architecture.pre_norm) * d * size + inside + scaled * (d + f)
    pooling = 4 * d * size + 2 * d * torch.float32.itemsize
    if device.type == "cpu" and onednn_available(dtype):  # rows are rounded up: a product's input is copied
        block += f * size
    return max(attention, block, pooling) + _TOKEN_BYTES


def held_bytes(*owners: object) -> int:
    """Count the bytes of all tensors that objects hold, in their attributes, lists, tuples and dicts.

    Tensors that share memory count once. Where oneDNN has packed a weight, its numbers are counted.

    Example:
        >>> weight = torch.zeros(3, 5)
        >>> held_bytes([weight, weight[0]])
        60
    """
    seen: set[int] = set()
    total = 0
    waiting = list(owners)
    while waiting:
        found = waiting.pop()
        if id(found) in seen:
            continue
        seen.add(id(found))
        if isinstance(found, Tensor):
            if found.is_mkldnn:
                total += found.numel() * found.element_size()
            elif (storage := found.untyped_storage())._cdata not in seen:
                seen.add(storage._cdata)
                total += storage.nbytes()
        else:
            waiting += _parts(found)
    return total


def _parts(found: object) -> Iterable[object]:
    if isinstance(found, dict):
        return found.values()
    if isinstance(found, list | tuple):
        return found
    if is_dataclass(found):
        return [getattr(found, field.name) for field in fields(found)]
    # Objects of our own: what modules, locks and functions refer to is not theirs.
    own = type(found).__module__.partition(".")[0] == __name__.partition(".")[0]
    return vars(found).values() if own and hasattr(found, "__dict__") else ()


def _activation_is_fused(architecture: Architecture, device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the feed-forward block's activation is the epilogue of its product (see `ops.linear`)."""
    if device.type == "cpu":
        return not architecture.gated and onednn_available(dtype)
    sizes = architecture.hidden_size, architecture.intermediate_size
    return (
        dtype in (torch.float16, torch.bfloat16)
        and not any(size % TRITON_MULTIPLE for size in sizes)
        and resolve_op("linear", device, None) == "triton"
    )


def _unfused(architecture: Architecture, size: int) -> int:
    """Bytes of a token inside the feed-forward block: the product, a copy in fp32, and its activation."""
    f = architecture.intermediate_size
    return (2 if architecture.gated else 1) * f * size + 2 * f * torch.float32.itemsize
