"""A folder that is written beside its place, brought to the disk, and put there whole."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fastreward.encoders.onnx_manifest import MANIFEST, check_files, read_manifest
from fastreward.errors import CheckpointError, InputError


def is_there(folder: Path, digest: str) -> bool:
    """Whether a folder holds this very export already; False where there is none.

    Raises:
        InputError: If it holds something else.
        CheckpointError: If it holds an export that is damaged.
    """
    try:
        if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
            return False
    except OSError as error:
        raise _unwritable(folder, error) from error
    received = f"{folder}, which holds something else"
    if (folder / MANIFEST).is_file():
        manifest = read_manifest(folder)
        if manifest.source_sha256 == digest:
            check_files(folder, manifest)
            return True
        received = f"{folder} with {manifest.encoder} in {manifest.precision}, or another version of it"
    raise InputError("a new or empty folder for the export", received, "Name another, or remove it.")


@contextmanager
def part_of(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` to write to, which is gone afterwards, whatever becomes of it."""
    part = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        yield part
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def place(part: Path, folder: Path, digest: str) -> None:
    """Give a finished folder its name, unless another process has put the same there meanwhile."""
    part.chmod(0o777 & ~_umask())  # a temporary folder is its owner's alone
    for path in [*part.rglob("*"), part]:
        _to_disk(path)
    try:
        part.rename(folder)
    except OSError:
        if not is_there(folder, digest):
            raise
    else:
        _to_disk(folder.parent)


def _to_disk(path: Path) -> None:
    """Have a file or a folder's entries on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _unwritable(folder: Path, error: OSError) -> CheckpointError:
    return CheckpointError(
        "a folder that an export can be written to",
        f"{folder}: {error.strerror or error}",
        "Free some space, or name a folder that is yours to write; nothing was left behind.",
    )
