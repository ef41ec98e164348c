"""The house stands as it is drawn: imports run down, the wheel holds the tree, names keep their promises."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import importlib.util
import inspect
import os
import re
import shutil
import statistics
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CODE = ("fastreward", "kernels", "integrations")
FOLDERS = (*CODE, "tests", "benchmarks", "examples")
LINKS = {"fastreward/kernels": "../kernels", "fastreward/integrations": "../integrations"}
HEAVY = ("triton", "transformers", "trl", "sentence_transformers")
IMPORT_TIME_BOUND = 1.5  # `import fastreward`, in units of `import torch`
MAX_LINES = 400
SHARED_MACHINERY = {"launch"}  # modules of kernels/ that are no op

# Where each part of the package stands. A part may import its own layer and what is strictly lower; kernels
# and ground stand side by side. The face is `fastreward/__init__.py`, which re-exports what is below it.
HEIGHT = {
    "kernels": 0,
    "ground": 0,
    "ops": 1,
    "encoders": 2,
    "scorer": 3,
    "rewards": 4,
    "face": 5,
    "integrations": 6,
    "cli": 7,
}
GROUND = (
    "errors",
    "backends",
    "batching",
    "caller",
    "cuda_streams",
    "gate",
    "out_of_memory",
    "packing",
    "prefetch",
    "tokenization",
    "word_cache",
    "separation",
    "recent_vectors",
    "reference_cache",
    "profiling",
    "progress",
)
SCORER = (
    "configuration",
    "cosines",
    "engine",
    "matching",
    "memory",
    "replicas",
    "shared_encoder",
    "text_arguments",
)
LAYER = {
    **{name: name for name in HEIGHT if name not in ("ground", "face")},
    **dict.fromkeys(GROUND, "ground"),
    **dict.fromkeys(SCORER, "scorer"),
    **dict.fromkeys(
        (
            "__main__",
            "benchmark_results",
            "benchmark_texts",
            "benchmarking",
            "cli_bench",
            "cli_errors",
            "cli_profile",
            "cli_train",
            "diagnosis",
            "measurement",
            "table_io",
        ),
        "cli",
    ),
}
# What these two may import of the house.
NARROW_GROUND = {"errors": set[str](), "backends": {"errors", "caller"}}


# --------------------------------------------------------------------------- files


@functools.cache
def tracked_files() -> tuple[str, ...]:
    """Every file and link of the project, relative to the root; those that git ignores are left out."""
    names = files_by_git() if (ROOT / ".git").exists() else None
    return tuple(sorted(name for name in names or files_by_folder() if os.path.lexists(ROOT / name)))


def files_by_git() -> set[str] | None:
    """What git tracks or would add; None where git is missing or refuses to read the tree."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return None
    return {name for name in listed.split("\0") if name}


def files_by_folder() -> set[str]:
    """The same for an unpacked copy: the files at the top and in the project's folders."""
    names = {path.name for path in ROOT.iterdir() if path.is_file()}
    for folder in FOLDERS:
        for parent, folders, files in os.walk(ROOT / folder):
            folders[:] = [name for name in folders if name != "__pycache__"]
            linked = [name for name in folders if os.path.islink(os.path.join(parent, name))]
            names |= {os.path.relpath(os.path.join(parent, name), ROOT) for name in (*files, *linked)}
    return names


def python_files(*folders: str) -> list[str]:
    """Python files below these folders, by their place in the repository (never through a link)."""
    return [name for name in tracked_files() if name.endswith(".py") and name.split("/")[0] in folders]


def imported_as(path: str) -> str:
    """Where a file of `kernels/` or `integrations/` stands in the installed package."""
    return path if path.startswith("fastreward/") else f"fastreward/{path}"


