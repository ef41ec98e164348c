"""The encoder on ONNX Runtime, on the CPU and on CUDA."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from fastreward.encoders.checkpoint import Checkpoint, load_checkpoint
from fastreward.encoders.cpus import resolve_threads
from fastreward.encoders.numerics import own_numerics
from fastreward.encoders.onnx_manifest import MODEL, check_files, read_manifest
from fastreward.encoders.onnx_nodes import DTYPES
from fastreward.encoders.onnx_session import (
    check_int8,
    open_session,
    run_bound,
)
from fastreward.errors import BackendUnavailableError, InputError
from fastreward.ops.pooled_cosine import pooled_cosine
from fastreward.packing import PackedBatch, upload

MAX_RUN_TOKENS: Final = {"cpu": 1024, "cuda": 16384}
"""Tokens of one run, padding included: on a CPU what lies between two operators stays in a core's cache."""

RUN_COST: Final = {"cpu": 32, "cuda": 1024}
"""What starting one more run costs, in tokens: below it padding is cheaper. A CPU reads all weights anew, a
GPU waits for its launches."""

MAX_SHAPES: Final = 64
"""CUDA graphs that are recorded at most. Shapes that come later are launched one operator after another."""

UNRECORDED: Final = -1
"""In the place of a graph's number: run without recording."""


