# SPDX-License-Identifier: Apache-2.0
"""Frames of b=0 and diffusion-weighted volumes that lie far apart, and time does not tell how.

Of a head that was somewhere else in each volume the offset is unknown within centimetres; from
there the image term alone went nowhere and was off by 13 mm and 14°.
"""

import numpy as np
import pytest

from eddymotion.estimation.frames.offset import find_offset
from eddymotion.images.grid import Grid
from eddymotion.machine.parallel import Compute
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.simulation import acquire, procedural_head, shelled_scheme
from eddymotion.simulation.motion import simulate_motion


@pytest.mark.slow
def test_an_offset_is_found_from_afar():
    seed = 1
    head, scheme = procedural_head(3.0), shelled_scheme({1000.0: 16}, 3)
    grid = Grid.covering(head, 4.0)
    truth = simulate_motion("scattered", len(scheme), grid.center, seed=seed)
    dwi = acquire(head, scheme, truth, grid, snr=20.0, seed=seed)
    truth, group = truth.relative_to(dwi.reference), scheme.dwis
    offset = exp_rigid(np.array([14.0, -9.0, 6.0, 0.3, 0.1, -0.3]), dwi.brain_center)
    own = Motion(truth.matrices[group] @ np.linalg.inv(offset))
    found = find_offset(dwi, truth.select(scheme.b0s), group, own, compute=Compute(seed=seed))
    off = log_rigid(np.linalg.inv(offset) @ found.offset, dwi.brain_center)
    assert np.linalg.norm(off[:3]) < 0.25
    assert np.rad2deg(np.linalg.norm(off[3:])) < 0.25
    assert (np.abs(off) < 3 * np.sqrt(np.diag(found.covariance))).all()
