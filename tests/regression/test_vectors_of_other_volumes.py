# SPDX-License-Identifier: Apache-2.0
"""b-vectors that stand at other volumes leave the poses as they are, and were not told."""

from dataclasses import replace

import numpy as np
import pytest

from eddymotion.data.checks import find_issues
from eddymotion.data.checks.appearance import Appearance
from eddymotion.data.checks.order import _Shell, exchanged_vectors, likelier_order
from eddymotion.data.gradients import Gradients


def with_rows(dwi, rows):
    bvecs = dwi.gradients.bvecs.copy()
    bvecs[dwi.gradients.dwis] = dwi.gradients.bvecs[rows]
    return replace(dwi, gradients=Gradients(dwi.gradients.bvals, bvecs))


def told(dwi):
    return [issue.text for issue in find_issues(dwi) if issue.kind == "directions"]


@pytest.mark.parametrize("seed", range(4))
def test_two_volumes_with_exchanged_vectors_are_named(still, seed):
    dwis = still.gradients.dwis
    one, other = sorted(map(int, np.random.default_rng(seed).choice(dwis, 2, replace=False)))
    rows = np.arange(len(still))
    rows[[one, other]] = other, one
    (text,) = told(with_rows(still, rows[dwis]))
    assert text.startswith(f"volumes {one} and {other}: the images fit with their b-vectors")


@pytest.mark.parametrize(
    ("order", "words"),
    [
        (lambda rows: np.roll(rows, 1), "each stands one diffusion-weighted volume earlier"),
        (lambda rows: np.roll(rows, -1), "each stands one diffusion-weighted volume later"),
        (lambda rows: rows[::-1], "they stand in reverse order"),
    ],
)
def test_a_table_in_another_order_is_told_with_the_right_one(still, order, words):
    (text,) = told(with_rows(still, order(still.gradients.dwis)))
    assert words in text


def test_vectors_at_their_volumes_are_left_alone(still, moving, two_shells):
    for dwi in (still, moving, two_shells):
        assert not told(dwi)
        assert exchanged_vectors(dwi) == []
        assert likelier_order(dwi) is None


def test_a_head_that_moved_far_tells_nothing(moving):
    """Its patterns follow the motion: with three exchanges of three some other table fits best."""
    rows = moving.gradients.dwis.copy()
    rows[:6] = rows[[3, 4, 5, 0, 1, 2]]
    assert exchanged_vectors(with_rows(moving, rows)) == []


def test_gains_are_what_an_exchange_adds(two_shells):
    shell = _Shell.of(
        Appearance.of(two_shells), two_shells.gradients.bvecs, two_shells.gradients.shells[0]
    )
    gains = shell.gains()
    explained = (shell.projection * shell.products).sum()
    for i, j in ((0, 1), (3, 11), (7, 2)):
        other = shell.exchanged(i, j)
        added = (other.projection * other.products).sum() - explained
        assert gains[i, j] == pytest.approx(added, rel=1e-9)
        assert gains[j, i] == pytest.approx(added, rel=1e-9)
