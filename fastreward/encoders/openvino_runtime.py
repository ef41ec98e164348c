"""OpenVINO's side of an encoder: its one core, and a compiled graph whose inferences run side by side."""

from __future__ import annotations

import functools
import os
import threading
from collections import deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from fastreward.errors import BackendUnavailableError

if TYPE_CHECKING:
    from openvino import CompiledModel, Core, InferRequest, Model

INSTALL: Final = 'pip install "fastreward[openvino]"'

# OpenVINO's names of the precisions; with int8 products they are those of everything else.
PRECISIONS: Final[Mapping[torch.dtype, str]] = {torch.float32: "f32", torch.bfloat16: "bf16"}

WAITING_INFERENCES: Final = 2
"""For each thread, that are begun at a time: one that runs, and the next."""


class CompiledGraph:
    """A compiled graph, and the requests that callers take turns with.

    Args:
        graph: What is compiled.
        dtype: In which precision; with int8 products that of everything else.
        threads: How many inferences run side by side, one in each.
        cache_dir: Where compiled graphs are kept, if anywhere.
    """

    def __init__(
        self, graph: Model, dtype: torch.dtype, threads: int, cache_dir: str | Path | None = None
    ) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
            "NUM_STREAMS": threads,
            "INFERENCE_NUM_THREADS": threads,
        }
        if cache_dir is not None:
            options["CACHE_DIR"] = str(cache_dir)
        self._model: CompiledModel = core().compile_model(graph, "CPU", options)
        self._most = WAITING_INFERENCES * threads
        self._idle: list[InferRequest] = []
        self._lock = threading.Lock()

    def infer(
        self, calls: Iterable[Sequence[NDArray[Any]]]
    ) -> Generator[list[NDArray[np.float32]], None, None]:
        """Yield the graph's outputs for the inputs of each call, in their order; calls run side by side.

        Outputs are copies: a request's own memory is written again by the next call.
        """
        # The inputs of each are held until it has ended.
        running: deque[tuple[InferRequest, Sequence[NDArray[Any]]]] = deque()
        try:
            for inputs in calls:
                if len(running) == self._most:
                    yield self._first_ended(running)
                running.append((self._request(), inputs))
                running[-1][0].start_async(list(inputs), share_inputs=True)
            while running:
                yield self._first_ended(running)
        finally:  # also where one of them has failed, or the caller wants no more
            for request, _ in running:
                with suppress(RuntimeError):
                    request.wait()
                self._give_back(request)

    def _first_ended(
        self, running: deque[tuple[InferRequest, Sequence[NDArray[Any]]]]
    ) -> list[NDArray[np.float32]]:
        request, _ = running[0]
        request.wait()
        found = [np.array(request.get_output_tensor(index).data) for index in range(len(self._model.outputs))]
        running.popleft()
        self._give_back(request)
        return found

    def _request(self) -> InferRequest:
        with self._lock:
            return self._idle.pop() if self._idle else self._model.create_infer_request()

    def _give_back(self, request: InferRequest) -> None:
        with self._lock:
            self._idle.append(request)


def import_openvino() -> ModuleType:
    """Import OpenVINO.

    Raises:
        BackendUnavailableError: If it is not installed.
    """
    try:
        import openvino
    except ImportError as error:
        raise BackendUnavailableError(
            "OpenVINO", f"none that can be imported ({error})", f"{INSTALL}."
        ) from error
    module: ModuleType = openvino
    return module


_locks: Final[dict[int, threading.Lock]] = {}  # by process: one that is forked waits for no parent's thread


def core() -> Core:
    """The process's one OpenVINO core, which stays.

    Its CPU plugin gives the thread that loads it a stack for signals. The plugins of several cores restore
    each other's: once one is gone, the stack may be freed memory, and the next signal ends the process.
    """
    with _locks.setdefault(os.getpid(), threading.Lock()):
        return _made()


@functools.cache
def _made() -> Core:
    core: Core = import_openvino().Core()
    return core
