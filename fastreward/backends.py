"""Which back-ends exist here, why one does not, and which one `None` means.

A back-end that is named runs or raises with the remedy; nothing is ever replaced silently. `None` resolves by
the orders below, and `fastreward doctor` shows the result.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Final

import torch

from fastreward.caller import warn_caller
from fastreward.errors import BackendUnavailableError, InputError

ENCODER_BACKENDS: Final = ("packed", "openvino", "onnx")
"""Encoder back-ends."""

CPU_ORDER: Final = ("openvino", "packed", "onnx")
"""Encoder back-ends in the order in which `backend=None` tries them on a CPU, fastest first by the committed
results of `benchmarks/bench_cpu.py`. On CUDA it is always "packed"."""

OP_BACKENDS: Final = ("triton", "torch")
"""Back-ends of one op, in the order in which `backend=None` tries them."""

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
    "int8": torch.int8,
}
"""The precisions that an encoder can compute in, by name; in 8 bits only the operands of its products."""

CPU_DTYPES: Final = {
    "packed": ("float32", "bfloat16"),
    "openvino": ("float32", "bfloat16", "int8"),
    "onnx": ("float32", "int8"),
}
"""The precisions of each encoder back-end on a CPU."""

CUDA_DTYPES: Final = {
    "packed": ("float32", "bfloat16", "float16", "float8_e4m3fn"),
    "onnx": ("float32", "bfloat16", "float16"),
}
"""The precisions of each encoder back-end on CUDA."""


def dtype_name(dtype: torch.dtype) -> str:
    """Name a dtype as `DTYPES` does.

    Example:
        >>> dtype_name(torch.bfloat16)
        'bfloat16'
    """
    return str(dtype).removeprefix("torch.")


@dataclass(frozen=True)
class Availability:
    """Whether a back-end can run here.

    Attributes:
        usable: True when it can.
        detail: Its version, or the reason why not and the remedy.
    """

    usable: bool
    detail: str


def availability(backend: str) -> Availability:
    """Say whether one of `ENCODER_BACKENDS` or `OP_BACKENDS` can run on this machine.

    Raises:
        InputError: If there is no back-end of that name.

    Example:
        >>> availability("torch").usable
        True
    """
    if backend == "packed":
        return Availability(True, "packed tokens, PyTorch and Triton; CPU and CUDA")
    if backend in _PACKAGES:
        return _installed(backend)
    if backend == "torch":
        return Availability(True, f"PyTorch {torch.__version__}; CPU and CUDA")
    if backend == "triton":
        return _triton_availability()
    known = ENCODER_BACKENDS + OP_BACKENDS
    raise InputError(f"a back-end among {', '.join(known)}", repr(backend), "Correct the name.")


# What an encoder back-end imports, and what brings it.
_PACKAGES: Final = {
    "openvino": (("openvino",), "openvino", "CPU"),
    "onnx": (("onnx", "onnxruntime"), "onnx", "CPU and, by onnxruntime-gpu, CUDA"),
}


def _installed(backend: str) -> Availability:
    modules, extra, devices = _PACKAGES[backend]
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        remedy = f'pip install "fastreward[{extra}]"'
        return Availability(False, f"{' and '.join(missing)} not installed: {remedy}")
    return Availability(True, f"{', '.join(map(_version_of, modules))}; {devices}")


def _version_of(module: str) -> str:
    for package in (module, f"{module}-gpu"):
        try:
            return f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            continue
    return f"{module} of unknown version"


def triton_interpreted() -> bool:
    """Whether Triton's kernels run in its interpreter, on the CPU (set by TRITON_INTERPRET=1)."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def _triton_availability() -> Availability:
    if importlib.util.find_spec("triton") is None:
        return Availability(False, "Triton is not installed; a GPU build of PyTorch brings it")
    version = _triton_version()
    if triton_interpreted():
        return Availability(True, f"Triton {version}, in its interpreter on the CPU (TRITON_INTERPRET=1)")
    if not torch.cuda.is_available():
        return Availability(False, f"Triton {version} is installed, but PyTorch sees no GPU")
    if (failure := _triton_failure()) is not None:
        return Availability(False, f"Triton {version} cannot launch: {failure}")
    return Availability(True, f"Triton {version}; CUDA")


