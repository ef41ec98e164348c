"""Which back-ends exist here, why one does not, and which one `None` means.

A back-end that is named runs or raises with the remedy; nothing is ever replaced silently. `None` resolves by
the order in which the names are listed below, and `fastreward doctor` shows the result.
"""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
from dataclasses import dataclass
from typing import Final

import torch

from fastreward.errors import BackendUnavailableError, InputError

ENCODER_BACKENDS: Final = ("packed",)
"""Encoder back-ends, in the order in which `backend=None` tries them."""

OP_BACKENDS: Final = ("triton", "torch")
"""Back-ends of one op, in the order in which `backend=None` tries them."""

DTYPES: Final = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
"""The precisions that an encoder can compute in, by name; in 8 bits only the operands of its products."""


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
    if backend == "torch":
        return Availability(True, f"PyTorch {torch.__version__}; CPU and CUDA")
    if backend == "triton":
        return _triton_availability()
    known = ENCODER_BACKENDS + OP_BACKENDS
    raise InputError(f"a back-end among {', '.join(known)}", repr(backend), "Correct the name.")


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


def resolve_encoder(requested: str | None, device: torch.device) -> str:
    """Choose the encoder back-end for `device`: the one that is named, or the first that can run.

    Raises:
        InputError: If `requested` is not among `ENCODER_BACKENDS`.
    """
    if requested is None:
        return ENCODER_BACKENDS[0]
    if requested not in ENCODER_BACKENDS:
        raise InputError(
            f"an encoder back-end among {', '.join(ENCODER_BACKENDS)} for {device}",
            repr(requested),
            "Correct the name, or pass backend=None.",
        )
    return requested


def resolve_device(device: str | torch.device | None) -> torch.device:
    """Choose the device an encoder runs on.

    Args:
        device: A device, or None for the GPU of this process (LOCAL_RANK's, also when the encoder is built
            in another thread than the one that called `torch.cuda.set_device`) and the CPU without one.

    Returns:
        A device with its index.

    Raises:
        InputError: If it is neither a CPU nor a CUDA device.
        BackendUnavailableError: If it is a CUDA device that this process does not have.
    """
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
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


def resolve_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Choose the precision an encoder computes in; pooling and cosine are fp32 whatever it is.

    Args:
        dtype: One of `DTYPES` by name or as a `torch.dtype`, or None for bf16 where the hardware has it
            natively and fp32 elsewhere.
        device: The device the encoder runs on.

    Raises:
        InputError: If it is none of `DTYPES`, or one that is for GPUs on a CPU.
    """
    if dtype is None:
        return torch.bfloat16 if native_bf16(device) else torch.float32
    chosen = DTYPES.get(dtype.removeprefix("torch.")) if isinstance(dtype, str) else dtype
    if chosen is None or chosen not in DTYPES.values():
        raise InputError(f"a dtype among {', '.join(DTYPES)}", repr(dtype), "Correct the name.")
    if chosen in (torch.float16, torch.float8_e4m3fn) and device.type == "cpu":
        raise InputError(
            "float32 or bfloat16 on a CPU", dtype_name(chosen), "Pass dtype='bfloat16', 'float32' or None."
        )
    return chosen
