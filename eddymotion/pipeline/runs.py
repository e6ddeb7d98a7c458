# SPDX-License-Identifier: Apache-2.0
"""The runs of a session in one frame: found once, kept in the work folder, used by each run."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.acquisition import Acquisition
from eddymotion.data.checks import DataIssue
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.derivatives.citation import Methods
from eddymotion.derivatives.session import (
    SessionOutputs,
    averaged,
    concatenated,
    write_field,
    write_merged,
)
from eddymotion.errors import EddymotionError
from eddymotion.estimation.measured_field import MeasuredMap
from eddymotion.estimation.runs import (
    JoinedRuns,
    RunImage,
    align_b0s,
    join_runs,
    readouts_of,
    tell_field,
)
from eddymotion.fieldmaps.inputs import FieldmapPaths, FieldmapSettings, read_measured
from eddymotion.images.image import Image
from eddymotion.images.masking import brain_mask
from eddymotion.io.images import image_stem, read_image
from eddymotion.io.itk import read_itk
from eddymotion.io.series import load
from eddymotion.io.sidecars import (
    MeasuredFiles,
    SeriesFiles,
    acquisition_of,
    metadata_beside,
    metadata_of,
    usable,
)
from eddymotion.io.topup import is_topup_coefficients, topup_field
from eddymotion.io.transforms import read_linear
from eddymotion.io.writing import read_json, replacing, write_json
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import LEAST_STRETCH, OffResonance
from eddymotion.pipeline.cache import DIGITS, MotionCache
from eddymotion.pipeline.fingerprint import measured_fingerprint_of, motion_fingerprint_of
from eddymotion.pipeline.output_space import Reference
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.stages import Stages, load_series
from eddymotion.registration.checks import inside_grid

log = logging.getLogger(__name__)

AGREE = 0.8
"""Correlation of the runs' b=0 images below which their frame is doubted. Real ones of two
scanners: 0.93 to 0.98; with a wrong polarity 0.5 to 0.84."""

FAR_MM = 25.0
"""Standard deviation of displacements above which a field is doubted: heads have 2 to 8."""

LEAST_VOXELS = 4
"""Of an image that tells the off-resonance field, along each axis."""

COVERED = 0.5
"""Part of the brain in which a field has to be known: it is 0.8 and more where edges are cut."""

OF_FIELD = ("fieldmaps", "fmap-jacobian")
"""Words of ``--ignore`` about the off-resonance field."""


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
            unused = _unused(series, [series], alone, settings)
            return cls((series.dwi.name,), alone, 0, unused)
        known = [
            run
            for run in series.runs
            if run.dwi == series.dwi or _is_usable(run, settings, work_dir)
        ]
        digest = _digest(known, series.measured, settings)
        stem = f"{image_stem(known[0].dwi)}_runs_{digest}"
        folder = work_dir / "motion" / stem
        joined = _recalled(folder)
        if joined is None:
            images = [
                RunImage.of(dwi, motion, settings.nprocs)
                if run.dwi == series.dwi
                else _image_of(run, settings, work_dir)
                for run in known
            ]
            joined = joined_of(images, series.measured, settings)
            _keep(folder, joined)
        number = [run.dwi for run in known].index(series.dwi)
        unused = _unused(series, known, joined, settings)
        return cls(tuple(run.uri or run.dwi.name for run in known), joined, number, unused)

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
            session.remove_field()
        elif joined is not None and joined.field is not None and self.number == 0:
            write_field(session, joined, self.names, fsl=fsl)

    def draw(self, outputs: Outputs) -> None:
        """Draw the field, and what it did to this series."""
        outputs["off_resonance_figure"].unlink(missing_ok=True)
        joined = self.joined
        if joined is None or joined.field is None:
            return
        from eddymotion.reports import save_figure
        from eddymotion.reports.fieldmap import field_figure

        hertz = joined.field.on_grid(joined.mask.shape, joined.affine)
        stretch = joined.stretch(self.number)
        figure = field_figure(
            joined.mean, hertz, stretch, joined.mask, joined.affine, measured=joined.beside
        )
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
        if joined.field is None:
            return summary
        hertz = joined.field.on_grid(joined.mask.shape, joined.affine)[joined.mask]
        mm = hertz.std() * np.nanmax(np.linalg.norm(joined.shifts, axis=1))
        source = "from a field map" if joined.measured else "from images of other phase encodings"
        summary["off-resonance field"] = (
            f"{hertz.std():.1f} Hz, {mm:.2f} mm (standard deviation in the brain), {source}"
        )
        if (found := joined.comparison) is not None:
            apart = found.rms * np.nanmax(np.linalg.norm(joined.shifts, axis=1))
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
        if joined is None or joined.field is None or np.isnan(joined.shifts[self.number]).any():
            return 0.0
        hertz = joined.field.on_grid(joined.mask.shape, joined.affine)[joined.mask]
        return float(hertz.std() * np.linalg.norm(joined.shifts[self.number]))

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


def joined_of(
    images: Sequence[RunImage], measured: MeasuredFiles, settings: Settings
) -> JoinedRuns:
    """Join runs as the settings say.

    Parameters
    ----------
    images : sequence of RunImage
        In order, runs of b=0 alone last.
    measured : MeasuredFiles
        A measured map.
    settings : Settings
    """
    field, wanted = None, measured and "fieldmaps" not in settings.ignore
    if settings.fieldmap is not None:
        field = _given_field(settings.fieldmap, images[0], settings.ignore)
    elif wanted and not tell_field(images):
        field = _measured_field(images[0], measured, settings)
    joined = join_runs(
        images,
        field=field,
        seeks_field="fieldmaps" not in settings.ignore,
        compute=Compute(settings.nprocs, settings.random_seed),
    )
    if settings.fieldmap is not None and not np.isfinite(joined.shifts).any():
        raise EddymotionError(
            f"{settings.fieldmap}: of no use without PhaseEncodingDirection and TotalReadoutTime "
            "in the sidecar of the series; add them"
        )
    beside = None
    if wanted and field is None and joined.field is not None:
        beside = _beside(joined, measured, settings)
    return replace(joined, modulated="fmap-jacobian" not in settings.ignore, beside=beside)


def _beside(joined: JoinedRuns, files: MeasuredFiles, settings: Settings) -> np.ndarray | None:
    """Bring a measured map to the runs that told a field without it, if that can be done."""
    try:
        measured = _read(files, settings.ignore)
        mean = Image(joined.mean, joined.affine)
        return measured.beside(mean, joined.mask, settings.random_seed)
    except EddymotionError as error:
        log.warning("%s: not compared with the field of the runs (%s)", _names(files), error)
        return None


def _measured_field(
    first: RunImage, files: MeasuredFiles, settings: Settings
) -> OffResonance | None:
    """Make the field of a measured map in the frame of the first run, if that can be done."""
    (readout,) = readouts_of([first])
    if readout is None:
        log.warning(
            "%s: not used, since the series does not say how far off-resonance displaces it; add "
            "PhaseEncodingDirection and TotalReadoutTime to its sidecar", _names(files)
        )  # fmt: skip
        return None
    try:
        measured = _read(files, settings.ignore)
        if measured.magnitude is None:
            _refuse_elsewhere(measured, first)
        return measured.field_for(first.image, readout, first.brain, settings.random_seed)
    except EddymotionError as error:
        log.warning("%s: not used (%s)", _names(files), error)
        return None


def _read(measured: MeasuredFiles, ignore: Sequence[str]) -> MeasuredMap:
    settings = FieldmapSettings(
        echo_times=measured.echo_times, units=measured.units, ignore=tuple(ignore)
    )
    return read_measured(FieldmapPaths((), **measured.files), settings)


def _names(measured: MeasuredFiles) -> str:
    return ", ".join(path.name for path in measured.files.values())


def _given_field(path: Path, first: RunImage, ignore: Sequence[str] = ()) -> OffResonance:
    """Read a field in the frame of the first run.

    Raises
    ------
    EddymotionError
        If it is none in three dimensions, or lies elsewhere.
    """
    if is_topup_coefficients(path):
        return topup_field(path, first.image.data.shape, first.image.affine)
    data, affine, _ = read_image(path, ignore)
    data = data[..., 0] if data.ndim == 4 and data.shape[3] == 1 else data
    if data.ndim != 3:
        raise EddymotionError(
            f"{path}: found an image of shape {data.shape}, expected a field in Hz of three "
            "dimensions"
        )
    units = usable(metadata_beside(path), "Units", owner=path.name).get("Units", "Hz")
    measured = MeasuredMap.in_units(Image(data, affine), units)
    _refuse_elsewhere(replace(measured, known=np.isfinite(data)), first, f"{path}: ")
    return OffResonance.of_image(measured.hertz)


def _refuse_elsewhere(measured: MeasuredMap, first: RunImage, owner: str = "") -> None:
    """Raise if a map that is not registered says nothing of most of the brain."""
    points = apply_affine(first.image.affine, np.argwhere(first.brain))
    covered = inside_grid(points, measured.hertz, measured.known).mean()
    if covered < COVERED:
        raise EddymotionError(
            f"{owner}tells the field in {covered:.0%} of the brain of the first run, expected "
            f"{COVERED:.0%} or more; give one in its frame"
        )


def _is_usable(run: SeriesFiles, settings: Settings, work_dir: Path) -> bool:
    """Whether another run can be read, and its motion is there; one of b=0 alone needs none."""
    if run.is_b0:
        return _is_readable(run, settings.ignore)
    if MotionCache.of(run, settings, work_dir).recall(Stages()) is not None:
        return True
    log.warning("%s: left out of the runs of its session, since its motion is not there",
                run.dwi.name)  # fmt: skip
    return False


def _is_readable(run: SeriesFiles, ignore: Sequence[str]) -> bool:
    try:
        _signal_of_b0s(run, ignore)
    except EddymotionError as error:
        log.warning("%s: left out of the runs of its session (%s)", run.dwi.name, error)
        return False
    return True


def image_of_b0s(run: SeriesFiles, settings: Settings) -> RunImage:
    """Take what counts from a run of b=0 volumes alone, its volumes aligned."""
    dwi = load_b0s(run, settings.ignore)
    compute = Compute(settings.nprocs, settings.random_seed)
    return RunImage.of(dwi, align_b0s(dwi, compute), settings.nprocs)


def _image_of(run: SeriesFiles, settings: Settings, work_dir: Path) -> RunImage:
    if run.is_b0:
        return image_of_b0s(run, settings)
    motion = MotionCache.of(run, settings, work_dir).recall(Stages())
    assert motion is not None
    return RunImage.of(load_series(run, settings), motion, settings.nprocs)


def merge_runs(runs: Sequence[tuple[SeriesFiles, Outputs]], settings: Settings) -> None:
    """Write the corrected runs of a session as one series, beside their own.

    Parameters
    ----------
    runs : sequence of (SeriesFiles, Outputs)
        In order; all corrected.
    settings : Settings
    """
    corrected = [
        load_corrected(outputs["dwi"], outputs["bval"], outputs["bvec"], outputs["mask"], settings)
        for _, outputs in runs
    ]
    names = [run.uri or run.dwi.name for run, _ in runs]
    every = zip(corrected, runs, strict=True)
    stretched = (_stretch_of(outputs, dwi) for dwi, (_, outputs) in every)
    write_as_one(SessionOutputs.of(runs[0][1]), corrected, stretched, names, settings)


def load_corrected(
    dwi: Path, bval: Path, bvec: Path, mask: Path | None, settings: Settings
) -> DWI:
    """Load what a correction has written."""
    return load(
        dwi, bval=bval, bvec=bvec, mask=mask, b0_threshold=settings.b0_threshold,
        ignore=("tables",), metadata={},
    )  # fmt: skip


def write_as_one(
    session: SessionOutputs,
    corrected: Sequence[DWI],
    stretched: Iterable[tuple[np.ndarray, np.ndarray]],
    names: Sequence[str],
    settings: Settings,
) -> None:
    """Write corrected runs as one series, as ``settings.distortion_group_merge`` says.

    Parameters
    ----------
    session : SessionOutputs
    corrected : sequence of DWI
        In one frame, on one grid.
    stretched : iterable of (X, Y, Z) and (3,) array
        How the field stretched each, and where a hertz displaced it; asked for where they count.
    names : sequence of str
    settings : Settings
    """
    how = settings.distortion_group_merge
    if how == "concat":
        write_merged(session, concatenated(corrected), how, names, 0)
        return
    stretches, shifts = zip(*stretched, strict=True)
    merged, pairs = averaged(corrected, stretches, np.array(shifts))
    if 2 * pairs < sum(map(len, corrected)):
        log.warning(
            "%s: %d of %d volumes have a partner of opposite polarity with the same gradient; the "
            "others are kept as they are", session.who, 2 * pairs, sum(map(len, corrected)),
        )  # fmt: skip
    write_merged(session, merged, how, names, pairs)


def _stretch_of(outputs: Outputs, corrected: DWI) -> tuple[np.ndarray, np.ndarray]:
    """Recall from the outputs of a run how its field stretched it, and which way."""
    sidecar = read_json(outputs["sidecar"])
    shift = np.array(sidecar.get("MillimetresPerHertz") or [0.0] * 3, float)
    session = SessionOutputs.of(outputs)
    if not sidecar.get("OffResonanceCorrected") or not session.field("coeff").is_file():
        return np.ones(corrected.shape, np.float32), shift
    coefficients, lattice, _ = read_image(session.field("coeff"))
    pose, affine = read_itk(outputs["xfm"])[corrected.reference], corrected.affine
    if outputs["space"].is_file():
        grid = Image(np.empty(corrected.shape), affine)
        affine = read_linear(outputs["space"], grid, grid) @ affine
    field = OffResonance(coefficients, lattice)
    return stretch_on(corrected.shape, affine, field, pose, shift), shift


def stretch_on(
    shape: Sequence[int],
    affine: np.ndarray,
    field: OffResonance,
    pose: np.ndarray,
    shift: np.ndarray,
) -> np.ndarray:
    """Return recorded millimetres a millimetre on a grid, (X, Y, Z): of a head at rest at a pose.

    Of coefficients in single precision, as they are written.
    """
    written = replace(field, coefficients=field.coefficients.astype(np.float32))
    _, slopes = written.on_grid_with_gradient(tuple(shape), affine)
    along = (pose[:3, :3].T @ shift).astype(np.float32)
    return np.maximum(1.0 + slopes @ along, LEAST_STRETCH)


def load_b0s(run: SeriesFiles, ignore: Sequence[str] = ()) -> DWI:
    """Load a run of b=0 volumes alone, which needs no tables; a 3-D image is one."""
    signal, affine = _signal_of_b0s(run, ignore)
    n_volumes = signal.shape[3]
    gradients = Gradients(np.zeros(n_volumes), np.zeros((n_volumes, 3)))
    acquisition: Acquisition = acquisition_of(
        gradients, metadata_of(run), signal.shape[:3], affine, None, run.dwi.name
    )
    return DWI(signal, affine, acquisition, brain_mask(signal.mean(axis=3)), run.dwi)


def _signal_of_b0s(run: SeriesFiles, ignore: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Read the volumes (X, Y, Z, N) of a run of b=0 alone, and their affine.

    Raises
    ------
    EddymotionError
        If it cannot be read, or shows nothing.
    """
    signal, affine, _ = read_image(run.dwi, ignore)
    signal = np.nan_to_num(signal if signal.ndim == 4 else signal[..., None], posinf=0, neginf=0)
    if signal.ndim != 4 or min(signal.shape[:3]) < LEAST_VOXELS:
        raise EddymotionError(
            f"{run.dwi}: found an image of shape {signal.shape}, expected volumes of "
            f"{LEAST_VOXELS} or more voxels along each axis"
        )
    blank = np.flatnonzero(np.ptp(signal, axis=(0, 1, 2)) == 0)
    if len(blank):
        raise EddymotionError(f"{run.dwi}: all voxels of volume {blank[0]} have one value")
    return signal, affine


