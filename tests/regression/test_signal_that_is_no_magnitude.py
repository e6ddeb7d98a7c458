# SPDX-License-Identifier: Apache-2.0
"""Signal that is no magnitude: integers that overflowed, or an inverted contrast.

Poses were 0.45 mm and 0.2 mm off, told as 0.3 and 0.14, without a word.
"""

from dataclasses import replace

import numpy as np

from eddymotion.data.checks import find_issues


def test_signal_far_below_zero_is_told(moving):
    scaled = moving.signal * (40000 / moving.signal.max())
    wrapped = scaled.astype(np.int64).astype(np.uint16).view(np.int16).astype(np.float32)
    wrong = np.flatnonzero((wrapped < 0).any(axis=(0, 1, 2)))
    (issue,) = [one for one in find_issues(replace(moving, signal=wrapped)) if one.severe]
    assert issue.kind == "negative"
    assert ", ".join(map(str, wrong)) in issue.text


def test_noise_below_zero_is_none(moving):
    noise = np.random.default_rng(0).normal(size=moving.signal.shape).astype(np.float32)
    real = moving.signal + 0.2 * np.median(moving.signal[moving.mask]) * noise
    assert not [one for one in find_issues(replace(moving, signal=real)) if one.severe]


def test_an_inverted_contrast_is_told(moving):
    inverted = replace(moving, signal=moving.signal.max() - moving.signal)
    assert [one.kind for one in find_issues(inverted) if one.severe] == ["contrast"]
    upper = moving.signal.shape[2] // 3
    slab = replace(
        moving, signal=moving.signal[:, :, upper:-upper], mask=moving.mask[:, :, upper:-upper]
    )
    assert "contrast" not in [one.kind for one in find_issues(slab)]
