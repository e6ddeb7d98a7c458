# SPDX-License-Identifier: Apache-2.0
"""What the BIDS-App does with the series it found: lock, run, tell how it went."""

from __future__ import annotations

import logging
import platform
import shutil
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from eddymotion.bids.series import URI, Sorted, flattened, outputs_of
from eddymotion.errors import EddymotionError
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.io.writing import read_json, write_json
from eddymotion.machine.children import why_alone
from eddymotion.machine.disk import DISK_FULL, prove_writable
from eddymotion.machine.locks import Lock, locked
from eddymotion.machine.temporaries import remove_stale_temporaries
from eddymotion.machine.versions import software_versions
from eddymotion.pipeline.cache import finished_summary, remove_kept
from eddymotion.pipeline.events import ENDING
from eddymotion.pipeline.limits import (
    LIBRARIES_GB,
    Limits,
    Plugin,
    memory_gb,
    warn_if_disk_is_small,
)
from eddymotion.pipeline.runs.mergeable import refuse_unmergeable
from eddymotion.pipeline.series_job import Job, Page, reason_of
from eddymotion.pipeline.settings import Settings

log = logging.getLogger("eddymotion")

LOCAL = ("Linear", "MultiProc")
"""Plugins that run on this machine; others are given the limits of their own jobs."""


@dataclass(frozen=True)
class Run:
    """How a run is to be carried out.

    Parameters
    ----------
    output_dir, work_dir : Path
    settings : Settings
    limits : Limits
    plugin : Plugin, optional
        MultiProc when not given, or none at all for a single series.
    stop_on_first_crash, write_graph : bool
    verbosity : int
    log_file : Path, optional
    watched : callable, optional
        Given the pages, returns a context in which somebody watches the run.
    locks : tuple of Lock
        Those of the participants, from :func:`sole_writer`.
    """

    output_dir: Path
    work_dir: Path
    settings: Settings
    limits: Limits
    plugin: Plugin | None = None
    stop_on_first_crash: bool = False
    write_graph: bool = False
    verbosity: int = 0
    log_file: Path | None = None
    watched: Callable[[Sequence[Page]], AbstractContextManager[Any]] | None = None
    locks: tuple[Lock, ...] = ()


@contextmanager
def sole_writer(output_dir: Path, participants: Sequence[str]) -> Iterator[tuple[Lock, ...]]:
    """Keep other runs from the outputs of some participants, and tidy up what a killed one left.

    Runs that work on different participants share an output folder. The locks are yielded, in the
    order of the labels.
    """
    locks = [output_dir / f".sub-{label}.lock" for label in sorted(participants)]
    names = ", ".join(f"sub-{label}" for label in sorted(participants)[:5])
    more = f" and {len(participants) - 5} more" if len(participants) > 5 else ""
    with locked(locks, f"{output_dir}: {names}{more}") as taken:
        _tidy(output_dir, taken)
        try:
            yield taken
        finally:
            _tidy(output_dir, taken)


def _tidy(output_dir: Path, locks: Sequence[Lock]) -> None:
    for lock in locks:
        remove_stale_temporaries(output_dir / lock.name, deep=True, locked=not lock.loss)
    for folder in (output_dir, output_dir / "logs"):
        remove_stale_temporaries(folder)


def prepare_work_dir(work_dir: Path) -> None:
    """Make the work folder and prove that it can be written to.

    Raises
    ------
    EddymotionError
        If it cannot.
    """
    prove_writable(work_dir, "give another work folder with --work-dir")
    remove_stale_temporaries(work_dir / "motion", deep=True)


def correct_participants(found: Sorted, run: Run) -> dict[str, str]:
    """Correct all series and write the participants' pages and the record of the run.

    Returns
    -------
    dict
        Series that failed → why.
    """
    found = _mergeable(found, run.settings)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    folder = _own_folder(run, sorted(found.series))
    try:
        return _correct(found, run, folder, started)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        remove_stale_temporaries(run.work_dir / "motion", deep=True)
        raise


def _mergeable(found: Sorted, settings: Settings) -> Sorted:
    """Refuse the runs of sessions that are to be merged and cannot be."""
    refused = {label: dict(reasons) for label, reasons in found.refused.items()}
    series: dict[str, list[SeriesFiles]] = {label: [] for label in found.series}
    for label, of_participant in found.series.items():
        for one in of_participant:
            runs = [run for run in one.runs if not run.is_b0]
            try:
                refuse_unmergeable(runs, settings.in_space_of(one.anatomy))
                series[label].append(one)
            except EddymotionError as error:
                refused[label][one.uri.removeprefix(URI)] = str(error)
    return replace(found, series=series, refused=refused)


