# SPDX-License-Identifier: Apache-2.0
"""What looks wrong about a registered pair, in plain words."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from eddymotion.pairs.measures import PairQuality, Parameters
from eddymotion.registration import Registration

FAR_MM, FAR_DEG = 25.0, 20.0
"""A pair that was farther apart than this may have been found at the wrong place."""

TOO_FAR_DEG = 60.0
"""No two heads in scanners are turned by more, wherever the search started."""

MIN_SHARE = 0.5
"""Of the fixed image that the moving one should show."""

MIN_SIMILARITY = 1.02
"""Normalised mutual information below which two images have next to nothing in common."""

LOCAL = (0.05, 20.0)
"""Local changes of volume beyond these are no anatomy."""

SAME_CONTRAST = ("ssd", "lncc", "cc", "gc")
"""Metrics for images in which the same tissues are bright."""

SCALES = (0.8, 1.25)
"""Stretches outside this range are no difference between two heads."""


@dataclass(frozen=True)
class Advice:
    """What looks wrong, and what to try with ``eddymotion-register``."""

    finding: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.finding}: {self.remedy}"


def advise(quality: PairQuality, *, transform: str, metric: str, started: str) -> list[Advice]:
    """Say what looks wrong, and what to try.

    Parameters
    ----------
    quality : PairQuality
    transform, metric : str
        What was asked for.
    started : str
        ``header``, ``mass``, ``axes``, ``multi``, or ``init`` if the start was given.
    """
    return [
        *_about_the_end(quality.registration),
        *_about_agreement(quality),
        *_about_contrast(quality, metric),
        *_about_the_way(quality.parameters, started),
        *_about_the_shape(quality, transform),
    ]


def _about_the_end(found: Registration) -> Iterator[Advice]:
    if found.converged or found.warp is not None:  # a warp goes through its schedule
        return
    if "limit" in found.message:
        yield Advice(
            "it stopped at the iteration limit",
            "allow more iterations with --settings, or a better start with --initialize multi",
        )
    else:
        yield Advice(
            "it did not converge", "try a better start with --initialize multi, or give masks"
        )


def _about_agreement(quality: PairQuality) -> Iterator[Advice]:
    before, after = quality.before, quality.after
    if after.share < MIN_SHARE:
        yield Advice(
            f"only {100 * after.share:.0f} % of the fixed image's head lies within the moving "
            "image",
            "check the overlay; if it is wrong, try --initialize mass or multi",
        )
    change = f"(normalised mutual information {before.similarity:.3f} → {after.similarity:.3f})"
    if after.similarity < before.similarity and before.share >= MIN_SHARE:
        yield Advice(
            f"the images agree less than before {change}",
            "do not use this result; try another --metric, --initialize multi, or masks",
        )
    elif quality.linear is not None and after.similarity < quality.linear.similarity:
        yield Advice(
            "the images agree less with the warp than with its linear part (normalised mutual "
            f"information {quality.linear.similarity:.3f} → {after.similarity:.3f})",
            "use the affine files; for the warp give masks, or images of the same contrast",
        )
    elif not after.similarity >= MIN_SIMILARITY:
        yield Advice(
            f"the images have almost nothing in common {change}",
            "check the overlay; try --initialize multi",
        )
    if after.dice < before.dice:
        yield Advice(
            f"the masks overlap less than before (Dice {before.dice:.2f} → {after.dice:.2f})",
            "do not use this result; try masks that reach some millimetres beyond both brains, "
            "or --init",
        )


def _about_contrast(quality: PairQuality, metric: str) -> Iterator[Advice]:
    correlation = quality.after.correlation
    if metric in SAME_CONTRAST and correlation < 0:
        yield Advice(
            f"what is bright in one image is dark in the other (correlation {correlation:.2f})",
            "use --metric nmi (mi with dipy, ants or elastix)",
        )


def _about_the_way(p: Parameters, started: str) -> Iterator[Advice]:
    distance = float(np.linalg.norm(p.translation))
    if p.angle > TOO_FAR_DEG:
        yield Advice(
            f"turned by {p.angle:.0f}°, which is unlikely for heads in scanners",
            "check the overlay; try --initialize multi or mass, masks that reach some "
            "millimetres beyond both brains, or --init",
        )
    elif started in ("header", "mass") and (distance > FAR_MM or p.angle > FAR_DEG):
        yield Advice(
            f"the images lay far apart ({distance:.0f} mm, {p.angle:.0f}°)",
            "check the overlay; --initialize multi searches from many starts",
        )


def _about_the_shape(quality: PairQuality, transform: str) -> Iterator[Advice]:
    sizes = quality.parameters.scales
    if transform != "rigid" and ((sizes < SCALES[0]) | (sizes > SCALES[1])).any():
        scales = ", ".join(f"{size:.2f}" for size in sizes)
        yield Advice(
            f"sizes change by {scales} along x, y, z, more than heads differ",
            "try --transform rigid, or masks of the same structure in both images",
        )
    low, high = quality.displacements.jacobian
    if transform == "syn" and (low < LOCAL[0] or high > LOCAL[1]):
        yield Advice(
            f"the warp changes volumes locally by × {low:.2g} to {high:.2g}",
            "check the displacements; give masks, fewer iterations with --settings, or another "
            "--metric",
        )
    if n_folds := quality.displacements.n_folds:
        yield Advice(
            f"the warp folds in {n_folds} voxels, where it cannot be trusted",
            "give masks, or smaller steps with --settings",
        )
