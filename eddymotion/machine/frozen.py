# SPDX-License-Identifier: Apache-2.0
"""Frozen values: arrays that nobody can change, and what is computed from a value once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from eddymotion.errors import EddymotionError

Value = TypeVar("Value")
Result = TypeVar("Result")
Options = ParamSpec("Options")


def once_per_value(
    function: Callable[Concatenate[Value, Options], Result],
) -> Callable[Concatenate[Value, Options], Result]:
    """Keep what a function returns for a frozen value, as long as that value lives.

    The result must depend on the first argument alone.
    """
    known: WeakKeyDictionary[Value, Result] = WeakKeyDictionary()

    @wraps(function)
    def remembered(value: Value, *args: Options.args, **options: Options.kwargs) -> Result:
        if value not in known:
            known[value] = function(value, *args, **options)
        return known[value]

    return remembered


def freeze(owner: object, who: str, dtype: type | None = float, **shapes: str) -> None:
    """Replace the arrays of a frozen dataclass by copies that nobody can change.

    Parameters
    ----------
    owner : object
        From whose ``__post_init__`` it is called.
    who : str
        What messages call it.
    dtype : type, optional
        Of the copies; that which they have when not given.
    **shapes : str
        Name of an array → sizes of its axes, such as ``"N 4 4"``; a letter is any size, the same
        in all of them. One that is None stays so.

    Raises
    ------
    EddymotionError
        If an array has another shape.
    """
    sizes: dict[str, int] = {}
    for name, shape in shapes.items():
        if getattr(owner, name) is None:
            continue
        array, axes = np.array(getattr(owner, name), dtype), shape.split()
        expected = [int(axis) if axis.isdigit() else sizes.get(axis, axis) for axis in axes]
        if len(axes) != array.ndim or any(
            size != wanted
            for size, wanted in zip(array.shape, expected, strict=True)
            if isinstance(wanted, int)
        ):
            raise EddymotionError(
                f"{who}: {name.replace('_', ' ')} of shape {array.shape}, expected "
                f"({', '.join(map(str, expected))})"
            )
        sizes |= dict(zip(axes, array.shape, strict=True))
        array.flags.writeable = False
        object.__setattr__(owner, name, array)


def selected(value: Value, chosen: np.ndarray | slice, *names: str) -> Value:
    """Keep some of the entries, such as volumes, of those parts of a dataclass that have several.

    Parameters
    ----------
    value : dataclass
    chosen : index array or slice
    *names : str
        Of its parts: arrays, or values that have a method ``select`` of their own. One that is
        None stays so.
    """

    def some(part: Any) -> Any:
        return part[chosen] if isinstance(part, np.ndarray) else part.select(chosen)

    parts = {name: getattr(value, name) for name in names}
    kept = {name: some(part) for name, part in parts.items() if part is not None}
    return replace(value, **kept)  # type: ignore[type-var]
