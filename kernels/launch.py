"""A kernel launch as a value: what runs, on which grid, with which arguments and options.

A launcher first writes down its launches and then runs them. Whoever compiles ahead of time for a GPU that is
not there (the resource table in the tests) compiles from the same value, so it sees what a GPU would see.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import triton


@dataclass(frozen=True)
class Target:
    """What kernels are compiled for.

    Attributes:
        backend: "cuda", "hip", or "interpreter" where Triton's interpreter runs them on the CPU.
        capability: 90 for sm_90; 0 for anything but CUDA.
    """

    backend: str
    capability: int = 0


def target() -> Target:
    """Say what a kernel that is launched now is compiled for, for launch choices that depend on it."""
    if triton.knobs.runtime.interpret:
        return Target("interpreter")
    current = triton.runtime.driver.active.get_current_target()
    return Target(current.backend, current.arch if current.backend == "cuda" else 0)


@dataclass(frozen=True)
class Launch:
    """One launch of one Triton kernel.

    Attributes:
        kernel: The `triton.jit` function.
        grid: Programs along each axis.
        arguments: Every argument of the kernel by name, constexprs included.
        num_warps: Warps of one program.
        num_stages: Stages of the software pipeline in loops around `tl.dot`.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Any]
    num_warps: int
    num_stages: int

    def options(self) -> dict[str, Any]:
        """Return arguments and options as the keywords that Triton takes."""
        # Fused multiply-adds are asked for: Triton's own default changes between versions.
        return {
            **self.arguments,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,
        }

    def run(self) -> None:
        """Compile when it is the first time, and launch. A grid without programs launches nothing."""
        if all(self.grid):
            self.kernel[self.grid](**self.options())

    def compile(self) -> Any:
        """Compile for the active driver's target without launching; return the compiled kernel."""
        return self.kernel.warmup(grid=self.grid, **self.options())


def run_all(launches: Iterable[Launch]) -> None:
    """Run launches one after another on the current stream."""
    for launch in launches:
        launch.run()
