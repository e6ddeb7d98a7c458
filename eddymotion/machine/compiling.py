# SPDX-License-Identifier: Apache-2.0
"""Compile inner loops with Numba and keep their machine code for the next run.

Importing Numba takes half a second. It is therefore imported when the first kernel is called, or
by :func:`get_ready` in parallel with other work.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import update_wrapper
from pathlib import Path
from typing import Any

_FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}  # all that keeps NaN meaningful


class Kernel:
    """A function that is compiled when it is called for the first time, by Python or by another.

    Parameters
    ----------
    function : callable
    compiler : callable
        Makes of it what Numba calls.
    """

    def __init__(self, function: Callable, compiler: Callable[[Callable], Any]) -> None:
        update_wrapper(self, function)
        self._function, self._compiler, self._made = function, compiler, None

    def __call__(self, *arguments: Any) -> Any:
        """Call what Numba has made of it."""
        return (self._made or self.made)(*arguments)

    @property
    def made(self) -> Any:
        """What Numba has made of it: a dispatcher, or an intrinsic."""
        if self._made is None:
            from numba.core.compiler_lock import global_compiler_lock

            with global_compiler_lock:  # under which Numba asks for others
                if self._made is None:
                    self._made = self._compiler(self._function)
        return self._made

    @property
    def _numba_type_(self) -> Any:
        """What Numba takes it for where another kernel names it."""
        from numba.core.registry import cpu_target

        return cpu_target.typing_context.resolve_value_type(self.made)


def compiled(function: Callable) -> Kernel:
    """Compile `function`, keeping the machine code on disk where some folder allows it.

    Where ``NUMBA_CACHE_DIR`` is a folder that cannot be written, as in a container, the code in it
    is used and nothing is saved. Numba alone would pass such a folder by and compile in every run.
    """
    return Kernel(function, _compiled)


def emitted(function: Callable) -> Kernel:
    """Let kernels call what `function` emits, a :func:`numba.extending.intrinsic`."""
    return Kernel(function, _intrinsic)


def get_ready() -> None:
    """Have Numba imported, and what it needs to load a kernel."""
    from numba.core.compiler_lock import global_compiler_lock
    from numba.core.registry import cpu_target
    from numba.core.runtime import rtsys

    with global_compiler_lock:
        rtsys.initialize(cpu_target.target_context)


def cache_folder(kernel: Kernel) -> Path | None:
    """Return where the machine code of a kernel is kept; None where no folder can be written."""
    path = kernel.made._cache.cache_path
    return None if path is None else Path(path)


def _intrinsic(function: Callable) -> Any:
    from numba.core.registry import cpu_target
    from numba.extending import intrinsic

    made = intrinsic(function)
    cpu_target.target_context.refresh()  # Numba may have looked for intrinsics before
    return made


def _compiled(function: Callable) -> Any:
    import numba
    from numba.core import config

    options: dict[str, Any] = {"nogil": True, "fastmath": _FASTMATH}
    if is_read_only(config.CACHE_DIR):  # type: ignore[attr-defined]
        dispatcher = numba.njit(**options)(function)
        dispatcher._cache = _read_only_cache(function)
        return _loaded_at_once(dispatcher)
    try:
        return _loaded_at_once(numba.njit(cache=True, **options)(function))
    except RuntimeError:  # no writable folder for the cache
        return numba.njit(**options)(function)


def _loaded_at_once(dispatcher: Any) -> Any:
    """Load machine code without what only compiling needs, a third of a second of imports.

    Compile anew where the cache is damaged, and go on where nothing can be written to it.
    """
    cache = dispatcher._cache
    save = cache.save_overload

    def load_overload(signature: Any, context: Any) -> Any:
        get_ready()
        try:
            return cache._load_overload(signature, context)
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
    from numba.core import caching

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
