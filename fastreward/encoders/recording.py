"""Recording work that reads and writes static buffers, to repeat it at once: CUDA graphs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from typing import Any, Final, Protocol

import torch

from fastreward.ops.attention_backends import GRAPHED_BACKENDS

WARM_UPS: Final = 2
"""Runs before a recording. In the first, kernels are compiled and libraries make their handles, which must
not happen while a stream is recorded; the second is the work as it will be recorded."""

_one_at_a_time = threading.Lock()  # PyTorch allows no more than one recording in a process

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
    """

    attention: Collection[str] = GRAPHED_BACKENDS

    def __init__(self, device: torch.device) -> None:
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
        """Warm up and record on a side stream, between what the current stream has done and will do.

        PyTorch waits for the GPU and empties its cache of memory before it records.
        """
        with _one_at_a_time, torch.cuda.device(self._device):
            if self._pool is None:
                self._stream, self._pool = _cuda.Stream(), _cuda.graph_pool_handle()
            caller = torch.cuda.current_stream()
            self._stream.wait_stream(caller)
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    compute()
            # The graph keeps the address of cuBLAS's workspace, of which PyTorch has one for a thread and
            # stream. Dropped before, a new one comes from the pool, which lives as long as any of its graphs;
            # dropped after, nobody else is given that one, and no other graph's end takes it away.
            torch._C._cuda_clearCublasWorkspaces()
            graph = torch.cuda.CUDAGraph()
            # "thread_local": other threads may allocate, copy and wait meanwhile.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                compute()
            torch._C._cuda_clearCublasWorkspaces()
            caller.wait_stream(self._stream)
            return graph

    def release(self) -> None:
        """Leave the pool to PyTorch, which can give it back to the GPU once no graph uses it."""
        self._pool = None
