# SPDX-License-Identifier: Apache-2.0
"""Values that a notebook shows as pictures, without knowing how they are drawn."""

from __future__ import annotations

from importlib import import_module


class HtmlValue:
    """Base of values that :func:`eddymotion.display.html_of` draws, loaded when first shown."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return import_module("eddymotion.display").html_of(self)