class OnnxEncoder:
    """An encoder that `export_onnx` wrote, on ONNX Runtime.

    Texts of like length are run together, so that little is padded. On a CPU `threads` runs go side by side,
    with one thread each, and none waits for another; a single text is one run, and one thread's work.

    Args:
        folder: The export.
        device: CPU or CUDA. An export in int8 is for CPUs, one in fp16 or bf16 for CUDA.
        threads: Runs at a time on a CPU; None for the cores that this process may use.
        batch_invariant: Refused: how ONNX Runtime adds up depends on the shape of a batch.
        cuda_graphs: Record a CUDA graph for each of a few fixed shapes and fill batches up to the next of
            them, for many small batches. `Scorer` has no use for it: its `cuda_graphs` are the packed
            encoder's.

    Attributes:
        checkpoint: Settings and tokenizer of the folder, without weights.
        manifest: What the export is.
        device: Where batches and references must be, and where results come back.
        dtype: The type of hidden states.
        hidden_size: D.
        pooling: Fixed in the graph.
        threads: Runs at a time.

    Raises:
        CheckpointError: If the folder is no export, or a file in it is damaged or not its own.
        BackendUnavailableError: If ONNX Runtime cannot compute this precision on this device here.
        InputError: If an option is not what it should be.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fastreward.encoders.onnx_export import export_onnx
        >>> from fastreward.packing import pack
        >>> cpu = torch.device("cpu")
        >>> minilm = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2")
        >>> with TemporaryDirectory() as folder:
        ...     encoder = OnnxEncoder(export_onnx(minilm, Path(folder) / "minilm", num_layers=1), cpu)
        >>> encoder.embed(pack([[101, 7592, 102], [101, 102]], cpu)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        folder: str | Path,
        device: torch.device,
        *,
        threads: int | None = None,
        batch_invariant: bool = False,
        cuda_graphs: bool = False,
    ) -> None:
        folder = Path(folder)
        if batch_invariant:
            raise InputError(
                "batch_invariant=False with ONNX Runtime, which promises no order of additions",
                "True",
                'Pass backend="packed" for scores whose bits do not depend on the batch.',
            )
        if cuda_graphs and device.type != "cuda":
            raise InputError("a CUDA device for cuda_graphs", str(device), "Pass cuda_graphs=False.")
        self.manifest = read_manifest(folder)
        _check_precision(self.manifest.precision, device)
        check_files(folder, self.manifest)
        self.checkpoint: Checkpoint = load_checkpoint(folder)
        self.device = device
        self.dtype = DTYPES[self.manifest.precision]
        self.hidden_size = self.manifest.hidden_size
        self.pooling = self.manifest.pooling
        self.threads = resolve_threads(threads)
        self._filler = self.checkpoint.architecture.padding_id or 0
        self._lane = _Lane(device)
        options = {**self._lane.options, "enable_cuda_graph": int(cuda_graphs)}
        self._session = open_session(folder / MODEL, device, 1, options)
        self._shapes = FixedShapes() if cuda_graphs else None
        self._pools: dict[int, ThreadPoolExecutor] = {}

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch that keep all threads busy: with fewer, some wait for the last ones' ends."""
        return 4 * MAX_RUN_TOKENS[self.device.type] * self.threads if self.device.type == "cpu" else 65536

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last hidden states, [T, D] in `dtype`.

        Raises:
            InputError: If the export pools CLS: it computes no other token's last state.
        """
        if self.pooling == "cls":
            raise InputError(
                "hidden states of an export whose pooling needs them all",
                "one with CLS pooling, which computes its last layer for one token",
                "Export it with pooling='mean', or pass backend='packed'.",
            )
        starts = [0, *accumulate(batch.lengths)]
        states = torch.empty((batch.num_tokens, self.hidden_size), dtype=self.dtype, device=self.device)
        for rows, padded in self._runs(batch, "hidden"):
            for row, text in zip(rows, padded, strict=True):
                states[starts[row] : starts[row + 1]] = text[: batch.lengths[row]]
        return states

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return one unit vector for each text, [N, D], fp32; zeros for a text without tokens."""
        shape = (len(batch.lengths), self.hidden_size)
        vectors = torch.zeros(shape, dtype=torch.float32, device=self.device)
        for rows, computed in self._runs(batch, "embedding"):
            vectors[upload([np.array(rows, dtype=np.int32)], self.device)[0]] = computed
        return vectors

    def cosine(self, batch: PackedBatch, references: Tensor, reference_index: Tensor) -> Tensor:
        """Score each text by its cosine with a row of `references`: [N], fp32."""
        vectors = self.embed(batch)
        with own_numerics(self.device, torch.float32):
            each = torch.arange(len(vectors) + 1, dtype=torch.int32, device=self.device)
            return pooled_cosine(vectors, each, references, reference_index, pooling="cls", max_seqlen=1)

    def _runs(self, batch: PackedBatch, output: str) -> Iterator[tuple[list[int], Tensor]]:
        """Compute an output of the graph for all texts that have tokens: rows, and their results."""
        kind = self.device.type
        share = -(-batch.num_tokens // self.threads) if kind == "cpu" else MAX_RUN_TOKENS[kind]
        groups = padded_groups(batch.lengths, min(MAX_RUN_TOKENS[kind], max(1, share)), RUN_COST[kind])
        compute = partial(self._compute, batch, output)
        if kind != "cpu" or self.threads == 1 or len(groups) == 1:
            results: Iterator[Tensor] = map(compute, groups)
        else:
            results = self._pool().map(compute, groups)
        return zip(groups, results, strict=True)

    def _pool(self) -> ThreadPoolExecutor:
        """The threads of this process: one that was forked has none of its parent's."""
        process = os.getpid()
        if process not in self._pools:  # two made at once cost nothing: a pool without work has no threads
            self._pools.setdefault(process, ThreadPoolExecutor(self.threads, "fastreward-onnx"))
        return self._pools[process]

    def _compute(self, batch: PackedBatch, output: str, rows: list[int]) -> Tensor:
        """Run some texts, padded to the longest of them: [n, D] or [n, L, D]."""
        size = len(rows), max(batch.lengths[row] for row in rows)
        if self._shapes is not None:
            size = fixed_shape(*size, self.checkpoint.architecture.max_positions)
        ids, lengths = pad(batch, rows, size, self._filler)
        shape = (*(size[:1] if output == "embedding" else size), self.hidden_size)
        dtype = torch.float32 if output == "embedding" else self.dtype
        with self._lane.entered():
            kept = None if self._shapes is None else self._shapes.of(output, ids, lengths, shape, dtype)
            if kept is None:
                result = torch.empty(shape, dtype=dtype, device=self.device)
                inputs = {"input_ids": ids, "lengths": lengths}
                number = None if self._shapes is None else UNRECORDED
                self._lane.run(self._session, inputs, {output: result}, number)
                return result[: len(rows)]
            self._lane.run(self._session, kept.inputs, {output: kept.result}, kept.number)
            return kept.result[: len(rows)].clone()


def padded_groups(lengths: Sequence[int], max_tokens: int, run_cost: int) -> list[list[int]]:
    """Group texts for runs in which all are padded to the longest, longest first.

    A group ends where it would have more than `max_tokens` tokens, or more than `run_cost` of padding.

    Args:
        lengths: Tokens of each text; one without any is in no group.
        max_tokens: Of a group, padding included. A longer text is a group of its own.
        run_cost: What one more run costs, in tokens.

    Returns:
        Groups of indices into `lengths`.

    Example:
        >>> padded_groups([3, 9, 0, 8, 3], max_tokens=20, run_cost=4)
        [[1, 3], [0, 4]]
    """
    groups: list[list[int]] = []
    longest = padding = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if not lengths[row]:
            break
        padding += longest - lengths[row]
        if not groups or padding > run_cost or longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
            longest, padding = lengths[row], 0
        groups[-1].append(row)
    return groups


def pad(batch: PackedBatch, rows: Sequence[int], size: tuple[int, int], filler: int) -> tuple[Tensor, Tensor]:
    """Lay texts of a packed batch out as a rectangle: ids [n, L] and lengths [n], int32, on its device.

    Args:
        batch: Texts.
        rows: Which of them, one at least.
        size: n and L. Rows that are left over are texts of one token.
        filler: The id that everything else is filled with.

    Example:
        >>> from fastreward.packing import pack
        >>> pad(pack([[5, 6, 7], [8, 9]], torch.device("cpu")), [1, 0], (2, 3), 0)[0]
        tensor([[8, 9, 0],
                [5, 6, 7]], dtype=torch.int32)
    """
    device = batch.input_ids.device
    spare = size[0] - len(rows)
    lengths = np.array([batch.lengths[row] for row in rows] + [0] * spare, dtype=np.int32)
    chosen = np.array([*rows] + [0] * spare, dtype=np.int32)
    counts, texts = upload([lengths, chosen], device)
    columns = torch.arange(size[1], dtype=torch.int32, device=device)
    places = batch.cu_seqlens[texts][:, None] + columns
    real = columns < counts[:, None]
    ids = torch.where(real, batch.input_ids[torch.where(real, places, 0)], filler)
    return ids, counts.clamp(min=1)


def fixed_shape(texts: int, longest: int, max_tokens: int) -> tuple[int, int]:
    """Round a rectangle of texts up to one of a few: a power of two of them, of a multiple of 32 tokens.

    Args:
        texts: Rows.
        longest: Tokens of the longest text.
        max_tokens: That the encoder has positions for: no row is longer.

    Example:
        >>> fixed_shape(5, 40, max_tokens=512), fixed_shape(5, 40, max_tokens=50)
        ((8, 64), (8, 50))
    """
    return 1 << (texts - 1).bit_length(), min(-(-longest // 32) * 32, max_tokens)


@dataclass(frozen=True)
class Kept:
    """The tensors of one shape.

    Attributes:
        number: Of the recorded graph.
        inputs: What it reads.
        result: What it writes.
    """

    number: int
    inputs: dict[str, Tensor]
    result: Tensor


class FixedShapes:
    """Tensors that stay where they are, for each shape: a recorded CUDA graph knows no other.

    Args:
        most: Shapes that have them. Nothing takes the place of an earlier one, for ONNX Runtime keeps what it
            has recorded as long as its session lives.
    """

    def __init__(self, most: int = MAX_SHAPES) -> None:
        self._most = most
        self._kept: dict[tuple[object, ...], Kept] = {}

    def of(
        self, output: str, input_ids: Tensor, lengths: Tensor, shape: tuple[int, ...], dtype: torch.dtype
    ) -> Kept | None:
        """Copy inputs into the tensors of their shape, made at its first use; None if it has none."""
        key = (output, *input_ids.shape)
        if key not in self._kept and len(self._kept) >= self._most:
            return None
        with torch.inference_mode():  # a caller may be in it at the first use, and out of it at the next
            if key not in self._kept:
                inputs = {"input_ids": torch.empty_like(input_ids), "lengths": torch.empty_like(lengths)}
                result = torch.empty(shape, dtype=dtype, device=input_ids.device)
                self._kept[key] = Kept(len(self._kept), inputs, result)
            kept = self._kept[key]
            kept.inputs["input_ids"].copy_(input_ids)
            kept.inputs["lengths"].copy_(lengths)
        return kept


class _Lane:
    """How runs follow each other: on a CPU side by side, on a GPU one by one on a stream of their own."""

    def __init__(self, device: torch.device) -> None:
        self._stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call, unused-ignore]
        self._lock = threading.Lock()

    @property
    def options(self) -> dict[str, object]:
        """Options of the CUDA provider, for it to compute on this stream."""
        return {} if self._stream is None else {"user_compute_stream": str(self._stream.cuda_stream)}

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Be the only one to run, on a GPU, and use tensors that stay only behind who used them last."""
        if self._stream is None:
            yield
            return
        with self._lock:
            caller = torch.cuda.current_stream(self._stream.device)
            caller.wait_stream(self._stream)
            try:
                yield
            finally:
                self._stream.wait_stream(caller)

    def run(
        self,
        session: Any,
        inputs: dict[str, Tensor],
        outputs: dict[str, Tensor],
        graph_id: int | None = None,
    ) -> None:
        """Run behind what the caller's stream has been given, and before what it will be."""
        if self._stream is None:
            run_bound(session, inputs, outputs, graph_id)
            return
        caller = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(caller)
        try:
            run_bound(session, inputs, outputs, graph_id)
        finally:  # whatever was launched before an error still reads the tensors
            caller.wait_stream(self._stream)


def _check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that ONNX Runtime has no operators for on a device."""
    if device.type == "cuda" and precision == "int8":
        raise BackendUnavailableError(
            "an export in fp16, bf16 or fp32 on CUDA",
            "int8, whose products ONNX Runtime has for CPUs alone",
            'Export with precision="fp16".',
        )
    if device.type == "cpu" and precision in ("fp16", "bf16"):
        raise BackendUnavailableError(
            "an export in fp32 or int8 on a CPU",
            f"{precision}, for which ONNX Runtime has no operators there",
            'Export with precision="fp32", or pass backend="openvino" or "packed" for bfloat16.',
        )
    if precision == "int8":
        check_int8()
