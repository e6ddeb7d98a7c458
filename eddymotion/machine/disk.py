# SPDX-License-Identifier: Apache-2.0
"""Errors of a disk, in words."""

from __future__ import annotations

import errno
import os
import platform
import time
from pathlib import Path

from eddymotion.errors import EddymotionError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def describe_disk_error(error: OSError) -> str:
    """Say in one line what the system refused, of which file, and what to do."""
    of = error.filename2 or error.filename
    reason = " ".join((error.strerror or str(error)).split())
    if error.errno in DISK_FULL or os.strerror(errno.ENOSPC) in reason:  # HDF5 tells it in words
        where = f" ({of})" if of else ""
        return f"the disk is full{where}; free some space and run again: finished results are kept"
    if error.errno == errno.ENAMETOOLONG:
        return f"{of}: {reason}; names have at most 255 bytes: give a shorter one"
    return f"{of}: {reason}; check the path, its permissions and its disk" if of else reason


def prove_writable(folder: Path, remedy: str) -> None:
    """Make a folder and a file in it, and remove the file.

    Raises
    ------
    EddymotionError
        If that cannot be done; it ends with what to do instead.
    """
    probe = folder / f".write-test-{platform.node()}-{time.time_ns()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise EddymotionError(
            f"{folder}: cannot be written to ({error.strerror}); {remedy}"
        ) from error
