# SPDX-License-Identifier: Apache-2.0
"""Requests to end: SIGTERM, Ctrl-C and a closed terminal, obeyed for certain.

The handler raises, so that the stack is unwound: locks are given back, half-written files removed.
That is not enough. Python drops what is raised in a finaliser or the callback of a weak reference,
a library may swallow it, and a long call of compiled code does not even let the handler run. So a
thread watches: it repeats what was dropped, and ends the process with all its children when it
still lives after a while. What such an end leaves, the next run removes.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from types import FrameType
from typing import Any

from eddymotion.machine.children import end_descendants

REASONS = {
    signal.SIGINT: "interrupted",
    signal.SIGTERM: "ended on request",
    signal.SIGHUP: "its terminal was closed",
}

GRACE_S = 8.0
"""For unwinding: less than what `docker stop` (10 s) and SLURM (30 s) wait before they kill."""

LOOK_EVERY_S = 0.05

AGAIN_S = 1.0
"""A signal this long after the first is a second request: end at once. Some senders signal a
process and its group, which is one request."""


class Ended(KeyboardInterrupt):
    """The command was asked to end."""


class EndOnRequest:
    """A context in which signals end the command; outside the main thread it does nothing.

    Signals that are ignored when it begins (``nohup``, a background job of a script) stay ignored.

    Parameters
    ----------
    program : str
        Who says that it ends.
    """

    def __init__(self, program: str) -> None:
        self.program = program
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    @property
    def code(self) -> int:
        """Exit code of a command that was ended, as a shell has it."""
        return 128 + (self.received or signal.SIGINT)

    @property
    def message(self) -> str:
        """What to say at the end."""
        reason = REASONS[self.received or signal.SIGINT]
        return f"{self.program}: {reason}; what is complete is kept"

    def __enter__(self) -> EndOnRequest:
        if threading.current_thread() is not threading.main_thread():
            return self
        self._owner, self._since = os.getpid(), 0.0
        self._again = self._dropped = False
        self._over = threading.Event()
        self._reading, self._writing = os.pipe()
        os.set_blocking(self._writing, False)
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        self._hook, sys.unraisablehook = sys.unraisablehook, self._notice_dropped
        self._waking = signal.set_wakeup_fd(self._writing, warn_on_full_buffer=False)
        for number in REASONS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._over.set()
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._waking)
        sys.unraisablehook = self._hook
        os.write(self._writing, b"\0")
        self._watcher.join()
        os.close(self._reading)
        os.close(self._writing)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:  # a child that has not yet its own ways
            os._exit(128 + number)
        first = self.received is None
        if first:
            self.received, self._since = signal.Signals(number), time.monotonic()
        if first or self._again:
            self._again = False
            raise Ended
        if time.monotonic() - self._since > AGAIN_S:
            self._end_now()

    def _notice_dropped(self, dropped: Any) -> None:
        if issubclass(dropped.exc_type, Ended):
            self._dropped = True
        else:
            self._hook(dropped)

    def _watch(self) -> None:
        """Wait for a signal; then see to it that the command ends."""
        while (byte := os.read(self._reading, 1)[0]) not in REASONS:
            if not byte:
                return
        end_descendants()  # who waits for one goes on, and is unwound
        ends = time.monotonic() + GRACE_S
        while time.monotonic() < ends:
            if self._over.wait(LOOK_EVERY_S):
                return
            if self._dropped:
                self._dropped, self._again = False, True
                signal.pthread_kill(threading.main_thread().ident or 0, byte)
        self.received = self.received or signal.Signals(byte)
        self._end_now()

    def _end_now(self) -> None:
        end_descendants()
        with suppress(OSError, ValueError):
            if select.select([], [2], [], 0)[1]:  # a console that takes no more would keep us
                os.write(2, f"{self.message}\n".encode())
        os._exit(self.code)
