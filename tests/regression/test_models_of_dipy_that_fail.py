# SPDX-License-Identifier: Apache-2.0
"""What a model of DIPY cannot do is reported in one line, whatever DIPY raises."""

import numpy as np
import pytest

import eddymotion as em
from eddymotion.models import get_model
from eddymotion.models.dipy import DipyModel

GRADIENTS = em.Gradients(np.array([0.0] + [500] * 3 + [2000] * 4), np.random.default_rng(0).normal(
    size=(8, 3)))  # fmt: skip


class Failing:
    """A model whose solver raises something."""

    error: Exception = ValueError()

    def __init__(self, table):
        pass

    def fit(self, data):
        raise self.error


@pytest.mark.parametrize(
    "error", [np.linalg.LinAlgError("Singular matrix"), AttributeError("we need a package"),
              IndexError("out of bounds"), TypeError()], ids=repr
)  # fmt: skip
def test_errors_of_a_model_are_reported_with_its_name(error, monkeypatch):
    monkeypatch.setattr(Failing, "error", error)
    model = DipyModel(Failing)
    with pytest.raises(em.EddymotionError, match="dipy:Failing: DIPY cannot predict with it") as t:
        model.leave_one_out(np.ones((5, 8), np.float32), GRADIENTS)
    assert (str(error) or "TypeError") in str(t.value)


def test_memory_that_is_not_there_is_no_fault_of_the_model(monkeypatch):
    monkeypatch.setattr(Failing, "error", MemoryError())
    with pytest.raises(MemoryError):
        DipyModel(Failing).leave_one_out(np.ones((5, 8), np.float32), GRADIENTS)


@pytest.mark.parametrize("name", ["DiffusionKurtosisModel", "FreeWaterTensorModel", "MapmriModel"])
def test_few_volumes_end_in_a_prediction_or_a_line(name):
    signal = np.random.default_rng(1).uniform(50, 100, (3, 8)).astype(np.float32)
    model = get_model(f"dipy:{name}", GRADIENTS)
    try:
        predicted = model.leave_one_out(signal, GRADIENTS)
    except em.EddymotionError:
        return
    assert predicted.shape == signal.shape
