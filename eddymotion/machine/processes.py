# SPDX-License-Identifier: Apache-2.0
"""Identifying the process that wrote something, and whether it is still alive.

The number of a process says that only on its own machine (boot and process namespace), and only
together with the time when the process started, since numbers are given away again.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process on some machine.

    Parameters
    ----------
    pid : int
    started : str
        When it started, by the kernel's clock; empty where the system does not tell.
    """

    pid: int
    started: str

    @classmethod
    def this(cls) -> Process:
        """Describe ourselves."""
        return cls(os.getpid(), _state_and_start(os.getpid())[1])

    @property
    def is_alive(self) -> bool:
        """Whether it lives, stopped or not, if it is one of this machine."""
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError, ValueError):
            return False
        except PermissionError:  # somebody else's
            pass
        state, started = _state_and_start(self.pid)
        ended = state in ("Z", "X")  # nobody has asked how it ended
        return not ended and (not started or not self.started or started == self.started)


@cache
def machine() -> str:
    """Name the space in which a process number is unique, as well as the system tells."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            is_link = os.path.islink(path)
            parts.append(os.readlink(path) if is_link else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return " ".join(parts).strip()


def is_here(host: str, its_machine: str) -> bool:
    """Whether a process that calls its host and machine so is one of this machine.

    A host may get another name while a process runs; its boot and namespace stay what they are.
    """
    return its_machine == machine() and (bool(machine()) or host == socket.gethostname())


def _state_and_start(pid: int) -> tuple[str, str]:
    try:
        # the name of the program, in parentheses, may hold anything
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        words = text.rpartition(")")[2].split()
        return words[0], words[19]
    except (OSError, IndexError):
        return "", ""
