# SPDX-License-Identifier: Apache-2.0
"""The series: frozen, and valid once constructed."""

from dataclasses import FrozenInstanceError, replace

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.errors import EddymotionError


def test_series_is_frozen_and_leaves_the_callers_array_alone(tiny):
    own = np.array(tiny.signal)
    before = own.copy()
    dwi = replace(tiny, signal=own)
    with pytest.raises(FrozenInstanceError):
        dwi.signal = own
    with pytest.raises(ValueError, match="read-only"):
        dwi.signal[0] = 1
    with pytest.raises(ValueError, match="read-only"):
        dwi.affine[0] = 1
    assert own.flags.writeable
    np.testing.assert_array_equal(own, before)


def test_b0_volumes_stay_in_place_and_the_first_is_the_reference(tiny):
    assert tiny.reference == tiny.gradients.b0s[0] == 0
    order = np.roll(np.arange(len(tiny)), 2)
    turned = tiny.select(order)
    np.testing.assert_array_equal(turned.signal, tiny.signal[..., order])
    assert turned.reference == np.flatnonzero(order == 0)[0] == 2
    assert tiny.select(tiny.gradients.dwis).reference == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {"signal": d.signal[..., 0]}, "four dimensions"),
        (lambda d: {"signal": d.signal[..., :-1]}, "9 volumes but 10 b-values"),
        (lambda d: {"mask": d.mask[1:]}, "mask has shape"),
        (lambda d: {"mask": np.zeros(d.shape)}, "mask is empty"),
        (lambda d: {"signal": np.where(d.mask[..., None], np.nan, d.signal)}, "NaN or Inf"),
        (lambda d: {"signal": d.signal * (np.arange(10) != 4)}, "volume 4 .* zero"),
        (
            lambda d: {"gradients": Gradients([0] * 9 + [1000], [[1, 0, 0]] * 10)},
            "found 1 diffusion-weighted",
        ),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(tiny, change, message):
    with pytest.raises(EddymotionError, match=message):
        replace(tiny, **change(tiny))


def test_a_series_is_shown_in_one_line(tiny):
    assert repr(tiny).startswith(f"DWI({'×'.join(map(str, tiny.shape))}×{len(tiny)}, ")
    assert repr(tiny).endswith("×b=1000)")


def test_split_leaves_one_volume_out(tiny):
    n = len(tiny)
    for index, place in ((3, 3), (-1, n - 1)):
        others, volume = tiny.split(index)
        kept = [i for i in range(n) if i != place]
        np.testing.assert_array_equal(others.signal, tiny.signal[..., kept])
        np.testing.assert_array_equal(others.gradients.bvecs, tiny.gradients.bvecs[kept])
        np.testing.assert_array_equal(volume.data, tiny.signal[..., place])
    with pytest.raises(IndexError, match="out of bounds"):
        tiny.split(n)