@functools.cache
def _triton_failure() -> str | None:
    """Say why Triton cannot launch on this GPU machine, or None.

    At its first use it compiles its own driver, for which slim images lack a C compiler or Python's headers.
    """
    import triton

    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # whatever the compiler or the driver raises: it is shown, and nothing runs
        return f"{str(error).strip() or type(error).__name__} (it needs a C compiler and Python's headers)"
    return None


@functools.cache  # every op of every layer asks
def _triton_version() -> str:
    for name in ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "of unknown version"


def resolve_op(op: str, device: torch.device, requested: str | None) -> str:
    """Choose the back-end of an op for tensors on `device`.

    Args:
        op: The op's name, for the message.
        device: Where the op's tensors are.
        requested: A name of `OP_BACKENDS`, or None for Triton on CUDA and PyTorch elsewhere.

    Returns:
        "triton" or "torch".

    Raises:
        InputError: If `requested` is no back-end of an op.
        BackendUnavailableError: If it cannot run on `device`.

    Example:
        >>> resolve_op("maxsim", torch.device("cpu"), None)
        'torch'
    """
    if requested is None:
        return "triton" if device.type == "cuda" and _triton_availability().usable else "torch"
    if requested not in OP_BACKENDS:
        raise InputError(
            f"a back-end of {op} among {', '.join(OP_BACKENDS)}", repr(requested), "Correct the name."
        )
    if requested == "triton":
        state = _triton_availability()
        if not state.usable:
            raise BackendUnavailableError(
                f"the Triton back-end of {op}", state.detail, "Pass backend='torch', or None to choose."
            )
        if device.type != "cuda" and not triton_interpreted():
            raise BackendUnavailableError(
                f"CUDA tensors for the Triton back-end of {op}",
                f"tensors on {device}",
                "Move them to the GPU, pass backend='torch', or set TRITON_INTERPRET=1 before the import.",
            )
    return requested


def resolve_encoder(
    requested: str | None,
    device: torch.device,
    dtype: str | torch.dtype | None = None,
    *,
    packed_because: str | None = None,
    calibrated: bool = False,
) -> str:
    """Choose the encoder back-end for `device`: the one that is named, or the fastest that can run.

    Args:
        requested: One of `ENCODER_BACKENDS`, or None.
        device: Where the encoder is to run.
        dtype: The precision that is asked for; a back-end without it is passed over.
        packed_because: An option that the packed encoder alone has, if one is asked for.
        calibrated: Whether there is a calibration for int8, which OpenVINO alone takes and cannot do without.

    Raises:
        InputError: If `requested` is not among `ENCODER_BACKENDS`, or lacks an option.
        BackendUnavailableError: If it cannot run here.

    Example:
        >>> cpu = torch.device("cpu")
        >>> resolve_encoder("packed", cpu), resolve_encoder(None, cpu, packed_because="num_layers=3")
        ('packed', 'packed')
    """
    other_way = "backend=None"
    if requested is None:
        if not calibrated or packed_because is not None:
            return _first_choice(device, dtype, packed_because)
        requested, other_way = "openvino", "calibration=None"
    if requested not in ENCODER_BACKENDS:
        raise InputError(
            f"an encoder back-end among {', '.join(ENCODER_BACKENDS)} for {device}",
            repr(requested),
            "Correct the name, or pass backend=None.",
        )
    if requested != "packed" and packed_because is not None:
        raise InputError(
            f"backend='packed' with {packed_because}", repr(requested), "Pass backend='packed', or None."
        )
    state = availability(requested)
    if not state.usable:
        raise BackendUnavailableError(
            f"the encoder back-end {requested}", state.detail, f"Install it, or pass {other_way}."
        )
    if device.type == "cuda" and requested not in CUDA_DTYPES:
        raise BackendUnavailableError(
            f"the encoder back-end {requested} on a CPU", str(device), f"Pass device='cpu', or {other_way}."
        )
    return requested


