# SPDX-License-Identifier: Apache-2.0
"""Importing modules faster: less of what Python does besides.

Importing makes some hundred thousand objects that stay. Python looks through them again and again
for cycles that nobody needs, which takes a third of the time and finds next to none. What is there
when the last import has ended is never looked through: it is freed when nothing refers to it.

A thread that imports lets go of the interpreter only when another has waited for it so long. One
that reads an image meanwhile needs it for moments, thousands of times.
"""

from __future__ import annotations

import gc
import sys
import threading
from types import TracebackType

PATIENCE_S = 5e-4
"""How long another thread waits for the interpreter; a tenth of what Python is used to."""


class _Importing:
    """Settings of the process, which hold from the first user to the last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._was_on, self._patience = False, PATIENCE_S

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._was_on, self._patience = gc.isenabled(), sys.getswitchinterval()
                gc.disable()
                sys.setswitchinterval(min(PATIENCE_S, self._patience))
            self._users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            if self._users:
                return
            sys.setswitchinterval(self._patience)
            if self._was_on:
                gc.freeze()
                gc.enable()


importing = _Importing()
"""A context, for any thread."""
