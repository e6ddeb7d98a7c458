# SPDX-License-Identifier: Apache-2.0
"""A scan of a moving head: series with known truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from nibabel.affines import apply_affine

from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import Grid, block_means, grid_points
from eddymotion.images.image import Image, Spline
from eddymotion.images.kernels import sampled_grid, spline_coefficients
from eddymotion.images.masking import brain_mask
from eddymotion.machine.parallel import Progress, parallel_map, silent
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.slice_poses import SlicePoses
from eddymotion.simulation.base import ContinuousHead, Head, signal_of_volume
from eddymotion.simulation.echo_planar import Distortion, pushed_means
from eddymotion.simulation.eddy_currents import EddyCurrents
from eddymotion.simulation.encoding import Encoding
from eddymotion.simulation.kspace import KSpace, Scanner
from eddymotion.simulation.output import write_bids, write_motion_table
from eddymotion.simulation.sampling import SliceProfile, View
from eddymotion.simulation.slicewise import SliceScan

__all__ = [
    "COIL_SCALE_MM",
    "DROPOUT_FACTORS",
    "Grid",
    "acquire",
    "coil_sensitivity",
    "dropped_slices",
    "voxel_means",
    "write_bids",
    "write_motion_table",
]

COIL_SCALE_MM = 90.0
"""Unit of length of :func:`coil_sensitivity`: about the radius of a head."""

Volumes = Callable[[int], np.ndarray]
"""Number of a volume → its means over voxels."""

DROPOUT_FACTORS = (0.1, 0.5)
"""Least and largest share of its signal that a dropped slice keeps."""


def acquire(
    phantom: Head,
    gradients: Gradients,
    motion: Motion | SlicePoses,
    grid: Grid,
    *,
    snr: float | None = 20.0,
    coils: int = 1,
    coil_bias: float = 0.0,
    dropout: float = 0.0,
    eddy: EddyCurrents | None = None,
    kspace: KSpace | None = None,
    distortion: Distortion | None = None,
    slice_profile: float | None = None,
    seed: int = 0,
    n_threads: int = 1,
    progress: Progress = silent,
) -> DWI:
    """Scan a moving head.

    The phantom is the head in the reference frame; in volume ``i`` it is moved by ``motion[i]``
    and sees the scanner's gradient turned back by that rotation. What moves within volumes is
    scanned slice by slice, each at its own pose and with its own gradient in the head; that a
    tissue which leaves its slice is excited too early or too late is left out.

    Parameters
    ----------
    phantom : Head
        A :class:`~eddymotion.simulation.Phantom`, or anything else that gives a signal.
    gradients : Gradients
        Of the scanner, RAS+.
    motion : Motion or SlicePoses
        Reference → volume, or → slice.
    grid : Grid
        Slices lie along the third axis.
    snr : float, optional
        Mean b=0 signal of white matter over the standard deviation of the noise in each of the
        two channels (Rician magnitude); None for no noise.
    coils : int
        Receive coils whose squares are summed: the noise is non-central chi with twice as many
        degrees of freedom; Rician with one.
    coil_bias : float
        Strength of the receive sensitivity, which stays with the scanner; see
        :func:`coil_sensitivity`. The noise is not scaled.
    dropout : float
        Share of the slices of the diffusion-weighted volumes that lose signal; see
        :func:`dropped_slices`.
    eddy : EddyCurrents, optional
        Fields that displace and stretch each volume.
    kspace : KSpace, optional
        Measure in k-space, under the receive field of an array, instead of averaging over each
        voxel; see :mod:`eddymotion.simulation.kspace`.
    distortion : Distortion, optional
        An off-resonance field that displaces and stretches each volume; not in k-space.
    slice_profile : float, optional
        Full width at half maximum (mm) of the Gaussian across a slice with which it sees the head;
        all between its two faces alike, and no more, when not given.
    seed : int
        Each volume has its own stream: the result does not depend on `n_threads`.
    n_threads : int
    progress : callable
        See :class:`~eddymotion.machine.parallel.Progress`.

    Returns
    -------
    DWI
        float32, with the mask of the mean b=0.

    Raises
    ------
    EddymotionError
        If a distortion is requested in k-space, or a motion within volumes does not fit the grid.
    """
    imaging = Imaging(
        snr=snr, coils=coils, coil_bias=coil_bias, dropout=dropout, eddy=eddy, kspace=kspace,
        distortion=distortion, slice_profile=slice_profile,
    )  # fmt: skip
    return imaging.scan(
        phantom, gradients, motion, grid, seed=seed, n_threads=n_threads, progress=progress
    )


@dataclass(frozen=True, eq=False)
class Imaging:
    """How a scanner makes images of a head, and what goes wrong; parameters as of :func:`acquire`.

    Raises
    ------
    EddymotionError
        If a distortion is requested in k-space.
    """

    snr: float | None
    coils: int
    coil_bias: float
    dropout: float
    eddy: EddyCurrents | None
    kspace: KSpace | None
    distortion: Distortion | None
    slice_profile: float | None

    def __post_init__(self) -> None:
        if self.kspace is not None and self.distortion is not None:
            raise EddymotionError(
                "acquire: distortion is not simulated in k-space; leave one of them out"
            )

    def scan(
        self,
        head: Head,
        gradients: Gradients,
        motion: Motion | SlicePoses,
        grid: Grid,
        *,
        seed: int,
        n_threads: int,
        progress: Progress,
    ) -> DWI:
        """Scan a moving head; parameters and result as of :func:`acquire`."""
        scanner = None if self.kspace is None else Scanner(self.kspace, grid)
        sigma = 0.0 if self.snr is None else head.white_signal / self.snr
        signal = np.empty((*grid.shape, len(gradients)), np.float32, order="F")
        streams = np.random.SeedSequence(seed).spawn(len(gradients))
        sensitivity = coil_sensitivity(grid, self.coil_bias).T
        kept = dropped_slices(gradients, grid.shape[2], self.dropout, seed)
        encoding = Encoding(self.eddy, self.distortion, scanner)
        means = _volumes(head, gradients, motion, grid, encoding, self.slice_profile)

        def scan_volume(index: int) -> None:
            random = np.random.default_rng(streams[index])
            image = means(index) * (sensitivity * kept[index][:, None, None])
            if scanner:
                image = scanner.magnitude(image, sigma, self.coils, random)
            elif sigma:
                image = _magnitude(image, sigma, self.coils, random)
            signal[..., index] = image.T

        parallel_map(scan_volume, range(len(gradients)), n_threads=n_threads, progress=progress,
                     description="scan")  # fmt: skip
        reference = signal[..., gradients.b0s] if len(gradients.b0s) else signal
        return DWI(signal, grid.affine, gradients, brain_mask(reference.mean(axis=3)))


def _volumes(
    head: Head,
    gradients: Gradients,
    motion: Motion | SlicePoses,
    grid: Grid,
    encoding: Encoding,
    slice_profile: float | None,
) -> Volumes:
    """Return what gives the noise-free volumes: whole ones, where nothing moves within them."""
    if isinstance(motion, Motion) and slice_profile is None:
        return WholeVolumes(head, gradients, motion, grid, encoding).means
    scanner = encoding.scanner
    if isinstance(motion, Motion):
        groups = (np.arange(grid.shape[2]),)
        motion = SlicePoses.of_volumes(motion, groups, np.zeros((len(motion), 1)))
    if slice_profile is None:
        profile = SliceProfile.box(scanner.settings.oversampling if scanner else 2)
    else:
        thickness = float(np.linalg.norm(grid.affine[:3, 2]))
        profile = SliceProfile.gaussian(slice_profile / thickness)
    scan = SliceScan(head, gradients, motion, grid, profile, encoding)
    if scanner:
        _ = scan.receive_fields  # before many threads ask for it
    return scan.means


@dataclass(frozen=True, eq=False)
class WholeVolumes:
    """What scans volumes at one pose each; parameters as of :func:`acquire`."""

    head: Head
    gradients: Gradients
    motion: Motion
    grid: Grid
    encoding: Encoding

    def __post_init__(self) -> None:
        if self.encoding.scanner:
            _ = self.encoding.scanner.receive_field  # before many threads ask for it

    @cached_property
    def _bvecs(self) -> np.ndarray:
        """Directions in the head, (N, 3)."""
        return self.gradients.rotated(self.motion.rotations).bvecs

    def means(self, index: int) -> np.ndarray:
        """Means over the voxels of a volume, (Z, Y, X); in k-space its complex image."""
        bval = 0.0 if self.gradients.is_b0[index] else self.gradients.bvals[index]
        pose = self.motion[index]
        scanner, distortion = self.encoding.scanner, self.encoding.distortion
        view = View(bval, self._bvecs[index], np.linalg.inv(pose), self.encoding.eddy, index)
        if scanner:
            return scanner.image(view.sampled(self.head, scanner.fine_grid))
        if distortion:
            hertz = distortion.field(pose)
            return pushed_means(self.head, view, self.grid, hertz, distortion.readout).T
        return np.maximum(_means(self.head, view, self.grid), 0.0)


def coil_sensitivity(grid: Grid, coil_bias: float) -> np.ndarray:
    """Sensitivity of a receive coil: fixed to the scanner, the head moves through it.

    ``exp(coil_bias * (x + 0.9 z + 0.5 y z))``, with x, y, z in RAS+ from the middle of the grid,
    in units of :data:`COIL_SCALE_MM`.

    Parameters
    ----------
    grid : Grid
    coil_bias : float
        Logarithmic slope along x; 0 for an even sensitivity of 1.

    Returns
    -------
    (X, Y, Z) float32 array
    """
    x, y, z = (grid_points(grid.shape, grid.affine) - grid.center).T / COIL_SCALE_MM
    sensitivity = np.exp(coil_bias * (x + 0.9 * z + 0.5 * y * z)).astype(np.float32)
    return sensitivity.reshape(grid.shape)


def dropped_slices(
    gradients: Gradients, n_slices: int, fraction: float, seed: int = 0
) -> np.ndarray:
    """Draw the slices that lose signal, as :func:`acquire` does for the same seed.

    Parameters
    ----------
    gradients : Gradients
    n_slices : int
        Along the third image axis.
    fraction : float
        Share of all slices of the diffusion-weighted volumes; b=0 volumes lose none.
    seed : int

    Returns
    -------
    (N, Z) float32 array
        What each slice keeps of its signal: 1, or between :data:`DROPOUT_FACTORS`.
    """
    stream = np.random.SeedSequence(seed).spawn(len(gradients) + 1)[-1]  # beside the volumes' own
    random = np.random.default_rng(stream)
    kept = np.ones((len(gradients), n_slices), np.float32)
    n_pairs = len(gradients.dwis) * n_slices
    which = random.choice(n_pairs, round(fraction * n_pairs), replace=False)
    volumes, slices = np.divmod(which, n_slices)
    kept[gradients.dwis[volumes], slices] = random.uniform(*DROPOUT_FACTORS, size=len(which))
    return kept


def voxel_means(head: np.ndarray, to_head: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Average an image over each voxel of a grid, at eight points: (Z, Y, X).

    A scanner's voxel has an extent. Sampling only its centre would alias, and leave a pull
    towards the phantom's own grid.

    Parameters
    ----------
    head : (X, Y, Z) array
    to_head : (4, 4) array
        Voxels of the grid → voxels of `head`.
    shape : tuple
        Of the grid.
    """
    coefficients = spline_coefficients(np.ascontiguousarray(head.T))
    total = np.zeros(shape[::-1], np.float32)
    for corner in np.ndindex(2, 2, 2):
        shifted = to_head.copy()
        shifted[:3, 3] += to_head[:3, :3] @ (np.array(corner) / 2 - 0.25)
        total += sampled_grid(coefficients, shifted, shape)
    return total / 8


