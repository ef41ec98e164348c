"""Export an encoder to ONNX: written, held against the packed encoder, and only then put in its place."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import re
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import torch
from numpy.typing import NDArray

import fastreward.encoders.onnx_manifest as manifests
from fastreward.backends import dtype_name
from fastreward.encoders.architecture import Architecture
from fastreward.encoders.checkpoint import Checkpoint
from fastreward.encoders.cpus import resolve_threads
from fastreward.encoders.onnx import OnnxEncoder, pad, padded_groups
from fastreward.encoders.onnx_files import is_there, part_of, place
from fastreward.encoders.onnx_graph import build_graph
from fastreward.encoders.onnx_int8 import Ranges
from fastreward.encoders.onnx_manifest import MODEL, Manifest, read_manifest, sha256
from fastreward.encoders.onnx_nodes import OPSET, GraphPrecision
from fastreward.encoders.onnx_session import (
    INSTALL,
    check_int8,
    import_onnxruntime,
    open_session,
    run_bound,
)
from fastreward.encoders.packed import PackedEncoder
from fastreward.errors import BackendUnavailableError, CheckpointError, InputError
from fastreward.ops.pooled_cosine import POOLINGS, Pooling
from fastreward.packing import pack
from fastreward.tokenization import Tokenizer

if TYPE_CHECKING:
    import onnx

CPU: Final = torch.device("cpu")

MAX_DRIFT: Final = {"fp32": 1e-4, "fp16": 2e-2, "bf16": 1e-1, "int8": 2e-1}
"""How far a text's vector may be from the packed encoder's in fp32, both of unit length.

