# SPDX-License-Identifier: Apache-2.0
"""Processors and memory that this process may use: of the machine, a container, or a batch job.

Linux limits groups of processes. Version 2 has one tree of groups under ``/sys/fs/cgroup``,
version 1 a tree for each resource. A limit of any group above the process counts. Source: the
kernel's admin-guide, cgroup-v2 and cgroup-v1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
GROUPS = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Return the number of processors that this process may use; part of one counts as one."""
    if hasattr(os, "sched_getaffinity"):
        cpus = len(os.sched_getaffinity(0))
    else:
        cpus = os.cpu_count() or 1
    return max(1, min([cpus, *map(math.ceil, cpu_limits())]))


def available_memory_gb() -> float:
    """Return the memory (GB) that this process may use."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *memory_limits()]) / 1e9


def cpu_limits(root: Path = ROOT, groups: Path = GROUPS) -> list[float]:
    """Return the processors that each group may use, where it has a limit."""
    limits = []
    for folder in _folders("cpu", root, groups):
        numbers = _words(folder / "cpu.max")  # quota or "max", and period
        numbers = numbers or [
            *_words(folder / "cpu.cfs_quota_us"), *_words(folder / "cpu.cfs_period_us")
        ]  # fmt: skip
        if len(numbers) == 2 and all(number.isdigit() and int(number) for number in numbers):
            limits.append(int(numbers[0]) / int(numbers[1]))
    return limits


def memory_limits(root: Path = ROOT, groups: Path = GROUPS) -> list[int]:
    """Return the bytes of memory that each group may use, where it has a limit."""
    limits = []
    for folder in _folders("memory", root, groups):
        for name in ("memory.max", "memory.high", "memory.limit_in_bytes"):
            limits += [int(word) for word in _words(folder / name) if word.isdigit()]
    return limits


def _folders(resource: str, root: Path, groups: Path) -> Iterator[Path]:
    """Yield the folders of the groups of this process, and of those above.

    In a container the tree may begin at its own group, and the path be that of the host: what does
    not exist has no limits.
    """
    yield root
    yield root / resource
    try:
        lines = groups.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and resource not in controllers.split(","):
            continue
        tree = root / resource if controllers else root
        group = PurePosixPath(path.lstrip("/"))
        yield from (tree / part for part in (group, *group.parents))


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