def module_name(path: str) -> str:
    """`kernels/pooled_cosine.py` → `fastreward.kernels.pooled_cosine`."""
    return imported_as(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def read(path: str) -> str:
    return (ROOT / path).read_text(encoding="utf-8")


# --------------------------------------------------------------------------- imports


@dataclass(frozen=True)
class Import:
    """One imported module or name, and whether it happens as soon as the file is imported."""

    line: int
    target: str
    at_import: bool


def imports_of(source: str, package: str) -> Iterator[Import]:
    """All imports of a file, relative ones resolved, also those by `import_module("a literal")`."""

    def visit(node: ast.AST, at_import: bool) -> Iterator[Import]:
        if isinstance(node, ast.stmt | ast.expr):
            for target in targets_of(node, package):
                yield Import(node.lineno, target, at_import)
        deferred = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        unexecuted = node.body if isinstance(node, ast.If) and is_type_checking(node.test) else []
        for child in ast.iter_child_nodes(node):
            yield from visit(child, at_import and not deferred and child not in unexecuted)

    return visit(ast.parse(source), at_import=True)


def is_type_checking(test: ast.expr) -> bool:
    return ast.unparse(test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def targets_of(node: ast.stmt | ast.expr, package: str) -> list[str]:
    match node:
        case ast.Import(names=names):
            return [alias.name for alias in names]
        case ast.ImportFrom(module=module, names=names, level=level):
            origin = importlib.util.resolve_name("." * level + (module or ""), package)
            return [f"{origin}.{alias.name}" for alias in names]
        case ast.Call(func=func, args=[ast.Constant(value=str(name)), *_]):
            if ast.unparse(func) in ("importlib.import_module", "import_module", "__import__"):
                return [importlib.util.resolve_name(name, package)]
    return []


def layer_of(target: str) -> str | None:
    """The layer of a module or name of the house; None for a module that has no place in it."""
    parts = target.split(".")
    return "face" if len(parts) == 1 else LAYER.get(parts[1])


def objection(module: str, found: Import) -> str | None:
    """What is wrong with this import in this module, or None."""
    root, layer = found.target.split(".")[0], layer_of(module)
    part = module.partition(".")[2].split(".")[0]
    if root in ("kernels", "integrations"):
        return f"write fastreward.{found.target}: the bare name belongs to another package"
    assert layer is not None
    if root != "fastreward":
        outside = layer == "kernels" and root not in {"torch", "triton", *sys.stdlib_module_names}
        return "kernels import torch and triton alone" if outside else None
    target_layer = (
        layer_of(found.target) or "face"
    )  # `from fastreward import Scorer`: a name that the face re-exports
    if target_layer != layer and HEIGHT[target_layer] >= HEIGHT[layer]:
        return f"runs up, from {layer} to {target_layer}"
    if part in NARROW_GROUND and found.target.split(".")[1] not in {part, *NARROW_GROUND[part]}:
        return f"{part} may import {sorted(NARROW_GROUND[part]) or 'nothing'} of the house"
    if target_layer == "kernels" and layer != "kernels" and found.at_import:
        return "a kernel is imported inside a function, so that a machine without Triton works"
    return None


def violations(module: str, source: str, is_package: bool = False) -> list[str]:
    if layer_of(module) is None:
        return [f"{module} has no layer: give it a place in LAYER"]
    package = module if is_package else module.rpartition(".")[0]
    checked = ((found, objection(module, found)) for found in imports_of(source, package))
    return [f"{module}:{found.line} imports {found.target}: {why}" for found, why in checked if why]


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastreward.kernels.maxsim", "from fastreward.errors import InputError"),
        ("fastreward.kernels.maxsim", "import numpy as np"),
        ("fastreward.kernels.maxsim", "from ..ops.maxsim import maxsim"),
        ("fastreward.kernels.maxsim", "def f():\n    from fastreward.scorer import Scorer"),
        ("fastreward.errors", "import fastreward.backends"),
        ("fastreward.errors", "from fastreward.packing import PackedBatch"),
        ("fastreward.backends", "from . import packing"),
        ("fastreward.packing", "from fastreward.ops.maxsim import maxsim"),
        ("fastreward.packing", "def f():\n    import fastreward.kernels.maxsim"),
        ("fastreward.ops.maxsim", "from fastreward.kernels.maxsim import launch_maxsim"),
        ("fastreward.ops.maxsim", "from fastreward.kernels import maxsim"),
        (
            "fastreward.ops.maxsim",
            "try:\n    import fastreward.kernels.maxsim\nexcept ImportError:\n    pass",
        ),
        ("fastreward.ops.maxsim", "class A:\n    from fastreward.kernels.maxsim import launch_maxsim"),
        ("fastreward.ops.maxsim", "import importlib\nimportlib.import_module('fastreward.kernels.maxsim')"),
        ("fastreward.ops.maxsim", "if TYPE_CHECKING:\n    from fastreward.encoders.base import Encoder"),
        ("fastreward.encoders.packed", "from fastreward.scorer import Scorer"),
        ("fastreward.encoders.packed", "from fastreward import Scorer"),
        ("fastreward.scorer", "def f():\n    from .rewards.semantic import SemanticReward"),
        ("fastreward.rewards.semantic", "from fastreward.integrations.trl import anything"),
        ("fastreward.rewards.semantic", "from fastreward import Scorer"),
        ("fastreward", "from fastreward.cli import main"),
        ("fastreward.integrations.trl", "from fastreward import cli"),
        ("fastreward.integrations.trl", "from fastreward.cli import main"),
        ("fastreward.scorer", "import kernels.maxsim"),
        ("fastreward.scorer", "def f():\n    from kernels import get_kernel"),
        ("fastreward.scorer", "from integrations.trl import anything"),
        ("fastreward.nowhere", "import os"),
    ],
)
def test_the_checker_objects_to(module: str, source: str) -> None:
    assert len(violations(module, source, is_package=module == "fastreward")) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fastreward.kernels.maxsim", "import math\nimport torch\nimport triton.language as tl"),
        ("fastreward.kernels.maxsim", "from fastreward.kernels.launch import launch\nfrom . import launch"),
        ("fastreward.errors", "from __future__ import annotations"),
        ("fastreward.backends", "import torch\nfrom fastreward.errors import BackendUnavailableError"),
        (
            "fastreward.packing",
            "from fastreward.errors import InputError\nfrom .tokenization import tokenize",
        ),
        ("fastreward.ops.maxsim", "def f():\n    from fastreward.kernels.maxsim import launch_maxsim"),
        (
            "fastreward.ops.maxsim",
            "if TYPE_CHECKING:\n    from fastreward.kernels.maxsim import MaxSimConfig",
        ),
        ("fastreward.encoders.packed", "from ..ops.maxsim import maxsim\nfrom .base import Encoder"),
        ("fastreward.scorer", "import numpy\nfrom fastreward.encoders import load\nfrom . import packing"),
        ("fastreward", "from .scorer import Scorer\nfrom fastreward.rewards import SemanticReward"),
        ("fastreward.integrations.trl", "import trl\nfrom fastreward import SemanticReward, errors"),
        ("fastreward.cli", "from fastreward import __version__\nfrom fastreward.table_io import read_rows"),
        ("fastreward.cli", "import fastreward\nimport fastreward.integrations.trl"),
        ("fastreward.scorer", "import kernels_of_another_kind"),
    ],
)
def test_the_checker_lets_pass(module: str, source: str) -> None:
    assert violations(module, source, is_package=module == "fastreward") == []


