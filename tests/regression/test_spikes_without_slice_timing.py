# SPDX-License-Identifier: Apache-2.0
"""A head that moved and came back within a volume, while nothing tells when slices were excited.

The pose is that of most slices, and all points agreed with it: a b=0 volume whose mean pose was
0.6 mm away was told to be 0.1 mm off.
"""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.acquisition import Slicing
from eddymotion.estimation import estimate_motion
from eddymotion.io.motion import read_written_motion, write_motion
from eddymotion.pipeline.sidecar import warnings_of

VOXELS = 2


def spiked(dwi, volume, slices):
    """Some slices of a volume show the head further to the front."""
    signal = np.array(dwi.signal)
    signal[:, VOXELS:, slices, volume] = signal[:, :-VOXELS, slices, volume]
    return replace(dwi, signal=signal)


@pytest.mark.slow
def test_slices_that_contradict_a_b0_volume_are_in_its_errors(moving, estimated):
    volume, slices = int(moving.gradients.b0s[1]), np.arange(10, 16)
    found = estimate_motion(spiked(moving, volume, slices), n_threads=2)
    away = VOXELS * moving.voxel_sizes[1] * len(slices) / moving.shape[2]
    told = found.standard_errors[:, 1]
    assert away / 2.5 < told[volume] < 2 * away
    others = np.delete(np.arange(len(moving)), [volume, moving.gradients.b0s[0]])
    assert (told[others] / estimated.standard_errors[others, 1]).max() < 1.25
    assert f"volume {volume}: slices contradict the pose" in found.within_doubt
    (warning,) = warnings_of(moving, found)
    assert warning["Subject"] == "motion within volumes"


@pytest.mark.slow
def test_of_three_b0_volumes_the_one_at_rest_is_not_named(moving):
    """Two moved alike, so that their median had moved as well: the third seemed to have."""
    _, second, third = map(int, moving.gradients.b0s)
    few = spiked(spiked(moving, second, np.arange(6, 18)), third, np.arange(14, 26))
    found = estimate_motion(few, n_threads=2)
    assert found.within_doubt.startswith(f"volumes {second}, {third}: slices contradict")
    assert "(or others of the 3 b=0 volumes)" in found.within_doubt


def test_a_head_at_rest_within_volumes_is_not_doubted(estimated, tmp_path):
    assert estimated.within_doubt is None
    doubted = replace(estimated, within_doubt="volume 3: slices contradict")
    files = tmp_path / "xfm.txt", tmp_path / "details.json"
    write_motion(*files, doubted)
    kept = read_written_motion(*files)
    assert kept.within_doubt == doubted.within_doubt


def test_possible_orders_are_the_told_one_or_usual_ones():
    told = Slicing.of({"SliceTiming": (np.arange(24) % 8).tolist()}, (8, 8, 24))
    assert told.possible(24) == [told]
    unknown = Slicing(1)
    orders = unknown.possible(24)
    assert len(orders) > 20
    assert {one.axis for one in orders} == {1}
    for one in orders:
        np.testing.assert_array_equal(np.sort(np.concatenate(one.groups)), np.arange(24))
    assert unknown.possible(4) == [unknown]
