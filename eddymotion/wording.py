# SPDX-License-Identifier: Apache-2.0
"""How values are written: in messages, at a prompt, in a notebook."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import PurePath
from typing import Any, ClassVar

ESCAPED = "backslashreplace"
"""How text is written that UTF-8 cannot hold: names of files may hold any bytes."""

PE_AXES = ("i", "j", "k", "i-", "j-", "k-")
"""Phase-encoding directions as BIDS writes them."""

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


def option_of(name: str) -> str:
    """Return the option of a setting: ``brain_mask`` → ``--brain-mask``."""
    return "--" + name.replace("_", "-")


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


def listed(values: Any, most: int = 12) -> str:
    """Write the first values of a sequence, and how many more there are."""
    more = f" and {len(values) - most} more" if len(values) > most else ""
    return ", ".join(str(value) for value in values[:most]) + more


def named_volumes(numbers: Any) -> str:
    """Name volumes by their numbers: ``volume 3``, ``volumes 3, 5``, counted from 0."""
    return f"volume{'s' * (len(numbers) > 1)} {listed(numbers)} (counted from 0)"


def duration(seconds: float) -> str:
    """Write a time as people say it: ``40 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 99.5:
        return f"{max(seconds, 0):.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


FEW = 4
"""Numbers that are listed one by one; of more the shape alone."""


def short_repr(value: Any) -> str:
    """Name the fields of a dataclass that are set, arrays by their shape.

    A class takes it as its ``__repr__``.
    """
    parts = (
        f"{entry.name}={_format(getattr(value, entry.name))}"
        for entry in fields(value)
        if getattr(value, entry.name) is not None
    )
    return f"{type(value).__name__}({', '.join(parts)})"


def _format(value: Any) -> str:
    import numpy as np

    if isinstance(value, np.ndarray) and value.size > FEW:
        return f"<{format_sizes(value.shape)} {value.dtype}>"
    if isinstance(value, np.ndarray):
        return np.array2string(value, precision=4, separator=", ").replace("\n", "")
    if isinstance(value, Mapping):
        return f"<{len(value)} entries>"
    return repr(value) if hasattr(value, "__dataclass_fields__") else shown(value)


def format_sizes(sizes: Any) -> str:
    """Write the sizes along the axes of something: ``96×96×60``."""
    return "×".join(f"{size:.3g}" if isinstance(size, float) else str(size) for size in sizes)


class HtmlValue:
    """Base of values that a notebook shows as pictures, without knowing how they are drawn."""

    __slots__ = ()
    _draw: ClassVar[Callable[[Any], str]]
    """Set by the package, which knows all its rooms."""

    def _repr_html_(self) -> str:
        return type(self)._draw(self)
