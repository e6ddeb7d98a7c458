# SPDX-License-Identifier: Apache-2.0
"""Log files whose errors never stop the work that they report."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TextIO

log = logging.getLogger("eddymotion")

NOTICE = (logging.INFO + logging.WARNING) // 2
"""Level of what a user wants to know of one series among many, and is no warning."""

logging.addLevelName(NOTICE, "NOTICE")


class LogFile(logging.FileHandler):
    """Writes to a file from the first line on; says once when that fails, and goes on.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
        self._failed = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        try:
            super().emit(record)
        except OSError:  # it cannot be opened
            self.handleError(record)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say once that lines are missing."""
        error = sys.exc_info()[1]
        if not self._failed:
            self._failed = True
            why = getattr(error, "strerror", None) or error
            log.warning("%s: the log is incomplete (%s)", self.baseFilename, why)

    def close(self) -> None:
        """Close the file, whether or not the rest can be written."""
        with suppress(OSError):
            super().close()


class Console(logging.StreamHandler):
    """Writes to the standard error, or, where nobody reads that any more, nowhere."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Go on."""


@contextmanager
def warnings_in_log() -> Iterator[None]:
    """Log what Python code warns of: on a terminal it would fall between the bars."""
    before = warnings.showwarning
    warnings.showwarning = _log_warning
    try:
        yield
    finally:
        warnings.showwarning = before


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    text = " ".join(str(message).split())
    log.debug("%s: %s (%s:%d)", category.__name__, text, filename, lineno)
