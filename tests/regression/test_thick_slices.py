# SPDX-License-Identifier: Apache-2.0
"""What thick slices alias stays with them, and pulls the poses towards rest."""

import numpy as np
import pytest

from eddymotion.estimation import Joint, estimate_motion
from eddymotion.images.pyramid import fine_widths
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix, rigid_parameters
from eddymotion.simulation import Grid, acquire, shelled_scheme


@pytest.fixture(scope="module")
def nodding(head):
    """Small nods of b=0 volumes: a head of sharp edges, of which slices of 7.5 mm alias most."""
    scheme = shelled_scheme({1000: 8}, 4)
    nods = np.deg2rad(0.8) * np.array([0, 1, -1, 1.5])
    turned = [rigid_matrix(np.zeros(3), [nod, -nod / 2, 0], np.zeros(3)) for nod in nods]
    truth = Motion.identity(len(scheme)).updated(scheme.b0s, np.array(turned))
    dwi = acquire(head, scheme, truth, Grid.covering(head, (2.5, 2.5, 7.5)), snr=30)
    found = estimate_motion(dwi, estimator=Joint(eddy_current="none"), n_threads=2)
    return (
        *(rigid_parameters(one.matrices, dwi.center)[scheme.b0s] for one in (truth, found)),
        found.standard_errors[scheme.b0s],
    )


def test_nods_through_thick_slices_are_found_for_the_most_part(nodding):
    truth, found, _ = nodding
    for axis in (3, 4):  # 0.37 with a filter as narrow along the slices as in them
        assert np.polyfit(truth[:, axis], found[:, axis], 1)[0] > 0.6


def test_what_is_missing_lies_within_the_errors(nodding):
    truth, found, errors = nodding
    assert np.max(np.abs(found - truth)[1:] / errors[1:]) < 3  # 15 before


def test_only_thick_slices_are_filtered_more_widely():
    np.testing.assert_allclose(fine_widths(np.full(3, 2.0)), 2.0)
    in_plane, _, along = fine_widths(np.array([2.0, 2.0, 6.0]))
    assert in_plane < 3 < 6 < along