def _digest(runs: Sequence[SeriesFiles], measured: MeasuredFiles, settings: Settings) -> str:
    words = [motion_fingerprint_of(run, settings) for run in runs]
    given = {} if settings.fieldmap is None else {"fieldmap": settings.fieldmap}
    words += [measured_fingerprint_of(one) for one in (measured, MeasuredFiles(given))]
    words += sorted(set(OF_FIELD) & set(settings.ignore))
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:DIGITS]


def _keep(folder: Path, joined: JoinedRuns) -> None:
    """Write what was found; the last file is the mark of completion."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {
        name: getattr(joined, name)
        for name in ("poses", "errors", "shifts", "mean", "mask", "affine")
    }
    if joined.beside is not None:
        arrays["beside"] = joined.beside
    if joined.field is not None:
        arrays |= {"hertz": joined.field.coefficients, "lattice": joined.field.affine}
    with replacing(folder / "runs.npz") as temporary, temporary.open("wb") as stream:
        np.savez(stream, **arrays)
    told = {"similarity": [s if np.isfinite(s) else None for s in joined.similarity],
            "measured": joined.measured, "modulated": joined.modulated}  # fmt: skip
    write_json(folder / "runs.json", told)


def _recalled(folder: Path) -> JoinedRuns | None:
    try:
        told = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
        with np.load(folder / "runs.npz") as stored:
            arrays = dict(stored)
        field = None
        if "hertz" in arrays:
            field = OffResonance(arrays.pop("hertz"), arrays.pop("lattice"))
        before, after = (np.nan if s is None else float(s) for s in told["similarity"])
        return JoinedRuns(
            field=field, similarity=(before, after), measured=bool(told["measured"]),
            modulated=bool(told["modulated"]), **arrays,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not isinstance(error, FileNotFoundError):
            log.warning("%s: cannot be used (%s); the runs are joined again", folder, error)
        return None
