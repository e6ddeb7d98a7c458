# SPDX-License-Identifier: Apache-2.0
"""Names of files that are being written: they tell by whom, so that leftovers can be removed."""

from __future__ import annotations

import hashlib
import re
import shutil
import socket
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from eddymotion.machine.processes import Process, machine

ABANDONED_AFTER_S = 3600.0
"""Since the last change of a file whose writer lives elsewhere, if it lives."""

_NAME = re.compile(
    r"\.eddymotion-(?P<machine>[0-9a-f]{12})-(?P<pid>\d+)-(?P<started>\d*)-[0-9a-f]{12}(\.|$)"
)

_FORMER = re.compile(r"\.[0-9a-f]{12}(\.|$)")
"""Names of an earlier version, which tell nothing."""


def temporary_name(suffix: str) -> str:
    """Name a file that this process is going to write; no other one is called so."""
    own = Process.this()
    return f".eddymotion-{_machine()}-{own.pid}-{own.started}-{uuid.uuid4().hex[:12]}{suffix}"


def remove_stale_temporaries(
    folder: Path, *, deep: bool = False, locked: bool = False, folders: bool = False
) -> None:
    """Remove what writers that are gone have left of files.

    What is being written on another machine goes when it is old.

    Parameters
    ----------
    folder : Path
    deep : bool
        In the folders below, too.
    locked : bool
        Whether nobody else may write there: whatever has no living writer on this machine goes.
    folders : bool
        Remove folders, not files; only those of processes of this machine.
    """
    for path in folder.rglob(".*") if deep else folder.glob(".*"):
        with suppress(OSError):
            if folders and path.is_dir() and _writer_is_gone(path):
                shutil.rmtree(path, ignore_errors=True)
            elif not folders and path.is_file() and _is_left(path, locked):
                path.unlink()


def _is_left(path: Path, locked: bool) -> bool:
    if _NAME.match(path.name) is None:
        return locked and _FORMER.match(path.name) is not None
    gone = _writer_is_gone(path)
    if gone is None:
        return locked or time.time() - path.stat().st_mtime >= ABANDONED_AFTER_S
    return gone


def _writer_is_gone(path: Path) -> bool | None:
    """Whether the writer has ended; None if that cannot be known from here."""
    match = _NAME.match(path.name)
    if match is None or match["machine"] != _machine():
        return None
    return not Process(int(match["pid"]), match["started"]).is_alive


@cache
def _machine() -> str:
    return hashlib.sha256((machine() or socket.gethostname()).encode()).hexdigest()[:12]
