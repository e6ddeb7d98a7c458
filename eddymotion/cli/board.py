# SPDX-License-Identifier: Apache-2.0
"""The board of a run on the terminal: the progress of each series, and how it ended."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eddymotion.cli.screen import Bar, Screen, is_terminal
from eddymotion.io.writing import read_json
from eddymotion.machine.logs import NOTICE, Console
from eddymotion.machine.parallel import Progress
from eddymotion.pipeline.events import WAITING, EventReader, EventWriter
from eddymotion.wording import duration

if TYPE_CHECKING:
    from eddymotion.pipeline.series_job import Page

log = logging.getLogger("eddymotion")

LOOK_EVERY_S = 0.25

WORDS = {
    "motion": "estimating", "runs": "placing runs", "quality": "judging",
    "output space": "registering", "resampling and writing": "resampling", "pictures": "drawing",
}  # fmt: skip
"""Stage → what is said of it, where that is another word."""

USUAL = {
    "reading": 0.0, "motion": 0.03, "motion/filtering for 10 mm": 0.07,
    "motion/filtering for 5 mm": 0.09, "motion/filtering for 12000 points": 0.11,
    "motion/motion of b>0, 40000 points": 0.18, "runs": 0.42, "quality": 0.42,
    "output space": 0.47, "resampling and writing": 0.47, "pictures": 0.87,
}  # fmt: skip
"""Share of the work that is done when something begins: means of three acquired series."""

ALMOST = 0.98
"""Share that is shown as done at most while a series is worked on."""

KNOWN_FROM = 0.05
"""Share of the work from which the time left follows from the time taken."""

TRUSTED_FROM = 0.5
"""Share of the work from which it does so alone, whatever the series before took."""

OVERRUN = 0.25
"""A part that takes longer than foreseen is expected to last longer by this share of its time."""


@dataclass(frozen=True)
class Timetable:
    """When the parts of a correction begin, as shares of the whole.

    Parameters
    ----------
    shares : mapping
        Stage, or stage and step → share of the work that is done when it begins.
    seconds : float, optional
        How long the whole took.
    n_series : int
        Over how many series both are means.
    """

    shares: Mapping[str, float]
    seconds: float | None = None
    n_series: int = 0

    def next_share(self, share: float) -> float:
        """Share of the work that is done when the next part begins."""
        return min((other for other in self.shares.values() if other > share), default=ALMOST)

    def with_series(self, begun: Mapping[str, float], seconds: float) -> Timetable:
        """Learn from a series: part → seconds from its begin on, and how long it took."""
        n = self.n_series + 1
        shares = {part: at / seconds for part, at in begun.items()}
        if self.seconds is None:
            return Timetable(shares, seconds, n)
        for part, before in self.shares.items():
            shares[part] = before + (shares.get(part, before) - before) / n
        return Timetable(shares, self.seconds + (seconds - self.seconds) / n, n)

    def whole(self, share: float, taken: float) -> float:
        """Foresee how long a series takes of which a share is done."""
        if self.seconds is None:
            return taken / share
        trust = min(1.0, share / TRUSTED_FROM)
        return self.seconds + trust * (taken / max(share, KNOWN_FROM) - self.seconds)


@dataclass
class Line:
    """A series, as far as is known.

    Parameters
    ----------
    number : int
        From one on.
    name : str
        Without ``_dwi.nii.gz``.
    began, since : float, optional
        When it began, and its present part.
    stage : str
    share : float
        Of the work that was done when the present part began.
    within : float, optional
        Share of the present part that is done; by the clock where that is not reported.
    seconds : float, optional
        How long it took, if it has ended.
    failure : str
        Why it failed.
    begun : dict
        Part → when it began.
    """

    number: int
    name: str
    began: float | None = None
    since: float = 0.0
    stage: str = ""
    share: float = 0.0
    within: float | None = None
    seconds: float | None = None
    failure: str = ""
    begun: dict[str, float] = field(default_factory=dict)

    @property
    def is_running(self) -> bool:
        """Whether it is being corrected."""
        return self.began is not None and self.seconds is None

    def begin(self, part: str, at: float, timetable: Timetable) -> None:
        """Note that a part begins."""
        self.begun.setdefault(part, at)
        if timetable.shares.get(part, -1.0) > self.share or part == "reading":
            self.share, self.since, self.within = timetable.shares[part], at, None

    def go_on(self, at: float) -> None:
        """Count the time that it waited for others as if it had begun later."""
        waited = at - self.begun.pop(WAITING, at)
        self.began, self.since = (self.began or at) + waited, self.since + waited
        self.begun = {part: begun + waited for part, begun in self.begun.items()}

    def done(self, now: float, timetable: Timetable) -> float:
        """Return the share of the work that is done."""
        if self.began is None or self.stage == WAITING:
            return self.share
        end = timetable.next_share(self.share)
        if self.within is not None:
            return self.share + self.within * (end - self.share)
        if self.since <= self.began:
            return self.share
        pace = self.share / (self.since - self.began)
        return min(self.share + pace * (now - self.since), end)

    def left(self, now: float, timetable: Timetable) -> float | None:
        """Return the seconds left, if they can be estimated."""
        if self.began is None or self.stage == WAITING:
            return None
        if self.within is not None:
            share = self.done(now, timetable)
            return timetable.whole(share, now - self.began) * (1 - share)
        if timetable.seconds is None and (self.share < KNOWN_FROM or self.since <= self.began):
            return None
        whole, lasts = timetable.whole(self.share, self.since - self.began), now - self.since
        after = 1 - timetable.next_share(self.share)
        return max(whole * (1 - self.share) - lasts, whole * after + OVERRUN * lasts)


class Board:
    """What is shown of the series of a run.

    Parameters
    ----------
    names : sequence of str
        Of the series, in order.
    verbosity : int
        From one on all messages are shown; below zero nothing but problems.
    """

    def __init__(self, names: Sequence[str], verbosity: int = 0) -> None:
        self.lines = {name: Line(number + 1, name) for number, name in enumerate(names)}
        self.verbosity = verbosity
        self.timetable = Timetable(USUAL)
        self.warned: set[tuple[str, str]] = set()
        self.screen = Screen() if verbosity >= 0 and is_terminal() else None

    def update(self, name: str, event: Mapping[str, Any]) -> None:
        """Take in an event of a series."""
        line, at = self.lines[name], event["at"]
        if "text" in event:
            self._message(name, event["level"], event["text"])
        elif "stage" in event:
            self._stage(line, event["stage"], at)
        elif "step" in event:
            line.begin(f"{line.stage}/{event['step']}", at, self.timetable)
            if line.stage != "motion" and event["total"]:
                line.within = max(line.within or 0.0, event["done"] / event["total"])
        elif "outcome" in event:
            self._outcome(line, event["outcome"], at)

    def _message(self, name: str, level: int, text: str) -> None:
        if level >= logging.WARNING and (name, text) in self.warned:
            return  # the series is read more than once
        self.warned.add((name, text))
        if len(self.lines) > 1 and not text.startswith(name):
            text = f"{name}: {text}"
        least = logging.DEBUG if self.verbosity > 0 else NOTICE
        if level >= (logging.WARNING if self.verbosity < 0 else least):
            self.say(text, "yellow" if level >= logging.WARNING else "")

    def _stage(self, line: Line, stage: str, at: float) -> None:
        if line.began is None:
            line.began = line.since = at
        if line.stage == WAITING and stage != WAITING:
            line.go_on(at)
        again = line.stage == stage
        line.stage = stage
        line.begin(stage, at, self.timetable)
        if self.screen is None and not again and stage in ("motion", "resampling and writing"):
            self.tell(line, WORDS[stage])

    def _outcome(self, line: Line, failure: str, at: float) -> None:
        if line.seconds is not None and line.failure:
            return  # it is known
        line.seconds, line.failure = at - (line.began or at), failure
        if line.failure:
            self.tell(line, "failed; its report tells why", "red")
            return
        if line.seconds > 1 and "pictures" in line.begun and line.began is not None:
            begun = {part: at - line.began for part, at in line.begun.items()}
            self.timetable = self.timetable.with_series(begun, line.seconds)
        self.tell(line, f"done in {duration(line.seconds)}", "green")

    def tell(self, line: Line, what: str, style: str = "") -> None:
        """Say something of a series."""
        if self.verbosity >= 0:
            self.say(f"{self._count(line)}{line.name} · {what}", style)

    def say(self, text: str, style: str = "") -> None:
        """Print lines."""
        if self.screen is not None:
            self.screen.say(text, style)
        else:
            print(text, file=sys.stderr, flush=True)

    def draw(self) -> None:
        """Draw a bar for each series that is worked on."""
        if self.screen is None:
            return
        now, timetable = time.time(), self.timetable
        bars = []
        for line in self.lines.values():
            if line.is_running:
                word = WORDS.get(line.stage, line.stage)
                share, left = line.done(now, timetable), _left(line.left(now, timetable))
                bars.append(Bar(self._count(line), line.name, f" · {word}", share, left))
        self.screen.draw(bars, self._foot(now))

    def _foot(self, now: float) -> str:
        running = [line for line in self.lines.values() if line.is_running]
        ended = sum(line.seconds is not None for line in self.lines.values())
        if len(self.lines) < 2 or not running:
            return ""
        foot = f"{ended} of {len(self.lines)} done"
        if (whole := self.timetable.seconds) is None:
            return foot
        waiting = len(self.lines) - ended - len(running)
        lefts = [line.left(now, self.timetable) or 0.0 for line in running]
        left = max(max(lefts), (waiting * whole + sum(lefts)) / len(running))
        return f"{foot} · about {duration(left)} left in all"

    def _count(self, line: Line) -> str:
        return f"{line.number} of {len(self.lines)} · " if len(self.lines) > 1 else ""


def _left(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return "soon done" if seconds < 1 else f"{duration(seconds)} left"


@dataclass
class Watch:
    """Watches a run, and knows at its end what became of each series.

    Parameters
    ----------
    verbosity : int
    """

    verbosity: int = 0
    board: Board | None = None
    pages: Sequence[Page] = ()
    found: dict[str, dict[str, Any]] = field(default_factory=dict)

    @contextmanager
    def __call__(self, pages: Sequence[Page]) -> Iterator[None]:
        """Show how far the series of some pages are, as long as the context lasts."""
        self.pages = pages
        names = [job.outputs.src for page in pages for job in page.jobs]
        folders = {job.events.parent for page in pages for job in page.jobs if job.events}
        self.board = Board(names, self.verbosity)
        with ExitStack() as stack:
            for folder in folders:
                stack.enter_context(watching(self.board, EventReader(folder).read))
            yield
        for page in pages:
            self.found |= read_json(page.record).get("found", {}) if page.record else {}


@contextmanager
def watching(
    board: Board, read: Callable[[], Iterator[tuple[str, dict[str, Any]]]] | None = None
) -> Iterator[None]:
    """Keep a board up to date: what `read` yields is new each time it is called."""
    over = threading.Event()

    def look() -> None:
        for name, event in read() if read is not None else ():
            board.update(name, event)
        board.draw()

    def keep_looking() -> None:
        while not over.wait(LOOK_EVERY_S):
            try:
                look()
            except Exception:  # what is shown never ends the work
                log.debug("the progress display failed", exc_info=True)

    with ExitStack() as stack:
        if board.screen is not None:
            stack.enter_context(board.screen)
        looking = threading.Thread(target=keep_looking, daemon=True)
        looking.start()
        try:
            yield
        finally:
            over.set()
            looking.join()
            look()


class BoardUpdater(EventWriter):
    """Updates a board of this process in place of a file: of one series after the other."""

    def __init__(self, board: Board, name: str) -> None:
        super().__init__(Path(name))
        self._board, self._name = board, name

    def turned_to(self, name: str) -> BoardUpdater:
        """Take what follows for news of another series."""
        self._name = name
        return self

    def write(self, **event: Any) -> None:
        """Take in an event of the series."""
        self._board.update(self._name, {"at": time.time(), **event})


@contextmanager
def in_turn(names: Sequence[str], verbosity: int) -> Iterator[BoardUpdater]:
    """Show how far series are that are worked on in this process, one after the other."""
    board = Board(names, verbosity)
    updater = BoardUpdater(board, names[0])
    before = list(log.handlers)
    log.handlers[:] = [h for h in before if not isinstance(h, Console)] + [updater]
    try:
        with watching(board):
            yield updater
    finally:
        log.handlers[:] = before
        updater.close()


@contextmanager
def alone(name: str, verbosity: int) -> Iterator[Progress]:
    """Show how far a single series is that is worked on in this process; yields its progress."""
    with in_turn([name], verbosity) as updater:
        yield updater.progress
