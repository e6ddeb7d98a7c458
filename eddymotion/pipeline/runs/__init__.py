# SPDX-License-Identifier: Apache-2.0
"""The runs of a session in one frame: found once, kept in the work folder, used by each run."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eddymotion.data.checks import DataIssue
from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.citation import Methods
from eddymotion.derivatives.session import SessionOutputs, write_field
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
from eddymotion.pipeline.stages import Stages, load_series

log = logging.getLogger(__name__)

AGREE = 0.8
"""Correlation of the runs' b=0 images below which their frame is doubted. Real ones of two
scanners: 0.93 to 0.98; with a wrong polarity 0.5 to 0.84."""

FAR_MM = 25.0
"""Standard deviation of displacements above which a field is doubted: heads have 2 to 8."""


@dataclass(frozen=True, eq=False)
class RunTogether:
    """A series among the runs of its session.

    Parameters
    ----------
    names : tuple of str
        Of the runs whose motion is known, in order.
    joined : JoinedRuns, optional
        How they lie; None where the series is alone and no field is given.
    number : int
        That of the series among them.
    unused : tuple of str
        Runs and field maps of the session that could not be used; the log tells why.
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
    ) -> RunTogether:
        """Find how the runs of a session lie to each other, or recall it.

        Parameters
        ----------
        series : SeriesFiles
            One of them.
        dwi : DWI
            It, read.
        motion : Motion
            Its motion in its own frame.
        settings : Settings
        work_dir : Path, optional
            Where the motion of the others is kept, and what is found.
        """
        if not (series.runs or series.measured or settings.fieldmap):
            return cls((series.dwi.name,), None, 0)
        if work_dir is None or not series.runs:
            image = RunImage.of(dwi, motion, settings.nprocs)
            alone = joined_of([image], series.measured, settings)
            return cls((series.dwi.name,), alone, 0, _unused(series, [series], alone, settings))
        known = [
            run for run in series.runs
            if run.dwi == series.dwi or _is_usable(run, settings, work_dir)
        ]  # fmt: skip
        digest = digest_of(known, series.measured, settings)
        folder = work_dir / "motion" / f"{image_stem(known[0].dwi)}_runs_{digest}"
        joined = recalled(folder)
        if joined is None:
            images = [
                RunImage.of(dwi, motion, settings.nprocs) if run.dwi == series.dwi
                else _image_of(run, settings, work_dir) for run in known
            ]  # fmt: skip
            joined = joined_of(images, series.measured, settings)
            keep(folder, joined)
        names = tuple(run.uri or run.dwi.name for run in known)
        number = [run.dwi for run in known].index(series.dwi)
        return cls(names, joined, number, _unused(series, known, joined, settings))

    @classmethod
    def prepare(cls, series: SeriesFiles, settings: Settings, work_dir: Path) -> None:
        """Find how the runs of a session lie, so that each of them can recall it."""
        runs, measured = series.runs, series.measured
        for run in runs:
            cache = MotionCache.of(run, settings, work_dir)
            if not run.is_b0 and (motion := cache.recall(Stages())) is not None:
                one = replace(run, runs=tuple(runs), measured=measured)
                cls.of(one, load_series(run, settings), motion, settings, work_dir)
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

    def write_field(self, outputs: Outputs, *, apart: bool = False, fsl: bool = False) -> None:
        """Write the field, or remove that of an earlier run: the first run does so for all.

        Parameters
        ----------
        outputs : Outputs
        apart : bool
            Whether runs of a session are left in frames of their own, without a field.
        fsl : bool
            Write it as topup would, too.
        """
        joined, session = self.joined, SessionOutputs.of(outputs)
        if apart or (joined is not None and joined.field is None and self.number == 0):
            session.field.remove()
        elif joined is not None and joined.field is not None and self.number == 0:
            write_field(session, joined, self.names, fsl=fsl)

    def draw(self, outputs: Outputs) -> None:
        """Draw the field, and what it did to this series."""
        outputs["off_resonance_figure"].unlink(missing_ok=True)
        joined = self.joined
        if joined is None or joined.hertz is None:
            return
        from eddymotion.reports import save_figure
        from eddymotion.reports.fieldmap import field_figure

        stretch = joined.stretch(self.number)
        figure = field_figure(
            joined.mean, joined.hertz, stretch, joined.mask, joined.affine, joined.unit,
            joined.beside,
        )  # fmt: skip
        save_figure(figure, outputs["off_resonance_figure"])

    def summary(self) -> dict[str, str]:
        """Say for the summary which runs lie in one frame, and what the field does."""
        joined, summary = self.joined, {}
        if joined is None:
            return {}
        if len(joined) > 1:
            before, after = joined.similarity
            summary["runs in one frame"] = ", ".join(Path(name).name for name in self.names)
            if np.isfinite(after):
                summary["runs in one frame"] += (
                    f"; the b=0 images agree with r = {after:.3f}, before with {before:.3f}"
                )
        if self.tie is not None:
            summary["frame, by other runs"] = str(self.tie)
        if joined.hertz is None:
            return summary
        spread = joined.hertz[joined.mask].std()
        source = "from a field map" if joined.measured else "from images of other phase encodings"
        hertz = "" if joined.nominal else f"{spread:.1f} Hz, "
        summary["off-resonance field"] = (
            f"{hertz}{spread * joined.mm_per_hertz:.2f} mm (standard deviation in the brain), "
            f"{source}"
        )
        if (found := joined.comparison) is not None:
            apart = found.rms * joined.mm_per_hertz
            summary["measured map"] = (
                f"not used, since the runs tell the field; beside it r = {found.correlation:.3f}, "
                f"slope {found.slope:.2f}, {apart:.2f} mm RMS apart"
            )
        return summary

    def among(self, methods: Methods) -> Methods:
        """Add to what was done with the series what its session had to do with it."""
        joined = self.joined
        if joined is None:
            return methods
        source = "given" if joined.measured else "runs"
        n_runs = len(joined) if len(joined) > 1 else 0
        return replace(methods, n_runs=n_runs, off_resonance=source if joined.field else "")

    @property
    def issues(self) -> list[DataIssue]:
        """What to say of runs that agree too little, or a field too strong, to be believed."""
        joined = self.joined
        found: list[DataIssue] = []
        if self.unused:
            found.append(DataIssue(
                "runs",
                f"{', '.join(self.unused)}: could not be used for the common frame and the "
                "off-resonance field of the session; the log tells why",
            ))  # fmt: skip
        if joined is not None and len(joined) > 1 and joined.similarity[1] < AGREE:
            found.append(DataIssue(
                "runs",
                f"the b=0 images of the runs of this session agree with r = "
                f"{joined.similarity[1]:.2f} only, expected {AGREE:g}: their common frame may be "
                "wrong; look at the corrected runs beside each other, or correct each on its own "
                "with --separate-all-dwis",
            ))  # fmt: skip
        if joined is not None and (spread := self._spread_mm()) > FAR_MM:
            found.append(DataIssue(
                "field",
                f"the off-resonance field displaces the brain by {spread:.0f} mm (standard "
                f"deviation), expected {FAR_MM:g} at most; check that the field is in Hz, and "
                "TotalReadoutTime in seconds",
                severe=True,
            ))  # fmt: skip
        return found

    def _spread_mm(self) -> float:
        """Tell the standard deviation of the displacement in the brain of this run, mm."""
        joined = self.joined
        if joined is None or joined.hertz is None or np.isnan(joined.shifts[self.number]).any():
            return 0.0
        spread = joined.hertz[joined.mask].std()
        return float(spread * np.linalg.norm(joined.shifts[self.number]))

    def in_sidecar(self) -> dict[str, Any]:
        """Return what the sidecar of the corrected series keeps of it."""
        if self.joined is None:
            return {}
        shift = self.joined.shifts[self.number]
        known = bool(np.isfinite(shift).all())
        return {
            "Runs": list(self.names),
            "RunPose": self.joined.poses[self.number].tolist(),
            "RunPoseErrors": self.joined.errors[self.number].tolist(),
            "RunTie": self.tie and self.tie.plain(),
            "MillimetresPerHertz": shift.tolist() if known else None,
            "OffResonanceCorrected": self.joined.field is not None and known,
        }


def _unused(
    series: SeriesFiles, known: Sequence[SeriesFiles], joined: JoinedRuns, settings: Settings
) -> tuple[str, ...]:
    """Name the runs of a session that were left out, and a measured map that gave no field."""
    there = {run.dwi for run in known}
    left = [run.dwi.name for run in series.runs if run.dwi not in there]
    if joined.field is None and "fieldmaps" not in settings.ignore:
        left += [path.name for path in series.measured.files.values()]
    return tuple(left)


def _is_usable(run: SeriesFiles, settings: Settings, work_dir: Path) -> bool:
    """Whether another run can be read, and its motion is there; one of b=0 alone needs none."""
    if run.is_b0:
        return is_readable(run, settings.ignore)
    if MotionCache.of(run, settings, work_dir).recall(Stages()) is not None:
        return True
    log.warning("%s: left out of the runs of its session, since its motion is not there",
                run.dwi.name)  # fmt: skip
    return False


def _image_of(run: SeriesFiles, settings: Settings, work_dir: Path) -> RunImage:
    if run.is_b0:
        return image_of_b0s(run, settings)
    motion = MotionCache.of(run, settings, work_dir).recall(Stages())
    assert motion is not None
    return RunImage.of(load_series(run, settings), motion, settings.nprocs)
