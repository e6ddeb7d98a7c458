# SPDX-License-Identifier: Apache-2.0
"""Schemes that do not determine a model: a solution of full rank, or words; never a traceback."""

import numpy as np
import pytest

import eddymotion as em
from eddymotion.estimation.estimate import fill_unpredicted
from eddymotion.estimation.outliers.scores import _volume_gains
from eddymotion.mapping.motion import Motion
from eddymotion.models import AverageModel, GaussianProcessModel, get_model
from eddymotion.models.covariance import SphericalCovariance, fit_covariance
from eddymotion.models.gaussian_process import mean_design
from eddymotion.models.qspace import MaternCovariance
from eddymotion.simulation import Grid, acquire, procedural_head, simulate_motion

AXES = np.vstack([np.zeros(3), np.eye(3), np.eye(3)])
TWO_BVALUES = em.Gradients(np.array([0.0, 500, 500, 500, 1000, 1000, 1000]), AXES)


def scheme(bvals, kind, seed=0):
    """Directions of a kind for some b-values."""
    vectors = np.random.default_rng(seed).normal(size=(len(bvals), 3))
    vectors = {
        "random": vectors,
        "one direction": np.tile(vectors[0], (len(bvals), 1)),
        "nearly one": vectors[0] + 1e-7 * vectors,
        "a plane": vectors * [1, 1, 0],
        "no direction": 0 * vectors,
    }[kind]
    return em.Gradients(np.array(bvals, float), vectors)


def test_two_bvalues_give_a_mean_of_two_parameters():
    assert not TWO_BVALUES.is_shelled
    assert mean_design(TWO_BVALUES).shape == (7, 1 + 2)
    model = GaussianProcessModel(MaternCovariance(signal=1e-12), fitted=True)
    signal = np.array([[9.0, 1, 2, 6, 10, 20, 60]])
    predicted = model.leave_one_out(signal, TWO_BVALUES)
    assert np.isnan(predicted[0, 0])
    assert predicted[0, 1:] == pytest.approx([4, 3.5, 1.5, 40, 35, 15], rel=1e-5)


def test_a_series_of_two_bvalues_is_corrected(motion_rmse):
    head = procedural_head(6.0)
    truth = simulate_motion("moderate", 7, np.zeros(3), seed=4)
    dwi = acquire(head, TWO_BVALUES, truth, Grid.covering(head, 7.0), snr=40)
    found = em.estimate_motion(dwi, align_shells=False)
    apart = motion_rmse(found.relative_to(1), truth.relative_to(1), dwi.center)
    still = motion_rmse(Motion.identity(7), truth.relative_to(1), dwi.center)
    assert apart[0] < 0.7 * still[0]


@pytest.mark.parametrize("kind", ["random", "one direction", "nearly one", "a plane",
                                  "no direction"])  # fmt: skip
@pytest.mark.parametrize("bvals", [
    [0, 1000], [0, 0, 700, 1000, 2000], [500] * 3 + [1000] * 3, [1000] * 6,
    [0, 1000, 1005, 995, 2010, 1990, 2000], [0] + [30000] * 7, [0] + [700] * 4 + [9000] * 4,
    [0] * 4 + [1000],
])  # fmt: skip
@pytest.mark.parametrize(
    "name", ["auto", "gp", "gp-spherical", "gp-legendre", "gp-qspace", "average", "dti", "wls-dti"]
)
def test_predictions_are_finite_or_unknown(bvals, kind, name):
    gradients = scheme(bvals, kind)
    signal = 100 + np.random.default_rng(1).normal(size=(50, len(bvals)))
    try:
        model = get_model(name, gradients)
    except em.EddymotionError:  # it says which others determine their parameters
        assert name.endswith("dti")
        return
    with np.errstate(over="raise", divide="raise", invalid="raise"):
        predicted = model.leave_one_out(signal, gradients)
    assert not np.isinf(predicted).any()
    assert (np.abs(predicted[np.isfinite(predicted)]) < 1e8).all()


def test_parameters_that_give_no_covariance_are_passed_over():
    class Refusing(SphericalCovariance):
        def matrix(self, gradients):
            return super().matrix(gradients) - (2 if self.signal > 30 else 0) * np.eye(
                len(gradients)
            )

    gradients = scheme([1000] * 12, "random")
    signal = np.random.default_rng(0).normal(size=(12, 400)) * 5
    design = np.ones((12, 1))
    found = fit_covariance(Refusing(), signal @ signal.T / 400, gradients, design)
    assert 0 < found.signal <= 30


def test_gains_that_are_not_positive_are_reported():
    assert _volume_gains(np.array([[-0.5, -0.4, np.nan], [1.0, 1.0, 1.0]]))[0] == pytest.approx(
        -0.45
    )


@pytest.mark.parametrize(
    ("model", "advice"),
    [
        (AverageModel(), "use --model gp"),
        (GaussianProcessModel(MaternCovariance()), "use --model average"),
        (AverageModel(min_q_distance=0.5), "use a smaller --min-q-distance"),
    ],
)
def test_the_model_in_use_is_not_advised(tiny, model, advice):
    nothing = np.zeros(len(tiny), bool)
    with pytest.raises(em.EddymotionError, match=advice + "$"):
        fill_unpredicted(tiny, Motion.identity(len(tiny)), nothing, model)
