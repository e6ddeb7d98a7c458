# SPDX-License-Identifier: Apache-2.0
"""What a registration of two images amounts to, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

import nibabel as nib
import numpy as np
import scipy
from nibabel.affines import apply_affine, voxel_sizes

from eddymotion.images.grid import grid_center, grid_points
from eddymotion.images.image import Image
from eddymotion.mapping.registration import Registration, Warp
from eddymotion.registration.checks import inside_grid
from eddymotion.registration.metrics import Information

N_BINS = 32
"""Of the histogram along each side."""

TAILS = (0.002, 0.998)
"""Quantiles between which the bins are spread."""

SLAB_POINTS = 2**20
"""Number of voxels, about, that are resampled at a time."""

MAX_POINTS = 200_000
"""Voxels at which displacements are reported."""


@dataclass(frozen=True, eq=False)
class Parameters:
    """An affine matrix as people read it: ``x → R U (x − c) + c + t``.

    Parameters
    ----------
    translation : (3,) array
        t: displacement of the centre c, mm.
    rotation : (3,) array
        Extrinsic x, y, z angles of R, degrees.
    angle : float
        Of R about its axis, degrees.
    scales, shears : (3,) array
        Diagonal (x, y, z) and the rest (xy, xz, yz) of the symmetric stretch U.
    volume : float
        Its determinant.
    """

    translation: np.ndarray
    rotation: np.ndarray
    angle: float
    scales: np.ndarray
    shears: np.ndarray
    volume: float

    @classmethod
    def of(cls, matrix: np.ndarray, center: np.ndarray) -> Parameters:
        """Decompose a (4, 4) matrix, RAS+ mm; the rotation is the one nearest to it."""
        linear = np.asarray(matrix, float)[:3, :3]
        turn, stretch = scipy.linalg.polar(linear)
        rotation = scipy.spatial.transform.Rotation.from_matrix(
            turn * np.sign(np.linalg.det(turn))
        )
        return cls(
            apply_affine(matrix, center) - center,
            np.rad2deg(rotation.as_euler("xyz")),
            float(np.rad2deg(rotation.magnitude())),
            np.diag(stretch),
            stretch[[0, 0, 1], [1, 2, 2]],
            float(np.linalg.det(linear)),
        )


@dataclass(frozen=True, eq=False)
class Agreement:
    """How two images on one grid go together.

    Parameters
    ----------
    similarity : float
        Normalised mutual information, from 1 (nothing in common) to 2; NaN without overlap.
    correlation : float
        Pearson's, where both show something.
    share : float
        Part of the fixed image's head that lies within the moving image, 0 … 1.
    dice : float
        Of both masks; NaN without them.
    """

    similarity: float
    correlation: float
    share: float
    dice: float

    @classmethod
    def of(
        cls,
        fixed: np.ndarray,
        shown: np.ndarray,
        inside: np.ndarray,
        head: np.ndarray,
        masks: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Agreement:
        """Compare.

        Parameters
        ----------
        fixed : (X, Y, Z) array
        shown : (X, Y, Z) array
            The moving image on the grid of the fixed one.
        inside, head : (X, Y, Z) bool array
            Where there is a moving image, and where the fixed one shows something.
        masks : pair of (X, Y, Z) bool arrays, optional
            Of both images, on the fixed grid.
        """
        where = inside & head
        share = float(where.sum() / max(head.sum(), 1))
        dice = np.nan
        if masks is not None:
            both = masks[0].sum() + masks[1].sum()
            dice = float(2 * (masks[0] & masks[1]).sum() / max(both, 1))
        if where.sum() < N_BINS:
            return cls(np.nan, np.nan, share, dice)
        a, b = fixed[where], shown[where]
        flat = np.ptp(a) == 0 or np.ptp(b) == 0
        correlation = np.nan if flat else float(np.corrcoef(a, b)[0, 1])
        return cls(mutual_information(a, b), correlation, share, dice)


def mutual_information(a: np.ndarray, b: np.ndarray) -> float:
    """Return the normalised mutual information (H(a) + H(b)) / H(a, b) of paired values (P,).

    References
    ----------
    Studholme et al. (1999), Pattern Recognition 32:71.
    """
    joint, _, _ = np.histogram2d(_clipped(a), _clipped(b), bins=N_BINS)
    return Information.of(joint / joint.sum()).normalised


def _clipped(values: np.ndarray) -> np.ndarray:
    low, high = np.quantile(values, TAILS)
    return np.clip(values, low, high if high > low else low + 1.0)


@dataclass(frozen=True, eq=False)
class PairOverlay:
    """The moving image on the grid of the fixed one.

    Parameters
    ----------
    shown : (X, Y, Z) array
    inside : (X, Y, Z) bool array
        Where there is a moving image.
    agreement : Agreement
    """

    shown: np.ndarray
    inside: np.ndarray
    agreement: Agreement

    @classmethod
    def of(
        cls,
        fixed: Image,
        moving: Image,
        registration: Registration,
        head: np.ndarray,
        order: int = 1,
        masks: tuple[np.ndarray | None, np.ndarray | None] = (None, None),
    ) -> PairOverlay:
        """Resample the moving image once, and compare.

        Parameters
        ----------
        fixed, moving : Image
        registration : Registration
            Fixed → moving.
        head : (X, Y, Z) bool array
            Where the fixed image shows something.
        order : int
            Of the spline.
        masks : pair of (X, Y, Z) bool arrays or None
            Of the fixed and of the moving image.
        """
        shown, inside = resampled_onto(fixed, moving, registration, order)
        both = None
        if masks[0] is not None and masks[1] is not None:
            mask = Image(masks[1].astype(np.float32), moving.affine)
            both = (masks[0], resampled_onto(fixed, mask, registration, 1)[0] > 0.5)
        return cls(shown, inside, Agreement.of(fixed.data, shown, inside, head, both))


def resampled_onto(
    fixed: Image, moving: Image, registration: Registration, order: int
) -> tuple[np.ndarray, np.ndarray]:
    """Resample the moving image once onto the grid of the fixed one, with NiTransforms.

    As in :mod:`eddymotion.resampling`, what lies up to half a voxel outside belongs to the image,
    and an image without negative values gets none.

    Parameters
    ----------
    fixed, moving : Image
    registration : Registration
        Fixed → moving.
    order : int
        Of the spline.

    Returns
    -------
    shown : (X, Y, Z) float32 array
        Zero outside the moving image.
    inside : (X, Y, Z) bool array
    """
    from nitransforms.base import TransformBase
    from nitransforms.resampling import apply
    from scipy.ndimage import spline_filter

    class Map(TransformBase):
        ndim = 3

        def map(self, x: np.ndarray, inverse: bool = False) -> np.ndarray:
            return registration.map(x, inverse=inverse)

    data = np.asarray(moving.data, np.float32)
    filtered = spline_filter(data, order, np.float32, mode="mirror") if order > 1 else data
    image = nib.Nifti1Image(filtered, moving.affine)
    shape = fixed.data.shape
    shown, inside = np.zeros(shape, np.float32), np.zeros(shape, bool)
    thickness = max(1, SLAB_POINTS // (shape[0] * shape[1]))
    for start in range(0, shape[2], thickness):
        part = shown[:, :, start : start + thickness]
        affine = fixed.affine.copy()
        affine[:3, 3] += affine[:3, 2] * start
        slab = nib.Nifti1Image(np.broadcast_to(np.uint8(0), part.shape), affine)
        read = apply(Map(slab), image, order=order, mode="mirror", prefilter=False)
        part[:] = np.asarray(read.dataobj).reshape(part.shape)
        points = grid_points(part.shape, affine)
        within = inside_grid(registration.map(points), moving).reshape(part.shape)
        inside[:, :, start : start + thickness] = within
    shown[~inside] = 0.0
    return np.maximum(shown, 0.0) if data.min() >= 0 else shown, inside


@dataclass(frozen=True, eq=False)
class Displacements:
    """How far a registration moves the head of the fixed image.

    Parameters
    ----------
    mean, largest : float
        mm
    n_folds : int
        Voxels of the warp's grid in which it turns space inside out; zero for linear transforms.
    jacobian : (2,) array
        Smallest and largest local change of volume by the whole transform.
    """

    mean: float
    largest: float
    n_folds: int
    jacobian: tuple[float, float]

    @classmethod
    def of(cls, registration: Registration, fixed: Image, head: np.ndarray) -> Displacements:
        """Measure at the voxels of the head, (X, Y, Z) bool."""
        voxels = np.argwhere(head)
        points = apply_affine(fixed.affine, voxels[:: -(-len(voxels) // MAX_POINTS)])
        lengths = np.linalg.norm(registration.map(points) - points, axis=1)
        change = float(np.linalg.det(registration.matrix[:3, :3]))
        local = np.ones(1) if registration.warp is None else _local(registration.warp, points)
        return cls(
            float(lengths.mean()), float(lengths.max()), int((local <= 0).sum()),
            (float(local.min()) * change, float(local.max()) * change),
        )  # fmt: skip


def _local(warp: Warp, points: np.ndarray) -> np.ndarray:
    """Return the local change of volume in the voxels of the warp that points (P, 3) lie in."""
    change = jacobian(warp)
    voxels = np.rint(apply_affine(np.linalg.inv(warp.affine), points)).astype(int)
    inside = ((voxels >= 0) & (voxels < change.shape)).all(axis=1)
    voxels = np.unique(voxels[inside], axis=0)
    return change[tuple(voxels.T)] if len(voxels) else np.ones(1)


def jacobian(warp: Warp) -> np.ndarray:
    """Return the local change of volume of the forward warp, (X, Y, Z)."""
    sizes = voxel_sizes(warp.affine)
    axes = warp.affine[:3, :3] / sizes
    slopes = np.stack(
        [np.gradient(warp.forward, sizes[k], axis=k) for k in range(3)], axis=-1
    )  # (..., displacement, image axis)
    return np.linalg.det(np.eye(3) + slopes @ np.linalg.inv(axes))


@dataclass(frozen=True, eq=False)
class PairQuality:
    """All that is reported about a registered pair.

    Parameters
    ----------
    registration : Registration
    parameters : Parameters
        Of its matrix, about the centre of the fixed grid.
    before, after : Agreement
        As the files lie, and through the registration.
    displacements : Displacements
    linear : Agreement, optional
        Through the matrix alone, where there is a warp.
    """

    registration: Registration
    parameters: Parameters
    before: Agreement
    after: Agreement
    displacements: Displacements
    linear: Agreement | None

    @classmethod
    def of(
        cls,
        registration: Registration,
        fixed: Image,
        head: np.ndarray,
        before: Agreement,
        after: Agreement,
        linear: Agreement | None = None,
    ) -> PairQuality:
        """Measure; `head` (X, Y, Z) is where the fixed image shows something."""
        center = grid_center(fixed.data.shape, fixed.affine)
        return cls(
            registration, Parameters.of(registration.matrix, center), before, after,
            Displacements.of(registration, fixed, head), linear,
        )  # fmt: skip
