"""What the CPUs of this machine are to a process: how many cores it may use, and what they multiply."""

from __future__ import annotations

import contextlib
import math
import os
import platform
from pathlib import Path

import torch

from fastreward.errors import InputError


def resolve_threads(requested: int | None) -> int:
    """Choose how many threads compute on the CPU.

    Args:
        requested: A number of threads; None for as many as PyTorch uses (OMP_NUM_THREADS), but not more than
            this process may use cores, by its affinity and by its control group's quota.

    Raises:
        InputError: If it is less than 1.

    Example:
        >>> resolve_threads(3), resolve_threads(None) >= 1
        (3, True)
    """
    if requested is None:
        cores = min(len(os.sched_getaffinity(0)), torch.get_num_threads())
        quota = quota_cores()
        return cores if quota is None else max(1, min(cores, math.ceil(quota)))
    if isinstance(requested, bool) or not isinstance(requested, int) or requested < 1:
        raise InputError("threads of 1 or more", repr(requested), "Pass a whole number, or None.")
    return requested


def quota_cores() -> float | None:
    """How many cores the control groups of this process let it use; None where nothing limits it.

    Example:
        >>> quota_cores() is None or quota_cores() > 0
        True
    """
    return cgroup_cores(Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"))


def cgroup_cores(root: Path, membership: Path) -> float | None:
    """Read how many cores the control groups of this process let it use; None where nothing limits it.

    Args:
        root: Where control groups are mounted, of version 2 or 1.
        membership: The file that names the process's own, as /proc/self/cgroup does.

    Example:
        >>> cgroup_cores(Path("/no/such/mount"), Path("/no/such/file")) is None
        True
    """
    quotas: list[float] = []
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "cpu", "cpu,cpuacct", "cpuacct,cpu"):
            continue
        mount = root / controllers
        group = mount / path.lstrip("/")
        # A group is limited by those above it too. In a container its own path may not be there at all.
        for folder in (group, *group.parents):
            if folder == mount or mount in folder.parents:
                quotas += _quota(folder)
    return min(quotas, default=None)


def _quota(folder: Path) -> list[float]:
    """The quota of one control group in cores, or nothing."""
    with contextlib.suppress(OSError, ValueError):  # no such file, or "max"
        quota, period = (folder / "cpu.max").read_text().split()
        return [int(quota) / int(period)]
    with contextlib.suppress(OSError, ValueError):
        quota = (folder / "cpu.cfs_quota_us").read_text()
        period = (folder / "cpu.cfs_period_us").read_text()
        return [int(quota) / int(period)] if int(quota) > 0 else []
    return []


def int8_runs_here() -> bool:
    """Whether this CPU multiplies 8-bit integers without loss.

    On x86 that is one with VNNI, which sums in 32 bits. The older instruction adds two products of up to
    255 · 127 in 16 bits, which clips at 32,767.

    Example:
        >>> isinstance(int8_runs_here(), bool)
        True
    """
    return platform.machine() not in ("x86_64", "AMD64") or bool(torch.cpu._is_vnni_supported())
