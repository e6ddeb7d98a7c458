# SPDX-License-Identifier: Apache-2.0
"""Other processes: what they need, what must not reach them, and their end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path

from eddymotion.wording import why

PYTHON = (sys.executable, "-P")
"""Starts a Python that imports nothing from the current folder."""

NOT_FOR_CHILDREN = ("PYTHONINSPECT", "PYTHONSTARTUP", "PYTHONWARNINGS")
"""Variables of the user's own sessions: they would change or stop what a child does."""


@contextmanager
def importing_safely() -> Iterator[None]:
    """Have the Pythons that are started meanwhile import nothing from the current folder.

    For those that the standard library starts, with a command line of its own.
    """
    before = os.environ.get("PYTHONSAFEPATH")
    os.environ["PYTHONSAFEPATH"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONSAFEPATH"]
        else:
            os.environ["PYTHONSAFEPATH"] = before


def why_alone() -> str | None:
    """Say why processes cannot work side by side here; None if they can.

    They need semaphores, which Linux keeps in /dev/shm.
    """
    try:
        multiprocessing.get_context().Lock()
    except (ImportError, OSError) as error:
        return (
            f"no semaphore can be created ({why(error)}); check that /dev/shm exists, is "
            "writable and not full"
        )
    return None


def end_descendants(of: int | None = None) -> None:
    """Kill all processes that a process has started, and those that they have started.

    Parameters
    ----------
    of : int, optional
        Its number; this process when not given. It goes on itself.
    """
    children = _children()
    waiting = list(children.get(os.getpid() if of is None else of, ()))
    while waiting:
        pid = waiting.pop()
        waiting += children.get(pid, ())
        with suppress(OSError):  # it has ended by itself
            os.kill(pid, signal.SIGKILL)


@cache
def end_with_parent() -> None:
    """In a worker process: end when the run is killed, instead of writing on."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        end_descendants()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _children() -> dict[int, list[int]]:
    """Return the children of each process that has any."""
    found: dict[int, list[int]] = {}
    for pid, parent in _parents():
        found.setdefault(parent, []).append(pid)
    return found


def _parents() -> Iterator[tuple[int, int]]:
    proc = Path("/proc")
    if (proc / "self" / "stat").exists():
        for folder in proc.glob("[0-9]*"):
            with suppress(OSError, ValueError, IndexError):
                # the name of the program, in parentheses, may hold anything
                stat = (folder / "stat").read_bytes().rpartition(b")")[2].split()
                yield int(folder.name), int(stat[1])
        return
    with suppress(OSError, subprocess.SubprocessError):
        call = ["ps", "-A", "-o", "pid=,ppid="]
        done = subprocess.run(call, capture_output=True, text=True, check=True, timeout=5)
        for line in done.stdout.splitlines():
            pid, parent = line.split()
            yield int(pid), int(parent)
