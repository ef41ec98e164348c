"""The texts that a caller hands to a `Scorer`, as strings or as token ids, checked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from fastreward.backends import dtype_name
from fastreward.errors import InputError
from fastreward.word_cache import TokenIds

TokenIdSequence: TypeAlias = Sequence[int] | NDArray[np.integer] | Tensor
"""Token ids of one text without special tokens: a list, or a 1-D array or tensor of integers."""

TextLike: TypeAlias = str | TokenIdSequence
"""A text as a caller hands it over."""

Text: TypeAlias = str | bytes
"""A text as the scorer holds it, hashable: a string, or the bytes of its token ids (int32)."""

_OR_IDS: Final = "(or a list, array or tensor of token ids)"


def ids_of(text: bytes) -> TokenIds:
    """Read the token ids of a text that was given as such: [T], int32, not to be written to."""
    return np.frombuffer(text, dtype=np.int32)


def checked_texts(texts: Iterable[object], name: str, vocab_size: int) -> list[Text]:
    """Read N texts: strings alone, or token ids alone.

    Args:
        texts: What the caller gave.
        name: What to call it in a message.
        vocab_size: Token ids are below this.

    Raises:
        InputError: If they are no list, one is missing or no text, strings and ids are mixed, or an id is out
            of range; the message names it by its index.
    """
    _require_list(texts, f"a list of strings as {name}")
    entries = list(texts)
    if strings := _strings(entries):
        return strings
    places = {f"{name}[{index}]": text for index, text in enumerate(entries)}
    read = {where: _read(text, where, f"a string in {where}") for where, text in places.items()}
    return _packed(read, name, vocab_size)


def checked_references(references: Iterable[object], count: int, vocab_size: int) -> list[list[Text]]:
    """Check the references and bring each to the form of a list of choices.

    A list of integers is one reference, and so is an array of integers or a tensor; a list of anything else
    is several, and so is an array of strings.
    """
    _require_list(references, "a list of references")
    entries = list(references)
    if len(entries) != count:
        raise InputError(
            "one reference (or list of references) per completion",
            f"{count} completions and {len(entries)} references",
            "Pass lists of equal length.",
        )
    if strings := _strings(entries):
        return [[text] for text in strings]
    read: dict[str, str | NDArray[np.integer]] = {}
    sizes = []
    for index, entry in enumerate(entries):
        where = f"references[{index}]"
        if isinstance(entry, np.ndarray) and entry.dtype.kind in "UTO":
            entry = entry.tolist()  # of an array without axes it is the string itself
        if isinstance(entry, list | tuple) and not _is_ids(entry):
            choices = {f"{where}[{i}]": choice for i, choice in enumerate(entry)}
            if not choices:
                raise InputError(
                    f"at least one reference in {where}", "an empty list", "Leave the sample out."
                )
            read |= {name: _read(choice, name, f"a string in {name}") for name, choice in choices.items()}
            sizes.append(len(choices))
        else:
            read[where] = _read(entry, where, f"a string or a list of strings in {where}")
            sizes.append(1)
    texts = iter(_packed(read, "references", vocab_size))
    return [[next(texts) for _ in range(size)] for size in sizes]


def _require_list(texts: object, expected: str) -> None:
    if isinstance(texts, str) or not isinstance(texts, Iterable):
        received = "one string" if isinstance(texts, str) else _kind(texts)
        raise InputError(expected, received, "Pass a list with one entry for each text.")


def _strings(entries: list[object]) -> list[Text]:
    """The entries where all are strings, which is the rule; else none."""
    strings: list[Text] = [entry for entry in entries if isinstance(entry, str)]
    return strings if len(strings) == len(entries) else []


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__


def _is_ids(entry: Sequence[object]) -> bool:
    return bool(entry) and isinstance(entry[0], int | np.integer) and not isinstance(entry[0], bool)


def _read(text: object, where: str, expected: str) -> str | NDArray[np.integer]:
    """Read one text: the string, or its ids in whatever integers they came."""
    if isinstance(text, str):
        return text
    if isinstance(text, list | tuple) and (not text or _is_ids(text)):
        return _integers(text, where)
    if isinstance(text, Tensor) and text.ndim == 1 and (text.is_floating_point() or text.is_complex()):
        raise _no_integers(where, dtype_name(text.dtype))  # NumPy has no bfloat16
    if isinstance(text, np.ndarray | Tensor) and text.ndim == 1:
        return _integers(text.detach().cpu().numpy() if isinstance(text, Tensor) else text, where)
    received = _kind(text)
    if isinstance(text, np.ndarray | Tensor):
        received += f" of {text.ndim} dimensions"
    raise InputError(f"{expected} {_OR_IDS}", received, "Leave the sample out, or give it a text.")


def _integers(ids: object, where: str) -> NDArray[np.integer]:
    try:
        array = np.asarray(ids)
    except (ValueError, OverflowError):  # a list within the list, or a number beyond 64 bits
        array = np.empty(0, dtype=object)
    if (
        array.dtype == object
        or array.ndim != 1
        or (array.size and not np.issubdtype(array.dtype, np.integer))
    ):
        kind = "other things" if array.dtype == object or array.ndim != 1 else str(array.dtype)
        raise _no_integers(where, kind)
    return array


def _no_integers(where: str, received: str) -> InputError:
    return InputError(f"whole numbers as token ids in {where}", received, "Pass the tokenizer's ids.")


def _packed(texts: dict[str, str | NDArray[np.integer]], name: str, vocab_size: int) -> list[Text]:
    """Bring texts to hashable form, once they are all of one kind and their ids are in range."""
    arrays = {where: ids for where, ids in texts.items() if not isinstance(ids, str)}
    if not arrays:
        return [text for text in texts.values() if isinstance(text, str)]
    if len(arrays) < len(texts):
        string = next(where for where, text in texts.items() if isinstance(text, str))
        raise InputError(
            f"strings alone or token ids alone as {name}",
            f"a string in {string} and ids in {next(iter(arrays))}",
            "Tokenise the strings too, or pass all of them as strings.",
        )
    for where, ids in arrays.items():
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocab_size):
            at = int(((ids < 0) | (ids >= vocab_size)).argmax())
            raise InputError(
                f"token ids from 0 to {vocab_size - 1} in {where}",
                f"{ids[at]} at place {at}",
                "Pass ids of the encoder's own tokenizer, padding left out.",
            )
    return [ids.astype(np.int32).tobytes() for ids in arrays.values()]
