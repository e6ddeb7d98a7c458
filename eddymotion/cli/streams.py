# SPDX-License-Identifier: Apache-2.0
"""Output streams that never stop a command: full, closed, or of an encoding without some signs."""

from __future__ import annotations

import codecs
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

NOBODY_READS = (errno.EPIPE, errno.EIO, errno.EBADF)
"""The reader of the stream is gone, so that the rest may be dropped."""

PLAIN = {
    "→": "->", "–": "-", "−": "-", "…": "...", "×": "x", "°": " deg", "±": "+/-", "²": "^2",
    "³": "^3", "√": "sqrt", "≤": "<=", "≥": ">=", "µ": "u", "ö": "oe", "é": "e",
}  # fmt: skip
"""Letters of our messages, for consoles that lack them."""


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Replace what an encoding lacks: a handler of errors for :mod:`codecs`."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    letters = error.object[error.start : error.end]
    return "".join(PLAIN.get(letter, ascii(letter)[1:-1]) for letter in letters), error.end


codecs.register_error("eddymotion-plainly", _plainly)


class _Steady:
    """A stream whose failures are kept, not raised."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self.failure: OSError | None = None

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, what: Any) -> None:
        try:
            what()
        except OSError as error:
            self.failure = self.failure or error
        except ValueError:  # closed
            self.failure = self.failure or OSError(errno.EBADF, os.strerror(errno.EBADF))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def finish(self) -> None:
        """Write what is left, or let it go: Python itself would fail with it when it ends."""
        self.flush()
        if self.failure is None:
            return
        with suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self.stream.fileno())
            self.stream.flush()


class Streams:
    """The two streams of a command.

    Parameters
    ----------
    out, err : stream
    """

    def __init__(self, out: _Steady, err: _Steady) -> None:
        self.out, self.err = out, err

    def code(self, program: str, code: int) -> int:
        """Return the exit code: results that could not be written are a failure, and reported."""
        self.out.flush()
        failure = self.out.failure
        if failure is None or failure.errno in NOBODY_READS:
            return code
        print(
            f"{program}: error: standard output cannot be written ({failure.strerror}); redirect "
            "it elsewhere",
            file=sys.stderr,
        )
        return code or 1


@contextmanager
def protect_streams() -> Iterator[Streams]:
    """Make the standard streams harmless, and whole again afterwards."""
    _open_what_is_closed()
    before = sys.stdout, sys.stderr
    streams = Streams(*(_Steady(stream or open(os.devnull, "w")) for stream in before))  # noqa: SIM115
    errors = [_errors_of(steady.stream) for steady in (streams.out, streams.err)]
    sys.stdout, sys.stderr = cast(TextIO, streams.out), cast(TextIO, streams.err)
    try:
        yield streams
    finally:
        sys.stdout, sys.stderr = before
        for steady, kept in zip((streams.out, streams.err), errors, strict=True):
            steady.finish()
            if kept is not None:
                cast(Any, steady.stream).reconfigure(errors=kept)


def _errors_of(stream: Any) -> str | None:
    """Set how a stream writes what it lacks; return how it did."""
    if not hasattr(stream, "reconfigure"):
        return None
    before = stream.errors
    stream.reconfigure(errors="eddymotion-plainly")
    return before


def _open_what_is_closed() -> None:
    """Open the standard files: the next file would get their numbers, and what is said with it."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            nowhere = os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            os.set_inheritable(nowhere, True)
