# SPDX-License-Identifier: Apache-2.0
"""Eddy-current fields found together with the motion, against the truth."""

import logging
from dataclasses import replace

import numpy as np
import pytest
from nibabel.affines import apply_affine

from eddymotion.data.acquisition import Slicing
from eddymotion.data.gradients import Gradients
from eddymotion.data.series import DWI
from eddymotion.errors import EddymotionError
from eddymotion.estimation import Joint, estimate_motion
from eddymotion.estimation.fields.evidence import FieldEvidence, shown_order
from eddymotion.estimation.fields.offsets import with_offsets
from eddymotion.images.axes import phase_encoding_vector
from eddymotion.io.sidecars import SeriesFiles, acquisition_of, metadata_of
from eddymotion.mapping.eddy_currents import N_TERMS, EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import exp_rigid, log_rigid
from eddymotion.simulation import acquire
from eddymotion.simulation.eddy_currents import simulate_eddy_currents


def along_the_grid(dwi, axis):
    column = dwi.affine[:3, axis]
    return column / np.linalg.norm(column)


def brain_points(dwi):
    return apply_affine(dwi.affine, np.argwhere(dwi.mask)[::53])


def pose_errors(dwi, found, true):
    """Twists (mm, rad) of the diffusion-weighted volumes, less what all have alike, (n, 6)."""
    dwis, common = dwi.gradients.dwis, np.eye(4)
    for _ in range(5):
        apart = np.linalg.inv(found.matrices[dwis] @ common) @ true.matrices[dwis]
        twists = log_rigid(apart, dwi.brain_center)
        common = common @ exp_rigid(twists.mean(axis=0), dwi.brain_center)
    return twists


def recorded_rmse(dwi, found, true):
    """Error (mm) of where points of the brain are recorded, less what all volumes have alike."""
    points = brain_points(dwi)
    errors = np.array(
        [found.recorded(v, points) - true.recorded(v, points) for v in dwi.gradients.dwis]
    )
    errors -= errors.mean(axis=0)
    return float(np.sqrt((errors**2).sum(axis=2).mean()))


@pytest.fixture(scope="module")
def distorted_truth(scheme, truth, grid):
    eddy = simulate_eddy_currents(scheme, grid, order="quadratic", amplitude=1.15, seed=3)
    return replace(truth, eddy_currents=eddy)


@pytest.fixture(scope="module")
def distorted(head, grid, scheme, truth, distorted_truth):
    return acquire(head, scheme, truth, grid, snr=20, eddy=distorted_truth.eddy_currents)


@pytest.fixture(scope="module")
def found(distorted):
    return estimate_motion(distorted, n_threads=2)


def test_fields_are_found_and_no_longer_taken_for_motion(
    distorted, found, distorted_truth, moving, estimated, truth
):
    """The motion is as good as that of the same head without fields."""
    rigid = estimate_motion(distorted, estimator=Joint(eddy_current="none"), n_threads=2)
    errors = np.sqrt((pose_errors(distorted, found, distorted_truth) ** 2).mean(axis=0))
    undistorted = np.sqrt((pose_errors(moving, estimated, truth) ** 2).mean(axis=0))
    other_axes = [0, 2]
    assert errors[other_axes].max() < 1.2 * undistorted[other_axes].max()
    assert errors[3:].max() < 1.2 * undistorted[3:].max()
    assert recorded_rmse(distorted, found, distorted_truth) < 0.2
    assert recorded_rmse(distorted, rigid, distorted_truth) > 0.8
    assert not found.eddy_currents.coefficients[distorted.gradients.b0s].any()


def test_axis_is_found_from_the_data(distorted, found):
    """The fields were simulated along the second axis, and nobody said so."""
    assert abs(found.eddy_currents.pe @ along_the_grid(distorted, 1)) > 0.999


