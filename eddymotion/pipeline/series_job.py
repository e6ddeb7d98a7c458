# SPDX-License-Identifier: Apache-2.0
"""The jobs of a BIDS-App run, whatever process or host works on them.

A series is a :class:`Job`; several runs of a session make a :class:`Session`, and all series of a
participant a :class:`Page`. A failure is recorded, and the other jobs go on.
"""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from eddymotion.derivatives import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.writing import read_json, write_json
from eddymotion.machine.children import end_with_parent
from eddymotion.machine.disk import describe_disk_error
from eddymotion.machine.locks import Lock, held
from eddymotion.machine.logs import Console, LogFile, warnings_in_log
from eddymotion.machine.parallel import logged
from eddymotion.pipeline.correct import correct_series, estimate_series
from eddymotion.pipeline.events import WAITING, EventWriter
from eddymotion.pipeline.runs import SessionRun
from eddymotion.pipeline.runs.merging import merge_runs
from eddymotion.pipeline.settings import Settings
from eddymotion.reports.participant import write_report
from eddymotion.reports.series import SeriesReport
from eddymotion.wording import one_line

log = logging.getLogger("eddymotion")

Item = TypeVar("Item")


@dataclass(frozen=True)
class Job:
    """What to do with one series, and where to record how it went.

    Parameters
    ----------
    series : SeriesFiles
    outputs : Outputs
    settings : Settings
        ``nprocs`` are the threads of this series.
    work_dir : Path
        Where the motion is kept.
    record : Path
        JSON, written when a step ends.
    log_file : Path, optional
        The run's log: other processes append to it.
    events : Path, optional
        File of events, for the process that watches the run and then owns the console.
    verbosity : int
    locks : tuple of Lock
        Under which the outputs are written.
    stop_on_first_crash : bool
        Let an error end the run.
    """

    series: SeriesFiles
    outputs: Outputs
    settings: Settings
    work_dir: Path
    record: Path
    log_file: Path | None = None
    events: Path | None = None
    verbosity: int = 0
    locks: tuple[Lock, ...] = ()
    stop_on_first_crash: bool = False

    @property
    def name(self) -> str:
        """Name of the series, for people."""
        return self.series.dwi.name

    @property
    def steps(self) -> dict[str, Any]:
        """What is recorded: step → how it went."""
        return read_json(self.record).get("steps", {})

    @property
    def failure(self) -> str | None:
        """Why it failed, if it did."""
        failed = [step["reason"] for step in self.steps.values() if step["state"] == "failed"]
        return failed[0] if failed else None

    def estimate(self) -> None:
        """Estimate the motion; only for runs of a session, which wait for one another."""
        with _recording(self, "motion"):
            estimate_series(
                self.series, self.outputs, self.settings, self.work_dir, self._progress
            )
            self.write_event(stage=WAITING)

    def join(self) -> None:
        """Find how the runs of its session lie; :meth:`correct` reports what went wrong."""
        with _logging_for(self), held(self.locks), suppress(Exception):
            SessionRun.prepare(self.series, self.settings, self.work_dir)

    def correct(self) -> None:
        """Write the outputs, with the motion that is kept, or estimated now if there is none."""
        with _recording(self, "outputs"):
            if (reason := self.failure) is not None:
                raise EddymotionError(reason)
            correct_series(
                self.series, self.outputs, self.settings, self._progress, work_dir=self.work_dir
            )
            self.write_event(outcome="")

    def record_lost(self, reason: str) -> None:
        """Record that the process that worked on it ended without saying why."""
        _record(self, "outputs", "failed", reason, time.time())

    @property
    def _event_writer(self) -> EventWriter | None:
        return EventWriter(self.events) if self.events else None

    def write_event(self, **event: Any) -> None:
        """Write an event for the process that watches, if there is one."""
        if (writer := self._event_writer) is not None:
            writer.write(**event)

    def _progress(self, iterable: Iterable[Item], description: str, total: int) -> Iterable[Item]:
        """Write how far it is, and log it: several series share the console."""
        lines = in_log(iterable, description, total)
        writer = self._event_writer
        return lines if writer is None else writer.progress(lines, description, total)


@dataclass(frozen=True)
class Session:
    """The runs of a session.

    Parameters
    ----------
    jobs : tuple of Job
        In order.
    """

    jobs: tuple[Job, ...]

    def merge(self) -> None:
        """Write the corrected runs as one series, if all are there."""
        if any(job.failure is not None for job in self.jobs):
            return
        first = self.jobs[0]
        with _recording(first, "merged"):
            merge_runs([(job.series, job.outputs) for job in self.jobs], first.settings)


