"""What the tests of several ops share: the back-ends, devices and dtypes they run with, and fixtures."""

from __future__ import annotations

import pytest
import torch

from fastreward.backends import dtype_name, triton_interpreted

MARKERS = {
    "every_target": "run with each (backend, device) that runs here",
    "every_target_and_dtype": "the same, in each dtype that it computes there",
}


def pytest_configure(config: pytest.Config) -> None:
    for name, meaning in MARKERS.items():
        config.addinivalue_line("markers", f"{name}: {meaning}")


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give marked tests `backend` and `device`, and `dtype` where that is asked for."""
    names = {mark.name for mark in metafunc.definition.iter_markers()}
    # As a mark, for pytest reads those before it looks at the fixture `device`.
    if "every_target" in names:
        parameters = [pytest.param(*target, id="-".join(target)) for target in targets()]
        metafunc.definition.add_marker(pytest.mark.parametrize(("backend", "device"), parameters))
    if "every_target_and_dtype" in names:
        parameters = [
            pytest.param(backend, device, dtype, id=f"{backend}-{device}-{dtype_name(dtype)}")
            for backend, device in targets()
            for dtype in dtypes(device)
        ]
        metafunc.definition.add_marker(pytest.mark.parametrize(("backend", "device", "dtype"), parameters))


def targets() -> list[tuple[str, str]]:
    """Each (back-end, device) that runs here."""
    found = [("torch", "cpu")]
    if triton_interpreted():
        found.append(("triton", "cpu"))
    if torch.cuda.is_available():
        found += [("torch", "cuda"), ("triton", "cuda")]
    return found


def dtypes(device: str) -> list[torch.dtype]:
    """The interpreter computes bf16 wrongly in places; the kernels' bf16 is checked on CUDA."""
    if triton_interpreted() and device == "cpu":
        return [torch.float32, torch.float16]
    return [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def poisoned_memory():
    """Uninitialised memory holds NaN, so that what an op forgets to write is seen."""
    before = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(1).isnan().all()
    yield
    torch.use_deterministic_algorithms(before[0], warn_only=before[1])
