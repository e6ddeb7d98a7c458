# SPDX-License-Identifier: Apache-2.0
"""A series in the space of another image: T1w, template, FA map.

The reference of the series (its mean b=0, or its FA) is registered to that image. A voxel of the
output is then a point ``x`` of the image, ``space(x) = A w(x)`` of the reference frame, and
``T_i space(x)`` of volume ``i``: the original volumes are read once, there
(:func:`eddymotion.resampling.resample` with ``space``). b-vectors are turned by the rotation
nearest to ``A`` (finite strain), the same in the whole image; a local reorientation would give
each voxel a table of its own, which no file format holds.

What is to be found depends on the image: nothing for a mere grid, or for one at the same place; a
rigid transform for the same head; affine, then symmetric normalisation (SyN), for another head or
a template, which differ in size.

References
----------
Alexander et al. (2001), IEEE TMI 20:1131 (finite strain).
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from scipy.linalg import polar
from scipy.ndimage import binary_dilation

from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.errors import EddymotionError
from eddymotion.images.grid import grid_points
from eddymotion.images.image import Image
from eddymotion.images.pyramid import decimate
from eddymotion.io.transforms import write_linear
from eddymotion.io.warps import whole_displacements, write_displacements
from eddymotion.mapping.motion import Motion
from eddymotion.models.tensor import MIN_SIGNAL_FRACTION, design_matrix
from eddymotion.pairs.advice import advise
from eddymotion.pairs.measures import Comparison, PairQuality, resampled_onto
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.target import Target
from eddymotion.registration import GaussNewton, Registration, initial_transform
from eddymotion.registration.intensities import intensity_curve
from eddymotion.registration.problem import foreground, head_of
from eddymotion.wording import short_repr, shown

log = logging.getLogger(__name__)

REMEDY = (
    "look at the picture of the output space; give the brain of the image with "
    "--output-space-mask, or another --output-space-transform"
)

TRANSFORMS = ("auto", "none", "rigid", "affine", "syn")
CONTRASTS = ("dwiref", "fa")

SAME_SIZE = 0.06
"""Stretches below this are no sign of another head: gradients, and the distortion of echo-planar
images, make as much. Templates are a tenth larger than most heads."""

SAME_PLACE = 0.5
"""Voxels (of the finer image): a rigid registration that moves the brain by less on average says
that both images share their world coordinates."""

ONE_PLACE_MM = 1.0
"""Between two registrations of the brain that have ended at one place, on average."""

MIRRORED = 1.05
"""Above so many times the information that both images share, their mirror images share more."""

BRAIN_MARGIN_MM = 6.0
"""Around the brain mask: its edge tells much, the scalp of an echo-planar image misleads."""


@dataclass(frozen=True, eq=False)
class Overlay:
    """Both images on a grid about as fine as the series.

    Parameters
    ----------
    target : Image
    before, after : (X, Y, Z) array
        The reference of the series, as the files lie and registered.
    white_matter : (X, Y, Z) array, optional
        Of the target, 0 to 1.
    """

    target: Image
    before: np.ndarray
    after: np.ndarray
    white_matter: np.ndarray | None = None

    __repr__ = short_repr


@dataclass(frozen=True, eq=False)
class Reference:
    """What is registered of a series.

    Parameters
    ----------
    image : Image
        In the reference frame.
    brain : (X, Y, Z) bool array
        On its grid.
    """

    image: Image
    brain: np.ndarray

    __repr__ = short_repr

    @property
    def near_brain(self) -> np.ndarray:
        """The brain, and :data:`BRAIN_MARGIN_MM` around it."""
        return widened(self.brain, self.image.voxel_sizes)

    @property
    def points(self) -> np.ndarray:
        """Voxels of the brain, RAS+ mm: (P, 3)."""
        return apply_affine(self.image.affine, np.argwhere(self.brain))


def widened(mask: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Add :data:`BRAIN_MARGIN_MM` to a mask of voxels of some sizes (3,), mm."""
    return binary_dilation(mask, iterations=int(np.ceil(BRAIN_MARGIN_MM / sizes.min())))