@dataclass(frozen=True)
class Page:
    """The report of a participant.

    Parameters
    ----------
    output_dir : Path
        Root of the derivatives.
    participant : str
        Label without ``sub-``.
    jobs : tuple of Job
        One a series that is corrected.
    refused, skipped : mapping
        Other series → why.
    record : Path, optional
        JSON, written with the page.
    locks : tuple of Lock
        Under which it is written.
    """

    output_dir: Path
    participant: str
    jobs: tuple[Job, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict)
    skipped: Mapping[str, str] = field(default_factory=dict)
    record: Path | None = None
    locks: tuple[Lock, ...] = ()

    @property
    def path(self) -> Path:
        """Where it is."""
        return self.output_dir / f"sub-{self.participant}.html"

    def write(self) -> None:
        """Write it with what is recorded of the series."""
        self.write_with({job.name: why for job in self.jobs if (why := job.failure) is not None})

    def write_with(self, failed: Mapping[str, str]) -> dict[str, str]:
        """Write it, and record what it says.

        Parameters
        ----------
        failed : mapping
            Name of a series that was to be corrected → why it failed.

        Returns
        -------
        dict
            The same, with series whose files cannot be shown.
        """
        if any(lock.loss for lock in self.locks):
            return dict(failed)  # the page is another run's by now
        with held(self.locks):
            errors = {**failed, **self.refused}
            found = write_report(self.output_dir, self.participant, errors, self.skipped)
            names = {job.outputs.src: job.name for job in self.jobs}
            unreadable = {names.get(src, src): why for src, why in found.items()
                          if src not in errors}  # fmt: skip
            if self.record is not None:
                content = {"failed": dict(failed), "unreadable": unreadable}
                write_json(self.record, content | {"found": self._found()})
        return {**unreadable, **failed}

    def completed(self, failed: Mapping[str, str]) -> dict[str, str]:
        """Return what failed, as :meth:`write_with`; write it only if it does not say so yet."""
        recorded = read_json(self.record) if self.record is not None else {}
        if recorded.get("failed") != dict(failed):
            return self.write_with(failed)
        return {**recorded["unreadable"], **failed}

    def _found(self) -> dict[str, dict[str, Any]]:
        """Name of a finished series → its row in the table of all series."""
        return {job.name: found for job in self.jobs if (found := _told_of(job.outputs))}


def _told_of(outputs: Outputs) -> dict[str, Any]:
    try:
        series = SeriesReport.load(outputs)
        verdict, findings = series.verdict, series.findings
    except Exception:  # the page says why
        log.debug("%s cannot be read", outputs.src, exc_info=True)
        return {}
    known = findings.fd[np.isfinite(findings.fd)]
    return {
        "verdict": verdict.headline,
        "level": int(verdict.level),
        "fd_mean": float(known.mean()) if len(known) else None,
        "lost": int(findings.outliers.sum()),
        "judged": int(findings.judged.sum()),
    }


def reason_of(error: BaseException) -> str:
    """Say in one line why a step failed."""
    if isinstance(error, OSError):
        return describe_disk_error(error)
    if isinstance(error, MemoryError):
        return "not enough memory; run again with fewer --nprocs, or with --omp-nthreads 1"
    if isinstance(error, EddymotionError):
        return one_line(str(error))
    return one_line(f"{type(error).__name__}: {error}")


@contextmanager
def _recording(job: Job, step: str) -> Iterator[None]:
    """Log to the run's log and record how a step went; a failure is recorded, not raised."""
    end_with_parent()
    started = time.time()
    with _logging_for(job), held(job.locks):
        try:
            yield
        except Exception as error:
            log.debug("%s failed", job.name, exc_info=True)
            recorded = _record(job, step, "failed", reason_of(error), started)
            job.write_event(outcome=reason_of(error))
            if job.stop_on_first_crash or not recorded:
                raise
        else:
            _record(job, step, "done", "", started)


def _record(job: Job, step: str, state: str, reason: str, started: float) -> bool:
    """Record how a step went; False if that could not be written."""
    entry = {
        "state": state,
        "reason": reason,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(started)),
        "seconds": round(time.time() - started, 2),
        "host": platform.node(),
        "threads": job.settings.nprocs,
    }
    try:
        write_json(job.record, {"series": job.name, "steps": job.steps | {step: entry}})
    except OSError as error:  # the failure itself is what matters
        log.debug("%s: cannot be written (%s)", job.record, error)
        return False
    return True


in_log = logged(log, logging.DEBUG)


@contextmanager
def _logging_for(job: Job) -> Iterator[None]:
    """Append to the run's log, unless that is set up already; each line begins with the series.

    If another process watches the run, events are written instead of console lines.
    """
    before = list(log.handlers)
    handlers = list(before)
    if not before and job.log_file is not None:
        console = Console()
        console.setLevel(logging.DEBUG if job.verbosity > 0 else logging.INFO)
        console.setFormatter(logging.Formatter("%(message)s"))
        handlers = [console, LogFile(job.log_file)]
        log.setLevel(logging.DEBUG)
    elif job.events is not None:
        handlers = [handler for handler in before if not isinstance(handler, Console)]
    if (writer := job._event_writer) is not None:
        handlers.append(writer)
    named = _Naming(job.name)
    log.handlers[:] = handlers
    for handler in handlers:
        handler.addFilter(named)
    try:
        with warnings_in_log():
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(named)
        log.handlers[:] = before
        for handler in set(handlers) - set(before):
            handler.close()


class _Naming(logging.Filter):
    """Puts the name of the series before lines that do not begin with it."""

    def __init__(self, series: str) -> None:
        super().__init__()
        self.series = series

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if not message.startswith(self.series):
            record.msg, record.args = f"{self.series}: {message}", ()
        return True
