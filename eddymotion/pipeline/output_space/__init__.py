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
from dataclasses import replace
from pathlib import Path

import numpy as np
import scipy
from nibabel.affines import apply_affine

from eddymotion.data.series import DWI
from eddymotion.derivatives import Outputs
from eddymotion.images.image import Image
from eddymotion.io.transforms import write_linear
from eddymotion.io.warps import whole_displacements, write_displacements
from eddymotion.mapping.motion import Motion
from eddymotion.pipeline.output_space.pair import SpacePair
from eddymotion.pipeline.output_space.reference import Reference, reference_image
from eddymotion.pipeline.output_space.space import OutputSpace, Overlay
from eddymotion.pipeline.settings import Settings
from eddymotion.pipeline.target import Target
from eddymotion.registration.problem import foreground

log = logging.getLogger(__name__)

REMEDY = (
    "check the figure of the output space; give the brain of the image with "
    "--output-space-mask, or another --output-space-transform"
)

SAME_SIZE = 0.06
"""Stretches below this are no sign of another head: gradients, and the distortion of echo-planar
images, make as much. Templates are a tenth larger than most heads."""

SAME_PLACE = 0.5
"""Voxels (of the finer image): a rigid registration that moves the brain by less on average says
that both images share their world coordinates."""

MIRRORED = 1.05
"""A mirror image is preferred if it shares more information than the image, by this factor."""


def space_of(
    dwi: DWI,
    motion: Motion,
    target: Target | None,
    settings: Settings,
    frame: Reference | None = None,
) -> OutputSpace | None:
    """Register the reference of a series to an image, as the settings say.

    By the transform ``auto``, nothing is registered where the target is blank, a mere grid, or the
    images are at the same place already (within :data:`SAME_PLACE`). It is ``rigid`` where both
    heads have the same size (within :data:`SAME_SIZE`), and ``syn`` otherwise, which is affine,
    and then a warp.

    Parameters
    ----------
    dwi : DWI
        The original series.
    motion : Motion
        Reference → volume.
    target : Target, optional
    settings : Settings
    frame : Reference, optional
        What all runs of a session show together, so that each finds the same. It is registered
        instead of the mean b=0 of this series, with which it shares the frame.

    Returns
    -------
    OutputSpace or None
        None where the world coordinates of the series are kept.

    Raises
    ------
    EddymotionError
        If the images cannot be registered.
    """
    if target is None:
        return None
    given, seed = target.image, settings.random_seed
    transform, contrast = settings.output_space_transform, settings.output_space_contrast
    image = Image(np.nan_to_num(given.data, posinf=0.0, neginf=0.0), given.affine)
    blank = np.ptp(image.data) == 0
    if transform == "none" or (transform == "auto" and blank):
        return None
    if frame is None or contrast == "fa":
        frame = Reference(reference_image(dwi, motion, contrast), dwi.mask)
    pair = SpacePair.of(image, target.mask, frame, target.white_matter)
    found = _found(pair, transform, seed)
    if found is None:
        return None
    space = replace(found, target=image)
    log.info("output space: %s; %s", space.describe(), space.registration.message)
    for warning in space.warnings:
        log.warning("output space: %s; %s", warning, REMEDY)
    return space


def _found(pair: SpacePair, transform: str, seed: int) -> OutputSpace | None:
    """Register a pair as far as is asked for, or as it deserves."""
    found = pair.register_linearly("affine" if transform in ("affine", "syn") else "rigid", seed)
    if transform in ("affine", "syn"):
        return pair.space(found, "affine") if transform == "affine" else pair.warped(found, seed)
    if transform == "auto" and _is_same_place(found.matrix, pair):
        return None
    stretched = pair.register_linearly("affine", seed, found.matrix)
    scales = np.diag(scipy.linalg.polar(stretched.matrix[:3, :3])[1])
    if np.abs(scales - 1).max() < SAME_SIZE:
        space = pair.space(found, "rigid")
        return replace(space, doubts=_of_handedness(pair, space, seed))
    if transform == "auto":
        log.info("output space: scales %s, another head or a template", np.round(scales, 2))
        return pair.warped(stretched, seed)
    doubt = (
        f"the heads differ in size (scales {', '.join(f'{scale:.2f}' for scale in scales)}), "
        "more than images of one head do; check that the image is of the same person and that "
        "both voxel sizes are right"
    )
    return replace(pair.space(found, "rigid"), doubts=(doubt,))


def _of_handedness(pair: SpacePair, space: OutputSpace, seed: int) -> tuple[str, ...]:
    """Say so where the mirror image of the series agrees better: left and right were swapped."""
    mirrored, start = pair.mirrored(space.registration.matrix)
    found = mirrored.register_linearly("rigid", seed, start)
    own = space.quality.after.similarity
    other = mirrored.space(found, "rigid").quality.after.similarity
    log.debug("output space: mirrored %.3f, as it is %.3f", other, own)
    if other - 1 < MIRRORED * (own - 1):
        return ()
    return (
        "the mirror image of the series agrees better with this image (normalised mutual "
        f"information {other:.3f}, as it is {own:.3f}): left and right are swapped in one of "
        "them; compare both with the original scans",
    )


def _is_same_place(matrix: np.ndarray, pair: SpacePair) -> bool:
    """Whether a rigid registration hardly moves the brain."""
    points, image = pair.reference.points, pair.reference.image
    apart = float(np.linalg.norm(apply_affine(matrix, points) - points, axis=1).mean())
    if apart >= SAME_PLACE * min(*pair.finest, *image.voxel_sizes):
        return False
    log.info(
        "output space: %.2g mm from the series, the same place; only its grid is taken", apart
    )
    return True


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
