"""Configurations of runs: dataclasses, read from YAML and `name=value` pairs, and checked by their types."""

from __future__ import annotations

import contextlib
import math
import shutil
import tempfile
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Union

from fastreward.errors import InputError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Options = TypeVar("Options", bound="DataclassInstance")
Ranges = Mapping[str, tuple[float, float]]
"""By the name of an option the least and the largest number that it may be."""

AT_LEAST_ONE: Final = (1, math.inf)
_SEQUENCES: Final = (list, tuple, Sequence)
_MAPPINGS: Final = (dict, Mapping)


class _MisfitError(Exception):
    """A value is not of a kind."""


def read_options(
    cls: type[Options],
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    required: Sequence[str] = (),
) -> Options:
    """Make a dataclass from a YAML file and from `name=value` pairs, which win.

    Args:
        cls: The dataclass. A field that is a dataclass itself is read from a mapping.
        path: A YAML file of names and values, or ``None``.
        overrides: Such as ``"learning_rate=1e-5"``; a value is read as YAML. ``"loop.seed=1"`` sets `seed`
            within `loop`.
        required: Options that have a default and must be given all the same.

    Returns:
        An instance, whose values are converted as in `check_options`.

    Raises:
        InputError: The file is missing or something else; a name is not known; an option without a default is
            missing; or a value is refused.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass
        ... class Run:
        ...     output_dir: str
        ...     learning_rate: float = 1e-6
        >>> read_options(Run, None, ["output_dir=run", "learning_rate=1e-5"])
        Run(output_dir='run', learning_rate=1e-05)
    """
    import yaml  # type: ignore[import-untyped]  # it comes with transformers

    try:
        values = {} if path is None else yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        values = {} if values is None else values  # the file holds nothing, or comments
        pairs = {pair.partition("=")[0].strip(): yaml.safe_load(pair.partition("=")[2]) for pair in overrides}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError("YAML that can be read", str(error), "Correct the file, or its name.") from error
    if not isinstance(values, dict) or not all("=" in pair for pair in overrides):
        received = repr(list(overrides) if isinstance(values, dict) else values)
        raise InputError("name: value in the file and name=value after it", received, "Write it so.")
    for name, value in pairs.items():
        _put(values, name, value)
    for name in required:
        if name not in values:
            raise InputError(name, "none", f"Set {name} in the file, or write {name}=… after it.")
    made: Options = _built(cls, values, "")
    return made


def check_options(instance: DataclassInstance, ranges: Ranges = types.MappingProxyType({})) -> None:
    """Check a dataclass's values by its annotations, and convert those that are written otherwise.

    To be called in ``__post_init__``, of a frozen dataclass too. Where a float is wanted, 1 becomes 1.0, and
    "1e-5", which YAML takes for a text, a number; a text becomes a path, a mapping a dataclass. Nothing else
    is converted: 1 is no bool and True no number. Known are bool, int, float, str, `Path`, ``Literal``,
    ``None``, lists, tuples of one kind, mappings with texts as keys, dataclasses, ``Any``, and unions of
    these.

    Args:
        instance: Of a dataclass.
        ranges: Bounds of numbers, and of the numbers in lists and mappings. A number that it does not name
            is 1 or more. A text is empty only where it is so by default.

    Raises:
        InputError: A value is not of its type or out of its range.

    Example:
        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class Run:
        ...     learning_rate: float = 1e-6
        ...
        ...     def __post_init__(self) -> None:
        ...         check_options(self, {"learning_rate": (0, 1)})
        >>> Run(learning_rate="1e-5")
        Run(learning_rate=1e-05)
    """
    kinds = typing.get_type_hints(type(instance))
    for field in fields(instance):
        value = _converted(field.name, getattr(instance, field.name), kinds[field.name], field)
        _check_range(field.name, value, *ranges.get(field.name, AT_LEAST_ONE))
        object.__setattr__(instance, field.name, value)