def fields_where_slices_lie_along_j(distorted, *, timed, pe=None):
    """Fields of the series whose second axis is that of the slices, says the sidecar."""
    metadata = {"SliceEncodingDirection": "j"}
    if timed:
        metadata["SliceTiming"] = (np.arange(distorted.shape[1]) * 0.1).tolist()
    slicing = Slicing.of(metadata, distorted.shape)
    acquisition = replace(distorted.acquisition, slicing=slicing)
    if pe is not None:
        acquisition = acquisition.encoded(pe, distorted.affine)
    one = replace(distorted, acquisition=acquisition)
    return estimate_motion(one, estimator=Joint(within_volume="none"), n_threads=2).eddy_currents


@pytest.mark.parametrize(("timed", "pe"), [(True, None), (False, None), (False, "i")])
def test_fields_are_not_found_along_the_axis_of_slices(distorted, timed, pe):
    """Slices are selected along it, not encoded: what looks like a field there is motion."""
    eddy = fields_where_slices_lie_along_j(distorted, timed=timed, pe=pe)
    assert eddy is None or abs(eddy.pe @ along_the_grid(distorted, 1)) < 0.5


def test_phase_encoding_is_believed_against_slices(distorted):
    """Slices and phase encoding along one axis, says the sidecar: the data decide."""
    eddy = fields_where_slices_lie_along_j(distorted, timed=True, pe="j")
    assert abs(eddy.pe @ along_the_grid(distorted, 1)) > 0.999


def test_an_axis_that_the_data_contradict_is_not_used(distorted, found, caplog):
    """An image that was turned after it was acquired: rotations were 0.6° off, told as 0.1."""
    wrong = replace(distorted, acquisition=distorted.acquisition.encoded("i", distorted.affine))
    other = estimate_motion(wrong, n_threads=2)
    np.testing.assert_array_equal(other.matrices, found.matrices)
    assert "says i, but fields of eddy currents along j" in caplog.text


@pytest.mark.slow
def test_an_axis_is_used_as_told_where_nothing_speaks_against_it(moving, caplog):
    told = replace(moving, acquisition=moving.acquisition.encoded("i", moving.affine))
    estimate_motion(told, n_threads=2)
    assert "phase encoding" not in caplog.text


def test_polarity_turns_the_coefficients_round(distorted, found):
    acquisition = distorted.acquisition.encoded("j-", distorted.affine)
    other = estimate_motion(replace(distorted, acquisition=acquisition), n_threads=2)
    np.testing.assert_allclose(other.eddy_currents.pe, -found.eddy_currents.pe, atol=1e-12)
    np.testing.assert_allclose(
        other.eddy_currents.coefficients, -found.eddy_currents.coefficients, atol=1e-3
    )


def test_without_fields_there_are_none(estimated):
    assert estimated.eddy_currents is None


def test_order_is_that_of_the_evidence():
    def evidence(degree, p, response, own):
        return FieldEvidence(degree, response, own, 0.05, p)

    chance, sure = 0.01, 1e-9
    assert shown_order([evidence(1, chance, 1, 0), evidence(2, chance, 1, 0)]) == "none"
    assert shown_order([evidence(1, sure, 1, 0), evidence(2, chance, 1, 0)]) == "linear"
    assert shown_order([evidence(1, chance, 1, 0), evidence(2, sure, 1, 0)]) == "quadratic"
    assert shown_order([evidence(1, sure, 0.2, 0.3)]) == "none"
    assert shown_order([evidence(1, sure, 0.3, 0.1), evidence(2, sure, 0.1, 0)], 0.2) == "linear"


