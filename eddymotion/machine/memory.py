# SPDX-License-Identifier: Apache-2.0
"""Memory that is free within the process, but not yet for others."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress


def give_back_memory() -> None:
    """Give memory that was let go of back to the system, where its allocator can do so.

    That of Linux keeps arrays of some megabytes for later ones, which leave holes in it: a series
    of gigabytes, worked on volume by volume, left a third of its size behind.
    """
    if sys.platform == "linux":
        with suppress(AttributeError, OSError):  # other libraries of C
            ctypes.CDLL(None).malloc_trim(0)
