"""Fixtures for trainers: what `trl_run.py` has, loaded from its file, as tests are no package."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"  # it is said on every import of an experimental trainer


@pytest.fixture(scope="session")
def run() -> ModuleType:
    """The module `trl_run`."""
    pytest.importorskip("trl", reason="needs the extra trl")
    spec = importlib.util.spec_from_file_location("trl_run", Path(__file__).with_name("trl_run.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["trl_run"] = module  # so that its functions pickle
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def tokenizer(run: ModuleType) -> Any:
    return run.make_tokenizer()
