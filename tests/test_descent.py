# SPDX-License-Identifier: Apache-2.0
"""The Gauss-Newton loop of pairs and series, a step at a time."""

from dataclasses import dataclass

import numpy as np
import pytest

from eddymotion.registration.solver import FACTORS, Descent, Evaluation


@dataclass(frozen=True, eq=False)
class Expansion(Evaluation):
    """A cost with a Hessian that may be wrong."""

    slope: np.ndarray

    def step(self):
        return -np.linalg.solve(self.hessian, self.slope)


@dataclass
class Bowl:
    """``½ (x − x₀)ᵀ H (x − x₀)``; steps are too long by a factor, and the rim shows nothing."""

    hessian: np.ndarray
    bottom: np.ndarray
    too_long: float = 1.0
    rim: float = np.inf
    slack: float = 1e-3

    def evaluate(self, place):
        away = place - self.bottom
        if np.linalg.norm(away) > self.rim:
            return None
        slope = self.hessian @ away
        return Expansion(0.5 * away @ slope, 100, self.hessian / self.too_long, slope)

    def moved(self, place, step):
        return place + step

    def length(self, place, step):
        return float(np.linalg.norm(step))


HESSIAN, BOTTOM = np.array([[4.0, 1.0], [1.0, 2.0]]), np.array([3.0, -1.0])
START = np.zeros(2)
FAR = float(np.linalg.norm(BOTTOM))


def test_a_quadratic_is_solved_in_one_step():
    descent = Descent(Bowl(HESSIAN, BOTTOM), START, tolerance=1e-6)
    descent.step()
    assert descent.trial == pytest.approx(BOTTOM)
    assert descent.place == pytest.approx(START)  # nothing has judged the step yet
    assert descent.length == pytest.approx(FAR)
    assert not descent.ended
    descent.step()
    assert descent.place == pytest.approx(BOTTOM)
    assert descent.ended
    assert descent.costs == pytest.approx([0.5 * BOTTOM @ HESSIAN @ BOTTOM, 0.0])


def test_a_step_that_raises_the_cost_is_halved_until_it_does_not():
    """Three times too long it ends on the other side, twice as far: halved, half as far."""
    descent = Descent(Bowl(HESSIAN, BOTTOM, too_long=3.0, slack=0.0), START, tolerance=1e-6)
    descent.step()
    assert descent.trial == pytest.approx(3 * BOTTOM)
    descent.step()
    assert descent.halved
    assert descent.place == pytest.approx(START)
    assert descent.trial == pytest.approx(1.5 * BOTTOM)
    assert (descent.length, descent.whole) == pytest.approx((1.5 * FAR, 3 * FAR))
    assert len(descent.costs) == 1
    descent.step()
    assert not descent.halved
    assert descent.place == pytest.approx(1.5 * BOTTOM)
    assert descent.trial == pytest.approx(0 * BOTTOM)
    descent.run(100)
    assert descent.ended
    assert descent.place == pytest.approx(BOTTOM, abs=1e-5)


@pytest.mark.parametrize(("creeps", "highest"), [(False, 1.001), (True, 1.0015)])
def test_a_cost_may_creep_up_by_the_slack_again_only_where_that_is_said(creeps, highest):
    descent = Descent(Bowl(HESSIAN, BOTTOM), START, tolerance=1e-6, creeps=creeps)
    descent.costs = [1.0, 1.0005]
    assert descent.accepts(highest - 1e-6, 100)
    assert not descent.accepts(highest + 1e-6, 100)


def test_where_nothing_is_seen_a_step_is_halved_and_a_start_is_the_end():
    descent = Descent(Bowl(HESSIAN, BOTTOM, too_long=3.0, rim=1.2 * FAR), START, tolerance=1e-6)
    descent.step()
    descent.step()
    assert descent.halved
    assert descent.trial == pytest.approx(1.5 * BOTTOM)
    blind = Descent(Bowl(HESSIAN, BOTTOM, rim=0.5 * FAR), START, tolerance=1e-6)
    blind.run(5)
    assert blind.ended
    assert blind.n_steps == 1
    assert not blind.costs


