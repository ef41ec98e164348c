"""ONNX Runtime as we use it: which provider, how many threads, tensors bound where they lie."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import importlib.util
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from fastreward.encoders.cpus import int8_runs_here
from fastreward.errors import BackendUnavailableError, CheckpointError, InputError

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
"""ONNX Runtime's name of what computes on a device."""

INSTALL: Final = {
    "cpu": 'pip install "fastreward[onnx]"',
    "cuda": 'pip uninstall onnxruntime; pip install "fastreward[onnx-gpu]"',
}

SEVERITY: Final = 3  # errors: what ONNX Runtime warns of, we check ourselves

ON_CPU_BY_DESIGN: Final = frozenset({"Shape", "Size", "Squeeze", "Range"})
"""Operators that may stay on the CPU where CUDA computes: the arithmetic of shapes, a few whole numbers.

ONNX Runtime puts what works on another operator's shape there, for a GPU's kernels want shapes on the host.
Its own switch against the CPU, `session.disable_cpu_ep_fallback`, refuses that too and so every model that
reads the length of its texts. Instead it is asked where it has put each operator."""

RECORD: Final = "session.record_ep_graph_assignment_info"  # has it note down where operators run
OUT_OF_MEMORY: Final = re.compile(
    r"failed to allocate|bad.alloc|out of memory|smaller than requested bytes", re.IGNORECASE
)
"""What ONNX Runtime says, in messages of no class of their own, where an allocation fails."""

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
        session = runtime.InferenceSession(
            str(path), session_options(device, threads), providers=[(provider, settings)]
        )
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
    if device.type != "cpu":
        check_placement(session, device)
    return session


def session_options(device: torch.device, threads: int) -> Any:
    """Choose the `onnxruntime.SessionOptions` for a device.

    Args:
        device: CPU or CUDA.
        threads: Threads that one run computes with on a CPU.
    """
    options = import_onnxruntime(device.type).SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SEVERITY
    # A pattern would be kept for every shape, and texts come in thousands of them.
    options.enable_mem_pattern = False
    if device.type != "cpu":
        options.add_session_config_entry(RECORD, "1")
    return options


def check_placement(session: Any, device: torch.device) -> None:
    """Refuse a session that computes elsewhere than on the device, but for the arithmetic of shapes.

    Where a provider has no kernel for an operator, ONNX Runtime has the CPU compute it and says nothing.

    Args:
        session: Loaded with the options of `session_options` for a GPU.
        device: Where it should compute.

    Raises:
        BackendUnavailableError: If an operator other than those of `ON_CPU_BY_DESIGN` is elsewhere.
    """
    elsewhere = {
        node.op_type: part.ep_name
        for part in session.get_provider_graph_assignment_info()
        if part.ep_name != PROVIDERS[device.type]
        for node in part.get_nodes()
        if node.op_type not in ON_CPU_BY_DESIGN
    }
    if elsewhere:
        found = ", ".join(f"{kind} on {provider}" for kind, provider in sorted(elsewhere.items()))
        raise BackendUnavailableError(
            f"ONNX Runtime with all of this model's operators on {device}",
            found,
            'Export it in fp32 or fp16, update onnxruntime-gpu, or pass backend="packed".',
        )


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

    Raises:
        torch.OutOfMemoryError: If memory runs out, the host's or the device's.
        InputError: If an input is not what the model takes: an id beyond its vocabulary.
        BackendUnavailableError: If it fails otherwise.
    """
    options = import_onnxruntime().RunOptions()
    options.log_severity_level = SEVERITY
    if graph_id is not None:
        options.add_run_config_entry("gpu_graph_id", str(graph_id))
    try:
        binding = session.io_binding()
        for bind, tensors in ((binding.bind_input, inputs), (binding.bind_output, outputs)):
            for name, tensor in tensors.items():
                assert tensor.is_contiguous()
                where = (tensor.device.type, tensor.device.index or 0)
                bind(name, *where, ELEMENT_TYPES[tensor.dtype], list(tensor.shape), tensor.data_ptr())
        session.run_with_iobinding(binding, options)
    except _errors_of_a_run() as error:
        raise _failed_run(session, error) from error


@functools.cache
def _errors_of_a_run() -> tuple[type[Exception], ...]:
    """ONNX Runtime's own exceptions, which have no class in common, and Python's, which it raises too."""
    errors = vars(import_onnxruntime().capi.onnxruntime_pybind11_state).values()
    own = [error for error in errors if isinstance(error, type) and issubclass(error, Exception)]
    return RuntimeError, *own


def _failed_run(session: Any, error: Exception) -> Exception:
    """What a run that failed is to its caller: too large, of wrong input, or beyond this ONNX Runtime."""
    reason = _first_line(error)
    if OUT_OF_MEMORY.search(str(error)):
        return torch.OutOfMemoryError(f"ONNX Runtime: {reason}")  # the scorer goes on with smaller batches
    if "out of data bounds" in reason:
        return InputError(
            "token ids and lengths that the export takes",
            reason,
            "Pass ids of its own tokenizer, in texts no longer than the encoder reads.",
        )
    return BackendUnavailableError(
        f"a run of ONNX Runtime {import_onnxruntime().__version__} ({session.get_providers()[0]})",
        reason,
        'Export the encoder again with this version, or pass backend="packed".',
    )


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
