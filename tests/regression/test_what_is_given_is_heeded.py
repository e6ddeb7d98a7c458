# SPDX-License-Identifier: Apache-2.0
"""What is given to an estimator is heeded, refused, or reported."""

import logging

import numpy as np
import pytest

import eddymotion as em
from eddymotion.cli import correct
from eddymotion.estimation import choose_estimator
from eddymotion.models import (
    AverageModel,
    GaussianProcessModel,
    SphericalCovariance,
    gaussian_process,
)
from eddymotion.registration import GaussNewton


@pytest.mark.parametrize("registrar", [GaussNewton(), "gauss-newton"])
def test_a_registrar_that_is_given_registers(tiny, registrar, caplog):
    with caplog.at_level(logging.INFO, "eddymotion"):
        found = em.estimate_motion(tiny, model="average", registrar=registrar)
    assert "estimator: lovo (a registration was chosen)" in caplog.text
    assert "eddy currents: the leave-one-out" in caplog.text
    assert found.standard_errors is None
    with pytest.raises(em.EddymotionError, match="estimator joint: a registration was chosen"):
        em.estimate_motion(tiny, registrar=registrar, estimator="joint")


def test_no_registrar_is_no_choice(tiny):
    chosen = choose_estimator(None, AverageModel(), None, gradients=tiny.gradients)
    assert chosen == em.Joint(AverageModel())


@pytest.mark.parametrize(
    "beside", [{"model": "gp"}, {"registrar": "dipy"}, {"n_iterations": 3}], ids=str
)
def test_options_beside_an_estimator_that_carries_its_own_are_refused(tiny, beside):
    with pytest.raises(em.EddymotionError, match=r"give them to Joint\("):
        em.estimate_motion(tiny, estimator=em.Joint(), **beside)


@pytest.mark.slow
def test_estimators_as_values_and_options_one_by_one_are_the_same(tiny):
    with pytest.warns(FutureWarning, match="Joint"):
        one_by_one = em.estimate_motion(tiny, n_iterations=2, eddy_currents="none")
    value = em.estimate_motion(tiny, estimator=em.Joint(max_steps=2, eddy_current="none"))
    np.testing.assert_array_equal(value.matrices, one_by_one.matrices)
    loop = em.LeaveOneOut("average", "gauss-newton", n_passes=1)
    with pytest.warns(FutureWarning, match="LeaveOneOut"):
        named = em.estimate_motion(tiny, model="average", estimator="lovo", n_iterations=1)
    passed = em.estimate_motion(tiny, estimator=loop)
    np.testing.assert_array_equal(passed.matrices, named.matrices)


def test_the_command_refuses_a_registration_for_joint(tmp_path, capsys):
    (tmp_path / "dwi.nii").touch()
    call = [str(tmp_path / "dwi.nii"), "--estimator", "joint", "--registration", "gauss-newton"]
    assert correct.main(call) == 2
    assert "uses no registration backend, but gauss-newton was given" in capsys.readouterr().err


def test_a_fitted_process_is_taken_as_it_is(tiny, monkeypatch):
    def refit(*_):
        raise AssertionError("fitted again")

    monkeypatch.setattr(gaussian_process, "fit_covariance", refit)
    model = GaussianProcessModel(SphericalCovariance(), fitted=True)
    em.estimate_motion(tiny, estimator=em.Joint(model, max_steps=1), align_shells=False)


def test_too_few_volumes_for_fields_are_reported(tiny, caplog):
    few = em.DWI(tiny.signal[..., :6], tiny.affine, tiny.gradients.select(slice(6)), tiny.mask)
    assert len(few.gradients.dwis) < 6
    with caplog.at_level(logging.WARNING, "eddymotion"):
        em.estimate_motion(few, estimator=em.Joint(max_steps=1, eddy_current="linear"))
    assert "eddy currents linear: no fields are estimated, since that needs 6" in caplog.text
