"""From a back-end's name to an encoder: the one place that knows them all."""

from __future__ import annotations

from pathlib import Path

import torch

from fastreward.encoders.base import Encoder
from fastreward.encoders.checkpoint import Checkpoint
from fastreward.errors import InputError
from fastreward.ops.pooled_cosine import Pooling


def build_encoder(
    backend: str,
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None,
    *,
    pooling: Pooling | None = None,
    num_layers: int | None = None,
    attention: str | None = None,
    calibration: Path | None = None,
    batch_invariant: bool = False,
) -> Encoder:
    """Build an encoder.

    Args:
        backend: One of `ENCODER_BACKENDS`.
        checkpoint: Files and settings.
        device: Where it runs.
        dtype: Its precision; None is what an export to ONNX has, and else the back-end's own choice.
        pooling: Instead of the checkpoint's own.
        num_layers: Use the first ones alone; None uses all.
        attention: The attention's back-end, of the packed encoder.
        calibration: What `calibrate_int8` measured, for int8 on OpenVINO.
        batch_invariant: Make a text's bits independent of its batch; the packed encoder alone can.

    Raises:
        InputError: If options exclude each other.
        CheckpointError: If files are missing, damaged, or do not fit together.
        BackendUnavailableError: If the back-end or the precision cannot be had here.
    """
    if (dtype == torch.int8) != (calibration is not None) and backend == "openvino":
        raise InputError(
            "dtype='int8' and a calibration together, on OpenVINO",
            "one without the other",
            "Measure one with fastreward.encoders.openvino.calibrate_int8, save it, and pass its file.",
        )
    if calibration is not None and backend != "openvino":
        raise InputError(
            "backend='openvino' with a calibration", repr(backend), "Pass backend='openvino', or none of it."
        )
    if backend == "openvino":
        return _openvino(checkpoint, device, dtype, pooling, num_layers, calibration, batch_invariant)
    if backend == "onnx":
        from fastreward.encoders.onnx_export import load_onnx_encoder

        return load_onnx_encoder(
            checkpoint,
            device,
            dtype,
            pooling=pooling,
            num_layers=num_layers,
            batch_invariant=batch_invariant,
        )
    from fastreward.backends import resolve_dtype
    from fastreward.encoders.packed import PackedEncoder

    return PackedEncoder(
        checkpoint,
        device,
        resolve_dtype(dtype, device),
        pooling=pooling,
        num_layers=num_layers,
        attention=attention,
        batch_invariant=batch_invariant,
    )


def _openvino(
    checkpoint: Checkpoint,
    device: torch.device,
    dtype: torch.dtype | None,
    pooling: Pooling | None,
    num_layers: int | None,
    calibration: Path | None,
    batch_invariant: bool,
) -> Encoder:
    from fastreward.backends import resolve_dtype
    from fastreward.encoders.openvino import OpenVINOEncoder
    from fastreward.encoders.openvino_int8 import Calibration

    # With int8 products, everything between them is as precise as it would be without.
    between = resolve_dtype(None if dtype == torch.int8 else dtype, device, "openvino")
    return OpenVINOEncoder(
        checkpoint,
        device,
        between,
        pooling=pooling,
        num_layers=num_layers,
        batch_invariant=batch_invariant,
        calibration=None if calibration is None else Calibration.load(calibration),
    )
