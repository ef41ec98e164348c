"""A folder that is written beside its place, brought to the disk, and put there whole."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from fastreward.encoders.onnx_manifest import MANIFEST, check_files, read_manifest
from fastreward.errors import CheckpointError, InputError

_PART_SUFFIX: Final = ".fastreward-part"


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
    """A folder beside `folder` to write to, which is gone afterwards, whatever becomes of it.

    It is locked as long as this process lives. What processes that were killed have left behind for the same
    `folder` is removed first: it is what nobody holds the lock of.
    """
    part = lock = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder)
        part, lock = _locked_part(folder)
        yield part
    except OSError as error:
        raise _unwritable(folder, error) from error
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked_part(folder: Path) -> tuple[Path, int | None]:
    """Make a folder to write to, and lock it: its path, and the descriptor that holds the lock."""
    while True:
        part = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=_PART_SUFFIX, dir=folder.parent))
        try:
            lock = _locked(part)
        except (BlockingIOError, FileNotFoundError):  # who cleans up was faster, and removes it
            continue
        except OSError:  # a disk that locks no folders: then nobody can take this one for abandoned either
            return part, None
        with suppress(OSError):
            if os.path.samestat(os.fstat(lock), os.stat(part)):
                return part, lock
        os.close(lock)


def _remove_abandoned(folder: Path) -> None:
    """Remove the folders whose export to `folder` has ended without doing so: killed, or out of power."""
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]+{re.escape(_PART_SUFFIX)}")
    beside: list[Path] = []
    with suppress(OSError):  # one may write to a folder that one may not list
        beside = list(folder.parent.iterdir())
    for path in beside:
        if not ours.fullmatch(path.name) or path.is_symlink() or not path.is_dir():
            continue
        with suppress(
            OSError
        ):  # a living process's, another user's, gone, or on a disk that locks no folders
            lock = _locked(path)
            try:
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)


def _locked(folder: Path) -> int:
    """Lock a folder until the descriptor is closed or the process ends.

    Raises:
        BlockingIOError: If another process holds the lock.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


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
