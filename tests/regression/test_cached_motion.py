# SPDX-License-Identifier: Apache-2.0
"""A cached motion is used only as it was written, and only if it is rigid."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.io.motion import write_motion
from eddymotion.mapping.motion import Motion
from eddymotion.mapping.rigid import rigid_matrix
from eddymotion.pipeline.cache import FoundMotion, MotionCache, _rigid_motion


def cached_motion(folder, scale=1.0):
    matrix = rigid_matrix([1.0, -2.0, 0.5], [0.01, 0.02, -0.03], np.zeros(3))
    matrix[:3, :3] *= scale
    motion = Motion(np.stack([np.eye(4), matrix]))
    kept = MotionCache(folder)
    kept.keep(FoundMotion(motion, 2.5, [(0.5, "a step")]))
    return kept, motion


def test_it_comes_back_digit_by_digit(tmp_path):
    kept, motion = cached_motion(tmp_path)
    found = kept.recall()
    np.testing.assert_array_equal(found.motion.matrices, motion.matrices)
    assert (found.seconds, found.log) == (2.5, [(0.5, "a step")])


def test_what_is_not_rigid_is_found_again(tmp_path, caplog):
    kept, _ = cached_motion(tmp_path, scale=1.01)
    assert kept.recall() is None
    (line,) = caplog.messages
    assert "not rigid in volume 1" in line
    assert "estimated again" in line


@pytest.mark.parametrize("name", ["xfm.txt", "details.json", "stages.json"])
@pytest.mark.parametrize("content", ["", "[" * 50_000, None])
def test_what_was_changed_is_found_again(name, content, tmp_path, caplog):
    kept, _ = cached_motion(tmp_path)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text(text.replace("2", "3") if content is None else content)
    assert kept.recall() is None or (name == "stages.json" and content is None)
    assert len(caplog.messages) <= 1


def test_a_run_is_read_as_it_was_alone_or_found_again(tmp_path):
    """In the frame of the first run it would be joined to that run once more."""
    files = tmp_path / "xfm.txt", tmp_path / "details.json"
    alone = Motion(rigid_matrix([[0.0] * 3, [1.0, -2.0, 0.5]], [[0.0] * 3, [0.01, 0.02, -0.03]],
                                np.zeros(3)), np.full((2, 6), 0.1))  # fmt: skip
    joined = replace(
        alone, matrices=alone.matrices[::-1], standard_errors=alone.standard_errors * 2
    )
    write_motion(*files, replace(joined, alone=alone))
    read = _rigid_motion(*files, of_run=True)
    np.testing.assert_array_equal(read.matrices, alone.matrices)
    np.testing.assert_array_equal(read.standard_errors, alone.standard_errors)
    write_motion(*files, joined)  # as an earlier version left it
    with pytest.raises(ValueError, match="without the motion of the run alone"):
        _rigid_motion(*files, of_run=True)
