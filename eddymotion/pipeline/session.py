# SPDX-License-Identifier: Apache-2.0
"""Correcting the runs of a session, in one process: the BIDS-App does the same as jobs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from eddymotion.derivatives import Outputs
from eddymotion.derivatives.session import SessionOutputs
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.pipeline.cache import remove_kept
from eddymotion.pipeline.correct import correct_series, estimate_series
from eddymotion.pipeline.events import WAITING, EventWriter
from eddymotion.pipeline.runs.merging import merge_runs
from eddymotion.pipeline.settings import Settings


def correct_session(
    runs: Sequence[tuple[SeriesFiles, Outputs]],
    settings: Settings,
    work_dir: Path,
    watcher_of: Callable[[Outputs], EventWriter],
) -> list[dict[str, str]]:
    """Correct runs in one frame, that of the first, and write the outputs of each.

    Parameters
    ----------
    runs : sequence of (SeriesFiles, Outputs)
        Those with diffusion weighting, in order. Each names all runs of the session, also those of
        b=0 alone; one that names none is corrected in its own frame.
    settings : Settings
    work_dir : Path
        Where motions are kept until all outputs are written, and how the runs lie to each other.
    watcher_of : callable
        Returns who is told how far a run is.

    Returns
    -------
    list of dict
        Of each run, as :func:`~eddymotion.pipeline.correct.correct_series` returns it.
    """
    together = [(series, outputs) for series, outputs in runs if series.runs]
    for series, outputs in together:
        watcher = watcher_of(outputs)
        estimate_series(series, outputs, settings, work_dir, watcher.progress)
        watcher.write(stage=WAITING)
    summaries = []
    for series, outputs in runs:
        watcher, kept = watcher_of(outputs), work_dir if series.runs else None
        summaries.append(
            correct_series(series, outputs, settings, watcher.progress, work_dir=kept)
        )
        if len(runs) > 1:
            watcher.write(outcome="")
    sessions = [SessionOutputs.of(outputs) for _, outputs in runs]
    for other in set(sessions) - {sessions[0]}:
        other.remove()
    if settings.distortion_group_merge == "none":
        sessions[0].remove_merged()
    else:
        merge_runs(runs, settings)
    remove_kept([series for series, _ in together], work_dir)
    return summaries
