# SPDX-License-Identifier: Apache-2.0
"""The time between volumes: what the sidecar says goes before what the header was left at."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.acquisition import Slicing
from eddymotion.io.sidecars import acquisition_of


@pytest.mark.parametrize(
    ("said", "of_header", "found", "words"),
    [
        (4.0, None, 4.0, ""),
        (4.0, 1.0, 4.0, "RepetitionTime is 4 s in the sidecar, 1 s in the header"),
        (4.0, 4.0001, 4.0, ""),
        (4000, 4.0, 4.0, "RepetitionTime is 4000, expected seconds"),
        (0, 4.0, 4.0, "RepetitionTime is 0, expected seconds"),
        (None, 4.0, 4.0, ""),
    ],
)
def test_repetition_time_is_that_of_the_sidecar(said, of_header, found, words, tiny, caplog):
    metadata = {} if said is None else {"RepetitionTime": said}
    acquisition = acquisition_of(
        tiny.gradients, metadata, tiny.shape, tiny.affine, of_header, "sub-01"
    )
    assert acquisition.repetition_time == pytest.approx(found)
    assert words in caplog.text if words else not caplog.text


def test_slice_times_in_milliseconds_are_noticed_without_a_repetition_time(tiny):
    times = np.arange(tiny.shape[2]) * 200.0
    slicing = Slicing.of({"SliceTiming": times.tolist()}, tiny.shape)
    acquisition = replace(tiny.acquisition, slicing=slicing, start_times=None)
    assert "it should be in seconds" in acquisition.why_untimed