def _first_choice(device: torch.device, dtype: str | torch.dtype | None, packed_because: str | None) -> str:
    """The fastest back-end that has a precision and can run, where none is named and nothing calibrated."""
    if device.type == "cuda" or packed_because is not None:
        return "packed"
    wanted = None if dtype is None else dtype_name(_dtype_called(dtype))
    names = [name for name in CPU_ORDER if wanted is None or wanted in CPU_DTYPES[name]]
    if wanted == "int8":  # OpenVINO's wants a calibration: it is left to say so where nothing else has it
        names.sort(key=lambda name: name == "openvino")
    return next((name for name in names if availability(name).usable), "packed")


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Choose the device an encoder runs on.

    Args:
        device: A device, or None for the GPU of this process (LOCAL_RANK's, also when the encoder is built
            in another thread than the one that called `torch.cuda.set_device`) and the CPU without one; a
            process from which CUDA_VISIBLE_DEVICES hides every GPU says so, once.

    Returns:
        A device with its index.

    Raises:
        InputError: If it is neither a CPU nor a CUDA device.
        BackendUnavailableError: If it is a CUDA device that this process does not have.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
        if device == "cpu":
            _say_if_gpus_are_hidden()
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError("a device such as 'cpu' or 'cuda:0'", repr(device), "Correct the name.") from error
    if chosen.type == "cpu":
        return chosen
    if chosen.type != "cuda":
        raise InputError("a CPU or CUDA device", str(chosen), "Pass device='cpu' or 'cuda'.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    named = ":" in str(chosen)  # torch types the index as an int, but it is None for plain "cuda"
    index = chosen.index if named else _local_gpu() if count else 0
    if index >= count:
        raise BackendUnavailableError(
            f"the CUDA device that was asked for ({chosen if named or not count else f'{chosen}:{index}'})",
            f"{count} CUDA devices in this process (PyTorch {torch.__version__})",
            "Pass device='cpu', or run where PyTorch sees that GPU (CUDA_VISIBLE_DEVICES, LOCAL_RANK).",
        )
    return torch.device("cuda", index)


@functools.cache  # once a process
def _say_if_gpus_are_hidden() -> None:
    """Say where scores are computed if all GPUs are hidden from this process, as trainers do with workers."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        warn_caller(
            "Scores are computed on the CPU: CUDA_VISIBLE_DEVICES hides every GPU from this process. Pass "
            "device='cpu' if that is what you want, or score in a process that sees a GPU."
        )


def _local_gpu() -> int:
    local_rank = os.environ.get("LOCAL_RANK", "")
    if not local_rank.isdigit():
        return torch.cuda.current_device()
    # A launcher that shows each process a single GPU still counts its ranks up: then it is that one.
    return 0 if torch.cuda.device_count() == 1 else int(local_rank)


def native_bf16(device: torch.device) -> bool:
    """Whether `device` multiplies bf16 in hardware (CUDA: Ampere and later; CPU: AVX512-BF16 or AMX)."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def resolve_dtype(
    dtype: str | torch.dtype | None, device: torch.device, backend: str = "packed"
) -> torch.dtype:
    """Choose the precision an encoder computes in; pooling and cosine are fp32 whatever it is.

    Args:
        dtype: One of `DTYPES` by name or as a `torch.dtype`, or None for bf16 where hardware and back-end
            have it natively and fp32 elsewhere.
        device: The device the encoder runs on.
        backend: One of `ENCODER_BACKENDS`.

    Raises:
        InputError: If it is none of `DTYPES`, or one that the back-end does not have on that device.

    Example:
        >>> resolve_dtype("bfloat16", torch.device("cpu")), resolve_dtype(None, torch.device("cpu"), "onnx")
        (torch.bfloat16, torch.float32)
    """
    known = (CUDA_DTYPES if device.type == "cuda" else CPU_DTYPES)[backend]
    if dtype is None:
        if backend == "onnx":  # the precision that its operators are fused for
            return torch.float16 if device.type == "cuda" else torch.float32
        native = "bfloat16" in known and native_bf16(device)
        return torch.bfloat16 if native else torch.float32
    chosen = _dtype_called(dtype)
    if dtype_name(chosen) not in known:
        where = "a GPU" if device.type == "cuda" else "a CPU"
        raise InputError(
            f"a dtype among {', '.join(known)} with the back-end {backend} on {where}",
            dtype_name(chosen),
            "Pass one of them, or None to choose.",
        )
    return chosen


def _dtype_called(dtype: str | torch.dtype) -> torch.dtype:
    chosen = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise InputError(f"a dtype among {', '.join(DTYPES)}", repr(dtype), "Correct the name.")
    return chosen
