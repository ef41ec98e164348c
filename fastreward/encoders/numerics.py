"""Our own numerics: what a trainer sets globally must not change a score."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import torch

_backends: Any = torch.backends  # its type information lacks the precision settings


class _Setting:
    """A process-wide attribute of PyTorch, and its values that leave our products alone, ours first."""

    def __init__(self, owner: Any, name: str, *harmless: object) -> None:
        self._owner, self._name, self.harmless = owner, name, harmless

    def read(self) -> object:
        return getattr(self._owner, self._name)

    def write(self, value: object) -> None:
        # A precision that followed the general one, as far as can be seen, follows it again.
        follows = self._name == "fp32_precision" and value == _backends.fp32_precision
        setattr(self._owner, self._name, "none" if follows else value)


class _OlderPrecision(_Setting):
    """`torch.set_float32_matmul_precision`, which sets the newer ones too and must not contradict them."""

    def __init__(self) -> None:
        super().__init__(None, "", "highest", None)

    def read(self) -> object:
        try:
            return torch.get_float32_matmul_precision()
        except RuntimeError:  # the newer settings differ from each other: there is no such precision
            return None

    def write(self, value: object) -> None:
        torch.set_float32_matmul_precision(str(value))


class _Group:
    """Settings that are held harmless while at least one thread is inside."""

    def __init__(self, *settings: _Setting) -> None:
        self._settings = settings
        self._threads = 0
        self._found: list[tuple[_Setting, object]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self._lock:
            self._threads += 1
            if self._threads == 1:
                self._hold()
        try:
            yield
        finally:
            with self._lock:
                self._threads -= 1
                if not self._threads:
                    self._release()

    def _hold(self) -> None:
        self._found = [(setting, setting.read()) for setting in self._settings]
        for setting, _ in self._found:
            if setting.read() not in setting.harmless:
                setting.write(setting.harmless[0])

    def _release(self) -> None:
        # What someone else has set meanwhile stays.
        ours = [(s, found) for s, found in self._found if s.read() in (found, s.harmless[0])]
        for setting, found in ours:
            if setting.read() != found and found is not None:
                setting.write(found)


_FP32: Final = _Group(
    _OlderPrecision(),
    _Setting(_backends.mkldnn.matmul, "fp32_precision", "ieee", "none"),
    _Setting(_backends.cuda.matmul, "fp32_precision", "ieee", "none"),
)
_CUDA_16_BIT: Final = _Group(
    _Setting(_backends.cuda.matmul, "allow_bf16_reduced_precision_reduction", False),
    _Setting(_backends.cuda.matmul, "allow_fp16_reduced_precision_reduction", False),
    _Setting(_backends.cuda.matmul, "allow_fp16_accumulation", False),
)


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


def _full_precision(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[None]:
    if dtype == torch.float32:
        return _FP32.held()
    return _CUDA_16_BIT.held() if device.type == "cuda" else contextlib.nullcontext()