def _means(phantom: Head, view: View, grid: Grid) -> np.ndarray:
    """Means of a volume over the voxels of a grid, at eight points of each: (Z, Y, X)."""
    if isinstance(phantom, ContinuousHead):
        return block_means(view.sampled(phantom, grid.refined((2, 2, 2))), (2, 2, 2))
    head = signal_of_volume(phantom, view.bval, view.bvec)
    if view.eddy is None:
        to_head = np.linalg.inv(phantom.affine) @ view.pose @ grid.affine
        return voxel_means(head, to_head, grid.shape)
    return _distorted_means(Image(head, phantom.affine), view.pose, grid, view.eddy, view.index)


def _distorted_means(
    head: Image, pose: np.ndarray, grid: Grid, eddy: EddyCurrents, index: int
) -> np.ndarray:
    """:func:`voxel_means` of a volume seen through an eddy-current field: (Z, Y, X).

    `pose` maps scanner positions to points of the head, RAS+ mm.
    """
    spline, voxels = Spline.of(head), grid.voxel_indices
    total = np.zeros(len(voxels), np.float32)
    for corner in np.ndindex(2, 2, 2):
        recorded = apply_affine(grid.affine, voxels + np.array(corner) / 2 - 0.25)
        origins, stretch = eddy.origin(index, recorded)
        total += np.nan_to_num(spline.sample(apply_affine(pose, origins))) / stretch
    return (total / 8).reshape(grid.shape[::-1])


def _magnitude(
    volume: np.ndarray, sigma: float, coils: int, random: np.random.Generator
) -> np.ndarray:
    """Add noise of deviation `sigma` to both channels of each coil; root of the sum of squares.

    All of the signal is in the first channel: the distribution of the magnitude depends on the
    sum of squares over the channels alone (Koay & Basser 2006).
    """
    noise = random.normal(scale=sigma, size=(2, *volume.shape))
    magnitude = np.hypot(volume + noise[0], noise[1])
    for _ in range(coils - 1):
        magnitude = np.hypot(magnitude, np.hypot(*random.normal(scale=sigma, size=noise.shape)))
    return magnitude
