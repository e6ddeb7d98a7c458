# SPDX-License-Identifier: Apache-2.0
"""Whether a series contradicts itself, or has lost the motion that it should show.

What is found here depends on the series alone, before any motion is known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from eddymotion.data.checks.b0_volumes import empty_b0s
from eddymotion.data.checks.directions import AxesReading, likelier_axes
from eddymotion.data.checks.fat import LEAST_TOLD, fat_over_brain, find_fat
from eddymotion.data.checks.noise import is_denoised
from eddymotion.data.checks.order import exchanged_vectors, in_no_order, likelier_order
from eddymotion.data.checks.scales import scaled_vectors
from eddymotion.data.checks.tables import compare_b0s, contradictions
from eddymotion.data.gradients import reference_volumes
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.images.masking import mask_issue
from eddymotion.machine.frozen import once_per_value
from eddymotion.machine.parallel import parallel_map
from eddymotion.wording import listed, named_volumes

__all__ = ["DataIssue", "find_issues", "refuse_wrong_tables"]

IGNORED = "tables"
"""What to ignore so that a table is used although the images contradict it."""

DENOISED_PART = 0.35
"""Part of the motion that may have been lost with the noise: after MP-PCA at SNR 10 and b=3000 the
slope was 0.74 to 0.86."""

CUT_PART, CUT_FACTOR = 0.05, 1.5
"""The same where tissue was set to zero (slopes of 0.93 to 1.03), and what the errors grow by
besides: what is left has fewer edges."""

INVERTED = 1.2
"""Signal of the darkest face of an image over that of its middle. Of an inverted head it is 1.5;
of a part of a body that fills the image a coil lights up one side."""

NEGATIVE = 0.5
"""Signal below zero, as part of the largest of the series, that neither noise nor ringing of
filters reaches."""


@dataclass(frozen=True)
class DataIssue:
    """Why a result may be worse than it looks.

    Parameters
    ----------
    kind : str
        One word: ``tables``, ``directions``, ``b0``, ``zeros``, ``negative``,
        ``contrast``, ``denoised``, ``mask``, ``fat``.
    text : str
        What was found, and what to do.
    severe : bool
        Whether the result should not be used before somebody has looked.
    lost : float
        Part of the motion that the series may not show.
    factor : float
        On the standard errors.
    """

    kind: str
    text: str
    severe: bool = False
    lost: float = 0.0
    factor: float = 1.0

    def plain(self) -> dict[str, Any]:
        """Return what the sidecar of the corrected series says about it, JSON-ready."""
        return {"Subject": self.kind, "Text": self.text, "Severe": self.severe}


@once_per_value
def find_issues(dwi: DWI, n_threads: int = 1) -> list[DataIssue]:
    """Find what is suspicious about a series.

    Parameters
    ----------
    dwi : DWI
    n_threads : int
        Checks at a time; the result does not depend on it.

    Returns
    -------
    list of DataIssue
        Empty for most.
    """
    found = parallel_map(lambda check: check(dwi), CHECKS, n_threads=n_threads)
    return [issue for of_check in found for issue in of_check]


def _of_tables(dwi: DWI) -> list[DataIssue]:
    text = "the b-values do not fit the images: {}"
    return [
        DataIssue("tables", text.format(one), severe=one.certain) for one in contradictions(dwi)
    ]


def _of_b0s(dwi: DWI) -> list[DataIssue]:
    text = compare_b0s(dwi)
    if text is None and len(empty := empty_b0s(dwi)):
        text = f"no head in {named_volumes(empty)}, labelled b=0: left out; check the series"
    return [] if text is None else [DataIssue("b0", text)]


def _of_axes(dwi: DWI) -> list[DataIssue]:
    reading = likelier_axes(dwi)
    return [] if reading is None else [DataIssue("directions", _wrong_axes(dwi, reading))]


def _of_order(dwi: DWI) -> list[DataIssue]:
    look = "check the .bvec and how it was made: whatever is fitted to the series depends on it"
    if (order := likelier_order(dwi)) is not None:
        return [DataIssue("directions", f"the b-vectors fit the images if {order}; {look}")]
    pairs = exchanged_vectors(dwi)
    if not pairs and in_no_order(dwi):
        text = f"the b-vectors fit the images no better than in any order; {look}"
        return [DataIssue("directions", text)]
    if not pairs:
        return []
    named = "; ".join(f"{one} and {other}" for one, other in pairs)
    text = f"volumes {named}: the images fit with their b-vectors exchanged; {look}"
    return [DataIssue("directions", text)]


def _of_zeros(dwi: DWI) -> list[DataIssue]:
    found = []
    if dwi.is_cut:
        found.append(DataIssue(
            "zeros",
            "tissue was set to zero or another constant (skull-stripped or defaced); these "
            "voxels and their neighbourhood are ignored, and errors are larger: use the series "
            "as acquired if possible",
            lost=CUT_PART, factor=CUT_FACTOR,
        ))  # fmt: skip
    if len(dwi.cut_volumes):
        some = len(dwi.cut_volumes) > 1
        found.append(DataIssue(
            "zeros",
            f"volume{'s' if some else ''} {listed(dwi.cut_volumes)}: tissue visible in other "
            "volumes was set to zero or another constant (cropped?); it is ignored there",
        ))  # fmt: skip
    return found


def _of_negatives(dwi: DWI) -> list[DataIssue]:
    ends = np.array([(volume.min(), volume.max()) for volume in dwi.volumes()], float)
    wrong = np.flatnonzero(ends[:, 0] < -NEGATIVE * ends[:, 1].max())
    if not len(wrong):
        return []
    return [DataIssue(
        "negative",
        f"volume{'s' if len(wrong) > 1 else ''} {listed(wrong)}: the signal is negative as much "
        "as positive, unlike magnitudes: integer overflow, or phase images; check how the image "
        "was converted",
        severe=True,
    )]  # fmt: skip


def _of_background(dwi: DWI) -> list[DataIssue]:
    image = _reference(dwi)
    middle = image[tuple(slice(n // 4, n - n // 4) for n in image.shape)]
    faces = [np.median(image.take(end, axis)) for axis in range(3) for end in (0, -1)]
    if min(faces) <= INVERTED * np.median(middle):
        return []
    return [DataIssue(
        "contrast",
        "all faces of the image are brighter than its middle, as in images of inverted "
        "contrast: poses may be off by several standard errors; use the signal as acquired",
        severe=True,
    )]  # fmt: skip


def _of_noise(dwi: DWI) -> list[DataIssue]:
    text = (
        "far less noise than the noise floor implies: the series was denoised, which at low SNR "
        "removes motion as well; estimate the motion on the raw series and apply it to the "
        "denoised one"
    )
    return [DataIssue("denoised", text, lost=DENOISED_PART)] if is_denoised(dwi) else []


def _of_mask(dwi: DWI) -> list[DataIssue]:
    text = mask_issue(_reference(dwi), dwi.mask)
    return [] if text is None else [DataIssue("mask", text)]


def _of_fat(dwi: DWI) -> list[DataIssue]:
    if find_fat(dwi)[dwi.mask].mean() < LEAST_TOLD:
        return []
    percent = 100 * fat_over_brain(dwi)[dwi.mask].mean()
    return [DataIssue(
        "fat",
        f"{percent:.0f} % of the brain lie under or next to signal that diffusion hardly "
        "attenuates: unsuppressed fat, shifted along the phase encoding and not moving with the "
        "head (or tissue, where the head turned far after its b=0 volumes); the joint estimator "
        "ignores these voxels, and errors are larger",
    )]  # fmt: skip


CHECKS = (
    _of_tables,
    _of_b0s,
    _of_axes,
    _of_order,
    _of_zeros,
    _of_negatives,
    _of_background,
    _of_noise,
    _of_mask,
    _of_fat,
)


def _wrong_axes(dwi: DWI, reading: AxesReading) -> str:
    """Say how the b-vectors should be read."""
    axis, look = reading.mirrored_axis, "which the correction can neither detect nor repair; check"
    if axis is not None:
        return (
            "fibres continue better from voxel to voxel with the sign of the b-vectors flipped "
            f"along image axis {axis}: all directions may be mirrored, {look} row "
            f"{'ijk'.index(axis) + 1} of the .bvec and how it was made"
        )
    return (
        "fibres continue better from voxel to voxel with the components of the b-vectors "
        f"exchanged: they may belong to other axes, {look} the .bvec and how it was made, whose "
        f"rows {reading.rows(dwi.affine)} would fit best"
    )


def _reference(dwi: DWI) -> np.ndarray:
    """Mean of the b=0 volumes, or without any of the lowest shell."""
    averaged = reference_volumes(dwi.gradients)
    return np.mean([dwi.volume(volume).data for volume in averaged], axis=0)


def refuse_wrong_tables(dwi: DWI, norms: np.ndarray | None, ignore: Sequence[str]) -> None:
    """Refuse a table that no head could have been scanned with.

    Parameters
    ----------
    dwi : DWI
    norms : (N,) array, optional
        Lengths of the b-vectors on file.
    ignore : sequence of str
        With ``tables`` nothing is refused.

    Raises
    ------
    EddymotionError
        Naming the volumes, and the reading that would fit.
    """
    if IGNORED in ignore:
        return
    scaled = None if norms is None else scaled_vectors(dwi, norms)
    found = [scaled] if scaled is not None else contradictions(dwi)
    certain = [str(one) for one in found if one.certain]
    if certain:
        raise EddymotionError(
            f"{dwi.source or dwi}: the b-values do not fit the images: {'; '.join(certain)}; "
            f"correct the .bval and .bvec, or use them as they are with '--ignore {IGNORED}'"
        )
