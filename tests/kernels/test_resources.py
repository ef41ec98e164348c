"""Every kernel, compiled ahead of time for real targets with no GPU, exactly as its launcher launches it.

`<op>_cases.py` beside this file says what an op launches:

    CASES: dict[str, Callable[[], tuple[Launch, ...]]]     a name, and what the launcher would launch
    TARGETS: dict[str, tuple[str, ...]]                    cases that are not for all targets (optional)
    WGMMA: set[str]                                        cases that must use sm_90's wgmma (optional)
    SCALAR: set[str]                                       kernels that need no vector load (optional)

`resources/<op>.json` is the committed table: registers, stack (that is where spills show), shared memory, by
Triton version and target. A version that is not in the table is held to the limits alone. After a deliberate
change, rewrite the installed version's rows, of one op or of all, with

    python tests/kernels/test_resources.py [OP ...]
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402 — Triton may be missing
from triton.runtime import driver  # noqa: E402

from fastreward.backends import triton_interpreted  # noqa: E402
from fastreward.kernels.launch import Launch  # noqa: E402

pytestmark = pytest.mark.skipif(triton_interpreted(), reason="the interpreter compiles nothing")

HERE = Path(__file__).parent
OPS = sorted(path.name.removesuffix("_cases.py") for path in HERE.glob("*_cases.py"))

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Bytes of shared memory that one program may use; compiling does not enforce it.
SHARED_LIMIT = {"sm_80": 166_912, "sm_90": 232_448, "sm_100": 232_448, "gfx942": 65_536}

# 16 bytes a thread and load is the widest that every target has.
VECTOR_LOAD = {
    "cuda": r"ld\.global[\w.:]*\.(v4\.b32|v2\.b64|v8\.b32)|cp\.async\.cg\.shared\.global [^;]*0x10",
    "hip": r"(global|buffer)_load_dwordx4",
}


class TargetDriver:
    """Stands where Triton's driver stands and names a target; compiling needs no more."""

    def __init__(self, target: GPUTarget) -> None:
        self._target = target

    def get_current_device(self) -> str:
        return f"{self._target.backend}-{self._target.arch}"  # a key of Triton's own caches

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return self._target


@contextmanager
def compiling_for(target: GPUTarget) -> Iterator[None]:
    before = driver._active
    driver.set_active(TargetDriver(target))
    try:
        yield
    finally:
        driver._active = before


def nvidia_resources(cubin: bytes) -> dict[str, int]:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "--dump-resource-usage", file.name]
        usage = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = dict(re.findall(r"\b(REG|STACK):(\d+)", usage))
    return {"registers": int(found["REG"]), "stack": int(found["STACK"])}


def amd_resources(assembly: str) -> dict[str, int]:
    found = dict(re.findall(r"\.(vgpr_count|vgpr_spill_count):\s*(\d+)", assembly))
    return {"registers": int(found["vgpr_count"]), "stack": int(found["vgpr_spill_count"])}


def cases_of(op: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{op}_cases", HERE / f"{op}_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ALL_CASES = {op: cases_of(op) for op in OPS}


def targets_of(op: str, case: str) -> tuple[str, ...]:
    return getattr(ALL_CASES[op], "TARGETS", {}).get(case, tuple(TARGETS))


def launches_of(op: str, case: str, target: str) -> tuple[Launch, ...]:
    with compiling_for(TARGETS[target]):
        return ALL_CASES[op].CASES[case]()


def compiled_resources(op: str, case: str, target: str) -> Iterator[tuple[str, dict[str, int], str]]:
    """Compile a case; yield (kernel's name, resources, assembly) for each launch."""
    with compiling_for(TARGETS[target]):
        for launch in ALL_CASES[op].CASES[case]():
            compiled = launch.compile()
            if TARGETS[target].backend == "cuda":
                resources, assembly = nvidia_resources(compiled.asm["cubin"]), compiled.asm["ptx"]
            else:
                assembly = compiled.asm["amdgcn"]
                resources = amd_resources(assembly)
            yield launch.kernel.__name__, {**resources, "shared": compiled.metadata.shared}, assembly


def table_path(op: str) -> Path:
    return HERE / "resources" / f"{op}.json"


def read_table(op: str) -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    return json.loads(table_path(op).read_text()) if table_path(op).exists() else {}


@pytest.mark.parametrize(
    ("op", "case", "target"),
    [
        pytest.param(op, case, target, id=f"{op}-{case}-{target}")
        for op in OPS
        for case in ALL_CASES[op].CASES
        for target in targets_of(op, case)
    ],
)
def test_compiles_without_spills_within_shared_memory_and_as_the_table_says(op, case, target):
    expected = read_table(op).get(triton.__version__, {}).get(target)
    scalar = getattr(ALL_CASES[op], "SCALAR", set())
    for kernel, resources, assembly in compiled_resources(op, case, target):
        assert resources["stack"] == 0
        assert resources["shared"] <= SHARED_LIMIT[target]
        if kernel not in scalar:
            assert re.search(VECTOR_LOAD[TARGETS[target].backend], assembly), "no vector load"
        if target == "sm_90" and case in getattr(ALL_CASES[op], "WGMMA", set()):
            assert "wgmma.mma_async" in assembly
        if expected is not None:
            assert resources == expected[f"{case} {kernel}"]


@pytest.mark.parametrize("op", OPS)
def test_the_table_holds_the_oldest_and_the_newest_triton_and_nothing_stale(op):
    table = read_table(op)
    assert {"3.6.0", "3.9.0"} <= set(table)
    for targets in table.values():
        for target, rows in targets.items():
            assert set(rows) == {
                f"{case} {launch.kernel.__name__}"
                for case in ALL_CASES[op].CASES
                if target in targets_of(op, case)
                for launch in launches_of(op, case, target)
            }
        assert set(targets) == {target for case in ALL_CASES[op].CASES for target in targets_of(op, case)}


def rewrite_table(op: str) -> None:
    table, cases = read_table(op), ALL_CASES[op].CASES
    rows: dict[str, dict[str, dict[str, int]]] = {}
    for case in cases:
        for target in targets_of(op, case):
            for kernel, resources, _ in compiled_resources(op, case, target):
                rows.setdefault(target, {})[f"{case} {kernel}"] = resources
    table[triton.__version__] = rows
    text = json.dumps(dict(sorted(table.items())), indent=1)
    # One row a line: the innermost objects are short.
    table_path(op).write_text(
        re.sub(r"\{\s+(\"registers\"[^}]*?)\s+\}", lambda m: "{" + " ".join(m[1].split()) + "}", text) + "\n"
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or OPS:
        rewrite_table(name)
