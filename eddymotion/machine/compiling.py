# SPDX-License-Identifier: Apache-2.0
"""Compile inner loops with Numba and keep their machine code for the next run."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numba
from numba.core import caching, config

_FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}  # all that keeps NaN meaningful


def compiled(function: Callable) -> Callable:
    """Compile `function`, keeping the machine code on disk where some folder allows it.

    Where ``NUMBA_CACHE_DIR`` is a folder that cannot be written, as in a container, the code in it
    is used and nothing is saved. Numba alone would pass such a folder by and compile in every run.
    """
    options: dict[str, Any] = {"nogil": True, "fastmath": _FASTMATH}
    if is_read_only(config.CACHE_DIR):  # type: ignore[attr-defined]
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = _read_only_cache(function)
        return dispatcher
    try:
        return _tolerate_damaged_cache(numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(**options)(function)


def _tolerate_damaged_cache(dispatcher: Any) -> Any:
    """Compile anew where the cache is damaged, and go on where nothing can be written to it."""
    cache = dispatcher._cache
    load, save = cache.load_overload, cache.save_overload

    def load_overload(*given: Any) -> Any:
        try:
            return load(*given)
        except Exception:  # whatever unpickling half a file raises
            return None

    def save_overload(*given: Any) -> None:
        with suppress(Exception):
            save(*given)

    cache.load_overload, cache.save_overload = load_overload, save_overload
    return dispatcher


def is_read_only(folder: str) -> bool:
    """Whether a folder exists and nothing can be written to it."""
    return bool(folder) and os.path.isdir(folder) and not os.access(folder, os.W_OK)


def _read_only_cache(function: Callable) -> Any:
    """Return the cache of a function in ``NUMBA_CACHE_DIR``, which is read and never written."""
    files: Any = caching.FunctionCache._impl_class
    folder: Any = files._locator_classes[0]  # the one of NUMBA_CACHE_DIR

    class Folder(folder):
        def ensure_cache_path(self) -> None:
            """Numba would try to write a file."""

    class Files(files):
        _locator_classes = [Folder]  # noqa: RUF012

        def check_cachable(self, data: Any) -> bool:
            """Whether something compiled now is saved."""
            return False

    class Cache(caching.FunctionCache):
        _impl_class = Files

    return Cache(function)
