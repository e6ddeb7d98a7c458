# SPDX-License-Identifier: Apache-2.0
"""What is added to the errors that noise makes: as large as it has to be, and not larger."""

import logging
from types import SimpleNamespace

import numpy as np
import pytest

from eddymotion.data.series import DWI
from eddymotion.estimation import estimate_motion
from eddymotion.estimation.equations.solution import _poses_of_periods
from eddymotion.estimation.joint.standard_errors import (
    excess_covariance,
    misfit_covariances,
    pulled_by_slices,
)
from eddymotion.simulation import procedural_head, shelled_scheme

IN_MM = np.array([1.0] * 3 + [50.0] * 3)
SCHEME = shelled_scheme({1000: 20, 3000: 40}, 3)


def scanned(voxel_size, gradients=SCHEME):
    mask = procedural_head(5.0).brain
    return SimpleNamespace(mask=mask, voxel_sizes=np.full(3, voxel_size), gradients=gradients)


def misfit_mm(dwi, volumes):
    """Standard errors (n, 6), rotations at 50 mm, each independent of others."""
    found = misfit_covariances(dwi, volumes)
    variances = np.einsum("nkk->nk", found)
    np.testing.assert_array_equal(found, variances[:, :, None] * np.eye(6))
    return np.sqrt(variances) * IN_MM


def test_misfit_of_a_smaller_head_is_smaller_in_millimetres_and_the_same_in_degrees():
    dwis = SCHEME.dwis
    one, half = (misfit_mm(scanned(size), dwis) for size in (5.0, 2.5))
    np.testing.assert_allclose(half[:, :3], one[:, :3] / 2)
    np.testing.assert_allclose(half[:, 3:], one[:, 3:])


def test_misfit_is_about_a_hundredth_of_a_millimetre_and_grows_with_b_and_with_few_volumes():
    dwi, dwis = scanned(5.0), SCHEME.dwis
    of_all = misfit_mm(dwi, dwis)
    assert (of_all > 0.01).all(), "rotations, too"
    found = of_all[:, 0]
    low, high = (found[SCHEME.bvals[dwis].round(-2) == b] for b in (1000, 3000))
    assert of_all[SCHEME.bvals[dwis] < 1500].max() < 0.02
    np.testing.assert_allclose(high.mean() / low.mean(), 3**0.9, rtol=0.01)
    of_few = misfit_mm(dwi, dwis[:8])[:, 0]
    np.testing.assert_allclose(of_few / found[:8], 2 / (1 + 8 / 60))
    of_b0s = misfit_mm(dwi, SCHEME.b0s)[:, 0]
    np.testing.assert_allclose(of_b0s * (1 + 8 / 60), low[0], rtol=0.01)


def test_halves_of_the_brain_raise_errors_to_their_scatter_and_never_lower_them():
    random = np.random.default_rng(3)
    roots = random.normal(size=(7, 6, 6))
    covariances = roots @ roots.transpose(0, 2, 1)
    usual = np.einsum("nkk->k", covariances) / 7
    scatter = usual * [4.0, 0.5, 1.0, 9.0, np.nan, 0.0]
    total = covariances + excess_covariance(covariances, scatter)
    np.testing.assert_allclose(
        np.einsum("nkk->k", total) / 7, usual * [4.0, 1.0, 1.0, 9.0, 1.0, 1.0]
    )
    off_diagonal = ~np.eye(6, dtype=bool)
    np.testing.assert_array_equal(total[:, off_diagonal], covariances[:, off_diagonal])


@pytest.mark.parametrize(("pull", "left"), [(-3.0, 8.0), (3.0, 8.0), (0.9, 0.0), (np.nan, 0.0)])
def test_thick_slices_add_what_they_pull_by_beyond_noise(pull, left):
    """In standard errors of noise, and in any direction."""
    noise = np.array([0.1, 0.2, 0.3, 0.001, 0.002, 0.003])
    found = pulled_by_slices(np.diag(noise**2)[None], pull * noise[None])
    np.testing.assert_allclose(found[0], left * np.diag(noise**2))


def test_the_poses_of_parts_are_those_of_a_bent_head_though_their_steps_add_up_to_nothing():
    """One volume of three moved; its last part shows nothing, and goes on where the head was."""
    random, period = np.random.default_rng(5), np.repeat(np.arange(8), 4)
    roots = random.normal(size=(3, 32, 6, 40))
    own = roots @ roots.swapaxes(-1, -2) * np.repeat([1, 2, 4, 4, 3, 2, 2, 0.0], 4)[:, None, None]
    course = np.where(np.arange(8) < 3, 0.0, 1.0)[:, None] * random.normal(size=6)
    away = np.zeros((3, 32, 6))
    away[1] = course[period]
    pulls = np.einsum("nzab,nzb->naz", own, away)
    whole = own.sum(axis=1)
    steps = np.linalg.solve(whole, pulls)
    everyone = np.ones((3, 3), bool)
    (found,) = _poses_of_periods(steps, own, [period], everyone)
    np.testing.assert_allclose(found[1].T, course, atol=0.1 * np.abs(course).max())
    np.testing.assert_allclose(found[[0, 2]], 0, atol=1e-12)
    best = steps.sum(axis=2)  # of all slices together
    around = steps - np.linalg.solve(whole, np.einsum("nzab,nb->naz", own, best))
    np.testing.assert_allclose(around.sum(axis=2), 0, atol=1e-9)
    mean = _poses_of_periods(around, own, [period], everyone)[0].mean(axis=2)
    missed = course.mean(axis=0) - best[1]
    np.testing.assert_allclose(mean[1], missed, atol=0.1 * np.abs(course).max())
    assert np.linalg.norm(mean[1] - missed) < 0.3 * np.linalg.norm(missed)


def test_volumes_that_are_too_thin_to_be_refined_have_no_standard_errors_and_are_named(
    tiny, caplog
):
    middle = tiny.shape[2] // 2
    thin = slice(middle - 1, middle + 2)
    dwi = DWI(tiny.signal[:, :, thin], tiny.affine, tiny.gradients, tiny.mask[:, :, thin])
    with caplog.at_level(logging.WARNING):
        motion = estimate_motion(dwi)
    assert "too little of the brain is inside the image" in caplog.text
    assert np.isfinite(motion.matrices).all()
    assert np.isnan(motion.standard_errors[1:]).all()
