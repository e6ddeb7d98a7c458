# SPDX-License-Identifier: Apache-2.0
"""One run at a time writes the outputs of a participant.

A lock is a file that exists while a run holds it. It names its holder, and a thread renews its
time of modification as a sign of life. A lock is stale, and taken over, if

- its holder was a process of this very machine (same boot, same process namespace) that no longer
  exists (the lock of an existing process is never taken over, however long it sleeps), or
- its holder cannot be checked (another host, another container), it has not been renewed for
  :data:`STALE_AFTER_S` by the clock of the file system, and is not renewed while we watch.

A holder of the second kind may have been asleep. Each writer therefore first checks whether the
lock is still its own (:func:`refuse_if_lost`), in whatever process (:func:`held`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from eddymotion.errors import EddymotionError, LockLostError
from eddymotion.machine.processes import Process, is_here, machine
from eddymotion.machine.temporaries import temporary_name

log = logging.getLogger(__name__)

RENEW_EVERY_S = 20.0
STALE_AFTER_S = 180.0

SUFFIX = ".lock"


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
    token : str
        Tells this lock from others of the same process.
    """

    host: str
    pid: int
    machine: str
    started: str
    since: str
    token: str = ""

    @classmethod
    def this_process(cls) -> Holder:
        """Describe ourselves."""
        own = Process.this()
        since, token = time.strftime("%Y-%m-%d %H:%M:%S"), uuid.uuid4().hex
        return cls(socket.gethostname(), own.pid, machine(), own.started, since, token)

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"

    @property
    def is_alive(self) -> bool | None:
        """Whether it lives; None if that cannot be known from here."""
        if not is_here(self.host, self.machine):
            return None
        return Process(self.pid, self.started).is_alive


@dataclass(frozen=True)
class Lock:
    """A lock that was taken.

    Parameters
    ----------
    path : Path
        ``FOLDER/.NAME.lock``: guards what is called NAME in FOLDER or its ``figures``, or begins
        with NAME and one of ``. - _``, and all below that.
    holder : Holder
        Of the run that took it.
    """

    path: Path
    holder: Holder

    @property
    def name(self) -> str:
        """How the names of what it guards begin."""
        return self.path.name.removeprefix(".").removesuffix(SUFFIX)

    def guards(self, path: Path) -> bool:
        """Whether a file is one of those that only the holder may write."""
        try:
            inside = Path(os.path.abspath(path)).relative_to(os.path.abspath(self.path.parent))
        except ValueError:
            return False
        parts = inside.parts[1:] if inside.parts[:1] == ("figures",) else inside.parts
        first = parts[0] if parts else ""
        return first.startswith(self.name) and first[len(self.name) :][:1] in ("", *".-_")

    @property
    def loss(self) -> str:
        """Say who has taken the lock, or that it is gone; empty while it is the holder's."""
        content = _read(self.path)
        if content == "":  # cannot be read just now
            return ""
        found = _holder_of(content) if content is not None else None
        if found == self.holder:
            return ""
        who = f"being written by {found} now" if found else "the lock file was removed"
        return (
            f"{self.path.parent / self.name}: this run has lost its lock, perhaps while it was "
            f"suspended ({who}); it stops writing. Run again when no other run works there"
        )


_held: set[Lock] = set()
"""Locks under which this process writes."""


@contextmanager
def held(locks: Sequence[Lock]) -> Iterator[None]:
    """Write under locks that this process, or the one that started it, has taken."""
    added = set(locks) - _held
    _held.update(added)
    try:
        yield
    finally:
        _held.difference_update(added)


def refuse_if_lost(path: Path) -> None:
    """Make sure that a file may still be written.

    Raises
    ------
    LockLostError
        If the lock that guards it is somebody else's by now, or is gone.
    """
    for lock in tuple(_held):
        if lock.guards(path) and (loss := lock.loss):
            raise LockLostError(loss)


@contextmanager
def locked(paths: Sequence[Path], what: str = "these outputs") -> Iterator[tuple[Lock, ...]]:
    """Hold locks, all or none.

    Parameters
    ----------
    paths : sequence of Path
        The lock files; their folders are made if needed.
    what : str
        What they guard, for the message.

    Yields
    ------
    tuple of Lock
        For those to whom the work is handed: see :func:`held`.

    Raises
    ------
    EddymotionError
        If another run holds one of them.
    """
    with ExitStack() as stack:
        locks = []
        for path in paths:
            locks.append(_take(path, Holder.this_process(), what))
            stack.callback(_give_back, locks[-1])
        stop = threading.Event()
        thread = threading.Thread(target=_renew, args=(locks, stop), daemon=True)
        thread.start()
        stack.callback(thread.join, 1.0)
        stack.callback(stop.set)
        stack.enter_context(held(locks))
        yield tuple(locks)


def _take(path: Path, own: Holder, what: str) -> Lock:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise EddymotionError(f"{path}: a folder with the name of the lock file; remove it")
    for _ in range(10):
        if _create(path, json.dumps(asdict(own))):
            return Lock(path, own)
        content = _read(path)
        if content is None:  # given back just now
            continue
        holder = _holder_of(content)
        alive = holder.is_alive if holder else None
        if alive or (alive is None and not _is_abandoned(path)):
            raise EddymotionError(
                f"{what}: being written by {holder or 'another run'}; wait for it, or give "
                f"another output folder. If no such run exists any more, remove {path}"
            )
        _break(path, content)
    raise EddymotionError(f"{path}: several runs requested this lock at the same time; try again")


def _create(path: Path, content: str) -> bool:
    """Create a file with its content at once, unless there is one."""
    temporary = _beside(path)
    try:
        temporary.write_text(content, encoding="utf-8")
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
    aside = _beside(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:  # another run was faster
        return
    found = _read(aside)
    if found != content and found is not None:
        _create(path, found)
    aside.unlink(missing_ok=True)


def _beside(path: Path) -> Path:
    return path.with_name(temporary_name(SUFFIX))


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        return ""


def _holder_of(content: str) -> Holder | None:
    try:
        holder = Holder(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None
    words = (holder.host, holder.machine, holder.started, holder.since, holder.token)
    is_one = isinstance(holder.pid, int) and holder.pid > 0
    return holder if is_one and all(isinstance(word, str) for word in words) else None


def _is_abandoned(path: Path) -> bool:
    """Whether a lock has not been renewed for long, by the file system's own clock.

    The clock may have been set, or all of a machine asleep: a lock that looks old is watched for
    as long as a holder takes to renew it.
    """
    try:
        before = path.stat().st_mtime_ns
        if _now_at(path) - before / 1e9 <= STALE_AFTER_S:
            return False
        log.warning("%s: not renewed for long; watched for %.0f s", path, 1.5 * RENEW_EVERY_S)
        ends = time.monotonic() + 1.5 * RENEW_EVERY_S
        while time.monotonic() < ends:
            time.sleep(min(0.5, RENEW_EVERY_S / 4))
            if path.stat().st_mtime_ns != before:
                return False
    except FileNotFoundError:  # given back just now
        pass
    return True


def _now_at(path: Path) -> float:
    """Return the time that the file system of a path gives to what is written now, s."""
    probe = _beside(path)
    try:
        probe.touch()
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _renew(locks: Sequence[Lock], stop: threading.Event) -> None:
    while not stop.wait(RENEW_EVERY_S):
        for lock in locks:
            with suppress(OSError):  # reported to whoever writes next
                if not lock.loss:
                    os.utime(lock.path)


def _give_back(lock: Lock) -> None:
    if _holder_of(_read(lock.path) or "") == lock.holder:
        lock.path.unlink(missing_ok=True)
