# SPDX-License-Identifier: Apache-2.0
"""A small slice of the benchmarks: one scheme, two motions, with bounds."""

import numpy as np
import pytest

import eddymotion as em
from eddymotion.evaluation import compare_motion
from eddymotion.simulation import Recipe, simulate


@pytest.mark.parametrize("motion", ["moderate", pytest.param("swap30", marks=pytest.mark.slow)])
def test_motion_is_recovered(motion):
    made = simulate(Recipe(scheme="few", motion=motion, voxel_size=(4.0,) * 3, random_seed=1))
    found = em.estimate_motion(made.dwi)
    compared = compare_motion(found, made.motion, bvals=made.dwi.gradients.bvals,
                              grid_center=made.dwi.center)  # fmt: skip
    free, frame = compared.score(), compared.score(frame="given")
    nothing = compared.score("nothing", "given")
    assert free.rmse_translation_mm < 0.1 < 0.8 < nothing.rmse_translation_mm
    assert free.rmse_rotation_deg < 0.12 < 0.8 < nothing.rmse_rotation_deg
    assert frame.rmse_translation_mm < 0.25
    assert frame.rmse_rotation_deg < 0.25
    np.testing.assert_allclose([free.slope_translation, free.slope_rotation], 1.0, atol=0.06)
    dwis = made.dwi.gradients.dwis  # in their own frame: its one error is shared by all of them
    errors = compared.deviations["estimated", "free"].errors[dwis] / found.standard_errors[dwis]
    assert 0.5 < np.sqrt((errors**2).mean()) < 1.5


@pytest.mark.slow
def test_a_slab_of_few_slices_is_not_held_at_rest_by_its_edges():
    """A filter's guess of what lies beyond them stays with the scanner while the head moves."""
    recipe = Recipe(scheme="few", head="synthetic", coverage="slab", voxel_size=(4.0,) * 3,
                    snr=60.0, random_seed=3)  # fmt: skip
    made = simulate(recipe)
    found = em.estimate_motion(made.dwi)
    center, dwis = np.append(made.dwi.center, 1.0), made.dwi.gradients.dwis
    z, true = ((of.matrices[dwis] @ center)[:, 2] for of in (found, made.motion))
    z, true = z - z.mean(), true - true.mean()
    assert np.sqrt(((z - true) ** 2).mean()) < 0.1 < 1.0 < np.abs(true).max()
    assert (z @ true) / (true @ true) > 0.97
