# SPDX-License-Identifier: Apache-2.0
"""Of two b=0 volumes that differ, the wrong one is named by the diffusion-weighted volumes."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.checks import find_issues
from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.b0_volumes import ALIKE
from eddymotion.data.gradients import Gradients
from eddymotion.images.grid import Grid
from eddymotion.simulation import acquire, procedural_head, shelled_scheme
from eddymotion.simulation.motion import simulate_motion


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


@pytest.mark.parametrize("which", [0, 1])
def test_nearly_empty(weighted, which):
    """Both were doubtful, and all others were said to be brighter than b=0."""
    volume = weighted.gradients.b0s[which]
    found = find_issues(changed(weighted, volume, np.random.default_rng(1).random(weighted.shape)))
    (text,) = (one.text for one in found if one.kind == "b0")
    assert f"volume {volume} is the doubtful one" in text
    assert "tables" not in [one.kind for one in found]


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


@pytest.mark.parametrize("seed", [1, 3])
def test_a_head_elsewhere_is_no_other_volume(seed):
    """Both volumes of each series of a scattered head were said to be doubtful, or one."""
    head, scheme = procedural_head(4.0), shelled_scheme({3000.0: 6}, 2)
    grid = Grid.covering(head, 4.0)
    motion = simulate_motion("scattered", len(scheme), grid.center, seed=seed)
    moved = acquire(head, scheme, motion, grid, snr=20.0, coil_bias=0.13, seed=seed)
    appearance = Appearance.of(moved.select(scheme.b0s))
    assert appearance.patterns[0] @ appearance.patterns[1] < ALIKE  # where they are compared
    assert not b0_issues(moved)
    volume = scheme.b0s[1]
    assert b0_issues(changed(moved, volume, 3 * moved.signal[..., volume]))
    noise = np.random.default_rng(1).rayleigh(400, moved.shape)
    assert b0_issues(changed(moved, volume, noise))
    assert b0_issues(changed(moved, volume, moved.signal[..., scheme.dwis[0]]))
    coil = np.exp(0.3 * np.linspace(-1, 1, moved.shape[1]))[:, None]
    shaded = changed(moved, volume, coil * moved.signal[..., volume])
    assert Appearance.of(shaded.select(scheme.b0s)).patterns.prod(axis=0).sum() < ALIKE
    assert not b0_issues(shaded)  # as coils shade a head that turned


def test_where_all_volumes_have_gains_of_their_own_none_is_doubtful(moving):
    """As of echoes in turn: one of two b=0 volumes was said to be the doubtful one."""
    two = moving.select(np.delete(np.arange(len(moving)), moving.gradients.b0s[1]))
    first, second = two.gradients.b0s
    gains = np.where(np.arange(len(two)) % 2 == first % 2, 1.0, 0.5)
    gains[second] = 0.5
    assert not b0_issues(replace(two, signal=two.signal * gains.astype(np.float32)))
    assert b0_issues(changed(two, second, 0.5 * two.signal[..., second]))
