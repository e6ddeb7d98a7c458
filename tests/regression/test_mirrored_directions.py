# SPDX-License-Identifier: Apache-2.0
"""b-vectors along wrong axes are told by fibres that do not go on: no prediction shows them."""

from dataclasses import replace

import numpy as np
import pytest

import eddymotion as em
from eddymotion.data.checks import find_issues
from eddymotion.data.checks.directions import ANISOTROPIC, _may_be_anisotropic, likelier_axes
from eddymotion.data.gradients import Gradients, from_fsl, to_fsl
from eddymotion.images.axes import image_axes
from eddymotion.simulation import shelled_scheme


def misread(dwi, order=(0, 1, 2), mirror=None):
    """The same series, the components of its b-vectors on file exchanged, one of them negative."""
    rows = to_fsl(dwi.gradients.bvecs, dwi.affine)[:, list(order)]
    rows = rows * np.where(np.arange(3) == mirror, -1.0, 1.0)
    bvecs = from_fsl(rows, dwi.affine)
    lengths = np.linalg.norm(bvecs, axis=1, keepdims=True)
    gradients = Gradients(dwi.gradients.bvals, bvecs / np.where(lengths > 0, lengths, 1))
    return replace(dwi, acquisition=replace(dwi.acquisition, gradients=gradients))


def told(dwi):
    (issue,) = (one.text for one in find_issues(dwi) if one.kind == "directions")
    return issue


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
    assert likelier_axes(bundles) is None
    wrong = misread(bundles, mirror=1)
    assert likelier_axes(wrong).mirrored_axis in ("i", "j")  # either puts them right
    assert "may be mirrored" in told(wrong)
    few = wrong.select(np.arange(9))
    assert likelier_axes(few) is None


def test_each_axis_is_told_in_a_real_brain(public_series):
    dwi = public_series("ds000114_trunc")
    assert likelier_axes(dwi) is None
    found = [likelier_axes(misread(dwi, mirror=axis)).mirrored_axis for axis in range(3)]
    assert found == ["i", "j", "k"]


def test_a_volume_that_shows_nothing_hides_no_wrong_axis(public_series):
    """Its darkness looked like fast diffusion along its direction, in all voxels."""
    dwi = public_series("ds000114_trunc")
    signal, dark = np.array(dwi.signal, float), dwi.gradients.dwis[3]
    signal[..., dark] = 0.05 * np.random.default_rng(0).random(dwi.shape[:3]) * signal.mean()
    dwi = replace(dwi, signal=signal)
    assert likelier_axes(dwi) is None
    found = [likelier_axes(misread(dwi, mirror=axis)).mirrored_axis for axis in range(3)]
    assert found == ["i", "j", "k"]


@pytest.mark.parametrize(
    ("order", "mirror", "rows"),
    [((1, 0, 2), None, "2, 1, 3"), ((2, 1, 0), 0, "3, 2, -1"), ((1, 2, 0), None, "3, 1, 2")],
)
def test_exchanged_axes_are_told_in_a_real_brain(public_series, order, mirror, rows):
    wrong = misread(public_series("ds000114_trunc"), order, mirror)
    assert f"rows {rows} would fit best" in told(wrong)


def test_no_tensor_is_passed_over_whose_anisotropy_counts():
    """Also where noise has made eigenvalues negative; few others are looked at."""
    rows = np.random.default_rng(0).normal(size=(20_000, 3, 3)) * 0.3
    tensors = (
        rows + rows.transpose(0, 2, 1) + np.eye(3) * np.linspace(-1, 3, 20_000)[:, None, None]
    )
    values = np.clip(np.linalg.eigvalsh(tensors), 0, None)
    spread = ((values - values.mean(axis=1, keepdims=True)) ** 2).sum(axis=1)
    counts = 1.5 * spread > ANISOTROPIC**2 * (values**2).sum(axis=1)
    asked = _may_be_anisotropic(tensors[:, [0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]].T)
    assert asked[counts].all()
    assert (~asked).mean() > 0.01
    assert (asked & ~counts & (np.trace(tensors, axis1=1, axis2=2) > 0)).mean() < 0.05
