import doctest
import importlib
from pathlib import Path

import pytest
import torch

import fastreward
from fastreward.encoders.checkpoint import DEFAULT_ENCODER, is_packaged

ROOT = Path(fastreward.__file__).parent
MODULES = sorted(
    ".".join(["fastreward", *path.relative_to(ROOT).with_suffix("").parts]).removesuffix(".__init__")
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*/*.py"), *ROOT.glob("*/*/*.py")]
    if path.stem != "__main__"  # importing it would run the command line
)


@pytest.mark.skipif(
    not is_packaged(DEFAULT_ENCODER), reason="examples load the default encoder: extra minilm"
)
@pytest.mark.parametrize("name", MODULES)
def test_the_examples_in_the_docstrings_give_what_they_say(name):
    if name.startswith("fastreward.kernels"):
        pytest.importorskip("triton")
    module = importlib.import_module(name)
    torch.set_printoptions(profile="default")
    assert doctest.testmod(module).failed == 0


def test_there_are_examples_to_run():
    found = doctest.DocTestFinder().find(importlib.import_module("fastreward.scorer"))
    assert {"fastreward.scorer"} < set(MODULES)
    assert sum(bool(test.examples) for test in found) >= 3
