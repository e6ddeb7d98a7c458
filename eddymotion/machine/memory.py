# SPDX-License-Identifier: Apache-2.0
"""Giving memory back that is free within the process, but not yet for others."""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress
from pathlib import Path

LITTLE_BYTES = 10**9
"""Of a process that holds no more, what is free is kept for what comes next: to give it back, and
to have it zeroed again a moment later, takes a twentieth of the processor's time."""


def give_back_memory() -> None:
    """Give memory that was let go of back to the system, where its allocator can do so.

    That of Linux keeps arrays of some megabytes for later ones, which leave holes in it: a series
    of gigabytes, worked on volume by volume, left a third of its size behind.
    """
    if sys.platform == "linux" and resident_bytes() > LITTLE_BYTES:
        with suppress(AttributeError, OSError):  # other libraries of C
            ctypes.CDLL(None).malloc_trim(0)


def resident_bytes() -> int:
    """Return how much memory the process holds; nothing where the system does not tell."""
    with suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0
