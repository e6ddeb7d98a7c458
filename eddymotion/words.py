# SPDX-License-Identifier: Apache-2.0
"""How what was given, and what a library says of it, is told in a message."""

from __future__ import annotations

import reprlib
from pathlib import PurePath
from typing import Any

LONGEST_VALUE = 80
LONGEST_LINE = 1500
"""Characters."""


class _Shown(reprlib.Repr):
    """Values as a user wrote them: no types of Python or NumPy, and not without end."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr1(self, x: Any, level: int) -> str:
        if isinstance(x, PurePath):
            x = str(x)
        elif hasattr(x, "tolist") and hasattr(x, "dtype"):  # of NumPy
            x = x.tolist()
        return super().repr1(x, level)


_shown = _Shown()


def shown(value: object) -> str:
    """Return a value for a message: in quotes if it is a text or a path, shortened if long."""
    return _shortened(_shown.repr(value), 4 * LONGEST_VALUE)


def why(error: BaseException) -> str:
    """Return what an exception of a library says, for the parentheses of a message.

    Its first line, without what it advises programmers, and without the path of a file, which the
    message names.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first = str(error).strip().partition("\n")[0].partition("; use `")[0]
    return _shortened(_printable(first), 2 * LONGEST_VALUE) or type(error).__name__


def cut(text: str) -> str:
    """Return what a file holds, shortened to what fits into a message."""
    return _shortened(_printable(text), 2 * LONGEST_VALUE)


def one_line(text: str) -> str:
    """Return a message as one line that a terminal can take."""
    return _shortened(_printable(" ".join(text.split())), LONGEST_LINE)


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _shortened(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    half = (longest - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"
