# SPDX-License-Identifier: Apache-2.0
"""Directions of fibres, with which b-vectors are compared."""

import numpy as np
import pytest

from eddymotion.data.checks.directions import principal_directions

SHAPES = {
    "any": None,
    "a stick": (1.7, 0.3, 0.3),
    "a pancake": (1.2, 1.2 - 1e-3, 0.2),
    "negative": (0.4, -0.1, -0.9),
    "nearly round": (0.7, 0.7 - 1e-6, 0.7 - 2e-6),
}


@pytest.mark.parametrize("values", SHAPES.values(), ids=SHAPES)
def test_directions_of_tensors_are_eigenvectors(values):
    random = np.random.default_rng(0)
    if values is None:
        matrices = random.normal(size=(500, 3, 3))
        matrices += matrices.transpose(0, 2, 1)
    else:
        turns = np.linalg.qr(random.normal(size=(500, 3, 3)))[0]
        matrices = turns * np.array(values) @ turns.transpose(0, 2, 1)
    entries = matrices[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]].T
    found, first = principal_directions(entries)
    expected, vectors = np.linalg.eigh(matrices)
    np.testing.assert_allclose(found[::-1].T, expected, atol=1e-8)
    along = np.abs((first.T * vectors[..., 2]).sum(axis=1))
    np.testing.assert_allclose(along, 1.0, atol=1e-6)


def test_no_direction_of_what_has_none_is_finite():
    _, first = principal_directions(np.array([[1.0], [1.0], [1.0], [0.0], [0.0], [0.0]]))
    assert np.isfinite(first).all()
