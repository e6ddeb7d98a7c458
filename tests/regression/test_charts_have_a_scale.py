# SPDX-License-Identifier: Apache-2.0
"""Every axis has numbers besides zero: without them a curve has no size."""

import re

import numpy as np
import pytest

from eddymotion.data.gradients import Gradients
from eddymotion.derivatives.eddy import eddy_columns
from eddymotion.io.tsv import Table, table_text
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.reports.charts import eddy_chart
from eddymotion.reports.svg import Columns, Panel, ticks

NUMBER = re.compile(r'text-anchor="end"[^>]*>(-?[\d.e+-]+)</text>')


@pytest.mark.parametrize("size", [0.01, 0.15, 0.33, 0.35, 0.9, 3.3, 40.0])
def test_eddy_chart_tells_millimetres(size):
    """Up to ±0.35 mm, a step of 0.5 mm was taken: the only tick was 0."""
    rng = np.random.default_rng(0)
    coefficients = rng.uniform(-1, 1, (12, 9)) * size
    coefficients[3] = size
    coefficients[4] = -size
    eddy = EddyCurrents(coefficients, np.array([0, 1.0, 0]), np.zeros(3), coefficients[:, 0])
    gradients = Gradients(np.full(12, 1000.0), rng.normal(size=(12, 3)))
    chart = eddy_chart(Table.parse(table_text(eddy_columns(eddy))), gradients)
    numbers = [float(number) for number in NUMBER.findall(chart)]
    assert len(numbers) >= 9  # three panels
    assert numbers.count(0) == 3
    reach = max(size, 0.1)
    assert max(numbers) >= 0.4 * reach
    assert min(numbers) <= -0.4 * reach
    assert np.abs(numbers).max() <= 1.06 * reach


def test_axes_of_any_reach_have_few_round_ticks():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        span = 10 ** rng.uniform(-4, 4)
        low = -span * rng.uniform(-1, 1)
        found = np.array(ticks(low, low + span, rng.uniform(2, 4)))
        assert 3 <= len(found) <= 10
        (step,) = {f"{step:.3e}" for step in np.diff(found)}
        assert step[0] in "125"
        np.testing.assert_allclose(found / float(step), np.round(found / float(step)), atol=1e-3)
        assert low - 1e-6 * span <= found[0]
        assert found[-1] <= low + span * (1 + 1e-6)


def test_low_panel_has_a_scale():
    frame = Panel(Columns(range(5)), 0.0, 46.0, 0.0, 5.0, "lost slices").frame()
    assert [float(number) for number in NUMBER.findall(frame)] == [0, 2, 4]