@dataclass(frozen=True, eq=False)
class OutputSpace:
    """Where the points of an image lie in the reference frame of a series: a ``SpaceMap``.

    Parameters
    ----------
    target : Image
        Whose space and grid it is.
    registration : Registration
        Points of the target → points of the reference frame.
    transform : {"rigid", "affine", "syn"}
    quality : PairQuality
    shown : Overlay, optional
        Both images on one grid: for the eye.
    doubts : tuple of str
        What speaks against it besides the figures of the pair.
    """

    target: Image
    registration: Registration
    transform: str
    quality: PairQuality
    shown: Overlay | None = None
    doubts: tuple[str, ...] = ()

    __repr__ = short_repr

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Map points (P, 3) of the target to the reference frame, RAS+ mm: (P, 3)."""
        return self.registration.map(points)

    @cached_property
    def rotation(self) -> np.ndarray:
        """The rotation nearest to the linear part, target → reference frame, (3, 3)."""
        return polar(self.registration.matrix[:3, :3])[0]

    @property
    def linear(self) -> np.ndarray | None:
        """The matrix (4, 4), target → reference frame; None of a warp, which has no such one."""
        return None if self.registration.warp is not None else self.registration.matrix

    @property
    def warnings(self) -> list[str]:
        """What looks wrong, in plain words."""
        metric = "cc" if self.transform == "syn" else "nmi"
        ended = replace(self.registration, converged=True)  # by small steps or many, look at it
        advice = advise(
            replace(self.quality, registration=ended), transform=self.transform, metric=metric,
            started="multi",
        )  # fmt: skip
        return [*(one.finding for one in advice), *self.doubts]

    def describe(self) -> str:
        """Say in words and numbers what was found."""
        p, after = self.quality.parameters, self.quality.after
        text = (
            f"{self.transform}: {np.linalg.norm(p.translation):.1f} mm, {p.angle:.1f}°"
            f", normalised mutual information {self.quality.before.similarity:.3f} → "
            f"{after.similarity:.3f}"
        )
        if self.transform != "rigid":
            text += ", scales " + ", ".join(f"{scale:.3f}" for scale in p.scales)
        if self.transform == "syn":
            low, high = self.quality.displacements.jacobian
            text += f", local volume × {low:.2f} to {high:.2f}"
        return text


def find_output_space(
    dwi: DWI,
    motion: Motion,
    target: Image,
    *,
    transform: str = "auto",
    contrast: str = "dwiref",
    target_mask: np.ndarray | None = None,
    white_matter: np.ndarray | None = None,
    frame: Reference | None = None,
    seed: int = 0,
) -> OutputSpace | None:
    """Register the reference of a series to an image.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        Reference → volume.
    target : Image
    transform : {"auto", "none", "rigid", "affine", "syn"}
        ``auto``: nothing where the target is blank, a mere grid, or the images are at the same
        place already (within :data:`SAME_PLACE`); ``rigid`` where both heads have the same size
        (within :data:`SAME_SIZE`), ``syn`` otherwise. ``syn`` is affine, and then a warp.
    contrast : {"dwiref", "fa"}
        What is registered: the mean b=0, or the fractional anisotropy.
    target_mask : (X, Y, Z) bool array, optional
        The brain of the target.
    white_matter : (X, Y, Z) array, optional
        Its white matter, 0 to 1: for the eye.
    frame : Reference, optional
        Registered instead of the mean b=0 of this series, of which it shares the frame.
    seed : int
        Of the points at which images are compared.

    Returns
    -------
    OutputSpace or None
        None where the world coordinates of the series are kept.

    Raises
    ------
    EddymotionError
        If a name is unknown, or the images cannot be registered.
    """
    _check_name("transform", transform, TRANSFORMS)
    _check_name("contrast", contrast, CONTRASTS)
    target = Image(np.nan_to_num(target.data, posinf=0.0, neginf=0.0), target.affine)
    blank = np.ptp(target.data) == 0
    if transform == "none" or (transform == "auto" and blank):
        return None
    if frame is None or contrast == "fa":
        frame = Reference(reference_image(dwi, motion, contrast), dwi.mask)
    pair = _Pair.of(target, target_mask, frame, white_matter)
    found = _found(pair, transform, seed)
    if found is None:
        return None
    space = replace(found, target=target)
    log.info("output space: %s; %s", space.describe(), space.registration.message)
    for warning in space.warnings:
        log.warning("output space: %s; %s", warning, REMEDY)
    return space


def _found(pair: _Pair, transform: str, seed: int) -> OutputSpace | None:
    """Register a pair as far as is asked for, or as it deserves."""
    found = pair.register_linearly("affine" if transform in ("affine", "syn") else "rigid", seed)
    if transform in ("affine", "syn"):
        return pair.space(found, "affine") if transform == "affine" else pair.warped(found, seed)
    if transform == "auto" and _is_same_place(found.matrix, pair):
        return None
    stretched = pair.register_linearly("affine", seed, found.matrix)
    scales = np.diag(polar(stretched.matrix[:3, :3])[1])
    if np.abs(scales - 1).max() < SAME_SIZE:
        space = pair.space(found, "rigid")
        return replace(space, doubts=_of_handedness(pair, space, seed))
    if transform == "auto":
        log.info("output space: scales %s, another head or a template", np.round(scales, 2))
        return pair.warped(stretched, seed)
    doubt = (
        f"the heads differ in size (scales {', '.join(f'{scale:.2f}' for scale in scales)}), more "
        "than images of one head do: is this image of the same person, and are both voxel sizes "
        "right?"
    )
    return replace(pair.space(found, "rigid"), doubts=(doubt,))


def _of_handedness(pair: _Pair, space: OutputSpace, seed: int) -> tuple[str, ...]:
    """Say so where the mirror image of the series agrees better: left and right were swapped."""
    mirrored, start = pair.mirrored(space.registration.matrix)
    found = mirrored.register_linearly("rigid", seed, start)
    own = space.quality.after.similarity
    other = mirrored.space(found, "rigid").quality.after.similarity
    log.debug("output space: mirrored %.3f, as it is %.3f", other, own)
    if other - 1 < MIRRORED * (own - 1):
        return ()
    return (
        f"the mirror image of the series agrees better with this image (normalised mutual "
        f"information {other:.3f}, as it is {own:.3f}): left and right are swapped in one of the "
        "two; compare both with the original scans",
    )


ROUNDING = 0.05
"""Of the share of voxel sizes: 1.98 voxels to one are two."""


def _better(warped: OutputSpace, linear: OutputSpace) -> OutputSpace:
    """Keep the linear part alone if the images agree less through the warp."""
    before, after = (one.quality.after.similarity for one in (linear, warped))
    if after >= before:
        return warped
    log.warning("output space: the images agree less with the warp (normalised mutual information "
                "%.3f → %.3f); it is left out", before, after)  # fmt: skip
    return replace(linear, transform="affine")


def _is_same_place(matrix: np.ndarray, pair: _Pair) -> bool:
    """Whether a rigid registration hardly moves the brain."""
    points, image = pair.reference.points, pair.reference.image
    apart = float(np.linalg.norm(apply_affine(matrix, points) - points, axis=1).mean())
    if apart >= SAME_PLACE * min(*pair.finest, *image.voxel_sizes):
        return False
    log.info(
        "output space: %.2g mm from the series, the same place; only its grid is taken", apart
    )
    return True


def _check_name(kind: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise EddymotionError(
            f"output space: {kind} {shown(name)} is unknown; use one of {', '.join(known)}"
        )


@dataclass(frozen=True, eq=False)
class _Pair:
    """The image that gives the space, as fine as the series deserves, and its reference.

    Parameters
    ----------
    target : Image
    target_mask : (X, Y, Z) bool array, optional
    reference : Reference
    white_matter : (X, Y, Z) array, optional
        Of the target.
    finest : (3,) array
        Voxel sizes of the target as it was given, mm.
    """

    target: Image
    target_mask: np.ndarray | None
    reference: Reference
    white_matter: np.ndarray | None
    finest: np.ndarray

    @classmethod
    def of(
        cls,
        target: Image,
        target_mask: np.ndarray | None,
        reference: Reference,
        white_matter: np.ndarray | None = None,
    ) -> _Pair:
        """Average voxels of the target that are finer than those of the reference."""
        sizes = reference.image.voxel_sizes.min() / target.voxel_sizes
        factors = np.maximum((sizes + ROUNDING).astype(int), 1)
        coarse, mask = coarsened(target, target_mask, factors)
        if white_matter is not None:
            white_matter = decimate(Image(white_matter, target.affine), factors).data
        return cls(coarse, mask, reference, white_matter, target.voxel_sizes)

    def register_linearly(
        self, transform: str, seed: int, start: np.ndarray | None = None
    ) -> Registration:
        """Register from a start, or from where the search for one leads.

        Two starts that are far apart, as the files lie and with the middles on each other, and
        end at one place are taken to have found it; otherwise many are tried.
        """
        if start is not None:
            return self._registered(transform, seed, start)
        with suppress(EddymotionError):  # nothing in common there
            first, second = (
                self._registered(transform, seed, self._start(method, seed))
                for method in ("header", "mass")
            )
            if self._apart(first, second) < ONE_PLACE_MM:
                return first
        return self._registered(transform, seed, self._start("multi", seed))

    def mirrored(self, matrix: np.ndarray) -> tuple[_Pair, np.ndarray]:
        """Mirror the reference from left to right: the pair, and where to start from.

        Parameters
        ----------
        matrix : (4, 4) array
            Target → reference, where the two lie on each other.
        """
        image, center = self.reference.image, self.reference.points.mean(axis=0)
        there = _left_right(center)
        here = _left_right(apply_affine(np.linalg.inv(matrix), center))
        flipped = replace(self.reference, image=Image(image.data, there @ image.affine))
        return replace(self, reference=flipped), there @ matrix @ here

    def _registered(self, transform: str, seed: int, start: np.ndarray) -> Registration:
        return GaussNewton().register(
            self.target, self.reference.image, transform=transform, metric="nmi", init=start,
            seed=seed, **self._masks,
        )  # fmt: skip

    def _start(self, method: str, seed: int) -> np.ndarray:
        return initial_transform(
            self.target, self.reference.image, method, seed=seed, **self._masks
        )

    @cached_property
    def _masks(self) -> dict[str, Any]:
        """Where both images count: at the brain and near it, where the brain is known."""
        near = self.target_mask
        if near is not None:
            near = widened(near, self.target.voxel_sizes)
        return {"fixed_mask": near, "moving_mask": self.reference.near_brain}

    def _apart(self, one: Registration, other: Registration) -> float:
        """How far apart (mm) two registrations put the brain, on average."""
        points = self.reference.points
        there = apply_affine(one.matrix @ np.linalg.inv(other.matrix), points)
        return float(np.linalg.norm(there - points, axis=1).mean())

    def warped(self, linear: Registration, seed: int) -> OutputSpace:
        """Refine by symmetric normalisation, where that is for the better."""
        from eddymotion.registration.engines.dipy import DipyRegistrar

        warp = DipyRegistrar(prealignment="init").register(
            self.target, self.in_contrast_of_target(linear), transform="syn", init=linear.matrix,
            seed=seed, fixed_mask=self.target_mask, moving_mask=self.reference.near_brain,
        )  # fmt: skip
        return _better(self.space(warp, "syn"), self.space(linear, "affine"))

    def in_contrast_of_target(self, linear: Registration) -> Image:
        """Give the intensities of the reference the meaning that they have in the target.

        Local cross-correlation takes dark for bright where that fits better, and drifts by
        centimetres between a T1w and a b=0 image.
        """
        image = self.reference.image
        brain = Image(self.reference.near_brain.astype(np.float32), image.affine)
        where = resampled_onto(self.target, brain, linear, 1)[0] > 0.5
        if self.target_mask is not None:
            where &= self.target_mask
        shown, _ = resampled_onto(self.target, image, linear, 1)
        curve = intensity_curve(shown[where], self.target.data[where])
        return replace(image, data=np.interp(image.data, *curve).astype(np.float32))

    def space(self, registration: Registration, transform: str) -> OutputSpace:
        """Compare both images before and after."""
        image, head = self.reference.image, head_of(self.target, self.target_mask)
        masked = replace(image, data=np.where(self.reference.near_brain, image.data, 0))
        nothing = Registration(np.eye(4), True, "as the files lie")
        before, after = (
            Comparison.of(self.target, masked, one, head) for one in (nothing, registration)
        )
        quality = PairQuality.of(
            registration, self.target, head, before.agreement, after.agreement
        )
        shown = Overlay(self.target, before.shown, after.shown, self.white_matter)
        return OutputSpace(self.target, registration, transform, quality, shown)


def _left_right(center: np.ndarray) -> np.ndarray:
    """Return the mirror from left to right through a point, (4, 4)."""
    mirror = np.diag([-1.0, 1.0, 1.0, 1.0])
    mirror[0, 3] = 2 * center[0]
    return mirror


def coarsened(
    image: Image, mask: np.ndarray | None, factors: np.ndarray
) -> tuple[Image, np.ndarray | None]:
    """Average blocks of `factors` (3,) voxels; what does not fill a block is left out."""
    if mask is not None:
        mask = decimate(Image(mask, image.affine), factors).data >= 0.5
    return decimate(image, factors), mask


def reference_image(dwi: DWI, motion: Motion, contrast: str = "dwiref") -> Image:
    """Return the mean b=0 or the FA of a series in its reference frame, volume by volume.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        Reference → volume.
    contrast : {"dwiref", "fa"}

    Returns
    -------
    Image
        On the grid of the series; FA is zero outside the brain.
    """
    if contrast == "fa":
        return _fa_image(dwi, motion)
    volumes = dwi.gradients.b0s if len(dwi.gradients.b0s) else dwi.gradients.shells[0]
    points = grid_points(dwi.shape, dwi.affine)
    total = np.zeros(len(points))
    for volume in volumes:
        total += np.nan_to_num(_read(dwi, motion, volume, points))
    return Image((total / len(volumes)).reshape(dwi.shape).astype(np.float32), dwi.affine)


def _fa_image(dwi: DWI, motion: Motion) -> Image:
    """Fit a tensor to the logarithms, a volume at a time."""
    gradients = dwi.gradients.rotated(motion.rotations)
    try:
        to_tensor = np.linalg.pinv(design_matrix(gradients))[:6]
    except (EddymotionError, ValueError) as error:
        raise EddymotionError(
            f"output space: FA needs more directions ({error}); register the mean b=0 (dwiref)"
        ) from error
    points = apply_affine(dwi.affine, np.argwhere(dwi.mask))
    floor = max(MIN_SIGNAL_FRACTION * float(dwi.signal.max()), 1e-6)
    tensor = np.zeros((6, len(points)))
    for volume in range(len(dwi)):
        signal = np.nan_to_num(_read(dwi, motion, volume, points), nan=floor)
        tensor += to_tensor[:, [volume]] * np.log(np.maximum(signal, floor))
    data = np.zeros(dwi.shape, np.float32)
    data[dwi.mask] = fractional_anisotropy(tensor)
    return Image(data, dwi.affine)


def fractional_anisotropy(tensor: np.ndarray) -> np.ndarray:
    """Return FA (P,), 0 … 1, of tensors xx, xy, yy, xz, yz, zz: (6, P)."""
    xx, xy, yy, xz, yz, zz = tensor
    matrices = np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=-1).reshape(-1, 3, 3)
    values = np.clip(np.linalg.eigvalsh(matrices), 0, None)
    spread = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    return np.sqrt(1.5 * spread / np.maximum((values**2).sum(axis=1), 1e-30))


def _read(dwi: DWI, motion: Motion, volume: int, points: np.ndarray) -> np.ndarray:
    """Read a volume where points (P, 3) of the reference frame were recorded; NaN outside."""
    return dwi.volume(volume).spline.sample(motion.recorded(volume, points))


def space_of(
    dwi: DWI,
    motion: Motion,
    target: Target | None,
    settings: Settings,
    frame: Reference | None = None,
) -> OutputSpace | None:
    """Find the output space as the settings say; None where the world coordinates are kept.

    `frame` is what all runs of a session show together, so that each finds the same.
    """
    if target is None:
        return None
    return find_output_space(
        dwi, motion, target.image,
        transform=settings.output_space_transform,
        contrast=settings.output_space_contrast,
        target_mask=target.mask,
        white_matter=target.white_matter,
        frame=frame,
        seed=settings.random_seed,
    )  # fmt: skip


def write_output_space(space: OutputSpace | None, dwi: DWI, outputs: Outputs) -> None:
    """Write where the points of the target lie in the reference frame, and a picture.

    What an earlier run left and this one does not write is removed.

    Parameters
    ----------
    space : OutputSpace or None
    dwi : DWI
        Whose grid is that of the reference frame.
    outputs : Outputs
        ``space`` holds the matrix (ITK text), of a nonlinear map its linear part, and
        ``space_inverse`` that of a linear one back; ``space_warp`` the whole of a nonlinear map,
        as displacements (ITK) on the grid of the target.
    """
    for kind in ("space", "space_inverse", "space_warp", "space_figure"):
        outputs[kind].unlink(missing_ok=True)
    if space is None:
        return
    frame, matrix = Image(dwi.mask, dwi.affine), space.registration.matrix
    write_linear(outputs["space"], matrix, space.target, frame)
    if space.registration.warp is None:
        write_linear(outputs["space_inverse"], np.linalg.inv(matrix), frame, space.target)
    else:
        x, y, z = space.target.data.shape
        field = whole_displacements(space.registration, (x, y, z), space.target.affine)
        write_displacements(outputs["space_warp"], field, space.target.affine)
    if space.shown is not None:
        _draw(space.shown, outputs["space_figure"])


def _draw(shown: Overlay, path: Path) -> None:
    from eddymotion.reports import save_figure
    from eddymotion.reports.registration import alignment_figure

    head = foreground(shown.target)
    figure = alignment_figure(
        shown.target.data, shown.before, shown.after, head, shown.target.affine,
        shown.white_matter,
    )  # fmt: skip
    save_figure(figure, path)
