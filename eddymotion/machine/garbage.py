# SPDX-License-Identifier: Apache-2.0
"""The search for garbage, which is put off while modules are imported.

Importing makes some hundred thousand objects that stay. Python looks through them again and again
for cycles that nobody needs, which takes a third of the time and finds next to none. What is there
when the last import has ended is never looked through: it is freed when nothing refers to it.
"""

from __future__ import annotations

import gc
import threading
from types import TracebackType


class _PutOff:
    """The search, which is off for the process: from its first user to its last."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._was_on = False

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._was_on = gc.isenabled()
                gc.disable()
            self._users += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._was_on:
                gc.freeze()
                gc.enable()


search_put_off = _PutOff()
"""A context, for any thread."""
