# SPDX-License-Identifier: Apache-2.0
"""Work on volumes in threads, with progress and reproducible sums."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Protocol, TypeVar

from threadpoolctl import ThreadpoolController

from eddymotion.machine.importing import importing

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress(Protocol):
    """Yields the items of `iterable` and shows the progress."""

    def __call__(
        self, iterable: Iterable[Result], description: str, total: int
    ) -> Iterable[Result]:
        """Iterate over `iterable`, of `total` items."""
        ...


def silent(iterable: Iterable[Result], description: str, total: int) -> Iterable[Result]:
    """Show nothing."""
    return iterable


def logged(logger: logging.Logger, level: int) -> Progress:
    """Show progress as one line in a log, at the end."""

    def lines(iterable: Iterable[Result], description: str, total: int) -> Iterator[Result]:
        started, done = time.perf_counter(), 0
        try:
            for item in iterable:
                done += 1
                yield item
        finally:  # some end before their last step
            seconds = time.perf_counter() - started
            logger.log(level, "%s: %d of %d in %.1f s", description, done, total, seconds)

    return lines


@dataclass(frozen=True)
class Compute:
    """How a result is computed. Of these, only the seed changes the result.

    Parameters
    ----------
    n_threads : int
        Volumes at a time.
    seed : int
        Of the random points.
    progress : callable
        A :class:`Progress`.
    """

    n_threads: int = 1
    seed: int = 0
    progress: Progress = silent


ALONE = Compute()
"""One thread, the first seed, no progress."""


class _OneBlasThread:
    """Limits BLAS to one thread in this process, from the first user to the last.

    Finding the loaded libraries takes milliseconds. Modules bring them, so that they are sought
    again only if other modules have been imported.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._limits: Any = None
        self._libraries: ThreadpoolController | None = None
        self._n_modules = 0

    def __enter__(self) -> None:
        with self._lock:
            if not self._users:
                self._limits = self._found().limit(limits=1)
            self._users += 1

    def _found(self) -> ThreadpoolController:
        n_modules = len(sys.modules)
        if self._libraries is None or n_modules != self._n_modules:
            self._libraries, self._n_modules = ThreadpoolController(), n_modules
        return self._libraries

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users and self._limits is not None:
                self._limits.restore_original_limits()
                self._limits = None


_one_blas_thread = _OneBlasThread()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keep BLAS to one thread: sums do not depend on the machine, and do not compete with ours."""
    with _one_blas_thread:
        yield


def import_beside(*names: str, then: Callable[[], object] | None = None) -> None:
    """Import modules in a thread, so that they are loaded by the time they are needed.

    No modules of the package itself, and none by `then`, which the thread calls afterwards: if two
    threads import modules that depend on each other, they see half-initialised ones. For the same
    reason a module is named as far as the work reaches for it: ``scipy.spatial``, not its parts.
    """

    def import_all() -> None:
        with importing, suppress(Exception):  # raised again where they are needed
            for name in names:
                import_module(name)
            if then is not None:
                then()

    threading.Thread(target=import_all, daemon=True).start()


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    n_threads: int = 1,
    progress: Progress = silent,
    description: str = "",
) -> list[Result]:
    """Map `function` over `items` in threads; results in the order of the items.

    The result does not depend on `n_threads`.
    """
    items = list(items)
    results = parallel_iterate(function, items, n_threads=n_threads)
    return list(progress(results, description, len(items)))


def parallel_iterate(
    function: Callable[[Item], Result], items: Iterable[Item], *, n_threads: int = 1
) -> Iterator[Result]:
    """Map as :func:`parallel_map`, but yield each result in turn.

    The threads run ahead of the consumer by two items each at most.
    """
    with one_blas_thread():
        if n_threads <= 1:
            yield from map(function, items)
            return
        waiting: deque[Future[Result]] = deque()
        with ThreadPoolExecutor(n_threads) as pool:
            try:
                for item in items:
                    waiting.append(pool.submit(function, item))
                    if len(waiting) > 2 * n_threads:
                        yield waiting.popleft().result()
                while waiting:
                    yield waiting.popleft().result()
            finally:  # the consumer may stop early
                for future in waiting:
                    future.cancel()