def require_room(folder: str | Path, needed_bytes: int = 0) -> None:
    """Make a folder and show that it can be written and has room, before work begins that will need it.

    Args:
        folder: It may exist.
        needed_bytes: What is to be written there.

    Raises:
        InputError: It cannot be made or written, or its disk lacks room.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     require_room(folder, 1000)
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0")
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise InputError("a folder that can be written", str(error), "Name another output_dir.") from error
    if free < needed_bytes:
        needed, has = (f"{size / 1e9:.2f} GB" for size in (needed_bytes, free))
        raise InputError(f"{needed} free in {folder}", has, "Make room, name another folder, or keep less.")


def _put(values: dict[str, Any], name: str, value: Any) -> None:
    """Set what a dotted name points to."""
    *outer, last = name.split(".")
    place = values
    for part in outer:
        inner = place.get(part)
        place[part] = {} if inner is None else inner
        place = place[part]
        if not isinstance(place, dict):
            raise InputError(f"names and values in {part!r}, for {name}", repr(place), "Correct the name.")
    place[last] = value


def _built(cls: Any, values: Mapping[Any, Any], within: str) -> Any:
    """Make a dataclass from names and values; `within` is what stands before its names in messages."""
    known = {field.name: field for field in fields(cls) if field.init}
    unknown = [f"{within}{name}" for name in values if name not in known]
    if unknown:
        expected = f"options among {', '.join(within + name for name in known)}"
        raise InputError(expected, ", ".join(unknown), "Correct the name.")
    for name, field in known.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{within}{name}", "none", f"Set it; {cls.__name__} has no default for it.")
    kinds = typing.get_type_hints(cls)
    return cls(**{n: _converted(within + n, values[n], kinds[n], known[n]) for n in known if n in values})


def _converted(name: str, value: Any, kind: Any, field: Field[Any]) -> Any:
    """Return an option's value as its type asks for it."""
    if value == "" and field.default != "" and kind is not Any:
        raise InputError(f"{name} as {_called(kind)}", "''", "Correct the value.")
    try:
        return _fitted(name, value, kind)
    except _MisfitError:
        raise InputError(f"{name} as {_called(kind)}", repr(value), "Correct the value.") from None


def _fitted(name: str, value: Any, kind: Any) -> Any:
    """Return a value as a kind asks for it, or raise `_MisfitError`."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if origin is Literal:
        return _required(value, any(value == one and type(value) is type(one) for one in arguments))
    if origin in (Union, types.UnionType):
        for one in arguments:
            with contextlib.suppress(_MisfitError):
                return _fitted(name, value, one)
        raise _MisfitError
    if kind in (None, NoneType):
        return _required(value, value is None)
    if (origin or kind) in _SEQUENCES:
        _required(value, isinstance(value, list | tuple))
        items = [_fitted(name, item, arguments[0] if arguments else Any) for item in value]
        return tuple(items) if origin is tuple else items
    if (origin or kind) in _MAPPINGS:
        _required(value, isinstance(value, Mapping) and all(isinstance(key, str) for key in value))
        return {k: _fitted(name, item, arguments[1] if arguments else Any) for k, item in value.items()}
    if is_dataclass(kind) and isinstance(value, Mapping):
        return _built(kind, value, f"{name}.")
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, str | int) and not isinstance(value, bool):
        with contextlib.suppress(ValueError):  # what is no number does not fit below
            value = float(value)
    exact = kind in (bool, int, float, str)
    return _required(value, type(value) is kind if exact else isinstance(value, kind))


def _required(value: Any, fits: bool) -> Any:
    if not fits:
        raise _MisfitError
    return value


def _called(kind: Any) -> str:
    """Name a kind as a person would write it."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Literal:
        return " or ".join(map(repr, arguments))
    if typing.get_origin(kind) in (Union, types.UnionType):
        return " or ".join(map(_called, arguments))
    if kind in (None, NoneType):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not arguments else str(kind)


def _check_range(name: str, value: Any, least: float, most: float) -> None:
    if isinstance(value, list | tuple | dict):
        for item in value.values() if isinstance(value, dict) else value:
            _check_range(name, item, least, most)
    elif type(value) in (int, float) and (not least <= value <= most or math.isinf(value)):
        bounds = f"of {least} or more" if most == math.inf else f"from {least} to {most}"
        raise InputError(f"{name} {bounds}", repr(value), "Correct the number.")
