"""What an op's benchmark is: one description for pytest-benchmark on a CPU and for the GPU suite.

A `bench_<op>.py` lists its `WORKLOADS` and has one test; `gpu_suite.py` finds the same list:

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(x, weight.shape, weight, bias, 1e-12)

    def draw(shape: PackedShape, device: torch.device, dtype: torch.dtype, shrunk: bool) -> Case:
        shape = shape.sized(device, shrunk)
        normal = Noise(device)
        x = normal(shape.num_tokens, shape.hidden_size, dtype=dtype)
        ...
        variants = {
            OURS: partial(layer_norm, x, norm),
            EAGER: partial(eager, x, weight, bias),
            COMPILED: partial(compiled(eager, AUTOTUNED), x, weight, bias),
        }
        return Case(OURS, variants, expected=..., max_error=..., peer_max_error=..., moved_bytes=..., flops=0)

    WORKLOADS: Final = (Workload("layer_norm", "d384", "memory", partial(draw, D384)),)

    @pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
    def test_layer_norm(workload: Workload, time_workload: TimeWorkload) -> None:
        time_workload(workload)

A module may also have `check_edges(device)`, which the GPU suite calls before it times the op, and which
raises `GateError` where the op is wrong at the sizes at which implementations go wrong first; and `FIDELITY`,
requirements on results instead of times. What is timed from texts to results is a `Scenario` (scenarios.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, ParamSpec, TypeVar

import torch
from torch import Tensor

from benchmarks.measure import GateError, require_close
from fastreward.errors import BackendUnavailableError, UnsupportedArchitectureError

P = ParamSpec("P")
R = TypeVar("R")

Result = Tensor | tuple[Tensor, ...]
Variant = Callable[[], Result]

NOT_HERE: Final = (BackendUnavailableError, UnsupportedArchitectureError)
"""What says that something cannot run here, which is no failure: it is listed with the reason."""

OURS: Final = "fastreward"
EAGER: Final = "eager"
COMPILED: Final = "compiled"
COPY: Final = "copy"
SENTENCE_TRANSFORMERS: Final = "sentence-transformers"
MATRIX_PRODUCT: Final = "matrix product"

# What `torch.compile` is asked for. Autotuning is what PyTorch's documentation advises for throughput; for
# matrix products it takes minutes and ends, nearly always, at the library's own, so they go without it.
AUTOTUNED: Final[Mapping[str, Any]] = {"mode": "max-autotune-no-cudagraphs"}
NOT_AUTOTUNED: Final[Mapping[str, Any]] = {}
CUDA_GRAPHS: Final[Mapping[str, Any]] = {"mode": "reduce-overhead"}


@dataclass(frozen=True)
class Case:
    """One op at one shape with its inputs drawn.

    Attributes:
        ours: The name in `variants` of what this device runs when nothing is asked for; usually `OURS`.
        variants: What is timed, as calls without arguments. `EAGER` is plain PyTorch as a good user writes
            it, `COMPILED` (and every name that begins so) the same through `compiled`.
        expected: The right result in fp64, or in fp32 where fp64 would take seconds; on any
            device. Called once.
        max_error: How far from it ours may be, and every variant in `own`.
        peer_max_error: How far a peer may be; beyond this it computes something else and is not timed.
        moved_bytes: What the op must move, whatever a variant moves (`<op>_bytes`).
        flops: Operations of the matrix products (`<op>_flops`); 0 for an op that has none.
        own: Further variants of ours, held to `max_error` too: another back-end, a reference implementation.
        rms_error: Bound of the RMS error of ours; None sets none.
        reset: Puts back inputs that a variant changes in place. Called before
            each variant's check, never timed.
        tokens: For an encoder: the tokens of the batch, so that tokens a second are shown.
        describe: Sizes for the result file.
    """

    ours: str
    variants: Mapping[str, Variant]
    expected: Callable[[], Result]
    max_error: float
    peer_max_error: float
    moved_bytes: int
    flops: int
    own: frozenset[str] = frozenset()
    rms_error: float | None = None
    reset: Callable[[], None] | None = None
    tokens: int = 0
    describe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Ask:
    """What a variant of ours has to reach on an H100.

    Attributes:
        quantity: "M tokens/s"; "times the best peer", how many times as fast as the fastest row of
            sentence-transformers; or "ms", the median.
        bound: At most so much for "ms", else at least.
        variant: Whose row.
    """

    quantity: Literal["M tokens/s", "times the best peer", "ms"]
    bound: float
    variant: str = OURS


@dataclass(frozen=True)
class Workload:
    """One op at one shape, to be drawn where it runs.

    Attributes:
        op: The op's stem.
        shape: Name of the shape.
        bound: The ceiling of the same run that it is held against: a copy within the memory, or the best
            matrix product.
        draw: (device, dtype, shrunk) → the case. On CUDA the full shape; on a CPU a scorer's batch of 2,048
            tokens; shrunk, a tiny relative with which every step runs in a moment (`PackedShape.sized`).
        latency: So little work that what counts is how soon it is done: timed on the GPU and by the
            caller's clock, and held against no ceiling.
        asked_percent: What ours must reach of the ceiling on a GPU, in per cent; None asks nothing.
        asks: What else is asked, of an H100.
    """

    op: str
    shape: str
    bound: Literal["memory", "compute"]
    draw: Callable[[torch.device, torch.dtype, bool], Case]
    latency: bool = False
    asked_percent: float | None = None
    asks: tuple[Ask, ...] = ()

    @property
    def ceiling(self) -> str:
        """The ceiling's name in tables."""
        return {"memory": COPY, "compute": MATRIX_PRODUCT}[self.bound]

    @property
    def name(self) -> str:
        """What `--only` takes."""
        return f"{self.op}-{self.shape}"


