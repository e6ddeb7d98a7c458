"""A scan of a moving head: series with known truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nibabel.affines import apply_affine
from nibabel.orientations import axcodes2ornt, inv_ornt_aff, ornt_transform

from eddymotion.dataset import DWI
from eddymotion.files import write_gradient_table, write_image, write_itk, write_json, write_text
from eddymotion.geometry import Motion, grid_center, rigid_parameters
from eddymotion.gradients import Gradients
from eddymotion.kernels import kernel_order, sample_grid, spline_coefficients
from eddymotion.masking import brain_mask
from eddymotion.parallel import parallel_map
from eddymotion.simulation.phantom import Phantom

COIL_SCALE_MM = 90.0
"""Unit of length of :func:`coil_sensitivity`: about the radius of a head."""

DROPOUT_FACTORS = (0.1, 0.5)
"""Least and largest share of its signal that a dropped slice keeps."""


@dataclass(frozen=True, eq=False)
class Grid:
    """Voxels of a scan: shape and affine (RAS+ mm)."""

    shape: tuple[int, int, int]
    affine: np.ndarray

    @classmethod
    def covering(
        cls,
        phantom: Phantom,
        voxel_sizes: float | Sequence[float] = 2.0,
        orientation: str = "RAS",
        rotation: np.ndarray | None = None,
    ) -> Grid:
        """Cover a phantom.

        Parameters
        ----------
        phantom : Phantom
        voxel_sizes : float or three
            mm, along right-left, anterior-posterior, superior-inferior.
        orientation : str
            Where the image axes point, as nibabel's axis codes: ``RAS``, ``LAS``, ``PSL`` …
        rotation : (3, 3) array, optional
            Turns the grid about the phantom's centre: an oblique scan.
        """
        sizes = np.broadcast_to(np.asarray(voxel_sizes, float), 3)
        size = np.array(phantom.tissue.shape[:3])
        extent = size * np.linalg.norm(phantom.affine[:3, :3], axis=0)
        shape = np.ceil(extent / sizes).astype(int)
        middle = grid_center(phantom.tissue.shape, phantom.affine)
        linear = (np.eye(3) if rotation is None else rotation) @ np.diag(sizes)
        affine = np.eye(4)
        affine[:3, :3] = linear
        affine[:3, 3] = middle - linear @ ((shape - 1) / 2)
        change = ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(orientation))
        turned = affine @ inv_ornt_aff(change, tuple(shape))
        order = np.argsort(change[:, 0])
        x, y, z = (int(shape[axis]) for axis in order)
        return cls((x, y, z), turned)


def acquire(
    phantom: Phantom,
    gradients: Gradients,
    motion: Motion,
    grid: Grid,
    *,
    snr: float | None = 20.0,
    coil_bias: float = 0.0,
    dropout: float = 0.0,
    seed: int = 0,
    n_threads: int = 1,
) -> DWI:
    """Scan a moving head.

    The phantom is the head in the reference frame; in volume ``i`` it is moved by ``motion[i]``
    and sees the scanner's gradient turned back by that rotation.

    Parameters
    ----------
    phantom : Phantom
    gradients : Gradients
        Of the scanner, RAS+.
    motion : Motion
        Reference → volume.
    grid : Grid
    snr : float, optional
        Mean b=0 signal of white matter over the standard deviation of the noise in each of the
        two channels (Rician magnitude); None for no noise.
    coil_bias : float
        Strength of the receive sensitivity, which stays with the scanner; see
        :func:`coil_sensitivity`. The noise is not scaled.
    dropout : float
        Share of the slices of the diffusion-weighted volumes that lose signal; see
        :func:`dropped_slices`.
    seed : int
        Each volume has its own stream: the result does not depend on `n_threads`.
    n_threads : int

    Returns
    -------
    DWI
        float32, with the mask of the mean b=0.
    """
    in_head = gradients.rotated(motion.rotations)
    b0 = phantom.signal(0.0, np.zeros(3))
    white = b0[phantom.tissue[..., 0] > 0.9].mean()
    sigma = 0.0 if snr is None else white / snr
    signal = np.empty((*grid.shape, len(gradients)), np.float32, order="F")
    streams = np.random.SeedSequence(seed).spawn(len(gradients))
    sensitivity = coil_sensitivity(grid, coil_bias).T
    kept = dropped_slices(gradients, grid.shape[2], dropout, seed)

    def scan(index: int) -> None:
        bval = 0.0 if gradients.is_b0[index] else gradients.bvals[index]
        head = phantom.signal(bval, in_head.bvecs[index])
        to_head = np.linalg.inv(phantom.affine) @ np.linalg.inv(motion[index]) @ grid.affine
        volume = np.maximum(voxel_means(head, to_head, grid.shape), 0.0)
        volume *= sensitivity * kept[index][:, None, None]
        if sigma:
            noise = np.random.default_rng(streams[index]).normal(
                scale=sigma, size=(2, *volume.shape)
            )
            volume = np.hypot(volume + noise[0], noise[1])
        signal[..., index] = volume.T

    parallel_map(scan, range(len(gradients)), n_threads=n_threads)
    reference = signal[..., gradients.b0s] if len(gradients.b0s) else signal
    return DWI(signal, grid.affine, gradients, brain_mask(reference.mean(axis=3)))


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
    voxels = np.moveaxis(np.indices(grid.shape), 0, -1)
    middle = grid_center(grid.shape, grid.affine)
    x, y, z = np.moveaxis((apply_affine(grid.affine, voxels) - middle) / COIL_SCALE_MM, -1, 0)
    return np.exp(coil_bias * (x + 0.9 * z + 0.5 * y * z)).astype(np.float32)


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
    sampled = np.empty_like(total)
    for corner in np.ndindex(2, 2, 2):
        shifted = to_head.copy()
        shifted[:3, 3] += to_head[:3, :3] @ (np.array(corner) / 2 - 0.25)
        sample_grid(
            coefficients,
            kernel_order(shifted),
            0.0,
            sampled,
        )
        total += sampled
    return total / 8


def write_bids(folder: Path, name: str, dwi: DWI, motion: Motion) -> Path:
    """Write a series as a BIDS dataset, and the truth beside it.

    Parameters
    ----------
    folder : Path
        Becomes the dataset's root.
    name : str
        Participant label.
    dwi : DWI
    motion : Motion
        The truth, reference → volume.

    Returns
    -------
    Path
        The image.
    """
    stem = folder / f"sub-{name}" / "dwi" / f"sub-{name}_dwi"
    write_image(stem.with_suffix(".nii.gz"), np.round(dwi.signal).astype(np.int16), dwi.affine)
    write_gradient_table(
        stem.with_suffix(".bval"), stem.with_suffix(".bvec"), dwi.gradients, dwi.affine
    )
    write_json(stem.with_suffix(".json"), {"Manufacturer": "simulated", "RepetitionTime": 4.0})
    write_json(
        folder / "dataset_description.json",
        {"Name": "Simulated head with known motion", "BIDSVersion": "1.10.0",
         "DatasetType": "raw", "License": "CC0", "Authors": ["eddymotion"]},
    )  # fmt: skip
    write_text(
        folder / "README",
        "Simulated by eddymotion: a procedural head with known motion. The true motion lies in\n"
        "truth/, as ITK transforms (reference to volume) and as parameters (mm, rad).\n",
    )
    write_text(folder / ".bidsignore", "truth/\n")
    write_itk(folder / "truth" / f"sub-{name}_xfm.txt", motion.matrices)
    write_motion_table(folder / "truth" / f"sub-{name}_motion.tsv", motion, dwi.center)
    return stem.with_suffix(".nii.gz")


def write_motion_table(path: Path, motion: Motion, center: np.ndarray) -> None:
    """Write six parameters a volume: translations of the grid centre (mm), angles (rad)."""
    rows = ["trans_x\ttrans_y\ttrans_z\trot_x\trot_y\trot_z"]
    rows += [
        "\t".join(f"{value:.8g}" for value in row)
        for row in rigid_parameters(motion.matrices, center)
    ]
    write_text(path, "\n".join(rows) + "\n")
