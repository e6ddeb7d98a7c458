# SPDX-License-Identifier: Apache-2.0
"""b-vectors with a wrong sign are told by fibres that do not go on: no prediction shows them."""

from dataclasses import replace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.data.checks import find_issues
from eddymotion.data.checks.directions import mirrored_axis
from eddymotion.data.gradients import Gradients
from eddymotion.images.axes import image_axes
from eddymotion.simulation import shelled_scheme


def mirrored(dwi, axis):
    """The same series, its directions mirrored along an image axis."""
    mirror, axes = np.diag(np.where(np.arange(3) == axis, -1.0, 1.0)), image_axes(dwi.affine)
    bvecs = dwi.gradients.bvecs @ axes @ mirror @ axes.T
    lengths = np.linalg.norm(bvecs, axis=1, keepdims=True)
    gradients = Gradients(dwi.gradients.bvals, bvecs / np.where(lengths > 0, lengths, 1))
    return replace(dwi, acquisition=replace(dwi.acquisition, gradients=gradients))


@pytest.fixture(scope="module")
def bundles():
    """Bundles of fibres along the diagonal of slices, on an oblique grid of another handedness."""
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    affine = np.eye(4)
    affine[:3, :3] = turn * [-2.0, 2.0, 2.5] * np.sign(np.linalg.det(turn))
    gradients = shelled_scheme({1000.0: 15}, 1)
    x, y, _ = np.indices((30, 30, 22))
    fibre = image_axes(affine) @ [np.sqrt(0.5), np.sqrt(0.5), 0.0]
    along = np.where(((x - y) % 8 < 4)[..., None], (fibre @ gradients.bvecs.T) ** 2, 1 / 3)
    signal = 1000 * np.exp(-gradients.bvals * (0.3e-3 + 1.4e-3 * along))
    signal[0] = signal[-1] = 0
    return em.DWI(signal.astype(np.float32), affine, gradients, signal[..., 0] > 0)


def test_bundles_that_are_mirrored_end_at_their_sides(bundles):
    assert mirrored_axis(bundles) is None
    wrong = mirrored(bundles, 1)
    assert mirrored_axis(wrong) in ("i", "j")  # either puts them right
    (issue,) = (one for one in find_issues(wrong) if one.kind == "directions")
    assert "may be mirrored" in issue.text
    few = wrong.select(np.arange(9))
    assert mirrored_axis(few) is None


def test_each_axis_is_told_in_a_real_brain(public_series):
    dwi = public_series("ds000114_trunc")
    assert mirrored_axis(dwi) is None
    assert [mirrored_axis(mirrored(dwi, axis)) for axis in range(3)] == ["i", "j", "k"]
