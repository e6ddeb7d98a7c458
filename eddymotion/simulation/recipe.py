# SPDX-License-Identifier: Apache-2.0
"""All that determines a simulated series, as one frozen value; and the series made by it."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from scipy.spatial.transform import Rotation

from eddymotion import __version__
from eddymotion.data.acquisition import Acquisition, Slicing
from eddymotion.data.gradients import Gradients, from_fsl
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation import estimate_motion
from eddymotion.images.axes import image_axes
from eddymotion.images.grid import Box, Grid
from eddymotion.io.images import write_image
from eddymotion.io.series import load
from eddymotion.io.tables import read_gradient_table
from eddymotion.io.trajectory import is_trajectory, write_trajectory
from eddymotion.io.writing import read_json, together, write_json
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.eddy_currents import SCALE_MM
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import Readout
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.acquisition import acquire, dropped_slices, voxel_means
from eddymotion.simulation.base import Head
from eddymotion.simulation.courses import (
    amplified_trajectory,
    replayed_trajectory,
    simulate_course,
)
from eddymotion.simulation.eddy_currents import (
    EddyCurrents,
    Order,
    simulate_eddy_currents,
    write_eddy_table,
)
from eddymotion.simulation.fitted import FittedHead, SeriesHead
from eddymotion.simulation.harmonics import HarmonicHead
from eddymotion.simulation.kspace import KSpace
from eddymotion.simulation.motion import (
    amplified,
    replayed_motion,
    rigid_matrices,
    simulate_motion,
)
from eddymotion.simulation.off_resonance import Magnetised
from eddymotion.simulation.output import (
    DATASET_NAME,
    DESCRIPTION,
    METADATA,
    image_path,
    integer_gain,
    truth_stem,
    write_bids,
    write_dataset_files,
    write_detailed_readme,
    write_dropped_table,
)
from eddymotion.simulation.patterns import COURSES, Course, Pattern
from eddymotion.simulation.phantom import Phantom, procedural_head
from eddymotion.simulation.schemes import SCHEMES
from eddymotion.simulation.synthetic import Contrast, SyntheticHead
from eddymotion.simulation.timing import SliceOrder, SliceTiming, slice_metadata
from eddymotion.simulation.variants import (
    CROPPED_MM,
    SLAB_MM,
    Cavity,
    Coverage,
    covered,
    with_cavity,
)
from eddymotion.wording import short_repr

log = logging.getLogger(__name__)

OTHERS = ("_ses-", "_dir-")
"""How the names of other series of a participant go on."""

DEFAULT_SCHEME = "single"
DEFAULT_COIL_BIAS = 0.13
DEFAULT_ORIENTATION = "LAS"
DEFAULT_VOXEL_SIZE = 2.0
DEFAULT_MULTIBAND = 3


@dataclass(frozen=True)
class Recipe:
    """What to simulate. Names are those of the options of ``eddymotion-simulate``.

    Parameters
    ----------
    scheme : str, optional
        A name of :data:`~eddymotion.simulation.schemes.SCHEMES`. Default: that of `series`, or
        :data:`DEFAULT_SCHEME`.
    bval, bvec : Path, optional
        FSL tables instead, with components along the image axes of the simulated grid.
    phantom : (Path, Path), optional
        NIfTI maps; see :meth:`Phantom.from_files`. Default: :func:`procedural_head`.
    series : Path, optional
        A real series to fit instead, after its motion is corrected; see `head`.
    motion : str or Path
        Between volumes a :data:`~eddymotion.simulation.patterns.Pattern`, or a file to replay; see
        :func:`~eddymotion.simulation.motion.replayed_motion`; or, slice by slice, a
        :data:`~eddymotion.simulation.patterns.Course` or a table of
        :mod:`eddymotion.io.trajectory`.
    amplitude : float
        Factor on the motion.
    snr : float, optional
    coils : int
    coil_bias : float, optional
        See :func:`acquire`. Default: none for a fitted head, whose images have the shading of
        their coil already; else :data:`DEFAULT_COIL_BIAS`.
    dropout : float
        See :func:`acquire`.
    eddy_currents : {"none", "linear", "quadratic"}
    eddy_amplitude : float
    pe_axis : str
        See :func:`simulate_eddy_currents`.
    voxel_size : tuple of three, optional
        mm, right-left, anterior-posterior, superior-inferior. Default: those of `series`, or
        :data:`DEFAULT_VOXEL_SIZE`.
    orientation : str, optional
        Default: :data:`DEFAULT_ORIENTATION`. A fitted head keeps its own grid unless
        `voxel_size`, `orientation` or `oblique` is given.
    oblique : tuple of three, optional
        Extrinsic x, y, z rotation of the grid, degrees.
    random_seed : int
    head : {"synthetic", "fitted"}, optional
        A :class:`SyntheticHead` of that seed; or, of `series`, a :class:`HarmonicHead`. Default:
        `phantom`; or, of `series`, a :class:`FittedHead` after the motion is estimated.
    contrast : {"adult", "infant"}
        Of a synthetic head.
    cavity : {"none", "fluid", "empty"}
        In the head, 5 cm wide; see :mod:`eddymotion.simulation.variants`.
    coverage : {"whole", "slab", "cropped"}
        42 mm of slices; or all but the lowest 30 mm of the brain.
    kspace : KSpace, optional
        Measure in k-space, along `pe_axis`; its own axis and seed are not used. `coil_bias` is 0
        by default then.
    susceptibility : float
        Strength of the field of a synthetic head at 3 T; see
        :class:`~eddymotion.simulation.off_resonance.Magnetised`.
    readout_time : float
        TotalReadoutTime, s, where there is such a field.
    rigid_field : bool
        The field turns with the head and does not change.
    direction : str, optional
        Entity ``dir`` of the names. Noise and motion are drawn anew for each, the head is the
        same.
    repetition_time : float, optional
        From volume to volume, s; 4 by default.
    slice_order : {"interleaved", "sequential"}, optional
        Interleaved by default, where the motion goes on within volumes. With this or `multiband`
        the slice timing is told in any case.
    multiband : int, optional
        Slices that are excited together; 3 by default, likewise.
    slice_profile : float, optional
        See :func:`acquire`.
    """

    scheme: str | None = None
    bval: Path | None = None
    bvec: Path | None = None
    phantom: tuple[Path, Path] | None = None
    series: Path | None = None
    motion: str | Path = "moderate"
    amplitude: float = 1.0
    snr: float | None = 20.0
    coils: int = 1
    coil_bias: float | None = None
    dropout: float = 0.0
    eddy_currents: str = "none"
    eddy_amplitude: float = 1.0
    pe_axis: str = "j"
    voxel_size: tuple[float, float, float] | None = None
    orientation: str | None = None
    oblique: tuple[float, float, float] | None = None
    random_seed: int = 0
    head: str | None = None
    contrast: Contrast = "adult"
    cavity: Cavity = "none"
    coverage: Coverage = "whole"
    kspace: KSpace | None = None
    susceptibility: float = 0.0
    readout_time: float = 0.05
    rigid_field: bool = False
    direction: str | None = None
    repetition_time: float | None = None
    slice_order: SliceOrder | None = None
    multiband: int | None = None
    slice_profile: float | None = None

    @property
    def moves_within(self) -> bool:
        """Whether the head moves while a volume is scanned."""
        if isinstance(self.motion, Path):
            return self.motion.suffix == ".tsv" and is_trajectory(self.motion)
        return self.motion in COURSES

    @property
    def timing(self) -> SliceTiming:
        """When slices are excited."""
        order, multiband = self.slice_order or "interleaved", self.multiband or DEFAULT_MULTIBAND
        seconds = self.repetition_time
        default: float = METADATA["RepetitionTime"]
        return SliceTiming(order, multiband, default if seconds is None else seconds)

    @property
    def seed(self) -> int:
        """Of noise and motion."""
        if self.direction is None:
            return self.random_seed
        entropy = [self.random_seed, *self.direction.encode()]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])


@dataclass(frozen=True, eq=False)
class Simulation:
    """A simulated series and all that is true about it.

    Parameters
    ----------
    recipe : Recipe
    head : Head
    grid : Grid
    dwi : DWI
    motion : Motion
        Reference → volume; mean poses, where the head moves within volumes.
    kept : (N, Z) array
        What each slice kept of its signal.
    eddy : EddyCurrents, optional
    coil_bias : float
    magnetised : Magnetised, optional
        The head and its off-resonance field.
    trajectory : SlicePoses, optional
        Reference → slice, where the slice timing is simulated.
    """

    recipe: Recipe
    head: Head
    grid: Grid
    dwi: DWI
    motion: Motion
    kept: np.ndarray
    eddy: EddyCurrents | None
    coil_bias: float
    magnetised: Magnetised | None = None
    trajectory: SlicePoses | None = None

    __repr__ = short_repr

    @property
    def summary(self) -> str:
        """What it is, in a line."""
        recipe = self.recipe
        scheme = recipe.bval.name if recipe.bval else recipe.scheme
        scheme = scheme or ("own" if recipe.series else DEFAULT_SCHEME)
        sizes = "×".join(f"{size:.3g}" for size in self.dwi.voxel_sizes)
        shape = "×".join(map(str, self.grid.shape))
        parts = [f"{len(self.motion)} volumes (scheme {scheme}) of {shape} voxels, {sizes} mm"]
        parts.append(f"motion {Path(recipe.motion).name}")
        if recipe.amplitude != 1:
            parts[-1] += f" × {recipe.amplitude:g}"
        if recipe.snr is None:
            parts.append("no noise")
        else:
            kind = "Rician" if recipe.coils == 1 else f"{recipe.coils}-coil chi"
            parts.append(f"SNR {recipe.snr:g} ({kind} noise)")
        if self.coil_bias:
            parts.append(f"coil bias {self.coil_bias:g}")
        if recipe.dropout:
            parts.append(f"{(self.kept < 1).sum()} dropped slices")
        if self.eddy:
            parts.append(f"{recipe.eddy_currents} eddy currents, {recipe.eddy_amplitude:g} mm")
        if self.magnetised:
            changing = "" if recipe.rigid_field else " that changes with the pose"
            parts.append(f"susceptibility × {recipe.susceptibility:g}{changing}")
        parts += self._coverage()
        parts += self._slices()
        if recipe.kspace:
            parts.append(f"in k-space, coil field {recipe.kspace.coil_variation:g}:1")
        return f"{_head_name(recipe)}; " + ", ".join(parts)

    def _slices(self) -> list[str]:
        """Say when slices are excited and what they see, if that is simulated."""
        parts = []
        if self.trajectory is not None:
            groups = self.trajectory.groups
            parts.append(f"{len(groups)} excitations a volume (multiband {max(map(len, groups))})")
        if self.recipe.slice_profile:
            parts.append(f"slice profile {self.recipe.slice_profile:g} mm")
        return parts

    def _coverage(self) -> list[str]:
        """Say which part of the head is scanned, if not all of it."""
        words = {"slab": f"slab of {SLAB_MM:g} mm", "cropped": f"lowest {CROPPED_MM:g} mm cut off"}
        return [words[self.recipe.coverage]] if self.recipe.coverage in words else []


def simulate(
    recipe: Recipe,
    *,
    gradients: Gradients | None = None,
    n_threads: int = 1,
    progress: Progress = silent,
) -> Simulation:
    """Follow a recipe; the result does not depend on `n_threads`.

    Parameters
    ----------
    recipe : Recipe
    gradients : Gradients, optional
        RAS+, in place of those that the recipe names.
    n_threads : int
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Raises
    ------
    EddymotionError
        If a file cannot be used or does not fit the others.
    """
    if isinstance(recipe.motion, Path):
        rigid_matrices(recipe.motion, np.zeros(3))  # before what takes long: is it one at all?
    _ = recipe.timing
    head, own = _head_and_scheme(recipe, n_threads)
    grid = _grid(recipe, head)
    head = with_cavity(head, recipe.cavity)
    grid = covered(grid, head, recipe.coverage)
    if gradients is None:
        gradients = _gradients(recipe, own, grid)
    trajectory = _trajectory(recipe, len(gradients), grid)
    motion = trajectory.mean(grid.center) if trajectory else _motion(recipe, len(gradients), grid)
    seed, eddy = recipe.seed, None
    if recipe.eddy_currents in get_args(Order):
        eddy = simulate_eddy_currents(
            gradients, grid, order=cast(Order, recipe.eddy_currents),
            amplitude=recipe.eddy_amplitude, pe_axis=recipe.pe_axis, seed=seed,
        )  # fmt: skip
    coil_bias = recipe.coil_bias
    if coil_bias is None:
        coil_bias = 0.0 if recipe.series or recipe.kspace else DEFAULT_COIL_BIAS
    magnetised = _magnetised(recipe, head)
    distortion = None
    if magnetised:
        readout = Readout.of(grid.affine, recipe.pe_axis, recipe.readout_time)
        distortion = magnetised.distortion(readout, changing=not recipe.rigid_field)
    dwi = acquire(
        head, gradients, trajectory if recipe.moves_within and trajectory else motion, grid,
        snr=recipe.snr, coils=recipe.coils, coil_bias=coil_bias, dropout=recipe.dropout, eddy=eddy,
        kspace=_kspace(recipe), distortion=distortion, slice_profile=recipe.slice_profile,
        seed=seed, n_threads=n_threads, progress=progress,
    )  # fmt: skip
    metadata = _timing_metadata(recipe, trajectory)
    acquisition = Acquisition.every(
        gradients, grid.affine, repetition_time=metadata["RepetitionTime"],
        slicing=Slicing.of(metadata, grid.shape),
        phase_encoding=recipe.pe_axis if eddy or recipe.kspace or distortion else None,
        readout_time=recipe.readout_time if distortion else None,
    )  # fmt: skip
    dwi = replace(dwi, acquisition=acquisition)
    kept = dropped_slices(gradients, grid.shape[2], recipe.dropout, seed)
    return Simulation(
        recipe, head, grid, dwi, motion, kept, eddy, coil_bias, magnetised, trajectory
    )


def write_simulation(
    folder: Path,
    name: str,
    made: Simulation,
    *,
    session: str | None = None,
    ideal: bool = False,
    n_threads: int = 1,
) -> Path:
    """Write a simulated series as BIDS, and the truth under ``truth/``.

    All files are written, or none. What an earlier series of that name left is removed; other
    participants stay.

    Parameters
    ----------
    folder : Path
    name : str
        Participant label.
    made : Simulation
    session : str, optional
        Session label.
    ideal : bool
        Write the series of the head at rest, free of noise and artefacts, too.
    n_threads : int

    Returns
    -------
    Path
        The image.
    """
    direction = made.recipe.direction
    image = image_path(folder, name, session, direction)
    truth = truth_stem(folder, name, session, direction)
    gain = integer_gain(made.dwi.signal)
    metadata = METADATA | _timing_metadata(made.recipe, made.trajectory)
    if made.eddy or made.recipe.kspace or made.magnetised:
        metadata["PhaseEncodingDirection"] = made.recipe.pe_axis
    if made.magnetised:
        metadata["TotalReadoutTime"] = made.recipe.readout_time
    write_dataset_files(folder, _description(made.recipe))
    with together() as written:
        _write_truth(truth, made, gain, ideal, n_threads)
        write_bids(folder, name, made.dwi, made.motion, session=session, direction=direction,
                   metadata=metadata, gain=gain)  # fmt: skip
    for old in truth.parent.glob(f"{truth.name}_[!_]*"):
        if old not in written and not old.name.removeprefix(truth.name).startswith(OTHERS):
            old.unlink()
    write_detailed_readme(folder)
    return image


def _write_truth(truth: Path, made: Simulation, gain: float, ideal: bool, n_threads: int) -> None:
    """Write what is true beside the motion."""
    write_dropped_table(truth.with_name(f"{truth.name}_dropped.tsv"), made.kept)
    if made.trajectory:
        path = truth.with_name(f"{truth.name}_trajectory.tsv")
        write_trajectory(path, made.trajectory, made.grid.center)
    if made.eddy:
        write_eddy_table(truth.with_name(f"{truth.name}_eddy.tsv"), made.eddy)
    if made.magnetised:
        hertz = made.magnetised.hertz_on(made.grid)
        write_image(truth.with_name(f"{truth.name}_fieldmap.nii.gz"), hertz, made.grid.affine)
    write_image(truth.with_name(f"{truth.name}_mask.nii.gz"), true_mask(made), made.grid.affine)
    if ideal:
        at_rest = ideal_series(made, n_threads)
        scaled = at_rest.signal * np.float32(gain)
        write_image(truth.with_name(f"{truth.name}_ideal_dwi.nii.gz"), scaled, at_rest.affine)
    write_json(truth.with_name(f"{truth.name}_settings.json"), _settings(made, gain))


def ideal_series(made: Simulation, n_threads: int = 1) -> DWI:
    """Scan the head at rest, with no noise, shading, dropout and eddy currents."""
    still = Motion.identity(len(made.motion))
    return acquire(made.head, made.dwi.gradients, still, made.grid, snr=None, n_threads=n_threads)


def true_mask(made: Simulation) -> np.ndarray:
    """Voxels of the grid that are brain when the head is at rest, (X, Y, Z) uint8."""
    to_head = np.linalg.inv(made.head.affine) @ made.grid.affine
    share = voxel_means(made.head.brain.astype(np.float32), to_head, made.grid.shape)
    return (share.T > 0.5).astype(np.uint8)


def refuse_unsimulated(folder: Path) -> None:
    """Raise if a folder holds a dataset of another kind."""
    description = folder / "dataset_description.json"
    if description.exists() and read_json(description).get("Name") != DATASET_NAME:
        raise EddymotionError(
            f"{folder}: holds a dataset that was not simulated; give another folder"
        )


def check_destination(folder: Path, image: Path, *, overwrite: bool) -> None:
    """Refuse to write over an image, or into a dataset of another kind.

    Raises
    ------
    EddymotionError
        Saying what to do instead.
    """
    refuse_unsimulated(folder)
    if image.exists() and not overwrite:
        raise EddymotionError(
            f"{image}: exists; give another --participant-label, or --overwrite to replace it"
        )


def _description(recipe: Recipe) -> dict[str, Any]:
    """Describe the dataset; whose head it is decides on the licence."""
    mine = not (recipe.series or recipe.phantom)
    content = {key: value for key, value in DESCRIPTION.items() if mine or key != "License"}
    return content | {"GeneratedBy": [{"Name": "eddymotion-simulate", "Version": __version__}]}


def _head_name(recipe: Recipe) -> str:
    name = _head_source(recipe)
    return name if recipe.cavity == "none" else f"{name} with a cavity ({recipe.cavity})"


def _head_source(recipe: Recipe) -> str:
    if recipe.series:
        how = " by harmonics" if recipe.head == "fitted" else ""
        return f"head fitted to {recipe.series.name}{how}"
    if recipe.head == "synthetic":
        return f"synthetic {recipe.contrast} head"
    return f"phantom {recipe.phantom[0].name}" if recipe.phantom else "built-in head"


def _head_and_scheme(recipe: Recipe, n_threads: int) -> tuple[Head, Gradients | None]:
    """Return the head, and the scheme that comes with it."""
    if recipe.head == "synthetic":
        return SyntheticHead(recipe.random_seed, recipe.contrast), None
    if recipe.series:
        dwi = load(recipe.series)
        if recipe.head == "fitted":
            return HarmonicHead.from_series(dwi, n_threads=n_threads), dwi.gradients
        log.info("fit: aligning the volumes of %s first", recipe.series.name)
        motion = estimate_motion(dwi, n_threads=n_threads)
        return FittedHead.from_series(dwi, motion, n_threads=n_threads), dwi.gradients
    if recipe.phantom:
        return Phantom.from_files(*recipe.phantom), None
    return procedural_head(), None


def _grid(recipe: Recipe, head: Head) -> Grid:
    box: Box = head
    sizes = recipe.voxel_size or (DEFAULT_VOXEL_SIZE,) * 3
    if isinstance(head, SeriesHead):
        box = head.field_of_view
        if not (recipe.voxel_size or recipe.orientation or recipe.oblique):
            return head.field_of_view
        sizes = recipe.voxel_size or _sizes_in_ras(box.affine)
    rotation = Rotation.from_euler("xyz", recipe.oblique or (0, 0, 0), degrees=True).as_matrix()
    return Grid.covering(box, sizes, recipe.orientation or DEFAULT_ORIENTATION, rotation)


def _sizes_in_ras(affine: np.ndarray) -> tuple[float, float, float]:
    """Voxel sizes in the order right-left, anterior-posterior, superior-inferior."""
    nearest = np.argmax(np.abs(image_axes(affine)), axis=1)
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)[nearest].tolist()
    return x, y, z


def _gradients(recipe: Recipe, own: Gradients | None, grid: Grid) -> Gradients:
    if recipe.bval and recipe.bvec:
        bvals, bvecs = read_gradient_table(recipe.bval, recipe.bvec)
        return Gradients(bvals, from_fsl(bvecs, grid.affine))
    if own is not None and recipe.scheme is None:
        return own
    return SCHEMES[recipe.scheme or DEFAULT_SCHEME].build()


def _motion(recipe: Recipe, n_volumes: int, grid: Grid) -> Motion:
    center = grid.center
    if isinstance(recipe.motion, Path):
        motion = replayed_motion(recipe.motion, n_volumes, center)
    else:
        motion = simulate_motion(cast(Pattern, recipe.motion), n_volumes, center, seed=recipe.seed)
    return motion if recipe.amplitude == 1 else amplified(motion, recipe.amplitude, center)


def _trajectory(recipe: Recipe, n_volumes: int, grid: Grid) -> SlicePoses | None:
    """Return where the head is at each excitation, if their times are simulated."""
    n_slices, timing = grid.shape[2], recipe.timing
    if not recipe.moves_within:
        if recipe.slice_order is None and recipe.multiband is None:
            return None
        groups, times = timing.groups(n_slices), timing.excitations(n_volumes, n_slices)
        return SlicePoses.of_volumes(_motion(recipe, n_volumes, grid), groups, times)
    if isinstance(recipe.motion, Path):
        if {recipe.repetition_time, recipe.slice_order, recipe.multiband} != {None}:
            raise EddymotionError(
                f"{recipe.motion}: tells the slice timing itself; leave out the slice order, the "
                "multiband factor and the repetition time"
            )
        replayed = replayed_trajectory(recipe.motion, n_volumes, n_slices, grid.center)
        return amplified_trajectory(replayed, recipe.amplitude, grid.center)
    return simulate_course(
        cast(Course, recipe.motion), n_volumes, n_slices, timing, grid.center,
        amplitude=recipe.amplitude, seed=recipe.seed,
    )  # fmt: skip


def _timing_metadata(recipe: Recipe, trajectory: SlicePoses | None) -> dict[str, Any]:
    """Return what the sidecar tells of times."""
    told = slice_metadata(trajectory) if trajectory else {}
    return {"RepetitionTime": recipe.timing.repetition_time} | told


def _magnetised(recipe: Recipe, head: Head) -> Magnetised | None:
    """Return the head in the scanner's field, where it is to have one of its own."""
    if not recipe.susceptibility:
        return None
    if not isinstance(head, SyntheticHead):
        raise EddymotionError(
            "susceptibility needs to know where there is air, which a synthetic head without a "
            "cavity alone does; give head='synthetic', or leave the susceptibility out"
        )
    return Magnetised(head, strength=recipe.susceptibility)


