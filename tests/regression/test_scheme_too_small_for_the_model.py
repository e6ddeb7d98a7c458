# SPDX-License-Identifier: Apache-2.0
"""Saturated and clinical schemes: no number by accident, no crash."""

import numpy as np
import pytest

import eddymotion as em
from eddymotion.models import TensorModel, choose_model, get_model
from eddymotion.models.base import held_out_operator, least_squares_precision, neighbours
from eddymotion.simulation import shelled_scheme


def test_saturated_fit_predicts_nothing():
    design = np.random.default_rng(0).normal(size=(7, 7))
    gradients = shelled_scheme({1000.0: 6}, 1)
    operator = held_out_operator(least_squares_precision(design), neighbours(gradients, 0.0))
    assert np.isnan(operator).all()


def test_six_directions_and_one_b0_are_refused_by_the_tensor():
    gradients = shelled_scheme({1000.0: 6}, 1)
    with pytest.raises(em.EddymotionError, match="use --model gp or average"):
        get_model("dti", gradients)
    with pytest.raises(em.EddymotionError):
        TensorModel().leave_one_out(np.ones((4, 7)), gradients)


def test_three_orthogonal_directions_choose_the_average():
    gradients = em.Gradients(np.array([0.0, 1000, 1000, 1000]), np.eye(4)[:, 1:])
    assert choose_model(gradients) == "average"
