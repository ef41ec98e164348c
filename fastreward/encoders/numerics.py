"""Our own numerics: what a trainer sets globally must not change a score."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch

_lock = threading.Lock()
_inside = 0
_saved: list[tuple[Any, str, object]] = []


@contextlib.contextmanager
def own_numerics(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Compute without gradients, without autocast, and with matrix products in the dtype's full precision.

    Gradient mode and autocast are this thread's. Matrix precision is a setting of the whole process in
    PyTorch: where it is reduced, it is raised while any thread is inside, and put back by the last one out;
    other threads that multiply meanwhile get the more exact product.

    Args:
        device: Where the encoder computes.
        dtype: What it computes in.
    """
    with torch.inference_mode(), torch.autocast(device.type, enabled=False), _full_precision(device, dtype):
        yield


@contextlib.contextmanager
def _full_precision(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    global _inside
    with _lock:
        _inside += 1
        if _inside == 1:
            for owner, name, value in _settings(device, dtype):
                current = getattr(owner, name)
                if current != value:
                    _saved.append((owner, name, current))
                    setattr(owner, name, value)
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            while not _inside and _saved:
                owner, name, value = _saved.pop()
                setattr(owner, name, value)


def _settings(device: torch.device, dtype: torch.dtype) -> list[tuple[Any, str, object]]:
    """List (owner, attribute, value) of the process-wide settings that would change our products."""
    backends: Any = torch.backends  # its type information lacks the precision settings
    if device.type == "cpu":
        onednn = backends.mkldnn.matmul
        reduced = {onednn.fp32_precision, backends.fp32_precision} - {"ieee", "none"}
        return [(onednn, "fp32_precision", "ieee")] if reduced and dtype == torch.float32 else []
    matmul = backends.cuda.matmul
    if dtype == torch.float32:
        return [(matmul, "fp32_precision", "ieee")]
    return [
        (matmul, "allow_bf16_reduced_precision_reduction", False),
        (matmul, "allow_fp16_reduced_precision_reduction", False),
        (matmul, "allow_fp16_accumulation", False),
    ]