def _own_folder(run: Run, participants: list[str]) -> Path:
    """Make the folder in which the nodes work, and remove those of killed runs with their jobs.

    We hold the locks of our participants: a run that had one of them is over.
    """
    from eddymotion.workflows.slurm import cancel_jobs_of

    for file in run.work_dir.glob("run-*/participants.json"):
        theirs = read_json(file)
        ours = theirs.get("output_dir") == str(run.output_dir)
        if ours and set(theirs.get("participants", [])) & set(participants):
            cancel_jobs_of(file.parent)
            shutil.rmtree(file.parent, ignore_errors=True)
    folder = run.work_dir / f"run-{uuid.uuid4().hex[:8]}"
    content = {"output_dir": str(run.output_dir), "participants": participants}
    write_json(folder / "participants.json", content)
    return folder


def _correct(found: Sorted, run: Run, folder: Path, started: str) -> dict[str, str]:
    participants = {label: series for label, series in found.series.items() if series}
    plugin, threads = _resources(participants, run)
    settings = replace(run.settings, nprocs=threads)
    pages = [_page(label, found, settings, run, folder) for label in found.series]
    log.info("%s, %d thread%s each", _manner(plugin, threads), threads, "s" * (threads > 1))
    problem = _run([page for page in pages if page.jobs], plugin, run, folder)
    every = [job for page in pages for job in page.jobs]
    failures = _failures(every, problem, run.stop_on_first_crash)
    for page in pages:
        failed = {job.name: failures[job.name] for job in page.jobs if job.name in failures}
        failures |= page.completed(failed)
    if run.log_file:
        content = _record(every, failures, found, run, plugin, started)
        write_json(run.log_file.with_suffix(".json"), content)
    if not failures:
        shutil.rmtree(folder, ignore_errors=True)
        if run.work_dir.is_relative_to(run.output_dir):
            remove_kept([job.series for job in every], run.work_dir)
    return failures | flattened(found.refused)


def _page(label: str, found: Sorted, settings: Settings, run: Run, folder: Path) -> Page:
    jobs = tuple(_job(one, label, settings, run, folder) for one in found.series[label])
    page = Page(
        run.output_dir, label, jobs, found.refused[label], found.skipped[label],
        folder / "pages" / f"{label}.json",
    )  # fmt: skip
    return replace(page, locks=tuple(lock for lock in run.locks if lock.guards(page.path)))


def _resources(participants: Mapping[str, Sequence[SeriesFiles]], run: Run) -> tuple[Plugin, int]:
    """Choose who runs the series, and with how many threads each."""
    waiting = [
        series.dwi
        for label, of_participant in participants.items()
        for series in of_participant
        if finished_summary(outputs_of(series, label, run.output_dir)) is None
    ]
    if run.plugin is not None and run.plugin.name not in LOCAL:
        return run.plugin, run.limits.series_threads or 1
    chosen = _local_plugin(run, len(waiting))
    if chosen.name == "Linear":
        return chosen, run.limits.series_threads or run.limits.n_procs
    readable = [image for image in waiting if _need(image, 1) is not None]
    threads = run.limits.threads(readable)
    resources = {
        "n_procs": run.limits.n_procs,
        "memory_gb": run.limits.memory_gb,
        "max_workers": max(1, min(run.limits.n_procs, len(waiting))),
        "raise_insufficient": False,
    }
    return Plugin("MultiProc", resources | chosen.arguments), threads


def _local_plugin(run: Run, n_waiting: int) -> Plugin:
    """Choose whether series run side by side on this machine, where it can do so."""
    alone = run.limits.n_procs == 1 or n_waiting < 2
    chosen = run.plugin or Plugin("Linear" if alone else "MultiProc")
    if chosen.name != "Linear" and (reason := why_alone()):
        log.warning("one series after the other instead of side by side: %s", reason)
        return Plugin("Linear")
    return chosen


