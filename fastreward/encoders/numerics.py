"""Our own numerics: what a trainer sets globally must not change a score."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch


@dataclass(frozen=True)
class _Setting:
    """A process-wide setting of PyTorch, and its values that leave our products alone, ours first."""

    owner: Any
    name: str
    harmless: tuple[object, ...]

    def restore(self, value: object) -> None:
        """Put back what was found; a precision that followed the general one follows it again."""
        follows = self.name == "fp32_precision" and value == _backends.fp32_precision
        setattr(self.owner, self.name, "none" if follows else value)


@dataclass
class _Held:
    threads: int
    found: object


_backends: Any = torch.backends  # its type information lacks the precision settings
_FULL: Final = ("ieee", "none")
_ONEDNN: Final = (_Setting(_backends.mkldnn.matmul, "fp32_precision", _FULL),)
_CUBLAS_FP32: Final = (_Setting(_backends.cuda.matmul, "fp32_precision", _FULL),)
_CUBLAS_16_BIT: Final = tuple(
    _Setting(_backends.cuda.matmul, name, (False,))
    for name in (
        "allow_bf16_reduced_precision_reduction",
        "allow_fp16_reduced_precision_reduction",
        "allow_fp16_accumulation",
    )
)

_lock = threading.Lock()
_held: dict[_Setting, _Held] = {}


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
    settings = _settings(device, dtype)
    with _lock:
        for setting in settings:
            _hold(setting)
    try:
        yield
    finally:
        with _lock:
            for setting in settings:
                _release(setting)


def _hold(setting: _Setting) -> None:
    if setting in _held:
        _held[setting].threads += 1
        return
    found = getattr(setting.owner, setting.name)
    _held[setting] = _Held(1, found)
    if found not in setting.harmless:
        setattr(setting.owner, setting.name, setting.harmless[0])


def _release(setting: _Setting) -> None:
    held = _held[setting]
    held.threads -= 1
    if not held.threads:
        del _held[setting]
        ours = getattr(setting.owner, setting.name) == setting.harmless[0]  # else it was changed meanwhile
        if ours and held.found not in setting.harmless:
            setting.restore(held.found)


def _settings(device: torch.device, dtype: torch.dtype) -> tuple[_Setting, ...]:
    if device.type == "cuda":
        return _CUBLAS_FP32 if dtype == torch.float32 else _CUBLAS_16_BIT
    return _ONEDNN if dtype == torch.float32 else ()
