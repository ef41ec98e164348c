"""An encoder on OpenVINO: for CPUs, in fp32, in bf16 where the CPU multiplies it, and in calibrated int8."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastreward.backends import dtype_name
from fastreward.batching import MAX_BATCH_TOKENS
from fastreward.encoders.checkpoint import Checkpoint
from fastreward.encoders.cpus import int8_runs_here, resolve_threads
from fastreward.encoders.numerics import own_numerics
from fastreward.encoders.openvino_graph import (
    Input,
    Product,
    Weights,
    build_graph,
    plain_product,
)
from fastreward.encoders.openvino_inputs import graph_inputs
from fastreward.encoders.openvino_int8 import Calibration, InputRange, int8_product, layer_digests
from fastreward.encoders.openvino_runtime import PRECISIONS, CompiledGraph, core, import_openvino
from fastreward.encoders.weights import Layer, load_layers
from fastreward.errors import BackendUnavailableError, CheckpointError, InputError
from fastreward.ops.pooled_cosine import POOLINGS, Pooling, pooled_cosine
from fastreward.packing import PackedBatch, pack, token_budget_batches

if TYPE_CHECKING:
    from openvino import Model, Node

CPU: Final = torch.device("cpu")

THREAD_TOKENS: Final = 1024
"""Tokens of one inference, more or less, which is one thread's. From 768 to 3,072 they took as long, within
2 %; more texts are less alike in length, and there are fewer to share out."""

LEAST_TOKENS: Final = 256
"""Of an inference, where a batch is cut smaller so that every thread has one: less leaves the products short
of rows."""

INFERENCES_OF_A_BATCH: Final = 4
"""For each thread: at the end of a batch threads wait for the slowest."""


class OpenVINOEncoder:
    """BERT, RoBERTa, XLM-R and ModernBERT on OpenVINO's CPU plugin, over packed tokens.

    A batch is sorted by length and cut into inferences of about `THREAD_TOKENS`. Each thread computes one of
    them at a time: threads that share one wait for each other after every product. Several may call at once.

    Args:
        checkpoint: Files and settings.
        device: The CPU.
        dtype: float32, or bfloat16 on a CPU that multiplies it. Pooling and norm are fp32 in any case.
        pooling: Instead of the checkpoint's own.
        num_layers: Use the first ones alone; None uses all.
        batch_invariant: Refused: OpenVINO's sums depend on how many rows there are.
        calibration: Compute matrix products in int8, by what `calibrate_int8` measured on this encoder; the
            rest stays in `dtype`.
        threads: How many inferences run side by side; None takes the cores that this process may use, by its
            affinity and its control group's quota, and PyTorch's number of threads at most.
        cache_dir: A folder for compiled graphs, so that the next start is faster; None keeps none.

    Raises:
        CheckpointError: If weights or calibration are missing, damaged, or do not fit together.
        BackendUnavailableError: If OpenVINO is not installed, or the device or precision cannot be had.
        InputError: If an option is not what it should be.

    Example:
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> from fastreward.packing import pack
        >>> cpu = torch.device("cpu")
        >>> encoder = OpenVINOEncoder(
        ...     load_checkpoint("sentence-transformers/all-MiniLM-L6-v2"), cpu, torch.float32
        ... )
        >>> encoder.embed(pack([[101, 7592, 102], [101, 102]], cpu)).shape
        torch.Size([2, 384])
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype,
        *,
        pooling: Pooling | None = None,
        num_layers: int | None = None,
        batch_invariant: bool = False,
        calibration: Calibration | None = None,
        threads: int | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        _check(device, dtype, pooling, batch_invariant, calibration)
        architecture = checkpoint.architecture
        if num_layers is not None:
            architecture = architecture.first_layers(num_layers)
        self.device = CPU
        self.dtype = dtype
        self.hidden_size = architecture.hidden_size
        self.pooling: Pooling = pooling or checkpoint.pooling
        self.threads = resolve_threads(threads)
        self.calibration = calibration
        self._checkpoint, self._architecture = checkpoint, architecture
        self._cache_dir = cache_dir
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._compiled: dict[Pooling | None, CompiledGraph] = {}
        self._graph(self.pooling)

    @property
    def batch_tokens(self) -> int:
        """Tokens of a batch that gives each thread several inferences."""
        return max(MAX_BATCH_TOKENS["cpu"], INFERENCES_OF_A_BATCH * THREAD_TOKENS * self.threads)

    def hidden(self, batch: PackedBatch) -> Tensor:
        """Return the last hidden states, [T, D] in `dtype`."""
        states = np.zeros((batch.num_tokens, self.hidden_size), dtype=np.float32)
        starts = np.cumsum((0, *batch.lengths))
        for texts, found in self._computed(None, batch):
            rows = [np.arange(starts[text], starts[text + 1]) for text in texts]
            states[np.concatenate(rows)] = found[: sum(map(len, rows))]
        return torch.from_numpy(states).to(self.dtype)

    def embed(self, batch: PackedBatch) -> Tensor:
        """Return one unit vector for each text, [N, D], fp32; zeros for a text without tokens."""
        vectors = np.zeros((len(batch.lengths), self.hidden_size), dtype=np.float32)
        for texts, found in self._computed(self.pooling, batch):
            vectors[texts] = found
        return torch.from_numpy(vectors)

    def cosine(self, batch: PackedBatch, references: Tensor, reference_index: Tensor) -> Tensor:
        """Score each text by its cosine with a row of `references`: [N], fp32."""
        vectors = self.embed(batch)
        with own_numerics(CPU, torch.float32):
            # To the op every vector is a text of one token.
            ends = torch.arange(len(vectors) + 1, dtype=torch.int32, device=CPU)
            return pooled_cosine(vectors, ends, references, reference_index, max_seqlen=1)

    def _computed(
        self, pooling: Pooling | None, batch: PackedBatch
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        """Cut a batch into inferences, and say of each which texts it has and what it came to.

        Empty texts are in none.
        """
        ids = batch.input_ids.numpy()
        starts = np.cumsum((0, *batch.lengths))
        parts = even_parts(batch.lengths, num_parts(batch.num_tokens, self.threads))
        inputs = (
            graph_inputs(
                pack([ids[starts[text] : starts[text + 1]] for text in texts], CPU),
                self._architecture,
                share_rows=self.pooling != "cls",
            )
            for texts in parts
        )
        for texts, (found,) in zip(parts, self._graph(pooling).infer(inputs), strict=True):
            yield texts, found

    def _graph(self, pooling: Pooling | None) -> CompiledGraph:
        """The compiled graph with this pooling, compiled when it is first asked for."""
        if os.getpid() != self._process:
            # OpenVINO would wait for its threads, for ever: they are the parent's.
            raise BackendUnavailableError(
                "an OpenVINO encoder in the process that made it",
                f"process {os.getpid()}, forked from {self._process}",
                "Start processes with 'spawn', or pass backend='onnx'.",
            )
        with self._lock:
            if pooling not in self._compiled:
                self._compiled[pooling] = self._compile(pooling)
            return self._compiled[pooling]

    def _compile(self, pooling: Pooling | None) -> CompiledGraph:
        embeddings, layers = load_layers(
            self._checkpoint, self._architecture, CPU, torch.float32, splits_last_query=self.pooling == "cls"
        )
        product = None
        if self.calibration is not None:
            _check_belongs(self.calibration, layers, self._checkpoint)
            product = int8_product(self.calibration)
        graph = build_graph(self._architecture, embeddings, layers, pooling=pooling, product=product)
        return CompiledGraph(graph, self.dtype, self.threads, self._cache_dir)


def calibrate_int8(
    checkpoint: Checkpoint,
    token_ids: Sequence[Sequence[int]],
    *,
    threads: int | None = None,
) -> Calibration:
    """Measure, in fp32, what an encoder's matrix products are given on texts like those to be scored.

    Args:
        checkpoint: The encoder.
        token_ids: Texts as `Scorer.tokenizer` gives them. A hundred that vary do; what exceeds anything seen
            here is cut to it later.
        threads: As in `OpenVINOEncoder`.

    Raises:
        InputError: If there is no token.
        BackendUnavailableError: If OpenVINO is not installed.

    Example:
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> checkpoint = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2")
        >>> calibration = calibrate_int8(checkpoint, [[101, 1996, 2540, 102], [101, 7592, 102]])
        >>> encoder = OpenVINOEncoder(checkpoint, CPU, torch.float32, calibration=calibration)
    """
    if not any(token_ids):
        raise InputError("texts to calibrate with", f"{len(token_ids)} texts of no token", "Pass some.")
    import_openvino()
    architecture = checkpoint.architecture
    embeddings, layers = load_layers(checkpoint, architecture, CPU, torch.float32, splits_last_query=False)
    inputs: dict[str, Any] = {}
    graph = build_graph(architecture, embeddings, layers, pooling=None, product=_recording(inputs))
    measuring = _measuring(graph, list(inputs.values()))
    measured = CompiledGraph(measuring, torch.float32, resolve_threads(threads))
    texts = [list(ids) for ids in token_ids if ids]
    cut = token_budget_batches([len(ids) for ids in texts], THREAD_TOKENS)
    counts = [sum(len(texts[row]) for row in rows) for rows in cut]
    batches = (pack([texts[row] for row in rows], CPU) for rows in cut)
    # Not a token more than there are: all of them are measured.
    outputs = measured.infer(graph_inputs(batch, architecture, token_multiple=1) for batch in batches)
    parts = list(zip(counts, outputs, strict=True))
    total = sum(tokens for tokens, _ in parts)
    ranges = {}
    for index, name in enumerate(inputs):
        low, high, means = (np.stack([found[3 * index + k] for _, found in parts]) for k in range(3))
        shares = np.array([[tokens / total] for tokens, _ in parts], dtype=np.float32)
        ranges[name] = InputRange(low.min(axis=0), high.max(axis=0), (means * shares).sum(axis=0))
    return Calibration(layer_digests(layers), ranges, total)


def num_parts(tokens: int, threads: int) -> int:
    """How many inferences make a batch of so many tokens: as many a thread, unless they would be small.

    Example:
        >>> num_parts(8192, threads=2), num_parts(5000, threads=2), num_parts(300, threads=2)
        (8, 4, 1)
    """
    if tokens < threads * LEAST_TOKENS:
        return max(1, tokens // LEAST_TOKENS)
    return threads * max(1, round(tokens / (threads * THREAD_TOKENS)))


def even_parts(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Split texts into so many parts of about the same number of tokens, or fewer; longest texts first.

    Args:
        lengths: Tokens of each text; empty ones are in no part.
        count: 1 or more.

    Example:
        >>> even_parts([4, 0, 9, 5], 2)
        [[2], [3, 0]]
    """
    order = sorted((text for text, length in enumerate(lengths) if length), key=lambda text: -lengths[text])
    total = sum(lengths)
    parts: list[list[int]] = [[] for _ in range(count)]
    done = 0
    for text in order:
        middle = done + lengths[text] / 2
        parts[int(middle * count / total)].append(text)
        done += lengths[text]
    return [part for part in parts if part]


def _recording(inputs: dict[str, Any]) -> Product:
    """Products as they are, their inputs kept by name."""

    def product(x: Input, weight: Weights, bias: Weights | None, name: str) -> Node:
        inputs[name] = x.node
        return plain_product(x, weight, bias, name)

    return product


def _measuring(graph: Model, nodes: Sequence[Node]) -> Model:
    """The graph with other outputs: for each node [M, in] the least, the greatest and the mean, each [in]."""
    import openvino.opset13 as op
    from openvino import Model

    axis = op.constant(np.array([0], dtype=np.int64))
    results = [
        op.result(reduce(node, axis))
        for node in nodes
        for reduce in (op.reduce_min, op.reduce_max, op.reduce_mean)
    ]
    return Model(results, graph.get_parameters(), "calibration")


def _check(
    device: torch.device,
    dtype: torch.dtype,
    pooling: Pooling | None,
    batch_invariant: bool,
    calibration: Calibration | None,
) -> None:
    if device.type != "cpu":
        raise BackendUnavailableError(
            "a CPU for the back-end 'openvino'", str(device), "Pass device='cpu', or backend='packed'."
        )
    if dtype not in PRECISIONS:
        raise InputError(
            "float32 or bfloat16 with OpenVINO", dtype_name(dtype), "Pass dtype='bfloat16' or 'float32'."
        )
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling among {', '.join(POOLINGS)}", repr(pooling), "Correct the name.")
    if batch_invariant:
        raise InputError(
            "batch_invariant=False with OpenVINO, which promises no order of additions",
            "True",
            "Pass backend='packed' for scores whose bits do not depend on the batch.",
        )
    if calibration is not None and not int8_runs_here():
        raise BackendUnavailableError(
            "a CPU with VNNI for products in int8", "one without it", "Pass calibration=None."
        )
    import_openvino()
    check_multiplies(dtype, core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def check_multiplies(dtype: torch.dtype, able: Sequence[str]) -> None:
    """Refuse bfloat16 where OpenVINO would compute in fp32 without a word.

    Args:
        dtype: What is asked for.
        able: The CPU's capabilities, as OpenVINO names them.

    Raises:
        BackendUnavailableError: If the CPU does not multiply it.
    """
    if dtype == torch.bfloat16 and "BF16" not in able:
        raise BackendUnavailableError(
            "a CPU that multiplies bfloat16 (AVX512-BF16 or AMX) for OpenVINO",
            f"one that is good for {', '.join(sorted(able))}",
            "Pass dtype='float32'.",
        )


def _check_belongs(calibration: Calibration, layers: Sequence[Layer], checkpoint: Checkpoint) -> None:
    digests = layer_digests(layers)
    known = calibration.encoder[: len(digests)]
    if known != digests:
        pairs = zip_longest(digests, known)
        others = [str(number) for number, (ours, theirs) in enumerate(pairs) if ours != theirs]
        raise CheckpointError(
            f"a calibration made with the weights of the {len(digests)} layers of {checkpoint.name}",
            f"one with other weights, or none, in layer {', '.join(others)}",
            "Calibrate this encoder, with calibrate_int8.",
        )
