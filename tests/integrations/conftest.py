"""Fixtures for trainers: what `trl_run.py` has, loaded from its file, as tests are no package."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # it is said on every import of an experimental trainer


@pytest.fixture(scope="session")
def run(load_script: Callable[[Path], ModuleType]) -> ModuleType:
    """The module `trl_run`."""
    pytest.importorskip("trl", reason="needs the extra trl")
    return load_script(Path(__file__).with_name("trl_run.py"))


@pytest.fixture(scope="session")
def tokenizer(run: ModuleType) -> Any:
    return run.make_tokenizer()