TimeWorkload = Callable[[Workload], None]
"""The fixture `time_workload` of the pytest-benchmark suites: check, time in turns, and show."""


def compiled(function: Callable[P, R], options: Mapping[str, Any]) -> Callable[P, R]:
    """`torch.compile` with static shapes and one graph, when it is first called.

    On a CPU, where only the suite's own steps are tried, the function is traced, so that a graph break shows,
    and runs as it is.

    Args:
        function: A tensor is among its positional arguments.
        options: `AUTOTUNED`, `NOT_AUTOTUNED` or `CUDA_GRAPHS`.
    """
    built: list[Callable[P, R]] = []

    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not built:
            on_gpu = any(isinstance(value, Tensor) and value.is_cuda for value in args)
            chosen = dict(options) if on_gpu else {"backend": "eager"}
            built.append(torch.compile(function, fullgraph=True, dynamic=False, **chosen))
        return built[0](*args, **kwargs)

    return call


@dataclass(frozen=True)
class Checked:
    """Variants that are right, and for the others why they are not timed."""

    usable: Mapping[str, Variant]
    failed: Mapping[str, str]


def checked(case: Case, *, leave_out: Callable[[str], str | None] = lambda name: None) -> Checked:
    """Run each variant once and hold it against what is expected.

    Args:
        case: The op with its inputs.
        leave_out: For a variant's name the reason why it is not run, or None.

    Raises:
        GateError: If ours, or another of our own, is wrong: then nothing of this case may be timed.
        Exception: Whatever ours raises.
    """
    torch.compiler.reset()  # a function that is compiled for ever more shapes falls back to eager in the end
    expected = case.expected()
    usable: dict[str, Variant] = {}
    failed: dict[str, str] = {}
    for name, run in case.variants.items():
        if (reason := leave_out(name)) is not None:
            failed[name] = reason
            continue
        own = name == case.ours or name in case.own
        try:
            if case.reset is not None:
                case.reset()
            _check(name, run(), expected, case, own=own)
        except Exception as error:
            # Another back-end of ours may not exist here; what runs when nothing is asked for must.
            if name == case.ours or (own and not isinstance(error, NOT_HERE)):
                raise
            failed[name] = why(error)
        else:
            usable[name] = run
    return Checked(usable, failed)


def why(error: BaseException) -> str:
    """An exception in one line."""
    message = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {message.strip()}"


def _check(name: str, result: Result, expected: Result, case: Case, *, own: bool) -> None:
    results = result if isinstance(result, tuple) else (result,)
    wanted = expected if isinstance(expected, tuple) else (expected,)
    if len(results) != len(wanted):
        raise GateError(f"{name}: {len(results)} results, expected {len(wanted)}; not timed")
    for number, (values, right) in enumerate(zip(results, wanted, strict=True)):
        what = name if len(wanted) == 1 else f"{name}, result {number}"
        largest = case.max_error if own else case.peer_max_error
        require_close(what, values, right, max_error=largest, rms_error=case.rms_error if own else None)


@dataclass(frozen=True)
class Finding:
    """One requirement on results and what was found; NaN never meets it.

    Attributes:
        what: Which results.
        asked: "largest error" or "Spearman", with the bound.
        value: What was found; None where it could not be tried.
        bound: At most so much with `at_most`, else at least.
        reason: Why it could not be tried.
    """

    what: str
    asked: str
    value: float | None
    bound: float
    at_most: bool = False
    reason: str = ""

    @property
    def met(self) -> bool | None:
        """Whether it is as required; None where it could not be tried."""
        if self.value is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def as_json(self) -> dict[str, Any]:
        """The finding as it is written."""
        return {**vars(self), "met": self.met}

    def cells(self) -> list[str]:
        """The finding as it is shown."""
        verdict = {True: "met", False: "MISSED", None: f"not tried: {self.reason}"}[self.met]
        sign = "≤" if self.at_most else "≥"
        value = "" if self.value is None else f"{self.value:.6g}"
        return [self.what, f"{self.asked} {sign} {self.bound:g}", value, verdict]


@dataclass(frozen=True)
class Fidelity:
    """A requirement on results: `check` takes (device, shrunk, folder of all-MiniLM-L6-v2 or None)."""

    name: str
    check: Callable[[torch.device, bool, Path | None], Iterable[Finding]]