def _manner(plugin: Plugin, threads: int) -> str:
    """Say how the series are run."""
    if plugin.name == "Linear":
        return "one series after the other"
    if plugin.name != "MultiProc":
        return f"jobs of {plugin.name}"
    side_by_side = min(plugin.arguments["max_workers"], plugin.arguments["n_procs"] // threads)
    return f"up to {max(1, side_by_side)} series side by side"


def _job(series: SeriesFiles, label: str, settings: Settings, run: Run, folder: Path) -> Job:
    outputs = outputs_of(series, label, run.output_dir)
    record = folder / "records" / f"{outputs.src}.json"
    settings = settings.in_space_of(series.anatomy)
    return Job(
        series, outputs, settings, run.work_dir, record, run.log_file,
        folder / "events" / f"{outputs.src}{ENDING}" if run.watched else None,
        run.verbosity,
        tuple(lock for lock in run.locks if lock.guards(outputs["dwi"])),
        run.stop_on_first_crash,
    )  # fmt: skip


def _run(pages: Sequence[Page], plugin: Plugin, run: Run, folder: Path) -> Exception | None:
    """Build the workflow and run it; return what stopped it, if anything did."""
    from eddymotion.workflows.execution import draw_graph, run_workflow
    from eddymotion.workflows.nipype import init_run_wf

    if not pages:
        return None
    jobs = {page.participant: page.jobs for page in pages}
    needs = {label: [_gigabytes(job, run.limits) for job in of] for label, of in jobs.items()}
    workflow = init_run_wf(jobs, needs, pages={page.participant: page for page in pages})
    if run.write_graph:
        picture = run.output_dir / "logs" / "graph.svg"
        draw_graph(workflow, picture)
        log.info("graph: %s", picture)
    images = [job.series.dwi for of in jobs.values() for job in of]
    if warning := warn_if_disk_is_small(run.output_dir, images):
        log.warning("%s", warning)
    try:
        with run.watched(pages) if run.watched else nullcontext():
            run_workflow(
                workflow,
                plugin,
                folder,
                stop_on_first_crash=run.stop_on_first_crash,
                verbosity=run.verbosity,
            )
    except EddymotionError:  # the call is wrong, nothing has run
        raise
    except Exception as error:  # reported with the series, below
        log.debug("the workflow ended early", exc_info=True)
        return error
    return None


def _need(image: Path, threads: int, *, prepared: bool = False) -> float | None:
    try:
        return memory_gb(image, threads, prepared=prepared)
    except EddymotionError:  # reported when its turn comes
        return None


def _gigabytes(job: Job, limits: Limits) -> float:
    """Return what a series takes, at most all there is."""
    settings = job.settings
    need = _need(job.series.dwi, settings.nprocs, prepared=settings.prepares) or LIBRARIES_GB
    if need > limits.memory_gb:
        log.warning(
            "%s: takes about %.1f GB, more than the %.1f GB allowed; it is run alone",
            job.name, need, limits.memory_gb,
        )  # fmt: skip
    return min(need, limits.memory_gb)


def _failures(
    jobs: Sequence[Job], problem: Exception | None, stopped_early: bool
) -> dict[str, str]:
    failures = {}
    for job in jobs:
        if (reason := job.failure) is not None:
            failures[job.name] = reason
        elif "outputs" not in job.steps:
            losses = [loss for lock in job.locks if (loss := lock.loss)]
            failures[job.name] = losses[0] if losses else _unexplained(problem, stopped_early)
    return failures


def _unexplained(problem: Exception | None, stopped_early: bool) -> str:
    """Say why a series has no outputs, where no record tells."""
    from eddymotion.workflows.execution import KILLED

    if problem is None:
        return "not run"
    if isinstance(problem, OSError) and problem.errno in DISK_FULL:
        return reason_of(problem)
    message = " ".join(str(problem).split())
    if KILLED in message or "raised. Re-raising first" in message:
        return KILLED
    if stopped_early:
        return "not finished, since another series failed"
    return f"not finished ({message[-300:]})"


def _record(
    jobs: Sequence[Job],
    failures: Mapping[str, str],
    found: Sorted,
    run: Run,
    plugin: Plugin,
    started: str,
) -> dict[str, Any]:
    """Describe a run: who did what, with which programs, and how long it took."""
    not_run = [("failed", flattened(found.refused)), ("skipped", flattened(found.skipped))]
    return {
        "Command": sys.argv,
        "Started": started,
        "Ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "Host": platform.node(),
        "PackageVersions": software_versions(),
        "Settings": run.settings.effective(),
        "Limits": asdict(run.limits),
        "Plugin": plugin.name,
        "Series": [
            {
                "Name": job.name,
                "State": "failed" if job.name in failures else "done",
                "Reason": failures.get(job.name, ""),
                "Steps": job.steps,
            }
            for job in jobs
        ]
        + [
            {"Name": name, "State": state, "Reason": reason, "Steps": {}}
            for state, reasons in not_run
            for name, reason in reasons.items()
        ],
    }
