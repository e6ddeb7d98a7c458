# SPDX-License-Identifier: Apache-2.0
"""Of two b=0 volumes that differ, the wrong one is named by the diffusion-weighted volumes."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.checks import find_issues
from eddymotion.data.gradients import Gradients


@pytest.fixture(scope="module")
def weighted(tiny):
    assert len(tiny.gradients.b0s) == 2
    return tiny


def changed(dwi, volume, signal):
    every = np.array(dwi.signal)
    every[..., volume] = signal
    return replace(dwi, signal=every)


def b0_issues(dwi):
    return [one.text for one in find_issues(dwi) if one.kind == "b0"]


@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("factor", [3, 1 / 3])
def test_another_brightness(weighted, which, factor):
    volume = weighted.gradients.b0s[which]
    (text,) = b0_issues(changed(weighted, volume, weighted.signal[..., volume] * factor))
    assert "in brightness by a factor of 3.0" in text
    assert f"volume {volume} is the doubtful one" in text


@pytest.mark.parametrize("which", [0, 1])
def test_noise(weighted, which):
    volume = weighted.gradients.b0s[which]
    noise = np.random.default_rng(1).rayleigh(400, weighted.shape)
    (text,) = b0_issues(changed(weighted, volume, noise))
    assert f"volume {volume} is the doubtful one" in text


def test_both_where_nothing_tells(weighted):
    first, second = weighted.gradients.b0s
    signal = np.array(weighted.signal)
    signal[..., first] *= 4
    signal[..., second] *= 12
    (text,) = b0_issues(replace(weighted, signal=signal))
    assert "both are doubtful" in text


def test_sound_ones_are_alike(weighted):
    assert not b0_issues(weighted)
    bvals = np.where(weighted.gradients.is_b0, 0, 3000.0)
    assert not b0_issues(replace(weighted, gradients=Gradients(bvals, weighted.gradients.bvecs)))