def test_every_import_runs_down() -> None:
    files = python_files(*CODE)
    assert any(name.startswith("kernels/") for name in files)
    assert any(name.startswith("fastreward/ops/") for name in files)
    found = [
        line
        for name in files
        for line in violations(module_name(name), read(name), name.endswith("/__init__.py"))
    ]
    assert found == []


def test_no_file_imports_the_folders_by_their_bare_names() -> None:
    found = []
    for name in python_files(*FOLDERS):
        package = module_name(name).rpartition(".")[0]
        roots = [(found.line, found.target.split(".")[0]) for found in imports_of(read(name), package)]
        found += [f"{name}:{line}" for line, root in roots if root in ("kernels", "integrations")]
    assert found == []


def test_kernels_and_tests_are_no_packages() -> None:
    assert [name for name in tracked_files() if re.match(r"(kernels|tests)/(.*/)?__init__\.py$", name)] == []


# --------------------------------------------------------------------------- what an import costs


def in_a_fresh_interpreter(code: str) -> str:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def test_importing_fastreward_loads_no_heavy_package() -> None:
    code = f"import sys, fastreward; print(*(name for name in {HEAVY} if name in sys.modules))"
    assert in_a_fresh_interpreter(code) == ""


def import_time_s(module: str) -> float:
    code = f"import time; start = time.perf_counter(); import {module}; print(time.perf_counter() - start)"
    return float(in_a_fresh_interpreter(code))


@pytest.mark.slow
def test_importing_fastreward_takes_little_more_than_importing_torch() -> None:
    import_time_s("fastreward")  # fills the file cache for both
    pairs = [(import_time_s("torch"), import_time_s("fastreward")) for _ in range(5)]
    torch_s, fastreward_s = (statistics.median(column) for column in zip(*pairs, strict=True))
    assert fastreward_s < IMPORT_TIME_BOUND * torch_s


# --------------------------------------------------------------------------- the public face


def public_names() -> dict[str, object]:
    """What `from fastreward import *` brings."""
    names: dict[str, object] = {}
    exec("from fastreward import *", names)
    del names["__builtins__"]
    return names


