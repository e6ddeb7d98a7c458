# SPDX-License-Identifier: Apache-2.0
"""A series made by a recipe, and all that is true about it."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast, get_args

import numpy as np
from nibabel.affines import voxel_sizes
from scipy.spatial.transform import Rotation

from eddymotion.data.acquisition import Acquisition, Slicing
from eddymotion.data.gradients import Gradients, from_fsl
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation import estimate_motion
from eddymotion.images.axes import image_axes
from eddymotion.images.grid import Box, Grid
from eddymotion.io.series import load
from eddymotion.io.tables import read_gradient_table
from eddymotion.machine.parallel import Progress, silent
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.off_resonance import Readout
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.acquisition import Imaging, dropped_slices
from eddymotion.simulation.base import Head
from eddymotion.simulation.courses import replayed_trajectory, simulate_course
from eddymotion.simulation.eddy_currents import (
    EddyCurrents,
    Order,
    simulate_eddy_currents,
)
from eddymotion.simulation.fitted import FittedHead, SeriesHead
from eddymotion.simulation.harmonics import HarmonicHead
from eddymotion.simulation.motion import (
    amplified,
    replayed_motion,
    rigid_matrices,
    simulate_motion,
)
from eddymotion.simulation.off_resonance import Magnetised
from eddymotion.simulation.patterns import Course, Pattern
from eddymotion.simulation.phantom import Phantom, procedural_head
from eddymotion.simulation.recipe import (
    DEFAULT_COIL_BIAS,
    DEFAULT_ORIENTATION,
    DEFAULT_SCHEME,
    DEFAULT_VOXEL_SIZE,
    Recipe,
)
from eddymotion.simulation.schemes import SCHEMES
from eddymotion.simulation.synthetic import SyntheticHead
from eddymotion.simulation.timing import slice_metadata
from eddymotion.simulation.variants import (
    CROPPED_MM,
    SLAB_MM,
    covered,
    with_cavity,
)
from eddymotion.wording import format_sizes, short_repr

log = logging.getLogger(__name__)


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
        parts = [self._size(), self._motion(), self._noise()]
        if self.coil_bias:
            parts.append(f"coil bias {self.coil_bias:g}")
        if recipe.dropout:
            parts.append(f"{(self.kept < 1).sum()} dropped slices")
        if self.eddy:
            parts.append(f"{recipe.eddy_current} eddy currents, {recipe.eddy_amplitude:g} mm")
        if self.magnetised:
            changing = "" if recipe.rigid_field else " that changes with the pose"
            parts.append(f"susceptibility × {recipe.susceptibility:g}{changing}")
        parts += self._coverage()
        parts += self._slices()
        if recipe.kspace:
            parts.append(f"in k-space, coil field {recipe.kspace.coil_variation:g}:1")
        return f"{recipe.head_name}; " + ", ".join(parts)

    def _size(self) -> str:
        scheme = self.recipe.bval.name if self.recipe.bval else self.recipe.scheme
        scheme = scheme or ("own" if self.recipe.series else DEFAULT_SCHEME)
        shape, sizes = (
            format_sizes(self.grid.shape),
            format_sizes(map(float, self.dwi.voxel_sizes)),
        )
        return f"{len(self.motion)} volumes (scheme {scheme}) of {shape} voxels, {sizes} mm"

    def _motion(self) -> str:
        name, amplitude = Path(self.recipe.motion).name, self.recipe.amplitude
        return f"motion {name}" + (f" × {amplitude:g}" if amplitude != 1 else "")

    def _noise(self) -> str:
        if self.recipe.snr is None:
            return "no noise"
        kind = "Rician" if self.recipe.coils == 1 else f"{self.recipe.coils}-coil chi"
        return f"SNR {self.recipe.snr:g} ({kind} noise)"

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

    Returns
    -------
    Simulation

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
    eddy, magnetised = _eddy_currents(recipe, gradients, grid), _magnetised(recipe, head)
    distortion = None
    if magnetised:
        readout = Readout.of(grid.affine, recipe.pe_axis, recipe.readout_time)
        distortion = magnetised.distortion(readout, changing=not recipe.rigid_field)
    coil_bias = _coil_bias(recipe)
    imaging = Imaging(
        snr=recipe.snr, coils=recipe.coils, coil_bias=coil_bias, dropout=recipe.dropout, eddy=eddy,
        kspace=recipe.measurement, distortion=distortion, slice_profile=recipe.slice_profile,
    )  # fmt: skip
    dwi = imaging.scan(
        head, gradients, trajectory if recipe.moves_within and trajectory else motion, grid,
        seed=recipe.seed, n_threads=n_threads, progress=progress,
    )  # fmt: skip
    metadata = timing_metadata(recipe, trajectory)
    acquisition = Acquisition.every(
        gradients, grid.affine, repetition_time=metadata["RepetitionTime"],
        slicing=Slicing.of(metadata, grid.shape),
        phase_encoding=recipe.pe_axis if eddy or recipe.kspace or distortion else None,
        readout_time=recipe.readout_time if distortion else None,
    )  # fmt: skip
    dwi = replace(dwi, acquisition=acquisition)
    kept = dropped_slices(gradients, grid.shape[2], recipe.dropout, recipe.seed)
    return Simulation(
        recipe, head, grid, dwi, motion, kept, eddy, coil_bias, magnetised, trajectory
    )


def _eddy_currents(recipe: Recipe, gradients: Gradients, grid: Grid) -> EddyCurrents | None:
    if recipe.eddy_current not in get_args(Order):
        return None
    return simulate_eddy_currents(
        gradients, grid, order=cast(Order, recipe.eddy_current), amplitude=recipe.eddy_amplitude,
        pe_axis=recipe.pe_axis, seed=recipe.seed,
    )  # fmt: skip


def _coil_bias(recipe: Recipe) -> float:
    if recipe.coil_bias is not None:
        return recipe.coil_bias
    return 0.0 if recipe.series or recipe.kspace else DEFAULT_COIL_BIAS


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
    x, y, z = voxel_sizes(affine)[nearest].tolist()
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
    return amplified(motion, recipe.amplitude, center)


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
                f"{recipe.motion}: has its own slice timing; leave out the slice order, the "
                "multiband factor and the repetition time"
            )
        replayed = replayed_trajectory(recipe.motion, n_volumes, n_slices, grid.center)
        return amplified(replayed, recipe.amplitude, grid.center)
    return simulate_course(
        cast(Course, recipe.motion), n_volumes, n_slices, timing, grid.center,
        amplitude=recipe.amplitude, seed=recipe.seed,
    )  # fmt: skip


def timing_metadata(recipe: Recipe, trajectory: SlicePoses | None) -> dict[str, Any]:
    """Return the fields of the sidecar about timing."""
    of_slices = slice_metadata(trajectory) if trajectory else {}
    return {"RepetitionTime": recipe.timing.repetition_time} | of_slices


def _magnetised(recipe: Recipe, head: Head) -> Magnetised | None:
    """Return the head in the scanner's field, where it is to have one of its own."""
    if not recipe.susceptibility:
        return None
    if not isinstance(head, SyntheticHead):
        raise EddymotionError(
            "susceptibility needs the air cavities, which are known only for a synthetic head "
            "without a cavity in the brain; give head='synthetic', or leave the susceptibility "
            "out"
        )
    return Magnetised(head, strength=recipe.susceptibility)
