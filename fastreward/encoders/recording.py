"""Recording work that reads and writes static buffers, to repeat it at once: CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import torch

from fastreward.errors import BackendUnavailableError
from fastreward.ops.attention_backends import GRAPHED_BACKENDS

WARM_UPS: Final = 2
"""Runs before a recording. In the first, kernels are compiled and libraries make their handles, which must
not happen while a stream is recorded; the second is the work as it will be recorded."""

_one_at_a_time = threading.Lock()  # PyTorch allows no more than one recording in a process

# Streams that recorders have given back. PyTorch has 32 for a device and then gives them out again, so that a
# new one for each recorder would soon be one on which others work, and their work would be recorded.
_spare_streams: dict[torch.device, list[Any]] = {}

_cuda: Any = torch.cuda  # some of its functions have no type information


class Recording(Protocol):
    """Work that was recorded."""

    def replay(self) -> None:
        """Do it again, on the current stream, with what the buffers hold now."""
        ...


class Recorder(Protocol):
    """Records work: `CudaGraphRecorder`, or what stands in for it where there is no GPU.

    Attributes:
        attention: Attention back-ends whose work it repeats rightly.
    """

    attention: Collection[str]

    @property
    def num_bytes(self) -> int:
        """Memory on the device that the living recordings hold."""
        ...

    def capture(self, compute: Callable[[], None]) -> Recording:
        """Run `compute` once or more, with the buffers as they are, and record it."""
        ...

    def release(self) -> None:
        """Forget the recordings' memory: none of them is used any more."""
        ...


class CudaGraphRecorder:
    """Records CUDA graphs that share one private pool of memory, so that no two may run at a time.

    Args:
        device: The GPU.

    Raises:
        BackendUnavailableError: If PyTorch's own allocator is replaced: no other tells what a pool holds.
    """

    attention: Collection[str] = GRAPHED_BACKENDS

    def __init__(self, device: torch.device) -> None:
        _check_allocator()
        self._device = device
        self._stream: Any = None
        self._pool: Any = None

    @property
    def num_bytes(self) -> int:
        """What PyTorch has reserved for the pool."""
        if self._pool is None:
            return 0
        return sum(segment["total_size"] for segment in _cuda.memory_snapshot(self._pool))

    def capture(self, compute: Callable[[], None]) -> Recording:
        """Warm up on the current stream, and record on one that does nothing else.

        PyTorch waits for the GPU and empties its cache of memory before it records.
        """
        with _one_at_a_time, torch.cuda.device(self._device):
            if self._pool is None:
                spare = _spare_streams.get(self._device)
                self._stream, self._pool = spare.pop() if spare else _cuda.Stream(), _cuda.graph_pool_handle()
            # Not on the recorded stream. The graph keeps the address of cuBLAS's workspace, of which PyTorch
            # has one for a thread and stream, and may drop it with any graph of that stream. Made while the
            # stream is recorded it is the pool's, which lives as long as any of its graphs. To drop all
            # workspaces instead would take those of others' graphs, vLLM's in this process for one.
            for _ in range(WARM_UPS):
                compute()
            graph = torch.cuda.CUDAGraph()
            # The outer context puts the caller's stream back also where the end of a recording fails.
            # "thread_local": other threads may allocate, copy and wait meanwhile.
            with (
                torch.cuda.stream(self._stream),
                torch.cuda.graph(
                    graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
                ),
            ):
                compute()
            return graph

    def release(self) -> None:
        """Leave the pool to PyTorch, which can give it back to the GPU once no graph uses it."""
        with _one_at_a_time:
            if self._pool is not None:
                _spare_streams.setdefault(self._device, []).append(self._stream)
            self._stream = self._pool = None


def _check_allocator() -> None:
    """Refuse an allocator of GPU memory that has no snapshots of a pool, by which memory is counted."""
    named: Callable[[], str] | None = getattr(_cuda.memory, "get_allocator_backend", None)
    if named is None or not hasattr(torch._C, "_cuda_getAllocatorBackend"):
        return
    name = named()
    if name != "native":
        raise BackendUnavailableError(
            "PyTorch's native allocator of GPU memory for graphs",
            name,
            "Pass cuda_graphs=False, or set backend:native in PYTORCH_ALLOC_CONF before PyTorch is imported.",
        )