def _kspace(recipe: Recipe) -> KSpace | None:
    """Return the settings of k-space with what the recipe says of it elsewhere."""
    if recipe.kspace is None:
        return None
    return replace(recipe.kspace, pe_axis=recipe.pe_axis, seed=recipe.seed)


def _settings(made: Simulation, gain: float) -> dict[str, Any]:
    """Return what made a series, JSON-ready."""
    settings = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in asdict(made.recipe).items()
    }
    settings["phantom"] = [str(path) for path in made.recipe.phantom or ()] or None
    settings["coil_bias"] = made.coil_bias
    if kspace := _kspace(made.recipe):
        settings["kspace"] = asdict(kspace)
    content: dict[str, Any] = {
        "summary": made.summary,
        "version": __version__,
        "settings": settings,
        "shape": list(made.grid.shape),
        "affine": made.grid.affine.tolist(),
        "noise_standard_deviation": _noise(made) * gain,
        "intensity_gain": gain,
    }
    if made.eddy:
        content["eddy_currents"] = {
            "convention": "with u = (s - center_mm) / scale_mm and d the sum of the coefficients "
            "times x, y, z (xx, yy, zz, xy, xz, yz) of u, a point at scanner position s (RAS+ mm) "
            "is recorded at s - pe * d",
            "pe": made.eddy.pe.tolist(),
            "center_mm": made.eddy.center.tolist(),
            "scale_mm": SCALE_MM,
        }
    return content


def _noise(made: Simulation) -> float:
    return 0.0 if made.recipe.snr is None else float(made.head.white_signal / made.recipe.snr)
