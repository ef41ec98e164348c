"""ONNX Runtime as we use it: which provider, how many threads, tensors bound where they lie."""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from fastreward.errors import BackendUnavailableError, CheckpointError, InputError

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's name of what computes on a device."""

INSTALL: Final = {
    "cpu": 'pip install "fastreward[onnx]"',
    "cuda": 'pip uninstall onnxruntime; pip install "fastreward[onnx-gpu]"',
}

SEVERITY: Final = 3  # errors: what ONNX Runtime warns of, we check ourselves

# As ONNX numbers them, for memory that is bound without a NumPy array around it.
ELEMENT_TYPES: Final = {torch.float32: 1, torch.int32: 6, torch.float16: 10, torch.bfloat16: 16}


def import_onnxruntime(device_type: str = "cpu") -> ModuleType:
    """Import ONNX Runtime.

    Raises:
        BackendUnavailableError: If it is not installed.
    """
    try:
        return importlib.import_module("onnxruntime")  # which has no type information
    except ImportError as error:
        raise BackendUnavailableError(
            "ONNX Runtime", f"none that can be imported ({error})", f"{INSTALL[device_type]}."
        ) from error


def open_session(
    path: Path, device: torch.device, threads: int, provider_options: Mapping[str, object] | None = None
) -> Any:
    """Load a model for a device.

    Args:
        path: The model.
        device: CPU or CUDA.
        threads: Threads that one run computes with on a CPU.
        provider_options: Of the CUDA provider, over those set here.

    Returns:
        An `onnxruntime.InferenceSession`; several threads may run it at once.

    Raises:
        BackendUnavailableError: If ONNX Runtime is not there, or cannot compute on the device. It is never
            another device that computes.
        CheckpointError: If the file is no model that it can load.
    """
    runtime = import_onnxruntime(device.type)
    provider = PROVIDERS[device.type]
    available = runtime.get_available_providers()
    if provider not in available:
        raise _unavailable(device, f"a build with {', '.join(available)}")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SEVERITY
    # A pattern would be kept for every shape, and texts come in thousands of them.
    options.enable_mem_pattern = False
    settings = {}
    if device.type == "cuda":
        settings = {
            "device_id": device.index or 0,
            "arena_extend_strategy": "kSameAsRequested",  # PyTorch needs the memory too
            "use_tf32": 0,
            **(provider_options or {}),
        }
    errors = runtime.capi.onnxruntime_pybind11_state
    try:
        session = runtime.InferenceSession(str(path), options, providers=[(provider, settings)])
    except (errors.InvalidProtobuf, errors.InvalidGraph, errors.NoSuchFile, errors.InvalidArgument) as error:
        raise CheckpointError(
            "a model that ONNX Runtime can load", f"{path}: {_first_line(error)}", "Export the encoder again."
        ) from error
    except (errors.NotImplemented, errors.Fail, errors.EPFail, errors.RuntimeException) as error:
        raise BackendUnavailableError(
            f"ONNX Runtime {runtime.__version__} with this model's operators on {device}",
            _first_line(error),
            "Export in fp32 with this version, or update onnxruntime.",
        ) from error
    # Where a provider cannot start, ONNX Runtime warns and computes on the CPU.
    if session.get_providers()[0] != provider:
        raise _unavailable(device, f"{', '.join(session.get_providers())} after loading the model")
    return session


def _unavailable(device: torch.device, received: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"ONNX Runtime with {PROVIDERS[device.type]} for {device}",
        received,
        f"{INSTALL[device.type]}, of the CUDA major that PyTorch has; `fastreward doctor` says what differs.",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def run_bound(
    session: Any, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor], graph_id: int | None = None
) -> None:
    """Run a session from tensors into tensors, all where the session computes; nothing is copied.

    What no output is bound for is computed only as far as one that is bound needs it.

    Args:
        session: From `open_session`.
        inputs: Contiguous tensors by the model's names.
        outputs: The same; they are overwritten.
        graph_id: Record the run as a CUDA graph under this number, or replay the one that was. Only for
            sessions with `enable_cuda_graph`, and with the same tensors every time.
    """
    binding = session.io_binding()
    for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
        for name, tensor in tensors.items():
            assert tensor.is_contiguous()
            where = (tensor.device.type, tensor.device.index or 0)
            bind(name, *where, ELEMENT_TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr())
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = SEVERITY
    if graph_id is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
    session.run_with_iobinding(binding, options)