def test_a_place_that_shows_less_than_half_is_refused():
    descent = Descent(Bowl(HESSIAN, BOTTOM), START, tolerance=1e-6)
    descent.step()
    assert descent.accepts(0.0, 50)
    assert not descent.accepts(0.0, 49)


@pytest.mark.parametrize("too_long", [0.25, 1.8])
def test_steps_that_creep_are_lengthened_to_where_they_lead(too_long):
    """Constant ratios between steps are seen through at the second one."""
    bowl = Bowl(HESSIAN, BOTTOM, too_long)
    creeping, jumping = (Descent(bowl, START, 1e-6, reach) for reach in (None, 100.0))
    for descent in (creeping, jumping):
        descent.step()
        descent.step()
    assert jumping.trial == pytest.approx(BOTTOM)
    left = abs(1 - too_long) ** 2
    assert np.linalg.norm(creeping.trial - BOTTOM) == pytest.approx(left * FAR)


def test_steps_are_lengthened_up_to_their_reach_and_by_no_more_than_a_factor():
    bowl = Bowl(HESSIAN, BOTTOM, too_long=0.05)
    free, held = (Descent(bowl, START, 1e-6, reach) for reach in (100.0, 0.1 * FAR))
    for descent in (free, held):
        descent.step()
        descent.step()
    assert free.length == pytest.approx(FACTORS[1] * 0.05 * 0.95 * FAR)
    assert held.length == pytest.approx(0.1 * FAR)


def test_it_ends_when_what_is_left_of_the_way_is_short():
    """Steps of 90, 9 and 0.9 % of the way leave a tenth of the last."""
    descent = Descent(Bowl(HESSIAN, BOTTOM, too_long=0.9), START, tolerance=2e-3 * FAR)
    descent.step()
    assert not descent.ended  # one step tells nothing of the next
    descent.run(100)
    assert descent.n_steps == 3
    assert descent.length == pytest.approx(0.009 * FAR)
    assert np.linalg.norm(descent.trial - BOTTOM) == pytest.approx(0.001 * FAR)


def test_the_number_of_steps_is_limited_and_progress_is_told():
    told = []

    def progress(steps, total):
        for step in steps:
            told.append((step, total))
            yield step

    descent = Descent(Bowl(HESSIAN, BOTTOM, too_long=0.5), START, tolerance=1e-9)
    descent.run(3, progress)
    assert told == [(0, 3), (1, 3), (2, 3)]
    assert not descent.ended
    assert np.linalg.norm(descent.place - BOTTOM) == pytest.approx(FAR / 4)


@dataclass
class Misjudged(Bowl):
    """Steps are too long by a factor along each direction."""

    too_long: np.ndarray = None

    def evaluate(self, place):
        slope = self.hessian @ (away := place - self.bottom)
        hessian = self.hessian / np.sqrt(np.outer(self.too_long, self.too_long))
        return Expansion(0.5 * away @ slope, 100, hessian, slope)


@pytest.mark.parametrize(("far_off", "at_most"), [(0.3, 5), (2.0, 5)])
def test_a_step_that_is_mixed_with_the_last_follows_each_direction(far_off, at_most):
    """Along one direction steps creep or go back and forth, along the other they are right."""
    bowl = Misjudged(np.diag([4.0, 1.0]), BOTTOM, too_long=np.array([1.0, far_off]))
    plain, mixing = (
        Descent(bowl, START, tolerance=1e-4, creeps=True, mixes=mixes) for mixes in (False, True)
    )
    for descent in plain, mixing:
        descent.run(20)
    assert mixing.ended
    assert mixing.n_steps <= at_most
    assert mixing.trial == pytest.approx(BOTTOM, abs=1e-4)
    assert plain.n_steps > 2 * at_most


def test_a_step_that_was_refused_is_not_mixed_with_others():
    bowl = Bowl(HESSIAN, BOTTOM, too_long=3.0, slack=0.0)
    plain, mixing = (Descent(bowl, START, tolerance=1e-6, mixes=mixes) for mixes in (False, True))
    for descent in plain, mixing:
        descent.step()
        descent.step()
        assert descent.halved
    descent.step()
    assert mixing.trial == pytest.approx(0 * BOTTOM)
