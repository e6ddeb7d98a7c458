"""What looks wrong about a registered pair, in plain words."""

from __future__ import annotations

import numpy as np

from eddymotion.pairs.measures import PairQuality, Parameters

FAR_MM, FAR_DEG = 25.0, 20.0
"""A pair that was farther apart than this may have been found at the wrong place."""

TOO_FAR_DEG = 60.0
"""No two heads in scanners are turned by more, wherever the search started."""

MIN_SHARE = 0.5
"""Of the fixed image that the moving one should show."""

MIN_SIMILARITY = 1.02
"""Normalised mutual information below which two images have next to nothing in common."""

SCALES = (0.8, 1.25)
"""Stretches outside this range are no difference between two heads."""


def advise(quality: PairQuality, *, transform: str, metric: str, started: str) -> list[str]:
    """Say what looks wrong, and what to try.

    Parameters
    ----------
    quality : PairQuality
    transform, metric : str
        What was asked for.
    started : str
        ``header``, ``mass``, ``axes``, ``multi``, or ``init`` if the start was given.
    """
    advice = [*_about_the_end(quality), *_about_agreement(quality, metric)]
    p, d = quality.parameters, quality.displacements
    if p.angle > TOO_FAR_DEG:
        advice.append(
            f"turned by {p.angle:.0f}°, which heads in scanners hardly are: look at the overlay; "
            "try --initialize mass with brain masks of both images (--fixed-mask, --moving-mask), "
            "or give --init"
        )
    elif started in ("header", "mass") and (
        np.linalg.norm(p.translation) > FAR_MM or p.angle > FAR_DEG
    ):
        advice.append(
            f"the images lay far apart ({np.linalg.norm(p.translation):.0f} mm, {p.angle:.0f}°): "
            "look at the overlay; --initialize multi searches from many places"
        )
    if transform in ("similarity", "affine", "syn") and _is_implausible(p):
        scales = ", ".join(f"{scale:.2f}" for scale in p.scales)
        advice.append(
            f"sizes change by {scales} along x, y, z: no two heads differ so much; try "
            "--transform rigid, or masks of the same structure in both images"
        )
    if d.n_folds:
        advice.append(
            f"the warp folds in {d.n_folds} voxels: what is there cannot be trusted; give masks, "
            "or smaller steps with --settings"
        )
    return advice


def _about_the_end(quality: PairQuality) -> list[str]:
    found = quality.registration
    if found.converged:
        return []
    if found.warp is not None:
        return []  # a warp goes through its schedule
    if "limit" in found.message:
        return [
            "it stopped at the iteration limit: allow more iterations with --settings, or start "
            "nearer with --initialize multi"
        ]
    return ["it did not converge: start nearer with --initialize multi, or give masks"]


def _about_agreement(quality: PairQuality, metric: str) -> list[str]:
    before, after = quality.before, quality.after
    advice = []
    if after.share < MIN_SHARE:
        advice.append(
            f"only {100 * after.share:.0f} % of the fixed image's head lies within the moving "
            "image: look at the overlay; if that is wrong, try --initialize mass or multi"
        )
    if after.similarity < before.similarity and before.share >= MIN_SHARE:
        advice.append(
            "the images agree less than before (normalised mutual information "
            f"{before.similarity:.3f} → {after.similarity:.3f}): do not use this; try another "
            "--metric, --initialize multi, or masks"
        )
    elif not after.similarity >= MIN_SIMILARITY:
        advice.append(
            "the images have next to nothing in common (normalised mutual information "
            f"{after.similarity:.3f}): look at the overlay; try --initialize multi"
        )
    if after.dice < before.dice:
        advice.append(
            f"the masks overlap less than before (Dice {before.dice:.2f} → {after.dice:.2f}): do "
            "not use this; try --initialize mass, or give --init"
        )
    if metric in ("ssd", "lncc", "cc", "gc") and after.correlation < 0:
        advice.append(
            f"bright in one image is dark in the other (correlation {after.correlation:.2f}): "
            "use --metric nmi (mi with dipy, ants or elastix)"
        )
    return advice


def _is_implausible(p: Parameters) -> bool:
    return bool(((p.scales < SCALES[0]) | (p.scales > SCALES[1])).any())