A rounding adds noise of its unit u, relative to what is rounded, and the noise of n roundings adds up to
√n · u. Six in each of the 24 layers of a large encoder make 6e-3 in fp16 (u = 2^-11) and 5e-2 in bf16 (2^-8).
In fp32 it is 1e-6, and sums in another order come on top. In 8 bits a step is 1/127 of a token's largest
value and the noise 1/√12 of a step: 1 % of a typical value, which is a quarter of the largest. Four products
in each of the 24 layers make 0.1. Each is at least doubled here. A wrong graph is off by about 1."""

MAX_FILE: Final = 1 << 30
"""Bytes of weights from which on they lie in a file of their own: a model in one file ends at 2 GiB."""

PASSAGE: Final = (
    "The heart pumps blood through the body: it leaves by the arteries, reaches every organ, and comes back "
    "through the veins. Perché il rame conduce? I suoi elettroni liberi si spostano appena c'è una tensione "
    "(U = R · I). Enzymes lower the activation energy ΔG‡, so the reaction runs faster, but its equilibrium "
    "stays where it was. 3x + 7 = 22, also x = 5; die Probe zeigt 3 · 5 + 7 = 22. Η φωτοσύνθεση μετατρέπει "
    "το φως σε ενέργεια. Сила равна массе, умноженной на ускорение. 光合作用 把 光 变成 化学能。 "
    "def f(x): return x**2"
)
"""Words of the texts on which an export is held against the packed encoder, and an int8 one is calibrated."""

PROBE_WORDS: Final = (0, 1, 2, 3, 5, 9, 17, 18, 33, 60, 61, 120, 250, 400)
"""Words of the texts that are cut from it, ragged, and beyond the windows of encoders that have some."""


def export_onnx(
    checkpoint: Checkpoint,
    folder: str | Path,
    precision: GraphPrecision = "fp32",
    *,
    pooling: Pooling | None = None,
    num_layers: int | None = None,
) -> Path:
    """Write an encoder as an ONNX graph with all that scoring needs: `Scorer(folder, backend="onnx")`.

    The graph is loaded and held against the packed encoder in fp32 before the folder appears under its name,
    complete and at once. Of several processes that export the same to one folder, one leaves its result, and
    the others find it.

    Args:
        checkpoint: The encoder.
        folder: Where; a new folder or an empty one, or one that already holds this very export.
        precision: "fp32"; "int8", for CPUs with VNNI; "fp16" or "bf16", for CUDA.
        pooling: Instead of the checkpoint's own; it is fixed in the graph.
        num_layers: Export the first ones alone; None exports all.

    Returns:
        `folder`.

    Raises:
        InputError: If an option is not what it should be, or the folder holds something else.
        CheckpointError: If weights are missing or damaged, the graph's vectors drift from the packed
            encoder's by more than `MAX_DRIFT`, or the folder cannot be written.
        BackendUnavailableError: If onnx or ONNX Runtime is not installed, or there is no VNNI for int8.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from fastreward.encoders.checkpoint import load_checkpoint
        >>> checkpoint = load_checkpoint("sentence-transformers/all-MiniLM-L6-v2")
        >>> with TemporaryDirectory() as folder:
        ...     export = export_onnx(checkpoint, Path(folder) / "one-layer", num_layers=1)
        ...     read_manifest(export).num_layers
        1
    """
    folder = Path(folder).expanduser().absolute()
    architecture, pooling = _options(checkpoint, precision, pooling, num_layers)
    digest = source_digest(checkpoint, precision, pooling, architecture.num_layers)
    if is_there(folder, digest):
        return folder
    _check_installed()
    with part_of(folder) as part:
        ranges = _ranges(checkpoint, architecture, pooling, part) if precision == "int8" else None
        _save(build_graph(checkpoint, architecture, pooling, precision, ranges=ranges), part / MODEL)
        largest, rms = _drift(checkpoint, architecture, pooling, precision, part)
        if not largest <= MAX_DRIFT[precision]:  # NaN is no drift that is small enough
            raise CheckpointError(
                f"a graph in {precision} within {MAX_DRIFT[precision]:g} of the packed encoder's vectors",
                f"one that is {largest:.2g} off, and was not written",
                "Export in fp32, which loses nothing.",
            )
        manifests.write_settings(part, checkpoint, architecture.num_layers, pooling)
        manifest = Manifest(
            encoder=checkpoint.name,
            revision=manifests.revision_of(checkpoint),
            source_sha256=digest,
            family=architecture.family,
            hidden_size=architecture.hidden_size,
            num_layers=architecture.num_layers,
            pooling=pooling,
            precision=precision,
            opset=OPSET,
            versions=_versions(),
            largest_drift=largest,
            rms_drift=rms,
            files=manifests.digests(part),
        )
        manifests.write_manifest(part, manifest)
        place(part, folder, digest)
    return folder


def load_onnx_encoder(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None = None,
    *,
    pooling: Pooling | None = None,
    num_layers: int | None = None,
    threads: int | None = None,
    batch_invariant: bool = False,
    cuda_graphs: bool = False,
    cache: Path | None = None,
) -> OnnxEncoder:
    """Load the export of a checkpoint; one that is not in the cache yet is written there first.

    Args:
        checkpoint: An encoder, or the folder of an export, which is loaded as it is.
        device: CPU or CUDA.
        dtype: float32, or int8 on a CPU, or float16 or bfloat16 on CUDA. None is what an export has, and for
            another checkpoint float32 on a CPU and float16 on CUDA.
        pooling: Instead of the checkpoint's own.
        num_layers: Use the first ones alone; None uses all.
        threads: As in `OnnxEncoder`, and so are the next two.
        batch_invariant: Refused.
        cuda_graphs: For many small batches on a GPU.
        cache: Where exports are kept; None for `cache_folder()`.

    Raises:
        InputError: If an option is not what it should be, or an export was made with another one.
        CheckpointError: As in `export_onnx` and `OnnxEncoder`.
        BackendUnavailableError: The same.
    """
    precision = resolve_precision(dtype, device)
    folder = checkpoint.folder
    if (folder / manifests.MANIFEST).is_file():
        _check_options(read_manifest(folder), precision if dtype is not None else None, pooling, num_layers)
    else:
        architecture, pooling = _options(checkpoint, precision, pooling, num_layers)
        layers = architecture.num_layers
        digest = source_digest(checkpoint, precision, pooling, layers)
        name = re.sub(r"[^\w.-]+", "-", Path(checkpoint.name).name)[:60]
        folder = (cache or cache_folder()) / f"{name}-{precision}-{digest[:24]}"
        export_onnx(checkpoint, folder, precision, pooling=pooling, num_layers=layers)
    return OnnxEncoder(
        folder, device, threads=threads, batch_invariant=batch_invariant, cuda_graphs=cuda_graphs
    )


def cache_folder() -> Path:
    """Where exports are kept that nobody asked for by name: below XDG_CACHE_HOME, or else ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    root = Path(base) if os.path.isabs(base) else Path.home() / ".cache"
    return root / "fastreward" / "onnx"