def test_offset_is_what_follows_the_gradients(scheme, grid):
    """A head that drifts and jumps, and an offset along the axis that follows the gradients."""
    rng = np.random.default_rng(0)
    pe, center = np.array([0.0, 1.0, 0.0]), np.array([3.0, -4.0, 5.0])
    drift = np.cumsum(rng.normal(scale=0.05, size=len(scheme)))
    drift[12:] += 3.0
    offsets = scheme.qvecs @ [1.5, -2.0, 0.7]
    matrices = np.tile(np.eye(4), (len(scheme), 1, 1))
    matrices[:, 1, 3] = drift - offsets
    fields = EddyCurrents(np.zeros((len(scheme), N_TERMS["linear"])), pe, center)
    split = with_offsets(Motion(matrices, eddy_currents=fields), scheme)
    error = split.eddy_currents.offsets - offsets
    assert np.abs(error).max() < 0.15
    assert np.abs(error).max() < 4 * split.eddy_currents.offset_errors.max()
    assert not split.eddy_currents.offsets[scheme.b0s].any()
    np.testing.assert_allclose(split.head[:, 1, 3], drift + error, atol=1e-12)
    np.testing.assert_array_equal(split.matrices, matrices)


def test_loop_estimates_no_fields(tiny):
    with pytest.raises(EddymotionError, match="only the estimator joint"):
        estimate_motion(tiny, estimator="lovo", eddy_currents="linear")


@pytest.mark.parametrize(
    ("given", "name"), [({"eddy_currents": "some"}, "quadratic"), ({"pe_axis": "y"}, "j-")]
)
def test_unknown_words_are_answered_with_the_known_ones(tiny, given, name):
    with pytest.raises(EddymotionError, match=name):
        estimate_motion(tiny, **given)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"PhaseEncodingDirection": "j-", "PhaseEncodingAxis": "j"}, "j-"),
        ({"PhaseEncodingAxis": "i"}, "i"),
        ({"PhaseEncodingDirection": "AP", "PhaseEncodingAxis": "k"}, "k"),
        ({"PhaseEncodingDirection": ["j"]}, None),
        ({}, None),
    ],
)
def test_axis_comes_from_the_metadata_and_never_is_an_error(metadata, expected, caplog):
    affine = np.diag([2.0, 2.0, 2.0, 1.0])
    gradients = Gradients(np.zeros(3), np.zeros((3, 3)))
    acquisition = acquisition_of(gradients, metadata, (9, 9, 9), affine, None, "sub-01")
    if expected is None:
        assert acquisition.phase_encoding is None
    else:
        vector = phase_encoding_vector(affine, expected)
        np.testing.assert_array_equal(acquisition.phase_encoding, [vector] * 3)
    strange = metadata.get("PhaseEncodingDirection") in ("AP", ["j"])
    assert ("it is ignored" in caplog.text) == strange


def test_metadata_beside_the_image_are_read(tmp_path):
    (tmp_path / "a_dwi.json").write_text('{"PhaseEncodingDirection": "i-"}')
    found = metadata_of(SeriesFiles(tmp_path / "a_dwi.nii.gz"))
    assert found == {"PhaseEncodingDirection": "i-"}


@pytest.mark.slow
def test_order_of_volumes_tells_only_what_follows_the_direction(distorted, found):
    order = np.random.default_rng(1).permutation(len(distorted))
    shuffled = DWI(
        distorted.signal[..., order],
        distorted.affine,
        distorted.gradients.select(order),
        distorted.mask,
    )
    back = estimate_motion(shuffled, n_threads=2).select(np.argsort(order))
    fields = replace(back, matrices=found.matrices)
    assert recorded_rmse(distorted, fields, found) < 0.05
    apart = pose_errors(distorted, back, found) * ([1.0] * 3 + [50.0] * 3)
    g = distorted.gradients.bvecs[distorted.gradients.dwis]
    products = np.einsum("ni,nj->nij", g, g).reshape(len(g), 9)
    follows = products @ np.linalg.lstsq(products, apart)[0]
    assert np.sqrt(((apart - follows) ** 2).mean()) < 0.02  # mm


@pytest.mark.slow
def test_log_tells_why(distorted, caplog):
    with caplog.at_level(logging.INFO, logger="eddymotion"):
        estimate_motion(distorted, estimator=Joint(eddy_current="linear"), n_threads=2)
    message = caplog.text
    assert "phase-encoding axis: j, found from the data" in message
    assert "follow the gradients" in message
