# SPDX-License-Identifier: Apache-2.0
"""Events of a job for whoever watches it, in whatever process or on whatever host it runs.

A series has a file, to which its jobs append a line of JSON for each event. A file reaches all
hosts that a job reaches, and nothing waits for whoever reads it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

Item = TypeVar("Item")

EVERY_S = 0.2
"""Least time between two lines of progress."""

ENDING = ".jsonl"

WAITING = "waiting"
"""Stage of a run between its motion and those of the other runs of its session."""


class EventWriter(logging.Handler):
    """Appends to the file of a series: what is logged, which stage begins, how far it is.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, or the stage that begins."""
        if stage := getattr(record, "stage", None):
            self.write(stage=stage)
        else:
            self.write(level=record.levelno, text=record.getMessage())

    def write(self, **event: Any) -> None:
        """Append a line; if that fails, only the line is lost."""
        line = json.dumps({"at": round(time.time(), 2), **event})
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    def progress(self, iterable: Iterable[Item], description: str, total: int) -> Iterator[Item]:
        """Write how far an iteration is: a :class:`~eddymotion.machine.parallel.Progress`."""
        written = time.monotonic()
        self.write(step=description, done=0, total=total)
        for done, item in enumerate(iterable, start=1):
            yield item
            if time.monotonic() - written > EVERY_S:
                written = time.monotonic()
                self.write(step=description, done=done, total=total)


class EventReader:
    """Reads the files of a folder as they grow.

    Parameters
    ----------
    folder : Path
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: dict[Path, int] = {}

    def read(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yield the events since the last call: name of the file, and event."""
        for path in sorted(self.folder.glob(f"*{ENDING}")):
            for line in self._new_lines(path):
                with suppress(ValueError):  # half a line of a job that was killed
                    yield path.name.removesuffix(ENDING), json.loads(line)

    def _new_lines(self, path: Path) -> list[bytes]:
        begin = self._read.get(path, 0)
        try:
            if path.stat().st_size <= begin:
                return []
            with path.open("rb") as stream:
                stream.seek(begin)
                text, _, _ = stream.read().rpartition(b"\n")
        except OSError:  # of a shared file system, for a moment
            return []
        self._read[path] = begin + len(text) + bool(text)
        return text.splitlines()
