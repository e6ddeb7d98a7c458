# SPDX-License-Identifier: Apache-2.0
"""Values in one line, for whoever looks at them at a prompt or in a message."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np

from eddymotion.words import shown

FEW = 4
"""Numbers that are told one by one; of more the shape alone."""


def short_repr(value: Any) -> str:
    """Name the fields of a dataclass that are set, arrays by their shape.

    A class takes it as its ``__repr__``.
    """
    told = (
        f"{entry.name}={_told(getattr(value, entry.name))}"
        for entry in fields(value)
        if getattr(value, entry.name) is not None
    )
    return f"{type(value).__name__}({', '.join(told)})"


def _told(value: Any) -> str:
    if isinstance(value, np.ndarray) and value.size > FEW:
        return f"<{sizes_told(value.shape)} {value.dtype}>"
    if isinstance(value, np.ndarray):
        return np.array2string(value, precision=4, separator=", ").replace("\n", "")
    if isinstance(value, Mapping):
        return f"<{len(value)} entries>"
    return repr(value) if hasattr(value, "__dataclass_fields__") else shown(value)


def sizes_told(sizes: Any) -> str:
    """Write the sizes along the axes of something: ``96×96×60``."""
    return "×".join(f"{size:.3g}" if isinstance(size, float) else str(size) for size in sizes)
