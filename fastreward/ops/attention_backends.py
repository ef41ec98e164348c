"""Attention by others, as `fastreward.ops.attention` calls it: PyTorch's SDPA and varlen, and flash-attn.

What each of them needs stands here too; the choice between them, and all checks, are made there.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor

from fastreward.backends import dtype_name, triton_interpreted
from fastreward.errors import BackendUnavailableError

TRITON_HEAD_DIMS: Final = (16, 32, 64, 128)
"""Blocks of the kernel are powers of two, and the tensor cores multiply at least 16 at a time."""

WINDOW_ROWS: Final = 64
"""Queries that SDPA takes at once under a window: together they see the keys of 64 + 2 · window tokens, so
that a long text costs its length times the window and not its length squared."""


GRAPHED_BACKENDS: Final = frozenset({"triton"})
"""Whose launches are the same for all batches of as many tokens, texts and tiles, and read the rest on the
device: what a CUDA graph can repeat. SDPA's are made of each text's length. Varlen and flash take the longest
text from the host, and under a window first-token attention gathers as many keys as the lengths say."""


@dataclass(frozen=True)
class FlashPackage:
    """One of the packages that bring a `flash_attn_varlen_func`.

    Attributes:
        distribution: What pip calls it.
        module: Where the function is.
        min_capability: The first GPU it is written for, and preferred on, when both are installed.
    """

    distribution: str
    module: str
    min_capability: tuple[int, int]


FLASH_PACKAGES: Final = (
    FlashPackage("flash-attn-4", "flash_attn.cute", (9, 0)),
    FlashPackage("flash-attn", "flash_attn", (8, 0)),
)
"""FlashAttention-4, for Hopper and later, before FlashAttention-2, which runs from Ampere on."""


@dataclass(frozen=True)
class Offsets:
    """Where queries and keys of each text lie: N + 1 offsets (int32) and the longest text, of each."""

    queries: Tensor
    keys: Tensor
    max_queries: int
    max_keys: int


def objection(
    backend: str, device: torch.device, dtype: torch.dtype | None = None, head_dim: int | None = None
) -> tuple[str, str] | None:
    """Say what a back-end needs and does not get, or None; what is installed is another question."""
    if backend == "sdpa":
        return None
    if backend == "triton":
        if device.type != "cuda" and not triton_interpreted():
            return "a CUDA device (or TRITON_INTERPRET=1)", str(device)
        if head_dim is not None and head_dim not in TRITON_HEAD_DIMS:
            return f"a head_dim among {', '.join(map(str, TRITON_HEAD_DIMS))}", str(head_dim)
        return None
    if device.type != "cuda":
        return "a CUDA device", str(device)
    if dtype is not None and dtype not in (torch.float16, torch.bfloat16):
        return "float16 or bfloat16", dtype_name(dtype)
    if head_dim is not None and (head_dim % 8 or head_dim > 256):
        return "a head_dim that 8 divides, 256 at most", str(head_dim)
    capability = torch.cuda.get_device_capability(device)
    if capability < (8, 0):
        return "a GPU of compute capability 8.0 or more", f"{capability[0]}.{capability[1]}"
    return None


def varlen_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Offsets, window: int | None, *, batch_invariant: bool
) -> Tensor:
    """Call `torch.nn.attention.varlen.varlen_attn`: [R, H, head_dim], [T, …], [T, …] → [R, H, head_dim]."""
    from torch.nn.attention.varlen import varlen_attn

    options: dict[str, Any] = {}
    if window is not None:
        if "window_size" not in _varlen_parameters():
            raise BackendUnavailableError(
                "a `varlen_attn` that knows windows",
                f"the one of PyTorch {torch.__version__}",
                "Pass attention='sdpa' or 'triton', or update PyTorch.",
            )
        options["window_size"] = (window, window)
    if batch_invariant and "num_splits" in _varlen_parameters():
        options["num_splits"] = 1  # how the keys would be split depends on the longest text of the batch
    attended = varlen_attn(
        query=query,
        key=key,
        value=value,
        cu_seq_q=offsets.queries,
        cu_seq_k=offsets.keys,
        max_q=offsets.max_queries,
        max_k=offsets.max_keys,
        **options,
    )
    assert isinstance(attended, Tensor)
    return attended


@functools.cache
def _varlen_parameters() -> frozenset[str]:
    """Parameters of `varlen_attn` in this PyTorch: they grow from release to release."""
    from torch.nn.attention.varlen import varlen_attn

    return frozenset(inspect.signature(varlen_attn).parameters)


def flash_attention(
    query: Tensor, key: Tensor, value: Tensor, offsets: Offsets, window: int | None, *, batch_invariant: bool
) -> Tensor:
    """Call `flash_attn_varlen_func` of the package that fits the GPU; shapes as in `varlen_attention`.

    Neither package splits the keys of this call, so that its bits are a text's own with or without
    `batch_invariant`.
    """
    capability = torch.cuda.get_device_capability(query.device) if query.is_cuda else (8, 0)
    attend = flash_function(capability)
    # FlashAttention-2 writes "no window" as -1, FlashAttention-4 as None: it is left to their defaults.
    options = {} if window is None else {"window_size": (window, window)}
    attended = attend(
        query,
        key,
        value,
        cu_seqlens_q=offsets.queries,
        cu_seqlens_k=offsets.keys,
        max_seqlen_q=offsets.max_queries,
        max_seqlen_k=offsets.max_keys,
        **options,
    )
    if isinstance(attended, tuple):  # FlashAttention-4: the result and, where asked for, its log-sum-exp
        attended = attended[0]
    assert isinstance(attended, Tensor)
    return attended


def first_token_by_offsets(
    attend: Callable[[Tensor, Tensor, Tensor, Offsets, None], Tensor],
    query: Tensor,
    key_value: Tensor,
    cu_seqlens: Tensor,
    lengths: Sequence[int],
    window: int | None,
) -> Tensor:
    """Attend by one of these two with one query a text: [N, H, hd], [T, 2, H, hd] → [N, H · hd]."""
    keys = cu_seqlens
    if window is not None:
        # Both count a window from the end of the keys where there are fewer queries: the keys in the window
        # are gathered instead.
        lengths = [min(length, window + 1) for length in lengths]
        seen = cu_seqlens.diff().clamp(max=window + 1)  # the same on the device: a copy would be waited for
        keys = F.pad(seen.cumsum(0, dtype=torch.int32), (1, 0))
        moved = torch.repeat_interleave((cu_seqlens - keys)[:-1], seen, output_size=sum(lengths))
        key_value = key_value[torch.arange(len(moved), device=query.device) + moved]
    queries = torch.arange(len(lengths) + 1, dtype=torch.int32, device=query.device)
    key, value = key_value.unbind(1)
    attended = attend(query, key, value, Offsets(queries, keys, 1, max(lengths)), None).flatten(1)
    if 0 in lengths:
        return attended.masked_fill(cu_seqlens.diff()[:, None] == 0, 0.0)
    return attended


def flash_function(capability: tuple[int, int]) -> Callable[..., Any]:
    """Choose among the installed `FLASH_PACKAGES` for a GPU of this compute capability.

    Raises:
        BackendUnavailableError: If none is installed.
    """
    functions = flash_functions()
    for package in FLASH_PACKAGES:
        if package.distribution in functions and capability >= package.min_capability:
            return functions[package.distribution]
    if functions:  # flash-attn-4 alone, before Hopper: it runs there, though written for later ones
        return next(iter(functions.values()))
    raise BackendUnavailableError(
        "flash-attn or flash-attn-4", flash_absence(), "Install one of them, or pass attention=None."
    )


@functools.cache
def flash_functions() -> dict[str, Callable[..., Any]]:
    """Import what there is: functions by the distribution's name."""
    found: dict[str, Callable[..., Any]] = {}
    for package in FLASH_PACKAGES:
        # Both live below the name `flash_attn`, and one alone leaves the other's place empty.
        try:
            module = importlib.import_module(package.module)
        except ImportError:  # not there, or broken: `flash_failures` says which
            continue
        if function := getattr(module, "flash_attn_varlen_func", None):
            found[package.distribution] = function
    return found


