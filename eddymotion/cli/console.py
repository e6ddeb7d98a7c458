# SPDX-License-Identifier: Apache-2.0
"""What a command shows while it works: log lines, progress with time left."""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TypeVar

from eddymotion.errors import EddymotionError, EngineError, LockLostError
from eddymotion.names import ESCAPED
from eddymotion.parallel import Progress, logged
from eddymotion.running import disk_error_in_words, prove_writable
from eddymotion.temporaries import remove_leftovers

Item = TypeVar("Item")

log = logging.getLogger("eddymotion")

WRONG_PATH = (errno.ENAMETOOLONG, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES)
"""What the system says where another path helps."""


class _ConsoleHandler(logging.StreamHandler):
    """Writes above a progress bar, if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        from tqdm import tqdm

        tqdm.write(self.format(record), file=sys.stderr)


@contextmanager
def messages(
    verbosity: int, least: int = logging.INFO, pattern: str = "%(message)s"
) -> Iterator[None]:
    """Show what the package logs on the console: from `least` on, all of it with -v."""
    console = _ConsoleHandler()
    console.setLevel(logging.DEBUG if verbosity else least)
    console.setFormatter(logging.Formatter(pattern))
    with _handled_by(console):
        yield


@contextmanager
def logging_to(folder: Path, verbosity: int) -> Iterator[Path]:
    """Log to the console and to a new file in `folder`, whose path is yielded."""
    prepare_output_dir(folder)
    path = folder / f"eddymotion_{datetime.now():%Y%m%d-%H%M%S}_{os.getpid()}.log"
    file = logging.FileHandler(path, encoding="utf-8", errors=ESCAPED)
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    with messages(verbosity), _handled_by(file):
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


def progress_for_console() -> Progress:
    """Return a bar with time left on a terminal, plain log lines elsewhere."""
    return _bar if sys.stderr.isatty() else logged(log, logging.INFO)


def _bar(iterable: Iterable[Item], description: str, total: int) -> Iterable[Item]:
    from tqdm import tqdm

    shown = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}, {remaining} left"
    return tqdm(iterable, description, total, leave=False, dynamic_ncols=True, bar_format=shown)


def run(program: str, body: Callable[[], int | None]) -> int:
    """Run a command; turn what users can mend into one line and exit code 2.

    A command that returns nothing is done, exit code 0.
    A program that fails beneath it, outputs taken over by another run, and what the system
    refuses (a full disk) are one line as well, and exit code 1.
    """
    try:
        return body() or 0
    except (EngineError, LockLostError) as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 1
    except EddymotionError as error:
        print(f"{program}: error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        log.debug("the system refused", exc_info=True)
        print(f"{program}: error: {disk_error_in_words(error)}", file=sys.stderr)
        return 2 if error.errno in WRONG_PATH else 1
    except KeyboardInterrupt:
        print(f"{program}: interrupted; what is complete is kept", file=sys.stderr)
        return 130


def prepare_output_dir(folder: Path) -> None:
    """Make a folder, prove that it can be written to, and remove what killed runs left half-done.

    Raises
    ------
    EddymotionError
        If it cannot.
    """
    prove_writable(folder, "give another output folder")
    remove_leftovers(folder)


def refuse_output_in_input(bids_dir: Path, output_dir: Path) -> None:
    """Raise if the output would be mixed with the raw data (``derivatives/`` is its place)."""
    if not output_dir.is_relative_to(bids_dir):
        return
    inside = output_dir.relative_to(bids_dir).parts
    if len(inside) < 2 or inside[0] != "derivatives":
        raise EddymotionError(
            f"{output_dir}: lies inside the input {bids_dir}, which is never written to; give a "
            f"folder outside it, or {bids_dir / 'derivatives' / 'eddymotion'}"
        )
