"""Dataclasses from YAML and from pairs, and what is refused."""

from __future__ import annotations

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastreward.errors import InputError
from fastreward.integrations.run_config import check_options, read_options, require_room


@dataclass(frozen=True, kw_only=True)
class Inner:
    steps: int = 10
    rate: float = 1e-6
    kind: Literal["linear", "cosine"] = "linear"

    def __post_init__(self) -> None:
        check_options(self, {"rate": (0, 1)})


@dataclass(frozen=True, kw_only=True)
class Outer:
    folder: str
    inner: Inner = field(default_factory=Inner)
    high: float | None = None
    names: list[str] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()
    data: Path | None = None
    mixed: str | list[str] = "all"
    free: Any = None
    prefix: str = ""
    quick: bool = False

    def __post_init__(self) -> None:
        check_options(self, {"weights": (-1, 1)})


def test_all_kinds_of_values_are_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        "folder: run\ninner:\n  rate: 1e-5\n  kind: cosine\nnames: [a, b]\nweights: {x: 1, y: -0.5}\n"
        "sizes: [1, 2]\ndata: rows.jsonl\nmixed: [q, k]\nfree: {any: [thing]}\nhigh: 1\nquick: true\n",
        encoding="utf-8",
    )
    assert read_options(Outer, path) == Outer(
        folder="run",
        inner=Inner(rate=1e-5, kind="cosine"),
        names=["a", "b"],
        weights={"x": 1.0, "y": -0.5},
        sizes=(1, 2),
        data=Path("rows.jsonl"),
        mixed=["q", "k"],
        free={"any": ["thing"]},
        high=1.0,
        quick=True,
    )


def test_pairs_win_over_the_file_and_reach_into_it(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("folder: run\ninner: {steps: 3, rate: 0.5}\nhigh: 2\n", encoding="utf-8")
    found = read_options(Outer, path, ["inner.steps=7", "weights.x=1e-1", "high=null", "names=[c]"])
    assert (found.inner.steps, found.inner.rate) == (7, 0.5)
    assert (found.weights, found.high, found.names) == ({"x": 0.1}, None, ["c"])


def test_an_empty_file_says_nothing(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("# nothing\n", encoding="utf-8")
    assert read_options(Inner, tmp_path / "run.yaml") == Inner()


@given(st.floats(0, 1, allow_nan=False), st.integers(1, 10**9))
def test_a_number_that_is_written_is_the_number_that_is_read(rate: float, steps: int) -> None:
    assert read_options(Inner, None, [f"rate={rate!r}", f"steps={steps}"]) == Inner(rate=rate, steps=steps)


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([], "folder, got none"),
        (["folder=x", "innner.steps=1"], "options among folder, inner, .*, got innner"),
        (["folder=x", "inner.step=1"], r"options among inner\.steps, .*, got inner\.step\."),
        (["folder=x", "inner.kind=fast"], r"inner\.kind as 'linear' or 'cosine', got 'fast'"),
        (["folder=x", "inner=3"], "inner as Inner, got 3"),
        (["folder=x", "folder.name=3"], r"names and values in 'folder', for folder\.name, got 'x'"),
        (["folder=x", "inner.rate=2"], "rate from 0 to 1, got 2.0"),
        (["folder=x", "inner.steps=true"], r"inner\.steps as int, got True"),
        (["folder=x", "names=a"], r"names as list\[str\], got 'a'"),
        (["folder=x", "names=[1]"], r"names as list\[str\], got \[1\]"),
        (["folder=x", "weights={x: 3}"], "weights from -1 to 1, got 3.0"),
        (["folder=x", "weights={1: 1}"], r"weights as dict\[str, float\]"),
        (["folder=x", "sizes=[1, 0]"], "sizes of 1 or more, got 0"),
        (["folder=x", "high=high"], "high as float or None, got 'high'"),
        (["folder=x", "high=.nan"], "high of 1 or more, got nan"),
        (["folder=x", "mixed=1"], r"mixed as str or list\[str\], got 1"),
        (["folder=x", "quick=1"], "quick as bool, got 1"),
        (["folder="], "folder as str, got None"),
        (["folder=''"], "folder as str, got ''"),
        (["folder"], "name=value"),
        (["folder=[1"], "YAML that can be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_used_is_named(pairs: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        read_options(Outer, None, pairs)


def test_a_value_given_in_python_is_checked_and_converted_too() -> None:
    made = Outer(folder="x", inner={"steps": 2}, high="1e1", sizes=[3], data="a")  # type: ignore[arg-type]
    assert (made.inner, made.high, made.sizes, made.data) == (Inner(steps=2), 10.0, (3,), Path("a"))
    with pytest.raises(InputError, match="steps of 1 or more, got 0"):
        Inner(steps=0)


def test_an_option_with_a_default_can_be_required() -> None:
    assert read_options(Inner, None, ["steps=2"], required=["steps"]).steps == 2
    with pytest.raises(InputError, match="steps, got none"):
        read_options(Inner, required=["steps"])


@pytest.mark.parametrize(
    "text", [None, "- a\n- b\n", "a: [1\n", "\xff"], ids=["missing", "list", "yaml", "bytes"]
)
def test_a_file_that_is_no_configuration_is_refused(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "run.yaml"
    if text is not None:
        path.write_text(text, encoding="latin-1")
    with pytest.raises(InputError):
        read_options(Inner, path)


def test_a_folder_that_is_a_file_has_no_room(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="a folder that can be written"):
        require_room(tmp_path / "file" / "run")


def test_a_disk_that_is_too_small_is_refused_and_one_that_is_not_leaves_nothing_behind(
    tmp_path: Path,
) -> None:
    require_room(tmp_path / "run", 1)
    assert list((tmp_path / "run").iterdir()) == []
    with pytest.raises(InputError, match="GB free"):
        require_room(tmp_path / "run", shutil.disk_usage(tmp_path).total + 1)
