# SPDX-License-Identifier: Apache-2.0
"""Whether the runs of a session can be made one series: checked before anything is computed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eddymotion.errors import EddymotionError
from eddymotion.evaluation import read_grid
from eddymotion.images.grid import Grid
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.pipeline.runs.one_series import refuse_other_grids
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.target import grid_of


def refuse_unmergeable(runs: Sequence[SeriesFiles], settings: Settings) -> None:
    """Raise if runs are to be merged that will lie on different grids when they are corrected.

    A run whose header cannot be read is left to whoever reads the run.
    """
    if settings.distortion_group_merge == "none":
        return
    grids: list[tuple[str, Grid]] = []
    for run in runs:
        with suppress(EddymotionError):
            grids.append((str(run.dwi), _corrected_grid(run, settings)))
    refuse_other_grids(grids)


def _corrected_grid(run: SeriesFiles, settings: Settings) -> Grid:
    """Return the grid on which a run lies when it is corrected, from headers alone."""
    own, space = read_grid(run.dwi), settings.output_space
    if not isinstance(space, Path):
        return own
    return grid_of(read_grid(space), settings.output_resolution, own.affine)


def refuse_averaging_elsewhere(settings: Settings) -> None:
    """Raise if a workflow is to average runs in an output space.

    Its steps know the stretch of the runs in their own frame only.
    """
    if settings.output_space is not None and settings.distortion_group_merge == "average":
        raise EddymotionError(
            "distortion_group_merge is average beside an output space: a workflow knows the "
            "stretch of the runs only in their own frame; leave one of them out, or use the "
            "command eddymotion, which supports both"
        )
