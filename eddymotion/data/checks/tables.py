# SPDX-License-Identifier: Apache-2.0
"""Whether the b-values fit what the images show.

A volume shows its b-value twice: by how bright the brain is, and by which parts of it are bright
(fluid at b=0, white matter at high b). A volume counts as mislabelled only where both speak
against its label: one that lost its signal is dark, but looks like the others of its shell; one
of another receive gain is bright, but looks like them, too (:mod:`~eddymotion.data.checks.labels`,
and of shells, whose brightness depends on the direction, :mod:`~eddymotion.data.checks.shells`).
b-values that are wrong all together give the brain an impossible diffusivity
(:mod:`~eddymotion.data.checks.scales`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from eddymotion.data.checks.appearance import Appearance, levels_anywhere
from eddymotion.data.checks.b0_volumes import ALIKE, SAME_LEVELS, lowest_weighted
from eddymotion.data.checks.contradiction import Contradiction
from eddymotion.data.checks.labels import GAP, Labels, Mislabelled, levels_of
from eddymotion.data.checks.scales import scaled_bvals
from eddymotion.data.checks.shells import of_other_shells
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI, Series
from eddymotion.machine.frozen import once_per_value
from eddymotion.wording import listed

USUAL = (0.3e-3, 1.6e-3)
"""Range of the diffusivity in a brain at low b-values, mm²/s."""

UNLIKE = 0.2
"""Of two b=0 volumes the one whose correlation with the diffusion-weighted volumes, of either
sign, is smaller by this is wrong."""


@once_per_value
def contradictions(dwi: Series) -> list[Contradiction]:
    """Compare the b-values of a series with its images.

    Parameters
    ----------
    dwi : Series

    Returns
    -------
    list of Contradiction
        Empty where the table fits, or the images do not show it (a phantom without diffusion).
    """
    appearance = Appearance.of(dwi)
    if appearance is None:
        return []
    bvals, threshold = dwi.gradients.bvals, dwi.gradients.b0_threshold
    scaled = scaled_bvals(appearance.brightness, levels_of(bvals, threshold), bvals)
    if scaled is not None:
        return [scaled]
    labels = Labels.of(appearance, bvals, threshold, shelled=dwi.gradients.is_shelled)
    wrong = _mislabelled(appearance, labels, dwi.gradients)
    if not wrong:
        return labels.out_of_order()
    if (words := _one_volume_off(labels, wrong, threshold)) is not None:
        reading = f"the b-values fit the images if each is moved one volume {words}"
        return [Contradiction(_describe(wrong), reading)]
    certain = [volume for volume in wrong if volume.certain]
    doubtful = [volume for volume in wrong if not volume.certain]
    return [
        Contradiction(_describe(some), _relabelling(some), some is certain)
        for some in (certain, doubtful) if some
    ]  # fmt: skip


def _one_volume_off(labels: Labels, wrong: Sequence[Mislabelled], threshold: float) -> str | None:
    """Say to which side the whole table is shifted by one volume, if it is."""
    if len(wrong) < 2 or not len(labels.b0s) or not any(volume.certain for volume in wrong):
        return None
    for step, words in ((-1, "earlier"), (1, "later")):
        shifted = np.roll(labels.bvals, step)
        if Labels.of(labels.appearance, shifted, threshold, shelled=labels.shelled).fit():
            return words
    return None


def _mislabelled(
    appearance: Appearance, labels: Labels, gradients: Gradients
) -> list[Mislabelled]:
    """Find volumes under the label of others, those of another shell among them."""
    wrong = labels.mislabelled()
    if any(found.certain for found in wrong):
        return wrong
    by_volume = {found.volume: found for found in wrong}
    by_volume |= {found.volume: found for found in of_other_shells(appearance, gradients)}
    return [by_volume[volume] for volume in sorted(by_volume)]


def compare_b0s(dwi: DWI) -> str | None:
    """Compare the two b=0 volumes of a series, and say which is wrong if they differ.

    The diffusion-weighted volumes show it: with the right b=0 volume the diffusivity of the brain
    is a usual one, and fluid, which is bright at b=0, is dark in them. Noise is unrelated to them.
    """
    b0s = dwi.gradients.b0s
    if len(b0s) != 2:
        return None
    lowest = lowest_weighted(dwi)
    appearance = Appearance.of(dwi.select(np.concatenate([b0s, lowest])))
    if appearance is None or _moved_apart(dwi, b0s):
        return None
    weighted = np.arange(2, 2 + len(lowest))
    text = f"the two b=0 volumes ({listed(b0s)}) differ"
    factor = np.exp(abs(appearance.brightness[0] - appearance.brightness[1]))
    apart = f" in brightness by a factor of {factor:.1f}"
    dark = appearance.brightness[:2] < np.median(appearance.brightness[weighted]) - GAP
    gains_vary = _gains_vary(appearance.brightness[weighted], dwi.gradients.bvals[lowest])
    if dark.sum() == 1 and not gains_vary:  # one that is nearly empty
        text, wrong, known = text + apart, int(np.argmax(dark)), True
    elif appearance.patterns[0] @ appearance.patterns[1] < ALIKE:
        similarity = [abs(appearance.similarity(volume, weighted)) for volume in (0, 1)]
        wrong = int(np.argmin(similarity))
        known = similarity[1 - wrong] > similarity[wrong] + UNLIKE
        text += " in what they show"
    elif gains_vary:
        return None  # the b=0 volumes differ as all others do
    elif np.log(factor) > GAP:
        decays = appearance.brightness[:2] - np.median(appearance.brightness[weighted])
        diffusivities = decays / np.median(dwi.gradients.bvals[lowest])
        usual = (diffusivities > USUAL[0]) & (diffusivities < USUAL[1])
        wrong, known = int(np.argmin(usual)), usual.sum() == 1
        text += apart
    else:
        return None
    which = f"volume {b0s[wrong]} is the doubtful one" if known else "both are doubtful"
    return f"{text}; by the diffusion-weighted volumes {which}; check them"


def _gains_vary(brightness: np.ndarray, bvals: np.ndarray) -> bool:
    """Whether most volumes of like b-values differ in brightness by as much as is no label's."""
    away = [brightness[level] - np.median(brightness[level])
            for level in levels_of(bvals, -1.0) if len(level)]  # fmt: skip
    low, high = np.quantile(np.concatenate(away), [0.2, 0.8])
    return bool(high - low > GAP)


