# SPDX-License-Identifier: Apache-2.0
"""Decompressing an image while modules are imported.

A command knows which image it will read half a second before it can, since importing modules takes
so long, on one processor. Meanwhile a thread decompresses the image, some way ahead of its reader;
the decompressor releases the interpreter.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, Queue
from threading import Thread

from isal import igzip

BLOCK = 2**20
"""Bytes that are decompressed at a time."""

BLOCKS_AHEAD = 128
"""Blocks at most that nobody has read yet."""

GZIP = b"\x1f\x8b"

_begun: dict[Path, DecompressedAhead] = {}


class DecompressedAhead(io.RawIOBase):
    """What a gzipped file holds; a thread decompresses it from now on.

    Parameters
    ----------
    path : Path
    """

    def __init__(self, path: Path) -> None:
        self._blocks: Queue[bytes | Exception] = Queue(BLOCKS_AHEAD)
        self._rest, self._position = memoryview(b""), 0
        self._thread = Thread(target=self._decompress, args=(path,), daemon=True)
        self._thread.start()

    def readable(self) -> bool:
        """Return that it is."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill a part of a buffer; nothing at the end of the file."""
        if not self._rest:
            self._rest = self._next()
        n = min(len(buffer), len(self._rest))
        buffer[:n], self._rest = self._rest[:n], self._rest[n:]
        self._position += n
        return n

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def close(self) -> None:
        """End the thread; nothing can be read any more."""
        super().close()
        while self._thread.is_alive():  # it may wait for room
            self._drop()
            self._thread.join(0.01)
        self._drop()

    def _drop(self) -> None:
        while True:
            try:
                self._blocks.get_nowait()
            except Empty:
                return

    def _next(self) -> memoryview:
        found = self._blocks.get()
        if isinstance(found, Exception) or not found:
            self._blocks.put(found)  # who asks again hears the same
        if isinstance(found, Exception):
            raise found
        return memoryview(found)

    def _decompress(self, path: Path) -> None:
        try:
            with igzip.open(path, "rb") as stream:
                while not self.closed and (block := stream.read(BLOCK)):
                    self._blocks.put(block)
            self._blocks.put(b"")
        except Exception as error:
            self._blocks.put(error)


@contextmanager
def decompressing_ahead(*paths: Path) -> Iterator[None]:
    """Have those of some files that are gzipped decompressed, for who opens them inside."""
    begun = {path: DecompressedAhead(path) for path in paths if is_gzipped(path)}
    _begun.update(begun)
    try:
        yield
    finally:
        for path, stream in begun.items():
            _begun.pop(path, None)
            stream.close()


def is_gzipped(path: Path) -> bool:
    """Whether the content of a file is gzipped, whatever its name; not if it cannot be read."""
    try:
        with path.open("rb") as stream:
            return stream.read(2) == GZIP
    except OSError:
        return False


def begun(path: Path) -> io.BufferedReader | None:
    """Hand over, once, what :func:`decompressing_ahead` has begun with."""
    stream = _begun.pop(path, None)
    return None if stream is None else io.BufferedReader(stream, BLOCK)