def test_every_public_name_can_be_imported_and_is_listed_once() -> None:
    import fastreward

    assert fastreward.__all__
    assert sorted(fastreward.__all__) == sorted(public_names())


def test_every_public_class_and_function_has_a_docstring_of_its_own() -> None:
    undocumented = []
    for name, value in public_names().items():
        if not (inspect.isclass(value) or inspect.isroutine(value)):
            continue  # a constant: its meaning stands where it is defined
        text = value.__dict__.get("__doc__") if inspect.isclass(value) else value.__doc__
        if not text or text.startswith(f"{name}("):  # the latter is what a dataclass writes by itself
            undocumented.append(name)
    assert undocumented == []


def test_the_version_is_the_same_everywhere() -> None:
    import fastreward

    version = tomllib.loads(read("pyproject.toml"))["project"]["version"]
    assert fastreward.__version__ == version
    assert re.search(rf"^## \[{re.escape(version)}\]", read("CHANGELOG.md"), re.MULTILINE)


def test_the_licence_is_apache_2() -> None:
    project = tomllib.loads(read("pyproject.toml"))["project"]
    assert project["license"] == "Apache-2.0"
    assert project["license-files"] == ["LICENSE"]
    opening = " ".join(read("LICENSE").split()[:7])
    assert opening == "Apache License Version 2.0, January 2004 http://www.apache.org/licenses/"


# --------------------------------------------------------------------------- the wheel and the links


@pytest.mark.parametrize(("link", "target"), LINKS.items())
def test_a_link_is_relative_and_leads_to_its_folder(link: str, target: str) -> None:
    assert os.readlink(ROOT / link) == target
    assert (ROOT / link).resolve(strict=True) == ROOT / Path(target).name


def setuptools_is_there() -> bool:
    """Whether this interpreter has the setuptools that `[build-system]` asks for."""
    try:
        return int(importlib.metadata.version("setuptools").split(".")[0]) >= 77
    except importlib.metadata.PackageNotFoundError:
        return False


def copy_of_the_tree(destination: Path) -> Path:
    for name in tracked_files():
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, destination / name, follow_symlinks=False)
    return destination


def files_in_the_wheel_of(tree: Path, out: Path) -> set[str]:
    """Build a wheel without the network and list what it installs, its metadata left out."""
    command = [sys.executable, "-m", "pip", "wheel", ".", "-w", str(out), "--no-deps", "--no-build-isolation"]
    built = subprocess.run(
        [*command, "-q", "--disable-pip-version-check"], cwd=tree, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = out.glob("fastreward-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.mark.skipif(
    not setuptools_is_there(), reason="a wheel is built with setuptools >= 77, which is not here"
)
@pytest.mark.parametrize("links", ["kept", "lost"])
def test_the_wheel_holds_the_tree_and_nothing_else(tmp_path: Path, links: str) -> None:
    tree = copy_of_the_tree(tmp_path / "tree")
    if links == "lost":
        for link in LINKS:
            (tree / link).unlink()
    expected = {imported_as(name) for name in python_files(*CODE)} | {"fastreward/py.typed"}
    expected |= {name for name in tracked_files() if name.startswith("fastreward/profiling/assets/")}
    assert files_in_the_wheel_of(tree, tmp_path / "wheel") == expected


# --------------------------------------------------------------------------- one op, one stem


def test_every_kernel_has_its_op_its_tests_and_its_benchmark() -> None:
    stems = {Path(name).stem for name in python_files("kernels")} - SHARED_MACHINERY
    assert stems
    wanted = [
        place.format(stem)
        for stem in sorted(stems)
        for place in ("fastreward/ops/{}.py", "tests/ops/test_{}.py", "benchmarks/bench_{}.py")
    ]
    assert [name for name in wanted if name not in tracked_files()] == []


def test_every_file_of_the_library_stays_short() -> None:
    lengths = {name: len(read(name).splitlines()) for name in python_files(*CODE)}
    assert {name: length for name, length in lengths.items() if length >= MAX_LINES} == {}


def test_no_file_names_a_package_registry() -> None:
    hosts = (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
    )
    needles = [".".join(host).encode() for host in hosts]
    texts = {name: (ROOT / name).read_bytes() for name in tracked_files() if (ROOT / name).is_file()}
    found = [name for name, text in texts.items() if any(needle in text.lower() for needle in needles)]
    assert found == []
