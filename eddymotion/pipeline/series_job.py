# SPDX-License-Identifier: Apache-2.0
"""One series of a BIDS-App run, in whatever process or on whatever host it is worked on."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from eddymotion.derivatives import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.writing import read_json, write_json
from eddymotion.machine.children import end_with_parent
from eddymotion.machine.disk import describe_disk_error
from eddymotion.machine.locks import Lock, held
from eddymotion.machine.logs import Console, LogFile
from eddymotion.machine.parallel import Progress, logged
from eddymotion.pipeline.correct import correct_series, estimate_series
from eddymotion.pipeline.runs import RunTogether, merge_runs
from eddymotion.pipeline.settings import Settings
from eddymotion.wording import one_line

log = logging.getLogger("eddymotion")


@dataclass(frozen=True)
class Job:
    """What to do with one series, and where to tell how it went.

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
    verbosity : int
    locks : tuple of Lock
        Under which the outputs are written.
    """

    series: SeriesFiles
    outputs: Outputs
    settings: Settings
    work_dir: Path
    record: Path
    log_file: Path | None = None
    verbosity: int = 0
    locks: tuple[Lock, ...] = ()

    @property
    def name(self) -> str:
        """Name of the series, for people."""
        return self.series.dwi.name

    def estimate(self) -> None:
        """Find the motion.

        Among the runs of a session a failure is left to :meth:`correct`: the other runs go on.
        """
        try:
            with _recording(self, "motion"):
                estimate_series(
                    self.series, self.outputs, self.settings, self.work_dir, shown_progress.get()
                )
        except Exception:
            if not self.series.runs:
                raise

    def join(self) -> None:
        """Find how the runs of its session lie; what goes wrong is for :meth:`correct` to say."""
        with _logging_for(self), held(self.locks), suppress(Exception):
            RunTogether.prepare(self.series, self.settings, self.work_dir)

    def correct(self) -> None:
        """Write the outputs, with the motion that is there."""
        motion = read_json(self.record).get("steps", {}).get("motion", {})
        if motion.get("state") == "failed":
            raise EddymotionError(motion["reason"])
        with _recording(self, "outputs"):
            correct_series(
                self.series, self.outputs, self.settings, shown_progress.get(),
                work_dir=self.work_dir,
            )  # fmt: skip

    def merge(self, others: Sequence[Job]) -> None:
        """Write this and the other corrected runs of its session as one series."""
        with _recording(self, "merged"):
            merge_runs([(job.series, job.outputs) for job in (self, *others)], self.settings)

    def record_lost(self, reason: str) -> None:
        """Record that whoever worked on it is gone, and could not tell why."""
        known = read_json(self.record).get("steps", {})
        _record(self, "outputs" if "motion" in known else "motion", "failed", reason, time.time())


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
    """Log to the run's log, and record how it went."""
    end_with_parent()
    started = time.time()
    with _logging_for(job), held(job.locks):
        try:
            yield
        except Exception as error:
            log.debug("%s failed", job.name, exc_info=True)
            _record(job, step, "failed", reason_of(error), started)
            raise
        _record(job, step, "done", "", started)


def _record(job: Job, step: str, state: str, reason: str, started: float) -> None:
    steps = read_json(job.record).get("steps", {})
    steps[step] = {
        "state": state,
        "reason": reason,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(started)),
        "seconds": round(time.time() - started, 2),
        "host": platform.node(),
        "threads": job.settings.nprocs,
    }
    try:
        write_json(job.record, {"series": job.name, "steps": steps})
    except OSError as error:  # the failure itself is what matters
        log.debug("%s: cannot be written (%s)", job.record, error)


in_log = logged(log, logging.DEBUG)

shown_progress: ContextVar[Progress] = ContextVar("shown_progress", default=in_log)
"""What a job shows of its progress, where it runs in the process of the command: in a log by
default, since several series share the console."""


@contextmanager
def _logging_for(job: Job) -> Iterator[None]:
    """Append to the run's log where nobody does so yet, and put the series before each line."""
    added: list[logging.Handler] = []
    if not log.handlers and job.log_file is not None:
        console = Console()
        console.setLevel(logging.DEBUG if job.verbosity else logging.INFO)
        console.setFormatter(logging.Formatter("%(message)s"))
        added = [console, LogFile(job.log_file)]
        log.setLevel(logging.DEBUG)
    for handler in added:
        log.addHandler(handler)
    named = _Naming(job.name)
    for handler in log.handlers:
        handler.addFilter(named)
    try:
        yield
    finally:
        for handler in log.handlers:
            handler.removeFilter(named)
        for handler in added:
            log.removeHandler(handler)
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