def resolve_threads(requested: int | None) -> int:
    """Choose how many threads compute on the CPU.

    Args:
        requested: A number of threads; None for as many as PyTorch uses (OMP_NUM_THREADS), but not more than
            this process may use cores, by its affinity and by its control group's quota.

    Raises:
        InputError: If it is less than 1.
    """
    if requested is None:
        cores = min(len(os.sched_getaffinity(0)), torch.get_num_threads())
        quota = cgroup_cores(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))
        return cores if quota is None else max(1, min(cores, math.ceil(quota)))
    if isinstance(requested, bool) or not isinstance(requested, int) or requested < 1:
        raise InputError("threads of 1 or more", repr(requested), "Pass a whole number, or None.")
    return requested


def cgroup_cores(root: Path, membership: Path) -> float | None:
    """Read how many cores the control groups of this process let it use; None where nothing limits it.

    Args:
        root: Where control groups are mounted, of version 2 or 1.
        membership: The file that names the process's own, as /proc/self/cgroup does.
    """
    quotas: list[float] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        mount = root / controllers
        group = mount / path.lstrip("/")
        # A group is limited by those above it too. In a container its own path may not be there at all.
        for folder in (group, *group.parents):
            if folder == mount or mount in folder.parents:
                quotas += _quota(folder)
    return min(quotas, default=None)


def _quota(folder: Path) -> list[float]:
    """The quota of one control group in cores, or nothing."""
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = (folder / "cpu.max").read_text().split()
        return [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError):
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
        return [int(quota) / int(period)] if int(quota) > 0 else []
    return []


def int8_runs_here() -> bool:
    """Whether this CPU multiplies 8-bit integers without loss.

    On x86 that is one with VNNI, which sums in 32 bits. The older instruction adds two products of up to
    255 · 127 in 16 bits, which clips at 32,767.
    """
    return platform.machine() not in ("x86_64", "AMD64") or bool(torch.cpu._is_vnni_supported())


def check_int8() -> None:
    """Refuse 8-bit products on a CPU whose instruction for them overflows.

    Raises:
        BackendUnavailableError: If this is one.
    """
    if not int8_runs_here():
        raise BackendUnavailableError(
            "a CPU with VNNI for int8", f"one of {platform.machine()} without", 'Use precision "fp32".'
        )


def onnxruntime_problems(
    distributions: Sequence[str], built_for_cuda: str | None, torch_cuda: str | None
) -> list[str]:
    """Say what about an installation of ONNX Runtime will not work, and how to mend it.

    Args:
        distributions: The installed packages that bring the import name `onnxruntime`.
        built_for_cuda: The CUDA version that ONNX Runtime is built for ("12.8"); None for a CPU build.
        torch_cuda: PyTorch's; None for a CPU build.

    Returns:
        Sentences; none where all is well.

    Example:
        >>> onnxruntime_problems(["onnxruntime-gpu"], "12.8", "12.6")
        []
        >>> onnxruntime_problems(["onnxruntime-gpu"], "12.8", "13.0")[0].partition(";")[0]
        'onnxruntime is built for CUDA 12 and PyTorch for CUDA 13'
    """
    problems = []
    names = sorted(set(distributions))
    if len(names) > 1:
        problems.append(
            f"{' and '.join(names)} share the import name onnxruntime, and what was installed last is what "
            f"runs; uninstall them all (pip uninstall {' '.join(names)}) and install one"
        )
    if built_for_cuda is not None and torch_cuda is not None:
        ours, its = (re.match(r"\d+", version) for version in (built_for_cuda, torch_cuda))
        if ours and its and ours[0] != its[0]:
            problems.append(
                f"onnxruntime is built for CUDA {ours[0]} and PyTorch for CUDA {its[0]}; install the "
                "onnxruntime-gpu that is built for PyTorch's"
            )
    if torch_cuda is not None and names and built_for_cuda is None:
        problems.append(
            f"{' and '.join(names)} has no CUDA provider, and PyTorch has CUDA {torch_cuda}; for ONNX "
            f"Runtime on the GPU: {INSTALL['cuda']}"
        )
    return problems


def onnxruntime_diagnosis() -> dict[str, object]:
    """Look at this machine's ONNX Runtime: version, packages, providers, problems, as doctor shows them."""
    distributions = list(importlib.metadata.packages_distributions().get("onnxruntime", ()))
    if importlib.util.find_spec("onnxruntime") is None:
        return {"version": None, "packages": distributions, "providers": [], "problems": []}
    try:
        runtime = import_onnxruntime()
    except BackendUnavailableError as error:
        problem = f"onnxruntime is installed and cannot be imported: {error.__cause__}; install it anew"
        return {"version": None, "packages": distributions, "providers": [], "problems": [problem]}
    build = importlib.import_module("onnxruntime.capi.build_and_package_info")
    cuda = getattr(build, "cuda_version", None) or None
    return {
        "version": runtime.__version__,
        "packages": distributions,
        "providers": list(runtime.get_available_providers()),
        "problems": onnxruntime_problems(distributions, cuda, torch.version.cuda),
    }
