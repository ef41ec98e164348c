"""Every kernel, compiled ahead of time for real targets with no GPU, exactly as its launcher launches it.

`resources.json` beside this file is the committed table: registers, stack (that is where spills show), shared
memory, by Triton version and target. A version that is not in the table is held to the limits alone. After a
deliberate change, rewrite the installed version's rows with

    python tests/kernels/test_resources.py
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402 — Triton may be missing
from triton.runtime import driver  # noqa: E402

from fastreward.backends import triton_interpreted  # noqa: E402
from fastreward.kernels.launch import Launch  # noqa: E402
from fastreward.kernels.pooled_cosine import CHUNK_TOKENS, plan_pooled_cosine  # noqa: E402

pytestmark = pytest.mark.skipif(triton_interpreted(), reason="the interpreter compiles nothing")

TABLE = Path(__file__).with_name("resources.json")

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
    "cuda": r"ld\.global[\w.:]*\.(v4\.b32|v2\.b64|v8\.b32)",
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


def pooled_cosine_launches(
    hidden_size: int, dtype: torch.dtype, pooling: str, layer_norm: bool, longest: int, texts: int = 8
) -> tuple[Launch, ...]:
    """What the launcher would launch for texts that share half as many references."""
    hidden_states = torch.empty(1000, hidden_size, dtype=dtype)
    vector = torch.empty(hidden_size, dtype=dtype)
    return plan_pooled_cosine(
        hidden_states,
        torch.empty(texts + 1, dtype=torch.int32),
        pooling=pooling,
        max_seqlen=longest,
        references=torch.empty(max(1, texts // 2), hidden_size),
        reference_index=torch.empty(texts, dtype=torch.int64),
        residual=torch.empty_like(hidden_states) if layer_norm else None,
        weight=vector if layer_norm else None,
        bias=vector if layer_norm else None,
        eps=1e-12,
        scores=torch.empty(texts),
        embeddings=None,
    )


BF16, FP32 = torch.bfloat16, torch.float32
SHORT, LONG = CHUNK_TOKENS, CHUNK_TOKENS + 1
# hidden size, dtype, pooling, LayerNorm fused, longest text, texts
CASES = {
    "384-bf16": (384, BF16, "mean", False, SHORT),
    "384-bf16-norm": (384, BF16, "mean", True, SHORT),
    "384-bf16-norm-long": (384, BF16, "mean", True, LONG),
    "384-bf16-norm-max": (384, BF16, "max", True, SHORT),
    "384-fp32-norm": (384, FP32, "mean", True, SHORT),
    "768-bf16-norm": (768, BF16, "mean", True, SHORT),
    "768-bf16-norm-cls": (768, BF16, "cls", True, SHORT),
    "1024-bf16-norm": (1024, BF16, "mean", True, SHORT),
    "384-bf16-norm-long-alone": (384, BF16, "mean", True, LONG, 1),  # Triton compiles sizes of 1 apart
    "4096-bf16-long": (4096, BF16, "mean", False, LONG),
}


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


def compiled_resources(case: str, target: str) -> Iterator[tuple[str, dict[str, int], str]]:
    """Compile a case; yield (kernel's name, resources, assembly) for each launch."""
    with compiling_for(TARGETS[target]):
        for launch in launches_of(case):
            compiled = launch.compile()
            if TARGETS[target].backend == "cuda":
                resources, assembly = nvidia_resources(compiled.asm["cubin"]), compiled.asm["ptx"]
            else:
                assembly = compiled.asm["amdgcn"]
                resources = amd_resources(assembly)
            yield launch.kernel.__name__, {**resources, "shared": compiled.metadata.shared}, assembly


def read_table() -> dict[str, dict[str, dict[str, dict[str, int]]]]:
    return json.loads(TABLE.read_text()) if TABLE.exists() else {}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("case", CASES)
def test_compiles_without_spills_within_shared_memory_and_as_the_table_says(case, target):
    expected = read_table().get(triton.__version__, {}).get(target)
    for kernel, resources, assembly in compiled_resources(case, target):
        assert resources["stack"] == 0
        assert resources["shared"] <= SHARED_LIMIT[target]
        assert re.search(VECTOR_LOAD[TARGETS[target].backend], assembly), "no vector load"
        if expected is not None:
            assert resources == expected[f"{case} {kernel}"]


def test_the_table_holds_the_oldest_and_the_newest_triton_and_nothing_stale():
    table = read_table()
    assert {"3.6.0", "3.9.0"} <= set(table)
    rows = {f"{case} {launch.kernel.__name__}" for case in CASES for launch in launches_of(case)}
    for targets in table.values():
        assert set(targets) == set(TARGETS)
        assert all(set(kernels) == rows for kernels in targets.values())


def launches_of(case: str) -> tuple[Launch, ...]:
    return pooled_cosine_launches(*CASES[case])


def rewrite_table() -> None:
    table = read_table()
    table[triton.__version__] = {
        target: {
            f"{case} {kernel}": resources
            for case in CASES
            for kernel, resources, _ in compiled_resources(case, target)
        }
        for target in TARGETS
    }
    text = json.dumps(dict(sorted(table.items())), indent=1)
    # One row a line: the innermost objects are short.
    TABLE.write_text(
        re.sub(r"\{\s+(\"registers\"[^}]*?)\s+\}", lambda m: "{" + " ".join(m[1].split()) + "}", text) + "\n"
    )


if __name__ == "__main__":
    rewrite_table()
