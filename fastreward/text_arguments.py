"""The texts that a caller hands to a `Scorer`, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fastreward.errors import InputError


def _require_list(texts: object, expected: str) -> None:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        received = "one string" if isinstance(texts, str) else _kind(texts)
        raise InputError(expected, received, "Pass a list with one entry for each text.")


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def checked_texts(texts: Iterable[object], name: str) -> list[str]:
    """Read N texts.

    Raises:
        InputError: If they are no list, or one is missing or no string; the message names it by its index.
    """
    _require_list(texts, f"a list of strings as {name}")
    checked = []
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputError(
                f"a string in {name}[{index}]",
                _kind(text),
                "Leave the sample out, or give it a text.",
            )
        checked.append(text)
    return checked


def checked_references(references: Sequence[str | Sequence[str]], count: int) -> list[list[str]]:
    """Check the references and bring each to the form of a list of choices."""
    _require_list(references, "a list of references")
    references = list(references)
    if len(references) != count:
        raise InputError(
            "one reference (or list of references) per completion",
            f"{count} completions and {len(references)} references",
            "Pass lists of equal length.",
        )
    choices = []
    for index, reference in enumerate(references):
        if isinstance(reference, str):
            choices.append([reference])
        elif isinstance(reference, list | tuple):
            choices.append(checked_texts(reference, f"references[{index}]"))
        else:
            raise InputError(
                f"a string or a list of strings in references[{index}]",
                _kind(reference),
                "Leave the sample out, or give it a reference.",
            )
        if not choices[-1]:
            raise InputError(
                f"at least one reference in references[{index}]", "an empty list", "Leave the sample out."
            )
    return choices
