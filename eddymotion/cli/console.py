# SPDX-License-Identifier: Apache-2.0
"""What a command shows while it runs: log lines, and progress with the time left."""

from __future__ import annotations

import atexit
import errno
import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from eddymotion.cli.ending import EndOnRequest
from eddymotion.cli.isolation import ignore_external_settings
from eddymotion.cli.results import tell
from eddymotion.cli.screen import Bar, Screen, is_terminal, wrapped
from eddymotion.cli.streams import protect_streams
from eddymotion.errors import EddymotionError, EngineError, LockLostError
from eddymotion.machine.disk import prove_writable
from eddymotion.machine.logs import Console, LogFile, warnings_in_log
from eddymotion.machine.parallel import Progress, logged, silent
from eddymotion.machine.temporaries import remove_stale_temporaries
from eddymotion.wording import duration, one_line

Item = TypeVar("Item")

log = logging.getLogger("eddymotion")

PROBLEMS = logging.WARNING

DRAWN_EVERY_S = 0.1

WRONG_PATH = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES)
"""Errors of the operating system that another path would avoid."""


class _ConsoleHandler(Console):
    """Writes to the console: results to the standard output, the rest above the bars."""

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(record, "is_shown", False):
            return
        try:
            write = tell if getattr(record, "is_result", False) else say
            write(self.format(record))
        except Exception:
            self.handleError(record)


def say(text: str) -> None:
    """Write to the standard error; on a terminal no word is broken."""
    if Screen.now is not None:
        Screen.now.say(text)
    else:
        print(wrapped(text) if is_terminal() else text, file=sys.stderr, flush=True)


@contextmanager
def messages(
    verbosity: int, least: int = logging.INFO, pattern: str = "%(message)s"
) -> Iterator[None]:
    """Show the package's log on the console, from the level `least` on.

    A positive `verbosity` (-v) shows all of it, a negative one (-q) problems only.
    """
    console = _ConsoleHandler()
    console.setLevel(logging.DEBUG if verbosity > 0 else max(least, verbosity < 0 and PROBLEMS))
    console.setFormatter(logging.Formatter(pattern))
    with _handled_by(console), warnings_in_log():
        yield


@contextmanager
def logging_to(folder: Path, verbosity: int) -> Iterator[Path]:
    """Log to the console and to a new file in `folder`, whose path is yielded."""
    prepare_output_dir(folder)
    path = folder / f"eddymotion_{datetime.now():%Y%m%d-%H%M%S}_{os.getpid()}.log"
    with messages(verbosity), _handled_by(LogFile(path)):
        yield path


@contextmanager
def _handled_by(handler: logging.Handler) -> Iterator[None]:
    before = log.level
    log.setLevel(logging.DEBUG)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.setLevel(before)
        log.removeHandler(handler)
        handler.close()


def progress_for_console(verbosity: int) -> Progress:
    """Return a bar with time left on a terminal, plain log lines elsewhere, nothing with -q."""
    if verbosity < 0:
        return silent
    return _bar if is_terminal() else logged(log, logging.INFO)


def _bar(iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
    with Screen() as screen:
        began = drawn = time.monotonic()
        for done, item in enumerate(iterable, start=1):
            yield item
            now = time.monotonic()
            if now - drawn > DRAWN_EVERY_S or done == 1:
                left = (now - began) * (total - done) / done
                share = done / max(total, 1)
                screen.draw([Bar("", description, "", share, f"{duration(left)} left")])
                drawn = now


def run(program: str, body: Callable[[], int | None]) -> int:
    """Run a command and return its exit code: 0 on success, 2 for an error of the user.

    Errors are reported in one line. Exit code 1 stands for an external program that failed,
    outputs taken over by another run, and what the operating system refuses, such as writing to a
    full disk or more memory; a request to stop gives 128 plus the number of the signal.

    Memory is left to the operating system when the process ends: Python's last garbage collection
    would take half a second.
    """
    atexit.register(gc.freeze)
    with protect_streams() as streams:
        return streams.code(program, _run_to_end(program, body))


def _run_to_end(program: str, body: Callable[[], int | None]) -> int:
    ending = EndOnRequest(program)
    try:
        with ending:
            ignore_external_settings()
            code, message = body() or 0, ""
    except KeyboardInterrupt:
        code, message = ending.code, ending.message
    except BaseException as error:
        failed = _user_error(error)
        if failed is None and ending.received is None:
            raise
        code, message = failed or (1, "")
        message = f"{program}: error: {one_line(message)}"
    if ending.received is not None:  # whatever error it may have caused
        code, message = ending.code, ending.message
    if message:
        say(message)
    return code


def _user_error(error: BaseException) -> tuple[int, str] | None:
    """Return exit code and message of an error that needs no traceback, None for others."""
    if isinstance(error, EddymotionError):
        return 1 if isinstance(error, (EngineError, LockLostError)) else 2, str(error)
    if isinstance(error, (OSError, MemoryError)):
        from eddymotion.pipeline.series_job import reason_of

        log.debug("the operating system refused", exc_info=True)
        wrong = isinstance(error, OSError) and error.errno in WRONG_PATH
        return 2 if wrong else 1, reason_of(error)
    return None


def prepare_output_dir(folder: Path) -> None:
    """Make a folder, prove that it is writable, and remove half-written files of killed runs.

    Raises
    ------
    EddymotionError
        If it cannot.
    """
    prove_writable(folder, "give another output folder")
    remove_stale_temporaries(folder)


def refuse_output_in_input(bids_dir: Path, output_dir: Path) -> None:
    """Raise if the output would be mixed with the raw data; ``derivatives/`` is allowed."""
    if not output_dir.is_relative_to(bids_dir):
        return
    inside = output_dir.relative_to(bids_dir).parts
    if len(inside) < 2 or inside[0] != "derivatives":
        raise EddymotionError(
            f"{output_dir}: lies inside the input {bids_dir}, where nothing is written; give a "
            f"folder outside it, or {bids_dir / 'derivatives' / 'eddymotion'}"
        )
