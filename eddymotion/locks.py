# SPDX-License-Identifier: Apache-2.0
"""One run at a time writes the outputs of a participant.

A lock is a file that exists while a run holds it. It says who holds it, and its time of
modification says that the holder lives: a thread renews it. A lock is stale, and taken over, when

- its holder was a process of this very machine (host, boot and process namespace are the same)
  that no longer exists, or
- it has not been renewed for :data:`STALE_AFTER_S`, by the clock of the file system: that is all
  that can be known of a process on another host or in another container.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from eddymotion.errors import EddymotionError

RENEW_EVERY_S = 20.0
STALE_AFTER_S = 180.0


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Parameters
    ----------
    host : str
    pid : int
    machine : str
        Boot and process namespace: where `pid` means something.
    started : str
        When the process started, by the kernel's clock; tells it from a later one with its number.
    since : str
        When it took the lock, for people.
    """

    host: str
    pid: int
    machine: str
    started: str
    since: str

    @classmethod
    def this_process(cls) -> Holder:
        """Describe ourselves."""
        pid = os.getpid()
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        return cls(socket.gethostname(), pid, _machine(), _start_of(pid), since)

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended; False if that cannot be known from here."""
        here = (self.host, self.machine) == (socket.gethostname(), _machine())
        if not here:
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # somebody else's
            pass
        return self.started != _start_of(self.pid)


def _machine() -> str:
    """Name the space in which a process number is unique, as well as the system tells."""
    parts = []
    for path in ("/proc/sys/kernel/random/boot_id", "/proc/self/ns/pid"):
        try:
            is_link = os.path.islink(path)
            parts.append(os.readlink(path) if is_link else Path(path).read_text().strip())
        except OSError:
            parts.append("")
    return " ".join(parts).strip()


def _start_of(pid: int) -> str:
    try:
        # the name of the program, in parentheses, may hold anything
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


@contextmanager
def locked(paths: Sequence[Path], what: str = "these outputs") -> Iterator[None]:
    """Hold locks, all or none.

    Parameters
    ----------
    paths : sequence of Path
        The lock files; their folders are made if needed.
    what : str
        What they guard, for the message.

    Raises
    ------
    EddymotionError
        If another run holds one of them.
    """
    own = Holder.this_process()
    with ExitStack() as stack:
        for path in paths:
            _take(path, own, what)
            stack.callback(_give_back, path, own)
        stop = threading.Event()
        thread = threading.Thread(target=_renew, args=(paths, stop), daemon=True)
        thread.start()
        stack.callback(thread.join, 1.0)
        stack.callback(stop.set)
        yield


def _take(path: Path, own: Holder, what: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    for _ in range(10):
        if _create(path, json.dumps(asdict(own))):
            return
        content = _read(path)
        if content is None:  # given back just now
            continue
        holder = _holder_of(content)
        if not ((holder is not None and holder.is_gone) or _is_old(path)):
            who = f"process {holder.pid} on {holder.host}" if holder else "another run"
            since = f" since {holder.since}" if holder else ""
            raise EddymotionError(
                f"{what}: being written by {who}{since}; wait for it, or give another output "
                f"folder. If no such run exists any more, remove {path}"
            )
        _break(path, content)
    raise EddymotionError(f"{path}: several runs take this lock at the same time; try again")


def _create(path: Path, content: str) -> bool:
    """Create a file with its content at once, unless there is one."""
    temporary = path.with_name(f".{uuid.uuid4().hex[:12]}.lock")
    temporary.write_text(content, encoding="utf-8")
    try:
        os.link(temporary, path)
        return True
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links
        try:
            with path.open("x", encoding="utf-8") as stream:
                stream.write(content)
            return True
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)


def _break(path: Path, content: str) -> None:
    """Remove a stale lock, but not the one that another run may have put in its place."""
    aside = path.with_name(f".{uuid.uuid4().hex[:12]}.lock")
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another run was faster
        return
    found = _read(aside)
    if found != content and found is not None:
        _create(path, found)
    aside.unlink(missing_ok=True)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""


def _holder_of(content: str) -> Holder | None:
    try:
        return Holder(**json.loads(content))
    except (ValueError, TypeError):
        return None


def _is_old(path: Path) -> bool:
    """Whether a lock has not been renewed for long, by the file system's own clock."""
    probe = path.with_name(f".{uuid.uuid4().hex[:12]}.lock")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime > STALE_AFTER_S
    except FileNotFoundError:  # given back just now
        return True
    finally:
        probe.unlink(missing_ok=True)


def _renew(paths: Sequence[Path], stop: threading.Event) -> None:
    while not stop.wait(RENEW_EVERY_S):
        for path in paths:
            with suppress(OSError):  # removed by hand: nothing to renew
                os.utime(path)


def _give_back(path: Path, own: Holder) -> None:
    if _holder_of(_read(path) or "") == own:
        path.unlink(missing_ok=True)
