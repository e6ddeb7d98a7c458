# SPDX-License-Identifier: Apache-2.0
"""Writing files atomically: a file is complete, or not there at all."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from eddymotion.errors import EddymotionError
from eddymotion.machine.disk import describe_disk_error
from eddymotion.machine.locks import refuse_if_lost
from eddymotion.machine.temporaries import temporary_name
from eddymotion.wording import ESCAPED

CANNOT_FLUSH = (errno.EINVAL, errno.ENOTSUP, errno.EROFS)
"""Errors of fsync on file systems that do not support it."""

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of the operating system for a name without a file."""

_waiting: ContextVar[list[tuple[Path, Path]] | None] = ContextVar("_waiting", default=None)
"""Temporary and final names of files that get their names together."""


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; empty if there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


@contextmanager
def together() -> Iterator[set[Path]]:
    """Give all files that are written in the block their final names at its end, or none of them.

    Yields the set of final names, which is filled by then.
    """
    waiting: list[tuple[Path, Path]] = []
    written: set[Path] = set()
    token = _waiting.set(waiting)
    try:
        yield written
        for _, path in waiting:
            refuse_name(path)
        while waiting:
            _rename(*waiting[0])
            written.add(waiting.pop(0)[1])
        for folder in {path.parent for path in written}:
            _flush_folder(folder)
    finally:
        _waiting.reset(token)
        for temporary, _ in waiting:
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it to `path` if the block succeeds.

    The content is flushed to the disk before the file gets its name.

    Raises
    ------
    EddymotionError
        If `path` is a folder, or its name too long.
    LockLostError
        If another run has taken over the outputs.
    """
    refuse_name(path)
    refuse_if_lost(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    suffix = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    temporary = path.with_name(temporary_name(suffix))
    waiting = _waiting.get()
    kept = False
    try:
        yield temporary
        _flush(temporary)
        if waiting is None:
            _rename(temporary, path)
            _flush_folder(path.parent)
        else:
            waiting.append((temporary, path))
            kept = True
    except OSError as error:
        if error.errno is not None:  # people know the final name
            error.filename = os.fspath(path)
        raise
    finally:
        if not kept:
            temporary.unlink(missing_ok=True)


def refuse_name(path: Path) -> None:
    """Raise if a file cannot have this name: it is too long, or that of a folder."""
    try:
        mode = os.stat(path).st_mode  # which Path.is_dir keeps to itself from Python 3.14 on
    except OSError as error:
        if error.errno in NOT_THERE:
            return
        raise EddymotionError(describe_disk_error(error)) from error
    if stat.S_ISDIR(mode):
        raise EddymotionError(
            f"{path}: is a folder, but a file of this name has to be written; move it away"
        )


def refuse_overwriting(outputs: Iterable[Path], inputs: Iterable[Path | None]) -> None:
    """Raise if a file that is to be written is an input, or cannot have its name."""
    given = {path.resolve() for path in inputs if path is not None}
    for path in outputs:
        refuse_name(path)
        if path.resolve() in given:
            raise EddymotionError(
                f"{path}: is an input and would be overwritten; write the outputs elsewhere"
            )


def _rename(temporary: Path, path: Path) -> None:
    refuse_if_lost(path)
    os.replace(temporary, path)


def _flush_folder(folder: Path) -> None:
    with suppress(OSError):  # some file systems cannot; the names are there anyway
        _flush(folder)


def _flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_FLUSH:
            raise
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write text whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors=ESCAPED)


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
