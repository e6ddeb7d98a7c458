# SPDX-License-Identifier: Apache-2.0
"""Values whose arrays nobody can change: copies of shapes that fit; some entries are kept."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import numpy as np
import pytest

from eddymotion.errors import EddymotionError
from eddymotion.machine.frozen import freeze, once_per_value, selected


@dataclass(frozen=True)
class Weighed:
    values: np.ndarray
    weights: np.ndarray | None = None
    center: np.ndarray | None = None
    inner: Weighed | None = None

    def __post_init__(self):
        freeze(self, "weighed", values="N 2", weights="N", center="3")

    def select(self, chosen):
        return selected(self, chosen, "values", "weights", "inner")


def test_arrays_are_copies_that_nobody_can_change():
    mine = np.arange(6).reshape(3, 2)
    value = Weighed(mine, center=[1, 2, 3])
    mine[0] = 9
    assert value.values.dtype == value.center.dtype == float
    np.testing.assert_array_equal(value.values, [[0, 1], [2, 3], [4, 5]])
    assert value.weights is None
    with pytest.raises(ValueError, match="read-only"):
        value.values[0] = 1


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"values": np.ones((3, 3))}, r"weighed: values of shape \(3, 3\), expected \(N, 2\)"),
        ({"values": np.ones(2)}, r"values of shape \(2,\), expected \(N, 2\)"),
        ({"weights": np.ones(4)}, r"weights of shape \(4,\), expected \(3\)"),
        ({"center": np.ones((3, 1))}, r"center of shape \(3, 1\), expected \(3\)"),
    ],
)
def test_a_letter_is_one_size_in_all_of_them(parts, message):
    with pytest.raises(EddymotionError, match=message):
        Weighed(**({"values": np.ones((3, 2)), "weights": np.ones(3)} | parts))


@pytest.mark.parametrize("chosen", [np.array([2, 0]), slice(None, None, 2)])
def test_some_entries_are_kept_of_all_that_have_several(chosen):
    inner = Weighed(np.eye(3)[:, :2])
    value = Weighed(np.arange(6).reshape(3, 2), np.arange(3), np.ones(3), inner)
    some = value.select(chosen)
    np.testing.assert_array_equal(some.values, value.values[chosen])
    np.testing.assert_array_equal(some.weights, value.weights[chosen])
    np.testing.assert_array_equal(some.inner.values, inner.values[chosen])
    assert some.inner.weights is None
    np.testing.assert_array_equal(some.center, np.ones(3))


def test_a_result_is_computed_once_for_each_value_and_keeps_none_alive():
    @dataclass(frozen=True, eq=False)
    class Number:
        size: int

    computed = []
    square = once_per_value(lambda number: computed.append(number.size) or number.size**2)
    two, three = Number(2), Number(3)
    assert [square(two), square(three), square(two)] == [4, 9, 4]
    assert computed == [2, 3]
    gone = weakref.ref(two)
    del two
    gc.collect()
    assert gone() is None