def resolve_precision(dtype: torch.dtype | None, device: torch.device) -> GraphPrecision:
    """Choose a graph's precision for a dtype and a device.

    Raises:
        InputError: If ONNX Runtime has no operators for it there.

    Example:
        >>> resolve_precision(None, torch.device("cpu"))
        'fp32'
    """
    names: dict[torch.dtype | None, GraphPrecision] = {torch.float32: "fp32"}
    if device.type == "cuda":
        names |= {None: "fp16", torch.float16: "fp16", torch.bfloat16: "bf16"}
    else:
        names |= {None: "fp32", torch.int8: "int8"}
    if dtype not in names:
        known = ", ".join(dtype_name(kind) for kind in names if kind is not None)
        raise InputError(
            f"a dtype among {known} for ONNX Runtime on {device.type}, which has no operators for others",
            dtype_name(dtype) if dtype is not None else "None",
            "Pass one of them, or another backend.",
        )
    return names[dtype]


def source_digest(
    checkpoint: Checkpoint, precision: GraphPrecision, pooling: Pooling, num_layers: int
) -> str:
    """Return the SHA-256 of all that decides what an export is: files, options, and who writes it."""
    files = [*sorted(checkpoint.folder.glob("*.safetensors")), checkpoint.tokenizer_file]
    decisive = {
        "files": [sha256(path) for path in files if path.is_file()],
        "config": dict(checkpoint.config),
        "options": [precision, pooling, num_layers],
        "scoring": [
            checkpoint.max_seq_length,
            dict(checkpoint.prompts),
            checkpoint.default_prompt,
            checkpoint.pools_prompt,
            checkpoint.lowercase,
        ],
        "written by": [importlib.metadata.version("fastreward"), manifests.FORMAT, OPSET],
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


# ---------------------------------------------------------------------------------------- the graph


def _save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model; large weights lie in a file beside it."""
    import onnx

    size_bytes = sum(len(weight.raw_data) for weight in model.graph.initializer)
    if size_bytes < MAX_FILE:
        onnx.save_model(model, path)
    else:
        onnx.save_model(model, path, save_as_external_data=True, location=f"{path.name}.data")


def _ranges(checkpoint: Checkpoint, architecture: Architecture, pooling: Pooling, part: Path) -> Ranges:
    """Run the encoder in fp32 and note how large the inputs of its products become, channel by channel."""
    path = part / "observed.onnx"
    _save(build_graph(checkpoint, architecture, pooling, observed=True), path)
    session = open_session(path, CPU, resolve_threads(None))
    names = [output.name for output in session.get_outputs() if output.name.startswith("range:")]
    ranges: dict[str, NDArray[np.float32]] = {}
    for ids in _probes(checkpoint):  # one by one: padding would be seen too
        feed = {"input_ids": ids[None], "lengths": np.array([len(ids)], dtype=np.int32)}
        for name, largest in zip(names, session.run(names, feed), strict=True):
            key = name.removeprefix("range:")
            ranges[key] = np.maximum(ranges[key], largest) if key in ranges else largest
    _remove(path)
    return ranges


def _drift(
    checkpoint: Checkpoint,
    architecture: Architecture,
    pooling: Pooling,
    precision: GraphPrecision,
    part: Path,
) -> tuple[float, float]:
    """Compare a graph's vectors with the packed encoder's in fp32: the longest difference, and their RMS.

    For bf16, which ONNX Runtime does not compute on a CPU, the same graph is run with fp32 operators, whose
    results are rounded. In fp16 it puts such roundings in itself.
    """
    path = part / MODEL
    if precision == "bf16":
        path = part / "emulated.onnx"
        _save(build_graph(checkpoint, architecture, pooling, precision, emulated=True), path)
    session = open_session(path, CPU, resolve_threads(None))
    layers = architecture.num_layers or None
    packed = PackedEncoder(checkpoint, CPU, torch.float32, pooling=pooling, num_layers=layers)
    batch = pack(_probes(checkpoint), CPU)
    expected = packed.embed(batch)
    found = torch.full_like(expected, float("nan"))
    filler = architecture.padding_id or 0
    for rows in padded_groups(batch.lengths, max_tokens=1024, run_cost=256):  # with much padding, on purpose
        input_ids, lengths = pad(batch, rows, (len(rows), max(batch.lengths[row] for row in rows)), filler)
        result = torch.empty((len(rows), architecture.hidden_size), device=CPU)
        run_bound(session, {"input_ids": input_ids, "lengths": lengths}, {"embedding": result})
        found[rows] = result
    if path.name != MODEL:
        _remove(path)
    distance = (found - expected).double().norm(dim=1)
    return float(distance.max()), float(distance.square().mean().sqrt())


def _probes(checkpoint: Checkpoint) -> list[NDArray[np.int32]]:
    """Token ids of built-in texts of very different lengths."""
    tokenizer = Tokenizer.from_file(
        checkpoint.tokenizer_file,
        max_length=checkpoint.max_seq_length,
        lowercase=checkpoint.lowercase,
        word_cache_bytes=0,
    )
    words = PASSAGE.split()
    texts = [" ".join(islice(cycle(words), start, start + count)) for start, count in enumerate(PROBE_WORDS)]
    return [np.array(ids, dtype=np.int32) for ids in tokenizer(texts) if ids]


def _remove(model: Path) -> None:
    for path in (model, model.with_name(f"{model.name}.data")):
        path.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------------- the options


def _options(
    checkpoint: Checkpoint, precision: str, pooling: Pooling | None, num_layers: int | None
) -> tuple[Architecture, Pooling]:
    """Check what is asked for: the layers that are exported, and the pooling."""
    if precision not in get_args(GraphPrecision):
        raise InputError(
            f"a precision among {', '.join(get_args(GraphPrecision))}", repr(precision), "Correct the name."
        )
    if pooling is not None and pooling not in POOLINGS:
        raise InputError(f"pooling among {', '.join(POOLINGS)}", repr(pooling), "Correct the name.")
    if precision == "int8":
        check_int8()
    architecture = checkpoint.architecture
    if num_layers is not None:
        architecture = architecture.first_layers(num_layers)
    return architecture, pooling or checkpoint.pooling


def _check_options(
    manifest: Manifest, precision: str | None, pooling: Pooling | None, num_layers: int | None
) -> None:
    """Refuse to load an export with other options than it was made with."""
    asked = {"dtype": precision, "pooling": pooling, "num_layers": num_layers}
    made = {"dtype": manifest.precision, "pooling": manifest.pooling, "num_layers": manifest.num_layers}
    for name, value in asked.items():
        if value is not None and value != made[name]:
            raise InputError(
                f"{name} of {made[name]}, which is fixed in this export",
                str(value),
                "Leave it out, or export the encoder again with it.",
            )


def _check_installed() -> None:
    import_onnxruntime()
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise BackendUnavailableError(
            "onnx, to write a graph", f"none ({error})", f"{INSTALL['cpu']}."
        ) from error


def _versions() -> dict[str, str]:
    versions = {name: importlib.metadata.version(name) for name in ("fastreward", "onnx", "torch")}
    return {**versions, "onnxruntime": import_onnxruntime().__version__}
