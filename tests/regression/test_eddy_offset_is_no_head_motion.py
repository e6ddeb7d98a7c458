# SPDX-License-Identifier: Apache-2.0
"""Volumes that eddy currents displaced are not told of as motion of the head."""

from dataclasses import replace

import numpy as np
import pytest
from report_cases import write_series

from eddymotion.estimation import assess
from eddymotion.images.axes import image_axes
from eddymotion.mapping.eddy_currents import EddyCurrents
from eddymotion.mapping.motion import Motion
from eddymotion.models import get_model
from eddymotion.reports.display import html_of
from eddymotion.reports.group import gather
from eddymotion.reports.metrics import quality_metrics
from eddymotion.reports.sections import describe_motion
from eddymotion.reports.series import SeriesReport
from eddymotion.reports.summary import summarise
from eddymotion.reports.verdict import Severity

OFFSET_MM = 3.0


@pytest.fixture(scope="module")
def at_rest(tiny):
    """A head that drifts by 0.2 mm while fields displace every other volume by 3 mm."""
    pe = -image_axes(tiny.affine)[:, 1]
    offsets = np.where(np.arange(len(tiny)) % 2, OFFSET_MM, 0.0)
    offsets[tiny.gradients.is_b0] = 0.0
    eddy = EddyCurrents.none(len(tiny), "linear", pe, tiny.center)
    eddy = replace(eddy, offsets=offsets, offset_errors=np.full(len(tiny), 0.01))
    head = Motion.identity(len(tiny)).matrices.copy()
    head[:, 0, 3] = np.linspace(0, 0.2, len(tiny))
    return Motion(eddy.shifts @ head, eddy_currents=eddy)


@pytest.fixture(scope="module")
def series(at_rest, tiny, tmp_path_factory):
    return SeriesReport.load(write_series(tmp_path_factory.mktemp("out"), "01", tiny, at_rest))


def test_the_head_is_judged(series):
    assert not len(series.findings.jumps)
    assert series.findings.fd_with_offset[1:].max() > 2.9
    displaced = {c.label: c for c in series.verdict.checks if "displacement" in c.label}
    for label in ("mean", "largest"):
        check = displaced[f"{label} framewise displacement"]
        assert check.level is Severity.GOOD
        assert check.value < 0.05
        assert "mm with the eddy-current offset)" in check.text


def test_the_headline_tells_the_head_and_the_offset_beside_it(series):
    words = describe_motion(series)
    assert "The head moved up to 0.2 mm (most along x" in words
    assert "no jumps" in words
    assert "Eddy currents displaced the volumes by up to 3.0 mm" in words


def test_columns_of_the_group_stay(series):
    metrics = quality_metrics(series)
    assert metrics["fd_max"] > 2.9
    assert metrics["fd_head_max"] < 0.05
    group = gather(series.outputs.folder.parent)
    assert group.head_column("fd_max")[0] == metrics["fd_head_max"]


def test_the_summary_tells_both(tiny, at_rest):
    model = get_model("average", tiny.gradients)
    quality = assess(tiny, at_rest, model)
    content = summarise(tiny, at_rest, model, quality, quality)
    assert content["framewise displacement"].startswith("mean 0.02 mm, max 0.02 mm, of the head; ")
    assert "max 3.02 mm" in content["framewise displacement"]
    assert content["range of translations (x, y, z)"] == "0.20, 0.00, 0.00 mm, of the head"
    assert "0.02 at most (of the head alone" in html_of(at_rest)


def test_without_an_offset_nothing_is_added(tiny, tmp_path):
    moved = Motion.identity(len(tiny))
    series = SeriesReport.load(write_series(tmp_path, "01", tiny, moved))
    assert "Eddy" not in describe_motion(series)
    assert not any("offset" in check.text for check in series.verdict.checks)
