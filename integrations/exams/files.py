"""The world on disk: one JSONL file for each split and one for the corpus."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from fastreward.errors import InputError
from fastreward.integrations.exams.corpus import corpus
from fastreward.integrations.exams.generate import (
    FAMILIES,
    LANGUAGES,
    SPLITS,
    check_count,
    chosen,
    questions,
)


def write_jsonl(
    folder: str | Path,
    *,
    train: int = 8000,
    held_out_numbers: int = 500,
    held_out_templates: int = 500,
    texts: int = 4000,
    seed: int = 0,
    languages: Iterable[str] = LANGUAGES,
    families: Iterable[str] | None = None,
) -> dict[str, Path]:
    """Write ``train.jsonl``, ``held_out_numbers.jsonl``, ``held_out_templates.jsonl`` and ``corpus.jsonl``.

    A line of the first three is a `Question.row`, one of the last is ``{"text": …}``. All four are written
    beside their places first, and take them once all are complete: after an error the old ones still stand.

    Args:
        folder: Where to write; it is made if it is absent.
        train: Questions for training.
        held_out_numbers: Questions with combinations of numbers that training has not.
        held_out_templates: Questions in wordings that training has not.
        texts: Texts of the corpus.
        seed: As in `questions`.
        languages: As in `questions`.
        families: As in `questions`.

    Returns:
        The path of each file by its name without ``.jsonl``.

    Raises:
        InputError: An argument is not one of the above, or ``folder`` is a file.
        OSError: The files cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = write_jsonl(folder, train=4, held_out_numbers=2, held_out_templates=2, texts=2)
        ...     len(paths["train"].read_text(encoding="utf-8").splitlines())
        4
    """
    languages = chosen("languages", languages, LANGUAGES)
    families = FAMILIES if families is None else chosen("families", families, FAMILIES)
    for count in (train, held_out_numbers, held_out_templates, texts):
        check_count(count, seed)
    place = _folder(folder)
    counts = dict(zip(SPLITS, (train, held_out_numbers, held_out_templates), strict=True))
    contents: dict[str, list[Mapping[str, str]]] = {
        split: [
            item.row()
            for item in questions(count, seed=seed, split=split, languages=languages, families=families)
        ]
        for split, count in counts.items()
    }
    contents["corpus"] = [
        {"text": text} for text in corpus(texts, seed=seed, languages=languages, families=families)
    ]
    return _write(place, contents)


def _folder(folder: str | Path) -> Path:
    """Make the folder, before anything is drawn for it."""
    place = Path(folder)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError("a folder to write to", f"the file {error.filename}", "Name a folder.") from error
    return place


def _write(folder: Path, contents: Mapping[str, list[Mapping[str, str]]]) -> dict[str, Path]:
    paths = {name: folder / f"{name}.jsonl" for name in contents}
    mark = secrets.token_hex(8)
    partial = {name: folder / f".{name}-{mark}.tmp" for name in contents}
    try:
        for name, rows in contents.items():
            with partial[name].open("x", encoding="utf-8", newline="\n") as output:
                output.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        for name, path in paths.items():
            os.replace(partial[name], path)
    finally:
        for path in partial.values():
            path.unlink(missing_ok=True)
    return paths
