# SPDX-License-Identifier: Apache-2.0
"""The runs of a session in one frame: found once, kept in the work folder, used by each run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from eddymotion.data.series import DWI
from eddymotion.estimation.runs.joined import JoinedRuns
from eddymotion.estimation.runs.run_image import RunImage
from eddymotion.estimation.runs.ties import FrameTie
from eddymotion.images.image import Image
from eddymotion.io.images import image_stem
from eddymotion.io.sidecars import SeriesFiles
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.cache import MotionCache
from eddymotion.pipeline.output_space.reference import Reference
from eddymotion.pipeline.runs.b0s import image_of_b0s, is_readable
from eddymotion.pipeline.runs.cache import digest_of, keep, recalled
from eddymotion.pipeline.runs.joining import joined_of
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import load_series

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class SessionRun:
    """A series among the runs of its session.

    Parameters
    ----------
    names : tuple of str
        Of the runs whose motion is known, in order.
    joined : JoinedRuns, optional
        How these runs lie; None where the series is alone and no field is given.
    number : int
        Index of the series among them.
    unused : tuple of str
        Runs and field maps of the session that could not be used; the log says why.
    """

    names: tuple[str, ...]
    joined: JoinedRuns | None
    number: int
    unused: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        series: SeriesFiles,
        dwi: DWI,
        motion: Motion,
        settings: Settings,
        work_dir: Path | None = None,
    ) -> SessionRun:
        """Find how the runs of a session lie to each other, or recall it.

        Parameters
        ----------
        series : SeriesFiles
            One of the runs.
        dwi : DWI
            The same, loaded.
        motion : Motion
            Its motion in its own frame.
        settings : Settings
        work_dir : Path, optional
            Where the motion of the other runs is kept, and how they lie once that is found.
        """
        if not (series.runs or series.measured or settings.fieldmap):
            return cls((series.dwi.name,), None, 0)
        own_image = partial(RunImage.of, dwi, motion, settings.nprocs)
        if work_dir is None or not series.runs:
            joined = joined_of([own_image()], series.measured, settings)
            return cls((series.dwi.name,), joined, 0, _unused(series, [series], joined, settings))
        used = [
            run for run in series.runs
            if run.dwi == series.dwi or _is_usable(run, settings, work_dir)
        ]  # fmt: skip
        joined = _join_once(series, used, own_image, settings, work_dir)
        names = tuple(run.uri or run.dwi.name for run in used)
        number = [run.dwi for run in used].index(series.dwi)
        return cls(names, joined, number, _unused(series, used, joined, settings))

    @classmethod
    def prepare(cls, series: SeriesFiles, settings: Settings, work_dir: Path) -> None:
        """Find how the runs of a session lie, so that each of them can recall it."""
        runs, measured = series.runs, series.measured
        for run in runs:
            cache = MotionCache.of(run, settings, work_dir)
            if not run.is_b0 and (found := cache.recall()) is not None:
                one = replace(run, runs=tuple(runs), measured=measured)
                cls.of(one, load_series(run, settings), found.motion, settings, work_dir)
                return

    def moved(self, dwi: DWI, motion: Motion, settings: Settings) -> tuple[DWI, Motion]:
        """Return the series with the brain as all runs show it, and its motion in their frame."""
        if self.joined is None:
            return dwi, motion
        motion = self.joined.motion(self.number, motion)
        if settings.brain_mask is not None:
            return dwi, motion
        return replace(dwi, mask=self.joined.mask_on(dwi.shape, dwi.affine)), motion

    @property
    def frame(self) -> Reference | None:
        """What all runs show together, where there are several."""
        joined = self.joined
        if joined is None or len(joined) < 2:
            return None
        return Reference(Image(joined.mean, joined.affine), joined.mask)

    @property
    def tie(self) -> FrameTie | None:
        """How the other runs move the diffusion-weighted volumes of this one, if they do."""
        joined = self.joined
        return joined.ties[self.number] if joined is not None and joined.ties else None


def _join_once(
    series: SeriesFiles,
    used: Sequence[SeriesFiles],
    own_image: Callable[[], RunImage],
    settings: Settings,
    work_dir: Path,
) -> JoinedRuns:
    """Join runs, or recall how they were joined for another one of them."""
    digest = digest_of(used, series.measured, settings)
    folder = work_dir / "motion" / f"{image_stem(used[0].dwi)}_runs_{digest}"
    joined = recalled(folder)
    if joined is None:
        images = [
            own_image() if run.dwi == series.dwi else _image_of(run, settings, work_dir)
            for run in used
        ]
        joined = joined_of(images, series.measured, settings)
        keep(folder, joined)
    return joined


def _unused(
    series: SeriesFiles, used: Sequence[SeriesFiles], joined: JoinedRuns, settings: Settings
) -> tuple[str, ...]:
    """Name the runs of a session that were left out, and a measured map that gave no field."""
    there = {run.dwi for run in used}
    left = [run.dwi.name for run in series.runs if run.dwi not in there]
    if joined.field is None and "fieldmaps" not in settings.ignore:
        left += [path.name for path in series.measured.files.values()]
    return tuple(left)


def _is_usable(run: SeriesFiles, settings: Settings, work_dir: Path) -> bool:
    """Whether another run can be read, and its motion is there; one of b=0 alone needs none."""
    if run.is_b0:
        return is_readable(run, settings.ignore)
    if MotionCache.of(run, settings, work_dir).recall() is not None:
        return True
    log.warning("%s: excluded from the runs of its session, since its motion was not found",
                run.dwi.name)  # fmt: skip
    return False


def _image_of(run: SeriesFiles, settings: Settings, work_dir: Path) -> RunImage:
    if run.is_b0:
        return image_of_b0s(run, settings)
    found = MotionCache.of(run, settings, work_dir).recall()
    assert found is not None
    return RunImage.of(load_series(run, settings), found.motion, settings.nprocs)