def flash_absence() -> str:
    """Say why there is no flash package: none is installed, or why those that are cannot be imported."""
    failures = []
    for package in FLASH_PACKAGES:
        if package.distribution in flash_functions() or not _installed(package.distribution):
            continue
        try:
            importlib.import_module(package.module)
        except ImportError as error:
            failures.append(f"{package.distribution} is installed and fails to import: {error}")
    return "; ".join(failures) or "neither flash-attn nor flash-attn-4 is installed"


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def flash_versions() -> list[str]:
    """Name and version of each installed flash package that can be imported."""
    versions = []
    for distribution in flash_functions():
        try:
            versions.append(f"{distribution} {importlib.metadata.version(distribution)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(distribution)
    return versions


def sdpa_attention(
    qkv: Tensor, lengths: Sequence[int], window: int | None, *, batch_invariant: bool
) -> Tensor:
    """Attend over runs of texts of equal length, which need no padding: [T, 3, H, hd] → [T, H · hd]."""
    num_tokens, _, heads, head_dim = qkv.shape
    attended = qkv.new_empty((num_tokens, heads, head_dim))
    for _, start, count, length in _runs(lengths, 1 if batch_invariant else len(lengths)):
        rows = slice(start, start + count * length)
        query, key, value = qkv[rows].view(count, length, 3, heads, head_dim).permute(2, 0, 3, 1, 4)
        result = _windowed(query, key, value, window)  # [count, H, length, head_dim]
        attended[rows].view(count, length, heads, head_dim).copy_(result.transpose(1, 2))
    return attended.flatten(1)


def sdpa_first_token(
    query: Tensor, key_value: Tensor, lengths: Sequence[int], window: int | None, *, batch_invariant: bool
) -> Tensor:
    """The same with a text's first token as its only query: [N, H, hd], [T, 2, H, hd] → [N, H · hd]."""
    num_texts, heads, head_dim = query.shape
    attended = query.new_zeros((num_texts, heads, head_dim))
    for text, start, count, length in _runs(lengths, 1 if batch_invariant else num_texts):
        rows = slice(start, start + count * length)
        seen = length if window is None else min(length, window + 1)
        pairs = key_value[rows].view(count, length, 2, heads, head_dim)[:, :seen]
        key, value = pairs.permute(2, 0, 3, 1, 4)  # each [count, H, seen, head_dim]
        first = query[text : text + count, :, None]  # [count, H, 1, head_dim]
        attended[text : text + count] = F.scaled_dot_product_attention(first, key, value).squeeze(2)
    return attended.flatten(1)


def band(first: int, last: int, low: int, high: int, window: int, device: torch.device) -> Tensor:
    """Which of the keys low … high - 1 the queries first … last - 1 see: bool [last - first, high - low]."""
    queries = torch.arange(first, last, device=device)
    keys = torch.arange(low, high, device=device)
    return (queries[:, None] - keys[None, :]).abs() <= window


def _windowed(query: Tensor, key: Tensor, value: Tensor, window: int | None) -> Tensor:
    """SDPA over [count, H, length, head_dim], under a window in pieces of `WINDOW_ROWS` queries."""
    length = query.shape[2]
    if window is None or length <= window + 1:
        return F.scaled_dot_product_attention(query, key, value)
    pieces = []
    for first in range(0, length, WINDOW_ROWS):
        last = min(first + WINDOW_ROWS, length)
        low, high = max(0, first - window), min(length, last + window)
        mask = band(first, last, low, high, window, query.device)
        seen = slice(low, high)
        pieces.append(
            F.scaled_dot_product_attention(
                query[:, :, first:last], key[:, :, seen], value[:, :, seen], attn_mask=mask
            )
        )
    return torch.cat(pieces, dim=2)


def _runs(lengths: Sequence[int], longest_run: int) -> Iterator[tuple[int, int, int, int]]:
    """Yield (first text, first token, texts, length) of runs of equal length; empty texts are left out."""
    start = text = 0
    while text < len(lengths):
        length, count = lengths[text], 1
        while count < longest_run and text + count < len(lengths) and lengths[text + count] == length:
            count += 1
        if length:
            yield text, start, count, length
        start += count * length
        text += count