def _moved_apart(dwi: DWI, pair: np.ndarray) -> bool:
    """Whether two volumes show the same head, wherever it is in each."""
    levels = [levels_anywhere(dwi, dwi.signal[..., volume]) for volume in pair]
    if levels[0] is None or levels[1] is None:
        return False
    change = levels[1] - levels[0]
    alike = np.ptp(change) < SAME_LEVELS
    return bool(alike and abs(np.median(change)) < GAP)


def _describe(wrong: Sequence[Mislabelled]) -> str:
    """Say which volumes look like what."""
    kinds: dict[str, list[int]] = {}
    for found in wrong:
        if found.like is None:
            looks = "as bright as b=0 or brighter"
        else:
            looks = f"as {'bright' if found.brighter else 'dark'} as b={found.like:.0f}"
        kinds.setdefault(f"labelled b={found.label:.0f} but {looks}", []).append(found.volume)
    return "; ".join(
        f"volume{'s' if len(volumes) > 1 else ''} {listed(volumes)} "
        f"{'are' if len(volumes) > 1 else 'is'} {words}"
        for words, volumes in kinds.items()
    )


def _relabelling(wrong: Sequence[Mislabelled]) -> str:
    kinds: dict[float, list[int]] = {}
    for found in wrong:
        kinds.setdefault(found.like or 0.0, []).append(found.volume)
    return "the images fit " + ", ".join(
        f"b={bval:.0f} for {listed(volumes)}" for bval, volumes in kinds.items()
    )
