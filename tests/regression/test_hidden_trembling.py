# SPDX-License-Identifier: Apache-2.0
"""A head trembles more than poses show from which all that follows the direction was removed.

With 12 directions that is up to five of twelve numbers an axis. How the head moves was learnt from
what was left: the offset of the b=0 volumes was told too exactly by time, and images counted too
little.
"""

from types import SimpleNamespace

import numpy as np

from eddymotion.estimation import frames
from eddymotion.estimation.frames.gradient_pulls import remove_gradient_pulls
from eddymotion.estimation.frames.offset import find_offset
from eddymotion.estimation.joint import solve_jointly
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.models import get_model
from eddymotion.simulation import shelled_scheme

SCHEME = shelled_scheme({1000.0: 12}, 2)
CENTER, IN_MM = np.array([5.0, -10.0, 20.0]), np.array([1.0] * 3 + [50.0] * 3)
ERROR_MM, TREMBLING_MM, DRIFT_MM = 0.05, 0.1, 0.02
N_COURSES = 12


def test_an_offset_by_time_is_as_certain_as_a_trembling_head_lets_it_be():
    size = SimpleNamespace(mask=np.ones((11, 11, 11), bool), voxel_sizes=np.full(3, 10.0))
    acquisition = SimpleNamespace(slicing=SimpleNamespace(groups=()))
    dwi = SimpleNamespace(
        gradients=SCHEME, brain_center=CENTER, acquisition=acquisition, **vars(size)
    )
    n, b0s, dwis = len(SCHEME), SCHEME.b0s, SCHEME.dwis
    covariances, over_errors = np.tile(np.diag((ERROR_MM / IN_MM) ** 2), (n, 1, 1)), []
    for seed in range(N_COURSES):
        random = np.random.default_rng(seed)
        trembling = TREMBLING_MM * random.normal(size=(n, 6))
        drift = np.cumsum(DRIFT_MM * random.normal(size=(n, 6)), axis=0)
        errors = ERROR_MM * random.normal(size=(n, 6))
        errors[b0s] = 0
        before = Motion(
            exp_rigid((trembling + drift) / IN_MM, CENTER) @ exp_rigid(errors / IN_MM, CENTER)
        )
        about = SCHEME, [dwis], CENTER, IN_MM
        found = remove_gradient_pulls(before, covariances, *about)
        after, removed = found.motion, found.removed
        of_groups = after.select(b0s), dwis, after.select(dwis)
        found = find_offset(dwi, *of_groups, removed=removed[dwis], with_images=False)
        told = np.sqrt(np.diag(found.covariance))
        over_errors.append(log_rigid(found.offset, CENTER) / told)
    assert 0.6 < np.sqrt(np.mean(np.square(over_errors))) < 0.92
    assert np.mean(np.abs(over_errors) < 1.96) > 0.95


def test_the_joint_solution_tells_what_it_removed(moving, monkeypatch):
    kept, find = {}, frames.find_offset

    def watched(*args, **how):
        kept.update(how)
        return find(*args, **how)

    monkeypatch.setattr(frames, "find_offset", watched)
    estimate = solve_jointly(moving, model=get_model("auto", moving.gradients))
    frames.unite_frames(moving, estimate)
    b0s, dwis = moving.gradients.b0s, moving.gradients.dwis
    np.testing.assert_allclose(estimate.removed[b0s], 0, atol=1e-12)
    assert np.abs(estimate.removed[dwis]).max() > 1e-5
    np.testing.assert_array_equal(kept["removed"], estimate.removed[dwis])
